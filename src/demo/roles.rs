//! Who may do what on the demo's servers: the roles that README.md recommends, none of them a superuser.

use crate::name::{quote_ident, quote_literal};
use crate::plan::Service;

/// Owns the monolith's tables; nobody logs in as it.
pub(super) const RETAIL_OWNER: &str = "retail_owner";

/// The application's role on the monolith, whose rights `plans/retail.sql` grants.
pub(super) const RETAIL_APP: &str = "retail_app";

/// The role of the plan's `admin` link on the monolith.
pub(super) const MONOLITH_ADMIN: &str = "strangler_admin";

/// The role of the plan's `read` link.
pub(super) const MONOLITH_READ: &str = "strangler_read";

/// Since when a setting can be granted (PostgreSQL 15 release notes).
const GRANT_SET_SINCE: u32 = 150_000;

/// The two roles that the monolith has before anybody thinks of a split.
pub(super) fn of_the_application() -> Vec<String> {
    let owner = quote_ident(RETAIL_OWNER);
    vec![
        format!("CREATE ROLE {owner} NOLOGIN"),
        format!("CREATE ROLE {} LOGIN", quote_ident(RETAIL_APP)),
        format!("GRANT CREATE ON SCHEMA public TO {owner}"),
    ]
}

/// The roles of the three links into the monolith.
pub(super) fn of_the_monolith(database: &str, version_num: u32) -> Vec<String> {
    let (admin, read) = (quote_ident(MONOLITH_ADMIN), quote_ident(MONOLITH_READ));
    let mut statements = vec![
        format!("CREATE ROLE {admin} LOGIN"),
        format!("GRANT {} TO {admin}", quote_ident(RETAIL_OWNER)),
        format!("GRANT CREATE ON DATABASE {} TO {admin}", quote_ident(database)),
        format!("CREATE ROLE {read} LOGIN REPLICATION"),
        format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {read}"),
    ];
    statements.extend(of_the_mirror("LOGIN", version_num));
    statements
}

/// The role of the plan's `admin` link into a service.
pub(super) fn deploy(service: &str) -> String {
    format!("{service}_deploy")
}

/// The roles of a service: who owns its tables, who uses them, and the two links.
pub(super) fn of_a_service(name: &str, service: &Service, database: &str, version_num: u32) -> Vec<String> {
    let (deploy, owner) = (quote_ident(&deploy(name)), quote_ident(&service.owner));
    let mut statements = vec![
        // It makes the slot of the way back, and the apply role reads it.
        format!("CREATE ROLE {deploy} LOGIN REPLICATION"),
        format!("CREATE ROLE {owner} NOLOGIN"),
        format!("CREATE ROLE {} LOGIN", quote_ident(&service.app)),
        format!("GRANT {owner} TO {deploy}"),
        format!("GRANT CREATE ON DATABASE {} TO {deploy}", quote_ident(database)),
        // Types keep the monolith's schema even where `into` moves the tables to another.
        format!("GRANT CREATE ON SCHEMA public TO {deploy}, {owner}"),
    ];
    statements.extend(of_the_mirror("LOGIN REPLICATION", version_num));
    statements
}

/// The role that writes mirrored rows. It switches ordinary triggers off in its own sessions, which takes a right.
fn of_the_mirror(options: &str, version_num: u32) -> [String; 2] {
    let apply = quote_ident(crate::postgres::connect::APPLY_ROLE);
    let right = if version_num >= GRANT_SET_SINCE {
        format!("GRANT SET ON PARAMETER session_replication_role TO {apply}")
    } else {
        format!("ALTER ROLE {apply} SET session_replication_role = replica")
    };
    [format!("CREATE ROLE {apply} {options}"), right]
}

/// The statement behind psql's `\password`, which is never shown.
pub(super) fn password(role: &str, password: &str) -> String {
    format!("ALTER ROLE {} PASSWORD {}", quote_ident(role), quote_literal(password))
}
