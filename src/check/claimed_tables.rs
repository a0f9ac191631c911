//! Tables of the monolith that another slice has already, of another plan or of this one under another name.

use std::collections::BTreeSet;

use super::facts::Facts;
use crate::problem::Problem;
use crate::provision::{self, Asking};

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let places = facts.services.values().filter_map(|database| database.whereabouts.as_ref());
    let begun: BTreeSet<String> = places.flat_map(|at| at.begun.keys().cloned()).collect();
    let mut problems = Vec::new();
    for slice in facts.plan.slices.keys() {
        let asking = Asking { plan: &facts.plan, slice, begun: &begun };
        let tables = facts.moved.iter().filter(|(_, slices)| slices.contains(slice)).map(|(table, _)| table);
        problems.extend(provision::claimed(asking, tables, &facts.monolith.holdings));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::journal::holdings::Holding;
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    #[test]
    fn a_table_that_a_slice_of_another_plan_has_is_told_with_the_way_out() {
        let mut facts = clean();
        assert_eq!(rule(&facts), []);
        let (table, plan) = (name("Orders"), Some("before".to_owned()));
        facts.monolith.holdings = vec![Holding { table, slice: "sales".into(), plan, gated: true }];
        expect(&rule(&facts), Severity::Error, "table-claimed", "take it out of slice ordering");
    }
}
