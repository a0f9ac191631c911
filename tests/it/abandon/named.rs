//! What goes with a table, and what stands beside it, is named with what to do about it.

use super::{abandon, flat, refused, token};
use crate::support::split::Split;

const SETUP: &str =
    "CREATE TABLE orders (id int PRIMARY KEY, number text UNIQUE, v text); CREATE INDEX by_v ON orders (v);
    INSERT INTO orders SELECT i, i, 'v' FROM generate_series(1, 20) i";

const ADOPT: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt, into: sales } }
slices: { one: { service: service, tables: { orders: {} } } }\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_built_on_a_table_is_named_before_it_goes_with_it() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let preview = abandon(&split, "one", &[]);
    assert!(!flat(&preview.stderr).contains("somebody else's on it"), "{}", preview.page());
    let built = "CREATE PUBLICATION feed FOR TABLE orders; CREATE INDEX own ON orders (v, id);
        CREATE RULE quiet AS ON DELETE TO orders WHERE OLD.id = 0 DO INSTEAD NOTHING; CREATE STATISTICS twins ON number, v FROM orders";
    service.batch_execute(built).await.unwrap();
    let preview = abandon(&split, "one", &[]);
    let words = "somebody else's on it: index own, publication feed, rule quiet, statistics public.twins";
    assert!(flat(&preview.stderr).contains(words), "{}", preview.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn provision_behind_a_table_that_stayed_says_what_to_do_about_it() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    monolith.batch_execute("DELETE FROM orders").await.unwrap();
    let done = abandon(&split, "one", &["--confirm", &token(&abandon(&split, "one", &[]))]);
    assert_eq!(done.exit, Some(1), "{}", done.page());
    let again = split.run("provision", &[]);
    refused(&again, "table-taken", &["run in the service: DROP TABLE \"public\".\"orders\";"]);
    service.batch_execute("DROP TABLE public.orders").await.unwrap();
    split.provision();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_is_to_be_put_to_sleep_is_named_with_what_wakes_it() {
    let (split, _monolith, service) = Split::with_plan(ADOPT, SETUP).await;
    let own = "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY, number text, v text);
        CREATE FUNCTION sales.told() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER told AFTER TRUNCATE ON sales.orders EXECUTE FUNCTION sales.told()";
    service.batch_execute(own).await.unwrap();
    split.provision();
    let words = [
        "DISABLE TRIGGER told; then",
        "once the slice is taken back: ALTER TABLE sales.orders ENABLE TRIGGER told;",
    ];
    refused(&abandon(&split, "one", &[]), "in-the-way", &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_detached_is_called_so() {
    let (split, _monolith, service) = Split::with_plan(ADOPT, SETUP).await;
    let own = "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY, number text, v text) PARTITION BY RANGE (id);
        CREATE TABLE sales.orders_1 PARTITION OF sales.orders FOR VALUES FROM (1) TO (100);
        CREATE TABLE sales.orders_2 PARTITION OF sales.orders FOR VALUES FROM (100) TO (200)";
    service.batch_execute(own).await.unwrap();
    split.provision();
    service.batch_execute("ALTER TABLE sales.orders DETACH PARTITION sales.orders_2").await.unwrap();
    let preview = abandon(&split, "one", &[]);
    let words = "it was a partition of sales.orders when that was adopted, and was detached since";
    assert!(flat(&preview.stderr).contains(words), "{}", preview.page());
}
