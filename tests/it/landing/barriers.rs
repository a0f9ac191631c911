//! What a start has to wait for, and whom it shuts out.

use strangler::cdc::error::MirrorError;
use strangler::cdc::source;
use strangler::failpoint::hooks::Mutant;

use super::{ALL, Stopwatch, tell_apart, things};
use crate::support::cluster::{connect, create_database, launch};
use crate::support::scenario::Run;
use crate::support::tables::dump;
use crate::support::wait::{SOON, until};
use strangler::cluster::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_what_an_earlier_process_has_consumed() {
    tell_apart(Mutant::NoBarrier, async |mutants| {
        let scenario = things().await;
        let _stopwatch = Stopwatch::start();
        let frame = (&Run::new(&[]), ("round", 0), ALL);
        // Consumed and passed by a process that remembers it until a snapshot sees it, and dies before.
        scenario
            .unseen(frame, "UPDATE things SET v = -1 WHERE id = 1", async |running| {
                scenario.until_applied().await;
                running.crash().await;
                let mut running = scenario.start(&Run::new(&mutants));
                if mutants.is_empty() {
                    running.until_phase("copying").await;
                    scenario.until_applied().await;
                    assert!(dump(&scenario.target, ALL).await.is_empty(), "nothing is copied yet");
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
async fn the_barrier_waits_for_a_writer_that_the_snapshots_upper_end_would_let_pass() {
    let cluster = launch();
    create_database(&cluster, "barrier").await;
    let url = cluster.url("barrier");
    let session = || connect(&url);
    let (adding, writer, asking) = (session().await, session().await, session().await);
    adding.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    let _stopwatch = Stopwatch::start();
    adding.batch_execute("BEGIN; CREATE PUBLICATION p FOR TABLE t").await.unwrap();
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    adding.batch_execute("COMMIT").await.unwrap();
    let snapshot = source::snapshot(&asking).await.unwrap();
    let bounds = "SELECT pg_snapshot_xmin(s)::text = pg_snapshot_xmax(s)::text FROM pg_current_snapshot() s";
    let passes: bool = asking.query_one(bounds, &[]).await.unwrap().get(0);
    assert!(passes, "waiting for xmin >= xmax would end at once: {snapshot}");
    let barrier = source::take_barrier(&asking).await.unwrap();
    assert!(source::snapshot(&asking).await.unwrap().xmin() <= barrier, "the writer runs");
    writer.batch_execute("COMMIT").await.unwrap();
    until("the barrier is passed", SOON, async || {
        (source::snapshot(&asking).await.unwrap().xmin() > barrier).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_taken_over_in_a_round_lands_nothing_more() {
    let scenario = things().await;
    let _stopwatch = Stopwatch::start();
    let older = scenario.hold(&Run::new(&[]), ("landing", 1)).await;
    scenario.until_pieces("range", 1).await;
    let newer = scenario.start(&Run::new(&[]));
    scenario.write("UPDATE things SET v = -1 WHERE id < 20").await;
    scenario.settled().await;
    older.hooks.open("landing");
    assert!(matches!(older.end().await, Err(MirrorError::Fenced { .. })));
    scenario.write("DELETE FROM things WHERE id = 7").await;
    scenario.until_applied().await;
    scenario.assert_equal(ALL).await;
    newer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_does_not_wait_for_a_standby() {
    let scenario = things().await;
    let _stopwatch = Stopwatch::start();
    let running = scenario.hold(&Run::new(&[]), ("round", 0)).await;
    scenario.lose_the_standby().await;
    let hung = scenario.hung().await;
    let position = scenario.position().await;
    // The round's end asks for a heartbeat; without one nothing brings the stream past the round.
    running.hooks.close("round", 1);
    scenario.until_pieces("range", 2).await;
    scenario.until_target(&format!("SELECT applied_lsn > '{position}' FROM strangler.stream")).await;
    assert_eq!(scenario.hung().await, hung, "no session of the mirror's hangs");
    scenario.forget_the_standby().await;
    running.hooks.open("round");
    assert_eq!(scenario.outcome(running, ALL).await, None);
}
