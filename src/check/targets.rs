//! What already stands where the plan puts its tables.

use super::facts::{Facts, Server};
use crate::catalog::{Catalog, Column, Table, TableKind};
use crate::mapping::{ColumnMapping, TableMapping, adopted, collated, keyed};
use crate::plan::Ddl;
use crate::problem::{Problem, bring_back};
use crate::provision::{held_by_another, renamed};

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (slice, mapping) in &facts.mappings {
        let Some(service) = facts.plan.services.get(&mapping.service) else { continue };
        let Some(database) = facts.services.get(&mapping.service) else { continue };
        let (Some(catalog), Some(server)) = (&database.catalog, &database.server) else { continue };
        let provisioned = server.provisioned.contains(slice);
        for table in &mapping.tables {
            let name = format!("service {}: {}", mapping.service, table.target);
            match (catalog.table(&table.target), service.ddl) {
                (None, Ddl::Create) => {}
                (None, Ddl::Adopt) => problems.push(
                    Problem::error("target-absent", name)
                        .fact("the plan adopts this table and the service does not have it")
                        .consequence("there is nothing to mirror into")
                        .next("run the service's own migrations, or write `ddl: create`"),
                ),
                (Some(target), ddl) => {
                    let begun =
                        database.whereabouts.as_ref().is_some_and(|place| place.begun.contains_key(slice));
                    let monolith = facts.monolith.catalog.as_ref();
                    let source = monolith.and_then(|one| one.table(&table.source));
                    let misfit = |wanted: &ColumnMapping, present: &Column| {
                        let origin = source.and_then(|source| source.column(&wanted.source));
                        let fits = bare(&present.type_sql) == bare(&wanted.type_sql)
                            || ddl == Ddl::Adopt
                                && monolith.is_some_and(|monolith| {
                                    adopted::fits((monolith, catalog), (wanted, origin), present)
                                });
                        (!fits).then(|| {
                            let labels = monolith.zip(origin).and_then(|(monolith, origin)| {
                                adopted::types_apart((monolith, catalog), (origin, present))
                            });
                            labels.map_or_else(String::new, |misfit| format!(": {}", misfit.fact))
                        })
                    };
                    let remedy = remedy(ddl, begun.then_some(slice));
                    problems.extend(differences(&name, (table, target), &misfit, &remedy));
                    problems.extend(misfits(&name, table, source, (catalog, target)));
                    let published = database
                        .holdings
                        .iter()
                        .any(|one| !one.gated && one.slice == *slice && one.table == table.target);
                    if published {
                        problems.extend(unidentified((catalog, table), &mapping.service, slice));
                    }
                    if !provisioned {
                        let holdings = &database.holdings;
                        // The rows of a slice under another name are its own.
                        problems.extend(renamed((&facts.plan, slice), &table.target, holdings).or_else(
                            || {
                                let held = held_by_another(slice, &table.target, holdings);
                                not_empty(&name, table, server, held)
                            },
                        ));
                    }
                }
            }
        }
    }
    let collated = facts.collated.iter();
    problems.extend(collated.map(|(service, misfit)| collated::problem(service, misfit.clone())));
    problems
}

/// What the way back publishes and can't identify rows of, the table or partitions of it.
fn unidentified((catalog, table): (&Catalog, &TableMapping), service: &str, slice: &str) -> Option<Problem> {
    let lacking = crate::arm::unidentified(catalog, table);
    let names: Vec<String> = lacking.iter().map(|table| table.name.to_string()).collect();
    (!names.is_empty()).then(|| {
        Problem::error("no-replica-identity", format!("service {service}"))
            .fact(format!(
                "published and without a replica identity that holds the key: {}",
                names.join(", ")
            ))
            .consequence("every UPDATE and DELETE of the application would fail there, or not come back")
            .next(format!("strangler arm PLAN --slice {slice}"))
    })
}

/// What makes mirrored rows others than the monolith's, though each column takes its value.
fn misfits(
    name: &str,
    table: &TableMapping,
    source: Option<&Table>,
    (catalog, target): (&Catalog, &Table),
) -> Vec<Problem> {
    let problem = |code, misfit: adopted::Misfit| {
        Problem::error(code, name)
            .fact(misfit.fact)
            .consequence("its rows would not be what the monolith's are")
            .next(misfit.next)
    };
    let generated = source.map(|source| adopted::generated_apart(table, source, target)).unwrap_or_default();
    let mut problems: Vec<Problem> =
        generated.into_iter().map(|misfit| problem("generated-differs", misfit)).collect();
    let absent = adopted::generated_absent(table, target).into_iter().map(|misfit| {
        Problem::warning("generated-absent", name)
            .fact(misfit.fact)
            .consequence(
                "there is nothing to compare it with, so that no comparison of the table is complete",
            )
            .next(misfit.next)
    });
    problems.extend(absent);
    let triggers = adopted::loud_triggers(catalog, &target.name);
    problems.extend(triggers.into_iter().map(|misfit| problem("target-trigger", misfit)));
    let rules = adopted::loud_rules(catalog, &target.name);
    problems.extend(rules.into_iter().map(|misfit| problem("target-rule", misfit)));
    problems
}

