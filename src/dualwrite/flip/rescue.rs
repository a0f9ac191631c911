//! What a running mirror does about a slice whose operator is gone: a side that was closed and whose peer was not opened is a
//! standstill for the application, and the writes of a side that was opened go nowhere until its stream is turned, so the move
//! is finished. What the operator had no time to write down is written down, once for each change of authority.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::moves::{self, Member, Moved, Order};
use super::timeline::Timeline;
use super::{FlipError, Links, record};
use crate::authority::{
    Effect, Epoch, Event, Facts, Intent, Rows, Side, Sight, State, Step, group_to_read, step,
};
use crate::cdc::mirror::chain_of;
use crate::journal::authority;

/// How long a move may be unfinished before it is taken to be nobody's. An operator takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two attempts to finish the same move doubles up to here: what keeps it from its end seldom passes at once.
const ATTEMPT_AFTER_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks at an armed slice, and at one that can't move because it is not armed.
const LOOK_ARMED: Duration = Duration::from_millis(500);
const LOOK_UNARMED: Duration = Duration::from_secs(5);

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It has no way back, so authority can't move.
    Unarmed,
    /// A side has authority since this change, and nothing is left to do but to see that it is written down.
    Owned(Side, Epoch),
    /// Something only a human can decide about.
    Doubtful,
    /// Something is left to do since these changes of both sides.
    Unfinished(Epoch, Epoch),
}

/// A move that could not be finished.
#[derive(Debug)]
struct Failed {
    /// What was seen when it was tried.
    seen: Seen,
    /// When it is tried again; never where only a human can give it an end.
    again: Option<Instant>,
    pause: Duration,
    /// Why, as it was logged.
    why: String,
}

impl Failed {
    /// The move is tried again now, if it is still that one.
    fn is_due(failed: Option<&Self>, seen: Seen) -> bool {
        failed.is_none_or(|failed| {
            failed.seen != seen || failed.again.is_some_and(|again| Instant::now() >= again)
        })
    }
}

/// Watches one slice until `stop`; `order` is to resume what somebody began, and begins nothing.
pub async fn watch(member: Member, order: Order, stop: CancellationToken) {
    let slice = member.mapping.slice.clone();
    let mut links = member.links.take();
    let mut since: Option<(Seen, Instant)> = None;
    let mut recorded = record::FIRST;
    let mut failed: Option<Failed> = None;
    loop {
        let seen = match look(&mut links, &slice).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!(slice, error = chain_of(&error), "who may write could not be looked up");
                Seen::Unarmed
            }
        };
        since = since.filter(|(known, _)| *known == seen).or(Some((seen, Instant::now())));
        let patient = since.is_some_and(|(_, at)| at.elapsed() >= PATIENCE);
        match seen {
            Seen::Unfinished(..) if patient && Failed::is_due(failed.as_ref(), seen) => {
                failed = finish(&member, &order, (seen, failed)).await;
                member.links.close();
                since = None;
            }
            // Its operator may have died before it named the owner on the closed side, or before the ledger had its entry.
            Seen::Owned(owner, epoch) if patient && recorded != epoch => {
                let (slice, timeline) = (slice.clone(), Timeline::default());
                let moved = Moved { slice, owner, epoch, changed: false, timeline };
                match record::record(&member, &order, &moved).await {
                    Ok(()) => recorded = epoch,
                    Err(error) => {
                        tracing::debug!(
                            slice = moved.slice,
                            error = chain_of(&error),
                            "not seen to be written down"
                        );
                    }
                }
                member.links.close();
                since = None;
            }
            Seen::Unfinished(..) | Seen::Owned(..) | Seen::Doubtful | Seen::Unarmed => {}
        }
        let pause = if seen == Seen::Unarmed { LOOK_UNARMED } else { LOOK_ARMED };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Finishes a move. What came of it is logged once, however often it is tried.
