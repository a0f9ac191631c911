//! What is written down about a move: that it begins, with its reason; and once, whoever gets there, that it is made.

use serde_json::json;

use super::FlipError;
use super::moves::{Member, MoveError, Moved, Order};
use super::rehearse::Rehearsal;
use crate::authority::{Epoch, Intent, Side};
use crate::cdc::mirror::chain_of;
use crate::failpoint;
use crate::journal::ledger::{self, NewEntry, Subject};
use crate::journal::moves::{self, Begun};
use crate::journal::{self, JournalError, authority};
use crate::postgres::sqlstate;

/// The epoch that a slice is provisioned with: no move made it.
pub(super) const FIRST: Epoch = Epoch(1);

/// Notes in the service that a move begins which will end with this epoch. An operator who dies after its fence can't say why
/// it went without evidence.
pub(super) async fn begin(member: &Member, order: &Order, epoch: i64) -> Result<(), MoveError> {
    let slice = &member.mapping.slice;
    let of = |source| MoveError { slice: slice.clone(), source };
    let mut links = member.links.take();
    let service = links.looking(Side::Service).await.map_err(of)?;
    let reasons = (order.remark.as_deref(), order.approved_by.as_deref());
    let begun = Begun::by(&order.author, action(order.intent), epoch, reasons);
    moves::begin(service, slice, &begun).await.map_err(|error| of(failed(&error)))?;
    member.links.keep(links).await;
    Ok(())
}

/// Names the owner on the closed side, and makes the move's one entry in the service's ledger and those in the journals. What
/// is there already is left alone.
pub(super) async fn record(member: &Member, order: &Order, moved: &Moved) -> Result<(), FlipError> {
    if moved.epoch <= FIRST {
        return Ok(());
    }
    let slice = moved.slice.as_str();
    let mut links = member.links.take();
    let closed = links.looking(moved.owner.peer()).await?;
    if let Err(error) = authority::name_owner(closed, slice, moved.epoch.0, &moved.owner.to_string()).await {
        tracing::warn!(slice, error = chain_of(&error), "the closed side could not be told who the owner is");
    }
    let opened = authority::gate(links.looking(moved.owner).await?, slice).await;
    let cut = opened.map_err(|error| failed(&error))?.and_then(|gate| gate.cut);
    let (service, _, _) = links.three(Side::Service).await?;
    // Asked without a lock first: mostly it is there, and nobody has to wait.
    if ledger::has_move(service, slice, moved.epoch.0).await.map_err(|error| failed(&error))? {
        member.links.keep(links).await;
        return Ok(());
    }
    let begin = service.batch_execute("BEGIN").await;
    begin.map_err(|error| failed(&JournalError::database("beginning an entry")(error)))?;
    ledger::lock(service).await.map_err(|error| failed(&error))?;
    if ledger::has_move(service, slice, moved.epoch.0).await.map_err(|error| failed(&error))? {
        return Ok(());
    }
    let begun = moves::begun(service, slice, moved.epoch.0).await.map_err(|error| failed(&error))?;
    let (action, body) = entry(order, moved, begun.as_ref());
    let entry = NewEntry {
        kind: ledger::FLIP,
        plan: &order.plan,
        slice: Some(slice),
        author: &order.author,
        epoch: Some(moved.epoch.0),
        lsn: cut,
        plan_hash: Some(&member.mapping.hash),
        body: &body,
    };
    ledger::append(service, &entry).await.map_err(|error| failed(&error))?;
    journal::record(service, Some(slice), action, &body).await.map_err(|error| failed(&error))?;
    let commit = service.batch_execute("COMMIT").await;
    commit.map_err(|error| failed(&JournalError::database("ending an entry")(error)))?;
    failpoint::hit("flip-recorded");
    let (service, _, monolith) = links.three(Side::Service).await?;
    journal::record(monolith, Some(slice), action, &body).await.map_err(|error| failed(&error))?;
    ledger::anchor(service, Some(monolith), &member.mapping.service).await;
    member.links.keep(links).await;
    Ok(())
}