/// A table that the mirror has not filled must be empty, or its rows would meet those that are copied.
/// `held` says whose it is and what to do, where it is another slice's.
fn not_empty(
    name: &str,
    table: &TableMapping,
    server: &Server,
    held: Option<(String, String)>,
) -> Option<Problem> {
    if server.filled.contains(&table.target) {
        let (fact, next) = held.map_or_else(
            || {
                let next = format!("look at them; when they can go: TRUNCATE {};", table.target.sql());
                ("the table holds rows, and they are not the mirror's".to_owned(), next)
            },
            |(whose, next)| (format!("the table holds rows, and it {whose}"), next),
        );
        let problem = Problem::error("target-not-empty", name)
            .fact(fact)
            .consequence("rows that are copied would collide with them, or stand beside them")
            .next(next);
        return Some(problem);
    }
    server.closed.contains(&table.target).then(|| {
        Problem::error("target-not-readable", name)
            .fact("the admin link's role may not look into the table")
            .consequence("whether it is empty is not known")
            .next(format!("run: GRANT SELECT ON {} TO the role of the admin link", table.target.sql()))
    })
}

/// What makes plan and table agree. A table of a slice that is mirrored holds rows that would not come again.
fn remedy(ddl: Ddl, begun: Option<&String>) -> String {
    match (begun, ddl) {
        (Some(slice), _) => {
            format!("put the table back as it was, if somebody changed it; else {}", bring_back(slice))
        }
        (None, Ddl::Create) => {
            "drop or rename the table, so that provision makes it, or write `to` in the plan".to_owned()
        }
        (None, Ddl::Adopt) => {
            "change the service's migrations, or the plan's columns, until both agree".to_owned()
        }
    }
}

fn differences(
    name: &str,
    (table, target): (&TableMapping, &Table),
    misfit: &dyn Fn(&ColumnMapping, &Column) -> Option<String>,
    remedy: &str,
) -> Vec<Problem> {
    let mut found: Vec<String> = Vec::new();
    if !matches!(target.kind, TableKind::Ordinary | TableKind::Partitioned) {
        found.push("it is not a table".to_owned());
    }
    for column in &table.columns {
        match target.column(&column.target) {
            None => found.push(format!("it has no column {}", column.target)),
            Some(there) if there.generated_sql.is_some() => {
                found.push(format!("its column {} is generated", column.target));
            }
            Some(there) => found.extend(misfit(column, there).map(|how| {
                format!("its column {} is {}, not {}{how}", column.target, there.type_sql, column.type_sql)
            })),
        }
    }
    let carried = |name: &str| table.columns.iter().any(|column| column.target == name);
    let needed = target.columns.iter().filter(|there| {
        target.refuses_null(there)
            && there.default_sql.is_none()
            && there.identity.is_none()
            && there.generated_sql.is_none()
            && !carried(&there.name)
    });
    found.extend(needed.map(|there| {
        format!("its column {} is NOT NULL without a default, and nothing fills it", there.name)
    }));
    let key: Vec<Option<&str>> = table.key_columns().map(|column| Some(column.target.as_str())).collect();
    let is_keyed = target.indexes.iter().any(|index| {
        let mut columns: Vec<Option<&str>> = index.columns.iter().map(Option::as_deref).collect();
        let mut wanted = key.clone();
        columns.sort_unstable();
        wanted.sort_unstable();
        target.can_identify(index) && columns == wanted
    });
    let mut problems: Vec<Problem> = Vec::new();
    if !found.is_empty() {
        problems.push(
            Problem::error("target-differs", name)
                .fact(found.join("; "))
                .consequence("rows could not be written there as the plan says")
                .next(remedy),
        );
    }
    // A key of which a column is missing, or that nobody knows, is another matter.
    let known = !key.is_empty() && key.iter().flatten().all(|name| target.column(name).is_some());
    if known && !is_keyed {
        problems.push(keyed::problem(table, name.to_owned()));
    }
    problems
}

