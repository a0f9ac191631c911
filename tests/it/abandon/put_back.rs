//! What was set aside comes back on the tables that it was taken from, by whatever name they go now.

use tokio_postgres::Client;

use super::{abandon, flat, succeed, take_back, token};
use crate::flip::mirrored_and_armed;
use crate::support::binary::Ended;
use crate::support::split::Split;

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt, into: sales } }
slices: { one: { service: service, tables: { orders: {}, lines: {} } } }
policy: { min_mirror_time: 0s, write_pause_budget: 2s }\n";

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, number text UNIQUE);
    CREATE TABLE lines (id int PRIMARY KEY, order_id int REFERENCES orders)";

const ADOPTED: &str = "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY, number text);
    ALTER TABLE sales.orders ADD CONSTRAINT numbered UNIQUE (number); CREATE UNIQUE INDEX by_both ON sales.orders (number, id);
    CREATE TABLE sales.lines (id int PRIMARY KEY, order_id int CONSTRAINT of_order REFERENCES sales.orders)";

async fn provisioned(own: &str) -> (Split, Client, Client) {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    service.batch_execute(own).await.unwrap();
    split.provision();
    (split, monolith, service)
}

fn taken_back(split: &Split) -> Ended {
    let ended = abandon(split, "one", &["--confirm", &token(&abandon(split, "one", &[]))]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    ended
}

async fn defined(service: &Client, table: &str) -> Vec<String> {
    let sql = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = $1::text::regclass AND NOT indisprimary
        UNION ALL SELECT conname || ' to ' || confrelid::regclass FROM pg_constraint WHERE contype = 'f' AND conrelid = $1::text::regclass ORDER BY 1";
    let rows = service.query(sql, &[&table]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_follows_a_table_that_was_renamed_and_not_its_name() {
    let (split, _monolith, service) = provisioned(ADOPTED).await;
    let renamed = "ALTER TABLE sales.orders RENAME TO purchases; CREATE TABLE sales.orders (id int PRIMARY KEY, number text)";
    service.batch_execute(renamed).await.unwrap();
    let ended = taken_back(&split);
    assert_eq!(
        defined(&service, "sales.purchases").await,
        ["sales.by_both", "sales.numbered"],
        "{}",
        ended.page()
    );
    assert_eq!(defined(&service, "sales.lines").await, ["of_order to sales.purchases"], "{}", ended.page());
    assert_eq!(defined(&service, "sales.orders").await, Vec::<String>::new(), "{}", ended.page());
    assert!(!ended.stderr.contains("(stays-away)"), "{}", ended.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_come_back_is_named_with_what_defines_it_and_the_rest_comes_back() {
    let (split, _monolith, service) = provisioned(ADOPTED).await;
    service.batch_execute("CREATE INDEX numbered ON sales.lines (order_id)").await.unwrap();
    let ended = taken_back(&split);
    for words in ["(stays-away)", "ADD CONSTRAINT \"numbered\" UNIQUE (number)"] {
        assert!(flat(&ended.stderr).contains(words), "{words}: {}", ended.page());
    }
    assert_eq!(defined(&service, "sales.orders").await, ["sales.by_both"]);
    assert_eq!(defined(&service, "sales.lines").await, ["of_order to sales.orders", "sales.numbered"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_from_a_table_that_is_gone_is_named_and_put_on_no_other() {
    let (split, _monolith, service) = provisioned(ADOPTED).await;
    let exchanged = "DROP TABLE sales.orders; CREATE TABLE sales.orders (id int PRIMARY KEY, number text)";
    service.batch_execute(exchanged).await.unwrap();
    let ended = taken_back(&split);
    for words in ["\"numbered\"", "by_both", "\"of_order\""] {
        assert!(flat(&ended.stderr).contains(words), "{words}: {}", ended.page());
    }
    for table in ["sales.orders", "sales.lines"] {
        assert_eq!(defined(&service, table).await, Vec::<String>::new(), "{table}: {}", ended.page());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_adopted_table_has_the_replica_identity_that_it_had() {
    let own = "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY, number text); ALTER TABLE sales.orders REPLICA IDENTITY NOTHING;
        CREATE TABLE sales.lines (id int PRIMARY KEY, order_id int)";
    let (split, monolith, service) = provisioned(own).await;
    let mirror = mirrored_and_armed(&split, &monolith, &service).await;
    let identity = async || -> String {
        let sql = "SELECT relreplident::text FROM pg_class WHERE oid = 'sales.orders'::regclass";
        service.query_one(sql, &[]).await.unwrap().get(0)
    };
    assert_eq!(identity().await, "d", "arm needs the key");
    succeed(&split, "disarm", &[]);
    mirror.stop();
    take_back(&split, "one", &[]);
    assert_eq!(identity().await, "n");
}
