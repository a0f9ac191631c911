//! Verdicts for programs. The document is a contract: docs/json-output.md describes it, and its example there is held
//! against these types.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::facts;
use crate::lsn::Lsn;
use crate::reconcile::finding::{ColumnDiff, Finding, FindingKind, Shown};
use crate::reconcile::verdict::{Counts, Coverage, Outcome, RefusedRow, Repaired, TableVerdict, Verdict};

/// Says what the document is, wherever it is found.
pub const FORMAT: &str = "strangler.reconcile";

/// Grows when a field is renamed, removed or changes its meaning; new fields do not raise it.
pub const VERSION: u32 = 1;

/// All verdicts of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Of all slices together.
    pub outcome: Outcome,
    /// An entry per slice, in the order in which they were compared.
    pub slices: Vec<Slice>,
}

/// A slice's verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Its name.
    pub slice: String,
    /// Its service.
    pub service: String,
    /// Plan.
    pub plan: String,
    /// Uuid of the run.
    pub run: String,
    /// What is known of the slice.
    pub outcome: Outcome,
    /// Every row of every table was to be looked at; a clean verdict is a proof only then.
    pub full: bool,
    /// Compared by representation too.
    pub strict: bool,
    /// `monolith` or `service`.
    pub authority: String,
    /// Epoch of the authority.
    pub epoch: i64,
    /// Position on the authority that everything compared had reached.
    pub lsn: Option<Lsn>,
    /// Hash of the slice's mapping.
    pub plan_hash: String,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339.
    pub finished_at: String,
    /// Between the two.
    pub duration_seconds: Option<f64>,
    /// All findings by kind, listed or not; every kind is there.
    pub counts: Counts,
    /// How many findings are counted and not listed.
    pub not_listed: u64,
    /// Why the slice as a whole is incomplete.
    pub reasons: Vec<String>,
    /// In the plan's order.
    pub tables: Vec<Table>,
    /// Those that are listed.
    pub findings: Vec<Found>,
    /// What became of what was to be repaired; empty where nothing was.
    pub repairs: Vec<Repair>,
}

/// What became of the rows of one table that were to be repaired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repair {
    /// Name of the table on the monolith.
    pub source_table: String,
    /// Rows that the mirror was asked for.
    pub asked: u64,
    /// Rows that it landed again.
    pub done: u64,
    /// Findings that were not asked for.
    pub left_out: u64,
    /// Rows among the landed ones that still differ, by kind; every kind is there.
    pub still: Counts,
    /// Rows that it refused, by reason.
    pub refused: Vec<Refused>,
    /// The first of these rows.
    pub refused_rows: Vec<RefusedKey>,
}

/// How many rows were refused for a reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// The reason, without values.
    pub reason: String,
    /// How many.
    pub rows: u64,
}

/// A row that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusedKey {
    /// Key columns in key order.
    pub key: Vec<KeyColumn>,
    /// The reason, without values.
    pub reason: String,
}

/// A table's part of a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Name on the monolith.
    pub source_table: String,
    /// Name in the service.
    pub target_table: String,
    /// What is known of it.
    pub outcome: Outcome,
    /// What was looked at.
    pub coverage: Coverage,
    /// Rows compared on the authority.
    pub rows_authority: u64,
    /// Rows compared on the other side.
    pub rows_copy: u64,
    /// Size of the table on the authority.
    pub bytes: u64,
    /// Wall time.
    pub duration_seconds: f64,
    /// All findings by kind; every kind is there.
    pub counts: Counts,
    /// Why it is incomplete.
    pub reasons: Vec<String>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Name of the table on the monolith.
    pub source_table: String,
    /// Name of the table in the service.
    pub target_table: String,
    /// What is wrong.
    pub kind: FindingKind,
    /// Key columns in key order.
    pub key: Vec<KeyColumn>,
    /// Columns that differ, whole, not as a diff.
    pub columns: Vec<Column>,
    /// A sentence about it.
    pub detail: Option<String>,
}

/// A column of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyColumn {
    /// Name in the service.
    pub column: String,
    /// Its value.
    pub value: Shown,
}

/// A column that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Name in the service.
    pub column: String,
    /// Value on the authority.
    pub authority: Shown,
    /// Value on the other side.
    pub copy: Shown,
}

/// The document as text, indented, with a line break at the end.
#[must_use]
pub fn page(verdicts: &[Verdict]) -> String {
    format!("{:#}\n", json!(document(verdicts)))
}

/// The document on one line, for a sequence of runs.
#[must_use]
pub fn line(verdicts: &[Verdict]) -> String {
    format!("{}\n", json!(document(verdicts)))
}

/// The verdicts of a run as a document.
#[must_use]
pub fn document(verdicts: &[Verdict]) -> Document {
    Document {
        format: FORMAT.to_owned(),
        version: VERSION,
        outcome: facts::outcome(verdicts),
        slices: verdicts.iter().map(slice).collect(),
    }
}

fn slice(verdict: &Verdict) -> Slice {
    Slice {
        slice: verdict.slice.clone(),
        service: verdict.service.clone(),
        plan: verdict.plan.clone(),
        run: verdict.run.clone(),
        outcome: verdict.outcome,
        full: verdict.is_full(),
        strict: verdict.strict,
        authority: verdict.authority.to_owned(),
        epoch: verdict.epoch,
        lsn: facts::position(verdict),
        plan_hash: verdict.plan_hash.clone(),
        started_at: verdict.started_at.clone(),
        finished_at: verdict.finished_at.clone(),
        duration_seconds: facts::took(verdict).map(seconds),
        counts: every_kind(&verdict.counts()),
        not_listed: facts::total(&verdict.counts()).saturating_sub(verdict.listed.len() as u64),
        reasons: verdict.reasons.clone(),
        tables: verdict.tables.iter().map(table).collect(),
        findings: verdict.listed.iter().map(found).collect(),
        repairs: verdict.repairs.iter().map(repair).collect(),
    }
}

