//! Rows that come to a moved table without an event, as a partition or a child, while a gate is being closed; and locks of a fence
//! that no writer is sacrificed for.

use std::sync::Mutex;

use rustix::process::Signal;
use tokio_postgres::Client;

use super::bank::Side;
use super::crash::frozen;
use super::{UNPROVEN, armed_with, complete, owner};
use crate::support::binary::flat;
use crate::support::wait::{SOON, until};

const TABLES: &str = "{ t: {}, ev: {} }";

const SETUP: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i;
CREATE TABLE ev (id int, region int, half int, PRIMARY KEY (id, region, half)) PARTITION BY LIST (region);
CREATE TABLE ev0 PARTITION OF ev FOR VALUES IN (0);
CREATE TABLE ev1 PARTITION OF ev FOR VALUES IN (1) PARTITION BY LIST (half);
CREATE TABLE ev10 PARTITION OF ev1 FOR VALUES IN (0);
INSERT INTO ev SELECT i, i % 2, 0 FROM generate_series(1, 20) i;
CREATE TABLE loose (LIKE ev INCLUDING ALL); INSERT INTO loose SELECT i, 2, 0 FROM generate_series(100, 119) i;
CREATE TABLE deep (LIKE ev INCLUDING ALL); INSERT INTO deep SELECT i, 1, 1 FROM generate_series(200, 219) i; ANALYZE";

async fn count(client: &Client, table: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_partition_comes_or_goes_between_the_look_at_the_tables_and_the_fence() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    let late = frozen(&split, "flip-drained", Side::Service, &[]);
    monolith.batch_execute("SET lock_timeout = '150ms'").await.unwrap();
    for change in [
        "ALTER TABLE ev ATTACH PARTITION loose FOR VALUES IN (2)",
        "ALTER TABLE ev1 ATTACH PARTITION deep FOR VALUES IN (1)",
        "ALTER TABLE ev DETACH PARTITION ev0 CONCURRENTLY",
    ] {
        let refused = monolith.batch_execute(change).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "55P03", "{change}");
    }
    monolith.batch_execute("INSERT INTO t VALUES (99, 99)").await.unwrap_err();
    late.signal(Signal::CONT);
    let ended = late.ended();
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    assert_eq!(count(&service, "ev").await, count(&monolith, "ev").await);
    complete(&split, &mirror, &[&["--back"], &UNPROVEN as &[&str]].concat());

    // One that comes before is met by the look that follows.
    let late = frozen(&split, "flip-looked", Side::Service, &[]);
    monolith.batch_execute("ALTER TABLE ev1 ATTACH PARTITION deep FOR VALUES IN (1)").await.unwrap();
    late.signal(Signal::CONT);
    let ended = late.ended();
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(flat(&ended.stderr).contains("table deep has no trigger"), "{}", ended.page());
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("OPEN", "FENCED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_comes_to_a_table_while_the_writers_are_held_keeps_the_gate_open() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    for (side, from) in [(Side::Service, &monolith), (Side::Monolith, &service)] {
        let late = frozen(&split, "flip-drained", side, &[]);
        // It would end, once it looks.
        mirror.signal(Signal::STOP);
        from.batch_execute("CREATE TABLE kid () INHERITS (t); INSERT INTO kid VALUES (9001, 1)")
            .await
            .unwrap();
        late.signal(Signal::CONT);
        let ended = late.ended();
        assert_eq!(ended.exit, Some(3), "{}", ended.page());
        for words in [
            "(changed-meanwhile)",
            "since it was judged: public.kid inherits from public.t",
            "authority was not moved",
        ] {
            assert!(flat(&ended.stderr).contains(words), "{words}: {}", ended.page());
        }
        assert_eq!(owner(from).await.0, "OPEN");
        from.batch_execute("DROP TABLE kid").await.unwrap();
        mirror.signal(Signal::CONT);
        complete(&split, &mirror, &[super::back(side), &UNPROVEN as &[&str]].concat());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_a_fence_from_locking_a_partitioned_table_is_named() {
    let (split, monolith, _service, _mirror) = armed_with(TABLES, SETUP, "").await;
    let analyze = "SET application_name = 'nightly analyze'; BEGIN; ANALYZE ev; SELECT pg_backend_pid()";
    monolith.batch_execute(analyze).await.unwrap();
    until("it is named", SOON, async || {
        let ended = split.run("flip", &["--rehearse"]);
        let page = flat(&ended.page());
        let named =
            page.contains("(table-locked)") && page.contains("ShareUpdateExclusiveLock on public.ev, by");
        (named && page.contains("nightly analyze")).then_some(())
    })
    .await;
}

/// Whether a fence has waited for the gate's lock for so long that its server has looked for a deadlock, found none, and will not look
/// again. What waits for the fence from now on finds the deadlock itself, and is the victim.
const LONG_WAIT: &str = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND NOT l.granted AND a.application_name = 'strangler flip'
        AND clock_timestamp() - l.waitstart > interval '450 ms')";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_writer_that_empties_a_second_table_is_never_the_victim_of_a_fence_that_waits_for_it() {
    let (split, monolith, _service, _mirror) = armed_with(TABLES, SETUP, "").await;
    let watcher = split.pair.monolith().await;
    watcher.batch_execute("ALTER SYSTEM SET deadlock_timeout = '100ms'").await.unwrap();
    watcher.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until("the server looks for deadlocks sooner", SOON, async || {
        let row = monolith.query_one("SHOW deadlock_timeout", &[]).await.unwrap();
        (row.get::<_, &str>(0) == "100ms").then_some(())
    })
    .await;
    monolith.batch_execute("BEGIN; UPDATE t SET v = v + 1 WHERE id = 1").await.unwrap();
    let flip = Mutex::new(split.start("flip", &UNPROVEN));
    until("a fence waits for long, or the flip gives up", SOON, async || {
        let waits: bool = watcher.query_one(LONG_WAIT, &[]).await.unwrap().get(0);
        (waits || flip.lock().unwrap().has_ended()).then_some(())
    })
    .await;
    let emptied = monolith.batch_execute("TRUNCATE ev").await;
    assert!(emptied.is_ok(), "{emptied:?}");
    monolith.batch_execute("COMMIT").await.unwrap();
}
