//! What about a table that stands in a service keeps mirrored rows from being the monolith's.

use super::input::is_users;
use super::{ColumnMapping, TableMapping, expression};
use crate::catalog::{Catalog, Column, DependentKind, INTEGERS, Table, UserTypeKind};
use crate::name::{TableName, quote_ident, quote_literal};

/// A fact about a service's table, and the statement that mends it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The fact.
    pub fact: String,
    /// What to run in the service, or to do.
    pub next: String,
}

/// Whether every value of the monolith's column keeps its meaning in the service's.
#[must_use]
pub fn fits(
    (monolith, service): (&Catalog, &Catalog),
    (wanted, source): (&ColumnMapping, Option<&Column>),
    present: &Column,
) -> bool {
    if let Some(name) = source.and_then(|source| source.user_type.as_ref()) {
        // An enum may have another name in the service; its labels decide.
        let theirs = present.user_type.as_ref();
        let same_name = theirs == Some(name) && present.type_sql == wanted.type_sql;
        let kind = monolith.types.get(name).map(|of| &of.kind);
        let present_kind = theirs.and_then(|name| service.types.get(name)).map(|of| &of.kind);
        let takes_all = kind.zip(present_kind).is_none_or(|(from, to)| takes(from, to));
        return same_name && takes_all || (kind.is_some() && kind == present_kind);
    }
    wider(&wanted.type_sql, &present.type_sql)
}

/// Whether a type of the service can hold what the monolith's of the same name does. What checks ask of values, rows may meet; and
/// attributes of composites are compared by the mirror, which knows their depth.
fn takes(from: &UserTypeKind, to: &UserTypeKind) -> bool {
    match (from, to) {
        (UserTypeKind::Enum(from), UserTypeKind::Enum(to)) => from.iter().all(|label| to.contains(label)),
        (UserTypeKind::Domain { base_sql: from, .. }, UserTypeKind::Domain { base_sql: to, .. }) => {
            over_as_much(from, to)
        }
        _ => true,
    }
}

/// Whether what a domain is over takes every value of what another one is over. Types of the user's are compared by the mirror.
fn over_as_much(from: &str, to: &str) -> bool {
    is_users(from) || wider(from, to)
}

/// How an enum or a domain of the service differs from the monolith's, and what brings it in line. `None` where the columns are
/// neither, or the enums have the same labels and the domain takes every value.
#[must_use]
pub fn types_apart(
    (monolith, service): (&Catalog, &Catalog),
    (wanted, present): (&Column, &Column),
) -> Option<Misfit> {
    let name = present.user_type.as_ref()?;
    let (theirs, ours) = (monolith.types.get(wanted.user_type.as_ref()?)?, service.types.get(name)?);
    match (&theirs.kind, &ours.kind) {
        (UserTypeKind::Enum(theirs), UserTypeKind::Enum(ours)) => labels_apart(name, theirs, ours),
        (UserTypeKind::Domain { base_sql: from, .. }, UserTypeKind::Domain { base_sql: to, .. }) => {
            (!over_as_much(from, to)).then(|| Misfit {
                fact: format!("the domain {name} is over {to} there, and over {from} on the monolith"),
                next: format!("make the domain {} anew in the service, over {from}", name.sql()),
            })
        }
        _ => None,
    }
}

fn labels_apart(name: &TableName, theirs: &[String], ours: &[String]) -> Option<Misfit> {
    if theirs == ours {
        return None;
    }
    let listed =
        |labels: &[&String]| labels.iter().map(|label| quote_literal(label)).collect::<Vec<_>>().join(", ");
    let lacking: Vec<&String> = theirs.iter().filter(|label| !ours.contains(label)).collect();
    let extra: Vec<&String> = ours.iter().filter(|label| !theirs.contains(label)).collect();
    let name = name.sql();
    let mut facts = Vec::new();
    if !lacking.is_empty() {
        facts.push(format!("it lacks the labels {}", listed(&lacking)));
    }
    if !extra.is_empty() {
        facts.push(format!("it has the labels {}, which the monolith lacks", listed(&extra)));
    }
    if facts.is_empty() {
        facts.push("it has the same labels in another order".to_owned());
    }
    let add = |label: &&String| format!("ALTER TYPE {name} ADD VALUE {};", quote_literal(label));
    let next = if extra.is_empty() && theirs.starts_with(ours) {
        format!("run in the service: {}", lacking.iter().map(add).collect::<Vec<_>>().join(" "))
    } else {
        format!(
            "make the enum {name} anew in the service, with the labels {}",
            listed(&theirs.iter().collect::<Vec<_>>())
        )
    };
    Some(Misfit { fact: facts.join(", and "), next })
}

