//! Standbys of a side that was closed: one that is promoted without the fence would have an open gate.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use super::{FlipError, of_database};
use crate::authority::Event;
use crate::plan::FenceStandbys;
use crate::postgres::ask::Ask;
use crate::postgres::connect::Session;

/// Pause between two looks: a standby in the same rack takes a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(1);

const ASKING: &str = "asking for standbys";

/// Where this server's log is flushed, and who of those that follow it and are waited for are not there; a standby whose
/// position this role may not see counts as one that is not. `$1` for all that follow, else those that commits wait for; `$2` is
/// the position of an earlier look. A sender that works for one database reads single changes of it, or nothing yet.
const BEHIND_SQL: &str = "
WITH here AS MATERIALIZED (SELECT coalesce($2, pg_current_wal_flush_lsn()) AS lsn)
SELECT here.lsn, ARRAY(
    SELECT coalesce(nullif(r.application_name, ''), 'process ' || r.pid) FROM pg_stat_replication AS r
    WHERE coalesce(r.state, '') <> 'backup' AND ($1 OR coalesce(r.sync_state IN ('sync', 'quorum'), true))
      AND NOT coalesce(r.flush_lsn >= here.lsn, false)
      AND NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.pid = r.pid AND a.datid IS NOT NULL)
    ORDER BY 1)
FROM here";

/// One look: the position, and the names of those who have not flushed it.
async fn look(
    primary: &impl Ask,
    all: bool,
    at: Option<PgLsn>,
) -> Result<(PgLsn, Vec<String>), tokio_postgres::Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&all, Type::BOOL), (&at, Type::PG_LSN)];
    let row = primary.ask_one(BEHIND_SQL, &parameters).await?;
    Ok((row.get(0), row.get(1)))
}

/// The standbys that have not flushed what is there now.
pub(super) async fn behind(primary: &impl Ask, all: bool) -> Result<Vec<String>, tokio_postgres::Error> {
    look(primary, all, None).await.map(|(_, behind)| behind)
}

/// One look at whether the standbys that the plan names have flushed all that these have now. [`Event::OutOfTime`] where one has not.
///
/// # Errors
/// [`FlipError`].
pub(super) async fn at_once(primaries: &[&Session], which: FenceStandbys) -> Result<Event, FlipError> {
    let Some(all) = whom(which) else { return Ok(Event::Hit) };
    match try_join_all(primaries.iter().map(|primary| behind(*primary, all))).await {
        Ok(behind) if behind.iter().all(Vec::is_empty) => Ok(Event::Hit),
        Ok(_) => Ok(Event::OutOfTime),
        Err(error) => of_database(&error, ASKING, false),
    }
}

/// Waits until the standbys that the plan names have flushed all that `primary` has: whatever was committed there before this
/// was called. [`Event::OutOfTime`] when that takes longer than `limit`, with those that were waited for at the end in `late`.
///
/// # Errors
/// [`FlipError`].
pub(super) async fn flushed(
    primary: &impl Ask,
    which: FenceStandbys,
    limit: Duration,
    late: &mut Vec<String>,
) -> Result<Event, FlipError> {
    let Some(all) = whom(which) else { return Ok(Event::Hit) };
    let deadline = Instant::now() + limit;
    let mut position = None;
    loop {
        match look(primary, all, position).await {
            Ok((_, names)) if names.is_empty() => {
                late.clear();
                return Ok(Event::Hit);
            }
            Ok((_, names)) if Instant::now() >= deadline => {
                *late = names;
                return Ok(Event::OutOfTime);
            }
            Ok((at, _)) => position = Some(at),
            Err(error) => return of_database(&error, ASKING, false),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether all that follow count, or only those that commits wait for; `None` where no one counts.
fn whom(which: FenceStandbys) -> Option<bool> {
    match which {
        FenceStandbys::None => None,
        FenceStandbys::Sync => Some(false),
        FenceStandbys::All => Some(true),
    }
}
