//! How near the WAL that the source holds for a slot is to its limit, and what the mirror does about it: it warns at 50 %, lets the
//! stream go before the copy at 80 %, and at 90 %, where the plan says so, drops its own slot, because the monolith's disk comes first.

use std::time::{Duration, Instant};

use crate::journal::streams::StreamOf;
use crate::lsn::Lsn;
use crate::plan::AtWalLimit;
use crate::words;

/// What the plan says about WAL that a source holds for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLimits {
    /// Bytes that it may hold.
    pub budget_bytes: u64,
    /// What the mirror does near that.
    pub at_limit: AtWalLimit,
}

impl WalLimits {
    /// The same for a stream whose slot is no copy's: nothing else brings what it would lose.
    #[must_use]
    pub(super) fn kept(self) -> Self {
        Self { at_limit: AtWalLimit::Warn, ..self }
    }

    /// Whether a slot that holds `held` bytes, with `safe` bytes left to the server's own limit, is to be dropped.
    #[must_use]
    pub(super) fn gives_up(self, held: u64, safe: Option<i64>) -> bool {
        self.at_limit == AtWalLimit::DropSlot
            && Level::of(held, safe, self.budget_bytes).percent() >= FULL_PERCENT
    }
}

/// Where held WAL stands beside the nearer limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Below four fifths of it.
    #[default]
    Slack,
    /// From four fifths on: nothing new is copied before the stream is current.
    Tight,
    /// From nine tenths on, where the plan says that the slot is dropped.
    Full,
}

/// From how many percent on that is so.
const TIGHT_PERCENT: u64 = 80;
const FULL_PERCENT: u64 = 90;
/// Where the operator is told.
const STEPS: [u64; 4] = [100, FULL_PERCENT, TIGHT_PERCENT, 50];
/// For so long it has to stay so before the slot is dropped. A burst that the stream brings takes seconds, and the server lets go of what
/// was brought with the next record of its running transactions, which it writes every 15 s (PostgreSQL's `LOG_SNAPSHOT_INTERVAL_MS`).
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for a stream that is behind and brings nothing: waiting makes that no better.
const PATIENCE_STUCK: Duration = Duration::from_secs(10);
/// A stream that is behind by less is current: a segment of WAL, the least that a slot lets go of.
pub(super) const CURRENT_BYTES: u64 = 16 << 20;

/// What is held of which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    held: u64,
    /// Bytes of the nearer limit.
    limit: u64,
    /// The limit is `max_slot_wal_keep_size`, not the plan's.
    of_server: bool,
}

impl Level {
    /// `safe`: what can still be written before the server's own limit, where it has one.
    fn of(held: u64, safe: Option<i64>, budget: u64) -> Self {
        let server = safe.map(|safe| held.saturating_add(u64::try_from(safe).unwrap_or(0)));
        match server.filter(|limit| *limit < budget) {
            Some(limit) => Self { held, limit, of_server: true },
            None => Self { held, limit: budget, of_server: false },
        }
    }

    fn percent(self) -> u64 {
        self.held.saturating_mul(100).checked_div(self.limit).unwrap_or(100)
    }
}

/// What a look at a slot found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    /// Bytes of WAL that the source holds for it.
    pub(super) bytes: u64,
    /// Bytes that are safe to write before the server's own limit, where it has one.
    pub(super) safe: Option<i64>,
    /// Bytes of it that the stream has not brought.
    pub(super) unbrought: u64,
    /// Up to where the stream has brought everything.
    pub(super) confirmed: Option<Lsn>,
}

/// Warns about held WAL, once per step, with the time left at the present rate.
#[derive(Debug, Default)]
pub(super) struct WalMeter {
    last: Option<(Instant, u64)>,
    warned_percent: u64,
    /// Since when every look found it full.
    full: Option<Instant>,
    /// Where the stream was, and since when.
    at: Option<(Instant, Option<Lsn>)>,
}

