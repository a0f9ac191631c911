//! Whatever dies, freezes or is cut off during a flip: no write is lost or doubled, and the plain command goes on.

use std::time::Duration;

use rustix::process::Signal;
use strangler::cluster::{Cluster, StopMode};
use strangler::failpoint;
use tokio_postgres::Client;

use super::bank::{Bank, Side};
use super::{UNPROVEN, armed, back, complete, killed, owner, quiet};
use crate::support::proxy::{Line, Proxy};
use crate::support::split::{Background, Mirror, Split};
use crate::support::wait::{LONG, SOON, until, until_blocking};
use crate::support::{say, soak};

/// Points of a flip that gets through, in their order.
fn points() -> Vec<&'static str> {
    let through =
        ["held", "drained", "before-fence", "fenced", "before-open", "opened", "swapped", "recorded"];
    let ends = |point: &&&str| through.iter().any(|end| point.ends_with(&format!("flip-{end}")));
    let points: Vec<&str> = failpoint::FLIP.iter().filter(ends).copied().collect();
    let points = [vec!["flip-writers-held"], points].concat();
    assert_eq!(points.len(), through.len(), "{points:?}");
    points
}

/// All of them in `make soak`, else these.
fn some_points(quick: &[&'static str]) -> Vec<&'static str> {
    let points = if soak() { points() } else { quick.to_vec() };
    say(&format!("flips are caught at {}", points.join(", ")));
    points
}

fn to(number: usize) -> Side {
    if number.is_multiple_of(2) { Side::Service } else { Side::Monolith }
}

async fn sessions(split: &Split) -> (Client, Client) {
    (split.pair.monolith().await, split.pair.service().await)
}

async fn close(bank: Bank, split: &Split) {
    let (monolith, service) = sessions(split).await;
    bank.close(async || quiet(&monolith, &service).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn both_servers_that_stop_at_once_in_the_middle_of_a_flip_lose_nothing() {
    let (mut split, _, _, mirror) = armed().await;
    let bank = Bank::open(&split, 6);
    bank.advances(Side::Monolith, 20).await;
    let quick = ["flip-writers-held", "flip-drained", "flip-fenced", "flip-opened"];
    for (number, point) in some_points(&quick).into_iter().enumerate() {
        killed(&split, point, back(to(number)));
        split.pair.monolith.stop(StopMode::Immediate).unwrap();
        split.pair.service.stop(StopMode::Immediate).unwrap();
        split.pair.service.start().unwrap();
        split.pair.monolith.start().unwrap();
        complete(&split, &mirror, &[back(to(number)), &UNPROVEN].concat());
        bank.advances(to(number), 20).await;
    }
    close(bank, &split).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_who_start_together_do_no_harm_and_get_one_flip() {
    let (split, monolith, service, _mirror) = armed().await;
    let bank = Bank::open(&split, 6);
    bank.advances(Side::Monolith, 20).await;
    for number in 0..if soak() { 40 } else { 2 } {
        let arguments = [back(to(number)), &UNPROVEN].concat();
        until_blocking("one of two flips is made", LONG, || {
            let both = [split.start("flip", &arguments), split.start("flip", &arguments)];
            let both = both.map(Background::ended);
            for ended in &both {
                // One that meets the other one, or looks into the middle of its work, says so. A flip that follows at
                // once may find the streams of the one before not turned yet.
                let met = [
                    "operator-at-work",
                    "authority-",
                    "mirror-lags",
                    "stream-not-applying",
                    "way-back-missing",
                ];
                let known = ended.exit == Some(0)
                    || ended.exit == Some(3) && met.iter().any(|code| ended.stderr.contains(code));
                assert!(known, "{}", ended.page());
            }
            both.iter().any(|ended| ended.exit == Some(0)).then_some(())
        });
        bank.advances(to(number), 20).await;
    }
    assert_eq!(owner(&monolith).await.0, "OPEN");
    assert_eq!(owner(&service).await.0, "FENCED");
    close(bank, &split).await;
}

/// Starts a flip that stops at this point as a frozen machine does, and waits until it stands there.
pub(super) fn frozen(split: &Split, point: &str, to: Side, links: &[(&str, &str)]) -> Background {
    frozen_with(split, point, back(to), links)
}

/// The same with these arguments.
pub(super) fn frozen_with(
    split: &Split,
    point: &str,
    arguments: &[&str],
    links: &[(&str, &str)],
) -> Background {
    until_blocking("the flip stands still", LONG, || {
        let mut command = split.command(&[&["flip", "plan.yaml"], arguments, &UNPROVEN].concat());
        command.env("STRANGLER_FREEZE", point).envs(links.iter().copied());
        let mut flip = split.start_command(command);
        if flip.stands_still() {
            return Some(flip);
        }
        let ended = flip.ended();
        let again = super::AGAIN.iter().any(|reason| ended.stderr.contains(reason));
        assert!(again, "{point} was not reached: {}", ended.page());
        None
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_was_found_before_somebody_else_moved_authority_is_not_said() {
    let (split, monolith, service, mirror) = armed().await;
    let mut command = split.command(&["flip", "plan.yaml"]);
    command.env("STRANGLER_FREEZE", "flip-looked");
    let mut late = split.start_command(command);
    assert!(late.stands_still());
    monolith.batch_execute("DELETE FROM strangler.operator").await.unwrap();
    complete(&split, &mirror, &UNPROVEN);
    late.signal(Signal::CONT);
    let ended = late.ended();
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("authority-moved"), "{}", ended.page());
    assert!(ended.stderr.contains("it is with the service since epoch 2"), "{}", ended.page());
    assert!(!ended.stderr.contains("no-evidence"), "{}", ended.page());
    quiet(&monolith, &service).await;
}

/// The epoch of the side that is open, when one is.
async fn epoch(client: &Client) -> i64 {
    let sql = "SELECT max(epoch) FROM strangler.authority";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_operator_who_was_frozen_in_the_middle_of_a_flip_and_wakes_up_much_later_does_nothing() {
    let (split, monolith, service, mirror) = armed().await;
    let bank = Bank::open(&split, 6);
    bank.advances(Side::Monolith, 20).await;
    for point in some_points(&["flip-before-open"]) {
        let old = frozen(&split, point, Side::Service, &[]);
        if soak() {
            // Past every timeout there is: time itself is what the operator misses.
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        // Writers are not held for longer than the budget, or the mirror has finished the move.
        bank.goes_on(20).await;
        // Who is silent for 15 s is nobody's colleague any more.
        settle(&split, &mirror, Side::Service);
        bank.advances(Side::Service, 20).await;
        settle(&split, &mirror, Side::Monolith);
        bank.advances(Side::Monolith, 20).await;
        let known = epoch(&monolith).await;
        old.signal(Signal::CONT);
        let ended = old.ended();
        assert_ne!(ended.exit, None, "{point}: {}", ended.page());
        assert_eq!(epoch(&monolith).await, known, "{point}: {}", ended.page());
        assert_eq!(
            (owner(&monolith).await.0, owner(&service).await.0),
            ("OPEN".to_owned(), "FENCED".to_owned())
        );
        bank.advances(Side::Monolith, 20).await;
    }
    close(bank, &split).await;
}

/// Types the flip until no other operator is taken to be at work.
fn settle(split: &Split, mirror: &Mirror, to: Side) {
    until_blocking("the other operator is taken to be gone", LONG, || {
        let ended = split.run("flip", &[back(to), &UNPROVEN].concat());
        (!ended.stderr.contains("(operator-at-work)")).then_some(())
    });
    complete(split, mirror, &[back(to), &UNPROVEN].concat());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_flip_whose_links_are_cut_at_any_step_is_finished_by_typing_it_again() {
    let (split, _, _, mirror) = armed().await;
    let bank = Bank::open(&split, 6);
    bank.advances(Side::Monolith, 20).await;
    let (near, far) = (split.pair.monolith_url(), split.pair.service_url());
    let quick = ["flip-before-fence", "flip-fenced", "flip-opened"];
    for (number, point) in some_points(&quick).into_iter().enumerate() {
        let (proxy, through) = Proxy::before(if number % 3 == 0 { &near } else { &far }).await;
        let variable = if number % 3 == 0 { "MONOLITH" } else { "SERVICE" };
        let flip = frozen(&split, point, to(number), &[(variable, &through)]);
        proxy.set(Line::Cut);
        flip.signal(Signal::CONT);
        let ended = flip.ended();
        assert!(ended.exit.is_some_and(|exit| exit != 101), "{point}: {}", ended.page());
        complete(&split, &mirror, &[back(to(number)), &UNPROVEN].concat());
        bank.advances(to(number), 20).await;
    }
    close(bank, &split).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_operator_whose_links_went_silent_keeps_nobody_waiting() {
    let (split, monolith, _, mirror) = armed().await;
    let bank = Bank::open(&split, 6);
    bank.advances(Side::Monolith, 20).await;
    let (near, far) = (split.pair.monolith_url(), split.pair.service_url());
    for (number, point) in some_points(&["flip-drained", "flip-before-open"]).into_iter().enumerate() {
        let (proxy, through) = Proxy::before(if number % 2 == 0 { &near } else { &far }).await;
        let variable = if number % 2 == 0 { "MONOLITH" } else { "SERVICE" };
        let mut flip = frozen(&split, point, to(number), &[(variable, &through)]);
        proxy.set(Line::Silent);
        flip.signal(Signal::CONT);
        bank.goes_on(20).await;
        // The first one is told that a flip ends within seconds; signals that come at once count as one.
        until_blocking("the second Ctrl-C is obeyed", SOON, || {
            flip.signal(Signal::INT);
            flip.has_ended().then_some(())
        });
        let ended = flip.ended();
        assert_ne!(ended.exit, Some(101), "{point}: {}", ended.page());
        settle(&split, &mirror, to(number));
        bank.advances(to(number), 20).await;
        drop(proxy);
    }
    if soak() {
        // Left alone, it gives the silent side up in half a minute, and names it.
        let (proxy, through) = Proxy::before(&far).await;
        let to = if owner(&monolith).await.0 == "OPEN" { Side::Service } else { Side::Monolith };
        let flip = frozen(&split, "flip-looked", to, &[("SERVICE", &through)]);
        proxy.set(Line::Silent);
        flip.signal(Signal::CONT);
        let ended = flip.ended();
        assert!(ended.stderr.contains("the service gave no answer within 22.0 s"), "{}", ended.page());
    }
    close(bank, &split).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_mirror_that_is_killed_at_any_step_while_authority_moves_loses_nothing() {
    let (split, monolith, service, mirror) = armed().await;
    let bank = Bank::open(&split, 6);
    bank.advances(Side::Monolith, 20).await;
    mirror.stop();
    let all = [
        failpoint::REVERSE,
        &["apply-before-commit", "apply-committed", "apply-confirmed", "idle-persisted"],
    ];
    // These need a way back that was never read, rows of the monolith that contradict, strays, rows outside the filter, a clean stop or a
    // lost slot: other tests bring them about.
    let apart = [
        "publication-noted",
        "reverse-mended",
        "tripwire-alarmed",
        "outside-told",
        "reverse-stopped",
        "rewatch-slot-dropped",
        "rewatch-recorded",
    ];
    let quick = ["turned", "reverse-committed"];
    let kept = |point: &&str| !apart.contains(point) && (soak() || quick.contains(point));
    let points: Vec<&str> = all.concat().into_iter().filter(kept).collect();
    say(&format!("the mirror is killed at {}", points.join(", ")));
    let mut side = Side::Monolith;
    for point in points {
        let dying = split.mirror(Some(point));
        until_blocking("the mirror is killed", LONG, || {
            let next = if side == Side::Monolith { Side::Service } else { Side::Monolith };
            let ended = split.run("flip", &[back(next), &UNPROVEN].concat());
            if ended.exit == Some(0) {
                side = next;
            }
            dying.exited().map(|status| assert!(!status.success(), "{point}: {}", dying.log()))
        });
        let mirror = split.mirror(None);
        until("both streams are read", SOON, async || {
            let read = "SELECT bool_and(active) FROM pg_replication_slots WHERE slot_type = 'logical'";
            let there = monolith.query_one(read, &[]).await.unwrap().get::<_, Option<bool>>(0);
            let here = service.query_one(read, &[]).await.unwrap().get::<_, Option<bool>>(0);
            (there == Some(true) && here == Some(true)).then_some(())
        })
        .await;
        // A move that stood still meanwhile is finished first, whichever way it went.
        for next in [Side::Service, Side::Monolith] {
            settle(&split, &mirror, next);
            side = next;
            bank.advances(next, 20).await;
        }
        mirror.stop();
    }
    let mirror = split.mirror(None);
    close(bank, &split).await;
    drop(mirror);
}
