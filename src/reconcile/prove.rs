//! The exact proof of suspect keys (docs/protocol.md, section 10).
//!
//! Two sides that move are never looked at at one moment, so a difference that was seen may be a change on its way. A
//! suspect is a finding only when the copy has what is wrong at a moment at which nothing on its way can explain it:
//! of a row that the authority has, while it is locked there and the mirror has passed everything committed before; of
//! a row that it does not have, when everything that was in its log when the copy's row was seen is visible, and the
//! mirror has passed what was visible. Everything else is settled or `unsettled`, never guessed.

mod judge;
mod limits;
mod lookup;
mod spelled;
mod task;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::judge::{Held, compared, judge};
use self::lookup::{Equality, Lock};
use self::spelled::Spelled;
pub use self::task::Proof;
use self::task::{Reason, Task};
use super::barrier;
use super::finding::{FindingKind, RawKey};
use super::form::{Side, TableForm};
use super::meet::{MeetError, Meeting};
use super::reader;
use super::redact::Redactor;
use super::sides::Sides;
use super::stop::{self, Stopped};
use crate::journal::JournalError;
use crate::journal::own_scans::Metered;
use crate::mapping::ColumnMapping;
use crate::mapping::input::is_users;
use crate::name::TableName;
use crate::postgres::connect::{APPLY_ROLE, ConnectError, Session};
use crate::postgres::sqlstate::{self, Failure};
use crate::postgres::{column_types, equality};

/// Keys that are looked at in one statement.
const LOOKED_AT_ONCE: usize = 1_000;
/// Rows that somebody else holds are waited for one by one, at most this many in a round: 50 ms each.
const WAITS_IN_A_ROUND: usize = 60;
/// How long a round waits for older transactions of the authority to end.
const BARRIER_PATIENCE: Duration = Duration::from_secs(2);
/// Pauses before the rounds.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];

/// Lookups go by index whatever the planner thinks of a table, and don't wait behind an exclusive lock for long.
const SETTINGS: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
    SET jit = off; SET lock_timeout = '5s'";

/// The proof could not go on; nothing is known of the suspects that were not settled.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// A database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error("{what}: {words}")]
    Database {
        /// What was being done.
        what: String,
        /// What the server said, without values.
        words: String,
        /// The connection is gone: another attempt needs other sessions.
        lost: bool,
    },
    /// Our own tables could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The mirror did not come along.
    #[error(transparent)]
    Meet(#[from] MeetError),
    /// The run was stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A suspect's key has another number of columns than the table's key.
    #[error("a suspect of {table} does not name one row: its key has {parts} columns")]
    Key {
        /// Table by the monolith's name.
        table: String,
        /// Columns of the suspect's key.
        parts: usize,
    },
}

impl ProveError {
    /// The link is gone, so that another attempt needs other sessions.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Database { lost, .. } => *lost,
            Self::Meet(error) => error.is_database(),
            Self::Journal(error) => error.database_error().is_some_and(sqlstate::is_connection_lost),
            Self::Key { .. } | Self::Stopped(_) => false,
        }
    }

    fn database(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let what = what.into();
        move |error| Self::Database {
            what,
            words: sqlstate::words(&error),
            lost: sqlstate::is_connection_lost(&error) || error.is_closed(),
        }
    }
}

/// Proves suspects of one slice. A worker of a run has one.
#[derive(Debug)]
pub struct Prover {
    sides: Sides,
    authority: Session,
    copy: CopyReader,
    /// Opened when the first row has to be locked: where nothing is wrong, nobody needs the right to.
    locker: Option<Session>,
    meeting: Arc<Meeting>,
    redactor: Arc<Redactor>,
    stop: CancellationToken,
    /// Of the table whose suspects came last.
    spelled: (TableName, Spelled),
}

/// A session that reads the copy's rows.
#[derive(Debug)]
struct CopyReader {
    session: Session,
    /// Of the monolith's old tables: others' readings are told from ours.
    meter: Option<Metered>,
}

impl CopyReader {
    /// What it has under these keys.
    async fn there(
        &self,
        task: &Task<'_>,
        keys: &[RawKey],
        values: bool,
    ) -> Result<Vec<Vec<Held>>, tokio_postgres::Error> {
        let reading = task.lookup.there(&self.session, keys, values);
        match &self.meter {
            Some(meter) => Box::pin(meter.read(&self.session, task.table(), reading)).await,
            None => reading.await,
        }
    }