/// Equal, or a type that holds every value of the other one in the same text form.
#[must_use]
pub fn wider(from: &str, to: &str) -> bool {
    if from == to {
        return true;
    }
    let place = |name: &str| INTEGERS.iter().position(|integer| *integer == name);
    if let (Some(from), Some(to)) = (place(from), place(to)) {
        return from <= to;
    }
    let length = |name: &str| -> Option<u32> {
        name.strip_prefix("character varying(")?.strip_suffix(')')?.parse().ok()
    };
    match (length(from), length(to)) {
        (Some(from), Some(to)) => from <= to,
        (Some(_), None) => to == "character varying" || to == "text",
        (None, _) => match from {
            "character varying" => to == "text",
            "text" => to == "character varying",
            _ => from.starts_with("numeric(") && to == "numeric",
        },
    }
}

/// Generated columns that the service does not compute as the monolith does. They are not in the stream, so nobody else
/// makes them equal.
#[must_use]
pub fn generated_apart(mapping: &TableMapping, source: &Table, target: &Table) -> Vec<Misfit> {
    let mut found = Vec::new();
    for column in source.columns.iter().filter(|column| !mapping.dropped.contains(&column.name)) {
        let (Some(wanted), Some(there)) = (&column.generated_sql, target.column(&column.name)) else {
            continue;
        };
        let name = &column.name;
        let fact = match &there.generated_sql {
            Some(present) if expression::same(mapping, wanted, present) => continue,
            Some(present) => {
                format!("column {name} is generated as {present}, and the monolith's as {wanted}")
            }
            None => format!("column {name} is generated on the monolith and not here, so nothing fills it"),
        };
        let next = format!(
            "make it in the service as it is on the monolith (ALTER TABLE {table} DROP COLUMN {column}, then ADD COLUMN \
             {column} {of} GENERATED ALWAYS AS (…) STORED), or write `drop: true` for it in the plan",
            table = target.name.sql(),
            column = quote_ident(name),
            of = column.type_sql
        );
        found.push(Misfit { fact, next });
    }
    found
}

/// Generated columns that the service's table does not have at all.
#[must_use]
pub fn generated_absent(mapping: &TableMapping, target: &Table) -> Vec<Misfit> {
    let absent = mapping.generated.iter().filter(|column| target.column(&column.target).is_none());
    absent
        .map(|column| Misfit {
            fact: format!("it has no column {}, which is generated on the monolith", column.target),
            next: "write `drop: true` for it in the plan, or add the column in the service".to_owned(),
        })
        .collect()
}

/// Rules on a service's table that rewrite the mirror's statements too. Ordinary ones don't, because the mirror applies under
/// `session_replication_role = replica`. Those of a partition are met by statements only that name the partition.
#[must_use]
pub fn loud_rules(service: &Catalog, table: &TableName) -> Vec<Misfit> {
    let on = format!(" on {table}");
    let rules = service.dependents.iter().filter(|one| {
        one.kind == DependentKind::Rule && matches!(one.detail.as_str(), "A" | "R") && one.table == *table
    });
    // One that only names the table in its action stands on another.
    let here = rules.filter_map(|rule| Some((rule, rule.name.strip_suffix(&on)?)));
    here.map(|(rule, name)| Misfit {
        fact: format!(
            "its rule {} is enabled {}, so it rewrites what the mirror applies: rows may be swallowed, doubled or changed",
            rule.name,
            when(&rule.detail)
        ),
        next: format!("run in the service: ALTER TABLE {} ENABLE RULE {}", table.sql(), quote_ident(name)),
    })
    .collect()
}

fn when(enabled: &str) -> &'static str {
    if enabled == "A" { "ALWAYS" } else { "REPLICA" }
}

/// Triggers on a service's table, or on a partition of it, that fire on mirrored rows too. Ordinary ones don't, because
/// the mirror applies under `session_replication_role = replica`.
#[must_use]
pub fn loud_triggers(service: &Catalog, table: &TableName) -> Vec<Misfit> {
    let of_table = |name: &TableName| {
        let up = |one: &TableName| service.table(one).and_then(|table| table.partition_of.clone());
        std::iter::successors(Some(name.clone()), up).any(|one| one == *table)
    };
    let loud = service.dependents.iter().filter(|one| {
        one.kind == DependentKind::Trigger && matches!(one.detail.as_str(), "A" | "R") && of_table(&one.table)
    });
    loud.map(|trigger| {
        let name = trigger.name.rsplit_once(" on ").map_or(trigger.name.as_str(), |(name, _)| name);
        Misfit {
            fact: format!(
                "its trigger {} is enabled {}, so it fires on mirrored rows and may change them",
                trigger.name,
                when(&trigger.detail)
            ),
            next: format!(
                "run in the service: ALTER TABLE {} ENABLE TRIGGER {}",
                trigger.table.sql(),
                quote_ident(name)
            ),
        }
    })
    .collect()
}
