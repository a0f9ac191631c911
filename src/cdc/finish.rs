//! Puts deferred indexes and constraints in place once the data is there.

use super::error::MirrorError;
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
/// `nonce` guards against a successor: the same check as any other write of the mirror.
///
/// # Errors
/// [`MirrorError`] for trouble of the link or the server.
pub async fn run(
    admin: &Server,
    slice: &str,
    nonce: i64,
    progress: &(dyn Fn(&DeferredRow, usize, usize) + Send + Sync),
) -> Result<Finished, MirrorError> {
    let session = open(admin, slice).await?;
    let waiting = deferred::waiting(&session, slice).await?;
    let total = waiting.len();
    let mut finished = Finished::default();
    for (number, row) in waiting.iter().enumerate() {
        progress(row, number, total);
        session.batch_execute("BEGIN").await.map_err(MirrorError::sql("opening a transaction"))?;
        guard(&session, slice, nonce).await?;
        match session.batch_execute(&row.create_sql).await {
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
                finished.failed.push(format!("{} on {} (SQLSTATE {code})", row.object, row.target_table));
            }
        }
    }
    if total > 0 {
        failpoint::hit("deferred-done");
    }
    Ok(finished)
}

/// Takes unique indexes and exclusion constraints of a table away again and lets them wait for the data, in one
/// transaction under the same guard as any write of the mirror. Called before a table is copied again.
///
/// # Errors
/// [`MirrorError`].
pub async fn defer_again(
    admin: &Server,
    slice: &str,
    nonce: i64,
    mapping: &TableMapping,
) -> Result<(), MirrorError> {
    let session = open(admin, slice).await?;
    session.batch_execute("BEGIN").await.map_err(MirrorError::sql("opening a transaction"))?;
    guard(&session, slice, nonce).await?;
    for row in deferred::unique_done(&session, slice, &mapping.target.to_string()).await? {
        let sql = match row.kind.as_str() {
            "index" => format!(
                "DROP INDEX IF EXISTS {}",
                TableName::new(mapping.target.schema.clone(), row.object.clone()).sql()
            ),
            _ => format!(
                "ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}",
                mapping.target.sql(),
                quote_ident(&row.object)
            ),
        };
        session.batch_execute(&sql).await.map_err(MirrorError::sql("taking a unique index away"))?;
        deferred::set_waiting(&session, row.id).await?;
    }
    session.batch_execute("COMMIT").await.map_err(MirrorError::sql("taking unique indexes away"))?;
    failpoint::hit("unique-deferred-again");
    Ok(())
}

async fn guard(session: &Session, slice: &str, nonce: i64) -> Result<(), MirrorError> {
    if deferred::guard(session, slice, nonce).await? {
        Ok(())
    } else {
        Err(MirrorError::Fenced { slice: slice.to_owned() })
    }
}
