//! Verdicts as a comment on a pull request, in GitHub's and GitLab's markdown. Text from outside stands only in code, so
//! that it is neither a link, nor markup, nor somebody's name.

use super::facts::{self, Group};
use super::repairs;
use super::text;
use super::visible::visible;
use crate::ink::Paint;
use crate::reconcile::verdict::{Outcome, Repaired, TableVerdict, Verdict};
use crate::words;

/// GitHub refuses a comment of more than 65,536 characters. The rest is room for what a CI script adds.
pub const CHARACTERS_MAX: usize = 60_000;

/// Room that is kept for the line about what was cut.
const CUT_ROOM: usize = 300;

/// The comment; where it would be longer than [`CHARACTERS_MAX`], its last line says what was left out.
#[must_use]
pub fn page(verdicts: &[Verdict]) -> String {
    let mut page = Page { text: headline(verdicts), left: Left::default() };
    for verdict in verdicts {
        slice(verdict, &mut page);
    }
    page.end()
}

/// What had no room.
#[derive(Default)]
struct Left {
    slices: usize,
    tables: usize,
    findings: u64,
    lines: usize,
    repairs: usize,
    rows: usize,
}

struct Page {
    text: String,
    left: Left,
}

impl Page {
    /// Adds a text that makes sense on its own, if there is room for it.
    fn add(&mut self, text: &str) -> bool {
        let room = self.has_room_for(text);
        if room {
            self.text.push_str(text);
        }
        room
    }

    fn has_room_for(&self, text: &str) -> bool {
        self.text.chars().count() + text.chars().count() + CUT_ROOM <= CHARACTERS_MAX
    }

    fn end(mut self) -> String {
        let Left { slices, tables, findings, lines, repairs, rows } = self.left;
        let parts = [
            (slices as u64, "slice"),
            (tables as u64, "table"),
            (findings, "finding"),
            (lines as u64, "reason"),
            (repairs as u64, "repaired table"),
            (rows as u64, "refused row"),
        ];
        let parts =
            parts.iter().filter(|(number, _)| *number > 0).map(|(count, noun)| facts::number(*count, noun));
        let parts = parts.collect::<Vec<_>>().join(", ");
        if !parts.is_empty() {
            self.text.push_str(&format!(
                "\n> **Cut here**: a comment has room for {} characters, so it leaves out {parts} that the other formats \
                 show.\n",
                words::count(CHARACTERS_MAX as u64),
            ));
        }
        self.text
    }
}

fn headline(verdicts: &[Verdict]) -> String {
    let outcome = facts::outcome(verdicts);
    let Some(first) = verdicts.first() else {
        return format!("### {} strangler reconcile: {outcome}\n\nNothing was compared.\n", sign(outcome));
    };
    let mut text =
        format!("### {} strangler reconcile: {outcome}, plan {}\n", sign(outcome), code(&first.plan));
    if verdicts.len() > 1 {
        text.push('\n');
        // More slices than anybody has; their own parts say the rest, or are counted as cut.
        for verdict in verdicts.iter().take(100) {
            let meaning = facts::meaning(verdict);
            text.push_str(&format!(
                "- {} {}: **{}**, {meaning}\n",
                sign(verdict.outcome),
                code(&verdict.slice),
                verdict.outcome
            ));
        }
    }
    text
}

fn sign(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Clean => "✅",
        Outcome::Differs => "❌",
        Outcome::Incomplete => "⚠️",
    }
}

