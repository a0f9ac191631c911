//! A table of which the authority holds no row: the copy's rows may be the only good ones.

use super::never_clean::open;
use super::stage::corrupt;

#[tokio::test(flavor = "multi_thread")]
async fn the_only_rows_that_there_are_of_a_table_are_not_deleted_without_a_reason() {
    let (split, monolith, service, mirror) = open().await;
    monolith.batch_execute("DELETE FROM b").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let wrong = "INSERT INTO b SELECT i, i FROM generate_series(1, 50) i; UPDATE a SET v = -1 WHERE id = 7";
    corrupt(&service, wrong).await;
    let left = async |sql: &str| -> i64 { service.query_one(sql, &[]).await.unwrap().get(0) };
    let fact = "slice one: the monolith has the authority and holds no row of b at all, so a repair would delete 50 rows from the service";
    let dry = split.run("reconcile", &["--repair", "--dry-run"]);
    assert_eq!(dry.exit, Some(1), "{}", dry.page());
    let said = format!("{fact}; it is refused without --accept-no-rows REASON");
    assert!(dry.stderr.contains(&said) && dry.stderr.contains("would repair 50 rows of b"), "{}", dry.page());

    let refused = split.run("reconcile", &["--repair"]);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    let next = "strangler reconcile plan.yaml --slice one --repair --accept-no-rows REASON";
    for words in ["error[no-rows-on-authority]", fact, next] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.page());
    }
    assert!(refused.stdout.contains("extra"), "the report is there: {}", refused.page());
    assert_eq!(left("SELECT count(*) FROM b").await, 50);
    assert_eq!(left("SELECT count(*) FROM a WHERE v = -1").await, 1, "nor is anything else repaired");

    let unreasonable = split.run("reconcile", &["--repair", "--accept-no-rows", "  "]);
    assert_eq!(unreasonable.exit, Some(2), "{}", unreasonable.page());
    let repaired = split.run("reconcile", &["--repair", "--accept-no-rows", "the season is over"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    assert_eq!(left("SELECT count(*) FROM b").await + left("SELECT count(*) FROM a WHERE v = -1").await, 0);
    let ledger = split.run("ledger", &["--kind", "repair"]);
    let told = "50 rows of b repaired, of which the authority holds none; accepted: the season is over";
    assert!(ledger.stdout.contains(told), "{}", ledger.page());
    assert!(
        ledger.stdout.contains("1 row of a repaired  "),
        "a reason is about its table: {}",
        ledger.page()
    );
}
