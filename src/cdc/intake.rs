//! What keeps tables of the service from taking the monolith's rows. It is asked before rows are emptied to be copied again,
//! and all of it is told at once.

mod read;

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::error::MirrorError;
use super::question::{self, Condition};
use super::rights::{self, Lack};
use crate::journal::deferred;
use crate::mapping::adopted::wider;
use crate::mapping::input::is_users;
use crate::mapping::type_tree::{TypeTree, lacking_labels};
use crate::mapping::{ColumnMapping, TableMapping};
use crate::name::quote_ident;
use crate::postgres::type_trees::Trees;

/// Why a table would not take rows, and what to run in the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The fact.
    pub(super) fact: String,
    /// The statement, without an end, or what to do.
    pub(super) next: String,
}

/// A table of the service as its catalog has it.
#[derive(Debug, Clone, Default)]
struct Intake {
    /// The mirror's role sees only rows that a policy shows.
    filtered: bool,
    columns: Vec<Column>,
    /// Triggers that fire on mirrored rows: name, and the statement that makes an ordinary one of it.
    triggers: Vec<(String, String)>,
    /// Rules that rewrite what the mirror applies: name, and the statement that makes an ordinary one of it.
    rules: Vec<(String, String)>,
    checks: Vec<Check>,
    /// Unique indexes and exclusion constraints.
    uniques: Vec<Unique>,
    domains: Vec<DomainRule>,
    /// What the columns' types are made of.
    types: Trees,
}

/// A check with its expression, as SQL and as the catalog keeps it.
#[derive(Debug, Clone)]
struct Check {
    name: String,
    sql: String,
    tree: String,
}

/// What a domain that is met in a column's type asks of its values.
#[derive(Debug, Clone)]
struct DomainRule {
    column: String,
    /// As SQL.
    domain: String,
    /// The column's values are of it, and not only parts of them.
    whole: bool,
    /// `None` for NOT NULL.
    check: Option<Check>,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    type_sql: String,
    not_null: bool,
    /// It has a default, is an identity, or is generated.
    filled: bool,
    generated: bool,
}

#[derive(Debug, Clone)]
struct Unique {
    name: String,
    /// The statement that takes it away; none for a primary key.
    drop_sql: Option<String>,
    /// Plain columns whose values must be unique together, each with what makes values equal there that are not written
    /// alike; none for expressions and exclusions.
    columns: BTreeMap<String, String>,
    /// NULLS NOT DISTINCT.
    nulls_alike: bool,
    /// It is unique for rows that meet a condition only.
    partial: bool,
    /// All of it but its name and table's.
    definition: String,
}

/// What the monolith itself promises of a table's rows.
#[derive(Debug, Clone, Default)]
struct Promises {
    not_null: BTreeSet<String>,
    checks: BTreeSet<String>,
    /// With the service's names of columns.
    uniques: Vec<Unique>,
    /// Of all its unique indexes and exclusion constraints.
    definitions: BTreeSet<String>,
    /// Column of the monolith, and a check of a domain there or `None` for its NOT NULL.
    domains: BTreeSet<(String, Option<String>)>,
    types: Trees,
}

impl Promises {
    /// Whether the monolith's rows are unique in this way, too.
    fn keep(&self, unique: &Unique, nullable: impl Fn(&str) -> bool) -> bool {
        let covered = |promised: &&Unique| {
            let alike = |(name, equal): (&String, &String)| {
                unique.columns.get(name).is_some_and(|other| other.is_empty() || other == equal)
            };
            !promised.columns.is_empty()
                && promised.columns.iter().all(alike)
                && (!unique.nulls_alike
                    || promised.nulls_alike
                    || !promised.columns.keys().any(|name| nullable(name)))
        };
        self.definitions.contains(&unique.definition) || self.uniques.iter().any(|one| covered(&one))
    }
}

