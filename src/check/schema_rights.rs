//! What the admin links of the services need in schemas that are there already: to let the tables' owner create in
//! them. With `into:` that still concerns the schemas of the monolith's own types, which keep their names.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Database, Facts, LinkName};
use crate::catalog::{Catalog, UserTypeKind};
use crate::mapping::TableMapping;
use crate::name::TableName;
use crate::plan::Ddl;
use crate::problem::Problem;
use crate::provision::{self, Closed};

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, service, database) in facts.planned_services().filter(|(_, one, _)| one.ddl == Ddl::Create) {
        let Some(role) = database.role(LinkName::Admin).filter(|role| !role.superuser) else { continue };
        for (schema, needs) in needed(facts, name) {
            let Some(owner) = role.ungrantable.get(&schema) else { continue };
            if prepared(database, &service.owner, &schema) {
                continue;
            }
            problems.push(provision::no_create_in_schema(Closed {
                service: name,
                schema: &schema,
                schema_owner: owner,
                needs: &needs,
                admin: &role.name,
                owner: &service.owner,
            }));
        }
    }
    problems
}

/// The role of the tables' owner is there and may create in the schema already.
fn prepared(database: &Database, owner: &str, schema: &str) -> bool {
    database.roles.get(owner).is_some_and(|role| role.creates_in.contains(schema))
}

/// The schemas in which provision makes something for a service, each with one thing that goes there.
fn needed(facts: &Facts, service: &str) -> BTreeMap<String, String> {
    let mut needed = BTreeMap::new();
    let Some(monolith) = &facts.monolith.catalog else { return needed };
    let tables = facts.mappings.values().filter(|slice| slice.service == service);
    for mapping in tables.flat_map(|slice| &slice.tables) {
        let target = &mapping.target;
        needed.entry(target.schema.clone()).or_insert_with(|| format!("the table {target}"));
        for of in types(monolith, mapping) {
            needed.entry(of.schema.clone()).or_insert_with(|| format!("the type {of} of {}", mapping.source));
        }
    }
    needed
}

/// Types of users that a table's columns need, through domains and composites; an extension brings its own.
fn types(monolith: &Catalog, mapping: &TableMapping) -> BTreeSet<TableName> {
    let columns = monolith.table(&mapping.source).map_or(&[][..], |table| table.columns.as_slice());
    let moves = columns
        .iter()
        .filter(|column| mapping.column(&column.name).is_some() || column.generated_sql.is_some());
    let mut pending: Vec<TableName> = moves.filter_map(|column| column.user_type.clone()).collect();
    let mut found = BTreeSet::new();
    while let Some(name) = pending.pop() {
        let Some(of) = monolith.types.get(&name).filter(|of| of.extension.is_none()) else { continue };
        if !found.insert(name) {
            continue;
        }
        match &of.kind {
            UserTypeKind::Domain { base_type, .. } => pending.extend(base_type.clone()),
            UserTypeKind::Composite(fields) => pending.extend(fields.iter().filter_map(|(_, field)| {
                // As `format_type` prints it: qualified, with brackets for an array.
                TableName::parse(field.trim_end_matches("[]"), "public").ok()
            })),
            UserTypeKind::Enum(_) | UserTypeKind::Other => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::{Link, LinkRole};
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::{enum_type, name};
    use crate::problem::Severity;

    fn admin(facts: &mut Facts) -> &mut LinkRole {
        let Some(Link::Open(role)) = facts.service("ordering").links.get_mut(&LinkName::Admin) else {
            panic!("no link")
        };
        role
    }

    /// The tables of service `ordering` go into its schema `sales`, which provision makes; the schema `public` is its
    /// administrator's to use only.
    fn into_sales() -> Facts {
        let mut facts = clean();
        for table in &mut facts.mappings.get_mut("ordering").unwrap().tables {
            table.target.schema = "sales".into();
        }
        admin(&mut facts).ungrantable.insert("public".into(), "pg_database_owner".into());
        facts
    }

    fn typed(facts: &mut Facts, types: Vec<crate::catalog::UserType>) {
        let monolith = facts.monolith_catalog();
        let orders = monolith.tables.get_mut(&name("Orders")).unwrap();
        orders.columns[1].user_type = Some(types[0].name.clone());
        monolith.types.extend(types.into_iter().map(|of| (of.name.clone(), of)));
    }

    #[test]
    fn a_schema_that_nothing_goes_into_is_no_problem() {
        assert_eq!(rule(&clean()), []);
        assert_eq!(rule(&into_sales()), []);
        let mut facts = into_sales();
        let mut extended = enum_type("Kind", &[]);
        extended.extension = Some("citext".into());
        typed(&mut facts, vec![extended]);
        assert_eq!(rule(&facts), [], "an extension brings its types along");
    }

    #[test]
    fn the_schema_of_a_type_matters_with_into_and_that_of_the_tables_without() {
        let mut facts = into_sales();
        typed(&mut facts, vec![enum_type("Status", &["new"])]);
        expect(
            &rule(&facts),
            Severity::Error,
            "no-create-in-schema",
            "GRANT CREATE, USAGE ON SCHEMA \"public\" TO \"admin\" WITH GRANT OPTION;",
        );
        facts.service("ordering").roles.get_mut("ordering_owner").unwrap().creates_in.insert("public".into());
        assert_eq!(rule(&facts), [], "the owner may create there already");
        let mut facts = clean();
        admin(&mut facts).ungrantable.insert("public".into(), "pg_database_owner".into());
        expect(&rule(&facts), Severity::Error, "no-create-in-schema", "the table Order");
        facts.plan.services.get_mut("ordering").unwrap().ddl = Ddl::Adopt;
        assert_eq!(rule(&facts), [], "nothing is made for adopted tables");
    }

    #[test]
    fn types_are_followed_through_composites_and_domains() {
        let mut facts = into_sales();
        let composite = |text: &str, field: &str| crate::catalog::UserType {
            kind: UserTypeKind::Composite(vec![("part".into(), field.into())]),
            ..enum_type(text, &[])
        };
        let in_types = |text: &str| TableName::new("types", text);
        let mut outer = composite("Outer", "types.\"Inner\"[]");
        outer.name = in_types("Outer");
        let mut inner = enum_type("Inner", &[]);
        inner.name = in_types("Inner");
        inner.kind = UserTypeKind::Domain {
            base_sql: "public.\"Status\"".into(),
            default_sql: None,
            not_null: false,
            checks: Vec::new(),
            base_type: Some(name("Status")),
        };
        typed(&mut facts, vec![outer, inner, enum_type("Status", &["new"])]);
        expect(&rule(&facts), Severity::Error, "no-create-in-schema", "the type Status of Orders");
    }
}
