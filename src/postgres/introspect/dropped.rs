//! What the catalogs said of old tables that `retire` has dropped from this database.

use tokio_postgres::{Client, Error};

use crate::catalog::Fragment;

/// Reads it; none where nothing was dropped, or an earlier version provisioned. A service keeps such rows as well, of tables that were
/// never its own, which are left out.
pub(super) async fn read(client: &Client) -> Result<Vec<Result<Fragment, serde_json::Error>>, Error> {
    let there = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = 'strangler' AND c.relname = 'dropped' \
                     AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))";
    if !client.query_one(there, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(Vec::new());
    }
    let sql = "SELECT fragment::text FROM strangler.dropped WHERE side = 'monolith' ORDER BY slice";
    let rows = client.query(sql, &[]).await?;
    let text = |row: &tokio_postgres::Row| row.try_get::<_, String>(0);
    rows.iter().map(|row| Ok(serde_json::from_str(&text(row)?))).collect()
}
