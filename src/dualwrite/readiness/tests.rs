//! What servers in a test can hardly be brought to: old transactions, lost slots, standbys that may not be seen.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::journal::grounds::Ground;
use crate::journal::operators::Operator;
use crate::journal::readiness::{Mirror, Provisioned, Stream, Table, Told};
use crate::lsn::Lsn;
use crate::plan::parse;
use crate::problem::Severity;
use crate::reconcile::evidence::{Evidence, LastVerdict};
use crate::reconcile::finding::FindingKind;
use crate::reconcile::verdict::Outcome;

/// All slices of the command.
const MEMBERS: &[&str] = &["one"];

fn plan() -> Plan {
    let text = "version: 1\nplan: shop\nmonolith: { url: \"${M}\", app_roles: [shop] }\n\
        services: { books: { url: \"${A}\" } }\nslices: { one: { service: books, tables: { A: {} } } }\n\
        policy: { min_mirror_time: 1h }\n";
    parse(text.as_bytes(), "plan.yaml").unwrap_or_else(|found| panic!("{}", found.render(false))).plan
}

/// A flip of the slice to its service.
fn asked<'a>(plan: &'a Plan, accepted: Option<&'a str>) -> Asked<'a> {
    let (purpose, to) = (Purpose::Move, Side::Service);
    Asked { plan, path: "p", slice: "one", members: MEMBERS, purpose, to, accepted }
}

fn told(mode: &str) -> Told {
    Told {
        slice: Some(Provisioned { plan_hash: "hash".to_owned(), lock_key: 1 }),
        stream: Some(Stream {
            state: "running".to_owned(),
            detail: None,
            mode: mode.to_owned(),
            slot: "slot".to_owned(),
            applied: Lsn(100),
        }),
        mirror: Some(Mirror { host: "box".to_owned(), pid: 1, seen_s: 1.0, stopped: false, detail: None }),
        ..Told::default()
    }
}

/// Nothing is wrong but that nothing was ever compared.
fn ready() -> Facts {
    let service = Told {
        tables: vec![Table { name: "A".to_owned(), state: "live".to_owned() }],
        live_s: Some(7200.0),
        ..told("APPLY")
    };
    Facts {
        from: told("TRIPWIRE"),
        to: service,
        mapping: "hash".to_owned(),
        probe: Probe { millis: vec![80.0, 3.0, 3.0, 3.0, 3.0, 29.9], unanswered: false },
        slot: Some(Slot { confirmed: Some(Lsn(100)), wal_status: "reserved".to_owned() }),
        ..Facts::default()
    }
}

fn judged(facts: &Facts) -> Vec<(Severity, &'static str)> {
    let plan = plan();
    let asked = asked(&plan, Some("a test"));
    let problems = judge(facts, &asked).problems;
    let others = problems.iter().filter(|problem| problem.code != "no-evidence");
    others.map(|problem| (problem.severity, problem.code)).collect()
}

fn found(change: impl FnOnce(&mut Facts)) -> Vec<(Severity, &'static str)> {
    let mut facts = ready();
    change(&mut facts);
    judged(&facts)
}

#[test]
fn a_ready_slice_is_a_go_with_the_reason_for_the_ledger() {
    let plan = plan();
    let asked = asked(&plan, Some(" a test "));
    let judgement = judge(&ready(), &asked);
    assert!(judgement.is_go(), "{judgement:#?}");
    assert_eq!(judgement.without_evidence.as_deref(), Some("a test"));
    assert!(!judge(&ready(), &Asked { accepted: None, ..asked }).is_go());
}

#[test]
fn a_machine_whose_clock_is_wrong_moves_nothing_to_a_service_and_everything_home() {
    let apart = |facts: &mut Facts| facts.apart_us = Some(86_400_000_000);
    assert_eq!(found(apart), [(Severity::Error, "clock-apart")]);
    let (plan, mut facts) = (plan(), ready());
    apart(&mut facts);
    let home = judge(&facts, &Asked { to: Side::Monolith, ..asked(&plan, Some("a test")) }).problems;
    assert!(home.iter().all(|problem| problem.code != "clock-apart"), "{home:?}");
}

#[test]
fn only_the_last_five_round_trips_count_and_all_five_do() {
    let lags = [(Severity::Error, "mirror-lags")];
    for (millis, calm) in [
        (vec![3.0, 3.0, 3.0, 3.0], false),
        (vec![3.0, 3.0, 3.0, 3.0, 100.0], false),
        (vec![100.0, 3.0, 3.0, 3.0, 3.0], false),
        (vec![99.9, 99.9, 99.9, 99.9, 99.9], true),
        (vec![3.0, 3.0, 3.0, 3.0, 3.0], true),
    ] {
        let problems = found(|facts| facts.probe.millis = millis.clone());
        assert_eq!(problems, lags[..usize::from(!calm)], "{millis:?}");
    }
}

