//! Problems of a plan as values, and the one function that shows them.

use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource};
use serde::Serialize;

use super::source::PlanSource;

/// Lines longer than this are not shown as a snippet, so that a file without line breaks cannot flood a terminal.
const SNIPPET_LINE_BYTES_MAX: usize = 400;

/// More problems than this are not listed; nobody reads that far before fixing the first ones.
const PROBLEMS_SHOWN_MAX: usize = 100;

/// Names from the file are cut to this many characters inside messages.
const NAME_CHARS_MAX: usize = 80;

/// Where something stands in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// First byte, from 0.
    pub offset: usize,
    /// Length in bytes; 0 where nothing is written.
    pub length: usize,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The plan is not used.
    Error,
    /// The plan works, and probably does not say what was meant.
    Warning,
}

/// A second place that a problem speaks of, with a few words about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What stands there, e.g. `first written here`.
    pub label: String,
}

/// One thing that is wrong with a plan. It never holds a value of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanProblem {
    /// Stable code, explained in `docs/plan.md`.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// The object and the fact.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// Where, unless it is about the file as a whole.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// Other places that belong to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
}

impl PlanProblem {
    /// A problem that makes the plan unusable.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            help: None,
            place: None,
            related: Vec::new(),
        }
    }

    /// A problem that the plan works in spite of.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// The same problem, with its place.
    #[must_use]
    pub fn at(self, place: impl Into<Option<Place>>) -> Self {
        Self { place: place.into(), ..self }
    }

    /// The same problem, with what to write instead.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// The same problem, with one more place.
    #[must_use]
    pub fn also(mut self, place: Place, label: impl Into<String>) -> Self {
        self.related.push(Related { place, label: label.into() });
        self
    }
}

/// Problems of one file, in the order of the file.
#[derive(Clone, Serialize)]
pub struct PlanProblems {
    #[serde(flatten)]
    source: PlanSource,
    problems: Vec<PlanProblem>,
}

impl PlanProblems {
    /// Problems that belong to `source`, sorted by place, each once.
    #[must_use]
    pub fn new(source: PlanSource, mut problems: Vec<PlanProblem>) -> Self {
        problems.sort_by_key(|problem| problem.place);
        problems.dedup();
        Self { source, problems }
    }

    /// The problems, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, PlanProblem> {
        self.problems.iter()
    }

    /// Nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// How many problems there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.problems.len()
    }

    /// Whether one of them makes the plan unusable.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// All problems as text for a person: file, line, column, snippet, what is wrong, what to write instead, and
    /// a last line that counts them. Passwords in the snippets are starred out. Empty when there are none.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme)
            // A terminal wraps long lines by itself, and then a command in them can still be copied.
            .with_wrap_lines(false)
            .with_links(false)
            .with_context_lines(1)
            .without_syntax_highlighting();
        let mut text = String::new();
        for problem in self.problems.iter().take(PROBLEMS_SHOWN_MAX) {
            self.render_one(&handler, problem, &mut text);
            text.push('\n');
        }
        if !self.is_empty() {
            text.push_str(&self.summary());
            text.push('\n');
        }
        text
    }

    fn render_one(&self, handler: &GraphicalReportHandler, problem: &PlanProblem, text: &mut String) {
        let severity = match problem.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        };
        let snippet =
            problem.place.filter(|place| self.source.longest_line_near(*place) <= SNIPPET_LINE_BYTES_MAX);
        let message = match (problem.place, snippet) {
            (Some(place), None) => {
                format!("{}:{}:{}: {}", self.source.name(), place.line, place.column, problem.message)
            }
            _ => problem.message.clone(),
        };
        let mut diagnostic =
            MietteDiagnostic::new(message).with_code(problem.code.to_owned()).with_severity(severity);
        if let Some(place) = snippet {
            let second = problem
                .related
                .iter()
                .filter(|related| self.source.longest_line_near(related.place) <= SNIPPET_LINE_BYTES_MAX);
            let label = |place: Place, words: &str| {
                LabeledSpan::new(Some(words.to_owned()), place.offset, place.length)
            };
            let here =
                LabeledSpan::new_primary_with_span(Some("here".to_owned()), (place.offset, place.length));
            diagnostic = diagnostic
                .with_label(here)
                .and_labels(second.map(|related| label(related.place, &related.label)));
        }
        if let Some(help) = &problem.help {
            diagnostic = diagnostic.with_help(help.clone());
        }
        let report = miette::Report::new(diagnostic)
            .with_source_code(NamedSource::new(self.source.name(), self.source.shown_text()));
        // Writing into a String cannot fail; should miette refuse a span, the words still reach the reader.
        if handler.render_report(text, report.as_ref()).is_err() {
            text.push_str(&problem.message);
            text.push('\n');
        }
    }

    fn summary(&self) -> String {
        let errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
        let counted = |count: usize, noun: &str| match count {
            0 => None,
            1 => Some(format!("1 {noun}")),
            many => Some(format!("{many} {noun}s")),
        };
        let parts: Vec<String> =
            [counted(errors, "error"), counted(self.len().saturating_sub(errors), "warning")]
                .into_iter()
                .flatten()
                .collect();
        let cut = if self.len() > PROBLEMS_SHOWN_MAX {
            format!(", the first {PROBLEMS_SHOWN_MAX} of them shown")
        } else {
            String::new()
        };
        format!("{} in {}{cut}", parts.join(" and "), self.source.name())
    }
}

impl<'a> IntoIterator for &'a PlanProblems {
    type Item = &'a PlanProblem;
    type IntoIter = std::slice::Iter<'a, PlanProblem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for PlanProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanProblems").field("problems", &self.problems).finish_non_exhaustive()
    }
}

/// One line; [`PlanProblems::render`] says everything.
impl fmt::Display for PlanProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

impl std::error::Error for PlanProblems {}

/// A name from the file inside a message: in backquotes, without control characters, cut when it is very long.
pub(crate) fn named(name: &str) -> String {
    let mut shown = String::new();
    for c in name.chars().take(NAME_CHARS_MAX) {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    if name.chars().count() > NAME_CHARS_MAX {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The known word that was probably meant.
pub(crate) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .filter(|candidate| *candidate != word)
        .map(|candidate| {
            (strsim::normalized_damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate)
        })
        .filter(|(likeness, _)| *likeness >= 0.55)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `a`, `b` and `c`.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(named).collect();
    match names.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_word() {
        assert_eq!(closest("servcie", ["service", "tables"]), Some("service"));
        assert_eq!(closest("product", ["Products", "Orders"]), Some("Products"));
        assert_eq!(closest("lookup", ["to", "others"]), None);
    }

    #[test]
    fn names_cannot_carry_control_characters_into_messages() {
        assert_eq!(named("a\u{1b}[31mb"), "`a\\u{1b}[31mb`");
        assert!(named(&"x".repeat(1000)).len() < 100);
    }
}
