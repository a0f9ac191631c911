//! Marks by which a source that was set back to an earlier state is told from the one that was read.

use tokio_postgres::Client;

use super::JournalError;
use super::streams::StreamOf;

/// The mark of the stream that reads from `slot`, in the source or in the target; `None` where there is none.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn read(client: &Client, of: StreamOf<'_>, slot: &str) -> Result<Option<i64>, JournalError> {
    let sql = "SELECT mark FROM strangler.lineage WHERE slice = $1 AND dir = $2 AND slot = $3";
    let row = client.query_opt(sql, &[&of.slice, &of.direction.as_str(), &slot]).await;
    Ok(row.map_err(JournalError::database("reading the mark of a stream"))?.map(|row| row.get(0)))
}

/// In the source: makes the mark of a stream that has none. That of an earlier slot gives way to it once that slot is gone; a mirror that
/// was shut out, and wakes up, has none to begin with.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn begin(source: &Client, of: StreamOf<'_>, slot: &str) -> Result<(), JournalError> {
    let sql = "INSERT INTO strangler.lineage AS l (slice, dir, slot, mark) SELECT $1::text, $2::text, $3::text, 0 \
                   WHERE EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $3::text) \
               ON CONFLICT (slice, dir) DO UPDATE SET slot = excluded.slot, mark = 0 WHERE l.slot <> excluded.slot \
                   AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name::text = l.slot)";
    let begun = source.execute(sql, &[&of.slice, &of.direction.as_str(), &slot]).await;
    begun.map(drop).map_err(JournalError::database("marking the source of a stream"))
}

/// In the source: counts the mark up from what the mirror knows it to be. `false` where it is another one.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn advance(
    source: &Client,
    of: StreamOf<'_>,
    (slot, known): (&str, i64),
) -> Result<bool, JournalError> {
    let sql = "UPDATE strangler.lineage SET mark = mark + 1 WHERE slice = $1 AND dir = $2 AND slot = $3 AND mark = $4";
    let advanced = source.execute(sql, &[&of.slice, &of.direction.as_str(), &slot, &known]).await;
    advanced.map(|rows| rows == 1).map_err(JournalError::database("marking the source of a stream"))
}

/// In the target: notes a mark before which everything has come down the stream. Only the stream's own mirror does.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn note(
    target: &Client,
    of: StreamOf<'_>,
    nonce: i64,
    (slot, mark): (&str, i64),
) -> Result<(), JournalError> {
    let sql = "INSERT INTO strangler.lineage AS l (slice, dir, slot, mark) SELECT s.slice, s.dir, $3, $4 \
                   FROM strangler.stream s WHERE s.slice = $1 AND s.dir = $2 AND s.lane = 0 AND s.nonce = $5 AND s.slot = $3 \
               ON CONFLICT (slice, dir) DO UPDATE SET slot = excluded.slot, mark = excluded.mark \
                   WHERE l.slot <> excluded.slot OR l.mark < excluded.mark";
    let noted = target.execute(sql, &[&of.slice, &of.direction.as_str(), &slot, &mark, &nonce]).await;
    noted.map(drop).map_err(JournalError::database("noting the mark of a stream"))
}
