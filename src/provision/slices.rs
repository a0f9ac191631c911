//! Our own schema, the identity of each database, and each slice's row and gate.

use super::draft::{Draft, Site};
use super::state::State;
use super::{Database, Statement, Work, publication};
use crate::authority::GateState;
use crate::catalog::Catalog;
use crate::dualwrite::gate;
use crate::journal::provisioned::SliceRow;
use crate::journal::statements;
use crate::mapping::SliceMapping;

/// Brings the schema `strangler` up to date everywhere.
pub(super) fn schema(draft: &mut Draft<'_>, sites: &[Site<'_>]) {
    let monolith = (Database::Monolith, &draft.survey.monolith_state);
    let services = sites.iter().map(|site| (site.database(), site.state));
    for (database, state) in std::iter::once(monolith).chain(services) {
        if !state.missing_versions.is_empty() {
            draft.step(
                database,
                "create or upgrade",
                "schema strangler",
                Work::Migrate(state.missing_versions.clone()),
            );
        }
    }
}

/// The monolith's side of every slice: the gate is open there.
pub(super) fn monolith(draft: &mut Draft<'_>) {
    let survey = draft.survey;
    identity(draft, Database::Monolith, &survey.monolith, &survey.monolith_state);
    let slices: Vec<&SliceMapping> = draft.mappings.values().collect();
    rows(draft, &Database::Monolith, &survey.monolith_state, &slices);
}

/// A service's side: fenced.
pub(super) fn service(draft: &mut Draft<'_>, site: &Site<'_>) {
    identity(draft, site.database(), site.catalog, site.state);
    rows(draft, &site.database(), site.state, &site.slices);
}

fn identity(draft: &mut Draft<'_>, database: Database, catalog: &Catalog, state: &State) {
    if state.recorded_identity.is_some() {
        return;
    }
    let identity = &catalog.identity;
    let sql = statements::insert_database(&identity.system_identifier, identity.database_oid);
    draft.journaled(database, None, ("record", "the database's identity"), vec![sql.into()]);
}

fn rows(draft: &mut Draft<'_>, database: &Database, state: &State, slices: &[&SliceMapping]) {
    // Keys are given here rather than by the column's own counter, so that they are known before the row exists and
    // the gate's function can be shown. Only provision makes rows, under its lock.
    let mut last_key = state.slices.values().map(|row| row.lock_key).max().unwrap_or(0);
    let (side, first) = match database {
        Database::Monolith => ("monolith", GateState::Open),
        Database::Service(_) => ("service", GateState::Fenced),
    };
    for slice in slices {
        let name = &slice.slice;
        let mut statements: Vec<Statement> = Vec::new();
        let key = state.slices.get(name).map_or_else(
            || {
                last_key += 1;
                statements.push(slice_row(draft, slice, side, last_key));
                last_key
            },
            |row| row.lock_key,
        );
        let before = state.slices.get(name).map(|row| row.plan_hash.as_str());
        // On the service the hash changes together with the tables: see `tables::withdraw` and `adopt::release`.
        if side == "monolith" && before.is_some_and(|hash| !slice.is_pinned_by(hash)) {
            statements.push(new_hash(slice));
        }
        if !state.gates.contains(name) {
            statements.push(gate::create_table(name).into());
            statements.push(gate::first_row(name, first).into());
        }
        let function = gate::create_function(name, key);
        let present = state.gate_functions.get(name).is_some_and(|body| function.contains(body.as_str()));
        if !present {
            statements.push(function.into());
            statements.push(gate::open_function(name).into());
        }
        draft.journaled(database.clone(), Some(name), ("set up slice", name), statements);
    }
}

fn slice_row(draft: &Draft<'_>, slice: &SliceMapping, side: &str, lock_key: i32) -> Statement {
    let row = SliceRow {
        plan: draft.plan.name.clone(),
        service: slice.service.clone(),
        side: side.to_owned(),
        lock_key,
        plan_hash: slice.hash.clone(),
        publication: publication::name(&draft.plan.name, &slice.slice),
    };
    statements::insert_slice(&slice.slice, &row).into()
}

/// Notes that the slice's mapping is another one now.
pub(super) fn new_hash(slice: &SliceMapping) -> Statement {
    statements::set_plan_hash(&slice.slice, &slice.hash).into()
}
