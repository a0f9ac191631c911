//! Rows that a service's application wrote and the slice's own filter forbids. The way back does not carry them, and takes a row
//! that left the filter from the monolith: what the application wrote there is in the service and nowhere else.

use tokio_postgres::Client;

use super::JournalError;
use super::abandonment::{of_this_life, told_of_this_life};
use super::ledger::VERDICT;
use crate::lsn::Lsn;

/// Action of the entry in the service's journal that tells of them.
pub(super) const OUTSIDE: &str = "row-outside-filter";

/// Entries that no comparison of every row has answered since: none that began after them found such a row no more. What came
/// first is told by the number of disturbances, since an entry is one.
fn open() -> String {
    format!(
        "SELECT j.id, j.detail ->> 'table' AS source_table, j.detail ->> 'lsn' AS lsn, j.at \
        FROM strangler.journal j WHERE j.slice = $1 AND j.action = $2 AND {} AND NOT EXISTS (SELECT FROM strangler.ledger l \
            WHERE l.slice = $1 AND l.kind = $3 AND {} AND l.body ->> 'full' = 'true' AND l.body ->> 'outcome' IN ('clean', 'differs') \
              AND coalesce(l.body -> 'counts' ->> 'misplaced', '0') = '0' \
              AND (l.body -> 'ground' ->> 'disturbances')::int8 > (j.detail ->> 'before')::int8)",
        of_this_life("j", "$1"),
        told_of_this_life("l", "$1")
    )
}

/// Tables of a slice that hold such rows, as far as anybody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// The tables, by the monolith's names, each once.
    pub tables: Vec<String>,
    /// Start of the commit record of the first transaction that wrote one.
    pub lsn: String,
    /// When it was met, by the service's clock, as RFC 3339.
    pub at: String,
}

/// Notes in the service that a transaction wrote such a row, which voids what was proven before. `true` when that is news: as
/// long as an entry about the table is open, another one would say nothing. Repeating it after a crash changes nothing. Who
/// calls it: the way back, before its position passes the transaction.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn note(service: &Client, slice: &str, table: &str, commit: Lsn) -> Result<bool, JournalError> {
    let before = super::alarms::disturbances(service, slice).await?;
    let sql = format!(
        "INSERT INTO strangler.journal (slice, actor, action, detail) \
         SELECT $1, session_user, $2, jsonb_build_object('table', $4::text, 'lsn', $5::text, 'before', $6::int8) \
         WHERE NOT EXISTS (SELECT FROM ({}) AS o WHERE o.source_table = $4)",
        open()
    );
    let done =
        service.execute(&sql, &[&slice, &OUTSIDE, &VERDICT, &table, &commit.to_string(), &before]).await;
    Ok(done.map_err(JournalError::database("noting a row that the filter forbids"))? > 0)
}

/// What nobody has acted upon; `None` when there is nothing. Who calls it: `status`.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn uncleared(service: &Client, slice: &str) -> Result<Option<Outside>, JournalError> {
    let sql = format!(
        "SELECT array_agg(DISTINCT o.source_table), (array_agg(o.lsn ORDER BY o.id))[1], \
            to_char(min(o.at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM ({}) AS o HAVING count(*) > 0",
        open()
    );
    let row = service.query_opt(&sql, &[&slice, &OUTSIDE, &VERDICT]).await;
    let row = row.map_err(JournalError::database("reading rows that the filter forbids"))?;
    Ok(row.map(|row| Outside { tables: row.get(0), lsn: row.get(1), at: row.get(2) }))
}
