//! What a reconciliation says in the end. A table that was not compared makes a verdict `incomplete`, whatever the
//! others say: no verdict is clean by leaving something out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::finding::{Finding, FindingKind, Shown, as_text};
use crate::lsn::Lsn;
use crate::name::TableName;

/// The word of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything was compared and everything is equal.
    Clean,
    /// At least one difference is proven, whatever else could not be looked at.
    Differs,
    /// No difference is proven, and something was not compared.
    Incomplete,
}

impl Outcome {
    /// The word, as in JSON and in the ledger.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Differs => "differs",
            Self::Incomplete => "incomplete",
        }
    }

    /// The outcome of several parts: a difference wins over a gap, and a gap over clean.
    pub fn of(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::Clean, |all, part| match (all, part) {
            (Self::Differs, _) | (_, Self::Differs) => Self::Differs,
            (Self::Incomplete, _) | (_, Self::Incomplete) => Self::Incomplete,
            (Self::Clean, Self::Clean) => Self::Clean,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How much of a table a run looks at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Coverage {
    /// Every row, and every row that it refers to.
    Full,
    /// All of it was to be looked at, and it was not compared to its end, or not at all.
    CutShort,
    /// Rows whose key falls into a random part of the key's hash; a clean sample is no full proof.
    Sample {
        /// Per cent of the rows, above 0 and below 100.
        percent: f64,
    },
    /// Rows that its rows refer to, and nothing else: the table's old one is dropped, so there is nothing to compare it with.
    References,
    /// Rows that the stream touched after a position.
    ChangedSince {
        /// That position on the authority.
        lsn: Lsn,
    },
}

/// How many findings there are of each kind.
pub type Counts = BTreeMap<FindingKind, u64>;

/// One table's part of a verdict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableVerdict {
    /// The table by the monolith's name.
    #[serde(serialize_with = "as_text")]
    pub source_table: TableName,
    /// The table by the service's name.
    #[serde(serialize_with = "as_text")]
    pub target_table: TableName,
    /// What is known of it.
    pub outcome: Outcome,
    /// What was looked at.
    pub coverage: Coverage,
    /// Rows compared on the side that holds the authority.
    pub rows_authority: u64,
    /// Rows compared on the other side.
    pub rows_copy: u64,
    /// Bytes of the compared tables' main forks on the authority's side.
    pub bytes: u64,
    /// Wall time.
    #[serde(serialize_with = "milliseconds", rename = "duration_ms")]
    pub duration: Duration,
    /// All findings, listed or not.
    pub findings: Counts,
    /// Why it is incomplete, a sentence each, without values. Empty otherwise.
    pub reasons: Vec<String>,
}

/// What became of one table's rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Slice.
    pub slice: String,
    /// The table by the monolith's name.
    pub table: String,
    /// Rows that the mirror was asked for.
    pub asked: u64,
    /// Rows that it has landed again.
    pub done: u64,
    /// Rows that it could not land, by reason: all of them.
    pub refused: BTreeMap<String, u64>,
    /// The first of them.
    pub refused_rows: Vec<RefusedRow>,
    /// Findings that were not asked for, because no row of the copy is wrong by itself: orphans, and rows without a key.
    pub left_out: u64,
    /// Those among them that are rows of the authority itself, which its filter forbids.
    pub misplaced: u64,
    /// Rows that still differ when they are looked at again.
    pub still: Counts,
    /// Generated columns among what still differs, which no mirror writes, and whether the copy generates them too.
    pub generated: BTreeMap<String, bool>,
    /// The command that copies the table again, where nothing else helps rows that were refused. Set by whoever knows the plan's file.
    #[serde(skip)]
    pub copy_again: Option<String>,
}

/// A row that the mirror could not land.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedRow {
    /// Key columns by their names on the target, in key order.
    pub key: Vec<(String, Shown)>,
    /// Why, without row values.
    pub reason: String,
}

impl Repaired {
    /// How many rows could not be landed.
    #[must_use]
    pub fn refused_count(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Every row that was found is right now.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left_out == 0 && self.refused.is_empty() && self.still.is_empty() && self.done == self.asked
    }
}

/// Begins the reason of a verdict that had no mirror to bring the copy along.
pub const NO_MIRROR: &str = "no mirror is running";

