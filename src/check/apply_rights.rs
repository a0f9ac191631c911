//! What the apply links need: to be the applier's role, and to apply without firing triggers.

use super::facts::{APPLY_ROLE, Facts, LinkName, Named};
use crate::name::quote_ident;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for Named { name, database, .. } in facts.databases() {
        let Some(role) = database.role(LinkName::Apply).filter(|role| !role.superuser) else { continue };
        if role.name != APPLY_ROLE {
            problems.push(
                Problem::error("wrong-apply-role", &name)
                    .fact(format!("the apply link logs in as {}", role.name))
                    .consequence(format!(
                        "the gates let only {APPLY_ROLE} through, so nothing could be applied"
                    ))
                    .next(format!("write {APPLY_ROLE} as the user of the plan's apply link")),
            );
        } else if !role.replica_role {
            let apply = quote_ident(APPLY_ROLE);
            let old = database.catalog.as_ref().is_some_and(|catalog| catalog.major() < 15);
            let next = if old {
                format!("run as a superuser: ALTER ROLE {apply} SET session_replication_role = replica;")
            } else {
                format!("run as a superuser: GRANT SET ON PARAMETER session_replication_role TO {apply};")
            };
            problems.push(
                Problem::error("no-replica-role", &name)
                    .fact(format!("{APPLY_ROLE} may not set session_replication_role"))
                    .consequence(
                        "triggers and foreign keys would fire a second time on rows that are applied",
                    )
                    .next(next),
            );
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::{Link, LinkRole};
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    fn applier(facts: &mut Facts) -> &mut LinkRole {
        let Some(Link::Open(role)) = facts.service("catalog").links.get_mut(&LinkName::Apply) else {
            panic!("no link")
        };
        role
    }

    #[test]
    fn the_applier_is_itself_and_may_pass_by_triggers() {
        let mut facts = clean();
        assert_eq!(rule(&facts), []);
        applier(&mut facts).replica_role = false;
        expect(
            &rule(&facts),
            Severity::Error,
            "no-replica-role",
            "GRANT SET ON PARAMETER session_replication_role",
        );
        facts.service_catalog("catalog").version_num = 140_010;
        expect(&rule(&facts), Severity::Error, "no-replica-role", "ALTER ROLE \"strangler_apply\" SET");
        applier(&mut facts).name = "someone".into();
        expect(&rule(&facts), Severity::Error, "wrong-apply-role", "logs in as someone");
        applier(&mut facts).superuser = true;
        assert_eq!(rule(&facts), []);
    }
}
