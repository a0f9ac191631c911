//! Verdicts as one HTML file that needs nothing else: no script, no font, no image, nothing from any other place. Its own
//! policy forbids all of that too, should anything get past the escaping.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::diff::{Inline, Stretch, inline, value};
use super::facts::{self, Group};
use super::repairs;
use super::text;
use super::visible::visible;
use crate::reconcile::finding::{ColumnDiff, Finding, FindingKind};
use crate::reconcile::verdict::{Outcome, TableVerdict, Verdict};
use crate::words;

const STYLE: &str = include_str!("html.css");

/// Nothing is loaded and nothing runs; the file's own style sheet is the exception.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// With more findings than this a slice's tables begin folded.
const OPEN_MAX: usize = 100;

/// Width of a bar, in units of its own.
const BAR: f64 = 200.0;
/// A part of a bar that is narrower can't be seen.
const BAR_MIN: f64 = 2.0;

/// The page.
#[must_use]
pub fn page(verdicts: &[Verdict]) -> String {
    let outcome = facts::outcome(verdicts);
    let plan = verdicts.first().map(|verdict| format!(" of {}", visible(&verdict.plan))).unwrap_or_default();
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (outcome) ": reconciliation" (plan) }
                style { (PreEscaped(STYLE)) }
            }
            body.(outcome.as_str()) {
                header {
                    p.kicker { "strangler reconcile" (plan) }
                    h1 { (outcome) }
                    @if verdicts.is_empty() { p { "Nothing was compared." } }
                    @if let [verdict] = verdicts { p { (capital(&facts::meaning(verdict))) "." } }
                    @if verdicts.len() > 1 { (contents(verdicts)) }
                }
                main { @for (at, verdict) in verdicts.iter().enumerate() { (slice(at, verdict)) } }
            }
        }
    };
    document.into_string() + "\n"
}

fn contents(verdicts: &[Verdict]) -> Markup {
    html! {
        ul.contents {
            @for (at, verdict) in verdicts.iter().enumerate() {
                li { a href=(format!("#slice-{at}")) { (visible(&verdict.slice)) } " " (badge(verdict.outcome))
                    " " span.faint { (facts::meaning(verdict)) } }
            }
        }
    }
}

fn slice(at: usize, verdict: &Verdict) -> Markup {
    let groups = facts::groups(verdict);
    let reasons = facts::reasons(verdict);
    let open = verdict.listed.len() <= OPEN_MAX;
    let diffs = groups.iter().any(|group| facts::has_diff(&group.listed));
    let (from, to) = facts::way(verdict);
    html! {
        section id=(format!("slice-{at}")) {
            h2 { (visible(&verdict.slice)) " " (badge(verdict.outcome))
                " " span.way { (from) " → " (to) } }
            p { (capital(&facts::summary(verdict))) ". " (capital(&facts::meaning(verdict))) "." }
            @if !reasons.is_empty() {
                div.reasons {
                    h3 { "Not compared, or not proven" }
                    ul { @for reason in &reasons { li { (reason) } } }
                }
            }
            @if !verdict.tables.is_empty() { (tables(&verdict.tables)) }
            @if diffs {
                p.legend { "In a column that differs, " del { "this" } " is what the authority has and "
                    ins { "this" } " is what the copy has." }
            }
            @for group in groups.iter().filter(|group| !group.listed.is_empty() || group.more > 0) {
                (findings(group, open))
            }
            @if !verdict.repairs.is_empty() {
                h3 { "Repair" }
                ul { @for table in &verdict.repairs {
                    li { (repairs::line(table))
                        @for row in repairs::refused(table) { p { code { (row) } } } }
                } }
            }
            dl { @for (name, value) in facts::origin(verdict) { div { dt { (name) } dd { (value) } } } }
        }
    }
}

fn badge(outcome: Outcome) -> Markup {
    html! { span class={ "badge " (outcome) } { (outcome) } }
}

fn tables(tables: &[TableVerdict]) -> Markup {
    let largest = tables.iter().map(all_rows).max().unwrap_or(0);
    html! {
        table.tables {
            thead { tr { th { "table" } th { "outcome" } th.bar { "rows, and those with findings" } th.number { "rows" }
                th.number { "bytes" } th.number { "time" } th { "findings" } } }
            tbody { @for table in tables { (row(table, largest)) } }
        }
    }
}

fn row(table: &TableVerdict, largest: u64) -> Markup {
    html! {
        tr {
            td.name { (facts::table_name(table)) }
            td { (badge(table.outcome)) }
            td.bar { (bar(table, largest)) }
            td.number data-label="rows" { (facts::rows(table)) }
            td.number data-label="size" { (words::bytes(table.bytes)) }
            td.number data-label="time" { (facts::seconds(table.duration)) }
            td {
                @for kind in FindingKind::ALL {
                    @if let Some(count) = table.findings.get(&kind).filter(|count| **count > 0) {
                        span.count { (words::count(*count)) " " (kind) } " "
                    }
                }
                @if let Some(part) = facts::part(table.coverage) { span.faint { "only " (part) } }
            }
        }
    }
}

/// Rows of the side that has more of them.
fn all_rows(table: &TableVerdict) -> u64 {
    table.rows_authority.max(table.rows_copy)
}

