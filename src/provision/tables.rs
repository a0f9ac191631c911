//! Tables of a service that `provision` makes: columns, key, checks, comments and gate, all in one transaction, so
//! that no table is ever there without its gate.

use std::collections::BTreeSet;

use super::Statement;
use super::anatomy::{IndexShape, Used};
use super::claimed::{held_by_another, renamed};
use super::columns::{definitions, not_null_comments};
use super::comments;
use super::deferred::{add_constraint, create_index};
use super::draft::{Draft, Site, in_service};
use super::expression::{carry, target_of};
use super::objects::sequence_target;
use super::slices::new_hash;
use super::state::Trigger;
use super::storage;
use crate::catalog::{Constraint, ConstraintKind, Index, ReplicaIdentity, Table, TableKind};
use crate::dualwrite::gate::{self, Hinge};
use crate::journal::beginnings;
use crate::journal::statements as ours;
use crate::mapping::{SliceMapping, SoftReference, TableMapping};
use crate::name::{TableName, quote_ident, quote_literal};
use crate::problem::{Problem, START_ANEW};

/// Adds a step for every table that is not there, and puts back gates that somebody took off.
pub(super) fn create(draft: &mut Draft<'_>, site: &Site<'_>) {
    for (slice, mapping) in site.tables() {
        let Some(table) = draft.survey.monolith.table(&mapping.source) else { continue };
        match (site.table(&mapping.target).is_some(), site.known(slice, mapping)) {
            (true, true) => guard(draft, site, slice, &mapping.target),
            (true, false) => draft.problem(taken(draft, site, slice, &mapping.target)),
            (false, true) if site.state.mirrored(&slice.slice) => draft.problem(
                Problem::error("table-lost", in_service(site, format!("table {}", mapping.target)))
                    .fact("provision made it, its slice was mirrored, and it is gone")
                    .consequence("its rows and the stream's progress no longer belong together")
                    .next(format!("start slice {} anew: {START_ANEW}", slice.slice)),
            ),
            (false, _) => one(draft, site, slice, (mapping, table)),
        }
    }
}

/// A table that is there and is none of ours.
fn taken(draft: &Draft<'_>, site: &Site<'_>, slice: &SliceMapping, table: &TableName) -> Problem {
    if let Some(problem) = renamed((draft.plan, &slice.slice), table, &site.state.holdings) {
        return problem;
    }
    let held = held_by_another(&slice.slice, table, &site.state.holdings);
    let (fact, next) = held.map_or_else(
        || {
            let next = format!(
                "look at its rows; where none is needed, as of a copy that stayed when its slice was abandoned, run in the service: DROP TABLE {}; \
                 else rename it, or write `ddl: adopt` for the service in the plan; then type the same command again",
                table.sql()
            );
            ("it exists, and provision did not make it".to_owned(), next)
        },
        |(whose, next)| (format!("it exists, and {whose}"), next),
    );
    Problem::error("table-taken", in_service(site, format!("table {table}")))
        .fact(fact)
        .consequence("its columns and rows are somebody else's")
        .next(next)
}

/// Drops the empty tables of slices whose mapping changed before anything was mirrored.
pub(super) fn withdraw(draft: &mut Draft<'_>, site: &Site<'_>) {
    for slice in site.slices.iter().filter(|slice| site.remade.contains(slice.slice.as_str())) {
        withdraw_slice(draft, site, slice);
    }
}

fn withdraw_slice(draft: &mut Draft<'_>, site: &Site<'_>, slice: &SliceMapping) {
    let ours = site.state.mirror_tables.iter().filter(|((of, _), _)| *of == slice.slice);
    let tables: BTreeSet<TableName> = ours
        .filter_map(|(_, row)| TableName::parse(&row.target, "public").ok())
        .filter(|name| site.catalog.table(name).is_some())
        .collect();
    let mut statements = Vec::new();
    for table in &tables {
        statements.push(Statement::from(format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table.sql())));
        statements.push(refuse_rows(table));
        statements.push(format!("DROP TABLE {}", table.sql()).into());
    }
    statements.push(ours::delete_deferred(&slice.slice, &[]).into());
    statements.push(ours::delete_mirror_tables(&slice.slice).into());
    statements.push(new_hash(slice));
    draft.journaled(
        site.database(),
        Some(&slice.slice),
        ("withdraw tables of slice", &slice.slice),
        statements,
    );
}

/// Fails when the table holds a row.
pub(super) fn refuse_rows(table: &TableName) -> Statement {
    let body = format!(
        " BEGIN IF EXISTS (SELECT FROM {}) THEN RAISE EXCEPTION USING MESSAGE = {}, \
         HINT = 'empty it, then run provision again'; END IF; END ",
        table.sql(),
        quote_literal(&format!("table {table} is not empty"))
    );
    let quote = gate::dollar_quote(&body);
    Statement::from(format!("DO {quote}{body}{quote}"))
}

