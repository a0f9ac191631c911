//! Whether a flip may begin, asked of real servers with a real mirror: each fault is found, and silence is right without it.

mod stage;

use std::time::Duration;

use strangler::authority::Side;
use strangler::cluster::Cluster;
use strangler::dualwrite::guard::Subscribed;
use strangler::dualwrite::readiness::{Findings, judge, left_behind};
use strangler::journal::operators::{self, Operator};
use strangler::name::TableName;
use strangler::postgres::SessionRole;
use strangler::problem::{Problem, Severity};
use tokio_postgres::Client;

use crate::replication::server::server;
use crate::support::cluster::{connect, launch};
use crate::support::follower::Follower;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};
use stage::Stage;

/// A fault, as SQL on one side that makes it and SQL that takes it away, with what is said of it.
struct Fault {
    side: Side,
    make: &'static str,
    mend: &'static str,
    severity: Severity,
    code: &'static str,
    words: &'static str,
}

const fn fault(
    (side, severity): (Side, Severity),
    (code, words): (&'static str, &'static str),
    (make, mend): (&'static str, &'static str),
) -> Fault {
    Fault { side, make, mend, severity, code, words }
}

const ON_MONOLITH: (Side, Severity) = (Side::Monolith, Severity::Error);
const ON_SERVICE: (Side, Severity) = (Side::Service, Severity::Error);

