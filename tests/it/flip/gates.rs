//! A gate that does not guard every table is not closed, and whoever changes gates keeps flips away, and is kept away.

use rustix::process::Signal;

use super::crash::{frozen, frozen_with};
use super::{UNPROVEN, armed, bank::Side, complete, flip, owner};
use crate::support::wait::until_blocking;

const OFF: &str = "ALTER TABLE accounts DISABLE TRIGGER aa_strangler_gate";

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_taken_off_after_it_was_judged_is_not_closed() {
    let (split, monolith, service, mirror) = armed().await;
    for (to, client, verb) in [(Side::Service, &monolith, "arm"), (Side::Monolith, &service, "provision")] {
        let late = frozen(&split, "flip-looked", to, &[]);
        client.batch_execute(OFF).await.unwrap();
        late.signal(Signal::CONT);
        let ended = late.ended();
        assert_eq!(ended.exit, Some(3), "{}", ended.page());
        assert!(ended.stderr.contains("(not-armed)"), "{}", ended.page());
        assert!(ended.stderr.contains("trigger aa_strangler_gate of table"), "{}", ended.page());
        assert!(ended.stderr.contains("authority was not moved"), "{}", ended.page());
        let next = format!("strangler {verb} plan.yaml --slice one");
        assert!(ended.stderr.contains(&next), "{}", ended.page());
        assert_eq!(owner(client).await.0, "OPEN", "writers go on where they were");
        client.execute("UPDATE accounts SET touched = touched + 1 WHERE id = 1", &[]).await.unwrap();
        let repaired = split.run(verb, &["--slice", "one"]);
        assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
        flip(&split, &mirror, to);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_rehearsal_says_what_a_flip_would_say_of_a_gate_that_was_taken_off_after_it_was_judged() {
    let (split, monolith, _service, _mirror) = armed().await;
    let rehearsal = frozen_with(&split, "flip-looked", &["--rehearse", "2"], &[]);
    monolith.batch_execute(OFF).await.unwrap();
    rehearsal.signal(Signal::CONT);
    let ended = rehearsal.ended();
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("(not-armed)"), "{}", ended.page());
    assert!(ended.stderr.contains("trigger aa_strangler_gate of table"), "{}", ended.page());
    assert_eq!(owner(&monolith).await.0, "OPEN");
    monolith.execute("UPDATE accounts SET touched = touched + 1 WHERE id = 1", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_a_trigger_off_between_the_look_at_it_and_the_fence() {
    let (split, monolith, _service, _mirror) = armed().await;
    let flip = frozen(&split, "flip-writers-held", Side::Service, &[]);
    monolith.batch_execute("SET lock_timeout = '200ms'").await.unwrap();
    let refused = monolith.batch_execute(OFF).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "55P03");
    flip.signal(Signal::CONT);
    drop(flip.ended());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_side_without_a_gate_is_an_alarm_whoever_took_it_off_and_whether_it_is_open() {
    let (split, monolith, service, mirror) = armed().await;
    let alarmed = |words: &str, next: &str| {
        let status = split.run("status", &[]);
        assert_eq!(status.exit, Some(1), "{}", status.page());
        assert!(status.stdout.contains(words), "{}", status.page());
        assert!(status.stdout.contains(next), "{}", status.page());
        let verb = next.split(' ').nth(1).unwrap();
        let repaired = split.run(verb, &["--slice", "one"]);
        assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
        let status = split.run("status", &[]);
        assert!(!status.stdout.contains(words), "{}", status.page());
    };
    service.batch_execute(OFF).await.unwrap();
    alarmed(
        "the service is closed, and trigger aa_strangler_gate of table accounts is disabled",
        "strangler provision plan.yaml --slice one",
    );
    flip(&split, &mirror, Side::Service);
    service.batch_execute(OFF).await.unwrap();
    alarmed(
        "the service is open, and trigger aa_strangler_gate of table accounts is disabled",
        "strangler provision plan.yaml --slice one",
    );
    monolith.batch_execute("DROP TRIGGER aa_strangler_gate ON accounts").await.unwrap();
    // Nor do the books excuse it.
    monolith
        .batch_execute(
            "INSERT INTO strangler.journal (slice, actor, action) VALUES ('one', 'disarm', 'disarmed')",
        )
        .await
        .unwrap();
    alarmed(
        "the monolith is closed, and table accounts has no trigger aa_strangler_gate",
        "strangler arm plan.yaml --slice one",
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn flips_and_disarm_keep_each_other_away_on_both_sides() {
    let (split, monolith, service, mirror) = armed().await;
    let mut command = split.command(&[&["flip", "plan.yaml"], &UNPROVEN as &[&str]].concat());
    command.env("STRANGLER_FREEZE", "flip-looked");
    let mut flip = split.start_command(command);
    assert!(flip.stands_still());
    let disarm = split.run("disarm", &[]);
    assert_eq!(disarm.exit, Some(3), "{}", disarm.page());
    for words in [
        "or a `flip`, is at work there: process ",
        "(strangler flip, connected for ",
        "SELECT pg_terminate_backend(",
    ] {
        assert!(disarm.stderr.contains(words), "{words}: {}", disarm.page());
    }
    flip.signal(Signal::CONT);
    flip.ended();
    complete(&split, &mirror, &[&["--back"], &UNPROVEN as &[&str]].concat());
    for client in [&monolith, &service] {
        client.batch_execute("SELECT pg_advisory_lock(1398035026, 0)").await.unwrap();
        let ended = split.run("flip", &UNPROVEN);
        assert_eq!(ended.exit, Some(3), "{}", ended.page());
        assert!(ended.stderr.contains("(gates-at-work)"), "{}", ended.page());
        client.batch_execute("SELECT pg_advisory_unlock(1398035026, 0)").await.unwrap();
    }
    until_blocking("disarm finds nobody at work", crate::support::wait::SOON, || {
        (split.run("disarm", &[]).exit == Some(0)).then_some(())
    });
}
