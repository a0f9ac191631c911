//! Schemas of types. Whoever hashes, reads or finds a value of a user's type writes the type's name in SQL, and that takes
//! USAGE on the schema it is in, which need not be a schema of any table.

use std::collections::BTreeSet;

use super::draft::{Draft, Site};
use super::rights::Wanted;
use super::state::{Grant, GrantOn, PUBLIC, State};
use crate::mapping::TableMapping;
use crate::name::quote_ident;
use crate::plan::Ddl;
use crate::problem::Problem;

/// Schemas of the types of a table's columns, by the monolith's catalog. Types keep their names in a service.
pub(super) fn schemas(draft: &Draft<'_>, table: &TableMapping) -> BTreeSet<String> {
    let columns = draft.survey.monolith.table(&table.source).map_or(&[][..], |found| &found.columns);
    columns
        .iter()
        .filter(|column| table.column(&column.name).is_some())
        .filter_map(|column| column.user_type.as_ref().map(|of| of.schema.clone()))
        .collect()
}

/// The same in a service, where the types of an adopted table may be in another schema.
pub(super) fn schemas_there(draft: &Draft<'_>, site: &Site<'_>, table: &TableMapping) -> BTreeSet<String> {
    let adopted = site.catalog.table(&table.target).filter(|_| site.service.ddl == Ddl::Adopt);
    let Some(adopted) = adopted else { return schemas(draft, table) };
    let mapped = |name: &str| table.columns.iter().any(|column| column.target == name);
    let columns = adopted.columns.iter().filter(|column| mapped(&column.name));
    columns.filter_map(|column| column.user_type.as_ref().map(|of| of.schema.clone())).collect()
}

/// Wants USAGE of schemas for a role, where not everybody has it; a problem where nobody here can grant it.
pub(super) fn want(
    draft: &mut Draft<'_>,
    wanted: &mut Wanted,
    (place, state): (&str, &State),
    (schemas, role): (BTreeSet<String>, &str),
) {
    for schema in schemas.into_iter().filter(|schema| !is_open(state, schema)) {
        // A schema that is not there yet is made before anything is granted.
        if !state.schema_owners.contains_key(&schema) || may_grant(state, &schema, role) {
            wanted.schema(&schema, role);
        } else {
            draft.problem(closed(place, state, (&schema, role)));
        }
    }
}

/// Everybody may use it.
fn is_open(state: &State, schema: &str) -> bool {
    state.grants.contains(&usage(schema, PUBLIC))
}

/// Whether USAGE of a schema is there, or can be granted by whoever owns the schema.
pub(super) fn may_grant(state: &State, schema: &str, role: &str) -> bool {
    let owner = state.schema_owners.get(schema).and_then(|owner| state.roles.get(owner));
    state.superuser || owner.is_some_and(|owner| owner.ours) || state.holds(&usage(schema, role))
}

fn usage(schema: &str, role: &str) -> Grant {
    Grant { on: GrantOn::Schema(schema.to_owned()), role: role.to_owned(), privilege: "USAGE".to_owned() }
}

/// Somebody else has to grant it.
fn closed(place: &str, state: &State, (schema, role): (&str, &str)) -> Problem {
    let owner = state.schema_owners.get(schema).map_or("somebody else", String::as_str);
    Problem::warning("no-type-usage", format!("{place}, schema {schema}"))
        .fact(format!(
            "{role} may not name the types in it; it belongs to {owner}, and {} can't grant that",
            state.user
        ))
        .consequence("tables with columns of those types could not be compared")
        .next(format!(
            "run as {owner} or a superuser: GRANT USAGE ON SCHEMA {} TO {};",
            quote_ident(schema),
            quote_ident(role)
        ))
}
