//! What went wrong on a replication connection.

use std::io;

use postgres_protocol::message::backend::ErrorResponseBody;
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::super::sqlstate::Failure;

/// A replication command or stream failed. `label` names the database.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplicationError {
    /// The server said so.
    #[error("{label} could not {action}: {message} (SQLSTATE {sqlstate})")]
    Server {
        /// Which database.
        label: String,
        /// What was asked for, e.g. `create the slot`.
        action: &'static str,
        /// SQLSTATE.
        sqlstate: String,
        /// The server's message, with its detail.
        message: String,
    },
    /// The connection broke.
    #[error("the replication connection to {label} broke ({kind}); the server's log may say why")]
    Lost {
        /// Which database.
        label: String,
        /// What the system said.
        kind: io::ErrorKind,
    },
    /// The stream ended: stopped, or a call after its error.
    #[error("the stream of {label} has ended")]
    Ended {
        /// Which database.
        label: String,
    },
    /// The server sent what the protocol does not allow.
    #[error("{label} sent something that is not the replication protocol: {fact}")]
    Protocol {
        /// Which database.
        label: String,
        /// What it was.
        fact: &'static str,
    },
}

impl ReplicationError {
    /// The same may succeed on a new connection.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Server { sqlstate, .. } => Failure::of_sqlstate(sqlstate).is_retryable(),
            Self::Lost { .. } | Self::Ended { .. } => true,
            Self::Protocol { .. } => false,
        }
    }

    /// The SQLSTATE, when the server gave one: 55006 slot in use, 42704 no such slot, 57P01 server stopping.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { sqlstate, .. } => Some(sqlstate),
            Self::Lost { .. } | Self::Ended { .. } | Self::Protocol { .. } => None,
        }
    }
}

/// SQLSTATE and words of an ErrorResponse (PostgreSQL documentation, section 55.8).
pub(super) fn server_error(body: &ErrorResponseBody) -> (String, String) {
    let (mut sqlstate, mut message, mut detail) = (String::from("XX000"), String::new(), None);
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => sqlstate = value,
            b'M' => message = value,
            b'D' => detail = Some(value),
            _ => {}
        }
    }
    if let Some(detail) = detail {
        message = format!("{message}: {detail}");
    }
    (sqlstate, message)
}
