//! Waiting until nothing that is in the authority's log can still be invisible there.
//!
//! A commit is in the log, and applied by the mirror, before snapshots see it; with a synchronous standby that is away,
//! long before. Whoever concludes from a row's absence on the authority has to be past that window
//! (docs/protocol.md, section 10).

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::snapshot::FullXid;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Every transaction up to `$1` has ended, or sits idle: then it has not begun to commit, and its commit record is
/// later than this look. The activity of other roles is hidden from one without `pg_read_all_stats`: such
/// transactions are waited for.
const PASSED: &str = "\
SELECT pg_snapshot_xmin(pg_current_snapshot()) > $1::text::xid8 OR NOT EXISTS (
    SELECT FROM pg_snapshot_xip(pg_current_snapshot()) AS x(xid)
    WHERE x.xid <= $1::text::xid8 AND NOT EXISTS (
        SELECT FROM pg_stat_activity AS a
        WHERE a.backend_xid = x.xid::xid AND a.state IN ('idle in transaction', 'idle in transaction (aborted)')))";

/// Nobody waits for a standby or for the commit log between writing a commit record and becoming visible, and nobody is
/// hidden.
const NOBODY_BETWEEN: &str = "\
SELECT NOT EXISTS (SELECT FROM pg_stat_activity
        WHERE wait_event = 'SyncRep' OR wait_event LIKE 'SLRU%' OR query = '<insufficient privilege>')
    AND NOT EXISTS (SELECT FROM pg_snapshot_xip(pg_current_snapshot()) AS x(xid)
        WHERE x.xid <= $1::text::xid8
            AND NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.backend_xid = x.xid::xid)
            AND NOT EXISTS (SELECT FROM pg_prepared_xacts AS p WHERE p.transaction = x.xid::xid))";

const OLDEST: &str = "\
SELECT format('process %s (%s, database %s), open for %s s', pid,
        coalesce(nullif(application_name, ''), 'no application name'), datname,
        round(extract(epoch FROM clock_timestamp() - xact_start)))
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
ORDER BY age(backend_xid) DESC LIMIT 1";

/// A transaction id that is later than that of every transaction which has written anything by now: taken in a
/// transaction of its own.
///
/// # Errors
/// The server's.
pub async fn take(authority: &Client) -> Result<FullXid, tokio_postgres::Error> {
    // The text of an xid8 always reads as a number; the largest one never passes.
    let row = authority.query_typed_one("SELECT pg_current_xact_id()::text", &[]).await?;
    Ok(row.try_get::<_, &str>(0)?.parse().unwrap_or(FullXid::MAX))
}

/// Waits until every snapshot sees all that was in the log when `taken` was taken; false when that does not come within
/// `patience`, which is reduced by the time that was waited.
///
/// # Errors
/// The server's.
pub async fn wait(
    authority: &Client,
    taken: FullXid,
    patience: &mut Duration,
) -> Result<bool, tokio_postgres::Error> {
    let began = Instant::now();
    let passed = loop {
        if ask(authority, PASSED, taken).await? {
            break true;
        }
        if began.elapsed() >= *patience {
            break false;
        }
        tokio::time::sleep(LOOK).await;
    };
    *patience = patience.saturating_sub(began.elapsed());
    Ok(passed)
}

/// Of transactions up to `taken`, none is seen between its commit record and its visibility, and all of them can be
/// seen. For a `taken` of some seconds ago that is as good as [`wait`] where no process is frozen just there.
///
/// # Errors
/// The server's.
pub async fn nobody_between(authority: &Client, taken: FullXid) -> Result<bool, tokio_postgres::Error> {
    ask(authority, NOBODY_BETWEEN, taken).await
}

async fn ask(authority: &Client, sql: &str, taken: FullXid) -> Result<bool, tokio_postgres::Error> {
    let row = authority.query_typed_one(sql, &[(&taken.to_string(), Type::TEXT)]).await?;
    row.try_get(0)
}

/// The transaction that is waited for longest, in words: pid, application, database, age.
///
/// # Errors
/// The server's.
pub async fn oldest(authority: &Client) -> Result<String, tokio_postgres::Error> {
    let row = authority.query_typed_opt(OLDEST, &[]).await?;
    let none = "a prepared transaction, or one of a role whose activity is hidden; to see it, run as a superuser: \
                GRANT pg_read_all_stats TO the role of this link";
    row.map_or_else(|| Ok(none.to_owned()), |row| row.try_get(0))
}
