//! Making the copy reach a position of the authority.
//!
//! Nothing can be said about two sides that move before one of them is known to have everything that the other had at
//! some moment. A marker in the authority's log makes the running mirror note at once how far it is.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::verdict::STANDS_STILL;
use crate::cdc::mirror::chain_of;
use crate::cdc::source::{self, MARKER_PREFIX};
use crate::journal::streams::{self, Direction, Position};
use crate::lsn::Lsn;
use crate::postgres::connect::Session;

/// First pause between two looks at the mirror's position; it doubles from look to look.
const LOOK_FIRST: Duration = Duration::from_millis(1);
/// Longest pause between two looks: a copy that is seconds behind need not be asked more often.
const LOOK_LAST: Duration = Duration::from_millis(50);
/// A mirror whose position does not move for this long is not running, or stands still. A round of copying another
/// table of the slice may hold it up for some seconds.
const STANDSTILL: Duration = Duration::from_secs(30);

/// The copy could not be brought to a position.
#[derive(Debug, thiserror::Error)]
pub enum MeetError {
    /// There is no stream in this direction, or it is not applying.
    #[error("no mirror writes this side: {why}")]
    NoStream {
        /// What its row says.
        why: String,
    },
    /// The position did not move.
    #[error("{STANDS_STILL} {wanted} of the authority: it stands at {applied} for {} s", waited.as_secs())]
    Standstill {
        /// Position that was waited for.
        wanted: Lsn,
        /// Position that the mirror has noted.
        applied: Lsn,
        /// For how long it did not move.
        waited: Duration,
    },
    /// A database could not be asked.
    #[error("{0}")]
    Database(String),
}

/// The stream that has to bring the copy along, in words.
pub(super) fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "the stream from the monolith into the service",
        Direction::Reverse => "the way back, from the service into the monolith",
    }
}

impl MeetError {
    /// The link is gone, so that another attempt needs other sessions.
    #[must_use]
    pub fn is_database(&self) -> bool {
        matches!(self, Self::Database(_))
    }
}

/// The meeting point of one slice's two sides. One is shared by all workers of a run.
#[derive(Debug)]
pub struct Meeting {
    slice: String,
    direction: Direction,
    /// On the authority: sends markers.
    authority: Session,
    /// On the copy: reads the mirror's position.
    copy: Session,
    /// The authority's epoch at the first look at the stream: nothing that is met in another one belongs together with it.
    epoch: OnceLock<i64>,
    /// The last position that the mirror is known to have reached.
    reached: Mutex<Lsn>,
    /// Where the mirror was given up: whoever waits next need not wait as long, unless it has moved since.
    stands: Mutex<Option<Lsn>>,
    /// When the last meeting was called for, and where.
    met: Mutex<Option<(Instant, Lsn)>>,
}

impl Meeting {
    /// `authority` and `copy` are sessions of its own, outside transactions.
    ///
    /// # Errors
    /// [`MeetError::Database`].
    pub async fn new(
        slice: &str,
        direction: Direction,
        authority: Session,
        copy: Session,
    ) -> Result<Self, MeetError> {
        // A marker says a position and nothing else, so no standby has to hold it.
        let local = authority.batch_execute("SET synchronous_commit = local").await;
        local.map_err(|error| MeetError::Database(chain_of(&error)))?;
        Ok(Self {
            slice: slice.to_owned(),
            direction,
            authority,
            copy,
            epoch: OnceLock::new(),
            reached: Mutex::new(Lsn::ZERO),
            stands: Mutex::new(None),
            met: Mutex::new(None),
        })
    }

    /// Where the mirror is. While there is an answer, the stream writes the copy and its application does not: who opens the
    /// copy's gate turns the stream in the same transaction. So a row of the copy that was read before this was asked is
    /// the mirror's work.
    ///
    /// # Errors
    /// [`MeetError`].
    pub async fn position(&self) -> Result<Position, MeetError> {
        let found = streams::position(&self.copy, &self.slice, self.direction).await;
        let found = found.map_err(|error| MeetError::Database(chain_of(&error)))?;
        let none = || MeetError::NoStream { why: format!("{} never ran", way(self.direction)) };
        let position = found.ok_or_else(none)?;
        let stream = way(self.direction);
        if position.state != "running" || position.mode != "APPLY" {
            let why = format!("{stream} is {}, mode {}", position.state, position.mode);
            return Err(MeetError::NoStream { why });
        }
        let (now, then) = (position.epoch, *self.epoch.get_or_init(|| position.epoch));
        if now == then {
            return Ok(position);
        }
        let why = format!("{stream} was turned meanwhile: epoch {then} then, {now} now");
        Err(MeetError::NoStream { why })
    }

    /// A marker of the authority's, and its position: everything that is committed there has an earlier one, and a mirror
    /// that has passed it is alive.
    ///
    /// # Errors
    /// [`MeetError::Database`].
    pub async fn mark(&self) -> Result<Lsn, MeetError> {
        let content = source::marker_content(&self.slice, "reconcile");
        let sent = source::emit(&self.authority, MARKER_PREFIX, &content).await;
        sent.map_err(|error| MeetError::Database(chain_of(&error)))
    }

    /// Waits until the copy has everything that the authority had at `wanted`. A mirror that moves is waited for
    /// without end.
    ///
    /// # Errors
    /// [`MeetError`].
    pub async fn wait(&self, wanted: Lsn) -> Result<(), MeetError> {
        if *self.reached.lock().await >= wanted {
            return Ok(());
        }
        let (mut pause, mut moved, mut last) = (LOOK_FIRST, Instant::now(), Lsn::ZERO);
        loop {
            let applied = self.position().await?.applied;
            if applied >= wanted {
                let mut reached = self.reached.lock().await;
                *reached = applied.max(*reached);
                return Ok(());
            }
            if applied > last {
                (last, moved) = (applied, Instant::now());
            }
            let waited = moved.elapsed();
            let stands = *self.stands.lock().await == Some(applied);
            if stands || waited >= STANDSTILL {
                let waited = waited.max(STANDSTILL);
                *self.stands.lock().await = Some(applied);
                return Err(MeetError::Standstill { wanted, applied, waited });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// The mirror was given up, and has not moved since.
    pub async fn is_given_up(&self) -> bool {
        let stands = *self.stands.lock().await;
        stands.is_some() && self.position().await.is_ok_and(|position| Some(position.applied) == stands)
    }

    /// Marks and waits: what is read from the copy afterwards includes everything that was committed on the authority
    /// before this was called.
    ///
    /// # Errors
    /// [`MeetError`].
    pub async fn meet(&self) -> Result<Lsn, MeetError> {
        let called = Instant::now();
        let wanted = self.mark().await?;
        self.wait(wanted).await?;
        *self.met.lock().await = Some((called, wanted));
        Ok(wanted)
    }

    /// The position of the last meeting, or of a new one when that was called for longer ago than `age_max`. What is
    /// read from either side afterwards is at least as new; how much newer it is decides nothing but how many rows are
    /// under way when the sides are read one beside the other, and look different until they are proven.
    ///
    /// # Errors
    /// [`MeetError`].
    pub async fn lately(&self, age_max: Duration) -> Result<Lsn, MeetError> {
        match *self.met.lock().await {
            Some((called, at)) if called.elapsed() <= age_max => return Ok(at),
            Some(_) | None => {}
        }
        self.meet().await
    }
}
