//! Whether rows can be told apart where they are published: a table without a replica identity takes no UPDATE and no DELETE
//! once a publication holds it, and the server says so to the application only.

use tokio_postgres::Client;

use crate::journal::JournalError;
use crate::name::TableName;

/// Leaves, because what a partitioned table says of itself decides nothing. An index identifies rows only while it is valid and
/// immediate (PostgreSQL documentation, ALTER TABLE, REPLICA IDENTITY).
const SQL: &str = "
WITH RECURSIVE tree AS (
    SELECT to_regclass(w.name)::oid AS root, to_regclass(w.name)::oid AS oid FROM unnest($1::text[]) AS w (name)
    UNION SELECT t.root, i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid)
SELECT DISTINCT n.nspname::text, c.relname::text FROM tree t
    JOIN pg_class c ON c.oid = t.oid AND c.relkind = 'r' JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relreplident <> 'f'
    AND NOT EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate
        AND CASE c.relreplident WHEN 'd' THEN x.indisprimary WHEN 'i' THEN x.indisreplident ELSE false END)
    AND EXISTS (SELECT FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid
        WHERE (p.pubupdate OR p.pubdelete) AND (p.puballtables OR r.prrelid IN (t.root, t.oid)))
ORDER BY 1, 2";

/// The published ones among `tables`, their partitions and children that have no replica identity.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn lacking(client: &Client, tables: &[TableName]) -> Result<Vec<TableName>, JournalError> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let rows = client.query(SQL, &[&names]).await;
    let rows = rows.map_err(JournalError::database("looking at replica identities"))?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// In words, for a place that is told of several.
#[must_use]
pub fn words(table: &TableName) -> String {
    format!("table {table} is published and has no replica identity, so no UPDATE or DELETE of it succeeds")
}
