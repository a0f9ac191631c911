//! What to do with one event, given how its ends stand.

use super::pieces::Standing;

/// What an update must become on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateVerdict {
    /// The target holds both ends already, or neither.
    Nothing,
    /// The row is there under its old key: update it.
    Update,
    /// The row is there under its old key and must not be under its new one: delete it.
    DeleteOld,
    /// The row is not there yet and its new form is complete: insert it.
    InsertNew,
    /// The row is not there yet and its new form lacks unchanged TOASTed values: read it from the source.
    Refetch,
}

/// Decides about an update from the old end to the new end. For an update that keeps key and filter, both ends
/// are the same. `complete` says that the new tuple holds every value.
#[must_use]
pub fn decide_update(old: Standing, new: Standing, complete: bool) -> UpdateVerdict {
    match (old, new) {
        (Standing::Apply, Standing::Apply) => UpdateVerdict::Update,
        (Standing::Apply, Standing::Visible | Standing::Absent) => UpdateVerdict::DeleteOld,
        (Standing::Visible | Standing::Absent, Standing::Apply) => {
            if complete {
                UpdateVerdict::InsertNew
            } else {
                UpdateVerdict::Refetch
            }
        }
        (Standing::Visible | Standing::Absent, Standing::Visible | Standing::Absent) => {
            UpdateVerdict::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ends_that_both_apply_make_one_update() {
        use Standing::{Absent, Apply, Visible};
        for old in [Absent, Visible, Apply] {
            for new in [Absent, Visible, Apply] {
                let verdict = decide_update(old, new, true);
                assert_eq!(verdict == UpdateVerdict::Update, old == Apply && new == Apply);
                assert_eq!(verdict == UpdateVerdict::InsertNew, old != Apply && new == Apply);
                assert_eq!(verdict == UpdateVerdict::DeleteOld, old == Apply && new != Apply);
                assert_eq!(
                    decide_update(old, new, false) == UpdateVerdict::Refetch,
                    old != Apply && new == Apply
                );
            }
        }
    }
}
