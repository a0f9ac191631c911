//! Nothing is lost: the mirror is killed at every durable step and at random moments, the servers crash, and in the
//! end both sides are equal and every acknowledged write is there once.

use std::time::Duration;

use rustix::process::Signal;
use strangler::cluster::{Cluster, StopMode};
use strangler::failpoint;

use crate::support::bench::{Bench, Mirror};
use crate::support::wait::{until, until_blocking};
use crate::support::writers::{Options, Workload};

/// How long a mirror may take to reach a kill point.
const REACH: Duration = Duration::from_secs(40);

fn soak() -> bool {
    std::env::var_os("STRANGLER_SOAK").is_some()
}

/// 8 writers at a rate that leaves two cores some air.
fn load() -> Options {
    Options { per_second: Some(if soak() { 300 } else { 150 }), truncate: true, ..Options::default() }
}

async fn start(settings: &[(&str, &str)]) -> (Bench, Workload) {
    let bench = Bench::launch(settings).await;
    let workload = Workload::start(&bench.application(), &load()).await;
    bench.succeed(&["provision", "plan.yaml"]);
    (bench, workload)
}

/// Lets a mirror run under the writers until the kill point has ended it. `false` when it lived on, which it then
/// does not any more.
async fn killed_at(bench: &Bench, workload: &Workload, name: &str, arguments: &[&str]) -> bool {
    workload.busy().await;
    if name == "stopped-cleanly" {
        let mut mirror = bench.mirror(Some(name), &[]);
        bench.caught_up().await;
        mirror.signal(Signal::TERM);
        return std::os::unix::process::ExitStatusExt::signal(&mirror.wait(REACH)) == Some(9);
    }
    killed_while(bench, name, arguments, || {
        assert!(workload.in_flight() > 0, "a kill with no transaction in flight proves little");
    })
}

fn killed_while(bench: &Bench, name: &str, arguments: &[&str], check: impl FnOnce()) -> bool {
    let mut mirror = bench.mirror(Some(name), arguments);
    let deadline = std::time::Instant::now() + REACH;
    let died = until_blocking("the kill point or the end of patience", REACH * 2, || {
        let ended = mirror.exited();
        (ended.is_some() || std::time::Instant::now() > deadline).then_some(ended)
    });
    check();
    match died {
        None => {
            mirror.kill();
            false
        }
        Some(status) => {
            let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
            assert!(killed, "at {name} the mirror ended by itself: {status}\n{}", mirror.log());
            true
        }
    }
}

async fn finish(bench: &Bench, workload: Workload, mirror: Mirror) {
    let ledger = workload.stop().await;
    bench.caught_up().await;
    mirror.stop();
    bench.assert_equal(&ledger).await;
    ledger.assert_every_kind();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_mirror_is_killed_at_every_durable_step() {
    let (bench, workload) = start(&[]).await;
    let mut missed = Vec::new();
    let mut workload = workload;
    for name in failpoint::MIRROR {
        if *name == "idle-persisted" {
            // Only a stream without changes gets there: the writers rest, one transaction stays open.
            let ledger = workload.stop().await;
            let source = bench.source().await;
            source.batch_execute("BEGIN; INSERT INTO accounts VALUES (DEFAULT, 0)").await.unwrap();
            if !killed_while(&bench, name, &[], || {}) {
                missed.push(*name);
            }
            source.batch_execute("ROLLBACK").await.unwrap();
            workload = Workload::resume(&bench.application(), &load(), ledger);
            continue;
        }
        // A table that is copied again brings the points of copying back.
        let arguments: &[&str] = match *name {
            "range-before-commit" | "range-landed" | "round-ended" => &["--retry", "events"],
            "part-before-commit" | "part-landed" | "whole-before-commit" | "whole-landed" => {
                &["--retry", "sessions"]
            }
            "table-live" | "deferred-one-done" | "deferred-done" => &["--retry", "Moves"],
            _ => &[],
        };
        if !killed_at(&bench, &workload, name, arguments).await {
            missed.push(*name);
        }
    }
    assert!(missed.is_empty(), "never reached: {missed:?}");
    let mirror = bench.mirror(None, &[]);
    finish(&bench, workload, mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_mirror_and_servers_crash_at_random() {
    let (kills, restarts) = if soak() { (200, 20) } else { (12, 4) };
    let (mut bench, workload) = start(&[]).await;
    let mut random = fastrand::Rng::with_seed(if soak() { fastrand::u64(..) } else { 7 });
    for round in 0..kills {
        let retry: &[&str] = match random.u8(..4) {
            0 => &["--retry", "events"],
            1 => &["--retry", "sessions"],
            _ => &[],
        };
        let mut mirror = bench.mirror(None, retry);
        let before = workload.acknowledged();
        let some = random.u64(20..200);
        until("the writers go on", REACH, async || (workload.acknowledged() >= before + some).then_some(()))
            .await;
        if round % (kills / restarts) == 0 {
            let server = if random.bool() { &mut bench.monolith } else { &mut bench.services };
            server.stop(StopMode::Immediate).unwrap();
            server.start().unwrap();
            let before = workload.acknowledged();
            until("the writers are back", REACH, async || (workload.acknowledged() > before).then_some(()))
                .await;
        }
        workload.busy().await;
        assert!(mirror.exited().is_none(), "the mirror ended by itself:\n{}", mirror.log());
        mirror.kill();
    }
    let mirror = bench.mirror(None, &[]);
    finish(&bench, workload, mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_mirror_that_wakes_up_after_another_took_over_applies_nothing() {
    let (bench, workload) = start(&[("wal_sender_timeout", "3s")]).await;
    let mut old = bench.mirror(None, &[]);
    bench.caught_up().await;
    workload.busy().await;
    old.signal(Signal::STOP);
    let refused = bench.command(&["mirror", "plan.yaml"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(3), "a mirror that was just seen is not pushed aside");
    let new = bench.mirror(None, &["--take-over"]);
    workload.advance(200).await;
    bench.caught_up().await;
    old.signal(Signal::CONT);
    let status = old.wait(REACH);
    assert_eq!(status.code(), Some(3), "the one that was shut out says so and ends\n{}", old.log());
    workload.advance(100).await;
    finish(&bench, workload, new).await;
}
