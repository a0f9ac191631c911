//! What comparisons have found of rows that the service has and the monolith has not: they are in no other place, whoever put them there.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::AbandonError;
use crate::journal::JournalError;
use crate::journal::verdicts::{self, Named};
use crate::reconcile::finding::FindingKind;
use crate::reconcile::verdict::Counts;
use crate::words;

/// Tables by the service's names as they are shown, with what the verdicts that stand say of rows there that the monolith lacks or has
/// otherwise. A verdict that is void for a flip, because it is old or the authority has moved since, is none here: rows that were extra
/// are so until somebody looks again, or until they are copied anew.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn doubts(service: &Client, slice: &str) -> Result<Vec<(String, String)>, AbandonError> {
    let mut doubts = Vec::new();
    for named in verdicts::named(service, slice).await? {
        let counts: Counts = serde_json::from_str(&named.findings)
            .map_err(|error| JournalError::Unreadable { what: "ledger.body", found: error.to_string() })?;
        doubts.extend(doubt(&named, &counts).map(|why| (named.target_table.clone(), why)));
    }
    Ok(doubts)
}

/// Pure.
fn doubt(named: &Named, counts: &Counts) -> Option<String> {
    let found: BTreeMap<FindingKind, u64> = counts
        .iter()
        .filter(|(kind, count)| **count > 0 && is_in_danger(**kind, named.authority == "service"))
        .map(|(kind, count)| (*kind, *count))
        .collect();
    let found: Vec<String> =
        found.iter().map(|(kind, count)| format!("{} {kind}", words::count(*count))).collect();
    (!found.is_empty()).then(|| {
        format!(
            "the verdict of {} (ledger entry {}) found rows of it: {}",
            named.at,
            named.entry,
            found.join(", ")
        )
    })
}

/// Whether a row of the service may be in no other place. `missing` and `extra` are said of the copy, so where the service had the authority
/// it is `missing` that the monolith lacked.
fn is_in_danger(kind: FindingKind, service_had_authority: bool) -> bool {
    match kind {
        FindingKind::Missing => service_had_authority,
        FindingKind::Extra => !service_had_authority,
        FindingKind::Differs | FindingKind::Duplicate | FindingKind::Misplaced => true,
        FindingKind::Orphan => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(authority: &str, kind: FindingKind) -> bool {
        let named = Named {
            target_table: "orders".into(),
            entry: 7,
            at: "2026-01-01T00:00:00Z".into(),
            authority: authority.into(),
            findings: String::new(),
        };
        doubt(&named, &[(kind, 3), (FindingKind::Orphan, 1)].into()).is_some()
    }

    #[test]
    fn what_the_service_has_beyond_the_monolith_is_in_danger_and_what_it_lacks_is_not() {
        use FindingKind::{Differs, Duplicate, Extra, Misplaced, Missing, Orphan};
        for (kind, of_monolith, of_service) in [
            (Extra, true, false),
            (Missing, false, true),
            (Differs, true, true),
            (Duplicate, true, true),
            (Misplaced, true, true),
            (Orphan, false, false),
        ] {
            assert_eq!((said("monolith", kind), said("service", kind)), (of_monolith, of_service), "{kind}");
        }
    }
}
