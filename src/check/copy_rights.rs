//! What the apply links need of tables that are there already: all of their rows.

use super::facts::{APPLY_ROLE, Facts, LinkName};
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
}