    /// The same once the mirror has passed everything that the authority had, as the mirror wrote it.
    async fn there_met(
        &self,
        meeting: &Meeting,
        task: &Task<'_>,
        keys: &[RawKey],
        values: bool,
    ) -> Result<Vec<Vec<Held>>, ProveError> {
        meeting.meet().await?;
        let rows = self.there(task, keys, values).await;
        let rows = rows.map_err(ProveError::database(task.reading(task.authority.other())))?;
        // A lock on the authority holds back no opening of the copy, whose application then writes what was read.
        meeting.position().await?;
        Ok(rows)
    }
}

/// What came of a locking transaction.
enum Locked {
    /// Looked at under the lock, by the key's place.
    Rows(Vec<Vec<Held>>, Vec<Vec<Held>>),
    /// The statement took too long for its number of rows.
    Slow,
    /// Not this time.
    Not(Reason),
}

impl Prover {
    /// Opens its sessions. Once `stop` is cancelled it proves nothing more.
    ///
    /// # Errors
    /// [`ProveError`].
    pub async fn new(
        (slice, sides): (&str, &Sides),
        meeting: Arc<Meeting>,
        redactor: Arc<Redactor>,
        stop: CancellationToken,
    ) -> Result<Self, ProveError> {
        let (authority, copy) = tokio::try_join!(sides.reader(sides.authority), sides.reader(sides.copy()))?;
        // Without an index each look at keys reads a whole table.
        authority.set_unhurried(true);
        copy.set_unhurried(true);
        let set = tokio::try_join!(authority.batch_execute(SETTINGS), copy.batch_execute(SETTINGS));
        set.map_err(ProveError::database("setting up a session that proves differences"))?;
        let meter = reader::meter((sides, sides.copy()), &copy, slice).await?;
        let copy = CopyReader { session: copy, meter };
        let spelled = (TableName::new("", ""), Spelled::default());
        let sides = sides.clone();
        Ok(Self { sides, authority, copy, locker: None, meeting, redactor, stop, spelled })
    }

    /// Looks at the suspects until each is equal, proven, or known not to be provable. They may be on either side or
    /// both, and the same key may be named several times. Findings are listed up to `list` and counted all; a row whose
    /// key the sides spell differently is found once, whichever of its spellings come in which of several calls about
    /// one table. Takes a few round trips per thousand suspects, and about six seconds more when some don't come to
    /// rest.
    ///
    /// # Errors
    /// [`ProveError`].
    pub async fn prove(
        &mut self,
        slice: &str,
        form: &TableForm,
        mut suspects: Vec<RawKey>,
        list: usize,
    ) -> Result<Proof, ProveError> {
        let columns = form.mapping.key.len();
        if let Some(odd) = suspects.iter().find(|key| key.0.len() != columns) {
            return Err(ProveError::Key { table: form.mapping.source.to_string(), parts: odd.0.len() });
        }
        suspects.sort_unstable();
        suspects.dedup();
        let equality = self.equality(form).await?;
        if self.spelled.0 != form.mapping.source {
            self.spelled = (form.mapping.source.clone(), Spelled::default());
        }
        let sides = (self.sides.authority, equality, std::mem::take(&mut self.spelled.1));
        let mut task = Task::new(slice, form, sides, Arc::clone(&self.redactor), list);
        let mut open: Open = suspects.into_iter().map(|key| (key, Reason::Moving)).collect();
        for (round, pause) in PAUSES.iter().enumerate() {
            if open.is_empty() {
                break;
            }
            stop::wait(&self.stop, tokio::time::sleep(*pause)).await?;
            task.begin_round(round + 1 == PAUSES.len());
            let keys: Vec<RawKey> = open.drain(..).map(|(key, _)| key).collect();
            for chunk in keys.chunks(LOOKED_AT_ONCE) {
                stop::look(&self.stop)?;
                open.extend(Box::pin(self.look(&mut task, chunk)).await?);
            }
        }
        let (proof, spelled) = task.end(open, PAUSES.len());
        self.spelled.1 = spelled;
        Ok(proof)
    }

