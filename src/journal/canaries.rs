//! Canaries: rows that a stream carries in any mode, to prove that its way is open and that what is written on one side
//! arrives on the other.

use tokio_postgres::Client;

use super::JournalError;
use super::streams::StreamOf;

/// Schema and name of the table that travels, as the stream of a publication that holds it says them.
pub const TABLE: (&str, &str) = ("strangler", "canary");

/// Sets a canary out on the source of a stream: this row is what the stream has to bring.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_out(source: &Client, of: StreamOf<'_>, nonce: &str) -> Result<(), JournalError> {
    land(source, of, nonce).await
}

/// Puts a canary that arrived on the target of its stream, inside the open transaction.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn land(target: &Client, of: StreamOf<'_>, nonce: &str) -> Result<(), JournalError> {
    let sql = "INSERT INTO strangler.canary (slice, dir, nonce) VALUES ($1, $2, $3) ON CONFLICT (slice, dir) \
               DO UPDATE SET nonce = excluded.nonce, at = clock_timestamp()";
    let done = target.execute(sql, &[&of.slice, &of.direction.as_str(), &nonce]).await;
    done.map(drop).map_err(JournalError::database("writing a canary"))
}

/// The canary of a stream in one database; `None` when none ever was there.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn seen(client: &Client, of: StreamOf<'_>) -> Result<Option<String>, JournalError> {
    let sql = "SELECT nonce FROM strangler.canary WHERE slice = $1 AND dir = $2";
    let row = client.query_opt(sql, &[&of.slice, &of.direction.as_str()]).await;
    Ok(row.map_err(JournalError::database("reading a canary"))?.map(|row| row.get(0)))
}
