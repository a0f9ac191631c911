//! The roles of applications: on the monolith they should not own what moves; a service's should reach only its own
//! database.

use std::collections::BTreeSet;

use super::facts::{APPLY_ROLE, Database, Facts, LinkName, Role};
use super::read_rights::shown;
use crate::catalog::Table;
use crate::name::{TableName, quote_ident, quote_list};
use crate::plan::Service;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for name in &facts.plan.monolith.app_roles {
        match facts.monolith.roles.get(name) {
            Some(role) => problems.extend(powerful(facts, name, role)),
            None if facts.monolith.server.is_some() => problems.push(
                Problem::warning("app-role-absent", "monolith")
                    .fact(format!("app_roles names {name}, and the server has no such role"))
                    .consequence("its use of the tables can't be watched, nor its rights revoked in the end")
                    .next("correct monolith.app_roles in the plan"),
            ),
            None => {}
        }
    }
    for (name, service, database) in facts.planned_services() {
        if database
            .roles
            .get(&service.app)
            .is_some_and(|role| role.superuser || role.member_of.contains(&service.owner))
        {
            problems.push(
                Problem::warning("app-role-powerful", format!("service {name}"))
                    .fact(format!(
                        "the application role {} is a superuser or a member of {}",
                        service.app, service.owner
                    ))
                    .consequence("it could disable the gates that fence it")
                    .next(format!(
                        "run: ALTER ROLE {app} NOSUPERUSER; REVOKE {} FROM {app};",
                        quote_ident(&service.owner),
                        app = quote_ident(&service.app)
                    )),
            );
        }
        problems.extend(owns_in_service(facts, name, (service, database)));
        problems.extend(reaches(facts, name, &service.app));
    }
    problems
}

fn powerful(facts: &Facts, name: &str, role: &Role) -> Option<Problem> {
    let quoted = quote_ident(name);
    if role.superuser {
        let problem = Problem::warning("app-role-powerful", "monolith")
            .fact(format!("the application role {name} is a superuser"))
            .consequence("it could disable the gates that fence it")
            .next(format!("run: ALTER ROLE {quoted} NOSUPERUSER; and grant it what it needs"));
        return Some(problem);
    }
    let owned: Vec<&Table> = facts
        .moved_tables()
        .filter(|table| table.owner == name || role.member_of.contains(&table.owner))
        .collect();
    let names: Vec<TableName> = owned.iter().map(|table| table.name.clone()).collect();
    if names.is_empty() {
        return None;
    }
    let problem = Problem::warning("app-role-owns", "monolith")
        .fact(format!("the application role {name} owns, or is a member of the owner of, {}", shown(&names)))
        .consequence("an owner can disable a gate, and migrations run under it can change tables while they are mirrored")
        .next(format!(
            "give the tables to a role without login: ALTER TABLE … OWNER TO …; GRANT SELECT, INSERT, UPDATE, DELETE ON … TO {quoted};"
        ));
    Some(problem)
}

/// Tables that are there already may belong to another role than the plan's owner.
fn owns_in_service(facts: &Facts, name: &str, (service, database): (&Service, &Database)) -> Option<Problem> {
    let role = database.roles.get(&service.app).filter(|role| !role.superuser)?;
    let catalog = database.catalog.as_ref()?;
    let slices = facts.mappings.values().filter(|slice| slice.service == name);
    let there = slices.flat_map(|slice| &slice.tables).filter_map(|table| catalog.table(&table.target));
    let owned = |table: &&Table| {
        table.owner == service.app || table.owner != service.owner && role.member_of.contains(&table.owner)
    };
    let names: Vec<TableName> = there.filter(owned).map(|table| table.name.clone()).collect();
    if names.is_empty() {
        return None;
    }
    let alter = names
        .iter()
        .map(|table| format!("ALTER TABLE {} OWNER TO {};", table.sql(), quote_ident(&service.owner)));
    let problem = Problem::warning("app-role-owns", format!("service {name}"))
        .fact(format!(
            "the application role {} owns, or is a member of the owner of, {}",
            service.app,
            shown(&names)
        ))
        .consequence("an owner can disable the gate that fences it, and triggers and columns can change under the mirror")
        .next(format!(
            "give the tables to the plan's owner, by which the application keeps the rights that provision grants: run in that \
             database as a superuser: {}",
            alter.collect::<Vec<_>>().join(" ")
        ));
    Some(problem)
}

