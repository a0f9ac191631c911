//! The driver of a move of authority: it looks at both sides, asks [`authority::step`] what is due, does that one thing in
//! one transaction, and looks again.
//!
//! Who calls it: `strangler flip` in all its forms, and the running mirror, which finishes what a dead operator left. Any
//! number of drivers may run at once, die anywhere and be frozen for an hour; the conditions inside each transaction keep
//! them from doing harm (docs/protocol.md, section 12).

mod approval;
mod barrier;
pub mod conduct;
mod course;
mod effects;
mod fencing;
mod group;
mod incoming;
mod judged;
mod links;
pub mod moves;
mod ours;
pub mod record;
pub mod rehearse;
pub mod rescue;
mod run;
pub mod sequences;
mod standbys;
mod standings;
pub mod timeline;
mod warm;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use course::Left;
pub use judged::Judged;
pub use links::{KeptLinks, Links};
use timeline::Timeline;

use crate::authority::stored::UnknownWord;
use crate::authority::{self, Effect, Epoch, Event, GroupId, Intent, Refusal, Side, State, step};
use crate::cdc::mirror::chain_of;
use crate::journal::JournalError;
use crate::mapping::SliceMapping;
use crate::plan::{FenceStandbys, Policy};
use crate::postgres::{ConnectError, sqlstate};

/// `pg_stat_activity.application_name` of a driver's sessions.
pub const APPLICATION: &str = "strangler flip";

/// How long a side may owe an answer to a driver, beside the time that writers may be held. Its statements take milliseconds, on
/// a server under load a second or two; while nobody answers, nobody may be able to write.
const ANSWER_MAX: Duration = Duration::from_secs(20);

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
    /// Standbys of a closed side that have to have its fence before the other side is opened.
    pub fence_standbys: FenceStandbys,
}

impl Limits {
    /// Those of a policy.
    #[must_use]
    pub fn of(policy: &Policy) -> Self {
        Self {
            pause_budget: policy.write_pause_budget,
            lock_first: Duration::from_millis(100),
            position: Duration::from_secs(10),
            sequence_margin: policy.sequence_margin,
            fence_standbys: policy.fence_standbys,
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
    /// Members that their own drivers have seen fenced, and the number under which: also those in databases that this driver
    /// has no way to.
    pub fenced: BTreeSet<(GroupId, String)>,
}

/// A move could not be finished by this driver.
#[derive(Debug, thiserror::Error)]
pub enum FlipError {
    /// The facts speak against it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A side can't be reached.
    #[error(transparent)]
    Connect(#[from] Box<ConnectError>),
    /// A database said no to something that is no matter of time.
    #[error("{what} failed: {words}")]
    Failed {
        /// What was done.
        what: &'static str,
        /// What the server said, without values.
        words: String,
    },
    /// It moves together with others, and the command names other slices than those.
    #[error("it is in the middle of a move together with {}", others.join(", "))]
    Together {
        /// All slices of that move but this one.
        others: Vec<String>,
        /// Away from whom.
        from: Side,
        /// It was settled that all of them move.
        settled: bool,
    },
    /// A side has no gate of the slice: `provision` never came there, or not to its end.
    #[error("it is not provisioned in the {side}")]
    NotProvisioned {
        /// Which.
        side: Side,
    },
    /// The side that was to be closed has a way in past its gate.
    #[error("not guarded by its gate: {}", places.join(", "))]
    Unguarded {
        /// Where, in words.
        places: Vec<String>,
    },
    /// What it was judged by is not so any more, as was seen while the writers were held.
    #[error("not as it was judged: {}", what.join("; "))]
    Changed {
        /// What, in words.
        what: Vec<String>,
    },
    /// A service can't be opened, because its tables are no whole copies any more since the monolith was closed.
    #[error("the service can't be opened: {}", tables.join("; "))]
    NotWhole {
        /// Which and how they stand, in words.
        tables: Vec<String>,
        /// It was settled that several slices move, so that none of them goes back.
        settled: bool,
    },
    /// A sequence of the side that was to be opened has no room for a margin.
    #[error("no room for sequence_margin {margin} on the {side}: {}", columns.join(", "))]
    Short {
        /// Whose sequences.
        side: Side,
        /// The plan's.
        margin: u32,
        /// Columns that they feed, by the monolith's names.
        columns: Vec<String>,
    },
    /// A side can't be opened, because a sequence of it has lost its room since the other one was closed.
    #[error(
        "the sequence {sequence} of the {side} has no room for sequence_margin, so the {side} can't be opened"
    )]
    Full {
        /// The side that was to be opened.
        side: Side,
        /// Its sequence.
        sequence: String,
        /// It was settled that several slices move, so that none of them goes back.
        settled: bool,
    },
    /// The monolith can't be opened, because the rights on its old tables were taken away.
    #[error(
        "the rights on the monolith's old tables are away since {since}, so it can't be opened; {undo} gives them back"
    )]
    Retired {
        /// Since when, RFC 3339.
        since: String,
        /// The command that gives them back.
        undo: String,
    },
    /// A side can't be opened, because standbys of the one that was closed do not come to have its fence.
    #[error("standbys have not flushed what closed the other side: {}", names.join(", "))]
    Standbys {
        /// Their application names.
        names: Vec<String>,
    },
    /// The driver goes round in circles: a defect of ours.
    #[error("authority did not settle in {STEPS_MAX} steps")]
    Unsettled,
}

