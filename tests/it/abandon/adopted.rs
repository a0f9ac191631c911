//! Tables that the service's own migrations made are emptied, and are as those left them.

use tokio_postgres::Client;

use super::{refused, take_back};
use crate::support::catalogs::{assert_untouched, catalogs};
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
#[ignore = "long: make soak"]
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

const FOUR: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt, into: sales } }
slices:
  early: { service: service, tables: { early: {} } }
  parent: { service: service, tables: { parent: {} } }
  parted: { service: service, tables: { parted: {} } }
  clean: { service: service, tables: { clean: {} } }\n";

const NAMES: [&str; 4] = ["early", "parent", "parted", "clean"];

/// A table with rows of its own, and three that are empty when they are adopted.
async fn adopted_with_rows_of_their_own() -> (Split, Client, Client) {
    let each = |sql: &str| NAMES.map(|name| sql.replace("NAME", name)).join("; ");
    let setup = each(
        "CREATE TABLE NAME (id int PRIMARY KEY, v text); INSERT INTO NAME SELECT i, 'v' || i FROM generate_series(1, 20) i",
    );
    let (split, monolith, service) = Split::with_plan(FOUR, &setup).await;
    let own = "CREATE SCHEMA sales; CREATE TABLE sales.early (id int PRIMARY KEY, v text);
        INSERT INTO sales.early SELECT 1000 + i, 'own' FROM generate_series(1, 3) i;
        CREATE TABLE sales.parent (id int PRIMARY KEY, v text); CREATE TABLE sales.clean (id int PRIMARY KEY, v text);
        CREATE TABLE sales.parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE sales.parted_1 PARTITION OF sales.parted FOR VALUES FROM (1) TO (100)";
    service.batch_execute(own).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    // What the service's own people built since.
    let since = "CREATE TABLE sales.heir () INHERITS (sales.parent); INSERT INTO sales.heir VALUES (1000, 'own');
        CREATE TABLE sales.parted_2 (id int NOT NULL, v text); INSERT INTO sales.parted_2 VALUES (1000, 'own');
        ALTER TABLE sales.parted ATTACH PARTITION sales.parted_2 FOR VALUES FROM (1000) TO (2000)";
    service.batch_execute(since).await.unwrap();
    (split, monolith, service)
}

async fn count(service: &Client, table: &str) -> i64 {
    service.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn rows_that_need_not_be_the_mirrors_stay_and_are_named_with_what_takes_them_by_hand() {
    let (split, _monolith, service) = adopted_with_rows_of_their_own().await;
    for (slice, rows, why, by_hand) in [
        (
            "early",
            23,
            "nothing says that it held no row when it was adopted",
            "TRUNCATE ONLY \"sales\".\"early\";",
        ),
        ("parent", 21, "sales.heir has become a part of it", "TRUNCATE ONLY \"sales\".\"parent\";"),
        ("parted", 21, "sales.parted_2 has become a part of it", "TRUNCATE ONLY \"sales\".\"parted_1\";"),
        ("clean", 0, "", ""),
    ] {
        let preview = super::abandon(&split, slice, &[]);
        let truncates = preview.stdout.lines().any(|line| line.starts_with("TRUNCATE"));
        assert_eq!(truncates, rows == 0, "{slice}: {}", preview.page());
        let done = super::abandon(&split, slice, &["--confirm", &super::token(&preview)]);
        assert_eq!(done.exit, Some(i32::from(rows != 0)), "{slice}: {}", done.page());
        assert_eq!(count(&service, &format!("sales.{slice}")).await, rows, "{slice}: {}", done.page());
        if rows != 0 {
            for words in ["(rows-stay)", why, by_hand] {
                assert!(super::flat(&preview.stderr).contains(words), "{slice}, {words}: {}", preview.page());
                assert!(super::flat(&done.stderr).contains(words), "{slice}, {words}: {}", done.page());
            }
        }
        let hinges = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%strangler%' AND tgrelid::regclass::text LIKE 'sales.' || $1 || '%'";
        let hinges: i64 = service.query_one(hinges, &[&slice]).await.unwrap().get(0);
        assert_eq!(hinges, 0, "{slice}: its own people may write again");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn rows_that_come_while_a_run_stands_still_stay() {
    let (split, _monolith, service) = adopted_with_rows_of_their_own().await;
    let shown = super::token(&super::abandon(&split, "clean", &[]));
    let mut command = split.command(&["abandon", "plan.yaml", "--slice", "clean", "--confirm", &shown]);
    command.env("STRANGLER_FREEZE", "abandon-begun");
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still());
    let heir =
        "CREATE TABLE sales.late () INHERITS (sales.clean); INSERT INTO sales.late VALUES (1000, 'own')";
    service.batch_execute(heir).await.unwrap();
    frozen.signal(rustix::process::Signal::CONT);
    refused(&frozen.ended(), "abandon-changed", &["it was begun, and is not gone on with"]);
    assert_eq!(count(&service, "sales.clean").await, 21);
    let ended = super::abandon(&split, "clean", &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    assert!(super::flat(&ended.stderr).contains("sales.late has become a part of it"), "{}", ended.page());
    assert_eq!(count(&service, "sales.clean").await, 21);
    // What was to stay when it was confirmed is not taken by a run that goes on, though nothing stands in its way any more.
    let shown = super::token(&super::abandon(&split, "parent", &[]));
    super::crashes::killed_at(&split, "parent", "abandon-begun", &[&shown]);
    service.batch_execute("DROP TABLE sales.heir").await.unwrap();
    let ended = super::abandon(&split, "parent", &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    assert_eq!(count(&service, "sales.parent").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_rows_that_stay_do_not_allow_is_named_and_the_rest_comes_back() {
    let (split, _monolith, service) = Split::with_plan(PLAN, SETUP).await;
    service.batch_execute(ADOPTED).await.unwrap();
    split.provision();
    let past_the_gate = "ALTER TABLE sales.orders DISABLE TRIGGER ALL;
        INSERT INTO sales.orders (id, number) VALUES (1, 'twice'), (2, 'twice'); ALTER TABLE sales.orders ENABLE ALWAYS TRIGGER aa_strangler_gate;
        INSERT INTO strangler.alarm (slice, dir, epoch, lsn, xid, source_table, operation, key)
            VALUES ('one', 'reverse', 1, '0/1', 1, 'orders', 'insert', '{1}')";
    service.batch_execute(past_the_gate).await.unwrap();
    let preview = super::abandon(&split, "one", &[]);
    let words = "somebody wrote in the service past the gate";
    assert!(super::flat(&preview.stderr).contains(words), "{}", preview.page());
    let done = super::abandon(&split, "one", &["--confirm", &super::token(&preview)]);
    assert_eq!(done.exit, Some(1), "{}", done.page());
    for words in ["(stays-away)", "ADD CONSTRAINT \"orders_number_key\""] {
        assert!(super::flat(&done.stderr).contains(words), "{words}: {}", done.page());
    }
    assert_eq!(count(&service, "sales.orders").await, 2);
    let keys =
        "SELECT count(*) FROM pg_constraint WHERE conrelid = 'sales.lines'::regclass AND contype = 'f'";
    assert_eq!(
        service.query_one(keys, &[]).await.unwrap().get::<_, i64>(0),
        1,
        "the key of the lines is back"
    );
}
