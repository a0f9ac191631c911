//! What a move took, step by step.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::authority::{Effect, Event};

/// One thing that was done.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// `lock`, `drain`, `fence`, `open`, `swap`, and so on.
    pub step: &'static str,
    /// Milliseconds from the beginning of the move to the beginning of the step.
    pub at_ms: f64,
    /// Milliseconds that it took.
    pub took_ms: f64,
    /// How it ended: `done`, `missed`, `unclear`, `out of time`.
    pub outcome: &'static str,
}

/// The steps of a move, and the pause that writers saw.
#[derive(Debug, Default, Clone)]
pub struct Timeline {
    begun: Option<Instant>,
    entries: Vec<Entry>,
    /// When the gate's lock was asked for in the last attempt.
    held: Option<Instant>,
    /// When the other side's gate was open.
    opened: Option<Instant>,
}

impl Timeline {
    /// Notes a part of an effect.
    pub fn note(&mut self, step: &'static str, begun: Instant, outcome: &'static str) {
        let zero = *self.begun.get_or_insert(begun);
        self.entries.push(Entry {
            step,
            at_ms: millis(begun.saturating_duration_since(zero)),
            took_ms: millis(begun.elapsed()),
            outcome,
        });
    }

    /// Notes an effect and what came of it.
    pub(super) fn add(&mut self, effect: Effect, event: Event, begun: Instant) {
        let outcome = match event {
            Event::Observed(_) | Event::Hit => "done",
            Event::Missed => "missed",
            Event::Unclear => "unclear",
            Event::OutOfTime => "out of time",
        };
        let step = match effect {
            // Looking is everywhere between and takes a millisecond.
            Effect::Look => return self.begin(begun),
            Effect::Fence { .. } => "fence",
            Effect::Open { .. } | Effect::Reopen { .. } => "open",
            Effect::Bump { .. } => "bump",
            Effect::Swap { .. } => "swap",
            Effect::Propose(_) => "propose",
            Effect::SettleOpen(_) | Effect::SettleAborted(_) => "settle",
            Effect::Await(_) => "wait",
        };
        self.note(step, begun, outcome);
    }

    /// Writers that come from now on wait.
    pub(super) fn writers_wait(&mut self) {
        self.held = Some(Instant::now());
    }

    /// Writers are let in.
    pub(super) fn writers_go_on(&mut self) {
        self.opened = Some(Instant::now());
    }

    fn begin(&mut self, begun: Instant) {
        self.begun.get_or_insert(begun);
    }

    /// All steps in their order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// From the request for the gate's lock to the open gate on the other side, when this driver did both: as long as that, a
    /// writer that came at the worst moment waited or was refused.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        Some(self.opened?.saturating_duration_since(self.held?))
    }
}

/// Milliseconds with two decimals.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}
