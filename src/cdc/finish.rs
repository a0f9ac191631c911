//! Puts deferred indexes and constraints in place once the data is there.

use super::emptying::{LOCK_TIMEOUT_MS, PAUSE};
use super::error::MirrorError;
use super::source;
use super::start::open;
use crate::failpoint;
use crate::journal::deferred::{self, DeferredRow};
use crate::journal::{self};
use crate::mapping::TableMapping;
use crate::name::{TableName, quote_ident};
use crate::postgres::connect::{Server, Session};
use crate::postgres::sqlstate;

/// What became of the deferred statements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finished {
    /// Statements that were run.
    pub done: usize,
    /// Objects whose statement failed, with the SQLSTATE: they stay deferred.
    pub failed: Vec<String>,
}

/// Runs every waiting statement of a slice in order, each in a transaction with its mark, as the service's
/// administrator. A statement that the data contradicts stays waiting and is named; a later start tries it again.
/// `nonce` guards against a successor: the same check as any other write of the mirror. `waits` is told who keeps a statement
/// from its table.
///
/// # Errors
/// [`MirrorError`] for trouble of the link or the server.
pub async fn run(
    admin: &Server,
    (slice, nonce): (&str, i64),
    progress: &(dyn Fn(&DeferredRow, usize, usize) + Send + Sync),
    waits: &(dyn Fn(&str) + Send + Sync),
) -> Result<Finished, MirrorError> {
    let session = open(admin, slice).await?;
    let waiting = deferred::waiting(&session, slice).await?;
    let total = waiting.len();
    let mut finished = Finished::default();
    for (number, row) in waiting.iter().enumerate() {
        progress(row, number, total);
        match add(&session, (slice, nonce), row, waits).await? {
            Ok(()) => {
                deferred::set_done(&session, row.id).await?;
                session
                    .batch_execute("COMMIT")
                    .await
                    .map_err(MirrorError::sql("finishing an index or constraint"))?;
                finished.done += 1;
                failpoint::hit("deferred-one-done");
            }
            Err(error) if sqlstate::is_retryable(&error) || error.as_db_error().is_none() => {
                return Err(MirrorError::sql("building an index or constraint")(error));
            }
            Err(error) => {
                session.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("giving a statement up"))?;
                let code = sqlstate::code(&error).unwrap_or("unknown").to_owned();
                let entry = serde_json::json!({ "object": row.object, "sqlstate": code });
                journal::record(&session, Some(slice), "deferred-failed", &entry).await?;
                failpoint::hit("deferred-failed-noted");
                finished.failed.push(format!("{} on {} (SQLSTATE {code})", row.object, row.target_table));
            }
        }
    }
    if total > 0 {
        failpoint::hit("deferred-done");
    }
    Ok(finished)
}

/// Runs one statement and leaves its transaction open. ADD CONSTRAINT shuts the service's readers out, who queue behind whoever
/// waits for that: it waits no longer than an application bears, lets them go on, and tries again.
async fn add(
    session: &Session,
    (slice, nonce): (&str, i64),
    row: &DeferredRow,
    waits: &(dyn Fn(&str) + Send + Sync),
) -> Result<Result<(), tokio_postgres::Error>, MirrorError> {
    loop {
        session.batch_execute("BEGIN").await.map_err(MirrorError::sql("opening a transaction"))?;
        guard(session, slice, nonce).await?;
        let patience = format!("SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}");
        session.batch_execute(&patience).await.map_err(MirrorError::sql("opening a transaction"))?;
        match session.batch_execute(&row.create_sql).await {
            Err(error) if sqlstate::is_lock_timeout(&error) => {
                session.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("giving way"))?;
                let table = TableName::parse(&row.target_table, "public").map(|table| table.sql());
                let tables: Vec<String> = table.into_iter().collect();
                let who = source::lock_holder(session, &tables).await?;
                waits(&format!(
                    "{} on {} waits while the table is in use: {who}",
                    row.object, row.target_table
                ));
                tokio::time::sleep(PAUSE).await;
            }
            Ok(()) => {
                // What comes now is in the mirror's own tables.
                let patience = session.batch_execute("SET LOCAL lock_timeout = 0").await;
                patience.map_err(MirrorError::sql("finishing an index or constraint"))?;
                return Ok(Ok(()));
            }
            ended @ Err(_) => return Ok(ended),
        }
    }
}

