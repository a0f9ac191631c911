//! One worker of a round: reads jobs under the round's snapshot and lands each in a target transaction of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::borders::{Job, JobExtent, range_condition};
use super::error::MirrorError;
use super::kept::{self, Settled};
use super::record::{Happened, Recorder};
use super::start::shut_out;
use super::statements::copy_out;
use crate::failpoint;
use crate::failpoint::hooks::{Hooks, Mutant};
use crate::journal;
use crate::journal::claims::{Claim, ClaimStatements};
use crate::journal::copies::{self, Extent, PieceRow, TableState};
use crate::landing::key::Point;
use crate::lsn::Lsn;
use crate::mapping::TableMapping;
use crate::postgres::connect::Session;
use crate::postgres::sqlstate;

/// Bytes of COPY data per message to the target: COPY gives one message per row, and small ones cost more than
/// their bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// Landed bytes between two reports of progress.
const REPORT_BYTES: u64 = 4 << 20;

/// What is done when the service refuses rows.
const LANDING: &str = "landing a piece";
/// Why a round ends when it did.
const REFUSED: &str = "a table of the service did not take its rows, and stands still";

/// A worker's two sessions, kept from round to round.
#[derive(Debug)]
pub struct WorkerSessions {
    /// On the monolith.
    pub source: Session,
    /// On the service, under the apply role.
    pub target: Session,
    statements: ClaimStatements,
}

impl WorkerSessions {
    /// Takes over two fresh sessions.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn new(source: Session, target: Session, claim: &Claim) -> Result<Self, MirrorError> {
        let statements = ClaimStatements::prepare(&target, claim).await?;
        Ok(Self { source, target, statements })
    }
}

/// A table that is copied.
#[derive(Debug, Clone)]
pub struct Copied {
    /// Name of the target table, as our tables have it.
    pub label: String,
    /// Mapping.
    pub mapping: Arc<TableMapping>,
    /// Both servers read the binary form of every column alike, so it may pass through.
    pub binary: bool,
    /// The rows of the last copy are there.
    pub kept: bool,
}

/// What all workers of a round share.
#[derive(Debug)]
pub struct RoundWork {
    /// Claim that landings check.
    pub claim: Claim,
    /// The snapshot's text.
    pub snapshot: String,
    /// WAL insert position read after the snapshot.
    pub lsn: Lsn,
    /// Tables by number.
    pub tables: Vec<Copied>,
    /// Pages of tables that are copied in parts, by number.
    pub pages: HashMap<usize, i64>,
    /// Jobs not yet taken.
    pub queue: Mutex<VecDeque<Job>>,
    /// What tests change.
    pub hooks: Hooks,
    /// What the ledger is told.
    pub recorder: Recorder,
}

