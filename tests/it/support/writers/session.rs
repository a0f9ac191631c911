//! One writer's connection, and what it does when that breaks or the server says no.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::Shared;
use super::script::{Script, Step};
use crate::support::wait::{LONG, Patience};

/// Between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

pub(crate) struct Session {
    config: Config,
    client: Client,
    /// The server process behind the connection: pid and start, since a pid is used again.
    backend: (i32, String),
}

/// Why a transaction has not come to its end.
enum Failure {
    /// The server undid it and it can be run again.
    Retry,
    /// The connection is gone; with `true` after COMMIT was sent.
    Lost(bool),
}

impl Session {
    /// Connects, as soon as the server takes connections.
    pub(crate) async fn open(config: &Config) -> Self {
        let mut patience = Patience::new(LONG);
        loop {
            match Self::try_open(config).await {
                Ok(session) => return session,
                Err(error) => assert!(!patience.is_over(), "no connection in {LONG:?}: {error:?}"),
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn try_open(config: &Config) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move { drop(connection.await) });
        let sql = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let row = client.query_one(sql, &[]).await?;
        let backend = (row.get(0), row.get(1));
        Ok(Self { config: config.clone(), client, backend })
    }

    /// Runs statements that must work, outside a transaction.
    pub(crate) async fn batch(&mut self, sql: &str) {
        self.client.batch_execute(sql).await.expect("the database can be prepared");
    }

    /// Runs statements; `false` when the server did not, or is gone.
    pub(super) async fn try_batch(&mut self, sql: &str) -> bool {
        self.client.batch_execute(sql).await.is_ok()
    }

    /// Runs the statements of an opening in one transaction.
    pub(crate) async fn load(&mut self, steps: &[Step]) {
        let statements: Vec<&str> = steps
            .iter()
            .map(|step| match step {
                Step::Sql(sql, _) => sql.as_str(),
                Step::Copy(_) | Step::Hold(_) => panic!("an opening is plain statements"),
            })
            .collect();
        self.batch(&statements.join(";")).await;
    }

    /// Carries the transaction out, again and again until the server has given it an end. Tells whether it is
    /// committed.
    pub(crate) async fn perform(&mut self, writer: i32, script: &Script, shared: &Shared) -> bool {
        loop {
            match self.attempt(script, shared).await {
                Ok(()) => return script.commit,
                Err(Failure::Retry) => shared.count(|counts| counts.retried += 1),
                Err(Failure::Lost(ending)) => {
                    shared.count(|counts| counts.lost += 1);
                    self.reconnect().await;
                    if ending && script.commit && self.resolve(writer, script, shared).await {
                        return true;
                    }
                }
            }
        }
    }

    async fn attempt(&mut self, script: &Script, shared: &Shared) -> Result<(), Failure> {
        let begin = format!("BEGIN ISOLATION LEVEL {}", script.isolation);
        self.client.batch_execute(&begin).await.map_err(|error| failure(&error, &begin, false))?;
        let mut open = None;
        for step in &script.steps {
            let done = self.step(step).await;
            if let Err(Failure::Retry) = done {
                drop(open.take());
                self.client
                    .batch_execute("ROLLBACK")
                    .await
                    .map_err(|error| failure(&error, "ROLLBACK", false))?;
            }
            done?;
            open.get_or_insert_with(|| InFlight::enter(shared));
        }
        let end = if script.commit { "COMMIT" } else { "ROLLBACK" };
        self.client.batch_execute(end).await.map_err(|error| failure(&error, end, true))
    }

    async fn step(&mut self, step: &Step) -> Result<(), Failure> {
        match step {
            Step::Sql(sql, rows) => {
                let answer =
                    self.client.simple_query(sql).await.map_err(|error| failure(&error, sql, false))?;
                let affected = answer.iter().find_map(|message| {
                    if let SimpleQueryMessage::CommandComplete(rows) = message { Some(*rows) } else { None }
                });
                assert!(rows.is_none() || affected == *rows, "{sql}: {affected:?} rows instead of {rows:?}");
            }
            Step::Copy(lines) => {
                self.copy(lines).await.map_err(|error| failure(&error, "COPY events", false))?
            }
            // An application that thinks in the middle of a transaction; nothing is waited for.
            Step::Hold(time) => tokio::time::sleep(*time).await,
        }
        Ok(())
    }

    async fn copy(&mut self, lines: &str) -> Result<(), tokio_postgres::Error> {
        let sink = self.client.copy_in("COPY events (writer, seq, n, payload) FROM STDIN").await?;
        let mut sink = std::pin::pin!(sink);
        sink.send(Bytes::copy_from_slice(lines.as_bytes())).await?;
        let rows = sink.finish().await?;
        assert_eq!(usize::try_from(rows).unwrap(), lines.lines().count(), "COPY takes every line");
        Ok(())
    }

    /// Opens a new connection and waits until the old one's server process is gone: while it lives it might still
    /// commit.
    pub(super) async fn reconnect(&mut self) {
        let before = self.backend.clone();
        let mut patience = Patience::new(LONG);
        *self = Self::open(&self.config).await;
        let sql = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
        loop {
            match self.client.query_opt(sql, &[&before.0, &before.1]).await {
                Ok(None) => return,
                Ok(Some(_)) => {}
                Err(_) => *self = Self::open(&self.config).await,
            }
            assert!(!patience.is_over(), "the old server process stays");
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Whether a transaction whose COMMIT got no answer is committed, by its business key.
    async fn resolve(&mut self, writer: i32, script: &Script, shared: &Shared) -> bool {
        shared.count(|counts| counts.unknown += 1);
        let committed = loop {
            let sql = "SELECT 1 FROM done WHERE writer = $1 AND seq = $2";
            match self.client.query_opt(sql, &[&writer, &script.seq]).await {
                Ok(row) => break row.is_some(),
                Err(_) => self.reconnect().await,
            }
        };
        if committed {
            shared.count(|counts| counts.unknown_committed += 1);
        }
        committed
    }
}

/// Counts one open transaction for as long as it lives.
pub(super) struct InFlight<'a>(&'a Shared);

impl<'a> InFlight<'a> {
    pub(super) fn enter(shared: &'a Shared) -> Self {
        shared.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What an error means for the transaction.
///
/// # Panics
/// When it is none that the workload provokes: then the workload itself is wrong.
fn failure(error: &tokio_postgres::Error, sql: &str, ending: bool) -> Failure {
    match error.code() {
        Some(code)
            if *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED =>
        {
            Failure::Retry
        }
        // Class 57P: the server goes down, or another of its processes has crashed. What it says of a COMMIT that
        // was on its way is not to be relied on.
        Some(code) if code.code().starts_with("57P") => Failure::Lost(ending),
        Some(_) => panic!("{sql}: {error:?}"),
        None => Failure::Lost(ending),
    }
}
