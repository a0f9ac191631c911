//! What the catalogs said of old tables that `retire` has dropped from this database.

use tokio_postgres::{Client, Error};

use crate::catalog::Fragment;

/// What is kept of dropped tables.
#[derive(Debug)]
pub(super) enum Kept {
    /// The role may not read it.
    Closed,
    /// None where nothing was dropped, or an earlier version provisioned.
    Read(Vec<Result<Fragment, serde_json::Error>>),
}

/// Reads it. A service keeps such rows as well, of tables that were never its own, which are left out.
pub(super) async fn read(client: &Client) -> Result<Kept, Error> {
    let there = "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = 'strangler' AND c.relname = 'dropped'";
    match client.query_typed_opt(there, &[]).await? {
        None => return Ok(Kept::Read(Vec::new())),
        Some(row) if !row.try_get::<_, bool>(0)? => return Ok(Kept::Closed),
        Some(_) => {}
    }
    let sql = "SELECT fragment::text FROM strangler.dropped WHERE side = 'monolith' ORDER BY slice";
    let rows = client.query_typed(sql, &[]).await?;
    let text = |row: &tokio_postgres::Row| row.try_get::<_, String>(0);
    let read = rows.iter().map(|row| Ok(serde_json::from_str(&text(row)?)));
    Ok(Kept::Read(read.collect::<Result<_, Error>>()?))
}
