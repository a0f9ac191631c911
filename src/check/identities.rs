//! Every service needs a database of its own, and none of them is the monolith.

use super::facts::{Database, Facts};
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let services: Vec<(&String, &Database)> = facts.services.iter().collect();
    for (index, (name, database)) in services.iter().enumerate() {
        if same(database, &facts.monolith) {
            problems.push(
                Problem::error("service-is-monolith", format!("service {name}"))
                    .fact("its link leads to the monolith's own database")
                    .consequence("tables would be mirrored onto themselves")
                    .next(
                        "correct the service's link in the plan; another database of the same server is fine",
                    ),
            );
        }
        for (other, other_database) in services.iter().skip(index + 1) {
            if same(database, other_database) {
                problems.push(
                    Problem::error("shared-database", format!("service {name}, service {other}"))
                        .fact("both links lead to one database")
                        .consequence("each service must be the only one to own its database; their gates would meet")
                        .next("give each service a database of its own (CREATE DATABASE …), or make them one service"),
                );
            }
        }
    }
    problems
}

/// Clusters copied from one template share a system identifier, so the running server's start time is compared too.
fn same(one: &Database, other: &Database) -> bool {
    let place = |database: &Database| {
        let identity = &database.catalog.as_ref()?.identity;
        Some((
            database.server.as_ref()?.instance.clone(),
            identity.system_identifier.clone(),
            identity.database_oid,
        ))
    };
    place(one).is_some() && place(one) == place(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    fn moved_to(facts: &mut Facts, service: &str, instance: &str, oid: u32) {
        facts.service(service).server.as_mut().unwrap().instance = instance.into();
        facts.service_catalog(service).identity.database_oid = oid;
    }

    #[test]
    fn databases_are_told_apart_by_server_and_oid() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        moved_to(&mut facts, "ordering", "monolith", 5);
        expect(&rule(&facts), Severity::Error, "service-is-monolith", "service ordering");
        let mut facts = clean();
        moved_to(&mut facts, "ordering", "shared", 9);
        moved_to(&mut facts, "catalog", "shared", 9);
        expect(&rule(&facts), Severity::Error, "shared-database", "service catalog, service ordering");
        moved_to(&mut facts, "catalog", "shared", 10);
        assert_eq!(rule(&facts), []);
        moved_to(&mut facts, "catalog", "template copy", 9);
        assert_eq!(rule(&facts), [], "two servers copied from one template");
    }
}