    /// By which operators both sides find a key, so that the lookup means what the index does and uses it, and how the target
    /// calls its types.
    async fn equality(&self, form: &TableForm) -> Result<Equality, ProveError> {
        let of = async |client: &Session, side: Side| {
            let columns = form.mapping.key_columns().map(|column| match side {
                Side::Source => column.source.as_str(),
                Side::Target => column.target.as_str(),
            });
            let found = equality::of_keys(client, &[(form.name(side).sql(), columns.collect())]).await;
            let found = found.map_err(ProveError::database("reading how keys are compared"))?;
            Ok::<_, ProveError>(found.into_iter().next().unwrap_or_default())
        };
        let copy = self.sides.copy();
        let (here, there) =
            tokio::try_join!(of(&self.authority, self.sides.authority), of(&self.copy.session, copy))?;
        let (source, target, service) = match copy {
            Side::Target => (here, there, &self.copy.session),
            Side::Source => (there, here, &self.authority),
        };
        let theirs = column_types::of(service, &form.mapping.target).await;
        let mut theirs = theirs.map_err(ProveError::database("reading the types of a service's table"))?;
        let mut theirs = |column: &ColumnMapping| theirs.remove(&column.target).filter(|sql| is_users(sql));
        let cast = |column: &ColumnMapping| theirs(column).unwrap_or_else(|| column.cast_sql.clone());
        Ok(Equality { source, target, target_casts: form.mapping.columns.iter().map(cast).collect() })
    }

    /// Looks at keys without locks, drops those that are equal, and tries to prove the others. Returns what is still
    /// open, and why.
    async fn look(&mut self, task: &mut Task<'_>, keys: &[RawKey]) -> Result<Open, ProveError> {
        let here = task.lookup.here(&self.authority, keys, Lock::None, false).await;
        let here = match task.rows(here, task.authority)? {
            Ok(rows) => rows,
            Err(reason) => return Ok(again(Vec::new(), keys.to_vec(), &reason)),
        };
        stop::wait(&self.stop, self.meeting.meet()).await??;
        let there = self.copy.there(task, keys, false).await;
        let there = match task.rows(there, self.sides.copy())? {
            Ok(rows) => rows,
            Err(reason) => return Ok(again(Vec::new(), keys.to_vec(), &reason)),
        };
        let (mut open, mut present, mut absent) = (Vec::new(), Vec::new(), Vec::new());
        for ((key, here), there) in keys.iter().zip(here).zip(there) {
            let seen = compared(task.authority, &there);
            if here.len() > 1 {
                open.push((key.clone(), Reason::NotOneRow));
            } else if judge(task.authority, here.first(), &seen).is_none() {
            } else if here.is_empty() {
                absent.push((key.clone(), versions(&seen)));
            } else {
                present.push(key.clone());
            }
        }
        open.extend(self.prove_present(task, present).await?);
        open.extend(self.prove_absent(task, absent).await?);
        Ok(open)
    }

    /// Keys that the authority has: under a lock.
    async fn prove_present(&mut self, task: &mut Task<'_>, keys: Vec<RawKey>) -> Result<Open, ProveError> {
        let (mut open, mut held) = (Vec::new(), Vec::new());
        let mut batches: Vec<Vec<RawKey>> = keys.chunks(task.limits.rows).rev().map(<[_]>::to_vec).collect();
        while let Some(mut batch) = batches.pop() {
            stop::look(&self.stop)?;
            match self.lock(task, &batch, Lock::SkipHeld).await? {
                Locked::Rows(here, there) => held.extend(task.judge_locked(batch, &here, &there)),
                Locked::Slow if batch.len() > 1 => {
                    batches.push(batch.split_off(batch.len() / 2));
                    batches.push(batch);
                }
                Locked::Slow => open.extend(batch.into_iter().map(|key| (key, Reason::Slow))),
                Locked::Not(reason) => open.extend(batch.into_iter().map(|key| (key, reason.clone()))),
            }
        }
        for key in held {
            stop::look(&self.stop)?;
            if !task.may_wait() {
                open.push((key, Reason::Held));
                continue;
            }
            match self.lock(task, std::slice::from_ref(&key), Lock::Wait).await? {
                // Deleted meanwhile, or put there anew after the statement began.
                Locked::Rows(here, there) => {
                    open.extend(task.judge_locked(vec![key], &here, &there).map(|key| (key, Reason::Moving)));
                }
                Locked::Slow => open.push((key, Reason::Slow)),
                Locked::Not(reason) => open.push((key, reason)),
            }
        }
        Ok(open)
    }

