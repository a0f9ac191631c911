//! What must hold before anything is made: the databases are who they should be, and nobody else's work is in the
//! way.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::{Draft, Site, in_service};
use super::state::State;
use super::{Asking, Database, Survey, claimed, claimed_in_service, publication, unfit};
use crate::catalog::{Catalog, Table, TableKind};
use crate::dualwrite::gate;
use crate::journal::whereabouts::{self, Astray, Route, Side, Whereabouts};
use crate::mapping::SliceMapping;
use crate::mapping::outline::COMPARED;
use crate::name::{TableName, quote_ident};
use crate::plan::{Ddl, Plan};
use crate::postgres::stand_ins::{self, StandIn};
use crate::problem::{Problem, bring_back};

/// PostgreSQL cuts longer names (documentation, section 4.1.1).
const NAME_BYTES_MAX: usize = 63;

/// Adds a problem for everything that would stop the run half way or touch what is not ours.
pub(super) fn check(draft: &mut Draft<'_>) {
    names(draft);
    let survey = draft.survey;
    identity(draft, &Database::Monolith, &survey.monolith, &survey.monolith_state);
    for service in draft.mappings.values().map(|slice| &slice.service) {
        if !survey.service_states.contains_key(service) {
            draft.problem(
                Problem::error("database-unreachable", format!("service {service}"))
                    .fact("its admin link gave no connection")
                    .consequence("nothing can be made there")
                    .next(format!("check services.{service}.admin in the plan")),
            );
        }
    }
    ownership(draft);
    claims(draft);
    for site in draft.sites() {
        identity(draft, &site.database(), site.catalog, site.state);
        for slice in &site.slices {
            belongs(draft, &site.database(), site.state, slice);
            belongs(draft, &Database::Monolith, &survey.monolith_state, slice);
            ahead(draft, site.state, slice);
        }
        if site.service.owner == site.service.app && site.service.ddl == Ddl::Create {
            draft.problem(
                Problem::error("owner-is-app", format!("service {}", site.name))
                    .fact(format!("owner and app are one role, {}", site.service.app))
                    .consequence("an application that owns its tables can switch the gate off")
                    .next("name two roles in the plan: `owner:` and `app:`"),
            );
        }
        relation_names(draft, &site);
        encodings(draft, &site);
        // Of tables to be adopted it is one of several things that may not fit.
        if site.service.ddl == Ddl::Create {
            let tables = site.tables().map(|(_, table)| &table.target);
            let found = stand_ins::in_catalog(site.catalog, tables);
            found.iter().for_each(|one| draft.problem(not_a_table(&site.database().to_string(), one)));
        }
    }
    partitions(draft);
}

fn names(draft: &mut Draft<'_>) {
    let plan = &draft.plan.name;
    let long = |slice: &&String| {
        slice.len() > gate::SLICE_NAME_BYTES_MAX || publication::name(plan, slice).len() > NAME_BYTES_MAX
    };
    let problems: Vec<Problem> = draft
        .mappings
        .keys()
        .filter(long)
        .map(|slice| {
            Problem::error("slice-name-too-long", format!("slice {slice}"))
                .fact(format!("with the plan's name it makes names of more than {NAME_BYTES_MAX} bytes"))
                .consequence("PostgreSQL would cut the names of its gate and publication")
                .next("give the slice or the plan a shorter name")
        })
        .collect();
    problems.into_iter().for_each(|problem| draft.problem(problem));
}

/// Text that the service could not hold would be refused row by row, once the tables are there. Where all slices are mirrored
/// already, their rows fit.
fn encodings(draft: &mut Draft<'_>, site: &Site<'_>) {
    if site.slices.iter().all(|slice| site.state.mirrored(&slice.slice)) {
        return;
    }
    let monolith = &draft.survey.monolith.encoding;
    if let Some(problem) = unfit(site.name, (&site.catalog.encoding, monolith)) {
        draft.problem(problem);
    }
}

/// A copy of a provisioned database must not be taken for the original.
fn identity(draft: &mut Draft<'_>, database: &Database, catalog: &Catalog, state: &State) {
    let now = (catalog.identity.system_identifier.clone(), catalog.identity.database_oid);
    let Some(recorded) = state.recorded_identity.as_ref().filter(|recorded| **recorded != now) else {
        return;
    };
    draft.problem(
        Problem::error("other-database", database)
            .fact(format!(
                "database {} says that it is {}/{} and the server says {}/{}: it is a copy or was restored",
                catalog.database, recorded.0, recorded.1, now.0, now.1
            ))
            .consequence("gates and progress in it are those of another database")
            .next(
                "point the link to the original, or drop the schema strangler here if this copy starts anew",
            ),
    );
}

