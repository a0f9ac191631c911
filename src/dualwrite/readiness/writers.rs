//! The writers of the side that would be fenced: who would hold the fence up, and whom it would not hold.

use super::Asked;
use super::facts::{Facts, Holder, Replica};
use crate::name::quote_literal;
use crate::problem::Problem;

/// A transaction that is older holds the gate for longer than a lock attempt is patient.
const LONG_S: f64 = 0.2;

/// One that is older does not end within the attempts of a flip, which would all hold writers up for nothing.
const HOPELESS_S: f64 = 5.0;

/// Transactions that are listed: more have one cause.
const LISTED_MAX: usize = 5;

pub(super) fn judge(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(prepared(facts, asked));
    problems.extend(holders(facts, asked));
    problems.extend(passing(facts, asked));
    problems.extend(standbys(facts, asked));
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
                "{} prepared transactions hold moved tables: {}",
                facts.prepared.len(),
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
    // Whose age is hidden may be as old as the server.
    let age = |holder: &Holder| holder.age_s.unwrap_or(f64::INFINITY);
    let long: Vec<&Holder> = facts.holders.iter().filter(|holder| age(holder) >= LONG_S).collect();
    let oldest = long.iter().filter_map(|holder| holder.age_s).fold(0.0, f64::max);
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

fn described(holder: &Holder) -> String {
    let age = holder.age_s.map_or_else(
        || "of hidden age (grant pg_read_all_stats)".to_owned(),
        |age| format!("{age:.1} s old"),
    );
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

fn standbys(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let loose = facts.standbys.iter().filter(|standby| standby.kind != Replica::Synchronous);
    let listed: Vec<String> = loose
        .map(|standby| {
            let how = match standby.kind {
                Replica::Synchronous => "synchronous",
                Replica::Asynchronous => "asynchronous",
                Replica::Away => "away",
                Replica::Hidden => "hidden from this role",
            };
            format!("{} ({how})", standby.name)
        })
        .collect();
    if listed.is_empty() {
        return None;
    }
    Some(
        Problem::warning("asynchronous-standby", asked.name(asked.from()))
            .fact(format!("standbys follow it whose flush no commit waits for: {}", listed.join(", ")))
            .consequence(
                "a fence is not safe against a failover: a standby that is promoted without it has an open gate, and both \
                 sides would accept writes",
            )
            .next("name them in synchronous_standby_names for the time of the flip, or let no failover happen by itself"),
    )
}
