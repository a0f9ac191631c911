//! The one next thing to do about a slice, given what was observed of it.

use super::effect::{Awaited, Effect};
use super::facts::{Epoch, Facts, Gate, Group, GroupState, Mode, Rows, Side, Sight, Stream};
use super::refusal::Refusal;
use super::standing::Standing;
use super::{Intent, Move, Task};
use crate::journal::streams::{Direction, StreamState};
use crate::lsn::Lsn;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Do this, and remember the task so.
    Do(Task, Effect),
    /// Nothing is left to do.
    Rest {
        /// Who has authority.
        owner: Side,
        /// Since which change.
        epoch: Epoch,
    },
}

/// Both sides' rows, addressed by side.
#[derive(Clone, Copy)]
struct Pair {
    monolith: Rows,
    service: Rows,
    group: Option<Group>,
}

impl Pair {
    fn of(facts: &Facts) -> Result<Self, Refusal> {
        let gate = |sight| match sight {
            Sight::Seen(rows) => Some(rows.gate.posture()),
            Sight::Unreachable | Sight::Stranger => None,
        };
        let rows = |side, sight, other| match sight {
            Sight::Seen(rows) => Ok(rows),
            Sight::Unreachable => Err(Refusal::Unreachable { side, other: gate(other) }),
            Sight::Stranger => Err(Refusal::Stranger { side }),
        };
        let monolith = rows(Side::Monolith, facts.monolith, facts.service)?;
        let service = rows(Side::Service, facts.service, facts.monolith)?;
        Ok(Self { monolith, service, group: facts.group })
    }

    fn rows(&self, side: Side) -> &Rows {
        match side {
            Side::Monolith => &self.monolith,
            Side::Service => &self.service,
        }
    }

    fn gate(&self, side: Side) -> Gate {
        self.rows(side).gate
    }

    /// A stream that must exist.
    fn row(&self, direction: Direction) -> Result<Stream, Refusal> {
        let into = match direction {
            Direction::Forward => &self.service,
            Direction::Reverse => &self.monolith,
        };
        into.incoming.ok_or(Refusal::NoStream { direction })
    }

    /// A stream that must have brought everything up to a position, or be able to go on. What it brought before it lost its slot is
    /// there. Of one that diverged nothing is known: its position is on another history than the fence.
    fn bringing(&self, direction: Direction, at_least: Lsn) -> Result<Stream, Refusal> {
        let stream = self.row(direction)?;
        if stream.state == StreamState::Gap && stream.applied >= at_least {
            return Ok(stream);
        }
        self.stream(direction)
    }

    /// A stream that must exist and be able to go on.
    fn stream(&self, direction: Direction) -> Result<Stream, Refusal> {
        let stream = self.row(direction)?;
        match stream.state {
            StreamState::Running => Ok(stream),
            state @ (StreamState::Creating | StreamState::Gap | StreamState::Diverged) => {
                Err(Refusal::StreamDown { direction, state })
            }
        }
    }

    fn both_open(&self) -> Refusal {
        Refusal::BothOpen { monolith: self.monolith.gate.posture(), service: self.service.gate.posture() }
    }

    fn broken(&self) -> Refusal {
        Refusal::Broken { monolith: self.monolith.gate.posture(), service: self.service.gate.posture() }
    }
}

/// Decides. Total over every pair of rows; see [`Standing`] for what they mean.
pub(super) fn decide(task: Task, facts: &Facts) -> Result<Decision, Refusal> {
    let pair = Pair::of(facts)?;
    match Standing::of(&pair.monolith.gate, &pair.service.gate) {
        Standing::Owned { owner, epoch } => owned(task, &pair, owner, epoch),
        Standing::Behind { owner, epoch } => {
            // As below: what comes to light in the middle of a command is no beginning of the next move.
            let task = Task { began: task.began.or(Some(Move { from: owner, epoch })), ..task };
            Ok(Decision::Do(task, bump(&pair, owner.peer(), epoch, None)))
        }
        Standing::Fenced { from, epoch } => fenced(task, &pair, from, epoch),
        Standing::Aborted { from, epoch } => aborted(task, &pair, from, epoch),
        Standing::BothOpen => Err(pair.both_open()),
        Standing::Broken => Err(pair.broken()),
    }
}

