//! What a running mirror does about a slice whose operator is gone: a side that was closed and whose peer was not opened is a
//! standstill for the application, so the move is finished.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::moves::{self, Member, Order};
use super::{FlipError, Links};
use crate::authority::{Epoch, Gate, Side, Standing};
use crate::cdc::mirror::chain_of;
use crate::journal::authority;

/// How long a side may be closed before the move is taken to be nobody's. An operator takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two looks at an armed slice, and at one that can't move because it is not armed.
const LOOK_ARMED: Duration = Duration::from_millis(500);
const LOOK_UNARMED: Duration = Duration::from_secs(5);

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It has no way back, so authority can't move.
    Unarmed,
    /// A side has authority.
    Owned,
    /// Nobody has: both sides are closed since these changes.
    Closed(Epoch, Epoch),
}

/// Watches one slice until `stop`; `order` is to resume what somebody began, and begins nothing.
pub async fn watch(member: Member, order: Order, stop: CancellationToken) {
    let slice = member.mapping.slice.clone();
    let mut links = Links::new(member.monolith.clone(), member.service.clone());
    let mut since: Option<(Seen, Instant)> = None;
    loop {
        let seen = match look(&mut links, &slice).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!(slice, error = chain_of(&error), "who may write could not be looked up");
                Seen::Unarmed
            }
        };
        since = since.filter(|(known, _)| *known == seen).or(Some((seen, Instant::now())));
        let closed = matches!(seen, Seen::Closed(..));
        if closed && since.is_some_and(|(_, at)| at.elapsed() >= PATIENCE) {
            tracing::warn!(slice, "a move was left unfinished; it is finished now");
            match Box::pin(moves::carry_out(std::slice::from_ref(&member), &order)).await {
                Ok(moved) => moved.iter().for_each(|moved| {
                    tracing::info!(slice, owner = %moved.owner, epoch = moved.epoch.0, "authority is settled");
                }),
                Err(error) => tracing::error!(slice, error = chain_of(&error), "the move could not be finished"),
            }
            since = None;
        }
        let pause = if seen == Seen::Unarmed { LOOK_UNARMED } else { LOOK_ARMED };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
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
    let (monolith, service) = (Gate::try_from(&there.gate)?, Gate::try_from(&here.gate)?);
    Ok(match Standing::of(&monolith, &service) {
        Standing::Fenced { .. } | Standing::Aborted { .. } => Seen::Closed(monolith.epoch, service.epoch),
        // What these need is a human, whom `status` calls, or nobody.
        Standing::Owned { .. } | Standing::Behind { .. } | Standing::BothOpen | Standing::Broken => {
            Seen::Owned
        }
    })
}
