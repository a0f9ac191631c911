//! A way back that can't go on is made anew by `arm`, whoever has the authority, and nothing of the old one holds it up.

use std::time::Instant;

use super::stage::{self, Stage, Way, holds};
use crate::ledger::told::told;
use crate::support::binary::flat;
use crate::support::soak;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{LONG, SOON, until, until_blocking};

/// Everything live, armed by its verb, under a mirror that runs both streams.
async fn armed_by_its_verb() -> (Stage, Mirror) {
    let (split, monolith, service) = Split::launch(stage::TABLES, stage::SCHEMA).await;
    split.provision();
    let stage = Stage { split, monolith, service };
    let mirror = stage.split.mirror(None);
    mirror.caught_up(&stage.monolith, &stage.service).await;
    succeed(&stage, "arm", &[]);
    taken_up(&stage, &mirror).await;
    (stage, mirror)
}

/// Waits until the mirror runs the way back that `arm` has just made. Its position says nothing: a new slot begins where an
/// idle log ends.
async fn taken_up(stage: &Stage, mirror: &Mirror) {
    let runs = "SELECT coalesce(bool_and(stopped_at IS NULL), false) FROM strangler.mirror_process WHERE dir = 'reverse'";
    let noted = "SELECT coalesce(bool_and(published_as IS NOT NULL), false) FROM strangler.mirror_table";
    let begun = Instant::now();
    until("the mirror takes up the way back", LONG, async || {
        assert!(begun.elapsed() < SOON, "the way back is not taken up: {}", mirror.log());
        let there = holds(&stage.monolith, runs).await && holds(&stage.monolith, noted).await;
        there.then_some(())
    })
    .await;
}

fn succeed(stage: &Stage, verb: &str, arguments: &[&str]) -> String {
    let ended = stage.split.run(verb, arguments);
    assert_eq!(ended.exit, Some(0), "{verb}: {}", ended.page());
    ended.stdout + &ended.stderr
}

/// Waits until the way back has ended by itself, and returns what `status` says then.
async fn stands_still(stage: &Stage) -> serde_json::Value {
    let stopped =
        "SELECT bool_or(stopped_at IS NOT NULL) FROM strangler.mirror_process WHERE dir = 'reverse'";
    until("the way back stops", SOON, async || holds(&stage.monolith, stopped).await.then_some(())).await;
    let status = stage.split.run("status", &["--format", "json"]);
    assert_eq!(status.exit, Some(1), "{}", status.page());
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    document["slices"][0].clone()
}

