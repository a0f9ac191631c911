//! All that `provision` needs to know of our own tables in one database, read together.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error};

use super::JournalError;
use super::abandonment::of_this_life;

/// A row of `strangler.slice`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceRow {
    /// Plan that provisioned it.
    pub plan: String,
    /// Service it goes to.
    pub service: String,
    /// `monolith` or `service`.
    pub side: String,
    /// Second key of the gate's lock.
    pub lock_key: i32,
    /// Hash of the mapping it was provisioned for.
    pub plan_hash: String,
    /// The slice's publication on the monolith.
    pub publication: String,
}

/// A row of `strangler.mirror_table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorRow {
    /// Table in the service, as names are shown.
    pub target: String,
    /// `pending` as long as nothing was copied.
    pub state: String,
}

/// A row of `strangler.deferred`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeferredRow {
    /// What puts it in place.
    pub create_sql: String,
    /// It is in place.
    pub done: bool,
}

/// What our tables in one database hold.
#[derive(Debug, Clone, Default)]
pub struct Provisioned {
    /// System identifier and oid in `strangler.database`.
    pub identity: Option<(String, u32)>,
    /// `strangler.slice`.
    pub slices: BTreeMap<String, SliceRow>,
    /// Slices whose stream has begun.
    pub streams: BTreeSet<String>,
    /// Those of them whose stream only watches over a closed monolith.
    pub watches: BTreeSet<String>,
    /// `strangler.mirror_table` by slice and source table as names are shown.
    pub mirror_tables: BTreeMap<(String, String), MirrorRow>,
    /// `strangler.deferred` by slice, target table, kind and object.
    pub deferred: BTreeMap<(String, String, String, String), DeferredRow>,
    /// What the journal holds of our notes: slice, action and object.
    pub notes: BTreeSet<(String, String, String)>,
}

/// Reads them, in the caller's transaction where there is one. The tables must be there.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn read(client: &Client) -> Result<Provisioned, JournalError> {
    read_all(client).await.map_err(JournalError::database("reading what was provisioned"))
}

async fn read_all(client: &Client) -> Result<Provisioned, Error> {
    let mut found = Provisioned::default();
    let sql = "SELECT system_identifier, database_oid FROM strangler.database";
    if let Some(row) = client.query_typed_opt(sql, &[]).await? {
        found.identity = Some((row.try_get(0)?, row.try_get(1)?));
    }
    let sql = "SELECT slice, plan, service, side, lock_key, plan_hash, publication FROM strangler.slice";
    for row in client.query_typed(sql, &[]).await? {
        let slice = SliceRow {
            plan: row.try_get(1)?,
            service: row.try_get(2)?,
            side: row.try_get(3)?,
            lock_key: row.try_get(4)?,
            plan_hash: row.try_get(5)?,
            publication: row.try_get(6)?,
        };
        found.slices.insert(row.try_get(0)?, slice);
    }
    let sql =
        "SELECT slice, bool_or(dir = 'forward' AND mode = 'TRIPWIRE') FROM strangler.stream GROUP BY slice";
    for row in client.query_typed(sql, &[]).await? {
        let slice: String = row.try_get(0)?;
        if row.try_get(1)? {
            found.watches.insert(slice.clone());
        }
        found.streams.insert(slice);
    }
    let sql = "SELECT slice, source_table, target_table, state FROM strangler.mirror_table";
    for row in client.query_typed(sql, &[]).await? {
        let mirror = MirrorRow { target: row.try_get(2)?, state: row.try_get(3)? };
        found.mirror_tables.insert((row.try_get(0)?, row.try_get(1)?), mirror);
    }
    let sql =
        "SELECT slice, target_table, kind, object, create_sql, done_at IS NOT NULL FROM strangler.deferred";
    for row in client.query_typed(sql, &[]).await? {
        let key = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        found.deferred.insert(key, DeferredRow { create_sql: row.try_get(4)?, done: row.try_get(5)? });
    }
    let sql = format!(
        "SELECT slice, action, detail ->> 'object' FROM strangler.journal j \
               WHERE slice IS NOT NULL AND detail ? 'object' AND {}",
        of_this_life("j", "j.slice")
    );
    for row in client.query_typed(&sql, &[]).await? {
        found.notes.insert((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    }
    Ok(found)
}
