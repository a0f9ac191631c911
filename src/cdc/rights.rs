//! Which rights on its tables a mirror lacks, and the statements that give them.

use tokio_postgres::Client;

use super::engine::SliceConfig;
use super::error::MirrorError;
use super::located::located;
use super::start::{Both, open};
use crate::journal::JournalError;
use crate::journal::streams::Direction;
use crate::name::{TableName, quote_ident};
use crate::postgres::connect::ConnectError;
use crate::postgres::replication::ReplicationError;
use crate::postgres::sqlstate::{Failure, causes};

/// What copying and applying do in a table that they write.
pub(super) const WRITING: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];
/// What copying and refetching do in a table that they read.
const READING: &[&str] = &["SELECT"];

/// Rights that a session lacks on one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lack {
    /// The role that lacks them.
    pub(super) role: String,
    /// Which ones.
    pub(super) privileges: Vec<String>,
    /// The statements that grant them, without an end.
    pub(super) grants: Vec<String>,
}

/// What the session lacks of these rights on the named columns of a table; nothing where there is no such table.
///
/// # Errors
/// [`MirrorError::Sql`].
pub(super) async fn lacking(
    client: &Client,
    (table, columns): (&TableName, &[&str]),
    wanted: &[&str],
) -> Result<Option<Lack>, MirrorError> {
    // Some rights may be held on each column instead of on the table (GRANT).
    let sql = "SELECT current_user::text, has_schema_privilege(n.oid, 'USAGE'), ARRAY( \
                 SELECT p FROM unnest($3::text[]) AS p WHERE NOT has_table_privilege(c.oid, p) \
                   AND (p IN ('DELETE', 'TRUNCATE') OR (SELECT bool_and(has_column_privilege(c.oid, a.attnum, p)) \
                        FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY($4) AND NOT a.attisdropped) \
                      IS NOT TRUE)) \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2";
    let row = client.query_opt(sql, &[&table.place_schema(), &table.name, &wanted, &columns]).await;
    let Some(row) = row.map_err(MirrorError::sql("asking for rights"))? else { return Ok(None) };
    let (role, usable, privileges): (String, bool, Vec<String>) = (row.get(0), row.get(1), row.get(2));
    let mut grants = Vec::new();
    if !usable {
        let schema = quote_ident(table.place_schema());
        grants.push(format!("GRANT USAGE ON SCHEMA {schema} TO {}", quote_ident(&role)));
    }
    if !privileges.is_empty() {
        let listed = privileges.join(", ");
        grants.push(format!("GRANT {listed} ON {} TO {}", table.sql(), quote_ident(&role)));
    }
    Ok((!grants.is_empty()).then_some(Lack { role, privileges, grants }))
}

/// An error over a right that a role lacks gets the statement that grants it. The server's words name the object in its own
/// language, so both databases are asked. `order` is what was typed besides, with a space before each word.
pub(super) async fn explain((config, order): (&SliceConfig, &str), error: MirrorError) -> MirrorError {
    if !is_denied(&error) {
        return error;
    }
    // Where they can't be asked, what is known already is said.
    let Ok(found) = of_slice(config).await else { return error };
    let rights = if found.is_empty() {
        // What else the mirror uses is strangler's own.
        "strangler provision PLAN, which gives roles their rights on strangler's own tables again".to_owned()
    } else {
        found.join("; ")
    };
    let next = format!("{rights}; then strangler mirror PLAN --slice {}{order}", config.mapping.slice);
    if found.is_empty() && matches!(error, MirrorError::Denied { .. }) {
        return error;
    }
    if let MirrorError::Sql { action, source }
    | MirrorError::Denied { action, source, .. }
    | MirrorError::Journal(JournalError::Database { action, source }) = error
    {
        return MirrorError::Denied { action, next, source };
    }
    MirrorError::Refused { what: causes(&error).join(": "), next }
}

fn is_denied(error: &MirrorError) -> bool {
    let denied = |source: &tokio_postgres::Error| Failure::of(source) == Failure::Privilege;
    if let MirrorError::Sql { source, .. }
    | MirrorError::Denied { source, .. }
    | MirrorError::Journal(JournalError::Database { source, .. }) = error
    {
        return denied(source);
    }
    let (MirrorError::Connect(ConnectError::Refused { sqlstate, .. })
    | MirrorError::Replication(ReplicationError::Server { sqlstate, .. })) = error
    else {
        return false;
    };
    sqlstate == "42501"
}

/// What a running stream lacks in both databases: statements with where to run them.
async fn of_slice(config: &SliceConfig) -> Result<Vec<String>, MirrorError> {
    let slice = config.mapping.slice.as_str();
    let (source, target) = (open(&config.read, slice).await?, open(&config.apply, slice).await?);
    let both = Both::of(config.direction, &source, &target);
    let config = &located(config, both.monolith).await?;
    let (mut there, mut here) = (standing(&source).await?, Vec::new());
    for table in &config.mapping.tables {
        let monolith: Vec<&str> = table.columns.iter().map(|column| column.source.as_str()).collect();
        let service: Vec<&str> = table.columns.iter().map(|column| column.target.as_str()).collect();
        let (read, written) = match config.direction {
            Direction::Forward => ((&table.source, &monolith[..]), (&table.target, &service[..])),
            Direction::Reverse => ((&table.target, &service[..]), (&table.source, &monolith[..])),
        };
        there.extend(lacking(&source, read, READING).await?.into_iter().flat_map(|lack| lack.grants));
        there.extend(unfiltered(&source, read.0).await?);
        here.extend(lacking(&target, written, WRITING).await?.into_iter().flat_map(|lack| lack.grants));
        here.extend(unfiltered(&target, written.0).await?);
    }
    let sides = [(config.direction.source(), there), (config.direction.target(), here)];
    Ok(sides
        .into_iter()
        .filter(|(_, grants)| !grants.is_empty())
        .map(|(side, grants)| format!("run on the {side}: {}", once(grants).join("; ")))
        .collect())
}

/// What lets the session's role read a stream.
async fn standing(source: &Client) -> Result<Vec<String>, MirrorError> {
    let sql = "SELECT r.rolname::text FROM pg_roles r WHERE r.rolname = session_user AND NOT r.rolsuper \
                   AND NOT r.rolreplication AND NOT EXISTS (SELECT FROM pg_roles g \
                       WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER'))";
    let rows = source.query_typed(sql, &[]).await.map_err(MirrorError::sql("asking for rights"))?;
    Ok(rows.iter().map(|row| format!("ALTER ROLE {} REPLICATION", quote_ident(row.get(0)))).collect())
}

/// What lets the session's role see and write all rows of a table, where it does not.
async fn unfiltered(client: &Client, table: &TableName) -> Result<Option<String>, MirrorError> {
    // The session's own setting makes a filtered row an error; the policies are there all the same.
    let sql = "SELECT current_user::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relname = $2 AND row_security_active(c.oid)";
    let row = client.query_opt(sql, &[&table.place_schema(), &table.name]).await;
    let row = row.map_err(MirrorError::sql("asking for rights"))?;
    Ok(row.map(|row| format!("ALTER ROLE {} BYPASSRLS", quote_ident(row.get(0)))))
}

/// Tables of one schema ask for the same USAGE.
fn once(mut statements: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    statements.retain(|statement| seen.insert(statement.clone()));
    statements
}
