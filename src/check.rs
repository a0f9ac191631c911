//! Looks at every database of a plan, changes nothing, and lists all problems at once with what to do about each.
//!
//! [`gather()`] finds out the [`Facts`]; the rules are pure functions of them, one small file each. The next rule is a
//! file with its test and one line in `RULES`.

mod admin_rights;
mod application_roles;
mod apply_rights;
mod changed_mappings;
mod claimed_tables;
mod columns;
mod copy_rights;
mod cut_keys;
mod defaults;
mod dependents;
mod encodings;
mod extensions;
mod facts;
#[cfg(test)]
mod fixture;
mod foresee;
mod gather;
mod identities;
mod inheritance;
mod left_behind;
mod leftovers;
mod lock_rights;
mod logins;
mod marker_rights;
mod older_tables;
mod predict;
mod reach;
mod read_rights;
mod reference_rights;
mod reverse;
mod schema_rights;
mod sequences;
mod server_limits;
mod service_references;
mod slots;
mod targets;
mod text;
mod type_rights;
mod versions;
mod wal_level;

use serde::Serialize;

pub use crate::problem::{Place, Problem, Severity};
pub use facts::{
    APPLY_ROLE, Database, Facts, Link, LinkFailure, LinkName, LinkRole, Named, Role, Server, Slot,
};
pub use gather::{Links, Opened, gather};
pub use predict::{COPY_BYTES_PER_SECOND, Predictions, SlicePrediction, TablePrediction};
pub use slots::ServerNeeds;
pub use text::{list, text};

type Rule = fn(&Facts) -> Vec<Problem>;

/// Everything that check looks for beside what compiling the mapping finds and what `provision` would say.
const RULES: &[Rule] = &[
    reach::rule,
    identities::rule,
    versions::rule,
    encodings::rule,
    wal_level::rule,
    slots::rule,
    server_limits::rule,
    predict::rule,
    read_rights::rule,
    admin_rights::rule,
    schema_rights::rule,
    apply_rights::rule,
    lock_rights::rule,
    type_rights::rule,
    copy_rights::rule,
    marker_rights::rule,
    reference_rights::rule,
    service_references::rule,
    reverse::rule,
    logins::rule,
    application_roles::rule,
    cut_keys::rule,
    dependents::rule,
    sequences::rule,
    defaults::rule,
    inheritance::rule,
    columns::rule,
    extensions::rule,
    targets::rule,
    changed_mappings::rule,
    claimed_tables::rule,
    left_behind::rule,
    leftovers::rule,
    older_tables::rule,
];

/// What check says: a documented contract in its JSON form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the plan.
    pub plan: String,
    /// All problems, errors first.
    pub problems: Vec<Problem>,
    /// What the mirror will take.
    pub predictions: Predictions,
}

/// Applies all rules to the facts.
#[must_use]
pub fn report(facts: &Facts) -> Report {
    // Where the monolith's link leads to a service, everything else would be said about the wrong database.
    let lost = identities::monolith_is_lost(facts);
    let rules: &[Rule] = if lost { &[reach::rule, identities::rule] } else { RULES };
    let mut problems = if lost { Vec::new() } else { facts.mapping_problems.clone() };
    problems.extend(rules.iter().flat_map(|rule| rule(facts)));
    if !lost {
        let unsaid: Vec<Problem> = foresee::unsaid(facts, &problems).collect();
        problems.extend(unsaid);
    }
    problems.sort();
    problems.dedup();
    Report { plan: facts.plan.name.clone(), problems, predictions: predict::predict(facts) }
}

impl Report {
    /// 4 when a database could not be reached, else 1 with errors, else 0.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.problems.iter().any(|problem| problem.code == reach::UNREACHABLE) {
            return 4;
        }
        u8::from(self.count(Severity::Error) > 0)
    }

    /// How many problems have this severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::clean;
    use super::*;

    #[test]
    fn reports_list_errors_first_and_exit_by_the_worst() {
        let clean_report = report(&clean());
        assert_eq!(clean_report.exit_code(), 0);
        let codes: Vec<&str> = clean_report.problems.iter().map(|problem| problem.code).collect();
        assert_eq!(codes, ["cut-key"]);
        let mut facts = clean();
        facts.monolith_catalog().settings.insert("wal_level".into(), "replica".into());
        facts.monolith_catalog().settings.insert("max_slot_wal_keep_size".into(), "-1".into());
        let found = report(&facts);
        let codes: Vec<&str> = found.problems.iter().map(|problem| problem.code).collect();
        assert_eq!(codes, ["wal-level", "slot-wal-unlimited", "cut-key"]);
        assert_eq!(found.exit_code(), 1);
        let failure = LinkFailure { words: "no route".into(), login_refused: false };
        facts.monolith.links.insert(LinkName::Apply, Link::Failed(failure));
        assert_eq!(report(&facts).exit_code(), 4);
    }

    #[test]
    fn nothing_known_is_no_reason_to_panic() {
        let mut facts = clean();
        facts.monolith = Database::default();
        facts.services.clear();
        facts.mappings.clear();
        facts.moved.clear();
        assert_eq!(report(&facts).problems, []);
    }
}
