//! Looks, and takes the steps, while other verbs are kept away from both databases.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::facts::{self, Facts};
use super::refuse::{self, Asked};
use super::service::Fate;
use super::{AbandonError, Done, Job, Step, StepKind, design, lacking, lost};
use crate::failpoint;
use crate::journal::ledger::{self, ABANDON, NewEntry, steps};
use crate::journal::migrate::Form;
use crate::journal::{abandonment, runs};
use crate::plan::Approval;
use crate::postgres::connect::idle_limit;
use crate::postgres::sqlstate;
use crate::problem::Problem;
use crate::provision::{self, Database};
use crate::retire::shown;

/// How every step begins. Definitions that are put back come with qualified names, so no other path must be able to capture them;
/// whoever locks a table for longer is at work with it; and a process that was frozen must not hold readers of a table.
pub(super) fn begin() -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL search_path = pg_catalog; SET LOCAL lock_timeout = {LOCK_MS}; {}",
        idle_limit()
    )
}

/// How long a step waits for one lock, in milliseconds.
const LOCK_MS: u32 = 10_000;

/// How long the monolith's tables are waited for, in milliseconds: meanwhile the service's transaction stands still, and is not to be taken for
/// one of a process that was frozen.
const HOLD_MS: u32 = 500;

/// Takes the slice back, where that is still what `confirm` names; without `confirm` it only says what it would do. A run that died is
/// gone on with by its own token, and by the one that is shown now.
///
/// # Errors
/// [`AbandonError::Refused`] where something stands in the way, [`AbandonError::Changed`] where something else would be done than was
/// confirmed. [`AbandonError`]; steps that were taken stay, and the same command goes on behind them.
pub async fn run(job: Job<'_>, confirm: Option<&str>) -> Result<Done, AbandonError> {
    provision::lock(job.databases).await?;
    let done = Box::pin(locked(job, confirm)).await;
    provision::unlock(job.databases).await;
    done
}

async fn locked(job: Job<'_>, confirm: Option<&str>) -> Result<Done, AbandonError> {
    // Tables are read as well, and somebody may be at work with one.
    let limit = format!("SET lock_timeout = {LOCK_MS}");
    for client in [&job.databases.monolith, facts::service_of(job)?] {
        client
            .batch_execute(&limit)
            .await
            .map_err(AbandonError::database("how long locks are waited for"))?;
    }
    let facts = facts::gather(job).await?;
    let mut problems = refuse::problems(&facts, asked(job));
    if problems.is_empty() {
        problems.extend(compared(job, &facts).await?);
    }
    if !problems.is_empty() {
        return Err(AbandonError::Refused { problems });
    }
    lacking::note(facts::service_of(job)?, job.slice, &facts.lacks).await?;
    let bare = design::steps(&facts, job, ("", &Value::Null));
    let body = design::body(&facts, job, &bare);
    let token = token(&facts.life, &bare);
    let steps = design::steps(&facts, job, (&token, &body));
    let mut done = Done {
        token,
        problems: lost::problems(&facts, job),
        resumed: facts.begun.is_some(),
        drop_ledger: facts.drop_ledger,
        names: facts.names.clone(),
        steps,
    };
    let Some(confirm) = confirm.filter(|_| !done.steps.is_empty()) else { return Ok(done) };
    let begun = facts.begun.as_ref().map(|begun| begun.token.as_str());
    if confirm != done.token && Some(confirm) != begun {
        return Err(AbandonError::Changed { slice: job.slice.to_owned(), begun: begun.is_some() });
    }
    let away = take_all(job, &done, (facts, &body)).await?;
    done.problems.extend(lost::could_not_put_back(job, &away));
    Ok(done)
}

/// Steps of a run: each kind is taken once, and the slot again where a mirror that was frozen has made it meanwhile.
const STEPS_MAX: usize = 12;

