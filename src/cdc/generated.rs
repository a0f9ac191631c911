//! Generated columns: the stream does not carry them, so both sides have to compute them alike.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::error::MirrorError;
use crate::mapping::{SliceMapping, expression};
use crate::name::TableName;
use crate::postgres::places::Asked;
use crate::words::shell_word;

/// Expressions by table and column.
type Expressions = BTreeMap<(TableName, String), String>;

/// Refuses to go on where a generated column of the service is computed otherwise than the monolith's.
///
/// # Errors
/// [`MirrorError`].
pub async fn check(source: &Client, target: &Client, mapping: &SliceMapping) -> Result<(), MirrorError> {
    let ours = expressions(source, mapping.tables.iter().map(|table| &table.source)).await?;
    if ours.is_empty() {
        return Ok(());
    }
    let theirs = expressions(target, mapping.tables.iter().map(|table| &table.target)).await?;
    for table in &mapping.tables {
        let of_table = ours
            .iter()
            .filter(|((name, column), _)| *name == table.source && !table.dropped.contains(column));
        for ((_, column), wanted) in of_table {
            let Some(present) = theirs.get(&(table.target.clone(), column.clone())) else { continue };
            if !expression::same(table, wanted, present) {
                return Err(MirrorError::Refused {
                    what: format!(
                        "the service computes {}.{column} as {present}, and the monolith as {wanted}: the stream does \
                         not carry generated columns",
                        table.target
                    ),
                    next: format!(
                        "give both the same expression; where rows were mirrored before, then strangler mirror PLAN \
                         --slice {} --retry {}",
                        mapping.slice,
                        shell_word(&table.source.to_string())
                    ),
                });
            }
        }
    }
    Ok(())
}

async fn expressions<'a>(
    client: &Client,
    tables: impl Iterator<Item = &'a TableName>,
) -> Result<Expressions, MirrorError> {
    let asked = Asked::of(tables);
    let (schemas, names) = asked.arrays();
    let sql = "SELECT w.schema, w.name, a.attname::text, pg_get_expr(d.adbin, d.adrelid) \
               FROM unnest($1::text[], $2::text[]) AS w (schema, name) \
               JOIN pg_namespace n ON n.nspname = w.schema \
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name \
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped \
               JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)";
    let rows = client
        .query(sql, &[&schemas, &names])
        .await
        .map_err(MirrorError::sql("reading how generated columns are computed"))?;
    let entry = |row: &tokio_postgres::Row| ((asked.table(row.get(0), row.get(1)), row.get(2)), row.get(3));
    Ok(rows.iter().map(entry).collect())
}
