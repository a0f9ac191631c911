//! What every form says of a verdict, in the same words.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::diff::value;
use super::visible::visible;
use crate::lsn::Lsn;
use crate::reconcile::finding::{Finding, FindingKind, Shown};
use crate::reconcile::verdict::{Counts, Coverage, Outcome, TableVerdict, Verdict};
use crate::words;

/// How the two sides of an inline diff are told apart without colours.
pub(super) const LEGEND: &str = "[-what the authority has-]{+what the copy has+}";

/// A table of a verdict with its findings. Findings of a table that the verdict does not list are a group of their
/// own, so that none is lost.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// Both names.
    pub(super) name: String,
    /// Its part of the verdict.
    pub(super) table: Option<&'a TableVerdict>,
    /// Those that are listed.
    pub(super) listed: Vec<&'a Finding>,
    /// How many more there are.
    pub(super) more: u64,
}

/// The tables of a verdict in its order.
pub(super) fn groups(verdict: &Verdict) -> Vec<Group<'_>> {
    let mut by_table: BTreeMap<_, Vec<&Finding>> = BTreeMap::new();
    for finding in &verdict.listed {
        by_table.entry((&finding.source_table, &finding.target_table)).or_default().push(finding);
    }
    let mut groups: Vec<Group<'_>> = Vec::with_capacity(verdict.tables.len());
    for table in &verdict.tables {
        let listed = by_table.remove(&(&table.source_table, &table.target_table)).unwrap_or_default();
        let more = total(&table.findings).saturating_sub(listed.len() as u64);
        groups.push(Group { name: table_name(table), table: Some(table), listed, more });
    }
    groups.extend(by_table.into_iter().map(|((source, target), listed)| Group {
        name: names(&source.to_string(), &target.to_string()),
        table: None,
        listed,
        more: 0,
    }));
    groups
}

/// `Orders -> sales.orders`, or one name where both are the same.
pub(super) fn table_name(table: &TableVerdict) -> String {
    names(&table.source_table.to_string(), &table.target_table.to_string())
}

fn names(source: &str, target: &str) -> String {
    if source == target { visible(source) } else { format!("{} -> {}", visible(source), visible(target)) }
}

/// The outcome of all slices of a run. Nothing compared is no clean run.
pub(super) fn outcome(verdicts: &[Verdict]) -> Outcome {
    if verdicts.is_empty() {
        return Outcome::Incomplete;
    }
    Outcome::of(verdicts.iter().map(|verdict| verdict.outcome))
}

pub(super) fn total(counts: &Counts) -> u64 {
    counts.values().sum()
}

/// `3 missing, 1 extra`; empty without findings.
pub(super) fn counts(counts: &Counts) -> String {
    let number = |kind: &FindingKind| counts.get(kind).copied().filter(|count| *count > 0);
    let parts =
        FindingKind::ALL.iter().filter_map(|kind| Some(format!("{} {kind}", words::count(number(kind)?))));
    parts.collect::<Vec<_>>().join(", ")
}

/// `12 findings`.
pub(super) fn findings(count: u64) -> String {
    number(count, "finding")
}

/// `1 row`, `1,204 rows`.
pub(super) fn number(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", words::count(count), if count == 1 { "" } else { "s" })
}

/// What was looked at, where that is not every row.
pub(super) fn part(coverage: Coverage) -> Option<String> {
    match coverage {
        Coverage::Full => None,
        Coverage::CutShort => Some("not all rows".to_owned()),
        Coverage::Sample { percent } => Some(format!("a sample of {percent} %")),
        Coverage::ChangedSince { lsn } => Some(format!("rows changed since {lsn}")),
        Coverage::References => Some("references alone, because the slice is retired".to_owned()),
    }
}

