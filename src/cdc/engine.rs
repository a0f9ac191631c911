//! The engine of one slice: one loop that waits for an event, decides, acts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::apply::{Applier, Divergence, Trouble};
use super::batch::{Batch, BatchLimits, Boundary};
use super::copying::Copying;
use super::error::{MirrorError, Refusal};
use super::finish;
use super::headroom::WalLimits;
use super::meanings;
use super::publication::Published;
use super::pulse::{Pulse, Vitals, heartbeat_number};
use super::record::{Happened, Recorder};
use super::refetch::RefetchSessions;
use super::repair::Repairs;
use super::route::Router;
use super::source::{CANARY_PREFIX, HEARTBEAT_PREFIX, MARKER_PREFIX, marker_is_for, word_for};
use super::start::{self, Both, Standstill};
use super::stream::{Assembler, Event};
use super::table::TableRun;
use super::tripwire::{LOOK_EVERY, Strays, is_canary};
use super::truncate::{self, InVain};
use crate::change::{Relation, TransactionFrame};
use crate::failpoint;
use crate::failpoint::hooks::{Hooks, Mutant};
use crate::journal::claims::{TAG_PREFIX, tag_is_of};
use crate::journal::copies::{self, TableState};
use crate::journal::deferred::DeferredRow;
use crate::journal::streams::{Direction, Mode, StreamOf};
use crate::journal::{baselines, ledger, outside, process, touched};
use crate::landing::key::Key;
use crate::landing::pieces::EventOrigin;
use crate::landing::sets::RowOperation;
use crate::lsn::Lsn;
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::postgres::connect::{Server, Session};
use crate::words::shell_word;

/// How long the loop waits for an event before it looks at the clock and at its stream row.
const TICK: Duration = LOOK_EVERY;
/// Pause between two attempts at repairs that must be done before the stream is read.
const REPAIRED_SOON: Duration = Duration::from_millis(20);
/// A position that only moved over unrelated WAL is made durable this often, so that the monolith can let go of it.
const IDLE_PERSIST_EVERY: Duration = Duration::from_secs(5);

/// How a mirror runs.
#[derive(Debug, Clone)]
pub struct MirrorOptions {
    /// Copy workers per slice.
    pub workers: usize,
    /// Rows per key-range piece; `None` sizes them to a few seconds a round.
    pub rows_per_range: Option<u64>,
    /// Folder of the spill files.
    pub spill_folder: PathBuf,
    /// When a batch is full.
    pub limits: BatchLimits,
    /// Tables to copy again, by the monolith's name.
    pub retry: Vec<TableName>,
    /// Start the slices over with new slots.
    pub rebuild: Option<Rebuild>,
    /// Take over from a mirror that seems to be alive.
    pub take_over: bool,
    /// What tests change in this engine; nothing in other builds.
    pub hooks: Hooks,
}

/// How a slice is started over under a new slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// The rows of the last copy are compared, and copied where they differ.
    Compare,
    /// The tables are emptied, and everything is copied.
    Empty,
}

impl Rebuild {
    /// What is typed for it.
    #[must_use]
    pub fn typed(self) -> &'static str {
        match self {
            Self::Compare => "--rebuild",
            Self::Empty => "--rebuild --empty",
        }
    }
}

/// The links of a slice's way back.
#[derive(Debug, Clone)]
pub struct BackLinks {
    /// The service, for reading.
    pub read: Server,
    /// The monolith, under the apply role.
    pub apply: Server,
    /// The monolith, for ending sessions of an older mirror.
    pub admin: Server,
}

/// Everything that the engine of one direction of a slice is given.
#[derive(Debug, Clone)]
pub struct SliceConfig {
    /// Plan.
    pub plan: String,
    /// Which of the slice's streams.
    pub direction: Direction,
    /// The slice's mapping, from the monolith to the service in both directions.
    pub mapping: Arc<SliceMapping>,
    /// The source, for reading.
    pub read: Server,
    /// The target, under the apply role.
    pub apply: Server,
    /// The target, for deferred indexes and constraints.
    pub admin: Server,
    /// The way back, which runs once the slice is armed; none in a way back itself.
    pub back: Option<BackLinks>,
    /// What the plan says about WAL that the source holds.
    pub wal: WalLimits,
    /// How it runs.
    pub options: Arc<MirrorOptions>,
    /// Rounds that may run at once, over all slices of the process.
    pub rounds: Arc<Semaphore>,
    /// What the operator sees.
    pub board: super::mirror::Board,
    /// What the ledger is told.
    pub recorder: Recorder,
}

