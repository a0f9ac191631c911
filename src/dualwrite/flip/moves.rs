//! One move from its beginning to its entry in the ledger: of one slice, or of several at one barrier.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::sequences::Pairs;
use super::timeline::Timeline;
use super::{Driver, FlipError, Judged, KeptLinks, Limits, Progress, Together, barrier, record};
use crate::authority::{Epoch, GroupId, GroupState, Intent, Side};
use crate::cdc::mirror::chain_of;
use crate::journal::ledger::Author;
use crate::mapping::SliceMapping;
use crate::postgres::connect::Server;

/// A slice that is to move.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its mapping.
    pub mapping: Arc<SliceMapping>,
    /// The monolith and its service, as their administrators.
    pub links: KeptLinks,
    /// The monolith under the apply role, which the way back writes as.
    pub monolith_apply: Server,
    /// Those of the slice's policy.
    pub limits: Limits,
    /// Hash of that policy.
    pub policy_hash: String,
}

/// What is wanted, and by whom.
#[derive(Debug, Clone)]
pub struct Order {
    /// Plan.
    pub plan: String,
    /// Where to.
    pub intent: Intent,
    /// For the ledger.
    pub author: Author,
    /// What is to stand in the ledger beside it, such as why evidence was done without.
    pub remark: Option<String>,
    /// Who approved it, where the operator says so.
    pub approved_by: Option<String>,
    /// What the slices that begin to move were judged by; empty in an order that begins nothing.
    pub judged: BTreeMap<String, Judged>,
}

/// A slice whose authority is settled.
#[derive(Debug)]
pub struct Moved {
    /// Slice.
    pub slice: String,
    /// Who has authority.
    pub owner: Side,
    /// Since which change.
    pub epoch: Epoch,
    /// Something was changed by this order, or was under way when it began; without it everything was as wanted already.
    pub changed: bool,
    /// What was done.
    pub timeline: Timeline,
}

/// A member could not be moved.
#[derive(Debug, thiserror::Error)]
#[error("slice {slice}: {source}")]
pub struct MoveError {
    /// Which.
    pub slice: String,
    /// Why.
    #[source]
    pub source: FlipError,
}

/// Opens a driver for each member. Where some of them are in the middle of a move together already, it is that move that they
/// go on with.
///
/// # Errors
/// [`MoveError`]; [`FlipError::Together`] when that move has other members than these.
pub async fn drivers(members: &[Member], order: &Order) -> Result<Vec<Driver>, MoveError> {
    let mut drivers = Vec::new();
    for member in members {
        let of = |source| MoveError { slice: member.mapping.slice.clone(), source };
        let mut links = member.links.take();
        links.open().await.map_err(of)?;
        let (_, monolith, service) = links.three(Side::Monolith).await.map_err(of)?;
        let pairs = Pairs::find(monolith, service, &member.mapping).await.map_err(of)?;
        let mut driver = Driver::new(Arc::clone(&member.mapping), links, pairs, member.limits, order.intent);
        driver.judged = order.judged.get(&member.mapping.slice).cloned();
        drivers.push(driver);
    }
    // A mirror finishes each of its slices by itself.
    if order.intent != Intent::Resume {
        let together = gather(&mut drivers).await?;
        drivers.iter_mut().for_each(|driver| driver.together.clone_from(&together));
    }
    Ok(drivers)
}

/// Under which number these move together; a single one moves alone.
async fn gather(drivers: &mut [Driver]) -> Result<Option<Together>, MoveError> {
    let members: Vec<String> = drivers.iter().map(|driver| driver.slice.clone()).collect();
    let mut id = GroupId(fastrand::i64(1..));
    for driver in drivers.iter_mut() {
        let begun = driver.begun_together().await;
        let begun = begun.map_err(|source| MoveError { slice: driver.slice.clone(), source })?;
        let Some(begun) = begun else { continue };
        let (named, known) = (BTreeSet::from_iter(&members), BTreeSet::from_iter(&begun.members));
        if named == known {
            id = begun.id;
        } else if begun.state == GroupState::Pending {
            let others = known.into_iter().filter(|name| **name != driver.slice).cloned().collect();
            let source = FlipError::Together { others, from: begun.from, settled: false };
            return Err(MoveError { slice: driver.slice.clone(), source });
        }
    }
    Ok((members.len() > 1).then(|| Together { id, members, fenced: BTreeSet::new() }))
}

