//! Every link leads where the plan says: every service has a database of its own, none of them is the monolith, and
//! none is another's.

use std::collections::BTreeSet;

use super::facts::{Database, Facts, LinkName, Named};
use crate::journal::whereabouts::{self, Astray, Route};
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems: Vec<Problem> = astray(facts).iter().map(Astray::problem).collect();
    let services: Vec<(&String, &Database)> = facts.services.iter().collect();
    for (index, (name, database)) in services.iter().enumerate() {
        for (other, other_database) in services.iter().skip(index + 1) {
            if place(database).is_some() && place(database) == place(other_database) {
                problems.push(
                    Problem::error("shared-database", format!("service {name}, service {other}"))
                        .fact("both links lead to one database")
                        .consequence("each service must be the only one to own its database; their gates would meet")
                        .next("give each service a database of its own (CREATE DATABASE …), or make them one service"),
                );
            }
        }
    }
    problems.extend(facts.databases().flat_map(apart));
    problems
}

/// The monolith's link leads to a service's database, so what the other rules see is not the monolith.
pub(super) fn monolith_is_lost(facts: &Facts) -> bool {
    let sides = facts.monolith.whereabouts.iter().flat_map(|found| &found.sides);
    sides.into_iter().any(|side| side.plan == facts.plan.name && side.of_service)
}

fn astray(facts: &Facts) -> BTreeSet<Astray> {
    let monolith = facts.monolith.whereabouts.as_ref();
    let of_slice = |(slice, planned): (&String, &crate::plan::Slice)| {
        let route = Route { plan: &facts.plan.name, slice, service: &planned.service };
        let there = facts.services.get(&planned.service).and_then(|database| database.whereabouts.as_ref());
        whereabouts::astray(route, monolith, there)
    };
    facts.plan.slices.iter().flat_map(of_slice).collect()
}

fn place(database: &Database) -> Option<&str> {
    database.whereabouts.as_ref().map(|found| found.place.as_str())
}

/// Links of one database that lead to another one than its admin link.
fn apart(of: Named<'_>) -> Vec<Problem> {
    let Named { name, database, .. } = of;
    let Some(admin) = database.role(LinkName::Admin) else { return Vec::new() };
    let others = [LinkName::Read, LinkName::Apply].into_iter();
    let others = others.filter(|link| database.role(*link).is_some_and(|role| role.place != admin.place));
    others
        .map(|link| {
            Problem::error("links-apart", &name)
                .fact(format!("its {link} link leads to another database than its admin link"))
                .consequence("what one of them makes ready would not be what the other one uses")
                .next("correct the links in the plan, or the variables that hold them; then: strangler check PLAN")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::Link;
    use crate::check::fixture::{clean, expect};
    use crate::journal::whereabouts::{Side, Whereabouts};
    use crate::problem::Severity;

    fn moved_to(facts: &mut Facts, service: &str, place: &str) {
        facts.service(service).whereabouts.as_mut().unwrap().place = place.into();
    }

    fn provisioned(database: &mut Database, slice: &str, of_service: bool) {
        let (slice, plan, service) = (slice.to_owned(), "retail".to_owned(), slice.to_owned());
        let sides = &mut database.whereabouts.as_mut().unwrap().sides;
        sides.push(Side { slice, plan, service, of_service });
    }

    #[test]
    fn databases_are_told_apart_by_where_the_links_lead() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        moved_to(&mut facts, "ordering", "monolith");
        expect(&rule(&facts), Severity::Error, "service-is-monolith", "both lead to the same database");
        let mut facts = clean();
        moved_to(&mut facts, "ordering", "shared");
        moved_to(&mut facts, "catalog", "shared");
        expect(&rule(&facts), Severity::Error, "shared-database", "service catalog, service ordering");
        facts.service("catalog").whereabouts = None;
        assert_eq!(rule(&facts), []);
    }

    #[test]
    fn links_that_were_swapped_are_told_by_whose_databases_they_lead_to() {
        let mut facts = clean();
        provisioned(facts.service("catalog"), "ordering", true);
        expect(&rule(&facts), Severity::Error, "other-service", "the database of service ordering");
        let mut facts = clean();
        assert!(!monolith_is_lost(&facts));
        provisioned(&mut facts.monolith, "ordering", true);
        assert!(monolith_is_lost(&facts));
        expect(&rule(&facts), Severity::Error, "monolith-is-service", "the database of service ordering");
        facts.monolith.whereabouts = Some(Whereabouts::default());
        provisioned(facts.service("catalog"), "catalog", false);
        expect(&rule(&facts), Severity::Error, "service-is-monolith", "which is the monolith");
    }

    #[test]
    fn the_links_of_one_database_lead_to_one_database() {
        let mut facts = clean();
        let Some(Link::Open(reader)) = facts.monolith.links.get_mut(&LinkName::Read) else {
            panic!("no link")
        };
        reader.place = "elsewhere".into();
        expect(&rule(&facts), Severity::Error, "links-apart", "its read link leads to another database");
    }
}
