//! Verdicts for a terminal: per slice a heading, a table of its tables, the findings, and the verdict.

use unicode_width::UnicodeWidthStr;

use super::diff::{Inline, Stretch, inline, value};
use super::facts::{self, Group};
use super::repairs;
use super::visible::visible;
use crate::ink::{Ink, Paint};
use crate::reconcile::finding::{ColumnDiff, Finding, FindingKind};
use crate::reconcile::verdict::{Outcome, Repaired, TableVerdict, Verdict};
use crate::words;

/// All verdicts of a run, several lines.
#[must_use]
pub fn page(verdicts: &[Verdict], paint: Paint) -> String {
    let mut lines = Vec::new();
    for verdict in verdicts {
        slice(verdict, paint, &mut lines);
        lines.push(String::new());
    }
    if verdicts.len() != 1 {
        lines.push(all(verdicts, paint));
    } else {
        lines.pop();
    }
    lines.join("\n") + "\n"
}

/// The line about all slices.
fn all(verdicts: &[Verdict], paint: Paint) -> String {
    let outcome = facts::outcome(verdicts);
    let word = paint.ink(ink(outcome), outcome.as_str());
    if verdicts.is_empty() {
        return format!("{word}: nothing was compared");
    }
    let number = |outcome: Outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    let parts =
        [Outcome::Differs, Outcome::Incomplete, Outcome::Clean].map(|outcome| (number(outcome), outcome));
    let parts =
        parts.iter().filter(|(number, _)| *number > 0).map(|(number, outcome)| format!("{number} {outcome}"));
    format!("{word}: {}, {}", words::plural(verdicts.len(), "slice"), parts.collect::<Vec<_>>().join(", "))
}

fn slice(verdict: &Verdict, paint: Paint, lines: &mut Vec<String>) {
    lines.push(format!(
        "{}  {}  {}",
        paint.ink(Ink::Strong, &visible(&verdict.slice)),
        paint.ink(ink(verdict.outcome), verdict.outcome.as_str()),
        paint.ink(Ink::Faint, &direction(verdict)),
    ));
    lines.push(format!("  {}", facts::summary(verdict)));
    if !verdict.tables.is_empty() {
        lines.push(String::new());
        tables(&verdict.tables, paint, lines);
    }
    let groups = facts::groups(verdict);
    if groups.iter().any(|group| facts::has_diff(&group.listed)) {
        let how = format!("Differing columns show {}.", facts::LEGEND);
        lines.extend([String::new(), format!("  {}", paint.ink(Ink::Faint, &how))]);
    }
    for group in groups.iter().filter(|group| !group.listed.is_empty() || group.more > 0) {
        lines.extend([String::new(), format!("  {}", paint.ink(Ink::Strong, &group.name))]);
        lines.extend(group_lines(group, paint).into_iter().map(|line| format!("    {line}")));
    }
    let reasons = facts::reasons(verdict);
    if !reasons.is_empty() {
        lines.extend([String::new(), format!("  {}", paint.ink(Ink::Strong, "Not compared, or not proven"))]);
        lines.extend(reasons.iter().map(|reason| format!("    {}", paint.ink(Ink::Caution, reason))));
    }
    if !verdict.repairs.is_empty() {
        lines.extend([String::new(), format!("  {}", paint.ink(Ink::Strong, "Repair"))]);
        lines.extend(verdict.repairs.iter().flat_map(|table| repair_lines(table, paint)));
    }
    lines.push(String::new());
    lines.extend(last_lines(verdict, paint).into_iter().map(|(name, value)| format!("  {name:<10} {value}")));
}

fn repair_lines(repaired: &Repaired, paint: Paint) -> Vec<String> {
    let refused = repairs::refused(repaired).into_iter();
    let refused = refused.map(|line| format!("      {}", paint.ink(Ink::Caution, &line)));
    std::iter::once(format!("    {}", repairs::line(repaired))).chain(refused).collect()
}

