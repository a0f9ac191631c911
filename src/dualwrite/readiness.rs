//! Whether a flip may begin: what was found out about both sides, and what speaks against it.
//!
//! Who calls it: `strangler flip` and its rehearsal, where a move would begin. One that is under way is finished or
//! aborted whatever is found here, since nobody has authority until then. [`gather()`] asks both databases and changes
//! nothing, but sends some markers down the stream; [`judge`] is pure. A problem of severity error is a no-go. Nothing
//! here keeps the data safe, which is the business of the conditions in each step of the flip: it keeps a flip from
//! beginning that would fail, hold writers up for nothing, or could not be taken back.

pub mod defaults;
mod destination;
mod facts;
mod gather;
pub mod left_behind;
pub mod locks;
mod outgoing;
mod way_back;
mod writers;

pub use destination::sequence_short;
pub use facts::{
    Access, Behind, Facts, Findings, Holder, Look, Prepared, Probe, Replica, Slot, Standby, TableLock,
};
pub use gather::{Sessions, gather, unguarded};
pub use outgoing::{changed_meanwhile, not_provisioned};
pub use way_back::not_armed;

use crate::authority::{Side, Standing};
use crate::journal::operators::OperatorRow;
use crate::plan::{Plan, Policy, Service};
use crate::problem::{Problem, Severity};

/// What the answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A move that begins when nothing forbids it.
    Move,
    /// A rehearsal, which changes nothing.
    Rehearsal,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its path as the operator typed it, for the commands in problems.
    pub path: &'a str,
    /// The slice.
    pub slice: &'a str,
    /// Who is to have authority.
    pub to: Side,
    /// All slices of the command, this one among them: they are typed together again.
    pub members: &'a [&'a str],
    /// What for.
    pub purpose: Purpose,
    /// `--accept-no-evidence REASON`: the operator takes it on themselves that nothing proves both sides equal.
    pub accepted: Option<&'a str>,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What speaks against the flip, errors first.
    pub problems: Vec<Problem>,
    /// The operator's reason, where the flip goes without a proof because of it: it belongs into the ledger.
    pub without_evidence: Option<String>,
}

impl Judgement {
    /// Nothing forbids the flip.
    #[must_use]
    pub fn is_go(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::Error)
    }
}

impl<'a> Asked<'a> {
    /// The side that would be fenced.
    #[must_use]
    pub fn from(&self) -> Side {
        self.to.peer()
    }

    /// The slice's policy.
    fn policy(&self) -> &'a Policy {
        self.plan.slices.get(self.slice).map_or(&self.plan.policy, |slice| &slice.policy)
    }

    /// The slice's service, with its name.
    fn service(&self) -> Option<(&'a str, &'a Service)> {
        self.plan.service_of(self.slice)
    }

    /// A side as an operator calls it.
    fn name(&self, side: Side) -> String {
        match side {
            Side::Monolith => "monolith".to_owned(),
            Side::Service => format!("service {}", self.service().map_or("", |(name, _)| name)),
        }
    }

    /// The slice as the object of a problem.
    fn object(&self) -> String {
        format!("slice {}", self.slice)
    }

    /// A command about this slice.
    fn command(&self, verb: &str) -> String {
        format!("strangler {verb} {} --slice {}", self.path, self.slice)
    }

    /// The flip that is asked for, or its rehearsal.
    fn flip(&self) -> String {
        let back = if self.to == Side::Monolith { " --back" } else { "" };
        let slices: String = self.members.iter().map(|slice| format!(" --slice {slice}")).collect();
        let rehearse = if self.purpose == Purpose::Rehearsal { " --rehearse" } else { "" };
        format!("strangler flip{back} {}{slices}{rehearse}", self.path)
    }
}

/// What to do about a stream that a move before this one has not turned yet.
fn until_turned(asked: &Asked<'_>) -> String {
    format!(
        "{}; where the move before this one was cut off, a running mirror finishes it within seconds, and then {}",
        asked.command("status"),
        asked.flip()
    )
}

/// Judges what was found.
#[must_use]
pub fn judge(facts: &Facts, asked: &Asked<'_>) -> Judgement {
    let (evidence, without_evidence) = outgoing::evidence(facts, asked);
    let mut problems = evidence;
    problems.extend(outgoing::judge(facts, asked));
    problems.extend(way_back::judge(facts, asked));
    problems.extend(left_behind::judge(facts, asked));
    problems.extend(writers::judge(facts, asked));
    problems.extend(locks::judge(facts, asked));
    problems.extend(destination::judge(facts, asked));
    problems.extend(facts.other.as_ref().map(|other| at_work(other, asked)));
    problems.sort();
    Judgement { problems, without_evidence }
}

/// Errors by which no attempt can come through: a rehearsal would only hold writers up. The rest speaks against a move, and
/// what it would take can be found out all the same.
const IN_VAIN: &[&str] = &[
    "not-provisioned",
    "mirror-away",
    "mirror-lags",
    "stream-not-applying",
    "tables-not-live",
    "way-back-missing",
    "way-back-idle",
    "gate-held",
    "table-locked",
    "prepared-in-the-way",
    "authority-moved",
];

/// Whether one of these problems lets no attempt of a rehearsal come through.
#[must_use]
pub fn is_in_vain(problems: &[Problem]) -> bool {
    let error = |problem: &&Problem| problem.severity == Severity::Error;
    problems.iter().filter(error).any(|problem| IN_VAIN.contains(&problem.code))
}

/// The answer where somebody else moved authority while the facts were gathered. `now` is where it stands since.
#[must_use]
pub fn moved_meanwhile(now: Standing, asked: &Asked<'_>) -> Judgement {
    let fact = match now {
        Standing::Owned { owner, epoch } | Standing::Behind { owner, epoch } => {
            format!(
                "authority was moved while it was looked at; it is with the {owner} since epoch {}",
                epoch.0
            )
        }
        Standing::Fenced { from, epoch } | Standing::Aborted { from, epoch } => {
            format!(
                "authority is being moved, away from the {from}, by somebody else; both sides are closed at epoch {}",
                epoch.0
            )
        }
        Standing::BothOpen | Standing::Broken => "its gates changed while it was looked at".to_owned(),
    };
    let problem = Problem::error("authority-moved", asked.object())
        .fact(fact)
        .consequence("what was found is partly from before and partly from after, so nothing was begun")
        .next(format!("{}; then {} if it is still wanted", asked.command("status"), asked.flip()));
    Judgement { problems: vec![problem], without_evidence: None }
}

/// A courtesy: whoever insists can wait until the other one is silent.
fn at_work(other: &OperatorRow, asked: &Asked<'_>) -> Problem {
    let who = &other.who;
    Problem::error("operator-at-work", asked.object())
        .fact(format!(
            "{} runs `strangler {}` in process {} on {}, last seen {:.0} s ago",
            who.operator, who.verb, who.pid, who.host, other.seen_s
        ))
        .consequence("two flips at once do no harm, and one of them would end in words that nobody expects")
        .next(format!("wait until it has ended, or for 15 s after it died; then {}", asked.flip()))
}

#[cfg(test)]
mod tests;
