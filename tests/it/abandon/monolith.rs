//! The monolith of a run that goes on is the one of the run that began: rows go only while their first home is known to be there.

use strangler::cluster::Cluster;
use tokio_postgres::Client;

use super::crashes::killed_at;
use super::{abandon, refused, succeed, token};
use crate::support::binary::flat;
use crate::support::cluster::connect;
use crate::support::split::Split;

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices: { one: { service: service, tables: { orders: {} } }, two: { service: service, tables: { people: {} } } }\n";

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 20) i;
    CREATE TABLE people (id int PRIMARY KEY)";

async fn mirrored(split: &Split, monolith: &Client, service: &Client) {
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(monolith, service).await;
    mirror.stop();
}

async fn rows(service: &Client) -> i64 {
    service.query_one("SELECT count(*) FROM orders", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_empty_database_at_the_monoliths_link_is_never_taken_for_the_monolith_that_was() {
    let (mut split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    let own = connect(&split.pair.monolith.admin_url()).await;
    own.batch_execute("CREATE DATABASE other").await.unwrap();
    let (other, right) = (split.pair.monolith.url("other"), split.pair.monolith_url());
    for point in [
        "abandon-begun",
        "abandon-copies-taken",
        "abandon-slot-dropped",
        "abandon-monolith-cleared",
        "abandon-schema-dropped",
    ] {
        mirrored(&split, &monolith, &service).await;
        let shown = token(&abandon(&split, "one", &[]));
        killed_at(&split, "one", point, &[&shown]);
        split.lead("MONOLITH", &other);
        for arguments in [&[][..], &["--confirm", &shown]] {
            let words = ["its link leads to database other", "correct the link of the monolith"];
            refused(&abandon(&split, "one", arguments), "other-monolith", &words);
        }
        if point == "abandon-begun" {
            assert_eq!(rows(&service).await, 20, "the copies are not taken yet");
        }
        split.lead("MONOLITH", &right);
        succeed(&split, "abandon", &["--slice", "one", "--confirm", &shown]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_made_anew_under_the_monoliths_name_is_another_one() {
    for point in ["abandon-begun", "abandon-schema-dropped"] {
        let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
        mirrored(&split, &monolith, &service).await;
        let shown = token(&abandon(&split, "one", &[]));
        killed_at(&split, "one", point, &[&shown]);
        let name: String = monolith.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
        drop(monolith);
        let own = connect(&split.pair.monolith.admin_url()).await;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        own.query(end, &[&name]).await.unwrap();
        own.batch_execute(&format!("ALTER DATABASE \"{name}\" RENAME TO away")).await.unwrap();
        own.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await.unwrap();
        refused(&abandon(&split, "one", &["--confirm", &shown]), "other-monolith", &["start-anew.md"]);
        if point == "abandon-begun" {
            assert_eq!(rows(&service).await, 20, "the copies are not taken yet");
        }
        own.batch_execute(&format!("DROP DATABASE \"{name}\"")).await.unwrap();
        own.batch_execute(&format!("ALTER DATABASE away RENAME TO \"{name}\"")).await.unwrap();
        succeed(&split, "abandon", &["--slice", "one", "--confirm", &shown]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_the_run_before_had_not_removed_must_still_be_there() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    mirrored(&split, &monolith, &service).await;
    monolith.batch_execute("CREATE VIEW owners AS SELECT slice FROM strangler.authority").await.unwrap();
    let shown = token(&abandon(&split, "one", &[]));
    killed_at(&split, "one", "abandon-begun", &[&shown]);
    monolith.batch_execute("DROP SCHEMA strangler CASCADE").await.unwrap();
    let ended = abandon(&split, "one", &["--confirm", &shown]);
    refused(&ended, "other-monolith", &["and the abandonment that has begun was not to remove it"]);
    assert_eq!(rows(&service).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_that_another_slice_has_left_or_entered_since_is_the_same() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    mirrored(&split, &monolith, &service).await;
    let shown = token(&abandon(&split, "one", &[]));
    killed_at(&split, "one", "abandon-monolith-cleared", &[&shown]);
    // The other one is the last one there, and takes the schema along.
    super::take_back(&split, "two", &[]);
    let there = "SELECT to_regnamespace('strangler') IS NOT NULL";
    assert!(!monolith.query_one(there, &[]).await.unwrap().get::<_, bool>(0));
    succeed(&split, "abandon", &["--slice", "one", "--confirm", &shown]);

    succeed(&split, "provision", &["--slice", "one"]);
    let shown = token(&abandon(&split, "one", &[]));
    killed_at(&split, "one", "abandon-schema-dropped", &[&shown]);
    succeed(&split, "provision", &["--slice", "two"]);
    assert!(monolith.query_one(there, &[]).await.unwrap().get::<_, bool>(0), "with another uuid");
    succeed(&split, "abandon", &["--slice", "one", "--confirm", &shown]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_stream_has_read_elsewhere_are_not_this_monoliths() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    mirrored(&split, &monolith, &service).await;
    for (column, other) in [
        ("src_database_oid", "1"),
        ("src_system_identifier", "'1'"),
        ("src_uuid", "'00000000-0000-0000-0000-000000000001'"),
    ] {
        let row = service.query_one(&format!("SELECT {column}::text FROM strangler.stream"), &[]).await;
        let before: String = row.unwrap().get(0);
        let set = format!("UPDATE strangler.stream SET {column} =");
        service.batch_execute(&format!("{set} {other}")).await.unwrap();
        refused(&abandon(&split, "one", &[]), "other-monolith", &["was mirrored from another database"]);
        service.batch_execute(&format!("{set} '{before}'")).await.unwrap();
    }
    let preview = abandon(&split, "one", &[]);
    assert!(flat(&preview.stderr).contains("(table-dropped)"), "{}", preview.page());
}
