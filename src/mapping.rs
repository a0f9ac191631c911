//! The plan joined with the monolith's catalog: for each slice, exactly which column of which table goes where.
//!
//! A mapping is what the plan hash pins, what `provision` builds tables from and what the mirror turns changes
//! through. Nothing here does I/O.

pub mod adopted;
pub mod collated;
mod columns;
mod compile;
mod expand;
pub mod expression;
mod filter;
#[cfg(test)]
pub(crate) mod fixture;
mod hash;
mod identity;
pub mod input;
pub mod inverse;
pub mod keyed;
pub mod narrower;
pub mod outline;
pub(crate) mod partitions;
mod references;
mod spelling;
#[cfg(test)]
mod tests;
pub mod type_tree;

use std::collections::{BTreeMap, BTreeSet};

use crate::name::TableName;

pub use compile::{MappingProblem, compile, lacks_tables};
pub use expand::{Listed, expand};

/// The compiled mapping of one slice.
#[derive(Debug, Clone)]
pub struct SliceMapping {
    /// Slice name.
    pub slice: String,
    /// Service that will own it.
    pub service: String,
    /// Tables, by the monolith's name.
    pub tables: Vec<TableMapping>,
    /// Tables that the plan means and that are not among them, because something is wrong with them. Empty for a slice that
    /// may be worked on.
    pub unmapped: Vec<TableName>,
    /// Tables that these refer to, which are dropped from the monolith and which no slice of the plan takes: nobody knows who has their rows.
    pub unheld: BTreeSet<TableName>,
    /// Why nobody knows which tables it has, or had: some that the plan names are missing, and its service can't say whether they were
    /// dropped. References to them may then be unknown as well. Compiling never finds that; who asked the services says it.
    pub unknown: Option<String>,
    /// How the unmapped ones would be mapped, as far as that can be said: what else is wrong with them can be told as well.
    pub spoilt: Vec<TableMapping>,
    /// Hex SHA-256 of the mapping without urls, comments and policy.
    pub hash: String,
    /// The same as an earlier version wrote it down.
    pub earlier_hash: String,
}

impl SliceMapping {
    /// Whether a slice that was provisioned under this hash was provisioned from this mapping.
    #[must_use]
    pub fn is_pinned_by(&self, hash: &str) -> bool {
        hash == self.hash || hash == self.earlier_hash
    }

    /// The slice as if nothing were wrong with its tables. Only for those who look for problems: nothing may be done by it.
    #[must_use]
    pub fn with_spoilt(mut self) -> Self {
        self.tables.append(&mut self.spoilt);
        compile::seal(&mut self);
        self
    }
}

/// One table's way from the monolith to the service.
#[derive(Debug, Clone)]
pub struct TableMapping {
    /// Name in the monolith.
    pub source: TableName,
    /// Name in the service.
    pub target: TableName,
    /// Columns that are carried over, in the monolith's column order; generated columns are not among them.
    pub columns: Vec<ColumnMapping>,
    /// Generated columns of the monolith that the plan does not leave behind, under one name on both sides. No stream carries
    /// them, because each side computes its own; a comparison looks whether they came out alike.
    pub generated: Vec<ColumnMapping>,
    /// Monolith columns that stay behind.
    pub dropped: Vec<String>,
    /// Columns that the plan does not name are left behind, also those that come later.
    pub others_dropped: bool,
    /// Indexes into `columns` of the columns that tell rows apart on both sides, in key order. Never empty.
    pub key: Vec<usize>,
    /// How the key's order can be used for ranges.
    pub key_order: KeyOrder,
    /// Rows that the slice takes; empty means all.
    pub filter: Vec<FilterTerm>,
    /// Foreign keys across the cut, kept as knowledge: target column to the monolith's referenced table.
    pub soft_references: Vec<SoftReference>,
    /// The source is a partitioned table: it has no ctid of its own.
    pub partitioned: bool,
    /// `pg_stats.correlation` of a single-column key, for the choice of piece kind.
    pub key_correlation: Option<f64>,
    /// Rows that the catalog expects, for progress; never negative.
    pub rows_estimate: f64,
    /// Main fork bytes, for progress and ctid ranges.
    pub heap_bytes: u64,
    /// It is the way back: `source` is the service's table, `target` the monolith's.
    pub reversed: bool,
}