/// `owner` has authority. What the last change left undone comes first, then what is wanted.
fn owned(task: Task, pair: &Pair, owner: Side, epoch: Epoch) -> Result<Decision, Refusal> {
    match unfinished(pair, owner, epoch) {
        Ok(None) => {}
        Ok(Some(effect)) => return Ok(Decision::Do(task, effect)),
        // An abort is about who may write, and that is settled; `status` says what became of the stream.
        Err(Refusal::NoStream { .. } | Refusal::StreamDown { .. }) if task.intent == Intent::Abort => {}
        Err(refusal) => return Err(refusal),
    }
    let rest = Decision::Rest { owner, epoch };
    match task.intent {
        Intent::Resume => Ok(rest),
        Intent::Abort if task.began.is_some_and(|began| began.from != owner) => {
            Err(Refusal::TooLate { owner, epoch })
        }
        Intent::Abort => match pair.group {
            Some(Group { id, state: GroupState::Pending, .. }) => {
                Ok(Decision::Do(task, Effect::SettleAborted(id)))
            }
            Some(Group { state: GroupState::Absent | GroupState::Open | GroupState::Aborted, .. }) | None => {
                Ok(rest)
            }
        },
        Intent::Flip if owner == Side::Service => Ok(rest),
        Intent::FlipBack if owner == Side::Monolith => Ok(rest),
        Intent::Flip | Intent::FlipBack => leave(task, pair, owner, epoch),
    }
}

/// The owner's outgoing stream must apply what the owner accepts.
fn unfinished(pair: &Pair, owner: Side, epoch: Epoch) -> Result<Option<Effect>, Refusal> {
    let Some(cut) = pair.gate(owner).cut_lsn else { return Ok(None) };
    let direction = owner.outgoing();
    let stream = pair.stream(direction)?;
    match stream.mode {
        Mode::Apply => Ok(None),
        Mode::Off => Err(Refusal::WrongMode { direction, mode: stream.mode }),
        Mode::Tripwire if stream.applied < cut => {
            Ok(Some(Effect::Await(Awaited::Position { direction, at_least: cut })))
        }
        Mode::Tripwire => Ok(Some(Effect::Swap { direction, epoch, applied_at_least: cut })),
    }
}

/// Authority shall leave `owner`.
fn leave(task: Task, pair: &Pair, owner: Side, epoch: Epoch) -> Result<Decision, Refusal> {
    if let Some(began) = task.began.filter(|began| epoch >= began.epoch) {
        return Err(Refusal::Superseded { owner, epoch: began.epoch });
    }
    require(pair, owner.outgoing(), Mode::Apply)?;
    require(pair, owner.incoming(), Mode::Tripwire)?;
    let id = match pair.group {
        None => None,
        Some(Group { id, state: GroupState::Absent, .. }) => {
            return Ok(Decision::Do(task, Effect::Propose(id)));
        }
        Some(Group { id, state: GroupState::Pending, .. }) => Some(id),
        Some(Group { id, state: GroupState::Aborted, .. }) => return Err(Refusal::GroupAborted { id }),
        // It is settled open only when every member was fenced, and this one is not.
        Some(Group { state: GroupState::Open, .. }) => return Err(pair.broken()),
    };
    let fence = Effect::Fence {
        side: owner,
        expects: pair.gate(owner),
        epoch: epoch.next(),
        drain: owner.outgoing(),
        group: id,
    };
    let began = Some(Move { from: owner, epoch: epoch.next() });
    Ok(Decision::Do(Task { began, ..task }, fence))
}

fn require(pair: &Pair, direction: Direction, mode: Mode) -> Result<(), Refusal> {
    let stream = pair.stream(direction)?;
    if stream.mode == mode { Ok(()) } else { Err(Refusal::WrongMode { direction, mode: stream.mode }) }
}

