//! What begins is judged, whatever was there before; and what hooks and the operator are told is what the gates say at the end.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;
use strangler::authority;
use strangler::cluster::{Cluster, StopMode};
use strangler::dualwrite::flip::sequences::{Pair, Pairs, Sequence, Stand, Stands};
use strangler::name::TableName;

use super::bank::Side;
use super::crash::frozen;
use super::{UNPROVEN, armed, complete, flip, killed, owner};
use crate::support::binary::flat;
use crate::support::cluster::Pair as Servers;
use crate::support::soak;
use crate::support::split::Split;
use crate::support::wait::{SOON, until, until_blocking};

/// The documents that the hooks of a plan got.
struct Heard {
    folder: tempfile::TempDir,
}

impl Heard {
    /// From now on the plan's hooks write down what they get.
    fn of(split: &Split) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("heard").display().to_string();
        let hook = format!("[{{ command: [sh, -c, \"cat >> {note}; echo >> {note}\"] }}]");
        split.change_plan(
            "write_pause_budget: 2s",
            &format!("write_pause_budget: 2s, hooks: {{ before: {hook}, after: {hook} }}"),
        );
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("heard")
    }

    /// Phase, direction, outcome and epoch of each, and nothing is left.
    fn take(&self) -> Vec<(String, String, String, i64)> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        let _ = std::fs::remove_file(self.path());
        let of = |line: &str| {
            let document: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
            let epoch = document["slices"][0]["epoch"].as_i64().unwrap();
            (text("phase"), text("direction"), text("outcome"), epoch)
        };
        text.lines().map(of).collect()
    }
}

