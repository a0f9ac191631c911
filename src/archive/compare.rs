//! Whether a table that stands in the monolith holds the rows of an archive, and no others.

use std::pin::pin;

use futures_util::TryStreamExt as _;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::ArchiveError;
use super::manifest::Manifest;
use super::rows::Rows;
use super::verify::same_rows;
use super::write::{options, target};
use crate::name::{TableName, quote_ident};

/// Generated columns are computed again, so an archive has none of them.
const COLUMNS: &str = "SELECT c.relkind::text, ARRAY(SELECT a.attname::text FROM pg_attribute a \
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum) \
    FROM pg_class c WHERE c.oid = to_regclass($1)";

/// In which way the rows of a relation are not those that the archive has of it; `None` where they are. It is read as its `owner`, in the caller's
/// transaction, behind whose locks the answer holds, and line by line as the archive was written, so that no more than a line is in memory.
/// Who calls it: the stage that drops tables which came back.
///
/// # Errors
/// [`ArchiveError::Gone`], [`ArchiveError::Table`]; the transaction is to be rolled back then.
pub async fn differs(
    client: &Client,
    (table, owner): (&TableName, &str),
    manifest: &Manifest,
) -> Result<Option<String>, ArchiveError> {
    let failed = |source| ArchiveError::Table { action: "read", table: table.to_string(), source };
    let found = client.query_typed_opt(COLUMNS, &[(&table.sql(), Type::TEXT)]).await.map_err(failed)?;
    let found = found.ok_or_else(|| ArchiveError::Gone { table: table.to_string() })?;
    if found.get::<_, &str>(0) == "p" {
        // Its rows lie in its partitions, each of which is compared.
        return Ok(None);
    }
    let known = table.clone().unmoved();
    let Some(relation) = manifest.relations.iter().find(|relation| relation.name == known) else {
        return Ok(Some("the archive does not have it".to_owned()));
    };
    let columns: Vec<String> = found.get(1);
    if columns != relation.columns {
        let (now, then) = (columns.join(", "), relation.columns.join(", "));
        return Ok(Some(format!("its columns are {now}, and the archive has {then}")));
    }
    let role = format!("SET LOCAL ROLE {}", quote_ident(owner));
    client.batch_execute(&role).await.map_err(failed)?;
    let sql = format!("{} TO STDOUT {}", target(table, &columns), options(&manifest.of.encoding));
    let mut lines = pin!(client.copy_out(&sql).await.map_err(failed)?);
    let mut rows = Rows::default();
    while let Some(line) = lines.try_next().await.map_err(failed)? {
        rows.update(&line);
    }
    client.batch_execute("SET LOCAL ROLE NONE").await.map_err(failed)?;
    Ok(same_rows(relation, &rows).err())
}