fn slice(verdict: &Verdict, page: &mut Page) {
    let heading = format!(
        "\n#### {} {}, service {}\n\n**{}**: {}.\n{}.\n",
        sign(verdict.outcome),
        code(&verdict.slice),
        code(&verdict.service),
        verdict.outcome,
        facts::meaning(verdict),
        facts::summary(verdict),
    );
    if !page.add(&heading) {
        page.left.slices += 1;
        return;
    }
    // What needs a look comes first, so that it is not what is cut.
    let mut groups = facts::groups(verdict);
    groups.sort_by_key(|group| group.table.map_or(0, |table| rank(table.outcome)));
    tables(&groups, page);
    reasons(&facts::reasons(verdict), page);
    for group in groups.iter().filter(|group| !group.listed.is_empty() || group.more > 0) {
        details(group, page);
    }
    repaired(&verdict.repairs, page);
    let origin = facts::origin(verdict).into_iter().map(|(name, value)| format!("{name} {}", code(&value)));
    page.add(&format!("\n<sub>{}</sub>\n", origin.collect::<Vec<_>>().join(" · ")));
}

fn rank(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Differs => 0,
        Outcome::Incomplete => 1,
        Outcome::Clean => 2,
    }
}

fn tables(groups: &[Group<'_>], page: &mut Page) {
    let tables: Vec<&TableVerdict> = groups.iter().filter_map(|group| group.table).collect();
    if tables.is_empty() {
        return;
    }
    if !page.add("\n| table | outcome | rows | time | findings |\n|---|---|--:|--:|---|\n") {
        page.left.tables += tables.len();
        return;
    }
    for table in tables {
        let part = facts::part(table.coverage).map(|part| format!("only {part}"));
        let found = Some(facts::counts(&table.findings)).filter(|found| !found.is_empty());
        let row = format!(
            "| {} | {} {} | {} | {} | {} |\n",
            code(&facts::table_name(table)).replace('|', "\\|"),
            sign(table.outcome),
            table.outcome,
            facts::rows(table),
            facts::seconds(table.duration),
            found.into_iter().chain(part).collect::<Vec<_>>().join(" "),
        );
        page.left.tables += usize::from(!page.add(&row));
    }
}

fn reasons(reasons: &[String], page: &mut Page) {
    const TITLE: &str = "\nNot compared, or not proven:\n\n";
    if reasons.is_empty() {
        return;
    }
    if !page.add(TITLE) {
        page.left.lines += reasons.len();
        return;
    }
    for reason in reasons {
        page.left.lines += usize::from(!page.add(&format!("- {}\n", code(reason))));
    }
}

/// What became of repairs: a line for each table, and one for each row that was refused.
fn repaired(tables: &[Repaired], page: &mut Page) {
    for (at, table) in tables.iter().enumerate() {
        let title = if at == 0 { "\nRepair:\n\n" } else { "" };
        let fits = page.add(&format!("{title}- {}\n", code(&repairs::line(table))));
        for row in repairs::refused(table) {
            page.left.rows += usize::from(!fits || !page.add(&format!("  - {}\n", code(&row))));
        }
        page.left.repairs += usize::from(!fits);
    }
}

/// The findings of a table, folded away. The fence around them is longer than any run of backticks in them.
fn details(group: &Group<'_>, page: &mut Page) {
    let findings: Vec<String> = group
        .listed
        .iter()
        .map(|finding| text::finding_lines(finding, Paint::Plain).join("\n") + "\n")
        .collect();
    let fence = "`".repeat(findings.iter().map(|text| backticks(text)).max().unwrap_or(0).max(2) + 1);
    let count = group.listed.len() as u64 + group.more;
    // Inside <summary> GitHub reads HTML, and markdown only where a blank line stands before it.
    let title = format!("{} in {}", facts::findings(count), escaped(&group.name));
    let how = if facts::has_diff(&group.listed) {
        format!("Differing columns show `{}`.\n\n", facts::LEGEND)
    } else {
        String::new()
    };
    let begin = format!("\n<details><summary>{title}</summary>\n\n{how}{fence}text\n");
    let end = format!("{fence}\n\n</details>\n");
    if !page.has_room_for(&format!("{begin}{end}")) {
        page.left.findings += group.listed.len() as u64;
        return;
    }
    page.text.push_str(&begin);
    let mut shown = 0;
    for finding in &findings {
        if !page.has_room_for(&format!("{finding}{end}")) {
            break;
        }
        page.text.push_str(finding);
        shown += 1;
    }
    page.left.findings += group.listed.len() as u64 - shown;
    if let Some(more) = text::more(group).filter(|_| shown == group.listed.len() as u64) {
        // A line of a length that the room for the cut line covers.
        page.text.push_str(&format!("{more}\n"));
    }
    page.text.push_str(&end);
}

/// Length of the longest run of backticks.
fn backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// The text as a code span, in which nothing has a meaning (CommonMark 6.1).
fn code(text: &str) -> String {
    let text = visible(text);
    if text.is_empty() {
        return "` `".to_owned();
    }
    let fence = "`".repeat(backticks(&text) + 1);
    // A space next to the fence is taken off by the reader when it is there on both sides.
    let space = if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

/// The text inside HTML, as code: every character that means something to HTML or to markdown by number.
fn escaped(text: &str) -> String {
    let letters = text.chars().map(|c| match c {
        ' ' | '.' | ',' => c.to_string(),
        c if c.is_ascii_punctuation() => format!("&#{};", u32::from(c)),
        c => c.to_string(),
    });
    format!("<code>{}</code>", letters.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::report::fixture;

    #[test]
    fn comments_are_as_reviewed() {
        insta::assert_snapshot!(page(&[fixture::clean(), fixture::repaired(), fixture::incomplete()]));
    }

    #[test]
    fn one_slice_needs_no_list_of_slices() {
        assert!(!page(&[fixture::clean()]).contains("\n- "));
        assert!(page(&[]).contains("Nothing was compared"));
    }

    /// The text outside of code spans and fences.
    fn outside_code(page: &str) -> String {
        let mut outside = String::new();
        let mut rest = page;
        while let Some(at) = rest.find('`') {
            let (before, from) = rest.split_at(at);
            outside.push_str(before);
            let run = from.chars().take_while(|c| *c == '`').count();
            let after = &from[run..];
            let mut at = 0;
            let end = loop {
                let found = at + after[at..].find('`').unwrap_or_else(|| panic!("no end: {after}"));
                let length = after[found..].chars().take_while(|c| *c == '`').count();
                if length == run {
                    break found + run;
                }
                at = found + length;
            };
            rest = &after[end..];
        }
        outside + rest
    }

    #[test]
    fn text_from_outside_stays_in_code() {
        let page = page(&[fixture::nasty(), fixture::nasty()]);
        let outside = outside_code(&page);
        for word in ["<script", "@someone", "[l]", "# h", "alert(1)", "<!--", "|pipe|"] {
            assert!(!outside.contains(word), "{word} in {outside}");
        }
        assert!(page.contains("alert(1)"));
        for row in page.lines().filter(|line| line.starts_with("| `") || line.starts_with("| ````")) {
            let cells = row.replace("\\|", "").matches('|').count();
            assert_eq!(cells, 6, "{row}");
        }
        assert!(!page.chars().any(|c| c.is_control() && c != '\n'));
    }

    #[test]
    fn a_long_comment_is_cut_and_says_so() {
        let page = page(&[fixture::huge(1_000), fixture::differs()]);
        let length = page.chars().count();
        assert!((50_000..=CHARACTERS_MAX).contains(&length), "{length}");
        let listed = page.matches("\ndiffers   ").count() as u64;
        let cut = page.split("leaves out ").nth(1).unwrap();
        let slices = if cut.starts_with("1 slice, ") { "1 slice, " } else { "" };
        let findings = cut.strip_prefix(slices).unwrap().split(" finding").next().unwrap().replace(',', "");
        assert_eq!(listed + findings.parse::<u64>().unwrap(), 1_000, "{cut}");
        assert_eq!(page.matches("<details>").count(), page.matches("</details>").count());
        outside_code(&page);
    }
}
