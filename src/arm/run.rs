//! Takes the steps.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::design::{ApplyLogins, design};
use super::patience::{self, Patience, Stopped, TOLD_EVERY};
use super::slot::{self, Made};
use super::survey::survey;
use super::withdraw::DISARM_RECORDED;
use super::{ArmError, Design, Event, KeyNamed, Locks, Outcome, Step, Unproven, Verb, Work};
use crate::failpoint;
use crate::journal::arming;
use crate::journal::ledger::Author;
use crate::mapping::Mappings;
use crate::name::{TableName, quote_literal};
use crate::plan::Plan;
use crate::postgres::{Server, sqlstate};
use crate::provision::{self, Database, Databases, Statement};

/// Rounds of looking and doing. One is enough, but for what shows only afterwards; more mean that somebody else changes
/// the same things.
const ROUNDS: u32 = 4;

/// What a run works with.
pub struct Hands<'a> {
    /// Connections with the admin links.
    pub databases: &'a Databases,
    /// The services' admin links, for replication connections.
    pub services: &'a BTreeMap<String, Server>,
    /// The monolith's admin link for proofs of foreign keys, over which an answer may be owed for as long as one takes.
    pub proofs: &'a Server,
    /// Roles of the services' apply links.
    pub logins: &'a ApplyLogins,
    /// How long one step may wait.
    pub patience: Patience,
    /// Who, for the ledger.
    pub author: &'a Author,
}

impl std::fmt::Debug for Hands<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hands").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// Surveys and designs, without changing anything: what `--dry-run` shows. `only` names the slices; empty means all.
///
/// # Errors
/// [`ArmError::Survey`], [`ArmError::Journal`], [`ArmError::Read`], [`ArmError::Slot`].
pub async fn prepare(
    plan: &Plan,
    verb: Verb,
    only: &[String],
    hands: &Hands<'_>,
) -> Result<Design, ArmError> {
    let survey = survey(plan, only, hands.databases).await?;
    Ok(design(plan, verb, only, &survey, hands.logins))
}

