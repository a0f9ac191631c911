//! The authority goes there and back while applications write, and the mirror that runs all the while follows.

use std::time::Duration;

use super::stage::{Stage, Way, holds};
use super::writers::Writers;
use crate::support::cluster::{Pair, launch_with, options};
use crate::support::wait::{SOON, until};
use strangler::cluster::{Binaries, Options};

/// Moves the authority so often there and back, with writers on whichever side takes them.
async fn turn(stage: &Stage, times: i64) {
    let mirror = stage.mirror().await;
    let writers = Writers::start(stage, 4).await;
    writers.progress(0, 20).await;
    for round in 0..times {
        stage.flip(2 + 2 * round).await;
        writers.progress(1, 20).await;
        assert!(mirror.exited().is_none(), "{}", mirror.log());
        stage.flip_back(3 + 2 * round).await;
        writers.progress(0, 20).await;
        assert!(mirror.exited().is_none(), "{}", mirror.log());
    }
    let rows = writers.stop().await;
    stage.arrived(Way::Forward).await;
    stage.assert_equal().await;
    let list = rows.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let found = format!("SELECT count(*) FROM pairs WHERE a IN ({list})");
    assert_eq!(stage.count(&stage.monolith, &found).await, i64::try_from(rows.len()).unwrap());
    stage.watched(Way::Reverse).await;
    assert_eq!(stage.alarms().await, Vec::<String>::new());
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn five_times_there_and_back_under_writers_nothing_is_lost_doubled_or_alarmed() {
    turn(&Stage::armed().await, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turned_row_is_followed_within_a_fraction_of_a_second() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    let begun = std::time::Instant::now();
    stage.arrived(Way::Reverse).await;
    let took = begun.elapsed().div_f64(crate::support::wait::slowness().max(1.0));
    assert!(took < Duration::from_secs(2), "{took:?}");
    crate::support::say(&format!("the way back applied {} ms after its row turned", took.as_millis()));
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn between_the_oldest_and_the_newest_version_it_goes_there_and_back() {
    let installed = Binaries::find_all().unwrap();
    let of = |major| installed.iter().find(|binaries| binaries.version.major == major);
    let usual = Binaries::find().unwrap();
    let (old, new) = (of(14).unwrap_or(&usual), of(18).unwrap_or(&usual));
    for (monolith, service) in [(old, new), (new, old)] {
        let on = |binaries: &Binaries| launch_with(Options { binaries: Some(binaries.clone()), ..options() });
        let pair = Pair::of(on(monolith), on(service), "").await;
        turn(&Stage::armed_between(pair).await, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_is_disarmed_and_armed_again_has_its_way_back_without_a_new_mirror() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    let proven = stage.split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    stage
        .on_monolith("UPDATE strangler.stream SET mode = 'OFF', nonce = nonce + 1 WHERE dir = 'reverse'")
        .await;
    let free = "SELECT bool_and(NOT active) FROM pg_replication_slots";
    until("the way back lets go", SOON, async || holds(&stage.service, free).await.then_some(())).await;
    stage.on_monolith("DELETE FROM strangler.stream WHERE dir = 'reverse'").await;
    stage.on_service("SELECT pg_drop_replication_slot('back_one')").await;
    stage.on_monolith("UPDATE pairs SET v = -v WHERE a = 1").await;
    stage.arrived(Way::Forward).await;
    stage.begin_way_back().await;
    stage.streams_run(&mirror).await;
    stage.carries_back(mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_truncate_of_partitions_is_heard_on_both_sides_and_one_that_no_stream_tells_is_noted() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    let noted = "SELECT count(*) FROM strangler.journal WHERE action = 'changed-unheard'";
    let both = async || (stage.count(&stage.service, noted).await, stage.count(&stage.monolith, noted).await);
    stage.flip(2).await;
    stage.looked(&mirror).await;
    stage.on_service("TRUNCATE happenings; INSERT INTO happenings VALUES (1, '2024-12-05', 'new')").await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    stage.looked(&mirror).await;
    assert_eq!(both().await, (0, 0), "{}", mirror.log());
    let emptied = "TRUNCATE events_old; INSERT INTO events_old VALUES (1, '2024-12-05', 'new')";
    stage.write_stray("events_old", emptied).await;
    stage.looked(&mirror).await;
    assert_eq!(both().await, (1, 0), "rows may be lost on the fenced monolith: {}", mirror.log());
    stage.flip_back(3).await;
    stage.on_monolith("TRUNCATE events; INSERT INTO events VALUES (2, '2024-12-06', 'again')").await;
    stage.arrived(Way::Forward).await;
    stage.looked(&mirror).await;
    stage.assert_equal().await;
    assert_eq!(both().await, (1, 0), "{}", mirror.log());
    mirror.stop();
}
