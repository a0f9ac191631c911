//! Relations that have the name of a table and are none. A view takes rows as a table does and may show only some of them, so
//! whoever reads it back sees less than was written.

use std::fmt;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use crate::catalog::{Catalog, TableKind};
use crate::name::{TableName, quote_ident};

/// What stands where a table should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandIn {
    /// The name.
    pub table: TableName,
    /// What has it; neither ordinary nor partitioned.
    pub kind: TableKind,
}

/// As an operator reads it.
impl fmt::Display for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            TableKind::View => "a view",
            TableKind::MaterializedView => "a materialized view",
            TableKind::Foreign => "a foreign table",
            TableKind::Ordinary | TableKind::Partitioned => "another table",
        };
        write!(f, "{} is {kind} in place of the table", self.table)
    }
}

impl StandIn {
    /// The statements that give the table its name back; what stands there keeps another one.
    #[must_use]
    pub fn undo(&self) -> String {
        let kind = match self.kind {
            TableKind::View => "VIEW",
            TableKind::MaterializedView => "MATERIALIZED VIEW",
            TableKind::Foreign => "FOREIGN TABLE",
            TableKind::Ordinary | TableKind::Partitioned => "TABLE",
        };
        let (name, own) = (self.table.sql(), quote_ident(&self.table.name));
        format!("ALTER {kind} {name} RENAME TO …; ALTER TABLE … RENAME TO {own}")
    }
}

/// Those among `tables`, as a catalog has them.
#[must_use]
pub fn in_catalog<'a>(catalog: &Catalog, tables: impl Iterator<Item = &'a TableName>) -> Vec<StandIn> {
    let kind = |table: &'a TableName| Some((table, catalog.table(table)?.kind));
    let found = tables.filter_map(kind).filter(|(_, kind)| !is_table(*kind));
    found.map(|(table, kind)| StandIn { table: table.clone(), kind }).collect()
}

fn is_table(kind: TableKind) -> bool {
    matches!(kind, TableKind::Ordinary | TableKind::Partitioned)
}

/// Those among `tables`, asked of the database. What is not there is none.
///
/// # Errors
/// What the server said.
pub async fn read(client: &Client, tables: &[TableName]) -> Result<Vec<StandIn>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&names, Type::TEXT_ARRAY)];
    let sql = "SELECT w.number, c.relkind::text FROM unnest($1::text[]) WITH ORDINALITY AS w (name, number) \
               JOIN pg_class c ON c.oid = to_regclass(w.name) WHERE c.relkind NOT IN ('r', 'p') ORDER BY w.number";
    let mut found = Vec::new();
    for row in client.query_typed(sql, &parameters).await? {
        let place = usize::try_from(row.try_get::<_, i64>(0)? - 1).ok();
        let Some(table) = place.and_then(|place| tables.get(place)) else { continue };
        let kind = match row.try_get(1)? {
            "m" => TableKind::MaterializedView,
            "f" => TableKind::Foreign,
            _ => TableKind::View,
        };
        found.push(StandIn { table: table.clone(), kind });
    }
    Ok(found)
}
