//! A problem: what stands between a plan and a split that keeps its promises, in words an operator can act on.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

/// Where an operator reads how a slice is taken back by hand, to be provisioned as if for the first time. The way out
/// where nothing cheaper is.
pub const START_ANEW: &str = "docs/runbooks/start-anew.md";

/// What to do about a slice whose mapping is another one since its mirror began. Said by every verb in these words.
#[must_use]
pub fn bring_back(slice: &str) -> String {
    format!(
        "bring the old mapping back: undo what changed in the plan or in the monolith's tables since, and leave added \
         columns behind with `drop: true`; else start slice {slice} anew: {START_ANEW}"
    )
}

/// What makes the way back of an armed slice anew. Only who has armed a slice ever reads it.
#[must_use]
pub fn arm_anew(slice: &str) -> String {
    let verb = "arm";
    format!("strangler {verb} PLAN --slice {slice}, which makes the way back anew")
}

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The next step would fail or lose something: it is refused until this is gone.
    Error,
    /// The step works, and somebody should know what it costs or what could go wrong.
    Warning,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Where in the plan file something stands, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// One problem. Problems order by severity, object and code, so that a report reads the same each time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// What it is about, as an operator names it: `Orders`, `monolith`, `service orders`.
    pub object: String,
    /// Stable name of the rule, e.g. `no-key`.
    pub code: &'static str,
    /// The rule of the plan that it comes from, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What was found.
    pub fact: String,
    /// What follows when nothing is done.
    pub consequence: String,
    /// What to type or write next.
    pub next: String,
    /// Slices whose mapping it spoils; empty where it concerns no slice, or nobody knows which.
    #[serde(skip)]
    pub slices: BTreeSet<String>,
}

impl Problem {
    /// A problem whose words follow with [`Self::fact`], [`Self::consequence`] and [`Self::next`].
    pub fn new(severity: Severity, code: &'static str, object: impl fmt::Display) -> Self {
        Self {
            severity,
            object: object.to_string(),
            code,
            place: None,
            fact: String::new(),
            consequence: String::new(),
            next: String::new(),
            slices: BTreeSet::new(),
        }
    }

    /// An error.
    pub fn error(code: &'static str, object: impl fmt::Display) -> Self {
        Self::new(Severity::Error, code, object)
    }

    /// A warning.
    pub fn warning(code: &'static str, object: impl fmt::Display) -> Self {
        Self::new(Severity::Warning, code, object)
    }

    /// A note.
    pub fn note(code: &'static str, object: impl fmt::Display) -> Self {
        Self::new(Severity::Note, code, object)
    }

    /// Says what was found.
    #[must_use]
    pub fn fact(mut self, words: impl Into<String>) -> Self {
        self.fact = words.into();
        self
    }

    /// Says what follows.
    #[must_use]
    pub fn consequence(mut self, words: impl Into<String>) -> Self {
        self.consequence = words.into();
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn next(mut self, words: impl Into<String>) -> Self {
        self.next = words.into();
        self
    }

    /// Says that it spoils the mapping of a slice.
    #[must_use]
    pub fn of_slice(mut self, slice: impl Into<String>) -> Self {
        self.slices.insert(slice.into());
        self
    }

    /// Whether one of these slices must not be worked on before it is gone. What can't be said to concern some slice
    /// concerns all of them.
    #[must_use]
    pub fn stops(&self, slices: &[String]) -> bool {
        self.severity == Severity::Error && self.concerns(slices)
    }

    /// Whether it is about one of these slices, or can't be said to be about some slice.
    #[must_use]
    pub fn concerns(&self, slices: &[String]) -> bool {
        self.slices.is_empty() || slices.iter().any(|slice| self.slices.contains(slice))
    }

    /// Says which rule of the plan it comes from: line and column, from 1.
    #[must_use]
    pub fn at(mut self, (line, column): (u32, u32)) -> Self {
        self.place = Some(Place { line, column });
        self
    }
}