/// Tells the ledgers of a rehearsal of all these slices. It changed nothing, so one that was cut off left nothing to tell.
///
/// # Errors
/// [`MoveError`] of a slice whose ledger could not be written.
pub async fn rehearsed(members: &[Member], order: &Order, found: &Rehearsal) -> Result<(), MoveError> {
    let slices: Vec<&str> = members.iter().map(|member| member.mapping.slice.as_str()).collect();
    for member in members {
        let body = json!({
            "action": action(order.intent),
            "slices": slices,
            "attempts": found.samples.len(),
            "out_of_time": found.out_of_time,
            "p50_ms": found.quantile_ms(0.5),
            "p90_ms": found.quantile_ms(0.9),
            "p99_ms": found.quantile_ms(0.99),
            "budget_ms": member.limits.pause_budget.as_secs_f64() * 1000.0,
        });
        let told = tell_of_rehearsal(member, order, &body).await;
        told.map_err(|source| MoveError { slice: member.mapping.slice.clone(), source })?;
    }
    Ok(())
}

async fn tell_of_rehearsal(
    member: &Member,
    order: &Order,
    body: &serde_json::Value,
) -> Result<(), FlipError> {
    let mut links = member.links.take();
    let (service, _, monolith) = links.three(Side::Service).await?;
    let subject = subject(member, order);
    subject.note_plan(service, "rehearsal").await.map_err(|error| failed(&error))?;
    // A rehearsal is about no position.
    let told = async || subject.append(service, ledger::REHEARSAL, None, body).await;
    ledger::transaction(service, told).await.map_err(|error| failed(&error))?;
    ledger::anchor(service, Some(monolith), &member.mapping.service).await;
    member.links.keep(links).await;
    Ok(())
}

/// Notes that a move is begun with another mapping or policy than the ledger named last.
pub(super) async fn note_plan(member: &Member, order: &Order) -> Result<(), MoveError> {
    let of = |source| MoveError { slice: member.mapping.slice.clone(), source };
    let mut links = member.links.take();
    let (service, _, _) = links.three(Side::Service).await.map_err(of)?;
    let noted = subject(member, order).note_plan(service, action(order.intent)).await;
    noted.map_err(|error| of(failed(&error)))?;
    member.links.keep(links).await;
    Ok(())
}

fn subject(member: &Member, order: &Order) -> Subject {
    Subject::new(&order.plan, &member.mapping, member.policy_hash.clone(), order.author.clone())
}

/// What the entry says. A move that another process began keeps its name and its reason.
fn entry<'a>(order: &'a Order, moved: &Moved, begun: Option<&'a Begun>) -> (&'a str, serde_json::Value) {
    let resumed = begun.filter(|_| order.intent == Intent::Resume);
    let action = resumed.map_or_else(|| action(order.intent), |begun| begun.action.as_str());
    let remark = begun.and_then(|begun| begun.remark.as_deref()).or(order.remark.as_deref());
    // Who approved a move did so before it began; what brings one to its end needs nobody's word.
    let approved_by = begun.and_then(|begun| begun.approved_by.as_deref());
    let body = json!({
        "action": action,
        "owner": moved.owner.to_string(),
        "pause_ms": moved.timeline.pause().map(|pause| pause.as_secs_f64() * 1000.0),
        "steps": moved.timeline.entries(),
        "remark": remark,
        "approved_by": approved_by,
        "begun_by": begun.map(|begun| format!("{} on {}", begun.operator, begun.host)),
    });
    (action, body)
}

fn action(intent: Intent) -> &'static str {
    match intent {
        Intent::Flip => "flip",
        Intent::FlipBack => "flip-back",
        Intent::Abort => "abort",
        Intent::Resume => "resume",
    }
}

fn failed(error: &JournalError) -> FlipError {
    let words = error.database_error().map_or_else(|| chain_of(error), sqlstate::words);
    FlipError::Failed { what: "writing the ledger", words }
}