/// What a worker reports.
#[derive(Debug)]
pub enum Report {
    /// A piece has landed and is recorded.
    Landed {
        /// Number of the table.
        table: usize,
        /// What was read and under which snapshot.
        piece: PieceRow,
        /// The piece is recorded; otherwise it is a part of one that isn't complete yet.
        complete: bool,
        /// Its rows.
        rows: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// Bytes on their way, for display.
    Moving {
        /// Number of the table.
        table: usize,
        /// Bytes since the last report.
        bytes: u64,
    },
}

/// Works until the queue is empty. The source transaction, with its locks and the imported snapshot, stays open:
/// the round ends it, so that no table is rewritten while another worker still reads.
///
/// # Errors
/// [`MirrorError`].
pub async fn work(
    sessions: &WorkerSessions,
    round: &RoundWork,
    reports: &mpsc::Sender<Report>,
) -> Result<(), MirrorError> {
    loop {
        let job = round.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(job) = job else { return Ok(()) };
        land(sessions, round, &job, reports).await?;
    }
}

async fn land(
    sessions: &WorkerSessions,
    round: &RoundWork,
    job: &Job,
    reports: &mpsc::Sender<Report>,
) -> Result<(), MirrorError> {
    let Some(table) = round.tables.get(job.table) else { return Ok(()) };
    let label = &table.label;
    round.hooks.pass("landing").await;
    let target = &sessions.target;
    target.batch_execute("BEGIN").await.map_err(MirrorError::sql("opening a landing"))?;
    if !round.claim.share(target, &sessions.statements).await? {
        return Err(shut_out(target, &round.claim).await);
    }
    if round.hooks.mutant(Mutant::PartsKept)
        && let JobExtent::Part { part, .. } = job.extent
        && copies::has_part(target, &round.claim.slice, label, part).await?
    {
        return target.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("keeping a part"));
    }
    let (rows, bytes) = match bring(sessions, round, (job, table), reports).await {
        Err(MirrorError::Sql { action: LANDING, source }) if sqlstate::is_about_the_table(&source) => {
            let partition = sqlstate::lacks_partition(&source).map_or_else(String::new, |relation| {
                format!("; make it in the service: CREATE TABLE … PARTITION OF {relation} FOR VALUES …, or DEFAULT")
            });
            let why = sqlstate::words(&source) + &partition;
            return Err(stand_still(sessions, round, label, &why).await?);
        }
        piped => piped?,
    };
    let count = i64::try_from(rows).unwrap_or(i64::MAX);
    let (piece, complete, names) = record(sessions, round, (label, job), count).await?;
    let byte_count = i64::try_from(bytes).unwrap_or(i64::MAX);
    if !copies::add_copied(target, &round.claim.slice, label, count, byte_count).await? {
        return Err(MirrorError::Restart { why: REFUSED });
    }
    failpoint::hit(names.0);
    target.batch_execute("COMMIT").await.map_err(MirrorError::sql("committing a landing"))?;
    failpoint::hit(names.1);
    round.hooks.pass("landed").await;
    let report = Report::Landed { table: job.table, piece, complete, rows, bytes };
    // A closed channel means that the round is being given up; what has landed stays.
    let _ = reports.send(report).await;
    Ok(())
}

/// The service's table does not take its rows: it stands still, which the next start knows, and the others go on from what
/// is stored. What is left of this one's reading is given up with the sessions.
async fn stand_still(
    sessions: &WorkerSessions,
    round: &RoundWork,
    label: &str,
    detail: &str,
) -> Result<MirrorError, MirrorError> {
    let (target, slice) = (&sessions.target, &round.claim.slice);
    let detail = format!("a row could not be copied: {detail}");
    target.batch_execute("ROLLBACK; BEGIN").await.map_err(MirrorError::sql("giving a landing up"))?;
    if !round.claim.share(target, &sessions.statements).await? {
        return Err(shut_out(target, &round.claim).await);
    }
    copies::set_without_pieces(target, slice, label, TableState::Diverged, Some(&detail)).await?;
    copies::delete_parts(target, slice, label).await?;
    let entry = serde_json::json!({ "table": label, "detail": detail });
    journal::record(target, Some(slice), "table-diverged", &entry).await?;
    let happened = Happened::Diverged { table: label, detail: &detail };
    round.recorder.write(target, Some(round.lsn), happened).await?;
    target.batch_execute("COMMIT").await.map_err(MirrorError::sql("recording a refused landing"))?;
    round.recorder.anchor();
    failpoint::hit("fault-recorded");
    tracing::error!(
        slice,
        table = label,
        detail,
        "the table can't be copied and stands still; the others go on. Copy it again with `strangler mirror PLAN --retry TABLE`"
    );
    Ok(MirrorError::Restart { why: REFUSED })
}

/// Records what a job landed: a piece, or a part of one. Returns the piece, whether it is complete, and the kill
/// points before and after the commit.
async fn record(
    sessions: &WorkerSessions,
    round: &RoundWork,
    (label, job): (&str, &Job),
    rows: i64,
) -> Result<(PieceRow, bool, (&'static str, &'static str)), MirrorError> {
    let slice = &round.claim.slice;
    let piece = |extent| PieceRow {
        source_table: label.to_owned(),
        extent,
        snapshot: round.snapshot.clone(),
        lsn: round.lsn,
    };
    let (piece, names) = match &job.extent {
        JobExtent::Range((lo, hi)) => {
            let text = |point: &Point| point.to_string();
            let extent = Extent::Range { lo: lo.as_ref().map(text), hi: hi.as_ref().map(text) };
            (piece(extent), ("range-before-commit", "range-landed"))
        }
        JobExtent::Part { parts: 1, .. } => (piece(Extent::Whole), ("whole-before-commit", "whole-landed")),
        JobExtent::Part { part, parts } => {
            let numbers =
                (i32::try_from(*part).unwrap_or(i32::MAX), i32::try_from(*parts).unwrap_or(i32::MAX));
            copies::insert_part(&sessions.target, slice, label, numbers, &round.snapshot, rows).await?;
            return Ok((piece(Extent::Whole), false, ("part-before-commit", "part-landed")));
        }
    };
    copies::insert_piece(&sessions.target, slice, &piece, rows).await?;
    Ok((piece, true, names))
}

