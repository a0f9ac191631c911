//! A move that is not made: writers are held and the other side is drained, again and again, and everything is rolled back.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Serialize;

use super::barrier::Held;
use super::moves::MoveError;
use super::timeline::millis;
use super::{Driver, FlipError};
use crate::authority::{Event, Side, Sight};
use crate::cdc::mirror::chain_of;
use crate::cdc::source::{self, MARKER_PREFIX};

/// Pause between two attempts, so that writers catch up.
const PAUSE: Duration = Duration::from_millis(200);

/// When none of so many has come through, the others would not either, and would hold writers up for nothing.
const IN_VAIN: usize = 3;

/// What one attempt took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Until the writers that had passed the gate had ended; of several slices the longest.
    pub lock_ms: f64,
    /// Until the other side had everything; of several slices the longest.
    pub drain_ms: f64,
    /// For each slice a commit on the side that would be fenced, one after the other.
    pub commits_ms: f64,
    /// What comes behind the fence: looks, the group's decision, and the statements of the opening with a commit; of several
    /// slices the longest.
    pub open_ms: f64,
}

impl Sample {
    /// The pause that writers would have seen.
    #[must_use]
    pub fn pause_ms(&self) -> f64 {
        self.lock_ms + self.drain_ms + self.commits_ms + self.open_ms
    }
}

/// What a rehearsal found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Rehearsal {
    /// Attempts that came through, in their order.
    pub samples: Vec<Sample>,
    /// Attempts that ran out of time: each would have been tried again.
    pub out_of_time: usize,
}

impl Rehearsal {
    /// The pause that a share of the attempts stayed below, `0.5` for the median. `None` when none came through.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let mut pauses: Vec<f64> = self.samples.iter().map(Sample::pause_ms).collect();
        pauses.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among some dozens, and `as` saturates"
        )]
        let rank = ((pauses.len() as f64 * share).ceil() as usize).clamp(1, pauses.len().max(1)) - 1;
        pauses.get(rank).copied()
    }
}

/// Rehearses taking authority over all these slices from `side` at one barrier, so many times. Nothing is changed; writers wait
/// for as long as each attempt takes, at most the budget. When the first ones all run out of time it ends. Beside what it took comes
/// the first thing for which a flip would not have closed a gate, seen while the writers were held.
///
/// # Errors
/// [`MoveError`].
pub async fn rehearse(
    drivers: &mut [Driver],
    side: Side,
    times: usize,
) -> Result<(Rehearsal, Option<MoveError>), MoveError> {
    for driver in drivers.iter_mut() {
        let opened = driver.links.open().await;
        opened.map_err(|source| MoveError { slice: driver.slice.clone(), source })?;
        driver.warm_up(side).await;
    }
    let (mut found, mut fault) = (Rehearsal::default(), None);
    for _ in 0..times {
        let attempts =
            join_all(drivers.iter_mut().map(|driver| driver.hold_and_drain(side, side.outgoing()))).await;
        // Everybody is let go before anything else.
        let mut samples = Vec::new();
        for (driver, attempt) in drivers.iter_mut().zip(attempts) {
            let of = |source| MoveError { slice: driver.slice.clone(), source };
            let released = driver.links.roll_back(side).await;
            let attempt = attempt.map_err(of)?;
            fault = fault.or(attempt.as_ref().ok().and_then(|held| driver.fault(side, held)).map(of));
            samples.push(match attempt {
                Ok(Held { drained: false, .. }) => Err(Event::OutOfTime),
                attempt => attempt.map(|held| (held.lock_ms, held.drain_ms)),
            });
            released.map_err(of)?;
        }
        match samples.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(samples) => {
                let (commits_ms, open_ms) = behind_the_barrier(drivers, side).await?;
                let longest = |part: fn(&(f64, f64)) -> f64| samples.iter().map(part).fold(0.0, f64::max);
                let (lock_ms, drain_ms) = (longest(|sample| sample.0), longest(|sample| sample.1));
                found.samples.push(Sample { lock_ms, drain_ms, commits_ms, open_ms });
            }
            Err(Event::OutOfTime | Event::Unclear) => found.out_of_time += 1,
            Err(Event::Missed | Event::Hit | Event::Observed(_)) => {}
        }
        if found.samples.is_empty() && found.out_of_time >= IN_VAIN {
            break;
        }
        tokio::time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
    }
    Ok((found, fault))
}

/// What would follow once the writers are held and everything is drained, while nobody is held any more: the fences, and what
/// leads to the openings. Milliseconds of both.
async fn behind_the_barrier(drivers: &mut [Driver], side: Side) -> Result<(f64, f64), MoveError> {
    let mut commits_ms = 0.0;
    for driver in drivers.iter_mut() {
        let commit = driver.commit_ms(side).await;
        commits_ms += commit.map_err(|source| MoveError { slice: driver.slice.clone(), source })?;
    }
    let begun = Instant::now();
    let several = drivers.len() > 1;
    let opened = join_all(drivers.iter_mut().map(async |driver| {
        let opened = driver.open_in_vain(side.peer(), several).await;
        opened.map_err(|source| MoveError { slice: driver.slice.clone(), source })
    }));
    opened.await.into_iter().collect::<Result<Vec<()>, MoveError>>()?;
    Ok((commits_ms, millis(begun.elapsed())))
}

impl Driver {
    /// Looks as it would be looked, decides about no group, and does the statements of an opening in a transaction that is rolled
    /// back. Sequences are read and not set, because `setval` can't be taken back.
    async fn open_in_vain(&mut self, side: Side, several: bool) -> Result<(), FlipError> {
        let looked = self.look().await?;
        if several {
            // The decision is a commit on the monolith, and is looked at again.
            self.commit_ms(Side::Monolith).await?;
            self.look().await?;
        }
        if let (Sight::Seen(monolith), Sight::Seen(service)) = (looked.monolith, looked.service) {
            let (own, peer) = if side == Side::Monolith { (monolith, service) } else { (service, monolith) };
            let tried = self.try_opening(side, (&own.gate, &peer.gate)).await;
            self.links.roll_back(side).await?;
            tried?;
        }
        self.commit_ms(side).await.map(drop)
    }

    /// What a synchronous commit takes on a side: that of a marker.
    async fn commit_ms(&mut self, side: Side) -> Result<f64, FlipError> {
        let marker = source::marker_content(&self.slice, "rehearsal");
        let client = self.links.looking(side).await?;
        let begun = Instant::now();
        let sent = source::emit(client, MARKER_PREFIX, &marker).await;
        sent.map_err(|error| FlipError::Failed { what: "sending a marker", words: chain_of(&error) })?;
        Ok(millis(begun.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_attempts_that_came_through() {
        let sample = |lock_ms| Sample { lock_ms, drain_ms: 0.0, commits_ms: 0.5, open_ms: 0.5 };
        let of = |locks: &[f64]| Rehearsal {
            samples: locks.iter().map(|lock| sample(*lock)).collect(),
            out_of_time: 3,
        };
        assert_eq!(of(&[]).quantile_ms(0.5), None);
        assert_eq!(of(&[4.0]).quantile_ms(0.99), Some(5.0));
        let many = of(&[9.0, 1.0, 3.0, 2.0]);
        assert_eq!((many.quantile_ms(0.5), many.quantile_ms(0.99)), (Some(3.0), Some(10.0)));
    }
}
