//! Objects of the monolith that name old tables, and would break or silently follow when these go.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::{Client, Error};

use crate::catalog::{Catalog, DependentKind};
use crate::name::{TableName, identifiers_in, is_named};

/// Publications of the tool itself begin so.
const OWN_PUBLICATION: &str = "strangler_";

/// What kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A view, also one that sees the table through another.
    View,
    /// A materialised view.
    MaterializedView,
    /// A function or procedure whose text or signature names the table.
    Function,
    /// A foreign key between the table and one that stays, in either direction.
    ForeignKey,
    /// A row security policy of another table.
    Policy,
    /// A rewrite rule of another table.
    Rule,
    /// A publication of somebody else.
    Publication,
    /// A job of pg_cron or pgAgent.
    Job,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Dependent {
    /// The old table, by the monolith's name.
    #[serde(skip)]
    pub source_table: String,
    /// Kind.
    pub kind: Kind,
    /// Its name, as an operator writes it.
    pub name: String,
    /// Its definition, where that tells more than the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
}

/// Old tables and their partitions, each with the old table's name as reports give it.
pub(super) type Old = BTreeMap<TableName, String>;

/// The tables, and the partitions of each at every depth.
pub(super) fn with_partitions<'a>(catalog: &Catalog, tables: impl Iterator<Item = &'a TableName>) -> Old {
    let mut old: Old = tables.map(|table| (table.clone(), table.to_string())).collect();
    for table in catalog.tables.values() {
        let mut above = table.partition_of.as_ref();
        while let Some(name) = above {
            if let Some(label) = old.get(name).cloned() {
                old.insert(table.name.clone(), label);
                break;
            }
            above = catalog.table(name).and_then(|table| table.partition_of.as_ref());
        }
    }
    old
}

/// All of them, of the tables of one slice, in the order of table, kind and name.
///
/// # Errors
/// The server's.
pub(super) async fn read(
    monolith: &Client,
    catalog: &Catalog,
    tables: &Old,
) -> Result<Vec<Dependent>, Error> {
    let mut found = of_catalog(catalog, tables);
    let definitions = definitions(monolith, &found).await?;
    for one in found.iter_mut().filter(|one| matches!(one.kind, Kind::View | Kind::MaterializedView)) {
        one.definition = definitions.get(&one.name).cloned();
    }
    found.extend(jobs(monolith, tables).await?);
    found.sort();
    found.dedup();
    Ok(found)
}

fn of_catalog(catalog: &Catalog, tables: &Old) -> Vec<Dependent> {
    let mut found = Vec::new();
    for one in &catalog.dependents {
        let Some(source_table) = tables.get(&one.table).cloned() else { continue };
        let kind = match one.kind {
            DependentKind::View => Kind::View,
            DependentKind::MaterializedView => Kind::MaterializedView,
            DependentKind::Function => Kind::Function,
            DependentKind::Rule if on_other_table(&one.name, tables) => Kind::Rule,
            DependentKind::Policy if on_other_table(&one.name, tables) => Kind::Policy,
            DependentKind::Publication if !one.name.starts_with(OWN_PUBLICATION) => Kind::Publication,
            // What stands on the table itself goes with it.
            DependentKind::Policy
            | DependentKind::Rule
            | DependentKind::Publication
            | DependentKind::Trigger
            | DependentKind::Subscription => continue,
        };
        let name = one.name.clone();
        found.push(Dependent { source_table, kind, name, definition: None });
    }
    for key in catalog.foreign_keys.iter().filter(|key| !key.cut && !key.inherited) {
        let (from, to) = (tables.get(&key.table), tables.get(&key.references));
        if let (Some(label), None) | (None, Some(label)) = (from, to) {
            found.push(Dependent {
                source_table: label.clone(),
                kind: Kind::ForeignKey,
                name: format!("{} on {}", key.name, key.table),
                definition: Some(key.definition_sql.clone()),
            });
        }
    }
    found
}

/// Whether a policy or rule, named `policy on table`, stands on a table that is not among these.
fn on_other_table(name: &str, tables: &Old) -> bool {
    tables.keys().all(|table| !name.ends_with(&format!(" on {table}")))
}

async fn definitions(monolith: &Client, found: &[Dependent]) -> Result<BTreeMap<String, String>, Error> {
    if found.iter().all(|one| !matches!(one.kind, Kind::View | Kind::MaterializedView)) {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT n.nspname::text, c.relname::text, pg_get_viewdef(c.oid) FROM pg_class c \
               JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('v', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let rows = monolith.query_typed(sql, &[]).await?;
    let named = |row: &tokio_postgres::Row| {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        (name.to_string(), row.get::<_, String>(2).trim().to_owned())
    };
    Ok(rows.iter().map(named).collect())
}

/// Schedulers that live in the database: table of jobs, and the columns for name and text (documentation of pg_cron, and of
/// pgAgent).
const SCHEDULERS: &[(&str, &str)] = &[
    (
        "cron.job",
        "SELECT coalesce(nullif(jobname, ''), 'job ' || jobid)::text, command::text FROM cron.job WHERE active",
    ),
    (
        "pgagent.pga_jobstep",
        "SELECT (j.jobname || ', step ' || s.jstname)::text, s.jstcode::text FROM pgagent.pga_jobstep s \
         JOIN pgagent.pga_job j ON j.jobid = s.jstjobid WHERE j.jobenabled AND s.jstenabled",
    ),
];

/// Jobs whose text names a table. A scheduler whose table may not be read tells nothing.
async fn jobs(monolith: &Client, tables: &Old) -> Result<Vec<Dependent>, Error> {
    let mut found = Vec::new();
    for (table, sql) in SCHEDULERS {
        let readable = "SELECT coalesce(has_table_privilege(to_regclass($1), 'SELECT'), false)";
        if !monolith.query_one(readable, &[table]).await?.get::<_, bool>(0) {
            continue;
        }
        for row in monolith.query_typed(sql, &[]).await? {
            let (name, command): (String, String) = (row.get(0), row.get(1));
            let named = identifiers_in(&command);
            for (_, label) in tables.iter().filter(|(table, _)| is_named(table, &named)) {
                found.push(Dependent {
                    source_table: label.clone(),
                    kind: Kind::Job,
                    name: name.clone(),
                    definition: Some(command.clone()),
                });
            }
        }
    }
    Ok(found)
}
