//! Statements that a server has run, as the extension `pg_stat_statements` counts them, where it is there (PostgreSQL
//! documentation, appendix F, "pg_stat_statements").

use tokio_postgres::{Client, Error, Row};

use super::sqlstate;
use crate::clock::{Clock, SystemClock};
use crate::name::{TableName, quote_ident};

/// The most that are read at once: the extension itself keeps 5,000 unless told otherwise.
const READ_MAX: i64 = 5_000;

/// A statement that has run in this database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementSeen {
    /// Role that ran it.
    pub role: String,
    /// `queryid`.
    pub id: i64,
    /// Its text; constants are `$1` and so on, except in utility statements.
    pub statement: String,
    /// How often it has run, also inside functions.
    pub calls: i64,
    /// When this was read, in microseconds since 1970: not before it was.
    pub at_us: i64,
}

/// Why nothing is known of statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blind {
    /// The extension is not in this database; or it is, and its library is not in `shared_preload_libraries`.
    NoExtension,
    /// The session's role is not a member of `pg_read_all_stats`: others' statements have no text.
    Hidden,
    /// It is in this schema, which the session's role may not use.
    Closed(String),
}

/// Statements in whose text the name of a table stands somewhere. A caller looks closer. Those of roles under which the tool itself
/// is at work are left out: its own could not be told from others. `Err` inside when the server does not tell.
///
/// # Errors
/// The server's.
pub async fn naming(
    client: &Client,
    tables: &[TableName],
) -> Result<Result<Vec<StatementSeen>, Blind>, Error> {
    let schema = match state(client).await? {
        Ok(schema) => schema,
        Err(blind) => return Ok(Err(blind)),
    };
    let names: Vec<String> = tables.iter().map(|table| table.name.to_lowercase()).collect();
    let sql = format!(
        "SELECT pg_get_userbyid(s.userid)::text, s.queryid, min(s.query), sum(s.calls)::bigint \
         FROM {}.pg_stat_statements s \
         WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) \
           AND s.queryid IS NOT NULL AND pg_get_userbyid(s.userid) <> 'strangler_apply' AND s.userid NOT IN \
             (SELECT usesysid FROM pg_stat_activity WHERE application_name ~ '^strangler( |$)' AND usesysid IS NOT NULL) \
           AND EXISTS (SELECT FROM unnest($1::text[]) AS n WHERE position(n IN lower(s.query)) > 0) \
         GROUP BY s.userid, s.queryid LIMIT {READ_MAX}",
        quote_ident(&schema)
    );
    let seen = client.query(&sql, &[&names]).await;
    let at_us = SystemClock.now_us();
    let read = |row: &Row| StatementSeen {
        role: row.get(0),
        id: row.get(1),
        statement: row.get(2),
        calls: row.get(3),
        at_us,
    };
    match seen {
        Ok(rows) => Ok(Ok(rows.iter().map(read).collect())),
        // The extension was created, and its library is not loaded.
        Err(error) if sqlstate::code(&error) == Some("55000") => Ok(Err(Blind::NoExtension)),
        Err(error) => Err(error),
    }
}

/// The extension's schema, or why a session learns nothing from it.
///
/// # Errors
/// The server's.
pub async fn state(client: &Client) -> Result<Result<String, Blind>, Error> {
    let sql = "SELECT n.nspname::text, pg_has_role('pg_read_all_stats', 'USAGE'), has_schema_privilege(n.oid, 'USAGE') FROM pg_extension e \
               JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'";
    let Some(row) = client.query_typed_opt(sql, &[]).await? else { return Ok(Err(Blind::NoExtension)) };
    Ok(match (row.get(1), row.get(2)) {
        (true, true) => Ok(row.get(0)),
        (true, false) => Err(Blind::Closed(row.get(0))),
        (false, _) => Err(Blind::Hidden),
    })
}
