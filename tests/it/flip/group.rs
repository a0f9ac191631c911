//! Several slices at one barrier: all move or none, across services, there and back.

use strangler::cluster::Cluster;
use tokio_postgres::Client;

use super::bank::{Bank, ON_SERVICE, SETUP, Side};
use super::{UNPROVEN, back, complete, killed, owner_of};
use crate::support::cluster::{Pair, connect, create_database};
use crate::support::prepared::prepared;
use crate::support::soak;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{LONG, SOON, until, until_blocking};

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" }, second: { url: \"${SECOND}\" } }
slices:
  one: { service: service, tables: { accounts: {}, moves: {}, notes: {}, batches: {}, lines: {} } }
  two:
    service: second
    tables: { other.accounts: {}, other.moves: {}, other.notes: {}, other.batches: {}, other.lines: {} }
policy: { min_mirror_time: 0s, write_pause_budget: 2s, flip_together: [[one, two]] }\n";

pub(super) const BOTH: [&str; 4] = ["--slice", "one", "--slice", "two"];

/// Two slices, each with a bank of its own and a service of its own.
pub(super) struct Stage {
    pub(super) split: Split,
    pub(super) monolith: Client,
    pub(super) services: [Client; 2],
    pub(super) mirror: Mirror,
    /// Where the banks' clients go: for each slice the monolith and the service.
    links: [[String; 2]; 2],
}

impl Stage {
    pub(super) async fn armed() -> Self {
        let pair = prepared("two slices that move together", async || {
            let stage = Self::armed_from_nothing().await;
            stage.mirror.stop();
            stage.split.pair
        });
        let (split, monolith, services) = Self::split(pair.await, "").await;
        Self::mirrored(split, monolith, services, async |_| ()).await
    }

    async fn armed_from_nothing() -> Self {
        let setup =
            format!("{SETUP}; CREATE SCHEMA other; SET search_path = other; {SETUP}; RESET search_path");
        let pair = Pair::launch().await;
        create_database(&pair.service, "second").await;
        let (split, monolith, services) = Self::split(pair, &setup).await;
        split.provision();
        services[0].batch_execute(ON_SERVICE).await.unwrap();
        services[1].batch_execute(&ON_SERVICE.replace("moves", "other.moves")).await.unwrap();
        Self::mirrored(split, monolith, services, async |split| {
            let arm = split.run("arm", &[]);
            assert_eq!(arm.exit, Some(0), "{}", arm.page());
        })
        .await
    }

    async fn split(pair: Pair, setup: &str) -> (Split, Client, [Client; 2]) {
        let second = pair.service.url("second");
        let (mut split, monolith, service) = Split::between(pair, PLAN, setup).await;
        split.lead("SECOND", &second);
        (split, monolith, [service, connect(&second).await])
    }

    /// With the mirror running, once both ways back run, of which `arm` makes sure.
    async fn mirrored(
        split: Split,
        monolith: Client,
        services: [Client; 2],
        arm: impl AsyncFnOnce(&Split),
    ) -> Self {
        let mirror = split.mirror(None);
        for service in &services {
            mirror.caught_up(&monolith, service).await;
        }
        arm(&split).await;
        let in_other = |link: &str| {
            let sign = if link.contains('?') { '&' } else { '?' };
            format!("{link}{sign}options=-csearch_path%3Dother")
        };
        let (there, here) = (split.pair.monolith_url(), split.pair.service_url());
        let second = split.pair.service.url("second");
        let links = [[there.clone(), here], [in_other(&there), in_other(&second)]];
        let stage = Self { split, monolith, services, mirror, links };
        stage.ways_back_run().await;
        stage
    }