/// Takes everything away from a table that its rows may break while it is copied again (unique indexes, exclusion
/// constraints, checks that were never validated) and lets it wait for the data, with the foreign keys that lean on it.
/// One transaction, under the same guard as any write of the mirror. Called before a table is copied again.
///
/// # Errors
/// [`MirrorError::Refused`] where a foreign key that is not the mirror's leans on such an index; 55P03 where a lock is not to
/// be had in time.
pub async fn defer_again(
    admin: &Server,
    (slice, nonce): (&str, i64),
    mapping: &TableMapping,
    lock_timeout_ms: u32,
) -> Result<(), MirrorError> {
    let session = open(admin, slice).await?;
    let begin = format!("BEGIN; SET LOCAL lock_timeout = {lock_timeout_ms}");
    session.batch_execute(&begin).await.map_err(MirrorError::sql("opening a transaction"))?;
    guard(&session, slice, nonce).await?;
    for row in deferred::breakable_done(&session, slice, &mapping.target.to_string()).await? {
        let index = TableName::new(mapping.target.schema.clone(), row.object.clone());
        let sql = match row.kind.as_str() {
            "index" => format!("DROP INDEX IF EXISTS {}", index.sql()),
            _ => format!(
                "ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}",
                mapping.target.sql(),
                quote_ident(&row.object)
            ),
        };
        release(&session, slice, mapping, &index).await?;
        keep_identity(&session, mapping, &index).await?;
        session.batch_execute(&sql).await.map_err(MirrorError::sql("taking a constraint away"))?;
        deferred::set_waiting(&session, row.id).await?;
    }
    session.batch_execute("COMMIT").await.map_err(MirrorError::sql("taking constraints away"))?;
    failpoint::hit("unique-deferred-again");
    Ok(())
}

/// Where the index is the table's replica identity, whole rows are that until it is there again: a publication in the service would
/// refuse the mirror's changes of a table that has none.
async fn keep_identity(
    session: &Session,
    mapping: &TableMapping,
    index: &TableName,
) -> Result<(), MirrorError> {
    let sql = "SELECT FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid \
               JOIN pg_catalog.pg_namespace n ON n.oid = i.relnamespace \
               WHERE x.indisreplident AND n.nspname = $1 AND i.relname = $2";
    let found = session.query_opt(sql, &[&index.schema, &index.name]).await;
    if found.map_err(MirrorError::sql("looking for the replica identity"))?.is_none() {
        return Ok(());
    }
    let full = format!("ALTER TABLE {} REPLICA IDENTITY FULL", mapping.target.sql());
    session.batch_execute(&full).await.map_err(MirrorError::sql("changing the replica identity"))
}

/// Takes the foreign keys away that lean on an index, which could not be dropped under them.
async fn release(
    session: &Session,
    slice: &str,
    mapping: &TableMapping,
    index: &TableName,
) -> Result<(), MirrorError> {
    let sql = "SELECT n.nspname::text, t.relname::text, k.conname::text FROM pg_catalog.pg_constraint k \
               JOIN pg_catalog.pg_class t ON t.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace \
               JOIN pg_catalog.pg_class i ON i.oid = k.conindid JOIN pg_catalog.pg_namespace m ON m.oid = i.relnamespace \
               WHERE k.contype = 'f' AND k.conparentid = 0 AND m.nspname = $1 AND i.relname = $2 ORDER BY 1, 2, 3";
    let rows = session.query(sql, &[&index.schema, &index.name]).await;
    for row in rows.map_err(MirrorError::sql("looking for foreign keys"))? {
        let (table, key) = (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get(2));
        let drop = format!("ALTER TABLE {} DROP CONSTRAINT {}", table.sql(), quote_ident(key));
        if !deferred::set_key_waiting(session, slice, &table.to_string(), key).await? {
            return Err(MirrorError::Refused {
                what: format!(
                    "the foreign key {key} of {table} leans on {}, which has to wait until {} is copied again, and strangler \
                     did not make that key",
                    index.name, mapping.target
                ),
                next: format!("run in the service, and add the key again once the slice is live: {drop};"),
            });
        }
        session.batch_execute(&drop).await.map_err(MirrorError::sql("taking a foreign key away"))?;
    }
    Ok(())
}

async fn guard(session: &Session, slice: &str, nonce: i64) -> Result<(), MirrorError> {
    if deferred::guard(session, slice, nonce).await? {
        Ok(())
    } else {
        Err(MirrorError::Fenced { slice: slice.to_owned() })
    }
}
