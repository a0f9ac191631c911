use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::journal::alarms::Uncleared;
use crate::journal::moves::Blocked;
use crate::journal::process::{TRIED_AGAIN, WAITS_FOR_ARM};
use crate::lsn::Lsn;
use crate::problem::Problem;
use crate::status::evidence::EvidenceFacts;
use crate::status::facts::{MoveGroup, WayBack};

const SECOND_US: i64 = 1_000_000;

fn gate(state: &str) -> Option<Gate> {
    Some(Gate { state: state.to_owned(), epoch: 3, cause: "fence".to_owned(), group: None, fence: None })
}

fn live(name: &str) -> TableRow {
    TableRow {
        source_table: name.to_owned(),
        target_table: name.to_lowercase(),
        state: "live".to_owned(),
        detail: None,
        unheard: false,
        rows_copied: 100,
        rows_estimate: 100,
        copy_seconds: Some(10.0),
    }
}

/// A slice that streams in good health, 100 ms and 64 bytes behind.
fn streaming() -> SliceFacts {
    SliceFacts {
        slice: "ordering".to_owned(),
        service: "orders".to_owned(),
        wal_budget_bytes: 1000,
        evidence_max_age: Duration::from_secs(86_400),
        service_side: Side::Read(ServiceFacts {
            unguarded: Vec::new(),
            unfit: Vec::new(),
            now_us: 500 * SECOND_US,
            provisioned: true,
            gate: gate("FENCED"),
            stream: Some(Stream {
                state: "running".to_owned(),
                detail: None,
                slot: "strangler_retail_ordering".to_owned(),
                applied_lsn: Lsn(1000),
                source_time_us: Some(100 * SECOND_US - 100_000),
                nonce: 7,
            }),
            process: Some(ProcessRow {
                nonce: 7,
                host: "box".to_owned(),
                pid: 42,
                phase: "streaming".to_owned(),
                detail: None,
                lag_ms: None,
                seen_seconds_ago: 1.0,
                stopped: false,
            }),
            tables: vec![live("public.Orders"), live("public.OrderLines")],
            deferred: Vec::new(),
            deferred_failed: Vec::new(),
            form: Form::Current,
            slots: Vec::new(),
            strays: None,
            outside: None,
            lost_writes: None,
            way_back_slot: None,
            dropped: None,
            evidence: None,
        }),
        monolith_side: Side::Read(MonolithFacts {
            dropped: None,
            groups: Vec::new(),
            blocked: None,
            arming: None,
            now_us: 100 * SECOND_US,
            current_lsn: Lsn(1064),
            gate: gate("OPEN"),
            slots: vec![Slot {
                name: "strangler_retail_ordering".to_owned(),
                active: true,
                wal_status: "reserved".to_owned(),
                held_bytes: 200,
                safe_wal_bytes: None,
            }],
            form: Form::Current,
            shapes: BTreeMap::new(),
            back: None,
        }),
        astray: BTreeSet::new(),
        claimed: Vec::new(),
        mapping_changed: false,
        earlier: None,
    }
}

fn with_service(change: impl FnOnce(&mut ServiceFacts)) -> SliceFacts {
    let mut facts = streaming();
    if let Side::Read(service) = &mut facts.service_side {
        change(service);
    }
    facts
}

fn with_monolith(change: impl FnOnce(&mut MonolithFacts)) -> SliceFacts {
    let mut facts = streaming();
    if let Side::Read(monolith) = &mut facts.monolith_side {
        change(monolith);
    }
    facts
}

fn status(facts: &SliceFacts) -> SliceStatus {
    judge(facts, &Commands::about("plans/retail.yaml"))
}

fn mirror(rest: &str) -> Option<String> {
    Some(format!("strangler mirror plans/retail.yaml --slice ordering{rest}"))
}

#[test]
fn a_healthy_stream_has_lag_by_the_monoliths_clock_and_nothing_to_do() {
    let status = status(&streaming());
    assert_eq!(
        (status.phase, status.authority, status.epoch),
        (Phase::Streaming, Authority::Monolith, Some(3))
    );
    assert_eq!(status.lag, Some(Lag { bytes: Some(64), seconds: Some(0.1), applied_lsn: Lsn(1000) }));
    assert_eq!((status.rows_copied, status.rows_estimate), (200, 200));
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    assert_eq!(status.next, None);
}

