//! Reads a database's catalogs into a [`Catalog`], in one transaction, on PostgreSQL 14 to 18.
//!
//! System schemas, our own schema `strangler` and what extensions own are left out. Everything is read with the
//! rights of an ordinary role; what such a role may not see (statistics of tables it can't read) stays empty.

mod dependents;
mod dropped;
mod keys;
mod objects;
mod quarantined;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, Row};

use super::places::{self, Places};
use super::sqlstate::Failure;
use crate::catalog::{Catalog, Identity};
use crate::name::TableName;
use dropped::Kept;
use keys::CutKeys;

/// The oldest major version whose catalogs are understood.
const OLDEST_MAJOR: u32 = 14;

/// How long the reader waits for one lock. Sizes need ACCESS SHARE on each table, which stands behind DDL; ten
/// seconds is far longer than DDL should hold its lock, and short enough to tell the operator that it does.
const LOCK_TIMEOUT_MS: u32 = 10_000;

/// Begins a transaction that reads catalogs. Its statements join many catalogs, of which each session plans them once: looking for the
/// best order of the joins takes it longer than all the rest, and they are written in an order that is good for few tables and for
/// very many (PostgreSQL documentation, section 20.7.4, `join_collapse_limit`).
pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = pg_catalog; \
     SET LOCAL join_collapse_limit = 1";

/// Condition on `n` (`pg_namespace`): the schema is neither PostgreSQL's nor ours.
const USER_SCHEMA: &str = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'strangler')";

/// Settings that decisions rest on. Those that a role may not see, or that a version doesn't have, are absent.
const SETTINGS: &[&str] = &[
    "block_size",
    "default_transaction_isolation",
    "idle_replication_slot_timeout",
    "in_hot_standby",
    "logical_decoding_work_mem",
    "max_connections",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "server_version",
    "superuser_reserved_connections",
    "synchronous_commit",
    "synchronous_standby_names",
    "wal_keep_size",
    "wal_level",
    "wal_sender_timeout",
];

/// The catalogs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IntrospectError {
    /// A statement failed, most often because the connection broke or a table stayed locked.
    #[error("could not read {what} from the catalogs")]
    Query {
        /// Which part.
        what: &'static str,
        /// What the server said.
        source: Error,
    },
    /// The server is older than the catalogs that are understood.
    #[error("the server's version {version_num} is older than PostgreSQL {OLDEST_MAJOR}; upgrade it first")]
    TooOld {
        /// `server_version_num`.
        version_num: u32,
    },
    /// A managed server may have taken this right away.
    #[error(
        "role {role} may not call pg_control_system(), which tells one server from another; \
         run as a superuser: GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO {role}"
    )]
    NoControlSystem {
        /// The connected role, quoted for SQL.
        role: String,
    },
    /// The database was provisioned, yet this role can't tell which one it is.
    #[error(
        "role {role} may not read strangler.database, which holds this database's identity; \
         run: GRANT USAGE ON SCHEMA strangler TO {role}; GRANT SELECT ON strangler.database TO {role}"
    )]
    NoUuid {
        /// The connected role, quoted for SQL.
        role: String,
    },
    /// Old tables were moved away, yet this role can't tell where from.
    #[error(
        "role {role} may not read strangler.quarantine, which says where retire has moved old tables; \
         run: strangler provision PLAN, or GRANT SELECT ON strangler.quarantine TO {role}"
    )]
    NoPlaces {
        /// The connected role, quoted for SQL.
        role: String,
    },
    /// What was kept of dropped tables can't be read.
    #[error("strangler.dropped, which says what dropped tables were, does not look as this version left it")]
    Dropped {
        /// What did not fit.
        source: serde_json::Error,
    },
    /// Tables may have been dropped, yet this role can't tell which, and would take what came since under their names for them.
    #[error(
        "role {role} may not read strangler.dropped, which says what dropped tables were; \
         run: strangler provision PLAN, or GRANT SELECT ON strangler.dropped TO {role}"
    )]
    NoDropped {
        /// The connected role, quoted for SQL.
        role: String,
    },
    /// Foreign keys may have been cut, yet this role can't tell which: the mapping would be another one.
    #[error(
        "role {role} may not read strangler.cut_key, which holds the foreign keys that arm has dropped; \
         run: strangler provision PLAN, or GRANT SELECT ON strangler.cut_key TO {role}"
    )]
    NoCutKeys {
        /// The connected role, quoted for SQL.
        role: String,
    },
}

/// Reads everything in one `REPEATABLE READ READ ONLY` transaction, which it ends. The connection must not be in
/// a transaction. Definitions come out with qualified names, since the transaction's `search_path` is
/// `pg_catalog` alone.
///
/// # Errors
/// [`IntrospectError`], which says what could not be read and, where a right is missing, how to grant it.
pub async fn read(client: &Client) -> Result<Catalog, IntrospectError> {
    in_transaction(client, read_all(client)).await
}

