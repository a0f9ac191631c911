//! Schemas of types. Whoever hashes, reads or finds a value of a user's type writes the type's name in SQL, and that takes
//! USAGE on the schema it is in, which need not be a schema of any table.

use std::collections::BTreeSet;

use super::Database;
use super::draft::{Draft, Site};
use super::rights::Wanted;
use super::state::{Grant, GrantOn, PUBLIC, State};
use crate::dualwrite::gate::APPLY_ROLE;
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
    (database, state): (&Database, &State),
    (schemas, role): (&BTreeSet<String>, &str),
) {
    for schema in schemas.iter().filter(|schema| !is_open(state, schema)) {
        // A schema that is not there yet is made before anything is granted.
        if !state.schema_owners.contains_key(schema) || may_grant(state, schema, role) {
            wanted.schema(schema, role);
        } else {
            let owner = state.schema_owners.get(schema).map_or("somebody else", String::as_str);
            draft.problem(
                no_type_usage(database, schema, role)
                    .fact(format!(
                        "{role} may not name the types in it; it belongs to {owner}, and {} can't grant that",
                        state.user
                    ))
                    .next(format!("run as {owner} or a superuser: {}", grant_usage(schema, role))),
            );
        }
    }
}

/// Everybody may use it.
fn is_open(state: &State, schema: &str) -> bool {
    state.grants.contains(&usage(schema, PUBLIC))
}

/// Whether USAGE of a schema is there, or can be granted: by its owner, or by whom he let do that.
pub(super) fn may_grant(state: &State, schema: &str, role: &str) -> bool {
    state.superuser || state.usage_grantable.contains(schema) || state.holds(&usage(schema, role))
}

fn usage(schema: &str, role: &str) -> Grant {
    Grant { on: GrantOn::Schema(schema.to_owned()), role: role.to_owned(), privilege: "USAGE".to_owned() }
}

/// The problem with a role that may not name the types of a schema, by what that role does there; its fact and what to type
/// are to be added.
pub(crate) fn no_type_usage(database: &Database, schema: &str, role: &str) -> Problem {
    let object = format!("{database}, schema {schema}");
    let of_service = matches!(database, Database::Service(_));
    if of_service && role == APPLY_ROLE {
        Problem::error("no-type-usage", object).consequence(
            "the mirror can't write rows of tables with columns of those types, and ends at the first one",
        )
    } else if of_service {
        Problem::warning("no-type-usage", object)
            .consequence("statements that name them, as a cast does, fail; with the authority at the service, the application's")
    } else {
        Problem::warning("no-type-usage", object)
            .consequence("tables with columns of those types can't be compared")
    }
}

/// The statement that lets a role name the types of a schema.
pub(crate) fn grant_usage(schema: &str, role: &str) -> String {
    format!("GRANT USAGE ON SCHEMA {} TO {};", quote_ident(schema), quote_ident(role))
}
