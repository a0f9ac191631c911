//! Brings the schema `strangler` of one database to the form that this version knows.

use refinery_core::{Migration, Runner};
use tokio_postgres::Client;

use super::JournalError;
use crate::name::quote_literal;

/// Where the applied versions are recorded.
pub const HISTORY: &str = "strangler.schema_history";

/// Creates the schema; the history table lives in it, so this comes before every version.
pub const CREATE_SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS strangler";

/// Every version: name in the form `V<number>__<words>`, and its SQL.
pub const VERSIONS: &[(&str, &str)] = &[
    ("V1__schema", include_str!("migrations/V1__schema.sql")),
    ("V2__evidence", include_str!("migrations/V2__evidence.sql")),
    ("V3__authority", include_str!("migrations/V3__authority.sql")),
    ("V4__use", include_str!("migrations/V4__use.sql")),
    ("V5__identities", include_str!("migrations/V5__identities.sql")),
    ("V6__retirement", include_str!("migrations/V6__retirement.sql")),
    ("V7__emptied", include_str!("migrations/V7__emptied.sql")),
    ("V8__quarantine", include_str!("migrations/V8__quarantine.sql")),
    ("V9__archive", include_str!("migrations/V9__archive.sql")),
    ("V10__lineage", include_str!("migrations/V10__lineage.sql")),
    ("V11__kept", include_str!("migrations/V11__kept.sql")),
    ("V12__abandonment", include_str!("migrations/V12__abandonment.sql")),
    ("V13__dropped", include_str!("migrations/V13__dropped.sql")),
];

/// A table or index that each version makes, in their order: who may not read the history sees in the catalog how far it goes.
const MARKS: &[&str] = &[
    "slice",
    "ledger",
    "cut_key",
    "table_use",
    "piece_identity",
    "retirement",
    "mirror_table_emptied",
    "quarantine",
    "archive",
    "lineage",
    "mirror_table_kept",
    "abandonment",
    "dropped",
];

/// Advisory lock under which versions are applied. Gates use the same class with keys from 1.
const LOCK: (i32, i32) = (1_398_035_026, -1);

/// How long one lock is waited for, in milliseconds: whoever comes after waits behind the one who asks.
const LOCK_TIMEOUT_MS: u32 = 10_000;

/// The schema could not be brought to the present version.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A statement failed.
    #[error("could not {what} the schema strangler")]
    Query {
        /// What was tried.
        what: &'static str,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// A version failed, or the database knows one that this program doesn't.
    #[error(
        "could not upgrade the schema strangler; if a newer strangler has provisioned this database, use that one"
    )]
    Upgrade {
        /// Which one, and why.
        source: Box<refinery_core::Error>,
    },
}

/// How the schema `strangler` of a database stands to this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Nothing was ever provisioned.
    #[default]
    Absent,
    /// An earlier version provisioned it: `provision` brings it up to date and keeps what it holds.
    Older,
    /// It is as this version, or a later one, makes it.
    Current,
}

/// Asks for it. Any role may, because only the catalog is read.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn form(client: &Client) -> Result<Form, JournalError> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'strangler' AND c.relname = ANY ($1)";
    let failed = JournalError::database("looking at the version of the tables");
    let row = client.query_one(sql, &[&MARKS]).await.map_err(failed)?;
    Ok(match usize::try_from(row.get::<_, i64>(0)) {
        Ok(0) => Form::Absent,
        Ok(made) if made == MARKS.len() => Form::Current,
        Ok(_) | Err(_) => Form::Older,
    })
}

/// Whether a later version than this one has provisioned a database; it may mean something else by what stands there. A role
/// that may not read the history is told no.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn is_newer(client: &Client) -> Result<bool, JournalError> {
    let failed = || JournalError::database("looking at the version of the tables");
    let readable = "SELECT pg_catalog.has_schema_privilege('strangler', 'USAGE') \
                    AND pg_catalog.has_table_privilege(c.oid, 'SELECT') \
                    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                    WHERE n.nspname = 'strangler' AND c.relname = 'schema_history'";
    let row = client.query_typed_opt(readable, &[]).await.map_err(failed())?;
    if !row.is_some_and(|row| row.get(0)) {
        return Ok(false);
    }
    let sql = format!("SELECT {}", newer());
    Ok(client.query_typed_one(&sql, &[]).await.map_err(failed())?.get(0))
}

/// SQL for [`is_newer`], of a role that may read the history.
pub(super) fn newer() -> String {
    let numbers = VERSIONS.iter().filter_map(|(name, sql)| Migration::unapplied(name, sql).ok());
    let known = numbers.map(|migration| migration.version()).max().unwrap_or_default();
    format!("EXISTS (SELECT FROM {HISTORY} WHERE version > {known})")
}

