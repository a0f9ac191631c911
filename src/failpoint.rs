//! Named kill points between the durable steps.
//!
//! In a build with the feature `failpoints` the variable `STRANGLER_FAILPOINT=name[:n]` makes the process kill
//! itself, as SIGKILL would, when it reaches that point for the n-th time (default 1); with `STRANGLER_FREEZE=name[:n]` it stops
//! there, as SIGSTOP would, and goes on when it gets SIGCONT. `STRANGLER_ANSWER_MS` is the longest that any server may owe an
//! answer, where one may owe it for a time only. Other builds hold none of it.

pub mod hooks;

/// Every kill point of the mirror, in the order in which a run meets them. A test kills at each.
pub const MIRROR: &[&str] = &[
    "stream-row-inserted",
    "slot-wanted",
    "slot-asked-for",
    "slot-created",
    "stream-row-running",
    "nonce-taken",
    "process-registered",
    "entry-noted",
    "baseline-written",
    "lineage-begun",
    "lineage-advanced",
    "round-marked",
    "range-before-commit",
    "range-landed",
    "part-before-commit",
    "part-landed",
    "parts-voided",
    "whole-before-commit",
    "whole-landed",
    "round-ended",
    "apply-before-commit",
    "apply-committed",
    "apply-confirmed",
    "lineage-noted",
    "idle-persisted",
    "table-live",
    "deferred-one-done",
    "deferred-done",
    "stopped-cleanly",
];

/// Kill points of `mirror --retry` and `mirror --rebuild`, in their order.
pub const COPY_AGAIN: &[&str] =
    &["rebuild-slot-dropped", "rebuild-reset", "unique-deferred-again", "emptied-for-copy"];

/// Kill points behind what is noted when something is found wrong: what changed without an event, an index that could not be
/// built, triggers that fire on mirrored rows, and why a mirror did not begin. Each has its own test.
pub const NOTES: &[&str] = &["unheard-noted", "deferred-failed-noted", "fired-noted", "word-left"];

/// Kill points of the way back, and of tripwires in both directions.
pub const REVERSE: &[&str] = &[
    "reverse-nonce-taken",
    "reverse-registered",
    "publication-noted",
    "reverse-persisted",
    "reverse-before-commit",
    "reverse-committed",
    "reverse-confirmed",
    "reverse-mended",
    "reverse-stopped",
    "use-met",
    "use-saved",
    "tripwire-alarmed",
    "outside-told",
    "turned",
    "rewatch-slot-dropped",
    "rewatch-recorded",
];

/// Kill points of starts that find something wrong, of the end that follows, and of starts that find a source that went
/// on under a new timeline.
pub const START: &[&str] = &["slot-let-go", "fault-recorded", "end-recorded", "timeline-recorded"];

/// Kill points of repairs that somebody asked for, in their order.
pub const REPAIR: &[&str] = &["repair-before-commit", "repair-committed"];

/// Kill points of `arm`, in the order in which a run meets them.
pub const ARM: &[&str] = &[
    "arm-before-commit",
    "arm-rights-granted",
    "arm-identity-set",
    "arm-published",
    "arm-old-slot-dropped",
    "arm-stream-recorded",
    "arm-slot-created",
    "arm-stream-running",
    "arm-function-restored",
    "arm-gate-hung",
    "arm-key-cut",
    "arm-recorded",
];

/// Kill points of `disarm`, in their order.
pub const DISARM: &[&str] = &[
    "disarm-begun",
    "disarm-key-handed-over",
    "disarm-key-added",
    "disarm-key-proven",
    "disarm-gate-off",
    "disarm-stream-stopped",
    "disarm-slot-dropped",
    "disarm-unpublished",
    "disarm-stream-forgotten",
    "disarm-recorded",
];

/// Kill points of `retire` and `unretire`, in their order.
pub const RETIRE: &[&str] =
    &["retire-before-commit", "retire-committed", "unretire-before-commit", "unretire-committed"];

/// Kill points of the stage of retirement that moves tables away, in their order. Taking it back has those of [`RETIRE`].
pub const QUARANTINE: &[&str] = &["quarantine-before-commit", "quarantine-committed"];

/// Kill points of `abandon`, in their order: one behind each durable step.
pub const ABANDON: &[&str] = &[
    "abandon-begun",
    "abandon-copies-taken",
    "abandon-slot-dropped",
    "abandon-monolith-cleared",
    "abandon-schema-dropped",
    "abandon-service-cleared",
];

