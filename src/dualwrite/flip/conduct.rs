//! A whole flip: what speaks against it, hooks around it, the move, and who is told.
//!
//! Who calls it: `strangler flip`. A move that is under way already is finished whatever speaks against it, and without the
//! `before` hooks, which ran when it began.

use std::time::Duration;

use super::moves::{self, Member, MoveError, Moved, Order};
use super::{FlipError, Links};
use tokio_postgres::Client;

use crate::authority::{Gate, Intent, Side, Standing};
use crate::cdc::mirror::chain_of;
use crate::cdc::way;
use crate::dualwrite::hooks::{Executor, Moving, Occasion, Outcome, Report};
use crate::dualwrite::readiness::{self, Asked, Findings, Sessions};
use crate::failpoint;
use crate::journal::operators::{self, Operator};
use crate::journal::streams::StreamOf;
use crate::journal::{JournalError, authority};
use crate::plan::{Plan, Variables};
use crate::problem::Problem;

/// How often the operator's row is written while a flip is at work.
const BEAT_EVERY: Duration = Duration::from_secs(3);

/// How long the canary may take: a mirror that keeps up brings it in milliseconds.
const CANARY_PATIENCE: Duration = Duration::from_secs(3);

/// What a flip is carried out with.
#[derive(Debug, Clone, Copy)]
pub struct Conduct<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its path as typed, for the commands in problems.
    pub path: &'a str,
    /// Where hooks' URLs get their secrets from.
    pub variables: &'a dyn Variables,
    /// `--accept-no-evidence`.
    pub accepted: Option<&'a str>,
}

