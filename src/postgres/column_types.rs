//! What a database calls the types of a table's columns.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::name::TableName;

/// The types of a table's columns without modifiers, by column. Those of the user are quoted and have their schema: a session
/// looks names up in `pg_catalog` alone, which is what makes `format_type` write it.
///
/// # Errors
/// What the server said.
pub async fn of(
    client: &Client,
    table: &TableName,
) -> Result<BTreeMap<String, String>, tokio_postgres::Error> {
    let sql = "SELECT a.attname::text, pg_catalog.format_type(a.atttypid, -1) FROM pg_catalog.pg_attribute a \
               JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = client.query(sql, &[&table.place_schema(), &table.name]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}
