//! Markers in the monolith's log: how the mirror and reconcile know that the stream has come to a place.

use super::facts::{Facts, LinkName};
use crate::name::quote_ident;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for link in [LinkName::Read, LinkName::Apply] {
        let Some(role) = facts.monolith.role(link).filter(|role| !role.silenced.is_empty()) else { continue };
        let functions: Vec<&str> = role.silenced.iter().map(String::as_str).collect();
        let problem = match link {
            LinkName::Apply => Problem::warning("no-marker", "monolith")
                .consequence("reconcile could not prove a difference, and its verdicts would be incomplete"),
            LinkName::Read | LinkName::Admin => Problem::error("no-marker", "monolith")
                .consequence("the mirror could not tell how far behind it is"),
        };
        problems.push(
            problem
                .fact(format!("the {link} link's role {} may not call {}", role.name, functions.join(", ")))
                .next(format!(
                    "run as a superuser: GRANT EXECUTE ON FUNCTION {} TO {};",
                    functions.join(", "),
                    quote_ident(&role.name)
                )),
        );
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
    fn a_role_that_may_leave_no_marks_is_told_with_the_grant() {
        assert_eq!(rule(&clean()), []);
        let silenced = |link| {
            let mut facts = clean();
            let Some(Link::Open(role)) = facts.monolith.links.get_mut(&link) else { panic!("no link") };
            role.silenced.insert("pg_logical_emit_message(boolean,text,text)".into());
            rule(&facts)
        };
        expect(
            &silenced(LinkName::Read),
            Severity::Error,
            "no-marker",
            "GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean,text,text) TO \"reader\";",
        );
        expect(&silenced(LinkName::Apply), Severity::Warning, "no-marker", "strangler_apply");
    }
}
