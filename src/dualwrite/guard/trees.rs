//! What can come to a moved table as a partition or a child, and what keeps it away while a gate is closed.
//!
//! ATTACH PARTITION brings rows without an event, committed under the authority that is about to end, and so does a table that is
//! made a child. Both lock the parent by SHARE UPDATE EXCLUSIVE (PostgreSQL documentation, section 13.3.1, and ALTER TABLE), which
//! no writer's lock conflicts with. A partitioned table is never vacuumed, so a fence takes that lock itself; on a plain table it
//! would stand in the way of autovacuum, so there the fence asks for children right before it writes.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use crate::name::TableName;
use crate::postgres::ask::Ask;

/// What some moved tables consist of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trees {
    /// Those that are partitioned, and partitions that are themselves, parents first.
    pub partitioned: Vec<TableName>,
    /// `pg_class.oid` of those that are plain tables.
    pub plain: Vec<u32>,
}

const READ: &str = "
WITH RECURSIVE tree AS (
    SELECT c.oid, c.relkind, c.relnamespace, c.relname, 0 AS level FROM unnest($1::text[]) AS w (name)
        JOIN pg_class c ON c.oid = to_regclass(w.name)
    UNION ALL SELECT c.oid, c.relkind, c.relnamespace, c.relname, t.level + 1 FROM tree t
        JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid WHERE t.relkind = 'p')
SELECT t.oid, n.nspname::text, t.relname::text, t.relkind = 'p' FROM tree t JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE t.relkind = 'p' OR t.level = 0 ORDER BY t.level, n.nspname, t.relname";

/// Looks at `tables` and their partitions. Who calls it: a fence, before any writer is held.
///
/// # Errors
/// What the server said.
pub async fn read(client: &Client, tables: &[TableName]) -> Result<Trees, Error> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let asked: [(&(dyn ToSql + Sync), Type); 1] = [(&names, Type::TEXT_ARRAY)];
    let mut trees = Trees::default();
    for row in client.query_typed(READ, &asked).await? {
        if row.try_get(3)? {
            trees
                .partitioned
                .push(TableName::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?));
        } else {
            trees.plain.push(row.try_get(0)?);
        }
    }
    Ok(trees)
}

/// Keeps partitions from coming to these tables and from leaving them until the caller's transaction ends. Bounded by the session's
/// `lock_timeout`.
#[must_use]
pub fn keep(partitioned: &[TableName]) -> Option<String> {
    let names: Vec<String> = partitioned.iter().map(TableName::sql).collect();
    (!names.is_empty())
        .then(|| format!("LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE", names.join(", ONLY ")))
}

/// Tables that inherit from one of these now, in words.
///
/// # Errors
/// What the server said.
pub async fn children(session: &impl Ask, plain: &[u32]) -> Result<Vec<String>, Error> {
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT i.inhrelid::regclass::text, i.inhparent::regclass::text FROM pg_inherits i \
               WHERE i.inhparent = ANY ($1::oid[]) ORDER BY 1, 2";
    let rows = session.ask(sql, &[(&plain, Type::OID_ARRAY)]).await?;
    let inherits = |row: &tokio_postgres::Row| -> Result<String, Error> {
        Ok(format!("{} inherits from {}", row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?))
    };
    rows.iter().map(inherits).collect()
}
