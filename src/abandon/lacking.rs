//! Whether the monolith still has everything that the mirror has read from it. One that was set back to an earlier state has not, and then
//! the service's copies may be the only rows that are left.

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, Type};

use super::AbandonError;
use crate::journal::lineage;
use crate::journal::streams::{StreamOf, StreamRow, StreamState};

/// What it lacks, or may lack, in words; nothing where it has all of it. The marks are asked for while the monolith `knows` the slice: with
/// that it forgets them, too.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn lacking(
    (monolith, service): (&Client, &Client),
    (slice, knows): (&str, bool),
    stream: &StreamRow,
) -> Result<Option<String>, AbandonError> {
    match stream.state {
        // Nothing was read yet.
        StreamState::Creating => return Ok(None),
        StreamState::Diverged => {
            let detail =
                stream.detail.as_deref().unwrap_or("its stream is marked as broken, without a reason");
            return Ok(Some(format!("the monolith may lack rows that are here: {detail}")));
        }
        StreamState::Running | StreamState::Gap => {}
    }
    let of = StreamOf::forward(slice);
    if knows
        && let Some(noted) = lineage::read(service, of, &stream.slot).await?
        && lineage::read(monolith, of, &stream.slot).await?.is_none_or(|has| has < noted)
    {
        return Ok(Some(format!(
            "the monolith was set back to an earlier state, and may lack rows that are here: mark {noted}, which the mirror wrote there, is gone"
        )));
    }
    from_its_log(monolith, stream).await
}

/// What no mark tells: one that was written after the last mark, or by a version that wrote none.
async fn from_its_log(monolith: &Client, stream: &StreamRow) -> Result<Option<String>, AbandonError> {
    let sql = "SELECT $1 > coalesce(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, '0/0'), \
               CASE WHEN NOT pg_is_in_recovery() THEN ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int4 END";
    let row = monolith.query_typed_one(sql, &[(&PgLsn::from(stream.applied), Type::PG_LSN)]).await;
    let row = row.map_err(AbandonError::database("how far the monolith's log goes"))?;
    let (ends_before, timeline): (bool, Option<i32>) = (row.get(0), row.get(1));
    if ends_before {
        return Ok(Some(format!(
            "the monolith lacks rows that are here: its log ends before {}, which was applied",
            stream.applied
        )));
    }
    let moved = timeline.filter(|timeline| *timeline != stream.source.timeline);
    Ok(moved.map(|timeline| {
        format!(
            "the monolith's log went on as timeline {timeline} since the mirror last read it, and may lack rows that are here; a mirror that \
             starts finds out whether it does"
        )
    }))
}
