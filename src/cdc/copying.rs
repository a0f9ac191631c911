//! Which round comes next for a slice, and what it waits for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::borders::{Job, JobExtent, next_ranges};
use super::copy::{Copied, Report, WorkerSessions};
use super::engine::Engine;
use super::error::MirrorError;
use super::headroom::{CURRENT_BYTES, Pressure};
use super::round::{self, RoundEnd, RoundPlan, RoundSessions};
use super::source;
use super::start::open;
use super::table::{TableRun, expected_rows};
use crate::failpoint;
use crate::failpoint::hooks::{Hooks, Mutant};
use crate::journal::copies::{self, Extent, PieceRow, TableState};
use crate::journal::streams::StreamOf;
use crate::landing::ring::Ring;
use crate::lsn::Lsn;
use crate::postgres::connect::Session;
use crate::snapshot::{FullXid, Snapshot};
use crate::words;

/// What a round of key ranges should take: short enough that the stream, which stands still meanwhile, stays close.
const ROUND_TARGET: Duration = Duration::from_secs(2);
/// Rows per range at the start, before the speed is known.
pub(crate) const ROWS_PER_RANGE_FIRST: u64 = 50_000;
/// Bounds of the adaptive size: below, the round's own cost dominates; above, a lost range costs too much.
const ROWS_PER_RANGE: (u64, u64) = (2_000, 2_000_000);
/// Small tables that are copied whole share a round up to so many rows.
const SMALL_ROUND_ROWS: u64 = 50_000;
/// So many small tables take one worker about as long as the two sessions of another worker take to open.
const SMALL_TABLES_PER_WORKER: usize = 4;
/// How often the barrier is looked at.
const BARRIER_EVERY: Duration = Duration::from_millis(20);
/// From when on the operator is told what the barrier waits for.
const BARRIER_TELL_AFTER: Duration = Duration::from_secs(2);

/// Whether snapshots may be trusted with what the stream delivered.
#[derive(Debug, Clone, Copy)]
enum Trust {
    /// Delivered transactions are not remembered.
    Unknown,
    /// They are remembered since this transaction id was taken, and everything before it must end first.
    Waiting { barrier: FullXid, since: Instant, asked: Instant },
    /// Everything older has ended.
    Passed,
}

/// The state of a slice's copying.
#[derive(Debug)]
pub(crate) struct Copying {
    ring: Ring,
    trust: Trust,
    /// Position that the stream has to pass before the next round.
    last_round: Lsn,
    rows_per_range: u64,
    adaptive: bool,
    same_major: bool,
    workers: Vec<WorkerSessions>,
    exporter: Option<Session>,
    waiting: Option<String>,
    /// Of the stream.
    slot: String,
}

impl Copying {
    pub(crate) fn new(slot: &str, rows_per_range: Option<u64>, same_major: bool) -> Self {
        Self {
            ring: Ring::default(),
            trust: Trust::Unknown,
            last_round: Lsn::ZERO,
            rows_per_range: rows_per_range.unwrap_or(ROWS_PER_RANGE_FIRST),
            adaptive: rows_per_range.is_none(),
            same_major,
            workers: Vec::new(),
            exporter: None,
            waiting: None,
            slot: slot.to_owned(),
        }
    }

    fn table(&self, run: &TableRun) -> Copied {
        let binary = self.same_major && run.written.columns.iter().all(|column| column.binary);
        Copied { label: run.label.clone(), mapping: Arc::clone(&run.mapping), binary, kept: run.kept }
    }

    /// The stream delivered the commit of `xid`, with changes in it.
    pub(crate) fn consume(&mut self, xid: u32) {
        match self.trust {
            Trust::Unknown => {}
            Trust::Waiting { .. } | Trust::Passed => self.ring.consume(xid),
        }
    }

    /// The next round waits for a position that is decided about but not durable yet.
    pub(crate) fn awaits(&self, applied: Lsn, consumed: Lsn) -> bool {
        applied < self.last_round && self.last_round <= consumed
    }

