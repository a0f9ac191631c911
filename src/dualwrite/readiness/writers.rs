//! The writers of the side that would be fenced: who would hold the fence up, and whom it would not hold.

use super::Asked;
use super::facts::{Facts, Holder, Replica, Standby};
use crate::name::quote_literal;
use crate::plan::FenceStandbys;
use crate::problem::Problem;
use crate::words;

/// A transaction that is older holds the gate for longer than a lock attempt is patient.
pub(super) const LONG_S: f64 = 0.2;

/// One that is older does not end within the attempts of a flip, which would all hold writers up for nothing.
pub(super) const HOPELESS_S: f64 = 5.0;

/// Transactions that are listed: more have one cause.
pub(super) const LISTED_MAX: usize = 5;

pub(super) fn judge(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(prepared(facts, asked));
    problems.extend(holders(facts, asked));
    problems.extend(passing(facts, asked));
    problems.extend(unfenced(facts, asked));
    problems.extend(late(facts, asked));
    problems
}

fn prepared(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let first = facts.prepared.first()?;
    let listed: Vec<String> = facts
        .prepared
        .iter()
        .take(LISTED_MAX)
        .map(|found| format!("{:?} of {}, {} s old", found.gid, found.owner, found.age_s))
        .collect();
    Some(
        Problem::error("prepared-in-the-way", asked.name(asked.from()))
            .fact(format!(
                "{} with locks of moved tables: {}",
                words::plural(facts.prepared.len(), "prepared transaction"),
                listed.join("; ")
            ))
            .consequence("they keep the gate until somebody ends them, and no fence can close before")
            .next(format!(
                "end them on the {}: COMMIT PREPARED {gid}; or ROLLBACK PREPARED {gid};",
                asked.from(),
                gid = quote_literal(&first.gid)
            )),
    )
}

fn holders(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let long: Vec<&Holder> = facts.holders.iter().filter(|holder| holder.age_s >= LONG_S).collect();
    let oldest = long.iter().map(|holder| holder.age_s).fold(0.0, f64::max);
    if long.is_empty() {
        return None;
    }
    let listed: Vec<String> = long.iter().take(LISTED_MAX).map(|holder| described(holder)).collect();
    let more = long.len().saturating_sub(LISTED_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let code = "gate-held";
    let object = asked.name(asked.from());
    let pids: Vec<String> = long.iter().map(|holder| holder.pid.to_string()).collect();
    let problem =
        if oldest >= HOPELESS_S { Problem::error(code, object) } else { Problem::warning(code, object) };
    Some(
        problem
            .fact(format!("transactions that wrote and have not ended: {}{more}", listed.join("; ")))
            .consequence("the fence waits for them, and meanwhile every writer waits for the fence")
            .next(format!(
                "wait until they end, or: SELECT pg_terminate_backend(pid) for {}",
                pids.join(", ")
            )),
    )
}

pub(super) fn described(holder: &Holder) -> String {
    let age = if holder.hidden {
        format!("seen for {:.1} s, of hidden age (grant pg_read_all_stats)", holder.age_s)
    } else {
        format!("{:.1} s old", holder.age_s)
    };
    format!("process {} ({}, {}) {age}: {}", holder.pid, holder.application, holder.state, holder.query)
}

/// The role that would be fenced gets 25006; this one passes every gate.
fn passing(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    if facts.passing.is_empty() {
        return None;
    }
    let listed: Vec<String> = facts
        .passing
        .iter()
        .take(LISTED_MAX)
        .map(|(pid, application)| format!("process {pid} ({application})"))
        .collect();
    Some(
        Problem::error("passes-the-gate", asked.name(asked.from()))
            .fact(format!("somebody else logs in as strangler_apply: {}", listed.join(", ")))
            .consequence(
                "what that role writes passes every gate, so its writes would be lost without any error",
            )
            .next("give it a role of its own, and strangler_apply a new password"),
    )
}

/// Whether an opening waits for such a standby.
fn is_waited_for(kind: Replica, asked: &Asked<'_>) -> bool {
    let which = asked.policy().fence_standbys;
    match kind {
        Replica::Synchronous => which != FenceStandbys::None,
        Replica::Asynchronous => which == FenceStandbys::All,
        Replica::Away | Replica::Hidden => false,
    }
}

/// Standbys that could be promoted with an open gate, because no opening waits for their flush.
fn unfenced(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let loose = || facts.standbys.iter().filter(|standby| !is_waited_for(standby.kind, asked));
    let how = |standby: &Standby| match standby.kind {
        Replica::Synchronous => format!("{} (synchronous)", standby.name),
        Replica::Asynchronous => format!("{} (asynchronous)", standby.name),
        Replica::Away => format!("{} (away)", standby.name),
        Replica::Hidden => format!("{} (hidden from this role)", standby.name),
    };
    let listed = loose().map(how).collect::<Vec<_>>().join(", ");
    let object = asked.name(asked.from());
    let fenced = asked.policy().fence_standbys != FenceStandbys::None;
    if fenced && loose().any(|standby| standby.kind == Replica::Hidden) {
        return Some(
            Problem::error("hidden-standby", object)
                .fact(format!("standbys follow it whose position can't be seen: {listed}"))
                .consequence("an opening would wait for them in vain, with both sides closed")
                .next(format!(
                    "GRANT pg_monitor to the role of the admin link of the {}, then {}",
                    asked.from(),
                    asked.flip()
                )),
        );
    }
    (!listed.is_empty()).then(|| {
        Problem::warning("unfenced-standby", object)
            .fact(format!("standbys follow it whose flush no opening waits for: {listed}"))
            .consequence(
                "a fence is not safe against a failover: a standby that is promoted without it has an open gate, and both \
                 sides would accept writes",
            )
            .next(
                "set fence_standbys: all in the plan, drop the slots of standbys that are gone, or let no failover happen by \
                 itself",
            )
    })
}

/// A standby that is waited for and does not follow would keep both sides closed.
fn late(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let late = |standby: &&Standby| standby.is_late() && is_waited_for(standby.kind, asked);
    let shown = |standby: &Standby| match standby.behind_bytes {
        Some(bytes) => format!("{} ({} behind)", standby.name, words::bytes(bytes.unsigned_abs())),
        None => format!("{} (tells no position)", standby.name),
    };
    let listed: Vec<String> = facts.standbys.iter().filter(late).map(shown).collect();
    (!listed.is_empty()).then(|| {
        Problem::error("standby-late", asked.name(asked.from()))
            .fact(format!("half a second was not enough for it to be flushed by: {}", listed.join(", ")))
            .consequence("an opening waits for them, and both sides would stay closed for as long")
            .next(format!(
                "wait until they follow; where they only archive WAL and can't be promoted (pg_receivewal), set fence_standbys: \
                 sync in the plan; then {}",
                asked.flip()
            ))
    })
}
