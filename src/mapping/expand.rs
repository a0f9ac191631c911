//! Which tables a plan means: names and whole-schema patterns, looked up in the monolith's catalog.

use std::collections::{BTreeMap, BTreeSet};

use super::spelling::{advice, nearest, nearest_table};
use crate::catalog::{Catalog, Persistence, Table, TableKind};
use crate::name::TableName;
use crate::plan::{Plan, Slice, TableRule, TableSelector};
use crate::problem::Problem;

/// A table that a slice takes, with the rule that says how.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// Slice.
    pub slice: &'a str,
    /// Service that the slice belongs to.
    pub service: &'a str,
    /// The monolith's table.
    pub table: &'a Table,
    /// The rule that names it or its schema.
    pub rule: &'a TableRule,
}

/// Finds every table that the plan moves, slice by slice, and a problem for each entry that means none that can
/// move. A table that some slice names is left out of every whole-schema pattern.
#[must_use]
pub fn expand<'a>(plan: &'a Plan, monolith: &'a Catalog) -> (Vec<Listed<'a>>, Vec<Problem>) {
    let mut listed = Vec::new();
    let mut problems = Vec::new();
    let named = named_tables(plan);
    for (slice_name, slice) in &plan.slices {
        for rule in &slice.tables {
            let tables = match &rule.selector {
                TableSelector::Table(name) => match one_table(monolith, name, rule) {
                    Ok(table) => vec![table],
                    Err(problem) => {
                        problems.push(problem.of_slice(slice_name));
                        Vec::new()
                    }
                },
                TableSelector::Schema(schema) => {
                    let (tables, found) = whole_schema(monolith, schema, (slice, rule), &named);
                    problems.extend(found.into_iter().map(|problem| problem.of_slice(slice_name)));
                    tables
                }
            };
            listed.extend(tables.into_iter().map(|table| Listed {
                slice: slice_name,
                service: &slice.service,
                table,
                rule,
            }));
        }
    }
    (listed, problems)
}

fn named_tables(plan: &Plan) -> BTreeSet<&TableName> {
    let rules = plan.slices.values().flat_map(|slice| &slice.tables);
    rules
        .filter_map(|rule| match &rule.selector {
            TableSelector::Table(name) => Some(name),
            TableSelector::Schema(_) => None,
        })
        .collect()
}

/// Why a relation cannot be moved at all.
fn immovable(table: &Table) -> Option<(&'static str, &'static str, &'static str)> {
    let named = match table.kind {
        TableKind::View | TableKind::MaterializedView => (
            "view-listed",
            "is a view",
            "a view holds no rows of its own: take it out of the plan and create it in the service with its own migrations",
        ),
        TableKind::Foreign => (
            "foreign-table-listed",
            "is a foreign table",
            "its rows live on another server and are not in this one's WAL: take it out of the plan",
        ),
        TableKind::Ordinary | TableKind::Partitioned => match table.persistence {
            Persistence::Permanent => return None,
            Persistence::Unlogged => {
                ("unlogged-table", "is unlogged", "its changes are not in the WAL, so they can't be mirrored")
            }
            Persistence::Temporary => {
                ("temporary-table", "is temporary", "it belongs to one session: take it out of the plan")
            }
        },
    };
    Some(named)
}

fn one_table<'a>(
    monolith: &'a Catalog,
    name: &TableName,
    rule: &TableRule,
) -> Result<&'a Table, Box<Problem>> {
    let Some(table) = monolith.table(name) else {
        let near = nearest_table(name, &monolith.tables);
        let problem = Problem::error("unknown-table", name)
            .at(rule.place)
            .fact(format!("the monolith {} has no table of this name", monolith.database))
            .consequence("nothing can be moved under it")
            .next(advice(near, "names are exact, case included; list them with psql: \\dt *.*"));
        return Err(Box::new(problem));
    };
    if let Some(parent) = &table.partition_of {
        let root = root_of(monolith, parent);
        let problem = Problem::error("partition-listed", name)
            .at(rule.place)
            .fact(format!("it is a partition of {root}"))
            .consequence("a partitioned table is mirrored as a whole, through its root")
            .next(format!("list {root} instead"));
        return Err(Box::new(problem));
    }
    let Some((code, fact, consequence)) = immovable(table) else { return Ok(table) };
    let next = match code {
        "unlogged-table" => format!("run on the monolith: ALTER TABLE {} SET LOGGED;", name.sql()),
        _ => "remove the entry".to_owned(),
    };
    let problem =
        Problem::error(code, name).at(rule.place).fact(format!("it {fact}")).consequence(consequence);
    Err(Box::new(problem.next(next)))
}

fn root_of<'a>(monolith: &'a Catalog, parent: &'a TableName) -> &'a TableName {
    let mut root = parent;
    // No real catalog nests deeper; the bound holds for any value.
    for _ in 0..64 {
        let Some(above) = monolith.table(root).and_then(|table| table.partition_of.as_ref()) else { break };
        root = above;
    }
    root
}

/// Every table of a schema that can move; the rest is told, so that nobody believes that it moved too.
fn whole_schema<'a>(
    monolith: &'a Catalog,
    schema: &str,
    (slice, rule): (&Slice, &TableRule),
    named: &BTreeSet<&TableName>,
) -> (Vec<&'a Table>, Vec<Problem>) {
    let pattern = format!("{schema}.*");
    let mut tables = Vec::new();
    let mut left: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    let inside = monolith.tables.values().filter(|table| table.name.schema == schema);
    for table in inside.filter(|table| table.partition_of.is_none() && !named.contains(&table.name)) {
        match immovable(table) {
            None => tables.push(table),
            Some((code, _, consequence)) => {
                left.entry((code, consequence)).or_default().push(table.name.to_string());
            }
        }
    }
    let mut problems: Vec<Problem> = left
        .into_iter()
        .map(|((_, consequence), names)| {
            Problem::warning("left-out-of-schema", &pattern)
                .at(rule.place)
                .fact(format!("{} cannot move", names.join(", ")))
                .consequence(consequence)
                .next("list the tables one by one if this is not what you want")
        })
        .collect();
    // An entry for the rest of a schema of which the slice names every table still says what it says.
    let apart = |rule: &TableRule| matches!(&rule.selector, TableSelector::Table(name) if name.schema == schema && monolith.table(name).is_some());
    if tables.is_empty() && !slice.tables.iter().any(apart) {
        let elsewhere = named.iter().any(|name| name.schema == schema && monolith.table(name).is_some());
        let fact = if elsewhere {
            "every table of this schema that can move has an entry of its own in another slice".to_owned()
        } else {
            format!("the monolith {} has no table in this schema that can move", monolith.database)
        };
        let near = if monolith.schemas.iter().any(|known| known == schema) {
            None
        } else {
            nearest(schema, monolith.schemas.iter().map(String::as_str)).map(|near| format!("{near}.*"))
        };
        let problem = Problem::error("empty-schema", &pattern)
            .at(rule.place)
            .fact(fact)
            .consequence("the entry means nothing")
            .next(advice(near, "remove the entry, or name the schema that you mean"));
        problems.push(problem);
    }
    (tables, problems)
}
