//! A whole flip: who is told that somebody is at work, what speaks against it, and what it needs. The private module `run` does it.
//!
//! Who calls it: `strangler flip`.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::course::Left;
use super::links::owed_an_answer;
use super::moves::{Member, MoveError, Moved, Order};
use super::run::Command;
use super::standings::standing;
use super::{FlipError, course, ours, standings};
use crate::authority::{Intent, Side, Standing};
use crate::cdc::mirror::chain_of;
use crate::cdc::way;
use crate::dualwrite::hooks::{Executor, Report};
use crate::dualwrite::readiness::{self, Asked, Findings, Purpose, Sessions};
use crate::failpoint;
use crate::journal::JournalError;
use crate::journal::operators::{self, Operator};
use crate::journal::streams::StreamOf;
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
    /// Asks it to end, which it does as long as nothing is changed.
    pub stop: &'a CancellationToken,
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
    /// It was asked to end before anything was changed.
    #[error("authority was not moved")]
    Stopped,
    /// A member could not be moved.
    #[error("{source}")]
    Move {
        /// Where the slices stand now.
        left: Left,
        /// Why.
        source: MoveError,
    },
}

impl From<MoveError> for ConductError {
    /// Of what went wrong before anything was done.
    fn from(source: MoveError) -> Self {
        Self::Move { left: Left::Stayed, source }
    }
}

