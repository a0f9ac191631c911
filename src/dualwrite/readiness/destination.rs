//! The side that opens: whether it has numbers to give out, and whether the application may write there.

use std::collections::{BTreeMap, BTreeSet};

use super::Asked;
use super::facts::{Access, Facts};
use crate::authority::Side;
use crate::name::quote_ident;
use crate::problem::Problem;

/// Moves for which a sequence should have room, there and back.
const MOVES_WANTED: i64 = 20;

pub(super) fn judge(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let mut problems = sequences(facts, asked);
    problems.extend(roles(facts, asked));
    problems.extend(unidentified(facts, asked));
    problems.extend(facts.defaults.iter().filter_map(|one| one.problem(&asked.name(asked.to))));
    problems.extend(retired(facts, asked));
    problems
}

/// An application that came back to old tables which it may not use would stand still.
fn retired(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let done = facts.retired.as_ref().filter(|_| asked.to == Side::Monolith)?;
    Some(
        Problem::error("retired", asked.name(asked.to))
            .fact(format!(
                "the rights on the old tables of slice {} are {} since {}",
                asked.slice,
                done.stage.as_str(),
                done.at
            ))
            .consequence("the application could not use them")
            .next(format!(
                "strangler unretire {} --slice {}, then the same command",
                asked.path, asked.slice
            )),
    )
}

fn sequences(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let name = asked.name(asked.to);
    let missing = |side: Side| -> Vec<&str> {
        let lacking = facts.sequences.0.iter().filter(|pair| pair.on(side).is_none());
        lacking.map(|pair| pair.label.as_str()).collect()
    };
    let lacking = missing(asked.to);
    if !lacking.is_empty() {
        problems.push(
            Problem::warning("sequence-missing", &name)
                .fact(format!(
                    "no sequence feeds {} there, and one does on the {}",
                    lacking.join(", "),
                    asked.from()
                ))
                .consequence(
                    "rows that leave the column out are refused, or get their number from somewhere else",
                )
                .next("give the column a default there, unless the application brings the number itself"),
        );
    }
    let unknown = missing(asked.from());
    if !unknown.is_empty() {
        problems.push(
            Problem::warning("sequence-alone", &name)
                .fact(format!(
                    "a sequence feeds {} there, and none does on the {}",
                    unknown.join(", "),
                    asked.from()
                ))
                .consequence(
                    "nothing says which numbers were given out, so it may give one that a row has already",
                )
                .next("set it above every number in use, by hand"),
        );
    }
    let stands = facts.sequences.furthest(asked.to, &facts.stands_from, &facts.stands_to);
    let short =
        |moves: i64| facts.sequences.short(&stands, asked.to, (asked.policy().sequence_margin, moves));
    let margin = asked.policy().sequence_margin;
    let (now, soon) = (short(1), short(MOVES_WANTED));
    if !now.is_empty() {
        problems.push(sequence_short(&name, margin, &now));
    } else if !soon.is_empty() {
        let problem = Problem::warning("sequence-short", &name);
        problems.push(no_room(problem, (MOVES_WANTED, margin), &soon));
    }
    problems
}

/// The problem with a side whose sequences have no room for one move. `database` is the side as an operator calls it.
#[must_use]
pub fn sequence_short(database: &str, margin: u32, columns: &[String]) -> Problem {
    no_room(Problem::error("sequence-short", database), (1, margin), columns)
}

/// What is published there and has no replica identity: it shows only when the application writes.
fn unidentified(facts: &Facts, asked: &Asked<'_>) -> Option<Problem> {
    let listed: Vec<String> = facts.unidentified.iter().map(ToString::to_string).collect();
    // Each verb sees to the publication of one side.
    let verb = match asked.to {
        Side::Service => "arm",
        Side::Monolith => "provision",
    };
    (!listed.is_empty()).then(|| {
        Problem::error("no-replica-identity", asked.name(asked.to))
            .fact(format!("published and without a replica identity: {}", listed.join(", ")))
            .consequence("every UPDATE and DELETE of the application would fail there")
            .next(asked.command(verb))
    })
}

fn no_room(problem: Problem, (moves, margin): (i64, u32), columns: &[String]) -> Problem {
    let plural = if moves == 1 { "move" } else { "moves" };
    problem
        .fact(format!(
            "no room for {moves} more {plural} of sequence_margin {margin}: {}",
            columns.join(", ")
        ))
        .consequence("each move skips that many numbers, and the next ones would be beyond the largest")
        .next("change the column to bigint on both sides, or lower sequence_margin in the plan")
}

fn roles(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let mut by_role: BTreeMap<&str, Vec<&Access>> = BTreeMap::new();
    for access in &facts.access {
        by_role.entry(&access.role).or_default().push(access);
    }
    by_role.into_iter().filter_map(|(role, tables)| kept_out(role, &tables, asked)).collect()
}

/// A role that could not do its work there. On the monolith it had its rights before, and many of its roles only read.
fn kept_out(role: &str, tables: &[&Access], asked: &Asked<'_>) -> Option<Problem> {
    let first = tables.first()?;
    let quoted = quote_ident(role);
    let lacks = |access: &&&Access| !access.missing.is_empty() || !access.sequences.is_empty();
    let lacking: Vec<&&Access> = tables.iter().filter(lacks).collect();
    let shut = |access: &&&Access| {
        let missing = |right: &str| access.missing.iter().any(|found| found == right);
        !access.sequences.is_empty()
            || missing("SELECT")
            || ["INSERT", "UPDATE", "DELETE"].into_iter().all(missing)
    };
    let (fact, next, grave) = if !first.exists {
        (format!("the role {role} does not exist"), format!("strangler provision {}", asked.path), true)
    } else if !first.login {
        let next = format!("run there: ALTER ROLE {quoted} LOGIN;");
        (format!("neither the role {role} nor a member of it can log in"), next, true)
    } else if lacking.is_empty() {
        return None;
    } else {
        let of_tables = lacking.iter().filter(|access| !access.missing.is_empty());
        let of_tables = of_tables.map(|access| format!("{} on {}", access.missing.join(", "), access.table));
        let drawn: BTreeSet<&String> = lacking.iter().flat_map(|access| &access.sequences).collect();
        let drawn = drawn.into_iter().map(|sequence| format!("USAGE on SEQUENCE {sequence}"));
        let listed: Vec<String> = of_tables.chain(drawn).collect();
        let next =
            format!("grant it there: GRANT {} TO {quoted};", listed.join(&format!(" TO {quoted}; GRANT ")));
        (format!("the role {role} may not {}", listed.join("; ")), next, lacking.iter().any(shut))
    };
    let (code, object) = ("application-kept-out", asked.name(asked.to));
    let problem = if grave && asked.to == Side::Service {
        Problem::error(code, object)
    } else {
        Problem::warning(code, object)
    };
    Some(
        problem
            .fact(fact)
            .consequence("the application gets 25006 on the old side and an error on the new one")
            .next(next),
    )
}
