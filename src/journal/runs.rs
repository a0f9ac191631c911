//! Runs of a reconciliation: one at a time for each slice, resumable after a kill.
//!
//! The lock keeps a second run away while the session of the first one lives. What protects the record when that
//! session is lost and its process is not is the attempt: every write names it, and a run that was resumed elsewhere
//! has a later one.

use std::time::{Duration, SystemTime};

use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::JournalError;
use super::grounds::Ground;
use super::ledger::Author;
use crate::clock::{self, Clock, SystemClock};
use crate::lsn::Lsn;

/// First key of the session lock that a run holds on the service; the second is the slice's `lock_key`.
const LOCK_CLASS: i32 = 1_398_035_028;

/// Who runs a reconciliation, as its row tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// The human or the job, and the machine.
    pub author: Author,
    /// Process id there.
    pub pid: i32,
    /// When the run began, as RFC 3339.
    pub started_at: String,
    /// Seconds since it last wrote something, by the service's clock.
    pub seen_s: f64,
}

/// What came of asking for the slice's lock.
#[derive(Debug, Clone, PartialEq)]
pub enum Lock {
    /// This session holds it, until it ends or [`unlock`] is called.
    Taken,
    /// Another session holds it; who that is, when it has got as far as to say so.
    Held(Option<Holder>),
}

/// Takes the slice's run lock for this session. Not to be called twice on one session: it would have to be given back
/// twice.
///
/// # Errors
/// [`JournalError`], also when the slice is not provisioned here.
pub async fn lock(client: &Client, slice: &str) -> Result<Lock, JournalError> {
    let sql = "SELECT pg_try_advisory_lock($1, lock_key) FROM strangler.slice WHERE slice = $2";
    let row = client
        .query_opt(sql, &[&LOCK_CLASS, &slice])
        .await
        .map_err(JournalError::database("taking the lock for a run"))?;
    match row.map(|row| row.get::<_, bool>(0)) {
        Some(true) => Ok(Lock::Taken),
        Some(false) => Ok(Lock::Held(running(client, slice).await?)),
        None => Err(JournalError::Unreadable { what: "slice.slice", found: format!("no slice {slice}") }),
    }
}

/// Gives the lock back; the end of the session does so too.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn unlock(client: &Client, slice: &str) -> Result<(), JournalError> {
    let sql = "SELECT pg_advisory_unlock($1, lock_key) FROM strangler.slice WHERE slice = $2";
    let done = client.query_opt(sql, &[&LOCK_CLASS, &slice]).await;
    done.map(drop).map_err(JournalError::database("giving the lock for a run back"))
}

const HOLDER: &str = "operator, host, pid, to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
     extract(epoch FROM clock_timestamp() - seen_at)::float8";

/// The run of a slice that wrote last and has not ended. Whether its process lives is what the lock tells.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn running(client: &Client, slice: &str) -> Result<Option<Holder>, JournalError> {
    let sql = format!(
        "SELECT {HOLDER} FROM strangler.reconcile_run WHERE slice = $1 AND state = 'running' \
         ORDER BY seen_at DESC LIMIT 1"
    );
    let row = client.query_opt(&sql, &[&slice]).await.map_err(JournalError::database("reading the runs"))?;
    Ok(row.map(|row| Holder {
        author: Author { operator: row.get(0), host: row.get(1) },
        pid: row.get(2),
        started_at: row.get(3),
        seen_s: row.get(4),
    }))
}

/// A run that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Slice.
    pub slice: &'a str,
    /// What is compared, and how, in a text that is the same for the same: only such a run is resumed.
    pub options: &'a str,
    /// What the data rests on now, the monolith's part included.
    pub ground: &'a Ground,
    /// Who.
    pub author: &'a Author,
    /// This process.
    pub pid: u32,
    /// The oldest run to go on with, since a verdict is as old as the first chunk of its run. Zero begins anew.
    pub resume_within: Duration,
}

/// A run under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its uuid.
    pub id: String,
    /// Slice.
    pub slice: String,
    /// Which resumption this is, from 1.
    pub attempt: i32,
    /// When it began, as RFC 3339.
    pub started_at: String,
    /// What the data rested on then.
    pub ground: Ground,
}

impl Run {
    /// It goes on where an earlier process stopped, so that [`chunks`] may hold something.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.attempt > 1
    }
}

const RUN: &str = "run::text, slice, attempt, \
     to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), ground::text";

