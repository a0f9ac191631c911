//! The side that opens: whether it has numbers to give out, and whether the application may write there.

use std::collections::BTreeMap;

use super::Asked;
use super::facts::{Access, Facts};
use crate::authority::Side;
use crate::dualwrite::flip::sequences::{Stand, Stands};
use crate::name::quote_ident;
use crate::problem::Problem;

/// Moves for which a sequence should have room, there and back.
const MOVES_WANTED: i64 = 20;

pub(super) fn judge(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let mut problems = sequences(facts, asked);
    problems.extend(roles(facts, asked));
    problems
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
    let stands = furthest(facts, asked.to);
    let short =
        |moves: i64| facts.sequences.short(&stands, asked.to, (asked.policy().sequence_margin, moves));
    let (now, soon) = (short(1), short(MOVES_WANTED));
    let moves = if now.is_empty() { MOVES_WANTED } else { 1 };
    let (code, listed) = ("sequence-short", if now.is_empty() { soon } else { now });
    if !listed.is_empty() {
        let problem = if moves == 1 { Problem::error(code, &name) } else { Problem::warning(code, &name) };
        problems.push(
            problem
                .fact(format!(
                    "no room for {moves} more {} of sequence_margin {}: {}",
                    if moves == 1 { "move" } else { "moves" },
                    asked.policy().sequence_margin,
                    listed.join(", ")
                ))
                .consequence(
                    "each move skips that many numbers, and the next ones would be beyond the largest",
                )
                .next("change the column to bigint on both sides, or lower sequence_margin in the plan"),
        );
    }
    problems
}

/// Where the sequences of the side that opens will be set from: beyond what either side gave out.
fn furthest(facts: &Facts, to: Side) -> Stands {
    let mut stands = facts.stands_to.clone();
    for pair in &facts.sequences.0 {
        let (Some(sequence), Some(there)) = (pair.on(to), facts.stands_from.get(&pair.label)) else {
            continue;
        };
        let last = match stands.get(&pair.label) {
            Some(here) if sequence.increment < 0 => here.last.min(there.last),
            Some(here) => here.last.max(there.last),
            None => there.last,
        };
        stands.insert(pair.label.clone(), Stand { last, called: true });
    }
    stands
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
    let lacking: Vec<&&Access> = tables.iter().filter(|access| !access.missing.is_empty()).collect();
    let shut = |access: &&&Access| {
        let missing = |right: &str| access.missing.iter().any(|found| found == right);
        missing("SELECT") || ["INSERT", "UPDATE", "DELETE"].into_iter().all(missing)
    };
    let (fact, next, grave) = if !first.exists {
        (format!("the role {role} does not exist"), format!("strangler provision {}", asked.path), true)
    } else if !first.login {
        let next = format!("run there: ALTER ROLE {quoted} LOGIN;");
        (format!("neither the role {role} nor a member of it can log in"), next, true)
    } else if lacking.is_empty() {
        return None;
    } else {
        let listed: Vec<String> = lacking
            .iter()
            .map(|access| format!("{} on {}", access.missing.join(", "), access.table))
            .collect();
        let next = format!("grant it there: GRANT {} TO {quoted};", listed.join("; GRANT "));
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
