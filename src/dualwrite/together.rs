//! Which slices move at one barrier.
//!
//! Who calls it: `strangler flip`, before it looks at any database. `flip_together` in the plan's policy is a promise that the
//! application needs some slices on one side at every moment, so none of them ever moves without the others.

use std::collections::BTreeSet;

use crate::authority::Side;
use crate::plan::Plan;
use crate::problem::Problem;

/// The slices that a flip of `asked` moves, in groups: all members of a group move at one barrier, or none of them.
/// Members stand in the order in which they are fenced, which is the same whoever asks: that of their names.
///
/// Slices that are named make one group, since whoever names several of them wants them moved at once. When none is
/// named, every slice of the plan is meant, each by itself or in its group of `flip_together`.
///
/// `typed` is what comes before the plan and behind the slices in the command, such as `flip --back` and ` --rehearse`; the
/// command that is named goes the same way.
///
/// # Errors
/// `unknown-slice` for a name that the plan doesn't have, `flip-together` when a slice is asked to move without the rest of its
/// group. Nothing was looked at or changed then.
pub fn groups(plan: &Plan, asked: &[String], typed: (&str, &str)) -> Result<Vec<Vec<String>>, Box<Problem>> {
    let together = &plan.policy.flip_together;
    if asked.is_empty() {
        return Ok(whole(plan, together));
    }
    let wanted: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    if let Some(name) = wanted.iter().find(|name| !plan.slices.contains_key(**name)) {
        return Err(Box::new(unknown(plan, name)));
    }
    for group in together {
        let (with, without): (Vec<&str>, Vec<&str>) =
            group.iter().map(String::as_str).partition(|name| wanted.contains(name));
        if !with.is_empty() && !without.is_empty() {
            return Err(Box::new(torn(&wanted, (&with, &without), typed)));
        }
    }
    Ok(vec![wanted.into_iter().map(str::to_owned).collect()])
}

/// Every slice of the plan, in the order of each group's first name.
fn whole(plan: &Plan, together: &[Vec<String>]) -> Vec<Vec<String>> {
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    let mut all = Vec::new();
    for name in plan.slices.keys() {
        if placed.contains(name.as_str()) {
            continue;
        }
        let group = together.iter().find(|group| group.contains(name));
        let members: BTreeSet<&str> = match group {
            Some(group) => group.iter().map(String::as_str).collect(),
            None => BTreeSet::from([name.as_str()]),
        };
        placed.extend(&members);
        all.push(members.into_iter().map(str::to_owned).collect());
    }
    all
}

fn unknown(plan: &Plan, name: &str) -> Problem {
    let known: Vec<&str> = plan.slices.keys().map(String::as_str).collect();
    Problem::error("unknown-slice", format!("slice {name}"))
        .fact(format!("the plan {} has no slice of this name", plan.name))
        .consequence("nothing was looked at or changed")
        .next(format!("take one of the plan's slices: {}", known.join(", ")))
}

fn torn(wanted: &BTreeSet<&str>, (with, without): (&[&str], &[&str]), (verb, rest): (&str, &str)) -> Problem {
    let all: BTreeSet<&str> = wanted.iter().chain(without).copied().collect();
    let slices: String = all.iter().map(|name| format!(" --slice {name}")).collect();
    let plural = if without.len() == 1 { "does" } else { "do" };
    Problem::error("flip-together", format!("slice {}", with.join(", ")))
        .fact(format!(
            "flip_together in the plan binds it to {}, which {plural} not move here",
            without.join(", ")
        ))
        .consequence("the application would find one part of what it needs on each side; nothing was changed")
        .next(format!("strangler {verb} PLAN{slices}{rest}"))
}

/// A slice was named without the others that it is in the middle of a move with, away from `from`. When it was `settled` that all
/// of them move, none can be taken back. `plan` is the plan's path as typed.
#[must_use]
pub fn unfinished(plan: &str, slice: &str, (others, from, settled): (&[String], Side, bool)) -> Problem {
    let all: BTreeSet<&str> = others.iter().map(String::as_str).chain([slice]).collect();
    let slices: String = all.iter().map(|name| format!(" --slice {name}")).collect();
    let back = if from == Side::Service { " --back" } else { "" };
    Problem::error("flip-group-unfinished", format!("slice {slice}"))
        .fact(format!("it is in the middle of a move together with {}", others.join(", ")))
        .consequence("all of them move or none does, so nothing was changed for this one alone")
        .next(if settled {
            format!("strangler flip{back} {plan}{slices} to finish the move, which was settled and can't be taken back")
        } else {
            format!(
                "strangler flip{back} {plan}{slices} to finish the move, or strangler flip --abort {plan}{slices} to take it back"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::parse;

    fn plan() -> Plan {
        let text = "version: 1\nplan: shop\nmonolith: { url: \"${M}\" }\n\
            services: { one: { url: \"${A}\" }, two: { url: \"${B}\" } }\n\
            slices:\n  d: { service: one, tables: { D: {} } }\n  a: { service: one, tables: { A: {} } }\n  \
            b: { service: two, tables: { B: {} } }\n  c: { service: two, tables: { C: {} } }\n\
            policy: { flip_together: [[c, a]] }\n";
        parse(text.as_bytes(), "plan.yaml").unwrap_or_else(|found| panic!("{}", found.render(false))).plan
    }

    fn asked(names: &[&str]) -> Result<Vec<Vec<String>>, Box<Problem>> {
        asked_by(("flip", ""), names)
    }

    fn asked_by(typed: (&str, &str), names: &[&str]) -> Result<Vec<Vec<String>>, Box<Problem>> {
        groups(&plan(), &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), typed)
    }

    #[test]
    fn without_names_every_slice_moves_alone_or_with_its_group() {
        assert_eq!(asked(&[]).unwrap(), [vec!["a", "c"], vec!["b"], vec!["d"]]);
    }

    #[test]
    fn named_slices_move_at_one_barrier_in_one_order_and_once_each() {
        assert_eq!(asked(&["b"]).unwrap(), [["b"]]);
        assert_eq!(asked(&["d", "b", "d"]).unwrap(), [["b", "d"]]);
        assert_eq!(asked(&["c", "d", "a"]).unwrap(), [["a", "c", "d"]]);
    }

    #[test]
    fn a_slice_of_a_group_is_refused_without_the_others_and_the_whole_command_is_shown() {
        let problem = asked(&["a", "b"]).unwrap_err();
        assert_eq!((problem.code, problem.object.as_str()), ("flip-together", "slice a"));
        assert_eq!(problem.fact, "flip_together in the plan binds it to c, which does not move here");
        assert_eq!(problem.next, "strangler flip PLAN --slice a --slice b --slice c");
        for (verb, rest) in [("flip --back", ""), ("flip --abort", ""), ("flip --back", " --rehearse 5")] {
            let next = asked_by((verb, rest), &["a"]).unwrap_err().next;
            assert_eq!(
                next,
                format!("strangler {verb} PLAN --slice a --slice c{rest}"),
                "the way that was typed"
            );
        }
    }

    #[test]
    fn a_name_that_the_plan_lacks_is_refused_with_those_that_it_has() {
        let problem = asked(&["a", "orders"]).unwrap_err();
        assert_eq!(problem.code, "unknown-slice");
        assert_eq!(problem.next, "take one of the plan's slices: a, b, c, d");
    }
}
