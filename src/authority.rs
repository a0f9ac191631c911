//! Who may write a slice, and how that changes: a pure, total function over what was observed of both sides.
//!
//! A driver observes both databases, calls [`step`], does the one [`Effect`] that it answers with, reports what came of it,
//! and so on until the state is settled or the step is refused. Nothing is remembered anywhere but in the gate, stream and group
//! rows: a driver that dies is replaced by another one that begins with [`State::begin`], and two that run at once, or
//! one that was frozen for an hour, are kept from doing harm by the conditions in each effect. There is no I/O here,
//! and no clock; how long to wait is the driver's affair, and running out of time is an event.
//!
//! docs/protocol.md, section 12, has the argument; tests/it/model checks this very function.

mod decide;
pub mod effect;
pub mod facts;
pub mod refusal;
pub mod standing;
pub mod stored;
pub mod tripwire;

#[cfg(test)]
mod tests;

use decide::{Decision, decide};
pub use effect::{Awaited, Effect};
pub use facts::{
    Cause, Epoch, Facts, Gate, GateState, Group, GroupId, GroupState, Mode, Posture, Rows, Side, Sight,
    Stream, group_to_read,
};
pub use refusal::Refusal;
pub use standing::Standing;

/// How often a fence or a wait may run out of time before the command gives up. With lock timeouts that double from
/// 100 ms this stays below a pause that users notice as one.
pub const ATTEMPTS_MAX: u8 = 5;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Authority to the service.
    Flip,
    /// Authority to the monolith.
    FlipBack,
    /// Authority back to the side that was fenced, unless the other one has it already.
    Abort,
    /// Finish what was begun, begin nothing: what a running mirror does by itself.
    Resume,
}

/// A change of authority: the fence that begins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Move {
    /// Who is fenced.
    pub from: Side,
    /// The epoch of the fence.
    pub epoch: Epoch,
}

/// What a driver works at. In memory only: losing it loses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Task {
    /// What is wanted.
    pub intent: Intent,
    /// The move that this driver began or found, so that it does not begin another one when somebody aborts it.
    pub began: Option<Move>,
    /// How many efforts ran out of time.
    pub attempts: u8,
}

/// Where a driver is. In memory only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It reads both sides. Set by [`State::begin`] and after every effect.
    Looking {
        /// What it works at.
        task: Task,
        /// Gates and group row that led to a refusal when they were seen last; refused for good when seen again.
        doubt: Option<Doubt>,
    },
    /// It does an effect.
    Acting {
        /// What it works at.
        task: Task,
        /// What it does.
        effect: Effect,
    },
    /// Nothing is left to do. The end.
    Settled {
        /// Who has authority.
        owner: Side,
        /// Since which change.
        epoch: Epoch,
    },
}

/// What was seen when a refusal was first due. Positions are left out: they move all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Doubt {
    monolith: Option<Gate>,
    service: Option<Gate>,
    group: Option<Group>,
}

/// What happened to a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// It looked: see [`Facts`].
    Observed(Facts),
    /// The effect's transaction committed, or what was awaited is there.
    Hit,
    /// A condition of the effect did not hold, and its transaction was rolled back.
    Missed,
    /// The answer to COMMIT was lost, or the session: it may have committed or not.
    Unclear,
    /// The limit of a lock, a drain or a wait passed, and the transaction was rolled back.
    OutOfTime,
}

/// The answer of [`step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// Where the driver is now.
    pub state: State,
    /// What it does next; `None` when it is settled.
    pub effect: Option<Effect>,
}

impl State {
    /// A driver that has seen nothing yet. Its first effect is [`Effect::Look`].
    #[must_use]
    pub fn begin(intent: Intent) -> Self {
        Self::Looking { task: Task { intent, began: None, attempts: 0 }, doubt: None }
    }
}

/// The one next thing to do.
///
/// # Errors
/// A [`Refusal`] ends the driver: nothing more is done, and a human is told the fact and what to do.
pub fn step(state: State, event: Event) -> Result<Step, Refusal> {
    match (state, event) {
        (State::Looking { task, doubt }, Event::Observed(facts)) => observed(task, doubt, &facts),
        (State::Acting { task, .. }, Event::Hit | Event::Missed | Event::Unclear) => Ok(look(task, None)),
        (State::Acting { task, effect }, Event::OutOfTime) => {
            late(task, !matches!(effect, Effect::Fence { .. }))
        }
        // Looking is safe to repeat; nothing else could have been lost.
        (State::Looking { task, doubt }, Event::Unclear) => Ok(look(task, doubt)),
        (State::Looking { task, .. }, Event::OutOfTime) => late(task, false),
        (State::Looking { .. }, Event::Hit | Event::Missed)
        | (State::Acting { .. }, Event::Observed(_))
        | (
            State::Settled { .. },
            Event::Observed(_) | Event::Hit | Event::Missed | Event::Unclear | Event::OutOfTime,
        ) => Err(Refusal::OutOfStep),
    }
}

fn look(task: Task, doubt: Option<Doubt>) -> Step {
    Step { state: State::Looking { task, doubt }, effect: Some(Effect::Look) }
}

/// `begun` when what ran out of time was no fence: then a side may be closed.
fn late(task: Task, begun: bool) -> Result<Step, Refusal> {
    let attempts = task.attempts.saturating_add(1);
    if attempts >= ATTEMPTS_MAX {
        let from = if task.intent == Intent::FlipBack { Side::Service } else { Side::Monolith };
        return Err(if begun {
            Refusal::Unfinished { attempts }
        } else {
            Refusal::OutOfTime { attempts, from }
        });
    }
    Ok(look(Task { attempts, ..task }, None))
}

/// Decides, and refuses only what was seen twice in a row. The sides are read one after the other, so one look may
/// join an old row of one side with a new row of the other and show two open gates that never were open together. Of two
/// equal looks, the rows that the second one begins with were still those of the first one when it ended, since no row
/// comes back: so all of them stood at one moment.
fn observed(task: Task, doubt: Option<Doubt>, facts: &Facts) -> Result<Step, Refusal> {
    match decide(task, facts) {
        Ok(Decision::Do(task, effect)) => {
            Ok(Step { state: State::Acting { task, effect }, effect: Some(effect) })
        }
        Ok(Decision::Rest { owner, epoch }) => {
            Ok(Step { state: State::Settled { owner, epoch }, effect: None })
        }
        Err(refusal) => {
            let seen = Doubt::of(facts);
            if doubt == Some(seen) { Err(refusal) } else { Ok(look(task, Some(seen))) }
        }
    }
}

impl Doubt {
    fn of(facts: &Facts) -> Self {
        let gate = |sight| match sight {
            Sight::Seen(Rows { gate, .. }) => Some(gate),
            Sight::Unreachable | Sight::Stranger => None,
        };
        Self { monolith: gate(facts.monolith), service: gate(facts.service), group: facts.group }
    }
}
