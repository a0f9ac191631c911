//! What a command that moves slices has to do about each, before anything is done: begin, finish what is under way, or leave
//! it. Pure.
//!
//! What begins is judged, and the plan's `before` hooks run for it. So a slice that is there already, or whose former move was
//! half taken back, must never make that others, or itself, begin without both.

use std::collections::BTreeSet;

use super::FlipError;
use crate::authority::{Epoch, GroupId, GroupState, Refusal, Side, Standing};
use crate::dualwrite::together;
use crate::problem::Problem;

/// A slice as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its name.
    pub(super) slice: String,
    /// Where its authority stands.
    pub(super) standing: Standing,
    /// The move of several slices that it is closed for.
    pub(super) group: Option<Group>,
}

/// A move of several slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) state: GroupState,
    pub(super) members: Vec<String>,
}

/// What to do, with the places of the slices in the list that was asked about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Their former moves are half taken back, or a failover left their sides at different epochs: that is finished first, and
    /// then it is asked again.
    Undo(Vec<usize>),
    /// These were closed for a move of several slices, and the others of it were not: nobody has judged them since, so those that
    /// were are given back first, and then it is asked again.
    GiveBack(Vec<usize>),
    /// These begin to move; the others are where they are wanted.
    Begin(Vec<usize>),
    /// None begins: what is under way goes on.
    Finish,
}

/// What one slice needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Undo,
    Begin,
    Finish,
    Nothing,
    /// It can't move at all, as the driver will say.
    Human,
}

fn need(found: &Found, to: Side) -> Need {
    match found.standing {
        Standing::Owned { owner, .. } if owner == to => Need::Nothing,
        Standing::Owned { .. } => Need::Begin,
        Standing::Behind { .. } | Standing::Aborted { .. } => Need::Undo,
        Standing::Fenced { .. } => match found.group.as_ref().map(|group| group.state) {
            Some(GroupState::Aborted) => Need::Undo,
            Some(GroupState::Pending | GroupState::Open | GroupState::Absent) | None => Need::Finish,
        },
        Standing::BothOpen | Standing::Broken => Need::Human,
    }
}

/// Decides about a command that moves all of these to one side.
///
/// # Errors
/// The slice, and why, where one is in the middle of a move that the others have no part in.
pub(super) fn of(found: &[Found], to: Side) -> Result<Course, (String, FlipError)> {
    let that = |wanted: Need| -> Vec<usize> {
        let all = found.iter().enumerate().filter(|(_, one)| need(one, to) == wanted);
        all.map(|(place, _)| place).collect()
    };
    if !that(Need::Human).is_empty() {
        return Ok(Course::Finish);
    }
    let (undo, begin) = (that(Need::Undo), that(Need::Begin));
    if !undo.is_empty() {
        return Ok(Course::Undo(undo));
    }
    if begin.is_empty() {
        return Ok(Course::Finish);
    }
    let closed = that(Need::Finish);
    let named: BTreeSet<&str> = begin
        .iter()
        .chain(&closed)
        .filter_map(|place| found.get(*place))
        .map(|one| one.slice.as_str())
        .collect();
    for other in closed.iter().filter_map(|place| found.get(*place)) {
        let is_theirs = |group: &Group| {
            let members: BTreeSet<&str> = group.members.iter().map(String::as_str).collect();
            group.state == GroupState::Pending && members == named
        };
        if !other.group.as_ref().is_some_and(is_theirs) {
            return Err((other.slice.clone(), in_the_way(other, to)));
        }
    }
    Ok(if closed.is_empty() { Course::Begin(begin) } else { Course::GiveBack(closed) })
}

/// Why a slice that is under way keeps others from beginning.
fn in_the_way(found: &Found, to: Side) -> FlipError {
    let (from, epoch) = match found.standing {
        Standing::Fenced { from, epoch } | Standing::Aborted { from, epoch } => (from, epoch),
        Standing::Owned { epoch, .. } | Standing::Behind { epoch, .. } => (to.peer(), epoch),
        Standing::BothOpen | Standing::Broken => (to.peer(), Epoch(0)),
    };
    if let Some((others, settled)) = others(found) {
        FlipError::Together { others, from, settled }
    } else {
        FlipError::Refused(alone((from, epoch), to))
    }
}