/// Takes what was shown. Each step may wait, for a lock or for the network, so before each all is asked again: what would be done now must
/// still be what was shown. Returns what could not be put back.
async fn take_all(
    job: Job<'_>,
    shown: &Done,
    (mut facts, body): (Facts, &Value),
) -> Result<Vec<String>, AbandonError> {
    for _ in 0..STEPS_MAX {
        let left = design::steps(&facts, job, (&shown.token, body));
        let Some(step) = left.into_iter().next() else { return Ok(Vec::new()) };
        if step.kind != StepKind::Slot && !shown.steps.contains(&step) {
            break;
        }
        let away = take(job, &step, (&facts, body)).await?;
        if step.kind == StepKind::Service {
            return Ok(away);
        }
        // A mirror that began at the same moment as the first step has registered before it looked, and is seen now.
        facts = facts::gather(job).await?;
        let problems = refuse::problems(&facts, asked(job));
        if !problems.is_empty() {
            return Err(AbandonError::Refused { problems });
        }
        lacking::note(facts::service_of(job)?, job.slice, &facts.lacks).await?;
    }
    Err(AbandonError::Changed { slice: job.slice.to_owned(), begun: true })
}

fn asked(job: Job<'_>) -> Asked<'_> {
    let policy = job.plan.slices.get(job.slice).map_or(&job.plan.policy, |slice| &slice.policy);
    let not_approved = policy.approval == Approval::Required && job.approved_by.is_none();
    Asked { slice: job.slice, service: job.service, not_approved }
}

/// A comparison that is at work. Its lock is ours from then on, until the session ends.
async fn compared(job: Job<'_>, facts: &Facts) -> Result<Option<Problem>, AbandonError> {
    if facts.service.form != Form::Current || facts.service.row.is_none() {
        return Ok(None);
    }
    let runs::Lock::Held(holder) = runs::lock(facts::service_of(job)?, job.slice).await? else {
        return Ok(None);
    };
    let who = holder.map_or_else(String::new, |holder| {
        format!(" by {} as process {}, since {}", holder.author.operator, holder.pid, holder.started_at)
    });
    Ok(Some(
        Problem::error("comparison-runs", format!("slice {}", job.slice))
            .fact(format!("it is being compared{who}"))
            .consequence("its verdict would be about what is not there any more")
            .next("wait until it has ended, or end it; then type the same command again"),
    ))
}

/// Names exactly what is done: every statement, but for what names the token itself; and to which life of the slice, so that what was
/// confirmed for one is nothing for the next.
fn token(life: &str, steps: &[Step]) -> String {
    let text: String = std::iter::once(life.to_owned()).chain(steps.iter().map(Step::text)).collect();
    shown(&Sha256::digest(text.as_bytes()))
}

impl StepKind {
    /// The kill point behind it.
    fn point(self) -> &'static str {
        match self {
            Self::Begin => "abandon-begun",
            Self::Copies => "abandon-copies-taken",
            Self::Slot => "abandon-slot-dropped",
            Self::Monolith => "abandon-monolith-cleared",
            Self::Schema => "abandon-schema-dropped",
            Self::Service => "abandon-service-cleared",
        }
    }
}

/// Takes one step; it is kept as a whole or not at all. Returns what could not be put back.
async fn take(job: Job<'_>, step: &Step, told: (&Facts, &Value)) -> Result<Vec<String>, AbandonError> {
    let admin = match &step.database {
        Database::Monolith => &job.databases.monolith,
        Database::Service(_) => facts::service_of(job)?,
    };
    if step.kind == StepKind::Slot {
        for sql in &step.statements {
            job.slots.batch_execute(sql).await.map_err(failed(step, sql))?;
        }
        failpoint::hit(step.kind.point());
        return Ok(Vec::new());
    }
    let entry = if step.tells() { Some(told_of(admin, job, told).await?) } else { None };
    let taken = transact(admin, job, step, (entry.as_ref(), told.0)).await;
    if step.kind == StepKind::Copies {
        // Nothing was done there. Where the connection broke, whoever asks next says so.
        let _ = job.databases.monolith.batch_execute("ROLLBACK").await;
    }
    let away = match taken {
        Ok(away) => away,
        Err(error) => return Err(undone(admin, (job, step), (error, told.0)).await),
    };
    failpoint::hit(step.kind.point());
    if step.tells() {
        let monolith = Some(&job.databases.monolith);
        let anchored = ledger::anchor(admin, monolith, job.service).await;
        tracing::debug!(service = job.service, ?anchored, "the ledger's head");
    }
    Ok(away)
}

