//! Whether authority could come back, and whether the gates are there at all.

use super::facts::Facts;
use super::{Asked, until_turned};
use crate::authority::Side;
use crate::dualwrite::guard;
use crate::journal::readiness::Mirror;
use crate::name::TableName;
use crate::problem::Problem;

/// Places without a gate that are named; more have one cause.
const NAMED_MAX: usize = 5;

pub(super) fn judge(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(facts.findings.claimed.iter().map(|one| claimed(one, asked)));
    problems.extend(gates(facts, asked));
    problems.extend(facts.findings.ways_past.iter().cloned());
    match stream(facts, asked) {
        Some(problem) => problems.push(problem),
        None => {
            problems.extend(slot(facts, asked));
            problems.extend(idle(facts, asked));
            problems.extend(unproven(facts, asked));
        }
    }
    problems.extend(alarms(facts, asked));
    problems
}

fn gates(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let open = &facts.findings.unguarded;
    (!open.is_empty()).then(|| not_armed(open, asked.path, asked.slice))
}

/// Another slice decides who may write the table.
fn claimed((table, other): &(TableName, String), asked: &Asked<'_>) -> Problem {
    Problem::error("table-claimed", format!("table {table}"))
        .fact(format!("it belongs to slice {other}, whose gate hangs on it on the monolith"))
        .consequence("the fence would not hold there, and writes would be lost")
        .next(format!("strangler check {}, which says whose it is and the way out", asked.path))
}

/// The problem with a slice that has ways in past its gates. `path` is the plan's as typed.
#[must_use]
pub fn not_armed(places: &[String], path: &str, slice: &str) -> Problem {
    let named: Vec<&str> = places.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = places.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    // Each verb hangs the gates of one side.
    let of_service = |place: &String| place.starts_with(guard::IN_SERVICE);
    let verbs = [("provision", places.iter().any(of_service)), ("arm", !places.iter().all(of_service))];
    let verbs = verbs.into_iter().filter(|(_, due)| *due);
    let next: Vec<String> =
        verbs.map(|(verb, _)| format!("strangler {verb} {path} --slice {slice}")).collect();
    Problem::error("not-armed", format!("slice {slice}"))
        .fact(format!("not guarded by its gate: {}{more}", named.join(", ")))
        .consequence("the fence would not hold there, and writes would be lost")
        .next(next.join(", then "))
}

/// The stream that would bring the new owner's writes to the old side.
fn stream(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let (fact, next) = match &facts.from.stream {
        None => ("there is no stream".to_owned(), repair(asked)),
        Some(stream) if stream.state != "running" => {
            let why = stream.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
            (format!("the stream is {}{why}", stream.state), repair(asked))
        }
        Some(stream) if stream.mode != "TRIPWIRE" => {
            (format!("the stream is in mode {}, not TRIPWIRE", stream.mode), until_turned(asked))
        }
        Some(_) => return None,
    };
    Some(
        Problem::error("way-back-missing", asked.object())
            .fact(format!("{fact} from the {} to the {}", asked.to, asked.from()))
            .consequence("authority could not come back, and the old side would see no new rows")
            .next(next),
    )
}

/// Only `arm` makes the way to the monolith, and only `mirror` the way to a service.
fn repair(asked: &Asked<'_>) -> String {
    match asked.to {
        Side::Service => asked.command("arm"),
        Side::Monolith => asked.command("status"),
    }
}

fn slot(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let stream = facts.from.stream.as_ref()?;
    let at = asked.name(asked.to);
    let lost = |fact: String| {
        Problem::error("way-back-slot", &at)
            .fact(fact)
            .consequence("writes that the new owner accepts would be missing on the old side")
            .next(repair(asked))
    };
    let Some(slot) = &facts.slot else {
        return Some(lost(format!("the slot {} of the way back is not there", stream.slot)));
    };
    if slot.wal_status == "lost" {
        return Some(lost(format!("the server dropped WAL that the slot {} needs", stream.slot)));
    }
    match slot.confirmed {
        None => Some(lost(format!("the slot {} has no position yet", stream.slot))),
        Some(confirmed) if confirmed > stream.applied => Some(lost(format!(
            "the slot {} was moved on to {confirmed}, and only {} was looked at",
            stream.slot, stream.applied
        ))),
        Some(_) if slot.wal_status == "unreserved" => Some(
            Problem::warning("way-back-slot", &at)
                .fact(format!(
                    "the server may drop WAL that the slot {} needs at its next checkpoint",
                    stream.slot
                ))
                .consequence("the way back would be lost with it")
                .next("raise max_slot_wal_keep_size there, and see that the mirror runs"),
        ),
        Some(_) => None,
    }
}

fn idle(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    if facts.from.mirror.as_ref().is_some_and(Mirror::is_alive) {
        return None;
    }
    Some(
        Problem::error("way-back-idle", asked.object())
            .fact(format!("nobody reads the stream from the {} to the {}", asked.to, asked.from()))
            .consequence("the flip would wait for it at its end, and the old side would see no new rows")
            .next(asked.command("mirror")),
    )
}

fn unproven(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let why = facts.findings.way_back.as_ref()?;
    Some(
        Problem::error("way-back-unproven", asked.object())
            .fact(why.clone())
            .consequence("it was tried, and authority could not come back")
            .next(format!("solve what it says, then {}", asked.flip())),
    )
}

fn alarms(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let told = match asked.to {
        Side::Service => &facts.to,
        Side::Monolith => &facts.from,
    };
    if told.alarms == 0 {
        return None;
    }
    let first = told.alarm.as_deref().unwrap_or("no words recorded");
    let more = if told.alarms == 1 { String::new() } else { format!("; {} in all", told.alarms) };
    Some(
        Problem::error("open-alarm", asked.object())
            .fact(format!("a closed side was written past its gate: {first}{more}"))
            .consequence("somebody writes where the fence does not hold, or a row was lost; evidence is void")
            .next(format!(
                "{} shows it; find out who it was, then {}",
                asked.command("status"),
                asked.command("reconcile")
            )),
    )
}