/// The slices that it moves together with, and whether it was settled that they do.
fn others(found: &Found) -> Option<(Vec<String>, bool)> {
    let group = found.group.as_ref()?;
    let others: Vec<String> = group.members.iter().filter(|name| **name != found.slice).cloned().collect();
    (!others.is_empty()).then_some((others, group.state == GroupState::Open))
}

/// A slice is in a move of its own.
fn alone((from, epoch): (Side, Epoch), to: Side) -> Refusal {
    if from != to.peer() {
        Refusal::OtherWay { from, epoch, alone: true, settled: false }
    } else {
        Refusal::FencedAlone { from, epoch }
    }
}

/// What is to be done about a slice that nobody has authority over, before anything else is asked of it. `plan` is the plan's path
/// as typed.
pub(super) fn without_owner(found: &Found, to: Side, plan: &str) -> Option<Problem> {
    let (from, epoch) = match found.standing {
        Standing::Fenced { from, epoch } | Standing::Aborted { from, epoch } => (from, epoch),
        Standing::Owned { .. } | Standing::Behind { .. } | Standing::BothOpen | Standing::Broken => {
            return None;
        }
    };
    Some(match others(found) {
        Some((others, settled)) => together::unfinished(plan, &found.slice, (&others, from, settled)),
        None => alone((from, epoch), to).problem(plan, &found.slice),
    })
}

/// Where all of the slices of a command stand when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The side that it was to be moved to has authority over all of them.
    Moved,
    /// The side that it was to be moved from has.
    Stayed,
    /// Nobody has authority over one of them, or they are with different sides.
    Between,
    /// A side did not answer.
    Unknown,
}

/// What came of a move to `to`. `found` is how the slices stand after it, `None` where a side does not answer.
pub(super) fn left(found: Option<&[Found]>, to: Side) -> Left {
    let Some(found) = found else { return Left::Unknown };
    let with = |side: Side| {
        found.iter().all(|one| match one.standing {
            Standing::Owned { owner, .. } | Standing::Behind { owner, .. } => owner == side,
            Standing::Fenced { .. } | Standing::Aborted { .. } | Standing::BothOpen | Standing::Broken => {
                false
            }
        })
    };
    match (with(to), with(to.peer())) {
        (true, _) => Left::Moved,
        (false, true) => Left::Stayed,
        (false, false) => Left::Between,
    }
}

/// The epoch of the last change of authority.
pub(super) fn epoch(standing: Standing) -> Option<Epoch> {
    match standing {
        Standing::Owned { epoch, .. }
        | Standing::Behind { epoch, .. }
        | Standing::Fenced { epoch, .. }
        | Standing::Aborted { epoch, .. } => Some(epoch),
        Standing::BothOpen | Standing::Broken => None,
    }
}

/// The side that a move that is under way goes to.
pub(super) fn under_way(found: &[Found]) -> Option<Side> {
    found.iter().find_map(|one| match one.standing {
        Standing::Fenced { from, .. } | Standing::Aborted { from, .. } => Some(from.peer()),
        Standing::Owned { .. } | Standing::Behind { .. } | Standing::BothOpen | Standing::Broken => None,
    })
}

