//! What is missing for a slice to be armed. A pure function: a survey of what all steps leave behind gives none.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::locks::{LockMode, Locks};
use super::readiness;
use super::survey::{SliceFacts, Survey};
use super::{Design, Step, Verb, Work, keys, reverse, rights, withdraw};
use crate::authority::Side;
use crate::dualwrite::gate::{self, TriggerKind};
use crate::dualwrite::guard::{Fault, Lack, Relation};
use crate::journal::streams::Mode;
use crate::journal::{arming, statements};
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::plan::Plan;
use crate::problem::Problem;
use crate::provision::{Database, Statement};

/// Roles of the services' apply links, by service: they read the reverse slots.
pub type ApplyLogins = BTreeMap<String, String>;

/// The design as it grows.
pub(super) struct Draft<'a> {
    pub(super) plan: &'a Plan,
    pub(super) survey: &'a Survey,
    pub(super) verb: Verb,
    /// Slices that are asked for; empty means all.
    pub(super) chosen: &'a [String],
    /// Foreign keys that an earlier slice of this run cuts.
    pub(super) cut: BTreeSet<(TableName, String)>,
    /// Services in which a slot is to be made.
    pub(super) new_slots: BTreeSet<String>,
    /// Servers and roles that this run lets stream.
    pub(super) replicating: BTreeSet<(String, String)>,
    /// This run makes the apply role on the monolith.
    pub(super) made_apply_role: bool,
    design: Design,
}

/// Statements before the locks, the locks, statements under them.
pub(super) type Transaction = (Vec<Statement>, Option<Locks>, Vec<Statement>);

impl<'a> Draft<'a> {
    pub(super) fn new(plan: &'a Plan, survey: &'a Survey, verb: Verb, chosen: &'a [String]) -> Self {
        Self {
            plan,
            survey,
            verb,
            chosen,
            cut: BTreeSet::new(),
            new_slots: BTreeSet::new(),
            replicating: BTreeSet::new(),
            made_apply_role: false,
            design: Design::default(),
        }
    }

    /// Whether the command is about this slice.
    pub(super) fn only(&self, slice: &str) -> bool {
        self.chosen.is_empty() || self.chosen.iter().any(|name| name == slice)
    }

    pub(super) fn problem(&mut self, problem: Problem) {
        self.design.problems.push(problem);
    }

    pub(super) fn step(&mut self, step: Step) {
        self.design.steps.push(step);
    }

    pub(super) fn steps(&self) -> usize {
        self.design.steps.len()
    }

    /// An entry of the journal about a step.
    pub(super) fn entry(&self, slice: &str, purpose: &str, object: &str) -> Statement {
        let detail = json!({ "object": object });
        statements::insert_journal(self.verb.as_str(), Some(slice), purpose, &detail).into()
    }

