//! The way back: what an opened service writes arrives in the monolith's old tables, and nothing goes round in circles.

mod anew;
mod crash;
mod inside;
mod loops;
mod partitions;
mod roles;
pub mod stage;
mod tripwire;
mod turns;
mod usage;
mod way;
mod writers;

use stage::{Stage, Way};

use crate::support::split::Split;

/// One of everything that the way back must carry.
const WRITES: &[&str] = &[
    "INSERT INTO orders (id, region, note, big) VALUES (9001, 'EU', 'made by the service', repeat('x', 9000))",
    "UPDATE orders SET note = 'changed' WHERE id <= 40",
    "UPDATE orders SET big = NULL WHERE id = 41",
    "DELETE FROM orders WHERE id BETWEEN 50 AND 60",
    "UPDATE orders SET id = id + 10000 WHERE id BETWEEN 71 AND 74",
    "BEGIN; INSERT INTO happenings VALUES (1000, '2024-12-31', 'old'), (1001, '2025-01-05', 'new'); \
         UPDATE happenings SET day = '2025-03-01' WHERE id = 1000; DELETE FROM happenings WHERE id = 7; COMMIT",
    "UPDATE pairs SET b = b || '!', v = v + 100000 WHERE a <= 30",
    "BEGIN; SET CONSTRAINTS ALL DEFERRED; DELETE FROM pairs WHERE a = 100; \
         INSERT INTO pairs VALUES (100, 'b100', 100); COMMIT",
    "INSERT INTO pairs SELECT i, 'many', i FROM generate_series(2001, 2600) i",
];

#[tokio::test(flavor = "multi_thread")]
async fn what_an_opened_service_writes_arrives_in_the_monoliths_old_tables() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    let audited = stage.count(&stage.monolith, "SELECT count(*) FROM audit").await;
    stage.flip(2).await;
    for sql in WRITES {
        stage.on_service(sql).await;
    }
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    let legacy =
        r#"SELECT string_agg("Legacy", ',' ORDER BY "Id") FROM "Orders" WHERE "Id" IN (1, 9001, 10071)"#;
    let legacy: String = stage.monolith.query_one(legacy, &[]).await.unwrap().get(0);
    assert_eq!(legacy, "legacy 1,fresh,legacy 71", "kept on an update, defaulted on an insert");
    let others = r#"SELECT count(*) FROM "Orders" WHERE "Region" = 'US'"#;
    assert_eq!(stage.count(&stage.monolith, others).await, 100, "rows of nobody's slice stay");
    let again = stage.count(&stage.monolith, "SELECT count(*) FROM audit").await;
    assert_eq!(again, audited, "the monolith's own triggers don't fire");
    stage.on_service("TRUNCATE orders; TRUNCATE happenings").await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    assert_eq!(stage.count(&stage.monolith, others).await, 100, "nor does TRUNCATE take them");
    stage.watched(Way::Forward).await;
    assert_eq!(stage.alarms().await, Vec::<String>::new(), "what came back is the mirror's own");
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_its_verb_armed_goes_there_and_back_under_the_mirror_that_runs() {
    let (split, monolith, service) = Split::launch(stage::TABLES, stage::SCHEMA).await;
    split.provision();
    let stage = Stage { split, monolith, service };
    let mirror = stage.split.mirror(None);
    mirror.caught_up(&stage.monolith, &stage.service).await;
    let armed = stage.split.run("arm", &[]);
    assert_eq!(armed.exit, Some(0), "{}", armed.page());
    stage.watched(Way::Reverse).await;
    stage.flip(2).await;
    stage.on_service("UPDATE orders SET note = 'armed by its verb'; DELETE FROM pairs WHERE a < 10").await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    stage.flip_back(3).await;
    stage.on_monolith("UPDATE pairs SET v = -v WHERE a = 20").await;
    stage.arrived(Way::Forward).await;
    stage.assert_equal().await;
    assert_eq!(stage.alarms().await, Vec::<String>::new());
    mirror.stop();
}