#[test]
fn a_service_that_falls_behind_a_mirror_that_streams_is_an_alarm() {
    let alarms = |durable_s: i64, phase: &str| {
        status(&with_service(|service| {
            service.stream.as_mut().unwrap().source_time_us = Some((100 - durable_s) * SECOND_US);
            phase.clone_into(&mut service.process.as_mut().unwrap().phase);
        }))
        .alarms
    };
    assert!(alarms(10, "streaming").is_empty());
    let late = alarms(60, "streaming");
    assert!(late.len() == 1 && late[0].contains("more than 10 s behind, and the mirror lives"), "{late:?}");
    assert!(alarms(60, "catching up").is_empty(), "what it waits for is shown");
}

#[test]
fn the_mirrors_measurement_is_the_lag_while_positions_keep_coming_and_not_after() {
    let lag = |durable_s: i64, stopped: bool| {
        let facts = with_service(|service| {
            service.stream.as_mut().unwrap().source_time_us = Some((100 - durable_s) * SECOND_US);
            let process = service.process.as_mut().unwrap();
            (process.lag_ms, process.stopped) = (Some(3.0), stopped);
        });
        status(&facts).lag.unwrap().seconds
    };
    assert_eq!(lag(4, false), Some(0.003));
    assert_eq!(lag(60, false), Some(60.0), "nothing arrives any more");
    assert_eq!(lag(4, true), Some(4.0), "nobody measures any more");
}

#[test]
fn without_a_slice_row_it_is_not_provisioned() {
    let status = status(&with_service(|service| *service = ServiceFacts::default()));
    assert_eq!(status.phase, Phase::NotProvisioned);
    assert_eq!(status.next.as_deref(), Some("strangler provision plans/retail.yaml --slice ordering"));
}

#[test]
fn provisioned_and_never_mirrored_asks_for_the_mirror() {
    let status = status(&with_service(|service| {
        (service.stream, service.process) = (None, None);
        service.tables.clear();
    }));
    assert_eq!((status.phase, status.lag.clone()), (Phase::Provisioned, None));
    assert_eq!(status.next, mirror(""));
}

#[test]
fn a_table_that_is_not_live_means_copying_with_the_time_left() {
    let status = status(&with_service(|service| {
        let orders = service.tables.get_mut(0).unwrap();
        orders.state = "copying".to_owned();
        orders.rows_estimate = 300;
    }));
    assert_eq!(status.phase, Phase::Copying);
    // 200 rows in 10 seconds, and 200 more to go.
    assert_eq!(status.copy_seconds_left, Some(10.0));
}

#[test]
fn a_slot_still_in_the_making_is_no_gap() {
    let mut facts = with_service(|service| {
        service.stream.as_mut().unwrap().state = "creating".to_owned();
        service.tables.clear();
    });
    if let Side::Read(monolith) = &mut facts.monolith_side {
        monolith.slots.clear();
    }
    let status = status(&facts);
    assert_eq!((status.phase, status.lag), (Phase::Copying, None));
}

#[test]
fn alive_with_all_tables_live_and_not_streaming_is_catching_up() {
    for phase in ["catching up", "waiting"] {
        let facts = with_service(|service| service.process.as_mut().unwrap().phase = phase.to_owned());
        assert_eq!(status(&facts).phase, Phase::CatchingUp, "{phase}");
    }
}

#[test]
fn a_goodbye_of_the_current_process_means_stopped_however_long_ago() {
    let status = status(&with_service(|service| {
        let process = service.process.as_mut().unwrap();
        (process.stopped, process.seen_seconds_ago) = (true, 86_400.0);
    }));
    assert_eq!((status.phase, status.next), (Phase::Stopped, mirror("")));
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
}

#[test]
fn what_a_mirror_asked_for_when_it_ended_is_what_is_to_be_typed() {
    let found = status(&with_service(|service| {
        let process = service.process.as_mut().unwrap();
        process.stopped = true;
        process.detail =
            Some("the publication is gone; next: strangler provision PLAN --slice ordering".into());
    }));
    assert_eq!(found.alarms, ["the mirror ended by itself: the publication is gone"]);
    assert_eq!(found.next, Some(mirror("").unwrap().replace("mirror", "provision")));
}