/// Links that lead to other databases than the plan says.
pub(super) fn astray<'a>(
    plan: &Plan,
    only: &[String],
    monolith: &Whereabouts,
    services: impl Fn(&str) -> Option<&'a Whereabouts>,
) -> Vec<Problem> {
    let mut found = BTreeSet::new();
    let mut places: BTreeMap<&str, &str> = BTreeMap::new();
    let mut problems = Vec::new();
    for (slice, planned) in plan.slices.iter().filter(|(name, _)| only.is_empty() || only.contains(name)) {
        let service = planned.service.as_str();
        let there = services(service);
        let route = Route { plan: &plan.name, slice, service };
        // Of a slice that is another plan's `belongs` tells, beside everything else that is wrong.
        let elsewhere = whereabouts::astray(route, Some(monolith), there).into_iter();
        found.extend(elsewhere.filter(|one| !matches!(one, Astray::Taken { .. })));
        let Some(there) = there else { continue };
        match places.insert(&there.place, service) {
            Some(other) if other != service => problems.push(
                Problem::error("shared-database", format!("service {other}, service {service}"))
                    .fact(format!("both links lead to one database, {}", there.database))
                    .consequence(
                        "each service must be the only one to own its database; their gates would meet",
                    )
                    .next("give each service a database of its own, or make them one service"),
            ),
            Some(_) | None => {}
        }
    }
    found.iter().map(Astray::problem).chain(problems).collect()
}

/// The slice's row, where there is one, must be of this plan and mapping.
fn belongs(draft: &mut Draft<'_>, database: &Database, state: &State, slice: &SliceMapping) {
    let Some(row) = state.slices.get(&slice.slice) else { return };
    let name = &slice.slice;
    let object = format!("slice {name} on {database}");
    let side = if *database == Database::Monolith { "monolith" } else { "service" };
    if row.plan != draft.plan.name || row.service != slice.service || row.side != side {
        let (plan, service) = (row.plan.clone(), row.service.clone());
        let other = Side { slice: name.clone(), plan, service, of_service: row.side == "service" };
        draft.problem(Astray::Taken { database: database.to_string(), side: other }.problem());
        return;
    }
    let service = draft.survey.service_states.get(&slice.service);
    if !slice.is_pinned_by(&row.plan_hash) && service.is_some_and(|state| state.mirrored(name)) {
        draft.problem(
            Problem::error("mapping-changed", &object)
                .fact(format!(
                    "its mapping is another one than when it was provisioned, and data was mirrored since; {COMPARED}"
                ))
                .consequence("rows mirrored so far went through the old mapping")
                .next(bring_back(name)),
        );
    }
}

/// The service has had the authority over a slice that the monolith does not know. A gate that is made there would be open, beside the service's own or
/// over tables that lack what came since.
fn ahead(draft: &mut Draft<'_>, state: &State, slice: &SliceMapping) {
    let (name, monolith) = (&slice.slice, &draft.survey.monolith_state);
    let Some(gate) = state.gate_rows.get(name).filter(|gate| gate.state == "OPEN" || gate.epoch > 1) else {
        return;
    };
    if monolith.slices.contains_key(name) || monolith.outdated {
        return;
    }
    let service = &slice.service;
    draft.problem(
        Problem::error("service-ahead", format!("slice {name}"))
            .fact(format!(
                "the monolith does not know it, and its gate in service {service} is {} in epoch {}: this may be an earlier state of a service \
                 whose old tables are dropped",
                gate.state, gate.epoch
            ))
            .consequence("the monolith's gate would be open as well, and writes there would be taken for the newer ones")
            .next(format!(
                "put service {service} forward to its last state, which says what became of the slice, and the monolith, where that was set back; \
                 then strangler status PLAN --slice {name}"
            )),
    );
}

/// Whether a slice that is there is another plan's, another service's, or was mirrored through another mapping: [`belongs`] tells it,
/// and what the slice has is right for that one.
pub(super) fn is_another(draft: &Draft<'_>, slice: &SliceMapping) -> bool {
    let service = draft.survey.service_states.get(&slice.service);
    let rows = [Some(&draft.survey.monolith_state), service].into_iter().flatten();
    let mirrored = service.is_some_and(|state| state.mirrored(&slice.slice));
    rows.filter_map(|state| state.slices.get(&slice.slice)).any(|row| {
        row.plan != draft.plan.name
            || row.service != slice.service
            || mirrored && !slice.is_pinned_by(&row.plan_hash)
    })
}

