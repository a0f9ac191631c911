//! What stops a mirror, and whether trying again can help.

use crate::journal::JournalError;
use crate::plan::LinkError;
use crate::postgres::connect::ConnectError;
use crate::postgres::replication::ReplicationError;
use crate::postgres::sqlstate::{Failure, code};

use super::stream::StreamError;

/// What helps against a server that can't read its own log at one place: a slot that begins behind it.
const UNREADABLE_LOG: &str = "the same command again; where the server says the same once more: strangler mirror PLAN --slice SLICE --rebuild, \
     which begins behind that place, or for a way back strangler arm PLAN --slice SLICE";

/// A slice's mirror can't go on as it is.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// A link could not be opened.
    #[error("the mirror could not connect")]
    Connect(#[from] ConnectError),
    /// A link's variables could not be filled in.
    #[error("a link of the plan can't be used")]
    Link(#[from] LinkError),
    /// A statement failed.
    #[error("{action} failed")]
    Sql {
        /// What was done.
        action: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Rows could not be written because the mirror's role lacks a right, or because a table is not what it was.
    #[error("{action} failed")]
    Denied {
        /// What was done.
        action: &'static str,
        /// What to type next.
        next: String,
        /// What the server said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Our own tables.
    #[error("the mirror's own tables could not be used")]
    Journal(#[from] JournalError),
    /// The replication connection outside the stream.
    #[error("a replication command failed")]
    Replication(#[from] ReplicationError),
    /// The replication stream.
    #[error("the stream can't be followed")]
    Stream(#[from] StreamError),
    /// Another process took over: this one must stop and changes nothing more.
    #[error("another mirror took over slice {slice}")]
    Fenced {
        /// Slice.
        slice: String,
    },
    /// The state of the databases forbids to go on; an operator has to act.
    #[error("{what}")]
    Refused {
        /// The object and the fact.
        what: String,
        /// What to type next.
        next: String,
    },
    /// The stream row says something else than it did at the start: the authority moves, and the engine starts again in
    /// the part that the row now gives it.
    #[error("the authority over slice {slice} moves")]
    Turned {
        /// Slice.
        slice: String,
    },
    /// The way back of a slice can't be read on, whatever is cured: `arm` has to make it anew.
    #[error("{what}")]
    Anew {
        /// The object and the fact.
        what: String,
        /// What to type next.
        next: String,
    },
    /// A slice has no way back, or not any more: there is nothing to run until it is armed.
    #[error("slice {slice} is not armed: it has no way back")]
    NotArmed {
        /// Slice.
        slice: String,
    },
    /// The old tables of a slice are dropped: there is nothing to run any more.
    #[error("slice {slice} is retired: its old tables are dropped, and its service has the rows alone")]
    Retired {
        /// Slice.
        slice: String,
    },
    /// A stored value can't be read.
    #[error("{what} can't be read")]
    Unreadable {
        /// Which.
        what: String,
    },
    /// Somebody uses a table of the target that has to be emptied. Nobody is made to wait behind that: it is tried again.
    #[error("{what}")]
    InUse {
        /// The table, and who uses it.
        what: String,
    },
    /// WAL that the source holds for the slot is near its limit, and the plan says that the slot is dropped then.
    #[error("the WAL that the monolith holds is near its limit")]
    Overfull,
    /// The engine lets go of everything and starts over at once.
    #[error("starting over: {why}")]
    Restart {
        /// Why.
        why: &'static str,
    },
    /// The operator asked to stop.
    #[error("stopped")]
    Stopped,
}

/// A cancelled statement, too, may go through when it is done again: somebody's time limit or hand stopped it. And a
/// database that is read-only, as after a failover or with a full disk, seldom stays so; were it a gate that refused,
/// the next start would find the authority changed and say so.
fn passes(error: &tokio_postgres::Error) -> bool {
    let failure = Failure::of(error);
    failure.is_retryable() || matches!(failure, Failure::Cancelled | Failure::ReadOnly)
}

/// Why a mirror must not go on as things are, and what to type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The object and the fact.
    pub what: String,
    /// What to type next.
    pub next: String,
    /// It is the way back, and `arm` has to make it anew.
    pub anew: bool,
}

impl From<Refusal> for MirrorError {
    fn from(Refusal { what, next, anew }: Refusal) -> Self {
        if anew { Self::Anew { what, next } } else { Self::Refused { what, next } }
    }
}

impl MirrorError {
    pub(crate) fn sql(action: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Sql { action, source }
    }

    /// Whether the same again, after a pause, can go well.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_retryable(),
            Self::Sql { source, .. } => passes(source),
            Self::Journal(error) => error.database_error().is_some_and(passes),
            Self::Replication(error) => error.is_retryable(),
            Self::Stream(StreamError::Replication(error)) => error.is_retryable(),
            Self::Restart { .. } | Self::Turned { .. } | Self::InUse { .. } => true,
            Self::Stream(StreamError::Decode(_) | StreamError::Spill { .. } | StreamError::Order { .. })
            | Self::Link(_)
            | Self::Fenced { .. }
            | Self::Refused { .. }
            | Self::Anew { .. }
            | Self::Denied { .. }
            | Self::Unreadable { .. }
            | Self::NotArmed { .. }
            | Self::Retired { .. }
            | Self::Overfull
            | Self::Stopped => false,
        }
    }

    /// Whether types that are not alike on both sides any more may be what is behind it: a value was refused (class 22), a
    /// statement met another type (class 42), or a value did not have the bytes that its type wants (08P01).
    #[must_use]
    pub fn may_be_of_types(&self) -> bool {
        let (Self::Sql { source, .. } | Self::Denied { source, .. }) = self else { return false };
        matches!(Failure::of(source), Failure::Data | Failure::Shape) || code(source) == Some("08P01")
    }

    /// What the operator should type, when the error itself knows.
    #[must_use]
    pub fn next(&self) -> Option<&str> {
        match self {
            Self::Refused { next, .. } | Self::Anew { next, .. } | Self::Denied { next, .. } => Some(next),
            Self::Fenced { .. } => Some("strangler status PLAN"),
            Self::Stream(StreamError::Replication(ReplicationError::Server { sqlstate, .. }))
                if sqlstate == "XX000" =>
            {
                Some(UNREADABLE_LOG)
            }
            Self::Stream(StreamError::Spill { .. }) => Some(
                "make room there, or name another folder with --spill-folder; then strangler mirror PLAN",
            ),
            Self::Connect(_)
            | Self::Link(_)
            | Self::Sql { .. }
            | Self::Journal(_)
            | Self::Replication(_)
            | Self::Stream(_)
            | Self::Unreadable { .. }
            | Self::InUse { .. }
            | Self::Restart { .. }
            | Self::Turned { .. }
            | Self::NotArmed { .. }
            | Self::Retired { .. }
            | Self::Overfull
            | Self::Stopped => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_can_not_read_its_own_log_is_told_with_the_way_around() {
        let error = |sqlstate: &str| {
            let (label, message) = ("monolith".to_owned(), "could not map filenode".to_owned());
            let action = "go on with the stream";
            MirrorError::Stream(StreamError::Replication(ReplicationError::Server {
                label,
                action,
                sqlstate: sqlstate.to_owned(),
                message,
            }))
        };
        assert!(error("XX000").next().is_some_and(|next| next.contains("--rebuild")));
        assert_eq!(error("57P01").next(), None);
    }
}