/// A type without its schema: user types may live in another one in the service.
fn bare(type_sql: &str) -> &str {
    type_sql.rsplit_once('.').map_or(type_sql, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Constraint, ConstraintKind, Dependent, DependentKind};
    use crate::check::fixture::{clean, expect};
    use crate::journal::holdings::Holding;
    use crate::mapping::fixture::{column, name, table};
    use crate::problem::Severity;
    use tokio_postgres::types::Type;

    /// Facts in which service `ordering` has a table Orders.
    fn standing(ddl: Ddl, edit: impl FnOnce(&mut Table)) -> Facts {
        let mut facts = clean();
        facts.plan.services.get_mut("ordering").unwrap().ddl = ddl;
        facts.mappings.get_mut("ordering").unwrap().tables.retain(|table| table.source == name("Orders"));
        let mut orders = table("Orders", vec![column("Id", &Type::INT8), column("Region", &Type::TEXT)]);
        edit(&mut orders);
        facts.service_catalog("ordering").tables.insert(orders.name.clone(), orders);
        facts
    }

    #[test]
    fn equal_empty_tables_are_no_problem() {
        assert_eq!(rule(&clean()), []);
        assert_eq!(rule(&standing(Ddl::Create, |_| ())), []);
        assert_eq!(rule(&standing(Ddl::Adopt, |_| ())), []);
    }

    #[test]
    fn rows_that_are_not_the_mirrors_are_a_problem() {
        let mut facts = standing(Ddl::Create, |_| ());
        facts.service("ordering").server.as_mut().unwrap().filled.insert(name("Orders"));
        expect(&rule(&facts), Severity::Error, "target-not-empty", "TRUNCATE \"public\".\"Orders\";");
        let (table, plan) = (name("Orders"), Some("before".to_owned()));
        let holding = Holding { table, slice: "sales".into(), plan, gated: true };
        facts.service("ordering").holdings.push(holding);
        let problems = rule(&facts);
        expect(&problems, Severity::Error, "target-not-empty", "belongs to slice sales of plan before");
        assert!(!problems[0].next.contains("TRUNCATE"), "it would empty another slice's copy");
        facts.service("ordering").server.as_mut().unwrap().provisioned.insert("ordering".into());
        assert_eq!(rule(&facts), []);
        let mut facts = standing(Ddl::Create, |_| ());
        facts.service("ordering").server.as_mut().unwrap().closed.insert(name("Orders"));
        expect(&rule(&facts), Severity::Error, "target-not-readable", "GRANT SELECT");
    }

    #[test]
    fn a_rule_that_rewrites_what_the_mirror_applies_is_named_and_no_other() {
        let found = |rule: &str, enabled: &str| {
            let mut facts = standing(Ddl::Adopt, |_| ());
            facts.service_catalog("ordering").dependents.push(Dependent {
                kind: DependentKind::Rule,
                table: name("Orders"),
                name: rule.into(),
                detail: enabled.into(),
            });
            super::rule(&facts)
        };
        let advice = "ALTER TABLE \"public\".\"Orders\" ENABLE RULE \"gone\"";
        for enabled in ["A", "R"] {
            let problems = found("gone on Orders", enabled);
            expect(&problems, Severity::Error, "target-rule", "swallowed, doubled");
            assert!(problems[0].next.ends_with(advice), "{problems:?}");
        }
        assert_eq!(found("gone on Orders", "O"), []);
        assert_eq!(found("gone on Elsewhere", "A"), [], "it only names the table");
    }

    #[test]
    fn differences_are_told_all_at_once() {
        let facts = standing(Ddl::Adopt, |orders| {
            orders.columns[0].type_sql = "integer".into();
            orders.columns.remove(1);
            let mut extra = column("tenant", &Type::TEXT);
            extra.not_null = true;
            orders.columns.push(extra);
        });
        let problems = rule(&facts);
        expect(&problems, Severity::Error, "target-differs", "Id is integer, not bigint");
        expect(&problems, Severity::Error, "target-differs", "it has no column Region");
        expect(&problems, Severity::Error, "target-differs", "tenant is NOT NULL without a default");
        let facts = standing(Ddl::Adopt, |orders| {
            orders.columns.push(column("tenant", &Type::TEXT));
            orders.constraints.push(Constraint {
                name: "filled".into(),
                kind: ConstraintKind::NotNull,
                definition_sql: "NOT NULL tenant NOT VALID".into(),
                columns: vec!["tenant".into()],
                validated: false,
                comment: None,
            });
        });
        expect(&rule(&facts), Severity::Error, "target-differs", "tenant is NOT NULL without a default");
        let wider = |orders: &mut Table| orders.columns[1].type_sql = "character varying".into();
        assert_eq!(rule(&standing(Ddl::Adopt, wider)), [], "it holds every text");
        expect(&rule(&standing(Ddl::Create, wider)), Severity::Error, "target-differs", "not text");
        let facts = standing(Ddl::Adopt, |orders| orders.indexes.clear());
        expect(&rule(&facts), Severity::Error, "target-without-key", "ADD PRIMARY KEY (\"Id\");");
        let mut facts = standing(Ddl::Adopt, |_| ());
        facts.service_catalog("ordering").tables.clear();
        expect(&rule(&facts), Severity::Error, "target-absent", "ddl: create");
    }
}
