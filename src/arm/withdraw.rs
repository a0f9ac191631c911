//! What `disarm` takes back: the foreign keys first, so that they guard again as soon as possible, then the gates, then
//! the reverse stream.

use super::design::Draft;
use super::locks::{LockMode, Locks};
use super::readiness;
use super::survey::SliceFacts;
use super::{Step, Verb, Work, keys, reverse};
use crate::authority::Side;
use crate::dualwrite::gate::{self, TriggerKind};
use crate::dualwrite::guard::{FoundTrigger, Relation, expected};
use crate::journal::arming;
use crate::journal::streams::Mode;
use crate::mapping::SliceMapping;
use crate::name::quote_ident;
use crate::provision::{Database, Statement};

const DROP_SLOT: &str = "drop the reverse slot";

/// The last step of a slice.
pub(super) const DISARM_RECORDED: &str = "disarm-recorded";

pub(super) fn withdraw_slice(draft: &mut Draft<'_>, slice: &SliceMapping, facts: &SliceFacts) {
    if readiness::authority(facts) != Some(Side::Monolith) {
        // Authority can't be brought back under another mapping, so that comes first.
        let changed = readiness::changed_mapping(draft.survey, slice);
        draft.problem(
            changed.unwrap_or_else(|| readiness::wrong_authority(&slice.slice, facts, Verb::Disarm)),
        );
        return;
    }
    if facts.armed.recorded {
        draft.record(&slice.slice, arming::DISARMING, ("begin to disarm slice", "disarm-begun"));
    }
    let before = draft.steps();
    keys::restore(draft, slice);
    gates(draft, slice, facts);
    stream(draft, slice, facts);
    if draft.steps() > before {
        readiness::ownership(draft.survey, slice).into_iter().for_each(|problem| draft.problem(problem));
    }
    if facts.armed.recorded || facts.armed.disarming {
        draft.record(&slice.slice, arming::DISARMED, ("note as disarmed slice", DISARM_RECORDED));
    }
}

/// Takes every trigger of the gate off, a relation at a time. The gate must be open and stay so until the commit: a
/// flip that comes in between waits, and finds the tables bare when it looks under its lock.
fn gates(draft: &mut Draft<'_>, slice: &SliceMapping, facts: &SliceFacts) {
    for relation in &facts.guard.relations {
        let kinds: Vec<TriggerKind> = expected(relation.kind, relation.partition)
            .iter()
            .copied()
            .filter(|kind| {
                // What asks another slice's gate guards that slice.
                let ours = |trigger: &&FoundTrigger| trigger.of_slice.is_none();
                relation.triggers.iter().filter(ours).any(|trigger| trigger.name == kind.name())
            })
            .filter(|kind| !of_root(relation, *kind))
            .collect();
        let statements: Vec<Statement> =
            kinds.iter().map(|kind| gate::drop_trigger(&relation.table, *kind).into()).collect();
        let below = relation.kind == 'p' && kinds.contains(&TriggerKind::Rows);
        draft.journaled(
            (Database::Monolith, &slice.slice),
            ("take gate off table", &relation.table.to_string()),
            (
                keys::only_while_open(&slice.slice, facts.lock_key),
                Some(Locks::of(LockMode::AccessExclusive, &relation.table, below)),
                statements,
            ),
            "disarm-gate-off",
        );
    }
}

/// A partition's row trigger is its root's and goes with it.
fn of_root(relation: &Relation, kind: TriggerKind) -> bool {
    relation.partition && relation.table != relation.root && kind == TriggerKind::Rows
}

fn stream(draft: &mut Draft<'_>, slice: &SliceMapping, facts: &SliceFacts) {
    let monolith = || Database::Monolith;
    let service = || Database::Service(slice.service.clone());
    if let Some(row) = &facts.reverse {
        if row.mode != Mode::Off {
            draft.journaled(
                (monolith(), &slice.slice),
                ("stop the reverse stream of slice", &slice.slice),
                (
                    keys::only_while_open(&slice.slice, facts.lock_key),
                    None,
                    vec![arming::stop_reverse(&slice.slice).into()],
                ),
                "disarm-stream-stopped",
            );
        }
        if facts.slot.is_some() {
            draft.step(Step {
                database: service(),
                slice: slice.slice.clone(),
                object: row.slot.clone(),
                purpose: DROP_SLOT,
                work: Work::DropSlot { slot: row.slot.clone() },
                point: "disarm-slot-dropped",
            });
        }
    }
    let name = reverse::publication(draft, slice);
    let state = draft.survey.provisioned.service_states.get(&slice.service);
    if state.is_some_and(|state| state.publications.contains_key(&name)) {
        draft.journaled(
            (service(), &slice.slice),
            ("drop publication", &name),
            (Vec::new(), None, vec![format!("DROP PUBLICATION {}", quote_ident(&name)).into()]),
            "disarm-unpublished",
        );
    }
    // Last, because it names the slot. That this is gone is told here: dropping it is no part of any transaction.
    if let Some(row) = &facts.reverse {
        let dropped = draft.entry(&slice.slice, DROP_SLOT, &row.slot);
        let forget = arming::forget_reverse(&slice.slice).into_iter().map(Statement::from);
        draft.journaled(
            (monolith(), &slice.slice),
            ("forget the reverse stream of slice", &slice.slice),
            (Vec::new(), None, forget.chain([dropped]).collect()),
            "disarm-stream-forgotten",
        );
    }
}