/// Tables that belong to another slice already.
fn claims(draft: &mut Draft<'_>) {
    let begun = begun(draft.survey);
    for slice in draft.mappings.values() {
        let asking = Asking { plan: draft.plan, slice: &slice.slice, begun: &begun };
        let tables = slice.tables.iter().map(|table| &table.source);
        let problems = claimed(asking, tables, &draft.survey.monolith_state.holdings);
        problems.into_iter().for_each(|problem| draft.problem(problem));
        let Some(state) = draft.survey.service_states.get(&slice.service) else { continue };
        let targets = slice.tables.iter().map(|table| &table.target);
        let problems = claimed_in_service(asking, &slice.service, targets, &state.holdings);
        problems.into_iter().for_each(|problem| draft.problem(problem));
    }
}

/// Slices whose stream has begun.
fn begun(survey: &Survey) -> BTreeSet<String> {
    survey.service_states.values().flat_map(|state| state.streams.iter().cloned()).collect()
}

/// Only an owner may publish a table (CREATE PUBLICATION) or hang a gate on it.
fn ownership(draft: &mut Draft<'_>) {
    let survey = draft.survey;
    let tables = draft.mappings.values().flat_map(|slice| &slice.tables);
    let foreign =
        tables.filter_map(|table| survey.monolith.table(&table.source)).filter(|table| !table.can_own);
    for table in foreign {
        draft.problem(
            Problem::error("not-owner", format!("table {}", table.name))
                .fact(format!(
                    "it belongs to {}, and {} is no member of that role",
                    table.owner, survey.monolith_state.user
                ))
                .consequence("it could not be published")
                .next(format!(
                    "run on the monolith: GRANT {} TO {}",
                    quote_ident(&table.owner),
                    quote_ident(&survey.monolith_state.user)
                )),
        );
    }
}

/// A relation that has a table's name and is none. `database` is where it is, in words.
pub(crate) fn not_a_table(database: &str, found: &StandIn) -> Problem {
    Problem::error("not-a-table", format!("{database}, table {}", found.table))
        .fact(found.to_string())
        .consequence("it may leave rows out, and neither a gate nor a publication can be put on it")
        .next(format!("run there: {}", found.undo()))
}

/// Tables, indexes and sequences of a schema share one space of names.
fn relation_names(draft: &mut Draft<'_>, site: &Site<'_>) {
    if site.service.ddl == Ddl::Adopt {
        return;
    }
    let mut taken: BTreeMap<TableName, String> = BTreeMap::new();
    let mut claims: Vec<(TableName, String)> = Vec::new();
    for (_, table) in site.tables() {
        let Some(source) = draft.survey.monolith.table(&table.source) else { continue };
        claims.push((table.target.clone(), format!("table {}", table.source)));
        claims.extend(source.indexes.iter().map(|index| {
            let name = TableName::new(&table.target.schema, &index.name);
            (name, format!("index {} of {}", index.name, table.source))
        }));
    }
    for (name, what) in claims {
        if let Some(other) = taken.insert(name.clone(), what.clone()) {
            draft.problem(
                Problem::error("relation-name-taken", in_service(site, format!("relation {name}")))
                    .fact(format!("{other} and {what} would both get this name"))
                    .consequence("the second could not be created")
                    .next("rename one of them on the monolith: ALTER TABLE or ALTER INDEX … RENAME TO …"),
            );
        }
    }
}

/// Publishing a table makes UPDATE and DELETE fail on a partition without replica identity, for the application
/// (PostgreSQL documentation, section 31.1).
fn partitions(draft: &mut Draft<'_>) {
    let catalog = &draft.survey.monolith;
    let mut problems = Vec::new();
    for table in draft.mappings.values().flat_map(|slice| &slice.tables).filter(|table| table.partitioned) {
        for leaf in leaves(catalog, &table.source) {
            if leaf.key_columns().is_none() {
                problems.push(
                    Problem::error("partition-without-identity", format!("partition {}", leaf.name))
                        .fact(format!("it has no replica identity, and {} would be published", table.source))
                        .consequence("the application's UPDATE and DELETE on it would fail")
                        .next(format!(
                            "run on the monolith: ALTER TABLE {} REPLICA IDENTITY …",
                            leaf.name.sql()
                        )),
                );
            }
        }
    }
    problems.into_iter().for_each(|problem| draft.problem(problem));
}

/// The partitions below a partitioned table that hold rows.
pub(super) fn leaves<'a>(catalog: &'a Catalog, root: &TableName) -> Vec<&'a Table> {
    let mut found = Vec::new();
    let mut roots = vec![root.clone()];
    while let Some(parent) = roots.pop() {
        for table in catalog.tables.values().filter(|table| table.partition_of.as_ref() == Some(&parent)) {
            if table.kind == TableKind::Partitioned {
                roots.push(table.name.clone());
            } else {
                found.push(table);
            }
        }
    }
    found
}
