//! One at a time: a session lock by which verbs that change what guards a slice keep each other away.
//!
//! Taken in every database that a verb works on, by `provision`, `arm`, `disarm`, `retire`, `unretire` and `abandon`, and shared by flips on both
//! sides, which therefore meet no change of gates or of old tables half-way, and do not meet each other here. A session lock rather
//! than a transaction, so that nothing is held open across databases; it ends with its session, however that ends. No row's safety
//! rests on it.

use std::fmt;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Error};

use super::gate::LOCK_CLASS;
use crate::words;

/// How long somebody may go on holding it. The session of a process that was killed ends a moment after it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two tries.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Takes it; `false` when somebody else holds it for seconds.
///
/// # Errors
/// What the server said.
pub async fn take(client: &Client) -> Result<bool, Error> {
    let begun = Instant::now();
    loop {
        let row = client.query_one("SELECT pg_try_advisory_lock($1, 0)", &[&LOCK_CLASS]).await?;
        if row.try_get(0)? {
            return Ok(true);
        }
        if begun.elapsed() >= PATIENCE {
            return Ok(false);
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Shares it with other flips; `false` when somebody has it alone. Let go with the session.
///
/// # Errors
/// What the server said.
pub async fn try_share(client: &Client) -> Result<bool, Error> {
    client.query_one("SELECT pg_try_advisory_lock_shared($1, 0)", &[&LOCK_CLASS]).await?.try_get(0)
}

/// Another session that has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// Server process.
    pub pid: i32,
    /// `application_name`, or the role where there is none.
    pub application: String,
    /// For how long it has been connected, in seconds; `None` where this role may not see that.
    pub age_s: Option<f64>,
}

/// As an operator reads it.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, application, age_s } = self;
        match age_s {
            Some(age_s) => {
                write!(f, "process {pid} ({application}, connected for {})", words::seconds(*age_s))
            }
            None => write!(f, "process {pid} ({application})"),
        }
    }
}

impl Holder {
    /// What ends the session of a process that does not go on. Its lock is all that is lost with it.
    #[must_use]
    pub fn end(&self) -> String {
        format!("SELECT pg_terminate_backend({})", self.pid)
    }
}

/// Who has it, as far as that is to be seen: whoever has it alone before flips that share it, and the oldest of those.
pub async fn holder(client: &Client) -> Option<Holder> {
    let sql = "SELECT l.pid, coalesce(nullif(a.application_name, ''), 'role ' || a.usename, 'unknown'), \
                   extract(epoch FROM clock_timestamp() - a.backend_start)::float8 \
               FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) \
               WHERE l.locktype = 'advisory' AND l.classid = $1 AND l.objid = 0 AND l.objsubid = 2 AND l.granted \
                   AND l.pid <> pg_backend_pid() \
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               ORDER BY l.mode = 'ExclusiveLock' DESC, a.backend_start NULLS LAST LIMIT 1";
    let row = client.query_opt(sql, &[&LOCK_CLASS.unsigned_abs()]).await.ok().flatten()?;
    Some(Holder { pid: row.get(0), application: row.get(1), age_s: row.get(2) })
}

/// Lets it go, where this session holds it.
pub async fn release(client: &Client) {
    let sql = format!(
        "DO $$ BEGIN IF EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() \
         AND classid = {LOCK_CLASS} AND objid = 0 AND objsubid = 2) \
         THEN PERFORM pg_advisory_unlock({LOCK_CLASS}, 0); END IF; END $$"
    );
    // A broken connection has released it already.
    let _ = client.batch_execute(&sql).await;
}