fn one(
    draft: &mut Draft<'_>,
    site: &Site<'_>,
    slice: &SliceMapping,
    (mapping, table): (&TableMapping, &Table),
) {
    let (mut parts, mut problems) = definitions(draft, site, mapping, table);
    let (checks, found) = checks(draft, mapping, table);
    parts.extend(checks);
    problems.extend(found);
    let key = key(draft, site, (mapping, table), &mut problems);
    if !problems.is_empty() {
        problems.into_iter().for_each(|problem| draft.problem(problem));
        return;
    }
    let target = mapping.target.sql();
    let mut statements = vec![
        format!("CREATE TABLE {target} (\n    {}\n)", parts.join(",\n    ")),
        format!("ALTER TABLE {target} OWNER TO {}", quote_ident(&site.service.owner)),
    ];
    statements.extend(key);
    statements.extend(owned_sequences(draft, site, mapping, table));
    statements.extend(storage::set(
        mapping,
        &storage::split(&draft.survey.monolith, table, majors(draft, site)).taken,
    ));
    statements.extend(comments::of_table(draft, site, mapping, table));
    let checks = table.constraints.iter().filter(|one| one.kind == ConstraintKind::Check && one.validated);
    let on_check =
        |check: &Constraint| comments::on_constraint(&mapping.target, &check.name, check.comment.as_deref());
    statements.extend(checks.filter_map(on_check));
    statements.extend(not_null_comments(site, mapping, table));
    statements.extend(gate::create_triggers(&slice.slice, &mapping.target, Hinge::Statement));
    statements.push(mirror_row(slice, mapping));
    statements.extend(beginnings::note_made(&slice.slice, &mapping.target));
    let statements = statements.into_iter().map(Statement::from).collect();
    let what = ("create table", &*mapping.target.to_string());
    draft.journaled(site.database(), Some(&slice.slice), what, statements);
}

/// The row by which the mirror knows the table.
pub(super) fn mirror_row(slice: &SliceMapping, mapping: &TableMapping) -> String {
    ours::insert_mirror_table(
        &slice.slice,
        &mapping.source.to_string(),
        &mapping.target.to_string(),
        mapping.rows_estimate,
    )
}

/// Check constraints that hold for every row. Those that were never validated wait until the data is in, since old
/// rows may break them: see `deferred`.
fn checks(draft: &Draft<'_>, mapping: &TableMapping, table: &Table) -> (Vec<String>, Vec<Problem>) {
    let mut parts = Vec::new();
    let mut problems = Vec::new();
    for check in table.constraints.iter().filter(|one| one.kind == ConstraintKind::Check) {
        let used = Used::Constraint(table.name.clone(), check.name.clone());
        match carry(mapping, table, draft.survey.anatomy.needs_of(&used), &check.definition_sql) {
            Ok(definition) if check.validated => {
                parts.push(format!("CONSTRAINT {} {definition}", quote_ident(&check.name)));
            }
            Ok(_) => {}
            Err(stuck) => problems.push(
                Problem::error("check-not-created", format!("constraint {} of {}", check.name, table.name))
                    .fact(stuck.fact())
                    .consequence(
                        "the service would accept rows that the monolith refuses, so it could not flip back",
                    )
                    .next("keep those columns and their names, or drop the constraint on the monolith"),
            ),
        }
    }
    (parts, problems)
}

/// The index that tells rows apart in the stream. Every other unique index waits for the data, even a primary key:
/// pieces of several snapshots may hold one of its values twice for a while (landing rule).
pub(super) fn key_index<'a>(mapping: &TableMapping, table: &'a Table) -> Option<&'a Index> {
    let key: Vec<&str> = mapping.key_columns().map(|column| column.source.as_str()).collect();
    let is_key = |index: &&Index| {
        let columns: Option<Vec<&str>> = index.columns.iter().map(Option::as_deref).collect();
        table.can_identify(index) && columns.is_some_and(|columns| columns == key)
    };
    let mut fitting: Vec<&Index> = table.indexes.iter().filter(is_key).collect();
    fitting.sort_by_key(|index| match &table.replica_identity {
        ReplicaIdentity::Index(name) => index.name != *name,
        ReplicaIdentity::Default | ReplicaIdentity::Nothing | ReplicaIdentity::Full => !index.primary,
    });
    fitting.first().copied()
}