#[test]
fn a_goodbye_of_an_older_process_does_not_stop_its_successor() {
    let status = status(&with_service(|service| {
        let process = service.process.as_mut().unwrap();
        (process.stopped, process.nonce) = (true, 6);
    }));
    assert_eq!(status.phase, Phase::Streaming);
}

#[test]
fn silence_without_a_goodbye_is_death_from_the_limit_on() {
    let seen = |seconds| status(&with_service(|s| s.process.as_mut().unwrap().seen_seconds_ago = seconds));
    assert_eq!(seen(DEAD_AFTER_SECONDS).phase, Phase::Streaming);
    let dead = seen(DEAD_AFTER_SECONDS + 0.1);
    assert_eq!((dead.phase, dead.next), (Phase::Dead, mirror("")));
    assert!(dead.alarms[0].contains("process 42 on box"), "{:?}", dead.alarms);
}

#[test]
fn a_lost_or_missing_slot_is_a_gap_and_asks_for_a_rebuild() {
    let lost = with_monolith(|monolith| monolith.slots[0].wal_status = "lost".to_owned());
    let missing = with_monolith(|monolith| monolith.slots.clear());
    let recorded = with_service(|service| service.stream.as_mut().unwrap().state = "gap".to_owned());
    for facts in [lost, missing, recorded] {
        let status = status(&facts);
        assert_eq!((status.phase, status.next), (Phase::Gap, mirror(" --rebuild")));
        assert_eq!(status.alarms.len(), 1, "{:?}", status.alarms);
    }
}

#[test]
fn a_diverged_stream_outranks_a_dead_process() {
    let status = status(&with_service(|service| {
        let stream = service.stream.as_mut().unwrap();
        (stream.state, stream.detail) = ("diverged".to_owned(), Some("timeline 2 follows 1".to_owned()));
        service.process.as_mut().unwrap().seen_seconds_ago = 999.0;
    }));
    assert_eq!(status.phase, Phase::Diverged);
    assert_eq!(status.alarms, ["the service differs: timeline 2 follows 1"]);
}

#[test]
fn a_diverged_table_is_named_with_the_command_that_retries_it_while_the_rest_streams() {
    let status = status(&with_service(|service| {
        let lines = service.tables.get_mut(1).unwrap();
        lines.source_table = "public.Order Lines".to_owned();
        (lines.state, lines.detail) = ("diverged".to_owned(), Some("update hit 0 rows".to_owned()));
    }));
    assert_eq!(status.phase, Phase::Streaming);
    assert_eq!(status.alarms, ["table public.Order Lines diverged: update hit 0 rows"]);
    assert_eq!(status.next, mirror(" --retry 'public.Order Lines'"));
}

#[test]
fn a_silent_service_leaves_the_phase_unknown_and_says_so() {
    let mut facts = streaming();
    facts.service_side = Side::Silent("connection refused".to_owned());
    let status = status(&facts);
    assert_eq!((status.phase, status.authority, status.next), (Phase::Unknown, Authority::Monolith, None));
    let silent = Unreachable { database: "orders".to_owned(), reason: "connection refused".to_owned() };
    assert_eq!(status.unreachable, [silent]);
}

#[test]
fn a_silent_monolith_leaves_phase_and_age_known_and_claims_no_gap() {
    let mut facts = streaming();
    facts.monolith_side = Side::Silent("connection refused".to_owned());
    let status = status(&facts);
    assert_eq!((status.phase, status.wal.clone()), (Phase::Streaming, None));
    let lag = status.lag.unwrap();
    assert_eq!(lag.bytes, None);
    assert!(lag.seconds.is_some());
}

#[test]
fn the_nearer_wal_limit_counts_and_the_rate_of_two_readings_gives_the_time_left() {
    let mut facts = with_monolith(|monolith| monolith.slots[0].safe_wal_bytes = Some(400));
    facts.earlier = Some(WalReading { at_us: 98 * SECOND_US, held_bytes: 100 });
    let wal = status(&facts).wal.unwrap();
    assert_eq!((wal.headroom_bytes, wal.limit), (400, WalLimit::MaxSlotWalKeepSize));
    // 100 bytes in 2 seconds.
    assert_eq!(wal.seconds_left, Some(8.0));

    facts.earlier = Some(WalReading { at_us: 98 * SECOND_US, held_bytes: 200 });
    assert_eq!(status(&facts).wal.unwrap().seconds_left, None, "WAL held that does not grow has no end");
}

