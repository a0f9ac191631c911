//! What the apply link needs on the monolith so that reconcile can prove a difference: to lock single rows. Provision
//! grants it; here is said what provision can't grant, and what was taken away since.

use std::collections::BTreeSet;

use super::facts::{APPLY_ROLE, Facts, LinkName, LinkRole};
use super::read_rights::shown;
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

const MEANS: &str =
    "reconcile could not lock rows there to prove that they differ, and its verdicts would be incomplete";

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(role) = facts.monolith.role(LinkName::Apply) else { return Vec::new() };
    if role.superuser || role.name != APPLY_ROLE {
        return Vec::new();
    }
    let mut problems = closed_schemas(facts, role);
    let provisioned = provisioned(facts);
    let revoked: Vec<TableName> = role
        .unlockable
        .iter()
        .filter(|table| provisioned.contains(table) && !role.closed_schemas.contains(table.place_schema()))
        .cloned()
        .collect();
    if !revoked.is_empty() {
        problems.push(
            Problem::warning("no-row-lock", "monolith")
                .fact(format!("{APPLY_ROLE} may not lock rows of {}", shown(&revoked)))
                .consequence(MEANS)
                .next(format!(
                    "strangler provision PLAN grants it; by hand, as the tables' owner: {}",
                    revoked.iter().map(|table| by_hand(facts, table)).collect::<Vec<_>>().join(" ")
                )),
        );
    }
    let filtered: Vec<TableName> =
        role.row_filtered.iter().filter(|table| facts.moves(table)).cloned().collect();
    if !filtered.is_empty() {
        problems.push(
            Problem::warning("row-security", "monolith")
                .fact(format!("row level security applies to {APPLY_ROLE} on {}", shown(&filtered)))
                .consequence(MEANS)
                .next(format!("run as a superuser: ALTER ROLE {APPLY_ROLE} BYPASSRLS;")),
        );
    }
    problems
}

/// One column is enough: see `provision`.
fn by_hand(facts: &Facts, table: &TableName) -> String {
    let mut mappings = facts.mappings.values().flat_map(|slice| &slice.tables);
    let mapping = mappings.find(|mapping| mapping.source == *table);
    let key = mapping.and_then(|mapping| mapping.key_columns().next());
    let column = key.map(|column| format!(" ({})", quote_ident(&column.source))).unwrap_or_default();
    format!("GRANT SELECT, UPDATE{column} ON {} TO {APPLY_ROLE};", table.sql())
}

/// Schemas of moved tables that the role may not use. Those that the admin link's role can't open either are told
/// before anything is provisioned.
fn closed_schemas(facts: &Facts, role: &LinkRole) -> Vec<Problem> {
    let admin = facts.monolith.role(LinkName::Admin);
    let provisioned = provisioned(facts);
    let schemas: BTreeSet<&str> = facts
        .moved
        .keys()
        .filter(|table| role.closed_schemas.contains(table.place_schema()))
        .filter(|table| {
            let grantable = admin.is_some_and(|admin| !admin.ungrantable.contains_key(table.place_schema()));
            !grantable || provisioned.contains(table)
        })
        .map(|table| table.place_schema())
        .collect();
    let problem = |schema: &str| {
        Problem::warning("no-schema-usage", format!("monolith, schema {schema}"))
            .fact(format!("{APPLY_ROLE} may not use it"))
            .consequence(MEANS)
            .next(format!(
                "run as its owner or a superuser: GRANT USAGE ON SCHEMA {} TO {APPLY_ROLE};",
                quote_ident(schema)
            ))
    };
    schemas.into_iter().map(problem).collect()
}

/// The moved tables to which provision has already come.
fn provisioned(facts: &Facts) -> BTreeSet<&TableName> {
    let sides = facts.monolith.whereabouts.iter().flat_map(|found| &found.sides);
    let ours = sides.filter(|side| !side.of_service && side.plan == facts.plan.name);
    let slices: BTreeSet<&str> = ours.map(|side| side.slice.as_str()).collect();
    let tables = facts.moved.iter();
    tables
        .filter(|(_, of)| of.iter().any(|slice| slices.contains(slice.as_str())))
        .map(|(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::Link;
    use crate::check::fixture::{clean, expect};
    use crate::journal::whereabouts::Side;
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    fn applier(facts: &mut Facts) -> &mut LinkRole {
        let Some(Link::Open(role)) = facts.monolith.links.get_mut(&LinkName::Apply) else {
            panic!("no link")
        };
        role
    }

    fn admin(facts: &mut Facts) -> &mut LinkRole {
        let Some(Link::Open(role)) = facts.monolith.links.get_mut(&LinkName::Admin) else {
            panic!("no link")
        };
        role
    }

    fn provisioned(facts: &mut Facts, slice: &str) {
        let side = Side {
            slice: slice.into(),
            plan: facts.plan.name.clone(),
            service: slice.into(),
            of_service: false,
        };
        facts.monolith.whereabouts.as_mut().unwrap().sides.push(side);
    }

    #[test]
    fn before_provision_a_right_that_it_will_grant_is_no_problem_and_afterwards_its_absence_is() {
        let mut facts = clean();
        applier(&mut facts).unlockable = [name("Orders"), name("Products"), name("Elsewhere")].into();
        assert_eq!(rule(&facts), []);
        provisioned(&mut facts, "ordering");
        expect(
            &rule(&facts),
            Severity::Warning,
            "no-row-lock",
            "GRANT SELECT, UPDATE (\"Id\") ON \"public\".\"Orders\" TO strangler_apply;",
        );
        applier(&mut facts).superuser = true;
        assert_eq!(rule(&facts), []);
    }

    #[test]
    fn a_schema_that_provision_can_not_open_is_told_beforehand() {
        let mut facts = clean();
        applier(&mut facts).closed_schemas.insert("public".into());
        assert_eq!(rule(&facts), [], "provision will grant it");
        admin(&mut facts).ungrantable.insert("public".into(), "somebody".into());
        expect(
            &rule(&facts),
            Severity::Warning,
            "no-schema-usage",
            "GRANT USAGE ON SCHEMA \"public\" TO strangler_apply;",
        );
        applier(&mut facts).closed_schemas = ["elsewhere".into()].into();
        assert_eq!(rule(&facts), []);
    }

    #[test]
    fn row_security_keeps_it_from_locking() {
        let mut facts = clean();
        applier(&mut facts).row_filtered = [name("Elsewhere")].into();
        assert_eq!(rule(&facts), []);
        applier(&mut facts).row_filtered = [name("Orders")].into();
        expect(&rule(&facts), Severity::Warning, "row-security", "ALTER ROLE strangler_apply BYPASSRLS;");
    }
}
