//! The end of a run: its verdict goes into the ledger.

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{Void, voids};
use crate::clock::{Clock, SystemClock};
use crate::journal::JournalError;
use crate::journal::alarms;
use crate::journal::grounds::{self, Ground};
use crate::journal::ledger::{self, Anchored, Author, Head, NewEntry, VERDICT};
use crate::journal::runs::{self, End, Run};
use crate::journal::verdicts;
use crate::postgres::clocks;
use crate::reconcile::finding::FindingKind;
use crate::reconcile::verdict::{Coverage, Outcome, Verdict};
use crate::words;

/// Sessions on the monolith.
#[derive(Debug, Clone, Copy)]
pub struct Monolith<'a> {
    /// Reads catalogs and `strangler.slice`.
    pub read: &'a Client,
    /// May write the monolith's journal: the apply link. Without it the head is owed.
    pub journal: Option<&'a Client>,
}

/// A verdict that is in the ledger.
#[derive(Debug)]
pub struct Concluded {
    /// Its entry.
    pub head: Head,
    /// Whether the monolith's journal has it too. Anything but `Recorded` is to be shown.
    pub anchored: Anchored,
}

/// A verdict could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum ConcludeError {
    /// The service failed, or the entry is too long.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The run was resumed by another process, which will give the verdict.
    #[error("another process has gone on with this run and will give its verdict")]
    Resumed,
}

/// Ends a run with its verdict, both in one transaction on the service, then writes the ledger's head to the
/// monolith. When anything that the run rested on has changed since it began, the verdict is made incomplete first
/// and says what changed; a proven difference stays one. `service` is a session outside any transaction.
///
/// # Errors
/// [`ConcludeError`]; the run can then still be resumed.
pub async fn conclude(
    service: &Client,
    monolith: Monolith<'_>,
    run: &Run,
    verdict: &mut Verdict,
    author: &Author,
) -> Result<Concluded, ConcludeError> {
    if (verdict.plan_hash.as_str(), verdict.epoch) != (run.ground.plan_hash.as_str(), run.ground.epoch) {
        incomplete(verdict, "it was compared through another mapping or epoch than the service has");
    }
    match present(service, monolith.read, &run.slice).await? {
        Ok(now) => demote(verdict, &voids(&run.ground, now.as_ref())),
        Err(error) => {
            tracing::warn!(slice = run.slice, %error, "the monolith could not be asked at the end of a run");
            incomplete(
                verdict,
                "the monolith could not be asked at the end whether its tables are unchanged",
            );
        }
    }
    let failed = || JournalError::database("recording a verdict");
    match clocks::apart_us([service, monolith.read]).await {
        Ok(None) => {}
        Ok(Some(apart)) => {
            let fact = format!("the clock of the machine that compared is {}", clocks::words(apart));
            incomplete(verdict, &format!("{fact}, so nobody would know how old this is"));
        }
        Err(error) => {
            tracing::warn!(slice = run.slice, %error, "the servers could not be asked for their time");
            incomplete(verdict, "whether this machine's clock is right could not be asked");
        }
    }
    verdict.finished_at = words::exact_instant(SystemClock.now_us());
    service.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(failed())?;
    let head = match record(service, run, verdict, author).await {
        Ok(head) => head,
        Err(error) => {
            // When the connection broke there is nothing to roll back; the first error tells the story.
            let _ = service.batch_execute("ROLLBACK").await;
            return Err(error);
        }
    };
    service.batch_execute("COMMIT").await.map_err(failed())?;
    let anchored = ledger::anchor(service, monolith.journal, &verdict.service).await;
    Ok(Concluded { head, anchored })
}

