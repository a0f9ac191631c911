//! Verdicts as a JUnit report, which CI systems show: a suite per slice, a case per table. Whatever is not clean has a
//! case that failed, so that no report is green by leaving something out.

use std::time::Duration;

use maud::{Markup, html};

use super::facts::{self, Group};
use super::repairs;
use super::text;
use super::visible::visible;
use crate::ink::Paint;
use crate::reconcile::verdict::{Outcome, Repaired, Verdict};

/// The report as XML 1.0. There is no standard for it; this is what Jenkins, GitLab and GitHub's actions read.
#[must_use]
pub fn page(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return format!("{DECLARATION}\n{NOTHING}\n");
    }
    let suites: Vec<Suite<'_>> = verdicts.iter().map(suite).collect();
    let (tests, failures, errors) = suites.iter().fold((0, 0, 0), |(tests, failures, errors), suite| {
        (tests + suite.cases.len(), failures + suite.failures(), errors + suite.errors())
    });
    let time: Duration = verdicts.iter().map(time).sum();
    let document = html! {
        testsuites name="strangler reconcile" tests=(tests) failures=(failures) errors=(errors) time=(seconds(time)) {
            @for suite in &suites { "\n" (suite_markup(suite)) }
            "\n"
        }
    };
    // Markup escapes what XML wants to be escaped; the elements here have nothing else that HTML does otherwise.
    format!("{DECLARATION}\n{}\n", allowed(&document.into_string()))
}

const DECLARATION: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;

/// The report of a run without a slice.
const NOTHING: &str = r#"<testsuites name="strangler reconcile" tests="1" failures="0" errors="1" time="0.000">
<testsuite name="nothing" tests="1" failures="0" errors="1" skipped="0" time="0.000">
  <testcase classname="nothing" name="the run as a whole" time="0.000"><error type="incomplete" message="nothing was compared"/></testcase>
</testsuite>
</testsuites>"#;

/// What a case came to.
enum Ending {
    Passed,
    /// Kind of it, one line, and everything.
    Failure(String, Vec<String>),
    Error(String, Vec<String>),
}

struct Case {
    name: String,
    time: Duration,
    ending: Ending,
}

struct Suite<'a> {
    verdict: &'a Verdict,
    cases: Vec<Case>,
}

impl Suite<'_> {
    fn failures(&self) -> usize {
        self.cases.iter().filter(|case| matches!(case.ending, Ending::Failure(..))).count()
    }

    fn errors(&self) -> usize {
        self.cases.iter().filter(|case| matches!(case.ending, Ending::Error(..))).count()
    }
}

fn suite(verdict: &Verdict) -> Suite<'_> {
    let mut cases: Vec<Case> = facts::groups(verdict).iter().map(case).collect();
    let red = cases.iter().any(|case| !matches!(case.ending, Ending::Passed));
    if !verdict.reasons.is_empty() || (verdict.outcome != Outcome::Clean && !red) {
        let lines: Vec<String> = verdict.reasons.iter().map(|reason| visible(reason)).collect();
        let line = lines.first().cloned().unwrap_or_else(|| facts::meaning(verdict));
        // Differences have their tables; what is said here about the slice is why it is not proven.
        let ending = match verdict.outcome {
            Outcome::Differs if !red => Ending::Failure(line, lines),
            Outcome::Clean | Outcome::Differs | Outcome::Incomplete => Ending::Error(line, lines),
        };
        cases.push(Case { name: "the slice as a whole".to_owned(), time: Duration::ZERO, ending });
    }
    cases.extend(verdict.repairs.iter().map(repair));
    Suite { verdict, cases }
}

/// A repair that left something has its case, with each row that was refused.
fn repair(table: &Repaired) -> Case {
    let line = repairs::line(table);
    let ending =
        if table.is_complete() { Ending::Passed } else { Ending::Failure(line, repairs::refused(table)) };
    Case { name: format!("repair of {}", visible(&table.table)), time: Duration::ZERO, ending }
}

fn case(group: &Group<'_>) -> Case {
    let reasons: Vec<String> =
        group.table.iter().flat_map(|table| &table.reasons).map(|reason| visible(reason)).collect();
    let found = || {
        let counts =
            group.table.map(|table| facts::counts(&table.findings)).filter(|counts| !counts.is_empty());
        let line = counts.unwrap_or_else(|| "differs".to_owned());
        let lines = text::group_lines(group, Paint::Plain);
        Ending::Failure(line, lines.into_iter().chain(reasons.iter().cloned()).collect())
    };
    let ending = match group.table.map_or(Outcome::Differs, |table| table.outcome) {
        Outcome::Clean => Ending::Passed,
        Outcome::Differs => found(),
        Outcome::Incomplete => {
            let line =
                reasons.first().cloned().unwrap_or_else(|| "not everything could be compared".to_owned());
            Ending::Error(line, reasons.clone())
        }
    };
    Case {
        name: group.name.clone(),
        time: group.table.map(|table| table.duration).unwrap_or_default(),
        ending,
    }
}

