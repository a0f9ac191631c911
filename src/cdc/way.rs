//! Proof that a stream's way is open, before anybody relies on it.
//!
//! A canary written on the source has to arrive on the target through the slot, the publication, the running mirror and
//! its role's rights, in whatever mode the stream is. Where the stream's publication holds the canary's table the row
//! itself travels, which proves that rows are published: that is the way back, through which nothing else has come
//! before a flip. The way there carries it as a message, so that publications made before there were canaries keep
//! working; that rows are published there, copying and comparing have shown.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::back;
use super::error::MirrorError;
use super::source::{self, CANARY_PREFIX, marker_content};
use super::statements::{self, UpdateForm, UpdateSql};
use super::table::key_equality;
use crate::failpoint;
use crate::journal::canaries;
use crate::journal::streams::{self, StreamOf};
use crate::mapping::{SliceMapping, TableMapping};
use crate::postgres::sqlstate;

/// Pause between two looks for the canary: a stream takes a few milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A way was not proven.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// There is no stream of this direction.
    #[error("slice {slice} has no {direction} stream")]
    NoStream {
        /// Slice.
        slice: String,
        /// `forward` or `reverse`.
        direction: &'static str,
    },
    /// The canary did not arrive in time.
    #[error("what was written on the {side} did not arrive on the other side in {} ms", waited.as_millis())]
    NotArrived {
        /// `monolith` or `service`.
        side: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The monolith would refuse what the way back writes.
    #[error("{statement} on the monolith's table {table} is refused: {why}")]
    Refused {
        /// The table.
        table: String,
        /// `DELETE`, `UPDATE` or `INSERT`.
        statement: &'static str,
        /// The server's words.
        why: String,
    },
    /// The databases.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

impl From<crate::journal::JournalError> for WayError {
    fn from(error: crate::journal::JournalError) -> Self {
        Self::Mirror(error.into())
    }
}

/// Writes a canary on the source of a stream and waits until the running mirror has brought it to the target. Returns
/// how long that took. `source` needs the right to write `strangler.canary` there; `target` to read it.
///
/// # Errors
/// [`WayError::NotArrived`] after `patience`; [`WayError`].
pub async fn prove_way(
    source: &Client,
    target: &Client,
    of: StreamOf<'_>,
    patience: Duration,
) -> Result<Duration, WayError> {
    let Some(row) = streams::read(target, of).await? else {
        return Err(WayError::NoStream { slice: of.slice.to_owned(), direction: of.direction.as_str() });
    };
    let nonce: String = std::iter::repeat_with(fastrand::alphanumeric).take(20).collect();
    let before = canaries::seen(target, of).await?;
    let (begun, position) = (Instant::now(), source::insert_position(source).await?);
    if carries_canaries(source, &row.publication).await? {
        canaries::set_out(source, of, &nonce).await?;
        failpoint::hit("canary-set-out");
    } else {
        source::emit(source, CANARY_PREFIX, &marker_content(of.slice, &nonce)).await?;
    }
    // Another operator's canary may take the place of this one before anybody looked. It came the same way: together with a
    // position that only a later commit brings, it proves as much.
    loop {
        let applied = streams::read(target, of).await?.map(|row| row.applied);
        if applied >= Some(position) && canaries::seen(target, of).await? != before {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() >= patience {
            return Err(WayError::NotArrived { side: of.direction.source(), waited: begun.elapsed() });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn carries_canaries(source: &Client, publication: &str) -> Result<bool, MirrorError> {
    let (schema, table) = canaries::TABLE;
    let sql = "SELECT EXISTS (SELECT FROM pg_publication_tables \
               WHERE pubname = $1 AND schemaname = $2 AND tablename = $3)";
    let row = source.query_one(sql, &[&publication, &schema, &table]).await;
    Ok(row.map_err(MirrorError::sql("reading the publication"))?.get(0))
}

/// Runs every kind of statement of the way back on the monolith, each over no row at all and in a transaction that is
/// rolled back: rights, columns, types and casts are checked, and nothing is written. `monolith` must be a session of the
/// apply role, `service` one that reads the service's catalog.
///
/// # Errors
/// [`WayError::Refused`] for the first statement that the monolith refuses; [`WayError`].
pub async fn prove_statements(
    monolith: &Client,
    service: &Client,
    slice: &SliceMapping,
) -> Result<(), WayError> {
    let tables = back::mappings(service, slice).await?;
    let failed = MirrorError::sql("trying the statements of the way back");
    monolith.batch_execute("BEGIN").await.map_err(failed)?;
    let tried = try_all(monolith, &tables).await;
    let failed = MirrorError::sql("ending the trial of the way back");
    monolith.batch_execute("ROLLBACK").await.map_err(failed)?;
    tried
}

async fn try_all(monolith: &Client, tables: &[TableMapping]) -> Result<(), WayError> {
    for table in tables {
        let equality = key_equality(monolith, table).await?;
        let form = UpdateForm { key_changes: false, carried: vec![true; table.columns.len()] };
        let update = match statements::update(table, &equality, &form) {
            UpdateSql::Statement(sql) => Some(("UPDATE", sql)),
            UpdateSql::Nothing | UpdateSql::FixedKey => None,
        };
        let others =
            [("DELETE", statements::delete(table, &equality)), ("INSERT", statements::insert(table))];
        for (statement, sql) in others.into_iter().chain(update) {
            try_one(monolith, &sql).await.map_err(|error| WayError::Refused {
                table: table.target.to_string(),
                statement,
                why: sqlstate::words(&error),
            })?;
        }
    }
    Ok(())
}

/// The statements take arrays of values, one per column; with empty ones they concern no row.
async fn try_one(monolith: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let statement = monolith.prepare(sql).await?;
    let none: Vec<Option<&str>> = Vec::new();
    let params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
        statement.params().iter().map(|_| -> &(dyn tokio_postgres::types::ToSql + Sync) { &none }).collect();
    monolith.execute(&statement, &params).await.map(drop)
}
