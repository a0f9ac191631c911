//! What each effect's transaction does, with its conditions, as the documentation of
//! [`strangler::authority::Effect`] tells a driver to write it.

use strangler::authority::GateState;
use strangler::authority::{Cause, Effect, Epoch, Gate, GroupId, GroupState, Mode, Side, Stream};
use strangler::journal::streams::{Direction, StreamState};
use strangler::lsn::Lsn;

use super::database::{Slice, position, reached};
use super::mutant::Mutant;
use super::world::Core;

/// The side that a stream writes into.
pub fn target(direction: Direction) -> Side {
    match direction {
        Direction::Forward => Side::Service,
        Direction::Reverse => Side::Monolith,
    }
}

pub fn group<const N: usize>(core: &Core<N>, id: GroupId) -> GroupState {
    core.groups[usize::try_from(id.0).unwrap()]
}

fn stands<const N: usize>(core: &Core<N>, id: Option<GroupId>, state: GroupState) -> bool {
    id.is_none_or(|id| group(core, id) == state)
}

/// What is read of the peer once the acting side's row is locked. `standbys` says whether the plan waits for them.
pub fn peer_is_as_expected<const N: usize>(
    mutant: Mutant,
    core: &Core<N>,
    slice: usize,
    effect: &Effect,
    standbys: bool,
) -> bool {
    let pair = &core.slices[slice];
    let (side, peer, id, state, waits) = match *effect {
        Effect::Open { side, peer, group, .. } => (side, peer, group, GroupState::Open, standbys),
        Effect::Reopen { side, peer, group, .. } => (side, peer, group, GroupState::Aborted, standbys),
        Effect::Bump { side, peer, group, .. } => (side, peer, group, GroupState::Aborted, false),
        Effect::Look
        | Effect::Fence { .. }
        | Effect::Swap { .. }
        | Effect::Propose(_)
        | Effect::SettleOpen(_)
        | Effect::SettleAborted(_)
        | Effect::Await(_) => return true,
    };
    let other = pair.on(side.peer());
    let group = if mutant == Mutant::OpenWithoutGroup { None } else { other.gate.group };
    Gate { group, ..other.gate } == peer && stands(core, id, state) && (!waits || other.standby.gate == peer)
}

/// The transaction of a fence that was locked and stood at `locked`. The caller holds the lock.
pub fn fence<const N: usize>(
    mutant: Mutant,
    core: &mut Core<N>,
    slice: usize,
    effect: &Effect,
    locked: u8,
) -> bool {
    let Effect::Fence { side, expects, epoch, drain, group } = *effect else { unreachable!() };
    let pair = &mut core.slices[slice];
    let stream = pair.on(target(drain)).stream;
    let drained = flows(&stream) && stream.applied >= position(locked) || mutant == Mutant::NoDrain;
    let watch = pair.on(side).stream;
    let watched = watch.mode == Mode::Tripwire && watch.state == StreamState::Running;
    let gate = pair.on(side).gate;
    if !drained || !watched || !same(&gate, &expects) || !stands(core, group, GroupState::Pending) {
        return false;
    }
    let fence_lsn = Some(position(locked));
    let fenced = Gate { state: GateState::Fenced, epoch, cause: Cause::Fence, fence_lsn, group, ..gate };
    core.slices[slice].on_mut(side).commit_gate(fenced);
    true
}

/// Every other effect's transaction. Says whether it committed.
pub fn commit<const N: usize>(mutant: Mutant, core: &mut Core<N>, slice: usize, effect: &Effect) -> bool {
    let pair = &mut core.slices[slice];
    match *effect {
        Effect::Open { side, expects, epoch, applied_at_least, .. } => {
            open(mutant, pair, side, &expects, (epoch, applied_at_least))
        }
        Effect::Bump { side, expects, epoch, .. } => {
            let bumped = |gate| Gate { epoch, cause: Cause::Bump, fence_lsn: None, group: None, ..gate };
            change(pair, side, &expects, bumped)
        }
        Effect::Reopen { side, expects, epoch, .. } => {
            let opened = |gate| Gate {
                state: GateState::Open,
                epoch,
                cause: Cause::Open,
                fence_lsn: None,
                group: None,
                ..gate
            };
            change(pair, side, &expects, opened)
        }
        Effect::Swap { direction, epoch, applied_at_least } => {
            swap(mutant, pair, target(direction), epoch, applied_at_least)
        }
        Effect::Propose(id) => settle(core, id, &[GroupState::Absent], GroupState::Pending),
        Effect::SettleOpen(id) => settle(core, id, &[GroupState::Pending], GroupState::Open),
        Effect::SettleAborted(id) if mutant == Mutant::AbortAfterGroupOpen => {
            settle(core, id, &[GroupState::Pending, GroupState::Open], GroupState::Aborted)
        }
        Effect::SettleAborted(id) => settle(core, id, &[GroupState::Pending], GroupState::Aborted),
        Effect::Look | Effect::Fence { .. } | Effect::Await(_) => unreachable!("{effect:?}"),
    }
}

fn flows(stream: &Stream) -> bool {
    stream.mode == Mode::Apply && stream.state == StreamState::Running
}

/// What the WHERE clause compares.
fn same(gate: &Gate, expects: &Gate) -> bool {
    (gate.state, gate.epoch) == (expects.state, expects.epoch)
}

fn change(pair: &mut Slice, side: Side, expects: &Gate, to: impl Fn(Gate) -> Gate) -> bool {
    let database = pair.on_mut(side);
    let hit = same(&database.gate, expects);
    if hit {
        database.commit_gate(to(database.gate));
    }
    hit
}

fn open(mutant: Mutant, pair: &mut Slice, side: Side, expects: &Gate, (epoch, fence): (Epoch, Lsn)) -> bool {
    let database = pair.on_mut(side);
    // What a stream brought before it lost its slot is there.
    let brings = matches!(database.stream.state, StreamState::Running | StreamState::Gap);
    let applies = database.stream.mode == Mode::Apply && brings;
    let drained = applies && database.stream.applied >= fence || mutant == Mutant::NoDrain;
    let own = same(&database.gate, expects) || mutant == Mutant::OpenWithoutOwnRow;
    if !drained || !own {
        return false;
    }
    database.stream = Stream { mode: Mode::Tripwire, epoch, ..database.stream };
    database.commit_gate(Gate {
        state: GateState::Open,
        epoch,
        cause: Cause::Open,
        fence_lsn: None,
        cut_lsn: Some(position(database.log.end())),
        group: None,
    });
    true
}

fn swap(mutant: Mutant, pair: &mut Slice, into: Side, epoch: Epoch, cut: Lsn) -> bool {
    let database = pair.on_mut(into);
    let row = database.stream;
    let moved = mutant == Mutant::SwapMovesPosition;
    let hit = row.mode == Mode::Tripwire
        && row.state == StreamState::Running
        && row.epoch < epoch
        && (row.applied >= cut || moved);
    if hit {
        let applied = if moved { cut } else { row.applied };
        database.stream = Stream { mode: Mode::Apply, epoch, applied, ..row };
        database.flush();
        // What a reader finds when it starts: invariant G.
        if pair.on(into.peer()).confirmed > reached(applied) {
            pair.on_mut(into).stream.state = StreamState::Gap;
        }
    }
    hit
}

fn settle<const N: usize>(core: &mut Core<N>, id: GroupId, from: &[GroupState], to: GroupState) -> bool {
    let row = &mut core.groups[usize::try_from(id.0).unwrap()];
    let hit = from.contains(row);
    if hit {
        *row = to;
    }
    hit
}
