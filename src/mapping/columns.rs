//! Which column goes where.

use std::collections::BTreeMap;

use tokio_postgres::types::{Kind, Type};

use super::ColumnMapping;
use super::expand::Listed;
use super::spelling::{advice, nearest, nearest_table};
use crate::catalog::{Catalog, Column, UserTypeKind};
use crate::name::{TableName, identifiers_in, quote_ident};
use crate::plan::{ColumnRule, Ddl, Others, Plan, TableRule, TableSelector};
use crate::problem::Problem;

/// Types whose binary form means the same on every server of one major version. Not `money` (its scale follows
/// `lc_monetary`), not `xml` (it carries its encoding), not the `reg` types and the like, which hold oids.
const BINARY_STABLE: &[Type] = &[
    Type::BOOL,
    Type::BYTEA,
    Type::CHAR,
    Type::NAME,
    Type::INT2,
    Type::INT4,
    Type::INT8,
    Type::TEXT,
    Type::OID,
    Type::JSON,
    Type::JSONB,
    Type::FLOAT4,
    Type::FLOAT8,
    Type::VARCHAR,
    Type::BPCHAR,
    Type::DATE,
    Type::TIME,
    Type::TIMETZ,
    Type::TIMESTAMP,
    Type::TIMESTAMPTZ,
    Type::INTERVAL,
    Type::BIT,
    Type::VARBIT,
    Type::NUMERIC,
    Type::UUID,
    Type::INET,
    Type::CIDR,
    Type::MACADDR,
    Type::MACADDR8,
    Type::POINT,
    Type::LSEG,
    Type::PATH,
    Type::BOX,
    Type::POLYGON,
    Type::LINE,
    Type::CIRCLE,
    Type::PG_LSN,
];

/// The columns of one table by what becomes of them.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// They are carried over.
    pub(super) carried: Vec<ColumnMapping>,
    /// The service computes them anew.
    pub(super) generated: Vec<ColumnMapping>,
    /// They stay behind.
    pub(super) dropped: Vec<String>,
}

/// Maps the columns of one table.
pub(super) fn map(plan: &Plan, monolith: &Catalog, one: &Listed<'_>, problems: &mut Vec<Problem>) -> Columns {
    unknown_columns(one, problems);
    let Columns { mut carried, mut generated, mut dropped } = Columns::default();
    for column in &one.table.columns {
        let to = match (one.rule.columns.get(&column.name), one.rule.others) {
            (Some(ColumnRule::Drop), _) | (None, Others::Drop) => {
                dropped.push(column.name.clone());
                continue;
            }
            (Some(ColumnRule::Keep { to, .. }), _) => to.as_ref(),
            (None, Others::Keep) => None,
        };
        if column.generated_sql.is_some() {
            if to.is_some() {
                problems.push(generated_renamed(one, column));
            }
            generated.push(mapped(plan, one, column, &column.name));
            continue;
        }
        carried.push(mapped(plan, one, column, to.unwrap_or(&column.name)));
    }
    same_names(one, &carried, &dropped, problems);
    dropped_columns(one, &dropped, problems);
    user_types(plan, monolith, one, &carried, problems);
    Columns { carried, generated, dropped }
}

fn mapped(plan: &Plan, one: &Listed<'_>, column: &Column, target: &str) -> ColumnMapping {
    ColumnMapping {
        source: column.name.clone(),
        target: target.to_owned(),
        type_sql: column.type_sql.clone(),
        cast_sql: column.cast_sql.clone(),
        binary: column.type_builtin && Type::from_oid(column.type_oid).is_some_and(|t| is_binary_stable(&t)),
        source_type_oid: column.type_oid,
        class: class_of(plan, one, column),
        identity_always: column.identity == Some('a'),
    }
}

/// A column's class. What is generated from a classified column says as much as that does.
fn class_of(plan: &Plan, one: &Listed<'_>, column: &Column) -> Option<String> {
    let here = || plan.classify.iter().filter(|classified| classified.table == one.table.name);
    let own = here().find(|classified| classified.column == column.name);
    let named = column.generated_sql.as_deref().map(identifiers_in).unwrap_or_default();
    let from = || here().find(|classified| named.contains(&(None, classified.column.clone())));
    own.or_else(from).map(|classified| classified.class.clone())
}

