//! Mirrors die and come back, and so does the service, while runs go on: no run finds what is not there.

use std::time::Duration;

use strangler::cluster::{Cluster, StopMode};

use super::found::Run;
use super::stage::{Writers, corrupt};
use crate::support::split::Split;
use crate::support::{say, soak};

const SETUP: &str = "CREATE TABLE things (id int PRIMARY KEY, v int, note text);
    INSERT INTO things SELECT i, i, 'note ' || i FROM generate_series(1, 3000) i;
    CREATE TABLE words (word text COLLATE \"en-x-icu\" PRIMARY KEY, v int);
    INSERT INTO words SELECT 'word ' || i, i FROM generate_series(1, 1000) i; ANALYZE";

fn write(random: &mut fastrand::Rng) -> String {
    let (id, other) = (random.u32(100..=3000), random.u32(100..=3000));
    match random.u32(0..6) {
        0 | 1 => format!("UPDATE things SET v = v + 1 WHERE id = {id}"),
        2 => format!("DELETE FROM things WHERE id = {id}"),
        3 => format!(
            "INSERT INTO things VALUES ({id}, 0, 'new') ON CONFLICT (id) DO UPDATE SET note = 'again'"
        ),
        4 => format!(
            "UPDATE things SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM things WHERE id = {other})"
        ),
        _ => format!("UPDATE words SET v = v + 1 WHERE v % 100 = {}", id % 100),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn no_run_finds_what_is_not_there_while_mirrors_and_the_service_die() {
    let (mut split, monolith, service) = Split::launch("{ things: {}, words: {} }", SETUP).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    drop(service);
    let writers = Writers::start(&split.pair.monolith_url(), write).await;
    let mut random = fastrand::Rng::new();
    let (mut exits, mut unreachable) = (std::collections::BTreeMap::new(), Vec::new());
    for round in 0..if soak() { 60 } else { 8 } {
        let before = writers.done();
        let background = split.start("reconcile", &["--format", "json", "--strict"]);
        tokio::time::sleep(Duration::from_millis(random.u64(50..1_200))).await;
        if round % 3 == 2 {
            split.pair.service.stop(StopMode::Immediate).unwrap();
            split.pair.service.start().unwrap();
        } else {
            mirror.kill();
        }
        // A mirror may outlive its service or not; two of one slice are told apart by the newer one taking over.
        if mirror.exited().is_some() {
            mirror = split.mirror(None);
        }
        let ended = background.ended();
        writers.assert_got_on(&before);
        *exits.entry(ended.exit).or_insert(0) += 1;
        if ended.exit == Some(4) {
            unreachable.push(ended.stderr);
            continue;
        }
        let run = Run::read(ended);
        assert!(run.counts().is_empty() && matches!(run.ended.exit, Some(0 | 5)), "{}", run.ended.page());
        assert_eq!(run.ended.exit == Some(0), run.reasons().is_empty(), "{}", run.ended.page());
    }
    let written = writers.stop().await;
    say(&format!("exit codes {exits:?} beside {written} writes: {unreachable:?}"));
    let service = split.pair.service().await;
    if mirror.exited().is_some() {
        mirror = split.mirror(None);
    }
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &["--strict"]).assert_clean();
    // And it has not become blind.
    corrupt(&service, "UPDATE things SET v = -1 WHERE id = 5").await;
    assert_eq!(Run::of(&split, &[]).ended.exit, Some(1));
}
