//! Servers that die: with what they had not flushed, or for good, so that an asynchronous standby takes over.

use strangler::authority::Side;
use strangler::journal::streams::StreamState;

use super::database::{Slice, Standby, index, position, reached};
use super::operator::Hands;
use super::world::{OPERATORS, Protocol, READERS, World};

/// One event of a server; replication is by slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    Crashes(Side),
    Replicates(usize, Side),
    FailsOver(Side),
}

pub fn actions<const N: usize>(
    protocol: &Protocol<N>,
    world: &World<N>,
    slice: usize,
    side: Side,
    actions: &mut Vec<Act>,
) {
    let database = world.core.slices[slice].on(side);
    if slice == 0 && world.spent.crashes < protocol.crashes {
        actions.push(Act::Crashes(side));
    }
    if world.spent.failovers < protocol.failovers {
        if database.standby
            != (Standby { gate: database.gate, stream: database.durable, end: database.flushed })
        {
            actions.push(Act::Replicates(slice, side));
        }
        if slice == 0 {
            actions.push(Act::FailsOver(side));
        }
    }
}

pub fn act<const N: usize>(world: &mut World<N>, action: Act) {
    match action {
        Act::Crashes(side) => {
            world.spent.crashes += 1;
            for slice in 0..N {
                world.core.slices[slice].on_mut(side).crash();
            }
            sever(world, side);
        }
        Act::Replicates(slice, side) => {
            let database = world.core.slices[slice].on_mut(side);
            database.standby =
                Standby { gate: database.gate, stream: database.durable, end: database.flushed };
        }
        Act::FailsOver(side) => {
            world.spent.failovers += 1;
            for slice in 0..N {
                promote(&mut world.core.slices[slice], side);
            }
            sever(world, side);
        }
    }
}

/// Every session on this side's server ends.
fn sever<const N: usize>(world: &mut World<N>, side: Side) {
    for slice in &mut world.sessions {
        slice.locks[index(side)] = None;
        slice.writers[index(side)] = None;
        slice.readers = [[None; READERS]; 2];
    }
    for number in 0..OPERATORS {
        let operator = &mut world.operators[number];
        let acts = operator.effect().and_then(|effect| effect.database()) == Some(side);
        if acts && operator.hands != Hands::Free {
            operator.hands = Hands::Severed;
        }
    }
}

/// The standby goes on with what it has. The mirror finds out before it reads anything: it checks the timeline, and where it
/// branched off, at every start.
fn promote(pair: &mut Slice, side: Side) {
    let database = pair.on_mut(side);
    let Standby { gate, stream, end } = database.standby;
    database.log.cut(end);
    database.gate = gate;
    database.stream = stream;
    database.confirmed = database.confirmed.min(end);
    database.flush();
    let confirmed = pair.on(side.peer()).confirmed;
    if confirmed > reached(pair.on(side).stream.applied) {
        pair.on_mut(side).stream.state = StreamState::Gap;
    }
    let reader = pair.on_mut(side.peer());
    if reader.stream.applied > position(end) {
        reader.stream.state = StreamState::Diverged;
    }
    reader.durable = reader.stream;
}
