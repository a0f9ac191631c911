//! Takes locks that an application in full swing holds all the time, without getting in its way.
//!
//! A lock that is asked for holds back everybody who comes after it, even while it is not granted. So it is asked for
//! only when nobody holds it who will not let go soon, and only for a moment: 50 ms, growing with each attempt up to a
//! second, with pauses in which everybody may go on. A limit below `deadlock_timeout` has a second reason: a waiter who
//! waits longer has autovacuum cancelled (PostgreSQL documentation, section 25.1.6).

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Error};

use super::locks::Locks;
use crate::postgres::connect::idle_limit;
use crate::postgres::partitions::TREES;
use crate::postgres::sqlstate;
use crate::words;
use crate::words::statement;

/// The first attempt's limit: an ordinary transaction ends within it.
pub const FIRST_LOCK_TIMEOUT_MS: u64 = 50;

/// The longest one: below the usual `deadlock_timeout` of a second.
const LAST_LOCK_TIMEOUT_MS: u64 = 900;

/// Who holds a lock for longer than this is waited for without asking for the lock.
const LONG_S: f64 = 1.0;

/// How often a long holder is looked at again.
const LOOK: Duration = Duration::from_millis(200);

/// How often the operator is told.
pub(super) const TOLD_EVERY: Duration = Duration::from_secs(2);

/// How long one step may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For one table, or for the slot.
    pub total: Duration,
}

/// How a transaction of a step begins. `limit_ms` is for locks that its statements take by themselves.
#[must_use]
pub fn begin(limit_ms: u64) -> [String; 4] {
    // Definitions come from the catalogs with qualified names, so no other path must be able to capture them.
    [
        "BEGIN".to_owned(),
        "SET LOCAL search_path = pg_catalog".to_owned(),
        format!("SET LOCAL lock_timeout = {limit_ms}"),
        idle_limit(),
    ]
}

/// Somebody who holds a lock that we need.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// Process id; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Application name, or else the role.
    pub application: String,
    /// `pg_stat_activity.state`, or the kind of process.
    pub state: String,
    /// The query, without values.
    pub query: String,
    /// Age of its transaction, in seconds.
    pub age_s: f64,
    /// It is VACUUM or ANALYZE, by hand or by itself.
    pub vacuum: bool,
    /// The table, as names are shown.
    pub table: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { application, state, table, .. } = self;
        let age = words::seconds(self.age_s);
        let Some(pid) = self.pid else {
            return write!(f, "a prepared transaction holds {table} (see pg_prepared_xacts)");
        };
        write!(f, "process {pid} ({application}, {state}, {age}) holds {table}")?;
        if !self.query.is_empty() {
            write!(f, ": {}", self.query)?;
        }
        Ok(())
    }
}

/// Asks for `pg_locks` that conflict with the modes on these relations and everything below them.
fn holders_sql() -> String {
    format!(
        "SELECT l.pid, coalesce(nullif(a.application_name, ''), 'role ' || a.usename, a.backend_type, 'unknown'),
    coalesce(a.state, a.backend_type, 'unknown'), coalesce(a.query, ''),
    coalesce(greatest(0, extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.query_start))), 0)::float8,
    coalesce(a.backend_type = 'autovacuum worker', false)
        OR EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = l.pid)
        OR EXISTS (SELECT FROM pg_stat_progress_analyze v WHERE v.pid = l.pid),
    n.nspname::text, c.relname::text
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.mode = ANY ($2) AND l.relation IN (SELECT r.oid FROM {TREES})
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY l.pid IS NULL DESC, 5 DESC"
    )
}

/// Who stands in the way now, the oldest first.
///
/// # Errors
/// What the server said.
pub async fn holders(client: &Client, locks: &Locks) -> Result<Vec<Holder>, Error> {
    let rows = client.query(&holders_sql(), &[&locks.names(), &locks.mode.waits_for()]).await?;
    let holder = |row: &tokio_postgres::Row| {
        Ok(Holder {
            pid: row.try_get(0)?,
            application: row.try_get(1)?,
            state: row.try_get(2)?,
            query: statement::shown(row.try_get(3)?),
            age_s: row.try_get(4)?,
            vacuum: row.try_get(5)?,
            table: crate::name::TableName::new(row.try_get::<_, String>(6)?, row.try_get::<_, String>(7)?)
                .to_string(),
        })
    };
    rows.iter().map(holder).collect()
}

/// Why a step was not taken.
#[derive(Debug)]
pub enum Stopped {
    /// The time is over; who stood in the way when it was last looked at.
    Over(Option<Holder>),
    /// A statement failed.
    Failed(Error),
}