impl SliceConfig {
    /// Whose rows are meant.
    #[must_use]
    pub fn of(&self) -> StreamOf<'_> {
        StreamOf { slice: &self.mapping.slice, direction: self.direction }
    }

    /// What the engine of the way back is given; `None` without links for it.
    #[must_use]
    pub fn way_back(&self) -> Option<Self> {
        let BackLinks { read, apply, admin } = self.back.clone()?;
        let recorder = self.recorder.apart();
        Some(Self { direction: Direction::Reverse, read, apply, admin, back: None, recorder, ..self.clone() })
    }
}

/// A running engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: SliceConfig,
    pub(crate) applier: Applier,
    /// On the source, outside transactions.
    pub(crate) source: Session,
    /// On the source, for refetches.
    pub(crate) reader: Session,
    pub(crate) assembler: Assembler,
    pub(crate) router: Router,
    /// The publication as it was at the start; the pulse watches that it stays so.
    pub(crate) publication: String,
    pub(crate) published: Arc<Published>,
    pub(crate) tables: Vec<TableRun>,
    pub(crate) copying: Copying,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) nonce: i64,
    pub(crate) batch: Batch,
    /// The transaction whose events arrive; none between transactions.
    pub(crate) current: Option<EventOrigin>,
    /// It has brought a change so far. PostgreSQL 14 also sends the transactions that have none for us.
    pub(crate) changes: bool,
    /// Everything up to here has been decided about.
    pub(crate) consumed: Boundary,
    pub(crate) persisted_at: Instant,
    /// A heartbeat has been consumed and waits for the commit of what came before it.
    pub(crate) heartbeat: Option<u64>,
    /// A marker of this slice has been consumed: its transaction is committed as soon as it ends.
    pub(crate) marked: bool,
    /// The transaction whose events arrive is the mirror's own, of the other direction.
    pub(crate) tagged: bool,
    /// What the tag of such a transaction ends with: the source's uuid.
    pub(crate) tag_secret: String,
    /// What it did, when it is not and nobody should write where it was made.
    pub(crate) strays: Strays,
    /// It brought a canary of this stream.
    pub(crate) canary: Option<String>,
    /// When the stream row was last looked at.
    pub(crate) looked_at: Instant,
    /// Rows that somebody asked to have read again.
    pub(crate) repairs: Repairs,
    /// When the board was last brought up to date.
    pub(crate) shown_at: Option<Instant>,
    /// Deferred statements were tried since the last table went live.
    pub(crate) finished: bool,
    /// The open transaction holds an entry of the ledger.
    pub(crate) untold: bool,
    /// Why the run before this one stood still, and the position before which: shown until something has come through.
    pub(crate) standstill: Option<(Standstill, Lsn)>,
    /// Attempts of the TRUNCATE that waits for readers of the target, over the runs of this process.
    pub(crate) in_vain: Arc<InVain>,
}

impl Engine {
    /// Runs until it is stopped or can't go on.
    pub(crate) async fn run(mut self, slot: String, stop: &CancellationToken) -> Result<(), MirrorError> {
        let pulse = Pulse {
            slice: self.slice().to_owned(),
            direction: self.config.direction,
            mode: self.applier.claim().mode,
            nonce: self.nonce,
            slot,
            wal: self.wal_limits(),
            read: self.config.read.clone(),
            apply: self.config.apply.clone(),
            mapping: Arc::clone(&self.config.mapping),
            publication: self.publication.clone(),
            published: Arc::clone(&self.published),
            vitals: Arc::clone(&self.vitals),
            recorder: self.config.recorder.clone(),
        };
        let pulse_stop = CancellationToken::new();
        let guard = pulse_stop.clone().drop_guard();
        let beating = tokio::spawn(pulse.run(pulse_stop));
        let vitals = Arc::clone(&self.vitals);
        // Between any two steps, as a kill: a round or a transaction that takes long is what may have filled it.
        let ended = tokio::select! {
            ended = self.follow(stop) => ended,
            () = vitals.overfull() => Err(MirrorError::Overfull),
        };
        drop(guard);
        // The pulse ends by itself within a beat; its sessions must not outlive this run.
        let _ = beating.await;
        match ended {
            // In the middle of a transaction close() leaves it to the next start.
            Ok(()) | Err(MirrorError::Stopped) => Box::pin(self.close()).await,
            Err(error) => Err(error),
        }
    }

