//! The plan's periods are counted by one clock, which a test moves, and not by one that is wrong.

use super::{refused, ripe};
use crate::support::binary::Ended;

#[tokio::test(flavor = "multi_thread")]
async fn periods_are_counted_by_the_clock_of_whoever_types_the_command_unless_it_is_wrong() {
    let (split, _monolith, _service, mirror) = ripe().await;
    split.change_plan("safety_period: 0s", "safety_period: 30d");
    let typed = |words: &[&str], (variable, moved): (&str, &str)| {
        Ended::of(split.command(words).env(variable, moved).output().unwrap())
    };
    let revoke = ["retire", "plan.yaml", "--stage", "revoke"];
    let early = typed(&revoke, ("STRANGLER_CLOCK_OFFSET", "+29d"));
    refused(&early, &["safety-period", "no-evidence", "not-watched"]);
    assert!(early.stderr.contains("has had the authority for 29 d 0 h"), "{}", early.page());
    let later = typed(&revoke, ("STRANGLER_CLOCK_OFFSET", "+30d1h"));
    refused(&later, &["no-evidence", "not-watched"]);
    assert!(!later.stderr.contains("(safety-period)"), "{}", later.page());
    // The mirror's machine is ahead of this one.
    let behind = typed(&revoke, ("STRANGLER_CLOCK_OFFSET", "-5m"));
    refused(&behind, &["clock-apart", "safety-period"]);
    assert!(behind.stderr.contains("will be looked at in "), "{}", behind.page());

    let wrong = ("STRANGLER_CLOCK_WRONG", "+30d1h");
    let ended = typed(&revoke, wrong);
    refused(&ended, &["clock-apart"]);
    assert!(!ended.stderr.contains("(safety-period)"), "nothing else kept it: {}", ended.page());
    let compared = typed(&["reconcile", "plan.yaml"], wrong);
    let reason = "the clock of the machine that compared is 30 d 1 h ahead of both databases' servers";
    assert!(compared.exit == Some(5) && compared.stdout.contains(reason), "{}", compared.page());
    let back = typed(&["flip", "plan.yaml", "--back", "--accept-no-evidence", "a test"], wrong);
    assert!(!back.stderr.contains("(clock-apart)"), "the way home waits for no clock: {}", back.page());
    mirror.stop();
}
