//! The mirror: readers of the two streams, as appliers and as tripwires, and what they tell the slots.

use strangler::authority::tripwire::{Untagged, judge};
use strangler::authority::{Epoch, Mode, Side, Stream};
use strangler::journal::streams::StreamState;

use super::database::{Slice, index, position, reached};
use super::log::Entry;
use super::mutant::Mutant;
use super::world::{Protocol, World};

/// One transaction that a reader has in hand, and the stream row that it read before. Nothing is held while it thinks: a
/// reader that sleeps here is a zombie as soon as another one goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Batch {
    mode: Mode,
    epoch: Epoch,
    from: u8,
    entry: Entry,
}

/// One step of the stream into a side: slice, side, reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    Flushes(usize, Side),
    Reads(usize, Side, usize),
    Commits(usize, Side, usize),
    Confirms(usize, Side),
}

pub fn actions<const N: usize>(
    protocol: &Protocol<N>,
    world: &World<N>,
    slice: usize,
    side: Side,
    actions: &mut Vec<Act>,
) {
    let pair = &world.core.slices[slice];
    let (target, source) = (pair.on(side), pair.on(side.peer()));
    for reader in 0..protocol.readers {
        match world.sessions[slice].readers[index(side)][reader] {
            None => {
                if read(protocol.mutant, pair, side).is_some() {
                    actions.push(Act::Reads(slice, side, reader));
                }
            }
            Some(_) => actions.push(Act::Commits(slice, side, reader)),
        }
    }
    if protocol.crashes > 0 && (target.flushed < target.log.end() || target.durable != target.stream) {
        actions.push(Act::Flushes(slice, side));
    }
    if protocol.confirms_by_itself() && position(source.confirmed) < confirmable(protocol.mutant, pair, side)
    {
        actions.push(Act::Confirms(slice, side));
    }
}

pub fn act<const N: usize>(protocol: &Protocol<N>, world: &mut World<N>, action: Act) {
    match action {
        Act::Flushes(slice, side) => world.flush(slice, side),
        Act::Reads(slice, side, reader) => {
            let batch = read(protocol.mutant, &world.core.slices[slice], side);
            // Nothing is written for these, so nothing is gained by letting others act in between.
            if let Some(batch @ Batch { entry: Entry::Applied(_) | Entry::Own, .. }) = batch {
                batch.commit(world, slice, side);
                settle(protocol, world, slice, side);
            } else {
                world.sessions[slice].readers[index(side)][reader] = batch;
            }
        }
        Act::Commits(slice, side, reader) => {
            let hand = &mut world.sessions[slice].readers[index(side)][reader];
            let Some(batch) = hand.take() else { unreachable!() };
            if batch.entry_passes(protocol.mutant, world, slice, side) {
                batch.commit(world, slice, side);
                settle(protocol, world, slice, side);
            }
        }
        Act::Confirms(slice, side) => {
            confirm(protocol.mutant, &mut world.core.slices[slice], side);
        }
    }
}

/// What follows a commit at once where nothing durable is ever lost.
fn settle<const N: usize>(protocol: &Protocol<N>, world: &mut World<N>, slice: usize, side: Side) {
    if protocol.crashes == 0 {
        world.flush(slice, side);
    }
    if !protocol.confirms_by_itself() {
        confirm(protocol.mutant, &mut world.core.slices[slice], side);
    }
}

impl<const N: usize> Protocol<N> {
    /// Where nothing durable is ever lost, a slot is told at once: later makes no difference.
    fn confirms_by_itself(&self) -> bool {
        self.crashes > 0 || self.failovers > 0
    }
}

/// The next transaction for the stream into `side`. `None` when there is none, or when it is not this reader's to pass.
fn read(mutant: Mutant, pair: &Slice, side: Side) -> Option<Batch> {
    let (target, source) = (pair.on(side), pair.on(side.peer()));
    let Stream { mode, epoch, applied, state } = target.stream;
    let from = reached(applied);
    if state != StreamState::Running || from >= source.flushed {
        return None;
    }
    let entry = source.log.at(from);
    let waits = match (mode, entry) {
        (Mode::Off, _) => true,
        (Mode::Apply, _) | (Mode::Tripwire, Entry::Applied(_) | Entry::Own) => false,
        (Mode::Tripwire, Entry::Accepted(_) | Entry::Rogue(_)) => {
            judge(&source.gate, applied) == Untagged::Accepted && mutant != Mutant::TripwirePassesAuthority
        }
    };
    (!waits).then_some(Batch { mode, epoch, from, entry })
}

impl Batch {
    /// The conditions of the transaction that moves the position.
    fn entry_passes<const N: usize>(
        &self,
        mutant: Mutant,
        world: &World<N>,
        slice: usize,
        side: Side,
    ) -> bool {
        let row = world.core.slices[slice].on(side).stream;
        let fenced = row.mode == self.mode && row.epoch == self.epoch;
        let next = row.applied == position(self.from);
        match (self.mode, mutant) {
            (Mode::Apply, Mutant::UnfencedApplier) => true,
            (Mode::Apply, Mutant::EpochOnlyApplier) => fenced,
            _ => fenced && next,
        }
    }

    fn commit<const N: usize>(&self, world: &mut World<N>, slice: usize, side: Side) {
        let target = world.core.slices[slice].on_mut(side);
        target.stream.applied = position(self.from + 1);
        match (self.mode, self.entry) {
            (Mode::Apply, Entry::Accepted(id) | Entry::Rogue(id)) => {
                target.log.push(Entry::Applied(id));
            }
            (Mode::Tripwire, Entry::Rogue(id)) => {
                target.alarms |= 1 << id;
                target.flush();
            }
            (Mode::Tripwire, Entry::Accepted(_)) => world.marks.accepted_write_passed = true,
            (Mode::Apply | Mode::Tripwire | Mode::Off, Entry::Applied(_) | Entry::Own)
            | (Mode::Off, Entry::Accepted(_) | Entry::Rogue(_)) => {}
        }
    }
}

/// What the slot that feeds the stream into `side` may be told.
fn confirmable(mutant: Mutant, pair: &Slice, side: Side) -> strangler::lsn::Lsn {
    let target = pair.on(side);
    if mutant == Mutant::ConfirmBeforeDurable { target.stream.applied } else { target.durable.applied }
}

fn confirm(mutant: Mutant, pair: &mut Slice, side: Side) {
    let told = reached(confirmable(mutant, pair, side));
    let source = pair.on_mut(side.peer());
    source.confirmed = source.confirmed.max(told);
}

/// One reader alone reads and commits all that it may. For the recovery, which is not about readers.
pub fn run_to_the_end(pair: &mut Slice, side: Side) {
    while let Some(batch) = read(Mutant::None, pair, side) {
        let target = pair.on_mut(side);
        target.stream.applied = position(batch.from + 1);
        if let (Mode::Apply, Entry::Accepted(id) | Entry::Rogue(id)) = (batch.mode, batch.entry) {
            target.log.push(Entry::Applied(id));
        }
        target.flush();
    }
}
