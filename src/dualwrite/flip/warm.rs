//! The statements of a move once in vain, before writers wait for them.
//!
//! A server reads catalogs and makes plans when a session first sends a statement of a kind, which takes as long as all the rest
//! of a pause together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::effects::NO_EPOCH;
use super::sequences::Pairs;
use super::{Driver, Judged, incoming, standbys};
use crate::authority::{Mode, Side};
use crate::cdc::mirror::chain_of;
use crate::cdc::source::{self, MARKER_PREFIX};
use crate::dualwrite::guard::{self, trees};
use crate::dualwrite::readiness::left_behind;
use crate::journal::authority::{self, Fence};
use crate::journal::{JournalError, retirement, whereabouts};
use crate::lsn::Lsn;
use crate::mapping::SliceMapping;
use crate::postgres::connect::Session;

impl Driver {
    /// Does everything that taking authority from `side` takes, in transactions that are rolled back and with conditions that
    /// nothing meets. What goes wrong here goes wrong again where it counts.
    pub(super) async fn warm_up(&mut self, side: Side) {
        if std::mem::replace(&mut self.warm, true) {
            return;
        }
        let begun = Instant::now();
        let (slice, sequences) = (self.slice.clone(), self.sequences.clone());
        let (mapping, judged) = (Arc::clone(&self.mapping), self.judged.clone());
        let asked = side;
        for side in [side.peer(), side] {
            let Ok((acting, looking, _)) = self.links.three(side).await else { continue };
            for session in [acting, looking] {
                session.keep_plans(true);
            }
            if let Some(judged) = &judged {
                let of = (side, self.limits.pause_budget);
                if let Err(error) = ask_again(judged, (acting, looking), of, &slice).await {
                    tracing::debug!(slice, error, "a session could not be warmed up");
                }
            }
            // Which side will be closed is known, and only there are rows of no filter asked for.
            let budget = self.limits.pause_budget;
            let of = (asked, budget, budget);
            if side == asked
                && let Err(error) = left_behind::again(looking, &mapping, of).await
            {
                let error = chain_of(&error);
                tracing::debug!(slice, error, "a session could not be warmed up");
            }
            let (changed, looked) = tokio::join!(
                change_nothing(acting, &mapping, side, &sequences),
                look((acting, looking), &slice, side)
            );
            for error in [changed.err(), looked.err()].into_iter().flatten() {
                tracing::debug!(slice, error, "a session could not be warmed up");
            }
            for session in [acting, looking] {
                session.keep_plans(false);
            }
            // Takes the transaction back.
            if self.links.roll_back(side).await.is_ok() {
                self.links.ended(side);
            }
        }
        self.timeline.note("prepare", begun, "done");
    }
}

/// What was judged is asked in sessions that wait for no lock longer than writers may be held, and plan nothing twice: the
/// plans take several times as long as the answers.
async fn ask_again(
    judged: &Judged,
    sessions: (&Session, &Session),
    (side, limit): (Side, Duration),
    slice: &str,
) -> Result<(), String> {
    let limit =
        format!("SET lock_timeout = {}; SET plan_cache_mode = force_generic_plan", limit.as_millis().max(1));
    for session in [sessions.0, sessions.1] {
        session.batch_execute(&limit).await.map_err(|error| chain_of(&error))?;
        judged.warm(session, side, slice).await.map_err(|error| chain_of(&error))?;
    }
    Ok(())
}

async fn change_nothing(
    acting: &Session,
    mapping: &SliceMapping,
    side: Side,
    sequences: &Pairs,
) -> Result<(), String> {
    let slice = mapping.slice.as_str();
    let said = |error: JournalError| chain_of(&error);
    let database = |error: tokio_postgres::Error| chain_of(&error);
    acting.batch_execute("BEGIN; SET LOCAL lock_timeout = 100").await.map_err(database)?;
    guard::unguarded(acting, mapping, side).await.map_err(said)?;
    let found = trees::read(acting, &guard::tables(mapping, side)).await.map_err(database)?;
    trees::children(acting, &found.plain).await.map_err(database)?;
    let modes = (Mode::Apply.as_str(), Mode::Tripwire.as_str());
    if side == Side::Monolith {
        retirement::read_at_once(acting, slice).await.map_err(said)?;
    }
    authority::turn(acting, slice, side.incoming(), modes, (NO_EPOCH, Lsn::default())).await.map_err(said)?;
    authority::keep_watch(acting, slice, side.incoming()).await.map_err(said)?;
    let fence =
        Fence { from_epoch: NO_EPOCH, epoch: NO_EPOCH, lsn: Lsn::default(), sequences: "{}", group: None };
    authority::fence(acting, slice, fence).await.map_err(said)?;
    authority::open(acting, slice, (NO_EPOCH, NO_EPOCH), "nobody").await.map_err(said)?;
    authority::notify(acting, slice, "nobody", NO_EPOCH).await.map_err(said)?;
    sequences.read(acting, side).await.map(drop).map_err(database)
}

async fn look((acting, looking): (&Session, &Session), slice: &str, side: Side) -> Result<(), String> {
    let said = |error: JournalError| chain_of(&error);
    whereabouts::is_itself(looking).await.map_err(said)?;
    authority::look(looking, slice, side.incoming()).await.map_err(said)?;
    authority::noted_sequences(looking, slice).await.map_err(said)?;
    authority::name_owner(looking, slice, NO_EPOCH, "nobody").await.map_err(said)?;
    incoming::is_lost((acting, looking), slice, (side, Some(""))).await.map_err(|error| error.to_string())?;
    standbys::behind(looking, true).await.map_err(|error| chain_of(&error))?;
    let marker = source::marker_content(slice, "flip");
    source::emit(looking, MARKER_PREFIX, &marker).await.map(drop).map_err(|error| chain_of(&error))
}
