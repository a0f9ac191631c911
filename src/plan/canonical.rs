//! The text under a hash: one for each meaning.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::words::hex;

/// Words with their length before them and lists with their count, so that no two meanings have one form.
#[derive(Default)]
pub(crate) struct Canonical(String);

impl Canonical {
    /// Adds a word.
    pub(crate) fn word(&mut self, word: &str) {
        let _ = write!(self.0, "{}:{word};", word.len());
    }

    /// Adds a list, each item as `each` does.
    pub(crate) fn list<T>(&mut self, items: &[T], each: impl Fn(&mut Self, &T)) {
        let _ = write!(self.0, "[{};", items.len());
        for item in items {
            each(self, item);
        }
    }

    /// Hex SHA-256 of the text.
    pub(crate) fn hash(self) -> String {
        hex(&Sha256::digest(self.0.as_bytes()))
    }
}
