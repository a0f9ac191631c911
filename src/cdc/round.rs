//! A round: one snapshot, and the pieces copied under it. The stream stands still at P while it runs.
//!
//! The order of the steps is the safety of it (`docs/protocol.md`, "Landing"): every worker locks the round's tables
//! before the snapshot exists, because TRUNCATE and rewriting ALTER TABLE don't respect snapshots; the snapshot is
//! used only if it sees every transaction that the stream has delivered; the WAL position is read after it.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::borders::{Job, JobExtent};
use super::copy::{Copied, Report, RoundWork, WorkerSessions, work};
use super::error::MirrorError;
use super::lineage;
use super::record::Recorder;
use super::source;
use crate::failpoint;
use crate::failpoint::hooks::{Hooks, Mutant};
use crate::journal::claims::Claim;
use crate::journal::{self, streams};
use crate::landing::ring::Ring;
use crate::lsn::Lsn;
use crate::postgres::connect::Session;
use crate::postgres::sqlstate;

/// Wait for a table lock before all workers let go and try again: writers queue behind a waiting exclusive lock,
/// which in turn queues behind nothing of ours for longer than this.
const LOCK_TIMEOUT_MS: u32 = 200;
/// Pause between attempts at locks or at a snapshot, doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How often a running round looks for a successor and for writers that wait behind its locks.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// How a round ended. In every case what has landed is landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundEnd {
    /// All jobs are done.
    Complete,
    /// Somebody waited for an exclusive lock on one of its tables.
    GaveWay,
    /// The operator asked to stop.
    Stopped,
}

/// The sessions of a round.
#[derive(Debug)]
pub struct RoundSessions<'a> {
    /// Exports the snapshot, and marks the source before; takes no lock, and its commits wait for no standby.
    pub exporter: &'a Session,
    /// Reads positions and locks while the round runs.
    pub source: &'a Session,
    /// Reads the nonce on the service.
    pub target: &'a Session,
    /// One per worker.
    pub workers: &'a [WorkerSessions],
}

/// What a round is to do.
#[derive(Debug)]
pub struct RoundPlan {
    /// Claim at P.
    pub claim: Claim,
    /// Slot of the stream.
    pub slot: String,
    /// Jobs in order.
    pub jobs: Vec<Job>,
    /// All tables of the slice by number.
    pub tables: Vec<Copied>,
    /// What tests change.
    pub hooks: Hooks,
    /// What the ledger is told.
    pub recorder: Recorder,
}

/// Runs a round and returns the WAL position that the stream has to pass, and how it ended.
/// `ring` is pruned by every snapshot taken; `waiting` is called with what the round waits for.
///
/// # Errors
/// [`MirrorError`]; sessions are then in an unknown state and must not be used again.
pub async fn run(
    sessions: &RoundSessions<'_>,
    plan: RoundPlan,
    ring: &mut Ring,
    reports: &mpsc::Sender<Report>,
    stop: &CancellationToken,
    waiting: &(dyn Fn(&str) + Send + Sync),
) -> Result<(Lsn, RoundEnd), MirrorError> {
    plan.hooks.pass("locking").await;
    let names = table_names(&plan);
    let oids = source::table_oids(sessions.source, &names).await?;
    if lock_tables(sessions, &names, (stop, &plan.hooks), waiting).await? == RoundEnd::Stopped {
        return Ok((Lsn::ZERO, RoundEnd::Stopped));
    }
    let of = plan.claim.of();
    let mark = lineage::before_snapshot((sessions.exporter, sessions.target), of, &plan.slot).await?;
    let Some((snapshot, snapshot_name)) =
        export_snapshot(sessions, ring, (&oids, stop, &plan.hooks), waiting).await?
    else {
        close(sessions).await?;
        return Ok((Lsn::ZERO, if stop.is_cancelled() { RoundEnd::Stopped } else { RoundEnd::GaveWay }));
    };
    let lsn = source::insert_position(sessions.source).await?;
    if let Some(mark) = mark {
        journal::lineage::note(sessions.target, of, plan.claim.nonce, (&plan.slot, mark)).await?;
        failpoint::hit("round-marked");
    }
    for worker in sessions.workers {
        worker
            .source
            .batch_execute(&format!("SET TRANSACTION SNAPSHOT '{snapshot_name}'"))
            .await
            .map_err(MirrorError::sql("importing the round's snapshot"))?;
    }
    let pages = count_pages(sessions.source, &plan).await?;
    plan.hooks.pass("snapshot").await;
    let round = RoundWork {
        pages,
        claim: plan.claim.clone(),
        snapshot,
        lsn,
        tables: plan.tables,
        queue: Mutex::new(VecDeque::from(plan.jobs)),
        hooks: plan.hooks,
        recorder: plan.recorder,
    };
    let working = try_join_all(sessions.workers.iter().map(|worker| work(worker, &round, reports)));
    let end = tokio::select! {
        worked = working => { worked?; RoundEnd::Complete }
        watched = watch(sessions, &plan.claim, &oids, stop) => return Ok((lsn, watched?)),
    };
    close(sessions).await?;
    Ok((lsn, end))
}

