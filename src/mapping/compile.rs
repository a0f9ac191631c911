//! Plan and monolith's catalog in, mappings and all problems out.

use std::collections::{BTreeMap, BTreeSet};

use super::expand::{Listed, expand};
use super::{Mappings, SliceMapping, TableMapping, columns, filter, hash, identity, partitions, references};
use crate::catalog::{Catalog, TableKind};
use crate::name::TableName;
use crate::plan::{Others, Plan, Service, Slice, TableSelector};
use crate::problem::{Problem, Severity};

/// What compiling finds. One kind of problem serves the whole tool; here most have a place in the plan file.
pub type MappingProblem = Problem;

/// Joins a plan with the monolith's catalog.
///
/// A table with an error is not in the mappings: those of a slice that a problem [stops](Problem::stops) are incomplete
/// and good for showing only. Those of the other slices hold every table that the plan means, and nothing in them
/// depends on what is wrong elsewhere.
#[must_use]
pub fn compile(plan: &Plan, monolith: &Catalog) -> (Mappings, Vec<MappingProblem>) {
    let (listed, mut problems) = expand(plan, monolith);
    let mut mappings: Mappings = plan
        .slices
        .iter()
        .map(|(name, slice)| {
            let mapping = SliceMapping {
                slice: name.clone(),
                service: slice.service.clone(),
                tables: Vec::new(),
                unmapped: not_listed(name, slice, &listed),
                unheld: BTreeSet::new(),
                unknown: None,
                spoilt: Vec::new(),
                hash: String::new(),
                earlier_hash: String::new(),
            };
            (name.clone(), mapping)
        })
        .collect();
    for one in &listed {
        let (table, found) = map_table(plan, monolith, one, &listed);
        let wrong = found.iter().any(|problem| problem.severity == Severity::Error);
        let broken = wrong || table.key.is_empty();
        // Whether another slice takes rows of it that are this one's can't be told before it is mapped.
        let takers: Vec<&str> = listed
            .iter()
            .filter(|other| other.table.name == one.table.name)
            .map(|other| other.slice)
            .collect();
        problems.extend(
            found
                .into_iter()
                .map(|problem| takers.iter().fold(problem, |problem, slice| problem.of_slice(*slice))),
        );
        let Some(slice) = mappings.get_mut(one.slice) else { continue };
        let taken = |name: &TableName| listed.iter().any(|other| other.table.name == *name);
        let referred = table.soft_references.iter().map(|reference| &reference.references);
        let gone = referred.filter(|name| monolith.dropped.contains(*name) && !taken(name));
        slice.unheld.extend(gone.cloned());
        if broken {
            slice.unmapped.push(one.table.name.clone());
            slice.spoilt.push(table);
        } else {
            slice.tables.push(table);
        }
    }
    problems.extend(collisions(plan, &listed));
    problems.extend(overlaps(&listed, &mappings));
    problems.extend(columns::classified_problems(plan, monolith));
    mappings.values_mut().for_each(seal);
    problems.sort_by(|a, b| (a.place, a).cmp(&(b.place, b)));
    problems.dedup();
    (mappings, problems)
}

/// Whether compiling found that the monolith lacks what the plan names of a slice: tables that never were, or that are dropped.
#[must_use]
pub fn lacks_tables(problems: &[Problem], slice: &str) -> bool {
    let of = |problem: &&Problem| problem.slices.contains(slice);
    problems.iter().filter(of).any(|problem| matches!(problem.code, "unknown-table" | "empty-schema"))
}