/// Does what [`prepare`] shows, step by step, while it keeps other verbs away, and tells the ledgers.
///
/// # Errors
/// [`ArmError`]. Committed steps stay.
pub async fn run(
    plan: &Plan,
    verb: Verb,
    only: &[String],
    hands: &Hands<'_>,
    report: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<Outcome, ArmError> {
    provision::lock(hands.databases).await?;
    let outcome = match rounds(plan, verb, only, hands, report).await {
        Ok((outcome, mappings)) => {
            failpoint::hit("steps-taken");
            let run = provision::Run { plan, verb: verb.as_str(), only, author: hands.author };
            let recorded = provision::record(hands.databases, run, &mappings).await;
            recorded.map(|()| outcome).map_err(ArmError::from)
        }
        Err(error) => Err(error),
    };
    provision::unlock(hands.databases).await;
    outcome
}

async fn rounds(
    plan: &Plan,
    verb: Verb,
    only: &[String],
    hands: &Hands<'_>,
    report: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(Outcome, Mappings), ArmError> {
    let mut outcome = Outcome::default();
    let mut tried: BTreeSet<(TableName, String)> = BTreeSet::new();
    for round in 0..ROUNDS {
        let survey = survey(plan, only, hands.databases).await?;
        let mut design = design(plan, verb, only, &survey, hands.logins);
        if design.refusals().next().is_some() {
            return Err(ArmError::Refused { verb: verb.as_str(), problems: design.problems });
        }
        design.steps.retain(|step| match &step.work {
            Work::Prove { key, .. } => !tried.contains(&(key.child.clone(), key.name.clone())),
            Work::Sql { .. } | Work::CreateSlot { .. } | Work::DropSlot { .. } | Work::Start { .. } => {
                !is_too_early(step, &outcome.unproven)
            }
        });
        outcome.problems.extend(design.problems);
        if round == 0 && !design.steps.is_empty() {
            // What a run that was killed has left to tell comes before what this one does.
            let run = provision::Run { plan, verb: verb.as_str(), only, author: hands.author };
            provision::record(hands.databases, run, &survey.mappings).await?;
        }
        if design.steps.is_empty() {
            outcome.problems.sort();
            outcome.problems.dedup();
            return Ok((outcome, survey.mappings));
        }
        let total = design.steps.len();
        let mut made: BTreeMap<String, Made> = BTreeMap::new();
        for (step, number) in design.steps.iter().zip(1..) {
            if is_too_early(step, &outcome.unproven) {
                continue;
            }
            report(Event::Started { number, total, step });
            if let Work::Prove { key, .. } = &step.work {
                tried.insert((key.child.clone(), key.name.clone()));
            }
            let unproven = take(hands, step, &mut made, report).await?;
            outcome.unproven.extend(unproven);
            outcome.steps += 1;
        }
    }
    let again = prepare(plan, verb, only, hands).await?.steps.into_iter().next();
    Err(ArmError::Restless { object: again.map_or_else(|| "something".to_owned(), |step| step.object) })
}

/// A slice one of whose keys is not proven is not disarmed yet, and `status` has to say so.
fn is_too_early(step: &Step, unproven: &[Unproven]) -> bool {
    step.point == DISARM_RECORDED && unproven.iter().any(|one| one.slice == step.slice)
}

/// Takes one step; it is kept as a whole or not at all.
async fn take(
    hands: &Hands<'_>,
    step: &Step,
    made: &mut BTreeMap<String, Made>,
    report: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<Option<Unproven>, ArmError> {
    let client = hands
        .databases
        .get(&step.database)
        .ok_or_else(|| provision::ProvisionError::NoConnection { database: step.database.clone() })?;
    match &step.work {
        Work::Sql { before, locks, statements } => {
            transact(client, step, (before, locks.as_ref(), statements), hands.patience, report).await?;
        }
        Work::Prove { locks, statements, key } => {
            let unproven = prove((hands, client), step, (locks, statements, key), report).await?;
            if unproven.is_some() {
                return Ok(unproven);
            }
        }
        Work::CreateSlot { slot, .. } => {
            let Database::Service(name) = &step.database else { return Ok(None) };
            let server = hands
                .services
                .get(name)
                .ok_or_else(|| provision::ProvisionError::NoConnection { database: step.database.clone() })?;
            let mut tell = |words: &str| report(Event::Waiting(words));
            let new = slot::create((client, server), (step, slot), hands.patience, &mut tell).await?;
            made.insert(slot.clone(), new);
        }
        Work::DropSlot { slot } => slot::remove(client, &step.database, slot).await?,
        Work::Start { slot, entry } => start(client, step, (slot, entry), made).await?,
    }
    failpoint::hit(step.point);
    Ok(None)
}

/// Proves a foreign key in a session of its own: with large tables that takes hours, and nobody knows how many. That the server
/// still answers is seen by the other session.
async fn prove(
    (hands, watching): (&Hands<'_>, &Client),
    step: &Step,
    (locks, statements, key): (&Locks, &[Statement], &KeyNamed),
    report: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<Option<Unproven>, ArmError> {
    let proving = async {
        let session = hands.proofs.connect("strangler disarm").await?;
        match transact(&session, step, (&[], Some(locks), statements), hands.patience, report).await {
            Err(ArmError::Step { source, .. }) if sqlstate::code(&source) == Some("23503") => {
                Ok(Some(count(&session, step, key).await))
            }
            other => other.map(|()| None),
        }
    };
    tokio::select! {
        proven = proving => proven,
        source = silence(watching) => Err(failed(step, source)),
    }
}

/// Asks a server from time to time whether it still answers, and ends when it does not.
async fn silence(client: &Client) -> tokio_postgres::Error {
    loop {
        tokio::time::sleep(TOLD_EVERY).await;
        if let Err(error) = client.batch_execute("").await {
            return error;
        }
    }
}

fn failed(step: &Step, source: tokio_postgres::Error) -> ArmError {
    let (database, object) = (step.database.clone(), step.object.clone());
    ArmError::Step { database, purpose: step.purpose, object, source }
}

async fn transact(
    client: &Client,
    step: &Step,
    (before, locks, statements): (&[Statement], Option<&Locks>, &[Statement]),
    patience: Patience,
    report: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(), ArmError> {
    let before: Vec<&str> = before.iter().map(Statement::sql).collect();
    let statements: Vec<&str> = statements.iter().map(Statement::sql).collect();
    let mut tell = |words: &str| report(Event::Waiting(words));
    let outcome = patience::transact(client, (&before, locks, &statements), patience, &mut tell).await;
    let Err(stopped) = outcome else { return Ok(()) };
    Err(match stopped {
        Stopped::Failed(source) => failed(step, source),
        Stopped::Over(holder) => {
            let next = holder.as_ref().map_or_else(String::new, |holder| end_holder(step, holder));
            ArmError::Waited {
                database: step.database.clone(),
                purpose: step.purpose,
                object: step.object.clone(),
                seconds: patience.total.as_secs(),
                who: holder
                    .map_or_else(|| "its locks were always busy".to_owned(), |holder| holder.to_string()),
                next,
            }
        }
    })
}

fn end_holder(step: &Step, holder: &patience::Holder) -> String {
    let verb = "type the same command again, with a longer --wait if need be";
    match holder.pid {
        None => format!("COMMIT PREPARED or ROLLBACK PREPARED it; then {verb}"),
        Some(_) if holder.vacuum => format!("let it finish; then {verb}"),
        Some(pid) => format!(
            "let it end, or end it on the {}: SELECT pg_terminate_backend({pid}); then {verb}",
            step.database
        ),
    }
}

/// Notes where the slot starts, in the state in which the row was written for it, and that it was made.
async fn start(
    client: &Client,
    step: &Step,
    (slot, entry): (&str, &Statement),
    made: &BTreeMap<String, Made>,
) -> Result<(), ArmError> {
    let Some(new) = made.get(slot) else {
        return Err(ArmError::Restless { object: format!("the reverse slot {slot}") });
    };
    let position = quote_literal(&new.start.to_string());
    let start = arming::start_reverse(&step.slice, slot, &position, &new.timeline.to_string());
    for sql in ["BEGIN", &start, entry.sql(), "COMMIT"] {
        if let Err(source) = client.batch_execute(sql).await {
            // When the connection broke there is nothing to roll back; the first error tells the story.
            let _ = client.batch_execute("ROLLBACK").await;
            return Err(failed(step, source));
        }
    }
    Ok(())
}

/// How many rows contradict a foreign key. What can't be counted is said to be unknown: the key's state is what matters.
async fn count(client: &Client, step: &Step, key: &KeyNamed) -> Unproven {
    let mut orphans = None;
    if let Some(from) = &key.orphans_sql {
        let counted = client.query_typed_one(&format!("SELECT count(*) {from}"), &[]).await;
        orphans = counted.ok().map(|row| row.get(0));
    }
    Unproven { slice: step.slice.clone(), key: key.clone(), orphans }
}
