//! The way back is killed at every durable step, beside writers, and nothing is lost.

use strangler::failpoint;

use super::stage::{Stage, Way};
use super::writers::Writers;
use crate::support::wait::{SOON, until};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_way_back_is_killed_at_every_durable_step() {
    let stage = Stage::armed().await;
    // A way back that is there for the first time notes what it begins with.
    stage.split.mirror(Some("publication-noted")).died_at("publication-noted");
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    stage.arrived(Way::Reverse).await;
    mirror.kill();
    let writers = Writers::start(&stage, 4).await;
    let mut left: Vec<&str> = failpoint::REVERSE.to_vec();
    // Those have tests of their own below; an idle stream notes its position when nobody writes.
    left.retain(|name| {
        !matches!(
            *name,
            "publication-noted"
                | "tripwire-alarmed"
                | "outside-told"
                | "turned"
                | "reverse-mended"
                | "reverse-persisted"
                | "reverse-stopped"
                | "rewatch-slot-dropped"
                | "rewatch-recorded"
        )
    });
    assert_eq!(left.len(), 7, "{left:?}");
    for name in left {
        for count in ["", ":3"] {
            let per_batch =
                matches!(name, "reverse-before-commit" | "reverse-committed" | "reverse-confirmed");
            if !per_batch && !count.is_empty() {
                continue;
            }
            let mirror = stage.split.mirror(Some(&format!("{name}{count}")));
            mirror.died_at(name);
            writers.progress(1, 5).await;
        }
    }
    let mirror = stage.split.mirror(Some("reverse-stopped"));
    stage.arrived(Way::Reverse).await;
    mirror.signal(rustix::process::Signal::TERM);
    mirror.died_at("reverse-stopped");
    let rows = writers.stop().await;
    let mirror = stage.split.mirror(Some("reverse-persisted"));
    mirror.died_at("reverse-persisted");
    let mirror = stage.mirror().await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    let list = rows.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let found = format!("SELECT count(*) FROM pairs WHERE a IN ({list})");
    assert_eq!(stage.count(&stage.monolith, &found).await, i64::try_from(rows.len()).unwrap());
    stage.watched(Way::Forward).await;
    assert_eq!(stage.alarms().await, Vec::<String>::new());
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_the_authority_turns_it_goes_on_in_the_new_part() {
    let stage = Stage::armed().await;
    for (epoch, there) in [(2, true), (3, false)] {
        let mirror = stage.split.mirror(Some("turned"));
        stage.streams_run(&mirror).await;
        let way = if there { Way::Reverse } else { Way::Forward };
        if there {
            stage.fence_monolith(epoch).await;
            stage.open_service(epoch).await;
        } else {
            stage.fence_service(epoch).await;
            stage.open_monolith(epoch).await;
        }
        // The stream that ends here turns first, and takes the process with it.
        mirror.died_at("turned");
        let mirror = stage.mirror().await;
        if there {
            stage.turn_reverse(epoch).await;
            stage.on_service("UPDATE orders SET note = 'while nobody looked' WHERE id = 11").await;
        } else {
            stage.turn_forward(epoch).await;
            stage.on_monolith("UPDATE \"Orders\" SET \"Note\" = 'nor now' WHERE \"Id\" = 12").await;
        }
        stage.arrived(way).await;
        stage.assert_equal().await;
        mirror.stop();
    }
    assert_eq!(stage.alarms().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_an_alarm_and_before_its_position_it_tells_it_once() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    stage.arrived(Way::Reverse).await;
    mirror.kill();
    stage.write_stray("pairs", "DELETE FROM pairs WHERE a = 3; TRUNCATE pairs").await;
    let mirror = stage.split.mirror(Some("tripwire-alarmed"));
    mirror.died_at("tripwire-alarmed");
    let once = ["forward pairs delete {3,b3}", "forward pairs truncate -"];
    assert_eq!(stage.alarms().await, once);
    let mirror = stage.mirror().await;
    stage.watched(Way::Forward).await;
    assert_eq!(stage.alarms().await, once);
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mirrors_at_once_and_one_that_was_frozen_write_nothing_twice() {
    let stage = Stage::armed().await;
    let frozen = stage.mirror().await;
    stage.flip(2).await;
    let writers = Writers::start(&stage, 4).await;
    writers.progress(1, 10).await;
    frozen.signal(rustix::process::Signal::STOP);
    let second = stage.split.mirror_with(None, &["--take-over"]);
    writers.progress(1, 50).await;
    stage.arrived(Way::Reverse).await;
    frozen.signal(rustix::process::Signal::CONT);
    frozen.ended();
    writers.progress(1, 20).await;
    writers.stop().await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_monolith_that_contradict_stop_the_way_back_until_they_may_be_read_again() {
    let stage = Stage::armed().await;
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    stage.arrived(Way::Reverse).await;
    mirror.stop();
    // Past the tripwire's eyes: as a disk or a superuser does it.
    stage.write_stray("\"Orders\"", "DELETE FROM \"Orders\" WHERE \"Id\" = 21").await;
    stage
        .on_service(
            "UPDATE orders SET note = 'still here' WHERE id = 21; UPDATE pairs SET v = -21 WHERE a = 21",
        )
        .await;
    let mirror = stage.split.mirror(None);
    let halted = "SELECT coalesce(detail LIKE '%rows of Orders are not those%', false) AND stopped_at IS NOT NULL \
                  FROM strangler.mirror_process WHERE dir = 'reverse'";
    until("the way back stands still", SOON, async || {
        super::stage::holds(&stage.monolith, halted).await.then_some(())
    })
    .await;
    let status = stage.split.run("status", &[]);
    assert!(status.stdout.contains("the way back stands still"), "{}", status.page());
    assert!(mirror.exited().is_none(), "the tripwire runs on");
    mirror.stop();
    let dying = stage.split.mirror_with(Some("reverse-mended"), &["--retry", "Orders"]);
    dying.died_at("reverse-mended");
    let mirror = stage.split.mirror_with(None, &["--retry", "Orders"]);
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_what_changed_unheard_was_noted_the_slice_is_not_taken_for_proven() {
    let stage = Stage::armed().await;
    let mirror = stage.split.mirror(Some("unheard-noted"));
    stage.flip(2).await;
    stage.looked(&mirror).await;
    stage.write_stray("events_old", "TRUNCATE events_old").await;
    mirror.died_at("unheard-noted");
    let noted = "SELECT count(*) FROM strangler.journal WHERE action = 'changed-unheard'";
    assert_eq!(stage.count(&stage.service, noted).await, 1);
    let mirror = stage.mirror().await;
    stage.arrived(Way::Reverse).await;
    let compared = stage.split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(1), "the monolith lacks what was emptied there: {}", compared.page());
    mirror.stop();
}