/// One attempt's end.
enum Attempt {
    Done,
    /// A lock was not to be had.
    Busy,
    Failed(Error),
}

/// Runs `statements` in one transaction under the locks, as often as it takes. `tell` is called with the words about
/// whom it waits for. Returns with the transaction committed, or not begun.
///
/// # Errors
/// [`Stopped`].
pub async fn transact(
    client: &Client,
    (before, locks, statements): (&[&str], Option<&Locks>, &[&str]),
    patience: Patience,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Stopped> {
    let begun = Instant::now();
    let longest = longest_limit(client).await.map_err(Stopped::Failed)?;
    let mut limit_ms = FIRST_LOCK_TIMEOUT_MS.min(longest);
    let mut told: Option<Instant> = None;
    let mut last = None;
    loop {
        let who = match locks {
            Some(locks) => holders(client, locks).await.map_err(Stopped::Failed)?.into_iter().next(),
            None => None,
        };
        let long = who.as_ref().filter(|who| who.pid.is_none() || who.vacuum || who.age_s > LONG_S);
        if let Some(long) = long {
            last = Some(long.clone());
        } else {
            match attempt(client, (before, locks, statements), limit_ms).await {
                Attempt::Done => return Ok(()),
                Attempt::Failed(error) => return Err(Stopped::Failed(error)),
                Attempt::Busy => {
                    limit_ms = (limit_ms * 2).min(longest);
                    last = who.or(last);
                }
            }
        }
        if begun.elapsed() >= patience.total {
            return Err(Stopped::Over(last));
        }
        if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            let waited = words::seconds(begun.elapsed().as_secs_f64());
            let who = last.as_ref().map_or_else(|| "for a lock".to_owned(), |who| format!("because {who}"));
            tell(&format!("waiting {who} (waited {waited})"));
            told = Some(Instant::now());
        }
        // Everybody whom the attempt held back has gone on by then, and two who try do not meet again.
        let pause = LOOK.max(Duration::from_millis(limit_ms * 2));
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Below `deadlock_timeout`, so that nobody is cancelled in favour of us.
async fn longest_limit(client: &Client) -> Result<u64, Error> {
    let sql = "SELECT setting::int8 FROM pg_settings WHERE name = 'deadlock_timeout'";
    let deadlock_ms: i64 = client.query_typed_one(sql, &[]).await?.try_get(0)?;
    Ok(LAST_LOCK_TIMEOUT_MS.min(u64::try_from(deadlock_ms).unwrap_or(1) * 9 / 10).max(1))
}

async fn attempt(
    client: &Client,
    (before, locks, statements): (&[&str], Option<&Locks>, &[&str]),
    limit_ms: u64,
) -> Attempt {
    let locking = locks.map(|locks| locks.statements(limit_ms)).unwrap_or_default();
    let outcome = async {
        let begin = begin(limit_ms);
        for sql in begin.iter().map(String::as_str).chain(before.iter().copied()) {
            client.batch_execute(sql).await.map_err(|error| (error, false))?;
        }
        for sql in &locking {
            client.batch_execute(sql).await.map_err(|error| (error, true))?;
        }
        for sql in statements {
            client.batch_execute(sql).await.map_err(|error| (error, false))?;
        }
        crate::failpoint::hit("arm-before-commit");
        Ok(())
    };
    match outcome.await {
        Ok(()) => match client.batch_execute("COMMIT").await {
            Ok(()) => Attempt::Done,
            Err(error) => Attempt::Failed(error),
        },
        Err((error, locking)) => {
            // When the connection broke there is nothing to roll back; the first error tells the story.
            let _ = client.batch_execute("ROLLBACK").await;
            let timed_out = locking && sqlstate::code(&error) == Some("57014");
            // A deadlock was ours to lose: the application's transaction went on.
            let busy = sqlstate::is_lock_timeout(&error) || sqlstate::code(&error) == Some("40P01");
            if timed_out || busy { Attempt::Busy } else { Attempt::Failed(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_named_with_all_that_an_operator_needs_to_find_it() {
        let holder = Holder {
            pid: Some(42),
            application: "shop".to_owned(),
            state: "idle in transaction".to_owned(),
            query: "UPDATE t SET a = ?".to_owned(),
            age_s: 125.0,
            vacuum: false,
            table: "Orders".to_owned(),
        };
        assert_eq!(
            holder.to_string(),
            "process 42 (shop, idle in transaction, 2 min 5 s) holds Orders: UPDATE t SET a = ?"
        );
        let prepared = Holder { pid: None, ..holder };
        assert!(prepared.to_string().contains("pg_prepared_xacts"));
    }
}