#[test]
fn what_is_calm_follows_the_budget_and_is_never_less_than_thirty_ms() {
    let mut plan = plan();
    for (budget_ms, millis, calm) in
        [(50, 29.9, true), (50, 30.0, false), (2000, 399.0, true), (2000, 400.0, false)]
    {
        let slice = plan.slices.get_mut("one").unwrap();
        slice.policy.write_pause_budget = Duration::from_millis(budget_ms);
        let mut facts = ready();
        facts.probe.millis = vec![millis; 5];
        let problems = judge(&facts, &asked(&plan, Some("a test"))).problems;
        assert_eq!(
            problems.iter().all(|problem| problem.code != "mirror-lags"),
            calm,
            "{budget_ms} {millis}"
        );
    }
}

#[test]
fn rows_that_the_filter_leaves_out_stay_with_the_side_that_has_them_and_no_reason_excuses_that() {
    let plan = plan();
    let budget = Duration::from_millis(500);
    let slow = |took_ms| Look::Slow { took: Duration::from_millis(took_ms), budget };
    for (to, look, expected) in [
        (Side::Service, Look::Found, (Severity::Error, "rows-stay-behind")),
        (Side::Monolith, Look::Found, (Severity::Error, "rows-not-back")),
        (Side::Service, slow(501), (Severity::Error, "rows-stay-behind")),
        (Side::Monolith, slow(501), (Severity::Error, "rows-not-back")),
        (Side::Monolith, slow(300), (Severity::Warning, "slow-look")),
    ] {
        let mut facts = ready();
        let (table, filter, index) = ("A".to_owned(), "k IN (1)".to_owned(), "CREATE INDEX".to_owned());
        facts.behind = vec![Behind { table, filter, index, look }];
        let problems = left_behind::judge(&facts, &Asked { to, ..asked(&plan, Some("a test")) });
        let found: Vec<_> = problems.iter().map(|problem| (problem.severity, problem.code)).collect();
        assert_eq!(found, [expected]);
    }
}

#[test]
fn old_and_hidden_holders_of_the_gate_are_told_apart_from_short_ones() {
    let holder = |age_s, hidden| Holder {
        pid: 7,
        age_s,
        hidden,
        application: "till".to_owned(),
        state: "active".to_owned(),
        query: "UPDATE t".to_owned(),
    };
    let of = |age_s, hidden| found(|facts| facts.holders = vec![holder(age_s, hidden)]);
    assert_eq!(of(0.1, false), []);
    assert_eq!(of(0.3, false), [(Severity::Warning, "gate-held")]);
    for hidden in [false, true] {
        assert_eq!(of(5.0, hidden), [(Severity::Error, "gate-held")]);
    }
}

#[test]
fn a_slot_that_can_not_bring_everything_back_is_a_no_go() {
    let of = |confirmed, status: &str| {
        found(|facts| facts.slot = Some(Slot { confirmed, wal_status: status.to_owned() }))
    };
    let no_go = [(Severity::Error, "way-back-slot")];
    assert_eq!(of(Some(Lsn(100)), "extended"), []);
    assert_eq!(of(Some(Lsn(101)), "reserved"), no_go);
    assert_eq!(of(None, "reserved"), no_go);
    assert_eq!(of(Some(Lsn(90)), "lost"), no_go);
    assert_eq!(of(Some(Lsn(90)), "unreserved"), [(Severity::Warning, "way-back-slot")]);
    assert_eq!(found(|facts| facts.slot = None), no_go);
}

#[test]
fn standbys_that_no_opening_waits_for_are_told_and_those_that_it_would_wait_for_in_vain_refuse() {
    let of = |kind, behind_bytes| {
        found(|facts| facts.standbys = vec![Standby { name: "copy".to_owned(), kind, behind_bytes }])
    };
    for kind in [Replica::Synchronous, Replica::Asynchronous] {
        assert_eq!(of(kind, Some(0)), []);
        assert_eq!(of(kind, Some(1)), [(Severity::Error, "standby-late")]);
        assert_eq!(of(kind, None), [(Severity::Error, "standby-late")]);
    }
    assert_eq!(of(Replica::Away, None), [(Severity::Warning, "unfenced-standby")]);
    assert_eq!(of(Replica::Hidden, None), [(Severity::Error, "hidden-standby")]);
}

#[test]
fn a_slice_that_is_not_provisioned_or_never_mirrored_says_so() {
    let codes: Vec<&str> = judged(&Facts::default()).into_iter().map(|(_, code)| code).collect();
    assert_eq!(codes, ["mirrored-too-short", "not-provisioned", "stream-not-applying", "way-back-missing"]);
}

