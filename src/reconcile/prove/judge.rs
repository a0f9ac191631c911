//! What two sides hold of one key, and what that means.

use super::super::finding::FindingKind;
use super::super::form::Side;

/// One row of a key on one side, without its values.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// The row's own key, as this side prints it.
    pub(super) key: Vec<String>,
    /// The slice's filter takes it, by this side's own columns.
    pub(super) fits: bool,
    /// Hash of the row, under two seeds in a strict comparison.
    pub(super) hashes: Vec<i64>,
    /// Which version of which row it is.
    pub(super) version: Option<String>,
    /// Hashes of the columns in mapping order; empty when not asked for.
    pub(super) columns: Vec<i64>,
    /// What [`Redactor::sql`](super::super::redact::Redactor::sql) gives; empty when not asked for.
    pub(super) texts: Vec<Option<String>>,
}

/// Hashes and versions say little, texts are values.
impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("fits", &self.fits).field("hashes", &self.hashes).finish_non_exhaustive()
    }
}

/// The rows of the copy that are compared. Of a monolith that is the copy, rows outside the filter are another
/// slice's, or nobody's, and no part of the comparison.
pub(super) fn compared(authority: Side, copy: &[Held]) -> Vec<&Held> {
    copy.iter().filter(|row| authority == Side::Source || row.fits).collect()
}

/// What is wrong with a key; `None` when nothing is. `here` is the authority's row, `there` what of the copy is
/// [`compared`].
pub(super) fn judge(authority: Side, here: Option<&Held>, there: &[&Held]) -> Option<FindingKind> {
    let misfit = match (here, authority) {
        // A service that has the authority has a row that the slice does not take.
        (Some(row), Side::Target) if !row.fits => return Some(FindingKind::Misplaced),
        (Some(row), _) => !row.fits,
        (None, _) => false,
    };
    match (here.filter(|row| row.fits), there) {
        (None, []) => None,
        (None, rows) if misfit || rows.iter().any(|row| !row.fits) => Some(FindingKind::Misplaced),
        (None, _) => Some(FindingKind::Extra),
        (Some(_), []) => Some(FindingKind::Missing),
        (Some(row), [only]) if row.hashes == only.hashes => None,
        (Some(_), [_]) => Some(FindingKind::Differs),
        (Some(_), _) => Some(FindingKind::Duplicate),
    }
}

/// Indexes of the columns whose own hashes differ.
pub(super) fn different_columns(here: &Held, there: &Held) -> Vec<usize> {
    let pairs = here.columns.iter().zip(&there.columns).enumerate();
    pairs.filter(|(_, (here, there))| here != there).map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn row(hash: i64, fits: bool) -> Held {
        Held { fits, hashes: vec![hash], ..Held::default() }
    }

    fn verdict(authority: Side, here: Option<Held>, there: &[Held]) -> Option<FindingKind> {
        judge(authority, here.as_ref(), &compared(authority, there))
    }

    #[test]
    fn every_kind_is_told_from_the_others() {
        use FindingKind::{Differs, Duplicate, Extra, Misplaced, Missing};
        let (fits, out) = (row(1, true), row(1, false));
        let other = row(2, true);
        for authority in [Side::Source, Side::Target] {
            for (here, there, expected) in [
                (None, vec![], None),
                (None, vec![fits.clone()], Some(Extra)),
                (None, vec![fits.clone(), fits.clone()], Some(Extra)),
                (Some(&fits), vec![], Some(Missing)),
                (Some(&fits), vec![fits.clone()], None),
                (Some(&fits), vec![other.clone()], Some(Differs)),
                (Some(&fits), vec![fits.clone(), fits.clone()], Some(Duplicate)),
            ] {
                assert_eq!(
                    verdict(authority, here.cloned(), &there),
                    expected,
                    "{authority} {here:?} {there:?}"
                );
            }
        }
        assert_eq!(verdict(Side::Source, Some(out.clone()), &[]), None);
        assert_eq!(verdict(Side::Source, Some(out.clone()), from_ref(&fits)), Some(Misplaced));
        assert_eq!(verdict(Side::Source, None, from_ref(&out)), Some(Misplaced));
        assert_eq!(verdict(Side::Source, Some(fits.clone()), &[row(2, false)]), Some(Differs));
        assert_eq!(verdict(Side::Target, Some(out.clone()), &[]), Some(Misplaced));
        assert_eq!(verdict(Side::Target, None, from_ref(&out)), None, "another slice's row");
        assert_eq!(verdict(Side::Target, Some(fits), &[out]), Some(Missing));
    }
}