    /// A slot is dropped only where the tables are copies, which can be made whole again.
    fn wal_limits(&self) -> WalLimits {
        let claim = self.applier.claim();
        let copies = claim.direction == Direction::Forward && claim.mode == Mode::Apply;
        if copies { self.config.wal } else { self.config.wal.kept() }
    }

    pub(crate) fn slice(&self) -> &str {
        &self.config.mapping.slice
    }

    /// It looks on and writes nothing.
    pub(crate) fn is_tripwire(&self) -> bool {
        self.applier.claim().mode == Mode::Tripwire
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Result<(), MirrorError> {
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            if self.current.is_none() && self.batch.is_idle() {
                self.look().await?;
                self.settle().await?;
                if !self.is_tripwire() && (self.copy_next(stop).await? || self.repair_next().await?) {
                    continue;
                }
                if self.repairs.first && !self.is_tripwire() {
                    tokio::time::sleep(REPAIRED_SOON).await;
                    continue;
                }
            }
            let arrived = self.assembler.try_next()?;
            let event = match arrived {
                Some(event) => Some(event),
                None if self.repairs.is_resting() && self.current.is_none() => {
                    self.commit_batch().await?;
                    self.repairs.rested();
                    continue;
                }
                None => self.wait(stop).await?,
            };
            if let Some(event) = event {
                self.take(event, stop).await?;
            }
        }
    }

    /// The stream has nothing ready: what is complete is committed at once, then waited for.
    async fn wait(&mut self, stop: &CancellationToken) -> Result<Option<Event>, MirrorError> {
        if self.current.is_none() {
            self.commit_batch().await?;
        }
        self.show();
        tokio::select! {
            event = self.assembler.next() => Ok(Some(event?)),
            () = stop.cancelled() => Ok(None),
            () = tokio::time::sleep(TICK) => Ok(None),
        }
    }

    async fn take(&mut self, event: Event, stop: &CancellationToken) -> Result<(), MirrorError> {
        match event {
            Event::Begin(TransactionFrame { xid, commit_lsn, .. }) => {
                self.config.options.hooks.pass("begin").await;
                self.current = Some(EventOrigin { xid, commit_lsn });
                (self.changes, self.tagged) = (false, false);
            }
            // What the mirror itself wrote here comes from the other side, which has it.
            Event::Row { .. } if self.tagged => {}
            Event::Truncate(relations) if self.tagged => self.heard_truncate(&relations).await?,
            Event::Row { relation, change } if is_canary(&relation) => self.canary_row(&relation, &change),
            Event::Row { relation, change } if self.is_tripwire() => {
                self.changes = true;
                self.stray(&relation, &change).await?;
            }
            Event::Truncate(relations) if self.is_tripwire() => {
                self.changes = true;
                self.heard_truncate(&relations).await?;
                self.stray_truncate(&relations).await?;
            }
            Event::Row { relation, change } => {
                let Some(origin) = self.current else { return Ok(()) };
                self.changes = true;
                let sessions = RefetchSessions { reader: &self.reader, position: &self.source, stop };
                self.router
                    .row((&relation, &change), origin, &mut self.tables, &mut self.batch, sessions)
                    .await?;
                if self.batch.is_full(&self.config.options.limits) {
                    self.flush().await?;
                }
            }
            Event::Truncate(relations) => {
                if self.config.direction == Direction::Reverse {
                    self.heard_truncate(&relations).await?;
                }
                self.truncate(&relations).await?;
            }
            Event::Marker { prefix, content } => self.message(&prefix, &content),
            Event::Commit { end, time_us } if self.is_tripwire() => {
                let ended = (self.current.take(), Boundary { end, time_us });
                self.end_watched(ended, stop).await?;
            }
            Event::Commit { end, time_us } => self.end_transaction(Boundary { end, time_us }).await?,
            Event::Idle { wal_end, time_us } => {
                if self.current.is_none() && self.batch.is_idle() && wal_end >= self.consumed.end {
                    self.consumed = Boundary { end: wal_end, time_us };
                }
            }
        }
        Ok(())
    }