/// Tables that a slice names, and that the monolith does not have, or that can't move at all.
fn not_listed(name: &str, slice: &Slice, listed: &[Listed<'_>]) -> Vec<TableName> {
    let is_listed =
        |table: &TableName| listed.iter().any(|one| one.slice == name && one.table.name == *table);
    let named = slice.tables.iter().filter_map(|rule| match &rule.selector {
        TableSelector::Table(table) => Some(table),
        TableSelector::Schema(_) => None,
    });
    named.filter(|table| !is_listed(table)).cloned().collect()
}

/// Puts the tables in their order, and hashes what there is.
pub(super) fn seal(slice: &mut SliceMapping) {
    slice.tables.sort_by(|a, b| a.source.cmp(&b.source));
    slice.hash = hash::of(slice);
    slice.earlier_hash = hash::earlier(slice);
}

fn map_table(
    plan: &Plan,
    monolith: &Catalog,
    one: &Listed<'_>,
    listed: &[Listed<'_>],
) -> (TableMapping, Vec<Problem>) {
    let mut problems = Vec::new();
    let service = plan.services.get(one.service);
    let columns::Columns { carried: columns, generated, dropped } =
        columns::map(plan, monolith, one, &mut problems);
    columns::accepted(plan, one, &columns, &mut problems);
    let (key, key_order) = identity::key(monolith, one, &columns, &mut problems);
    let filter = filter::terms(monolith, one, &columns, &mut problems);
    problems.extend(partitions::gaps(monolith, one));
    let soft_references = references::across_the_cut(monolith, one, listed, &columns, &mut problems);
    let single = if let [only] = key.as_slice() { columns.get(*only) } else { None };
    let correlation = single.and_then(|column| one.table.column(&column.source)).and_then(|c| c.correlation);
    let table = TableMapping {
        source: one.table.name.clone(),
        target: target_of(service, one),
        columns,
        generated,
        dropped,
        others_dropped: one.rule.others == Others::Drop,
        key,
        key_order,
        filter,
        soft_references,
        partitioned: one.table.kind == TableKind::Partitioned,
        key_correlation: correlation,
        rows_estimate: one.table.rows_estimate.max(0.0),
        heap_bytes: one.table.heap_bytes,
        reversed: false,
    };
    (table, problems)
}

/// Where a table goes: into the service's one schema or the monolith's, under its own name or the rule's.
fn target_of(service: Option<&Service>, one: &Listed<'_>) -> TableName {
    let source = &one.table.name;
    let schema = service.and_then(|service| service.into.as_ref()).unwrap_or(&source.schema);
    let name = match one.rule.selector {
        TableSelector::Table(_) => one.rule.to.as_ref().unwrap_or(&source.name),
        TableSelector::Schema(_) => &source.name,
    };
    TableName::new(schema, name)
}

/// Two tables that would become one, and schemas that are not the operator's to use.
fn collisions(plan: &Plan, listed: &[Listed<'_>]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut taken: BTreeMap<(&str, TableName), &Listed<'_>> = BTreeMap::new();
    for one in listed {
        let target = target_of(plan.services.get(one.service), one);
        if target.schema == "strangler" || target.schema.starts_with("pg_") {
            problems.push(
                Problem::error("reserved-schema", &one.table.name)
                    .at(one.rule.place)
                    .of_slice(one.slice)
                    .fact(format!("it would go into the schema {} of service {}", target.schema, one.service))
                    .consequence("that schema belongs to PostgreSQL or to this tool")
                    .next("write another schema in the service's `into`"),
            );
        }
        if let Some(other) = taken.get(&(one.service, target.clone())) {
            problems.push(
                Problem::error("same-target", &one.table.name)
                    .at(one.rule.place)
                    .of_slice(one.slice)
                    .of_slice(other.slice)
                    .fact(format!(
                        "it and {} of slice {} both become {target} in service {}",
                        other.table.name, other.slice, one.service
                    ))
                    .consequence("rows of two tables or slices would mix and could not be told apart again")
                    .next("give one of them another name with `to`"),
            );
        } else {
            taken.insert((one.service, target), one);
        }
    }
    problems
}

/// A table that two slices take needs filters that no row can pass both of.
fn overlaps(listed: &[Listed<'_>], mappings: &Mappings) -> Vec<Problem> {
    let mapped = |one: &Listed<'_>| {
        let tables = &mappings.get(one.slice)?.tables;
        tables.iter().find(|table| table.source == one.table.name)
    };
    let mut problems = Vec::new();
    for (index, one) in listed.iter().enumerate() {
        let earlier = listed.iter().take(index).filter(|other| other.table.name == one.table.name);
        for other in earlier {
            let (Some(a), Some(b)) = (mapped(one), mapped(other)) else { continue };
            if one.slice == other.slice || !filter::disjoint(a, b) {
                problems.push(
                    Problem::error("table-twice", &one.table.name)
                        .at(one.rule.place)
                        .of_slice(one.slice)
                        .of_slice(other.slice)
                        .fact(format!("slice {} takes it, and so does slice {}", one.slice, other.slice))
                        .consequence("a row could belong to both, so no side would have authority over it")
                        .next("take it out of one, or give both a `where` on one column with values of their own"),
                );
            }
        }
    }
    problems
}
