//! A slice that a version provisioned which wrote down nothing of its beginnings: no row of its tables goes.

use tokio_postgres::Client;

use super::{abandon, flat, refused, succeed, token};
use crate::support::split::Split;

/// Both databases as the version before leaves them.
const BACK: &str =
    "DROP TABLE strangler.abandonment, strangler.granted, strangler.home, strangler.begun_empty, strangler.dropped;
    ALTER TABLE strangler.archive DROP COLUMN way_back;
    DELETE FROM strangler.schema_history WHERE version >= 12";

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 20) i";

async fn upgraded(plan: &str, adopted: &str) -> (Split, Client, Client) {
    let (split, monolith, service) = Split::with_plan(plan, SETUP).await;
    service.batch_execute(adopted).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    for client in [&monolith, &service] {
        client.batch_execute(BACK).await.unwrap();
    }
    refused(&abandon(&split, "one", &[]), "outdated", &["strangler provision plan.yaml --slice one"]);
    succeed(&split, "provision", &["--slice", "one"]);
    (split, monolith, service)
}

async fn keeps_every_row(service: &str, adopted: &str, (code, words): (&str, &str)) {
    let plan = format!(
        "version: 1\nplan: split\nmonolith: {{ url: \"${{MONOLITH}}\" }}
services: {{ service: {{ url: \"${{SERVICE}}\"{service} }} }}\nslices: {{ one: {{ service: service, tables: {{ orders: {{}} }} }} }}\n"
    );
    let (split, monolith, service) = upgraded(&plan, adopted).await;
    let preview = abandon(&split, "one", &[]);
    let takes = |line: &str| line.starts_with("TRUNCATE") || line.starts_with("DROP TABLE \"public\"");
    assert!(!preview.stdout.lines().any(takes), "{}", preview.page());
    let done = abandon(&split, "one", &["--confirm", &token(&preview)]);
    assert_eq!(done.exit, Some(1), "{}", done.page());
    for ended in [&preview, &done] {
        let said = flat(&ended.stderr);
        assert!(said.contains(code) && said.contains(words), "{}", ended.page());
        assert!(said.contains("a version"), "{}", ended.page());
    }
    let left = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM strangler.slice), \
        (SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%strangler%')";
    let left = service.query_one(left, &[]).await.unwrap();
    assert_eq!(
        (left.get::<_, i64>(0), left.get::<_, i64>(1), left.get::<_, i64>(2)),
        (20, 0, 0),
        "{}",
        done.page()
    );
    let gone = "SELECT to_regnamespace('strangler') IS NULL AND NOT EXISTS (SELECT FROM pg_replication_slots) \
        AND NOT EXISTS (SELECT FROM pg_publication)";
    assert!(monolith.query_one(gone, &[]).await.unwrap().get::<_, bool>(0), "{}", done.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_an_earlier_version_made_stays_with_its_rows_and_is_named() {
    keeps_every_row("", "SELECT 1", ("(table-stays)", "DROP TABLE \"public\".\"orders\";")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_an_earlier_version_adopted_stays_with_its_rows_and_is_named() {
    let adopted = "CREATE TABLE orders (id int PRIMARY KEY, v text, own text)";
    keeps_every_row(", ddl: adopt", adopted, ("(rows-stay)", "TRUNCATE ONLY \"public\".\"orders\";")).await;
}
