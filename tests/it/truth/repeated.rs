//! Runs on a schedule, and the tables that they are asked for.

use std::time::Duration;

use rustix::process::Signal;
use strangler::mapping::compile;
use strangler::plan::parse;
use strangler::postgres::introspect;
use tokio_postgres::Client;

use crate::support::split::Split;
use crate::support::wait::{SOON, until, within};

const PLAN: &str = "version: 1
plan: split
monolith: { url: '${MONOLITH}' }
services: { service: { url: '${SERVICE}' } }
slices: { one: { service: service, tables: { 'shop.*': {} } } }
";

const SETUP: &str = "CREATE SCHEMA shop; CREATE TABLE shop.a (id int PRIMARY KEY); CREATE TABLE shop.b (id int PRIMARY KEY);
    INSERT INTO shop.a SELECT generate_series(1, 100); INSERT INTO shop.b SELECT generate_series(1, 100); ANALYZE";

async fn verdicts(service: &Client, of: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM strangler.ledger WHERE kind = 'verdict' AND {of}");
    service.query_one(&sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_the_plan_does_not_have_is_refused_before_the_first_run() {
    let (split, _monolith, _service) = Split::with_plan(PLAN, SETUP).await;
    for schedule in [["--cron", "0 0 1 1 *"], ["--every", "1h"]] {
        let arguments = [&schedule[..], &["--jitter", "0s", "--table", "shop.c"]].concat();
        let running = split.start("reconcile", &arguments);
        let ended = tokio::task::spawn_blocking(move || running.ended());
        let ended = within("it is refused", Duration::from_secs(20), ended).await.unwrap();
        assert_eq!(ended.exit, Some(2), "{}", ended.page());
        assert!(ended.stderr.contains("shop.c") && ended.stderr.contains("shop.b"), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_schedule_outlives_a_table_that_it_was_asked_for() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let asked = ["--every", "1s", "--jitter", "0s", "--table", "shop.b", "--output", "latest.txt"];
    let running = split.start("reconcile", &asked);
    until("the first verdict", SOON, async || (verdicts(&service, "true").await > 0).then_some(())).await;
    mirror.stop();
    monolith.batch_execute("DROP TABLE shop.b").await.unwrap();
    // As after the slice was provisioned anew for what the plan means now.
    let plan = parse(PLAN.as_bytes(), "plan.yaml").unwrap_or_else(|_| panic!("the plan is one")).plan;
    let (mappings, _) = compile(&plan, &introspect::read(&monolith).await.unwrap());
    service.execute("UPDATE strangler.slice SET plan_hash = $1", &[&mappings["one"].hash]).await.unwrap();
    let lost = "body::text LIKE '%table shop.b was asked for, and is not among%' AND body ->> 'outcome' = 'incomplete'";
    until("verdicts say what is missing", SOON, async || (verdicts(&service, lost).await > 1).then_some(()))
        .await;
    running.signal(Signal::INT);
    let ended = running.ended();
    assert_eq!(ended.exit, Some(130), "{}", ended.page());
}
