//! Where the next pieces of a table begin and end.

use tokio_postgres::Client;

use super::error::MirrorError;
use super::table::TableRun;
use crate::landing::key::Point;
use crate::mapping::TableMapping;
use crate::name::{quote_ident, quote_literal};

/// A stretch of keys, (lo, hi].
pub type Stretch = (Option<Point>, Option<Point>);

/// What one worker copies at a time.
#[derive(Debug, Clone)]
pub struct Job {
    /// Number of the table in the slice.
    pub table: usize,
    /// Which rows.
    pub extent: JobExtent,
}

/// Which rows of a table a job copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobExtent {
    /// A key range.
    Range(Stretch),
    /// One of several parts by physical place; a part of one is the whole table.
    Part {
        /// From 0.
        part: u32,
        /// How many there are.
        parts: u32,
    },
}

/// The next ranges of about `rows` rows in the first gap of a table, at most `count`.
/// Borders may be taken under any snapshot: a range is only a stretch of keys.
///
/// # Errors
/// [`MirrorError`].
pub async fn next_ranges(
    source: &Client,
    table: &TableRun,
    rows: u64,
    count: usize,
) -> Result<Vec<Stretch>, MirrorError> {
    let Some((mut lo, end)) = table.pieces.first_gap() else { return Ok(Vec::new()) };
    let mut ranges = Vec::new();
    while ranges.len() < count {
        let hi = border_after(source, &table.mapping, (lo, end), rows).await?;
        match hi {
            Some(point) if Some(point) != end => {
                ranges.push((lo, Some(point)));
                lo = Some(point);
            }
            Some(_) | None => {
                ranges.push((lo, end));
                break;
            }
        }
    }
    Ok(ranges)
}

/// The key `rows` rows after the beginning of a stretch; `None` when it holds fewer.
async fn border_after(
    source: &Client,
    mapping: &TableMapping,
    stretch: Stretch,
    rows: u64,
) -> Result<Option<Point>, MirrorError> {
    let Some(column) = mapping.key_columns().next() else { return Ok(None) };
    let name = quote_ident(&column.source);
    let condition = range_condition(mapping, stretch).map_or_else(String::new, |sql| format!("WHERE {sql} "));
    let sql = format!(
        // A bare name after ORDER BY would be the output column, and sort the whole rest of the table as text.
        "SELECT {name}::text FROM {} AS t {condition}ORDER BY t.{name} OFFSET {} LIMIT 1",
        mapping.source.sql(),
        rows.saturating_sub(1)
    );
    let row = source
        .query_typed_opt(&sql, &[])
        .await
        .map_err(MirrorError::sql("looking for the next key border"))?;
    let Some(row) = row else { return Ok(None) };
    let text: &str = row.get(0);
    Point::parse(mapping.key_order, text.as_bytes())
        .map(Some)
        .map_err(|_| MirrorError::Unreadable { what: format!("a key of {}", mapping.source) })
}

/// A stretch as a condition on the source's key column; `None` when it is all keys.
#[must_use]
pub fn range_condition(mapping: &TableMapping, stretch: Stretch) -> Option<String> {
    let column = mapping.key_columns().next()?;
    condition(&quote_ident(&column.source), &column.cast_sql, stretch)
}

/// The same on the target's key column.
#[must_use]
pub fn target_range_condition(mapping: &TableMapping, stretch: Stretch) -> Option<String> {
    let column = mapping.key_columns().next()?;
    condition(&quote_ident(&column.target), &column.cast_sql, stretch)
}

fn condition(name: &str, cast: &str, (lo, hi): Stretch) -> Option<String> {
    let bound = |operator: &str, point: Point| {
        format!("{name} {operator} {}::{cast}", quote_literal(&point.to_string()))
    };
    let terms: Vec<String> =
        lo.map(|point| bound(">", point)).into_iter().chain(hi.map(|point| bound("<=", point))).collect();
    if terms.is_empty() { None } else { Some(terms.join(" AND ")) }
}
