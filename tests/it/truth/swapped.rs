//! Rows that are wrong because of each other.

use tokio_postgres::Client;

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until};

/// A slice whose table has a column of unique values, and is equal on both sides.
async fn coded(rows: u32) -> (Split, Mirror, Client, Client) {
    let setup = "CREATE ROLE strangler_apply LOGIN;
        CREATE TABLE coded (id int PRIMARY KEY, code int NOT NULL UNIQUE, doc xml);
        INSERT INTO coded SELECT i, i, '<?xml version=\"1.0\" encoding=\"UTF-8\"?><order/>' FROM generate_series(1, 500) i;
        CREATE TABLE beside (id int PRIMARY KEY, v int); INSERT INTO beside VALUES (1, 0); ANALYZE";
    let setup = setup.replace("(1, 500)", &format!("(1, {rows})"));
    let (split, monolith, service) = Split::launch("{ coded: {}, beside: {} }", &setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let last =
        "INSERT INTO coded SELECT max(id) + 1, max(id) + 1, '<?xml version=\"1.0\"?><order/>' FROM coded";
    monolith.batch_execute(last).await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &["--strict"]).assert_clean();
    (split, mirror, monolith, service)
}

/// Of 300 rows each has the value of the next one, and the last one that of the first.
const SWAPPED: &str = "UPDATE coded SET code = -code WHERE id BETWEEN 50 AND 349; \
    UPDATE coded SET code = CASE id WHEN 349 THEN 50 ELSE id + 1 END WHERE id BETWEEN 50 AND 349";

#[tokio::test(flavor = "multi_thread")]
async fn unique_values_that_hundreds_of_rows_hold_from_each_other_are_repaired() {
    let (split, mirror, _, service) = coded(500).await;
    corrupt(&service, SWAPPED).await;
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}\nthe mirror: {}", repaired.page(), mirror.log());
    assert!(repaired.stderr.contains("300 of 300 rows repaired"), "{}", repaired.page());
    Run::of(&split, &["--strict"]).assert_clean();
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_chain_of_unique_values_whose_end_is_refused_is_refused_without_a_pass_for_each_row() {
    let (split, mirror, _, service) = coded(500).await;
    corrupt(&service, SWAPPED).await;
    service
        .batch_execute("ALTER TABLE coded ADD CONSTRAINT not_here CHECK (id <> 50 OR code <> 50) NOT VALID")
        .await
        .unwrap();
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(1), "{}\nthe mirror: {}", repaired.page(), mirror.log());
    assert!(repaired.stderr.contains("0 of 300 rows repaired"), "{}", repaired.page());
    service.batch_execute("ALTER TABLE coded DROP CONSTRAINT not_here").await.unwrap();
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}\nthe mirror: {}", repaired.page(), mirror.log());
    Run::of(&split, &["--strict"]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_cycle_of_thousands_of_unique_values_is_repaired() {
    let (split, mirror, _, service) = coded(3_200).await;
    let swapped = "UPDATE coded SET code = -code WHERE id <= 3000; UPDATE coded SET code = CASE id WHEN 3000 THEN 1 ELSE id + 1 END \
        WHERE id <= 3000";
    corrupt(&service, swapped).await;
    let repaired = split.run("reconcile", &["--repair", "--list", "2"]);
    assert_eq!(repaired.exit, Some(0), "{}\nthe mirror: {}", repaired.page(), mirror.log());
    assert!(repaired.stderr.contains("3,000 of 3,000 rows repaired"), "{}", repaired.page());
    Run::of(&split, &["--strict"]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn the_stream_goes_on_while_thousands_of_rows_are_refused() {
    let (split, mirror, monolith, service) = coded(3_200).await;
    let wrong = "UPDATE coded SET code = code + 100000 WHERE id <= 3000";
    corrupt(&service, wrong).await;
    // Every second row is refused by itself.
    let refused = "ALTER TABLE coded ADD CONSTRAINT not_here CHECK (id % 2 = 0 OR code > 3000) NOT VALID";
    service.batch_execute(refused).await.unwrap();
    let repair = split.start("reconcile", &["--repair", "--list", "2"]);
    let open = "SELECT count(*) FILTER (WHERE state = 'requested'), count(*) FROM strangler.repair";
    until("rows are asked for", SOON, async || {
        (service.query_one(open, &[]).await.unwrap().get::<_, i64>(1) > 0).then_some(())
    })
    .await;
    monolith.batch_execute("UPDATE beside SET v = 1").await.unwrap();
    until("the stream brings what was written", SOON, async || {
        let brought = service.query_one("SELECT v FROM beside", &[]).await.unwrap();
        (brought.get::<_, i32>(0) == 1).then_some(())
    })
    .await;
    let waiting: i64 = service.query_one(open, &[]).await.unwrap().get(0);
    assert!(waiting > 0, "the repair was done before the stream went on");
    let ended = repair.ended();
    assert_eq!(ended.exit, Some(1), "{}\nthe mirror: {}", ended.page(), mirror.log());
    assert!(ended.stderr.contains("1,500 of 3,000 rows repaired, 1500 refused"), "{}", ended.page());
}
