//! Whether the slices of a command are those that the plan means, by what was provisioned in both of their databases.

use super::conduct::Conduct;
use super::moves::{Member, MoveError};
use super::{FlipError, Links};
use crate::authority::{Intent, Side};
use crate::cdc::mirror::chain_of;
use crate::journal::whereabouts::{self, Astray, Route, Whereabouts};
use crate::problem::{Problem, bring_back};

/// What forbids to touch these slices at all. Nothing was changed to find out.
pub(super) async fn problems(
    conduct: &Conduct<'_>,
    members: &[Member],
    intent: Intent,
) -> Result<Vec<Problem>, MoveError> {
    let mut problems = Vec::new();
    for member in members {
        let slice = &member.mapping.slice;
        let mut links = member.links.take();
        let of = |source| MoveError { slice: slice.clone(), source };
        let monolith = whereabouts(&mut links, Side::Monolith).await.map_err(of)?;
        let service = whereabouts(&mut links, Side::Service).await.map_err(of)?;
        member.links.keep(links).await;
        let route = Route { plan: &conduct.plan.name, slice, service: &member.mapping.service };
        let astray = whereabouts::astray(route, Some(&monolith), Some(&service));
        if !astray.is_empty() {
            problems.extend(astray.iter().map(Astray::problem));
        } else if intent != Intent::Abort {
            // What takes a move back opens the side that had authority, and asks no mapping for that.
            problems.extend(other_mapping(member, &service));
        }
    }
    for problem in &mut problems {
        problem.next = problem.next.replace(" PLAN", &format!(" {}", conduct.path));
    }
    problems.sort();
    problems.dedup();
    Ok(problems)
}

async fn whereabouts(links: &mut Links, side: Side) -> Result<Whereabouts, FlipError> {
    let found = whereabouts::read(links.looking(side).await?).await;
    found.map_err(|error| FlipError::Failed { what: "looking at a side", words: chain_of(&error) })
}

fn other_mapping(member: &Member, service: &Whereabouts) -> Option<Problem> {
    let slice = &member.mapping.slice;
    let hash = service.begun.get(slice)?;
    (!member.mapping.is_pinned_by(hash)).then(|| {
        Problem::error("mapping-changed", format!("slice {slice}"))
            .fact("its mapping is another one than when it was provisioned, and data was mirrored since")
            .consequence("gates and sequences would be those of other tables than the mirrored ones")
            .next(format!(
                "{}; a move that was begun is taken back all the same: strangler flip --abort PLAN --slice {slice}",
                bring_back(slice)
            ))
    })
}