/// A bar as long as the table has rows, next to the slice's largest, with the rows that have findings at its end.
fn bar(table: &TableVerdict, largest: u64) -> Markup {
    let found = facts::total(&table.findings);
    let rows = all_rows(table);
    let width = (share(rows, largest) * BAR).max(if rows > 0 || found > 0 { BAR_MIN } else { 0.0 });
    let wrong = (share(found, rows.max(found)) * width).max(if found > 0 { BAR_MIN } else { 0.0 });
    let label = format!("{} rows compared, {}", words::count(rows), facts::findings(found));
    html! {
        svg viewBox=(format!("0 0 {BAR} 8")) preserveAspectRatio="none" role="img" aria-label=(label) {
            title { (label) }
            rect.track width=(BAR) height="8" fill="#ddd" {}
            rect.(format!("rows-{}", table.outcome)) width=(format!("{width:.1}")) height="8" fill="#888" {}
            @if wrong > 0.0 {
                rect.wrong x=(format!("{:.1}", width - wrong)) width=(format!("{wrong:.1}")) height="8" fill="#c00" {}
            }
        }
    }
}

/// A share between 0 and 1.
#[expect(clippy::cast_precision_loss, reason = "a bar shows three digits at most")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn findings(group: &Group<'_>, open: bool) -> Markup {
    let count = group.listed.len() as u64 + group.more;
    html! {
        details open[open] {
            summary { b { (group.name) } " " span.faint { (facts::findings(count)) } }
            @if !group.listed.is_empty() {
                ol.findings { @for finding in &group.listed { (one(finding)) } }
            }
            @if let Some(more) = text::more(group) { p.faint { (more) } }
        }
    }
}

fn one(finding: &Finding) -> Markup {
    html! {
        li {
            p { span.kind { (finding.kind) } " " code { (facts::key(&finding.key)) }
                @if let Some(detail) = &finding.detail { " " span.faint { (visible(detail)) } } }
            @if !finding.columns.is_empty() {
                table.columns {
                    @for column in &finding.columns {
                        tr { th { (visible(&column.column)) } td { (column_markup(finding.kind, column)) } }
                    }
                }
            }
        }
    }
}

fn column_markup(kind: FindingKind, column: &ColumnDiff) -> Markup {
    // The reference of an orphan is one value: nothing was changed into it.
    if kind == FindingKind::Orphan {
        return html! { code { (value(&column.authority)) } };
    }
    let Inline { stretches, note } = inline(column);
    html! {
        code {
            @for stretch in &stretches {
                @match stretch {
                    Stretch::Same(text) => { (text) }
                    Stretch::Authority(text) => { del { (text) } }
                    Stretch::Copy(text) => { ins { (text) } }
                }
            }
        }
        @if let Some(note) = note { " " span.faint { "(" (note) ")" } }
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::report::fixture;

    #[test]
    fn pages_are_as_reviewed() {
        let page = page(&[fixture::clean(), fixture::repaired(), fixture::incomplete()]);
        // An element per line, to be read by people; the page itself is one line, where spaces would show.
        let lines = page.replace(STYLE, "").replace("><", ">\n<");
        insta::assert_snapshot!(lines);
    }

    #[test]
    fn a_page_points_from_the_authority_to_the_copy() {
        let page = page(&[Verdict { authority: "service", ..fixture::clean() }]);
        assert!(page.contains("<span class=\"way\">catalog → monolith</span>"), "{page}");
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere() {
        let page = page(&[fixture::differs(), fixture::nasty()]);
        let outside_text = page.replace("http://x", "");
        for word in [
            "http:", "https:", "//cdn", "<script", "<img", "<link", "<iframe", " src=", "@import", "url(",
            " style=",
        ] {
            assert!(!outside_text.contains(word), "{word}");
        }
    }

    #[test]
    fn text_from_outside_stays_text() {
        let mut page = page(&[fixture::nasty()]);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        // What is left once our own elements are gone holds no markup.
        for tag in ["<!DOCTYPE html>", STYLE] {
            page = page.replace(tag, "");
        }
        let tags: std::collections::BTreeSet<&str> = page
            .split('<')
            .skip(1)
            .map(|rest| rest.trim_start_matches('/').split([' ', '>']).next().unwrap())
            .collect();
        let ours = [
            "b", "body", "code", "dd", "del", "details", "div", "dl", "dt", "h1", "h2", "h3", "head",
            "header", "html", "ins", "li", "main", "meta", "ol", "p", "rect", "section", "span", "style",
            "summary", "svg", "table", "tbody", "td", "th", "thead", "title", "tr", "ul",
        ];
        assert!(tags.iter().all(|tag| ours.contains(tag)), "{tags:?}");
    }

    /// Elements are closed in the order in which they were opened: read as XML, once what XML does otherwise is gone.
    #[test]
    fn a_page_is_well_formed() {
        let verdicts = [fixture::differs(), fixture::nasty(), fixture::unreached(), fixture::huge(200)];
        let page = page(&verdicts)
            .replace("<!DOCTYPE html>", "")
            .replace(STYLE, "")
            .replace("<details open>", "<details>");
        let page: String = page
            .split('<')
            .map(|part| if part.starts_with("meta ") { part.replacen('>', "/>", 1) } else { part.to_owned() })
            .collect::<Vec<_>>()
            .join("<");
        roxmltree::Document::parse(&page).unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn a_bar_shows_one_wrong_row_among_millions() {
        let table = &fixture::differs().tables[1];
        let bar = bar(table, 4_000_000).into_string();
        assert!(
            bar.contains("4,000,000 rows compared, 1 finding") && bar.contains(r#"width="2.0""#),
            "{bar}"
        );
    }

    #[test]
    fn many_findings_begin_folded() {
        assert!(page(&[fixture::huge(OPEN_MAX + 1)]).contains("<details>"));
        assert!(page(&[fixture::huge(OPEN_MAX)]).contains("<details open>"));
    }
}