    /// Reads both sides while the authority's rows are locked. What is returned was read before the lock was given up.
    async fn lock(&mut self, task: &mut Task<'_>, keys: &[RawKey], lock: Lock) -> Result<Locked, ProveError> {
        if let Some(reason) = task.no_lock() {
            return Ok(Locked::Not(reason));
        }
        let locker = match self.locker.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => match self.sides.locker(task.authority).await {
                Ok(session) => session,
                Err(error) => return Ok(Locked::Not(task.refuse_lock(chain(&error)))),
            },
        };
        let locker = self.locker.insert(locker);
        let (began, values, limits) = (Instant::now(), task.lists_more(), task.limits);
        let begin = limits.begin();
        // The lookup leaves at once behind the statements that open the transaction.
        let (opened, here) =
            tokio::join!(locker.batch_execute(&begin), task.lookup.here(locker, keys, lock, values));
        let there = match (&opened, &here) {
            (Ok(()), Ok(_)) => {
                let read = self.copy.there_met(&self.meeting, task, keys, values);
                timeout(limits.held.saturating_sub(began.elapsed()), read).await.ok()
            }
            _ => None,
        };
        // A transaction that the server ended meanwhile has locked nothing, and can't be rolled back.
        let ended = locker.batch_execute("ROLLBACK").await;
        opened.map_err(ProveError::database("opening a locking transaction"))?;
        let here = match here {
            Ok(here) => here,
            Err(error) => return task.not_locked(error, lock),
        };
        if ended.is_err() {
            self.locker = None;
            return Ok(Locked::Not(Reason::Behind));
        }
        match there {
            None => Ok(Locked::Not(Reason::Behind)),
            Some(there) => Ok(Locked::Rows(here, there?)),
        }
    }

    /// Keys that the authority does not have and the copy does, in these versions: there is nothing to lock.
    async fn prove_absent(
        &mut self,
        task: &mut Task<'_>,
        keys: Vec<(RawKey, Vec<String>)>,
    ) -> Result<Open, ProveError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (keys, mut open) = self.past_the_barrier(task, keys).await?;
        let (keys, versions): (Vec<RawKey>, Vec<Vec<String>>) = keys.into_iter().unzip();
        if keys.is_empty() {
            return Ok(open);
        }
        let here = task.lookup.here(&self.authority, &keys, Lock::None, false).await;
        let here = match task.rows(here, task.authority)? {
            Ok(rows) => rows,
            Err(reason) => return Ok(again(open, keys, &reason)),
        };
        stop::wait(&self.stop, self.meeting.meet()).await??;
        let there = self.copy.there(task, &keys, false).await;
        let there = match task.rows(there, self.sides.copy())? {
            Ok(rows) => rows,
            Err(reason) => return Ok(again(open, keys, &reason)),
        };
        for (((key, seen), here), mut there) in keys.into_iter().zip(versions).zip(here).zip(there) {
            // Only the very rows that were there before all of it are proven.
            there.retain(|row| row.version.as_ref().is_some_and(|version| seen.contains(version)));
            let there = compared(task.authority, &there);
            if here.is_empty() && !there.is_empty() {
                task.found(key, None, &there);
            } else {
                open.push((key, Reason::Moving));
            }
        }
        Ok(open)
    }

    /// Keeps the keys whose versions on the copy were seen before a moment from which on everything in the authority's
    /// log is visible there.
    async fn past_the_barrier(
        &self,
        task: &mut Task<'_>,
        keys: Vec<(RawKey, Vec<String>)>,
    ) -> Result<(Vec<(RawKey, Vec<String>)>, Open), ProveError> {
        let failed = || ProveError::database("waiting for older transactions of the authority");
        let taken = barrier::take(&self.authority).await.map_err(failed())?;
        let passed = barrier::wait(&self.authority, taken, &mut task.patience);
        if stop::wait(&self.stop, passed).await?.map_err(failed())? {
            return Ok((keys, Vec::new()));
        }
        let oldest = barrier::oldest(&self.authority).await.map_err(failed())?;
        let mut since = None;
        let (old, new): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(key, versions)| {
            let seen = task.last_round().then(|| task.seen.get(key)).flatten();
            let same = seen.filter(|seen| versions.iter().all(|version| seen.versions.contains(version)));
            since = since.max(same.map(|seen| seen.taken));
            same.is_some()
        });
        let mut open = Vec::with_capacity(new.len());
        for (key, versions) in new {
            task.see(&key, versions, taken);
            open.push((key, Reason::Barrier(oldest.clone())));
        }
        if let Some(since) = since {
            if barrier::nobody_between(&self.authority, since).await.map_err(failed())? {
                return Ok((old, open));
            }
            open.extend(old.into_iter().map(|(key, _)| (key, Reason::Barrier(oldest.clone()))));
        }
        Ok((Vec::new(), open))
    }
}

type Open = Vec<(RawKey, Reason)>;

fn again(mut open: Open, keys: Vec<RawKey>, reason: &Reason) -> Open {
    open.extend(keys.into_iter().map(|key| (key, reason.clone())));
    open
}

fn versions(rows: &[&Held]) -> Vec<String> {
    rows.iter().filter_map(|row| row.version.clone()).collect()
}

fn chain(error: &ConnectError) -> String {
    crate::cdc::mirror::chain_of(error)
}
