//! Roles that somebody must be able to log in as: LOGIN, and a password, which the tool never makes up.

use super::facts::{APPLY_ROLE, Database, Facts, LinkName, Role};
use crate::name::quote_ident;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, database) in facts.databases() {
        let app =
            facts.plan.services.get(name.trim_start_matches("service ")).map(|service| service.app.as_str());
        for role_name in app.into_iter().chain([APPLY_ROLE]) {
            if let Some(role) = database.roles.get(role_name) {
                problems.extend(missing(&name, database, role_name, role));
            }
        }
        let owner =
            facts.plan.services.get(name.trim_start_matches("service ")).map(|service| &service.owner);
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

fn missing(name: &str, database: &Database, role_name: &str, role: &Role) -> Option<Problem> {
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
    // An apply link that is open proves that no password is asked for.
    let proven =
        role_name == APPLY_ROLE && database.role(LinkName::Apply).is_some_and(|link| link.name == APPLY_ROLE);
    if proven {
        return None;
    }
    let problem = Problem::warning("no-password", name)
        .fact(format!("the role {role_name} has no password"))
        .consequence("it can log in only where the server asks for none, such as with certificates")
        .next(format!("in psql: \\password {quoted}"));
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
    fn an_owner_has_no_login() {
        let mut facts = clean();
        facts.service("ordering").roles.get_mut("ordering_owner").unwrap().login = true;
        expect(&rule(&facts), Severity::Warning, "owner-login", "ALTER ROLE \"ordering_owner\" NOLOGIN;");
    }
}
