//! Writers at a fixed rate that follow the owner, as docs/clients.md says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use crate::moves::connect;

/// Connections that write, one transaction each at a time.
const WRITERS: u32 = 8;

/// Rows of `accounts`.
pub(crate) const ACCOUNTS: i64 = 100_000;

/// Both tables in one transaction; the note says who wrote it, so that it can be looked for.
const WRITE: &str = "WITH taken AS (UPDATE accounts SET balance = balance + 1 WHERE id = $1) \
                     INSERT INTO orders (account, note) VALUES ($1, $2)";

/// A move that is not seen by writers for this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many commits after a move, before the next one is thought of.
const SEEN: usize = 20;

/// A transaction that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    pub(crate) side: usize,
    /// When its first attempt began.
    pub(crate) begun: Instant,
    pub(crate) done: Instant,
}

/// What all writers share.
#[derive(Debug, Default)]
struct Book {
    pace: Option<Duration>,
    stop: bool,
    acknowledged: Vec<String>,
    /// Since the last look.
    commits: Vec<Commit>,
    /// Failed attempts by SQLSTATE; `broken` for a connection that ended.
    refused: BTreeMap<String, usize>,
}

/// Writers at work.
pub(crate) struct Pool {
    book: Arc<Mutex<Book>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the writers leave.
pub(crate) struct Written {
    pub(crate) acknowledged: Vec<String>,
    pub(crate) refused: BTreeMap<String, usize>,
}

fn open(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Connects every writer to both sides. They wait for a pace.
    pub(crate) async fn start(sides: &[String; 2]) -> Result<Self, Error> {
        let book = Arc::<Mutex<Book>>::default();
        let mut tasks = Vec::new();
        for number in 0..WRITERS {
            let [monolith, service] = sides;
            let sessions = [Some(connect(monolith).await?), Some(connect(service).await?)];
            let writer = Writer { number, links: sides.clone(), sessions, side: 0, book: Arc::clone(&book) };
            tasks.push(tokio::spawn(writer.run()));
        }
        Ok(Self { book, tasks })
    }

    /// Transactions per second from now on, all writers together.
    pub(crate) fn pace(&self, rate: f64) {
        open(&self.book).pace = Some(Duration::from_secs_f64(f64::from(WRITERS) / rate));
    }

    pub(crate) fn acknowledged(&self) -> usize {
        open(&self.book).acknowledged.len()
    }

    /// Waits until the writers have settled on a side; gives the commits since the last call.
    pub(crate) async fn commits_on(&self, side: usize, begun: Instant) -> Result<Vec<Commit>, String> {
        while begun.elapsed() < PATIENCE {
            {
                let mut book = open(&self.book);
                let arrived = |commit: &&Commit| commit.side == side && commit.done > begun;
                if book.commits.iter().filter(arrived).count() >= SEEN {
                    return Ok(std::mem::take(&mut book.commits));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err("the writers did not come over".to_owned())
    }

    /// Lets everybody end a transaction.
    pub(crate) async fn stop(self) -> Written {
        open(&self.book).stop = true;
        for task in self.tasks {
            // A writer that panicked has said so.
            let _ = task.await;
        }
        let mut book = open(&self.book);
        Written {
            acknowledged: std::mem::take(&mut book.acknowledged),
            refused: std::mem::take(&mut book.refused),
        }
    }
}

struct Writer {
    number: u32,
    links: [String; 2],
    sessions: [Option<Client>; 2],
    side: usize,
    book: Arc<Mutex<Book>>,
}

impl Writer {
    async fn run(mut self) {
        let mut random = fastrand::Rng::with_seed(u64::from(self.number));
        let mut due = Instant::now();
        // The tables keep the notes of earlier runs.
        let run = std::process::id();
        for count in 0_u64.. {
            let pace = loop {
                let (stop, pace) = {
                    let book = open(&self.book);
                    (book.stop, book.pace)
                };
                match pace {
                    _ if stop => return,
                    Some(pace) => break pace,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            if count == 0 {
                due = Instant::now() + pace.mul_f64(f64::from(self.number) / f64::from(WRITERS));
            }
            tokio::time::sleep_until(due.into()).await;
            // What could not be written in time is not made up for.
            due = (due + pace).max(Instant::now());
            self.write(random.i64(1..=ACCOUNTS), &format!("{run}/{}/{count}", self.number), &mut random)
                .await;
        }
    }

    /// Until it is acknowledged: on the other side when this one refuses, and after a pause when both do.
    async fn write(&mut self, account: i64, note: &str, random: &mut fastrand::Rng) {
        let begun = Instant::now();
        let (mut pause, mut refused) = (Duration::from_millis(5), 0_u32);
        loop {
            match self.once(account, note).await {
                Ok(()) => break,
                Err(code) => *open(&self.book).refused.entry(code).or_default() += 1,
            }
            self.side = 1 - self.side;
            refused += 1;
            if refused.is_multiple_of(2) {
                tokio::time::sleep(pause.mul_f64(0.5 + random.f64())).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
        }
        let mut book = open(&self.book);
        book.acknowledged.push(note.to_owned());
        book.commits.push(Commit { side: self.side, begun, done: Instant::now() });
    }

    async fn once(&mut self, account: i64, note: &str) -> Result<(), String> {
        let (Some(link), Some(session)) = (self.links.get(self.side), self.sessions.get_mut(self.side))
        else {
            return Err("no side".to_owned());
        };
        if session.as_ref().is_none_or(Client::is_closed) {
            *session = connect(link).await.ok();
        }
        let Some(client) = session else { return Err("broken".to_owned()) };
        let types = (tokio_postgres::types::Type::INT8, tokio_postgres::types::Type::TEXT);
        match client.execute_typed(WRITE, &[(&account, types.0), (&note, types.1)]).await {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(error.code().map_or_else(|| "broken".to_owned(), |code| code.code().to_owned()))
            }
        }
    }
}
