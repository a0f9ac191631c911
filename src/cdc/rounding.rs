//! Columns of the service that somebody gave a coarser type: they take every value and round it, without an error.

use std::collections::BTreeMap;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::{MirrorError, Refusal};
use crate::mapping::narrower::rounds;
use crate::mapping::{ColumnMapping, SliceMapping, TableMapping};
use crate::name::{TableName, quote_ident};
use crate::postgres::places::Asked;
use crate::words::shell_word;

/// Types whose values another one takes and rounds. Whatever does not fit a type outside of these is an error.
const ROUNDED: [Type; 14] = [
    Type::NUMERIC,
    Type::NUMERIC_ARRAY,
    Type::FLOAT4,
    Type::FLOAT4_ARRAY,
    Type::FLOAT8,
    Type::FLOAT8_ARRAY,
    Type::TIMESTAMP,
    Type::TIMESTAMP_ARRAY,
    Type::TIMESTAMPTZ,
    Type::TIMESTAMPTZ_ARRAY,
    Type::TIME,
    Type::TIMETZ,
    Type::INTERVAL,
    Type::INTERVAL_ARRAY,
];

/// Why the mirror must not write into the service's columns as they are, where one of them rounds what the monolith has.
///
/// # Errors
/// [`MirrorError::Sql`].
pub(super) async fn find_fault(
    (monolith, service): (&Client, &Client),
    mapping: &SliceMapping,
) -> Result<Option<Refusal>, MirrorError> {
    let concerned = concerned(mapping);
    if concerned.is_empty() {
        return Ok(None);
    }
    let sources: Vec<_> =
        concerned.iter().map(|(table, column)| (&table.source, column.source.as_str())).collect();
    let targets: Vec<_> =
        concerned.iter().map(|(table, column)| (&table.target, column.target.as_str())).collect();
    let (there, here) = (formats(monolith, &sources).await?, formats(service, &targets).await?);
    let (mut facts, mut statements, mut retries) = (Vec::new(), Vec::new(), Vec::new());
    for (table, column) in concerned {
        let from = there.get(&(table.source.clone(), column.source.clone()));
        let to = here.get(&(table.target.clone(), column.target.clone()));
        let Some((from, to)) = from.zip(to).filter(|(from, to)| rounds(from, to)) else { continue };
        facts.push(format!("{}.{} is {to}, and {from} on the monolith", table.target, column.target));
        statements.push(format!(
            "ALTER TABLE {} ALTER COLUMN {} TYPE {from}",
            table.target.sql(),
            quote_ident(&column.target)
        ));
        let retry = format!(" --retry {}", shell_word(&table.source.to_string()));
        if !retries.contains(&retry) {
            retries.push(retry);
        }
    }
    if facts.is_empty() {
        return Ok(None);
    }
    Ok(Some(Refusal {
        what: format!(
            "columns of the service would round or change what the monolith has: {}",
            facts.join("; ")
        ),
        next: format!(
            "run in the service: {}; then strangler mirror PLAN --slice {}{}, which copies what is named again",
            statements.join("; "),
            mapping.slice,
            retries.concat()
        ),
        anew: false,
    }))
}

/// Columns whose values may be rounded.
fn concerned(mapping: &SliceMapping) -> Vec<(&TableMapping, &ColumnMapping)> {
    let columns =
        mapping.tables.iter().flat_map(|table| table.columns.iter().map(move |column| (table, column)));
    columns.filter(|(_, column)| ROUNDED.iter().any(|of| of.oid() == column.source_type_oid)).collect()
}

/// Types of columns with their modifiers; columns that are not there are left out.
async fn formats(
    client: &Client,
    columns: &[(&TableName, &str)],
) -> Result<BTreeMap<(TableName, String), String>, MirrorError> {
    let (mut schemas, mut tables, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (table, name) in columns {
        schemas.push(table.place_schema());
        tables.push(table.name.as_str());
        names.push(*name);
    }
    let asked = Asked::of(columns.iter().map(|(table, _)| *table));
    let sql = "SELECT w.schema, w.name, w.col, format_type(a.atttypid, a.atttypmod) \
               FROM unnest($1::text[], $2::text[], $3::text[]) AS w (schema, name, col) \
               JOIN pg_namespace n ON n.nspname = w.schema \
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name \
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.col AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = client.query(sql, &[&schemas, &tables, &names]).await;
    let rows = rows.map_err(MirrorError::sql("reading the columns' types"))?;
    let format = |row: &tokio_postgres::Row| ((asked.table(row.get(0), row.get(1)), row.get(2)), row.get(3));
    Ok(rows.iter().map(format).collect())
}
