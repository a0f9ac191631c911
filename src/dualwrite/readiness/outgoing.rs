//! The stream from the side that would be fenced: whether it is alive and quick, and whether both sides are proven equal.

use super::facts::{Facts, Probe};
use super::{Asked, until_turned};
use crate::authority::Side;
use crate::dualwrite::gate::FIRST_EPOCH;
use crate::journal::readiness::Mirror;
use crate::postgres::clocks;
use crate::problem::{Problem, bring_back};
use crate::reconcile::evidence::Lack;
use crate::reconcile::finding::FindingKind;
use crate::reconcile::verdict::Outcome;
use crate::words;

/// Round trip of a marker below which a drain ends within the pause that users don't notice: what it may be at least, whatever
/// the plan's budget.
const CALM_MS: f64 = 30.0;

/// Share of the plan's `write_pause_budget` that the round trip may be where that is more. A drain is about one round trip, and an
/// attempt that takes longer than the budget lets everybody go: a fifth leaves four for the writers that end first, and for one trip
/// that is slower than the five before (docs/decisions/0014-how-calm-a-mirror-is.md).
const CALM_SHARE: f64 = 0.2;

/// How many round trips in a row have to be below that.
const CALM_IN_A_ROW: usize = 5;

/// The last round trips were quick enough.
pub(super) fn is_calm(probe: &Probe, asked: &Asked<'_>) -> bool {
    let (last, bound) = (probe.millis.iter().rev().take(CALM_IN_A_ROW), calm_ms(asked));
    probe.millis.len() >= CALM_IN_A_ROW && last.into_iter().all(|millis| *millis < bound)
}

fn calm_ms(asked: &Asked<'_>) -> f64 {
    let budget = asked.policy().write_pause_budget;
    (budget.as_secs_f64() * 1000.0 * CALM_SHARE).max(CALM_MS)
}

pub(super) fn judge(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(mapping(facts, asked));
    let down = stream(facts, asked);
    let away = down.is_none().then(|| away(facts, asked)).flatten();
    if down.is_none() && away.is_none() {
        problems.extend(slow(facts, asked));
    }
    problems.extend(down.into_iter().chain(away));
    problems.extend(lost_writes(facts, asked));
    problems.extend(unfinished(facts, asked));
    problems.extend(clock_apart(facts, asked));
    problems.extend(too_early(facts, asked));
    problems
}

fn mapping(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let provisioned = [&facts.from, &facts.to].map(|told| told.slice.as_ref().map(|slice| &slice.plan_hash));
    match provisioned {
        [Some(from), Some(to)] if *from == facts.mapping && *to == facts.mapping => None,
        [Some(_), Some(_)] => Some(
            Problem::error("other-mapping", asked.object())
                .fact(format!("the plan maps it in another way than it was provisioned: {}", facts.changed))
                .consequence(
                    "what the mirror brings is not what the plan says, so nothing is moved by this plan",
                )
                .next(bring_back(asked.slice)),
        ),
        _ => Some(not_provisioned(asked.path, asked.slice, "it is not provisioned on both sides")),
    }
}

/// The problem with a slice that `provision` never came to. `path` is the plan's as typed; `fact` says where it is missing.
#[must_use]
pub fn not_provisioned(path: &str, slice: &str, fact: &str) -> Problem {
    Problem::error("not-provisioned", format!("slice {slice}"))
        .fact(fact)
        .consequence("there are no gates, and nothing to move")
        .next(format!("strangler provision {path}"))
}

/// What was judged is not so any more, as was seen while the writers were held.
#[must_use]
pub fn changed_meanwhile(what: &[String], path: &str, slice: &str) -> Problem {
    Problem::error("changed-meanwhile", format!("slice {slice}"))
        .fact(format!("since it was judged: {}", what.join("; ")))
        .consequence("what the move was judged by does not hold any more, so the gate was not closed and nobody saw an error")
        .next(format!("strangler status {path} --slice {slice}, then the same command again"))
}

