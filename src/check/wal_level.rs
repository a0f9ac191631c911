//! Logical decoding needs `wal_level = logical` on both sides: the monolith for the forward mirror, a service for
//! the reverse one.

use super::facts::{Facts, Named};
use crate::problem::{Problem, Severity};

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    facts
        .databases()
        .filter_map(|Named { name, service, database }| {
            let level = database.setting("wal_level").filter(|level| *level != "logical")?;
            let (severity, consequence) = if service.is_none() {
                (Severity::Error, "its changes can't be decoded, so nothing can be mirrored")
            } else {
                (Severity::Warning, "the reverse mirror can't be armed, so its slices can't flip")
            };
            let problem = Problem::new(severity, "wal-level", name)
                .fact(format!("wal_level is {level}"))
                .consequence(consequence)
                .next("run: ALTER SYSTEM SET wal_level = logical; and restart the server (managed: rds.logical_replication = 1, cloudsql.logical_decoding = on)");
            Some(problem)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};

    #[test]
    fn any_other_level_is_a_problem() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        facts.monolith_catalog().settings.insert("wal_level".into(), "replica".into());
        expect(&rule(&facts), Severity::Error, "wal-level", "wal_level is replica");
        let mut facts = clean();
        facts.service_catalog("ordering").settings.insert("wal_level".into(), "minimal".into());
        expect(&rule(&facts), Severity::Warning, "wal-level", "service ordering");
    }
}