fn suite_markup(suite: &Suite<'_>) -> Markup {
    let verdict = suite.verdict;
    let class = format!("{}.{}", visible(&verdict.plan), visible(&verdict.slice));
    html! {
        testsuite name=(class) tests=(suite.cases.len()) failures=(suite.failures()) errors=(suite.errors())
            skipped="0" time=(seconds(time(verdict))) timestamp=(timestamp(verdict)) {
            "\n  " properties {
                @for (name, value) in properties(verdict) { "\n    " property name=(name) value=(value) {} }
                "\n  "
            }
            @for case in &suite.cases { "\n  " (case_markup(case, &class)) }
            "\n"
        }
    }
}

fn properties(verdict: &Verdict) -> Vec<(&'static str, String)> {
    let rest = [("outcome", verdict.outcome.to_string()), ("summary", facts::summary(verdict))];
    rest.into_iter().chain(facts::origin(verdict)).collect()
}

fn case_markup(case: &Case, class: &str) -> Markup {
    let body =
        |lines: &[String]| lines.iter().flat_map(|line| ["\n", line]).chain(["\n"]).collect::<String>();
    html! {
        testcase classname=(class) name=(case.name) time=(seconds(case.time)) {
            @match &case.ending {
                Ending::Passed => {}
                Ending::Failure(line, lines) => { failure type="differs" message=(line) { (body(lines)) } }
                Ending::Error(line, lines) => { error type="incomplete" message=(line) { (body(lines)) } }
            }
        }
    }
}

fn time(verdict: &Verdict) -> Duration {
    facts::took(verdict).unwrap_or_default()
}

fn seconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64())
}

/// ISO 8601 without a zone and without parts of a second, as the readers' schemas want it.
fn timestamp(verdict: &Verdict) -> String {
    let time = verdict.started_at.parse::<jiff::Timestamp>().unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

/// The text without what XML 1.0 does not allow (section 2.2, `Char`), not even as a number.
fn allowed(text: &str) -> String {
    text.chars()
        .filter(|c| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::report::fixture;

    fn number(node: roxmltree::Node<'_, '_>, name: &str) -> usize {
        node.attribute(name).unwrap().parse().unwrap()
    }

    /// Parses a report and checks its sums; gives how many cases passed, failed, and had an error.
    fn cases(verdicts: &[Verdict]) -> (usize, usize, usize) {
        let page = page(verdicts);
        let document = roxmltree::Document::parse(&page).unwrap_or_else(|error| panic!("{error}\n{page}"));
        let count = |node: roxmltree::Node<'_, '_>, name: &str| {
            node.descendants().filter(|inner| inner.has_tag_name(name)).count()
        };
        for node in document.descendants().filter(|node| node.tag_name().name().starts_with("testsuite")) {
            assert_eq!(number(node, "tests"), count(node, "testcase"));
            assert_eq!(number(node, "failures"), count(node, "failure"));
            assert_eq!(number(node, "errors"), count(node, "error"));
            node.attribute("time").unwrap().parse::<f64>().unwrap();
        }
        let root = document.root_element();
        assert_eq!(count(root, "testsuite"), verdicts.len().max(1));
        let (failures, errors) = (count(root, "failure"), count(root, "error"));
        (count(root, "testcase") - failures - errors, failures, errors)
    }

    #[test]
    fn a_case_ends_as_its_table_did() {
        assert_eq!(cases(&[fixture::clean()]), (2, 0, 0));
        assert_eq!(cases(&[fixture::differs()]), (1, 2, 0));
        assert_eq!(cases(&[fixture::repaired()]), (2, 3, 0));
        assert_eq!(cases(&[fixture::incomplete()]), (1, 0, 2));
        assert_eq!(cases(&[fixture::unreached()]), (0, 0, 1));
        assert_eq!(cases(&[]), (0, 0, 1));
        assert_eq!(cases(&[fixture::clean(), fixture::differs(), fixture::incomplete()]), (4, 2, 2));
    }

    #[test]
    fn what_is_not_clean_is_never_green() {
        let mut verdict = fixture::clean();
        verdict.outcome = Outcome::Differs;
        assert_eq!(cases(&[verdict.clone()]), (2, 1, 0));
        verdict.outcome = Outcome::Incomplete;
        assert_eq!(cases(&[verdict]), (2, 0, 1));
    }

    #[test]
    fn text_from_outside_stays_text() {
        assert_eq!(cases(&[fixture::nasty()]), (0, 2, 1));
        let page = page(&[fixture::nasty()]);
        let document = roxmltree::Document::parse(&page).unwrap();
        let names: std::collections::BTreeSet<_> =
            document.descendants().map(|node| node.tag_name().name()).collect();
        assert!(!names.contains("script"), "{names:?}");
        let failure = document.descendants().find(|node| node.has_tag_name("failure")).unwrap();
        assert!(failure.text().unwrap().contains("<script>alert(1)</script> & \"q\""), "{failure:?}");
    }

    #[test]
    fn reports_are_as_reviewed() {
        insta::assert_snapshot!(page(&[fixture::clean(), fixture::repaired(), fixture::incomplete()]));
    }
}