/// What the slice rests on now; the inner error is the monolith's.
async fn present(
    service: &Client,
    monolith: &Client,
    slice: &str,
) -> Result<Result<Option<Ground>, JournalError>, JournalError> {
    let (ground, shapes) = tokio::join!(grounds::service(service, slice), grounds::monolith(monolith, slice));
    let Some(ground) = ground? else { return Ok(Ok(None)) };
    Ok(shapes.map(|shapes| Some(ground.with_monolith(&shapes))))
}

async fn record(
    service: &Client,
    run: &Run,
    verdict: &Verdict,
    author: &Author,
) -> Result<Head, ConcludeError> {
    if !runs::end(service, run, End::Finished).await? {
        return Err(ConcludeError::Resumed);
    }
    if verdict.counts().values().any(|count| *count > 0) {
        runs::end_others(service, run).await?;
    }
    let differs_strictly = match strictly(&run.ground, verdict) {
        Some(known) => known,
        None => verdicts::differs_strictly(service, &verdict.slice).await?,
    };
    let entry = NewEntry {
        kind: VERDICT,
        plan: &verdict.plan,
        slice: Some(&verdict.slice),
        author,
        epoch: Some(verdict.epoch),
        lsn: Some(verdict.lsn),
        plan_hash: Some(&verdict.plan_hash),
        body: &body(run, verdict, differs_strictly),
    };
    if verdict.outcome == Outcome::Clean && is_full(&run.ground, verdict) {
        alarms::clear(service, &verdict.slice, run.ground.disturbances, &author.operator).await?;
    }
    Ok(ledger::append(service, &entry).await?)
}

/// What a ledger entry holds of a verdict: everything but the listed findings, which hold values of rows.
fn body(run: &Run, verdict: &Verdict, differs_strictly: bool) -> Value {
    json!({
        "run": run.id,
        "service": verdict.service,
        "outcome": verdict.outcome,
        "full": is_full(&run.ground, verdict),
        "strict": verdict.strict,
        "differs_strictly": differs_strictly,
        "authority": verdict.authority,
        "from_lsn": verdict.from_lsn,
        "started_at": run.started_at,
        "finished_at": verdict.finished_at,
        "counts": verdict.counts(),
        "reasons": verdict.reasons,
        "tables": verdict.tables,
        "ground": run.ground,
    })
}

/// Whether rows differ by representation, where the verdict can say so: a strict one that found some, or that looked at
/// everything and found none.
fn strictly(ground: &Ground, verdict: &Verdict) -> Option<bool> {
    let differs = verdict.counts().get(&FindingKind::Differs).is_some_and(|count| *count > 0);
    let whole = is_full(ground, verdict)
        && verdict.reasons.is_empty()
        && verdict.tables.iter().all(|table| table.reasons.is_empty());
    (verdict.strict && (differs || whole)).then_some(differs)
}

/// Every row and every reference of every table of the slice was looked at.
fn is_full(ground: &Ground, verdict: &Verdict) -> bool {
    let whole = |name: &String| {
        let mut tables = verdict.tables.iter();
        tables.any(|table| table.coverage == Coverage::Full && table.source_table.to_string() == *name)
    };
    !ground.tables.is_empty() && ground.tables.keys().all(whole)
}

/// Takes from a verdict what it can't say when its ground has moved.
pub(super) fn demote(verdict: &mut Verdict, voids: &[Void]) {
    for void in voids {
        let reason = format!("meanwhile {void}");
        let own = void
            .table()
            .and_then(|name| verdict.tables.iter_mut().find(|table| table.source_table.to_string() == name));
        match own {
            Some(table) => {
                table.outcome = Outcome::of([table.outcome, Outcome::Incomplete]);
                table.reasons.push(reason);
                verdict.outcome = Outcome::of([verdict.outcome, Outcome::Incomplete]);
            }
            None => incomplete(verdict, &reason),
        }
    }
}

fn incomplete(verdict: &mut Verdict, reason: &str) {
    verdict.outcome = Outcome::of([verdict.outcome, Outcome::Incomplete]);
    verdict.reasons.push(reason.to_owned());
}
