//! Rows that are wrong because of each other.

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::Split;

#[tokio::test(flavor = "multi_thread")]
async fn unique_values_that_hundreds_of_rows_hold_from_each_other_are_repaired() {
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
    corrupt(
        &service,
        "UPDATE coded SET code = -code WHERE id BETWEEN 50 AND 349; \
         UPDATE coded SET code = CASE id WHEN 349 THEN 50 ELSE id + 1 END WHERE id BETWEEN 50 AND 349",
    )
    .await;
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    assert!(repaired.stderr.contains("300 of 300 rows repaired"), "{}", repaired.page());
    Run::of(&split, &["--strict"]).assert_clean();
    drop(mirror);
}
