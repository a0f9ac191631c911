//! What stands in the way of taking a slice back, decided without I/O: whatever could lose something, and whoever is at work.

use std::collections::BTreeSet;

use super::facts::{Facts, Side};
use super::monolith;
use super::service::Fate;
use crate::journal::dropped::Dropped;
use crate::journal::migrate::Form;
use crate::journal::process::ProcessRow;
use crate::journal::whereabouts::{Astray, CLONED};
use crate::problem::Problem;

/// A mirror that was seen within this time, in seconds, and did not stop is taken to be alive.
const ALIVE_S: f64 = 10.0;

/// What else it depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) slice: &'a str,
    pub(super) service: &'a str,
    /// The plan wants an approval, and nobody is named.
    pub(super) not_approved: bool,
}

/// All of it; nothing where the slice may be taken back.
#[must_use]
pub(super) fn problems(facts: &Facts, asked: Asked<'_>) -> Vec<Problem> {
    let mut problems: Vec<Problem> = facts.astray.iter().map(Astray::problem).collect();
    if !problems.is_empty() {
        // Whatever else would be said is about the wrong databases.
        return problems;
    }
    let service = format!("service {}", asked.service);
    for (side, name) in [(&facts.monolith, "monolith"), (&facts.service, service.as_str())] {
        problems.extend(itself(side, name, asked.slice));
    }
    // With its side on the monolith what says where it was provisioned is gone as well.
    if problems.is_empty() {
        problems.extend(facts.dropped.as_ref().map(Dropped::of_asked_service));
    }
    if problems.is_empty() {
        problems.extend(identity(facts, asked).or_else(|| monolith::problem(facts, asked.slice)));
    }
    if !problems.is_empty() {
        // So it would be then.
        return problems;
    }
    problems.extend(authority(facts, asked));
    problems.extend(armed(facts, asked.slice));
    problems.extend(retired(facts, asked.slice));
    problems.extend(at_work(facts, asked));
    problems.extend(dependents(facts, asked));
    if asked.not_approved {
        problems.push(
            Problem::error("not-approved", format!("slice {}", asked.slice))
                .fact("the plan says approval: required, and nobody is named who approved this")
                .consequence(match facts.begun {
                    Some(_) => "it was begun, and is not gone on with",
                    None => "nothing was begun",
                })
                .next("the same command with --approved-by NAME, once somebody has"),
        );
    }
    problems.sort();
    problems.dedup();
    problems
}

fn itself(side: &Side, name: &str, slice: &str) -> Option<Problem> {
    if side.form == Form::Older {
        return Some(
            Problem::error("outdated", name)
                .fact("strangler's own tables there are of an earlier version")
                .consequence("what was granted for the slice is not written down in them")
                .next(format!("strangler provision PLAN --slice {slice}, which upgrades them")),
        );
    }
    (!side.itself).then(|| {
        Problem::error("database-cloned", name)
            .fact(CLONED)
            .consequence("what would be dropped may be needed by the other one")
            .next("correct the link, if it should lead to the other one; else DROP SCHEMA strangler CASCADE there, by which nothing but the copy forgets")
    })
}

/// Only the two databases that the slice was provisioned in may be touched, or be said to have nothing of it: an empty one looks like one
/// from which everything was taken.
fn identity(facts: &Facts, asked: Asked<'_>) -> Option<Problem> {
    let slice = asked.slice;
    let on_monolith = facts.monolith.row.is_some() || facts.on_monolith.is_provisioned();
    let here = &facts.service.database;
    match &facts.home {
        Some(home) if facts.service.uuid.as_ref() == Some(&home.uuid) => None,
        Some(home) => Some(
            Problem::error("other-home", format!("service {}", asked.service))
                .fact(format!(
                    "its link leads to database {here}, and slice {slice} was provisioned in another one, that was called {}",
                    home.database
                ))
                .consequence("what the slice left there would be forgotten")
                .next(format!(
                    "correct the link of service {} in the plan, or the variable that holds it; only where that database is gone for good, on \
                     the monolith: {}; then strangler provision PLAN --slice {slice}, and the same command again",
                    asked.service,
                    crate::journal::beginnings::forget_home(slice)
                )),
        ),
        None if facts.begun.is_some() || facts.ended && !on_monolith => None,
        None if on_monolith || facts.service.row.is_some() => Some(
            Problem::error("home-unknown", format!("slice {slice}"))
                .fact(format!(
                    "nothing on the monolith says that it was provisioned in database {here}: provision was not ended, an earlier version \
                     did it, or a link leads elsewhere"
                ))
                .consequence("it could be another database that the slice is in")
                .next(format!(
                    "where both links are right: strangler provision PLAN --slice {slice}, which ends what was begun and writes it down; \
                     then the same command again"
                )),
        ),
        None => Some(
            Problem::error("slice-unknown", format!("slice {slice}"))
                .fact(format!(
                    "neither {} nor {here}, to which the links lead, has anything of it, and nothing there says that it was abandoned",
                    facts.monolith.database
                ))
                .consequence("it was never provisioned there, or was abandoned with --drop-ledger, or is in other databases")
                .next("correct the links, if it should be there; else there is nothing to do"),
        ),
    }
}