/// Stands in the reason of a verdict whose mirror runs, or seems to, and does not bring the copy along.
pub const STANDS_STILL: &str = "the mirror has not come to position";

/// Stands in that reason where a mirror of the slice runs and does not write the copy, so that another one would be refused.
pub const OTHER_WAY: &str = "a mirror runs, for the other direction alone";

/// Stands in a reason before what a mirror that ended by itself asked for.
const ASKS: &str = "; next: ";

/// What one run says about one slice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The run's uuid.
    pub run: String,
    /// Plan.
    pub plan: String,
    /// Slice.
    pub slice: String,
    /// Service.
    pub service: String,
    /// What is known of the slice.
    pub outcome: Outcome,
    /// Values were compared by representation, not only by meaning, and under two hash seeds.
    pub strict: bool,
    /// The run was about every table of the slice, and not only about those that `--table` named.
    pub every_table: bool,
    /// Hash of the slice's mapping.
    pub plan_hash: String,
    /// Epoch of the authority.
    pub epoch: i64,
    /// Who held the authority: `monolith` or `service`.
    pub authority: &'static str,
    /// Position on the authority that everything compared had reached at the end.
    pub lsn: Lsn,
    /// Position on the authority before anything was compared: rows that the stream brought later were not all looked
    /// at.
    pub from_lsn: Lsn,
    /// When the run began and ended, as RFC 3339.
    pub started_at: String,
    /// See `started_at`.
    pub finished_at: String,
    /// Every table that the run was about, in the plan's order.
    pub tables: Vec<TableVerdict>,
    /// The findings that are listed; the rest is in the counts.
    pub listed: Vec<Finding>,
    /// Why the run as a whole is incomplete, a sentence each.
    pub reasons: Vec<String>,
    /// What became of the findings that the mirror was asked to repair after the verdict, by table.
    pub repairs: Vec<Repaired>,
}

impl Verdict {
    /// Every row and every reference of every table was looked at. Clean is a proof for the slice only then, and only
    /// then does it take back what an earlier verdict found.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.every_table
            && !self.tables.is_empty()
            && self.tables.iter().all(|table| table.coverage == Coverage::Full)
    }

    /// The slice is retired, so that only references of its rows were looked at. No run of it is written down, and no repair helps.
    #[must_use]
    pub fn is_of_references(&self) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(|table| table.coverage == Coverage::References)
    }

    /// Nothing could be compared because no mirror runs.
    #[must_use]
    pub fn lacks_mirror(&self) -> bool {
        self.reasons.iter().any(|reason| reason.starts_with(NO_MIRROR))
    }

    /// The mirror stood still, so that not everything could be compared.
    #[must_use]
    pub fn waits_for_mirror(&self) -> bool {
        self.reasons.iter().any(|reason| reason.contains(STANDS_STILL))
    }

    /// A mirror runs, and not for the stream that is needed.
    #[must_use]
    pub fn lacks_one_way(&self) -> bool {
        self.reasons.iter().any(|reason| reason.contains(OTHER_WAY))
    }

    /// What a mirror that ended by itself asked for, with `PLAN` for the plan file.
    #[must_use]
    pub fn mirror_asks(&self) -> Option<&str> {
        let lacking = self.reasons.iter().filter(|reason| reason.starts_with(NO_MIRROR));
        lacking.filter_map(|reason| reason.split_once(ASKS)).map(|(_, asks)| asks).next()
    }

    /// Something was found, and all of it are references to rows that do not exist.
    #[must_use]
    pub fn has_only_orphans(&self) -> bool {
        let counts = self.counts();
        !counts.is_empty() && counts.iter().all(|(kind, count)| *kind == FindingKind::Orphan || *count == 0)
    }

    /// All findings by kind.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut all = Counts::new();
        for (kind, count) in self.tables.iter().flat_map(|table| &table.findings) {
            *all.entry(*kind).or_default() += count;
        }
        all
    }
}

fn milliseconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_left_out_counts_as_clean() {
        use Outcome::{Clean, Differs, Incomplete};
        assert_eq!(Outcome::of([Clean, Clean]), Clean);
        assert_eq!(Outcome::of([Clean, Incomplete]), Incomplete);
        assert_eq!(Outcome::of([Incomplete, Differs, Clean]), Differs);
    }
}
