//! What the mirror asks the monolith beside the replication stream: snapshots, positions, heartbeats, the slot.

use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use super::error::MirrorError;
use crate::lsn::Lsn;
use crate::postgres::ask::Ask;
use crate::postgres::partitions::TREES;
use crate::snapshot::{FullXid, Snapshot};

/// Prefix of the logical messages that measure the way from a commit to its application.
pub const HEARTBEAT_PREFIX: &str = "strangler.heartbeat";

/// Prefix of the logical messages that ask the running mirror of a slice to make its position durable at once.
/// Whoever waits for a position, such as a reconciliation, sends one with [`emit`].
pub const MARKER_PREFIX: &str = "strangler.marker";

/// Prefix of the logical messages that carry a canary where no publication carries its table.
pub const CANARY_PREFIX: &str = "strangler.way";

/// Content of a marker for a slice; `word` is the sender's own and means nothing to the mirror.
#[must_use]
pub fn marker_content(slice: &str, word: &str) -> String {
    format!("{slice}:{word}")
}

/// Whether a marker is for a slice. A slice's name holds no colon, so the first one ends it.
#[must_use]
pub fn marker_is_for(content: &[u8], slice: &str) -> bool {
    let end = content.iter().position(|byte| *byte == b':');
    end.and_then(|end| content.get(..end)) == Some(slice.as_bytes()) && !slice.is_empty()
}

/// The sender's word in a message for a slice; `None` when it is for another one.
#[must_use]
pub fn word_for(content: &[u8], slice: &str) -> Option<String> {
    if !marker_is_for(content, slice) {
        return None;
    }
    let word = content.get(slice.len() + 1..)?;
    std::str::from_utf8(word).ok().map(str::to_owned)
}

/// A transaction id of the monolith that no later writer can be older than: takes one in a transaction of its own.
/// Rounds wait until every transaction before it has ended. `pg_snapshot_xmax` would not do: it is only the latest
/// completed id plus one, so that a running writer can already have it.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn take_barrier(source: &Client) -> Result<FullXid, MirrorError> {
    let row = source
        .query_typed_one("SELECT pg_current_xact_id()::text", &[])
        .await
        .map_err(MirrorError::sql("taking a barrier transaction"))?;
    let text: &str = row.get(0);
    text.parse().map_err(|_| MirrorError::Unreadable { what: "a transaction id".to_owned() })
}

/// The session's current snapshot: a new one in a READ COMMITTED session, the transaction's own in a
/// REPEATABLE READ transaction.
///
/// # Errors
/// [`MirrorError`].
pub async fn snapshot(source: &Client) -> Result<Arc<Snapshot>, MirrorError> {
    let row = source
        .query_typed_one("SELECT pg_current_snapshot()::text", &[])
        .await
        .map_err(MirrorError::sql("taking a snapshot"))?;
    let text: &str = row.get(0);
    text.parse().map(Arc::new).map_err(|_| MirrorError::Unreadable { what: "a snapshot".to_owned() })
}

/// WAL insert position.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn insert_position(source: &Client) -> Result<Lsn, MirrorError> {
    let row = source
        .query_typed_one("SELECT pg_current_wal_insert_lsn()", &[])
        .await
        .map_err(MirrorError::sql("reading the WAL position"))?;
    let lsn: PgLsn = row.get(0);
    Ok(lsn.into())
}

/// Sends a message down the stream, in a transaction of its own, so that it is flushed at once. Returns the position behind
/// the message: everything that was committed before has an earlier one, and whoever has come so far has met the message.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn emit(source: &impl Ask, prefix: &str, content: &str) -> Result<Lsn, MirrorError> {
    // Writers may wait for this: with the types named it is one round trip.
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&prefix, Type::TEXT), (&content, Type::TEXT)];
    let sent = source.ask_one("SELECT pg_logical_emit_message(true, $1, $2)", &parameters).await;
    sent.and_then(|row| row.try_get::<_, PgLsn>(0))
        .map(Lsn::from)
        .map_err(MirrorError::sql("sending a marker"))
}

/// What the monolith holds for a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Output plugin.
    pub plugin: String,
    /// Database it decodes.
    pub database: String,
    /// Position that was last confirmed.
    pub confirmed: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL held, from `restart_lsn` to now.
    pub held_bytes: u64,
    /// Bytes of WAL behind what was last confirmed.
    pub unconfirmed_bytes: u64,
    /// Bytes that can still be written before the slot is lost, when `max_slot_wal_keep_size` limits it.
    pub safe_bytes: Option<i64>,
    /// Backend that streams from it now.
    pub active_pid: Option<i32>,
}

/// Reads a slot; `None` when there is none of that name.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn slot(source: &Client, name: &str) -> Result<Option<SlotFacts>, MirrorError> {
    let row = source
        .query_opt(
            "SELECT plugin::text, coalesce(database::text, ''), confirmed_flush_lsn, wal_status, \
                 coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8, safe_wal_size, active_pid, \
                 coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::int8 \
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await
        .map_err(MirrorError::sql("reading the slot"))?;
    Ok(row.map(|row| {
        let confirmed: Option<PgLsn> = row.get(2);
        let bytes = |column: usize| u64::try_from(row.get::<_, i64>(column)).unwrap_or(0);
        SlotFacts {
            plugin: row.get::<_, Option<String>>(0).unwrap_or_default(),
            database: row.get(1),
            confirmed: confirmed.map(Lsn::from),
            wal_status: row.get(3),
            held_bytes: bytes(4),
            unconfirmed_bytes: bytes(7),
            safe_bytes: row.get(5),
            active_pid: row.get(6),
        }
    }))
}

