//! PostgreSQL 14 to 18, and no service older than the monolith.

use super::facts::{Facts, Named};
use crate::catalog::{Index, Table};
use crate::plan::Ddl;
use crate::problem::Problem;

/// The newest major version that the tool is tested on.
const NEWEST_MAJOR: u32 = 18;

/// Since when a primary key can be WITHOUT OVERLAPS (PostgreSQL 18 release notes).
const TEMPORAL_SINCE: u32 = 18;

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
                    .consequence("constraints that use something newer are left out there, and rows are copied as text, which is slower")
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
    problems.extend(temporal_keys(facts));
    problems
}

/// Keys that the service's server can't have. `provision` refuses them, too.
fn temporal_keys(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Some(monolith) = &facts.monolith.catalog else { return problems };
    for mapping in facts.mappings.values() {
        let made = facts.plan.services.get(&mapping.service).is_some_and(|one| one.ddl == Ddl::Create);
        let catalog = facts.services.get(&mapping.service).and_then(|database| database.catalog.as_ref());
        let Some(service) = catalog.filter(|catalog| made && catalog.major() < TEMPORAL_SINCE) else {
            continue;
        };
        for table in mapping.tables.iter().filter_map(|table| monolith.table(&table.source)) {
            let Some(index) = temporal_key(table) else { continue };
            problems.push(
                Problem::error("key-not-created", format!("key {} of {}", index.name, table.name))
                    .fact(format!(
                        "it is WITHOUT OVERLAPS, which came with PostgreSQL {TEMPORAL_SINCE}, and the server of \
                         service {} is PostgreSQL {}",
                        mapping.service,
                        service.major()
                    ))
                    .consequence("the service could not tell the table's rows apart")
                    .next("use a newer server for the service, or give the table another replica identity"),
            );
        }
    }
    problems
}

/// The index that tells rows apart, where it is WITHOUT OVERLAPS: only such ones are unique and exclusion at once.
fn temporal_key(table: &Table) -> Option<&Index> {
    let key = table.key_columns()?;
    let is_key = |index: &&Index| {
        let columns: Option<Vec<&str>> = index.columns.iter().map(Option::as_deref).collect();
        index.exclusion && table.can_identify(index) && columns.is_some_and(|columns| columns == key)
    };
    table.indexes.iter().find(is_key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::name::TableName;
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
        let orders = TableName::new("public", "Orders");
        facts.monolith_catalog().tables.get_mut(&orders).unwrap().indexes[0].exclusion = true;
        facts.monolith_catalog().version_num = 180_000;
        facts.service_catalog("ordering").version_num = 180_000;
        facts.service_catalog("catalog").version_num = 180_000;
        assert_eq!(rule(&facts), []);
        facts.service_catalog("ordering").version_num = 170_000;
        let found = rule(&facts);
        expect(
            &found[1..],
            Severity::Error,
            "key-not-created",
            "the server of service ordering is PostgreSQL 17",
        );
        let mut facts = clean();
        facts.monolith_catalog().settings.insert("in_hot_standby".into(), "on".into());
        expect(&rule(&facts), Severity::Error, "standby", "primary");
    }
}
