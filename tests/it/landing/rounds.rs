//! What a snapshot may decide about: transactions that are in the log but not visible, subtransactions, unique
//! values that wander between pieces.

use strangler::failpoint::hooks::Mutant;

use super::{ALL, Stopwatch, TABLES, tell_apart, things};
use crate::support::scenario::{Run, Scenario};

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_pieces_snapshot_does_not_see_is_applied() {
    tell_apart(Mutant::LsnWatermark, async |mutants| {
        let scenario = things().await;
        let _stopwatch = Stopwatch::start();
        let frame = (&Run::new(&mutants), ("locking", 0), ALL);
        // In the log before the piece's position, and not visible to its snapshot.
        let commit = "UPDATE things SET v = -1 WHERE id = 1";
        scenario
            .unseen(frame, commit, async |running| {
                running.hooks.open("locking");
                scenario.until_pieces("range", 2).await;
                running
            })
            .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_follow_the_order_of_keys() {
    let scenario = things().await;
    let run = Run::new(&[]);
    run.hooks.close("round", 2);
    let running = scenario.start(&run);
    scenario.until_pieces("range", 4).await;
    running.crash().await;
    let sql = "SELECT string_agg(hi || ': ' || rows, ', ' ORDER BY hi::int) FROM strangler.piece";
    let ranges: String = scenario.target.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(ranges, "12: 10, 22: 10, 34: 10, 44: 10");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_waits_until_its_snapshot_sees_what_the_stream_delivered() {
    tell_apart(Mutant::NoR1, async |mutants| {
        let scenario = things().await;
        let _stopwatch = Stopwatch::start();
        let frame = (&Run::new(&mutants), ("round", 0), ALL);
        scenario
            .unseen(frame, "UPDATE things SET v = -1 WHERE id = 1", async |mut running| {
                scenario.until_applied().await;
                running.hooks.open("round");
                if mutants.is_empty() {
                    running.until_told("is a synchronous standby away?").await;
                } else {
                    scenario.settled().await;
                }
                running
            })
            .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subtransactions_id_decides_nothing() {
    let scenario = things().await;
    let _stopwatch = Stopwatch::start();
    // The least there is, so that the transaction is streamed before its commit.
    scenario.write("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'").await;
    scenario.write("SELECT pg_reload_conf()").await;
    let commit = "BEGIN; SAVEPOINT a; UPDATE things SET v = -1 WHERE id = 1; RELEASE a; \
         SAVEPOINT b; UPDATE things SET v = -2, big = repeat('y', 9000) WHERE id <= 15; RELEASE b; \
         SAVEPOINT c; DELETE FROM things; ROLLBACK TO c; \
         SAVEPOINT d; DELETE FROM things WHERE id = 3; RELEASE d; COMMIT";
    let visible = "SELECT pg_visible_in_snapshot(xid, pg_current_snapshot()) FROM \
         (SELECT xmax::text::xid8 AS xid FROM things WHERE id = 3) x";
    let frame = (&Run::new(&[]), ("locking", 0), ALL);
    let fault = scenario
        .unseen(frame, commit, async |running| {
            let visible: bool = scenario.source.query_one(visible, &[]).await.unwrap().get(0);
            assert!(visible, "PostgreSQL calls a running subtransaction visible");
            running.hooks.open("locking");
            scenario.until_pieces("range", 2).await;
            running
        })
        .await;
    assert_eq!(fault, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_value_passes_between_pieces_of_different_snapshots() {
    const UNIQUE: &str = "CREATE TABLE things (id int PRIMARY KEY, v int NOT NULL UNIQUE, w int NOT NULL, \
        CONSTRAINT swap UNIQUE (w) DEFERRABLE INITIALLY DEFERRED); \
        INSERT INTO things SELECT n, n, n FROM generate_series(1, 40) n";
    for index_too_early in [false, true] {
        let scenario = Scenario::new(UNIQUE, TABLES).await;
        let _stopwatch = Stopwatch::start();
        if index_too_early {
            scenario.target.batch_execute("CREATE UNIQUE INDEX early ON things (v)").await.unwrap();
        }
        let running = scenario.hold(&Run::new(&[]), ("locking", 1)).await;
        scenario
            .write("UPDATE things SET v = 1000 WHERE id = 1; UPDATE things SET v = 1 WHERE id = 30")
            .await;
        running.hooks.open("locking");
        if index_too_early {
            // The second piece holds a value that the first still has.
            scenario.until_target("SELECT bool_or(state = 'diverged') FROM strangler.mirror_table").await;
            running.stop().await;
            continue;
        }
        scenario.settled().await;
        scenario.until_target("SELECT bool_and(done_at IS NOT NULL) FROM strangler.deferred").await;
        scenario
            .write("UPDATE things SET w = -w WHERE id < 9; UPDATE things SET w = 9 - id WHERE id < 9")
            .await;
        scenario
            .write("UPDATE things SET v = -1 WHERE id = 31; UPDATE things SET v = 31 WHERE id = 32")
            .await;
        scenario.until_applied().await;
        scenario.assert_equal(ALL).await;
        scenario
            .until_target("SELECT count(*) = 2 FROM pg_constraint WHERE conrelid = 'things'::regclass AND contype = 'u'")
            .await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncation_spares_the_pieces_that_were_read_after_it() {
    let scenario = things().await;
    let _stopwatch = Stopwatch::start();
    let running = scenario.hold(&Run::new(&[]), ("locking", 1)).await;
    scenario.write("UPDATE things SET v = -1").await;
    scenario
        .write("TRUNCATE things; INSERT INTO things SELECT n, -2, 'new' FROM generate_series(1, 50) n")
        .await;
    running.hooks.open("locking");
    assert_eq!(scenario.outcome(running, ALL).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncation_gets_through_while_a_round_waits() {
    let schema =
        format!("{}; CREATE TABLE others (id int PRIMARY KEY); INSERT INTO others VALUES (1)", super::THINGS);
    let scenario = Scenario::new(&schema, "      things: {}\n      others: {}\n").await;
    let _stopwatch = Stopwatch::start();
    let frame = (&Run::new(&[]), ("round", 0), ALL);
    let fault = scenario
        .unseen(frame, "UPDATE others SET id = 2", async |mut running| {
            scenario.until_applied().await;
            running.hooks.open("round");
            running.until_told("is a synchronous standby away?").await;
            // The round holds locks on its tables and waits; whoever needs more must not wait for it.
            scenario.write("SET lock_timeout = '20s'; TRUNCATE things").await;
            running
        })
        .await;
    assert_eq!(fault, None);
    scenario.assert_equal("TABLE others").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_locked_before_the_snapshot() {
    tell_apart(Mutant::LateLock, async |mutants| {
        let scenario = things().await;
        let _stopwatch = Stopwatch::start();
        let running = scenario.hold(&Run::new(&mutants), ("snapshot", 0)).await;
        scenario.write("UPDATE things SET v = -1 WHERE id = 1").await;
        let writer = scenario.writer().await;
        let truncating = tokio::spawn(async move { writer.batch_execute("TRUNCATE things").await });
        if mutants.is_empty() {
            scenario.until_source("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)").await;
            running.hooks.open("snapshot");
            truncating.await.unwrap().unwrap();
        } else {
            truncating.await.unwrap().unwrap();
            running.hooks.open("snapshot");
        }
        scenario.outcome(running, ALL).await
    })
    .await;
}
