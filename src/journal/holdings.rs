//! Which slices have a table of this database, of whatever plan: by the gates that hang on it, and by the publications of
//! the slices that are written down here.

use tokio_postgres::{Client, Error};

use super::JournalError;
use crate::name::TableName;
use crate::postgres::places;

/// A table that a slice has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    /// The table. A gate on a partition or a child counts for every table above it too.
    pub table: TableName,
    /// The slice.
    pub slice: String,
    /// The plan that it was provisioned from; `None` where only its gate is left, or the role may not look.
    pub plan: Option<String>,
    /// Its gate hangs there; else its publication holds the table.
    pub gated: bool,
}

/// Whose function a trigger calls decides, and not its name, which is the same for every slice.
const GATED_SQL: &str = "
WITH RECURSIVE gated AS (
    SELECT g.tgrelid AS oid, substr(p.proname::text, 6) AS slice
    FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'strangler' AND left(p.proname::text, 5) = 'gate_'
    UNION SELECT i.inhparent, t.slice FROM gated t JOIN pg_inherits i ON i.inhrelid = t.oid)
SELECT n.nspname::text, c.relname::text, t.slice
FROM gated t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace";

const READABLE_SQL: &str = "
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'strangler' AND c.relname = 'slice'
        AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))";

const PUBLISHED_SQL: &str = "
SELECT s.slice, s.plan, n.nspname::text, c.relname::text
FROM strangler.slice s LEFT JOIN (pg_publication p
    JOIN pg_publication_rel r ON r.prpubid = p.oid
    JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace)
    ON p.pubname = s.publication";

/// All holdings of the database. Called with any of the plan's links.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn read(client: &Client) -> Result<Vec<Holding>, JournalError> {
    read_all(client).await.map_err(JournalError::database("reading which slices have which tables"))
}

async fn read_all(client: &Client) -> Result<Vec<Holding>, Error> {
    let gated = client.query_typed(GATED_SQL, &[]).await?;
    let readable: bool = client.query_typed_one(READABLE_SQL, &[]).await?.try_get(0)?;
    let slices = if readable { client.query_typed(PUBLISHED_SQL, &[]).await? } else { Vec::new() };
    let schemas = gated.iter().map(|row| row.get::<_, Option<&str>>(0));
    let schemas = schemas.chain(slices.iter().map(|row| row.get(2))).flatten();
    let places = places::among(client, schemas).await?;
    let plan_of = |slice: &str| {
        let row = slices.iter().find(|row| row.get::<_, &str>(0) == slice);
        row.map(|row| row.get::<_, String>(1))
    };
    let mut holdings: Vec<Holding> = Vec::new();
    for row in &gated {
        let slice: String = row.try_get(2)?;
        let table = places.named(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        holdings.push(Holding { table, plan: plan_of(&slice), slice, gated: true });
    }
    for row in &slices {
        let (Some(schema), Some(name)) =
            (row.try_get::<_, Option<String>>(2)?, row.try_get::<_, Option<String>>(3)?)
        else {
            continue;
        };
        let (table, slice) = (places.named(schema, name), row.try_get(0)?);
        holdings.push(Holding { table, slice, plan: Some(row.try_get(1)?), gated: false });
    }
    holdings.sort();
    holdings.dedup();
    Ok(holdings)
}