const FAULTS: &[Fault] = &[
    fault(
        ON_MONOLITH,
        ("not-armed", "not guarded by its gate: trigger aa_strangler_gate of table Days is disabled"),
        (
            "ALTER TABLE \"Days\" DISABLE TRIGGER aa_strangler_gate",
            "ALTER TABLE \"Days\" ENABLE ALWAYS TRIGGER aa_strangler_gate",
        ),
    ),
    fault(
        ON_SERVICE,
        ("not-armed", "in the service, trigger aa_strangler_gate of table Days is disabled"),
        (
            "ALTER TABLE \"Days\" DISABLE TRIGGER aa_strangler_gate",
            "ALTER TABLE \"Days\" ENABLE ALWAYS TRIGGER aa_strangler_gate",
        ),
    ),
    fault(
        ON_SERVICE,
        ("tables-not-live", "Things is copying"),
        (
            "UPDATE strangler.mirror_table SET state = 'copying' WHERE source_table = 'Things'",
            "UPDATE strangler.mirror_table SET state = 'live' WHERE source_table = 'Things'",
        ),
    ),
    fault(
        ON_SERVICE,
        ("not-finished", "late on Things"),
        (
            "INSERT INTO strangler.deferred (slice, target_table, kind, object, create_sql) \
             VALUES ('one', 'Things', 'index', 'late', 'SELECT')",
            "DELETE FROM strangler.deferred WHERE object = 'late'",
        ),
    ),
    fault(
        (Side::Service, Severity::Warning),
        ("not-finished", "soft on Things"),
        (
            "INSERT INTO strangler.deferred (slice, target_table, kind, object, create_sql) \
             VALUES ('one', 'Things', 'foreign_key', 'soft', 'SELECT')",
            "DELETE FROM strangler.deferred WHERE object = 'soft'",
        ),
    ),
    fault(
        ON_MONOLITH,
        ("way-back-missing", "the stream is in mode OFF, not TRIPWIRE from the service to the monolith"),
        (
            "UPDATE strangler.stream SET mode = 'OFF' WHERE dir = 'reverse'",
            "UPDATE strangler.stream SET mode = 'TRIPWIRE' WHERE dir = 'reverse'",
        ),
    ),
    fault(
        ON_MONOLITH,
        ("way-back-missing", "the stream is gap: it was dropped"),
        (
            "UPDATE strangler.stream SET state = 'gap', detail = 'it was dropped' WHERE dir = 'reverse'",
            "UPDATE strangler.stream SET state = 'running', detail = NULL WHERE dir = 'reverse'",
        ),
    ),
    fault(
        ON_MONOLITH,
        ("way-back-slot", "the slot gone of the way back is not there"),
        (
            "UPDATE strangler.stream SET slot = 'gone' WHERE dir = 'reverse'",
            "UPDATE strangler.stream SET slot = 'back_one' WHERE dir = 'reverse'",
        ),
    ),
    fault(
        ON_MONOLITH,
        ("way-back-idle", "nobody reads the stream from the service to the monolith"),
        (
            "UPDATE strangler.mirror_process SET seen_at = now() - interval '1 minute' WHERE dir = 'reverse'",
            "UPDATE strangler.mirror_process SET seen_at = now() + interval '1 day' WHERE dir = 'reverse'",
        ),
    ),
    fault(
        ON_SERVICE,
        ("open-alarm", "insert on Things at 0/1 in transaction 7, seen by the reverse stream"),
        (
            "INSERT INTO strangler.alarm (slice, dir, epoch, lsn, xid, source_table, operation) \
             VALUES ('one', 'reverse', 1, '0/1', 7, 'Things', 'insert')",
            "UPDATE strangler.alarm SET cleared_at = now()",
        ),
    ),
    fault(
        (Side::Monolith, Severity::Warning),
        ("unfenced-standby", "copy (away)"),
        ("SELECT pg_create_physical_replication_slot('copy')", "SELECT pg_drop_replication_slot('copy')"),
    ),
    fault(
        ON_MONOLITH,
        ("rows-stay-behind", "it has rows that the slice's filter does not take: (\"At\""),
        ("INSERT INTO \"Days\" VALUES ('2026-03-05')", "DELETE FROM \"Days\" WHERE \"At\" = '2026-03-05'"),
    ),
    fault(
        ON_MONOLITH,
        ("prepared-in-the-way", "1 prepared transaction with locks of moved tables: \"left over\" of"),
        (
            "BEGIN; UPDATE \"Things\" SET \"Name\" = 'p' WHERE \"Id\" = 7; PREPARE TRANSACTION 'left over'",
            "ROLLBACK PREPARED 'left over'",
        ),
    ),
    fault(
        ON_MONOLITH,
        ("sequence-short", "no room for 1 more move of sequence_margin 1000: Things.Id"),
        ("SELECT setval('\"Things_Id_seq\"', 2147483000)", "SELECT setval('\"Things_Id_seq\"', 100)"),
    ),
    fault(
        (Side::Service, Severity::Warning),
        ("sequence-short", "no room for 20 more moves of sequence_margin 1000: Things.Id"),
        ("SELECT setval('\"Things_Id_seq\"', 2147480000)", "SELECT setval('\"Things_Id_seq\"', 100)"),
    ),
    fault(
        (Side::Service, Severity::Warning),
        ("sequence-missing", "no sequence feeds Things.Id there, and one does on the monolith"),
        (
            "ALTER TABLE \"Things\" ALTER \"Id\" DROP IDENTITY",
            "ALTER TABLE \"Things\" ALTER \"Id\" ADD GENERATED BY DEFAULT AS IDENTITY",
        ),
    ),
    fault(
        (Side::Service, Severity::Warning),
        ("application-kept-out", "the role service_app may not DELETE on Things"),
        ("REVOKE DELETE ON \"Things\" FROM service_app", "GRANT DELETE ON \"Things\" TO service_app"),
    ),
    fault(
        ON_SERVICE,
        ("application-kept-out", "the role service_app may not SELECT, INSERT, UPDATE, DELETE on Days"),
        (
            "REVOKE ALL ON \"Days\" FROM service_app",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON \"Days\" TO service_app",
        ),
    ),
    fault(
        ON_SERVICE,
        ("application-kept-out", "the role service_app may not USAGE on SEQUENCE public.extra"),
        (
            "CREATE SEQUENCE extra; ALTER TABLE \"Things\" ALTER \"Name\" SET DEFAULT 'n' || nextval('extra')",
            "ALTER TABLE \"Things\" ALTER \"Name\" DROP DEFAULT; DROP SEQUENCE extra",
        ),
    ),
    fault(
        ON_SERVICE,
        ("late-sequence", "looks its sequence up by name for each row"),
        (
            "ALTER TABLE \"Things\" ALTER \"Name\" SET DEFAULT 'n' || nextval('extra'::text)",
            "ALTER TABLE \"Things\" ALTER \"Name\" DROP DEFAULT",
        ),
    ),
    fault(
        (Side::Service, Severity::Warning),
        ("default-function", "its default calls public.next_name"),
        (
            "CREATE FUNCTION next_name() RETURNS text LANGUAGE sql AS 'SELECT 1::text'; \
             ALTER TABLE \"Things\" ALTER \"Name\" SET DEFAULT next_name()",
            "ALTER TABLE \"Things\" ALTER \"Name\" DROP DEFAULT; DROP FUNCTION next_name()",
        ),
    ),
    fault(
        ON_SERVICE,
        ("no-replica-identity", "published and without a replica identity: Things"),
        (
            "CREATE PUBLICATION feed FOR TABLE \"Things\"; ALTER TABLE \"Things\" REPLICA IDENTITY NOTHING",
            "ALTER TABLE \"Things\" REPLICA IDENTITY DEFAULT; DROP PUBLICATION feed",
        ),
    ),
    fault(
        ON_SERVICE,
        ("application-kept-out", "neither the role service_app nor a member of it can log in"),
        ("ALTER ROLE service_app NOLOGIN", "ALTER ROLE service_app LOGIN"),
    ),
    fault(
        ON_MONOLITH,
        ("operator-at-work", "bob runs `strangler flip` in process 5 on other"),
        (
            "INSERT INTO strangler.operator (slice, verb, operator, host, pid) VALUES ('one', 'flip', 'bob', 'other', 5)",
            // A silent one is ignored, and the row may stay.
            "UPDATE strangler.operator SET seen_at = now() - interval '16 s'",
        ),
    ),
];