impl From<UnknownWord> for FlipError {
    fn from(error: UnknownWord) -> Self {
        Self::Failed { what: "reading our tables", words: error.to_string() }
    }
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
    /// The slice is fenced under this number, and as far as this driver can see not all members are.
    Waiting(GroupId),
    /// The slice is to be fenced next, at the `barrier` of all that move with it.
    Fencing,
}

/// A driver of one slice.
#[derive(Debug)]
pub struct Driver {
    slice: String,
    mapping: Arc<SliceMapping>,
    links: Links,
    sequences: sequences::Pairs,
    limits: Limits,
    /// What the move was judged by; a driver that finishes what another one began has nothing.
    judged: Option<Judged>,
    together: Option<Together>,
    state: State,
    effect: Option<Effect>,
    /// The sessions have done every statement of a move before.
    warm: bool,
    /// Standbys that an opening has waited for in vain.
    late: Vec<String>,
    /// What happened when.
    pub timeline: Timeline,
}

impl Driver {
    /// A driver that has seen nothing yet, of a slice that moves alone.
    #[must_use]
    pub fn new(
        mapping: Arc<SliceMapping>,
        links: Links,
        sequences: sequences::Pairs,
        limits: Limits,
        intent: Intent,
    ) -> Self {
        Self {
            slice: mapping.slice.clone(),
            mapping,
            links,
            sequences,
            limits,
            judged: None,
            together: None,
            state: State::begin(intent),
            effect: Some(Effect::Look),
            warm: false,
            late: Vec::new(),
            timeline: Timeline::default(),
        }
    }

    /// Goes on until the slice is settled, or something is due that concerns all that move with it.
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
            match effect {
                Effect::Await(authority::Awaited::Members(id)) => {
                    // The caller tells it of the others, and then this driver looks again.
                    self.take(Event::Hit)?;
                    return Ok(Progress::Waiting(id));
                }
                Effect::Fence { side, .. } => {
                    self.warm_up(side).await;
                    return Ok(Progress::Fencing);
                }
                Effect::Look
                | Effect::Open { .. }
                | Effect::Bump { .. }
                | Effect::Reopen { .. }
                | Effect::Swap { .. }
                | Effect::Propose(_)
                | Effect::SettleOpen(_)
                | Effect::SettleAborted(_)
                | Effect::Await(authority::Awaited::Position { .. }) => {}
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

    /// Members of the group that are fenced. `true` when that is news.
    fn hear_of(&mut self, fenced: &BTreeSet<(GroupId, String)>) -> bool {
        let Some(together) = &mut self.together else { return false };
        let news = !fenced.is_subset(&together.fenced);
        together.fenced.extend(fenced.iter().cloned());
        news
    }

    fn take(&mut self, event: Event) -> Result<(), FlipError> {
        let next = step(self.state, event).map_err(|refusal| {
            if matches!(refusal, Refusal::Unfinished { .. }) && !self.late.is_empty() {
                FlipError::Standbys { names: std::mem::take(&mut self.late) }
            } else {
                FlipError::Refused(refusal)
            }
        })?;
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
