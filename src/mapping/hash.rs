//! The plan hash of a slice: what evidence is bound to.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::{SliceMapping, TableMapping};

/// Changes when the canonical form does, so that hashes of two forms are never compared by accident.
const VERSION: &str = "strangler mapping 2";

/// Hex SHA-256 of everything that decides which value goes where: slice, service, tables, columns with their
/// types, keys, filters, soft references. Urls, comments, policy, classes, estimates, and what follows from types
/// are not in it. Nor are columns that are left behind: no value of theirs goes anywhere, so one that is added to
/// the monolith's table later, and left behind too, does not void what was mirrored.
pub(super) fn of(slice: &SliceMapping) -> String {
    let mut text = Canonical::default();
    text.word(VERSION);
    text.word(&slice.slice);
    text.word(&slice.service);
    text.list(&slice.tables, Canonical::table);
    Sha256::digest(text.0.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Words with their length before them and lists with their count, so that no two mappings have one form.
#[derive(Default)]
struct Canonical(String);

impl Canonical {
    fn word(&mut self, word: &str) {
        let _ = write!(self.0, "{}:{word};", word.len());
    }

    fn list<T>(&mut self, items: &[T], each: impl Fn(&mut Self, &T)) {
        let _ = write!(self.0, "[{};", items.len());
        for item in items {
            each(self, item);
        }
    }

    fn table(&mut self, table: &TableMapping) {
        for name in [&table.source, &table.target] {
            self.word(&name.schema);
            self.word(&name.name);
        }
        self.list(&table.columns, |text, column| {
            text.word(&column.source);
            text.word(&column.target);
            text.word(&column.type_sql);
        });
        self.list(&table.key, |text, index| text.word(&index.to_string()));
        self.list(&table.filter, |text, term| {
            text.word(&term.column.to_string());
            text.list(&term.values, |text, value| text.word(value));
        });
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