impl WalMeter {
    /// Takes what a look found, and when.
    pub(super) fn watch(
        &mut self,
        of: StreamOf<'_>,
        found: Held,
        limits: WalLimits,
        now: Instant,
    ) -> Pressure {
        let (held, safe) = (found.bytes, found.safe);
        let level = Level::of(held, safe, limits.budget_bytes);
        let left = level.limit.saturating_sub(held);
        let time_left_s =
            self.last.and_then(|(at, before)| time_left_s(held, before, now.duration_since(at), left));
        self.last = Some((now, held));
        let percent = level.percent();
        let step = STEPS.into_iter().find(|step| percent >= *step).unwrap_or(0);
        let drops = limits.at_limit == AtWalLimit::DropSlot;
        if step > self.warned_percent {
            tracing::warn!(
                slice = of.slice,
                direction = of.direction.as_str(),
                held_bytes = held,
                budget_bytes = limits.budget_bytes,
                percent,
                time_left_s,
                "{}",
                wal_words(of, level, (safe, drops))
            );
        }
        self.warned_percent = step;
        if percent < FULL_PERCENT {
            self.full = None;
        }
        if self.at.is_some_and(|(_, confirmed)| confirmed != found.confirmed) {
            self.at = None;
        }
        match percent {
            FULL_PERCENT.. if self.is_over(found, now) && drops => Pressure::Full,
            TIGHT_PERCENT.. => Pressure::Tight,
            _ => Pressure::Slack,
        }
    }

    /// Whether a slot that is full has been so for as long as may be waited.
    fn is_over(&mut self, found: Held, now: Instant) -> bool {
        let full_for = now.duration_since(*self.full.get_or_insert(now));
        let (since, _) = *self.at.get_or_insert((now, found.confirmed));
        let stuck = found.unbrought > CURRENT_BYTES && now.duration_since(since) >= PATIENCE_STUCK;
        full_for >= PATIENCE || stuck && full_for >= PATIENCE_STUCK
    }
}

/// How much WAL is held, of what, what happens next, and what to type.
fn wal_words(of: StreamOf<'_>, level: Level, (safe, drops): (Option<i64>, bool)) -> String {
    let source = of.direction.source();
    let then = match safe {
        _ if drops => format!(
            "at {FULL_PERCENT} % the mirror drops its slot, as the plan says (at_wal_limit), and the slice has to be rebuilt then"
        ),
        Some(safe) => format!(
            "PostgreSQL drops it at max_slot_wal_keep_size, in another {}, and the slice has to be rebuilt then",
            words::bytes(u64::try_from(safe).unwrap_or(0))
        ),
        None => {
            format!("max_slot_wal_keep_size sets no limit, so it goes on until the {source}'s disk is full")
        }
    };
    let limit = match (level.of_server, drops) {
        (true, _) => "its max_slot_wal_keep_size of",
        (false, true) => "its wal_budget of",
        (false, false) => "its wal_budget, at which nothing stops, of",
    };
    format!(
        "the {source} holds {} of WAL for slice {}, {} % of {limit} {}: {then}; strangler status PLAN --slice {} shows who holds it up",
        words::bytes(level.held),
        of.slice,
        level.percent(),
        words::bytes(level.limit),
        of.slice
    )
}

/// Seconds until `left` bytes are used up at the rate seen; `None` while the held amount doesn't grow.
fn time_left_s(held: u64, before: u64, elapsed: Duration, left: u64) -> Option<u64> {
    let grown = held.checked_sub(before).filter(|grown| *grown > 0)?;
    let elapsed_ms = u64::try_from(elapsed.as_millis()).ok()?;
    Some(left.saturating_mul(elapsed_ms) / grown / 1000)
}

