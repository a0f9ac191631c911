//! The retail monolith that the demo and the documentation use, and the traffic on it.

use std::collections::BTreeSet;

use strangler::cluster::{Cluster, LocalCluster};
use strangler::demo::traffic::{Rate, Tally, Traffic};
use strangler::demo::{RETAIL_DATA_SQL, RETAIL_PLAN, RETAIL_SCHEMA_SQL, stage};
use strangler::mapping::compile;
use strangler::plan::{self, LinkTemplate};
use strangler::postgres::introspect;
use tokio_postgres::Client;

use crate::support::cluster::{connect, create_database, launch};
use crate::support::wait::{SOON, until};

async fn load(cluster: &LocalCluster, database: &str) -> Client {
    create_database(cluster, database).await;
    let client = connect(&cluster.url(database)).await;
    client.batch_execute(RETAIL_SCHEMA_SQL).await.unwrap();
    client.batch_execute(RETAIL_DATA_SQL).await.unwrap();
    client
}

/// Every table with its number of rows and a checksum that does not depend on their order.
async fn contents(client: &Client) -> Vec<(String, i64, String)> {
    let tables = client
        .query("SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1", &[])
        .await
        .unwrap();
    let mut contents = Vec::new();
    for table in tables {
        let table: String = table.get(0);
        let sql = format!(
            r#"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM "{table}" t"#
        );
        let row = client.query_one(&sql, &[]).await.unwrap();
        contents.push((table, row.get(0), row.get(1)));
    }
    contents
}

/// Builds every foreign key anew, which checks all rows: loading has switched the triggers off.
const RECHECK_FOREIGN_KEYS: &str = r#"
DO $$ DECLARE fk record; BEGIN
    FOR fk IN SELECT conrelid::regclass AS tab, conname, pg_get_constraintdef(oid) AS def FROM pg_constraint WHERE contype = 'f' LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I %s', fk.tab, fk.conname, fk.conname, fk.def);
    END LOOP;
END $$"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_retail_monolith_is_whole_and_the_same_every_time() {
    let cluster = launch();
    let first = load(&cluster, "first").await;
    let rows = contents(&first).await;
    let sum: i64 = rows.iter().map(|table| table.1).sum();
    assert!(sum > 200_000, "{sum} rows");
    assert!(rows.iter().all(|table| table.1 > 0), "{rows:?}");
    first.batch_execute(RECHECK_FOREIGN_KEYS).await.unwrap();
    let second = load(&cluster, "second").await;
    assert_eq!(rows, contents(&second).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_writes_until_it_is_paused_or_stopped() {
    let cluster = launch();
    let client = load(&cluster, "retail").await;
    let config = cluster.url("retail").parse().unwrap();
    let rate = Rate { writers: 4, transactions_per_second: 500 };
    let traffic = Traffic::start(&config, rate, 1).await.unwrap();
    acknowledged(&traffic, 600).await;

    let pause = traffic.pause().await;
    let (tally, rows) = (traffic.tally(), contents(&client).await);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'retail' AND state <> 'idle' AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    assert_eq!(client.query_one(open, &[]).await.unwrap().get::<_, i64>(0), 0, "nothing is open in a pause");
    assert_eq!((traffic.tally(), contents(&client).await), (tally, rows), "nothing happens in a pause");
    drop(pause);
    acknowledged(&traffic, tally.acknowledged + 50).await;

    let tally = traffic.stop().await;
    assert!(tally.rolled_back > 0, "{tally:?}");
    assert!(tally.rejected * 20 < tally.acknowledged, "most transactions go through: {tally:?}");
    assert_eq!(tally.unknown, 0, "{tally:?}");
    for (what, count) in [
        ("orders are placed", r#"SELECT count(*) FROM "Orders" WHERE "Id" > 30000"#),
        ("orders are paid", r#"SELECT count(*) FROM "Payments" WHERE "Id" > 25000"#),
        ("orders are cancelled", r#"SELECT count(*) FROM "Orders" WHERE "Notes" LIKE 'Cancelled by%'"#),
        (
            "carts are used up",
            r#"SELECT count(*) FROM "CheckoutSagas" WHERE "OrderId" > 30000 AND "CartId" IS NULL"#,
        ),
        (
            "long rows are renamed",
            r#"SELECT count(*) FROM "Products" WHERE "Name" LIKE '%edition%' AND length("Description") > 8000"#,
        ),
    ] {
        assert!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0) > 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_returns_after_a_restart_of_the_server() {
    let mut cluster = launch();
    load(&cluster, "retail").await;
    let config = cluster.url("retail").parse().unwrap();
    let traffic =
        Traffic::start(&config, Rate { writers: 4, transactions_per_second: 500 }, 1).await.unwrap();
    let before = acknowledged(&traffic, 50).await;
    cluster.stop(strangler::cluster::StopMode::Immediate).unwrap();
    cluster.start().unwrap();
    acknowledged(&traffic, before.acknowledged + 100).await;
    traffic.stop().await;
}

async fn acknowledged(traffic: &Traffic, goal: u64) -> Tally {
    until("the traffic makes progress", SOON, || async {
        let tally = traffic.tally();
        (tally.acknowledged >= goal).then_some(tally)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retail_plan_maps_the_retail_monolith_without_a_problem() {
    let cluster = launch();
    create_database(&cluster, "retail").await;
    let client = connect(&cluster.url("retail")).await;
    client.batch_execute(RETAIL_SCHEMA_SQL).await.unwrap();
    let parsed = plan::parse(RETAIL_PLAN.as_bytes(), "retail.yaml")
        .unwrap_or_else(|all| panic!("{}", all.render(false)));
    assert!(parsed.warnings.is_empty(), "{}", parsed.warnings.render(false));
    let monolith = introspect::read(&client).await.unwrap();
    let (mappings, problems) = compile(&parsed.plan, &monolith);
    assert!(problems.is_empty(), "{problems:?}");
    let moved: usize = mappings.values().map(|slice| slice.tables.len()).sum();
    assert_eq!((mappings.len(), moved), (6, 13));
    let lines = mappings["ordering"].tables.iter().find(|table| table.target.name == "order_lines").unwrap();
    assert_eq!(lines.target.schema, "sales");
    let references: Vec<String> =
        lines.soft_references.iter().map(|reference| reference.references.to_string()).collect();
    assert_eq!(references, ["Products"]);

    let wanted: BTreeSet<String> = LinkTemplate::new(RETAIL_PLAN).variables().into_iter().collect();
    let services = stage::PLACES.iter().filter_map(|place| place.service);
    let service_links = services
        .flat_map(|name| ["ADMIN", "APPLY"].map(|link| format!("{}_{link}_URL", name.to_uppercase())));
    let links = ["ADMIN", "READ", "APPLY"].map(|link| format!("MONOLITH_{link}_URL"));
    assert_eq!(
        wanted,
        service_links.chain(links).collect(),
        "every place of the demo has its links in the plan"
    );
}
