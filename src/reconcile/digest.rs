//! One number per table and side that is equal exactly when the rows are, up to a collision of 64-bit hashes.
//!
//! The server hashes each row with `hash_record_extended`, which is several times faster than md5 and stays the
//! same across major versions because hash partitioning relies on it. Count, sum and exclusive or of the hashes do
//! not depend on the order of the rows, so nothing is sorted.

use std::fmt;

use tokio_postgres::{Client, IsolationLevel, Transaction};

use crate::mapping::{ColumnMapping, TableMapping};
use crate::name::{TableName, quote_ident};

/// Seed of the row hash. Any value does, as long as both sides take the same.
const SEED: u8 = 0;

/// Fixes whatever the text form of a value depends on, for the columns that are hashed by their text, and keeps
/// names from being looked up where somebody could put others. Row level security would hide rows: with it off,
/// the server says so instead.
const SETTINGS: &str = "SET LOCAL search_path = pg_catalog; SET LOCAL row_security = off; \
    SET LOCAL datestyle = 'ISO, MDY'; SET LOCAL intervalstyle = 'postgres'; SET LOCAL timezone = 'UTC'; \
    SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'";

/// Types whose own hash tells values apart in the same way on every server. All others are hashed by their text:
/// enums hash the label's OID, which differs between databases, and json, xml, points and others have no hash.
const HASHABLE: &[&str] = &[
    "bigint",
    "boolean",
    "bytea",
    "cidr",
    "date",
    "double precision",
    "inet",
    "integer",
    "interval",
    "jsonb",
    "macaddr",
    "macaddr8",
    "numeric",
    "real",
    "smallint",
    "time with time zone",
    "time without time zone",
    "timestamp with time zone",
    "timestamp without time zone",
    "uuid",
];

/// Hashable types with a collation. A nondeterministic one would call different texts equal, so all are hashed
/// under `C`.
const HASHABLE_TEXT: &[&str] = &["bpchar", "character varying", "text"];

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

/// Which side of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The table's origin, seen through the mapping.
    Source,
    /// The mirrored table.
    Target,
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

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
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
    let row = transaction.query_one(sql, &[]).await?;
    Ok(Digest { rows: row.try_get(0)?, sum: row.try_get(1)?, xor: row.try_get(2)? })
}

/// The statement that digests one side of a table.
fn sql(table: &TableMapping, side: Side) -> String {
    let columns: Vec<String> = table.columns.iter().map(|column| expression(column, side)).collect();
    // A partitioned table has its rows in its partitions; of any other, tables that inherit from it are not part.
    let only = if side == Side::Source && !table.partitioned { "ONLY " } else { "" };
    let filter = match side {
        Side::Source => table.filter_sql().map(|filter| format!(" WHERE {filter}")),
        Side::Target => None,
    };
    format!(
        "SELECT count(*), coalesce(sum(hash::numeric), 0)::text, coalesce(bit_xor(hash), 0) \
         FROM (SELECT hash_record_extended(ROW({columns}), {SEED}) AS hash FROM {only}{table}{filter}) AS row_hash",
        columns = columns.join(", "),
        table = name(table, side).sql(),
        filter = filter.unwrap_or_default(),
    )
}

/// A column in the form in which it is hashed. The mapping's type decides on both sides, so that both are hashed
/// alike.
fn expression(column: &ColumnMapping, side: Side) -> String {
    let name = quote_ident(match side {
        Side::Source => &column.source,
        Side::Target => &column.target,
    });
    let element = column.cast_sql.trim_end_matches("[]");
    if HASHABLE.contains(&element) {
        name
    } else if HASHABLE_TEXT.contains(&element) {
        format!("{name} COLLATE \"C\"")
    } else {
        format!("{name}::text COLLATE \"C\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_types_with_a_hash_of_their_own_are_hashed_as_they_are() {
        let expression = |cast_sql: &str| {
            let column = ColumnMapping {
                source: "A".to_owned(),
                target: "b".to_owned(),
                type_sql: cast_sql.to_owned(),
                cast_sql: cast_sql.to_owned(),
                binary: false,
                source_type_oid: 23,
                class: None,
                identity_always: false,
            };
            (expression(&column, Side::Source), expression(&column, Side::Target))
        };
        for (cast_sql, source) in [
            ("integer", r#""A""#),
            ("numeric[]", r#""A""#),
            ("bpchar", r#""A" COLLATE "C""#),
            ("text[]", r#""A" COLLATE "C""#),
            ("json", r#""A"::text COLLATE "C""#),
            ("public.\"OrderStatus\"", r#""A"::text COLLATE "C""#),
            ("public.\"OrderStatus\"[]", r#""A"::text COLLATE "C""#),
            ("regclass", r#""A"::text COLLATE "C""#),
        ] {
            assert_eq!(
                expression(cast_sql),
                (source.to_owned(), source.replace(r#""A""#, r#""b""#)),
                "{cast_sql}"
            );
        }
    }
}
