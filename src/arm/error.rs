//! What can stop arming and disarming.

use crate::cdc::error::MirrorError;
use crate::journal::JournalError;
use crate::postgres::ConnectError;
use crate::postgres::replication::ReplicationError;
use crate::problem::{Problem, Severity};
use crate::provision::{Database, ProvisionError};

/// Arming or disarming stopped. What was committed before stays, and the next run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// The databases could not be surveyed, or another verb is at work on them.
    #[error(transparent)]
    Survey(#[from] ProvisionError),
    /// Our own tables, or the gates, could not be read.
    #[error("{database}: could not read how the slice stands")]
    Journal {
        /// Where.
        database: Database,
        /// Why.
        source: JournalError,
    },
    /// Something else could not be read.
    #[error("{database}: could not read {what}")]
    Read {
        /// Where.
        database: Database,
        /// What.
        what: &'static str,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The reverse slot, or the publication that it reads, could not be looked at.
    #[error("{database}: could not look at the reverse slot and its publication")]
    Slot {
        /// Where.
        database: Database,
        /// Why.
        source: MirrorError,
    },
    /// A step failed.
    #[error(
        "{database}: could not {purpose} {object}; nothing of this step was kept, the steps before it were"
    )]
    Step {
        /// Where.
        database: Database,
        /// What the step was to do.
        purpose: &'static str,
        /// To what.
        object: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// A lock was not to be had, or a slot did not come to be, in the time that was given.
    #[error("{database}: could not {purpose} {object} within {seconds} s: {who}")]
    Waited {
        /// Where.
        database: Database,
        /// What the step was to do.
        purpose: &'static str,
        /// To what.
        object: String,
        /// How long was waited, in seconds.
        seconds: u64,
        /// Whom for.
        who: String,
        /// What to type.
        next: String,
    },
    /// The replication connection could not be opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The slot could not be made.
    #[error("{database}: could not make the reverse slot")]
    Replication {
        /// Where.
        database: Database,
        /// Why.
        source: ReplicationError,
    },
    /// A slot is read by somebody who can't be ended.
    #[error("{database}: the slot {slot} is still read by process {pid}")]
    SlotInUse {
        /// Where.
        database: Database,
        /// The slot.
        slot: String,
        /// Process id on the server.
        pid: i32,
    },
    /// After several rounds something is missing again: somebody else changes the same things.
    #[error("{object} is missing again right after it was made: does somebody else change the same tables?")]
    Restless {
        /// What.
        object: String,
    },
    /// The design holds refusals.
    #[error("{verb} refused: {} of the problems found must be solved first", problems.iter().filter(|p| p.severity == Severity::Error).count())]
    Refused {
        /// The verb.
        verb: &'static str,
        /// All problems, refusals and warnings.
        problems: Vec<Problem>,
    },
}
