//! Standbys of a side that was closed: one that is promoted without the fence would have an open gate.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::{FlipError, of_database};
use crate::authority::Event;
use crate::plan::FenceStandbys;

/// Pause between two looks: a standby in the same rack takes a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How many of those that follow this server and are waited for have not flushed `$1`; a standby whose position this role may
/// not see counts as one that has not.
const BEHIND_SQL: &str = "
SELECT count(*) FROM pg_stat_replication AS r
WHERE coalesce(r.state, '') <> 'backup' AND ($2 OR coalesce(r.sync_state IN ('sync', 'quorum'), true))
  AND NOT coalesce(r.flush_lsn >= $1, false)
  AND NOT EXISTS (SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')";

/// Waits until the standbys that the plan names have flushed all that `primary` has: whatever was committed there before this
/// was called. [`Event::OutOfTime`] when that takes longer than `limit`.
///
/// # Errors
/// [`FlipError`].
pub(super) async fn flushed(
    primary: &Client,
    which: FenceStandbys,
    limit: Duration,
) -> Result<Event, FlipError> {
    let all = match which {
        FenceStandbys::None => return Ok(Event::Hit),
        FenceStandbys::Sync => false,
        FenceStandbys::All => true,
    };
    let deadline = Instant::now() + limit;
    let failed = |error: tokio_postgres::Error| of_database(&error, "asking for standbys", false);
    let position = match primary.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await {
        Ok(row) => row.get::<_, PgLsn>(0),
        Err(error) => return failed(error),
    };
    loop {
        match primary.query_one(BEHIND_SQL, &[&position, &all]).await {
            Ok(row) if row.get::<_, i64>(0) == 0 => return Ok(Event::Hit),
            Ok(_) if Instant::now() >= deadline => return Ok(Event::OutOfTime),
            Ok(_) => tokio::time::sleep(LOOK_EVERY).await,
            Err(error) => return failed(error),
        }
    }
}
