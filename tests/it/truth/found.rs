//! What a run says, read from its JSON.

use std::collections::BTreeMap;

use strangler::reconcile::finding::{FindingKind, Shown};
use strangler::reconcile::report::json::{Document, Found};

use crate::support::binary::Ended;
use crate::support::split::Split;

/// Table, kind, key, and the columns that differ, sorted.
pub type Told = (String, FindingKind, Vec<String>, Vec<String>);

/// How a run ended, and its document.
pub struct Run {
    pub ended: Ended,
    pub document: Document,
}

impl Run {
    /// Runs `reconcile` to its end.
    pub fn of(split: &Split, arguments: &[&str]) -> Self {
        let all = [&["--format", "json", "--list", "100000"], arguments].concat();
        Self::read(split.run("reconcile", &all))
    }

    /// # Panics
    /// When there is no document on stdout.
    pub fn read(ended: Ended) -> Self {
        let document = serde_json::from_str(&ended.stdout);
        let document = document.unwrap_or_else(|error| panic!("{error}: {}", ended.page()));
        Self { ended, document }
    }

    /// The findings of the only slice, sorted.
    pub fn told(&self) -> Vec<Told> {
        let mut told: Vec<Told> = self.document.slices[0].findings.iter().map(told).collect();
        told.sort();
        told
    }

    /// Every finding that is counted, by kind.
    pub fn counts(&self) -> BTreeMap<FindingKind, u64> {
        let counts = &self.document.slices[0].counts;
        counts.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| (*kind, *count)).collect()
    }

    /// Every reason, of the slice and of its tables, in one text.
    pub fn reasons(&self) -> String {
        let slice = &self.document.slices[0];
        let of_tables = slice.tables.iter().flat_map(|table| &table.reasons);
        slice.reasons.iter().chain(of_tables).cloned().collect::<Vec<_>>().join("\n")
    }

    pub fn rows(&self, table: &str) -> (u64, u64) {
        let found = self.document.slices[0].tables.iter().find(|found| found.source_table == table).unwrap();
        (found.rows_authority, found.rows_copy)
    }

    /// # Panics
    /// Unless it is clean and says so in every way.
    pub fn assert_clean(&self) {
        assert_eq!(self.ended.exit, Some(0), "{}", self.ended.page());
        assert_eq!((self.told(), self.counts(), self.reasons().as_str()), (vec![], BTreeMap::new(), ""));
    }

    /// # Panics
    /// Unless it is incomplete, finds nothing, and its reasons hold one of these texts.
    pub fn assert_incomplete(&self, words: &[&str]) {
        let page = self.ended.page();
        assert_eq!((self.ended.exit, self.counts()), (Some(5), BTreeMap::new()), "{page}");
        let reasons = self.reasons();
        assert!(words.iter().any(|word| reasons.contains(word)), "none of {words:?} in: {reasons}");
    }
}

fn told(found: &Found) -> Told {
    let text = |shown: &Shown| match shown {
        Shown::Text(text) | Shown::Digest(text) => text.clone(),
        Shown::Null => panic!("a key is never null"),
    };
    let key = found.key.iter().map(|column| text(&column.value)).collect();
    let mut columns: Vec<String> = found.columns.iter().map(|column| column.column.clone()).collect();
    columns.sort();
    (found.source_table.clone(), found.kind, key, columns)
}