#[test]
fn little_headroom_and_unreserved_wal_raise_an_alarm() {
    let budget = with_monolith(|monolith| monolith.slots[0].held_bytes = 901);
    assert_eq!(
        status(&budget).alarms,
        ["less than a tenth of wal_budget is left for the WAL held; see docs/runbooks/slot-and-wal.md"]
    );
    let unreserved = with_monolith(|monolith| monolith.slots[0].wal_status = "unreserved".to_owned());
    assert_eq!(status(&unreserved).alarms.len(), 1);
    let plenty = with_monolith(|monolith| monolith.slots[0].held_bytes = 899);
    assert!(status(&plenty).alarms.is_empty());
}

#[test]
fn authority_follows_both_gates() {
    let of = |monolith: Option<&str>, service: Option<&str>| {
        let mut facts = with_service(|facts| facts.gate = service.and_then(gate));
        if let Side::Read(facts) = &mut facts.monolith_side {
            facts.gate = monolith.and_then(gate);
        }
        status(&facts).authority
    };
    assert_eq!(of(Some("OPEN"), Some("FENCED")), Authority::Monolith);
    assert_eq!(of(Some("FENCED"), Some("OPEN")), Authority::Service);
    assert_eq!(of(Some("FENCED"), Some("FENCED")), Authority::Nobody);
    assert_eq!(of(Some("OPEN"), Some("OPEN")), Authority::Both);
    assert_eq!(of(None, Some("FENCED")), Authority::Unknown);
    assert_eq!(of(None, None), Authority::Unknown);
}

#[test]
fn where_both_gates_are_open_nothing_is_to_be_copied_over() {
    let mut facts = with_service(|facts| {
        facts.gate = gate("OPEN");
        facts.stream.as_mut().unwrap().state = "gap".to_owned();
    });
    assert_eq!(status(&facts).authority, Authority::Both);
    assert_eq!((status(&facts).phase, status(&facts).next), (Phase::Gap, None));
    if let Side::Read(facts) = &mut facts.service_side {
        facts.gate = gate("FENCED");
    }
    assert_eq!(status(&facts).next, mirror(" --rebuild"));
}

#[test]
fn what_is_to_be_typed_survives_a_shell() {
    assert_eq!(shell_word("plans/retail.yaml"), "plans/retail.yaml");
    assert_eq!(shell_word("my plan's.yaml"), r"'my plan'\''s.yaml'");
    assert_eq!(shell_word("").len(), 2);
}

#[test]
fn links_that_lead_astray_are_all_that_is_said() {
    let mut facts = streaming();
    facts.astray.insert(Astray::Same { service: "orders".into(), database: "shop".into(), owner: None });
    let status = status(&facts);
    assert_eq!((status.phase, status.authority, status.epoch), (Phase::Unknown, Authority::Unknown, None));
    assert_eq!(
        status.alarms,
        ["service orders: its link and the monolith's both lead to the same database, shop"]
    );
    assert_eq!(status.next.as_deref(), Some("strangler check plans/retail.yaml"));
    assert_eq!((status.lag, status.wal, status.tables.len()), (None, None, 0));
}

#[test]
fn what_is_not_proven_asks_for_a_comparison_only_when_nothing_else_is_to_be_done() {
    let proof = |change: fn(&mut ServiceFacts)| {
        status(&with_service(|service| {
            service.evidence = Some(Side::Read(EvidenceFacts::default()));
            change(service);
        }))
    };
    let healthy = proof(|_| ());
    assert_eq!(healthy.next.as_deref(), Some("strangler reconcile plans/retail.yaml --slice ordering"));
    assert_eq!((healthy.alarms.len(), healthy.evidence.unwrap().stands), (0, Some(false)));
    let stopped = proof(|service| service.process.as_mut().unwrap().stopped = true);
    assert_eq!(stopped.next, mirror(""));
    let diverged = proof(|service| service.tables.get_mut(0).unwrap().state = "diverged".to_owned());
    assert_eq!(diverged.next, mirror(" --retry public.Orders"));
    let fresh = proof(|service| service.provisioned = false);
    assert_eq!(fresh.evidence, None, "there is nothing to compare yet");
}