/// The same of what stands there now, and of nothing else: without tables that are dropped and keys that are cut, of which the role need
/// not know. Tables that `retire` has moved are told by their names. Who calls it: `restore`, into whatever database.
///
/// # Errors
/// As [`read`].
pub async fn standing(client: &Client) -> Result<Catalog, IntrospectError> {
    in_transaction(client, async {
        let (catalog, places) = read_standing(client).await?;
        Ok(by_their_names(catalog, &places))
    })
    .await
}

/// Runs `work` in the reading transaction and ends it.
async fn in_transaction<T>(
    client: &Client,
    work: impl Future<Output = Result<T, IntrospectError>>,
) -> Result<T, IntrospectError> {
    let begin = format!("{BEGIN}; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}");
    client.batch_execute(&begin).await.map_err(failed("a snapshot"))?;
    let outcome = work.await;
    let ended = client.batch_execute("ROLLBACK").await.map_err(failed("a snapshot"));
    let value = outcome?;
    ended?;
    Ok(value)
}

async fn read_all(client: &Client) -> Result<Catalog, IntrospectError> {
    let (mut catalog, places) = read_standing(client).await?;
    let cut = match keys::read_cut_keys(client).await.map_err(failed("foreign keys that were cut"))? {
        CutKeys::None => Vec::new(),
        CutKeys::Closed => return Err(IntrospectError::NoCutKeys { role: role(client).await? }),
        CutKeys::Read(cut) => cut,
    };
    catalog.foreign_keys = keys::joined(catalog.foreign_keys, cut);
    let dropped = match dropped::read(client).await.map_err(failed("dropped tables"))? {
        Kept::Closed => return Err(IntrospectError::NoDropped { role: role(client).await? }),
        Kept::Read(dropped) => dropped.into_iter().collect::<Result<_, _>>(),
    };
    let dropped = dropped.map_err(|source| IntrospectError::Dropped { source })?;
    Ok(by_their_names(catalog, &places).with_dropped(dropped))
}

fn by_their_names(catalog: Catalog, places: &Places) -> Catalog {
    if places.0.is_empty() { catalog } else { quarantined::known_by_their_names(catalog, places) }
}

/// What stands in the database, by the names that it has there.
async fn read_standing(client: &Client) -> Result<(Catalog, Places), IntrospectError> {
    let mut catalog = read_database(client).await?;
    catalog.tables = tables::read(client).await.map_err(failed("tables"))?;
    let places = read_places(client, &catalog).await?;
    tables::read_columns(client, &mut catalog.tables).await.map_err(failed("columns"))?;
    tables::read_correlations(client, &mut catalog.tables).await.map_err(failed("statistics"))?;
    tables::sum_partitions(&mut catalog.tables);
    keys::read_indexes(client, &mut catalog.tables).await.map_err(failed("indexes"))?;
    keys::read_constraints(client, &mut catalog.tables).await.map_err(failed("constraints"))?;
    catalog.foreign_keys = keys::read_foreign_keys(client).await.map_err(failed("foreign keys"))?;
    catalog.types = objects::read_types(client).await.map_err(failed("types"))?;
    catalog.sequences = objects::read_sequences(client).await.map_err(failed("sequences"))?;
    let dependents = dependents::read(client, &catalog.tables, &places).await;
    catalog.dependents = dependents.map_err(failed("views, functions and triggers"))?;
    catalog.settings = read_pairs(client, &settings_sql()).await.map_err(failed("settings"))?;
    let extensions = "SELECT extname::text, extversion FROM pg_extension";
    catalog.extensions = read_pairs(client, extensions).await.map_err(failed("extensions"))?;
    let schemas = "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_' \
                   AND nspname <> 'information_schema' ORDER BY 1";
    let rows = client.query_typed(schemas, &[]).await.map_err(failed("schemas"))?;
    catalog.schemas =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed("schemas"))?;
    Ok((catalog, places))
}

/// Where old tables stand, as far as this role may know it.
async fn read_places(client: &Client, catalog: &Catalog) -> Result<Places, IntrospectError> {
    let schemas: BTreeSet<&str> = catalog.tables.keys().map(|table| table.schema.as_str()).collect();
    match places::among(client, schemas.into_iter()).await {
        Err(error) if Failure::of(&error) == Failure::Privilege => {
            // The question has ended the transaction.
            client.batch_execute("ROLLBACK").await.map_err(failed("a snapshot"))?;
            Err(IntrospectError::NoPlaces { role: role(client).await? })
        }
        read => read.map_err(failed("where old tables stand")),
    }
}

fn settings_sql() -> String {
    let names: Vec<String> = SETTINGS.iter().map(|name| crate::name::quote_literal(name)).collect();
    format!("SELECT name, current_setting(name) FROM pg_settings WHERE name IN ({})", names.join(", "))
}