/// Kill point of `abandon` behind the note that the monolith lacks something, whether or not anything is confirmed.
pub const LACK: &[&str] = &["abandon-lack-noted"];

/// Kill points of `retire --stage archive`, in their order.
pub const ARCHIVE: &[&str] = &[
    "archive-begun",
    "archive-part-written",
    "archive-read",
    "archive-verified",
    "archive-concluded",
    "archive-before-commit",
    "archive-committed",
];

/// Kill points of `retire --stage drop`, in their order; the last two are of a service that was set back and is told, and of `unretire`,
/// which takes back what is not committed.
pub const DROP: &[&str] = &[
    "drop-caught-up",
    "drop-noted",
    "drop-before-commit",
    "drop-committed",
    "drop-mirrors-stopped",
    "drop-forward-slot",
    "drop-reverse-slot",
    "drop-service-cleared",
    "drop-ended-on-monolith",
    "drop-journal-kept",
    "drop-schema-gone",
    "drop-ended",
    "drop-told",
    "drop-taken-back",
];

/// Kill points of `restore`, in their order.
pub const RESTORE: &[&str] = &["restore-before-commit", "restore-committed"];

/// Kill points around entries of the ledger that are made right after what they tell: the steps of `provision`, `arm` and
/// `disarm`, and what a mirror meets that is not in the service's database; and behind the entry by which a broken ledger is
/// accepted.
pub const LEDGER: &[&str] = &["steps-taken", "steps-recorded", "alarm-told", "ledger-accepted"];

/// Kill points of who has rows repaired: the mirror has answered, and the ledger has an entry of it.
pub const RECORD: &[&str] = &["repairs-answered", "repairs-recorded"];

/// Kill points of a move of authority, in their order.
pub const FLIP: &[&str] = &[
    "canary-set-out",
    "flip-looked",
    "flip-proposed",
    "flip-writers-held",
    "flip-drained",
    "flip-before-fence",
    "flip-fenced",
    "flip-settled",
    "flip-before-open",
    "flip-opened",
    "flip-swapped",
    "flip-before-bump",
    "flip-bumped",
    "flip-before-reopen",
    "flip-reopened",
    "flip-recorded",
];

/// Dies here when the environment asks for it.
#[cfg(feature = "failpoints")]
pub fn hit(name: &'static str) {
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    type Point = Option<(String, u64)>;
    static WANTED: OnceLock<[Point; 2]> = OnceLock::new();
    static COUNTS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
    debug_assert!(
        [
            MIRROR, COPY_AGAIN, START, REPAIR, REVERSE, ARM, DISARM, RETIRE, QUARANTINE, ARCHIVE, DROP,
            RESTORE, ABANDON, LACK, LEDGER, RECORD, FLIP, NOTES
        ]
        .concat()
        .contains(&name),
        "failpoint {name} is not in the lists that tests go through"
    );
    let read = |variable| {
        let text = std::env::var(variable).ok()?;
        let (name, count) = text.split_once(':').unwrap_or((text.as_str(), "1"));
        Some((name.to_owned(), count.parse().unwrap_or(1)))
    };
    let wanted = WANTED.get_or_init(|| ["STRANGLER_FAILPOINT", "STRANGLER_FREEZE"].map(read));
    let reached = |point: &Point, count: &AtomicU64| {
        point
            .as_ref()
            .is_some_and(|(wanted, nth)| wanted == name && count.fetch_add(1, Ordering::SeqCst) + 1 == *nth)
    };
    let [die, freeze] = wanted;
    if reached(die, &COUNTS[0]) {
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::park();
        }
    }
    if reached(freeze, &COUNTS[1]) {
        let _ = kill_process(getpid(), Signal::STOP);
    }
}

/// How long a server may owe an answer: as long as `limit`, or less when the environment asks for it.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn answer_limit(limit: std::time::Duration) -> std::time::Duration {
    let asked = std::env::var("STRANGLER_ANSWER_MS").ok().and_then(|text| text.parse().ok());
    asked.map_or(limit, |ms| limit.min(std::time::Duration::from_millis(ms)))
}

/// How long a server may owe an answer: as long as `limit`, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub fn answer_limit(limit: std::time::Duration) -> std::time::Duration {
    limit
}

/// Dies here when the environment asks for it: never, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn hit(_name: &'static str) {}