fn told(phase: &str, direction: &str, outcome: &str, epoch: i64) -> (String, String, String, i64) {
    (phase.to_owned(), direction.to_owned(), outcome.to_owned(), epoch)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_flip_after_a_half_done_abort_finishes_that_and_is_judged_anew() {
    let (split, monolith, service, mirror) = armed().await;
    let heard = Heard::of(&split);
    killed(&split, "flip-fenced", &[]);
    // Without a mirror nobody finishes it, and nothing is ready for the next flip.
    mirror.kill();
    killed(&split, "flip-bumped", &["--abort"]);
    heard.take();
    let refused = split.run("flip", &[]);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    assert!(refused.stderr.contains("(abort-finished)"), "{}", refused.page());
    assert!(!refused.stderr.lines().any(|line| line.trim() == "next"), "{}", refused.page());
    assert!(refused.stderr.contains("(no-evidence)"), "{}", refused.page());
    assert_eq!(owner(&monolith).await, ("OPEN".to_owned(), "monolith".to_owned()));
    assert_eq!(owner(&service).await.0, "FENCED");
    assert_eq!(heard.take(), []);
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    until_blocking("the flip is made", SOON, || (split.run("flip", &UNPROVEN).exit == Some(0)).then_some(()));
    let documents = [told("before", "to_service", "", 4), told("after", "to_service", "moved", 4)];
    assert_eq!(heard.take(), documents, "the move was aborted at epoch 3");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn hooks_and_the_operator_are_told_where_authority_is() {
    let (mut split, monolith, service, mirror) = armed().await;
    let heard = Heard::of(&split);
    let late = frozen(&split, "flip-fenced", Side::Service, &[]);
    mirror.kill();
    split.pair.service.stop(StopMode::Immediate).unwrap();
    late.signal(Signal::CONT);
    let ended = late.ended();
    assert_eq!(ended.exit, Some(5), "{}", ended.page());
    assert!(ended.stderr.contains("flip-unfinished"), "{}", ended.page());
    assert!(!ended.stderr.contains("authority was not moved"), "{}", ended.page());
    assert!(ended.stderr.contains("strangler flip --abort plan.yaml --slice one"), "{}", ended.page());
    assert_eq!(heard.take().last(), Some(&told("after", "to_service", "unfinished", 2)));
    // Whoever types anything while the service is away is told the same.
    for typed in [&[] as &[&str], &["--abort"], &["--back"]] {
        let ended = split.run("flip", typed);
        assert_eq!(ended.exit, Some(5), "{}", ended.page());
        assert!(ended.stderr.contains("error[flip-unfinished]"), "{}", ended.page());
        assert!(ended.stderr.contains("the other one may refuse every writer"), "{}", ended.page());
        assert!(ended.stderr.contains("bring that side back"), "{}", ended.page());
    }
    split.pair.service.start().unwrap();
    let status = split.run("status", &[]);
    assert!(status.stdout.contains("nobody has authority: a flip to the service"), "{}", status.page());
    assert!(status.stdout.contains("strangler flip plan.yaml --slice one --abort"), "{}", status.page());

    let aborted = split.run("flip", &["--abort"]);
    assert_eq!(aborted.exit, Some(0), "{}", aborted.page());
    assert_eq!(owner(&monolith).await.0, "OPEN");
    assert_eq!(heard.take(), [told("after", "to_service", "not_moved", 3)]);
    assert_eq!(split.run("flip", &["--abort"]).exit, Some(0));
    assert_eq!(heard.take(), [], "nothing was under way");

    drop(service);
    let service = split.pair.service().await;
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    flip(&split, &mirror, Side::Service);
    let moved = heard.take();
    assert_eq!(moved.last(), Some(&told("after", "to_service", "moved", 4)), "{moved:?}");
    let already = split.run("flip", &[]);
    assert!(already.exit == Some(0) && already.stdout.contains("already"), "{}", already.page());
    assert_eq!(heard.take(), [], "nothing was to be done");
    // A side that is away is no more than that while the other one takes writes.
    split.lead("NOWHERE", "postgresql://postgres@127.0.0.1:1/monolith");
    let links = ["url: \"${MONOLITH}\"", "url: \"${MONOLITH}\", admin: \"${NOWHERE}\""];
    split.change_plan(links[0], links[1]);
    for typed in [&[] as &[&str], &["--back"], &["--abort"]] {
        let ended = split.run("flip", typed);
        assert_eq!(ended.exit, Some(4), "{}", ended.page());
        assert!(ended.stderr.contains("error[database-unreachable]: monolith ("), "{}", ended.page());
    }
    split.change_plan(links[1], links[0]);
    complete(&split, &mirror, &[&["--back"], &UNPROVEN as &[&str]].concat());
    assert_eq!(heard.take().last(), Some(&told("after", "to_monolith", "moved", 5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_a_before_hook_ends_the_flip_before_anything_is_changed() {
    let (split, monolith, _service, _mirror) = armed().await;
    let heard = Heard::of(&split);
    let plan = split.plan_text();
    let (before, after) = plan.split_once("after:").unwrap();
    let sleeping = before.replace("\"] }]", "; sleep 600\"], timeout: 5m }]");
    split.write_plan(&format!("{sleeping}after:{after}"));
    until_blocking("the hook runs", SOON, || {
        let flip = split.start("flip", &UNPROVEN);
        let begun = until_blocking("the hook runs or the flip ends", SOON, || {
            let heard = std::fs::read_to_string(heard.path()).is_ok_and(|text| text.ends_with('\n'));
            let gone = std::fs::metadata(format!("/proc/{}/fd", flip.id())).is_err();
            (heard || gone).then_some(heard)
        });
        if !begun {
            return None;
        }
        flip.signal(Signal::INT);
        let ended = flip.ended();
        assert_eq!(ended.exit, Some(130), "{}", ended.page());
        assert!(ended.stderr.contains("authority was not moved"), "{}", ended.page());
        Some(())
    });
    assert_eq!(heard.take().last(), Some(&told("after", "to_service", "not_moved", 2)));
    assert_eq!(owner(&monolith).await.0, "OPEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_feeds_two_columns_skips_the_margin_once() {
    let servers = Servers::launch().await;
    let client = servers.service().await;
    client.batch_execute("CREATE SEQUENCE ids AS smallint; SELECT setval('ids', 31000)").await.unwrap();
    let name = TableName::new("public", "ids");
    let sequence = Sequence { name, increment: 1, min: 1, max: 32_767, cycle: false };
    let pair = |label: &str| Pair {
        label: label.to_owned(),
        monolith: Some(sequence.clone()),
        service: Some(sequence.clone()),
    };
    let pairs = Pairs(vec![pair("t.a"), pair("t.b")]);
    let stand = |last| Stand { last, called: true };
    let noted: Stands = [("t.a".to_owned(), stand(31_000)), ("t.b".to_owned(), stand(31_000))].into();
    assert_eq!(pairs.short(&noted, authority::Side::Service, (1000, 1)), [""; 0]);
    // What is judged to have room has it, and doing it again changes nothing.
    for _ in 0..3 {
        pairs.set_ahead(&client, authority::Side::Service, (&noted, 1000)).await.unwrap();
    }
    let last = client.query_one("SELECT last_value FROM ids", &[]).await.unwrap();
    assert_eq!(last.get::<_, i64>(0), 32_000);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_closed_side_is_told_who_the_owner_is_also_when_the_operator_died_before() {
    let (split, monolith, _service, _mirror) = armed().await;
    killed(&split, "flip-opened", &[]);
    until("the closed side names the owner", SOON, async || {
        (owner(&monolith).await == ("FENCED".to_owned(), "service".to_owned())).then_some(())
    })
    .await;
    let refused = monolith.execute("UPDATE accounts SET balance = 0", &[]).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().ends_with("is owned by service"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_whose_mirror_dies_when_the_service_is_open_says_that_authority_has_moved() {
    // It waits for the mirror for close to a minute.
    if !soak() {
        return;
    }
    let (split, _monolith, service, mirror) = armed().await;
    let heard = Heard::of(&split);
    let late = frozen(&split, "flip-opened", Side::Service, &[]);
    mirror.kill();
    late.signal(Signal::CONT);
    let ended = late.ended();
    assert_eq!(ended.exit, Some(5), "{}", ended.page());
    assert!(ended.stderr.contains("authority has moved, and something is left to do"), "{}", ended.page());
    assert!(!ended.stderr.contains("--abort"), "{}", ended.page());
    assert_eq!(heard.take().last(), Some(&told("after", "to_service", "moved", 2)));
    assert_eq!(owner(&service).await.0, "OPEN");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_side_that_takes_connections_and_never_says_a_word_ends_every_verb_with_what_to_do() {
    let (mut split, monolith, service, _mirror) = armed().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let right = [("MONOLITH", split.pair.monolith_url()), ("SERVICE", split.pair.service_url())];
    for (variable, link) in right {
        split.lead(variable, &format!("postgresql://postgres@127.0.0.1:{port}/postgres?connect_timeout=1"));
        let verbs: [(&str, &[&str], i32); 9] = [
            ("check", &[], 4),
            ("status", &[], 4),
            ("arm", &[], 4),
            ("disarm", &[], 4),
            ("reconcile", &[], 4),
            ("flip", &[], 4),
            ("flip", &["--back"], 4),
            ("flip", &["--abort"], 4),
            ("flip", &["--rehearse"], 4),
        ];
        let running = verbs.map(|(verb, arguments, exit)| (verb, exit, split.start(verb, arguments)));
        for (verb, exit, mut running) in running {
            until_blocking("it ends", SOON, || running.has_ended().then_some(()));
            let ended = running.ended();
            assert_eq!(ended.exit, Some(exit), "{verb}: {}", ended.page());
            let said = format!("{} {}", ended.stdout, ended.stderr);
            let said = flat(&said);
            assert!(said.contains("did not answer within 1s"), "{verb}: {}", ended.page());
            let next = ["type the same command again", "the same command goes on", "run check again"];
            assert!(
                verb == "status" || next.iter().any(|next| said.contains(next)),
                "{verb}: {}",
                ended.page()
            );
        }
        split.lead(variable, &link);
    }
    // The way back is tried over a link of its own; that it did not answer is said there.
    monolith.batch_execute("BEGIN; LOCK TABLE accounts IN SHARE MODE").await.unwrap();
    let ended = until_blocking("the way back is tried", SOON, || {
        let mut command = split.command(&[&["flip", "plan.yaml"], &UNPROVEN as &[&str]].concat());
        command.env("STRANGLER_ANSWER_MS", "1500");
        let ended = split.start_command(command).ended();
        assert_ne!(ended.exit, Some(0), "{}", ended.page());
        let said = flat(&ended.stderr);
        said.contains("the monolith gave no answer within 1.5 s").then_some(ended)
    });
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("(way-back-unproven)"), "{}", ended.page());
    monolith.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!((owner(&monolith).await.0, owner(&service).await.0), ("OPEN".to_owned(), "FENCED".to_owned()));
}
