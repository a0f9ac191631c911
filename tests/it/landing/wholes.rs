//! Tables that are copied whole, in parts by physical place.

use strangler::failpoint::hooks::Mutant;
use tokio_postgres::error::SqlState;

use super::{ALL, Stopwatch, TABLES, tell_apart};
use crate::support::scenario::{Run, Scenario};

/// 400 rows on a dozen pages, taken for a large table without order.
async fn heap() -> Scenario {
    let schema = "CREATE TABLE things (id int PRIMARY KEY, v int NOT NULL, pad text); \
        INSERT INTO things SELECT n, n, repeat('p', 200) FROM generate_series(1, 400) n";
    let mut scenario = Scenario::new(schema, TABLES).await;
    scenario.table().key_correlation = Some(0.0);
    scenario.table().rows_estimate = 1_000_000.0;
    scenario
}

/// Two workers, of which the second is held before it reads.
fn two_workers(mutants: &[Mutant]) -> Run {
    let run = Run { workers: 2, ..Run::new(mutants) };
    run.hooks.close("landing", 1);
    run
}

async fn until_first_part(scenario: &Scenario) {
    scenario.until_target("SELECT count(*) = 1 FROM strangler.part").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_lost_snapshot_are_copied_again() {
    tell_apart(Mutant::PartsKept, async |mutants| {
        let scenario = heap().await;
        let _stopwatch = Stopwatch::start();
        let running = scenario.start(&two_workers(&[]));
        until_first_part(&scenario).await;
        running.crash().await;
        scenario.write("DELETE FROM things WHERE id <= 50").await;
        let running = scenario.start(&Run { workers: 2, ..Run::new(&mutants) });
        scenario.outcome(running, ALL).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_meet_where_they_end_while_the_table_grows() {
    let scenario = heap().await;
    let _stopwatch = Stopwatch::start();
    let running = scenario.start(&two_workers(&[]));
    until_first_part(&scenario).await;
    scenario
        .write("INSERT INTO things SELECT n, n, repeat('q', 200) FROM generate_series(401, 2000) n")
        .await;
    running.hooks.open("landing");
    assert_eq!(scenario.outcome(running, ALL).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_not_rewritten_between_two_workers() {
    let scenario = heap().await;
    let _stopwatch = Stopwatch::start();
    scenario.write("DELETE FROM things WHERE id % 2 = 0").await;
    let running = scenario.start(&two_workers(&[]));
    until_first_part(&scenario).await;
    let writer = scenario.writer().await;
    writer.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
    let refused = writer.batch_execute("VACUUM FULL things").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
    running.hooks.open("landing");
    scenario.settled().await;
    scenario.assert_equal(ALL).await;
    writer.batch_execute("SET lock_timeout = 0; UPDATE things SET v = -v").await.unwrap();
    writer.batch_execute("VACUUM FULL things").await.unwrap();
    scenario.until_applied().await;
    scenario.assert_equal(ALL).await;
    running.stop().await;
}
