//! Nothing is lost: the mirror is killed at every durable step and at random moments, the servers crash, and in the
//! end both sides are equal and every acknowledged write is there once.

use std::time::Duration;

use rustix::process::Signal;
use strangler::cluster::{Cluster, StopMode};
use strangler::failpoint;
use tokio_postgres::Client;

use crate::support::bench::{Bench, Mirror};
use crate::support::wait::{LONG, Patience, until, until_blocking};
use crate::support::writers::{Options, Workload};
use crate::support::{say, soak, toll};

/// How long a mirror may take to reach a kill point.
const REACH: Duration = Duration::from_secs(40);

/// 8 writers at a rate that leaves two cores some air.
pub fn load() -> Options {
    Options {
        per_second: Some(if soak() { 300 } else { 150 }),
        truncate: true,
        straddle: true,
        seed: toll::seed(),
        ..Options::default()
    }
}

async fn start(settings: &[(&str, &str)]) -> (Bench, Workload) {
    let bench = Bench::launch(settings).await;
    let workload = Workload::start(&bench.application(), &load()).await;
    bench.succeed(&["provision", "plan.yaml"]);
    (bench, workload)
}

/// Lets a mirror run under the writers until the kill point has ended it. `false` when it lived on, which it then
/// does not any more.
pub async fn killed_at(bench: &Bench, workload: &Workload, name: &str, arguments: &[&str]) -> bool {
    workload.busy().await;
    if name == "stopped-cleanly" {
        let mut mirror = bench.mirror(Some(name), &[]);
        bench.caught_up().await;
        workload.busy().await;
        mirror.signal(Signal::TERM);
        let killed = std::os::unix::process::ExitStatusExt::signal(&mirror.wait(REACH)) == Some(9);
        assert!(workload.in_flight() > 0, "no transaction was in flight at {name}");
        if killed {
            bench.toll.kills.up();
            bench.toll.kills_in_flight.up();
        }
        return killed;
    }
    killed_while(bench, name, arguments, || workload.in_flight() > 0)
}

/// `in_flight` is asked as soon as the mirror has died: a kill with no transaction in flight proves little.
fn killed_while(bench: &Bench, name: &str, arguments: &[&str], in_flight: impl Fn() -> bool) -> bool {
    let mut mirror = bench.mirror(Some(name), arguments);
    let mut patience = Patience::new(REACH);
    let died = until_blocking("the kill point or the end of patience", REACH * 2, || {
        let ended = mirror.exited();
        (ended.is_some() || patience.is_over()).then_some(ended)
    });
    assert!(in_flight(), "no transaction was in flight at {name}");
    match died {
        None => {
            mirror.kill();
            false
        }
        Some(status) => {
            let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
            assert!(killed, "at {name} the mirror ended by itself: {status}\n{}", mirror.log());
            bench.toll.kills.up();
            bench.toll.kills_in_flight.up();
            true
        }
    }
}

/// Kills a mirror beside a transaction that is open.
async fn kill(bench: &Bench, workload: &Workload, mut mirror: Mirror) {
    workload.busy().await;
    assert!(mirror.exited().is_none(), "the mirror ended by itself:\n{}", mirror.log());
    assert!(workload.in_flight() > 0, "no transaction is in flight");
    mirror.kill();
    bench.toll.kills_in_flight.up();
}