/// The service's rows may go only where the monolith has them all.
fn authority(facts: &Facts, asked: Asked<'_>) -> Option<Problem> {
    let state = |side: &Side| side.gate.as_ref().map(|gate| gate.state.clone());
    let (here, there) = (state(&facts.monolith), state(&facts.service));
    let slice = asked.slice;
    let wrong = |code, fact: &str| {
        Problem::error(code, format!("slice {slice}")).fact(fact).consequence(
            "what the service's application wrote is in the service, and would go with its tables",
        )
    };
    match (here.as_deref(), there.as_deref()) {
        (_, Some("OPEN")) => Some(
            wrong("service-has-authority", "the service has the authority: its gate is open")
                .next(format!("strangler flip PLAN --slice {slice} --back")),
        ),
        (Some("OPEN") | None, _) => None,
        (Some(_), _) => Some(
            wrong("move-unfinished", "nobody has the authority: a move was begun and has not ended")
                .next(format!("strangler status PLAN --slice {slice}, which says how to end it")),
        ),
    }
}

fn armed(facts: &Facts, slice: &str) -> Option<Problem> {
    let later = &facts.later;
    let mut found = Vec::new();
    if later.armed.recorded || later.armed.disarming {
        found.push(if later.armed.disarming { "disarm has begun" } else { "it is armed" }.to_owned());
    }
    if !later.gated.is_empty() {
        let tables: BTreeSet<String> = later.gated.iter().map(ToString::to_string).collect();
        let tables: Vec<String> = tables.into_iter().collect();
        found.push(format!("its gate hangs on {}", tables.join(", ")));
    }
    if later.armed.cut_keys > 0 {
        found.push(format!("foreign keys of the monolith are dropped for it: {}", later.armed.cut_keys));
    }
    if later.published {
        found.push("its tables are published in the service, for the way back".to_owned());
    }
    if later.way_back {
        found.push("its way back is written down".to_owned());
    }
    (!found.is_empty()).then(|| {
        Problem::error("armed", format!("slice {slice}"))
            .fact(found.join("; "))
            .consequence("the monolith's tables would keep a gate that nothing opens, or lack keys that nothing brings back")
            .next(format!("strangler disarm PLAN --slice {slice}"))
    })
}

fn retired(facts: &Facts, slice: &str) -> Option<Problem> {
    let later = &facts.later;
    let mut found = Vec::new();
    if let Some(stage) = later.stage {
        found.push(format!("its old tables are retired: {stage}"));
    }
    if later.rights > 0 {
        found.push(format!("rights on them that are away: {}", later.rights));
    }
    if !later.quarantines.is_empty() {
        found.push(format!("they stand in {}", later.quarantines.join(", ")));
    }
    (!found.is_empty()).then(|| {
        Problem::error("retired", format!("slice {slice}"))
            .fact(found.join("; "))
            .consequence("what is written down of them would be forgotten, and nobody could bring them back")
            .next(format!("strangler unretire PLAN --slice {slice}"))
    })
}

fn is_alive(seen: &ProcessRow) -> bool {
    !seen.stopped && seen.seen_s <= ALIVE_S
}