#[test]
fn a_rehearsal_that_is_refused_sends_to_a_rehearsal_of_all_that_was_named() {
    let who =
        Operator { verb: "flip".to_owned(), operator: "bob".to_owned(), host: "box".to_owned(), pid: 5 };
    let facts = Facts { other: Some(OperatorRow { who, seen_s: 1.0 }), ..ready() };
    let plan = plan();
    let next = |purpose, to| {
        let members = &["one", "two"];
        let asked = Asked { to, members, purpose, ..asked(&plan, None) };
        let problems = judge(&facts, &asked).problems;
        problems.into_iter().find(|problem| problem.code == "operator-at-work").unwrap().next
    };
    let both = "--slice one --slice two";
    assert!(next(Purpose::Move, Side::Service).ends_with(&format!("then strangler flip p {both}")));
    let rehearsal = next(Purpose::Rehearsal, Side::Monolith);
    assert!(rehearsal.ends_with(&format!("then strangler flip --back p {both} --rehearse")), "{rehearsal}");
}

/// The ledger has one verdict, about every row.
fn evidence(outcome: Outcome, counts: &[(FindingKind, u64)]) -> Evidence {
    let found = LastVerdict {
        entry: 7,
        run: "run".to_owned(),
        outcome,
        full: true,
        strict: false,
        authority: "monolith".to_owned(),
        at: "2026-01-01T00:00:00Z".to_owned(),
        age: Duration::from_secs(60),
        begun_ago: Duration::from_secs(60),
        epoch: 1,
        lsn: Lsn(100),
        from_lsn: Lsn(90),
        plan_hash: "hash".to_owned(),
        counts: counts.iter().copied().collect(),
        compared: 1,
        coverage: Vec::new(),
        differing: Vec::new(),
        ground: Ground {
            plan_hash: "hash".to_owned(),
            epoch: 1,
            slot: None,
            stream: None,
            disturbances: 0,
            way_back: None,
            copy: Some("service".to_owned()),
            tables: BTreeMap::new(),
        },
    };
    Evidence { last: Some(found.clone()), last_full: Some(found), ..Evidence::default() }
}

#[test]
fn orphans_alone_may_be_excused_and_a_row_that_differs_never() {
    let plan = plan();
    let judged = |counts: &[(FindingKind, u64)], accepted| {
        let facts = Facts { evidence: evidence(Outcome::Differs, counts), ..ready() };
        let asked = asked(&plan, accepted);
        let judgement = judge(&facts, &asked);
        let first = judgement.problems.first().unwrap();
        (first.severity, first.code, judgement.without_evidence, first.next.clone())
    };
    let orphans = [(FindingKind::Orphan, 2)];
    let (severity, code, reason, next) = judged(&orphans, None);
    assert_eq!((severity, code, reason), (Severity::Error, "orphans-only", None));
    assert!(next.contains("\"Orphans only\"") && next.contains("--accept-no-evidence REASON"), "{next}");
    let (severity, code, reason, _) = judged(&orphans, Some("they are dead"));
    assert_eq!((severity, code), (Severity::Warning, "orphans-only"));
    assert_eq!(reason.as_deref(), Some("they are dead"));
    let rows = [(FindingKind::Orphan, 2), (FindingKind::Differs, 1)];
    let (severity, code, reason, _) = judged(&rows, Some("they are dead"));
    assert_eq!((severity, code, reason), (Severity::Error, "sides-differ", None));
}

#[test]
fn a_repair_is_not_advised_without_the_rows_that_it_would_delete() {
    let plan = plan();
    let next = |counts: &[(FindingKind, u64)]| {
        let facts = Facts { evidence: evidence(Outcome::Differs, counts), ..ready() };
        judge(&facts, &asked(&plan, None)).problems.first().unwrap().next.clone()
    };
    assert_eq!(
        next(&[(FindingKind::Missing, 3), (FindingKind::Extra, 50)]),
        "look at what strangler reconcile p --slice one --repair --dry-run says: a repair deletes from the service 50 rows that the \
         monolith does not have. Where these are the good ones, put them back into the monolith first; then strangler reconcile p \
         --slice one --repair, then strangler reconcile p --slice one"
    );
    assert!(
        next(&[(FindingKind::Missing, 3)]).starts_with("strangler reconcile p --slice one --repair, then ")
    );
}

#[test]
fn what_a_strict_comparison_alone_sees_may_be_excused_and_names_the_strict_command() {
    let plan = plan();
    let evidence = Evidence { differs_strictly: true, ..evidence(Outcome::Clean, &[]) };
    let judged = |accepted| {
        let facts = Facts { evidence: evidence.clone(), ..ready() };
        let asked = Asked {
            plan: &plan,
            path: "p",
            slice: "one",
            members: MEMBERS,
            purpose: Purpose::Move,
            to: Side::Service,
            accepted,
        };
        let judgement = judge(&facts, &asked);
        let problem =
            judgement.problems.into_iter().find(|problem| problem.code == "differs-strictly").unwrap();
        (problem.severity, problem.next, judgement.without_evidence)
    };
    let (severity, next, reason) = judged(None);
    assert_eq!((severity, reason), (Severity::Error, None));
    assert!(next.contains("reconcile p --slice one --strict --repair, then "), "{next}");
    let (severity, _, reason) = judged(Some("numeric(10,2) writes more zeros"));
    assert_eq!((severity, reason.is_some()), (Severity::Warning, true));
}