const LEFT: &str = "ALTER PUBLICATION strangler_split_one DROP TABLE pairs";
const CAME_BACK: &str = "ALTER PUBLICATION strangler_split_one ADD TABLE pairs";

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_is_disarmed_and_armed_by_its_verbs_has_a_way_back_that_carries() {
    let (stage, mirror) = armed_by_its_verb().await;
    succeed(&stage, "disarm", &[]);
    for table in ["stream", "mirror_table", "piece", "touched", "touched_floor"] {
        let left = format!("SELECT count(*) FROM strangler.{table}");
        assert_eq!(stage.count(&stage.monolith, &left).await, 0, "disarm forgets {table}");
    }
    succeed(&stage, "arm", &[]);
    taken_up(&stage, &mirror).await;
    stage.watched(Way::Reverse).await;
    stage.carries_back(mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_that_left_the_services_publication_is_an_alarm_whose_command_makes_the_way_back_anew() {
    let (stage, mirror) = armed_by_its_verb().await;
    stage.on_service(&format!("{LEFT}; {CAME_BACK}")).await;
    let slice = stands_still(&stage).await;
    let told = slice["alarms"].to_string();
    assert!(told.contains("the way back stands still: the table pairs left the publication"), "{slice:#}");
    let next = slice["next"].as_str().unwrap();
    assert!(next.starts_with("strangler arm plan.yaml --slice one"), "{next}");
    let said = succeed(&stage, "arm", &["--slice", "one"]);
    assert!(said.contains("pairs left its publication and came back"), "{said}");
    taken_up(&stage, &mirror).await;
    stage.watched(Way::Reverse).await;
    let again = succeed(&stage, "arm", &[]);
    assert!(again.contains("nothing was missing"), "{again}");
    let status = stage.split.run("status", &[]);
    assert!(!status.stdout.contains("stands still"), "{}", status.page());
    stage.carries_back(mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn while_the_service_has_the_authority_a_way_back_is_made_anew_and_a_comparison_brings_what_it_missed()
{
    let (stage, mirror) = armed_by_its_verb().await;
    succeed(&stage, "reconcile", &[]);
    stage.flip(2).await;
    stage.arrived(Way::Reverse).await;
    stage.on_service(&format!("{LEFT}; UPDATE pairs SET v = -v WHERE a = 2; {CAME_BACK}")).await;
    let slice = stands_still(&stage).await;
    let next = slice["next"].as_str().unwrap();
    assert!(next.starts_with("strangler arm plan.yaml --slice one"), "{next}");
    let said = succeed(&stage, "arm", &["--slice", "one"]);
    assert!(said.contains("meanwhile did not come back"), "{said}");
    taken_up(&stage, &mirror).await;
    stage.on_service("UPDATE pairs SET v = -v WHERE a = 3").await;
    stage.arrived(Way::Reverse).await;
    // No reason excuses what did not come back, until a comparison of everything has found that all is there.
    let accepted = ["--back", "--accept-no-evidence", "a reason"];
    let refused = stage.split.run("flip", &accepted);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    assert!(refused.stderr.contains("(writes-not-back)"), "{}", refused.page());
    let missing = "may be missing on the monolith";
    let status = stage.split.run("status", &[]);
    assert!(status.exit == Some(1) && flat(&status.stdout).contains(missing), "{}", status.page());
    assert!(
        status.stdout.contains("strangler reconcile plan.yaml --slice one --repair"),
        "{}",
        status.page()
    );
    let repaired = stage.split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    stage.assert_equal().await;
    succeed(&stage, "reconcile", &[]);
    let status = stage.split.run("status", &[]);
    assert!(!flat(&status.stdout).contains(missing), "{}", status.page());
    let rehearsed = stage.split.run("flip", &[&accepted[..], &["--rehearse", "1"]].concat());
    assert!(!rehearsed.page().contains("writes-not-back"), "{}", rehearsed.page());
    // The publication's end stops the stream for good; `arm` makes both.
    stage.on_service("DROP PUBLICATION strangler_split_one; UPDATE pairs SET v = -v WHERE a = 4").await;
    let slice = stands_still(&stage).await;
    assert!(slice["next"].as_str().unwrap().starts_with("strangler arm plan.yaml"), "{slice:#}");
    succeed(&stage, "arm", &["--slice", "one"]);
    taken_up(&stage, &mirror).await;
    stage.arrived(Way::Reverse).await;
    let repaired = stage.split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    stage.assert_equal().await;
    goes_on_past_a_key_that_was_none(&stage, &mirror).await;
    stage.flip_back(3).await;
    stage.on_monolith("UPDATE pairs SET v = -v WHERE a = 5").await;
    stage.arrived(Way::Forward).await;
    stage.assert_equal().await;
    mirror.stop();
}

/// A row without a key stays in the stream when it is long gone.
async fn goes_on_past_a_key_that_was_none(stage: &Stage, mirror: &Mirror) {
    stage
        .on_service(
            "ALTER TABLE pairs DROP CONSTRAINT pairs_pkey; ALTER TABLE pairs ALTER a DROP NOT NULL, REPLICA IDENTITY FULL;
             INSERT INTO pairs (b, v) VALUES ('x', 0); DELETE FROM pairs WHERE a IS NULL;
             ALTER TABLE pairs ADD PRIMARY KEY (a, b), REPLICA IDENTITY DEFAULT; UPDATE pairs SET v = -v WHERE a = 6",
        )
        .await;
    let slice = stands_still(stage).await;
    let told = slice["alarms"].to_string();
    assert!(told.contains("carries no value for the key column a: the column held a null"), "{slice:#}");
    let next = slice["next"].as_str().unwrap();
    assert!(
        next.contains("NOT NULL again in the service; then strangler arm plan.yaml --slice one"),
        "{next}"
    );
    succeed(stage, "arm", &["--slice", "one"]);
    taken_up(stage, mirror).await;
    let repaired = stage.split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    stage.assert_equal().await;
}

const FORWARD_SLOT_GONE: &str = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE active; \
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn the_watch_over_a_closed_monolith_that_lost_its_slot_is_begun_anew_and_the_way_back_goes_on_meanwhile()
 {
    let (stage, mirror) = armed_by_its_verb().await;
    stage.flip(2).await;
    stage.arrived(Way::Reverse).await;
    succeed(&stage, "reconcile", &[]);
    mirror.kill();
    let mirror = stage.split.mirror_with(None, &["--rebuild"]);
    stage.watched(Way::Forward).await;
    assert!(mirror.log().contains("--rebuild copies nothing"), "{}", mirror.log());
    stage.on_monolith(FORWARD_SLOT_GONE).await;
    let gap = "SELECT bool_or(state = 'gap') FROM strangler.stream WHERE dir = 'forward'";
    until("the gap is noted", SOON, async || holds(&stage.service, gap).await.then_some(())).await;
    // What the service writes comes home all the same, under this mirror and under the next.
    stage.on_service("UPDATE pairs SET v = -v WHERE a = 6").await;
    stage.arrived(Way::Reverse).await;
    mirror.kill();
    let mirror = stage.split.mirror(None);
    stage.on_service("UPDATE pairs SET v = -v WHERE a = 7").await;
    stage.arrived(Way::Reverse).await;
    let status = stage.split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let slice = &document["slices"][0];
    assert!(slice["alarms"].to_string().contains("nobody watches the closed monolith"), "{slice:#}");
    assert_eq!(slice["next"], "strangler mirror plan.yaml --slice one --rebuild", "{slice:#}");
    mirror.kill();
    // One of the same name that somebody made is as little use as none.
    let row = "SELECT slot FROM strangler.stream WHERE dir = 'forward'";
    let slot: String = stage.service.query_one(row, &[]).await.unwrap().get(0);
    stage.on_monolith(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    for point in ["rewatch-slot-dropped", "rewatch-recorded"] {
        let killed = stage.split.mirror_with(Some(point), &["--slice", "one", "--rebuild"]);
        until_blocking(point, SOON, || killed.exited());
    }
    let mirror = stage.split.mirror_with(None, &["--slice", "one", "--rebuild"]);
    stage.watched(Way::Forward).await;
    let status = stage.split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(document["slices"][0]["evidence"]["stands"], false, "{document:#}");
    let alarms = told(&stage.service, "alarm").await;
    assert!(alarms.iter().any(|one| one.body["alarm"] == "unwatched"), "the ledger tells of it");
    succeed(&stage, "reconcile", &[]);
    stage.assert_equal().await;
    stage.flip_back(3).await;
    stage.on_monolith("UPDATE pairs SET v = -v WHERE a = 8").await;
    stage.arrived(Way::Forward).await;
    stage.assert_equal().await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_way_back_that_is_taken_away_in_the_moment_of_its_start_is_taken_up_when_it_is_there_again() {
    let (stage, mirror) = armed_by_its_verb().await;
    for _ in 0..if soak() { 40 } else { 4 } {
        succeed(&stage, "disarm", &[]);
        succeed(&stage, "arm", &[]);
        succeed(&stage, "disarm", &[]);
        succeed(&stage, "arm", &[]);
        taken_up(&stage, &mirror).await;
    }
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_comes_to_the_service_stays_there_and_does_not_stop_the_way_back() {
    let (stage, mirror) = armed_by_its_verb().await;
    succeed(&stage, "reconcile", &[]);
    stage.flip(2).await;
    stage.on_service("ALTER TABLE pairs ADD COLUMN extra int DEFAULT 7; INSERT INTO pairs (a, b, v) VALUES (901, 'new', 901)").await;
    stage.arrived(Way::Reverse).await;
    let there = "SELECT count(*) FROM pairs WHERE a = 901";
    assert_eq!(stage.count(&stage.monolith, there).await, 1, "{}", mirror.log());
    stage.on_service("UPDATE pairs SET extra = 8, v = -v WHERE a = 901").await;
    stage.arrived(Way::Reverse).await;
    assert_eq!(stage.count(&stage.monolith, "SELECT count(*) FROM pairs WHERE v = -901").await, 1);
    mirror.stop();
    // Nobody reads it now, which is red as long as the service has the authority.
    let status = stage.split.run("status", &[]);
    assert_eq!(status.exit, Some(1), "{}", status.page());
    assert!(status.stdout.contains("nobody reads the way back"), "{}", status.page());
    assert!(status.stdout.contains("strangler mirror plan.yaml --slice one"), "{}", status.page());
}

/// What is written while the way back stands still is brought by a comparison, and no evidence of before stands.
async fn is_made_anew_over(sql: &str, words: &str, with_the_mirror: bool) {
    let (stage, mirror) = armed_by_its_verb().await;
    stage.flip(2).await;
    stage.arrived(Way::Reverse).await;
    succeed(&stage, "reconcile", &[]);
    if !with_the_mirror {
        mirror.stop();
    }
    stage.on_service(sql).await;
    let mirror = if with_the_mirror {
        mirror
    } else {
        let killed = stage.split.mirror(Some("fault-recorded"));
        until_blocking("fault-recorded", SOON, || killed.exited());
        stage.split.mirror(None)
    };
    let slice = stands_still(&stage).await;
    assert!(slice["alarms"].to_string().contains(words), "{slice:#}");
    assert!(slice["next"].as_str().unwrap().contains("strangler arm plan.yaml"), "{slice:#}");
    succeed(&stage, "arm", &["--slice", "one"]);
    let status = stage.split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(document["slices"][0]["evidence"]["stands"], false, "{document:#}");
    taken_up(&stage, &mirror).await;
    stage.arrived(Way::Reverse).await;
    let repaired = stage.split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    stage.assert_equal().await;
    mirror.stop();
}

const LEFT_OUT: &str = "ALTER PUBLICATION strangler_split_one SET (publish = 'insert');
    UPDATE pairs SET v = -v WHERE a = 4; DELETE FROM pairs WHERE a = 5;
    ALTER PUBLICATION strangler_split_one SET (publish = 'insert, update, delete, truncate')";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_publication_of_the_service_that_leaves_changes_out_for_a_moment_is_noticed_by_the_mirror_that_runs()
 {
    is_made_anew_over(LEFT_OUT, "somebody altered the publication", true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_publication_of_the_service_that_left_changes_out_while_no_mirror_ran_is_noticed_by_the_next() {
    is_made_anew_over(LEFT_OUT, "somebody altered the publication", false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_way_back_that_stopped_over_a_shape_that_is_gone_again_is_made_anew_by_the_command_that_it_names() {
    let renamed = "ALTER TABLE pairs RENAME v TO vv; INSERT INTO pairs (a, b, vv) VALUES (902, 'x', 902);
        ALTER TABLE pairs RENAME vv TO v";
    is_made_anew_over(renamed, "the way back stands still", true).await;
}