    /// Adds a step that the journal of its database records in the same transaction. Without statements there is none.
    pub(super) fn journaled(
        &mut self,
        (database, slice): (Database, &str),
        (purpose, object): (&'static str, &str),
        (before, locks, mut statements): Transaction,
        point: &'static str,
    ) {
        if statements.is_empty() {
            return;
        }
        statements.push(self.entry(slice, purpose, object));
        let locks = locks.filter(|locks| !locks.tables.is_empty());
        self.step(Step {
            database,
            slice: slice.to_owned(),
            object: object.to_owned(),
            purpose,
            work: Work::Sql { before, locks, statements },
            point,
        });
    }

    /// Adds an entry to the monolith's journal, by which every verb knows how the slice stands.
    pub(super) fn record(&mut self, slice: &str, action: &str, words: (&'static str, &'static str)) {
        let entry = statements::insert_journal(self.verb.as_str(), Some(slice), action, &json!({}));
        self.step(Step {
            database: Database::Monolith,
            slice: slice.to_owned(),
            object: slice.to_owned(),
            purpose: words.0,
            work: Work::Sql { before: Vec::new(), locks: None, statements: vec![entry.into()] },
            point: words.1,
        });
    }

    /// Without the steps when something stands in the way.
    pub(super) fn finish(mut self) -> Design {
        self.design.problems.sort();
        self.design.problems.dedup();
        if self.design.refusals().next().is_some() {
            self.design.steps.clear();
        }
        self.design
    }
}

/// Decides what `verb` does. `chosen` names the slices; empty means all.
#[must_use]
pub fn design(plan: &Plan, verb: Verb, chosen: &[String], survey: &Survey, logins: &ApplyLogins) -> Design {
    let mut draft = Draft::new(plan, survey, verb, chosen);
    let astray = readiness::astray(plan, chosen, survey);
    let all: Vec<String> = survey.mappings.keys().cloned().collect();
    let meant = if chosen.is_empty() { &all } else { chosen };
    let wrong = survey.mapping_problems.iter().filter(|problem| problem.stops(meant));
    let before: Vec<Problem> = if astray.is_empty() { wrong.cloned().collect() } else { astray };
    if !before.is_empty() {
        before.into_iter().for_each(|problem| draft.problem(problem));
        return draft.finish();
    }
    let slices = survey.mappings.values().filter(|slice| draft.only(&slice.slice)).collect::<Vec<_>>();
    for slice in slices {
        let ready = readiness::provisioned(survey, slice);
        match (ready, readiness::other_tables(survey, slice, verb)) {
            (Err(problem), _) => draft.problem(*problem),
            (Ok(_), Some(problem)) => draft.problem(problem),
            (Ok(facts), None) => match verb {
                Verb::Arm => arm(&mut draft, slice, facts, logins),
                Verb::Disarm => withdraw::withdraw_slice(&mut draft, slice, facts),
            },
        }
    }
    draft.finish()
}

fn arm(draft: &mut Draft<'_>, slice: &SliceMapping, facts: &SliceFacts, logins: &ApplyLogins) {
    let survey = draft.survey;
    let before = draft.steps();
    let elsewhere = readiness::claimed(draft.plan, survey, slice).into_iter();
    let elsewhere = elsewhere.chain(readiness::shared(draft.plan, slice));
    let elsewhere: Vec<Problem> = elsewhere.chain(readiness::stand_ins(survey, slice)).collect();
    if !elsewhere.is_empty() {
        // Nothing may be hung, and above all nothing replaced, before it is settled whose the table is, and that it is one.
        elsewhere.into_iter().for_each(|problem| draft.problem(problem));
        return;
    }
    let mode = match readiness::authority(facts) {
        None => {
            draft.problem(readiness::wrong_authority(&slice.slice, facts, Verb::Arm));
            return;
        }
        // A partition that was attached after the flip must be guarded as well, and a way back that broke since then is
        // made anew; one that works is in use.
        Some(Side::Service) => Mode::Apply,
        Some(Side::Monolith) => {
            let stuck = readiness::same_mapping(survey, slice).into_iter();
            let stuck = stuck.chain(readiness::mirrored(survey, slice));
            let open = readiness::open_partitions(survey, slice);
            for problem in stuck.chain(readiness::reversible(survey, slice)).chain(open) {
                draft.problem(problem);
            }
            Mode::Tripwire
        }
    };
    let login = logins.get(&slice.service).map(String::as_str);
    rights::grants(draft, slice);
    reverse::replication(draft, slice, login);
    reverse::stream(draft, slice, facts, mode);
    if draft.new_slots.contains(&slice.service) {
        readiness::service(survey, slice, login).into_iter().for_each(|problem| draft.problem(problem));
    }
    // A subscription is somebody's own, and so is what inherits or fires: none is ended without being asked.
    let service = format!("service {}", slice.service);
    let here = facts.guard.problems("monolith").into_iter();
    let there = facts.subscribed.iter().map(|one| one.problem(&service));
    let there = there.chain(facts.firing.iter().map(|one| one.problem(&service)));
    here.chain(there).chain(facts.keys.iter().cloned()).for_each(|one| draft.problem(one));
    gates(draft, slice, facts);
    keys::cut(draft, slice);
    if draft.steps() > before {
        readiness::ownership(survey, slice).into_iter().for_each(|problem| draft.problem(problem));
    }
    if !facts.armed.recorded {
        draft.record(&slice.slice, arming::ARMED, ("note as armed slice", "arm-recorded"));
    }
}

/// Hangs the gate where it is missing, wakes it where it sleeps, and replaces what is not it: a relation at a time.
fn gates(draft: &mut Draft<'_>, slice: &SliceMapping, facts: &SliceFacts) {
    let mut lacks: BTreeMap<&TableName, Vec<Lack>> = BTreeMap::new();
    for Fault { table, lack, .. } in &facts.guard.faults {
        match lack {
            Lack::Function => function(draft, slice, facts),
            Lack::Table => {}
            Lack::Missing(_) | Lack::Asleep(_) | Lack::Altered(_) => {
                lacks.entry(table).or_default().push(*lack);
            }
        }
    }
    // A row trigger of a partition comes from its root, so it is made there.
    let of_root = |relation: &Relation| relation.partition && relation.table != relation.root;
    let mut roots: BTreeSet<TableName> = BTreeSet::new();
    for relation in facts.guard.relations.iter().filter(|relation| of_root(relation)) {
        if let Some(found) = lacks.get_mut(&relation.table) {
            let gone = |lack: &Lack| matches!(lack, Lack::Missing(kind) | Lack::Altered(kind) if *kind == TriggerKind::Rows);
            if found.iter().any(gone) {
                roots.insert(relation.root.clone());
            }
            found.retain(|lack| !gone(lack));
        }
    }
    for root in &roots {
        let found = lacks.entry(root).or_default();
        if !found
            .iter()
            .any(|lack| matches!(lack, Lack::Missing(TriggerKind::Rows) | Lack::Altered(TriggerKind::Rows)))
        {
            found.push(Lack::Altered(TriggerKind::Rows));
        }
    }
    let (first, rest): (Vec<_>, Vec<_>) = facts.guard.relations.iter().partition(|one| !of_root(one));
    // A relation that asks another slice's gate is refused before; whatever that missed, its gate is not replaced here.
    let free = |relation: &&Relation| relation.triggers.iter().all(|trigger| trigger.of_slice.is_none());
    for relation in first.into_iter().chain(rest).filter(free) {
        if let Some(lacks) = lacks.get(&relation.table).filter(|lacks| !lacks.is_empty()) {
            hang(draft, slice, relation, lacks);
        }
    }
}

fn hang(draft: &mut Draft<'_>, slice: &SliceMapping, relation: &Relation, lacks: &[Lack]) {
    let table = &relation.table;
    let (mut statements, mut mode, mut below) = (Vec::new(), LockMode::ShareRowExclusive, false);
    for lack in lacks {
        let (Lack::Missing(kind) | Lack::Asleep(kind) | Lack::Altered(kind)) = lack else { continue };
        below |= relation.kind == 'p' && *kind == TriggerKind::Rows;
        if matches!(lack, Lack::Asleep(_)) {
            statements.push(gate::wake_trigger(table, *kind));
            continue;
        }
        if matches!(lack, Lack::Altered(_)) {
            statements.push(gate::drop_trigger(table, *kind));
            mode = LockMode::AccessExclusive;
        }
        statements.extend(gate::create_trigger(&slice.slice, table, *kind));
    }
    let what = if relation.partition { "hang gate on partition" } else { "hang gate on table" };
    draft.journaled(
        (Database::Monolith, &slice.slice),
        (what, &table.to_string()),
        (
            Vec::new(),
            Some(Locks::of(mode, table, below)),
            statements.into_iter().map(Statement::from).collect(),
        ),
        "arm-gate-hung",
    );
}

fn function(draft: &mut Draft<'_>, slice: &SliceMapping, facts: &SliceFacts) {
    let statements = vec![
        gate::create_function(&slice.slice, facts.lock_key).into(),
        gate::open_function(&slice.slice).into(),
    ];
    draft.journaled(
        (Database::Monolith, &slice.slice),
        ("put back the function of gate", &slice.slice),
        (Vec::new(), None, statements),
        "arm-function-restored",
    );
}