#[test]
fn a_ledger_that_is_not_understood_is_an_alarm_and_hides_nothing_else() {
    let status = status(&with_service(|service| {
        service.evidence = Some(Side::Silent("ledger.body holds nonsense".to_owned()));
    }));
    assert_eq!((status.phase, status.evidence), (Phase::Streaming, None));
    assert_eq!(status.alarms, ["the ledger can't be read: ledger.body holds nonsense"]);
}

#[test]
fn tables_of_an_earlier_version_are_named_and_come_before_every_other_command() {
    let older = |facts: &SliceFacts| {
        let status = status(facts);
        assert!(status.alarms.is_empty(), "{:?}", status.alarms);
        assert_eq!(status.next.as_deref(), Some("strangler provision plans/retail.yaml --slice ordering"));
        (status.phase, status.outdated)
    };
    let service = with_service(|service| {
        service.form = Form::Older;
        service.process.as_mut().unwrap().stopped = true;
    });
    assert_eq!(older(&service), (Phase::Stopped, vec!["orders".to_owned()]));
    let monolith = with_monolith(|monolith| monolith.form = Form::Older);
    assert_eq!(older(&monolith), (Phase::Streaming, vec!["monolith".to_owned()]));
}

fn way_back(mode: &str, state: &str, phase: &str) -> WayBack {
    let Side::Read(service) = streaming().service_side else { panic!("no service") };
    let stream = Stream {
        state: state.to_owned(),
        slot: "back".to_owned(),
        source_time_us: Some(499 * SECOND_US),
        ..service.stream.unwrap()
    };
    let process = service.process.map(|process| ProcessRow {
        phase: phase.to_owned(),
        detail: (phase == "stopped").then(|| "the monolith's rows contradict".to_owned()),
        stopped: phase == "stopped",
        ..process
    });
    WayBack { mode: mode.to_owned(), stream, process, blocker: None }
}

/// As after a flip, with this way back.
fn flipped(back: WayBack) -> SliceFacts {
    let mut facts = with_monolith(|monolith| {
        monolith.gate = gate("FENCED");
        monolith.back = Some(back);
    });
    if let Side::Read(service) = &mut facts.service_side {
        service.gate = gate("OPEN");
        service.process.as_mut().unwrap().phase = "watching".to_owned();
    }
    facts
}

#[test]
fn after_a_flip_the_way_back_is_shown_and_the_way_there_watches_in_good_health() {
    let shown = status(&flipped(way_back("apply", "running", "streaming")));
    assert_eq!((shown.phase, shown.authority), (Phase::Streaming, Authority::Service));
    let back = shown.way_back.unwrap();
    assert_eq!((back.mode.as_str(), back.slot.as_str(), back.lag_seconds), ("apply", "back", Some(1.0)));
    assert_eq!((shown.alarms, shown.next), (Vec::<String>::new(), None));
}

#[test]
fn a_way_back_that_is_late_is_an_alarm_that_names_who_keeps_it_out_of_a_table() {
    let mut late = way_back("apply", "running", "streaming");
    late.stream.source_time_us = Some(400 * SECOND_US);
    late.blocker = Some("process 7 (till, active) holds AccessExclusiveLock on orders".to_owned());
    let alarms = status(&flipped(late.clone())).alarms;
    let alarm = "the way back is more than 5 s behind, and so are the monolith's tables; on the monolith process 7 (till, \
        active) holds AccessExclusiveLock on orders";
    assert_eq!(alarms, [alarm]);
    late.mode = "tripwire".to_owned();
    assert!(status(&flipped(late)).alarms.is_empty(), "a watch brings nothing to anybody");
}