fn is_binary_stable(of: &Type) -> bool {
    if let Kind::Array(inner) | Kind::Range(inner) | Kind::Multirange(inner) = of.kind() {
        is_binary_stable(inner)
    } else {
        BINARY_STABLE.contains(of)
    }
}

/// `Orders.Id`, as a problem names a column.
pub(super) fn object(table: &TableName, column: &str) -> String {
    format!("{table}.{column}")
}

pub(super) fn unknown(one: &Listed<'_>, column: &str) -> Problem {
    let near = nearest(column, one.table.columns.iter().map(|column| column.name.as_str()));
    let all: Vec<&str> = one.table.columns.iter().map(|column| column.name.as_str()).collect();
    Problem::error("unknown-column", object(&one.table.name, column))
        .at(one.rule.place)
        .fact(format!("the table {} has no column of this name", one.table.name))
        .consequence("the rule means nothing")
        .next(advice(near, &format!("its columns are {}", all.join(", "))))
}

fn unknown_columns(one: &Listed<'_>, problems: &mut Vec<Problem>) {
    let ruled = one.rule.columns.keys().filter(|name| one.table.column(name).is_none());
    problems.extend(ruled.map(|name| {
        let problem = unknown(one, name);
        match one.rule.columns.get(name) {
            // It may have been dropped, as a column that nobody needed is in the end.
            Some(ColumnRule::Drop) => {
                let otherwise = problem.next.clone();
                problem.next(format!(
                    "if the column was dropped, take its `drop: true` out of the plan; else: {otherwise}"
                ))
            }
            Some(ColumnRule::Keep { .. }) | None => problem,
        }
    }));
}

fn generated_renamed(one: &Listed<'_>, column: &Column) -> Problem {
    Problem::error("generated-renamed", object(&one.table.name, &column.name))
        .at(one.rule.place)
        .fact("it is a generated column and the plan gives it another name")
        .consequence(
            "a generated column is not carried over: the service computes it anew, under its own name",
        )
        .next("remove `to` from the column, or drop it with `drop: true`")
}

fn same_names(one: &Listed<'_>, carried: &[ColumnMapping], dropped: &[String], problems: &mut Vec<Problem>) {
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    let kept = |column: &&Column| column.generated_sql.is_some() && !dropped.contains(&column.name);
    let generated =
        one.table.columns.iter().filter(kept).map(|column| (column.name.as_str(), column.name.as_str()));
    let moved = carried.iter().map(|column| (column.target.as_str(), column.source.as_str()));
    for (target, source) in generated.chain(moved) {
        if let Some(other) = taken.insert(target, source) {
            problems.push(
                Problem::error("same-column", object(&one.table.name, source))
                    .at(one.rule.place)
                    .fact(format!("it and {other} both become {target}"))
                    .consequence("one column cannot hold two values")
                    .next("give one of them another name with `to`, or drop it with `drop: true`"),
            );
        }
    }
}

fn dropped_columns(one: &Listed<'_>, dropped: &[String], problems: &mut Vec<Problem>) {
    for column in dropped.iter().filter_map(|name| one.table.column(name)) {
        let filled =
            column.default_sql.is_some() || column.identity.is_some() || column.generated_sql.is_some();
        if column.not_null && !filled {
            problems.push(
                Problem::warning("dropped-not-null", object(&one.table.name, &column.name))
                    .at(one.rule.place)
                    .fact("it is NOT NULL without a default and the plan drops it")
                    .consequence(
                        "after a flip, rows made by the service can't be mirrored back: the slice could not flip back",
                    )
                    .next(format!(
                        "keep it, or run on the monolith: ALTER TABLE {} ALTER COLUMN {} SET DEFAULT …;",
                        one.table.name.sql(),
                        quote_ident(&column.name)
                    )),
            );
        }
    }
    for column in one.table.columns.iter().filter(|column| !dropped.contains(&column.name)) {
        let Some(expression) = &column.generated_sql else { continue };
        let named = identifiers_in(expression);
        let missing: Vec<&str> = dropped
            .iter()
            .map(String::as_str)
            .filter(|name| named.contains(&(None, (*name).to_owned())))
            .collect();
        if !missing.is_empty() {
            problems.push(
                Problem::error("generated-needs-dropped", object(&one.table.name, &column.name))
                    .at(one.rule.place)
                    .fact(format!("it is generated from {}, which the plan drops", missing.join(", ")))
                    .consequence("the service could not compute it")
                    .next("keep those columns, or drop this one too with `drop: true`"),
            );
        }
    }
}