/// Tables of `oids` that a session waits to lock exclusively, e.g. for a TRUNCATE: everything that comes after it
/// waits too, so a round lets go of them.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn waits_for_exclusive_lock(source: &Client, oids: &[u32]) -> Result<bool, MirrorError> {
    let row = source
        .query_one(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'relation' AND NOT granted \
                 AND mode = 'AccessExclusiveLock' AND relation = ANY ($1) \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
            &[&oids],
        )
        .await
        .map_err(MirrorError::sql("looking for waiting writers"))?;
    Ok(row.get(0))
}

/// Oids of tables by their quoted names, partitions included.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn table_oids(source: &Client, tables: &[String]) -> Result<Vec<u32>, MirrorError> {
    let rows = source
        .query(
            "SELECT t.oid FROM unnest($1::text[]) AS n(name), \
                 LATERAL (SELECT n.name::regclass::oid AS oid \
                     UNION SELECT relid::oid FROM pg_partition_tree(n.name::regclass)) AS t",
            &[&tables],
        )
        .await
        .map_err(MirrorError::sql("looking tables up"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Pages of a table's main fork.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn pages(source: &Client, table: &str) -> Result<i64, MirrorError> {
    let row = source
        .query_one(
            "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::int8",
            &[&table],
        )
        .await
        .map_err(MirrorError::sql("measuring a table"))?;
    Ok(row.get(0))
}

/// The oldest transaction of the server, in words: pid, age, application. What waits for older ones waits for it longest.
/// Found by its lock, because pg_stat_activity keeps ids and times of other roles' transactions from a role without
/// pg_read_all_stats.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn oldest_transaction(source: &Client) -> Result<String, MirrorError> {
    let row = source
        .query_typed_opt(
            "SELECT format('process %s (%s, database %s)%s', l.pid, \
                 coalesce(nullif(a.application_name, ''), 'role ' || a.usename, 'no application name'), a.datname, \
                 ', open for ' || round(extract(epoch FROM clock_timestamp() - a.xact_start)) || ' s') \
             FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
             WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted \
                 AND l.pid <> pg_backend_pid() ORDER BY age(l.transactionid) DESC LIMIT 1",
            &[],
        )
        .await
        .map_err(MirrorError::sql("looking for the oldest transaction"))?;
    Ok(match row {
        Some(row) => row.get(0),
        None => "a prepared transaction, or one that has just ended".to_owned(),
    })
}

/// Who holds a lock on one of these tables, or a part of them, for the longest time, in words. `tables` are names as SQL.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn lock_holder(client: &Client, tables: &[String]) -> Result<String, MirrorError> {
    let sql = format!(
        "SELECT coalesce(format('process %s (%s)%s', l.pid, \
            coalesce(nullif(a.application_name, ''), 'role ' || a.usename, 'no application name'), \
            ', open for ' || round(extract(epoch FROM clock_timestamp() - a.xact_start)) || ' s'), 'a prepared transaction') \
            || ' holds ' || l.relation::regclass \
        FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
        WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() \
            AND l.relation IN (SELECT r.oid FROM {TREES}) \
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
        ORDER BY a.xact_start LIMIT 1"
    );
    let row =
        client.query_opt(&sql, &[&tables]).await.map_err(MirrorError::sql("looking for who holds a lock"))?;
    Ok(row.map_or_else(|| "a session that has just ended".to_owned(), |row| row.get(0)))
}

/// Whom the mirror has waited for in this database for more than some seconds, in words: a lock on a row, mostly. Asked over a
/// session under the mirror's own name, whose other sessions it means. Waiting is seen in the locks, which every role may read.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn in_the_way(client: &Client) -> Result<Option<String>, MirrorError> {
    let sql = "SELECT CASE WHEN b.pid IS NULL THEN 'a prepared transaction' ELSE format('process %s (%s)', b.pid, \
            coalesce(nullif(b.application_name, ''), 'role ' || b.usename, 'no application name')) END \
            || ' holds a lock that the mirror has waited for, for ' \
            || round(extract(epoch FROM clock_timestamp() - l.waitstart)) || ' s' \
        FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
            CROSS JOIN LATERAL unnest(pg_blocking_pids(l.pid)) AS w (pid) \
            LEFT JOIN pg_stat_activity b ON b.pid = w.pid \
        WHERE NOT l.granted AND l.waitstart < clock_timestamp() - interval '3 s' \
            AND a.datname = current_database() AND a.application_name = current_setting('application_name') \
            AND b.application_name IS DISTINCT FROM a.application_name LIMIT 1";
    let row =
        client.query_typed_opt(sql, &[]).await.map_err(MirrorError::sql("looking for who is in the way"))?;
    Ok(row.map(|row| row.get(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_for_the_slice_that_its_content_begins_with() {
        let content = marker_content("orders", "run:7");
        assert!(marker_is_for(content.as_bytes(), "orders"));
        assert!(marker_is_for(b"orders:", "orders") && marker_is_for(b"orders:\xff", "orders"));
        for other in ["order", "orders2", "", "orders:run"] {
            assert!(!marker_is_for(content.as_bytes(), other), "{other}");
        }
        assert!(!marker_is_for(b"orders", "orders") && !marker_is_for(b"", "orders"));
        assert_eq!(word_for(content.as_bytes(), "orders").as_deref(), Some("run:7"));
        assert_eq!(word_for(content.as_bytes(), "order"), None);
    }
}