#[test]
fn a_way_back_that_stands_still_or_lost_changes_is_an_alarm() {
    let halted = status(&flipped(way_back("apply", "running", "stopped")));
    assert_eq!(halted.alarms, ["the way back stands still: the monolith's rows contradict"]);
    assert_eq!(halted.next, mirror(""));
    for phase in [TRIED_AGAIN, WAITS_FOR_ARM] {
        let mut back = way_back("apply", "running", "stopped");
        back.process.as_mut().unwrap().phase = phase.to_owned();
        let shown = status(&flipped(back.clone()));
        assert_eq!(shown.way_back.unwrap().process.unwrap().doing, phase, "its mirror lives");
        assert_eq!(shown.alarms, halted.alarms);
        back.process.as_mut().unwrap().seen_seconds_ago = DEAD_AFTER_SECONDS + 0.1;
        let shown = status(&flipped(back));
        assert_eq!(shown.way_back.unwrap().process.unwrap().doing, "stopped");
        assert_eq!(shown.alarms, halted.alarms);
    }
    let gap = status(&flipped(way_back("apply", "gap", "stopped")));
    assert!(gap.alarms[0].contains("are missing on the way back"), "{:?}", gap.alarms);
    let verb = "arm";
    assert_eq!(gap.next, Some(format!("strangler {verb} plans/retail.yaml --slice ordering")));
}

#[test]
fn a_write_on_the_fenced_side_is_an_alarm_that_names_table_and_transaction_but_no_key() {
    let stray = Uncleared {
        count: 3,
        transactions: 1,
        side: "monolith",
        source_table: "Orders".to_owned(),
        operation: "update".to_owned(),
        lsn: Lsn(0x1A2B),
        xid: 741,
        raised_at: "2026-11-29T12:00:00Z".to_owned(),
    };
    let shown = status(&with_service(|service| service.strays = Some(stray)));
    assert_eq!(
        shown.alarms,
        [format!(
            "somebody wrote on the fenced monolith: 3 rows in 1 transaction, last update of table Orders (transaction \
             741, commit at 0/1A2B, 2026-11-29T12:00:00Z); the keys are in {} of the service's database",
            crate::journal::alarms::TABLE
        )]
    );
    assert_eq!(shown.next.as_deref(), Some("strangler reconcile plans/retail.yaml --slice ordering"));
}

#[test]
fn while_nobody_has_authority_the_command_that_ends_the_move_is_next() {
    let gates = |monolith: (i64, &str), service: (i64, &str)| {
        let gate = |(epoch, cause): (i64, &str)| {
            Some(Gate {
                state: "FENCED".to_owned(),
                epoch,
                cause: cause.to_owned(),
                group: None,
                fence: None,
            })
        };
        let mut facts = with_monolith(|facts| facts.gate = gate(monolith));
        if let Side::Read(facts) = &mut facts.service_side {
            facts.gate = gate(service);
        }
        facts
    };
    let flip = |rest: &str| Some(format!("strangler flip plans/retail.yaml --slice ordering{rest}"));
    for (monolith, service, rest) in [
        ((2, "fence"), (1, "fence"), ""),
        ((2, "fence"), (3, "bump"), " --abort"),
        ((2, "fence"), (3, "fence"), " --back"),
        ((4, "bump"), (3, "fence"), " --abort"),
        ((4, "fence"), (3, "bump"), ""),
    ] {
        let shown = status(&gates(monolith, service));
        assert_eq!((shown.authority, shown.next), (Authority::Nobody, flip(rest)));
        assert!(shown.alarms[0].starts_with("nobody has authority: "), "{:?}", shown.alarms);
    }
    let mut unmirrored = gates((2, "fence"), (1, "fence"));
    if let Side::Read(facts) = &mut unmirrored.service_side {
        facts.process.as_mut().unwrap().stopped = true;
    }
    assert_eq!(
        status(&unmirrored).next,
        mirror(""),
        "a mirror ends the move as well, and nothing drains without it"
    );
}

/// Both sides closed by a flip to the service at epoch 2, under this group.
fn between(group: Option<(i64, &str)>, blocked: Option<i64>) -> SliceFacts {
    let gate = |epoch, group| {
        Some(Gate {
            state: "FENCED".to_owned(),
            epoch,
            cause: "fence".to_owned(),
            group,
            fence: Some(Lsn(1000)),
        })
    };
    let mut facts = with_monolith(|facts| {
        facts.gate = gate(2, group.map(|(id, _)| id));
        let members = vec!["ordering".to_owned(), "stock".to_owned()];
        facts.groups =
            group.map(|(id, state)| MoveGroup { id, state: state.to_owned(), members }).into_iter().collect();
        facts.blocked = blocked.map(|epoch| Blocked { epoch, why: "the sequence s has no room".to_owned() });
    });
    if let Side::Read(facts) = &mut facts.service_side {
        facts.gate = gate(1, None);
    }
    facts
}

