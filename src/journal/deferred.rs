//! Indexes and constraints that wait for the data.

use tokio_postgres::{Client, Row};

use super::JournalError;

/// One statement that waits.
#[derive(Debug, Clone)]
pub struct DeferredRow {
    /// Its number: statements run in this order.
    pub id: i64,
    /// Table in the service, as a plan would write it.
    pub target_table: String,
    /// `index`, `constraint`, `foreign_key` or `statement`.
    pub kind: String,
    /// Index or constraint name.
    pub object: String,
    /// The statement, run as the service's administrator.
    pub create_sql: String,
}

/// Statements of a slice that still wait, in order.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn waiting(client: &Client, slice: &str) -> Result<Vec<DeferredRow>, JournalError> {
    let rows = client
        .query(
            "SELECT id, target_table, kind, object, create_sql FROM strangler.deferred \
             WHERE slice = $1 AND done_at IS NULL ORDER BY id",
            &[&slice],
        )
        .await
        .map_err(JournalError::database("reading deferred statements"))?;
    Ok(rows.iter().map(from_row).collect())
}

/// Statements of a table that were run and that old rows, or rows of different snapshots, may break: everything but
/// indexes that are not unique, and foreign keys, which nobody asks while the mirror writes.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn breakable_done(
    client: &Client,
    slice: &str,
    target_table: &str,
) -> Result<Vec<DeferredRow>, JournalError> {
    let rows = client
        .query(
            "SELECT id, target_table, kind, object, create_sql FROM strangler.deferred \
             WHERE slice = $1 AND target_table = $2 AND done_at IS NOT NULL \
               AND (kind = 'constraint' OR kind = 'index' AND create_sql LIKE 'CREATE UNIQUE %') ORDER BY id",
            &[&slice, &target_table],
        )
        .await
        .map_err(JournalError::database("reading deferred statements"))?;
    Ok(rows.iter().map(from_row).collect())
}

/// Names of a table's indexes and constraints that were made, or are to be made, after its data.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn objects(client: &Client, slice: &str, target_table: &str) -> Result<Vec<String>, JournalError> {
    let sql = "SELECT object FROM strangler.deferred WHERE slice = $1 AND target_table = $2";
    let rows = client.query(sql, &[&slice, &target_table]).await;
    let rows = rows.map_err(JournalError::database("reading deferred statements"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Lets a foreign key wait again, with its validation, in the caller's transaction. False where it is none of ours.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_key_waiting(
    client: &Client,
    slice: &str,
    target_table: &str,
    key: &str,
) -> Result<bool, JournalError> {
    client
        .query_one(
            "WITH again AS (UPDATE strangler.deferred SET done_at = NULL \
               WHERE slice = $1 AND target_table = $2 \
                 AND (kind = 'foreign_key' AND object = $3 OR kind = 'statement' AND object = 'validate ' || $3) \
               RETURNING kind) \
             SELECT EXISTS (SELECT FROM again WHERE kind = 'foreign_key')",
            &[&slice, &target_table, &key],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(JournalError::database("letting a foreign key wait"))
}

fn from_row(row: &Row) -> DeferredRow {
    DeferredRow {
        id: row.get(0),
        target_table: row.get(1),
        kind: row.get(2),
        object: row.get(3),
        create_sql: row.get(4),
    }
}

/// Makes sure, inside the open transaction, that the mirror with `nonce` is still the one in charge.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn guard(client: &Client, slice: &str, nonce: i64) -> Result<bool, JournalError> {
    client
        .query_opt(
            "SELECT 1 FROM strangler.stream WHERE slice = $1 AND dir = 'forward' AND lane = 0 AND nonce = $2 \
             FOR SHARE",
            &[&slice, &nonce],
        )
        .await
        .map(|row| row.is_some())
        .map_err(JournalError::database("checking the stream row"))
}

/// Lets a statement wait again, in the caller's transaction.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_waiting(client: &Client, id: i64) -> Result<(), JournalError> {
    client
        .execute("UPDATE strangler.deferred SET done_at = NULL WHERE id = $1", &[&id])
        .await
        .map(drop)
        .map_err(JournalError::database("letting a deferred statement wait"))
}

/// Marks a statement done, in its own transaction.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_done(client: &Client, id: i64) -> Result<(), JournalError> {
    client
        .execute("UPDATE strangler.deferred SET done_at = now() WHERE id = $1", &[&id])
        .await
        .map(drop)
        .map_err(JournalError::database("marking a deferred statement done"))
}