/// Moves all members, all or none, and writes down what became of them. When they can't all be fenced, those that are go
/// back.
///
/// # Errors
/// [`MoveError`] of the member that could not go on; whatever was committed stays, and the same order goes on from there.
pub async fn carry_out(members: &[Member], order: &Order) -> Result<Vec<Moved>, MoveError> {
    let mut drivers = drivers(members, order).await?;
    let moved = match settle(&mut drivers).await {
        Ok(settled) => settled,
        Err(error) => {
            // A move of one slice alone is not this command's to take back.
            let of_one = matches!(&error.source, FlipError::Refused(refusal) if refusal.is_of_one());
            if members.len() > 1 && matches!(order.intent, Intent::Flip | Intent::FlipBack) && !of_one {
                give_up(members, order, &drivers).await;
            }
            return Err(error);
        }
    };
    let mut done = Vec::new();
    for ((member, driver), (owner, epoch)) in members.iter().zip(drivers).zip(moved) {
        let Driver { timeline, links, .. } = driver;
        member.links.keep(links).await;
        let changed = !timeline.entries().is_empty();
        let moved = Moved { slice: member.mapping.slice.clone(), owner, epoch, changed, timeline };
        // Also where nothing was left to do: whoever moved it may have died before it wrote that down.
        let recorded = record::record(member, order, &moved).await;
        recorded.map_err(|source| MoveError { slice: moved.slice.clone(), source })?;
        done.push(moved);
    }
    Ok(done)
}

/// Lets every driver go as far as it can until all are settled. One that can't go on does not keep the others from finishing
/// what is begun, but no gate is closed any more then.
async fn settle(drivers: &mut [Driver]) -> Result<Vec<(Side, Epoch)>, MoveError> {
    /// Barriers and looks of drivers that wait for each other.
    const ROUNDS_MAX: usize = 100;
    /// Pause where a member waits for others of which nobody has news: another operator may be at work on them.
    const NEWS_EVERY: Duration = Duration::from_millis(20);
    let mut settled: Vec<Option<(Side, Epoch)>> = drivers.iter().map(|_| None).collect();
    let mut going: Vec<(usize, &mut Driver)> = drivers.iter_mut().enumerate().collect();
    for _ in 0..ROUNDS_MAX {
        let ended = join_all(going.iter_mut().map(|(_, driver)| driver.advance())).await;
        let (mut waiting, mut due, mut fenced) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut error = None;
        for ((number, driver), ended) in going.drain(..).zip(ended) {
            match ended {
                Ok(Progress::Settled { owner, epoch }) => {
                    settled.get_mut(number).map(|place| place.replace((owner, epoch)));
                }
                Ok(Progress::Waiting(id)) => {
                    fenced.insert((id, driver.slice.clone()));
                    waiting.push((number, driver));
                }
                Ok(Progress::Fencing) => due.push((number, driver)),
                Err(source) => {
                    error.get_or_insert(MoveError { slice: driver.slice.clone(), source });
                }
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        if let (true, true, Some(all)) =
            (waiting.is_empty(), due.is_empty(), settled.iter().copied().collect::<Option<Vec<_>>>())
        {
            return Ok(all);
        }
        if due.is_empty() {
            let heard: Vec<bool> = waiting.iter_mut().map(|(_, driver)| driver.hear_of(&fenced)).collect();
            if !heard.contains(&true) {
                tokio::time::sleep(NEWS_EVERY).await;
            }
        } else {
            barrier::fence(due.iter_mut().map(|(_, driver)| &mut **driver).collect()).await?;
        }
        going = waiting;
        going.append(&mut due);
    }
    let slice = going.first().map(|(_, driver)| driver.slice.clone()).unwrap_or_default();
    Err(MoveError { slice, source: FlipError::Unsettled })
}

/// Takes a group back of which not all could be fenced: what is not settled as open is settled as aborted, once, for all.
async fn give_up(members: &[Member], order: &Order, drivers: &[Driver]) {
    let order = Order { intent: Intent::Abort, ..order.clone() };
    let together = drivers.iter().find_map(|driver| driver.together.clone());
    let back = async {
        let mut aborting = self::drivers(members, &order).await?;
        if let (Some(driver), Some(together)) = (aborting.first_mut(), &together) {
            let group = driver.group(together.id).await;
            let group = group.map_err(|source| MoveError { slice: driver.slice.clone(), source })?;
            if group.state == GroupState::Absent {
                // Nobody was fenced for it.
                return Ok(Vec::new());
            }
        }
        aborting.iter_mut().for_each(|driver| driver.together.clone_from(&together));
        settle(&mut aborting).await
    };
    if let Err(error) = Box::pin(back).await {
        tracing::warn!(
            error = chain_of(&error),
            "members of the group that are fenced could not be taken back"
        );
    }
}
