//! Tables that the service's own migrations made are emptied, and are as those left them.

use super::catalogs::{assert_untouched, catalogs};
use super::{refused, take_back};
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt, into: sales } }
slices:
  one: { service: service, tables: { orders: {}, lines: {} } }
  two: { service: service, tables: { people: {} } }\n";

const SETUP: &str = "CREATE TABLE people (id int PRIMARY KEY, name text);
    CREATE TABLE orders (id int PRIMARY KEY, number text UNIQUE, person int);
    CREATE TABLE lines (id int PRIMARY KEY, order_id int REFERENCES orders);
    INSERT INTO people SELECT i, 'p' || i FROM generate_series(1, 20) i;
    INSERT INTO orders SELECT i, 'number ' || i, i FROM generate_series(1, 20) i; INSERT INTO lines SELECT i, i FROM generate_series(1, 20) i";

/// With a key between the tables of two slices.
const ADOPTED: &str = "CREATE ROLE service_own LOGIN; CREATE SCHEMA sales;
    CREATE TABLE sales.people (id int PRIMARY KEY, name text, own text);
    CREATE TABLE sales.orders (id int PRIMARY KEY, number text UNIQUE, person int CONSTRAINT of_person REFERENCES sales.people);
    CREATE TABLE sales.lines (id int PRIMARY KEY, order_id int REFERENCES sales.orders);
    CREATE INDEX by_order ON sales.lines (order_id)";

/// What is the service's own: all but our schema, and roles, which are the server's.
fn own(lines: Vec<String>) -> Vec<String> {
    let ours = |line: &String| {
        line.contains("strangler")
            || line.starts_with("(role,")
            || line.starts_with("(member,")
            || line.starts_with("(parameter,")
    };
    lines.into_iter().filter(|line| !ours(line)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn adopted_tables_are_emptied_and_are_as_their_migrations_left_them() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    service.batch_execute(ADOPTED).await.unwrap();
    let (here, there) = (catalogs(&monolith).await, own(catalogs(&service).await));
    split.provision();
    // It ends with rows in some tables and the constraints still off.
    split.mirror_with(Some("round-ended"), &["--slice", "one"]).ended();
    let mirror = split.mirror_with(None, &["--slice", "two"]);
    let live = "SELECT count(*) FROM strangler.mirror_table WHERE slice = 'two' AND state = 'live'";
    crate::support::wait::until("two is live", crate::support::wait::SOON, async || {
        (service.query_one(live, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    mirror.stop();
    crate::support::wait::until(
        "the killed mirror is known to be gone",
        crate::support::wait::SOON,
        async || {
            let ended = split.run("abandon", &["--slice", "one"]);
            if ended.exit != Some(0) {
                refused(&ended, "mirror-runs", &[]);
            }
            (ended.exit == Some(0)).then_some(())
        },
    )
    .await;
    let preview = split.run("abandon", &["--slice", "one"]);
    assert!(preview.stderr.contains("(key-stays-away)"), "{}", preview.page());
    let (_, token) = preview.stderr.split_once("--confirm ").unwrap();
    let done = split.run("abandon", &["--slice", "one", "--confirm", token.trim()]);
    assert_eq!(done.exit, Some(1), "the key between the slices is away: {}", done.page());
    take_back(&split, "two", &[]);
    assert_untouched(&there, &own(catalogs(&service).await));
    assert_untouched(&here, &catalogs(&monolith).await);
    let rows = "SELECT (SELECT count(*) FROM sales.people) + (SELECT count(*) FROM sales.orders) + (SELECT count(*) FROM sales.lines)";
    assert_eq!(service.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 0);

    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_same(
        Side { client: &monolith, query: "TABLE orders" },
        Side { client: &service, query: "TABLE sales.orders" },
    )
    .await;
    mirror.stop();
}
