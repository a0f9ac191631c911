//! Whether a single operator, left alone, brings authority home from a state, with every write.

use strangler::authority::{Awaited, Effect, Event, Intent, Rows, Side, State};

use super::database::SIDES;
use super::mirror::run_to_the_end;
use super::mutant::Mutant;
use super::operator::{answer, facts};
use super::transaction::{self, peer_is_as_expected};
use super::world::Core;

/// More steps than any recovery takes.
const STEPS_MAX: usize = 60;

/// Resumes what was begun, flips every slice back, and looks for what was acknowledged.
pub fn comes_home<const N: usize>(mutant: Mutant, core: &Core<N>) -> bool {
    let mut core = *core;
    for intent in [Intent::Resume, Intent::FlipBack] {
        for slice in 0..N {
            if !alone(mutant, &mut core, slice, intent) {
                return false;
            }
        }
    }
    (0..N).all(|slice| {
        let monolith = &core.slices[slice].monolith;
        let held = monolith.log.writes().fold(0_u8, |bits, id| bits | 1 << id);
        monolith.gate.is_open() && core.acked[slice] & !held == 0
    })
}

/// Runs one command to its end; the mirror keeps up with it.
fn alone<const N: usize>(mutant: Mutant, core: &mut Core<N>, slice: usize, intent: Intent) -> bool {
    let mut state = State::begin(intent);
    for _ in 0..STEPS_MAX {
        for side in SIDES {
            core.slices[slice].on_mut(side).flush();
        }
        for side in SIDES {
            run_to_the_end(&mut core.slices[slice], side);
        }
        let event = match state {
            State::Looking { .. } => {
                let monolith = core.slices[slice].on(Side::Monolith);
                let rows = Rows { gate: monolith.gate, incoming: Some(monolith.stream) };
                Event::Observed(facts(mutant, core, slice, rows, None))
            }
            State::Acting { effect, .. } if does(mutant, core, slice, &effect) => Event::Hit,
            State::Acting { .. } => return false,
            State::Settled { .. } => unreachable!(),
        };
        match answer(mutant, state, event) {
            (Some(next), None) => state = next,
            (None, None) => return true,
            (_, Some(_)) => return false,
        }
    }
    false
}

fn does<const N: usize>(mutant: Mutant, core: &mut Core<N>, slice: usize, effect: &Effect) -> bool {
    match *effect {
        Effect::Await(Awaited::Position { direction, at_least }) => {
            core.slices[slice].on(transaction::target(direction)).stream.applied >= at_least
        }
        Effect::Await(Awaited::Members(_)) => false,
        Effect::Fence { side, .. } => {
            let end = core.slices[slice].on(side).log.end();
            transaction::fence(mutant, core, slice, effect, end)
        }
        Effect::Look
        | Effect::Open { .. }
        | Effect::Bump { .. }
        | Effect::Reopen { .. }
        | Effect::Swap { .. }
        | Effect::Propose(_)
        | Effect::SettleOpen(_)
        | Effect::SettleAborted(_) => {
            peer_is_as_expected(mutant, core, slice, effect, false)
                && transaction::commit(mutant, core, slice, effect)
        }
    }
}