#[tokio::test]
async fn every_fault_is_told_with_its_fact_and_silence_is_right_without_it() {
    let stage = Stage::ready().await;
    assert_eq!(stage.settled().await, [], "nothing is wrong");
    for fault in FAULTS {
        let client = stage.on(fault.side);
        run(client, fault.make).await;
        let found = stage.until_told(fault.code).await;
        assert_eq!((found.severity, found.code), (fault.severity, fault.code));
        assert!(found.fact.contains(fault.words), "{}", found.fact);
        assert!(!found.consequence.is_empty() && !found.next.is_empty(), "{found:?}");
        run(client, fault.mend).await;
    }
    // Identity and rights are part of what evidence rests on.
    stage.prove();
    assert_eq!(stage.settled().await, [], "all is mended");
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test]
async fn a_transaction_that_holds_the_gate_is_listed_without_the_values_in_its_query() {
    let stage = Stage::ready().await;
    let writer = connect(&stage.split.pair.monolith_url()).await;
    run(&writer, "SET application_name = 'till 4'; BEGIN").await;
    run(&writer, "INSERT INTO \"Things\" (\"Name\") VALUES ('a secret of 1970')").await;
    let found = stage.until_told("gate-held").await;
    assert_eq!(found.severity, Severity::Warning);
    assert!(found.fact.contains("(till 4, idle in transaction)"), "{}", found.fact);
    assert!(found.fact.ends_with("INSERT INTO \"Things\" (\"Name\") VALUES (?)"), "{}", found.fact);
    run(&writer, "ROLLBACK").await;
    // As CREATE INDEX does: writers wait, and the gate does not know.
    let there = connect(&stage.split.pair.service_url()).await;
    for (client, waits) in [(&writer, "the fence waits"), (&there, "the mirror waits")] {
        run(client, "SET application_name = 'till 5'; BEGIN; LOCK TABLE \"Things\" IN SHARE MODE").await;
        let found = stage.until_told("table-locked").await;
        assert!(found.fact.contains("ShareLock on \"Things\", by process"), "{}", found.fact);
        assert!(found.fact.contains("(till 5, idle in transaction)"), "{}", found.fact);
        assert!(found.consequence.starts_with(waits), "{}", found.consequence);
        run(client, "ROLLBACK").await;
    }
    // Whoever only reads, or writes another slice's tables, is not in the way.
    let key: i32 =
        stage.monolith.query_one("SELECT lock_key + 1 FROM strangler.slice", &[]).await.unwrap().get(0);
    run(
        &writer,
        &format!("BEGIN; SELECT * FROM \"Things\"; SELECT pg_advisory_xact_lock_shared(1398035026, {key})"),
    )
    .await;
    until("another slice's writer is long", SOON, async || {
        let sql = "SELECT clock_timestamp() - now() > interval '300 ms'";
        writer.query_one(sql, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    assert_eq!(stage.settled().await, []);
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn a_transaction_whose_age_is_hidden_is_watched_until_it_is_known_to_be_old_or_gone() {
    let stage = Stage::ready().await;
    let writer = connect(&stage.split.pair.monolith_url()).await;
    run(&writer, "BEGIN; INSERT INTO \"Things\" (\"Name\") VALUES ('x')").await;
    let plain = "CREATE ROLE plain; GRANT pg_read_all_data TO plain; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA strangler TO plain; \
        SET ROLE plain";
    run(&stage.monolith, plain).await;
    let found = stage.until_told("gate-held").await;
    assert_eq!(found.severity, Severity::Error);
    assert!(found.fact.contains("of hidden age (grant pg_read_all_stats)"), "{}", found.fact);
    run(&writer, "ROLLBACK").await;
    assert_eq!(stage.settled().await, []);
}

#[tokio::test]
async fn whoever_logs_in_as_the_mirror_is_told_and_the_mirror_itself_is_not() {
    let stage = Stage::ready().await;
    let url = stage.split.pair.monolith_url().replacen("://postgres", "://strangler_apply", 1);
    let intruder = connect(&url).await;
    run(&intruder, "SET application_name = 'nightly job'").await;
    let found = stage.until_told("passes-the-gate").await;
    assert!(found.fact.contains("(nightly job)"), "{}", found.fact);
    run(&intruder, "SET application_name = 'strangler mirror'").await;
    assert_eq!(stage.settled().await, []);
}

#[tokio::test]
async fn a_mirror_that_does_not_answer_or_is_gone_is_a_no_go() {
    let stage = Stage::ready().await;
    // Whoever holds the stream's row holds the mirror up.
    let holder = connect(&stage.split.pair.service_url()).await;
    run(&holder, "BEGIN; SELECT FROM strangler.stream FOR UPDATE").await;
    let found = stage.until_told("mirror-lags").await;
    assert!(found.fact.contains("a marker did not arrive within 2 s"), "{}", found.fact);
    run(&holder, "ROLLBACK").await;
    assert_eq!(stage.settled().await, []);
    stage.mirror.stop();
    let found = stage.until_told("mirror-away").await;
    assert_eq!(found.fact, "its mirror was stopped");
    assert_eq!(found.next, "strangler mirror plan.yaml --slice one");
    let gone = "UPDATE strangler.mirror_process SET stopped_at = NULL, seen_at = now() - interval '9 s' \
                WHERE dir = 'forward'";
    run(&stage.service, gone).await;
    let found = stage.until_told("mirror-away").await;
    assert!(found.fact.contains("gave its last sign of life"), "{}", found.fact);
    run(&stage.service, "UPDATE strangler.stream SET mode = 'TRIPWIRE'").await;
    let found = stage.until_told("stream-not-applying").await;
    assert!(found.fact.contains("is in mode TRIPWIRE, not APPLY"), "{}", found.fact);
}

#[tokio::test]
async fn a_slot_that_was_moved_past_what_was_looked_at_is_found() {
    let stage = Stage::ready().await;
    run(&stage.service, "SELECT pg_logical_emit_message(true, 'a', 'b')").await;
    run(&stage.service, "SELECT pg_replication_slot_advance('back_one', pg_current_wal_lsn())").await;
    let found = stage.until_told("way-back-slot").await;
    assert!(found.fact.starts_with("the slot back_one was moved on to"), "{}", found.fact);
    assert_eq!(found.next, "strangler arm plan.yaml --slice one");
}

#[tokio::test]
async fn evidence_is_asked_for_and_a_reason_takes_its_place_unless_the_sides_differ() {
    let stage = Stage::ready().await;
    let old = stage.plan_with("min_mirror_time: 0s, evidence_max_age: 1ms");
    let found = |problems: &[Problem]| -> Vec<(Severity, &'static str)> {
        problems.iter().map(|problem| (problem.severity, problem.code)).collect()
    };
    let (problems, reason) = stage.asked(&old, None).await;
    assert_eq!((found(&problems).as_slice(), reason), ([(Severity::Error, "no-evidence")].as_slice(), None));
    let (_, reason) = stage.asked(&old, Some("  ")).await;
    assert_eq!(reason, None, "an empty reason is none");
    let (problems, reason) = stage.asked(&old, Some("the warehouse burns")).await;
    assert_eq!(found(&problems), [(Severity::Warning, "no-evidence")]);
    assert_eq!(reason.as_deref(), Some("the warehouse burns"));
    assert!(problems[0].fact.ends_with("; accepted: the warehouse burns"), "{}", problems[0].fact);
    // A reason that is not needed is not written down.
    let (problems, reason) = stage.asked(&stage.plan, Some("just in case")).await;
    assert_eq!((problems.as_slice(), reason), ([].as_slice(), None));

    let early = stage.plan_with("min_mirror_time: 1d");
    let (problems, _) = stage.asked(&early, None).await;
    assert_eq!(found(&problems), [(Severity::Error, "mirrored-too-short")]);

    run(
        &stage.service,
        "SET session_replication_role = replica; SET SESSION AUTHORIZATION strangler_apply; \
         UPDATE \"Things\" SET \"Name\" = 'another' WHERE \"Id\" = 3; RESET SESSION AUTHORIZATION",
    )
    .await;
    assert_eq!(stage.split.run("reconcile", &[]).exit, Some(1));
    let (problems, reason) = stage.asked(&stage.plan, Some("the warehouse burns")).await;
    assert_eq!((found(&problems).as_slice(), reason), ([(Severity::Error, "sides-differ")].as_slice(), None));
}

#[tokio::test]
async fn findings_of_other_rooms_and_another_mapping_are_a_no_go() {
    let mut stage = Stage::ready().await;
    let findings = Findings {
        unguarded: (1..=7).map(|number| format!("Days_{number} has no trigger for TRUNCATE")).collect(),
        claimed: vec![(TableName::new("public", "Days"), "days".to_owned())],
        ways_past: vec![
            Subscribed { name: "feed".to_owned(), table: TableName::new("public", "Things") }
                .problem("monolith"),
        ],
        way_back: Some("INSERT on the monolith's table Things is refused: permission denied".to_owned()),
    };
    let problems = stage.told_with(findings).await;
    let codes: Vec<&str> = problems.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, ["subscription", "not-armed", "way-back-unproven", "table-claimed"]);
    assert_eq!(problems[0].next, "run on the monolith: DROP SUBSCRIPTION \"feed\";");
    assert!(problems[1].fact.ends_with(", and 2 more"), "{}", problems[1].fact);
    stage.mapping.hash = "another".to_owned();
    stage.until_told("other-mapping").await;
    let back = stage.back().await;
    for code in ["stream-not-applying", "way-back-missing"] {
        assert!(back.contains(&code), "the way home is asked of the other streams: {back:?}");
    }
    assert!(!back.contains(&"mirrored-too-short"), "{back:?}");
}

#[tokio::test]
async fn operators_see_each_other_until_one_is_silent_and_never_themselves() {
    let (_split, monolith, _service) = {
        let launched = Split::launch("{ t: {} }", "CREATE TABLE t (id int PRIMARY KEY)").await;
        launched.0.provision();
        launched
    };
    let who = |name: &str, pid| Operator {
        verb: "flip".to_owned(),
        operator: name.to_owned(),
        host: "box".to_owned(),
        pid,
    };
    let (ann, bob) = (who("ann", 1), who("bob", 2));
    assert_eq!(operators::begin(&monolith, "one", &ann).await.unwrap(), None);
    assert_eq!(operators::begin(&monolith, "one", &ann).await.unwrap(), None, "the same process goes on");
    let met = operators::begin(&monolith, "one", &bob).await.unwrap().unwrap();
    assert!(met.who == ann && met.seen_s < 15.0, "{met:?}");
    assert_eq!(operators::other(&monolith, "one", &ann).await.unwrap(), None);
    assert!(operators::beat(&monolith, "one", &ann).await.unwrap());
    operators::end(&monolith, "one", &bob).await.unwrap();
    assert!(operators::beat(&monolith, "one", &ann).await.unwrap(), "nobody ends the work of somebody else");
    run(&monolith, "UPDATE strangler.operator SET seen_at = now() - interval '16 s'").await;
    assert_eq!(operators::begin(&monolith, "one", &bob).await.unwrap(), None, "who is silent is ignored");
    assert!(!operators::beat(&monolith, "one", &ann).await.unwrap(), "and learns of it");
    operators::end(&monolith, "one", &bob).await.unwrap();
    assert_eq!(operators::other(&monolith, "one", &ann).await.unwrap(), None);
}

#[tokio::test]
async fn whoever_follows_and_flushes_late_refuses_a_flip_that_would_wait_for_it() {
    let stage = Stage::ready().await;
    // It writes every byte and flushes at the end of a segment.
    let archiver = Follower::archiver(&stage.split.pair.monolith);
    let found = stage.until_told("standby-late").await;
    assert!(found.fact.contains("pg_receivewal ("), "{}", found.fact);
    assert!(found.next.contains("fence_standbys: sync"), "{}", found.next);
    drop(archiver);
    assert_eq!(stage.settled().await, []);
    let standby = Follower::standby(&stage.split.pair.monolith, &stage.monolith).await;
    assert_eq!(stage.settled().await, []);
    drop(standby);
}

#[tokio::test]
async fn what_can_not_be_asked_is_an_error_and_never_a_go() {
    let stage = Stage::ready().await;
    let facts = stage.facts(&stage.to_service(None), Findings::default()).await.unwrap();
    assert!(
        judge(&facts, &stage.to_service(None)).problems.iter().all(|problem| problem.code == "mirror-lags")
    );
    run(&stage.service, "ALTER TABLE strangler.ledger RENAME TO away").await;
    let error = stage.facts(&stage.to_service(None), Findings::default()).await.unwrap_err();
    assert!(error.to_string().starts_with("reading whether a flip may begin failed"), "{error}");
}

#[tokio::test]
async fn a_look_that_gets_no_time_because_writers_ended_late_says_nothing_of_the_filter() {
    let cluster = launch();
    let link = cluster.url("postgres");
    let (monolith, holder) = (connect(&link).await, connect(&link).await);
    let mapping = stage::untouched(&monolith).await;
    let session = server(&link, SessionRole::Admin).connect("a flip").await.unwrap();
    let budget = Duration::from_secs(1);
    let look =
        async |left| left_behind::again(&session, &mapping, (Side::Monolith, left, budget)).await.unwrap();
    assert_eq!(look(budget).await, Some(Vec::new()));
    holder.batch_execute("BEGIN; LOCK TABLE \"Days\"").await.unwrap();
    assert_eq!(look(Duration::from_millis(1)).await, None);
    let slow = look(Duration::from_millis(200)).await.unwrap();
    assert_eq!(slow.len(), 1);
    assert!(slow[0].contains("could not be told within write_pause_budget"), "{slow:?}");
    holder.batch_execute("ROLLBACK; INSERT INTO \"Days\" VALUES ('2026-03-05')").await.unwrap();
    let there = look(budget).await.unwrap();
    assert!(there[0].starts_with("table Days of the monolith has rows"), "{there:?}");
}
