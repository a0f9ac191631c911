//! What the logical stream carries, free of how it is encoded: values, tuples, changes.

use std::fmt;

use bytes::Bytes;

use crate::lsn::Lsn;

/// One column value in PostgreSQL's text representation.
///
/// `Debug` shows lengths only: row values never reach a log.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// The text form, UTF-8, as the type's output function wrote it under our fixed session settings.
    Text(Bytes),
    /// A TOASTed value that the update did not touch and that pgoutput therefore left out
    /// (PostgreSQL documentation, section 55.9, "TupleData", byte `u`).
    Unchanged,
}

impl Value {
    /// A value from text that is at hand.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Bytes::from(text.into()))
    }

    /// The text, or `None` for NULL and for an unchanged value.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Unchanged => None,
        }
    }

    /// Bytes that the value holds, for batch limits.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.as_bytes().map_or(0, <[u8]>::len)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Text(text) => write!(f, "<{} bytes>", text.len()),
            Self::Unchanged => f.write_str("unchanged"),
        }
    }
}

/// Values in the order of the relation's columns.
pub type Tuple = Vec<Value>;

/// A column as a Relation message describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity key.
    pub key: bool,
    /// Column name on the source.
    pub name: String,
    /// Type OID on the source.
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
}

/// A table as the stream describes it, before its first change and again after each change of its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid` on the source.
    pub oid: u32,
    /// Schema on the source.
    pub schema: String,
    /// Table on the source.
    pub name: String,
    /// `d`, `n`, `f` or `i` (`pg_class.relreplident`).
    pub replica_identity: u8,
    /// Columns in the order of every tuple of this relation; generated columns are not among them.
    pub columns: Vec<RelationColumn>,
}

/// The old row that an update or delete carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple {
    /// Only the replica identity columns hold values; the others are `Null` (message byte `K`).
    Key(Tuple),
    /// All columns (message byte `O`, replica identity FULL).
    Full(Tuple),
}

impl OldTuple {
    /// The values, whichever form.
    #[must_use]
    pub fn tuple(&self) -> &Tuple {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// One row change of one relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowChange {
    /// A new row, always complete.
    Insert {
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// Present when the replica identity changed, or is FULL.
        old: Option<OldTuple>,
        /// The row after; may hold `Unchanged`.
        new: Tuple,
    },
    /// A deleted row.
    Delete {
        /// Its identity, or all of it.
        old: OldTuple,
    },
}

/// One source transaction's frame: who it is and where it stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionFrame {
    /// Top-level transaction id, 32 bits as pgoutput sends it; never a subtransaction's.
    pub xid: u32,
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// Commit time on the source, in microseconds since 2000-01-01 UTC. Shown, never used for ordering.
    pub commit_time_us: i64,
}
