//! Rows of one table whose key has several spellings, as `1.0` and `1.00`, or texts that a collation calls equal. Where
//! the sides spell it differently both texts are suspects, and name one row.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::super::finding::RawKey;
use super::judge::Held;

/// Rows that are remembered, some 20 MB. Of more, each spelling is a finding of its own.
const ROWS_MAX: usize = 1_000_000;

/// The rows that were found so far under one of several spellings, over all suspects of a table: they come in groups,
/// and the spellings of one row may be in two of them.
#[derive(Debug, Default)]
pub(super) struct Spelled(HashSet<u64>);

impl Spelled {
    /// Whether a suspect's row was not found before. A row that is spelled like the suspect on both sides has no other
    /// spelling, and need not be remembered.
    pub(super) fn is_first(&mut self, suspect: &RawKey, here: Option<&Held>, there: &[&Held]) -> bool {
        let mut keys = here.into_iter().chain(there.iter().copied()).map(|row| &row.key);
        if keys.clone().all(|key| *key == suspect.0) {
            return true;
        }
        // The authority's row keeps its own spelling whatever else is written to it.
        let own = here.map(|row| &row.key).or_else(|| keys.by_ref().min());
        let mut hasher = DefaultHasher::new();
        own.hash(&mut hasher);
        self.0.len() >= ROWS_MAX || self.0.insert(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_with_two_spellings_is_found_once_and_one_with_one_always() {
        let held = |key: &str| Held { key: vec![key.to_owned()], ..Held::default() };
        let key = |key: &str| RawKey(vec![key.to_owned()]);
        let mut spelled = Spelled::default();
        let (here, there) = (held("1.0"), held("1.00"));
        assert!(spelled.is_first(&key("1.0"), Some(&here), &[&there]));
        assert!(!spelled.is_first(&key("1.00"), Some(&here), &[&there]));
        assert!(spelled.is_first(&key("2"), Some(&held("2")), &[&held("2")]));
        assert!(spelled.is_first(&key("2"), Some(&held("2")), &[]));
        let (one, other) = (held("a"), held("A"));
        assert!(spelled.is_first(&key("a"), None, &[&one, &other]));
        assert!(!spelled.is_first(&key("A"), None, &[&other, &one]));
    }
}
