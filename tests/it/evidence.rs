//! Verdicts in the ledger, and what voids them, on real servers with a real mirror.

use std::time::Duration;

use strangler::cluster::Cluster;
use strangler::journal::alarms::{self, Operation, Stray, StrayTransaction};
use strangler::journal::grounds::{self, Ground};
use strangler::journal::ledger::{self, Anchored, Author};
use strangler::journal::runs::{self, Run as ReconcileRun, Wanted};
use strangler::journal::streams::StreamOf;
use strangler::lsn::Lsn;
use strangler::name::TableName;
use strangler::reconcile::evidence::{ConcludeError, Evidence, Lack, Monolith, Void, conclude, evidence};
use strangler::reconcile::finding::FindingKind;
use strangler::reconcile::verdict::{Counts, Coverage, Outcome, TableVerdict, Verdict};
use strangler::status::judge::Commands;
use strangler::status::read as status_read;
use strangler::status::{Phase, Side, SliceFacts, SliceStatus, judge};
use tokio_postgres::Client;

use crate::support::cluster::{Pair, connect};
use crate::support::scenario::{Run, Scenario};

const SLICE: &str = "things";
const DAY: Duration = Duration::from_secs(86_400);

const SCHEMA: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'fine');
CREATE TABLE "Things" ("Id" int PRIMARY KEY, "Name" text NOT NULL, "Mood" mood);
CREATE TABLE "Days" ("At" date PRIMARY KEY) PARTITION BY RANGE ("At");
CREATE TABLE "Days_1" PARTITION OF "Days" FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE "Days_2" PARTITION OF "Days" FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
INSERT INTO "Things" SELECT i, 'name ' || i, 'fine' FROM generate_series(1, 25) i;
INSERT INTO "Days" VALUES ('2026-01-05'), ('2026-02-05');
"#;

/// Everything is live, and no mirror runs any more.
async fn mirrored() -> Scenario {
    let scenario = Scenario::new(SCHEMA, "      Things: {}\n      Days: {}\n").await;
    mirror(&scenario, &Run::new(&[])).await;
    scenario
}

/// A mirror that runs until all is applied, and is stopped.
async fn mirror(scenario: &Scenario, run: &Run) {
    let before = "SELECT coalesce(max(nonce), 0) FROM strangler.stream";
    let before: i64 = scenario.target.query_one(before, &[]).await.unwrap().get(0);
    let running = scenario.start(run);
    // Only then is what was live before told from what is live now.
    let streams = format!("SELECT phase = 'streaming' AND nonce > {before} FROM strangler.mirror_process");
    scenario.until_target(&format!("SELECT coalesce(({streams}), false)")).await;
    scenario.settled().await;
    running.stop().await;
}

fn author() -> Author {
    Author { operator: "ann".to_owned(), host: "box".to_owned() }
}

async fn ground(scenario: &Scenario) -> Ground {
    let service = grounds::service(&scenario.target, SLICE).await.unwrap().unwrap();
    service.with_monolith(&grounds::monolith(&scenario.source, SLICE).await.unwrap())
}

async fn begin(scenario: &Scenario) -> ReconcileRun {
    let (ground, author) = (ground(scenario).await, author());
    let wanted = Wanted {
        slice: SLICE,
        options: "{}",
        ground: &ground,
        author: &author,
        pid: 42,
        resume_within: Duration::ZERO,
    };
    runs::begin(&scenario.target, &wanted).await.unwrap()
}

