//! What the admin links need: ownership of the moved tables, CREATE on their databases, and roles to be made.

use std::collections::BTreeMap;

use super::facts::{APPLY_ROLE, Database, Facts, LinkName, LinkRole, Named};
use super::read_rights::shown;
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for Named { name, service, database } in facts.databases() {
        let Some(role) = database.role(LinkName::Admin).filter(|role| !role.superuser) else { continue };
        if service.is_none() {
            problems.extend(ownership(facts, role));
        }
        if !role.create_in_database {
            let catalog = database.catalog.as_ref().map_or("…", |catalog| catalog.database.as_str());
            problems.push(
                Problem::error("no-create", &name)
                    .fact(format!(
                        "the admin link's role {} may not create schemas in database {catalog}",
                        role.name
                    ))
                    .consequence("provision can make neither the schema strangler nor a publication there")
                    .next(format!(
                        "run: GRANT CREATE ON DATABASE {} TO {};",
                        quote_ident(catalog),
                        quote_ident(&role.name)
                    )),
            );
        }
        let absent = absent_roles(facts, service, database);
        if !role.create_role && !absent.is_empty() {
            let make: Vec<String> = absent
                .iter()
                .map(|(role, login)| format!("CREATE ROLE {}{login};", quote_ident(role)))
                .collect();
            problems.push(
                Problem::error("no-create-role", &name)
                    .fact(format!(
                        "the admin link's role {} has no CREATEROLE, and roles are missing",
                        role.name
                    ))
                    .consequence("provision can't make them")
                    .next(format!("run as a superuser: {}", make.join(" "))),
            );
        }
    }
    problems
}

/// A publication and a gate need the owner of each table (PostgreSQL documentation, CREATE PUBLICATION).
fn ownership(facts: &Facts, role: &LinkRole) -> Option<Problem> {
    let mut foreign: BTreeMap<&str, Vec<TableName>> = BTreeMap::new();
    for table in facts.moved_tables().filter(|table| !table.can_own) {
        foreign.entry(&table.owner).or_default().push(table.name.clone());
    }
    if foreign.is_empty() {
        return None;
    }
    let facts: Vec<String> =
        foreign.iter().map(|(owner, tables)| format!("{owner} owns {}", shown(tables))).collect();
    let grants: Vec<String> = foreign
        .keys()
        .map(|owner| format!("GRANT {} TO {};", quote_ident(owner), quote_ident(&role.name)))
        .collect();
    let problem = Problem::error("not-owner", "monolith")
        .fact(format!(
            "the admin link's role {} is no member of the tables' owners: {}",
            role.name,
            facts.join("; ")
        ))
        .consequence("it can neither publish those tables nor put gates on them")
        .next(format!("run: {}", grants.join(" ")));
    Some(problem)
}

/// Roles that provision would have to make, with what they need.
fn absent_roles(facts: &Facts, service: Option<&str>, database: &Database) -> Vec<(String, &'static str)> {
    let mut needed = vec![(APPLY_ROLE.to_owned(), " LOGIN")];
    if let Some(service) = service.and_then(|name| facts.plan.services.get(name)) {
        needed.extend([(service.owner.clone(), ""), (service.app.clone(), " LOGIN")]);
    }
    needed.retain(|(role, _)| !database.roles.contains_key(role));
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::Link;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    fn admin<'a>(facts: &'a mut Facts, service: &str) -> &'a mut LinkRole {
        let Some(Link::Open(role)) = facts.service(service).links.get_mut(&LinkName::Admin) else {
            panic!("no link")
        };
        role
    }

    #[test]
    fn rights_that_provision_needs_are_named() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        facts.monolith_catalog().tables.get_mut(&name("Orders")).unwrap().can_own = false;
        expect(&rule(&facts), Severity::Error, "not-owner", "GRANT \"owner\" TO \"admin\";");
        let mut facts = clean();
        admin(&mut facts, "ordering").create_in_database = false;
        expect(
            &rule(&facts),
            Severity::Error,
            "no-create",
            "GRANT CREATE ON DATABASE \"ordering\" TO \"admin\";",
        );
    }

    #[test]
    fn roles_matter_only_while_they_are_missing() {
        let mut facts = clean();
        admin(&mut facts, "ordering").create_role = false;
        assert_eq!(rule(&facts), []);
        facts.service("ordering").roles.remove("ordering_owner");
        expect(&rule(&facts), Severity::Error, "no-create-role", "CREATE ROLE \"ordering_owner\";");
        admin(&mut facts, "ordering").superuser = true;
        assert_eq!(rule(&facts), []);
    }
}
