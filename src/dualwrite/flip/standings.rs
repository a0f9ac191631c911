//! Where the authority over slices stands, as both of their databases tell.

use super::course::{Found, Group};
use super::effects::failed;
use super::group::group_state;
use super::moves::{Member, MoveError};
use super::{FlipError, Links};
use crate::authority::{Gate, GroupState, Side, Standing, group_to_read};
use crate::cdc::mirror::chain_of;
use crate::journal::{JournalError, authority};
use crate::postgres::sqlstate;

/// Looks at all members.
pub(super) async fn look(members: &[Member]) -> Result<Vec<Found>, MoveError> {
    let mut found = Vec::new();
    for member in members {
        let slice = &member.mapping.slice;
        let mut links = member.links.take();
        let one = of_slice(&mut links, slice).await;
        found.push(one.map_err(|source| MoveError { slice: slice.clone(), source })?);
        member.links.keep(links).await;
    }
    Ok(found)
}

async fn of_slice(links: &mut Links, slice: &str) -> Result<Found, FlipError> {
    let (monolith, service) = gates(links, slice).await?;
    let standing = Standing::of(&monolith, &service);
    let group = match group_to_read(&monolith, &service, None) {
        Some(id) => {
            let client = links.looking(Side::Monolith).await?;
            let row = authority::group(client, id.0).await;
            let row = row.map_err(|error| failed("reading the group", &error))?;
            let (state, members) = match row {
                Some((state, members)) => (group_state(&state)?, members),
                None => (GroupState::Absent, Vec::new()),
            };
            Some(Group { id, state, members })
        }
        None => None,
    };
    Ok(Found { slice: slice.to_owned(), standing, group })
}

/// Where one slice stands.
pub(super) async fn standing(links: &mut Links, slice: &str) -> Result<Standing, FlipError> {
    let (monolith, service) = gates(links, slice).await?;
    Ok(Standing::of(&monolith, &service))
}

async fn gates(links: &mut Links, slice: &str) -> Result<(Gate, Gate), FlipError> {
    Ok((gate(links, slice, Side::Monolith).await?, gate(links, slice, Side::Service).await?))
}

async fn gate(links: &mut Links, slice: &str, side: Side) -> Result<Gate, FlipError> {
    let absent = || FlipError::NotProvisioned { side };
    let failed = |error: JournalError| match error.database_error().and_then(sqlstate::code) {
        // Neither the schema nor the gate's table has to be there.
        Some("3F000" | "42P01") => absent(),
        Some(_) | None => FlipError::Failed { what: "looking at a side", words: chain_of(&error) },
    };
    let client = links.looking(side).await?;
    let rows = authority::look(client, slice, side.incoming()).await.map_err(failed)?;
    Ok(Gate::try_from(&rows.ok_or_else(absent)?.gate)?)
}

/// Whether a side is known to be open.
pub(super) async fn takes_writes(links: &mut Links, slice: &str, side: Side) -> bool {
    gate(links, slice, side).await.is_ok_and(|gate| gate.is_open())
}
