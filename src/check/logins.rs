//! Roles that somebody must be able to log in as: LOGIN, CONNECT, and a password, which the tool never makes up.

use super::facts::{APPLY_ROLE, Database, Facts, LinkName, Named, Role};
use crate::name::quote_ident;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for Named { name, service, database } in facts.databases() {
        let service = service.and_then(|service| facts.plan.services.get(service));
        // An open apply link needs nothing more: it logs in as that role, or as a superuser who can become it.
        let apply = if database.role(LinkName::Apply).is_some() { None } else { Some(APPLY_ROLE) };
        for role_name in service.map(|service| service.app.as_str()).into_iter().chain(apply) {
            if let Some(role) = database.roles.get(role_name) {
                problems.extend(missing(&name, role_name, role));
                problems.extend(kept_out(&name, database, role_name, role));
            }
        }
        let owner = service.map(|service| &service.owner);
        if let Some(owner) = owner.filter(|owner| database.roles.get(*owner).is_some_and(|role| role.login)) {
            problems.push(
                Problem::warning("owner-login", &name)
                    .fact(format!("the owner role {owner} may log in"))
                    .consequence("whoever does can disable the gates on the tables that it owns")
                    .next(format!("run: ALTER ROLE {} NOLOGIN;", quote_ident(owner))),
            );
        }
    }
    problems
}

fn missing(name: &str, role_name: &str, role: &Role) -> Option<Problem> {
    let quoted = quote_ident(role_name);
    if !role.login {
        let problem = Problem::error("no-login", name)
            .fact(format!("the role {role_name} exists without LOGIN"))
            .consequence("nobody can log in as it")
            .next(format!("run: ALTER ROLE {quoted} LOGIN;"));
        return Some(problem);
    }
    if role.has_password != Some(false) {
        return None;
    }
    let problem = Problem::warning("no-password", name)
        .fact(format!("the role {role_name} has no password"))
        .consequence("it can log in only where the server asks for none, such as with certificates")
        .next(format!("in psql: \\password {quoted}"));
    Some(problem)
}

/// Who was let in by PUBLIC alone is kept out when that is revoked.
fn kept_out(name: &str, database: &Database, role_name: &str, role: &Role) -> Option<Problem> {
    let catalog = database.catalog.as_ref().filter(|_| role.login && !role.may_connect)?;
    let problem = Problem::warning("no-connect", name)
        .fact(format!("the role {role_name} may not connect to database {}", catalog.database))
        .consequence("whoever logs in as it is turned away")
        .next(format!(
            "run: GRANT CONNECT ON DATABASE {} TO {};",
            quote_ident(&catalog.database),
            quote_ident(role_name)
        ));
    Some(problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    #[test]
    fn roles_that_nobody_can_log_in_as_are_named() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        facts.service("ordering").roles.get_mut("ordering_app").unwrap().login = false;
        expect(&rule(&facts), Severity::Error, "no-login", "ALTER ROLE \"ordering_app\" LOGIN;");
        let mut facts = clean();
        facts.service("ordering").roles.get_mut("ordering_app").unwrap().has_password = Some(false);
        expect(&rule(&facts), Severity::Warning, "no-password", "\\password \"ordering_app\"");
        let mut facts = clean();
        facts.monolith.roles.get_mut(APPLY_ROLE).unwrap().has_password = Some(false);
        assert_eq!(rule(&facts), [], "its link is open");
        facts.monolith.links.remove(&LinkName::Apply);
        expect(&rule(&facts), Severity::Warning, "no-password", "strangler_apply");
    }

    #[test]
    fn roles_that_a_database_keeps_out_are_named() {
        let mut facts = clean();
        facts.service("ordering").roles.get_mut("ordering_app").unwrap().may_connect = false;
        let grant = "GRANT CONNECT ON DATABASE \"ordering\" TO \"ordering_app\";";
        expect(&rule(&facts), Severity::Warning, "no-connect", grant);
    }

    #[test]
    fn an_owner_has_no_login() {
        let mut facts = clean();
        facts.service("ordering").roles.get_mut("ordering_owner").unwrap().login = true;
        expect(&rule(&facts), Severity::Warning, "owner-login", "ALTER ROLE \"ordering_owner\" NOLOGIN;");
    }
}