/// Each service's role belongs in its own database only. PUBLIC may connect everywhere unless that is revoked
/// (PostgreSQL documentation, section 5.8).
fn reaches<'a>(facts: &'a Facts, own: &'a str, app: &'a str) -> impl Iterator<Item = Problem> + 'a {
    facts.planned_services().filter(move |(name, other, _)| *name != own && other.app != app).filter_map(
        move |(name, other, database)| {
            let role =
                database.roles.get(app).filter(|role| role.login && role.may_connect && !role.superuser)?;
            let catalog = database.catalog.as_ref()?;
            let db = quote_ident(&catalog.database);
            let from = if role.member_of.contains(&other.app) {
                quote_ident(&other.app)
            } else {
                "PUBLIC".to_owned()
            };
            let kept = keepers(&other.app, database);
            let grant = if kept.is_empty() {
                String::new()
            } else {
                format!("GRANT CONNECT ON DATABASE {db} TO {kept}; ")
            };
            let problem = Problem::warning("app-role-reaches", format!("service {name}"))
                .fact(format!(
                    "the application role {app} of service {own} may connect to database {}",
                    catalog.database
                ))
                .consequence("one service could use another's database directly")
                .next(format!(
                    "run: {grant}REVOKE CONNECT ON DATABASE {db} FROM {from}, {};",
                    quote_ident(app)
                ));
            Some(problem)
        },
    )
}

/// Who must still be able to connect when PUBLIC may no longer: the database's own application and the roles of its
/// links. A GRANT to a role that is not there would fail, so those that `provision` will make are left out.
fn keepers(app: &str, database: &Database) -> String {
    let there = [app, APPLY_ROLE].into_iter().filter(|name| database.roles.contains_key(*name));
    let links = [LinkName::Admin, LinkName::Apply].into_iter().filter_map(|link| database.role(link));
    let links = links.filter(|role| !role.superuser).map(|role| role.name.as_str());
    let names: BTreeSet<&str> = there.chain(links).collect();
    quote_list(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::{Link, LinkRole};
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    #[test]
    fn application_roles_that_could_lift_the_gates_are_named() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        facts.monolith_catalog().tables.get_mut(&name("Orders")).unwrap().owner = "retail_app".into();
        expect(&rule(&facts), Severity::Warning, "app-role-owns", "Orders");
        let mut facts = clean();
        facts.monolith.roles.get_mut("retail_app").unwrap().member_of.insert("owner".into());
        expect(&rule(&facts), Severity::Warning, "app-role-owns", "OrderLines, Orders, Products");
        let mut facts = clean();
        facts.monolith.roles.get_mut("retail_app").unwrap().superuser = true;
        expect(&rule(&facts), Severity::Warning, "app-role-powerful", "NOSUPERUSER");
        let mut facts = clean();
        facts
            .service("catalog")
            .roles
            .get_mut("catalog_app")
            .unwrap()
            .member_of
            .insert("catalog_owner".into());
        expect(
            &rule(&facts),
            Severity::Warning,
            "app-role-powerful",
            "REVOKE \"catalog_owner\" FROM \"catalog_app\";",
        );
        let mut facts = clean();
        let mut adopted = facts.monolith_catalog().table(&name("Orders")).unwrap().clone();
        adopted.owner = "ordering_app".into();
        facts.service_catalog("ordering").tables.insert(name("Orders"), adopted);
        let given = "ALTER TABLE \"public\".\"Orders\" OWNER TO \"ordering_owner\";";
        expect(&rule(&facts), Severity::Warning, "app-role-owns", given);
        let mut facts = clean();
        facts.monolith.roles.clear();
        expect(&rule(&facts), Severity::Warning, "app-role-absent", "retail_app");
    }

    #[test]
    fn a_role_that_reaches_another_service_is_named() {
        let mut facts = clean();
        let role = Role { login: true, may_connect: true, ..Role::default() };
        facts.service("catalog").roles.insert("ordering_app".into(), role);
        expect(
            &rule(&facts),
            Severity::Warning,
            "app-role-reaches",
            "REVOKE CONNECT ON DATABASE \"catalog\" FROM PUBLIC",
        );
        facts.service("catalog").roles.remove("catalog_app");
        let admin = LinkRole { name: "deploy".into(), ..LinkRole::default() };
        facts.service("catalog").links.insert(LinkName::Admin, Link::Open(admin));
        expect(
            &rule(&facts),
            Severity::Warning,
            "app-role-reaches",
            "run: GRANT CONNECT ON DATABASE \"catalog\" TO \"deploy\", \"strangler_apply\"; REVOKE",
        );
        facts.service("catalog").roles.get_mut("ordering_app").unwrap().may_connect = false;
        assert_eq!(rule(&facts), []);
    }
}
