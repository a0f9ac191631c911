//! The document that a hook gets. Its form is a contract: docs/plan.md.

use std::time::Duration;

use serde::Serialize;

use crate::authority::Side;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before anything is changed.
    Before,
    /// When the flip is over.
    After,
}

impl Phase {
    /// As the plan writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// One slice that is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moving {
    /// Its name.
    pub slice: String,
    /// The service that it belongs to.
    pub service: String,
    /// The epoch that the flip ends with when it succeeds.
    pub epoch: i64,
}

/// The flip that hooks are run around.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occasion {
    /// Name of the plan.
    pub plan: String,
    /// Who is to have authority.
    pub to: Side,
    /// All slices that move at this barrier.
    pub slices: Vec<Moving>,
}

/// What came of a flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Authority moved.
    Moved {
        /// The pause of writers, where this process saw both of its ends.
        pause: Option<Duration>,
    },
    /// Authority is where it was.
    NotMoved,
    /// It is not known, or nobody has authority: the same command, or the mirror, finishes it.
    Unfinished,
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    plan: &'a str,
    phase: Phase,
    direction: &'static str,
    slices: &'a [Moving],
    #[serde(flatten)]
    result: Option<Ending>,
}

#[derive(Serialize)]
struct Ending {
    outcome: &'static str,
    pause_ms: Option<f64>,
}

impl Occasion {
    /// The document in text. `outcome` is there after the flip only.
    #[must_use]
    pub(super) fn document(&self, phase: Phase, outcome: Option<Outcome>) -> String {
        let document = Document {
            version: 1,
            plan: &self.plan,
            phase,
            direction: match self.to {
                Side::Service => "to_service",
                Side::Monolith => "to_monolith",
            },
            slices: &self.slices,
            result: outcome.map(Ending::of),
        };
        // Names and numbers always have a JSON form.
        serde_json::to_string(&document).unwrap_or_default()
    }
}

impl Ending {
    fn of(outcome: Outcome) -> Self {
        let (outcome, pause) = match outcome {
            Outcome::Moved { pause } => ("moved", pause),
            Outcome::NotMoved => ("not_moved", None),
            Outcome::Unfinished => ("unfinished", None),
        };
        let millis = |pause: Duration| (pause.as_secs_f64() * 100_000.0).round() / 100.0;
        Self { outcome, pause_ms: pause.map(millis) }
    }
}
