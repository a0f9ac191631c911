//! A copy whose original is gone, was exchanged or was emptied beside the stream may be all there is, and stays.

use tokio_postgres::Client;

use super::{abandon, flat, refused, take_back, token};
use crate::support::cluster::connect;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 20) i;
    CREATE TABLE lines (id int PRIMARY KEY); INSERT INTO lines SELECT i FROM generate_series(1, 20) i;
    CREATE TABLE moves (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE moves_1 PARTITION OF moves FOR VALUES FROM (1) TO (100);
    CREATE TABLE moves_2 PARTITION OF moves FOR VALUES FROM (100) TO (200); INSERT INTO moves SELECT i FROM generate_series(1, 120) i";

async fn mirrored() -> (Split, Client, Client) {
    let (split, monolith, service) = Split::launch("{ orders: {}, lines: {}, moves: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    (split, monolith, service)
}

async fn count(service: &Client, table: &str) -> i64 {
    service.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

async fn is(client: &Client, claim: &str) -> bool {
    client.query_one(&format!("SELECT {claim}"), &[]).await.unwrap().get(0)
}

fn drops(page: &str, table: &str) -> bool {
    let name = format!("\"public\".\"{table}\"");
    page.lines().any(|line| line.starts_with("DROP TABLE") && line.contains(&name))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_copy_whose_original_is_gone_exchanged_or_emptied_stays_and_the_others_go() {
    let anew = "DROP TABLE orders; CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 20) i";
    let published = format!("{anew}; ALTER PUBLICATION strangler_split_one ADD TABLE orders");
    let gone = "from which it was copied, is not published";
    for (table, change, why) in [
        ("orders", "DROP TABLE orders", gone),
        ("orders", anew, gone),
        ("orders", published.as_str(), gone),
        ("orders", "TRUNCATE orders", "has none of the rows that are here"),
        ("orders", "DELETE FROM orders", "has none of the rows that are here"),
        ("orders", "TRUNCATE orders; INSERT INTO orders VALUES (1, 'v')", "20 rows are here where it has 1"),
        ("orders", "ALTER TABLE orders DROP COLUMN v", "column v of public.orders was dropped"),
        ("moves", "DROP TABLE moves_2", "its partition public.moves_2 was detached or dropped"),
    ] {
        let (split, monolith, service) = mirrored().await;
        monolith.batch_execute(change).await.unwrap();
        let before = count(&service, table).await;
        let preview = abandon(&split, "one", &[]);
        assert!(!drops(&preview.stdout, table), "{change}: {}", preview.page());
        assert!(drops(&preview.stdout, "lines"), "{change}: {}", preview.page());
        let ended = abandon(&split, "one", &["--confirm", &token(&preview)]);
        assert_eq!(ended.exit, Some(1), "{change}: {}", ended.page());
        for words in ["(table-stays)", why, &format!("DROP TABLE \"public\".\"{table}\";")] {
            assert!(flat(&preview.stderr).contains(words), "{change}, {words}: {}", preview.page());
            assert!(flat(&ended.stderr).contains(words), "{change}, {words}: {}", ended.page());
        }
        assert_eq!(count(&service, table).await, before, "{change}");
        assert!(is(&service, "to_regclass('lines') IS NULL").await, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_original_that_was_only_renamed_or_rewritten_has_its_rows() {
    let (split, monolith, service) = mirrored().await;
    monolith.batch_execute("ALTER TABLE orders RENAME TO purchases").await.unwrap();
    monolith.batch_execute("VACUUM FULL purchases").await.unwrap();
    monolith.batch_execute("CREATE TABLE orders (id int)").await.unwrap();
    take_back(&split, "one", &[]);
    assert!(is(&service, "to_regclass('orders') IS NULL").await);
    assert_eq!(count(&monolith, "purchases").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_original_that_is_emptied_while_the_step_waits_is_missed_behind_its_locks() {
    let (split, monolith, service) = mirrored().await;
    let shown = token(&abandon(&split, "one", &[]));
    let other = connect(&split.pair.service_url()).await;
    other.batch_execute("BEGIN; LOCK TABLE orders IN SHARE MODE").await.unwrap();
    let running = split.start("abandon", &["--slice", "one", "--confirm", &shown]);
    until("the step waits for the copy", SOON, async || {
        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass";
        (service.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    monolith.batch_execute("TRUNCATE orders").await.unwrap();
    other.batch_execute("COMMIT").await.unwrap();
    refused(&running.ended(), "abandon-changed", &["it was begun, and is not gone on with"]);
    assert_eq!(count(&service, "orders").await, 20);
    let ended = abandon(&split, "one", &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    assert_eq!(count(&service, "orders").await, 20, "{}", ended.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn whoever_alters_an_original_keeps_its_copy_and_is_named() {
    let (split, monolith, service) = mirrored().await;
    let shown = token(&abandon(&split, "one", &[]));
    let copy = connect(&split.pair.service_url()).await;
    copy.batch_execute("BEGIN; LOCK TABLE orders IN SHARE MODE").await.unwrap();
    let running = split.start("abandon", &["--slice", "one", "--confirm", &shown]);
    until("the step waits for the copy", SOON, async || {
        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass";
        (service.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    let alters = "SET application_name = 'a migration'; BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE";
    monolith.batch_execute(alters).await.unwrap();
    copy.batch_execute("COMMIT").await.unwrap();
    let waited = running.ended();
    assert_eq!(waited.exit, Some(4), "{}", waited.page());
    for words in ["abandon-waited", "(a migration)"] {
        assert!(flat(&waited.stderr).contains(words), "{words}: {}", waited.page());
    }
    assert_eq!(count(&service, "orders").await, 20);
    monolith.batch_execute("ROLLBACK").await.unwrap();
    take_back(&split, "one", &[]);
    assert!(is(&service, "to_regclass('orders') IS NULL").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_original_that_goes_while_a_run_stands_still_is_missed_before_its_copy_goes() {
    let (split, monolith, service) = mirrored().await;
    let shown = token(&abandon(&split, "one", &[]));
    super::crashes::killed_at(&split, "one", "abandon-begun", &[&shown]);
    monolith.batch_execute("DROP TABLE orders").await.unwrap();
    let ended = abandon(&split, "one", &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    assert!(flat(&ended.stderr).contains("is not published by"), "{}", ended.page());
    assert_eq!(count(&service, "orders").await, 20);
}