fn at_work(facts: &Facts, asked: Asked<'_>) -> Option<Problem> {
    let slice = asked.slice;
    let object = format!("slice {slice}");
    let who = |seen: &ProcessRow| {
        format!("on {} as process {}, last seen {:.1} s ago", seen.host, seen.pid, seen.seen_s)
    };
    if let Some(alive) = facts.mirror.as_ref().filter(|seen| is_alive(seen)) {
        let problem = Problem::error("mirror-runs", object)
            .fact(format!("a mirror of it runs {}", who(alive)))
            .consequence("it would go on reading what is to be dropped")
            .next("end it with Ctrl-C or SIGTERM; of one that was killed it is known 10 seconds later");
        return Some(problem);
    }
    if !facts.mirror_lock {
        let seen = facts.mirror.as_ref().map(|seen| format!(": {}", who(seen))).unwrap_or_default();
        let problem = Problem::error("mirror-runs", object)
            .fact(format!("a session of a mirror holds its lock in the service, and says nothing{seen}"))
            .consequence("it may wake up")
            .next("end that process; where it is gone, the server ends its session by itself");
        return Some(problem);
    }
    let pid = facts.on_monolith.reader?;
    let slot = facts.on_monolith.slot.as_deref().unwrap_or_default();
    Some(
        Problem::error("slot-in-use", format!("slot {slot}"))
            .fact(format!("process {pid} of the monolith reads from it"))
            .consequence("it can't be dropped, and would keep WAL")
            .next(format!(
                "the server ends the session of a mirror that is gone by itself; else: SELECT * FROM pg_stat_activity WHERE pid = {pid};"
            )),
    )
}

