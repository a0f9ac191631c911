//! What a database knows about a slice: its provisioned mapping and its gate.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::JournalError;
use crate::lsn::Lsn;
use crate::name::quote_ident;

/// A provisioned slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceRow {
    /// Plan that it came from.
    pub plan: String,
    /// Hash of the mapping that was provisioned.
    pub plan_hash: String,
    /// Forward publication on the monolith.
    pub publication: String,
}

/// Who may write, as one database's gate row tells those who only show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateRow {
    /// `OPEN` or `FENCED`.
    pub state: String,
    /// Grows with every change of authority.
    pub epoch: i64,
    /// Who owns the slice, or `moving`.
    pub owner: String,
}

/// The slice, when it was provisioned here.
///
/// # Errors
/// [`JournalError::Database`]; SQLSTATE 42P01 or 3F000 inside it means that nothing was ever provisioned here.
pub async fn read(client: &Client, slice: &str) -> Result<Option<SliceRow>, JournalError> {
    let row = client
        .query_opt("SELECT plan, plan_hash, publication FROM strangler.slice WHERE slice = $1", &[&slice])
        .await
        .map_err(JournalError::database("reading the slice"))?;
    Ok(row.map(|row| SliceRow { plan: row.get(0), plan_hash: row.get(1), publication: row.get(2) }))
}

/// The gate of a slice in this database.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn gate(client: &Client, slice: &str) -> Result<Option<GateRow>, JournalError> {
    let table = quote_ident(&format!("gate_{slice}"));
    let row = client
        .query_typed_opt(&format!("SELECT state, epoch, owner FROM strangler.{table}"), &[])
        .await
        .map_err(JournalError::database("reading the gate"))?;
    Ok(row.map(|row| GateRow { state: row.get(0), epoch: row.get(1), owner: row.get(2) }))
}

/// The gate of a slice in a database that may have nothing of it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn gate_if_any(client: &Client, slice: &str) -> Result<Option<GateRow>, JournalError> {
    if has_gate(client, slice).await? { gate(client, slice).await } else { Ok(None) }
}

/// Where the next record of this database's server will be written.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn insert_position(client: &Client) -> Result<Lsn, JournalError> {
    let row = client.query_typed_one("SELECT pg_current_wal_insert_lsn()", &[]).await;
    let row = row.map_err(JournalError::database("reading the position of the server's log"))?;
    Ok(row.get::<_, PgLsn>(0).into())
}

/// The random uuid of this database.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn database_uuid(client: &Client) -> Result<Option<String>, JournalError> {
    let row = client
        .query_typed_opt("SELECT uuid::text FROM strangler.database", &[])
        .await
        .map_err(JournalError::database("reading the database's identity"))?;
    Ok(row.map(|row| row.get(0)))
}

/// Whether the gate's table of a slice is there.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn has_gate(client: &Client, slice: &str) -> Result<bool, JournalError> {
    let table = format!("strangler.{}", quote_ident(&format!("gate_{slice}")));
    let row = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await;
    Ok(row.map_err(JournalError::database("looking for the gate"))?.get(0))
}
