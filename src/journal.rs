//! Our own tables in the databases: the only module that names them.
//!
//! Statements of one step run on the caller's session, inside the caller's transaction where there is one, so that
//! what they record is durable together with what it is about.

pub mod abandonment;
pub mod alarms;
pub mod archives;
pub mod arming;
pub mod authority;
pub mod baselines;
pub mod beginnings;
pub mod built_on;
pub mod canaries;
pub mod claims;
pub mod copies;
pub mod deferred;
pub mod dropped;
pub mod granted;
pub mod grounds;
pub mod holdings;
pub mod inventory;
pub mod ledger;
pub mod lineage;
pub mod migrate;
pub mod moves;
pub mod operators;
pub mod outside;
pub mod own_scans;
pub mod process;
pub mod provisioned;
pub mod quarantine;
pub mod readiness;
pub mod repairs;
pub mod retirement;
pub mod runs;
pub mod set_aside;
pub mod slices;
pub mod standing;
pub mod statements;
pub mod streams;
pub mod touched;
pub mod usage;
pub mod verdicts;
pub mod whereabouts;

use tokio_postgres::Client;

/// A statement on our own tables failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database refused or the link broke.
    #[error("{action} in schema strangler failed")]
    Database {
        /// What was done, e.g. `read the stream row`.
        action: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A row holds something that this version can't read.
    #[error("{what} in schema strangler holds {found:?}, which this version does not know")]
    Unreadable {
        /// Which column.
        what: &'static str,
        /// What it holds.
        found: String,
    },
    /// Something is longer than what our tables are meant to hold.
    #[error("{what} is {bytes} bytes long; the limit is {limit}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The longest that is taken.
        limit: usize,
    },
}

impl JournalError {
    pub(crate) fn database(action: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Database { action, source }
    }

    /// The database's own error, when there is one.
    #[must_use]
    pub fn database_error(&self) -> Option<&tokio_postgres::Error> {
        match self {
            Self::Database { source, .. } => Some(source),
            Self::Unreadable { .. } | Self::TooLong { .. } => None,
        }
    }
}

/// Appends to the journal what was done to a slice. `detail` is a JSON object in text.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn record(
    client: &Client,
    slice: Option<&str>,
    action: &str,
    detail: &serde_json::Value,
) -> Result<(), JournalError> {
    client
        .execute(
            "INSERT INTO strangler.journal (slice, actor, action, detail) \
             VALUES ($1, session_user, $2, $3::text::jsonb)",
            &[&slice, &action, &detail.to_string()],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("writing the journal"))
}
