//! The plan hash of a slice: what evidence is bound to.

use super::{ColumnMapping, FilterTerm, SliceMapping, TableMapping};
use crate::plan::canonical::Canonical;

/// Changes when the canonical form does, so that hashes of two forms are never compared by accident.
const VERSION: &str = "strangler mapping 3";

/// The form before, in which the order of columns counted. Slices that were provisioned under it keep their hash.
const EARLIER_VERSION: &str = "strangler mapping 2";

/// Hex SHA-256 of everything that decides which value goes where: slice, service, tables, columns with their
/// types, keys, filters, soft references. Urls, comments, policy, classes, estimates, and what follows from types
/// are not in it. Nor are columns that are left behind: no value of theirs goes anywhere, so one that is added to
/// the monolith's table later, and left behind too, does not void what was mirrored. Nor is the order of columns: values
/// go by the names of their columns, and one that is dropped and added again, which moves it to the end, is another copy of
/// its table and not another mapping.
pub(super) fn of(slice: &SliceMapping) -> String {
    hash(VERSION, slice, Canonical::table)
}

/// The same in the form of an earlier version.
pub(super) fn earlier(slice: &SliceMapping) -> String {
    hash(EARLIER_VERSION, slice, Canonical::table_in_order)
}

fn hash(version: &str, slice: &SliceMapping, table: impl Fn(&mut Canonical, &TableMapping)) -> String {
    let mut text = Canonical::default();
    text.word(version);
    text.word(&slice.slice);
    text.word(&slice.service);
    text.list(&slice.tables, table);
    text.hash()
}

impl Canonical {
    fn table(&mut self, table: &TableMapping) {
        self.names(table);
        let mut columns: Vec<&ColumnMapping> = table.columns.iter().collect();
        columns.sort_by_key(|column| &column.source);
        self.list(&columns, |text, column| text.column(column));
        let source = |index: usize| table.columns.get(index).map_or("", |column| column.source.as_str());
        self.list(&table.key, |text, index| text.word(source(*index)));
        let mut filter: Vec<&FilterTerm> = table.filter.iter().collect();
        filter.sort_by_key(|term| source(term.column));
        self.list(&filter, |text, term| {
            text.word(source(term.column));
            text.list(&term.values, |text, value| text.word(value));
        });
        self.references(table);
    }

    fn table_in_order(&mut self, table: &TableMapping) {
        self.names(table);
        self.list(&table.columns, Self::column);
        self.list(&table.key, |text, index| text.word(&index.to_string()));
        self.list(&table.filter, |text, term| {
            text.word(&term.column.to_string());
            text.list(&term.values, |text, value| text.word(value));
        });
        self.references(table);
    }

    fn names(&mut self, table: &TableMapping) {
        for name in [&table.source, &table.target] {
            self.word(&name.schema);
            self.word(&name.name);
        }
    }

    fn column(&mut self, column: &ColumnMapping) {
        self.word(&column.source);
        self.word(&column.target);
        self.word(&column.type_sql);
    }

    /// Adds the soft references, in an order of their own.
    pub(super) fn references(&mut self, table: &TableMapping) {
        let mut references = table.soft_references.clone();
        references.sort_by(|a, b| (&a.columns, &a.references).cmp(&(&b.columns, &b.references)));
        self.list(&references, |text, reference| {
            text.list(&reference.columns, |text, name| text.word(name));
            text.word(&reference.references.schema);
            text.word(&reference.references.name);
            text.list(&reference.referenced_columns, |text, name| text.word(name));
        });
    }
}