fn stream(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let fact = match &facts.to.stream {
        None => "was never started".to_owned(),
        Some(stream) if stream.state != "running" => {
            let why = stream.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("is {}{why}", stream.state)
        }
        Some(stream) if stream.mode != "APPLY" => format!("is in mode {}, not APPLY", stream.mode),
        Some(_) => return None,
    };
    Some(
        Problem::error("stream-not-applying", asked.object())
            .fact(format!("the stream from the {} {fact}", asked.from()))
            .consequence("writes of the old side would be missing on the new one")
            .next(until_turned(asked)),
    )
}

fn away(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let mut next = asked.command("mirror");
    let fact = match &facts.to.mirror {
        Some(mirror) if mirror.is_alive() => return None,
        // One that ended by itself left word, and mostly what to type.
        Some(Mirror { stopped: true, detail: Some(detail), .. }) => {
            let (why, asks) = detail
                .split_once("; next: ")
                .map_or((detail.as_str(), None), |(why, asks)| (why, Some(asks)));
            if let Some(asks) = asks {
                next = asks.replace(" PLAN", &format!(" {}", asked.path));
            }
            format!("its mirror ended by itself: {why}")
        }
        Some(mirror) if mirror.stopped => "its mirror was stopped".to_owned(),
        Some(mirror) => format!(
            "its mirror (process {} on {}) gave its last sign of life {:.0} s ago",
            mirror.pid, mirror.host, mirror.seen_s
        ),
        None => "no mirror of it ever ran".to_owned(),
    };
    Some(
        Problem::error("mirror-away", asked.object())
            .fact(fact)
            .consequence("nothing would drain, so every attempt would only hold writers up")
            .next(next),
    )
}

fn slow(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let probe = &facts.probe;
    if is_calm(probe, asked) {
        return None;
    }
    let shown: Vec<String> = probe
        .millis
        .iter()
        .rev()
        .take(2 * CALM_IN_A_ROW)
        .rev()
        .map(|millis| format!("{millis:.1}"))
        .collect();
    let fact = if probe.unanswered {
        "a marker did not arrive within 2 s".to_owned()
    } else {
        format!("the last markers took {} ms", shown.join(", "))
    };
    Some(
        Problem::error("mirror-lags", asked.object())
            .fact(format!("{fact}; {CALM_IN_A_ROW} in a row have to stay below {:.0} ms", calm_ms(asked)))
            .consequence("writers would wait that long, or in vain")
            .next(format!("wait until {} shows a small lag, then {}", asked.command("status"), asked.flip())),
    )
}

/// The way back that would have to drain was begun anew over a hole. Not a question of evidence, so no reason excuses it.
fn lost_writes(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let slot = facts.lost_writes.as_ref().filter(|_| asked.to == Side::Monolith)?;
    let reconcile = asked.command("reconcile");
    Some(
        Problem::error("writes-not-back", asked.object())
            .fact(format!(
                "the way back was begun anew under the slot {slot} while the service had authority, and no full comparison \
                 since has found both sides equal"
            ))
            .consequence(
                "what the service accepted before that would be missing on the monolith, and no reason excuses that",
            )
            .next(format!("{reconcile} --repair, then {reconcile}")),
    )
}

/// Tables that were not copied, and what still has to be made on them. Not a question of evidence, so no reason excuses it.
fn unfinished(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let service = match asked.to {
        Side::Service => &facts.to,
        Side::Monolith => &facts.from,
    };
    let mut problems = Vec::new();
    let not_live: Vec<String> = service
        .tables
        .iter()
        .filter(|table| table.state != "live")
        .map(|table| format!("{} is {}", table.name, table.state))
        .collect();
    if !not_live.is_empty() {
        problems.push(
            Problem::error("tables-not-live", asked.object())
                .fact(not_live.join(", "))
                .consequence("rows of it are missing or wrong on the copy")
                .next(asked.command("status")),
        );
    }
    let waiting: Vec<&str> = service.deferred.iter().map(|wait| wait.object.as_str()).collect();
    if !waiting.is_empty() && asked.to == Side::Service {
        let soft = service.deferred.iter().all(|wait| wait.kind == "foreign_key");
        let code = "not-finished";
        let problem =
            if soft { Problem::warning(code, asked.object()) } else { Problem::error(code, asked.object()) };
        problems.push(
            problem
                .fact(format!("still to be made in the service: {}", waiting.join(", ")))
                .consequence("the service would accept rows that they forbid, or be slow without them")
                .next(format!(
                    "the mirror makes them; {} says what keeps it from that",
                    asked.command("status")
                )),
        );
    }
    problems
}

