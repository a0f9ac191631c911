//! How a partition belongs to its table is told from what a crash, a statement that was rolled back, or housekeeping leaves in the
//! catalogs.

use strangler::cluster::{Cluster, StopMode};
use tokio_postgres::Client;

use crate::support::split::{Mirror, Split};
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};

const EVENTS: &str = "CREATE TABLE ev (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
    CREATE TABLE ev1 PARTITION OF ev FOR VALUES IN (1);
    CREATE TABLE ev2 PARTITION OF ev FOR VALUES IN (2) PARTITION BY LIST (id);
    CREATE TABLE ev20 PARTITION OF ev2 DEFAULT;
    INSERT INTO ev SELECT g, 1 + g % 2, 'v' FROM generate_series(1, 300) g; ANALYZE";

const TIED_AGAIN: &str =
    "ALTER TABLE ev DETACH PARTITION ev1; ALTER TABLE ev ATTACH PARTITION ev1 FOR VALUES IN (1)";

fn proven(split: &Split, wanted: bool) {
    let status = split.run("status", &[]);
    assert_eq!(status.stdout.contains("both sides are proven equal"), wanted, "{}", status.page());
}

async fn goes_on(split: &Split, mirror: &Mirror, monolith: &Client, service: &Client) {
    mirror.looked_twice(service).await;
    monolith.batch_execute("UPDATE ev SET v = v || '.' WHERE id < 5").await.unwrap();
    mirror.caught_up(monolith, service).await;
    let query = "TABLE ev";
    assert_same(Side { client: monolith, query }, Side { client: service, query }).await;
    proven(split, true);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_crash_a_rolled_back_drop_and_housekeeping_neither_stop_a_partitioned_table_nor_void_its_evidence()
{
    let (mut split, monolith, service) = Split::launch("{ ev: {} }", EVENTS).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    let compared = split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    for sql in [
        "BEGIN; DROP TABLE ev1; ROLLBACK",
        "BEGIN; DROP TABLE ev2; ROLLBACK; BEGIN; ALTER TABLE ev DETACH PARTITION ev2; ROLLBACK",
        "BEGIN; SAVEPOINT a; DROP TABLE ev1; ROLLBACK TO a; COMMIT",
        "VACUUM FULL pg_inherits",
        "VACUUM FULL pg_attribute",
    ] {
        monolith.batch_execute(sql).await.unwrap();
        goes_on(&split, &mirror, &monolith, &service).await;
    }
    mirror.stop();
    monolith.batch_execute("BEGIN; DROP TABLE ev1; ROLLBACK").await.unwrap();
    drop(monolith);
    // WAL of the ties is replayed, without the numbers of commands.
    split.pair.monolith.stop(StopMode::Immediate).unwrap();
    split.pair.monolith.start().unwrap();
    let monolith = split.pair.monolith().await;
    mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    goes_on(&split, &mirror, &monolith, &service).await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_measure_that_an_earlier_version_took_of_partitions_goes_on() {
    let (split, monolith, service) = Split::launch("{ ev: {} }", EVENTS).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    mirror.stop();
    let earlier = "UPDATE strangler.baseline SET contents = regexp_replace(contents::text, \
        '(\\d+)/(\\d+)', ' \\1 \\2 3', 'g')::json";
    let there = "SELECT contents::text LIKE '% 3\"%' FROM strangler.baseline";
    service.batch_execute(earlier).await.unwrap();
    assert!(service.query_one(there, &[]).await.unwrap().get::<_, bool>(0));
    mirror = split.mirror(None);
    mirror.looked_twice(&service).await;
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
}

async fn is_told(split: &Split, (monolith, service): (&Client, &Client), sql: &str, running: bool) {
    let mirror = split.mirror(None);
    mirror.caught_up(monolith, service).await;
    mirror.looked_twice(service).await;
    if !running {
        mirror.stop();
    }
    monolith.batch_execute(sql).await.unwrap();
    let mirror = if running { mirror } else { split.mirror(None) };
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{sql}: {log}");
    assert!(log.contains("its partition public.ev1 was detached"), "{sql}: {log}");
    let copy = "SELECT copy_number FROM strangler.mirror_table";
    let before: i32 = service.query_one(copy, &[]).await.unwrap().get(0);
    let mirror = split.mirror_with(None, &["--retry", "ev"]);
    until("the table is emptied", SOON, async || {
        (service.query_one(copy, &[]).await.unwrap().get::<_, i32>(0) > before).then_some(())
    })
    .await;
    mirror.caught_up(monolith, service).await;
    mirror.stop();
    let query = "TABLE ev";
    assert_same(Side { client: monolith, query }, Side { client: service, query }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_partition_that_was_away_is_told_in_one_transaction_and_in_two_with_writes_and_without() {
    let (split, monolith, service) = Split::launch("{ ev: {} }", EVENTS).await;
    split.provision();
    let both = (&monolith, &service);
    let written = "ALTER TABLE ev DETACH PARTITION ev1; UPDATE ev1 SET v = 'unheard';
        ALTER TABLE ev ATTACH PARTITION ev1 FOR VALUES IN (1)";
    for (number, sql) in [TIED_AGAIN, written].into_iter().enumerate() {
        is_told(&split, both, &format!("BEGIN; {sql}; COMMIT"), number == 0).await;
        for statement in [false, true] {
            // Each statement is a transaction of its own.
            let apart = sql.replace(';', "; COMMIT; BEGIN;");
            is_told(&split, both, &format!("BEGIN; {apart}; COMMIT"), statement).await;
        }
    }
}
