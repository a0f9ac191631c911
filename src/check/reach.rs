//! Databases that could not be reached or read.

use std::time::Duration;

use super::facts::{APPLY_ROLE, Facts, Link, LinkFailure, LinkName, Named};
use crate::problem::Problem;
use crate::words;

/// The code that makes the exit code say that a database could not be reached.
pub(super) const UNREACHABLE: &str = "database-unreachable";

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for Named { name, database, .. } in facts.databases() {
        for (link, state) in &database.links {
            let Link::Failed(failure) = state else { continue };
            if database.silent.is_some() && !failure.login_refused {
                continue;
            }
            // Before `provision` the role is not there yet, and whether it will get a password is not known here.
            let absent = *link == LinkName::Apply
                && failure.login_refused
                && database.server.is_some()
                && !database.roles.contains_key(APPLY_ROLE);
            problems.push(if absent { not_yet(&name) } else { failed(&name, *link, failure) });
        }
        if let Some(limit) = database.silent {
            // Whatever else is known of it is that its sessions ended.
            problems.push(silent(&name, limit));
            continue;
        }
        problems.extend(database.unread.iter().map(|words| {
            Problem::error("not-read", &name)
                .fact(format!("it was reached, and something could not be read: {words}"))
                .consequence("what depends on it was not checked")
                .next("follow what the message says, then run check again")
        }));
    }
    problems
}

fn not_yet(database: &str) -> Problem {
    Problem::note("apply-role-absent", database)
        .fact(format!("the role {APPLY_ROLE} does not exist there yet, so the apply link cannot log in"))
        .consequence("nothing can be applied there before it exists")
        .next("strangler provision creates it; the password comes from the apply link")
}

fn silent(database: &str, limit: Duration) -> Problem {
    Problem::error(UNREACHABLE, database)
        .fact(format!("it took the login, and then gave no answer within {}", words::seconds(limit.as_secs_f64())))
        .consequence("what depends on it was not checked")
        .next(
            "see that its processes are not frozen or starved, and that a proxy between lets their answers through; then run \
             check again",
        )
}

fn failed(database: &str, link: LinkName, failure: &LinkFailure) -> Problem {
    if failure.login_refused {
        return Problem::error("login-refused", database)
            .fact(format!("the server turned the {link} link away: {}", failure.words))
            .consequence("what this link is for was not checked and would not work")
            .next(
                "give the role LOGIN and a password (psql: \\password ROLE), or correct the link in the plan",
            );
    }
    Problem::error(UNREACHABLE, database)
        .fact(format!("the {link} link could not be opened: {}", failure.words))
        .consequence("what depends on it was not checked")
        .next("look at the link in the plan and at the server, then run check again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    fn failing(login_refused: bool) -> Facts {
        let mut facts = clean();
        let failure = LinkFailure { words: "no route".into(), login_refused };
        facts.service("catalog").links.insert(LinkName::Apply, Link::Failed(failure));
        facts
    }

    #[test]
    fn every_failed_link_is_a_problem() {
        assert_eq!(rule(&clean()), []);
        expect(
            &rule(&failing(false)),
            Severity::Error,
            "database-unreachable",
            "service catalog: the apply link",
        );
        expect(&rule(&failing(true)), Severity::Error, "login-refused", "no route");
        let mut unread = clean();
        unread.monolith.unread.push("a table stays locked".into());
        expect(&rule(&unread), Severity::Error, "not-read", "stays locked");
    }

    #[test]
    fn a_server_that_fell_silent_is_one_problem_whatever_broke_with_its_sessions() {
        let mut facts = failing(false);
        let service = facts.service("catalog");
        service.silent = Some(Duration::from_secs(60));
        service.unread.push("connection closed".into());
        expect(&rule(&facts), Severity::Error, "database-unreachable", "no answer within 1 min 0 s");
    }

    #[test]
    fn an_apply_role_that_provision_will_make_is_a_note() {
        let mut facts = failing(true);
        facts.service("catalog").roles.remove(APPLY_ROLE);
        expect(&rule(&facts), Severity::Note, "apply-role-absent", "provision creates it");
    }
}