/// The way home is never made to wait for a clock.
fn clock_apart(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    facts.apart_us.filter(|_| asked.to == Side::Service).map(clocks::problem)
}

fn too_early(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let wanted = asked.policy().min_mirror_time;
    // The way home is never made to wait.
    if asked.to == Side::Monolith || wanted.is_zero() {
        return None;
    }
    let since = facts.to.live_s.unwrap_or(0.0).max(0.0);
    if since >= wanted.as_secs_f64() {
        return None;
    }
    let hours = |seconds: f64| format!("{:.1} h", seconds / 3600.0);
    Some(
        Problem::error("mirrored-too-short", asked.object())
            .fact(format!(
                "all of its tables have been live for {}, and min_mirror_time is {}",
                hours(since),
                hours(wanted.as_secs_f64())
            ))
            .consequence("what happens only once a week or a month was not seen yet")
            .next("wait, or lower min_mirror_time in the plan if that was seen elsewhere"),
    )
}

/// Whether both sides are proven equal. With the operator's reason a missing proof is a warning; known differences
/// stay an error. Returns the reason, where it was needed.
pub(super) fn evidence(facts: &Facts, asked: &Asked<'_>) -> (Vec<Problem>, Option<String>) {
    let lacks = facts.evidence.lacks(facts.ground.as_ref(), asked.policy().evidence_max_age);
    if lacks.is_empty() {
        return (Vec::new(), None);
    }
    let known = lacks.iter().any(|lack| matches!(lack, Lack::Differs | Lack::DiffersSince));
    let words: Vec<String> = lacks.iter().map(ToString::to_string).collect();
    let strict = if facts.evidence.asks_for_strict() { " --strict" } else { "" };
    let reconcile = format!("{}{strict}", asked.command("reconcile"));
    let reason = asked.accepted.map(str::trim).filter(|reason| !reason.is_empty());
    if let Some(orphans) = facts.evidence.only_orphans().filter(|_| known) {
        let said = (words.join("; "), orphans);
        return (vec![orphans_only(said, reason, asked)], reason.map(str::to_owned));
    }
    if known {
        let problem = Problem::error("sides-differ", asked.object())
            .fact(words.join("; "))
            .consequence("the new side would go on with wrong rows, and no reason excuses that")
            .next(repairing(facts, asked, &reconcile));
        return (vec![problem], None);
    }
    if lacks.contains(&Lack::DiffersStrictly) {
        let said = (words.join("; "), reconcile);
        return (vec![differs_strictly(said, reason, asked)], reason.map(str::to_owned));
    }
    match reason {
        Some(reason) => {
            let problem = Problem::warning("no-evidence", asked.object())
                .fact(format!("{}; accepted: {reason}", words.join("; ")))
                .consequence(
                    "whether both sides hold the same rows is not known; the reason goes into the ledger",
                )
                .next(reconcile);
            (vec![problem], Some(reason.to_owned()))
        }
        None => {
            let problem = Problem::error("no-evidence", asked.object())
                .fact(words.join("; "))
                .consequence("whether both sides hold the same rows is not known")
                .next(format!("{reconcile}; or {} --accept-no-evidence REASON", asked.flip()));
            (vec![problem], None)
        }
    }
}

