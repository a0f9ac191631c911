//! Tables that belong to another slice already: of another plan, or of this one under another name. A table has one gate
//! on the monolith, so whoever has it decides who may write, and a second slice would open what the first one closed.

use std::collections::BTreeSet;

use crate::journal::holdings::Holding;
use crate::name::TableName;
use crate::plan::Plan;
use crate::problem::{Problem, START_ANEW};

/// A slice that asks for tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    /// The plan.
    pub(crate) plan: &'a Plan,
    /// The slice.
    pub(crate) slice: &'a str,
    /// Slices of the plan whose stream has begun.
    pub(crate) begun: &'a BTreeSet<String>,
}

/// A problem for each of the monolith's tables that another slice has. Two slices of the plan that take different rows of
/// a table are none: they may both be mirrored.
pub(crate) fn claimed<'t>(
    asking: Asking<'_>,
    tables: impl Iterator<Item = &'t TableName>,
    holdings: &[Holding],
) -> Vec<Problem> {
    let mut problems = BTreeSet::new();
    for table in tables {
        if let Some(problem) = renamed((asking.plan, asking.slice), table, holdings) {
            problems.insert(problem);
            continue;
        }
        let of_table = || holdings.iter().filter(move |holding| holding.table == *table);
        let ours = of_table().any(|holding| holding.slice == asking.slice && holding.gated);
        for holding in of_table().filter(|holding| asking.is_denied_by(holding, ours)) {
            let gated = of_table().any(|one| one.slice == holding.slice && one.gated);
            problems.insert(asking.problem(&Holding { gated, ..holding.clone() }));
        }
    }
    problems.into_iter().collect()
}

/// A problem for each table of a service that the gate of another slice guards there: `ddl: adopt` takes what is there, and the
/// mirror's role passes every gate.
pub(crate) fn claimed_in_service<'t>(
    asking: Asking<'_>,
    service: &str,
    tables: impl Iterator<Item = &'t TableName>,
    holdings: &[Holding],
) -> Vec<Problem> {
    let mut problems = BTreeSet::new();
    for table in tables {
        if let Some(problem) = renamed((asking.plan, asking.slice), table, holdings) {
            problems.insert(problem);
            continue;
        }
        let others =
            holdings.iter().filter(|one| one.table == *table && one.gated && one.slice != asking.slice);
        for Holding { slice, plan, .. } in others {
            let same_plan = plan.as_ref() == Some(&asking.plan.name);
            if same_plan && asking.plan.slices.contains_key(slice) {
                continue;
            }
            let plan = plan.as_deref();
            problems.insert(
                Problem::error("table-claimed", format!("service {service}, table {table}"))
                    .fact(format!("slice {} writes into it, and it {}", asking.slice, belongs(slice, plan)))
                    .consequence("a second mirror passes that gate: rows of the other slice would be overwritten and lost")
                    .next(leave_alone(asking.slice, slice))
                    .of_slice(asking.slice),
            );
        }
    }
    problems.into_iter().collect()
}

/// A slice that nothing was provisioned for, and that takes a table of one which its plan no longer names: the same slice under
/// another name, as far as anybody can tell. It is one problem, however many tables and whichever side tell of it.
pub(crate) fn renamed(
    (plan, slice): (&Plan, &str),
    table: &TableName,
    holdings: &[Holding],
) -> Option<Problem> {
    let of_plan = |holding: &&Holding| holding.plan.as_ref() == Some(&plan.name);
    let gone = |holding: &&Holding| holding.table == *table && !plan.slices.contains_key(&holding.slice);
    let old = &holdings.iter().filter(of_plan).find(gone)?.slice;
    if holdings.iter().any(|holding| holding.slice == slice) {
        return None;
    }
    let problem = Problem::error("slice-renamed", format!("slice {slice}"))
        .fact(format!(
            "it takes tables of slice {old}, which was provisioned from this plan, {}, and is not in it any more",
            plan.name
        ))
        .consequence(format!(
            "who may write and what was copied stand under the name {old} in the databases, so a second copy and a second gate would be \
             made beside them"
        ))
        .next(format!(
            "give slice {slice} its old name in the plan: {old}; or, to have it as {slice}, take slice {old} back first: \
             {START_ANEW}"
        ))
        .of_slice(slice);
    Some(problem)
}

/// Whose a service's table is, in words, and what to do then, where its gate is another slice's. Whatever that slice has mirrored
/// is in it, so nobody is told to empty, drop or adopt it.
pub(crate) fn held_by_another(
    slice: &str,
    table: &TableName,
    holdings: &[Holding],
) -> Option<(String, String)> {
    let other = holdings.iter().find(|one| one.table == *table && one.gated && one.slice != slice)?;
    Some((belongs(&other.slice, other.plan.as_deref()), leave_alone(slice, &other.slice)))
}

fn belongs(slice: &str, plan: Option<&str>) -> String {
    let plan = plan.unwrap_or("that is not known");
    format!("belongs to slice {slice} of plan {plan}, whose gate hangs on it")
}

fn leave_alone(slice: &str, other: &str) -> String {
    format!("give slice {slice} another table with `to:`; or take slice {other} back first: {START_ANEW}")
}