/// Why a slice is in a gap whose slot the mirror has dropped.
#[must_use]
pub(super) fn dropped_words(slot: &str, (held, safe): (u64, Option<i64>), limits: WalLimits) -> String {
    let level = Level::of(held, safe, limits.budget_bytes);
    format!(
        "the mirror dropped its replication slot {slot}, as the plan says (at_wal_limit: drop_slot): the monolith held {} of WAL for it, {} % of \
         its {} of {}",
        words::bytes(held),
        level.percent(),
        if level.of_server { "max_slot_wal_keep_size" } else { "wal_budget" },
        words::bytes(level.limit)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn limits(at_limit: AtWalLimit) -> WalLimits {
        WalLimits { budget_bytes: 50 * GB, at_limit }
    }

    #[test]
    fn wal_that_is_held_is_told_with_its_limit_and_what_happens_next() {
        let of = StreamOf::forward("orders");
        let said = |held, safe, drops| wal_words(of, Level::of(held, safe, 50 * GB), (safe, drops));
        let beyond = said(52 * GB, Some(48_000_000_000), false);
        for words in [
            "holds 52.0 GB of WAL for slice orders, 104 % of its wal_budget, at which nothing stops, of 50.0 GB",
            "in another 48.0 GB",
        ] {
            assert!(beyond.contains(words), "{words} is not in {beyond}");
        }
        assert!(said(52 * GB, None, false).contains("until the monolith's disk is full"));
        let near = said(30 * GB, Some(10_000_000_000), true);
        assert!(near.contains("75 % of its max_slot_wal_keep_size of 40.0 GB"), "{near}");
        assert!(near.contains("the mirror drops its slot, as the plan says"), "{near}");
    }

    /// What looks find, the first at once and the others so many seconds later.
    fn looks(at_limit: AtWalLimit, looks: &[(u64, Held)]) -> Vec<Pressure> {
        let (mut meter, start) = (WalMeter::default(), Instant::now());
        let look = |(after, held): &(u64, Held)| {
            let now = start + Duration::from_secs(*after);
            meter.watch(StreamOf::forward("orders"), *held, limits(at_limit), now)
        };
        looks.iter().map(look).collect()
    }

    /// A slot of a stream that stands at `at` and has not brought the last `unbrought` bytes.
    fn held(gigabytes: u64, safe: Option<i64>, (unbrought, at): (u64, u64)) -> Held {
        Held {
            bytes: gigabytes * GB,
            safe,
            unbrought,
            confirmed: Some(Lsn::from(tokio_postgres::types::PgLsn::from(at))),
        }
    }

    #[test]
    fn a_slot_is_dropped_where_the_plan_says_so_and_a_stream_brings_nothing_although_it_is_full() {
        use Pressure::{Full, Slack, Tight};
        for (at_limit, gigabytes, safe, expected) in [
            (AtWalLimit::DropSlot, 39, None, [Slack; 3]),
            (AtWalLimit::DropSlot, 40, None, [Tight; 3]),
            (AtWalLimit::DropSlot, 45, None, [Tight, Tight, Full]),
            (AtWalLimit::DropSlot, 9, Some(1_000_000_000), [Tight, Tight, Full]),
            (AtWalLimit::DropSlot, 9, Some(-1), [Tight, Tight, Full]),
            (AtWalLimit::Warn, 99, None, [Tight; 3]),
        ] {
            let found = held(gigabytes, safe, (GB, 7));
            let found = looks(at_limit, &[(0, found), (8, found), (11, found)]);
            assert_eq!(found, expected, "{at_limit:?} {gigabytes} {safe:?}");
            assert_eq!(limits(at_limit).gives_up(gigabytes * GB, safe), found.contains(&Full));
            assert!(!limits(at_limit).kept().gives_up(gigabytes * GB, safe));
        }
    }

    #[test]
    fn a_burst_that_the_stream_brings_costs_no_slot_and_wal_that_is_held_for_a_minute_does() {
        use Pressure::{Full, Slack, Tight};
        let full = |unbrought, at| held(46, None, (unbrought, at));
        let brought = [(0, full(GB, 1)), (11, full(GB / 2, 2)), (22, full(0, 3)), (40, full(0, 3))];
        let drops = AtWalLimit::DropSlot;
        assert_eq!(looks(drops, &brought), [Tight; 4], "it moves, and is current then");
        let room = [(50, held(10, None, (0, 3))), (62, full(0, 3))];
        assert_eq!(looks(drops, &[&brought[..], &room].concat())[4..], [Slack, Tight], "counted anew");
        let held_up = [(59, full(0, 4)), (61, full(0, 5))];
        assert_eq!(looks(drops, &[&brought[..], &held_up].concat())[4..], [Tight, Full]);
    }

    #[test]
    fn time_left_is_told_only_while_held_wal_grows() {
        let second = Duration::from_secs(1);
        assert_eq!(time_left_s(2_000, 1_000, second, 10_000), Some(10));
        assert_eq!(time_left_s(1_000, 1_000, second, 10_000), None);
        assert_eq!(time_left_s(500, 1_000, second, 10_000), None);
    }
}