/// What the database is, with everything in it still empty.
async fn read_database(client: &Client) -> Result<Catalog, IntrospectError> {
    // `to_jsonb` reaches columns that only newer versions have: the provider since 15, the ICU locale as
    // daticulocale in 15 and 16 and as datlocale since 17.
    let sql = "SELECT d.datname::text, d.oid, current_setting('server_version_num')::int4, \
                      pg_encoding_to_char(d.encoding)::text, d.datcollate::text, \
                      to_jsonb(d) ->> 'datlocprovider', \
                      coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'), \
                      has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE'), \
                      quote_ident(current_user::text) \
               FROM pg_database d WHERE d.datname = current_database()";
    let what = failed("the database");
    let row = client.query_typed_one(sql, &[]).await.map_err(&what)?;
    let version: i32 = row.try_get(2).map_err(&what)?;
    let version_num = u32::try_from(version).unwrap_or(0);
    if version_num / 10_000 < OLDEST_MAJOR {
        return Err(IntrospectError::TooOld { version_num });
    }
    let role: String = row.try_get(8).map_err(&what)?;
    if !row.try_get::<_, bool>(7).map_err(&what)? {
        return Err(IntrospectError::NoControlSystem { role });
    }
    Ok(Catalog {
        database: row.try_get(0).map_err(&what)?,
        identity: read_identity(client, row.try_get(1).map_err(&what)?, role).await?,
        version_num,
        encoding: row.try_get(3).map_err(&what)?,
        collation: collation_of(&row).map_err(&what)?,
        tables: BTreeMap::new(),
        types: BTreeMap::new(),
        sequences: BTreeMap::new(),
        foreign_keys: Vec::new(),
        dependents: Vec::new(),
        settings: BTreeMap::new(),
        schemas: Vec::new(),
        extensions: BTreeMap::new(),
        dropped: BTreeSet::new(),
    })
}

fn collation_of(row: &Row) -> Result<String, Error> {
    let libc: String = row.try_get(4)?;
    let provider: Option<String> = row.try_get(5)?;
    let locale: Option<String> = row.try_get(6)?;
    Ok(match provider.as_deref() {
        Some("i") => format!("icu:{}", locale.unwrap_or_default()),
        Some("b") => format!("builtin:{}", locale.unwrap_or_default()),
        _ => format!("libc:{libc}"),
    })
}

async fn role(client: &Client) -> Result<String, IntrospectError> {
    let sql = "SELECT quote_ident(current_user::text)";
    Ok(client.query_typed_one(sql, &[]).await.map_err(failed("the role"))?.get(0))
}

async fn read_identity(
    client: &Client,
    database_oid: u32,
    role: String,
) -> Result<Identity, IntrospectError> {
    let what = failed("the identity");
    let sql = "SELECT system_identifier::text FROM pg_control_system()";
    let system_identifier =
        client.query_typed_one(sql, &[]).await.and_then(|row| row.try_get(0)).map_err(&what)?;
    let sql = "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'strangler' AND c.relname = 'database'";
    let database_uuid = match client.query_typed_opt(sql, &[]).await.map_err(&what)? {
        None => None,
        Some(row) if row.try_get::<_, bool>(0).map_err(&what)? => {
            let sql = "SELECT uuid::text FROM strangler.database";
            let row = client.query_typed_opt(sql, &[]).await.map_err(&what)?;
            row.map(|row| row.try_get(0)).transpose().map_err(&what)?
        }
        Some(_) => return Err(IntrospectError::NoUuid { role }),
    };
    Ok(Identity { system_identifier, database_oid, database_uuid })
}

async fn read_pairs(client: &Client, sql: &str) -> Result<BTreeMap<String, String>, Error> {
    let rows = client.query_typed(sql, &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn failed(what: &'static str) -> impl Fn(Error) -> IntrospectError {
    move |source| IntrospectError::Query { what, source }
}

/// The name in two neighbouring columns of a row.
fn name_at(row: &Row, schema: &str, name: &str) -> Result<TableName, Error> {
    Ok(TableName::new(row.try_get::<_, String>(schema)?, row.try_get::<_, String>(name)?))
}

/// The name in two neighbouring columns of a row that may both be null.
fn optional_name_at(row: &Row, schema: &str, name: &str) -> Result<Option<TableName>, Error> {
    let schema: Option<String> = row.try_get(schema)?;
    let name: Option<String> = row.try_get(name)?;
    Ok(schema.zip(name).map(|(schema, name)| TableName::new(schema, name)))
}

/// A catalog `"char"`, read as text.
fn char_at(row: &Row, column: &str) -> Result<char, Error> {
    Ok(row.try_get::<_, String>(column)?.chars().next().unwrap_or(' '))
}

/// A size or count that the server gives as a signed number.
fn size_at(row: &Row, column: &str) -> Result<u64, Error> {
    Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or(0))
}
