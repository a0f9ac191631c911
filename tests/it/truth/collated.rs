//! Keys whose texts the sides don't tell apart alike.

use tokio_postgres::Client;

use super::found::Run;
use crate::support::binary::flat;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE ROLE strangler_apply LOGIN;
    CREATE TABLE names (name text PRIMARY KEY, v int);
    INSERT INTO names SELECT 'Name ' || i, i FROM generate_series(1, 500) i;
    CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 10); ANALYZE";
const CI: &str = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
const LOOSE: &str = "ALTER TABLE names ALTER name TYPE text COLLATE ci";
/// What every command says of it, and what to type.
const FACT: &str = "key column name of names tells texts apart by public.ci, which is not deterministic (locale und-u-ks-level2) in the \
    service, and byte by byte on the monolith";
const MEND: &str =
    "ALTER TABLE \"public\".\"names\" ALTER COLUMN \"name\" TYPE text COLLATE pg_catalog.\"default\"";

async fn open() -> (Split, Mirror, Client, Client) {
    let (split, monolith, service) = Split::launch("{ names: {}, other: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    service.batch_execute(CI).await.unwrap();
    (split, mirror, monolith, service)
}

async fn rows(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM names", &[]).await.unwrap().get(0)
}

fn assert_says(page: &str, words: &[&str]) {
    let page = flat(page);
    for words in words {
        assert!(page.contains(words), "{words} is not in {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_key_that_the_service_tells_apart_otherwise_is_said_by_every_command_and_costs_no_row() {
    let (split, mirror, monolith, service) = open().await;
    Run::of(&split, &[]).assert_clean();
    let row = monolith.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
    let before: String = row.get(0);
    monolith.batch_execute("UPDATE names SET name = upper(name) WHERE v < 3").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    service.batch_execute(LOOSE).await.unwrap();
    let since = split.run("reconcile", &["--changed-since", &before, "--repair"]);
    assert_says(&since.page(), &[FACT]);
    assert_ne!(since.exit, Some(0), "{}", since.page());
    assert_eq!(rows(&service).await, 500, "{}\nthe mirror: {}", since.page(), mirror.log());

    let (_, log) = mirror.ended();
    assert_says(&log, &[FACT, MEND]);
    for verb in ["check", "arm", "flip"] {
        let said = split.run(verb, &[]);
        assert_ne!(said.exit, Some(0), "{verb}: {}", said.page());
        assert_says(&said.page(), &["key-collation", FACT, MEND]);
    }
    let refused = split.mirror(None).ended();
    assert_says(&refused.1, &[FACT, MEND]);
    service.batch_execute(MEND).await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &["--strict"]).assert_clean();
    assert_eq!(rows(&service).await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_gets_another_collation_while_rows_are_compared_is_proven_by_nothing() {
    let (split, mirror, _, mut service) = open().await;
    let held = service.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE other IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let run = split.start("reconcile", &["--format", "json", "--list", "10"]);
    until("names is compared, and other is waited for", SOON, async || {
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'other'::regclass)";
        held.query_one(waits, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    held.batch_execute(LOOSE).await.unwrap();
    held.commit().await.unwrap();
    Run::read(run.ended()).assert_incomplete(&["not deterministic"]);
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_a_type_that_says_for_itself_what_is_equal_costs_no_row() {
    let (split, mirror, monolith, service) = open().await;
    let row = monolith.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
    let before: String = row.get(0);
    monolith.batch_execute("UPDATE names SET name = upper(name) WHERE v < 3").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let other = "CREATE EXTENSION citext; ALTER TABLE names ALTER name TYPE citext";
    service.batch_execute(other).await.unwrap();
    let since = split.run("reconcile", &["--changed-since", &before, "--repair"]);
    assert_ne!(since.exit, Some(0), "{}", since.page());
    assert_eq!(rows(&service).await, 500, "{}\nthe mirror: {}", since.page(), mirror.log());
    let fact =
        "key column name of names is of type public.citext in the service, and of text on the monolith";
    assert_says(&since.page(), &[fact]);
}