/// Holds the monolith's tables, whose copies are to go, as they are until the copies are gone: nobody drops, exchanges or empties one
/// meanwhile with anything but DELETE. What was found of them is asked once more behind that. The copies are locked before, so that nobody
/// is held for as long as those are waited for; whoever calls it ends the transaction there.
async fn hold(job: Job<'_>, step: &Step, facts: &Facts) -> Result<(), AbandonError> {
    let monolith = &job.databases.monolith;
    let begin =
        format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {HOLD_MS}; {}", idle_limit());
    monolith.batch_execute(&begin).await.map_err(failed(step, &begin))?;
    let going = facts.in_service.tables.iter().filter(|table| table.fate() != Fate::Stay);
    let names: Vec<String> =
        going.filter_map(|table| Some(facts.sources.names.get(&table.name.to_string())?.sql())).collect();
    if !names.is_empty() {
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        if let Err(source) = monolith.batch_execute(&lock).await {
            return Err(not_held(job, (step, &lock), (source, &names)).await);
        }
    }
    if facts::is_as_before(job, facts).await? {
        return Ok(());
    }
    Err(AbandonError::Changed { slice: job.slice.to_owned(), begun: true })
}

async fn not_held(
    job: Job<'_>,
    (step, lock): (&Step, &str),
    (source, names): (tokio_postgres::Error, &[String]),
) -> AbandonError {
    if sqlstate::is_undefined_table(&source) {
        return AbandonError::Changed { slice: job.slice.to_owned(), begun: true };
    }
    if !sqlstate::is_lock_timeout(&source) {
        return failed(step, lock)(source);
    }
    let _ = job.databases.monolith.batch_execute("ROLLBACK").await;
    let holder = abandonment::holder(&job.databases.monolith, names).await.ok().flatten();
    let who = holder.unwrap_or_else(|| JUST_ENDED.to_owned());
    AbandonError::Waited {
        database: Database::Monolith,
        purpose: step.purpose,
        object: step.object.clone(),
        who,
        source,
    }
}

/// Whoever held a lock that was waited for in vain, where nobody is seen to hold it any more.
pub(super) const JUST_ENDED: &str = "a session that has just ended";

