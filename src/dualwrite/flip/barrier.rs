//! The barrier: the writers of all members are held, and what they wrote is drained, before the first gate closes.
//!
//! Up to there everything can be let go without anybody getting an error, so a member whose writers take too long costs the
//! others a wait and nothing else. The fences that follow are one commit each, a millisecond apart.

use std::time::Instant;

use futures_util::future::join_all;

use super::moves::MoveError;
use super::{Driver, FlipError};
use crate::authority::{Effect, Event, Refusal, Side};
use crate::lsn::Lsn;

/// Writers that are held in an open transaction of the driver's acting session.
#[derive(Debug)]
pub(super) struct Held {
    /// Until the writers that had passed the gate had ended, and from then until the peer had everything; milliseconds.
    pub(super) lock_ms: f64,
    pub(super) drain_ms: f64,
    /// The furthest values of both sides' sequences under the lock, as JSON.
    pub(super) sequences: String,
    /// Columns whose sequence on the side that is to open has no room for a margin.
    pub(super) short: Vec<String>,
    /// Insert position under the lock.
    pub(super) fence: Lsn,
    /// What is not as it was judged, seen with the writers held.
    pub(super) changed: Vec<String>,
    /// Where rows could be written past the gate that is about to close; no trigger comes or goes before the transaction ends.
    pub(super) unguarded: Vec<String>,
    /// Everything that the writers wrote is applied on the peer. Else time was up before.
    pub(super) drained: bool,
    /// Moved tables without partitions, by oid: a child may still come to them.
    pub(super) plain: Vec<u32>,
}

/// Fences these members, all of which are due for it, or lets all of them go and waits a little, so that their drivers look
/// again. A gate that does not guard every table is not closed: what is written past it would be lost. Nor is one whose peer
/// could not be opened, because writers have used up the numbers of its sequences since that was judged.
///
/// # Errors
/// [`MoveError`] of a member that is not guarded or has no room, or that a database said no to. Nobody is held any more then;
/// gates that were closed stay so.
pub(super) async fn fence(mut drivers: Vec<&mut Driver>) -> Result<(), MoveError> {
    let holds = join_all(drivers.iter_mut().map(|driver| driver.hold())).await;
    let mut held = Vec::new();
    let mut late = Vec::new();
    let mut refused = None;
    for (driver, hold) in drivers.iter_mut().zip(holds) {
        let side = driver.fenced_side();
        // What was found under the lock is said also where the drain took too long: it may be what kept the mirror from going on.
        let fault = match &hold {
            Ok(Ok(hold)) => side.and_then(|side| driver.fault(side, hold)),
            Ok(Err(_)) | Err(_) => None,
        };
        match (hold, fault) {
            (Err(source), _) | (Ok(_), Some(source)) => {
                refused.get_or_insert(MoveError { slice: driver.slice.clone(), source });
            }
            (Ok(Ok(hold)), None) if hold.drained => held.push(hold),
            (Ok(Ok(_)), None) => late.push(Event::OutOfTime),
            (Ok(Err(event)), None) => late.push(event),
        }
    }
    if let Some(error) = refused {
        let_go(&mut drivers, Event::Missed).await?;
        return Err(error);
    }
    if let Some(event) = late.into_iter().max_by_key(|event| *event == Event::OutOfTime) {
        let_go(&mut drivers, event).await?;
        if let (Event::OutOfTime, Some(driver)) = (event, drivers.first()) {
            driver.back_off().await;
        }
        return Ok(());
    }
    close(&mut drivers, held).await
}

/// One after the other; what comes behind a gate that could not be closed is let go.
async fn close(drivers: &mut [&mut Driver], held: Vec<Held>) -> Result<(), MoveError> {
    for (number, hold) in held.into_iter().enumerate() {
        let Some((driver, rest)) = drivers.get_mut(number..).and_then(<[_]>::split_first_mut) else { break };
        let closed = driver.close(hold).await;
        if !matches!(closed, Ok(Event::Hit)) {
            let slice = driver.slice.clone();
            let_go(rest, Event::Missed).await?;
            return closed.map(drop).map_err(|source| MoveError { slice, source });
        }
    }
    Ok(())
}

async fn let_go(drivers: &mut [&mut Driver], event: Event) -> Result<(), MoveError> {
    for driver in drivers {
        let released = driver.release(event).await;
        released.map_err(|source| MoveError { slice: driver.slice.clone(), source })?;
    }
    Ok(())
}

impl Driver {
    /// Holds and drains the writers of the side that is due to be fenced. An event when that took too long. A driver that has
    /// nothing that the move was judged by holds nobody: no gate is closed unjudged, whichever way a command came here.
    async fn hold(&mut self) -> Result<Result<Held, Event>, FlipError> {
        match self.effect {
            // It finishes what another one began, and by now there is something else to do.
            Some(Effect::Fence { side, expects, .. }) if self.judged.is_none() => {
                Err(Refusal::Superseded { owner: side, epoch: expects.epoch }.into())
            }
            Some(Effect::Fence { side, drain, .. }) => {
                let held = Box::pin(self.hold_and_drain(side, drain)).await;
                if matches!(held, Ok(Err(Event::Unclear)) | Err(_)) {
                    self.links.drop_acting(side);
                }
                held
            }
            _ => Ok(Err(Event::Missed)),
        }
    }

    /// The side whose gate is due to be closed.
    fn fenced_side(&self) -> Option<Side> {
        match self.effect {
            Some(Effect::Fence { side, .. }) => Some(side),
            _ => None,
        }
    }

    /// Why the gate of `side` must not be closed, as was found under the lock; a rehearsal says the same.
    pub(super) fn fault(&self, side: Side, held: &Held) -> Option<FlipError> {
        if !held.unguarded.is_empty() {
            return Some(FlipError::Unguarded { places: held.unguarded.clone() });
        }
        if !held.changed.is_empty() {
            return Some(FlipError::Changed { what: held.changed.clone() });
        }
        let (margin, columns) = (self.limits.sequence_margin, held.short.clone());
        (!columns.is_empty()).then(|| FlipError::Short { side: side.peer(), margin, columns })
    }

    /// Closes the gate in the transaction that holds the writers.
    async fn close(&mut self, held: Held) -> Result<Event, FlipError> {
        let Some(effect @ Effect::Fence { side, expects, epoch, group, .. }) = self.effect else {
            return Ok(Event::Missed);
        };
        let begun = Instant::now();
        let event = self.write_fence(side, &held, &expects, (epoch, group)).await;
        let event = self.settled(side, event)?;
        self.timeline.add(effect, event, begun);
        self.take(event)?;
        Ok(event)
    }

    /// Lets held writers go, and looks again.
    async fn release(&mut self, event: Event) -> Result<(), FlipError> {
        if let Some(effect @ Effect::Fence { side, .. }) = self.effect {
            self.links.roll_back(side).await?;
            self.timeline.add(effect, event, Instant::now());
            self.take(event)?;
        }
        Ok(())
    }
}
