//! Which steps are to be taken, from what there is. Pure: what a run that died has done is not there any more, so the steps are those
//! that are left.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::facts::{self, Facts};
use super::lost::drops_schema;
use super::service::{Fate, OwnTable};
use super::{Job, Step, StepKind};
use crate::journal::migrate::Form;
use crate::journal::{abandonment, statements};
use crate::provision::{Database, withdrawal};

/// The steps, in their order. `token` and what the ledger is told stand in the first one, and are empty where they are not known yet.
#[must_use]
pub(super) fn steps(facts: &Facts, job: Job<'_>, (token, body): (&str, &Value)) -> Vec<Step> {
    let service = || Database::Service(job.service.to_owned());
    let here = facts.service.form == Form::Current;
    let in_service =
        here && (facts.service.row.is_some() || facts.service.gate.is_some() || facts.begun.is_some());
    let mut steps = Vec::new();
    let goes = here && drops_schema(facts, StepKind::Service);
    let mut add = |database, (purpose, object): (&'static str, String), kind, statements: Vec<String>| {
        let told = kind == StepKind::Service && in_service && !goes;
        steps.push(Step { database, object, purpose, statements, kind, told });
    };
    if in_service && facts.begun.is_none() {
        let begin = abandonment::begin(job.slice, (&job.plan.name, token), body);
        add(service(), ("begin to take back slice", job.slice.to_owned()), StepKind::Begin, begin);
    }
    if in_service && facts.decided.is_none() {
        let copies = facts.in_service.take_copies(job.slice);
        add(service(), ("take the copies of slice", job.slice.to_owned()), StepKind::Copies, copies);
    }
    if let Some(drop) = facts.on_monolith.slot_sql() {
        let slot = facts.on_monolith.slot.clone().unwrap_or_default();
        add(Database::Monolith, ("drop slot", slot), StepKind::Slot, vec![drop]);
    }
    if facts.on_monolith.is_provisioned() {
        let statements = facts.on_monolith.statements(abandonment::ACTOR);
        add(Database::Monolith, ("take back slice", job.slice.to_owned()), StepKind::Monolith, statements);
    }
    let touched = in_service || facts.on_monolith.is_provisioned();
    let same_server = facts.monolith.server == facts.service.server;
    let made = (&facts.monolith.others, &facts.service.others);
    if touched && drops_schema(facts, StepKind::Schema) {
        let role = (
            made.0.made_role || same_server && made.1.made_role,
            made.0.quieted || same_server && made.1.quieted,
        );
        let statements = withdrawal::drop_schema(false, role, facts.monolith.server_major);
        add(Database::Monolith, ("drop", "schema strangler".to_owned()), StepKind::Schema, statements);
    }
    if in_service || goes {
        let mut statements = if in_service { of_service(facts, job) } else { Vec::new() };
        if goes {
            let role = (
                made.1.made_role || same_server && made.0.made_role,
                made.1.quieted || same_server && made.0.quieted,
            );
            statements.extend(withdrawal::drop_schema(true, role, facts.service.server_major));
        }
        add(service(), ("take back slice", job.slice.to_owned()), StepKind::Service, statements);
    }
    steps
}

fn of_service(facts: &Facts, job: Job<'_>) -> Vec<String> {
    let alone = facts.service.others.slices.is_empty();
    let mut statements = facts.in_service.statements(job.slice, alone);
    statements.extend(withdrawal::drop_gate(job.slice));
    statements.extend(abandonment::forget(job.slice, &facts.in_service.own_tables));
    let detail = json!({ "object": job.slice });
    statements.push(statements::insert_journal(
        abandonment::ACTOR,
        Some(job.slice),
        abandonment::TAKEN_BACK,
        &detail,
    ));
    statements.push(abandonment::end(job.slice));
    statements
}

/// What the ledger is told at the end: in the form of every other entry about steps.
#[must_use]
pub(super) fn body(facts: &Facts, job: Job<'_>, steps: &[Step]) -> Value {
    let mut taken: Vec<Value> = Vec::new();
    let mut tell = |side: &str, action: &str, object: &str| {
        let mut step = json!({ "side": side, "action": action, "object": object });
        if let (Some(name), Some(step)) = (job.approved_by, step.as_object_mut()) {
            step.insert("approved_by".to_owned(), name.into());
        }
        taken.push(step);
    };
    for step in steps.iter().filter(|step| step.kind != StepKind::Begin) {
        let side = if step.database == Database::Monolith { "monolith" } else { "service" };
        if step.kind == StepKind::Copies {
            for table in &facts.in_service.tables {
                let Some(action) = action(table.fate()) else { continue };
                tell(side, action, &table.name.to_string());
            }
        }
        tell(side, step.purpose, &step.object);
    }
    json!({ "steps": taken.len(), "taken": taken, facts::RESUMED_WITH: facts::to_remember(facts) })
}

fn action(fate: Fate) -> Option<&'static str> {
    match fate {
        Fate::Drop => Some("drop table"),
        Fate::Empty => Some("empty table"),
        Fate::Stay => None,
    }
}

/// The tables of the service that are to be taken, as [`body`] has them.
#[must_use]
pub(super) fn tables_of(body: &Value) -> BTreeSet<String> {
    let taken = body.get("taken").and_then(Value::as_array).into_iter().flatten();
    taken
        .filter(|step| is_about_a_table(step))
        .filter_map(|step| Some(step.get("object")?.as_str()?.to_owned()))
        .collect()
}

/// The tables whose rows are taken, where that is over; `None` while nothing was taken.
#[must_use]
pub(super) fn decided(body: &Value) -> Option<BTreeSet<String>> {
    let taken = body.get(abandonment::DECIDED)?.as_array()?;
    Some(taken.iter().filter_map(|table| Some(table.as_str()?.to_owned())).collect())
}

fn is_about_a_table(step: &Value) -> bool {
    let action = step.get("action").and_then(Value::as_str);
    [Fate::Drop, Fate::Empty].into_iter().any(|fate| action == self::action(fate))
}

/// What the ledger is told in the end: what was written down when it was begun, without tables that stay after all.
#[must_use]
pub(super) fn told(begun: &Value, facts: &Facts) -> Value {
    let goes = |step: &Value| {
        let object = step.get("object").and_then(Value::as_str).unwrap_or_default();
        let of = |table: &&OwnTable| table.name.to_string() == object;
        if let Some(decided) = &facts.decided {
            return decided.contains(object);
        }
        facts.in_service.tables.iter().find(of).is_some_and(|table| table.fate() != Fate::Stay)
    };
    let mut body = begun.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.remove(facts::RESUMED_WITH);
        fields.remove(abandonment::DECIDED);
        if let Some(taken) = fields.get_mut("taken").and_then(Value::as_array_mut) {
            taken.retain(|step| !is_about_a_table(step) || goes(step));
            let count = taken.len();
            fields.insert("steps".to_owned(), count.into());
        }
    }
    body
}
