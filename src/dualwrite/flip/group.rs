//! Moves of several slices: the row in the monolith that says whether all of them go or stay.

use tokio_postgres::Client;

use super::effects::{failed, hit, unreadable};
use super::{Driver, FlipError};
use crate::authority::{Event, Gate, Group, GroupId, GroupState, Side, Sight, Standing, group_to_read};
use crate::journal::{JournalError, authority};

/// A move of several slices that is not over.
#[derive(Debug)]
pub(super) struct BegunTogether {
    pub(super) id: GroupId,
    pub(super) state: GroupState,
    /// All slices of it.
    pub(super) members: Vec<String>,
    /// Away from whom.
    pub(super) from: Side,
}

impl Driver {
    /// The move of several slices that this one is fenced for. `None` when there is none, or a side that does not answer can't
    /// say, which the first step then refuses.
    pub(super) async fn begun_together(&mut self) -> Result<Option<BegunTogether>, FlipError> {
        let slice = self.slice.clone();
        let (Sight::Seen(there), Sight::Seen(here)) = self.sights(&slice).await? else {
            return Ok(None);
        };
        let (Some(id), Standing::Fenced { from, .. }) =
            (group_to_read(&there.gate, &here.gate, None), Standing::of(&there.gate, &here.gate))
        else {
            return Ok(None);
        };
        let monolith = self.links.looking(Side::Monolith).await?;
        let row =
            authority::group(monolith, id.0).await.map_err(|error| failed("reading the group", &error))?;
        let Some((state, members)) = row else { return Ok(None) };
        Ok(match group_state(&state)? {
            state @ (GroupState::Pending | GroupState::Open) => {
                Some(BegunTogether { id, state, members, from })
            }
            GroupState::Aborted | GroupState::Absent => None,
        })
    }

    /// The group row, and whether every member of it is fenced under it.
    pub(super) async fn group(&mut self, id: GroupId) -> Result<Group, FlipError> {
        let failed = |error: JournalError| failed("reading the group", &error);
        let monolith = self.links.looking(Side::Monolith).await?;
        let Some((state, members)) = authority::group(monolith, id.0).await.map_err(failed)? else {
            return Ok(Group { id, state: GroupState::Absent, complete: false });
        };
        let state = group_state(&state)?;
        let mut complete = true;
        for member in &members {
            complete &= self.is_fenced_under(member, id).await?;
        }
        Ok(Group { id, state, complete })
    }

    /// Either side's gate of a member says so.
    async fn is_fenced_under(&mut self, member: &str, id: GroupId) -> Result<bool, FlipError> {
        for side in [Side::Monolith, Side::Service] {
            // Members may live in services that this driver has no link to; the caller then knows more than we do.
            let client = self.links.looking(side).await?;
            if let Ok(Some(rows)) = authority::look(client, member, side.incoming()).await
                && Gate::try_from(&rows.gate)?.is_fenced_under(id)
            {
                return Ok(true);
            }
        }
        Ok(self.together.as_ref().is_some_and(|together| together.fenced.contains(&(id, member.to_owned()))))
    }

    pub(super) async fn propose(&mut self, id: GroupId) -> Result<Event, FlipError> {
        let members = self.together.as_ref().map(|together| together.members.clone()).unwrap_or_default();
        let client = self.links.looking(Side::Monolith).await?;
        let done = authority::propose(client, id.0, &members).await;
        hit(done, "writing a group", "flip-proposed")
    }

    pub(super) async fn settle_group(&mut self, id: GroupId, state: GroupState) -> Result<Event, FlipError> {
        let state = if state == GroupState::Open { "open" } else { "aborted" };
        let client = self.links.looking(Side::Monolith).await?;
        hit(authority::settle(client, id.0, state).await, "deciding about a group", "flip-settled")
    }
}

pub(super) fn group_state(word: &str) -> Result<GroupState, FlipError> {
    match word {
        "pending" => Ok(GroupState::Pending),
        "open" => Ok(GroupState::Open),
        "aborted" => Ok(GroupState::Aborted),
        other => Err(unreadable("the group's state", other)),
    }
}

/// Whether the group row, if there has to be one, is in this state.
pub(super) async fn group_is(
    monolith: &Client,
    group: Option<GroupId>,
    state: &str,
) -> Result<bool, FlipError> {
    let Some(id) = group else { return Ok(true) };
    let found = authority::group(monolith, id.0).await;
    let found = found.map_err(|error| failed("reading the group", &error))?;
    Ok(found.is_some_and(|(found, _)| found == state))
}