/// Versions that the database lacks, by name, in order. The connection may be in a transaction.
///
/// # Errors
/// [`MigrateError::Query`].
pub async fn missing(client: &Client) -> Result<Vec<&'static str>, MigrateError> {
    let failed = |source| MigrateError::Query { what: "look at", source };
    // Reading the catalog first keeps a surrounding transaction alive where there is no history yet.
    let there = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = 'strangler' AND c.relname = 'schema_history')";
    let there: bool =
        client.query_typed_one(there, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    if !there {
        return Ok(VERSIONS.iter().map(|(name, _)| *name).collect());
    }
    let sql = format!("SELECT 'V' || version || '__' || name FROM {HISTORY}");
    let rows = client.query_typed(&sql, &[]).await.map_err(failed)?;
    let applied: Vec<String> =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
    Ok(VERSIONS.iter().map(|(name, _)| *name).filter(|name| !applied.iter().any(|a| a == name)).collect())
}

/// What [`run`] does where these versions are missing, for somebody who reads it first, or runs it by hand.
#[must_use]
pub fn text(missing: &[String]) -> String {
    let mut text = format!(
        "BEGIN;\n{CREATE_SCHEMA};\nCREATE TABLE IF NOT EXISTS {HISTORY} (version int4 PRIMARY KEY, name varchar(255), \
         applied_on varchar(255), checksum varchar(255));\n"
    );
    for (name, sql) in VERSIONS.iter().filter(|(name, _)| missing.iter().any(|one| one == name)) {
        text.push_str(&format!("-- {name}\n{sql}"));
        if let Ok(version) = Migration::unapplied(name, sql) {
            text.push_str(&format!(
                "INSERT INTO {HISTORY} VALUES ({}, {}, replace(to_char(now() AT TIME ZONE 'UTC', \
                 'YYYY-MM-DD HH24:MI:SS'), ' ', 'T') || 'Z', {});\n",
                version.version(),
                quote_literal(version.name()),
                quote_literal(&version.checksum().to_string())
            ));
        }
    }
    text + "COMMIT;\n"
}

/// Applies the versions that are missing, all in one transaction, one process at a time. Safe to repeat. No limit on locks is
/// left in the session.
///
/// # Errors
/// [`MigrateError`]; the database is then as before.
pub async fn run(client: &mut Client) -> Result<(), MigrateError> {
    let failed = |what| move |source| MigrateError::Query { what, source };
    let limit = format!("SET lock_timeout = {LOCK_TIMEOUT_MS}");
    client.batch_execute(&limit).await.map_err(failed("lock"))?;
    let outcome = locked_run(client).await;
    let unlimited = client.batch_execute("SET lock_timeout = 0").await;
    outcome?;
    unlimited.map_err(failed("unlock"))
}

async fn locked_run(client: &mut Client) -> Result<(), MigrateError> {
    let failed = |what| move |source| MigrateError::Query { what, source };
    let (class, key) = LOCK;
    client.execute("SELECT pg_advisory_lock($1, $2)", &[&class, &key]).await.map_err(failed("lock"))?;
    let outcome = upgrade(client).await;
    let unlocked = client.execute("SELECT pg_advisory_unlock($1, $2)", &[&class, &key]).await;
    outcome?;
    unlocked.map_err(failed("unlock"))?;
    Ok(())
}

async fn upgrade(client: &mut Client) -> Result<(), MigrateError> {
    let upgrade = |source| MigrateError::Upgrade { source: Box::new(source) };
    client
        .batch_execute(CREATE_SCHEMA)
        .await
        .map_err(|source| MigrateError::Query { what: "create", source })?;
    let versions: Vec<Migration> = VERSIONS
        .iter()
        .map(|(name, sql)| Migration::unapplied(name, sql))
        .collect::<Result<_, _>>()
        .map_err(upgrade)?;
    let mut runner = Runner::new(&versions).set_grouped(true);
    runner.set_migration_table_name(HISTORY);
    runner.run_async(client).await.map_err(upgrade)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_a_mark_that_it_makes() {
        assert_eq!(MARKS.len(), VERSIONS.len());
        for (mark, (name, sql)) in MARKS.iter().zip(VERSIONS) {
            let makes = [
                format!("CREATE TABLE strangler.{mark} ("),
                format!("CONSTRAINT {mark} PRIMARY KEY"),
                format!("CREATE INDEX {mark} ON strangler."),
            ];
            assert!(makes.iter().any(|made| sql.contains(made)), "{name} makes no {mark}");
        }
    }
}
