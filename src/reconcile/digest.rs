//! One number per table and side that is equal exactly when the rows are, up to a collision of 64-bit hashes.
//!
//! Count, sum and exclusive or of the rows' hashes ([`form`](super::form)) do not depend on the order of the rows, so
//! nothing is sorted.

use tokio_postgres::{Client, IsolationLevel, Transaction};

pub use super::form::Side;
use super::form::TableForm;
use crate::mapping::TableMapping;
use crate::name::TableName;

/// Fixes whatever the text form of a value depends on, for the columns that are hashed by their text, and keeps
/// names from being looked up where somebody could put others. Row level security would hide rows: with it off,
/// the server says so instead.
const SETTINGS: &str = "SET LOCAL search_path = pg_catalog; SET LOCAL row_security = off; \
    SET LOCAL datestyle = 'ISO, MDY'; SET LOCAL intervalstyle = 'postgres'; SET LOCAL timezone = 'UTC'; \
    SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'";

/// The rows of one table on one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// Number of rows.
    pub rows: i64,
    /// Sum of the rows' hashes, as a decimal number: it does not fit 64 bits.
    sum: String,
    /// Exclusive or of the rows' hashes.
    xor: i64,
}

/// One table on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDigest {
    /// Name on the source.
    pub source_table: TableName,
    /// Name on the target.
    pub target_table: TableName,
    /// The rows that the mapping takes from the source, in the target's shape.
    pub source: Digest,
    /// The rows of the target.
    pub target: Digest,
}

/// A digest could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("{table} on the {side} could not be compared")]
pub struct DigestError {
    /// Table, by its name on that side.
    pub table: TableName,
    /// On which side.
    pub side: Side,
    /// What the server said.
    pub source: tokio_postgres::Error,
}

impl TableDigest {
    /// Both sides hold the same rows.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.source == self.target
    }
}

/// Digests the tables on both sides at the same time, each side in one snapshot, so that tables of one side fit
/// each other. The two snapshots are of different moments: whoever compares sides that move makes them meet first.
/// Both roles need SELECT on every column that the mapping carries.
///
/// # Errors
/// [`DigestError`] of the first table that could not be read.
pub async fn compare(
    source: &mut Client,
    target: &mut Client,
    tables: &[TableMapping],
) -> Result<Vec<TableDigest>, DigestError> {
    let (sources, targets) =
        tokio::try_join!(digest(source, tables, Side::Source), digest(target, tables, Side::Target))?;
    let sides = sources.into_iter().zip(targets);
    let compared = tables.iter().zip(sides).map(|(table, (source, target))| TableDigest {
        source_table: table.source.clone(),
        target_table: table.target.clone(),
        source,
        target,
    });
    Ok(compared.collect())
}

async fn digest(
    client: &mut Client,
    tables: &[TableMapping],
    side: Side,
) -> Result<Vec<Digest>, DigestError> {
    let Some(first) = tables.first() else { return Ok(Vec::new()) };
    let transaction = begin(client).await.map_err(|error| failed(first, side, error))?;
    let mut digests = Vec::with_capacity(tables.len());
    for table in tables {
        let digest = read(&transaction, &sql(table, side)).await;
        digests.push(digest.map_err(|error| failed(table, side, error))?);
    }
    Ok(digests)
}

fn failed(table: &TableMapping, side: Side, source: tokio_postgres::Error) -> DigestError {
    DigestError { table: name(table, side).clone(), side, source }
}

fn name(table: &TableMapping, side: Side) -> &TableName {
    match side {
        Side::Source => &table.source,
        Side::Target => &table.target,
    }
}

async fn begin(client: &mut Client) -> Result<Transaction<'_>, tokio_postgres::Error> {
    let start = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let transaction = start.start().await?;
    transaction.batch_execute(SETTINGS).await?;
    Ok(transaction)
}

async fn read(transaction: &Transaction<'_>, sql: &str) -> Result<Digest, tokio_postgres::Error> {
    let row = transaction.query_typed_one(sql, &[]).await?;
    Ok(Digest { rows: row.try_get(0)?, sum: row.try_get(1)?, xor: row.try_get(2)? })
}

/// The statement that digests one side of a table.
fn sql(table: &TableMapping, side: Side) -> String {
    let form = TableForm::new(TableMapping { generated: Vec::new(), ..table.clone() }, false);
    let filter = if side == Side::Source { form.filter() } else { None };
    // Without the fence the planner would compute each hash twice, once for each sum.
    format!(
        "SELECT count(*), coalesce(sum(hash), 0)::text, coalesce(bit_xor(hash), 0) \
         FROM (SELECT {hash} AS hash FROM {from} AS t{filter} OFFSET 0) AS row_hash",
        hash = form.row_hash(side, false),
        from = form.from(side),
        filter = filter.map(|filter| format!(" WHERE {filter}")).unwrap_or_default(),
    )
}
