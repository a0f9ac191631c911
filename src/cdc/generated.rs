//! Generated columns: the stream does not carry them, so both sides have to compute them alike.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::error::{MirrorError, Refusal};
use crate::mapping::{SliceMapping, TableMapping, expression};
use crate::name::TableName;
use crate::postgres::places::Asked;
use crate::words::shell_word;

/// Expressions by table and column; `None` of a column that is not generated.
type Expressions = BTreeMap<(TableName, String), Option<String>>;

/// Why no table is copied: a generated column of the service is computed otherwise than the monolith's, or not at all. A stream that runs
/// goes on over it, because only a comparison could find the rows, and notes it.
///
/// # Errors
/// [`MirrorError`].
pub async fn find_fault(
    (monolith, service): (&Client, &Client),
    mapping: &SliceMapping,
) -> Result<Option<Refusal>, MirrorError> {
    let ours =
        expressions(monolith, mapping.tables.iter().map(|table| &table.source), Columns::Generated).await?;
    if ours.is_empty() {
        return Ok(None);
    }
    let theirs = expressions(service, mapping.tables.iter().map(|table| &table.target), Columns::All).await?;
    let found = mapping.tables.iter().find_map(|table| {
        let what = apart(table, &ours, &theirs)?;
        Some(Refusal {
            what: format!("{what}: the stream does not carry generated columns"),
            next: format!(
                "give both the same expression; where rows were mirrored before, then strangler mirror PLAN --slice {} --retry {}",
                mapping.slice,
                shell_word(&table.source.to_string())
            ),
            anew: false,
        })
    });
    Ok(found)
}

/// What is computed otherwise in a table, in words. A column that the service lacks is another matter. Pure.
fn apart(table: &TableMapping, ours: &Expressions, theirs: &Expressions) -> Option<String> {
    let of_table =
        ours.iter().filter(|((name, column), _)| *name == table.source && !table.dropped.contains(column));
    of_table.into_iter().find_map(|((_, column), wanted)| {
        let wanted = wanted.as_ref()?;
        match theirs.get(&(table.target.clone(), column.clone()))? {
            Some(present) if expression::same(table, wanted, present) => None,
            Some(present) => Some(format!(
                "the service computes {}.{column} as {present}, and the monolith as {wanted}",
                table.target
            )),
            None => Some(format!(
                "the service does not compute {}.{column}, and the monolith computes it as {wanted}",
                table.target
            )),
        }
    })
}

/// Which columns are asked for: a running mirror asks every two seconds, and mostly there are none that are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    All,
    Generated,
}

async fn expressions<'a>(
    client: &Client,
    tables: impl Iterator<Item = &'a TableName>,
    columns: Columns,
) -> Result<Expressions, MirrorError> {
    let asked = Asked::of(tables);
    let (schemas, names) = asked.arrays();
    let sql = "SELECT w.schema, w.name, a.attname::text, CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END \
               FROM unnest($1::text[], $2::text[]) AS w (schema, name) \
               JOIN pg_namespace n ON n.nspname = w.schema \
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name \
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND ($3 OR a.attgenerated <> '') \
               LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)";
    let rows = client
        .query(sql, &[&schemas, &names, &(columns == Columns::All)])
        .await
        .map_err(MirrorError::sql("reading how generated columns are computed"))?;
    let entry = |row: &tokio_postgres::Row| ((asked.table(row.get(0), row.get(1)), row.get(2)), row.get(3));
    Ok(rows.iter().map(entry).collect())
}