/// `from` is fenced and its peer has not answered: forward, unless it was said otherwise.
fn fenced(task: Task, pair: &Pair, from: Side, epoch: Epoch) -> Result<Decision, Refusal> {
    let wanted = match task.intent {
        Intent::Flip => Some(Side::Monolith),
        Intent::FlipBack => Some(Side::Service),
        Intent::Abort | Intent::Resume => None,
    };
    if wanted.is_some_and(|wanted| wanted != from) {
        let group = pair.gate(from).group;
        let settled = pair.group.is_some_and(|row| Some(row.id) == group && row.state == GroupState::Open);
        return Err(Refusal::OtherWay { from, epoch, alone: group.is_none(), settled });
    }
    if let (Some(_), Some(began)) = (wanted, task.began.filter(|began| began.epoch != epoch)) {
        return Err(Refusal::Superseded { owner: from, epoch: began.epoch });
    }
    let task = Task { began: Some(Move { from, epoch }), ..task };
    let Some(id) = pair.gate(from).group else {
        return match (task.intent, pair.group) {
            (Intent::Flip | Intent::FlipBack, Some(_)) => Err(Refusal::FencedAlone { from, epoch }),
            (Intent::Abort, Some(_) | None) => {
                Ok(Decision::Do(task, bump(pair, from.peer(), epoch.next(), None)))
            }
            (Intent::Flip | Intent::FlipBack | Intent::Resume, Some(_) | None) => {
                forward(task, pair, from, epoch)
            }
        };
    };
    let group = pair.group.filter(|row| row.id == id).ok_or(Refusal::GroupUnread { id })?;
    match (group.state, task.intent) {
        (GroupState::Absent, Intent::Flip | Intent::FlipBack | Intent::Abort | Intent::Resume) => {
            Err(Refusal::GroupUnread { id })
        }
        (GroupState::Pending, Intent::Abort) => Ok(Decision::Do(task, Effect::SettleAborted(id))),
        (GroupState::Pending, Intent::Flip | Intent::FlipBack | Intent::Resume) if group.complete => {
            Ok(Decision::Do(task, Effect::SettleOpen(id)))
        }
        (GroupState::Pending, Intent::Flip | Intent::FlipBack) => {
            Ok(Decision::Do(task, Effect::Await(Awaited::Members(id))))
        }
        // Whoever meant to fence the others is gone, and before the last fence the way is back.
        (GroupState::Pending, Intent::Resume) => Ok(Decision::Do(task, Effect::SettleAborted(id))),
        (GroupState::Open, Intent::Abort) => Err(Refusal::GroupOpen { id, from }),
        (GroupState::Open, Intent::Flip | Intent::FlipBack | Intent::Resume) => {
            forward(task, pair, from, epoch)
        }
        (GroupState::Aborted, Intent::Flip | Intent::FlipBack | Intent::Abort | Intent::Resume) => {
            Ok(Decision::Do(task, bump(pair, from.peer(), epoch.next(), Some(group))))
        }
    }
}

/// Opens the peer of `from` once everything that `from` accepted is applied there.
fn forward(task: Task, pair: &Pair, from: Side, epoch: Epoch) -> Result<Decision, Refusal> {
    let (side, peer) = (from.peer(), pair.gate(from));
    let Some(fence) = peer.fence_lsn else { return Err(pair.broken()) };
    let direction = side.incoming();
    let stream = pair.bringing(direction, fence)?;
    if stream.mode != Mode::Apply {
        return Err(Refusal::WrongMode { direction, mode: stream.mode });
    }
    if stream.applied < fence {
        return Ok(Decision::Do(task, Effect::Await(Awaited::Position { direction, at_least: fence })));
    }
    let open = Effect::Open {
        side,
        expects: pair.gate(side),
        peer,
        epoch,
        incoming: direction,
        applied_at_least: fence,
        group: peer.group,
    };
    Ok(Decision::Do(task, open))
}

/// The peer of `from` was bumped to `epoch` and can't be opened: `from` gets authority back, whatever is wanted. The driver
/// remembers that move, so that it does not begin another one, which nobody has judged.
fn aborted(task: Task, pair: &Pair, from: Side, epoch: Epoch) -> Result<Decision, Refusal> {
    let task = Task { began: task.began.or(Some(Move { from, epoch })), ..task };
    let gate = pair.gate(from);
    if let Some(id) = gate.group {
        let group = pair.group.filter(|row| row.id == id).ok_or(Refusal::GroupUnread { id })?;
        match group.state {
            GroupState::Absent => return Err(Refusal::GroupUnread { id }),
            // A bump needs the group row aborted, which it is for ever.
            GroupState::Pending | GroupState::Open => return Err(pair.broken()),
            GroupState::Aborted => {}
        }
    }
    let peer = pair.gate(from.peer());
    Ok(Decision::Do(task, Effect::Reopen { side: from, expects: gate, peer, epoch, group: gate.group }))
}

fn bump(pair: &Pair, side: Side, epoch: Epoch, group: Option<Group>) -> Effect {
    let (expects, peer) = (pair.gate(side), pair.gate(side.peer()));
    Effect::Bump { side, expects, peer, epoch, group: group.map(|row| row.id) }
}
