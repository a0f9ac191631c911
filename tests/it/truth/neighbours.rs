//! Rows of other slices than those that a run is about.

use strangler::reconcile::finding::FindingKind::Orphan;

use super::found::Run;
use crate::support::cluster::{connect, create_database};
use crate::support::split::Split;
use strangler::cluster::Cluster as _;

const PLAN: &str = "version: 1
plan: split
monolith: { url: '${MONOLITH}' }
services: { service: { url: '${SERVICE}' }, second: { url: '${SECOND}' } }
slices:
  one: { service: service, tables: { orders: { columns: { customer: { references: customers } } } } }
  two: { service: second, tables: { customers: {} } }
";

const SETUP: &str = "CREATE TABLE customers (id int PRIMARY KEY); CREATE TABLE orders (id int PRIMARY KEY, customer int);
    INSERT INTO customers SELECT generate_series(1, 10); INSERT INTO orders SELECT i, i FROM generate_series(1, 10) i";

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_one_slice_looks_for_orphans_where_the_other_slices_rows_are() {
    let (mut split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    create_database(&split.pair.service, "second").await;
    let link = split.pair.service.url("second");
    split.lead("SECOND", &link);
    split.provision();
    let mirror = split.mirror(None);
    let second = connect(&link).await;
    mirror.caught_up(&monolith, &service).await;
    mirror.caught_up(&monolith, &second).await;
    // As after a flip: its customers are the second service's, and the monolith's are a copy of old ones.
    second.batch_execute("UPDATE strangler.gate_two SET state = 'OPEN'").await.unwrap();
    second
        .batch_execute("SET session_replication_role = replica; INSERT INTO customers VALUES (99)")
        .await
        .unwrap();
    monolith.batch_execute("INSERT INTO orders VALUES (11, 99)").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &["--slice", "one"]).assert_clean();
    monolith.batch_execute("INSERT INTO orders VALUES (12, 100)").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let run = Run::of(&split, &["--slice", "one"]);
    assert_eq!(run.counts(), [(Orphan, 1)].into(), "{}", run.ended.page());
    // Where the other service can't be asked nothing is known.
    split.lead("SECOND", "postgres://nobody@127.0.0.1:1/second");
    let run = Run::of(&split, &["--slice", "one"]);
    run.assert_incomplete(&["service second"]);
}