fn run_of(row: &Row) -> Result<Run, JournalError> {
    let ground: String = row.get(4);
    let unreadable = |_| JournalError::Unreadable { what: "reconcile_run.ground", found: ground.clone() };
    Ok(Run {
        id: row.get(0),
        slice: row.get(1),
        attempt: row.get(2),
        started_at: row.get(3),
        ground: serde_json::from_str(&ground).map_err(unreadable)?,
    })
}

/// Begins a run, or goes on with the last one of the same options on the same ground. Older ones that nobody can go
/// on with are given up. The session must hold the slice's lock.
///
/// # Errors
/// [`JournalError`].
pub async fn begin(client: &Client, wanted: &Wanted<'_>) -> Result<Run, JournalError> {
    let failed = || JournalError::database("beginning a run");
    let ground = serde_json::to_string(wanted.ground)
        .map_err(|error| JournalError::Unreadable { what: "the ground", found: error.to_string() })?;
    let pid = i32::try_from(wanted.pid).unwrap_or(i32::MAX);
    let now_us = SystemClock.now_us();
    let within_us = i64::try_from(wanted.resume_within.as_micros()).unwrap_or(i64::MAX);
    let (now, oldest) = (clock::time(now_us), clock::time(now_us.saturating_sub(within_us)));
    let author = wanted.author;
    let sql = format!(
        "UPDATE strangler.reconcile_run SET attempt = attempt + 1, operator = $4, host = $5, pid = $6, \
             resumed_at = clock_timestamp(), seen_at = clock_timestamp() \
         WHERE run = (SELECT run FROM strangler.reconcile_run WHERE slice = $1 AND state = 'running' \
                AND options = $2 AND ground::text = $3 \
                AND started_at > $7 \
             ORDER BY started_at DESC LIMIT 1) RETURNING {RUN}"
    );
    let resumed = client
        .query_opt(
            &sql,
            &[&wanted.slice, &wanted.options, &ground, &author.operator, &author.host, &pid, &oldest],
        )
        .await
        .map_err(failed())?;
    let run = match resumed {
        Some(row) => run_of(&row)?,
        None => {
            let sql = format!(
                "INSERT INTO strangler.reconcile_run (slice, options, ground, operator, host, pid, started_at) \
                 VALUES ($1, $2, $3::text::json, $4, $5, $6, $7) RETURNING {RUN}"
            );
            let row = client
                .query_one(
                    &sql,
                    &[&wanted.slice, &wanted.options, &ground, &author.operator, &author.host, &pid, &now],
                )
                .await
                .map_err(failed())?;
            run_of(&row)?
        }
    };
    forget_others(client, &run, (wanted.options, oldest)).await?;
    Ok(run)
}

/// Gives up runs of the slice that can't be resumed any more: those of the same options, and those that are too old.
async fn forget_others(
    client: &Client,
    run: &Run,
    (options, oldest): (&str, SystemTime),
) -> Result<(), JournalError> {
    let sql = giving_up("AND (options = $3 OR started_at <= $4)");
    let done = client.execute(&sql, &[&run.slice, &run.id, &options, &oldest]).await;
    done.map(drop).map_err(JournalError::database("giving up older runs"))
}

/// Gives up the runs of slice `$1` but `$2` that have not ended and that a further condition names, and forgets their chunks.
fn giving_up(condition: &str) -> String {
    format!(
        "WITH given_up AS (UPDATE strangler.reconcile_run \
             SET state = 'given_up', finished_at = clock_timestamp() \
             WHERE slice = $1 AND state = 'running' AND run <> $2::text::uuid {condition} RETURNING run) \
         DELETE FROM strangler.reconcile_chunk WHERE run IN (SELECT run FROM given_up)"
    )
}

/// A part of a table that was compared, and about which nothing is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The table by the monolith's name, as a plan writes it.
    pub source_table: String,
    /// Number within the table.
    pub number: i32,
    /// Exclusive lower border in key order; `None` is open.
    pub lo: Option<Vec<String>>,
    /// Inclusive upper border; `None` is open.
    pub hi: Option<Vec<String>>,
    /// Position on the authority that it was compared at.
    pub lsn: Lsn,
    /// Rows on the side that holds the authority.
    pub rows_authority: i64,
    /// Rows on the other side.
    pub rows_copy: i64,
    /// What was found, in the caller's form: JSON.
    pub findings: String,
}

