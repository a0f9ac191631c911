//! A copy that is made again over the rows of the last one: what the monolith still has is left alone, and only rows near those that
//! differ are copied. It is the same landing under the same snapshots (docs/protocol.md, "Landing"): rows that are equal under the round's
//! snapshot have landed as if they had been copied.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::borders::{JobExtent, Stretch, range_condition, target_range_condition};
use super::error::MirrorError;
use crate::mapping::{ColumnMapping, TableMapping};
use crate::name::quote_list;

/// Seed of the second hash of a row. Two of 64 bits, one summed and one xored, and the count: rows that differ are taken for equal by
/// nobody's luck.
const SEED: i64 = 0x5354_5241_4e47;
/// Into so many parts the rows of a piece are divided by a hash of their key: one row that differs has that part of a piece copied again,
/// and the list of parts is small whatever the piece's size.
const PARTS: i64 = 256;

/// Rows of a part of a piece, and both hashes over them.
#[derive(Debug, PartialEq, Eq)]
struct Digest {
    /// The database's encoding: hashes go over bytes, and what looks alike in two encodings is not the same text.
    encoding: String,
    rows: i64,
    sum: String,
    xor: i64,
}

/// How a piece stands.
#[derive(Debug)]
pub(super) struct Settled {
    /// Rows that the monolith has of it.
    pub(super) rows: u64,
    /// Which of them have to be copied, as a condition on the source's columns: the service has none of these any more. `None` where
    /// nothing differs.
    pub(super) lacking: Option<String>,
}

/// Compares a piece of the service's table with the monolith's under the round's snapshot, by what the values look like: a value that is
/// written in another way, or in another encoding, is copied again, which is never wrong. What differs is deleted in the service's open transaction.
///
/// # Errors
/// [`MirrorError::Sql`].
pub(super) async fn settle(
    (source, target): (&Client, &Client),
    mapping: &TableMapping,
    extent: &JobExtent,
) -> Result<Settled, MirrorError> {
    let stretch = match extent {
        JobExtent::Range(stretch) => *stretch,
        // Such a table is never copied in parts, so this is all of it.
        JobExtent::Part { .. } => (None, None),
    };
    let (there, here) = (of_source(mapping, stretch), of_target(mapping, stretch));
    let failed = || MirrorError::sql("comparing a piece with what the last copy left");
    let (there, here) = tokio::join!(digests(source, &there), digests(target, &here));
    let (there, here) = (there.map_err(failed())?, here.map_err(failed())?);
    let rows = u64::try_from(there.values().map(|digest| digest.rows).sum::<i64>()).unwrap_or(0);
    let differing = |part: &i64| there.get(part) != here.get(part);
    let parts: Vec<String> = (0..PARTS).filter(differing).map(|part| part.to_string()).collect();
    if parts.is_empty() {
        return Ok(Settled { rows, lacking: None });
    }
    let among = |key: &str| format!("{} IN ({})", part_of(key), parts.join(", "));
    let gone = condition([target_range_condition(mapping, stretch), Some(among(&key(mapping, target_name)))]);
    let sql = format!("DELETE FROM {}{gone}", mapping.target.sql());
    target.batch_execute(&sql).await.map_err(MirrorError::sql("taking away what differs"))?;
    Ok(Settled { rows, lacking: Some(among(&key(mapping, source_name))) })
}

async fn digests(client: &Client, rows: &str) -> Result<BTreeMap<i64, Digest>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT part, pg_catalog.getdatabaseencoding()::text, count(*), sum(hashtextextended(t, 0))::text, bit_xor(hashtextextended(t, {SEED})) \
         FROM ({rows}) AS s GROUP BY part"
    );
    let found = client.query_typed(&sql, &[]).await?;
    Ok(found
        .iter()
        .map(|row| {
            (row.get(0), Digest { encoding: row.get(1), rows: row.get(2), sum: row.get(3), xor: row.get(4) })
        })
        .collect())
}

fn of_source(mapping: &TableMapping, stretch: Stretch) -> String {
    let rows = condition([mapping.filter_sql(), range_condition(mapping, stretch)]);
    let only = if mapping.partitioned { "" } else { "ONLY " };
    let columns = (mapping.source_list(), key(mapping, source_name));
    texts(&columns, &format!("{only}{}{rows}", mapping.source.sql()))
}

/// Without the filter: what it forbids has no place in the service's table.
fn of_target(mapping: &TableMapping, stretch: Stretch) -> String {
    let rows = condition([target_range_condition(mapping, stretch)]);
    let columns = (mapping.target_list(), key(mapping, target_name));
    texts(&columns, &format!("{}{rows}", mapping.target.sql()))
}

/// One text per row, in which no two rows look alike, and its part; the collation is deterministic whatever the databases' are.
fn texts((columns, key): &(String, String), rows: &str) -> String {
    format!("SELECT ROW({columns})::text COLLATE \"C\" AS t, {} AS part FROM {rows}", part_of(key))
}

/// A key that is written in another way on the other side is in another part there; both parts differ then.
fn part_of(key: &str) -> String {
    format!("(hashtextextended(ROW({key})::text COLLATE \"C\", 0) & {})", PARTS - 1)
}

fn key(mapping: &TableMapping, name: fn(&ColumnMapping) -> &str) -> String {
    quote_list(mapping.key_columns().map(name))
}

fn source_name(column: &ColumnMapping) -> &str {
    &column.source
}

fn target_name(column: &ColumnMapping) -> &str {
    &column.target
}

fn condition<const N: usize>(terms: [Option<String>; N]) -> String {
    let terms: Vec<String> = terms.into_iter().flatten().collect();
    if terms.is_empty() { String::new() } else { format!(" WHERE {}", terms.join(" AND ")) }
}
