//! Schemas that are there already and somebody else's: the tables' owner must be let create in them, by whoever may grant
//! that.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error};

use crate::name::quote_ident;
use crate::problem::Problem;

/// Schemas on which the connected role can't grant CREATE and USAGE, with their owners. An owner, and who was given the right
/// WITH GRANT OPTION, may grant it (GRANT). Where everybody may create, as in `public` before PostgreSQL 15, nobody has to
/// be granted anything.
///
/// # Errors
/// What the server said.
pub(crate) async fn ungrantable(client: &Client) -> Result<BTreeMap<String, String>, Error> {
    let sql = "SELECT nspname::text, pg_catalog.pg_get_userbyid(nspowner)::text FROM pg_catalog.pg_namespace \
               WHERE nspname !~ '^pg_' AND NOT pg_catalog.pg_has_role(nspowner, 'USAGE') \
                 AND NOT (pg_catalog.has_schema_privilege(oid, 'CREATE WITH GRANT OPTION') \
                          AND pg_catalog.has_schema_privilege(oid, 'USAGE WITH GRANT OPTION')) \
                 AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(nspacl) a \
                                 WHERE a.grantee = 0 AND a.privilege_type = 'CREATE')";
    client.query_typed(sql, &[]).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// A schema that can't be prepared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed<'a> {
    /// The service.
    pub(crate) service: &'a str,
    /// The schema.
    pub(crate) schema: &'a str,
    /// Whose it is.
    pub(crate) schema_owner: &'a str,
    /// One thing that goes there.
    pub(crate) needs: &'a str,
    /// The role of the admin link.
    pub(crate) admin: &'a str,
    /// The role that owns the service's tables.
    pub(crate) owner: &'a str,
}

/// The problem with a schema in which nothing can be made.
pub(crate) fn no_create_in_schema(closed: Closed<'_>) -> Problem {
    let Closed { service, schema, schema_owner, needs, admin, owner } = closed;
    Problem::error("no-create-in-schema", format!("service {service}"))
        .fact(format!(
            "{needs} goes into the schema {schema}, which belongs to {schema_owner}, and the admin link's role {admin} may \
             not let {owner} create there"
        ))
        .consequence("nothing can be made in that schema")
        .next(format!(
            "run in that database as the schema's owner or a superuser: GRANT CREATE, USAGE ON SCHEMA {} TO {} WITH GRANT \
             OPTION;",
            quote_ident(schema),
            quote_ident(admin)
        ))
}