async fn finish(member: &Member, order: &Order, (seen, before): (Seen, Option<Failed>)) -> Option<Failed> {
    let slice = &member.mapping.slice;
    let before = before.filter(|before| before.seen == seen);
    if before.is_none() {
        tracing::warn!(slice, "a move was left unfinished; it is finished now");
    }
    let error = match Box::pin(moves::carry_out(std::slice::from_ref(member), order)).await {
        Ok(moved) => {
            for moved in moved {
                tracing::info!(slice, owner = %moved.owner, epoch = moved.epoch.0, "authority is settled");
            }
            return None;
        }
        Err(error) => error,
    };
    let why = chain_of(&error);
    let human = matches!(error.source, FlipError::Full { .. } | FlipError::Retired { .. });
    if before.as_ref().is_none_or(|before| before.why != why) {
        let next = if let FlipError::NotWhole { settled, .. } = error.source {
            if settled {
                "strangler mirror with --retry TABLE copies it again from the closed monolith, and then the move is finished"
            } else {
                "strangler flip --abort gives authority back to the monolith, which has all rows"
            }
        } else if human {
            "nobody may write until that is mended and strangler flip is typed again, or strangler flip --abort"
        } else {
            "as long as both sides are closed, strangler flip --abort takes it back"
        };
        tracing::error!(slice, error = why, "the move could not be finished; {next}");
    }
    let pause = before.map_or(PATIENCE, |before| (before.pause * 2).min(ATTEMPT_AFTER_MAX));
    Some(Failed { seen, again: (!human).then(|| Instant::now() + pause), pause, why })
}

async fn look(links: &mut Links, slice: &str) -> Result<Seen, FlipError> {
    let failed = |error: crate::journal::JournalError| FlipError::Failed {
        what: "looking at a side",
        words: chain_of(&error),
    };
    let monolith = links.looking(Side::Monolith).await?;
    let there = authority::look(monolith, slice, Side::Monolith.incoming()).await.map_err(failed)?;
    let service = links.looking(Side::Service).await?;
    let here = authority::look(service, slice, Side::Service.incoming()).await.map_err(failed)?;
    let (Some(there), Some(here)) = (there, here) else { return Ok(Seen::Unarmed) };
    if there.incoming.is_none() {
        return Ok(Seen::Unarmed);
    }
    Ok(judge(Rows::try_from(&there)?, Rows::try_from(&here)?))
}

/// Whether whoever resumes would have something to do.
fn judge(monolith: Rows, service: Rows) -> Seen {
    let unfinished = Seen::Unfinished(monolith.gate.epoch, service.gate.epoch);
    if group_to_read(&monolith.gate, &service.gate, None).is_some() {
        // Only a slice that nobody may write is in the middle of a move together with others.
        return unfinished;
    }
    let facts = Facts { monolith: Sight::Seen(monolith), service: Sight::Seen(service), group: None };
    match step(State::begin(Intent::Resume), Event::Observed(facts)) {
        Ok(Step { effect: Some(effect), .. }) if effect != Effect::Look => unfinished,
        Ok(Step { state: State::Settled { owner, epoch }, .. }) => Seen::Owned(owner, epoch),
        // What it doubts or refuses needs a human, whom `status` calls.
        Ok(_) | Err(_) => Seen::Doubtful,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Cause, Gate, GateState, GroupId, Mode, Stream};
    use crate::journal::streams::StreamState;
    use crate::lsn::Lsn;

    fn rows(state: GateState, epoch: i64, mode: Mode) -> Rows {
        let cause = if state == GateState::Open { Cause::Open } else { Cause::Fence };
        let at = Some(Lsn(10));
        let gate = Gate { state, epoch: Epoch(epoch), cause, fence_lsn: at, cut_lsn: at, group: None };
        let stream = Stream { mode, epoch: Epoch(epoch), applied: Lsn(20), state: StreamState::Running };
        Rows { gate, incoming: Some(stream) }
    }

    #[test]
    fn a_closed_pair_and_a_stream_that_was_not_turned_are_unfinished() {
        let closed = (rows(GateState::Fenced, 2, Mode::Tripwire), rows(GateState::Fenced, 1, Mode::Apply));
        assert_eq!(judge(closed.0, closed.1), Seen::Unfinished(Epoch(2), Epoch(1)));
        let mut together = closed.0;
        together.gate.group = Some(GroupId(7));
        assert_eq!(judge(together, closed.1), Seen::Unfinished(Epoch(2), Epoch(1)));
        let opened = rows(GateState::Open, 2, Mode::Tripwire);
        assert_eq!(
            judge(closed.0, opened),
            Seen::Unfinished(Epoch(2), Epoch(2)),
            "writes of the service go nowhere"
        );
        assert_eq!(
            judge(rows(GateState::Fenced, 2, Mode::Apply), opened),
            Seen::Owned(Side::Service, Epoch(2))
        );
    }

    #[test]
    fn what_needs_a_human_is_left_to_one() {
        let open = rows(GateState::Open, 2, Mode::Apply);
        assert_eq!(judge(open, open), Seen::Doubtful);
    }
}