fn key(
    draft: &Draft<'_>,
    site: &Site<'_>,
    (mapping, table): (&TableMapping, &Table),
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let major = site.catalog.major();
    let Some(index) = key_index(mapping, table) else { return Vec::new() };
    let shape = draft.survey.anatomy.indexes.get(&(table.name.clone(), index.name.clone()));
    let Some(shape) = shape else { return Vec::new() };
    // A key holds no nulls, so how they compare makes no difference to a server that can't be told.
    let shape = IndexShape { nulls_not_distinct: shape.nulls_not_distinct && major >= 15, ..shape.clone() };
    let made = match &index.constraint {
        Some(constraint) => add_constraint((mapping, major), table, (constraint, index.primary), &shape),
        None => create_index((draft, major), mapping, table, (&index.name, &shape)),
    };
    let mut statements = match made {
        Ok(made) => vec![made],
        Err(stuck) => {
            problems.push(
                Problem::error("key-not-created", format!("key {} of {}", index.name, table.name))
                    .fact(stuck.fact())
                    .consequence(format!("service {} could not tell the table's rows apart", site.name))
                    .next(
                        "use a newer server for the service, or give the table another replica identity on \
                         the monolith",
                    ),
            );
            return Vec::new();
        }
    };
    let target = mapping.target.sql();
    match &table.replica_identity {
        ReplicaIdentity::Full => statements.push(format!("ALTER TABLE {target} REPLICA IDENTITY FULL")),
        ReplicaIdentity::Index(_) => statements
            .push(format!("ALTER TABLE {target} REPLICA IDENTITY USING INDEX {}", quote_ident(&index.name))),
        ReplicaIdentity::Default | ReplicaIdentity::Nothing => {}
    }
    statements.extend(comments::on_index(&mapping.target, table, index));
    statements
}

/// The versions of the monolith and of the service.
pub(super) fn majors(draft: &Draft<'_>, site: &Site<'_>) -> (u32, u32) {
    (draft.survey.monolith.major(), site.catalog.major())
}

fn owned_sequences(draft: &Draft<'_>, site: &Site<'_>, mapping: &TableMapping, table: &Table) -> Vec<String> {
    let mut statements = Vec::new();
    for column in table.columns.iter().filter(|column| column.identity.is_none()) {
        let Some(target) = target_of(mapping, table, &column.name) else { continue };
        let sequence = column.sequence.as_ref().and_then(|name| draft.survey.monolith.sequences.get(name));
        let owned = (table.name.clone(), column.name.clone());
        if let Some(sequence) = sequence.filter(|sequence| sequence.owned_by.as_ref() == Some(&owned)) {
            let name = sequence_target(site, &sequence.name);
            // OWNED BY asks for one schema (ALTER SEQUENCE).
            if name.schema == mapping.target.schema {
                statements.push(format!(
                    "ALTER SEQUENCE {} OWNED BY {}.{}",
                    name.sql(),
                    mapping.target.sql(),
                    quote_ident(target)
                ));
            }
        }
    }
    statements
}

/// How a soft reference reads in comments and in the journal.
pub(super) fn describe(soft: &SoftReference) -> String {
    format!(
        "Soft reference: ({}) holds {}({}), which is not in this slice; nothing enforces it",
        soft.columns.join(", "),
        soft.references,
        soft.referenced_columns.join(", ")
    )
}

/// Puts the gate on a table where it is missing, and wakes it where somebody put it to sleep.
pub(super) fn guard(draft: &mut Draft<'_>, site: &Site<'_>, slice: &SliceMapping, table: &TableName) {
    let mut hinges = Vec::new();
    if let Some(present) = site.table(table) {
        if present.kind == TableKind::Partitioned {
            hinges.push((table.clone(), Hinge::PartitionedRoot));
            let leaves = super::preflight::leaves(site.catalog, table);
            hinges.extend(leaves.iter().map(|leaf| (leaf.name.clone(), Hinge::Partition)));
        } else {
            hinges.push((table.clone(), Hinge::Statement));
        }
    }
    for (table, hinge) in hinges {
        let names: &[&str] = match hinge {
            Hinge::Statement => &[gate::TRIGGER],
            Hinge::PartitionedRoot => &[gate::TRIGGER, gate::TRUNCATE_TRIGGER],
            Hinge::Partition => &[gate::TRUNCATE_TRIGGER],
        };
        let state = |name: &&str| {
            site.state.triggers.get(&Trigger { table: table.clone(), name: (**name).to_owned() })
        };
        if names.iter().all(|name| state(name) == Some(&true)) {
            continue;
        }
        let present = names.iter().filter(|name| state(name).is_some());
        let mut statements: Vec<Statement> = present
            .map(|name| Statement::from(format!("DROP TRIGGER {} ON {}", quote_ident(name), table.sql())))
            .collect();
        let made = gate::create_triggers(&slice.slice, &table, hinge);
        statements.extend(made.into_iter().map(Statement::from));
        let what = ("hang gate on table", &*table.to_string());
        draft.journaled(site.database(), Some(&slice.slice), what, statements);
    }
}