fn repair(table: &Repaired) -> Repair {
    let refused = |(reason, rows): (&String, &u64)| Refused { reason: reason.clone(), rows: *rows };
    let row = |row: &RefusedRow| RefusedKey { key: key(&row.key), reason: row.reason.clone() };
    Repair {
        source_table: table.table.clone(),
        asked: table.asked,
        done: table.done,
        left_out: table.left_out,
        still: every_kind(&table.still),
        refused: table.refused.iter().map(refused).collect(),
        refused_rows: table.refused_rows.iter().map(row).collect(),
    }
}

fn key(columns: &[(String, Shown)]) -> Vec<KeyColumn> {
    let column =
        |(column, value): &(String, Shown)| KeyColumn { column: column.clone(), value: value.clone() };
    columns.iter().map(column).collect()
}

fn table(table: &TableVerdict) -> Table {
    Table {
        source_table: table.source_table.to_string(),
        target_table: table.target_table.to_string(),
        outcome: table.outcome,
        coverage: table.coverage,
        rows_authority: table.rows_authority,
        rows_copy: table.rows_copy,
        bytes: table.bytes,
        duration_seconds: seconds(table.duration),
        counts: every_kind(&table.findings),
        reasons: table.reasons.clone(),
    }
}

fn found(finding: &Finding) -> Found {
    let column = |diff: &ColumnDiff| Column {
        column: diff.column.clone(),
        authority: diff.authority.clone(),
        copy: diff.copy.clone(),
    };
    Found {
        source_table: finding.source_table.to_string(),
        target_table: finding.target_table.to_string(),
        kind: finding.kind,
        key: key(&finding.key),
        columns: finding.columns.iter().map(column).collect(),
        detail: finding.detail.clone(),
    }
}

/// Zero is said, so that a reader needs no default.
fn every_kind(counts: &Counts) -> Counts {
    FindingKind::ALL.iter().map(|kind| (*kind, counts.get(kind).copied().unwrap_or(0))).collect()
}

/// To the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::reconcile::report::fixture;

    /// The example in the documentation, which shows every field, and more than one kind of everything.
    fn example() -> Value {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json-output.md");
        let text = std::fs::read_to_string(path).unwrap();
        let section = text.split("\n## `reconcile`\n").nth(1).unwrap();
        serde_json::from_str(section.split("```json\n").nth(1).unwrap().split("```").next().unwrap()).unwrap()
    }

    /// Names of the fields, wherever they are.
    fn fields(value: &Value, path: &str, found: &mut std::collections::BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    let path = format!("{path}.{name}");
                    fields(value, &path, found);
                    found.insert(path);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| fields(value, &format!("{path}[]"), found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn the_example_in_the_documentation_is_such_a_document_and_shows_every_field() {
        let example = example();
        let document: Document = serde_json::from_value(example.clone()).unwrap();
        // What is read and written again is the same, so the example has no field too many and none too few.
        assert_eq!(json!(document), example);
        let (mut shown, mut there) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        fields(&example, "", &mut shown);
        fields(&json!(super::document(&[fixture::repaired(), fixture::sampled()])), "", &mut there);
        let missing: Vec<_> = there.difference(&shown).collect();
        assert!(missing.is_empty(), "docs/json-output.md does not show {missing:?}");
    }

    #[test]
    fn every_field_of_the_document_is_described() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json-output.md");
        let text = std::fs::read_to_string(path).unwrap();
        let section = text.split("\n## `reconcile`\n").nth(1).unwrap().split("\n## ").next().unwrap();
        let mut there = std::collections::BTreeSet::new();
        fields(&json!(document(&[fixture::repaired(), fixture::sampled()])), "", &mut there);
        for name in there.iter().filter_map(|path| path.rsplit('.').next()) {
            assert!(
                section.contains(&format!("`{name}`")) || section.contains(&format!(".{name}`")),
                "{name}"
            );
        }
    }

    #[test]
    fn a_document_says_what_was_counted_and_what_is_listed() {
        let document = document(&[fixture::differs(), fixture::clean()]);
        assert_eq!((document.outcome, document.slices[0].not_listed), (Outcome::Differs, 22));
        assert_eq!(document.slices[0].duration_seconds, Some(4.215));
        assert_eq!(document.slices[1].counts[&FindingKind::Orphan], 0);
    }

    #[test]
    fn nothing_compared_is_incomplete() {
        assert_eq!(document(&[]).outcome, Outcome::Incomplete);
        let unreached = document(&[fixture::unreached()]);
        assert_eq!((unreached.slices[0].duration_seconds, unreached.slices[0].full), (None, false));
    }

    #[test]
    fn a_run_about_some_tables_is_not_full() {
        let mut verdict = fixture::clean();
        assert!(document(std::slice::from_ref(&verdict)).slices[0].full);
        verdict.every_table = false;
        assert!(!document(&[verdict]).slices[0].full);
    }

    #[test]
    fn a_line_is_the_same_document() {
        let verdicts = [fixture::nasty(), fixture::differs()];
        let line = line(&verdicts);
        assert_eq!(line.matches('\n').count(), 1);
        let read: Document = serde_json::from_str(&line).unwrap();
        assert_eq!(read, document(&verdicts));
    }

    #[test]
    fn documents_are_as_reviewed() {
        insta::assert_snapshot!(page(&[fixture::clean(), fixture::repaired(), fixture::incomplete()]));
    }
}
