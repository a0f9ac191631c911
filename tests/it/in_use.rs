//! Whoever reads the service's tables is not made to wait behind the mirror's lock, and does not hold the stream up for ever.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::cluster::connect;
use crate::support::split::{Mirror, Split};
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until, until_blocking};

const SETUP: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n int UNIQUE);
    INSERT INTO t SELECT g, 'v' || g, g FROM generate_series(1, 1000) g; ANALYZE";

/// The longest that the mirror may stand before a table, with some for a machine that does other work; it stood there for as long as a
/// reader had the table.
const PATIENCE: Duration = Duration::from_secs(3);

async fn says(mirror: &Mirror, word: &str) {
    until("it says whom it waits for", SOON, async || mirror.log().contains(word).then_some(())).await;
}

/// Another reader is served while the mirror waits, several times over, and `status` names who has the table.
async fn serves_others(split: &Split, other: &Client) {
    for _ in 0..5 {
        let begun = Instant::now();
        other.query("SELECT count(*) FROM t", &[]).await.unwrap();
        assert!(begun.elapsed() < PATIENCE, "a reader waited for {:?}", begun.elapsed());
        tokio::task::yield_now().await;
    }
    until_blocking("status names the holder", SOON, || {
        split.run("status", &[]).stdout.contains("slow report").then_some(())
    });
}

async fn slow_report(split: &Split) -> Client {
    let reader = split.pair.service().await;
    reader.batch_execute("SET application_name = 'slow report'; BEGIN; SELECT FROM t").await.unwrap();
    reader
}

async fn until_constrained(service: &Client) {
    let there = "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 't'::regclass AND contype = 'u')";
    until("the constraint is added", SOON, async || {
        service.query_one(there, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_copied_table_is_emptied_in_nobodys_way() {
    let setup = "CREATE TABLE t (id text PRIMARY KEY, v text);
        INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 1000) g; ANALYZE";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let killed = split.mirror(Some("part-landed"));
    let status = until_blocking("a part has landed", SOON, || killed.exited());
    assert_eq!(status.code(), None, "{}", killed.log());
    let reader = slow_report(&split).await;
    let mirror = split.mirror(None);
    says(&mirror, "slow report").await;
    serves_others(&split, &service).await;
    reader.batch_execute("COMMIT").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let query = "TABLE t";
    assert_same(Side { client: &monolith, query }, Side { client: &service, query }).await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_waited_for_the_data_is_added_in_nobodys_way() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let reader = slow_report(&split).await;
    let mirror = split.mirror(None);
    says(&mirror, "waits while the table is in use").await;
    serves_others(&split, &service).await;
    reader.batch_execute("COMMIT").await.unwrap();
    until_constrained(&service).await;
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
}

/// Reads without an end, so that at any time somebody does.
async fn read_for_ever(url: String, stop: CancellationToken) {
    let client = connect(&url).await;
    while !stop.is_cancelled() {
        client.batch_execute("SELECT count(*), pg_sleep(1) FROM t").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_truncate_comes_through_although_somebody_always_reads_the_table() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    // It waits for the data, and would wait for these readers, too.
    until_constrained(&service).await;
    let stop = CancellationToken::new();
    let mut readers = Vec::new();
    for _ in 0..3 {
        readers.push(tokio::spawn(read_for_ever(split.pair.service_url(), stop.clone())));
        // Apart from each other by a query that takes part of theirs.
        service.batch_execute("SELECT pg_sleep(0.3)").await.unwrap();
    }
    monolith
        .batch_execute("TRUNCATE t RESTART IDENTITY; INSERT INTO t VALUES (7, 'after', 7)")
        .await
        .unwrap();
    mirror.caught_up(&monolith, &service).await;
    let query = "TABLE t";
    assert_same(Side { client: &monolith, query }, Side { client: &service, query }).await;
    assert!(mirror.log().contains("a TRUNCATE waits while table t is in use"), "{}", mirror.log());
    stop.cancel();
    for reader in readers {
        reader.await.unwrap();
    }
    mirror.stop();
}
