//! The SQL of the runbooks, read out of them and run on real servers: what an operator copies must work.

use tokio_postgres::Client;

use crate::abandon::take_back;
use crate::support::cluster::{Pair, connect, create_database};
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};
use strangler::cluster::Cluster;

const START_ANEW: &str = "docs/runbooks/start-anew.md";

/// The block of SQL in a runbook whose first line is this comment.
fn block(path: &str, title: &str) -> String {
    let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let start = format!("```sql\n-- {title}\n");
    let found: Vec<&str> = text.split(&start).skip(1).collect();
    let [rest] = found[..] else { panic!("{} blocks of {path} begin with: {title}", found.len()) };
    rest.split("```").next().unwrap().to_owned()
}

/// The names that the operator writes into the blocks.
struct Names {
    slice: &'static str,
    slot: String,
    publication: String,
}

impl Names {
    /// Step 2: what the runbook says to look up.
    async fn looked_up(slice: &'static str, service: &Client) -> Self {
        let look = block(START_ANEW, "on the service: 1. look").replace("SLICE", slice);
        let row = service.query_one(&look, &[]).await.unwrap();
        assert_eq!(row.get::<_, String>("gate"), "FENCED");
        Self { slice, slot: row.get("slot"), publication: row.get("pubname") }
    }

    /// Runs a block twice, because each may be run again.
    async fn run(&self, client: &Client, title: &str) {
        let sql = block(START_ANEW, title)
            .replace("SLICE", self.slice)
            .replace("SLOT", &self.slot)
            .replace("PUBNAME", &self.publication);
        for time in ["first", "second"] {
            client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{title}, {time}: {error:?}"));
        }
    }
}

