//! The application's transactions, and those that go past the gate.

use strangler::authority::{Epoch, Side};

use super::database::index;
use super::log::Entry;
use super::mutant::Mutant;
use super::world::{Protocol, World};

/// Numbers from here on are rogue writes'.
pub const ROGUE_FIRST: u8 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Each statement sees what is committed when it begins.
    ReadCommitted,
    /// Every statement sees what was committed when the transaction began.
    RepeatableRead,
}

/// A transaction of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    /// It has a snapshot in which the gate was open at this epoch, and has not written.
    Reading(Epoch),
    /// It has passed the gate and holds the gate's lock shared.
    Passed,
}

/// One step of a writer: slice, side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    Begins(usize, Side, Isolation),
    Passes(usize, Side),
    Commits(usize, Side),
    WritesPastTheGate(usize, Side),
}

pub fn actions<const N: usize>(
    protocol: &Protocol<N>,
    world: &World<N>,
    slice: usize,
    side: Side,
    actions: &mut Vec<Act>,
) {
    let sessions = &world.sessions[slice];
    let database = world.core.slices[slice].on(side);
    let unlocked = sessions.locks[index(side)].is_none();
    match sessions.writers[index(side)] {
        None if world.spent.writes < protocol.writes && database.gate.is_open() => {
            for isolation in protocol.isolations {
                // Who finds the lock taken waits, which is to begin later.
                if unlocked || *isolation == Isolation::RepeatableRead {
                    actions.push(Act::Begins(slice, side, *isolation));
                }
            }
        }
        None => {}
        Some(Writer::Reading(_)) if unlocked => actions.push(Act::Passes(slice, side)),
        Some(Writer::Reading(_)) => {}
        // Who rolls back is like who never began.
        Some(Writer::Passed) => actions.push(Act::Commits(slice, side)),
    }
    if world.spent.rogues < protocol.rogues && !database.gate.is_open() {
        actions.push(Act::WritesPastTheGate(slice, side));
    }
}

pub fn act<const N: usize>(protocol: &Protocol<N>, world: &mut World<N>, action: Act) {
    match action {
        Act::Begins(slice, side, isolation) => {
            let writer = match isolation {
                Isolation::ReadCommitted => Writer::Passed,
                Isolation::RepeatableRead => Writer::Reading(world.core.slices[slice].on(side).gate.epoch),
            };
            world.spent.writes += 1;
            world.sessions[slice].writers[index(side)] = Some(writer);
        }
        Act::Passes(slice, side) => {
            let gate = world.core.slices[slice].on(side).gate;
            let writer = &mut world.sessions[slice].writers[index(side)];
            let Some(Writer::Reading(epoch)) = *writer else { unreachable!() };
            // FOR SHARE fails with 40001 when the row is not the one in the snapshot.
            let same = gate.epoch == epoch || protocol.mutant == Mutant::OldSnapshotReadsGate;
            *writer = same.then_some(Writer::Passed);
            if !same {
                world.spent.writes -= 1;
            }
        }
        Act::Commits(slice, side) => {
            let id = world.core.slices[slice].fresh_write();
            world.core.slices[slice].on_mut(side).log.push(Entry::Accepted(id));
            world.sessions[slice].writers[index(side)] = None;
            if protocol.crashes == 0 {
                world.flush(slice, side);
            }
        }
        Act::WritesPastTheGate(slice, side) => {
            let id = ROGUE_FIRST + world.spent.rogues;
            world.spent.rogues += 1;
            world.core.slices[slice].on_mut(side).log.push(Entry::Rogue(id));
            if protocol.crashes == 0 {
                world.flush(slice, side);
            }
        }
    }
}
