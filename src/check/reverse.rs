//! Who reads what a service writes, once its slices are armed: the roles of its links must be able to stream from it.

use super::facts::{Facts, LinkName};
use crate::name::quote_ident;
use crate::problem::Problem;

/// `arm` gives the right by itself where a superuser runs it.
pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, _, database) in facts.planned_services() {
        let admin = database.role(LinkName::Admin);
        if admin.is_some_and(|role| role.superuser) {
            continue;
        }
        let links = [(LinkName::Admin, "make"), (LinkName::Apply, "read")];
        for (link, what) in links {
            let role = database.role(link).filter(|role| !role.replication && !role.superuser);
            problems.extend(role.map(|role| {
                Problem::warning("no-replication", format!("service {name}"))
                    .fact(format!("the {link} link's role {} may not use replication connections", role.name))
                    .consequence(format!(
                        "it could not {what} the reverse slot, so its slices could be mirrored and not armed"
                    ))
                    .next(format!("run as a superuser: ALTER ROLE {} REPLICATION;", quote_ident(&role.name)))
            }));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::Link;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    #[test]
    fn roles_of_a_service_must_be_able_to_stream_from_it() {
        let mut facts = clean();
        let Some(Link::Open(role)) = facts.service("ordering").links.get_mut(&LinkName::Apply) else {
            panic!()
        };
        role.replication = false;
        expect(
            &rule(&facts),
            Severity::Warning,
            "no-replication",
            "ALTER ROLE \"strangler_apply\" REPLICATION;",
        );
        let Some(Link::Open(role)) = facts.service("ordering").links.get_mut(&LinkName::Admin) else {
            panic!()
        };
        role.superuser = true;
        assert_eq!(rule(&facts), [], "arm does it");
    }
}