pub async fn finish(bench: &Bench, workload: Workload, mirror: Mirror) {
    workload.every_kind().await;
    let ledger = workload.stop().await;
    bench.caught_up().await;
    mirror.stop();
    bench.assert_equal(&ledger).await;
    ledger.assert_every_kind();
    if soak() {
        say(&format!(
            "soak: {} postgresql={}/{} {} transactions={} {:?}",
            toll::name(),
            bench.monolith.binaries().version,
            bench.services.binaries().version,
            bench.toll,
            ledger.acknowledged(),
            ledger.counts
        ));
    }
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
            if !killed_while(&bench, name, &[], || true) {
                missed.push(*name);
            }
            source.batch_execute("ROLLBACK").await.unwrap();
            workload = Workload::resume(&bench.application(), &load(), ledger);
            continue;
        }
        // A table that is copied again brings the points of copying back.
        let arguments: &[&str] = match *name {
            "round-marked" | "range-before-commit" | "range-landed" | "round-ended" => &["--retry", "events"],
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

/// Where a mirror is killed at a random moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum During {
    Stream,
    /// The copy of this table is under way.
    Copy(&'static str),
}

/// Copied by ranges of its key, and as a whole: it has no key.
const COPIES: [During; 2] = [During::Copy("events"), During::Copy("sessions")];

/// How the mirror's table stands in the service that has it.
async fn state_of(services: &[Client; 2], table: &str) -> String {
    let sql = "SELECT state FROM strangler.mirror_table WHERE source_table = $1";
    for service in services {
        if let Some(row) = service.query_opt(sql, &[&table]).await.unwrap() {
            return row.get(0);
        }
    }
    panic!("no service has {table}")
}

/// Kills a mirror in the copy of a table that it was told to copy again; a copy that was quicker than the look is begun anew.
async fn kill_in_copy(bench: &Bench, workload: &Workload, table: &'static str) {
    let services = [bench.target("left").await, bench.target("right").await];
    for _ in 0..20 {
        let mirror = bench.mirror(None, &["--retry", table]);
        let emptied = std::cell::Cell::new(false);
        let caught = until("the copy is under way, or over", REACH, async || {
            match state_of(&services, table).await.as_str() {
                "copying" => Some(true),
                "live" if emptied.get() => Some(false),
                "live" => None,
                _ => {
                    emptied.set(true);
                    None
                }
            }
        })
        .await;
        kill(bench, workload, mirror).await;
        if caught && state_of(&services, table).await == "copying" {
            return;
        }
    }
    panic!("{table} is copied faster than anybody can look");
}

/// Kills a mirror whose two slices both stream, after so many more transactions, and crashes a server before that.
async fn kill_in_stream(bench: &mut Bench, workload: &Workload, more: u64, restart: Option<bool>) {
    let mirror = bench.mirror(None, &[]);
    let before = workload.acknowledged();
    until("the writers go on", REACH, async || (workload.acknowledged() >= before + more).then_some(()))
        .await;
    // Before its engines run, a mirror ends when a database goes away; the operator is still there to see it.
    let both_run = || mirror.log().matches("the stream starts").count() >= 2;
    until("both slices are mirrored", REACH, async || both_run().then_some(())).await;
    if let Some(monolith) = restart {
        bench.restart(monolith);
        let before = workload.acknowledged();
        until("the writers are back", REACH, async || (workload.acknowledged() > before).then_some(())).await;
    }
    kill(bench, workload, mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_mirror_and_servers_crash_at_random() {
    let (kills, restarts) = if soak() { (200, 20) } else { (12, 4) };
    let (mut bench, workload) = start(&[]).await;
    let mut random = fastrand::Rng::with_seed(toll::seed());
    for round in 0..kills {
        // Both servers crash in turn, and each kind of copy is hit in turn; in between chance decides.
        let (set, place) = (round / (kills / restarts), round % (kills / restarts));
        let during = match place {
            0 => During::Stream,
            1 => COPIES[usize::from(set % 2 == 1)],
            _ => [During::Stream, During::Stream, COPIES[0], COPIES[1]][random.usize(..4)],
        };
        let more = random.u64(20..200);
        match during {
            During::Copy(table) => kill_in_copy(&bench, &workload, table).await,
            During::Stream => {
                let restart = (place == 0).then_some(set % 2 == 0);
                kill_in_stream(&mut bench, &workload, more, restart).await;
            }
        }
    }
    assert_eq!(bench.toll.restarts.get(), restarts, "both servers crashed");
    assert!(bench.toll.kills_in_flight.get() >= kills, "every kill had a transaction beside it");
    let mirror = bench.mirror(None, &[]);
    finish(&bench, workload, mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn nothing_is_lost_when_copying_again_is_killed() {
    let (bench, workload) = start(&[]).await;
    let mirror = bench.mirror(None, &[]);
    bench.caught_up().await;
    kill(&bench, &workload, mirror).await;
    for name in failpoint::COPY_AGAIN {
        let order: &[&str] = if name.starts_with("rebuild") { &["--rebuild"] } else { &["--retry", "Moves"] };
        let again = [&["--slice", "keys"], order].concat();
        assert!(killed_at(&bench, &workload, name, &again).await, "{name} was not reached");
        if *name == "rebuild-slot-dropped" {
            let refused = bench.command(&["mirror", "plan.yaml", "--slice", "keys"]).output().unwrap();
            assert_eq!(refused.status.code(), Some(3), "a stream without its slot is not read on");
            assert!(String::from_utf8_lossy(&refused.stderr).contains("--rebuild"), "the way out is named");
        } else {
            let mirror = bench.mirror(None, &[]);
            bench.caught_up().await;
            kill(&bench, &workload, mirror).await;
        }
    }
    let mirror = bench.mirror(None, &[]);
    finish(&bench, workload, mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_is_a_gap_until_the_slice_is_rebuilt() {
    let (bench, workload) = start(&[]).await;
    let mirror = bench.mirror(None, &[]);
    bench.caught_up().await;
    mirror.stop();
    let source = bench.source().await;
    source
        .batch_execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .await
        .unwrap();
    for name in ["fault-recorded", "end-recorded"] {
        assert!(killed_at(&bench, &workload, name, &["--slice", "keys"]).await, "{name} was not reached");
    }
    for _ in 0..2 {
        let refused = bench.command(&["mirror", "plan.yaml"]).output().unwrap();
        let words = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{words}");
        assert!(words.contains("is gone") && words.contains("--rebuild"), "{words}");
    }
    let mirror = bench.mirror(None, &["--rebuild"]);
    finish(&bench, workload, mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_that_was_promoted_past_the_applied_position_is_followed_on_its_new_timeline() {
    let (mut bench, workload) = start(&[]).await;
    let mirror = bench.mirror(None, &[]);
    bench.caught_up().await;
    mirror.stop();
    // A standby takes no writes, and the writers take no refusal for an answer.
    let ledger = workload.stop().await;
    bench.monolith.stop(StopMode::Fast).unwrap();
    bench.monolith.write_data_file("standby.signal", b"").unwrap();
    bench.monolith.start().unwrap();
    bench.source().await.batch_execute("SELECT pg_promote()").await.unwrap();
    let workload = Workload::resume(&bench.application(), &load(), ledger);
    workload.advance(50).await;
    assert!(killed_at(&bench, &workload, "timeline-recorded", &["--slice", "keys"]).await);
    let mirror = bench.mirror(None, &[]);
    finish(&bench, workload, mirror).await;
}

/// The frozen mirror goes on when another one has applied for a while: it is shut out, and nothing is applied twice.
async fn wakes_up(bench: &Bench, workload: Workload, mut old: Mirror, new: Mirror) {
    workload.advance(200).await;
    bench.caught_up().await;
    old.signal(Signal::CONT);
    let status = old.wait(REACH);
    assert_eq!(status.code(), Some(3), "the one that was shut out says so and ends\n{}", old.log());
    workload.advance(100).await;
    finish(bench, workload, new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_mirror_that_wakes_up_after_another_took_over_applies_nothing() {
    let (bench, workload) = start(&[("wal_sender_timeout", "3s")]).await;
    let old = bench.mirror(None, &[]);
    bench.caught_up().await;
    workload.busy().await;
    old.signal(Signal::STOP);
    let refused = bench.command(&["mirror", "plan.yaml"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(3), "a mirror that was just seen is not pushed aside");
    let new = bench.mirror(None, &["--take-over"]);
    wakes_up(&bench, workload, old, new).await;
}

/// Every limit runs out while it is frozen: the walsender's, and those after which another mirror takes it for dead.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_mirror_that_was_frozen_past_every_time_limit_is_followed_by_another_and_applies_nothing() {
    let (bench, workload) = start(&[("wal_sender_timeout", "3s")]).await;
    let old = bench.mirror(None, &[]);
    bench.caught_up().await;
    workload.busy().await;
    old.signal(Signal::STOP);
    let refused = bench.command(&["mirror", "plan.yaml"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(3), "a mirror that was just seen is not pushed aside");
    for service in ["left", "right"] {
        let target = bench.target(service).await;
        let unseen =
            "SELECT FROM strangler.mirror_process HAVING max(seen_at) < clock_timestamp() - interval '16 s'";
        until("nobody has seen it for long", LONG, async || target.query_opt(unseen, &[]).await.unwrap())
            .await;
    }
    // Nobody tells it to take over.
    let new = bench.mirror(None, &[]);
    wakes_up(&bench, workload, old, new).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_position_that_moved_on_while_a_mirror_started_is_not_taken_for_a_source_that_was_set_back() {
    let (bench, workload) = start(&[]).await;
    let mirror = bench.mirror(None, &[]);
    // Nothing is left to apply: the position that is moved below leaves no row out.
    let ledger = workload.stop().await;
    bench.caught_up().await;
    mirror.stop();
    let mut target = bench.target("left").await;
    let before = target.transaction().await.unwrap();
    before.execute("SELECT FROM strangler.stream WHERE slice = 'keys' FOR UPDATE", &[]).await.unwrap();
    let mirror = bench.mirror(None, &["--slice", "keys"]);
    // It has read where the source's log ends, and now waits for the row, as for a mirror that is still at work.
    let watcher = bench.target("left").await;
    let waits = "SELECT FROM pg_locks WHERE NOT granted";
    until("the mirror waits for the row", REACH, async || watcher.query_opt(waits, &[]).await.unwrap()).await;
    let advance = "SELECT pg_logical_emit_message(false, 'later', repeat('x', 9000))";
    let source = bench.source().await;
    source.execute(advance, &[]).await.unwrap();
    // Whatever was written before a checkpoint is in the log for good.
    source.batch_execute("CHECKPOINT").await.unwrap();
    let end: String = source.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    let apply = format!("UPDATE strangler.stream SET applied_lsn = '{end}' WHERE slice = 'keys'");
    before.execute(&apply, &[]).await.unwrap();
    before.commit().await.unwrap();
    let workload = Workload::resume(&bench.application(), &load(), ledger);
    workload.advance(50).await;
    mirror.stop();
    let mirror = bench.mirror(None, &[]);
    finish(&bench, workload, mirror).await;
}