/// What the operator is told while a flip is at work.
#[derive(Debug)]
pub enum Told<'a> {
    /// Warnings and notes that do not forbid it.
    Problems(&'a [Problem]),
    /// A hook has run.
    Hook(&'a Report),
}

/// A flip did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ConductError {
    /// Something speaks against it; authority is where it was.
    #[error("authority was not moved")]
    Refused(Vec<Problem>),
    /// A member could not be moved.
    #[error(transparent)]
    Move(#[from] MoveError),
}

/// Tells the operator.
pub type Tell<'t> = &'t mut (dyn FnMut(Told<'_>) + Send);

impl Conduct<'_> {
    /// Moves these slices, all or none.
    ///
    /// # Errors
    /// [`ConductError`].
    pub async fn flip(
        &self,
        members: &[Member],
        mut order: Order,
        tell: Tell<'_>,
    ) -> Result<Vec<Moved>, ConductError> {
        let who = operator(&order);
        let hooks = self.hooks(members)?;
        let occasion = self.occasion(members, &order).await?;
        self.announce(members, &who).await?;
        let begins = matches!(order.intent, Intent::Flip | Intent::FlipBack) && occasion.1;
        let ready = if begins { self.ready(members, &mut order, &who, tell).await } else { Ok(()) };
        let ready = match ready {
            Ok(()) if begins => {
                let hook = hooks.before(&occasion.0, &mut |report| tell(Told::Hook(report))).await;
                hook.map_err(ConductError::Refused)
            }
            other => other,
        };
        if let Err(error) = ready {
            self.take_leave(members, &who).await;
            return Err(error);
        }
        let moved = tokio::select! {
            moved = Box::pin(moves::carry_out(members, &order)) => moved,
            () = self.beat(members, &who) => Ok(Vec::new()),
        };
        let outcome = match &moved {
            Ok(moved) => Outcome::Moved { pause: moved.iter().filter_map(|one| one.timeline.pause()).max() },
            Err(MoveError { source: FlipError::Refused(_), .. }) => Outcome::NotMoved,
            Err(_) => Outcome::Unfinished,
        };
        let warnings = hooks.after(&occasion.0, outcome, &mut |report| tell(Told::Hook(report))).await;
        if !warnings.is_empty() {
            tell(Told::Problems(&warnings));
        }
        self.take_leave(members, &who).await;
        Ok(moved?)
    }

    fn hooks(&self, members: &[Member]) -> Result<Executor, ConductError> {
        let slices: Vec<String> = members.iter().map(|member| member.mapping.slice.clone()).collect();
        let hooks = Executor::new(self.plan, &slices, self.variables);
        hooks.map_err(|problem| ConductError::Refused(vec![*problem]))
    }

    /// What hooks are told, and whether a move would begin: none does where one is under way, or where authority is where
    /// it is wanted.
    async fn occasion(&self, members: &[Member], order: &Order) -> Result<(Occasion, bool), ConductError> {
        let to = if order.intent == Intent::FlipBack { Side::Monolith } else { Side::Service };
        let (mut slices, mut begins) = (Vec::new(), true);
        for member in members {
            let slice = member.mapping.slice.clone();
            let mut links = Links::new(member.monolith.clone(), member.service.clone());
            let standing = standing(&mut links, &slice).await;
            let epoch = match standing.map_err(|source| MoveError { slice: slice.clone(), source })? {
                Standing::Owned { owner, epoch } => {
                    begins &= owner != to;
                    epoch.0 + 1
                }
                Standing::Behind { epoch, .. }
                | Standing::Fenced { epoch, .. }
                | Standing::Aborted { epoch, .. } => {
                    begins = false;
                    epoch.0
                }
                Standing::BothOpen | Standing::Broken => {
                    begins = false;
                    0
                }
            };
            slices.push(Moving { slice, service: member.mapping.service.clone(), epoch });
        }
        Ok((Occasion { plan: order.plan.clone(), to, slices }, begins))
    }

    /// Everything that speaks against a move of any member.
    async fn ready(
        &self,
        members: &[Member],
        order: &mut Order,
        who: &Operator,
        tell: Tell<'_>,
    ) -> Result<(), ConductError> {
        let (problems, accepted) = self.judge(members, order.intent, who).await?;
        let go = problems.iter().all(|problem| problem.severity != crate::problem::Severity::Error);
        if !go {
            return Err(ConductError::Refused(problems));
        }
        order.remark = accepted;
        if !problems.is_empty() {
            tell(Told::Problems(&problems));
        }
        Ok(())
    }

    /// What is found about all members, and the reason that was given instead of evidence, where one was needed.
    ///
    /// # Errors
    /// [`ConductError::Move`] when a side can't be asked.
    pub async fn judge(
        &self,
        members: &[Member],
        intent: Intent,
        who: &Operator,
    ) -> Result<(Vec<Problem>, Option<String>), ConductError> {
        let to = if intent == Intent::FlipBack { Side::Monolith } else { Side::Service };
        let (mut problems, mut accepted) = (Vec::new(), None);
        for member in members {
            let slice = member.mapping.slice.as_str();
            let asked = Asked { plan: self.plan, path: self.path, slice, to, accepted: self.accepted };
            let judged = judge(member, &asked, who).await;
            let judged = judged.map_err(|source| MoveError { slice: slice.to_owned(), source })?;
            problems.extend(judged.problems);
            accepted = accepted.or(judged.without_evidence);
        }
        Ok((problems, accepted))
    }

    async fn announce(&self, members: &[Member], who: &Operator) -> Result<(), ConductError> {
        for member in members {
            let slice = &member.mapping.slice;
            let of = |source| MoveError { slice: slice.clone(), source };
            let mut links = Links::new(member.monolith.clone(), member.service.clone());
            let monolith = links.looking(Side::Monolith).await.map_err(of)?;
            // Somebody else at work is one of the things that speak against a flip; see `readiness`.
            if let Err(error) = begin(monolith, slice, who).await {
                tracing::warn!(
                    slice,
                    error = chain_of(&error),
                    "it could not be written down who is at work"
                );
            }
        }
        Ok(())
    }

    /// Gives signs of life; never ends.
    async fn beat(&self, members: &[Member], who: &Operator) {
        loop {
            tokio::time::sleep(BEAT_EVERY).await;
            self.with_row(members, who, true).await;
        }
    }

    async fn take_leave(&self, members: &[Member], who: &Operator) {
        self.with_row(members, who, false).await;
    }

    async fn with_row(&self, members: &[Member], who: &Operator, alive: bool) {
        for member in members {
            let slice = &member.mapping.slice;
            let mut links = Links::new(member.monolith.clone(), member.service.clone());
            let Ok(monolith) = links.looking(Side::Monolith).await else { continue };
            let written = if alive {
                operators::beat(monolith, slice, who).await.map(drop)
            } else {
                operators::end(monolith, slice, who).await
            };
            if let Err(error) = written {
                tracing::debug!(slice, error = chain_of(&error), "an operator's row could not be written");
            }
        }
    }
}

/// Says that we are at work. A process of this machine that has died left its row behind, and is nobody.
async fn begin(monolith: &Client, slice: &str, who: &Operator) -> Result<(), JournalError> {
    let Some(other) = operators::begin(monolith, slice, who).await? else { return Ok(()) };
    let there = rustix::process::Pid::from_raw(other.who.pid);
    let dead = there.is_some_and(|pid| {
        rustix::process::test_kill_process(pid).is_err_and(|error| error == rustix::io::Errno::SRCH)
    });
    if other.who.host == who.host && dead {
        operators::end(monolith, slice, &other.who).await?;
        operators::begin(monolith, slice, who).await?;
    }
    Ok(())
}

/// Who carries an order out, as others see it.
#[must_use]
pub fn operator(order: &Order) -> Operator {
    let verb = match order.intent {
        Intent::Flip => "flip",
        Intent::FlipBack => "flip --back",
        Intent::Abort => "flip --abort",
        Intent::Resume => "mirror",
    };
    Operator {
        verb: verb.to_owned(),
        operator: order.author.operator.clone(),
        host: order.author.host.clone(),
        pid: i32::try_from(std::process::id()).unwrap_or(i32::MAX),
    }
}

async fn standing(links: &mut Links, slice: &str) -> Result<Standing, FlipError> {
    let failed =
        |error: JournalError| FlipError::Failed { what: "looking at a side", words: chain_of(&error) };
    let absent = || FlipError::Failed {
        what: "looking at a side",
        words: format!("slice {slice} has no gate row there"),
    };
    let mut gates = Vec::new();
    for side in [Side::Monolith, Side::Service] {
        let client = links.looking(side).await?;
        let rows = authority::look(client, slice, side.incoming()).await.map_err(failed)?;
        gates.push(Gate::try_from(&rows.ok_or_else(absent)?.gate)?);
    }
    match gates.as_slice() {
        [monolith, service] => Ok(Standing::of(monolith, service)),
        _ => Err(absent()),
    }
}

async fn judge(
    member: &Member,
    asked: &Asked<'_>,
    who: &Operator,
) -> Result<readiness::Judgement, FlipError> {
    let mut links = Links::new(member.monolith.clone(), member.service.clone());
    let before = standing(&mut links, asked.slice).await?;
    let (_, monolith, service) = links.three(Side::Monolith).await?;
    let sessions = Sessions { monolith, service };
    let (unguarded, subscribed) = readiness::unguarded(sessions, &member.mapping).await?;
    let findings =
        Findings { unguarded, subscribed, way_back: way_back(member, asked.to, (monolith, service)).await };
    let facts = Box::pin(readiness::gather(sessions, asked, &member.mapping, who, findings)).await?;
    failpoint::hit("flip-looked");
    let judged = readiness::judge(&facts, asked);
    // Facts of which some are from before a move and some from after it say nothing, and name the wrong cure.
    let after = standing(&mut links, asked.slice).await?;
    Ok(if judged.is_go() || before == after { judged } else { readiness::moved_meanwhile(after, asked) })
}

/// Why the stream that would carry the new owner's writes can't be relied on; nothing when a canary arrived and the side that
/// it writes into takes its statements.
async fn way_back(member: &Member, to: Side, (monolith, service): (&Client, &Client)) -> Option<String> {
    let slice = member.mapping.slice.as_str();
    let (source, target) = if to == Side::Service { (service, monolith) } else { (monolith, service) };
    let of = StreamOf { slice, direction: to.outgoing() };
    if let Err(error) = way::prove_way(source, target, of, CANARY_PATIENCE).await {
        return Some(chain_of(&error));
    }
    if to == Side::Monolith {
        // The service's tables have taken these statements all the time that they were a copy.
        return None;
    }
    let apply = match member.monolith_apply.connect(super::APPLICATION).await {
        Ok(session) => session,
        Err(error) => return Some(chain_of(&error)),
    };
    way::prove_statements(&apply, service, &member.mapping).await.err().map(|error| chain_of(&error))
}
