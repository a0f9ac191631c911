//! Rows that are wrong because of each other.

use tokio_postgres::Client;

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::{Mirror, Split};

/// A slice whose table has a column of unique values, and is equal on both sides.
async fn coded() -> (Split, Mirror, Client) {
    let setup = "CREATE ROLE strangler_apply LOGIN;
        CREATE TABLE coded (id int PRIMARY KEY, code int NOT NULL UNIQUE, doc xml);
        INSERT INTO coded SELECT i, i, '<?xml version=\"1.0\" encoding=\"UTF-8\"?><order/>' FROM generate_series(1, 500) i;
        ANALYZE";
    let (split, monolith, service) = Split::launch("{ coded: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let last = "INSERT INTO coded SELECT 501, 501, '<?xml version=\"1.0\"?><order/>'";
    monolith.batch_execute(last).await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &["--strict"]).assert_clean();
    (split, mirror, service)
}

/// Of 300 rows each has the value of the next one, and the last one that of the first.
const SWAPPED: &str = "UPDATE coded SET code = -code WHERE id BETWEEN 50 AND 349; \
    UPDATE coded SET code = CASE id WHEN 349 THEN 50 ELSE id + 1 END WHERE id BETWEEN 50 AND 349";

#[tokio::test(flavor = "multi_thread")]
async fn unique_values_that_hundreds_of_rows_hold_from_each_other_are_repaired() {
    let (split, mirror, service) = coded().await;
    corrupt(&service, SWAPPED).await;
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}\nthe mirror: {}", repaired.page(), mirror.log());
    assert!(repaired.stderr.contains("300 of 300 rows repaired"), "{}", repaired.page());
    Run::of(&split, &["--strict"]).assert_clean();
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_unique_values_whose_end_is_refused_is_refused_without_a_pass_for_each_row() {
    let (split, mirror, service) = coded().await;
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