/// Everything that would keep a table from taking its rows.
///
/// # Errors
/// [`MirrorError`].
pub(super) async fn faults(
    (source, target): (&Client, &Client),
    slice: &str,
    table: &TableMapping,
) -> Result<Vec<Fault>, MirrorError> {
    let Some(mut intake) = read::intake(target, table).await? else {
        let fact = "it does not exist".to_owned();
        return Ok(vec![Fault {
            fact,
            next: "strangler check PLAN, which says what to do about it".to_owned(),
        }]);
    };
    let names: Vec<&str> = table.columns.iter().map(|column| column.target.as_str()).collect();
    let lack = rights::lacking(target, (&table.target, &names), rights::WRITING).await?;
    // What waits for the data, or is taken off right before it is copied, stands in no row's way.
    let ours = deferred::objects(target, slice, &table.target.to_string()).await?;
    intake.checks.retain(|check| !ours.contains(&check.name));
    intake.uniques.retain(|unique| !ours.contains(&unique.name));
    let promises = read::promises(source, table).await?;
    let mut found = judge(table, &intake, lack, &promises);
    let types: Vec<(&str, &str)> =
        intake.columns.iter().map(|one| (one.name.as_str(), one.type_sql.as_str())).collect();
    for (fault, condition) in conditions(table, &intake, &promises) {
        if question::is_broken(source, table, (&condition, &types)).await? {
            found.push(fault);
        }
    }
    Ok(found)
}

/// What can be said without looking at rows. Pure.
fn judge(table: &TableMapping, intake: &Intake, lack: Option<Lack>, promises: &Promises) -> Vec<Fault> {
    let target = table.target.sql();
    let mut found: Vec<Fault> = Vec::new();
    if let Some(Lack { role, privileges, grants }) = lack {
        let what = if privileges.is_empty() {
            "use its schema".to_owned()
        } else {
            format!("{} there", privileges.join(", "))
        };
        found.push(Fault { fact: format!("{role} may not {what}"), next: grants.join("; ") });
    }
    if intake.filtered {
        found.push(Fault {
            fact: "row level security applies to the mirror's role".to_owned(),
            next: format!("ALTER ROLE {} BYPASSRLS", crate::postgres::connect::APPLY_ROLE),
        });
    }
    for wanted in &table.columns {
        found.extend(column(table, wanted, (intake, promises)));
    }
    for rule in intake.domains.iter().filter(|rule| !rule.whole && !is_promised(table, rule, promises)) {
        found.push(of_domain(rule, "and the monolith's types do not ask that"));
    }
    let mapped = |name: &str| table.columns.iter().any(|column| column.target == name);
    let unfed = intake.columns.iter().filter(|one| one.not_null && !one.filled && !mapped(&one.name));
    found.extend(unfed.map(|one| Fault {
        fact: format!("its column {} is NOT NULL without a default, and nothing is mapped to it", one.name),
        next: format!("ALTER TABLE {target} ALTER COLUMN {} DROP NOT NULL", quote_ident(&one.name)),
    }));
    found.extend(intake.triggers.iter().map(|(name, sql)| Fault {
        fact: format!("its trigger {name} fires on mirrored rows, and may change or refuse them"),
        next: sql.clone(),
    }));
    found.extend(intake.rules.iter().map(|(name, sql)| Fault {
        fact: format!("its rule {name} rewrites what is mirrored, and may swallow or double rows"),
        next: sql.clone(),
    }));
    let nullable = |name: &str| {
        !table.columns.iter().any(|one| one.target == name && promises.not_null.contains(&one.source))
    };
    let key: BTreeSet<&String> = table.key_columns().map(|column| &column.target).collect();
    let is_key = |unique: &Unique| unique.columns.keys().collect::<BTreeSet<_>>() == key;
    found.extend(intake.uniques.iter().filter(|unique| !promises.keep(unique, nullable)).map(|unique| {
        Fault {
            fact: format!("{} keeps rows out that the monolith may have together", unique.name),
            next: match &unique.drop_sql {
                Some(drop) if !is_key(unique) => format!("{drop}, and make it again once the table is live"),
                // Without the key nothing could be mirrored.
                Some(_) | None => format!("make {} as the monolith's is", unique.name),
            },
        }
    }));
    found
}