/// Pages of the tables that are copied in parts, measured once and after the snapshot: every visible row then stands
/// in a page below it or in the last part, which has no upper border. Were each worker to measure for itself, a table
/// that grows meanwhile would have pages between two parts.
async fn count_pages(source: &Session, plan: &RoundPlan) -> Result<HashMap<usize, i64>, MirrorError> {
    let mut pages = HashMap::new();
    for job in &plan.jobs {
        if pages.contains_key(&job.table) || !matches!(job.extent, JobExtent::Part { parts, .. } if parts > 1)
        {
            continue;
        }
        if let Some(table) = plan.tables.get(job.table) {
            pages.insert(job.table, source::pages(source, &table.mapping.source.sql()).await?);
        }
    }
    Ok(pages)
}

fn table_names(plan: &RoundPlan) -> Vec<String> {
    let mut numbers: Vec<usize> = plan.jobs.iter().map(|job| job.table).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
        .iter()
        .filter_map(|number| plan.tables.get(*number))
        .map(|table| table.mapping.source.sql())
        .collect()
}

/// Step 1: every worker holds ACCESS SHARE on every table before any snapshot is taken. LOCK TABLE takes none.
async fn lock_tables(
    sessions: &RoundSessions<'_>,
    names: &[String],
    (stop, hooks): (&CancellationToken, &Hooks),
    waiting: &(dyn Fn(&str) + Send + Sync),
) -> Result<RoundEnd, MirrorError> {
    let mut sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; "
    );
    if !hooks.mutant(Mutant::LateLock) {
        sql.push_str(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")));
    }
    let mut pause = PAUSE_MAX;
    loop {
        let mut timed_out = false;
        for worker in sessions.workers {
            match worker.source.batch_execute(&sql).await {
                Ok(()) => {}
                Err(error) if sqlstate::is_lock_timeout(&error) => {
                    timed_out = true;
                    break;
                }
                Err(error) => return Err(MirrorError::sql("locking the round's tables")(error)),
            }
        }
        if !timed_out {
            return Ok(RoundEnd::Complete);
        }
        close(sessions).await?;
        if stop.is_cancelled() {
            return Ok(RoundEnd::Stopped);
        }
        waiting("a table is locked by somebody else");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Steps 2 and 3: takes snapshots until one sees every transaction that the stream has delivered. There is no limit
/// to the attempts: with a synchronous standby away, a commit can stay invisible for as long as it is away.
/// `None` when the round has to let go meanwhile.
async fn export_snapshot(
    sessions: &RoundSessions<'_>,
    ring: &mut Ring,
    (oids, stop, hooks): (&[u32], &CancellationToken, &Hooks),
    waiting: &(dyn Fn(&str) + Send + Sync),
) -> Result<Option<(String, String)>, MirrorError> {
    let mut pause = PAUSE_FIRST;
    loop {
        let exporter = sessions.exporter;
        exporter
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .map_err(MirrorError::sql("opening a round"))?;
        let snapshot = source::snapshot(exporter).await?;
        if ring.prune(&snapshot) || hooks.mutant(Mutant::NoR1) {
            let row = exporter
                .query_typed_one("SELECT pg_export_snapshot()", &[])
                .await
                .map_err(MirrorError::sql("exporting a snapshot"))?;
            ring.clear();
            let recorded = if hooks.mutant(Mutant::LsnWatermark) {
                // One that sees whatever will happen, so that only positions decide.
                let end = snapshot.extend(0) + (1 << 30);
                format!("{end}:{end}:")
            } else {
                snapshot.to_string()
            };
            return Ok(Some((recorded, row.get(0))));
        }
        exporter.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("giving a snapshot up"))?;
        if stop.is_cancelled() || source::waits_for_exclusive_lock(sessions.source, oids).await? {
            return Ok(None);
        }
        if pause == PAUSE_MAX {
            waiting("a commit is in the log but not visible yet; is a synchronous standby away?");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Returns when the round has to let go before its end: sessions are then in the middle of a COPY and must be dropped.
async fn watch(
    sessions: &RoundSessions<'_>,
    claim: &Claim,
    oids: &[u32],
    stop: &CancellationToken,
) -> Result<RoundEnd, MirrorError> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(RoundEnd::Stopped),
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
        if streams::current_nonce(sessions.target, claim.of()).await? != Some(claim.nonce) {
            return Err(MirrorError::Fenced { slice: claim.slice.clone() });
        }
        if source::waits_for_exclusive_lock(sessions.source, oids).await? {
            return Ok(RoundEnd::GaveWay);
        }
    }
}

/// Step 7: ends the transactions of exporter and workers.
async fn close(sessions: &RoundSessions<'_>) -> Result<(), MirrorError> {
    let all = sessions.workers.iter().map(|worker| &worker.source).chain(std::iter::once(sessions.exporter));
    for session in all {
        session.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("closing a round"))?;
    }
    Ok(())
}