impl Asking<'_> {
    /// Whether the slice can't have a table because of a holding. `ours`: its own gate hangs on the table.
    fn is_denied_by(self, holding: &Holding, ours: bool) -> bool {
        if holding.slice == self.slice || ours && !holding.gated {
            return false;
        }
        let same_plan = holding.plan.as_ref() == Some(&self.plan.name);
        let shared = same_plan && self.plan.takes(&holding.slice, &holding.table);
        // As long as nothing was mirrored, provision takes it out of that slice's publication.
        let moves_on = same_plan
            && !holding.gated
            && self.plan.slices.contains_key(&holding.slice)
            && !self.begun.contains(&holding.slice);
        !shared && !moves_on
    }

    fn problem(self, holding: &Holding) -> Problem {
        let Holding { table, slice, plan, gated } = holding;
        let how = if *gated { "whose gate hangs on it" } else { "which is provisioned with it" };
        let same_plan = plan.as_ref() == Some(&self.plan.name);
        let whose = match plan {
            Some(_) if same_plan => format!("slice {slice} of this plan, {}", self.plan.name),
            Some(plan) => format!("slice {slice} of plan {plan}"),
            None => format!("slice {slice} of a plan that is not known"),
        };
        let asking = self.slice;
        let keep = if !same_plan {
            format!("take it out of slice {asking}")
        } else if self.plan.slices.contains_key(slice) {
            format!("put it back into slice {slice} in the plan")
        } else {
            format!("put slice {slice} back into the plan, with the table")
        };
        Problem::error("table-claimed", format!("table {table}"))
            .fact(format!("slice {asking} takes it, and it belongs to {whose}, {how}"))
            .consequence("with two gates that don't know of each other, both sides could be written, and writes would be lost")
            .next(format!("{keep}; or take slice {slice} back first: {START_ANEW}"))
            .of_slice(asking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::fixture::{name, plan, table_rule};

    fn holding(slice: &str, plan: Option<&str>, gated: bool) -> Holding {
        Holding { table: name("Orders"), slice: slice.to_owned(), plan: plan.map(str::to_owned), gated }
    }

    /// What slice `ordering`, whose plan has `catalog` too, is told.
    fn told(holdings: &[Holding], begun: &[&str]) -> Vec<Problem> {
        let plan =
            plan(vec![("ordering", vec![table_rule("Orders")]), ("catalog", vec![table_rule("Products")])]);
        let begun = begun.iter().map(|slice| (*slice).to_owned()).collect();
        let asking = Asking { plan: &plan, slice: "ordering", begun: &begun };
        claimed(asking, [name("Orders"), name("Lines")].iter(), holdings)
    }

    #[test]
    fn a_table_of_another_slice_is_told_with_whose_it_is_and_the_way_out() {
        let (own, plan) = (plan(Vec::new()).name, |name: &'static str| Some(name));
        for (holding, fact, next) in [
            (holding("a", plan("other"), true), "slice a of plan other, whose gate", "out of slice ordering"),
            (holding("a", plan("other"), false), "slice a of plan other, which is", "out of slice ordering"),
            (holding("a", None, true), "slice a of a plan that is not known", "out of slice ordering"),
            (
                holding("catalog", Some(own.as_str()), true),
                "slice catalog of this plan",
                "back into slice catalog",
            ),
        ] {
            let found = told(&[holding], &[]);
            assert_eq!(found.len(), 1, "{fact}: {found:?}");
            assert!(found[0].fact.contains(fact) && found[0].next.contains(next), "{:?}", found[0]);
            assert!(found[0].next.contains(START_ANEW));
        }
    }

    #[test]
    fn a_slice_under_another_name_is_one_problem_that_has_both_names() {
        let own = plan(Vec::new()).name;
        let of = |slice: &str, table: &str, gated| Holding {
            table: name(table),
            slice: slice.to_owned(),
            plan: Some(own.clone()),
            gated,
        };
        let mut holdings =
            vec![of("old", "Orders", true), of("old", "Orders", false), of("old", "Lines", true)];
        let found = told(&holdings, &["old"]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].code, found[0].object.as_str()), ("slice-renamed", "slice ordering"));
        assert!(found[0].fact.contains("tables of slice old"), "{:?}", found[0]);
        assert!(
            found[0].next.starts_with("give slice ordering its old name in the plan: old;"),
            "{:?}",
            found[0]
        );
        assert!(found[0].next.contains(START_ANEW));
        let plan = plan(vec![("ordering", vec![table_rule("Orders")])]);
        let begun = BTreeSet::new();
        let asking = Asking { plan: &plan, slice: "ordering", begun: &begun };
        let there = claimed_in_service(asking, "orders", [name("Lines")].iter(), &holdings);
        assert_eq!(there, found, "the other side says the same");
        // A slice that is there under its own name was not renamed: it takes a table more.
        holdings.push(of("ordering", "Baskets", false));
        let found = told(&holdings, &[]);
        assert_eq!(found.iter().map(|problem| problem.code).collect::<Vec<_>>(), ["table-claimed"; 2]);
        assert!(found[0].next.starts_with("put slice old back into the plan"), "{:?}", found[0]);
    }

    #[test]
    fn what_is_the_slices_own_or_may_still_change_hands_is_no_problem() {
        let own = plan(Vec::new()).name;
        let of = |slice: &str, gated| holding(slice, Some(own.as_str()), gated);
        assert_eq!(told(&[of("ordering", true), of("ordering", false)], &["ordering"]), []);
        assert_eq!(
            told(&[of("ordering", true), holding("a", Some("other"), false)], &[]),
            [],
            "it has the gate"
        );
        assert_eq!(told(&[of("catalog", false)], &[]), [], "nothing was mirrored of it yet");
        assert_eq!(told(&[of("catalog", false)], &["catalog"]).len(), 1);
        let both =
            [of("ordering", false), holding("a", Some("other"), false), holding("a", Some("other"), true)];
        assert_eq!(told(&both, &[]).len(), 1, "once, however it is known");
    }
}