/// User types that `provision` cannot create: base types and ranges outside extensions, rows of tables, and types
/// of schemas that the catalog leaves out.
fn user_types(
    plan: &Plan,
    monolith: &Catalog,
    one: &Listed<'_>,
    carried: &[ColumnMapping],
    problems: &mut Vec<Problem>,
) {
    if plan.services.get(one.service).is_some_and(|service| service.ddl == Ddl::Adopt) {
        return;
    }
    for column in carried.iter().filter_map(|column| one.table.column(&column.source)) {
        let Some(bad) = column.user_type.as_ref().and_then(|name| uncreatable(monolith, name)) else {
            continue;
        };
        problems.push(
            Problem::error("type-not-created", object(&one.table.name, &column.name))
                .at(one.rule.place)
                .fact(format!("its type needs {bad}, which is no enum, domain, composite or extension's type"))
                .consequence("provision cannot create that type in the service")
                .next(format!(
                    "create the type and the table in service {} yourself and write `ddl: adopt`, or drop the column",
                    one.service
                )),
        );
    }
}

/// The type that cannot be created, looking through domains. Depth is bounded: PostgreSQL has no recursive
/// domains, yet a catalog value could be anything.
fn uncreatable(monolith: &Catalog, name: &TableName) -> Option<TableName> {
    let mut name = name;
    for _ in 0..32 {
        let Some(found) = monolith.types.get(name) else { return Some(name.clone()) };
        match (&found.kind, &found.extension) {
            (_, Some(_)) | (UserTypeKind::Enum(_) | UserTypeKind::Composite(_), None) => return None,
            (UserTypeKind::Domain { base_type: None, .. }, None) => return None,
            (UserTypeKind::Domain { base_type: Some(base), .. }, None) => name = base,
            (UserTypeKind::Other, None) => return Some(name.clone()),
        }
    }
    Some(name.clone())
}

/// Classified columns that don't exist, and classes that a service does not accept.
pub(super) fn classified_problems(plan: &Plan, monolith: &Catalog) -> Vec<Problem> {
    plan.classify
        .iter()
        .filter_map(|classified| {
            let at = object(&classified.table, &classified.column);
            let of_takers = |problem| takers(plan, &classified.table).fold(problem, Problem::of_slice);
            let Some(table) = monolith.table(&classified.table) else {
                let near = nearest_table(&classified.table, &monolith.tables);
                return Some(of_takers(
                    Problem::error("unknown-table", &classified.table)
                        .fact("policy.classify names it, and the monolith has no such table")
                        .consequence("the column that was meant would be shown in clear")
                        .next(advice(near, "names are exact, case included")),
                ));
            };
            if table.column(&classified.column).is_some() {
                return None;
            }
            let near = nearest(&classified.column, table.columns.iter().map(|column| column.name.as_str()));
            Some(of_takers(
                Problem::error("unknown-column", at)
                    .fact("policy.classify names it, and the table has no such column")
                    .consequence("the column that was meant would be shown in clear")
                    .next(advice(near, "names are exact, case included")),
            ))
        })
        .collect()
}

/// Slices whose rules name a table, or its whole schema.
fn takers<'a>(plan: &'a Plan, table: &'a TableName) -> impl Iterator<Item = &'a str> {
    let takes = move |rule: &TableRule| match &rule.selector {
        TableSelector::Table(name) => name == table,
        TableSelector::Schema(schema) => *schema == table.schema,
    };
    let taking = plan.slices.iter().filter(move |(_, slice)| slice.tables.iter().any(takes));
    taking.map(|(name, _)| name.as_str())
}

/// Classes of carried columns that the service does not list in `accepts`.
pub(super) fn accepted(
    plan: &Plan,
    one: &Listed<'_>,
    carried: &[ColumnMapping],
    problems: &mut Vec<Problem>,
) {
    let Some(service) = plan.services.get(one.service) else { return };
    for column in carried {
        let Some(class) = column.class.as_ref().filter(|class| !service.accepts.contains(class)) else {
            continue;
        };
        problems.push(
            Problem::error("class-not-accepted", object(&one.table.name, &column.source))
                .at(one.rule.place)
                .fact(format!(
                    "it is classified {class} and service {} does not accept that class",
                    one.service
                ))
                .consequence("values of that class would be stored where nobody agreed to it")
                .next(format!("write `accepts: [{class}]` for the service, or drop the column")),
        );
    }
}
