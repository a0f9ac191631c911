//! What the apply links need of tables that are there already: all of their rows, and the rights to write them.

use super::facts::{APPLY_ROLE, Facts, LinkName, LinkRole};
use super::read_rights::shown;
use crate::name::TableName;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, database) in &facts.services {
        let Some(role) = database.role(LinkName::Apply) else { continue };
        let targets = facts.mappings.values().filter(|slice| slice.service == *name);
        let targets = targets.flat_map(|slice| slice.tables.iter().map(|table| &table.target));
        let filtered: Vec<TableName> =
            targets.filter(|table| role.row_filtered.contains(table)).cloned().collect();
        if !filtered.is_empty() {
            let there = database.roles.contains_key(APPLY_ROLE);
            let spare = if there {
                "ALTER ROLE strangler_apply BYPASSRLS"
            } else {
                "CREATE ROLE strangler_apply LOGIN BYPASSRLS"
            };
            problems.push(
                Problem::error("row-security", format!("service {name}"))
                    .fact(format!("row level security applies to {APPLY_ROLE} on {}", shown(&filtered)))
                    .consequence("rows that its policies hide could be neither written nor compared")
                    .next(format!("run as a superuser: {spare};")),
            );
        }
        problems.extend(lacking(facts, name, role));
    }
    problems
}

/// Rights that somebody took away. Before a slice is provisioned they are still to be granted.
fn lacking(facts: &Facts, service: &str, role: &LinkRole) -> Vec<Problem> {
    let provisioned = facts.services.get(service).and_then(|database| database.server.as_ref());
    let of_service = facts.mappings.iter().filter(|(slice, mapping)| {
        mapping.service == service && provisioned.is_some_and(|server| server.provisioned.contains(*slice))
    });
    let mut problems = Vec::new();
    for (slice, mapping) in of_service {
        for table in &mapping.tables {
            let Some(privileges) = role.lacking.get(&table.target) else { continue };
            let privileges = privileges.join(", ");
            problems.push(
                Problem::error("no-apply-rights", format!("service {service}: {}", table.target))
                    .fact(format!("{APPLY_ROLE} may not {privileges} there"))
                    .consequence("the mirror stops at the first row that takes it")
                    .next(format!(
                        "run in the service: GRANT {privileges} ON {} TO {APPLY_ROLE}; or strangler provision PLAN --slice {slice}",
                        table.target.sql()
                    )),
            );
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::Link;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    #[test]
    fn row_security_of_a_target_is_told_and_of_other_tables_is_not() {
        let filtering = |table: &str| {
            let mut facts = clean();
            let links = &mut facts.service("ordering").links;
            let Some(Link::Open(role)) = links.get_mut(&LinkName::Apply) else { panic!("no link") };
            role.row_filtered.insert(name(table));
            rule(&facts)
        };
        let mut facts = clean();
        facts.service("ordering").roles.remove(APPLY_ROLE);
        let Some(Link::Open(role)) = facts.service("ordering").links.get_mut(&LinkName::Apply) else {
            panic!("no link")
        };
        role.row_filtered.insert(name("Orders"));
        expect(
            &rule(&facts),
            Severity::Error,
            "row-security",
            "CREATE ROLE strangler_apply LOGIN BYPASSRLS;",
        );
        assert_eq!(filtering("Products"), [], "that table goes to the other service");
        expect(&filtering("Orders"), Severity::Error, "row-security", "on Orders");
    }

    #[test]
    fn a_right_that_was_taken_away_is_told_of_a_slice_that_is_provisioned() {
        let mut facts = clean();
        let ordering = facts.service("ordering");
        let Some(Link::Open(role)) = ordering.links.get_mut(&LinkName::Apply) else { panic!("no link") };
        role.lacking.insert(name("Orders"), vec!["INSERT".into(), "TRUNCATE".into()]);
        assert_eq!(rule(&facts), [], "provision grants it");
        facts.service("ordering").server.as_mut().unwrap().provisioned.insert("ordering".into());
        let grant = "GRANT INSERT, TRUNCATE ON \"public\".\"Orders\" TO strangler_apply";
        expect(&rule(&facts), Severity::Error, "no-apply-rights", grant);
    }
}
