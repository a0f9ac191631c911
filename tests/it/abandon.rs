//! A slice that is abandoned leaves nothing behind: the catalogs of the monolith are what they were before it was provisioned.

mod adopted;
mod crashes;
mod dropped;
mod identity;
mod lives;
mod meanwhile;
mod monolith;
mod named;
mod parents;
mod put_back;
mod refusals;
mod retired;
mod rights;
mod set_back;
mod sources;
mod stays;
mod upgraded;
mod verdicts;

use strangler::cluster::{Binaries, Options};
use tokio_postgres::Client;

use crate::flip::{complete, mirrored_and_armed};
use crate::support::binary::{Ended, flat};
use crate::support::catalogs::{assert_untouched, catalogs};
use crate::support::cluster::{Pair, launch_with};
use crate::support::privilege;
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};

/// Two slices whose tables are in one schema, with all that tables may have: partitions, an owner of their own, a policy, a view, keys across
/// the cut, rights, somebody else's publication.
const SETUP: &str = "CREATE ROLE keeper NOLOGIN; CREATE ROLE app LOGIN; CREATE ROLE strangler_dba NOLOGIN;
    CREATE SCHEMA shop; GRANT USAGE ON SCHEMA shop TO keeper; CREATE TYPE shop.mood AS ENUM ('good', 'bad'); GRANT USAGE ON SCHEMA shop TO app;
    CREATE TABLE shop.people (id int PRIMARY KEY, name text NOT NULL DEFAULT 'nobody', mood shop.mood);
    CREATE TABLE shop.orders (id int PRIMARY KEY, person int CONSTRAINT of_person REFERENCES shop.people, total numeric(8, 2) CHECK (total >= 0));
    CREATE TABLE shop.moves (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE shop.moves_1 PARTITION OF shop.moves FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
    CREATE TABLE shop.moves_2 PARTITION OF shop.moves DEFAULT;
    CREATE TABLE shop.audit (id int PRIMARY KEY, of_order int CONSTRAINT of_order REFERENCES shop.orders ON DELETE CASCADE);
    COMMENT ON CONSTRAINT of_person ON shop.orders IS 'across the cut';
    CREATE VIEW shop.rich AS SELECT id FROM shop.orders WHERE total > 100;
    CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER touch BEFORE UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.touch();
    ALTER TABLE shop.audit ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON shop.audit TO app USING (of_order = 1);
    ALTER TABLE shop.orders OWNER TO keeper; ALTER TABLE shop.moves_2 OWNER TO keeper; ALTER TABLE shop.people REPLICA IDENTITY FULL;
    GRANT SELECT, INSERT ON shop.orders, shop.moves TO app; GRANT UPDATE (name) ON shop.people TO app;
    CREATE PUBLICATION others FOR TABLE shop.people;
    INSERT INTO shop.people SELECT i, 'p' || i, 'good' FROM generate_series(1, 50) i;
    INSERT INTO shop.orders SELECT i, i, i FROM generate_series(1, 50) i;
    INSERT INTO shop.moves SELECT i, date '2024-06-01' + i * 30 FROM generate_series(1, 40) i;
    INSERT INTO shop.audit SELECT i, i FROM generate_series(1, 20) i; ANALYZE";

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices:
  one: { service: service, tables: { shop.orders: {}, shop.moves: {} } }
  two: { service: service, tables: { shop.people: {} } }
policy: { min_mirror_time: 0s, write_pause_budget: 2s }\n";

fn abandon(split: &Split, slice: &str, arguments: &[&str]) -> Ended {
    split.run("abandon", &[&["--slice", slice], arguments].concat())
}

/// The token that a preview names.
fn token(preview: &Ended) -> String {
    assert_eq!(preview.exit, Some(0), "{}", preview.page());
    let (_, after) = preview.stderr.split_once("--confirm ").unwrap_or_else(|| panic!("{}", preview.page()));
    after.split_whitespace().next().unwrap().to_owned()
}

/// Takes a slice back as it is shown.
pub fn take_back(split: &Split, slice: &str, arguments: &[&str]) -> Ended {
    let token = token(&abandon(split, slice, arguments));
    let done = abandon(split, slice, &[arguments, &["--confirm", &token]].concat());
    assert_eq!(done.exit, Some(0), "{}", done.page());
    assert!(
        flat(&done.stderr).contains(&format!("it is done: nothing of slice {slice} is left")),
        "{}",
        done.page()
    );
    done
}

fn refused(ended: &Ended, code: &str, words: &[&str]) {
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    let said = ["(", "["].iter().any(|left| ended.stderr.contains(&format!("{left}{code}")));
    assert!(said, "{code}: {}", ended.page());
    for words in words {
        assert!(flat(&ended.stderr).contains(words), "{words}: {}", ended.page());
    }
}

fn succeed(split: &Split, verb: &str, arguments: &[&str]) -> Ended {
    let ended = split.run(verb, arguments);
    assert_eq!(ended.exit, Some(0), "{verb}: {}", ended.page());
    ended
}

/// Provisions, mirrors, arms both slices, moves one there and back, and disarms.
async fn there_and_back(split: &Split, monolith: &Client, service: &Client) {
    split.provision();
    let mirror = mirrored_and_armed(split, monolith, service).await;
    let flip = ["--slice", "one", "--accept-no-evidence", "a test looks at every row afterwards"];
    complete(split, &mirror, &flip);
    complete(split, &mirror, &[&["--back"], &flip[..]].concat());
    monolith.batch_execute("INSERT INTO shop.orders VALUES (1000, 1, 1)").await.unwrap();
    succeed(split, "disarm", &[]);
    mirror.stop();
}

/// Slices whose streams are marked in this database.
async fn marked(client: &Client) -> Vec<String> {
    let rows = client.query("SELECT DISTINCT slice FROM strangler.lineage", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Both slices go, one after the other, and the catalogs are what they were; then both begin again.
async fn one_after_the_other(split: &Split, monolith: &Client, service: &Client) {
    let before = catalogs(monolith).await;
    there_and_back(split, monolith, service).await;
    let between = catalogs(monolith).await;
    assert!(
        between.iter().filter(|line| !before.contains(line)).count() > 50,
        "so much would be seen: {between:#?}"
    );
    let mirror = split.mirror_with(None, &["--slice", "two"]);
    mirror.caught_up_in("two", monolith, service).await;
    assert!(marked(monolith).await.contains(&"one".to_owned()), "so much would be seen");
    take_back(split, "one", &[]);
    for client in [monolith, service] {
        assert!(!marked(client).await.contains(&"one".to_owned()));
    }
    let left = "SELECT count(*) FROM pg_publication_tables WHERE pubname LIKE 'strangler%'";
    assert_eq!(monolith.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 1);
    monolith.batch_execute("INSERT INTO shop.people VALUES (1000, 'goes on', 'bad')").await.unwrap();
    mirror.caught_up(monolith, service).await;
    let compared = split.run("reconcile", &["--slice", "two"]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    mirror.stop();
    take_back(split, "two", &[]);
    assert_untouched(&before, &catalogs(monolith).await);

    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(monolith, service).await;
    for table in ["shop.orders", "shop.moves", "shop.people"] {
        let query = format!("TABLE {table}");
        assert_same(Side { client: monolith, query: &query }, Side { client: service, query: &query }).await;
    }
    mirror.stop();
    let told = split.run("ledger", &["--verify"]);
    assert_eq!(told.exit, Some(0), "{}", told.page());
    let entries = split.run("ledger", &["--kind", "abandon"]);
    assert!(
        entries.stdout.contains("drop table") && entries.stdout.matches("take back slice").count() >= 2,
        "{}",
        entries.page()
    );
    let provisioned = split.run("ledger", &["--kind", "provision", "--slice", "two", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&provisioned.stdout).unwrap();
    let lives = document["services"][0]["entries"].as_array().unwrap();
    let monoliths = |entry: &serde_json::Value| {
        entry["body"]["taken"].as_array().unwrap().iter().filter(|step| step["side"] == "monolith").count()
    };
    assert_eq!(lives.len(), 2, "{document:#}");
    assert_eq!(monoliths(&lives[0]), monoliths(&lives[1]), "each life is told once: {document:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monoliths_catalogs_are_what_they_were_when_every_slice_is_abandoned() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    one_after_the_other(&split, &monolith, &service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_and_the_newest_version_are_left_as_they_were() {
    let installed = Binaries::find_all().unwrap();
    let of = |major| installed.iter().find(|binaries| binaries.version.major == major);
    // A machine with the usual version only has the test above.
    for (monolith, service) in [(14, 18), (18, 14)] {
        let (Some(monolith), Some(service)) = (of(monolith), of(service)) else { continue };
        crate::support::say(&format!("abandoning from {} to {}", monolith.version, service.version));
        let on = |binaries: &Binaries| {
            launch_with(Options { binaries: Some(binaries.clone()), ..Options::default() })
        };
        let pair = Pair::of(on(monolith), on(service), "").await;
        let (split, monolith, service) = Split::between(pair, PLAN, SETUP).await;
        one_after_the_other(&split, &monolith, &service).await;
    }
}

/// Partitions of another owner, in a split whose links may do what they need and no more.
#[tokio::test(flavor = "multi_thread")]
async fn links_that_may_do_what_they_need_and_no_more_leave_nothing_behind() {
    let setup = "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint); INSERT INTO accounts VALUES (1, 1);
        CREATE TABLE logs.lines (id int PRIMARY KEY, account int REFERENCES accounts); INSERT INTO logs.lines VALUES (1, 1); GRANT SELECT ON accounts, logs.lines TO shop_read";
    let (split, monolith, service) = privilege::open("{ accounts: {}, logs.lines: {} }", setup).await;
    split.write_plan(&format!(
        "{}policy: {{ min_mirror_time: 0s, write_pause_budget: 2s }}\n",
        split.plan_text()
    ));
    // What an administrator has granted before is none of ours.
    monolith.batch_execute("GRANT USAGE ON SCHEMA logs TO strangler_apply; SET ROLE retail_owner; GRANT SELECT ON logs.lines TO strangler_apply").await.unwrap();
    monolith.batch_execute("RESET ROLE").await.unwrap();
    let before = catalogs(&monolith).await;
    split.provision();
    let mirror = mirrored_and_armed(&split, &monolith, &service).await;
    let flip = ["--accept-no-evidence", "a test looks at every row afterwards"];
    complete(&split, &mirror, &flip);
    complete(&split, &mirror, &[&["--back"], &flip[..]].concat());
    succeed(&split, "disarm", &[]);
    mirror.stop();
    take_back(&split, "one", &[]);
    assert_untouched(&before, &catalogs(&monolith).await);
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'sales'::regnamespace AND relkind = 'r'";
    assert_eq!(service.query_one(tables, &[]).await.unwrap().get::<_, i64>(0), 0);
    let again = abandon(&split, "one", &[]);
    assert_eq!(again.exit, Some(0), "{}", again.page());
    assert!(flat(&again.stderr).contains("nothing of slice one is left"), "{}", again.page());
    let ledger = split.run("ledger", &["--kind", "abandon"]);
    assert!(
        ledger.exit == Some(0) && ledger.stdout.contains("drop table"),
        "it stays to be read: {}",
        ledger.page()
    );
    take_back(&split, "one", &["--drop-ledger"]);
    let gone = "SELECT to_regnamespace('strangler') IS NULL";
    assert!(service.query_one(gone, &[]).await.unwrap().get::<_, bool>(0));
}