/// What a run that found nothing wrong with these tables would say.
fn clean(scenario: &Scenario, run: &ReconcileRun, tables: &[&str]) -> Verdict {
    let table = |name: &&str| TableVerdict {
        source_table: TableName::new("public", *name),
        target_table: TableName::new("public", *name),
        outcome: Outcome::Clean,
        coverage: Coverage::Full,
        rows_authority: 25,
        rows_copy: 25,
        bytes: 8192,
        duration: Duration::from_millis(3),
        findings: Counts::new(),
        reasons: Vec::new(),
    };
    Verdict {
        run: run.id.clone(),
        plan: "scenario".to_owned(),
        slice: SLICE.to_owned(),
        service: "other".to_owned(),
        outcome: Outcome::Clean,
        strict: false,
        every_table: true,
        plan_hash: scenario.mapping.hash.clone(),
        epoch: 1,
        authority: "monolith",
        lsn: "0/1000".parse().unwrap(),
        from_lsn: "0/FFF".parse().unwrap(),
        started_at: run.started_at.clone(),
        finished_at: String::new(),
        tables: tables.iter().map(table).collect(),
        listed: Vec::new(),
        reasons: Vec::new(),
        repairs: Vec::new(),
    }
}

fn monolith(scenario: &Scenario) -> Monolith<'_> {
    Monolith { read: &scenario.source, journal: Some(&scenario.source) }
}

/// Records a clean verdict on everything as it is now, and makes sure that it is a proof.
async fn prove(scenario: &Scenario) {
    let run = begin(scenario).await;
    let mut verdict = clean(scenario, &run, &["Things", "Days"]);
    let concluded =
        conclude(&scenario.target, monolith(scenario), &run, &mut verdict, &author()).await.unwrap();
    assert!(matches!(concluded.anchored, Anchored::Recorded(head) if head == concluded.head));
    assert_eq!((verdict.outcome, &verdict.reasons), (Outcome::Clean, &Vec::new()));
    assert_eq!(lacks(scenario).await, []);
}

async fn read(scenario: &Scenario) -> Evidence {
    evidence(&scenario.target, SLICE).await.unwrap()
}

async fn lacks(scenario: &Scenario) -> Vec<Lack> {
    read(scenario).await.lacks(Some(&ground(scenario).await), DAY)
}

