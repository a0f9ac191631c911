//! Where the old tables of a slice are archived. Kept on the monolith.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::JournalError;
use crate::lsn::Lsn;
use crate::name::quote_literal;

/// An archive whose every byte was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Epoch of the authority at that time.
    pub epoch: i64,
    /// The folder, as it can be typed.
    pub place: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// Position in the service's WAL up to which its rows have everything.
    pub reverse_lsn: Lsn,
    /// Slot of the way back that had brought them; `None` where an earlier version wrote it down.
    pub way_back: Option<String>,
    /// Rows of all tables.
    pub rows: i64,
    /// Bytes of its files.
    pub bytes: i64,
    /// When it was written down, RFC 3339 in UTC.
    pub at: String,
}

/// The archive of a slice; `None` where there is none, and in a database that an earlier version provisioned.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn read(monolith: &Client, slice: &str) -> Result<Option<Archive>, JournalError> {
    let failed = || JournalError::database("reading where a slice is archived");
    let there = "SELECT to_regclass('strangler.archive') IS NOT NULL";
    if !monolith.query_typed_one(there, &[]).await.map_err(failed())?.get::<_, bool>(0) {
        return Ok(None);
    }
    // An earlier version has no way back in it.
    let sql = "SELECT epoch, place, manifest_sha256, reverse_lsn, rows, bytes, \
                   to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), to_jsonb(a) ->> 'way_back' \
               FROM strangler.archive a WHERE slice = $1";
    let row = monolith.query_opt(sql, &[&slice]).await.map_err(failed())?;
    Ok(row.map(|row| Archive {
        epoch: row.get(0),
        place: row.get(1),
        manifest_sha256: row.get(2),
        reverse_lsn: row.get::<_, PgLsn>(3).into(),
        rows: row.get(4),
        bytes: row.get(5),
        at: row.get(6),
        way_back: row.get(7),
    }))
}

/// SQL that writes an archive down, in the place of an earlier one.
#[must_use]
pub fn note(slice: &str, archive: &Archive) -> String {
    let Archive { epoch, place, manifest_sha256, reverse_lsn, way_back, rows, bytes, at: _ } = archive;
    let way_back = way_back.as_deref().map_or_else(|| "NULL".to_owned(), quote_literal);
    format!(
        "INSERT INTO strangler.archive (slice, epoch, place, manifest_sha256, reverse_lsn, rows, bytes, way_back) \
         VALUES ({}, {epoch}, {}, {}, {}, {rows}, {bytes}, {way_back}) \
         ON CONFLICT (slice) DO UPDATE SET epoch = excluded.epoch, place = excluded.place, \
             manifest_sha256 = excluded.manifest_sha256, reverse_lsn = excluded.reverse_lsn, rows = excluded.rows, \
             bytes = excluded.bytes, way_back = excluded.way_back, at = now()",
        quote_literal(slice),
        quote_literal(place),
        quote_literal(manifest_sha256),
        quote_literal(&reverse_lsn.to_string())
    )
}

/// SQL after which no archive is known of a slice. What was written stays where it is.
#[must_use]
pub fn forget(slice: &str) -> String {
    format!("DELETE FROM strangler.archive WHERE slice = {}", quote_literal(slice))
}

/// Whether the session that keeps others away lasts.
///
/// # Errors
/// [`JournalError::Database`] when it does not.
pub async fn still_locked(monolith: &Client) -> Result<(), JournalError> {
    let asked = monolith.batch_execute("SELECT").await;
    asked.map_err(JournalError::database("keeping others from archiving"))
}

/// Keeps others from archiving the same slice for as long as the session lasts; `false` where somebody does.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn try_lock(monolith: &Client, slice: &str) -> Result<bool, JournalError> {
    let sql = "SELECT pg_try_advisory_lock(hashtextextended('strangler archive ' || $1, 0))";
    let row = monolith.query_one(sql, &[&slice]).await;
    Ok(row.map_err(JournalError::database("keeping others from archiving"))?.get(0))
}
