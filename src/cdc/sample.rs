//! Rows of the monolith that are tried in the service inside the transaction that empties a table, so that a table which
//! refuses rows for whatever reason is never left empty.

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use tokio_postgres::Client;

use super::error::MirrorError;
use super::statements::{copy_in_text, copy_out};
use crate::mapping::TableMapping;
use crate::postgres::sqlstate;

/// Enough to meet what stands in the way of every row, and little to read.
const ROWS: usize = 200;
/// Rows may be large, and they are held in memory.
const BYTES_MAX: usize = 4 << 20;

/// Some rows of a table in COPY's text format, none for an empty one.
#[derive(Debug)]
pub(super) struct Sample(Bytes);

/// Reads some rows that the slice takes. Called before the service's table is locked, because the monolith may make it wait.
///
/// # Errors
/// [`MirrorError::Sql`].
pub(super) async fn read(source: &Client, table: &TableMapping) -> Result<Sample, MirrorError> {
    let failed = || MirrorError::sql("reading rows to try");
    let filter = table.filter_sql().map_or_else(String::new, |sql| format!(" WHERE {sql}"));
    let sql = copy_out(table, &format!("{filter} LIMIT {ROWS}"), "");
    let rows = source.copy_out(&sql).await.map_err(failed())?;
    pin_mut!(rows);
    let mut sample = BytesMut::new();
    while let Some(row) = rows.try_next().await.map_err(failed())? {
        if !sample.is_empty() && sample.len() + row.len() > BYTES_MAX {
            break;
        }
        sample.extend_from_slice(&row);
    }
    Ok(Sample(sample.freeze()))
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