/// Records a settled chunk; one that is there already is replaced. `false` when another process has resumed the run:
/// this one must stop.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn settle(client: &Client, run: &Run, chunk: &Chunk) -> Result<bool, JournalError> {
    // One statement: the row lock on the run orders it with a resumption elsewhere. Its commit is not waited for: a
    // chunk that a crash of the server takes away is compared again.
    let sql = "WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)), \
         mine AS (UPDATE strangler.reconcile_run SET seen_at = clock_timestamp() \
             WHERE run = $1::text::uuid AND attempt = $2 AND state = 'running' RETURNING run) \
         INSERT INTO strangler.reconcile_chunk \
             (run, source_table, number, lo, hi, lsn, rows_authority, rows_copy, findings) \
         SELECT run, $3, $4, $5, $6, $7, $8, $9, $10::text::json FROM mine, quick \
         ON CONFLICT (run, source_table, number) DO UPDATE SET lo = excluded.lo, hi = excluded.hi, \
             lsn = excluded.lsn, rows_authority = excluded.rows_authority, rows_copy = excluded.rows_copy, \
             findings = excluded.findings";
    client
        .execute(
            sql,
            &[
                &run.id,
                &run.attempt,
                &chunk.source_table,
                &chunk.number,
                &chunk.lo,
                &chunk.hi,
                &PgLsn::from(chunk.lsn),
                &chunk.rows_authority,
                &chunk.rows_copy,
                &chunk.findings,
            ],
        )
        .await
        .map(|rows| rows == 1)
        .map_err(JournalError::database("recording a chunk"))
}

/// Says that the run is alive while nothing settles. `false` as for [`settle`].
///
/// # Errors
/// [`JournalError::Database`].
pub async fn beat(client: &Client, run: &Run) -> Result<bool, JournalError> {
    let sql = "UPDATE strangler.reconcile_run SET seen_at = clock_timestamp() \
               WHERE run = $1::text::uuid AND attempt = $2 AND state = 'running'";
    let done = client.execute(sql, &[&run.id, &run.attempt]).await;
    done.map(|rows| rows == 1).map_err(JournalError::database("giving a run's sign of life"))
}

/// The settled chunks of one table, in their order.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn chunks(client: &Client, run: &Run, source_table: &str) -> Result<Vec<Chunk>, JournalError> {
    let sql = "SELECT source_table, number, lo, hi, lsn, rows_authority, rows_copy, findings::text \
               FROM strangler.reconcile_chunk WHERE run = $1::text::uuid AND source_table = $2 ORDER BY number";
    let rows = client
        .query(sql, &[&run.id, &source_table])
        .await
        .map_err(JournalError::database("reading chunks"))?;
    let chunk = |row: &Row| Chunk {
        source_table: row.get(0),
        number: row.get(1),
        lo: row.get(2),
        hi: row.get(3),
        lsn: row.get::<_, PgLsn>(4).into(),
        rows_authority: row.get(5),
        rows_copy: row.get(6),
        findings: row.get(7),
    };
    Ok(rows.iter().map(chunk).collect())
}

/// Gives up every other run of the slice, in the transaction in which this one says that rows differ: what the others have settled
/// may be otherwise since, and a verdict of theirs would stand behind this one and take it back.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn end_others(client: &Client, run: &Run) -> Result<(), JournalError> {
    let done = client.execute(&giving_up(""), &[&run.slice, &run.id]).await;
    done.map(drop).map_err(JournalError::database("giving up older runs"))
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a verdict, which is in the ledger by the same transaction.
    Finished,
    /// Without one; nobody will go on with it.
    GivenUp,
}

/// Ends a run, in the caller's transaction where there is one, and forgets its chunks, which hold keys. `false` as for
/// [`settle`].
///
/// # Errors
/// [`JournalError::Database`].
pub async fn end(client: &Client, run: &Run, end: End) -> Result<bool, JournalError> {
    let state = match end {
        End::Finished => "finished",
        End::GivenUp => "given_up",
    };
    let failed = || JournalError::database("ending a run");
    let sql = "UPDATE strangler.reconcile_run SET state = $3, seen_at = clock_timestamp(), \
                   finished_at = clock_timestamp() \
               WHERE run = $1::text::uuid AND attempt = $2 AND state = 'running'";
    let ended = client.execute(sql, &[&run.id, &run.attempt, &state]).await.map_err(failed())? == 1;
    if ended {
        let sql = "DELETE FROM strangler.reconcile_chunk WHERE run = $1::text::uuid";
        client.execute(sql, &[&run.id]).await.map_err(failed())?;
    }
    Ok(ended)
}
