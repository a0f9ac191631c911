//! Indexes and constraints that wait for the data.

use tokio_postgres::Client;

use super::JournalError;

/// One statement that waits.
#[derive(Debug, Clone)]
pub struct DeferredRow {
    /// Its number: statements run in this order.
    pub id: i64,
    /// Table in the service, as a plan would write it.
    pub target_table: String,
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
            "SELECT id, target_table, object, create_sql FROM strangler.deferred \
             WHERE slice = $1 AND done_at IS NULL ORDER BY id",
            &[&slice],
        )
        .await
        .map_err(JournalError::database("reading deferred statements"))?;
    Ok(rows
        .iter()
        .map(|row| DeferredRow {
            id: row.get(0),
            target_table: row.get(1),
            object: row.get(2),
            create_sql: row.get(3),
        })
        .collect())
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
