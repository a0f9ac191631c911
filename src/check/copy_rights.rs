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
            problems.push(
                Problem::error("row-security", format!("service {name}"))
                    .fact(format!("row level security applies to {} on {}", role.name, shown(&filtered)))
                    .consequence("rows that its policies hide could be neither written nor compared")
                    .next(format!("run as a superuser: ALTER ROLE {APPLY_ROLE} BYPASSRLS;")),
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
        assert_eq!(filtering("Products"), [], "that table goes to the other service");
        expect(&filtering("Orders"), Severity::Error, "row-security", "on Orders");
    }
}
