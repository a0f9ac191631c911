//! Whether the source is still the one that the stream was read from.
//!
//! A copy of its files that somebody puts back (a snapshot of a disk or of a machine) has the same identity and the same timeline, and as
//! soon as it has written enough, its log goes past the applied position. From then on nothing in the protocol tells that it lacks
//! transactions which were applied. So the mirror counts a mark up in the source, and the target notes it once the stream has brought what
//! was sent behind it: a source whose mark is lower lacks something that was applied. That a mark has come down the stream first is what
//! keeps a promoted standby, of which nothing is missing that was applied, from looking set back.

use std::collections::VecDeque;

use tokio_postgres::Client;

use super::error::MirrorError;
use crate::failpoint;
use crate::journal::streams::StreamOf;
use crate::journal::{abandonment, lineage};

/// A stream, the slot that it reads from, and its mirror's nonce.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream<'a> {
    pub(super) of: StreamOf<'a>,
    pub(super) slot: &'a str,
    pub(super) nonce: i64,
}

/// What a source lacks that was set back, in words.
///
/// # Errors
/// [`MirrorError`].
pub(super) async fn set_back(
    (source, target): (&Client, &Client),
    of: StreamOf<'_>,
    slot: &str,
) -> Result<Option<String>, MirrorError> {
    // First the target's: the source's may only grow meanwhile.
    let Some(noted) = lineage::read(target, of, slot).await? else { return Ok(None) };
    let has = lineage::read(source, of, slot).await?;
    // A slice that is being taken back is forgotten by the monolith first.
    if has.is_some_and(|has| has >= noted) || abandonment::read(target, of.slice).await?.is_some() {
        return Ok(None);
    }
    let (side, other) = (of.direction.source(), of.direction.target());
    Ok(Some(format!(
        "the {side} was set back to an earlier state: this mirror has written mark {noted} there, and it has {}; what it took in between \
         is gone there, and the {other} has it",
        has.map_or_else(|| "none".to_owned(), |has| format!("mark {has}"))
    )))
}

/// How a source stands that is about to be marked.
enum Look {
    /// It was set back, and what it lacks.
    Lacks(String),
    /// Its mark.
    Has(i64),
    /// The slot is gone, and with it what a mark would stand for.
    Gone,
}

/// Looks at the source's mark, and makes one where there is none.
async fn look(
    (source, target): (&Client, &Client),
    of: StreamOf<'_>,
    slot: &str,
) -> Result<Look, MirrorError> {
    if let Some(lacks) = set_back((source, target), of, slot).await? {
        return Ok(Look::Lacks(lacks));
    }
    lineage::begin(source, of, slot).await?;
    failpoint::hit("lineage-begun");
    Ok(lineage::read(source, of, slot).await?.map_or(Look::Gone, Look::Has))
}

/// Counts a mark up in the source in front of a snapshot, whose rows come to the target ahead of the stream: with the mark noted there
/// before them, a source that lacks what the snapshot saw is told from the one that was read. `None` where it can't be written; the pulse
/// says so.
///
/// # Errors
/// [`MirrorError::Restart`] where the source was set back already: the next start says what it lacks.
pub(super) async fn before_snapshot(
    (source, target): (&Client, &Client),
    of: StreamOf<'_>,
    slot: &str,
) -> Result<Option<i64>, MirrorError> {
    let counting = async {
        loop {
            match look((source, target), of, slot).await? {
                Look::Lacks(_) => {
                    return Err(MirrorError::Restart { why: "the source was set back to an earlier state" });
                }
                Look::Gone => return Ok(None),
                // The pulse counts as well.
                Look::Has(known) if lineage::advance(source, of, (slot, known)).await? => {
                    failpoint::hit("lineage-advanced");
                    return Ok(Some(known + 1));
                }
                Look::Has(_) => {}
            }
        }
    };
    match counting.await {
        Err(error) if !error.is_retryable() => Ok(None),
        counted => counted,
    }
}

/// Marks that may be on their way down the stream: those of some two hours, in 64 kB. Where it is further behind, the marks are further apart.
const SENT_MAX: usize = 4_096;

/// What a pulse knows of its stream's marks.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The source's.
    known: Option<i64>,
    /// Marks that are to be noted, each with the heartbeat that was sent behind it, in their order.
    sent: VecDeque<(u64, i64)>,
    /// That it could not be written was said.
    said: bool,
}

impl Marks {
    /// Writes a mark in front of heartbeat `number`, and notes those that have come down the stream: `applied` is the last heartbeat that
    /// has. Says what the source lacks, if it was set back. Where it may not be written, the stream goes on without.
    ///
    /// # Errors
    /// [`MirrorError`], of what passes.
    pub(super) async fn beat(
        &mut self,
        (source, target): (&Client, &Client),
        stream: Stream<'_>,
        (number, applied): (u64, u64),
    ) -> Result<Option<String>, MirrorError> {
        match self.count((source, target), stream, (number, applied)).await {
            Err(error) if !error.is_retryable() => {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::warn!(
                        slice = stream.of.slice,
                        direction = stream.of.direction.as_str(),
                        error = super::mirror::chain_of(&error),
                        "the source can't be marked: if it is set back to an earlier state, that is not noticed"
                    );
                }
                Ok(None)
            }
            counted => counted,
        }
    }

    async fn count(
        &mut self,
        (source, target): (&Client, &Client),
        stream: Stream<'_>,
        (number, applied): (u64, u64),
    ) -> Result<Option<String>, MirrorError> {
        let Stream { of, slot, nonce } = stream;
        let come = self.sent.iter().take_while(|(beat, _)| *beat <= applied).count();
        if let Some((_, mark)) = self.sent.drain(..come).next_back() {
            lineage::note(target, of, nonce, (slot, mark)).await?;
            failpoint::hit("lineage-noted");
        }
        if self.sent.len() >= SENT_MAX {
            return Ok(None);
        }
        let known = match self.known {
            Some(known) => known,
            None => match look((source, target), of, slot).await? {
                Look::Lacks(lacks) => return Ok(Some(lacks)),
                Look::Has(known) => known,
                Look::Gone => return Ok(None),
            },
        };
        if lineage::advance(source, of, (slot, known)).await? {
            failpoint::hit("lineage-advanced");
            self.known = Some(known + 1);
            self.sent.push_back((number, known + 1));
            return Ok(None);
        }
        // Another mirror counts as well, or it was set back.
        self.known = None;
        set_back((source, target), of, slot).await
    }
}