    /// Whether rows may be read under a snapshot: it sees all that was delivered (R1). Only once the barrier is passed.
    pub(crate) fn trusts(&mut self, snapshot: &Snapshot, hooks: &Hooks) -> bool {
        self.ring.prune(snapshot) || hooks.mutant(Mutant::NoR1)
    }

    /// What the next round waits for, in words.
    pub(crate) fn waits_for(&self) -> Option<String> {
        self.waiting.clone()
    }

    /// Nothing is left to copy: lets go of sessions and memory.
    fn rest(&mut self) {
        self.ring.clear();
        self.trust = Trust::Unknown;
        self.workers.clear();
        self.exporter = None;
        self.waiting = None;
    }

    /// Every transaction that began before the barrier has ended.
    pub(crate) async fn barrier_passed(
        &mut self,
        session: &Session,
        hooks: &Hooks,
    ) -> Result<bool, MirrorError> {
        let now = Instant::now();
        match self.trust {
            Trust::Passed => return Ok(true),
            Trust::Unknown if hooks.mutant(Mutant::NoBarrier) => {
                self.trust = Trust::Passed;
                return Ok(true);
            }
            Trust::Unknown => {
                // Whatever was delivered so far has a lower id than this, so the wait covers it.
                let barrier = source::take_barrier(session).await?;
                self.trust = Trust::Waiting { barrier, since: now, asked: now };
            }
            Trust::Waiting { asked, .. } if now.duration_since(asked) < BARRIER_EVERY => return Ok(false),
            Trust::Waiting { .. } => {}
        }
        let Trust::Waiting { barrier, since, .. } = self.trust else { return Ok(true) };
        if source::snapshot(session).await?.xmin() > barrier {
            self.trust = Trust::Passed;
            self.waiting = None;
            return Ok(true);
        }
        self.trust = Trust::Waiting { barrier, since, asked: now };
        if since.elapsed() >= BARRIER_TELL_AFTER {
            let who = source::oldest_transaction(session).await?;
            self.waiting = Some(format!(
                "copying and repairs wait for older transactions of the monolith's cluster to end: {who}"
            ));
        }
        Ok(false)
    }

    /// Sizes the next ranges by how long the last round took.
    fn adapt(&mut self, elapsed: Duration) {
        if !self.adaptive {
            return;
        }
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let target_ms = u64::try_from(ROUND_TARGET.as_millis()).unwrap_or(u64::MAX);
        let wanted = self.rows_per_range.saturating_mul(target_ms) / elapsed_ms;
        let (least, most) = ROWS_PER_RANGE;
        // At most doubled or halved at a time: one slow round says little.
        self.rows_per_range =
            wanted.clamp(self.rows_per_range / 2, self.rows_per_range.saturating_mul(2)).clamp(least, most);
    }
}

impl Engine {
    /// Runs the next round when there is one and nothing stands in its way. `true` when one ran.
    pub(crate) async fn copy_next(&mut self, stop: &CancellationToken) -> Result<bool, MirrorError> {
        if !self.tables.iter().any(TableRun::wants_copy) {
            // Repairs need the memory of what was delivered as rounds do.
            if !self.repairs.wanted {
                self.copying.rest();
            }
            return Ok(false);
        }
        if self.applier.applied() < self.copying.last_round {
            return Ok(false);
        }
        let behind = self.assembler.received().bytes_since(self.applier.applied());
        if self.vitals.pressure() >= Pressure::Tight && behind > CURRENT_BYTES {
            self.copying.waiting = Some(format!(
                "copying waits until the stream is current: the monolith holds {} of WAL, and its limit is near",
                words::bytes(self.vitals.held_bytes())
            ));
            return Ok(false);
        }
        if !self.copying.barrier_passed(&self.source, &self.config.options.hooks).await? {
            return Ok(false);
        }
        if !self.config.options.hooks.may("round") {
            return Ok(false);
        }
        let Ok(permit) = Arc::clone(&self.config.rounds).try_acquire_owned() else {
            self.copying.waiting = Some("another slice copies".to_owned());
            return Ok(false);
        };
        self.copying.waiting = None;
        let jobs = self.next_jobs().await?;
        let started = Instant::now();
        let end = self.run_round(&jobs, stop).await?;
        drop(permit);
        match end {
            RoundEnd::Complete => {
                self.copying.adapt(started.elapsed());
                self.complete_wholes(&jobs).await?;
                failpoint::hit("round-ended");
                self.vitals.nudge();
                Ok(true)
            }
            RoundEnd::Stopped => Ok(true),
            RoundEnd::GaveWay => Err(MirrorError::Restart {
                why: "somebody waited for an exclusive lock on a table that was being copied",
            }),
        }
    }

