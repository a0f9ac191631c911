//! Rows of the monolith that are tried in the service inside the transaction that empties a table, so that a table which
//! refuses rows for whatever reason is never left empty.

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use tokio_postgres::Client;

use super::error::MirrorError;
use super::statements::{copy_in_text, copy_out};
use crate::mapping::TableMapping;
use crate::name::TableName;
use crate::postgres::partitions::TREE_OF_C;
use crate::postgres::sqlstate;

/// Of each end of a table. Enough to meet what stands in the way of every row or of the latest ones, and little to read.
const ROWS: usize = 100;
/// Of so many partitions rows are tried, the youngest ones.
const PARTS_MAX: usize = 50;
/// Where a table ends: what was written lately is mostly there.
const LAST_BLOCKS: i64 = 16;
/// Rows may be large, and they are held in memory.
const BYTES_MAX: usize = 4 << 20;

/// Some rows of a table in COPY's text format, none for an empty one.
#[derive(Debug, Clone)]
pub(super) struct Sample(Bytes);

/// Reads rows that the slice takes, from both ends of the table or of each of its partitions. Called before the service's
/// table is locked, because the monolith may make it wait.
///
/// # Errors
/// [`MirrorError::Sql`].
pub(super) async fn read(source: &Client, table: &TableMapping) -> Result<Sample, MirrorError> {
    let failed = || MirrorError::sql("reading rows to try");
    let filter = table.filter_sql();
    let sql = format!(
        "SELECT p.relname::text, m.nspname::text, \
                   pg_relation_size(p.oid) / current_setting('block_size')::int \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               JOIN {TREE_OF_C} ON true \
               JOIN pg_class p ON p.oid = part.oid JOIN pg_namespace m ON m.oid = p.relnamespace \
               WHERE n.nspname = $1 AND c.relname = $2 AND p.relkind = 'r' AND has_schema_privilege(m.oid, 'USAGE') \
                   AND has_table_privilege(p.oid, 'SELECT') ORDER BY p.oid DESC"
    );
    let heaps =
        source.query(&sql, &[&table.source.place_schema(), &table.source.name]).await.map_err(failed())?;
    let heaps = heaps.iter().take(PARTS_MAX).map(|row| {
        let (name, schema, blocks): (String, String, Option<i64>) = (row.get(0), row.get(1), row.get(2));
        (TableName::new(schema, name), blocks.unwrap_or_default())
    });
    let mut statements: Vec<String> =
        heaps.map(|(heap, blocks)| ends(table, (&heap, blocks), filter.as_deref())).collect();
    if statements.is_empty() {
        // Who may read some columns, or nothing but the table that has partitions, does not see where rows are.
        let filter = filter.map_or_else(String::new, |sql| format!(" WHERE {sql}"));
        statements.push(copy_out(table, &format!("{filter} LIMIT {ROWS}"), ""));
    }
    let mut sample = BytesMut::new();
    let share = BYTES_MAX / statements.len();
    for (sql, number) in statements.iter().zip(1..) {
        let rows = source.copy_out(sql).await.map_err(failed())?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await.map_err(failed())? {
            if !sample.is_empty() && sample.len() + row.len() > share * number {
                break;
            }
            sample.extend_from_slice(&row);
        }
    }
    Ok(Sample(sample.freeze()))
}

/// COPY of rows from both ends of a table that has rows, the last ones first.
fn ends(table: &TableMapping, (heap, blocks): (&TableName, i64), filter: Option<&str>) -> String {
    let (heap, filter) = (heap.sql(), filter.unwrap_or("true"));
    let cut = (blocks - LAST_BLOCKS).max(0);
    format!(
        "COPY (SELECT {} FROM ONLY {heap} WHERE ctid = ANY (ARRAY( \
           (SELECT ctid FROM ONLY {heap} WHERE {filter} LIMIT {ROWS}) UNION \
           (SELECT ctid FROM ONLY {heap} WHERE ctid >= '({cut},0)' AND {filter} ORDER BY ctid DESC LIMIT {ROWS}))) \
         ORDER BY ctid DESC) TO STDOUT",
        table.source_list()
    )
}

/// Tries the rows in the open transaction, in which the table was emptied, and takes them out again. Why the table refused
/// them, without their values; `None` when it took them.
///
/// # Errors
/// [`MirrorError::Sql`] where it is not the table's doing.
pub(super) async fn refused(
    target: &Client,
    table: &TableMapping,
    sample: Sample,
) -> Result<Option<String>, MirrorError> {
    let failed = || MirrorError::sql("trying rows");
    target.batch_execute("SAVEPOINT trying").await.map_err(failed())?;
    let tried = land(target, table, sample).await;
    target.batch_execute("ROLLBACK TO SAVEPOINT trying; RELEASE SAVEPOINT trying").await.map_err(failed())?;
    match tried {
        Ok(()) => Ok(None),
        Err(error) if sqlstate::is_retryable(&error) || error.as_db_error().is_none() => Err(failed()(error)),
        Err(error) => Ok(Some(sqlstate::words(&error))),
    }
}

async fn land(target: &Client, table: &TableMapping, sample: Sample) -> Result<(), tokio_postgres::Error> {
    let sink = target.copy_in::<_, Bytes>(&copy_in_text(table)).await?;
    pin_mut!(sink);
    sink.send(sample.0).await?;
    sink.finish().await?;
    target.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await
}
