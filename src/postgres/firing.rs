//! Triggers and rules that fire while the mirror writes: enabled ALWAYS or REPLICA, on a moved table or a partition of it. The
//! mirror applies under `session_replication_role = replica`, which keeps the ordinary ones quiet, so one of these changes
//! rows on their way, and nothing that was proven before knows of it.

use std::fmt;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

/// A trigger or a rule that fires on rows which the mirror writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Firing {
    /// The relation that it is on.
    pub table: TableName,
    /// `trigger` or `rule`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// `ALWAYS` or `REPLICA`.
    pub when: String,
}

/// As an operator reads it.
impl fmt::Display for Firing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, kind, name, when } = self;
        write!(
            f,
            "the {kind} {name} of table {table} is enabled {when}, so it fires on rows that the mirror writes"
        )
    }
}

impl Firing {
    /// The problem, with what ends it. `database` is the one that has it, in words.
    #[must_use]
    pub fn problem(&self, database: &str) -> Problem {
        let Self { table, kind, name, when } = self;
        Problem::error("target-trigger", format!("{database}, table {table}"))
            .fact(format!("its {kind} {name} is enabled {when}, so it fires on rows that the mirror writes and may change them"))
            .consequence(
                "the copy would hold other rows than the authority; those that came since then have to be compared again",
            )
            .next(format!(
                "run on the {database}: ALTER TABLE {} ENABLE {} {};",
                table.sql(),
                kind.to_uppercase(),
                quote_ident(name)
            ))
    }
}

/// A clone on a partition is told with its parent, and alone where only the clone fires. Our own are the gates.
const SQL: &str = "
WITH RECURSIVE tree AS (
    SELECT to_regclass(w.name)::oid AS oid FROM unnest($1::text[]) AS w (name)
    UNION SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid),
firing AS (
    SELECT g.tgrelid AS oid, 'trigger' AS kind, g.tgname::text AS name, g.tgenabled::text AS enabled FROM pg_trigger g
        JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace AND pn.nspname <> 'strangler'
    WHERE NOT g.tgisinternal AND NOT EXISTS (
        SELECT FROM pg_trigger u WHERE u.oid = g.tgparentid AND u.tgenabled IN ('A', 'R') AND u.tgrelid IN (SELECT oid FROM tree))
    UNION ALL SELECT r.ev_class, 'rule', r.rulename::text, r.ev_enabled::text FROM pg_rewrite r WHERE r.rulename <> '_RETURN')
SELECT n.nspname::text, c.relname::text, f.kind, f.name, CASE f.enabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END
FROM firing f JOIN pg_class c ON c.oid = f.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE f.oid IN (SELECT oid FROM tree) AND f.enabled IN ('A', 'R') ORDER BY 1, 2, 3, 4";

/// Those on `tables`, their partitions and children. Takes no lock on them.
///
/// # Errors
/// What the server said.
pub async fn read(client: &Client, tables: &[TableName]) -> Result<Vec<Firing>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&names, Type::TEXT_ARRAY)];
    let rows = client.query_typed(SQL, &parameters).await?;
    let firing = rows.iter().map(|row| Firing {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        kind: row.get(2),
        name: row.get(3),
        when: row.get(4),
    });
    Ok(firing.collect())
}