    fn message(&mut self, prefix: &str, content: &[u8]) {
        let hooks = &self.config.options.hooks;
        match prefix {
            HEARTBEAT_PREFIX => {
                self.heartbeat = heartbeat_number(content, self.slice(), self.nonce).or(self.heartbeat);
            }
            // One outside of a transaction has no end that could be waited for.
            MARKER_PREFIX if self.current.is_some() => self.marked |= marker_is_for(content, self.slice()),
            CANARY_PREFIX if self.current.is_some() => {
                self.canary = word_for(content, self.slice()).or(self.canary.take());
            }
            // A tag stands before the first row; one that comes later is somebody's attempt to hide.
            TAG_PREFIX if self.current.is_some() && !self.changes && !hooks.mutant(Mutant::NoTag) => {
                self.tagged |= tag_is_of(content, self.slice(), &self.tag_secret);
            }
            _ => {}
        }
    }

    /// What the service's filter forbids goes no way back, and no other place has it: that is told before the position passes it.
    async fn tell_outside(&mut self) -> Result<(), MirrorError> {
        let found = std::mem::take(&mut self.router.outside);
        let Some(origin) = self.current.filter(|_| !found.is_empty()) else { return Ok(()) };
        let tables: Vec<&str> =
            found.iter().filter_map(|number| Some(self.tables.get(*number)?.label.as_str())).collect();
        let (service, recorder, slice) = (&self.source, &self.config.recorder, self.slice());
        let note = async || {
            let mut new = false;
            for table in &tables {
                if outside::note(service, slice, table, origin.commit_lsn).await? {
                    let happened = Happened::Outside { table, xid: origin.xid };
                    recorder.write(service, Some(origin.commit_lsn), happened).await?;
                    new = true;
                }
            }
            Ok(new)
        };
        let new = ledger::transaction(service, note).await?;
        failpoint::hit("outside-told");
        if new {
            recorder.anchor();
            tracing::error!(
                slice,
                lsn = %origin.commit_lsn,
                xid = origin.xid,
                table = tables.first(),
                "the service wrote rows that its filter forbids, which go no way back; see `strangler status`"
            );
        }
        Ok(())
    }

    async fn end_transaction(&mut self, boundary: Boundary) -> Result<(), MirrorError> {
        self.tell_outside().await?;
        // Nothing was decided about a transaction without changes, so no round has to see it.
        if let Some(origin) = self.current.take()
            && self.changes
        {
            self.copying.consume(origin.xid);
        }
        self.consumed = boundary;
        let mut marked = std::mem::take(&mut self.marked);
        if self.canary.is_some() {
            self.land_canary().await?;
            (self.batch.flushed, marked) = (true, true);
        }
        if self.batch.is_idle() {
            if marked {
                self.persist().await?;
            }
            self.report_heartbeat();
            return Ok(());
        }
        self.batch.boundary = Some(boundary);
        if marked || self.batch.is_due(&self.config.options.limits) {
            self.commit_batch().await
        } else {
            Ok(())
        }
    }

    /// Makes durable that everything consumed so far is decided about. Between transactions with an idle batch only.
    pub(crate) async fn persist(&mut self) -> Result<(), MirrorError> {
        self.land_canary().await?;
        self.applier.commit(self.consumed).await?;
        self.persisted_at = Instant::now();
        self.hit("idle-persisted", "reverse-persisted");
        self.assembler.confirm(self.consumed.end);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), MirrorError> {
        let written = self.written_to_mend();
        let flushed = self.applier.flush(&mut self.batch, &self.tables).await;
        let hindered = match &flushed {
            Ok(diverged) => !diverged.is_empty(),
            Err(error) => error.may_be_of_types(),
        };
        if hindered && let Some(apart) = self.types_apart(flushed.as_deref().unwrap_or_default()).await {
            // What the server said is what follows from that, and its cure would be another one.
            return Err(apart.into());
        }
        let diverged = flushed?;
        for divergence in diverged {
            if let Some(table) = self.tables.get_mut(divergence.table) {
                if self.config.direction == Direction::Reverse {
                    let label = table.label.clone();
                    // Read again, a row of it was refused: once more would come to the same, for ever.
                    let keys = written.get(&divergence.table);
                    return Err(match keys.filter(|_| !self.repairs.in_vain.contains(&label)) {
                        Some(keys) => self.mend(&label, keys).await?,
                        None => self.contradicted(&label, &divergence.trouble).await,
                    });
                }
                let detail = divergence.trouble.detail.as_str();
                let happened = Happened::Diverged { table: &table.label, detail };
                // In the transaction that keeps the table from being written.
                let applied = self.applier.applied();
                self.config.recorder.write(self.applier.session(), Some(applied), happened).await?;
                self.untold = true;
                tracing::error!(
                    slice = self.config.mapping.slice,
                    table = table.label,
                    detail = divergence.trouble.detail,
                    "the table diverged and stands still; copy it again with `strangler mirror PLAN --retry TABLE`"
                );
                table.stand_still(divergence.trouble.detail);
            }
        }
        Ok(())
    }