/// The rows that repairs could not put right, for who has read the page already; empty where there is none.
#[must_use]
pub fn refused(verdicts: &[Verdict], paint: Paint) -> String {
    let tables = verdicts.iter().flat_map(|verdict| &verdict.repairs);
    let tables = tables.filter(|table| table.refused_count() > 0);
    let lines = tables.flat_map(|table| {
        let slice = paint.ink(Ink::Strong, &visible(&table.slice));
        std::iter::once(format!("{slice}  not repaired")).chain(repair_lines(table, paint))
    });
    lines.map(|line| line + "\n").collect()
}

fn direction(verdict: &Verdict) -> String {
    let (from, to) = facts::way(verdict);
    format!("{from} -> {to}")
}

/// The verdict, and what it rests on.
fn last_lines(verdict: &Verdict, paint: Paint) -> [(&'static str, String); 4] {
    let word = paint.ink(ink(verdict.outcome), verdict.outcome.as_str());
    let position = facts::position(verdict).map_or_else(|| "no position".to_owned(), |lsn| lsn.to_string());
    let took =
        facts::took(verdict).map(|took| format!(", took {}", facts::seconds(took))).unwrap_or_default();
    [
        ("verdict", format!("{word}: {}", facts::meaning(verdict))),
        (
            "at",
            format!(
                "{position} of the {}, epoch {}, compared {}",
                verdict.authority,
                verdict.epoch,
                facts::mode(verdict)
            ),
        ),
        ("plan", format!("{}, hash {}", visible(&verdict.plan), visible(&verdict.plan_hash))),
        ("run", format!("{}, began {}{took}", visible(&verdict.run), visible(&verdict.started_at))),
    ]
}

fn ink(outcome: Outcome) -> Ink {
    match outcome {
        Outcome::Clean => Ink::Good,
        Outcome::Differs => Ink::Alarm,
        Outcome::Incomplete => Ink::Caution,
    }
}

/// A cell of a table with its colour.
type Cell = (String, Option<Ink>);

/// A line per table; numbers stand to the right.
fn tables(tables: &[TableVerdict], paint: Paint, lines: &mut Vec<String>) {
    const HEADINGS: [&str; 6] = ["table", "outcome", "rows", "bytes", "time", "findings"];
    const NUMBERS: [bool; 6] = [false, false, true, true, true, false];
    let mut grid: Vec<[Cell; 6]> = vec![HEADINGS.map(|heading| (heading.to_owned(), Some(Ink::Faint)))];
    grid.extend(tables.iter().map(row));
    let width = |column: usize| {
        grid.iter().filter_map(|cells| cells.get(column)).map(|(text, _)| text.width()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    for cells in &grid {
        let cells = cells.iter().zip(&widths).zip(NUMBERS).map(|(((text, ink), width), is_number)| {
            // Colours take no room on the screen, so they come after the spaces are counted.
            let spaces = " ".repeat(width.saturating_sub(text.width()));
            let text = ink.map_or_else(|| text.clone(), |ink| paint.ink(ink, text));
            if is_number { format!("{spaces}{text}") } else { format!("{text}{spaces}") }
        });
        lines.push(format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned());
    }
}

fn row(table: &TableVerdict) -> [Cell; 6] {
    let part = facts::part(table.coverage).map(|part| format!("only {part}"));
    let found = Some(facts::counts(&table.findings)).filter(|found| !found.is_empty());
    [
        (facts::table_name(table), None),
        (table.outcome.as_str().to_owned(), Some(ink(table.outcome))),
        (facts::rows(table), None),
        (words::bytes(table.bytes), None),
        (facts::seconds(table.duration), None),
        (found.into_iter().chain(part).collect::<Vec<_>>().join(" "), None),
    ]
}

/// The findings of one table.
pub(super) fn group_lines(group: &Group<'_>, paint: Paint) -> Vec<String> {
    let mut lines: Vec<String> =
        group.listed.iter().flat_map(|finding| finding_lines(finding, paint)).collect();
    lines.extend(more(group).map(|more| paint.ink(Ink::Faint, &more)));
    lines
}

/// That some findings are not listed.
pub(super) fn more(group: &Group<'_>) -> Option<String> {
    let rest = if group.listed.is_empty() { "" } else { "and " };
    let more = if group.listed.is_empty() { "" } else { " more" };
    (group.more > 0).then(|| format!("{rest}{}{more} not listed", words::count(group.more)))
}

/// One finding: its kind and key, then a line per column.
pub(super) fn finding_lines(finding: &Finding, paint: Paint) -> Vec<String> {
    let kind = paint.ink(Ink::Alarm, &format!("{:<9}", finding.kind));
    let detail = finding.detail.as_ref().map(|detail| format!("  ({})", visible(detail))).unwrap_or_default();
    let mut lines = vec![format!("{kind} {}{detail}", facts::key(&finding.key))];
    let names: Vec<String> = finding.columns.iter().map(|column| visible(&column.column)).collect();
    let width = names.iter().map(|name| name.width()).max().unwrap_or(0);
    for (name, column) in names.iter().zip(&finding.columns) {
        let spaces = " ".repeat(width.saturating_sub(name.width()));
        lines.push(format!("          {name}{spaces}  {}", column_text(finding.kind, column, paint)));
    }
    lines
}

fn column_text(kind: FindingKind, column: &ColumnDiff, paint: Paint) -> String {
    // The reference of an orphan is one value: nothing was changed into it.
    if kind == FindingKind::Orphan {
        return value(&column.authority);
    }
    let diff = inline(column);
    let note =
        diff.note.as_ref().map(|note| paint.ink(Ink::Faint, &format!("  ({note})"))).unwrap_or_default();
    format!("{}{note}", painted(&diff, paint))
}

fn painted(diff: &Inline, paint: Paint) -> String {
    if paint == Paint::Plain {
        return diff.plain();
    }
    let stretches = diff.stretches.iter().map(|stretch| match stretch {
        Stretch::Same(text) => text.clone(),
        // The marks stay: colours alone say nothing to who can't tell red from green.
        Stretch::Authority(text) => paint.ink(Ink::Alarm, &format!("[-{text}-]")),
        Stretch::Copy(text) => paint.ink(Ink::Good, &format!("{{+{text}+}}")),
    });
    stretches.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::report::fixture;

    #[test]
    fn pages_are_as_reviewed() {
        let all = [fixture::clean(), fixture::repaired(), fixture::incomplete(), fixture::unreached()];
        insta::assert_snapshot!(page(&all, Paint::Plain));
    }

    #[test]
    fn a_sample_is_not_shown_as_a_proof() {
        insta::assert_snapshot!(page(&[fixture::sampled()], Paint::Plain));
    }

    #[test]
    fn colours_are_all_that_they_add() {
        let verdicts = [fixture::differs(), fixture::incomplete()];
        let (plain, coloured) = (page(&verdicts, Paint::Plain), page(&verdicts, Paint::Colour));
        assert!(
            coloured.contains("\u{1b}[31;1m[-n-]\u{1b}[0m") || coloured.contains("\u{1b}[32m{+ed+}"),
            "{coloured}"
        );
        let mut stripped = String::new();
        for (at, part) in coloured.split("\u{1b}[").enumerate() {
            stripped.push_str(if at == 0 { part } else { part.split_once('m').unwrap().1 });
        }
        assert_eq!(stripped, plain);
    }

    #[test]
    fn columns_of_a_table_stand_under_each_other_whatever_the_script() {
        let mut verdict = fixture::clean();
        verdict.tables[0].source_table.name = "商品".to_owned();
        let page = page(&[verdict], Paint::Plain);
        let columns: Vec<usize> = page
            .lines()
            .filter_map(|line| line.split_once(" clean  ").filter(|_| line.contains("->")))
            .map(|(before, _)| before.width())
            .collect();
        assert_eq!(columns[1], columns[2], "{page}");
    }

    #[test]
    fn an_empty_run_is_not_clean() {
        assert_eq!(page(&[], Paint::Plain), "incomplete: nothing was compared\n");
    }
}