/// What was looked at in a slice, where that is not every row of every table; a clean verdict on it is no proof.
pub(super) fn parts(verdict: &Verdict) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in verdict.tables.iter().filter_map(|table| part(table.coverage)) {
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    if !verdict.every_table {
        parts.push("some of the slice's tables".to_owned());
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The side that is right, and the one that follows it.
pub(super) fn way(verdict: &Verdict) -> (String, String) {
    let (monolith, service) = ("monolith".to_owned(), visible(&verdict.service));
    if verdict.is_of_references() {
        return (service, "what it refers to".to_owned());
    }
    if verdict.authority == "service" { (service, monolith) } else { (monolith, service) }
}

/// Rows on both sides: one number where they are the same.
pub(super) fn rows(table: &TableVerdict) -> String {
    let (authority, copy) = (words::count(table.rows_authority), words::count(table.rows_copy));
    if authority == copy { authority } else { format!("{authority} / {copy}") }
}

pub(super) fn seconds(duration: Duration) -> String {
    words::seconds(duration.as_secs_f64())
}

/// Wall time of a run.
pub(super) fn took(verdict: &Verdict) -> Option<Duration> {
    let (start, end): (Timestamp, Timestamp) =
        (verdict.started_at.parse().ok()?, verdict.finished_at.parse().ok()?);
    end.duration_since(start).try_into().ok()
}

/// `3 tables, 1,204 rows, 1.2 MB compared in 4.2 s`.
pub(super) fn summary(verdict: &Verdict) -> String {
    if verdict.tables.is_empty() {
        return "no table was compared".to_owned();
    }
    let rows: u64 = verdict.tables.iter().map(|table| table.rows_authority).sum();
    let bytes: u64 = verdict.tables.iter().map(|table| table.bytes).sum();
    let took = took(verdict).map(|took| format!(" in {}", seconds(took))).unwrap_or_default();
    let part = parts(verdict).map(|part| format!(" ({part})")).unwrap_or_default();
    format!(
        "{}, {}, {} compared{part}{took}",
        words::plural(verdict.tables.len(), "table"),
        number(rows, "row"),
        words::bytes(bytes),
    )
}

/// What a verdict says, as a clause: `both sides are equal`.
pub(super) fn meaning(verdict: &Verdict) -> String {
    let counts = verdict.counts();
    match (verdict.outcome, parts(verdict)) {
        (Outcome::Clean, _) if verdict.is_of_references() => {
            "every row that is referred to is there; there is nothing to compare it with".to_owned()
        }
        (Outcome::Clean, None) => "both sides are equal".to_owned(),
        (Outcome::Clean, Some(part)) => {
            format!("what was looked at is equal, which is only {part}: no proof for the rest")
        }
        (Outcome::Differs, _) if total(&counts) > 0 => {
            format!("{}: {}", findings(total(&counts)), self::counts(&counts))
        }
        (Outcome::Differs, _) => "the sides differ".to_owned(),
        (Outcome::Incomplete, _) => {
            "no difference is proven, and not everything could be compared".to_owned()
        }
    }
}

/// `sales.orders: reason`, for everything that made a verdict incomplete. What is said of the slice is not said again of each
/// table that it kept from being compared.
pub(super) fn reasons(verdict: &Verdict) -> Vec<String> {
    let own = verdict.reasons.iter().map(|reason| visible(reason));
    let tables = verdict.tables.iter().flat_map(|table| {
        let reasons = table.reasons.iter().filter(|reason| !verdict.reasons.contains(reason));
        reasons.map(|reason| format!("{}: {}", table_name(table), visible(reason)))
    });
    own.chain(tables).collect()
}

/// `id = 42, lang = "en us"`.
pub(super) fn key(key: &[(String, Shown)]) -> String {
    let columns = key.iter().map(|(column, shown)| format!("{} = {}", visible(column), bare(shown)));
    columns.collect::<Vec<_>>().join(", ")
}

/// A value without quotes where they would tell nothing.
fn bare(shown: &Shown) -> String {
    match shown {
        Shown::Text(text) if is_plain(text) => text.clone(),
        other @ (Shown::Null | Shown::Text(_) | Shown::Digest(_)) => value(other),
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text != "NULL"
        && text.len() <= 64
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:+".contains(&byte))
}

/// The position that everything compared had reached; none where nothing was.
pub(super) fn position(verdict: &Verdict) -> Option<Lsn> {
    Some(verdict.lsn).filter(|lsn| *lsn != Lsn::ZERO)
}

/// How values were compared.
pub(super) fn mode(verdict: &Verdict) -> &'static str {
    if verdict.strict { "by representation" } else { "by meaning" }
}

/// Some of these findings have an inline diff, so that a reader needs to be told how to read it.
pub(super) fn has_diff(findings: &[&Finding]) -> bool {
    findings.iter().any(|finding| finding.kind != FindingKind::Orphan && !finding.columns.is_empty())
}

/// Where a verdict comes from, name and value.
pub(super) fn origin(verdict: &Verdict) -> Vec<(&'static str, String)> {
    let position = position(verdict).map_or_else(|| "none".to_owned(), |lsn| lsn.to_string());
    let all = vec![
        ("plan", visible(&verdict.plan)),
        ("authority", format!("{}, epoch {}", verdict.authority, verdict.epoch)),
        ("position", position),
        ("compared", mode(verdict).to_owned()),
        ("plan hash", visible(&verdict.plan_hash)),
        ("run", visible(&verdict.run)),
        ("began", visible(&verdict.started_at)),
        ("ended", visible(&verdict.finished_at)),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}