async fn service(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

fn changed(table: &str, side: &'static str) -> Lack {
    Lack::Void(Void::Changed { table: table.to_owned(), side })
}

fn files(table: &str, side: &'static str) -> Lack {
    Lack::Void(Void::Files { table: table.to_owned(), side })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shapes_are_made_of_is_found_through_indexes_however_many_other_tables_there_are() {
    let scenario = mirrored().await;
    for client in [&scenario.source, &scenario.target] {
        client.batch_execute("BEGIN").await.unwrap();
    }
    assert_eq!(ground(&scenario).await.tables.len(), 2);
    let whole = "SELECT relname::text FROM pg_stat_xact_sys_tables \
        WHERE relname IN ('pg_attribute', 'pg_class') AND seq_scan > 0";
    for client in [&scenario.source, &scenario.target] {
        let read = client.query(whole, &[]).await.unwrap();
        let read: Vec<String> = read.iter().map(|row| row.get(0)).collect();
        assert_eq!(read, [""; 0], "read from end to end, for each table");
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_on_either_side_voids_a_verdict_and_housekeeping_does_not() {
    let scenario = mirrored().await;
    assert_eq!(lacks(&scenario).await, [Lack::NoVerdict]);
    prove(&scenario).await;
    for sql in [
        r#"UPDATE "Things" SET "Name" = 'other'; DELETE FROM "Things" WHERE "Id" = 3"#,
        r#"TRUNCATE "Things""#,
        r#"VACUUM FULL "Things""#,
        r#"VACUUM FREEZE "Things""#,
        "VACUUM FREEZE pg_catalog.pg_attribute",
        "VACUUM FULL pg_catalog.pg_attribute",
        r#"ANALYZE "Things""#,
        r#"CLUSTER "Things" USING "Things_pkey""#,
        r#"CREATE INDEX ON "Things" ("Name")"#,
        r#"ALTER TABLE "Things" ADD CHECK ("Id" > 0)"#,
        r#"CREATE TABLE "Elsewhere" ("Id" int)"#,
    ] {
        scenario.write(sql).await;
        assert_eq!(lacks(&scenario).await, [], "{sql}");
    }
    // What gives the rows another file and what describes a column anew, without one between, is not told from a rewrite.
    prove(&scenario).await;
    for sql in [
        r#"GRANT UPDATE ("Name") ON "Things" TO PUBLIC"#,
        r#"REVOKE UPDATE ("Name") ON "Things" FROM PUBLIC"#,
    ] {
        scenario.write(sql).await;
        assert_eq!(lacks(&scenario).await, [], "{sql}");
    }
    for (sql, table) in [
        // Values change, and neither an event nor a type tells of it.
        (r#"ALTER TABLE "Things" ALTER "Name" TYPE text USING "Name" || 'x'"#, "Things"),
        (r#"ALTER TABLE "Things" ADD COLUMN "Late" float8 DEFAULT random()"#, "Things"),
        (r#"ALTER TABLE "Things" ALTER "Late" TYPE float8 USING "Late" + 1"#, "Things"),
        (
            r#"GRANT UPDATE ("Late") ON "Things" TO PUBLIC;
               ALTER TABLE "Things" ALTER "Late" TYPE float8 USING "Late" + 1"#,
            "Things",
        ),
        (r#"ALTER TABLE "Things" DROP COLUMN "Late""#, "Things"),
        (r#"ALTER TABLE "Things" RENAME "Name" TO "Nom""#, "Things"),
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "Things"),
        (r#"ALTER TABLE "Days" DETACH PARTITION "Days_2""#, "Days"),
        (
            r#"ALTER TABLE "Days" ATTACH PARTITION "Days_2" FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')"#,
            "Days",
        ),
        (
            r#"ALTER TABLE "Days" DETACH PARTITION "Days_2"; ALTER TABLE "Days" ATTACH PARTITION "Days_2"
               FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')"#,
            "Days",
        ),
        (
            "ALTER PUBLICATION strangler_scenario_things DROP TABLE \"Things\"; \
             ALTER PUBLICATION strangler_scenario_things ADD TABLE \"Things\"",
            "Things",
        ),
        (r#"DROP TABLE "Days_1""#, "Days"),
    ] {
        scenario.write(sql).await;
        assert_eq!(lacks(&scenario).await, [changed(table, "monolith")], "{sql}");
        prove(&scenario).await;
    }
    service(&scenario.target, r#"CREATE INDEX ON "Things" ("Name")"#).await;
    assert_eq!(lacks(&scenario).await, []);
    service(&scenario.target, r#"VACUUM FULL "Things""#).await;
    assert_eq!(lacks(&scenario).await, [files("Things", "service")], "a crash can't be told from it");
    prove(&scenario).await;
    let rewrite = r#"ALTER TABLE "Things" ALTER "Name" TYPE text USING "Name" || 'x'"#;
    service(&scenario.target, rewrite).await;
    assert_eq!(lacks(&scenario).await, [changed("Things", "service")]);
    scenario.write(r#"DROP TABLE "Things""#).await;
    assert!(lacks(&scenario).await.contains(&changed("Things", "monolith")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_emptied_past_the_mirror_voids_a_verdict_and_a_truncate_that_the_mirror_brings_does_not()
 {
    let scenario = mirrored().await;
    prove(&scenario).await;
    scenario.write(r#"TRUNCATE "Things"; INSERT INTO "Things" VALUES (1, 'again', 'fine')"#).await;
    assert_eq!(lacks(&scenario).await, [], "nobody has applied it yet");
    mirror(&scenario, &Run::new(&[])).await;
    assert_eq!(lacks(&scenario).await, []);
    service(
        &scenario.target,
        "SET session_replication_role = replica; SET SESSION AUTHORIZATION strangler_apply; TRUNCATE \"Things\"; \
         RESET SESSION AUTHORIZATION; RESET session_replication_role",
    )
    .await;
    assert_eq!(lacks(&scenario).await, [files("Things", "service")]);
    // Whatever became of it, a TRUNCATE leaves it right.
    scenario.write(r#"TRUNCATE "Things""#).await;
    mirror(&scenario, &Run::new(&[])).await;
    assert_eq!(lacks(&scenario).await, []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn copies_gaps_divergence_and_moved_authority_void_a_verdict_and_a_restart_does_not() {
    let scenario = mirrored().await;
    prove(&scenario).await;
    mirror(&scenario, &Run::new(&[])).await;
    assert_eq!(lacks(&scenario).await, [], "the mirror was only started again");

    let things = || "Things".to_owned();
    let retry = Run { retry: vec![TableName::new("public", "Things")], ..Run::new(&[]) };
    mirror(&scenario, &retry).await;
    assert_eq!(lacks(&scenario).await, [Lack::Void(Void::Copied { table: things() })]);
    prove(&scenario).await;

    // A row that is gone from the service: the next update of it meets nothing.
    let quiet = "SET session_replication_role = replica; SET SESSION AUTHORIZATION strangler_apply; \
                 DELETE FROM \"Things\" WHERE \"Id\" = 7; RESET SESSION AUTHORIZATION; RESET session_replication_role";
    service(&scenario.target, quiet).await;
    assert_eq!(lacks(&scenario).await, [], "nobody has seen it yet");
    scenario.write(r#"UPDATE "Things" SET "Name" = 'met' WHERE "Id" = 7"#).await;
    mirror(&scenario, &Run::new(&[])).await;
    let diverged = Void::NotLive { table: things(), state: "diverged".to_owned() };
    assert_eq!(lacks(&scenario).await, [Lack::Void(diverged)]);
    mirror(&scenario, &retry).await;
    assert_eq!(
        lacks(&scenario).await,
        [Lack::Void(Void::Copied { table: things() })],
        "healed is not proven"
    );
    prove(&scenario).await;

    scenario
        .write("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
        .await;
    scenario.start(&Run::new(&[])).end().await.unwrap_err();
    let gap = Void::Stream { state: "gap".to_owned() };
    assert_eq!(lacks(&scenario).await, [Lack::Void(gap)]);
    mirror(&scenario, &Run { rebuild: true, ..Run::new(&[]) }).await;
    let rebuilt: Vec<Lack> = lacks(&scenario).await;
    let copied = |table: &str| Lack::Void(Void::Copied { table: table.to_owned() });
    assert_eq!(rebuilt, [Lack::Void(Void::StreamAnew), copied("Days"), copied("Things")]);
    prove(&scenario).await;

    service(&scenario.target, "UPDATE strangler.gate_things SET epoch = 2").await;
    assert_eq!(lacks(&scenario).await, [Lack::Void(Void::Epoch { then: 1, now: 2 })]);
    service(&scenario.target, "UPDATE strangler.gate_things SET epoch = 1").await;
    service(&scenario.target, "UPDATE strangler.slice SET plan_hash = 'other'").await;
    assert_eq!(lacks(&scenario).await, [Lack::Void(Void::Mapping)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_ground_moved_is_never_clean() {
    let scenario = mirrored().await;
    let run = begin(&scenario).await;
    scenario.write(r#"ALTER TABLE "Things" ALTER "Name" TYPE text USING "Name" || 'x'"#).await;
    let mut verdict = clean(&scenario, &run, &["Things", "Days"]);
    conclude(&scenario.target, monolith(&scenario), &run, &mut verdict, &author()).await.unwrap();
    assert_eq!(verdict.outcome, Outcome::Incomplete);
    assert_eq!((verdict.tables[0].outcome, verdict.tables[1].outcome), (Outcome::Incomplete, Outcome::Clean));
    let reason = "meanwhile the definition of table Things changed on the monolith's side";
    assert_eq!(verdict.tables[0].reasons, [reason]);
    let last = read(&scenario).await.last.unwrap();
    assert_eq!((last.outcome, last.full), (Outcome::Incomplete, true));

    let run = begin(&scenario).await;
    service(&scenario.target, "UPDATE strangler.stream SET state = 'gap'").await;
    let mut verdict = clean(&scenario, &run, &["Things", "Days"]);
    verdict.outcome = Outcome::Differs;
    conclude(&scenario.target, monolith(&scenario), &run, &mut verdict, &author()).await.unwrap();
    assert_eq!(verdict.outcome, Outcome::Differs, "what is proven stays proven");
    assert_eq!(verdict.reasons, ["meanwhile the stream is not running: gap"]);
    // One that begins before the stream's slot is made, and ends behind that: a write in between is in no stream.
    service(&scenario.target, "UPDATE strangler.stream SET state = 'creating'").await;
    let run = begin(&scenario).await;
    service(&scenario.target, "UPDATE strangler.stream SET state = 'running'").await;
    let mut verdict = clean(&scenario, &run, &["Things", "Days"]);
    conclude(&scenario.target, monolith(&scenario), &run, &mut verdict, &author()).await.unwrap();
    assert_eq!(verdict.outcome, Outcome::Incomplete);
    let reason =
        "meanwhile the stream from the monolith was not running when the rows were compared: creating";
    assert_eq!(verdict.reasons, [reason]);

    let run = begin(&scenario).await;
    let mut verdict = clean(&scenario, &run, &["Things", "Days"]);
    verdict.plan_hash = "other".to_owned();
    conclude(&scenario.target, monolith(&scenario), &run, &mut verdict, &author()).await.unwrap();
    assert_eq!(verdict.outcome, Outcome::Incomplete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_and_its_run_are_recorded_together_or_not_at_all() {
    let scenario = mirrored().await;
    let run = begin(&scenario).await;
    let before = ledger::head(&scenario.target).await.unwrap();
    service(&scenario.target, "UPDATE strangler.reconcile_run SET attempt = 2").await;
    let mut verdict = clean(&scenario, &run, &["Things", "Days"]);
    let error = conclude(&scenario.target, monolith(&scenario), &run, &mut verdict, &author()).await;
    assert!(matches!(error, Err(ConcludeError::Resumed)), "{error:?}");
    assert_eq!(ledger::head(&scenario.target).await.unwrap(), before);

    service(&scenario.target, "UPDATE strangler.reconcile_run SET attempt = 1").await;
    verdict.reasons = vec!["x".repeat(ledger::BODY_BYTES_MAX)];
    let error = conclude(&scenario.target, monolith(&scenario), &run, &mut verdict, &author()).await;
    assert!(matches!(error, Err(ConcludeError::Journal(_))), "{error:?}");
    assert!(runs::beat(&scenario.target, &run).await.unwrap(), "the run goes on");
    assert_eq!(ledger::head(&scenario.target).await.unwrap(), before);

    verdict.reasons.clear();
    let alone = Monolith { read: &scenario.source, journal: None };
    let concluded = conclude(&scenario.target, alone, &run, &mut verdict, &author()).await.unwrap();
    assert!(matches!(concluded.anchored, Anchored::Owed { .. }), "{:?}", concluded.anchored);
    assert_eq!(ledger::head(&scenario.target).await.unwrap(), Some(concluded.head));
    assert!(!runs::beat(&scenario.target, &run).await.unwrap(), "the run has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_differences_are_told_apart_from_a_proof() {
    let scenario = mirrored().await;
    let apply = connect(&scenario.pair.service.url_as("strangler_apply", "", Pair::SERVICE)).await;
    let say = async |tables: &[&str], change: &dyn Fn(&mut Verdict)| {
        let run = begin(&scenario).await;
        let mut verdict = clean(&scenario, &run, tables);
        change(&mut verdict);
        conclude(&apply, monolith(&scenario), &run, &mut verdict, &author()).await.unwrap();
    };
    say(&["Things"], &|_| ()).await;
    assert_eq!(lacks(&scenario).await, [Lack::NoFullVerdict]);
    say(&["Things", "Days"], &|verdict| {
        verdict.tables[1].coverage = Coverage::Sample { percent: 5.0 };
    })
    .await;
    assert_eq!(lacks(&scenario).await, [Lack::NoFullVerdict]);
    prove(&scenario).await;
    say(&["Things"], &|verdict| {
        verdict.outcome = Outcome::Differs;
        verdict.tables[0].outcome = Outcome::Differs;
        verdict.tables[0].findings = [(FindingKind::Missing, 2), (FindingKind::Extra, 1)].into();
    })
    .await;
    assert_eq!(lacks(&scenario).await, [Lack::DiffersSince]);
    let last = read(&scenario).await.last.unwrap();
    assert_eq!(last.counts, [(FindingKind::Missing, 2), (FindingKind::Extra, 1)].into());
    say(&["Things"], &|_| ()).await;
    assert_eq!(lacks(&scenario).await, [Lack::DiffersSince], "a clean part does not take it back");
    prove(&scenario).await;
    let strictly = |verdict: &mut Verdict, found: &[(FindingKind, u64)]| {
        (verdict.strict, verdict.outcome) = (true, Outcome::Differs);
        verdict.tables[0].outcome = Outcome::Differs;
        verdict.tables[0].findings = found.iter().copied().collect();
    };
    say(&["Things"], &|verdict| strictly(verdict, &[(FindingKind::Differs, 1)])).await;
    assert_eq!(lacks(&scenario).await, [Lack::DiffersSince]);
    for strict in [&["Things", "Days"][..], &["Things"]] {
        say(&["Things", "Days"], &|_| ()).await;
        assert_eq!(lacks(&scenario).await, [Lack::DiffersStrictly], "one by meaning does not see it");
        assert!(read(&scenario).await.asks_for_strict());
        let shown = shown(&scenario, true).await;
        assert!(shown.alarms[0].contains("--strict found rows that differ"), "{:?}", shown.alarms);
        say(strict, &|verdict| verdict.strict = true).await;
        let left = if strict.len() == 2 { vec![] } else { vec![Lack::DiffersStrictly] };
        assert_eq!(lacks(&scenario).await, left, "a full strict one takes it back");
        say(&["Things", "Days"], &|verdict| strictly(verdict, &[(FindingKind::Differs, 1)])).await;
        assert_eq!(lacks(&scenario).await, [Lack::Differs]);
    }
    say(&["Things", "Days"], &|verdict| strictly(verdict, &[(FindingKind::Missing, 1)])).await;
    prove(&scenario).await;
    assert_eq!(lacks(&scenario).await, [], "rows that are missing are seen by any");
    let verified = ledger::verify(&scenario.target, Some(&scenario.source)).await.unwrap();
    assert_eq!(verified.confirmed, verified.head.map(|head| head.id));
    assert_eq!(evidence(&scenario.target, "other").await.unwrap(), Evidence::default());
}

/// What `status` says of the slice, with the monolith's word or without.
async fn shown(scenario: &Scenario, with_monolith: bool) -> SliceStatus {
    let slices = [SLICE];
    let service = status_read::service(&scenario.target, &slices).await.unwrap().remove(SLICE).unwrap();
    let monolith = status_read::monolith(&scenario.source, &slices).await.unwrap().remove(SLICE).unwrap();
    let facts = SliceFacts {
        slice: SLICE.to_owned(),
        service: "other".to_owned(),
        wal_budget_bytes: 1 << 30,
        evidence_max_age: DAY,
        service_side: Side::Read(service),
        monolith_side: if with_monolith { Side::Read(monolith) } else { Side::Silent("gone".to_owned()) },
        astray: std::collections::BTreeSet::new(),
        claimed: Vec::new(),
        mapping_changed: false,
        earlier: None,
    };
    judge(&facts, &Commands::about("plan.yaml"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_clears_the_alarms_from_before_it_whatever_the_clocks_say_and_none_that_came_meanwhile() {
    let scenario = mirrored().await;
    let service = &scenario.target;
    let alarmed = async |xid: u32| {
        let source_table = "Things".to_owned();
        let stray = Stray { source_table, operation: Operation::Truncate, key: None };
        let transaction = StrayTransaction { epoch: 1, lsn: Lsn(xid.into()), xid };
        let raised = alarms::raise(service, StreamOf::forward(SLICE), transaction, &[stray]).await;
        assert_eq!(raised.unwrap(), 1);
    };
    alarmed(1).await;
    let begun = alarms::disturbances(service, SLICE).await.unwrap();
    alarmed(2).await;
    assert_eq!(alarms::clear(service, SLICE, begun, "ann").await.unwrap(), 0, "another one came meanwhile");
    service.batch_execute("UPDATE strangler.alarm SET raised_at = now() + interval '1 day'").await.unwrap();
    prove(&scenario).await;
    assert_eq!(alarms::uncleared(service, SLICE).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_last_verdict_and_what_it_is_still_worth() {
    let scenario = mirrored().await;
    let running = scenario.start(&Run::new(&[]));
    scenario.until_target("SELECT phase = 'streaming' FROM strangler.mirror_process").await;
    let reconcile = Some("strangler reconcile plan.yaml --slice things".to_owned());
    let none = shown(&scenario, true).await;
    let proof = none.evidence.unwrap();
    assert_eq!((proof.stands, proof.last.is_none(), none.phase), (Some(false), true, Phase::Streaming));
    assert_eq!((proof.lacks, none.next), (vec!["nothing was compared yet".to_owned()], reconcile.clone()));

    prove(&scenario).await;
    let proven = shown(&scenario, true).await;
    assert_eq!((&proven.alarms, &proven.next, proven.outdated.len()), (&Vec::new(), &None, 0));
    let proof = proven.evidence.unwrap();
    let last = proof.last.clone().unwrap();
    assert_eq!((proof.stands, &proof.last), (Some(true), &proof.last_full));
    assert_eq!((last.outcome, last.full, last.strict), (Outcome::Clean, true, false));
    assert_eq!((last.tables_compared, last.tables, &last.coverage), (2, 2, &vec![Coverage::Full]));
    assert_eq!((last.lsn, last.epoch), ("0/1000".parse().unwrap(), 1));
    assert!(last.age_seconds <= last.begun_seconds_ago && last.begun_seconds_ago < 60.0, "{last:?}");
    assert_eq!(shown(&scenario, false).await.evidence.unwrap().stands, None);

    scenario.write(r#"ALTER TABLE "Things" ALTER "Name" SET DEFAULT 'x'"#).await;
    let moved = shown(&scenario, true).await;
    let proof = moved.evidence.unwrap();
    assert_eq!((proof.stands, proof.last.unwrap().entry, &moved.next), (Some(false), last.entry, &reconcile));
    assert!(proof.lacks[0].contains("the definition of table Things changed"), "{:?}", proof.lacks);
    assert!(moved.alarms.is_empty(), "{:?}", moved.alarms);

    let run = begin(&scenario).await;
    let mut verdict = clean(&scenario, &run, &["Things"]);
    (verdict.outcome, verdict.tables[0].outcome) = (Outcome::Differs, Outcome::Differs);
    verdict.tables[0].coverage = Coverage::Sample { percent: 5.0 };
    verdict.tables[0].findings = [(FindingKind::Missing, 2)].into();
    conclude(&scenario.target, monolith(&scenario), &run, &mut verdict, &author()).await.unwrap();
    let differs = shown(&scenario, true).await;
    assert_eq!(differs.next, reconcile);
    assert!(differs.alarms[0].ends_with("found differences in Things"), "{:?}", differs.alarms);
    let last = serde_json::to_value(differs.evidence.unwrap().last.unwrap()).unwrap();
    assert_eq!(last["findings"], serde_json::json!({ "missing": 2 }));
    assert_eq!(last["coverage"], serde_json::json!([{ "kind": "sample", "percent": 5.0 }]));
    assert_eq!(last["differing"], serde_json::json!(["Things"]));
    running.stop().await;

    mirror(&scenario, &Run { retry: vec![TableName::new("public", "Things")], ..Run::new(&[]) }).await;
    assert_eq!(shown(&scenario, true).await.alarms, Vec::<String>::new(), "its rows were copied anew");

    prove(&scenario).await;
    assert_eq!(shown(&scenario, true).await.evidence.unwrap().stands, Some(true));
    scenario
        .write("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
        .await;
    let lost = shown(&scenario, true).await;
    let proof = lost.evidence.unwrap();
    assert_eq!((lost.phase, proof.stands), (Phase::Gap, Some(false)), "no mirror has written the gap down");
    assert_eq!(proof.lacks, ["the stream lost its slot, and changes with it"]);
}
