//! `doctor` on real databases: all that is ours is listed with who needs it, and only what nobody needs is removed.

use serde_json::Value;
use strangler::cluster::Cluster as _;
use tokio_postgres::Client;

use crate::support::binary::Ended;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SCHEMA: &str = "CREATE ROLE strangler_apply LOGIN; \
    CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' || i FROM generate_series(1, 100) i; \
    CREATE TABLE stays (id int PRIMARY KEY)";
const TABLES: &str = "{ orders: {} }";

fn report(ended: &Ended, exit: i32) -> Value {
    assert_eq!(ended.exit, Some(exit), "{}", ended.page());
    serde_json::from_str(&ended.stdout).unwrap()
}

fn doctor(split: &Split, more: &[&str], exit: i32) -> Value {
    report(&split.run("doctor", &[&["--format", "json"], more].concat()), exit)
}

/// Database, sort and code of what is wrong.
fn wrong(report: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for database in report["databases"].as_array().unwrap() {
        for object in database["objects"].as_array().unwrap() {
            if let Some(code) = object["problem"]["code"].as_str() {
                let name = object["name"].as_str().unwrap();
                let name = if name.starts_with("strangler_split_one") { "own" } else { name };
                found.push(format!("{}: {name}: {code}", database["database"].as_str().unwrap()));
            }
        }
    }
    found
}

fn removed(report: &Value) -> Vec<&str> {
    report["removed"].as_array().unwrap().iter().map(|one| one["sql"].as_str().unwrap()).collect()
}

async fn slots(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap().get(0)
}

const LEFT: &str = "CREATE PUBLICATION strangler_old FOR TABLE stays; \
    CREATE TABLE strangler.gate_gone (one bool, state text); \
    CREATE FUNCTION strangler.gate_gone() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
    CREATE TABLE strangler.gate_ghost (one bool, state text); INSERT INTO strangler.gate_ghost VALUES (true, 'FENCED'); \
    CREATE FUNCTION strangler.gate_ghost() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
    CREATE TRIGGER ghost BEFORE TRUNCATE ON stays FOR EACH STATEMENT EXECUTE FUNCTION strangler.gate_ghost()";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slice_needs_is_named_with_it_and_only_what_nobody_needs_is_removed() {
    let (split, monolith, service) = Split::launch(TABLES, SCHEMA).await;
    let untouched = doctor(&split, &[], 0);
    assert_eq!(wrong(&untouched), ["monolith: strangler_apply: role-left"], "{untouched:#}");
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let armed = split.run("arm", &[]);
    assert_eq!(armed.exit, Some(0), "{}", armed.page());
    let both = "SELECT stopped_at IS NULL FROM strangler.mirror_process WHERE dir = 'reverse'";
    until("the way back runs", SOON, async || {
        monolith.query_opt(both, &[]).await.unwrap().is_some_and(|row| row.get(0)).then_some(())
    })
    .await;
    let sound = doctor(&split, &[], 0);
    assert_eq!(wrong(&sound), [""; 0], "{sound:#}");
    let page = split.run("doctor", &[]);
    for line in [
        "slice  ",
        "gate  ",
        "publication  ",
        "slot  ",
        "schema  ",
        "role  ",
        "slice one",
        "OPEN, on 1 table",
    ] {
        assert!(page.stdout.contains(line), "{line}: {}", page.page());
    }

    monolith.batch_execute(LEFT).await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('strangler_old_a1b2c3', 'pgoutput')";
    monolith.batch_execute(slot).await.unwrap();
    let left = [
        "monolith: gate_ghost: gate-without-slice",
        "monolith: gate_gone: gate-left",
        "monolith: strangler_old: publication-left",
        "monolith: strangler_old_a1b2c3: slot-left",
    ];
    assert_eq!(wrong(&doctor(&split, &[], 1)), left);
    assert_eq!(slots(&monolith).await, 2, "only --clean removes");
    let cleaned = doctor(&split, &["--clean"], 1);
    assert_eq!(
        removed(&cleaned),
        [
            "DROP TABLE IF EXISTS strangler.\"gate_gone\"; DROP FUNCTION IF EXISTS strangler.\"gate_gone\"()",
            "DROP PUBLICATION \"strangler_old\"",
            "SELECT pg_drop_replication_slot('strangler_old_a1b2c3')",
        ],
        "{cleaned:#}"
    );
    assert_eq!(wrong(&cleaned), left[..1], "the gate that guards a table stays");
    assert_eq!((slots(&monolith).await, slots(&service).await), (1, 1));
    monolith.batch_execute("INSERT INTO orders VALUES (1000, 'goes on')").await.unwrap();
    mirror.caught_up(&monolith, &service).await;

    mirror.stop();
    let stopped = doctor(&split, &["--clean"], 1);
    let idle = ["monolith: own: slot-without-reader", "service service: own: slot-without-reader"];
    assert_eq!(wrong(&stopped), [&left[..1], &idle].concat(), "{stopped:#}");
    assert_eq!(removed(&stopped), [""; 0]);
    service
        .batch_execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .await
        .unwrap();
    assert!(wrong(&doctor(&split, &[], 1)).contains(&"monolith: own: slot-gone".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn slots_are_not_judged_by_a_database_that_is_another_one_or_away() {
    let (mut split, monolith, service) = Split::launch(TABLES, SCHEMA).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    // A service's database that was made anew, a copy of the true one, the monolith itself, and a server that is away.
    service.batch_execute("CREATE DATABASE anew").await.unwrap();
    split.lead("SERVICE", &split.pair.service.url("anew"));
    let anew = doctor(&split, &["--clean"], 1);
    assert_eq!(
        wrong(&anew),
        [
            "monolith: one: half-provisioned",
            "monolith: own: slot-left",
            "service service: strangler_apply: role-left"
        ]
    );
    service
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'anew'")
        .await
        .unwrap();
    let there = split.pair.service_url();
    split.lead("SERVICE", &split.pair.monolith_url());
    let mixed = doctor(&split, &["--clean"], 4);
    let unread = mixed["databases"][1]["unread"].as_str().unwrap();
    assert!(unread.starts_with("the link leads to the monolith of slice one of plan split"), "{unread}");
    split.lead("SERVICE", "postgres://nobody@127.0.0.1:1/none?connect_timeout=2");
    assert_eq!(removed(&doctor(&split, &["--clean"], 4)), [""; 0]);
    assert_eq!(slots(&monolith).await, 1, "the mirror's slot is there in spite of all of them");

    split.lead("SERVICE", &there);
    service.batch_execute("UPDATE strangler.database SET database_oid = 1").await.unwrap();
    let clone = doctor(&split, &["--clean"], 1);
    assert!(wrong(&clone).contains(&"service service: strangler: database-cloned".to_owned()), "{clone:#}");
    // A slot of an earlier attempt goes once the service says that it streams from another one.
    let old = "SELECT pg_create_logical_replication_slot('strangler_split_one_zzzzzz', 'pgoutput')";
    monolith.batch_execute(old).await.unwrap();
    assert_eq!(removed(&doctor(&split, &["--clean"], 1)), [""; 0]);
    service.batch_execute("UPDATE strangler.database SET database_oid = (SELECT oid FROM pg_database WHERE datname = current_database())").await.unwrap();
    assert_eq!(
        removed(&doctor(&split, &["--clean"], 1)),
        ["SELECT pg_drop_replication_slot('strangler_split_one_zzzzzz')"]
    );
    assert_eq!(slots(&monolith).await, 1);
}
