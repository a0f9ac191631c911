//! Who still uses the old tables is watched while a service has the authority, and what the tool itself reads is nobody's use.

use serde_json::Value;

use super::stage::{Stage, Way, holds};
use crate::support::cluster::{self, Pair, connect};
use crate::support::split::Mirror;
use crate::support::wait::{SOON, until};

/// What the session has read of before is handed to the server's counters.
const HAND_OVER: &str = "DO $$ BEGIN PERFORM pg_stat_force_next_flush(); \
    EXCEPTION WHEN undefined_function THEN PERFORM pg_sleep(0.6); END $$; SELECT 1";

/// The watch began long ago.
const LONG_AGO: &str = "UPDATE strangler.table_use SET since = now() - interval '8 days'";

fn report(stage: &Stage, exit: i32) -> Value {
    let ended = stage.split.run("retire", &["--report", "--format", "json"]);
    assert_eq!(ended.exit, Some(exit), "{}", ended.page());
    serde_json::from_str(&ended.stdout).unwrap()
}

fn codes(report: &Value) -> Vec<(String, String)> {
    let problems = report["slices"][0]["problems"].as_array().unwrap();
    let text = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
    problems.iter().map(|one| (text(one, "object"), text(one, "code"))).collect()
}

fn of<'a>(report: &'a Value, table: &str) -> &'a Value {
    let tables = report["slices"][0]["tables"].as_array().unwrap();
    tables.iter().find(|one| one["table"] == table).unwrap()
}

/// Waits until the mirror has looked at the counters of all tables twice from now on.
async fn counted(stage: &Stage) {
    stage.on_monolith(HAND_OVER).await;
    for _ in 0..2 {
        let now: String = stage.monolith.query_one("SELECT now()::text", &[]).await.unwrap().get(0);
        let looked =
            format!("SELECT count(*) = 3 AND bool_and(sampled_at > '{now}') FROM strangler.table_use");
        until("the mirror counts", SOON, async || holds(&stage.monolith, &looked).await.then_some(())).await;
    }
}