/// What brings the sides in line. Rows of the service that its filter forbids may be what its application wrote while it had the
/// authority, and a repair of a service that is the copy deletes them.
fn repairing(facts: &Facts, asked: &Asked<'_>, reconcile: &str) -> String {
    if only_misplaced(facts, asked) {
        return format!(
            "no repair takes away rows of the service that the slice's filter does not take: DELETE them there, or give \
             them a value that it takes; then {reconcile}"
        );
    }
    let full = facts.evidence.last_full.as_ref().filter(|verdict| verdict.outcome == Outcome::Differs);
    let misplaced =
        full.and_then(|verdict| verdict.counts.get(&FindingKind::Misplaced)).copied().unwrap_or(0);
    let had = facts.ground.as_ref().is_some_and(|ground| ground.epoch > FIRST_EPOCH);
    if asked.to == Side::Service && had && misplaced > 0 {
        return format!(
            "the service has had the authority before, and its application may have written the {} that the filter forbids, \
             which nothing else has. Save in the service what is wanted of them, then {reconcile} --repair --delete-misplaced, \
             which DELETES them, then {reconcile}",
            words::plural(usize::try_from(misplaced).unwrap_or(usize::MAX), "row")
        );
    }
    repair(reconcile, facts, asked)
}

/// How to bring both sides in line. A repair makes the copy what the authority is, and what only the copy has is gone then.
fn repair(reconcile: &str, facts: &Facts, asked: &Asked<'_>) -> String {
    let found = facts.evidence.last.iter().chain(&facts.evidence.last_full);
    let extra = found.filter_map(|verdict| verdict.counts.get(&FindingKind::Extra)).max();
    let Some(extra) = extra.filter(|extra| **extra > 0) else {
        return format!("{reconcile} --repair, then {reconcile}");
    };
    let (rows, authority) =
        (words::plural(usize::try_from(*extra).unwrap_or(usize::MAX), "row"), asked.to.peer());
    format!(
        "look at what {reconcile} --repair --dry-run says: a repair deletes from the {} {rows} that the {authority} does not have. Where \
         these are the good ones, put them back into the {authority} first; then {reconcile} --repair, then {reconcile}",
        asked.to
    )
}

/// The last verdict that found differences found none but rows that the service's application wrote and the filter forbids.
fn only_misplaced(facts: &Facts, asked: &Asked<'_>) -> bool {
    let full = facts.evidence.last_full.as_ref().filter(|verdict| verdict.outcome == Outcome::Differs);
    let other = |(kind, count): (&FindingKind, &u64)| *kind != FindingKind::Misplaced && *count > 0;
    asked.to == Side::Monolith && full.is_some_and(|verdict| !verdict.counts.iter().any(other))
}

/// A strict comparison found rows that differ, and nothing else is known to. Where the copy's types write the same value in
/// another way, they will differ for ever.
fn differs_strictly(
    (words, reconcile): (String, String),
    reason: Option<&str>,
    asked: &Asked<'_>,
) -> Problem {
    let problem = match reason {
        Some(reason) => Problem::warning("differs-strictly", asked.object())
            .fact(format!("{words}; accepted: {reason}"))
            .next(reconcile),
        None => Problem::error("differs-strictly", asked.object()).fact(words).next(format!(
            "{reconcile} --repair, then {reconcile}; or {} --accept-no-evidence REASON",
            asked.flip()
        )),
    };
    problem.consequence(
        "the new side would go on with values that are written in another way, or are other ones",
    )
}

/// All rows are equal, and some refer to nothing, on either side: no repair helps, and a move makes it no worse.
fn orphans_only((words, orphans): (String, u64), reason: Option<&str>, asked: &Asked<'_>) -> Problem {
    let count = words::plural(usize::try_from(orphans).unwrap_or(usize::MAX), "orphan");
    let fact = format!("{words}: {count}, and no row that differs");
    let runbook = "docs/runbooks/differences-found.md, \"Orphans only\"";
    let problem = match reason {
        Some(reason) => {
            Problem::warning("orphans-only", asked.object()).fact(format!("{fact}; accepted: {reason}"))
        }
        None => Problem::error("orphans-only", asked.object()).fact(fact),
    };
    problem
        .consequence("rows refer to nothing, on the old side as on the new one; no repair helps, the application has to")
        .next(match reason {
            Some(_) => runbook.to_owned(),
            None => format!("{runbook}; or {} --accept-no-evidence REASON", asked.flip()),
        })
}
