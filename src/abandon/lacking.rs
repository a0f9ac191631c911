//! Whether the monolith still has everything that the mirror has read from it. One that was set back to an earlier state has not, and then
//! the service's copies may be the only rows that are left.

use std::collections::BTreeSet;

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, Type};

use super::AbandonError;
use crate::failpoint;
use crate::journal::slices::SliceRow;
use crate::journal::streams::{StreamOf, StreamRow, StreamState};
use crate::journal::{abandonment, lineage};

/// What it lacks, or may lack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lacks {
    /// In words; nothing where it has all of it. What was seen once stays in it.
    pub(super) all: Vec<String>,
    /// Those that are to be written down, because they may not be seen again.
    fresh: Vec<String>,
}

impl Lacks {
    /// Whether both say the same, noted or not.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let all = |of: &Self| of.all.iter().cloned().collect::<BTreeSet<String>>();
        all(self) == all(other)
    }
}

/// Asks for it, while the monolith knows the slice. Before the copies go nothing of ours makes it forget that, so one that does not is
/// another one, or was set back.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn lacking(
    (monolith, service): (&Client, &Client),
    (slice, row): (&str, Option<&SliceRow>),
    stream: &StreamRow,
) -> Result<Lacks, AbandonError> {
    // Nothing was read yet.
    if stream.state == StreamState::Creating {
        return Ok(Lacks::default());
    }
    let mut lacks = noted(service, slice).await?;
    if stream.state == StreamState::Diverged {
        let detail = stream.detail.as_deref().unwrap_or("its stream is marked as broken, without a reason");
        lacks.all.push(format!("the monolith may lack rows that are here: {detail}"));
    }
    let mark = if row.is_some() {
        from_its_mark((monolith, service), slice, stream).await?
    } else {
        Some(
            "the monolith knows nothing of the slice any more: it was set back to an earlier state, or somebody removed what it knew, and may \
             lack rows that are here"
                .to_owned(),
        )
    };
    let log = from_its_log(monolith, stream).await?;
    let lasting = mark.into_iter().chain(log.ends_before);
    lacks.fresh = lasting.filter(|fact| !lacks.all.contains(fact)).collect();
    lacks.all.extend(lacks.fresh.iter().cloned().chain(log.moved));
    Ok(lacks)
}

/// What was written down of it, where nobody can be asked any more.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn noted(service: &Client, slice: &str) -> Result<Lacks, AbandonError> {
    Ok(Lacks { all: abandonment::noted_lacks(service, slice).await?, ..Lacks::default() })
}

/// Writes down what is new: a log that ended too early grows, and whoever looks then does not see it.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn note(service: &Client, slice: &str, lacks: &Lacks) -> Result<(), AbandonError> {
    for fact in &lacks.fresh {
        abandonment::note_lack(service, slice, fact).await?;
        failpoint::hit("abandon-lack-noted");
    }
    Ok(())
}

async fn from_its_mark(
    (monolith, service): (&Client, &Client),
    slice: &str,
    stream: &StreamRow,
) -> Result<Option<String>, AbandonError> {
    let of = StreamOf::forward(slice);
    let Some(noted) = lineage::read(service, of, &stream.slot).await? else { return Ok(None) };
    let has = lineage::read(monolith, of, &stream.slot).await?;
    Ok(has.is_none_or(|has| has < noted).then(|| {
        format!(
            "the monolith was set back to an earlier state, and may lack rows that are here: mark {noted}, which the mirror wrote there, is gone"
        )
    }))
}

/// What no mark tells: what was written after the last mark, or by a version that wrote none.
#[derive(Debug, Default)]
struct Log {
    /// It ends before what was applied. A standby that is behind is not said to lack it for good.
    ends_before: Option<String>,
    /// It is another timeline, until a mirror has looked.
    moved: Option<String>,
}

async fn from_its_log(monolith: &Client, stream: &StreamRow) -> Result<Log, AbandonError> {
    let sql = "SELECT $1 > coalesce(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, '0/0'), \
               CASE WHEN NOT pg_is_in_recovery() THEN ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int4 END";
    let row = monolith.query_typed_one(sql, &[(&PgLsn::from(stream.applied), Type::PG_LSN)]).await;
    let row = row.map_err(AbandonError::database("how far the monolith's log goes"))?;
    let (ends_before, timeline): (bool, Option<i32>) = (row.get(0), row.get(1));
    if ends_before {
        let fact = format!(
            "the monolith lacks rows that are here: its log ends before {}, which was applied",
            stream.applied
        );
        return Ok(match timeline {
            Some(_) => Log { ends_before: Some(fact), moved: None },
            None => Log { ends_before: None, moved: Some(fact) },
        });
    }
    let moved = timeline.filter(|timeline| *timeline != stream.source.timeline);
    let moved = moved.map(|timeline| {
        format!(
            "the monolith's log went on as timeline {timeline} since the mirror last read it, and may lack rows that are here; a mirror that \
             starts finds out whether it does"
        )
    });
    Ok(Log { ends_before: None, moved })
}