/// Follows the runbook for one slice, up to the commands.
async fn start_anew(slice: &'static str, ddl: &str, monolith: &Client, service: &Client) {
    let names = Names::looked_up(slice, service).await;
    // A mirror that was killed is gone before the server has noticed it.
    let free = "SELECT coalesce(bool_and(NOT active), true) FROM pg_replication_slots WHERE slot_name = $1";
    until("the slot is free", SOON, async || {
        let row = monolith.query_one(free, &[&names.slot]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    names.run(monolith, "on the monolith: 2. drop the slot").await;
    names.run(monolith, "on the monolith: 3. drop publication and gate").await;
    let tables = if ddl == "adopt" { "empty" } else { "drop" };
    names.run(service, &format!("on the service, ddl: {ddl}: 4. {tables} the tables")).await;
    names.run(service, "on the service: 5. forget the slice").await;
}

/// Rights as `provision` grants them to an apply link, which a superuser's link is not.
const APPLY_RIGHTS: &str = "CREATE ROLE strangler_apply LOGIN; GRANT USAGE ON SCHEMA public TO strangler_apply;
    GRANT SELECT, UPDATE (id) ON orders TO strangler_apply; GRANT SELECT, UPDATE (id) ON people TO strangler_apply";

/// Tables on which the apply role has a right.
async fn granted(monolith: &Client) -> Vec<String> {
    let sql = "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace \
               AND (has_table_privilege('strangler_apply', oid, 'SELECT') \
                    OR has_any_column_privilege('strangler_apply', oid, 'UPDATE')) ORDER BY 1";
    monolith.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// How many objects of ours a query counts.
async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn assert_equal(monolith: &Client, left: &str, service: &Client, right: &str) {
    assert_same(Side { client: monolith, query: left }, Side { client: service, query: right }).await;
}

const SHOP: &str = "CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE orders (id int PRIMARY KEY, number text UNIQUE, mood mood);
    CREATE TABLE lines (id serial PRIMARY KEY, order_id int REFERENCES orders, \"Text\" text);
    CREATE TABLE people (id int PRIMARY KEY);
    INSERT INTO orders SELECT n, 'number ' || n, 'good' FROM generate_series(1, 300) n;
    INSERT INTO lines (order_id, \"Text\") SELECT n, 'line' FROM generate_series(1, 300) n;
    INSERT INTO people SELECT generate_series(1, 10); ANALYZE";

fn shop(ddl: &str, rename: &str) -> String {
    format!(
        "version: 1\nplan: shop\nmonolith: {{ url: \"${{MONOLITH}}\" }}\n\
         services: {{ service: {{ url: \"${{SERVICE}}\", ddl: {ddl}, into: sales }} }}\nslices:\n  \
         ordering:\n    service: service\n    tables: {{ orders: {{}}, lines: {{ columns: {{ Text: {rename} }} }} }}\n  \
         people:\n    service: service\n    tables: {{ people: {{}} }}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_whose_mapping_changed_starts_anew_by_the_runbook_and_the_others_go_on() {
    let (split, monolith, service) = Split::with_plan(&shop("create", "text"), SHOP).await;
    monolith.batch_execute("CREATE ROLE strangler_apply LOGIN").await.unwrap();
    split.provision();
    assert_eq!(granted(&monolith).await, ["lines", "orders", "people"]);
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();

    split.write_plan(&shop("create", "words"));
    let refused = split.run("provision", &[]);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    assert!(refused.stderr.contains("(mapping-changed)"), "{}", refused.stderr);
    assert!(refused.stderr.contains(START_ANEW), "{}", refused.stderr);

    take_back(&split, "ordering", &[]);
    assert_eq!(granted(&monolith).await, ["people"], "what the slice had is taken back");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(count(&monolith, slots).await, 1, "the other slice's slot stays");
    assert_eq!(count(&service, "SELECT count(*) FROM sales.people").await, 10, "and so do its rows");
    let live = "SELECT live_at::text FROM strangler.mirror_table WHERE slice = 'people'";
    let before: String = service.query_one(live, &[]).await.unwrap().get(0);

    monolith.batch_execute("DELETE FROM lines WHERE id > 250; INSERT INTO people VALUES (11)").await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE orders", &service, "TABLE sales.orders").await;
    let (lines, words) =
        ("SELECT id, order_id, \"Text\" FROM lines", "SELECT id, order_id, words FROM sales.lines");
    assert_equal(&monolith, lines, &service, words).await;
    assert_equal(&monolith, "TABLE people", &service, "TABLE sales.people").await;
    let after: String = service.query_one(live, &[]).await.unwrap().get(0);
    assert_eq!(after, before, "the other slice was not copied again");
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slice_that_was_armed_is_disarmed_under_its_changed_mapping_and_starts_anew_by_the_runbook() {
    let (split, monolith, service) = Split::with_plan(&shop("create", "text"), SHOP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let armed = split.run("arm", &["--slice", "ordering"]);
    assert_eq!(armed.exit, Some(0), "{}", armed.page());
    split.write_plan(&shop("create", "words"));
    monolith
        .batch_execute("ALTER TABLE orders ADD COLUMN more int; INSERT INTO orders VALUES (900)")
        .await
        .unwrap();
    let disarmed = split.run("disarm", &["--slice", "ordering"]);
    assert_eq!(disarmed.exit, Some(0), "{}", disarmed.page());
    mirror.stop();

    take_back(&split, "ordering", &[]);
    let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%strangler%'";
    assert_eq!(count(&monolith, left).await, 0);
    assert_eq!(
        count(&service, "SELECT count(*) FROM pg_replication_slots").await,
        0,
        "the way back's is gone"
    );
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE orders", &service, "TABLE sales.orders").await;
    let armed = split.run("arm", &["--slice", "ordering"]);
    assert_eq!(armed.exit, Some(0), "{}", armed.page());
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn adopted_tables_start_anew_by_the_runbook_with_every_constraint_they_had() {
    let (split, monolith, service) = Split::with_plan(&shop("adopt", "text"), SHOP).await;
    let adopted = "CREATE SCHEMA sales; CREATE TYPE public.mood AS ENUM ('good', 'bad');
        CREATE TABLE sales.orders (id int PRIMARY KEY, number text UNIQUE, mood mood);
        CREATE TABLE sales.lines (id int PRIMARY KEY, order_id int REFERENCES sales.orders, text text);
        CREATE TABLE sales.people (id int PRIMARY KEY)";
    service.batch_execute(adopted).await.unwrap();
    let constraints = "SELECT count(*) FROM pg_constraint WHERE connamespace = 'sales'::regnamespace \
                       AND contype IN ('u', 'f')";
    assert_eq!(count(&service, constraints).await, 2);
    split.provision();
    // It ends with rows in some tables and the constraints still off.
    split.mirror(Some("round-ended")).ended();
    assert_eq!(count(&service, constraints).await, 0);

    start_anew("ordering", "adopt", &monolith, &service).await;
    assert_eq!(count(&service, constraints).await, 2, "nothing that was set aside is lost");
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE orders", &service, "TABLE sales.orders").await;
    assert_equal(&monolith, "TABLE lines", &service, "TABLE sales.lines").await;
    mirror.stop();
    assert_eq!(count(&service, constraints).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_whose_service_is_lost_is_cleared_by_the_runbook() {
    let (split, monolith, service) = Split::with_plan(&shop("create", "text"), SHOP).await;
    split.provision();
    monolith.batch_execute(APPLY_RIGHTS).await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    drop(service);
    let server = connect(&split.pair.service.admin_url()).await;
    let drop_database = format!("DROP DATABASE {} WITH (FORCE)", Pair::SERVICE);
    server.batch_execute(&drop_database).await.unwrap();
    create_database(&split.pair.service, Pair::SERVICE).await;

    for slice in ["ordering", "people"] {
        let slots = format!(
            "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name LIKE 'strangler_shop_{slice}_%'"
        );
        let slot = monolith.query_one(&slots, &[]).await.unwrap().get(0);
        let names = Names { slice, slot, publication: format!("strangler_shop_{slice}") };
        names.run(&monolith, "on the monolith: 2. drop the slot").await;
        names.run(&monolith, "on the monolith: 3. drop publication and gate").await;
    }
    let ours = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) \
                + (SELECT count(*) FROM strangler.slice)";
    assert_eq!(count(&monolith, ours).await, 0);
    assert_eq!(granted(&monolith).await, Vec::<String>::new());
    let service = split.pair.service().await;

    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE orders", &service, "TABLE sales.orders").await;
    assert_equal(&monolith, "TABLE people", &service, "TABLE sales.people").await;
    mirror.stop();
}

const DIFFERENCES: &str = "docs/runbooks/differences-found.md";

/// The commands of a runbook about this plan and slice, in order, without those that copy anew.
fn typed(path: &str, slice: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("strangler "));
    let words = lines.map(|line| line.replace("SLICE", slice));
    words.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_found_repaired_and_proven_gone_by_the_runbook() {
    let (split, monolith, service) = Split::with_plan(&shop("create", "text"), SHOP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let gates = block(DIFFERENCES, "on the service: who can pass the gate");
    let open = gates.split_once(";\n").unwrap().1;
    assert!(service.query(open, &[]).await.unwrap().is_empty(), "every gate is on");
    let plant = "ALTER TABLE sales.lines DISABLE TRIGGER aa_strangler_gate;
        UPDATE sales.lines SET text = 'planted' WHERE id = 7; DELETE FROM sales.lines WHERE id = 8;
        INSERT INTO sales.lines VALUES (9999, 1, 'planted')";
    service.batch_execute(plant).await.unwrap();
    assert_eq!(service.query(open, &[]).await.unwrap().len(), 1, "the gate that is off is shown");
    service.batch_execute("ALTER TABLE sales.lines ENABLE ALWAYS TRIGGER aa_strangler_gate").await.unwrap();

    let mut ends = Vec::new();
    for words in typed(DIFFERENCES, "ordering").iter().filter(|words| words[0] != "mirror") {
        assert_eq!(words[1], "plans/retail.yaml");
        let options: Vec<&str> = words[2..].iter().map(String::as_str).collect();
        let ended = split.run(&words[0], &options);
        ends.push((ended.exit.unwrap(), ended.stderr.clone(), ended.stdout));
    }
    assert_eq!(ends.iter().map(|end| end.0).collect::<Vec<_>>(), [1, 1, 0, 0, 0], "{ends:#?}");
    let [found, previewed, repaired, proven, status] = &ends[..] else { panic!("{ends:#?}") };
    let next = "next: strangler reconcile plan.yaml --slice ordering --repair --dry-run";
    assert!(found.1.contains(next), "{}", found.1);
    assert!(previewed.1.contains("would repair 3 rows of lines"), "{}", previewed.1);
    assert!(repaired.1.contains("3 of 3 rows repaired"), "{}", repaired.1);
    assert!(proven.2.contains("both sides are equal"), "{}", proven.2);
    assert!(status.2.contains("evidence") && !status.2.contains("alarm"), "{}", status.2);
    let sql = block(DIFFERENCES, "on the service: the ledger").replace("SLICE", "ordering");
    let rows = service.query(&sql, &[]).await.unwrap();
    let kinds: Vec<(String, Option<String>)> =
        rows.iter().map(|row| (row.get("kind"), row.get("outcome"))).collect();
    let expected = [
        ("verdict", Some("clean")),
        ("repair", None),
        ("verdict", Some("differs")),
        ("verdict", Some("differs")),
        ("verdict", Some("differs")),
    ];
    assert_eq!(kinds.iter().map(|(kind, of)| (kind.as_str(), of.as_deref())).collect::<Vec<_>>(), expected);
    mirror.stop();

    let stopped = split.run("reconcile", &["--slice", "ordering"]);
    assert_eq!(stopped.exit, Some(5), "{}", stopped.page());
    let next = "next: strangler mirror plan.yaml --slice ordering; once it streams, the same command again";
    assert!(stopped.stderr.contains(next), "{}", stopped.page());
}