    /// Small whole tables together, else one large one in parts, else ranges of one table.
    async fn next_jobs(&self) -> Result<Vec<Job>, MirrorError> {
        let workers = self.config.options.workers.max(1);
        let small_rows = SMALL_ROUND_ROWS.min(self.copying.rows_per_range);
        let mut jobs = Vec::new();
        let mut rows = 0;
        for (table, run) in
            self.tables.iter().enumerate().filter(|(_, run)| run.wants_copy() && !run.by_ranges)
        {
            let expected = expected_rows(&run.mapping);
            if !jobs.is_empty() && rows + expected > small_rows {
                continue;
            }
            let large = expected > small_rows && !run.mapping.partitioned && !run.kept;
            let parts = if large { u32::try_from(workers).unwrap_or(1) } else { 1 };
            jobs.extend((0..parts).map(|part| Job { table, extent: JobExtent::Part { part, parts } }));
            rows += expected;
            if large {
                return Ok(jobs);
            }
        }
        if !jobs.is_empty() {
            return Ok(jobs);
        }
        for (table, run) in self.tables.iter().enumerate().filter(|(_, run)| run.wants_copy()) {
            let stretches = next_ranges(&self.source, run, self.copying.rows_per_range, workers * 2).await?;
            jobs.extend(
                stretches.into_iter().map(|stretch| Job { table, extent: JobExtent::Range(stretch) }),
            );
            if !jobs.is_empty() {
                break;
            }
        }
        Ok(jobs)
    }

    /// How many workers these jobs keep busy: a handful of small tables is done before a second one has signed in.
    fn busy_workers(&self, jobs: &[Job]) -> usize {
        let workers = self.config.options.workers.max(1);
        let small = |job: &&Job| matches!(job.extent, JobExtent::Part { parts: 1, .. });
        let tables = jobs.iter().filter(small).filter_map(|job| self.tables.get(job.table));
        let rows = usize::try_from(tables.map(|run| expected_rows(&run.mapping)).sum::<u64>());
        let per_worker = usize::try_from(SMALL_ROUND_ROWS).unwrap_or(usize::MAX) / workers;
        let (small, rows) = (jobs.iter().filter(small).count(), rows.unwrap_or(usize::MAX));
        let for_small = small.div_ceil(SMALL_TABLES_PER_WORKER).max(rows / per_worker.max(1));
        (jobs.len() - small).saturating_add(for_small).clamp(1, workers)
    }

    async fn open_round_sessions(&mut self, wanted: usize) -> Result<(), MirrorError> {
        let slice = self.config.mapping.slice.clone();
        while self.copying.workers.len() < wanted {
            let source = open(&self.config.read, &slice).await?;
            let target = open(&self.config.apply, &slice).await?;
            self.copying.workers.push(WorkerSessions::new(source, target, self.applier.claim()).await?);
        }
        if self.copying.exporter.is_none() {
            let exporter = open(&self.config.read, &slice).await?;
            // As for a heartbeat: a standby that is away must not keep a copy.
            let local = exporter.batch_execute("SET synchronous_commit = local").await;
            local.map_err(MirrorError::sql("setting up a round's session"))?;
            self.copying.exporter = Some(exporter);
        }
        Ok(())
    }