/// Tells the operator.
pub type Tell<'t> = &'t mut (dyn FnMut(Told<'_>) + Send);

impl Conduct<'_> {
    /// Moves these slices, all or none. Those that are there already are left out.
    ///
    /// # Errors
    /// [`ConductError`].
    pub async fn flip(
        &self,
        members: &[Member],
        order: Order,
        tell: Tell<'_>,
    ) -> Result<Vec<Moved>, ConductError> {
        // Where there are no gates, or they are another plan's, there is nothing to write down either.
        let found = self.first_look(members, order.intent).await?;
        let command = Command { conduct: *self, members, hooks: self.hooks(members)?, who: operator(&order) };
        self.announce(members, &command.who).await?;
        let done = tokio::select! {
            done = Box::pin(command.run(order, found, tell)) => done,
            () = self.beat(members, &command.who) => Ok(Vec::new()),
        };
        self.take_leave(members, &command.who).await;
        done
    }

    /// Looks at all members before anything is done: whose they are, and where their authority stands.
    async fn first_look(
        &self,
        members: &[Member],
        intent: Intent,
    ) -> Result<Vec<course::Found>, ConductError> {
        let looked = async {
            let problems = ours::problems(self, members, intent).await?;
            if problems.is_empty() { standings::look(members).await.map(Ok) } else { Ok(Err(problems)) }
        };
        let source = match looked.await {
            Ok(looked) => return looked.map_err(ConductError::Refused),
            Err(source) => source,
        };
        // What a side that does not answer has come to is not known, unless the other one takes writes: then no move is under way.
        let mut left = Left::Stayed;
        for member in members {
            let (mut links, slice) = (member.links.take(), &member.mapping.slice);
            if !standings::takes_writes(&mut links, slice, Side::Monolith).await
                && !standings::takes_writes(&mut links, slice, Side::Service).await
            {
                left = Left::Unknown;
            }
        }
        Err(ConductError::Move { left, source })
    }

    fn hooks(&self, members: &[Member]) -> Result<Executor, ConductError> {
        let slices: Vec<String> = members.iter().map(|member| member.mapping.slice.clone()).collect();
        let hooks = Executor::new(self.plan, &slices, self.variables);
        hooks.map_err(|problem| ConductError::Refused(vec![*problem]))
    }

    /// Why there is nothing to rehearse: members that are where they are wanted already, or that nobody has authority over.
    ///
    /// # Errors
    /// [`ConductError`] when a side can't be asked, or the members are not the plan's.
    pub async fn nothing_to_rehearse(
        &self,
        members: &[Member],
        intent: Intent,
    ) -> Result<Vec<Problem>, ConductError> {
        let (to, back) = match intent {
            Intent::FlipBack => (Side::Monolith, ""),
            Intent::Flip | Intent::Abort | Intent::Resume => (Side::Service, " --back"),
        };
        let found = self.first_look(members, intent).await?;
        if let Some(problem) = found.iter().find_map(|one| course::without_owner(one, to, self.path)) {
            return Ok(vec![problem]);
        }
        let is_there =
            |one: &&course::Found| matches!(one.standing, Standing::Owned { owner, .. } if owner == to);
        let there: Vec<&course::Found> = found.iter().filter(is_there).collect();
        let all: String = there.iter().map(|one| format!(" --slice {}", one.slice)).collect();
        let said = |one: &&course::Found| {
            let slice = &one.slice;
            Problem::error("already-moved", format!("slice {slice}"))
                .fact(format!("the {to} has authority over it already"))
                .consequence("there is nothing to rehearse in this direction")
                .next(format!("strangler flip{back} {}{all} --rehearse", self.path))
        };
        Ok(there.iter().map(said).collect())
    }

    /// What is found about all members, and the reason that was given instead of evidence, where one was needed.
    ///
    /// # Errors
    /// [`MoveError`] when a side can't be asked.
    pub async fn judge(
        &self,
        members: &[Member],
        (intent, purpose): (Intent, Purpose),
        who: &Operator,
    ) -> Result<(Vec<Problem>, Option<String>), MoveError> {
        let to = if intent == Intent::FlipBack { Side::Monolith } else { Side::Service };
        let all: Vec<&str> = members.iter().map(|member| member.mapping.slice.as_str()).collect();
        let (mut problems, mut reason) = (Vec::new(), None);
        for member in members {
            let slice = member.mapping.slice.as_str();
            let (plan, path, accepted) = (self.plan, self.path, self.accepted);
            let asked = Asked { plan, path, slice, to, members: &all, purpose, accepted };
            let judged = judge(member, &asked, who).await;
            let judged = judged.map_err(|source| MoveError { slice: slice.to_owned(), source })?;
            problems.extend(judged.problems);
            reason = reason.or(judged.without_evidence);
        }
        Ok((problems, reason))
    }

    async fn announce(&self, members: &[Member], who: &Operator) -> Result<(), MoveError> {
        for member in members {
            let slice = &member.mapping.slice;
            let of = |source| MoveError { slice: slice.clone(), source };
            let mut links = member.links.take();
            let monolith = links.looking(Side::Monolith).await.map_err(of)?;
            // Somebody else at work is one of the things that speak against a flip; see `readiness`.
            match begin(monolith, slice, who).await {
                Ok(()) => member.links.keep(links).await,
                Err(error) => tracing::warn!(
                    slice,
                    error = chain_of(&error),
                    "it could not be written down who is at work"
                ),
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
            let mut links = member.links.take();
            let Ok(monolith) = links.looking(Side::Monolith).await else { continue };
            let written = if alive {
                operators::beat(monolith, slice, who).await.map(drop)
            } else {
                operators::end(monolith, slice, who).await
            };
            match written {
                Ok(()) => member.links.keep(links).await,
                Err(error) => {
                    tracing::debug!(
                        slice,
                        error = chain_of(&error),
                        "an operator's row could not be written"
                    );
                }
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

async fn judge(
    member: &Member,
    asked: &Asked<'_>,
    who: &Operator,
) -> Result<readiness::Judgement, FlipError> {
    let mut links = member.links.take();
    let before = standing(&mut links, asked.slice).await?;
    let (_, monolith, service) = links.three(Side::Monolith).await?;
    let sessions = Sessions { monolith, service };
    let found = readiness::unguarded(sessions, &member.mapping).await?;
    let findings = Findings { way_back: way_back(member, asked.to, (monolith, service)).await, ..found };
    let facts = Box::pin(readiness::gather(sessions, asked, &member.mapping, who, findings)).await?;
    failpoint::hit("flip-looked");
    let judged = readiness::judge(&facts, asked);
    // Facts of which some are from before a move and some from after it say nothing, and name the wrong cure.
    let after = standing(&mut links, asked.slice).await?;
    member.links.keep(links).await;
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
    let server = member.monolith_apply.clone().answering_within(super::ANSWER_MAX);
    let apply = match server.connect(super::APPLICATION).await {
        Ok(session) => session,
        Err(error) => return Some(chain_of(&error)),
    };
    let refused = way::prove_statements(&apply, service, &member.mapping).await.err()?;
    let owed = owed_an_answer(&server, Side::Monolith).or_else(|| member.links.owed_an_answer());
    Some(std::iter::once(chain_of(&refused)).chain(owed).collect::<Vec<_>>().join("; "))
}
