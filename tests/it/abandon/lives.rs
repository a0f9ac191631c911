//! Nothing of an earlier life of a slice is judged as today's fact.

use serde_json::json;
use strangler::journal::{alarms, arming, moves, outside};
use tokio_postgres::Client;

use super::{abandon, refused, take_back, token};
use crate::support::split::Split;

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'one')";

async fn note(client: &Client, action: &str, detail: serde_json::Value) {
    let sql = "INSERT INTO strangler.journal (slice, actor, action, detail) VALUES ('one', 'test', $1, $2::text::jsonb)";
    client.execute(sql, &[&action, &detail.to_string()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_journals_and_the_ledger_say_of_an_earlier_life_counts_no_more() {
    let plan = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices: { one: { service: service, tables: { orders: {} } }, two: { service: service, tables: { people: {} } } }\n";
    let setup = format!("{SETUP}; CREATE TABLE people (id int PRIMARY KEY)");
    let (split, monolith, service) = Split::with_plan(plan, &setup).await;
    split.provision();
    for slot in ["first", "second"] {
        note(&service, "way-back-begun", json!({ "slot": slot, "mode": "APPLY" })).await;
    }
    note(&service, "fired-on-mirrored-rows", json!({ "what": "trigger t" })).await;
    note(&service, "row-outside-filter", json!({ "table": "orders", "lsn": "0/1", "before": 0 })).await;
    assert_eq!(alarms::disturbances(&service, "one").await.unwrap(), 3);
    assert!(outside::uncleared(&service, "one").await.unwrap().is_some());
    assert_eq!(alarms::lost_writes(&service, "one").await.unwrap().as_deref(), Some("second"));
    let stays = abandon(&split, "one", &[]);
    assert!(stays.stderr.contains("(table-stays)"), "rows that stand nowhere else: {}", stays.page());
    let done = abandon(&split, "one", &["--confirm", &token(&stays)]);
    assert_eq!(done.exit, Some(1), "{}", done.page());
    service.batch_execute("DROP TABLE orders").await.unwrap();
    // On the monolith, whose journal stays because of the other slice.
    split.provision();
    assert_eq!(alarms::disturbances(&service, "one").await.unwrap(), 0);
    assert!(outside::uncleared(&service, "one").await.unwrap().is_none());
    assert_eq!(alarms::lost_writes(&service, "one").await.unwrap(), None);
    assert_eq!(alarms::noted_way_back(&service, "one").await.unwrap(), None);
    assert!(moves::blocked(&monolith, "one").await.unwrap().is_none());
    assert!(!arming::armed(&monolith, "one").await.unwrap().recorded);
    // A verdict of the earlier life does not answer what is met in this one.
    note(&service, "row-outside-filter", json!({ "table": "orders", "lsn": "0/2", "before": 0 })).await;
    assert!(outside::uncleared(&service, "one").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_earlier_life_confirms_nothing() {
    let (split, _monolith, _service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let first = token(&abandon(&split, "one", &[]));
    take_back(&split, "one", &[]);
    split.provision();
    let second = token(&abandon(&split, "one", &[]));
    assert_ne!(first, second);
    refused(&abandon(&split, "one", &["--confirm", &first]), "abandon-changed", &["nothing was done"]);
    take_back(&split, "one", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_typed_when_it_was_begun_holds_for_whoever_goes_on() {
    let (split, _monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let shown = token(&abandon(&split, "one", &["--drop-ledger"]));
    super::crashes::killed_at(&split, "one", "abandon-begun", &["--drop-ledger", &shown]);
    take_back(&split, "one", &[]);
    let gone = "SELECT to_regnamespace('strangler') IS NULL";
    assert!(service.query_one(gone, &[]).await.unwrap().get::<_, bool>(0), "the ledger was to go");
    split.provision();
    let shown = token(&abandon(&split, "one", &[]));
    super::crashes::killed_at(&split, "one", "abandon-begun", &[&shown]);
    let more = abandon(&split, "one", &["--drop-ledger", "--confirm", &shown]);
    assert_eq!(more.exit, Some(0), "{}", more.page());
    assert!(!service.query_one(gone, &[]).await.unwrap().get::<_, bool>(0), "nobody had confirmed that");
}