    async fn ways_back_run(&self) {
        let read =
            "SELECT count(*) = 2 FROM strangler.mirror_process WHERE dir = 'reverse' AND stopped_at IS NULL";
        until("both ways back are read", SOON, async || {
            self.monolith.query_one(read, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
    }

    pub(super) fn banks(&self) -> [Bank; 2] {
        let [one, two] = self.links.clone();
        [Bank::of("one", one, 4), Bank::of("two", two, 4)]
    }

    fn flip(&self, to: Side) {
        complete(&self.split, &self.mirror, &[back(to), &BOTH, &UNPROVEN].concat());
    }

    /// Who may write each slice, as both of its databases tell.
    pub(super) async fn owners(&self) -> [(bool, bool); 2] {
        let mut owners = [(false, false); 2];
        for (place, (slice, service)) in owners.iter_mut().zip([("one", 0), ("two", 1)]) {
            let open = async |client: &Client| owner_of(client, slice).await.0 == "OPEN";
            *place = (open(&self.monolith).await, open(&self.services[service]).await);
        }
        owners
    }

    async fn assert_with(&self, side: Side) {
        let all = match side {
            Side::Monolith => (true, false),
            Side::Service => (false, true),
        };
        assert_eq!(self.owners().await, [all; 2], "open on (monolith, service), of both slices");
    }

    pub(super) async fn quiet(&self) {
        for (slice, service) in ["one", "two"].into_iter().zip(&self.services) {
            super::quiet_of(slice, &self.monolith, service).await;
        }
    }

    pub(super) async fn close(&self, banks: [Bank; 2]) {
        for bank in banks {
            bank.close(async || self.quiet().await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_of_two_services_move_at_one_barrier_there_and_back_under_writers() {
    let stage = Stage::armed().await;
    let banks = stage.banks();
    for number in 0..if soak() { 6 } else { 2 } {
        let to = if number % 2 == 0 { Side::Service } else { Side::Monolith };
        for bank in &banks {
            bank.advances(if number % 2 == 0 { Side::Monolith } else { Side::Service }, 20).await;
        }
        stage.flip(to);
        stage.assert_with(to).await;
    }
    for bank in &banks {
        bank.advances(Side::Monolith, 20).await;
    }
    stage.close(banks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_move_of_several_slices_that_is_killed_at_any_step_is_finished_by_typing_it_again() {
    let stage = Stage::armed().await;
    let banks = stage.banks();
    let all = [
        "flip-writers-held:2",
        "flip-drained:2",
        "flip-before-fence:2",
        "flip-fenced",
        "flip-fenced:2",
        "flip-settled",
        "flip-before-open:2",
        "flip-opened",
        "flip-proposed",
        "flip-opened:2",
        "flip-swapped",
        "flip-recorded",
        "flip-recorded:2",
    ];
    let quick = ["flip-fenced:2", "flip-opened"];
    let points = if soak() { all.to_vec() } else { quick.to_vec() };
    for (number, point) in points.into_iter().enumerate() {
        let to = if number % 2 == 0 { Side::Service } else { Side::Monolith };
        killed(&stage.split, point, &[back(to), &BOTH].concat());
        stage.flip(to);
        stage.assert_with(to).await;
        for bank in &banks {
            bank.advances(to, 10).await;
        }
    }
    stage.close(banks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_move_of_several_slices_that_nobody_types_again_is_settled_by_the_mirrors_for_all_or_none() {
    let stage = Stage::armed().await;
    let banks = stage.banks();
    let mut from = Side::Monolith;
    let all = ["flip-fenced:2", "flip-settled", "flip-fenced", "flip-opened"];
    for point in if soak() { &all[..] } else { &all[1..2] } {
        for to in [Side::Service, Side::Monolith] {
            if to == from {
                continue;
            }
            killed(&stage.split, point, &[back(to), &BOTH].concat());
            let owners = until("every slice has an owner", SOON, async || {
                let owners = stage.owners().await;
                owners.iter().all(|(there, here)| there != here).then_some(owners)
            })
            .await;
            assert_eq!(owners[0], owners[1], "{point} on the way to the {to:?}");
            from = if owners[0].0 { Side::Monolith } else { Side::Service };
            for bank in &banks {
                bank.advances(from, 10).await;
            }
        }
    }
    stage.close(banks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slice_is_not_taken_out_of_a_move_that_is_under_way() {
    let stage = Stage::armed().await;
    stage.split.change_plan(", flip_together: [[one, two]]", "");
    for (to, direction) in [(Side::Service, ""), (Side::Monolith, " --back")] {
        // Without a mirror nobody finishes or aborts it meanwhile.
        stage.mirror.signal(rustix::process::Signal::STOP);
        stage.mirror.signal(rustix::process::Signal::CONT);
        stage.quiet().await;
        killed(&stage.split, "flip-fenced:2", &[back(to), &BOTH].concat());
        stage.mirror.signal(rustix::process::Signal::STOP);
        let status = stage.split.run("status", &[]);
        let all = format!("strangler flip plan.yaml --slice one --slice two{direction}");
        assert_eq!(status.stdout.matches(&format!("so does {all}; ")).count(), 2, "{}", status.page());
        let abort = "strangler flip plan.yaml --slice one --slice two --abort";
        assert!(status.stdout.contains(&format!("{abort} takes it back")), "{}", status.page());
        for alone in [back(to), &["--abort"] as &[&str]] {
            let ended = stage.split.run("flip", &[alone, &["--slice", "two"], &UNPROVEN].concat());
            assert_eq!(ended.exit, Some(3), "{}", ended.page());
            assert!(
                ended.stderr.contains("it is in the middle of a move together with one"),
                "{}",
                ended.page()
            );
            let next = format!("strangler flip{direction} plan.yaml --slice one --slice two");
            assert!(ended.stderr.contains(&next), "{}", ended.page());
        }
        stage.mirror.signal(rustix::process::Signal::CONT);
        stage.flip(to);
        stage.assert_with(to).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_member_whose_writers_do_not_end_costs_no_writer_of_any_slice_an_error() {
    let stage = Stage::armed().await;
    stage.split.change_plan("write_pause_budget: 2s", "write_pause_budget: 200ms");
    let banks = stage.banks();
    // On a machine that does other work the mirror may lag, and then no attempt is made.
    until_blocking("it is rehearsed", LONG, || {
        let rehearsed =
            stage.split.run("flip", &[&BOTH as &[&str], &["--rehearse", "2"], &UNPROVEN].concat());
        let lags = super::AGAIN.iter().any(|reason| rehearsed.page().contains(reason));
        assert!(lags || rehearsed.stdout.starts_with("one, two: "), "{}", rehearsed.page());
        rehearsed.stdout.starts_with("one, two: ").then_some(())
    });
    let json = [&BOTH as &[&str], &["--rehearse", "2", "--format", "json"], &UNPROVEN].concat();
    let document: serde_json::Value = until_blocking("it is rehearsed", LONG, || {
        let document: serde_json::Value =
            serde_json::from_str(&stage.split.run("flip", &json).stdout).unwrap();
        let through = document["attempts"].as_array().unwrap().len();
        (through as u64 + document["out_of_time"].as_u64().unwrap() == 2).then_some(document)
    });
    assert_eq!(document["slices"], serde_json::json!(["one", "two"]));
    let slow = connect(&stage.links[1][0]).await;
    // It keeps nobody but the flip waiting.
    // One that is older than some seconds is no reason to try.
    let passed = "ROLLBACK; BEGIN; INSERT INTO moves (client, seq, amount, a, b) VALUES (-1, -1, 1, 1, 1)";
    let ended = until("the flip is tried", LONG, async || {
        slow.batch_execute(passed).await.unwrap();
        let ended = stage.split.run("flip", &[&BOTH as &[&str], &UNPROVEN].concat());
        let again = super::AGAIN.iter().chain(&["(gate-held)"]).any(|reason| ended.stderr.contains(reason));
        (ended.exit == Some(0) || !again || ended.stderr.contains("attempts ran out of time"))
            .then_some(ended)
    })
    .await;
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("attempts ran out of time"), "{}", ended.page());
    stage.assert_with(Side::Monolith).await;
    for bank in &banks {
        bank.advances(Side::Monolith, 10).await;
        assert_eq!(bank.refused(), 0, "nobody met a closed gate");
    }
    slow.batch_execute("ROLLBACK").await.unwrap();
    stage.split.change_plan("write_pause_budget: 200ms", "write_pause_budget: 2s");
    stage.flip(Side::Service);
    for bank in &banks {
        bank.advances(Side::Service, 10).await;
    }
    stage.close(banks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slice_that_has_moved_already_does_not_take_the_others_along_unjudged() {
    let stage = Stage::armed().await;
    stage.split.change_plan(", flip_together: [[one, two]]", "");
    complete(&stage.split, &stage.mirror, &[&["--slice", "two"], &UNPROVEN as &[&str]].concat());
    let refused = stage.split.run("flip", &BOTH);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    assert!(
        refused.stderr.contains("slice two") && refused.stderr.contains("(already-moved)"),
        "{}",
        refused.page()
    );
    assert!(refused.stderr.contains("(no-evidence)"), "{}", refused.page());
    assert_eq!(stage.owners().await, [(true, false), (false, true)]);
    let json = [&BOTH as &[&str], &UNPROVEN, &["--format", "json"]].concat();
    let moved = until("the flip is made", SOON, async || {
        let ended = stage.split.run("flip", &json);
        (ended.exit == Some(0)).then_some(ended)
    })
    .await;
    let document: serde_json::Value = serde_json::from_str(&moved.stdout).unwrap();
    let changed: Vec<(&str, bool)> = document["slices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|slice| (slice["slice"].as_str().unwrap(), slice["changed"].as_bool().unwrap()))
        .collect();
    assert_eq!(changed, [("one", true), ("two", false)]);
    stage.assert_with(Side::Service).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_member_that_was_not_closed_when_the_operator_died_is_judged_before_it_moves() {
    let stage = Stage::armed().await;
    let folder = tempfile::tempdir().unwrap();
    let after = folder.path().join("after");
    let hook = format!("hooks: {{ after: [{{ command: [touch, {}] }}] }}", after.display());
    stage.split.change_plan("write_pause_budget: 2s", &format!("write_pause_budget: 2s, {hook}"));
    for (point, to) in [("flip-fenced", Side::Service), ("flip-before-fence:2", Side::Service)] {
        // The reason that is given for the first move instead of evidence is none for the second.
        killed(&stage.split, point, &BOTH);
        stage.mirror.signal(rustix::process::Signal::STOP);
        let owners = stage.owners().await;
        assert_eq!(owners, [(false, false), (true, false)], "the mirror was quicker than two seconds");
        let _ = std::fs::remove_file(&after);
        let refused = stage.split.run("flip", &[back(to), &BOTH].concat());
        assert_eq!(refused.exit, Some(3), "{}", refused.page());
        for words in ["(move-given-back)", "(no-evidence)", "authority was not moved"] {
            assert!(refused.stderr.contains(words), "{words}: {}", refused.page());
        }
        assert!(after.exists(), "what the first move's hooks held back is let go");
        stage.assert_with(Side::Monolith).await;
        stage.mirror.signal(rustix::process::Signal::CONT);
        stage.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slice_that_was_fenced_alone_is_finished_alone_the_way_that_it_went() {
    let stage = Stage::armed().await;
    stage.split.change_plan(", flip_together: [[one, two]]", "");
    // Without a mirror nobody finishes it meanwhile.
    killed(&stage.split, "flip-fenced", &["--slice", "one"]);
    stage.mirror.signal(rustix::process::Signal::STOP);
    assert_eq!(
        stage.owners().await,
        [(false, false), (true, false)],
        "the mirror was quicker than two seconds"
    );
    let refused = |to: Side, code: &str, next: &str| {
        let ended = stage.split.run("flip", &[back(to), &BOTH, &UNPROVEN].concat());
        assert_eq!(ended.exit, Some(3), "{}", ended.page());
        assert!(ended.stderr.contains(code) && ended.stderr.contains(next), "{}", ended.page());
    };
    let next = "strangler flip plan.yaml --slice one to finish it, or strangler flip --abort plan.yaml --slice one to give";
    refused(Side::Service, "(authority-fenced-alone)", next);
    refused(Side::Monolith, "(authority-other-way)", next);
    // A plan that binds it to the other one since refuses what names it alone.
    stage.split.change_plan("write_pause_budget: 2s", "write_pause_budget: 2s, flip_together: [[one, two]]");
    let abort = "strangler flip --abort plan.yaml --slice one --slice two to give authority back";
    refused(Side::Service, "(authority-fenced-alone)", abort);
    let aborted = stage.split.run("flip", &[&["--abort"] as &[&str], &BOTH].concat());
    assert_eq!(aborted.exit, Some(0), "{}", aborted.page());
    assert!(aborted.stdout.contains("one: the monolith has authority"), "{}", aborted.page());
    stage.assert_with(Side::Monolith).await;
    stage.mirror.signal(rustix::process::Signal::CONT);
    stage.quiet().await;
    // A member that was not fenced yet has its move taken back as well.
    killed(&stage.split, "flip-fenced", &BOTH);
    stage.mirror.signal(rustix::process::Signal::STOP);
    for already in [false, true] {
        let aborted = stage.split.run("flip", &[&["--abort"] as &[&str], &BOTH].concat());
        assert_eq!(aborted.exit, Some(0), "{}", aborted.page());
        assert_eq!(
            aborted.stdout.matches("has authority already").count(),
            if already { 2 } else { 0 },
            "{}",
            aborted.page()
        );
    }
    stage.assert_with(Side::Monolith).await;
    stage.mirror.signal(rustix::process::Signal::CONT);
}
