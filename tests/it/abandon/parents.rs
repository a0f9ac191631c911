//! What is written through a parent of an adopted table passes the gate, and nobody can tell afterwards which rows that were.

use tokio_postgres::Client;

use super::{abandon, refused, token};
use crate::support::binary::flat;
use crate::support::cluster::connect;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt, into: sales } }
slices: { one: { service: service, tables: { orders: {} } }, two: { service: service, tables: { lines: {} } } }\n";

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 20) i;
    CREATE TABLE lines (id int PRIMARY KEY, v text); INSERT INTO lines SELECT i, 'v' FROM generate_series(1, 20) i";

async fn adopted() -> (Split, Client, Client) {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    let own = "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY, v text);
        CREATE TABLE sales.lines (id int PRIMARY KEY, v text); CREATE TABLE sales.above (id int NOT NULL, v text);
        CREATE TABLE sales.whole (id int NOT NULL, v text) PARTITION BY RANGE (id)";
    service.batch_execute(own).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    (split, monolith, service)
}

async fn count(service: &Client, table: &str) -> i64 {
    service.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_adopted_table_that_has_got_a_parent_stay() {
    let (split, _monolith, service) = adopted().await;
    let through = "ALTER TABLE sales.orders INHERIT sales.above; UPDATE sales.above SET v = 'own' WHERE id = 3;
        ALTER TABLE sales.whole ATTACH PARTITION sales.lines FOR VALUES FROM (1) TO (1000); INSERT INTO sales.whole VALUES (999, 'own')";
    service.batch_execute(through).await.unwrap();
    for (slice, table, rows, parent) in
        [("one", "sales.orders", 20, "sales.above"), ("two", "sales.lines", 21, "sales.whole")]
    {
        let preview = abandon(&split, slice, &[]);
        let words = format!("it has become a part of {parent}");
        assert!(flat(&preview.stderr).contains("(rows-stay)"), "{slice}: {}", preview.page());
        assert!(flat(&preview.stderr).contains(&words), "{slice}: {}", preview.page());
        let done = abandon(&split, slice, &["--confirm", &token(&preview)]);
        assert_eq!(done.exit, Some(1), "{slice}: {}", done.page());
        assert_eq!(count(&service, table).await, rows, "{slice}: {}", done.page());
    }
}

/// Whoever gives it a parent has its lock first, and is not seen by what is asked before the step.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_comes_while_the_step_waits_for_its_locks_is_seen_behind_them() {
    let (split, _monolith, service) = adopted().await;
    let shown = token(&abandon(&split, "one", &[]));
    let other = connect(&split.pair.service_url()).await;
    other.batch_execute("BEGIN; ALTER TABLE sales.orders INHERIT sales.above").await.unwrap();
    let running = split.start("abandon", &["--slice", "one", "--confirm", &shown]);
    until("the step waits for the table", SOON, async || {
        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'sales.orders'::regclass";
        (service.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    other.batch_execute("COMMIT; UPDATE sales.above SET v = 'own' WHERE id = 3").await.unwrap();
    let ended = running.ended();
    refused(&ended, "abandon-changed", &["it was begun, and is not gone on with"]);
    assert_eq!(count(&service, "sales.orders").await, 20);
    let words = "it has become a part of sales.above";
    assert!(flat(&abandon(&split, "one", &[]).stderr).contains(words), "{words}");
    let ended = abandon(&split, "one", &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    assert_eq!(count(&service, "sales.orders").await, 20);
}