    /// Why the types of both sides don't read a value alike, where that is so. Asked over a session of its own: the transaction
    /// of the applier's is lost. A comparison that can't be made explains nothing.
    async fn types_apart(&self, diverged: &[Divergence]) -> Option<Refusal> {
        let target = start::open(&self.config.apply, self.slice()).await.ok()?;
        let both = Both::of(self.config.direction, &self.source, &target);
        let sides = (both.monolith, both.service);
        let apart = meanings::find_fault(sides, &self.config.mapping, self.config.direction).await.ok()?;
        let refusing = diverged.iter().filter(|divergence| divergence.trouble.refuses);
        let refusing = refusing.filter_map(|divergence| self.tables.get(divergence.table));
        let refusing: Vec<String> = refusing.map(|table| table.label.clone()).collect();
        if apart.is_some() || refusing.is_empty() || self.config.direction == Direction::Forward {
            return apart;
        }
        meanings::find_refusing(sides, &self.config.mapping, &refusing).await.ok()?
    }

    /// Rows of the monolith are not what the service's writes met. The ledger is told once, however often it is met again.
    async fn contradicted(&self, label: &str, trouble: &Trouble) -> MirrorError {
        let (epoch, applied) = (self.applier.claim().epoch, self.applier.applied());
        let happened = Happened::Contradicted { table: label, detail: &trouble.detail, epoch, applied };
        self.config.recorder.explained();
        self.config.recorder.write_if_possible(&self.source, Some(applied), happened).await;
        contradicted(&self.config, label, trouble)
    }

    /// On the way back, keys of the batch by table, where the operator lets rows that contradict be read again.
    fn written_to_mend(&self) -> BTreeMap<usize, Vec<Vec<String>>> {
        if self.config.direction == Direction::Forward || self.config.options.retry.is_empty() {
            return BTreeMap::new();
        }
        let allowed = |number: &usize| {
            let table = self.tables.get(*number);
            table.is_some_and(|table| self.config.options.retry.contains(table.mapping.label()))
        };
        let keys = |operations: &Vec<RowOperation>| {
            let keys: BTreeSet<Vec<String>> =
                operations.iter().flat_map(RowOperation::keys).map(Key::to_strings).collect();
            keys.into_iter().collect()
        };
        let written = self.batch.operations.iter().filter(|(number, _)| allowed(number));
        written.map(|(number, operations)| (*number, keys(operations))).collect()
    }

    /// Commits what the batch holds up to its last boundary. Between transactions only.
    async fn commit_batch(&mut self) -> Result<(), MirrorError> {
        let Some(boundary) = self.batch.boundary else { return Ok(()) };
        self.flush().await?;
        self.applier.commit(boundary).await?;
        if std::mem::take(&mut self.untold) {
            self.config.recorder.anchor();
        }
        self.batch.clear_committed();
        self.persisted_at = Instant::now();
        self.assembler.confirm(boundary.end);
        self.hit("apply-confirmed", "reverse-confirmed");
        self.config.options.hooks.pass("applied").await;
        self.report_heartbeat();
        Ok(())
    }

    fn hit(&self, forward: &'static str, reverse: &'static str) {
        hit(self.config.direction, forward, reverse);
    }

    pub(crate) fn report_heartbeat(&mut self) {
        if let Some(number) = self.heartbeat.take() {
            self.vitals.heartbeat_applied(number);
        }
    }

    async fn truncate(&mut self, relations: &[Arc<Relation>]) -> Result<(), MirrorError> {
        let Some(origin) = self.current else { return Ok(()) };
        self.changes = true;
        for relation in relations.iter().filter(|relation| !is_canary(relation)) {
            let Some(number) = self.router.table_of(relation, &self.tables, &self.source).await? else {
                continue;
            };
            self.flush().await?;
            if let Some(table) = self.tables.get(number)
                && table.state != TableState::Diverged
            {
                truncate::apply(&mut self.applier, table, (origin, &self.in_vain)).await?;
                self.batch.flushed = true;
            }
        }
        Ok(())
    }

