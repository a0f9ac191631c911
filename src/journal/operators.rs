//! Who works at a slice's authority. A courtesy, so that two people don't get in each other's way: what keeps them from doing
//! harm are the conditions in each change of a gate. The rows are the monolith's.

use tokio_postgres::Client;

use super::JournalError;

/// Someone who was not seen for this long is ignored: the process died, or its machine is gone. In seconds.
pub const IGNORED_AFTER_S: f64 = 15.0;

/// Who is at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// What is done: `flip`, `flip --back`.
    pub verb: String,
    /// The human or the job.
    pub operator: String,
    /// The machine.
    pub host: String,
    /// The process there.
    pub pid: i32,
}

/// An operator's row.
#[derive(Debug, Clone, PartialEq)]
pub struct OperatorRow {
    /// Who.
    pub who: Operator,
    /// Seconds since the row was last written, by the database's clock.
    pub seen_s: f64,
}

/// Says that somebody begins. Returns who is at work already, and changes nothing then.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn begin(
    client: &Client,
    slice: &str,
    who: &Operator,
) -> Result<Option<OperatorRow>, JournalError> {
    let sql = "INSERT INTO strangler.operator AS o (slice, verb, operator, host, pid) VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT (slice) DO UPDATE SET verb = excluded.verb, operator = excluded.operator, \
                   host = excluded.host, pid = excluded.pid, started_at = clock_timestamp(), \
                   seen_at = clock_timestamp() \
               WHERE (o.host, o.pid) = (excluded.host, excluded.pid) \
                   OR o.seen_at < clock_timestamp() - $6::float8 * interval '1 second'";
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&slice, &who.verb, &who.operator, &who.host, &who.pid, &IGNORED_AFTER_S];
    let written = client.execute(sql, &parameters).await;
    if written.map_err(JournalError::database("saying who is at work"))? == 1 {
        return Ok(None);
    }
    // Whoever was in the way may be gone by now; then the next attempt succeeds, and this one says so.
    other(client, slice, who).await
}

/// Who else is at work: a row of another process that was seen lately.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn other(
    client: &Client,
    slice: &str,
    own: &Operator,
) -> Result<Option<OperatorRow>, JournalError> {
    let sql = "SELECT verb, operator, host, pid, seen_s FROM (SELECT *, greatest(0, \
                   extract(epoch FROM clock_timestamp() - seen_at))::float8 AS seen_s FROM strangler.operator) AS o \
               WHERE slice = $1 AND (host, pid) <> ($2, $3) AND seen_s < $4";
    let row = client
        .query_opt(sql, &[&slice, &own.host, &own.pid, &IGNORED_AFTER_S])
        .await
        .map_err(JournalError::database("looking for others at work"))?;
    Ok(row.map(|row| OperatorRow {
        who: Operator { verb: row.get(0), operator: row.get(1), host: row.get(2), pid: row.get(3) },
        seen_s: row.get(4),
    }))
}

/// Still at work. `false` when somebody else took the row over, after a silence.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn beat(client: &Client, slice: &str, own: &Operator) -> Result<bool, JournalError> {
    let sql = "UPDATE strangler.operator SET seen_at = clock_timestamp() WHERE slice = $1 AND (host, pid) = ($2, $3)";
    let written = client.execute(sql, &[&slice, &own.host, &own.pid]).await;
    written.map(|rows| rows == 1).map_err(JournalError::database("saying who is at work"))
}

/// Done. Leaves the row of somebody else alone.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn end(client: &Client, slice: &str, own: &Operator) -> Result<(), JournalError> {
    let sql = "DELETE FROM strangler.operator WHERE slice = $1 AND (host, pid) = ($2, $3)";
    let gone = client.execute(sql, &[&slice, &own.host, &own.pid]).await;
    gone.map(drop).map_err(JournalError::database("saying that work has ended"))
}
