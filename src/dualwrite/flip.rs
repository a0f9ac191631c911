//! The driver of a move of authority: it looks at both sides, asks [`authority::step`] what is due, does that one thing in
//! one transaction, and looks again.
//!
//! Who calls it: `strangler flip` in all its forms, and the running mirror, which finishes what a dead operator left. Any
//! number of drivers may run at once, die anywhere and be frozen for an hour; the conditions inside each transaction keep
//! them from doing harm (docs/protocol.md, section 12).

pub mod conduct;
mod effects;
mod links;
pub mod moves;
pub mod rehearse;
pub mod rescue;
pub mod sequences;
pub mod timeline;
mod warm;

use std::time::{Duration, Instant};

pub use links::Links;
use timeline::Timeline;

use super::authority::{self, Effect, Epoch, Event, GroupId, Intent, Refusal, Side, State, step};
use crate::cdc::mirror::chain_of;
use crate::journal::JournalError;
use crate::postgres::sqlstate;

/// `pg_stat_activity.application_name` of a driver's sessions.
pub const APPLICATION: &str = "strangler flip";

/// Steps of one move, with room for every failure that is tried again: more is a defect, and ends.
const STEPS_MAX: usize = 200;

/// How long a driver may take for what.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Lock request and drain of one attempt.
    pub pause_budget: Duration,
    /// Longest that one attempt waits for writers that passed the gate; doubled from attempt to attempt, never above the
    /// budget.
    pub lock_first: Duration,
    /// How long a mirror that has to bring a position is waited for, after a fence or before a stream is turned.
    pub position: Duration,
    /// Increments that a sequence is set ahead of both sides.
    pub sequence_margin: u32,
}

impl Limits {
    /// With the plan's budget and margin.
    #[must_use]
    pub fn new(pause_budget: Duration, sequence_margin: u32) -> Self {
        Self {
            pause_budget,
            lock_first: Duration::from_millis(100),
            position: Duration::from_secs(10),
            sequence_margin,
        }
    }
}

/// Slices that move together.
#[derive(Debug, Clone)]
pub struct Together {
    /// Number of the group row; new for each attempt.
    pub id: GroupId,
    /// All members' names, in the order in which they are fenced.
    pub members: Vec<String>,
    /// Members that their own drivers have seen fenced under this number, those in databases that this driver has no way
    /// to among them.
    pub fenced: Vec<String>,
}

/// A move could not be finished by this driver.
#[derive(Debug, thiserror::Error)]
pub enum FlipError {
    /// The facts speak against it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A database said no to something that is no matter of time.
    #[error("{what} failed: {words}")]
    Failed {
        /// What was done.
        what: &'static str,
        /// What the server said, without values.
        words: String,
    },
    /// The driver goes round in circles: a defect of ours.
    #[error("authority did not settle in {STEPS_MAX} steps")]
    Unsettled,
}

/// Where a driver is when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do.
    Settled {
        /// Who has authority.
        owner: Side,
        /// Since which change.
        epoch: Epoch,
    },
    /// The slice is fenced, and the other members of its group are not.
    Waiting,
}

/// A driver of one slice.
#[derive(Debug)]
pub struct Driver {
    slice: String,
    links: Links,
    sequences: sequences::Pairs,
    limits: Limits,
    together: Option<Together>,
    state: State,
    effect: Option<Effect>,
    /// The sessions have done every statement of a move before.
    warm: bool,
    /// What happened when.
    pub timeline: Timeline,
}

impl Driver {
    /// A driver that has seen nothing yet. `together` only where several slices move at one barrier.
    #[must_use]
    pub fn new(
        slice: &str,
        links: Links,
        sequences: sequences::Pairs,
        limits: Limits,
        (intent, together): (Intent, Option<Together>),
    ) -> Self {
        Self {
            slice: slice.to_owned(),
            links,
            sequences,
            limits,
            together,
            state: State::begin(intent),
            effect: Some(Effect::Look),
            warm: false,
            timeline: Timeline::default(),
        }
    }

    /// Goes on until the slice is settled, or waits for the other members of its group.
    ///
    /// # Errors
    /// [`FlipError`]; whatever was committed stays, and the same command goes on from there.
    pub async fn advance(&mut self) -> Result<Progress, FlipError> {
        for _ in 0..STEPS_MAX {
            let Some(effect) = self.effect else {
                return match self.state {
                    State::Settled { owner, epoch } => Ok(Progress::Settled { owner, epoch }),
                    State::Looking { .. } | State::Acting { .. } => Err(FlipError::Unsettled),
                };
            };
            if let Effect::Await(authority::Awaited::Members(_)) = effect {
                // The caller fences the others, and then this driver looks again.
                self.take(Event::Hit)?;
                return Ok(Progress::Waiting);
            }
            if let Effect::Fence { side, .. } = effect {
                self.warm_up(side).await;
            }
            let begun = Instant::now();
            let event = self.perform(effect).await?;
            self.timeline.add(effect, event, begun);
            if event == Event::OutOfTime {
                self.back_off().await;
            }
            self.take(event)?;
        }
        Err(FlipError::Unsettled)
    }

    /// Another member of the group is fenced.
    fn has_fenced(&mut self, slice: &str) {
        if let Some(together) = &mut self.together
            && !together.fenced.iter().any(|known| known == slice)
        {
            together.fenced.push(slice.to_owned());
        }
    }

    fn take(&mut self, event: Event) -> Result<(), Refusal> {
        let next = step(self.state, event)?;
        (self.state, self.effect) = (next.state, next.effect);
        Ok(())
    }

    /// How many efforts ran out of time so far.
    fn attempts(&self) -> u8 {
        match self.state {
            State::Looking { task, .. } | State::Acting { task, .. } => task.attempts,
            State::Settled { .. } => 0,
        }
    }

    /// Writers that were held get time to catch up, and two drivers fall out of step.
    async fn back_off(&self) {
        let pause = self.limits.lock_first * (1 << self.attempts().min(5));
        tokio::time::sleep(pause.mul_f64(1.0 + fastrand::f64())).await;
    }
}

/// What a failed statement means for the step: time that ran out and a broken session are events, anything else ends the
/// driver. `committing` when the statement was COMMIT, whose outcome is unknown then.
fn event_of(error: &JournalError, what: &'static str, committing: bool) -> Result<Event, FlipError> {
    let Some(database) = error.database_error() else {
        return Err(FlipError::Failed { what, words: chain_of(error) });
    };
    of_database(database, what, committing)
}

fn of_database(
    error: &tokio_postgres::Error,
    what: &'static str,
    committing: bool,
) -> Result<Event, FlipError> {
    if sqlstate::is_connection_lost(error) {
        return Ok(Event::Unclear);
    }
    match sqlstate::code(error) {
        // A lock or statement timeout, a deadlock or a serialization failure: the transaction is rolled back.
        Some("55P03" | "57014" | "40P01" | "40001" | "25P03") => Ok(Event::OutOfTime),
        Some(_) | None if committing => Ok(Event::Unclear),
        Some(_) | None => Err(FlipError::Failed { what, words: sqlstate::words(error) }),
    }
}
