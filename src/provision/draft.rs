//! The design as it grows: what is to be decided about, and the steps and problems found so far.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Database, Design, Logins, Statement, Step, Survey, Work};
use super::{
    adopt, deferred, monolith_rights, objects, preflight, publication, rights, slices, state::State, tables,
};
use crate::catalog::{Catalog, Table};
use crate::journal::statements;
use crate::mapping::{Mappings, SliceMapping, TableMapping};
use crate::name::TableName;
use crate::plan::{Ddl, Plan, Service};
use crate::problem::Problem;

/// Decides what is missing. A pure function: the same survey gives the same steps, and a survey of what all steps
/// leave behind gives none. Where our own tables are of an earlier version, the design is to upgrade them and no more:
/// what they hold shows afterwards.
#[must_use]
pub fn design(plan: &Plan, mappings: &Mappings, survey: &Survey, logins: &Logins) -> Design {
    let mut draft = Draft { plan, mappings, survey, logins, design: Design::default() };
    let sites = draft.sites();
    if survey.monolith_state.outdated || sites.iter().any(|site| site.state.outdated) {
        slices::schema(&mut draft, &sites);
        return draft.design;
    }
    preflight::check(&mut draft);
    // First, so that everything after it can be written down, and told in the ledger.
    slices::schema(&mut draft, &sites);
    rights::roles(&mut draft, &sites);
    slices::monolith(&mut draft);
    monolith_rights::grants(&mut draft, &sites);
    for site in &sites {
        slices::service(&mut draft, site);
        match site.service.ddl {
            Ddl::Create => {
                // Sequences go with the tables that own them, so this comes before sequences are made.
                tables::withdraw(&mut draft, site);
                objects::create(&mut draft, site);
                tables::create(&mut draft, site);
                deferred::record(&mut draft, site);
            }
            Ddl::Adopt => adopt::adopt(&mut draft, site),
        }
        rights::service(&mut draft, site);
    }
    publication::publish(&mut draft);
    draft.design.problems.sort();
    draft.design.problems.dedup();
    draft.design
}

/// One service with what is there and what goes there.
pub(super) struct Site<'a> {
    pub(super) name: &'a str,
    pub(super) service: &'a Service,
    pub(super) catalog: &'a Catalog,
    pub(super) state: &'a State,
    pub(super) slices: Vec<&'a SliceMapping>,
    /// Slices whose tables were made for an earlier form of the plan and are made anew, being empty.
    pub(super) remade: BTreeSet<&'a str>,
}

impl<'a> Site<'a> {
    pub(super) fn database(&self) -> Database {
        Database::Service(self.name.to_owned())
    }

    /// Every table that goes here, with its slice.
    pub(super) fn tables(&self) -> impl Iterator<Item = (&'a SliceMapping, &'a TableMapping)> {
        self.slices.iter().flat_map(|slice| slice.tables.iter().map(move |table| (*slice, table)))
    }

    /// A table that is there and stays.
    pub(super) fn table(&self, name: &TableName) -> Option<&'a Table> {
        if self.service.ddl == Ddl::Adopt {
            return self.catalog.table(name);
        }
        let shown = name.to_string();
        let goes = self
            .state
            .mirror_tables
            .iter()
            .any(|((slice, _), row)| self.remade.contains(slice.as_str()) && row.target == shown);
        if goes { None } else { self.catalog.table(name) }
    }

    /// Whether our row says that provision made or adopted the table.
    pub(super) fn known(&self, slice: &SliceMapping, table: &TableMapping) -> bool {
        let key = (slice.slice.clone(), table.source.to_string());
        !self.remade.contains(slice.slice.as_str())
            && self.state.mirror_tables.get(&key).is_some_and(|row| row.target == table.target.to_string())
    }
}

/// What is decided about, and what was decided.
pub(super) struct Draft<'a> {
    pub(super) plan: &'a Plan,
    pub(super) mappings: &'a Mappings,
    pub(super) survey: &'a Survey,
    pub(super) logins: &'a Logins,
    design: Design,
}

impl<'a> Draft<'a> {
    /// The services that have a slice, in the order of their names.
    pub(super) fn sites(&self) -> Vec<Site<'a>> {
        let mut slices: BTreeMap<&'a str, Vec<&'a SliceMapping>> = BTreeMap::new();
        for slice in self.mappings.values() {
            slices.entry(&slice.service).or_default().push(slice);
        }
        let site = |(name, slices): (&'a str, Vec<&'a SliceMapping>)| {
            let state = self.survey.service_states.get(name)?;
            let remade = slices
                .iter()
                .filter(|slice| {
                    let row = state.slices.get(&slice.slice);
                    row.is_some_and(|row| !slice.is_pinned_by(&row.plan_hash))
                        && !state.mirrored(&slice.slice)
                })
                .map(|slice| slice.slice.as_str())
                .collect();
            Some(Site {
                name,
                service: self.plan.services.get(name)?,
                catalog: self.survey.services.get(name)?,
                state,
                slices,
                remade,
            })
        };
        slices.into_iter().filter_map(site).collect()
    }

    pub(super) fn problem(&mut self, problem: Problem) {
        self.design.problems.push(problem);
    }

    /// Adds a step that our own tables don't record, because they may not exist yet.
    pub(super) fn step(&mut self, database: Database, purpose: &str, object: impl ToString, work: Work) {
        let (object, purpose) = (object.to_string(), purpose.to_owned());
        self.design.steps.push(Step { database, object, purpose, work });
    }

    /// Adds a step that the journal records in the same transaction. Without statements there is no step.
    pub(super) fn journaled(
        &mut self,
        database: Database,
        slice: Option<&str>,
        (purpose, object): (&str, &str),
        mut statements: Vec<Statement>,
    ) {
        if statements.is_empty() {
            return;
        }
        statements.push(journal(slice, purpose, &json!({ "object": object })));
        self.step(database, purpose, object, Work::Sql(statements));
    }
}

/// An entry of the journal. `detail` must hold `object`, by which a later run finds the entry again.
pub(super) fn journal(slice: Option<&str>, action: &str, detail: &Value) -> Statement {
    statements::insert_journal("provision", slice, action, detail).into()
}

/// `service orders, table sales.Orders`, as problems name things.
pub(super) fn in_service(site: &Site<'_>, object: impl std::fmt::Display) -> String {
    format!("service {}, {object}", site.name)
}