/// Rolls a step back, and says why it failed.
async fn undone(
    admin: &Client,
    (job, step): (Job<'_>, &Step),
    (error, facts): (AbandonError, &Facts),
) -> AbandonError {
    // When the connection broke there is nothing to roll back; the first error tells the story.
    let _ = admin.batch_execute("ROLLBACK").await;
    if step.kind == StepKind::Copies && has_lost_its_proof(&error) {
        return AbandonError::Changed { slice: job.slice.to_owned(), begun: true };
    }
    waited_for(admin, step, (error, facts)).await
}

/// Behind the locks it was found that rows need not be the mirror's: the preview says which, and why.
fn has_lost_its_proof(error: &AbandonError) -> bool {
    let AbandonError::Step { source, .. } = error else { return false };
    source.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
}

/// Says who was waited for in vain: a frozen mirror, for example, whose transaction is open.
async fn waited_for(admin: &Client, step: &Step, (error, facts): (AbandonError, &Facts)) -> AbandonError {
    let AbandonError::Step { database, purpose, object, sql, source } = error else { return error };
    if !sqlstate::is_lock_timeout(&source) {
        return AbandonError::Step { database, purpose, object, sql, source };
    }
    let tables: Vec<String> = match step.kind {
        StepKind::Copies | StepKind::Service => {
            facts.in_service.tables.iter().map(|table| table.name.sql()).collect()
        }
        StepKind::Begin | StepKind::Slot | StepKind::Monolith | StepKind::Schema => Vec::new(),
    };
    let holder = abandonment::holder(admin, &tables).await.ok().flatten();
    let who = holder.unwrap_or_else(|| JUST_ENDED.to_owned());
    AbandonError::Waited { database, purpose, object, who, source }
}

fn failed<'a>(step: &'a Step, sql: &'a str) -> impl FnOnce(tokio_postgres::Error) -> AbandonError + 'a {
    move |source| AbandonError::Step {
        database: step.database.clone(),
        purpose: step.purpose,
        object: step.object.clone(),
        sql: crate::words::one_line(sql, 400),
        source,
    }
}

async fn transact(
    admin: &Client,
    job: Job<'_>,
    step: &Step,
    (entry, facts): (Option<&(Option<i64>, Value)>, &Facts),
) -> Result<Vec<String>, AbandonError> {
    let begin = begin();
    admin.batch_execute(&begin).await.map_err(failed(step, &begin))?;
    let puts_back = step.kind == StepKind::Service;
    let before = if puts_back { abandonment::last_entry(admin).await? } else { 0 };
    let mut away = Vec::new();
    let proof = (step.kind == StepKind::Copies).then(|| facts.in_service.proof(job.slice));
    for sql in &step.statements {
        if puts_back && *sql == abandonment::drop_schema(true) {
            // What is written down of it goes with the schema.
            away = abandonment::stays_away(admin, job.slice, before).await?;
        }
        admin.batch_execute(sql).await.map_err(failed(step, sql))?;
        if proof.as_ref() == Some(sql) {
            hold(job, step, facts).await?;
        }
    }
    if proof.is_some_and(|proof| step.statements.contains(&proof)) {
        // A session that stood still for too long was ended, and holds nothing any more.
        let still = "SELECT 1";
        job.databases.monolith.batch_execute(still).await.map_err(failed(step, still))?;
    }
    if puts_back && step.told {
        away = abandonment::stays_away(admin, job.slice, before).await?;
    }
    if let Some((epoch, body)) = entry {
        tell(admin, job, (*epoch, body)).await?;
    }
    admin.batch_execute("COMMIT").await.map_err(failed(step, "COMMIT"))?;
    Ok(away)
}

/// What the ledger is told, and the epoch: asked before the transaction that tells it, which holds locks.
async fn told_of(
    service: &Client,
    job: Job<'_>,
    (facts, body): (&Facts, &Value),
) -> Result<(Option<i64>, Value), AbandonError> {
    let begun = facts.begun.as_ref().map_or(body, |begun| &begun.body);
    let monolith = &job.databases.monolith;
    let there = crate::journal::migrate::form(monolith).await? == Form::Current;
    let mut body = design::told(begun, facts);
    if let Some(fields) = body.as_object_mut() {
        let known = steps::all_told(service, there.then_some(monolith)).await?;
        fields.insert("journal".to_owned(), known);
        fields.insert("resumed".to_owned(), json!(facts.begun.is_some()));
    }
    let gate = facts.service.gate.as_ref().or(facts.monolith.gate.as_ref());
    Ok((gate.map(|gate| gate.epoch), body))
}

/// Appends the entry, in the transaction in which the last of the slice goes.
async fn tell(
    service: &Client,
    job: Job<'_>,
    (epoch, body): (Option<i64>, &Value),
) -> Result<(), AbandonError> {
    let entry = NewEntry {
        kind: ABANDON,
        plan: &job.plan.name,
        slice: Some(job.slice),
        author: job.author,
        epoch,
        lsn: None,
        plan_hash: None,
        body,
    };
    ledger::append(service, &entry).await?;
    Ok(())
}