    async fn run_round(&mut self, jobs: &[Job], stop: &CancellationToken) -> Result<RoundEnd, MirrorError> {
        let wanted = self.busy_workers(jobs);
        self.open_round_sessions(wanted).await?;
        let plan = RoundPlan {
            claim: self.applier.claim().clone(),
            slot: self.copying.slot.clone(),
            jobs: jobs.to_vec(),
            tables: self.tables.iter().map(|table| self.copying.table(table)).collect(),
            hooks: self.config.options.hooks.clone(),
            recorder: self.config.recorder.clone(),
        };
        let Some(exporter) = self.copying.exporter.take() else { return Ok(RoundEnd::Complete) };
        let workers = std::mem::take(&mut self.copying.workers);
        let watcher = open(&self.config.apply, self.slice()).await?;
        let busy = workers.get(..wanted).unwrap_or(&workers);
        let sessions =
            RoundSessions { exporter: &exporter, source: &self.source, target: &watcher, workers: busy };
        let (sender, mut receiver) = mpsc::channel(256);
        let vitals = Arc::clone(&self.vitals);
        let (board, slice) = (self.config.board.clone(), self.config.mapping.slice.clone());
        let tell = |text: &str| {
            vitals.set_phase("copying", Some(text));
            board.phase(StreamOf::forward(&slice), "copying", Some(text));
        };
        let ring = &mut self.copying.ring;
        let running = async {
            let ended = round::run(&sessions, plan, ring, &sender, stop, &tell).await;
            drop(sender);
            ended
        };
        let tables = &mut self.tables;
        let (shown, seen, name) = (&self.config.board, &self.vitals, &self.config.mapping.slice);
        let collecting = async {
            seen.set_phase("copying", None);
            let mut landed = Ok(());
            while let Some(report) = receiver.recv().await {
                if landed.is_ok() {
                    landed = take_report(tables, report);
                }
                shown.show(StreamOf::forward(name), ("copying", None), tables, seen, 0);
            }
            landed
        };
        let (ended, landed) = join(running, collecting).await;
        landed?;
        let (lsn, end) = ended?;
        if end == RoundEnd::Complete {
            self.copying.last_round = lsn;
            self.copying.workers = workers;
            self.copying.exporter = Some(exporter);
        }
        Ok(end)
    }

    /// Turns the parts of each whole table that a round completed into one piece.
    async fn complete_wholes(&mut self, jobs: &[Job]) -> Result<(), MirrorError> {
        for job in jobs {
            let JobExtent::Part { part: 0, parts } = job.extent else { continue };
            if parts == 1 {
                continue;
            }
            let Some(table) = self.tables.get_mut(job.table) else { continue };
            let Some(round) = table.parts_read.take() else { continue };
            let slice = self.config.mapping.slice.clone();
            let session = self.applier.open_session().await?;
            let found = copies::delete_parts(session, &slice, &table.label).await?;
            if found != u64::from(parts) {
                return Err(MirrorError::Unreadable {
                    what: format!("the parts of {}: {found} of {parts} were there; the table", table.label),
                });
            }
            let piece = PieceRow { extent: Extent::Whole, ..round };
            let rows = i64::try_from(table.rows_copied).unwrap_or(i64::MAX);
            copies::insert_piece(session, &slice, &piece, rows).await?;
            table.add(&piece)?;
            failpoint::hit("whole-before-commit");
            let applied = self.applier.applied();
            self.applier.commit_at(applied, self.consumed.time_us).await?;
            failpoint::hit("whole-landed");
        }
        Ok(())
    }
}

fn take_report(tables: &mut [TableRun], report: Report) -> Result<(), MirrorError> {
    match report {
        Report::Moving { table, bytes } => {
            if let Some(table) = tables.get_mut(table) {
                table.bytes_moving += bytes;
            }
        }
        Report::Landed { table, piece, complete, rows, bytes } => {
            if let Some(table) = tables.get_mut(table) {
                table.rows_copied += rows;
                table.bytes_copied += bytes;
                table.bytes_moving = 0;
                table.state = TableState::Copying;
                if complete {
                    table.add(&piece)?;
                } else {
                    table.parts_read = Some(piece);
                }
            }
        }
    }
    Ok(())
}
