//! Scans of the monolith's old tables that were the tool's own, so that the server's counters, with these subtracted, tell what
//! others still read.
//!
//! A server counts scans per table and not per session. What a session has done and not yet handed to the counters can be asked
//! inside a transaction, and nothing is handed over before its end (PostgreSQL documentation, "Viewing Statistics": the views
//! `pg_stat_xact_*`). So a transaction asks before it reads and again before it commits, and writes the difference down in itself:
//! by the time the counters show a scan, it stands here. Only a transaction that breaks off leaves scans that nobody wrote down.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::{Client, Error, Statement};

use super::JournalError;
use crate::name::TableName;
use crate::postgres::partitions::TREES;

/// Counts the scans of the open transaction and the rows that they brought, table by table: of the whole tree of a partitioned one,
/// with its indexes. A sample, or a range of places, is read without a scan; its rows are counted. A function of the relation's
/// number is all it takes, so it costs an index look-up per relation.
fn counted() -> String {
    format!(
        "SELECT t.n, coalesce(sum(pg_stat_get_xact_numscans(r.oid) + coalesce((SELECT \
             sum(pg_stat_get_xact_numscans(i.indexrelid)) FROM pg_index i WHERE i.indrelid = r.oid), 0)), 0)::bigint AS scans, \
             coalesce(sum(pg_stat_get_xact_tuples_returned(r.oid) + pg_stat_get_xact_tuples_fetched(r.oid)), 0)::bigint AS rows \
         FROM {TREES} GROUP BY t.n ORDER BY t.n"
    )
}

/// A frozen process must not hold a lock on an old table for long: whoever wants to change the table waits for it, and the way back
/// behind that. Nothing is thought about in between, so seconds mean a frozen process or a link that is gone. Milliseconds.
const IDLE_MS: u32 = 5_000;

/// The same while rows come one after the other, and are worked on as they come. Milliseconds.
const IDLE_STREAM_MS: u32 = 60_000;

/// What a table's counters showed.
#[derive(Debug)]
struct Before {
    name: String,
    scans: i64,
    rows: i64,
}

/// What one session reads of old tables, transaction by transaction.
#[derive(Debug)]
pub struct OwnScans {
    slice: String,
    counted: Statement,
    note: Statement,
    /// By the monolith's name: before the transaction read the table first.
    before: BTreeMap<String, Before>,
}

impl OwnScans {
    /// For a session on the monolith.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn prepare(client: &Client, slice: &str) -> Result<Self, JournalError> {
        let failed = || JournalError::database("preparing to count our own scans");
        let counting = counted();
        let counted = client.prepare(&counting).await.map_err(failed())?;
        let note = format!(
            "INSERT INTO strangler.own_scan (slice, source_table, scans, rows) \
             SELECT $2, w.label, c.scans - w.scans, c.rows - w.rows FROM ({counting}) AS c \
             JOIN unnest($3::text[], $4::bigint[], $5::bigint[]) WITH ORDINALITY AS w (label, scans, rows, n) ON w.n = c.n \
             WHERE c.scans > w.scans OR c.rows > w.rows"
        );
        // From 15 on a session can be made to hand its counts over at the end of the transaction.
        let flush = "SELECT to_regprocedure('pg_stat_force_next_flush()') IS NOT NULL";
        let note = match client.query_typed_one(flush, &[]).await.map_err(failed())?.get(0) {
            true => format!("WITH noted AS ({note}) SELECT pg_stat_force_next_flush()"),
            false => note,
        };
        let note = client.prepare(&note).await.map_err(failed())?;
        Ok(Self { slice: slice.to_owned(), counted, note, before: BTreeMap::new() })
    }

    /// The open transaction is about to read these tables.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn begin<'a>(
        &mut self,
        client: &Client,
        tables: impl IntoIterator<Item = &'a TableName>,
    ) -> Result<(), JournalError> {
        self.count(client, tables).await.map_err(JournalError::database("counting our own scans"))
    }

    async fn count<'a>(
        &mut self,
        client: &Client,
        tables: impl IntoIterator<Item = &'a TableName>,
    ) -> Result<(), Error> {
        let new = |table: &&TableName| !self.before.contains_key(&table.to_string());
        let (labels, names): (Vec<String>, Vec<String>) =
            tables.into_iter().filter(new).map(|table| (table.to_string(), table.sql())).unzip();
        if labels.is_empty() {
            return Ok(());
        }
        let rows = client.query(&self.counted, &[&names]).await?;
        for ((label, name), row) in labels.into_iter().zip(names).zip(&rows) {
            self.before.insert(label, Before { name, scans: row.get(1), rows: row.get(2) });
        }
        Ok(())
    }

    /// Writes down what the open transaction read. Sends its statement at once when it is polled, so that it can stand in a row
    /// with others that are sent without waiting.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn note(&mut self, client: &Client) -> Result<(), JournalError> {
        self.write(client).await.map_err(JournalError::database("noting our own scans"))
    }

    async fn write(&mut self, client: &Client) -> Result<(), Error> {
        if self.before.is_empty() {
            return Ok(());
        }
        let (mut labels, mut names, mut scans, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (label, before) in std::mem::take(&mut self.before) {
            labels.push(label);
            names.push(before.name);
            scans.push(before.scans);
            rows.push(before.rows);
        }
        client.execute(&self.note, &[&names, &self.slice, &labels, &scans, &rows]).await.map(drop)
    }

    /// What was begun belongs to no transaction any more.
    pub fn forget(&mut self) {
        self.before.clear();
    }
}