fn dependents(facts: &Facts, asked: Asked<'_>) -> Vec<Problem> {
    let slice = asked.slice;
    let of = |object: &str| format!("service {}, {object}", asked.service);
    let made: Vec<String> = facts.in_service.of(Fate::Drop).map(|table| table.name.to_string()).collect();
    let in_made = facts.in_service.dependents.iter().map(|found| {
        Problem::error("depends-on-table", of(found))
            .fact(format!("it depends on a table of slice {slice}: {}", made.join(", ")))
            .consequence("it would be lost with the table")
            .next(
                "save its definition and drop it in the service's database; then type the same command again",
            )
    });
    let in_adopted = facts.in_service.in_the_way.iter().map(|found| {
        Problem::error("in-the-way", of(&found.object))
            .fact("the table is to be emptied, and this keeps it from that, or would act on it")
            .consequence("its rows would stay, or others would go")
            .next(format!(
                "run in the service's database: {}; then type the same command again; once the slice is taken back: {};",
                found.sql, found.back
            ))
    });
    in_made.chain(in_adopted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::abandonment::Abandonment;
    use crate::journal::beginnings::Home;
    use crate::journal::slices::{GateRow, SliceRow};

    fn gate(state: &str) -> Option<GateRow> {
        Some(GateRow { state: state.into(), epoch: 3, owner: "monolith".into() })
    }

    fn facts(here: Option<GateRow>, there: Option<GateRow>) -> Facts {
        let row = || SliceRow { plan: "p".into(), plan_hash: String::new(), publication: "p".into() };
        let side = |gate| Side {
            form: Form::Current,
            itself: true,
            gate,
            row: Some(row()),
            uuid: Some("u".into()),
            ..Side::default()
        };
        Facts {
            astray: BTreeSet::new(),
            monolith: side(here),
            service: side(there),
            begun: None,
            known_monolith: None,
            source: None,
            ended: false,
            home: Some(Home { uuid: "u".into(), database: "d".into() }),
            dropped: None,
            life: String::new(),
            drop_ledger: false,
            later: super::super::facts::Later::default(),
            mirror: None,
            mirror_lock: true,
            on_monolith: crate::provision::withdrawal::Standing::default(),
            in_service: super::super::service::Standing::default(),
            names: Vec::new(),
            strays: None,
            outside: None,
            lacks: super::super::lacking::Lacks::default(),
            sources: super::super::sources::Sources::default(),
            decided: None,
        }
    }

    fn codes(facts: &Facts) -> Vec<&'static str> {
        let asked = Asked { slice: "one", service: "s", not_approved: false };
        problems(facts, asked).iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn only_a_slice_that_the_service_may_not_have_written_is_taken_back() {
        for (here, there, expected) in [
            (gate("OPEN"), gate("FENCED"), &[][..]),
            (gate("OPEN"), None, &[]),
            (None, gate("FENCED"), &[]),
            (None, None, &[]),
            (gate("FENCED"), gate("OPEN"), &["service-has-authority"]),
            (gate("OPEN"), gate("OPEN"), &["service-has-authority"]),
            (None, gate("OPEN"), &["service-has-authority"]),
            (gate("FENCED"), gate("FENCED"), &["move-unfinished"]),
            (gate("FENCED"), None, &["move-unfinished"]),
        ] {
            assert_eq!(codes(&facts(here.clone(), there.clone())), expected, "{here:?} {there:?}");
        }
    }

    #[test]
    fn no_database_but_the_one_that_the_slice_was_provisioned_in_is_touched_or_called_empty() {
        let found = || facts(gate("OPEN"), gate("FENCED"));
        let elsewhere = |mut facts: Facts| {
            facts.service = Side { itself: true, ..Side::default() };
            facts
        };
        assert_eq!(codes(&elsewhere(found())), ["other-home"], "an empty one");
        let mut other = found();
        other.service.uuid = Some("v".into());
        assert_eq!(codes(&other), ["other-home"], "one in which it was provisioned as well");
        let unknown = |facts: Facts| Facts { home: None, ..facts };
        assert_eq!(codes(&unknown(found())), ["home-unknown"]);
        assert_eq!(codes(&unknown(elsewhere(found()))), ["home-unknown"]);
        let forgotten = |mut facts: Facts| {
            facts.monolith = Side { itself: true, ..Side::default() };
            facts
        };
        assert_eq!(codes(&unknown(forgotten(found()))), ["home-unknown"], "a monolith that knows nothing");
        assert_eq!(codes(&unknown(forgotten(elsewhere(found())))), ["slice-unknown"]);
        let begun = Abandonment { plan: "p".into(), token: "t".into(), body: serde_json::Value::Null };
        let resumed = Facts { begun: Some(begun), ..unknown(forgotten(found())) };
        assert_eq!(codes(&resumed), ["other-monolith"], "nobody wrote down which one it was");
        let resumed =
            Facts { known_monolith: monolith::remembered(&monolith::to_remember(&found())), ..resumed };
        assert_eq!(codes(&resumed), Vec::<&str>::new(), "the monolith has forgotten it on the way");
        let over = Facts { ended: true, ..unknown(forgotten(elsewhere(found()))) };
        assert_eq!(codes(&over), Vec::<&str>::new());
    }

    #[test]
    fn what_lacks_an_approval_says_whether_it_was_begun() {
        let asked = Asked { slice: "one", service: "s", not_approved: true };
        let said = |facts: &Facts| problems(facts, asked).first().unwrap().consequence.clone();
        let mut found = facts(gate("OPEN"), gate("FENCED"));
        assert_eq!(said(&found), "nothing was begun");
        found.begun =
            Some(Abandonment { plan: "p".into(), token: "t".into(), body: serde_json::Value::Null });
        assert_eq!(said(&found), "it was begun, and is not gone on with");
    }

    #[test]
    fn each_stage_that_was_not_taken_back_is_named_with_the_verb_that_takes_it_back() {
        let mut found = facts(gate("OPEN"), gate("FENCED"));
        found.later.way_back = true;
        found.later.rights = 2;
        found.mirror_lock = false;
        assert_eq!(codes(&found), ["armed", "mirror-runs", "retired"]);
        found.service.itself = false;
        found.monolith.form = Form::Older;
        assert_eq!(codes(&found), ["outdated", "database-cloned"]);
    }

    #[test]
    fn a_mirror_counts_as_alive_until_it_said_goodbye_or_was_not_seen_for_ten_seconds() {
        let seen = |seen_s, stopped| {
            let row = ProcessRow { nonce: 1, host: "h".into(), pid: 7, seen_s, stopped, detail: None };
            let mut found = facts(gate("OPEN"), gate("FENCED"));
            found.mirror = Some(row);
            codes(&found)
        };
        assert_eq!(seen(9.0, false), ["mirror-runs"]);
        assert_eq!(seen(11.0, false), Vec::<&str>::new());
        assert_eq!(seen(0.1, true), Vec::<&str>::new());
    }
}