#[test]
fn of_slices_that_move_together_all_are_named_and_what_is_settled_is_not_taken_back() {
    let all = "strangler flip plans/retail.yaml --slice ordering --slice stock";
    let pending = status(&between(Some((7, "pending")), None));
    assert_eq!(pending.next.as_deref(), Some(all));
    assert!(pending.alarms[0].contains(&format!("{all} --abort takes it back")), "{:?}", pending.alarms);
    let settled = status(&between(Some((7, "open")), None));
    assert_eq!(settled.next.as_deref(), Some(all));
    assert!(!settled.alarms[0].contains("--abort"), "{:?}", settled.alarms);
}

#[test]
fn a_move_that_can_not_be_finished_is_taken_back_unless_it_is_settled() {
    let abort = "strangler flip plans/retail.yaml --slice ordering --abort";
    let alone = status(&between(None, Some(2)));
    assert_eq!(alone.next.as_deref(), Some(abort));
    assert!(alone.alarms[0].contains("the sequence s has no room"), "{:?}", alone.alarms);
    let earlier = status(&between(None, Some(1)));
    assert_eq!(earlier.next.as_deref(), Some("strangler flip plans/retail.yaml --slice ordering"));
    let settled = status(&between(Some((7, "open")), Some(2)));
    let all = "strangler flip plans/retail.yaml --slice ordering --slice stock";
    assert_eq!(settled.next.as_deref(), Some(all));
}

/// The stream from the monolith is in this state, with everything applied up to this position.
fn broken(mut facts: SliceFacts, state: &str, applied: u64) -> SliceFacts {
    if let Side::Read(facts) = &mut facts.service_side {
        let stream = facts.stream.as_mut().unwrap();
        (stream.state, stream.applied_lsn) = (state.to_owned(), Lsn(applied));
        stream.detail = Some("the replication slot s is gone".to_owned());
    }
    facts
}

#[test]
fn a_move_whose_stream_is_lost_is_finished_where_everything_was_brought_and_else_taken_back() {
    let flip = "strangler flip plans/retail.yaml --slice ordering";
    let brought = status(&broken(between(None, None), "gap", 1000));
    assert_eq!(brought.next.as_deref(), Some(flip), "what the fence asks for is there");
    for (state, applied) in [("gap", 999), ("diverged", 2000)] {
        let lost = status(&broken(between(None, None), state, applied));
        assert_eq!(lost.next, Some(format!("{flip} --abort")));
        let alarm = &lost.alarms[0];
        assert!(
            alarm.contains("the replication slot s is gone") && !alarm.contains("running mirror"),
            "{alarm}"
        );
    }
    let settled = status(&broken(between(Some((7, "open")), None), "gap", 999));
    assert_eq!(settled.next, mirror(" --rebuild"), "it can't be taken back");
}

#[test]
fn a_settled_move_that_meets_a_table_that_is_no_whole_copy_has_it_copied_again() {
    let facts = |group| {
        let mut facts = between(group, None);
        if let Side::Read(facts) = &mut facts.service_side {
            facts.tables[0].state = "diverged".to_owned();
        }
        status(&facts)
    };
    let settled = facts(Some((7, "open")));
    let retry = mirror(" --retry public.Orders").unwrap();
    assert_eq!(settled.next.as_ref(), Some(&retry));
    assert!(settled.alarms[0].contains(&format!("{retry} copies it again")), "{:?}", settled.alarms);
    let abort = "strangler flip plans/retail.yaml --slice ordering --abort";
    assert_eq!(facts(None).next.as_deref(), Some(abort));
}

#[test]
fn a_table_of_another_slice_is_an_alarm_and_nothing_is_to_be_typed_but_check() {
    let one = Problem::error("table-claimed", "table Orders").fact("it belongs to slice a");
    let mut facts = streaming();
    facts.claimed = vec![one];
    let status = status(&facts);
    assert!(status.alarms.contains(&"table Orders: it belongs to slice a".to_owned()), "{:?}", status.alarms);
    assert_eq!(status.next.as_deref(), Some("strangler check plans/retail.yaml"));
}