/// A session that reads old tables, statement by statement, each in a transaction of its own.
#[derive(Debug)]
pub struct Metered {
    scans: tokio::sync::Mutex<OwnScans>,
    /// A statement was begun and its end not seen: whoever waited for it has given up.
    open: AtomicBool,
}

impl Metered {
    /// For a session on the monolith.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn prepare(client: &Client, slice: &str) -> Result<Self, JournalError> {
        let scans = OwnScans::prepare(client, slice).await?;
        Ok(Self { scans: tokio::sync::Mutex::new(scans), open: AtomicBool::new(false) })
    }

    /// Opens the transaction in which a table is read, row by row as the rows come.
    ///
    /// # Errors
    /// The server's.
    pub async fn begin_stream(&self, client: &Client, table: &TableName) -> Result<(), Error> {
        self.begin(client, table, IDLE_STREAM_MS).await
    }

    async fn begin(&self, client: &Client, table: &TableName, idle_ms: u32) -> Result<(), Error> {
        let mut scans = self.scans.lock().await;
        if self.open.swap(true, Ordering::SeqCst) {
            client.batch_execute("ROLLBACK").await?;
            scans.forget();
        }
        // What is noted need not outlive a crash: the server's own counters do not either.
        let begin = format!(
            "BEGIN READ WRITE; SET LOCAL synchronous_commit = off; \
             SET LOCAL idle_in_transaction_session_timeout = {idle_ms}"
        );
        let (begun, counted, saved) = tokio::join!(
            client.batch_execute(&begin),
            scans.count(client, [table]),
            client.batch_execute("SAVEPOINT reading"),
        );
        begun.and(counted).and(saved)
    }

    /// Notes what was read, and ends the transaction. `failed` tells that the reading did not come to its end.
    ///
    /// # Errors
    /// The server's.
    pub async fn end(&self, client: &Client, failed: bool) -> Result<(), Error> {
        let mut scans = self.scans.lock().await;
        if failed {
            client.batch_execute("ROLLBACK TO SAVEPOINT reading").await?;
        }
        let (noted, committed) = tokio::join!(scans.write(client), client.batch_execute("COMMIT"));
        noted.and(committed)?;
        self.open.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Reads a table, and notes it.
    ///
    /// # Errors
    /// The reading's, or the server's.
    pub async fn read<T>(
        &self,
        client: &Client,
        table: &TableName,
        reading: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.begin(client, table, IDLE_MS).await?;
        let read = reading.await;
        let ended = self.end(client, read.is_err()).await;
        let read = read?;
        ended.map(|()| read)
    }
}