fn column(table: &TableMapping, wanted: &ColumnMapping, sides: (&Intake, &Promises)) -> Option<Fault> {
    let (intake, promises) = sides;
    let (name, target) = (&wanted.target, table.target.sql());
    let (column, of) = (quote_ident(name), &wanted.type_sql);
    let fault = |fact: String, next: String| Some(Fault { fact, next });
    let Some(present) = intake.columns.iter().find(|one| one.name == wanted.target) else {
        return fault(
            format!("it has no column {name}"),
            format!("ALTER TABLE {target} ADD COLUMN {column} {of}"),
        );
    };
    if present.generated {
        let next = format!("ALTER TABLE {target} DROP COLUMN {column}, ADD COLUMN {column} {of}");
        return fault(format!("its column {name} is generated"), next);
    }
    let there = promises.types.get(&(table.source.clone(), wanted.source.clone()));
    let here = intake.types.get(&(table.target.clone(), name.clone()));
    if let Some(misfit) = there.zip(here).and_then(|(there, here)| lacking_labels(there, here)) {
        return fault(format!("its column {name} can't hold all values: {}", misfit.fact), misfit.next);
    }
    // Domains are what they are over, besides their rules. Where both have types of the user's, these were compared elsewhere.
    let fits = match (there, here) {
        (None, Some(TypeTree::Plain(base))) => is_users(of) || is_users(base) || wider(of, base),
        (Some(TypeTree::Plain(base)), None) => is_users(base) || wider(base, &present.type_sql),
        (None, Some(_)) => is_users(of),
        (Some(_), _) => true,
        (None, None) => is_users(of) || wider(of, &present.type_sql),
    };
    if fits {
        return None;
    }
    fault(
        format!("its column {name} is {}, and the monolith's {of} does not fit into it", present.type_sql),
        format!("ALTER TABLE {target} ALTER COLUMN {column} TYPE {of} USING {column}::{of}"),
    )
}

fn is_promised(table: &TableMapping, rule: &DomainRule, promises: &Promises) -> bool {
    let Some(mapped) = table.columns.iter().find(|one| one.target == rule.column) else { return true };
    let check = rule.check.as_ref().map(|check| check.sql.clone());
    promises.domains.contains(&(mapped.source.clone(), check))
}

fn of_domain(rule: &DomainRule, why: &str) -> Fault {
    let DomainRule { column, domain, check, .. } = rule;
    match check {
        None => Fault {
            fact: format!("the domain {domain} of its column {column} is NOT NULL, {why}"),
            next: format!("ALTER DOMAIN {domain} DROP NOT NULL"),
        },
        Some(Check { name, sql, .. }) => Fault {
            fact: format!(
                "the domain {domain} of its column {column} has the constraint {name}, {sql}, {why}"
            ),
            next: format!("ALTER DOMAIN {domain} DROP CONSTRAINT {}", quote_ident(name)),
        },
    }
}

/// What rows must meet in the service and need not on the monolith. Pure.
fn conditions(table: &TableMapping, intake: &Intake, promises: &Promises) -> Vec<(Fault, Condition)> {
    let target = table.target.sql();
    let mut found = Vec::new();
    // Not IS NOT NULL, which is about the parts of a composite value.
    let present = |column: &str| Condition {
        sql: format!("{} IS DISTINCT FROM NULL", quote_ident(column)),
        tree: None,
        value: None,
    };
    for wanted in &table.columns {
        let strict = intake.columns.iter().any(|one| one.name == wanted.target && one.not_null);
        if strict && !promises.not_null.contains(&wanted.source) {
            let fact = format!(
                "its column {} is NOT NULL, and rows of the monolith hold nothing there",
                wanted.target
            );
            let column = quote_ident(&wanted.target);
            let next = format!("ALTER TABLE {target} ALTER COLUMN {column} DROP NOT NULL");
            found.push((Fault { fact, next }, present(&wanted.target)));
        }
        let rules = intake.domains.iter().filter(|rule| rule.whole && rule.column == wanted.target);
        for rule in rules.filter(|rule| !is_promised(table, rule, promises)) {
            let condition = match &rule.check {
                None if promises.not_null.contains(&wanted.source) => continue,
                None => present(&wanted.target),
                Some(check) => Condition {
                    sql: check.sql.clone(),
                    tree: Some(check.tree.clone()),
                    value: Some(wanted.source.clone()),
                },
            };
            found.push((of_domain(rule, "and rows of the monolith do not meet that"), condition));
        }
    }
    for Check { name, sql, tree } in
        intake.checks.iter().filter(|check| !promises.checks.contains(&check.sql))
    {
        let fact = format!("its constraint {name} refuses rows that the monolith has");
        let next = format!("ALTER TABLE {target} DROP CONSTRAINT {}", quote_ident(name));
        let condition = Condition { sql: sql.clone(), tree: Some(tree.clone()), value: None };
        found.push((Fault { fact, next }, condition));
    }
    found
}
