//! What `provision` would refuse or leave out, in its own words: it is asked for its design and nothing of that is done.

use std::collections::BTreeMap;

use super::facts::{Facts, LinkName};
use super::gather::Opened;
use crate::problem::Problem;
use crate::provision::{self, Databases, Login, Logins, ProvisionError};

/// What other rules say in words of their own, because they know more, or without a link of an administrator.
const SAID_ELSEWHERE: &[&str] = &[
    "apply-may-not-replicate",
    "extension-missing",
    "key-not-created",
    "mapping-changed",
    "may-not-create-roles",
    "no-connection",
    "no-schema-usage",
    "not-owner",
    "shared-database",
];

/// Asks `provision`, unless one of its links is not open: what it would say then is not about the plan.
pub(super) async fn ask(
    facts: &Facts,
    monolith: Opened,
    services: BTreeMap<String, Opened>,
) -> Result<Vec<Problem>, ProvisionError> {
    let services: Result<BTreeMap<_, _>, _> =
        services.into_iter().map(|(name, link)| link.map(|client| (name, client))).collect();
    let (Ok(monolith), Ok(services)) = (monolith, services) else { return Ok(Vec::new()) };
    let login = |name: &str| Login { user: name.to_owned(), password: None };
    let apply = |database: &super::Database| database.role(LinkName::Apply).map(|role| login(&role.name));
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
    Ok(provision::prepare(&facts.plan, &[], &databases, &logins).await?.problems)
}

/// The foreseen problems that are not among those already found.
pub(super) fn unsaid<'a>(facts: &'a Facts, found: &'a [Problem]) -> impl Iterator<Item = Problem> + 'a {
    let said = |problem: &Problem| {
        let table = problem.object.replace(", table ", ": ");
        SAID_ELSEWHERE.contains(&problem.code)
            || found.iter().any(|other| other.code == problem.code && other.object == problem.object)
            || problem.code == "adopt-mismatch"
                && found.iter().any(|other| other.code.starts_with("target-") && other.object == table)
    };
    facts.foreseen.iter().filter(move |problem| !said(problem)).cloned()
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
        let found = [Problem::error("target-differs", "service ordering: Orders")];
        let left: Vec<Problem> = unsaid(&facts, &found).collect();
        assert_eq!(left.iter().map(|one| one.code).collect::<Vec<_>>(), ["column-not-created"]);
    }
}
