//! What a reconciliation finds: one row, or one reference, that is not as the authority says.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::TableName;

/// What is wrong with a row of the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The authority has the row, the copy does not.
    Missing,
    /// The copy has a row that the authority does not.
    Extra,
    /// Both have the row, with different values.
    Differs,
    /// The copy has the key more than once.
    Duplicate,
    /// The row is on a side where the slice's filter does not let it be.
    Misplaced,
    /// A soft reference names a row that its owner does not have.
    Orphan,
}

impl FindingKind {
    /// Every kind, in the order in which reports list them.
    pub const ALL: [Self; 6] =
        [Self::Missing, Self::Extra, Self::Differs, Self::Duplicate, Self::Misplaced, Self::Orphan];

    /// The word of the glossary, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Differs => "differs",
            Self::Duplicate => "duplicate",
            Self::Misplaced => "misplaced",
            Self::Orphan => "orphan",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A key as the server prints it, a text per key column in key order, as it is sent back to a server. Never shown:
/// a key column may be classified. [`Finding::key`] is what may be shown.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RawKey(pub Vec<String>);

impl fmt::Debug for RawKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawKey({} columns)", self.0.len())
    }
}

/// A value as a report may show it. `Debug` shows no value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "value")]
pub enum Shown {
    /// SQL NULL.
    Null,
    /// The value as PostgreSQL prints it, cut to a length that a report can carry.
    Text(String),
    /// A value of a classified column: hex of a keyed digest. The same value has the same digest within one run,
    /// and nobody can get from the digest to the value by trying.
    Digest(String),
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Digest(digest) => write!(f, "Digest({digest})"),
        }
    }
}

/// One column in a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnDiff {
    /// Name on the target.
    pub column: String,
    /// Value that the authority has.
    pub authority: Shown,
    /// Value that the copy has.
    pub copy: Shown,
}

/// One row, or one reference, that is not as the authority says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Slice.
    pub slice: String,
    /// The table by the monolith's name.
    #[serde(serialize_with = "as_text")]
    pub source_table: TableName,
    /// The table by the service's name.
    #[serde(serialize_with = "as_text")]
    pub target_table: TableName,
    /// What is wrong.
    pub kind: FindingKind,
    /// Key columns by their names on the target, in key order. For an orphan the referring row's key.
    pub key: Vec<(String, Shown)>,
    /// Columns with different values, in mapping order; only for `differs` and, as the reference, for `orphan`.
    pub columns: Vec<ColumnDiff>,
    /// A sentence for what the fields do not say, e.g. how often a duplicate is there, without values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The key as it is asked for again, for repair and for another look.
    #[serde(skip)]
    pub raw_key: RawKey,
}

/// Serializes what has a text form as that text.
pub(super) fn as_text<T: fmt::Display, S: serde::Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}