/// Brings a job's rows: all of them, or those that the last copy's rows lack. Returns how many the piece has, and the bytes that came.
async fn bring(
    sessions: &WorkerSessions,
    round: &RoundWork,
    (job, table): (&Job, &Copied),
    reports: &mpsc::Sender<Report>,
) -> Result<(u64, u64), MirrorError> {
    let condition = job_condition(round, &table.mapping, job);
    if !table.kept {
        return pipe(sessions, (job.table, table), condition, reports).await;
    }
    let sides: (&Client, &Client) = (&sessions.source, &sessions.target);
    let Settled { rows, lacking } = kept::settle(sides, &table.mapping, &job.extent).await?;
    let Some(lacking) = lacking else { return Ok((rows, 0)) };
    let terms: Vec<String> = condition.into_iter().chain([lacking]).collect();
    let (_, bytes) = pipe(sessions, (job.table, table), Some(terms.join(" AND ")), reports).await?;
    Ok((rows, bytes))
}

/// Which rows of the source a job takes. The last of several parts has no upper border: rows that are visible can
/// stand behind the size that was measured.
fn job_condition(round: &RoundWork, mapping: &TableMapping, job: &Job) -> Option<String> {
    let mut terms: Vec<String> = mapping.filter_sql().into_iter().collect();
    match job.extent {
        JobExtent::Range(stretch) => terms.extend(range_condition(mapping, stretch)),
        JobExtent::Part { parts: 1, .. } => {}
        JobExtent::Part { part, parts } => {
            let pages = round.pages.get(&job.table).copied().unwrap_or(0);
            let border = |number: u32| i64::from(number) * pages / i64::from(parts);
            if part > 0 {
                terms.push(format!("ctid >= '({},0)'::tid", border(part)));
            }
            if part + 1 < parts {
                terms.push(format!("ctid < '({},0)'::tid", border(part + 1)));
            }
        }
    }
    if terms.is_empty() { None } else { Some(terms.join(" AND ")) }
}

/// Streams the rows through, unread: binary where both sides read it alike, text otherwise.
async fn pipe(
    sessions: &WorkerSessions,
    (number, table): (usize, &Copied),
    condition: Option<String>,
    reports: &mpsc::Sender<Report>,
) -> Result<(u64, u64), MirrorError> {
    let mapping = &table.mapping;
    let format = if table.binary { " (FORMAT binary)" } else { "" };
    let filter = condition.map_or_else(String::new, |sql| format!(" WHERE {sql}"));
    let read = copy_out(mapping, &filter, format);
    let write = format!("COPY {} ({}) FROM STDIN{format}", mapping.target.sql(), mapping.target_list());
    let rows = sessions.source.copy_out(&read).await.map_err(MirrorError::sql("reading a piece"))?;
    let sink = sessions.target.copy_in::<_, Bytes>(&write).await.map_err(MirrorError::sql(LANDING))?;
    pin_mut!(rows);
    pin_mut!(sink);
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES * 2);
    let (mut bytes, mut unreported) = (0u64, 0u64);
    while let Some(row) = rows.try_next().await.map_err(MirrorError::sql("reading a piece"))? {
        bytes += row.len() as u64;
        unreported += row.len() as u64;
        buffer.extend_from_slice(&row);
        if buffer.len() >= CHUNK_BYTES {
            sink.send(buffer.split().freeze()).await.map_err(MirrorError::sql(LANDING))?;
            buffer.reserve(CHUNK_BYTES * 2);
        }
        if unreported >= REPORT_BYTES {
            // Display only: a full channel loses nothing but a refresh.
            let _ = reports.try_send(Report::Moving { table: number, bytes: unreported });
            unreported = 0;
        }
    }
    sink.send(buffer.freeze()).await.map_err(MirrorError::sql(LANDING))?;
    let landed = sink.finish().await.map_err(MirrorError::sql(LANDING))?;
    Ok((landed, bytes))
}