/// Authority has moved, and the mirror has begun to watch.
async fn watched() -> (Stage, Mirror) {
    let options = cluster::options().set("shared_preload_libraries", "pg_stat_statements");
    let pair = Pair::of(cluster::launch_with(options), cluster::launch(), "").await;
    let stage = Stage::armed_between(pair).await;
    let mirror = stage.mirror().await;
    assert!(codes(&report(&stage, 1)).contains(&("slice one".into(), "not-flipped".into())));
    stage.flip(2).await;
    stage.arrived(Way::Reverse).await;
    counted(&stage).await;
    (stage, mirror)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_applies_and_compares_is_nobodys_use_and_a_reader_is_named_with_what_he_reads() {
    let (stage, mirror) = watched().await;
    stage.on_monolith("GRANT pg_read_all_stats TO strangler_apply").await;
    let quiet = report(&stage, 1);
    assert!(codes(&quiet).contains(&("pairs".into(), "quiet-period".into())), "{quiet:#}");
    stage.on_monolith(LONG_AGO).await;
    // All kinds of applying, a repair among them, and a comparison that looks rows up.
    for sql in super::WRITES {
        stage.on_service(sql).await;
    }
    stage.on_service("UPDATE pairs SET v = v + 5000 WHERE a < 20; DELETE FROM happenings WHERE id < 9").await;
    stage.arrived(Way::Reverse).await;
    let compared = stage.split.run("reconcile", &["--strict"]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    // What is on its way while the mirror applies without pause is nobody's either, whenever it looks.
    for round in 0..60 {
        stage
            .on_service(&format!("UPDATE pairs SET v = v + {} WHERE a > 90 AND a < 130", 10_000 + round))
            .await;
    }
    counted(&stage).await;
    stage.arrived(Way::Reverse).await;
    counted(&stage).await;
    let own = "SELECT bool_and(own_scans > 0) FROM strangler.table_use";
    assert!(holds(&stage.monolith, own).await, "applying and comparing were counted as ours");
    let unused = report(&stage, 0);
    for table in ["Orders", "events", "pairs"] {
        assert_eq!(of(&unused, table)["scans_by_others"], 0, "{unused:#}");
    }

    let reader = connect(&stage.split.pair.monolith_url()).await;
    reader.batch_execute("SET application_name = 'nightly report'").await.unwrap();
    reader.batch_execute("BEGIN; SELECT count(*) FROM pairs WHERE b <> 'secret'").await.unwrap();
    let met = "SELECT count(*) = 1 FROM strangler.table_user WHERE application = 'nightly report' AND source_table = 'pairs'";
    until("the reader is met", SOON, async || holds(&stage.monolith, met).await.then_some(())).await;
    reader.batch_execute("COMMIT; SELECT * FROM events WHERE id = 3").await.unwrap();
    reader.batch_execute(HAND_OVER).await.unwrap();
    let read = "SELECT bool_and(scans_by_others > 0) FROM strangler.table_use WHERE source_table IN ('pairs', 'events')";
    until("reading is counted", SOON, async || holds(&stage.monolith, read).await.then_some(())).await;
    let used = report(&stage, 1);
    assert_eq!(of(&used, "pairs")["scans_by_others"], 1, "{used:#}");
    assert_eq!(of(&used, "Orders")["scans_by_others"], 0, "{used:#}");
    // A sample is read without a scan.
    reader.batch_execute("SELECT count(*) FROM \"Orders\" TABLESAMPLE SYSTEM (100)").await.unwrap();
    reader.batch_execute(HAND_OVER).await.unwrap();
    let sampled = "SELECT rows_by_others >= 400 AND scans_by_others = 0 FROM strangler.table_use WHERE source_table = 'Orders'";
    until("a sample is counted", SOON, async || holds(&stage.monolith, sampled).await.then_some(())).await;
    let session = &of(&used, "pairs")["met"][0];
    assert_eq!((&session["how"], &session["application"]), (&"session".into(), &"nightly report".into()));
    assert!(session["statement"].as_str().unwrap().contains("FROM pairs"), "{session:#}");
    assert!(!used.to_string().contains("secret"), "constants are somebody's secret: {used:#}");
    assert!(codes(&used).contains(&("pairs".into(), "still-used".into())), "{used:#}");
    assert!(codes(&used).contains(&("events".into(), "still-used".into())), "{used:#}");
    let text = stage.split.run("retire", &["--report"]);
    assert!(text.stdout.contains("nightly report"), "{}", text.page());
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn statements_that_name_an_old_table_are_shown_once_they_have_run_since_the_watch_began() {
    let (stage, mirror) = watched().await;
    mirror.stop();
    assert!(codes(&report(&stage, 1)).contains(&("monolith".into(), "stats-hidden".into())));
    stage.on_monolith("GRANT pg_read_all_stats TO strangler_apply").await;
    assert!(codes(&report(&stage, 1)).contains(&("monolith".into(), "no-statements".into())));
    stage
        .on_monolith(
            "CREATE EXTENSION pg_stat_statements; CREATE ROLE teller; \
             GRANT SELECT ON ALL TABLES IN SCHEMA public TO teller",
        )
        .await;
    let reader = connect(&stage.split.pair.monolith_url()).await;
    reader.batch_execute("SET ROLE teller").await.unwrap();
    // Before the watch has settled: it was there before.
    reader.batch_execute("SELECT a FROM pairs WHERE v = 17").await.unwrap();
    let noted = "SELECT count(*) = 1 FROM strangler.table_user WHERE how = 'statement' AND last_at IS NULL";
    let mirror = stage.mirror().await;
    until("the statement is noted", SOON, async || holds(&stage.monolith, noted).await.then_some(())).await;
    assert_eq!(of(&report(&stage, 1), "pairs")["met"], serde_json::json!([]));
    mirror.stop();
    stage.on_monolith(LONG_AGO).await;
    reader.batch_execute("SELECT a FROM pairs WHERE v = 18").await.unwrap();
    reader.batch_execute("SELECT max(day) FROM public.events WHERE v = 'secret'").await.unwrap();
    let mirror = stage.mirror().await;
    let ran = "SELECT count(*) = 2 FROM strangler.table_user WHERE how = 'statement' AND last_at IS NOT NULL";
    until("both have run", SOON, async || holds(&stage.monolith, ran).await.then_some(())).await;
    reader.batch_execute(HAND_OVER).await.unwrap();
    let read = "SELECT count(*) = 2 FROM strangler.table_use WHERE scans_by_others > 0";
    until("their reading is counted", SOON, async || holds(&stage.monolith, read).await.then_some(())).await;
    let met = report(&stage, 1);
    let statement = &of(&met, "pairs")["met"][0];
    assert_eq!((&statement["role"], &statement["times"]), (&"teller".into(), &2.into()), "{met:#}");
    assert_eq!(of(&met, "events")["met"][0]["statement"], "SELECT max(day) FROM public.events WHERE v = $1");
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_an_old_table_and_writes_past_its_gate_stand_in_the_way() {
    let (stage, mirror) = watched().await;
    stage.on_monolith(LONG_AGO).await;
    stage
        .on_monolith(
            "CREATE TABLE stays (a int, b text, FOREIGN KEY (a, b) REFERENCES pairs NOT VALID); \
             CREATE VIEW small AS SELECT a, v FROM pairs WHERE a < 7; \
             CREATE FUNCTION peek() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM events'; \
             CREATE PUBLICATION feed FOR TABLE pairs; CREATE VIEW leaf AS SELECT v FROM events_old; \
             CREATE ROLE quiet; ALTER ROLE quiet SET track_counts = 'n'",
        )
        .await;
    let found = report(&stage, 1);
    for expected in [
        ("small", "retire-view"),
        ("leaf", "retire-view"),
        ("monolith", "not-counted"),
        ("peek", "retire-function"),
        ("feed", "retire-publication"),
        ("stays_a_b_fkey on stays", "retire-foreign-key"),
    ] {
        assert!(codes(&found).contains(&(expected.0.into(), expected.1.into())), "{expected:?}: {found:#}");
    }
    let definition = found["slices"][0]["problems"].to_string();
    assert!(definition.contains("a < 7"), "the view's definition is shown: {definition}");
    stage.write_stray("pairs", "UPDATE pairs SET v = v + 70000 WHERE a = 9").await;
    stage.watched(Way::Forward).await;
    let written = report(&stage, 1);
    assert_eq!(of(&written, "pairs")["written_past_gate"], 1, "{written:#}");
    assert!(codes(&written).contains(&("pairs".into(), "written-past-gate".into())), "{written:#}");
    mirror.stop();
    stage.on_monolith("UPDATE strangler.table_use SET sampled_at = now() - interval '2 minutes'").await;
    assert!(codes(&report(&stage, 1)).contains(&("events".into(), "not-watched".into())));
}
