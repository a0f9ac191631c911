//! What the links, and a service's application, need to name the types of moved columns, which may be in schemas without a table. Provision grants it;
//! here is said what provision can't grant, and what was taken away since, or is missing because an earlier version did
//! not grant it.

use std::collections::BTreeSet;

use super::facts::{Database, Facts, LinkName, Named};
use crate::mapping::SliceMapping;
use crate::problem::Problem;
use crate::provision;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for Named { service, database, .. } in facts.databases() {
        let here = |slice: &&SliceMapping| service.is_none_or(|service| slice.service == service);
        let slices: Vec<&SliceMapping> = facts.mappings.values().filter(here).collect();
        let (mut all, mut due) = (BTreeSet::new(), BTreeSet::new());
        for slice in slices {
            let schemas = schemas(facts, slice);
            if provisioned(facts, database, service.is_some(), &slice.slice) {
                due.extend(schemas.iter().cloned());
            }
            all.extend(schemas);
        }
        // Before provision has come, what it will grant is no problem.
        let ungrantable = database.role(LinkName::Admin).map(|admin| &admin.ungrantable);
        due.extend(
            all.into_iter().filter(|schema| ungrantable.is_some_and(|those| those.contains_key(schema))),
        );
        let at = service
            .map_or(provision::Database::Monolith, |name| provision::Database::Service(name.to_owned()));
        let app = service.and_then(|service| facts.plan.services.get(service)).map(|service| &service.app);
        problems.extend(due.iter().flat_map(|schema| closed((&at, database), app, schema)));
    }
    problems
}

/// The roles that may not use a schema, each once: those of the links, and the application's in a service.
fn closed(
    (at, database): (&provision::Database, &Database),
    app: Option<&String>,
    schema: &str,
) -> Vec<Problem> {
    let links = [LinkName::Read, LinkName::Apply].into_iter().filter_map(|link| database.role(link));
    let links = links.filter(|role| !role.superuser && role.closed_schemas.contains(schema));
    let mut roles: BTreeSet<&str> = links.map(|role| role.name.as_str()).collect();
    let app = app.and_then(|name| database.roles.get_key_value(name));
    roles.extend(app.filter(|(_, role)| role.closed_schemas.contains(schema)).map(|(name, _)| name.as_str()));
    let problem = |role: &str| {
        provision::no_type_usage(at, schema, role).fact(format!("{role} may not name the types in it")).next(format!(
            "strangler provision PLAN grants it where it may; by hand, as the schema's owner or a superuser: {}",
            provision::grant_usage(schema, role)
        ))
    };
    roles.into_iter().map(problem).collect()
}

/// Schemas of the types of a slice's columns; types keep their names in a service.
fn schemas(facts: &Facts, slice: &SliceMapping) -> BTreeSet<String> {
    let Some(monolith) = &facts.monolith.catalog else { return BTreeSet::new() };
    let mut found = BTreeSet::new();
    for mapping in &slice.tables {
        let columns = monolith.table(&mapping.source).map_or(&[][..], |table| &table.columns);
        let moved = columns.iter().filter(|column| mapping.column(&column.name).is_some());
        found.extend(moved.filter_map(|column| Some(column.user_type.as_ref()?.schema.clone())));
    }
    found
}

/// Provision has come to the slice there.
fn provisioned(facts: &Facts, database: &Database, of_service: bool, slice: &str) -> bool {
    let mut sides = database.whereabouts.iter().flat_map(|found| &found.sides);
    sides.any(|side| side.of_service == of_service && side.plan == facts.plan.name && side.slice == slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::{Link, LinkRole};
    use crate::check::fixture::{clean, expect};
    use crate::journal::whereabouts::Side;
    use crate::mapping::fixture::name;
    use crate::name::TableName;
    use crate::problem::Severity;

    fn role(database: &mut Database, link: LinkName) -> &mut LinkRole {
        let Some(Link::Open(role)) = database.links.get_mut(&link) else { panic!("no link") };
        role
    }

    /// A column of Orders has a type of the schema `ty`, which nobody may use.
    fn typed() -> Facts {
        let mut facts = clean();
        let orders = facts.monolith_catalog().tables.get_mut(&name("Orders")).unwrap();
        orders.columns[1].user_type = Some(TableName::new("ty", "mood"));
        let (monolith, service) = (&mut facts.monolith, facts.services.get_mut("ordering").unwrap());
        for database in [monolith, service] {
            role(database, LinkName::Apply).closed_schemas.insert("ty".into());
        }
        let app = facts.service("ordering").roles.get_mut("ordering_app").unwrap();
        app.closed_schemas.insert("ty".into());
        role(&mut facts.monolith, LinkName::Read).closed_schemas.insert("ty".into());
        facts
    }

    fn provisioned(facts: &mut Facts) {
        let side = |of_service| Side {
            slice: "ordering".into(),
            plan: facts.plan.name.clone(),
            service: "ordering".into(),
            of_service,
        };
        let (there, here) = (side(false), side(true));
        facts.monolith.whereabouts.as_mut().unwrap().sides.push(there);
        facts.services.get_mut("ordering").unwrap().whereabouts.as_mut().unwrap().sides.push(here);
    }

    #[test]
    fn a_schema_of_types_that_is_closed_after_provision_is_told_for_each_side_and_role() {
        let mut facts = typed();
        assert_eq!(rule(&facts), [], "provision will grant it");
        provisioned(&mut facts);
        let found = rule(&facts);
        assert_eq!(found.len(), 4, "{found:?}");
        for (one, (severity, object, to)) in found.iter().zip([
            (Severity::Warning, "monolith, schema ty", "reader"),
            (Severity::Warning, "monolith, schema ty", "strangler_apply"),
            (Severity::Warning, "service ordering, schema ty", "ordering_app"),
            (Severity::Error, "service ordering, schema ty", "strangler_apply"),
        ]) {
            let grant = format!("GRANT USAGE ON SCHEMA \"ty\" TO \"{to}\";");
            expect(std::slice::from_ref(one), severity, "no-type-usage", &grant);
            assert!(one.object.to_string().contains(object), "{one:?}");
        }
    }

    #[test]
    fn a_schema_that_provision_can_not_open_is_told_beforehand() {
        let mut facts = typed();
        role(&mut facts.monolith, LinkName::Admin).ungrantable.insert("ty".into(), "somebody".into());
        assert_eq!(rule(&facts).len(), 2, "the monolith's two links");
    }
}
