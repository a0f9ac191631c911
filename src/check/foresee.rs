//! What `provision` would refuse or leave out, in its own words: it is asked for its design and nothing of that is done.

use std::collections::BTreeMap;

use super::facts::{Database, Facts, LinkName};
use super::gather::Opened;
use crate::plan::Plan;
use crate::problem::Problem;
use crate::provision::{self, Databases, Known, Login, Logins, ProvisionError};

/// What other rules say in words of their own, because they know more, or without a link of an administrator.
const SAID_ELSEWHERE: &[&str] = &[
    "apply-may-not-replicate",
    "extension-missing",
    "key-not-created",
    "mapping-changed",
    "may-not-create-roles",
    "database-unreachable",
    "no-schema-usage",
    "not-owner",
    "shared-database",
];

/// Asks `provision`, unless one of its links is not open: what it would say then is not about the plan.
pub(super) async fn ask(
    facts: &Facts,
    of: (&Plan, &[String]),
    monolith: Opened,
    services: BTreeMap<String, Opened>,
) -> Result<Vec<Problem>, ProvisionError> {
    let services: Result<BTreeMap<_, _>, _> =
        services.into_iter().map(|(name, link)| link.map(|client| (name, client))).collect();
    let (Ok(monolith), Ok(services)) = (monolith, services) else { return Ok(Vec::new()) };
    let login = |name: &str| Login { user: name.to_owned(), password: None };
    let apply = |database: &Database| database.role(LinkName::Apply).map(|role| login(&role.name));
    let logins = Logins {
        monolith_read: facts.monolith.role(LinkName::Read).map(|role| role.name.clone()),
        monolith_apply: apply(&facts.monolith),
        apply: facts
            .services
            .iter()
            .filter_map(|(name, database)| Some((name.clone(), apply(database)?)))
            .collect(),
    };
    let databases = Databases { monolith, services };
    provision::foresee(of, &databases, known(facts), &logins).await
}

/// What was read of the databases, where nothing of it failed: it was read over the same links.
fn known(facts: &Facts) -> BTreeMap<provision::Database, Known> {
    let services =
        facts.services.iter().map(|(name, found)| (provision::Database::Service(name.clone()), found));
    let all = std::iter::once((provision::Database::Monolith, &facts.monolith)).chain(services);
    let of = |(database, found): (provision::Database, &Database)| {
        let (catalog, whereabouts) = found.catalog.clone().zip(found.whereabouts.clone())?;
        let known = Known { catalog, whereabouts, holdings: found.holdings.clone() };
        found.unread.is_empty().then_some((database, known))
    };
    all.filter_map(of).collect()
}

/// The foreseen problems that are not among those already found.
pub(super) fn unsaid<'a>(facts: &'a Facts, found: &'a [Problem]) -> impl Iterator<Item = Problem> + 'a {
    let said = |problem: &Problem| {
        SAID_ELSEWHERE.contains(&problem.code)
            || found.iter().any(|other| other.code == problem.code && other.object == problem.object)
            || problem.code == "type-not-created" && found.iter().any(|other| needs(other, problem))
            || problem.code == "adopt-mismatch" && found.iter().any(|other| says(other, problem))
    };
    facts.foreseen.iter().filter(move |problem| !said(problem)).cloned()
}

/// Whether a column is told to need the type that can't be made.
fn needs(other: &Problem, of_type: &Problem) -> bool {
    let name = of_type.object.rsplit_once(", type ").map(|(_, name)| format!("needs {name},"));
    other.code == of_type.code && name.is_some_and(|name| other.fact.contains(&name))
}

/// Whether a rule of check says what a mismatch of an adopted table does, about the same column.
fn says(other: &Problem, mismatch: &Problem) -> bool {
    if other.object != mismatch.object.replace(", table ", ": ") {
        return false;
    }
    let gist = mismatch.fact.split_once(", and ").map_or(&*mismatch.fact, |(gist, _)| gist);
    match other.code {
        "target-absent" => true,
        "target-without-key" => gist.starts_with("no primary key"),
        code => (code.starts_with("target-") || code == "generated-differs") && other.fact.contains(gist),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::clean;
    use crate::check::report;

    #[test]
    fn what_provision_would_refuse_is_said_once_and_not_in_two_ways() {
        let mut facts = clean();
        facts.foreseen = vec![
            Problem::error("column-not-created", "Orders.Name"),
            Problem::error("not-owner", "table Orders"),
            Problem::error("adopt-mismatch", "service ordering, table Orders"),
        ];
        let codes =
            |facts: &Facts| -> Vec<&str> { report(facts).problems.iter().map(|one| one.code).collect() };
        assert_eq!(codes(&facts), ["column-not-created", "adopt-mismatch", "cut-key"]);
        let found = Problem::error("target-differs", "service ordering: Orders");
        let found = [found.fact("its column a is integer, not text; it has no column b")];
        let mismatch =
            |fact: &str| Problem::error("adopt-mismatch", "service ordering, table Orders").fact(fact);
        facts.foreseen = vec![
            mismatch("column a is integer, and the monolith's text does not fit into it"),
            mismatch("it has no column b"),
            mismatch("column c is NOT NULL, and the monolith's is not"),
        ];
        let left: Vec<Problem> = unsaid(&facts, &found).collect();
        assert_eq!(left, facts.foreseen[2..], "what is said of one column hides nothing of another");
    }
}