    /// Takes note of a TRUNCATE that is not applied from here, or not to a copy: by it the partitions of its table got other
    /// files, and the watch over them must know by what.
    async fn heard_truncate(&mut self, relations: &[Arc<Relation>]) -> Result<(), MirrorError> {
        let Some(EventOrigin { xid, .. }) = self.current else { return Ok(()) };
        for relation in relations {
            let called = |table: &&TableRun| table.mapping.source.is_called(&relation.schema, &relation.name);
            let Some(table) = self.tables.iter().find(called) else { continue };
            match self.config.direction {
                Direction::Forward => {
                    let session = self.applier.session();
                    baselines::note_truncate(session, &self.config.mapping.slice, &table.label, xid).await?;
                }
                Direction::Reverse => self.vitals.truncated(table.mapping.source.clone(), xid),
            }
        }
        Ok(())
    }

    /// Between transactions with nothing to commit: makes a position durable that only passed unrelated WAL, and
    /// lets tables go live whose pieces are all passed.
    async fn settle(&mut self) -> Result<(), MirrorError> {
        if let Some(fault) = self.vitals.fault() {
            return Err(fault.into());
        }
        let applied = self.applier.applied();
        let awaited = self.tables.iter().any(|table| {
            table.pieces.passed_at().is_some_and(|lsn| lsn > applied && lsn <= self.consumed.end)
                && !table.pieces.is_live()
        });
        let hooks = &self.config.options.hooks;
        let stale =
            (self.persisted_at.elapsed() >= IDLE_PERSIST_EVERY || hooks.is_eager()) && hooks.may("stale");
        if self.consumed.end > applied
            && (awaited
                || stale
                || self.copying.awaits(applied, self.consumed.end)
                || self.vitals.awaits(applied, self.consumed.end))
        {
            self.persist().await?;
        }
        if self.is_tripwire() { Ok(()) } else { self.go_live().await }
    }

