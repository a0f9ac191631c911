//! Whoever writes on the fenced side is found, and nobody else is.

use serde_json::json;
use strangler::failpoint::hooks::{Hooks, Mutant};

use super::inside::Inside;
use super::stage::{self, Stage, Way, holds};
use crate::ledger::told::told;
use crate::support::wait::{SOON, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_write_on_the_fenced_side_is_an_alarm_with_its_table_and_key() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    // Everybody may send a message like the mirror's tag, and nobody else knows how it ends.
    stage
        .on_monolith(
            "BEGIN; SELECT pg_logical_emit_message(true, 'strangler', 'one:1'), \
                 pg_logical_emit_message(true, 'strangler', 'one:1:' || gen_random_uuid()); \
             UPDATE \"Orders\" SET \"Note\" = 'forged' WHERE \"Id\" = 1; COMMIT",
        )
        .await;
    stage.arrived(Way::Forward).await;
    assert!(holds(&stage.service, "SELECT note = 'forged' FROM orders WHERE id = 1").await);
    stage.flip(2).await;
    stage.on_service("UPDATE orders SET note = 'the service may' WHERE id = 1").await;
    stage.arrived(Way::Reverse).await;
    stage
        .write_stray(
            "\"Orders\"",
            "SELECT pg_logical_emit_message(true, 'strangler', 'one:2:'); \
             UPDATE \"Orders\" SET \"Note\" = 'stray' WHERE \"Id\" = 7; DELETE FROM \"Orders\" WHERE \"Id\" = 8; \
             INSERT INTO \"Orders\" (\"Id\", \"Region\") VALUES (8000, 'EU'), (8001, 'US'); \
             UPDATE \"Orders\" SET \"Note\" = 'not the slice''s' WHERE \"Id\" = 5",
        )
        .await;
    stage.write_stray("pairs", "TRUNCATE pairs").await;
    stage.watched(Way::Forward).await;
    let expected = [
        "forward Orders update {7}",
        "forward Orders delete {8}",
        "forward Orders insert {8000}",
        "forward pairs truncate -",
    ];
    let told = told(&stage.service, "alarm").await;
    let brief: Vec<_> =
        told.iter().map(|one| (&one.body["side"], &one.body["rows"], &one.body["tables"])).collect();
    let (monolith, orders, pairs) = (json!("monolith"), json!(["Orders"]), json!(["pairs"]));
    assert_eq!(
        brief,
        [(&monolith, &json!(3), &orders), (&monolith, &json!(1), &pairs)],
        "one of each transaction"
    );
    assert_eq!(stage.alarms().await, expected, "rows that the filter leaves to others are not the slice's");
    let status = stage.split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let slice = &document["slices"][0];
    let stray = &slice["stray_writes"];
    let told =
        (&stray["side"], &stray["table"], &stray["operation"], &stray["count"], &stray["transactions"]);
    assert_eq!(serde_json::json!(told), serde_json::json!(["monolith", "pairs", "truncate", 4, 2]));
    assert_eq!(slice["next"], "strangler reconcile plan.yaml --slice one", "{slice:#}");
    assert_eq!(status.exit, Some(1), "{}", status.page());
    let text = stage.split.run("status", &[]);
    assert!(
        text.stdout.contains("somebody wrote on the fenced monolith: 4 rows in 2 transactions"),
        "{}",
        text.stdout
    );
    assert!(!text.stdout.contains("8000"), "keys are not shown: {}", text.stdout);
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_write_on_the_service_before_a_flip_is_an_alarm_of_the_way_back() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    stage
        .on_service(
            "BEGIN; ALTER TABLE happenings DISABLE TRIGGER USER; \
             UPDATE happenings SET value = 'stray' WHERE id = 3; ALTER TABLE happenings ENABLE TRIGGER USER; \
             ALTER TABLE happenings ENABLE ALWAYS TRIGGER aa_strangler_gate; COMMIT",
        )
        .await;
    stage.on_monolith("UPDATE events SET v = 'the monolith may' WHERE id = 4").await;
    stage.watched(Way::Reverse).await;
    assert_eq!(stage.alarms().await, ["reverse events update {3,2024-12-04}"]);
    stage.arrived(Way::Forward).await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_writes_of_a_side_that_was_just_opened_are_no_alarm_and_arrive() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    stage.fence_monolith(2).await;
    stage.open_service(2).await;
    // The stream back is still a tripwire when these come.
    stage.on_service("UPDATE orders SET note = 'first' WHERE id = 1; DELETE FROM pairs WHERE a = 9").await;
    let waits = "SELECT bool_or(phase = 'turning') FROM strangler.mirror_process WHERE dir = 'reverse'";
    until("the way back waits for its turn", SOON, async || {
        holds(&stage.monolith, waits).await.then_some(())
    })
    .await;
    stage.turn_reverse(2).await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    assert_eq!(stage.alarms().await, Vec::<String>::new());
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tripwire_that_passed_the_first_write_would_have_lost_it() {
    for (mutants, lost) in [(&[][..], false), (&[Mutant::TripwireAdvances][..], true)] {
        let stage = Stage::armed().await;
        let inside = Inside::start(&stage, Hooks::with(mutants).eager()).await;
        stage.fence_monolith(2).await;
        stage.open_service(2).await;
        stage.on_service("UPDATE orders SET note = 'the first' WHERE id = 2").await;
        let first = stage::position(&stage.service).await;
        stage.on_service("SELECT pg_logical_emit_message(true, 'strangler.marker', 'one:later')").await;
        let seen = if lost {
            format!("SELECT applied_lsn >= '{first}' FROM strangler.stream WHERE dir = 'reverse'")
        } else {
            "SELECT bool_or(phase = 'turning') FROM strangler.mirror_process WHERE dir = 'reverse'".to_owned()
        };
        until("the tripwire has come to it", SOON, async || {
            holds(&stage.monolith, &seen).await.then_some(())
        })
        .await;
        stage.turn_reverse(2).await;
        stage.arrived(Way::Reverse).await;
        let note = r#"SELECT "Note" = 'the first' FROM "Orders" WHERE "Id" = 2"#;
        assert_eq!(holds(&stage.monolith, note).await, !lost);
        assert_eq!(stage.alarms().await, Vec::<String>::new());
        assert_eq!(inside.stop().await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_write_just_before_the_opening_is_told_and_not_carried() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    stage.fence_monolith(2).await;
    stage
        .on_service(
            "BEGIN; ALTER TABLE happenings DISABLE TRIGGER USER; \
             UPDATE happenings SET value = 'stray' WHERE id = 3; ALTER TABLE happenings ENABLE TRIGGER USER; \
             ALTER TABLE happenings ENABLE ALWAYS TRIGGER aa_strangler_gate; COMMIT",
        )
        .await;
    stage.open_service(2).await;
    stage.on_service("UPDATE happenings SET value = 'the first' WHERE id = 5").await;
    stage.turn_reverse(2).await;
    stage.arrived(Way::Reverse).await;
    assert_eq!(stage.alarms().await, ["reverse events update {3,2024-12-04}"]);
    let values = "SELECT string_agg(v, ',' ORDER BY id) FROM events WHERE id IN (3, 5)";
    let values: String = stage.monolith.query_one(values, &[]).await.unwrap().get(0);
    assert_eq!(values, "v 3,the first");
    mirror.stop();
}
