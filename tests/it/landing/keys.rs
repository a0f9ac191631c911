//! Key changes whose ends stand differently, and rows that have to be read again.

use strangler::failpoint::hooks::Mutant;

use super::{ALL, Stopwatch, TABLES, tell_apart, things};
use crate::support::scenario::{Run, Scenario};

/// A key change from an older piece into a newer one, and one back, both in the backlog of the newer.
async fn change_keys_between_pieces(mutants: Vec<Mutant>) -> Option<String> {
    let scenario = things().await;
    let _stopwatch = Stopwatch::start();
    let run = Run::new(&mutants);
    run.hooks.close("locking", 1);
    let mut running = scenario.start(&run);
    running.hooks.reached("locking").await;
    scenario.write("UPDATE things SET id = 25 WHERE id = 4; UPDATE things SET id = 6 WHERE id = 27").await;
    running.hooks.open("locking");
    scenario.settled().await;
    let fault = scenario.fault(ALL).await;
    if mutants.is_empty() {
        running.until_counted(|counts| counts.mixed_key_changes == 2 && counts.refetched == 1).await;
    }
    running.stop().await;
    fault
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_change_between_pieces_of_different_snapshots_is_no_update() {
    tell_apart(Mutant::OneUpdate, change_keys_between_pieces).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_leaves_out_is_read_again() {
    tell_apart(Mutant::NoRefetch, change_keys_between_pieces).await;
}

/// A row comes from a range that is not copied into one that is.
async fn arrive_from_nowhere(schema: &str) -> u64 {
    let scenario = Scenario::new(schema, TABLES).await;
    let _stopwatch = Stopwatch::start();
    let run = Run::new(&[]);
    run.hooks.close("round", 1);
    let mut running = scenario.start(&run);
    scenario.until_pieces("range", 2).await;
    scenario.write("UPDATE things SET id = 5 WHERE id = 40").await;
    scenario.write("UPDATE things SET id = 41 WHERE id = 1").await;
    scenario.until_applied().await;
    running.until_counted(|counts| counts.mixed_key_changes == 2).await;
    let refetched = running.counts().refetched;
    running.hooks.open("round");
    scenario.settled().await;
    scenario.assert_equal(ALL).await;
    running.stop().await;
    refetched
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_row_that_the_stream_cuts_short_is_read_again() {
    let rows = "INSERT INTO things SELECT n, n, repeat('x', 3000) FROM generate_series(1, 40) n WHERE n <> 5";
    let cut_short = format!(
        "CREATE TABLE things (id int PRIMARY KEY, v int, big text); \
         ALTER TABLE things ALTER big SET STORAGE EXTERNAL; {rows}"
    );
    assert_eq!(arrive_from_nowhere(&cut_short).await, 1);
    let whole_identity = format!("{cut_short}; ALTER TABLE things REPLICA IDENTITY FULL");
    assert_eq!(arrive_from_nowhere(&whole_identity).await, 0, "the old row holds the value");
    let short = cut_short.replace("3000", "3");
    assert_eq!(arrive_from_nowhere(&short).await, 0, "the new row holds the value");
}

/// A row is read again under a snapshot that sees it gone already; the mirror dies after that. Returns what is wrong
/// in the end, with the pieces of single keys remembered or forgotten.
async fn die_after_a_refetch(forget: bool) -> Option<String> {
    let scenario = things().await;
    let _stopwatch = Stopwatch::start();
    let run = Run::new(&[]);
    run.hooks.close("round", 1);
    run.hooks.close("applied", 0);
    let running = scenario.start(&run);
    scenario.until_pieces("range", 2).await;
    running.hooks.close("begin", 0);
    scenario.write("UPDATE things SET v = -1 WHERE id = 1; UPDATE things SET id = 5 WHERE id = 40").await;
    scenario.write("DELETE FROM things WHERE id = 5").await;
    running.hooks.reached("begin").await;
    running.hooks.open("begin");
    running.hooks.reached("applied").await;
    scenario.until_pieces("key", 1).await;
    running.crash().await;
    if forget {
        scenario.target.batch_execute("DELETE FROM strangler.piece WHERE kind = 'key'").await.unwrap();
    }
    let running = scenario.start(&Run::new(&[]));
    scenario.outcome(running, ALL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_piece_of_a_row_that_was_read_again_outlives_a_crash() {
    assert_eq!(die_after_a_refetch(false).await, None);
    assert!(die_after_a_refetch(true).await.is_some(), "without it the row's deletion is met twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_stops_while_it_waits_to_read_a_row_again() {
    let scenario = things().await;
    let _stopwatch = Stopwatch::start();
    let run = Run::new(&[]);
    run.hooks.close("round", 1);
    let running = scenario.start(&run);
    scenario.until_pieces("range", 2).await;
    scenario.lose_the_standby().await;
    running.hooks.close("begin", 0);
    scenario.commit_invisibly("UPDATE things SET id = 5 WHERE id = 40").await;
    running.hooks.reached("begin").await;
    running.hooks.open("begin");
    // It reads under snapshots of ever new transactions until one sees the change.
    scenario
        .until_source(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'strangler%' \
             AND query = 'ROLLBACK')",
        )
        .await;
    running.stop().await;
    scenario.until_target("SELECT stopped_at IS NOT NULL FROM strangler.mirror_process").await;
    scenario.forget_the_standby().await;
    let running = scenario.start(&Run::new(&[]));
    assert_eq!(scenario.outcome(running, ALL).await, None);
}