    async fn go_live(&mut self) -> Result<(), MirrorError> {
        let applied = self.applier.applied();
        let ready: Vec<usize> = (0..self.tables.len())
            .filter(|number| self.tables.get(*number).is_some_and(|table| table.can_go_live(applied)))
            .collect();
        if !ready.is_empty() {
            let slice = self.slice().to_owned();
            let mut copied: Vec<(String, copies::Ended)> = Vec::new();
            let session = self.applier.open_session().await?;
            for table in ready.iter().filter_map(|number| self.tables.get(*number)) {
                if table.state == TableState::Live {
                    copies::forget_pieces(session, &slice, &table.label).await?;
                } else {
                    let ended = copies::set_live(session, &slice, &table.label).await?;
                    touched::begin(session, &slice, &table.label, applied).await?;
                    copied.extend(ended.map(|ended| (table.label.clone(), ended)));
                }
            }
            for (table, copies::Ended { rows, bytes, copy }) in &copied {
                let happened = Happened::CopyEnded { table, rows: *rows, bytes: *bytes, copy: *copy };
                self.config.recorder.write(session, Some(applied), happened).await?;
            }
            self.applier.commit_at(applied, self.consumed.time_us).await?;
            if !copied.is_empty() {
                self.config.recorder.anchor();
            }
            failpoint::hit("table-live");
            for number in ready {
                if let Some(table) = self.tables.get_mut(number) {
                    if table.state != TableState::Live {
                        self.finished = false;
                        tracing::info!(
                            slice,
                            table = table.label,
                            rows = table.rows_copied,
                            "the table is live"
                        );
                    }
                    table.go_live();
                }
            }
        }
        let waiting = |table: &TableRun| matches!(table.state, TableState::Pending | TableState::Copying);
        if !self.finished && !self.tables.iter().any(waiting) {
            self.finish().await?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), MirrorError> {
        let vitals = Arc::clone(&self.vitals);
        let board = self.config.board.clone();
        let slice = self.slice().to_owned();
        let tell = |detail: &str| {
            vitals.set_phase("finishing", Some(detail));
            board.phase(StreamOf::forward(&slice), "finishing", Some(detail));
        };
        let progress = |row: &DeferredRow, number: usize, total: usize| {
            tell(&format!("{} on {} ({} of {total})", row.object, row.target_table, number + 1));
        };
        let finished = finish::run(&self.config.admin, (&slice, self.nonce), &progress, &tell).await?;
        for failed in &finished.failed {
            tracing::error!(
                slice = self.slice(),
                object = failed,
                "a deferred index or constraint could not be made"
            );
        }
        self.finished = true;
        Ok(())
    }

    fn show(&mut self) {
        if self.shown_at.is_some_and(|at| at.elapsed() < TICK) {
            return;
        }
        self.shown_at = Some(Instant::now());
        let behind = self.assembler.received().bytes_since(self.applier.applied());
        self.vitals.set_lag_bytes(behind);
        let copying = self.tables.iter().any(TableRun::wants_copy);
        let passed =
            self.tables.iter().all(|table| table.pieces.is_live() || table.state == TableState::Diverged);
        let phase = match (copying, passed) {
            _ if self.is_tripwire() => "watching",
            (true, _) => "copying",
            (false, false) => "catching up",
            (false, true) => "streaming",
        };
        let (waiting, repairing) = (self.copying.waits_for(), self.repairs.at_work());
        let decided = self.current.is_none() && self.batch.is_idle();
        self.standstill.take_if(|(_, before)| decided && self.consumed.end > *before);
        let (phase, detail) = match &self.standstill {
            Some((Standstill { phase, why }, _)) => (*phase, Some(why.as_str())),
            None => (phase, waiting.as_deref().or(repairing.as_deref())),
        };
        self.vitals.set_phase(phase, detail);
        let of = self.config.of();
        self.config.board.show(of, (phase, detail), &self.tables, &self.vitals, behind);
        self.config.board.count(of, self.router.counts);
    }

    /// Stops at a transaction border: what is complete is committed, what is not is left to the next start.
    async fn close(mut self) -> Result<(), MirrorError> {
        if self.current.is_none() {
            self.commit_batch().await?;
            if self.consumed.end > self.applier.applied() && self.batch.is_idle() {
                self.applier.commit(self.consumed).await?;
                self.assembler.confirm(self.consumed.end);
            }
        }
        let target = start::open(&self.config.apply, self.slice()).await?;
        process::stopped(&target, self.config.of(), self.nonce, None).await?;
        let direction = self.config.direction;
        self.assembler.stop().await;
        hit(direction, "stopped-cleanly", "reverse-stopped");
        Ok(())
    }
}

/// A kill point of either direction, each under a name of its own.
pub(crate) fn hit(direction: Direction, forward: &'static str, reverse: &'static str) {
    failpoint::hit(match direction {
        Direction::Forward => forward,
        Direction::Reverse => reverse,
    });
}

/// Rows of the monolith are not what the service's writes met. Nothing is skipped: the slot keeps what comes until an
/// operator has had a look.
fn contradicted(config: &SliceConfig, table: &str, trouble: &Trouble) -> MirrorError {
    let slice = &config.mapping.slice;
    let (detail, typed) = (&trouble.detail, shell_word(table));
    if let Some(relation) = &trouble.lacks_partition {
        return MirrorError::Refused {
            what: format!(
                "the monolith has no partition of {table} for a row that the service wrote: {detail}; the way back of slice \
                 {slice} stands still before it"
            ),
            next: format!(
                "on the monolith: CREATE TABLE … PARTITION OF {relation} FOR VALUES …, or DEFAULT, as the table's owner; \
                 strangler arm PLAN --slice {slice}, which guards it; a running mirror goes on within seconds by itself"
            ),
        };
    }
    if trouble.refuses {
        return MirrorError::Refused {
            what: format!(
                "the monolith refuses a row of {table} that the service took: {detail}; the way back of slice {slice} stands \
                 still before it"
            ),
            next: format!(
                "change on the monolith what refuses it, a constraint, a trigger or a domain of {table} (the types of its columns \
                 belong to the mapping and stay); a running mirror goes on within seconds by itself. Or correct the row in the \
                 service; then strangler mirror PLAN --slice {slice} --retry {typed}, which reads it again"
            ),
        };
    }
    MirrorError::Refused {
        what: format!(
            "the monolith's rows of {table} are not those that slice {slice} had before the service's writes: {detail}; \
             the way back stands still before them. --retry reads the rows that contradict from the service again; where that \
             was in vain, a constraint that the service lacks refuses them and has to be changed on the monolith"
        ),
        next: format!("strangler mirror PLAN --slice {slice} --retry {typed}"),
    }
}
