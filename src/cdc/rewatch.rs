//! The watch over a fenced monolith, begun anew when its slot is lost, and what becomes of it where authority came home meanwhile. While the service has the authority the stream from
//! the monolith is a tripwire and carries no row, so no table is copied or touched for it. What was written on the monolith
//! between the old position and the new slot nobody looked at, past the gate as it would have been; another slot voids
//! every verdict, and the comparison that is asked for then finds what such a write left behind.

use super::emptying;
use super::engine::SliceConfig;
use super::error::MirrorError;
use super::launch::Links;
use super::publication::Published;
use super::record::Happened;
use super::source;
use super::start::{self, Starting};
use crate::failpoint;
use crate::journal::authority;
use crate::journal::copies::{self, TableRow};
use crate::journal::streams::{self, StreamRow, StreamState};

/// Whether what a running tripwire has looked through and what its slot still has belong together, and every table was
/// published all the while.
pub(super) async fn is_whole(
    links: &Links,
    published: &Published,
    (slice, row): (&str, &StreamRow),
) -> Result<bool, MirrorError> {
    if row.state != StreamState::Running {
        return Ok(false);
    }
    let known = copies::tables(&links.target, slice).await?;
    let is_another = |table: &TableRow| {
        let entry = published.iter().find(|(name, _)| name.to_string() == table.source_table);
        entry.is_some_and(|(_, entry)| table.published_as.is_some_and(|known| known != *entry))
    };
    if known.iter().any(is_another) {
        return Ok(false);
    }
    let slot = source::slot(&links.source, &row.slot).await?;
    Ok(slot.is_some_and(|slot| {
        slot.wal_status.as_deref() != Some("lost")
            && slot.confirmed.is_some_and(|confirmed| confirmed <= row.applied)
    }))
}

/// Since which change the monolith has the authority over a slice whose forward stream still watches. A driver turns it in the next
/// moment, unless it can't go on: then the service's tables are copies without a stream, and only another copy has one. `None` while
/// the service has the authority, or nobody.
pub(super) async fn home(
    (monolith, service): (&tokio_postgres::Client, &tokio_postgres::Client),
    slice: &str,
) -> Result<Option<i64>, MirrorError> {
    let (there, here) = (authority::stands(monolith, slice).await?, authority::stands(service, slice).await?);
    let closed_by = |epoch: &i64| here == Some((false, *epoch));
    Ok(there.and_then(|(open, epoch)| open.then_some(epoch)).filter(closed_by))
}

/// `--rebuild` while the service has the authority: its tables are the truth, so of all that it means elsewhere only a lost watch
/// is left. Gives the old slot back, and the stream another one to make, from which on it knows the tables by the entries that
/// the publication has now. A slot that is about to be made already stays, and so does a watch that lost nothing.
///
/// # Errors
/// [`MirrorError`]; [`MirrorError::Refused`] where the service has not, or not any more, the authority.
pub(super) async fn begin(
    config: &SliceConfig,
    (links, published): (&mut Links, &Published),
    starting: Starting<'_>,
    row: StreamRow,
    identity: &streams::Source,
) -> Result<StreamRow, MirrorError> {
    let (slice, target) = (starting.slice, &links.target);
    if row.state == StreamState::Creating {
        // Nothing was looked at yet, so it begins with what is published by now.
        note_entries(target, slice, published).await?;
        return Ok(row);
    }
    if is_whole(links, published, (slice, &row)).await? {
        tracing::warn!(
            slice,
            "--rebuild copies nothing: the service's tables are no copies, and the watch over the monolith is whole"
        );
        return Ok(row);
    }
    let tell = |text: &str| config.board.phase(config.of(), "waiting", Some(text));
    start::wait_for_slot(&links.source, &row.slot, &tell).await?;
    target.batch_execute("BEGIN").await.map_err(MirrorError::sql("opening a transaction"))?;
    let slot = start::slot_name(starting.plan, slice);
    if !streams::rewatch(target, slice, row.nonce, &slot, identity).await? {
        return Err(not_begun(config, (&links.source, target), &row).await);
    }
    note_entries(target, slice, published).await?;
    let happened = Happened::Unwatched { slot: &row.slot, since: row.applied, anew: &slot };
    config.recorder.write(target, Some(row.applied), happened).await?;
    // As for a copy from the beginning: a crash behind this leaves a stream without its slot, never a slot that nobody knows of.
    if source::slot(&links.source, &row.slot).await?.is_some() {
        links.replication.drop_slot(&row.slot).await?;
        failpoint::hit("rewatch-slot-dropped");
    }
    target.batch_execute("COMMIT").await.map_err(MirrorError::sql("beginning the watch anew"))?;
    config.recorder.anchor();
    failpoint::hit("rewatch-recorded");
    tracing::warn!(
        slice,
        since = %row.applied,
        "the watch over the closed monolith begins anew: writes past its gate since then were not seen, and a full \
         comparison finds what they left"
    );
    emptying::reread(config, target).await
}

/// From another slot on the tables are published under these entries. Also where one was marked as changed unheard: what came
/// through the old slot is void, and the full comparison that is asked for judges the rows themselves.
async fn note_entries(
    target: &tokio_postgres::Client,
    slice: &str,
    published: &Published,
) -> Result<(), MirrorError> {
    for (table, entry) in published {
        copies::set_published_as(target, slice, &table.to_string(), *entry).await?;
        failpoint::hit("entry-noted");
    }
    Ok(())
}

/// Why the watch could not be begun: another process took over, or the authority is about to move.
pub(super) async fn not_begun(
    config: &SliceConfig,
    (source, target): (&tokio_postgres::Client, &tokio_postgres::Client),
    row: &StreamRow,
) -> MirrorError {
    let slice = &config.mapping.slice;
    match streams::current_nonce(target, config.of()).await {
        Err(error) => error.into(),
        Ok(nonce) if nonce != Some(row.nonce) => MirrorError::Fenced { slice: slice.clone() },
        Ok(_) if home((source, target), slice).await.is_ok_and(|home| home.is_some()) => {
            copy_again(slice, "its slot was not made in time")
        }
        Ok(_) => MirrorError::Refused {
            what: format!(
                "the watch over the monolith of slice {slice} is begun anew only while its service takes writes, and it does not"
            ),
            next: format!("strangler status PLAN --slice {slice}"),
        },
    }
}

/// Authority came home before the stream of the slice could be turned, and it can't be turned any more.
pub(super) fn copy_again(slice: &str, why: &str) -> MirrorError {
    MirrorError::Refused {
        what: format!(
            "slice {slice} belongs to the monolith again, and the stream that would bring its writes can't go on: {why}"
        ),
        next: format!("strangler mirror PLAN --slice {slice} --rebuild, which copies the slice again"),
    }
}
