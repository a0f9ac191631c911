//! PostgreSQL 14 to 18, and no service older than the monolith.

use super::facts::{Facts, Named};
use crate::problem::Problem;

/// The newest major version that the tool is tested on.
const NEWEST_MAJOR: u32 = 18;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let monolith = facts.monolith.catalog.as_ref().map(|catalog| catalog.major());
    for Named { name, database, .. } in facts.databases() {
        let Some(catalog) = &database.catalog else { continue };
        let major = catalog.major();
        if major > NEWEST_MAJOR {
            problems.push(
                Problem::warning("version-new", &name)
                    .fact(format!("its server is PostgreSQL {major}; {NEWEST_MAJOR} is the newest that this tool is tested on"))
                    .consequence("its catalogs or its stream may hold what is not understood")
                    .next("use a release of this tool that names this version"),
            );
        }
        if let Some(monolith) = monolith.filter(|monolith| major < *monolith) {
            problems.push(
                Problem::warning("version-older", &name)
                    .fact(format!("its server is PostgreSQL {major}, the monolith's is {monolith}"))
                    .consequence("definitions that use something newer can't be created there, and rows are copied as text, which is slower")
                    .next(format!("use PostgreSQL {monolith} or newer for the service")),
            );
        }
        if database.setting("in_hot_standby") == Some("on") {
            problems.push(
                Problem::error("standby", &name)
                    .fact("the server is a standby")
                    .consequence("nothing can be written there, and rounds can't be taken from its snapshots")
                    .next("let the plan's links lead to the primary"),
            );
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    #[test]
    fn versions_that_do_not_fit_are_named() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        facts.service_catalog("ordering").version_num = 140_023;
        expect(&rule(&facts), Severity::Warning, "version-older", "PostgreSQL 14, the monolith's is 15");
        let mut facts = clean();
        facts.service_catalog("ordering").version_num = 190_000;
        expect(&rule(&facts), Severity::Warning, "version-new", "PostgreSQL 19");
        let mut facts = clean();
        facts.monolith_catalog().settings.insert("in_hot_standby".into(), "on".into());
        expect(&rule(&facts), Severity::Error, "standby", "primary");
    }
}