/// One column's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnMapping {
    /// Name in the monolith.
    pub source: String,
    /// Name in the service.
    pub target: String,
    /// Type for DDL, with its modifier.
    pub type_sql: String,
    /// Type for casts from text, without a modifier, so that a cast never truncates.
    pub cast_sql: String,
    /// Binary COPY may pass through when both servers are of one major version.
    pub binary: bool,
    /// `pg_type.oid` in the monolith, to notice a changed type in the stream. Not part of the plan hash.
    pub source_type_oid: u32,
    /// Class of a classified column: its values are never shown.
    pub class: Option<String>,
    /// The target column is an identity GENERATED ALWAYS: inserts need OVERRIDING SYSTEM VALUE.
    pub identity_always: bool,
}

/// How values of a key compare, when both servers and this process agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrder {
    /// One column of `smallint`, `integer` or `bigint`.
    Integer,
    /// One column of `uuid`.
    Uuid,
    /// No shared order: such a table is copied whole.
    Opaque,
}

/// One condition of a row filter: the column holds one of the values. All conditions of a table must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterTerm {
    /// Index into [`TableMapping::columns`] when the column is carried over; a filter on a dropped column is refused.
    pub column: usize,
    /// Values in the canonical text form of the column's type.
    pub values: Vec<String>,
}

/// A foreign key across the cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoftReference {
    /// Columns in the service's table.
    pub columns: Vec<String>,
    /// Table that they refer to, by the monolith's name.
    pub references: TableName,
    /// Its columns.
    pub referenced_columns: Vec<String>,
    /// The plan wrote it, rather than a foreign key of the catalog.
    pub declared: bool,
}

impl TableMapping {
    /// The monolith's name of the table, whichever way it is carried: what our own rows about it are kept under.
    #[must_use]
    pub fn label(&self) -> &TableName {
        if self.reversed { &self.target } else { &self.source }
    }

    /// The mapping of a monolith column.
    #[must_use]
    pub fn column(&self, source: &str) -> Option<&ColumnMapping> {
        self.columns.iter().find(|column| column.source == source)
    }

    /// Key columns in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &ColumnMapping> {
        self.key.iter().filter_map(|index| self.columns.get(*index))
    }

    /// Column names on the target, quoted, in mapping order.
    #[must_use]
    pub fn target_list(&self) -> String {
        crate::name::quote_list(self.columns.iter().map(|column| column.target.as_str()))
    }

    /// Column names on the source, quoted, in mapping order.
    #[must_use]
    pub fn source_list(&self) -> String {
        crate::name::quote_list(self.columns.iter().map(|column| column.source.as_str()))
    }

    /// The row filter as an SQL condition on the source's columns, when there is one.
    #[must_use]
    pub fn filter_sql(&self) -> Option<String> {
        self.filter_on(|column| &column.source)
    }

    /// The row filter as an SQL condition on the target's columns, when there is one. Where rows are carried back, the
    /// target also holds rows that are not the slice's.
    #[must_use]
    pub fn target_filter_sql(&self) -> Option<String> {
        self.filter_on(|column| &column.target)
    }

    fn filter_on(&self, name: impl Fn(&ColumnMapping) -> &String) -> Option<String> {
        let terms: Vec<String> = self
            .filter
            .iter()
            .filter_map(|term| {
                let column = self.columns.get(term.column)?;
                let values: Vec<String> = term
                    .values
                    .iter()
                    .map(|value| format!("{}::{}", crate::name::quote_literal(value), column.cast_sql))
                    .collect();
                Some(format!("{} IN ({})", crate::name::quote_ident(name(column)), values.join(", ")))
            })
            .collect();
        if terms.is_empty() { None } else { Some(terms.join(" AND ")) }
    }
}

/// Mappings of all slices of a plan, by slice.
pub type Mappings = BTreeMap<String, SliceMapping>;