/// The slice itself, or the move of several slices that it belongs to, had not come to its end.
pub(super) fn is_under_way(found: &[Found], slice: &str) -> bool {
    found.iter().any(|one| {
        let together = one.group.as_ref().is_some_and(|group| group.members.iter().any(|name| name == slice));
        together || one.slice == slice && !matches!(one.standing, Standing::Owned { .. })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(slice: &str, standing: Standing) -> Found {
        Found { slice: slice.to_owned(), standing, group: None }
    }

    fn owned(slice: &str, owner: Side) -> Found {
        found(slice, Standing::Owned { owner, epoch: Epoch(4) })
    }

    fn fenced(slice: &str, from: Side, group: Option<(GroupState, &[&str])>) -> Found {
        let group = group.map(|(state, members)| Group {
            id: GroupId(7),
            state,
            members: members.iter().map(|name| (*name).to_owned()).collect(),
        });
        Found { group, ..found(slice, Standing::Fenced { from, epoch: Epoch(5) }) }
    }

    fn to_service(found: &[Found]) -> Course {
        of(found, Side::Service).unwrap()
    }

    #[test]
    fn what_is_there_already_does_not_make_the_others_begin_unjudged() {
        let (there, here) = (owned("a", Side::Service), owned("b", Side::Monolith));
        assert_eq!(to_service(&[there.clone(), here.clone()]), Course::Begin(vec![1]));
        assert_eq!(to_service(&[here]), Course::Begin(vec![0]));
        assert_eq!(to_service(&[there]), Course::Finish);
    }

    #[test]
    fn a_move_that_is_half_taken_back_is_no_beginning_of_the_next_one() {
        let aborted = found("a", Standing::Aborted { from: Side::Monolith, epoch: Epoch(6) });
        let behind = found("b", Standing::Behind { owner: Side::Monolith, epoch: Epoch(6) });
        let given_up = fenced("c", Side::Monolith, Some((GroupState::Aborted, &["c", "d"])));
        let all = [aborted, behind, given_up, owned("d", Side::Monolith)];
        assert_eq!(to_service(&all), Course::Undo(vec![0, 1, 2]));
    }

    #[test]
    fn what_is_under_way_takes_along_nobody_but_its_own_group() {
        let pending: (GroupState, &[&str]) = (GroupState::Pending, &["a", "b"]);
        let first = fenced("a", Side::Monolith, Some(pending));
        let (second, third) = (owned("b", Side::Monolith), owned("c", Side::Monolith));
        let there = owned("d", Side::Service);
        let both = [first.clone(), second.clone()];
        assert_eq!(to_service(&both), Course::GiveBack(vec![0]), "nobody has judged the second one since");
        assert_eq!(to_service(&[&both[..], &[there]].concat()), Course::GiveBack(vec![0]));
        let closed = fenced("b", Side::Monolith, Some(pending));
        assert_eq!(
            to_service(&[first.clone(), closed]),
            Course::Finish,
            "both were judged before they were closed"
        );
        let (slice, why) = of(&[first.clone(), second.clone(), third], Side::Service).unwrap_err();
        assert!(slice == "a" && matches!(why, FlipError::Together { .. }), "{why}");
        let wider: (GroupState, &[&str]) = (GroupState::Pending, &["a", "b", "c"]);
        let (_, why) =
            of(&[fenced("a", Side::Monolith, Some(wider)), second.clone()], Side::Service).unwrap_err();
        assert!(matches!(why, FlipError::Together { .. }), "one that is not named is not given back: {why}");
        let alone = fenced("a", Side::Monolith, None);
        let (_, why) = of(&[alone, second.clone()], Side::Service).unwrap_err();
        assert!(matches!(why, FlipError::Refused(Refusal::FencedAlone { .. })), "{why}");
        let back = fenced("a", Side::Service, None);
        let (_, why) = of(&[back, second.clone()], Side::Service).unwrap_err();
        assert!(matches!(why, FlipError::Refused(Refusal::OtherWay { alone: true, .. })), "{why}");
        let others = fenced("a", Side::Service, Some((GroupState::Pending, &["a", "d"])));
        assert!(is_under_way(std::slice::from_ref(&others), "d"));
        let settled = fenced("a", Side::Monolith, Some((GroupState::Open, &["a", "d"])));
        let next = without_owner(&settled, Side::Service, "p").unwrap().next;
        assert!(next.contains("--slice a --slice d") && !next.contains("--abort"), "{next}");
        let (_, why) = of(&[others, second], Side::Service).unwrap_err();
        assert!(
            matches!(why, FlipError::Together { from: Side::Service, .. }),
            "the way that it went: {why}"
        );
    }

    #[test]
    fn what_came_of_a_move_is_read_off_the_gates() {
        let (there, here) = (owned("a", Side::Service), owned("b", Side::Monolith));
        let to = Side::Service;
        assert_eq!(left(Some(std::slice::from_ref(&there)), to), Left::Moved);
        assert_eq!(left(Some(std::slice::from_ref(&here)), to), Left::Stayed);
        assert_eq!(left(Some(&[there.clone(), here]), to), Left::Between);
        assert_eq!(left(Some(&[there, fenced("c", Side::Monolith, None)]), to), Left::Between);
        assert_eq!(left(None, to), Left::Unknown);
    }
}
