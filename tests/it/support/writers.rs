//! The checker workload: writers that change everything a mirror must carry, and remember what was acknowledged.
//!
//! Each writer owns some rows that it alone changes, so their final state is known; in shared rows the changes add
//! up, so the final sums are known too. [`Ledger::verify`] then proves of any database that it holds exactly what
//! was acknowledged. Writers live through restarts of the server: a transaction whose COMMIT got no answer is
//! looked up by its business key in the table `done`.

mod book;
mod script;
mod session;
mod straddler;
mod tables;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;

pub(crate) use book::{FindingKind, Ledger};
pub(crate) use script::KINDS;
pub(crate) use tables::{PLAN, Side, Table};

use super::wait::{LONG, slowness, within};
use book::Book;
use script::Script;
use session::Session;
use straddler::straddle;
use tables::SCHEMA_SQL;

/// How the workload is made.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The same seed makes every writer decide the same.
    pub(crate) seed: u64,
    /// Writers at the same time.
    pub(crate) writers: u32,
    /// Transactions per second of all writers together, at most.
    pub(crate) per_second: Option<u32>,
    /// Rows of `Moves` at the start, of all writers together; the other tables hold a fraction of it.
    pub(crate) rows: u32,
    /// The table `scratch` is truncated now and then.
    pub(crate) truncate: bool,
    /// A transaction is open at every moment, beside those of the writers.
    pub(crate) straddle: bool,
    /// Each acknowledged transaction is appended to this file, as its writer and number.
    pub(crate) acknowledged_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            writers: 8,
            per_second: Some(400),
            rows: 4_000,
            truncate: true,
            straddle: false,
            acknowledged_file: None,
        }
    }
}

/// One writer between two runs: its book, and how its decisions go on.
#[derive(Debug)]
pub(crate) struct Writer {
    number: i32,
    writers: i64,
    /// Of the last transaction that it planned.
    seq: i64,
    /// Of the last unique value that it used.
    numbers: i64,
    /// Key positions of its own in `Moves`, about twice as many as rows.
    slots: i64,
    truncate: bool,
    random: fastrand::Rng,
    pub(crate) book: Book,
}

/// What happened to the writers on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Transactions that the server refused with 40001 or 40P01 and that were run again.
    pub(crate) retried: u64,
    /// Connections that broke.
    pub(crate) lost: u64,
    /// Transactions whose COMMIT got no answer.
    pub(crate) unknown: u64,
    /// Those of them that were committed.
    pub(crate) unknown_committed: u64,
}

/// A running workload.
#[derive(Debug)]
pub(crate) struct Workload {
    tasks: JoinSet<Writer>,
    straddler: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// What the writers and the test share.
#[derive(Debug)]
struct Shared {
    config: Config,
    pause: Option<Duration>,
    stopping: CancellationToken,
    acknowledged: watch::Sender<u64>,
    in_flight: AtomicUsize,
    tally: Mutex<(BTreeMap<&'static str, u64>, Counts)>,
    file: Option<Mutex<File>>,
}

/// What [`slowness`] is while several tests run beside each other, with nobody else at work: rates are meant for that.
const SLOWNESS_OF_A_FULL_RUN: f64 = 4.0;

impl Ledger {
    /// Creates the tables in an empty database and fills them; nothing is running yet.
    pub(crate) async fn create(config: &Config, options: &Options) -> Self {
        let mut session = Session::open(config).await;
        session.batch(SCHEMA_SQL).await;
        let (accounts, balance) = (script::ACCOUNTS, script::OPENING_BALANCE);
        session
            .batch(&format!(
                "INSERT INTO accounts (balance) SELECT {balance} FROM generate_series(1, {accounts})"
            ))
            .await;
        let mut ledger = Self { writers: Vec::new(), kinds: BTreeMap::new(), counts: Counts::default() };
        let per_writer = i64::from(options.rows / options.writers);
        for number in 0..options.writers {
            let mut writer = Writer {
                number: i32::try_from(number).unwrap(),
                writers: i64::from(options.writers),
                seq: 0,
                numbers: 0,
                slots: per_writer * 2,
                truncate: options.truncate,
                random: fastrand::Rng::with_seed(options.seed << 16 | u64::from(number)),
                book: Book::default(),
            };
            session.load(&writer.opening(per_writer)).await;
            writer.book.settle();
            ledger.writers.push(writer);
        }
        session.batch("ANALYZE").await;
        ledger
    }

    /// Every operation there is was acknowledged at least once.
    pub(crate) fn assert_every_kind(&self) {
        let absent: Vec<_> = KINDS.iter().filter(|kind| !self.kinds.contains_key(*kind)).collect();
        assert!(absent.is_empty(), "the load made no {absent:?}; run it longer");
    }
}

impl Workload {
    /// Creates the tables and starts the writers.
    pub(crate) async fn start(config: &Config, options: &Options) -> Self {
        let ledger = Ledger::create(config, options).await;
        Self::resume(config, options, ledger)
    }

    /// Starts the writers where an earlier run ended.
    pub(crate) fn resume(config: &Config, options: &Options, ledger: Ledger) -> Self {
        let file = options.acknowledged_file.as_ref().map(|path| {
            Mutex::new(File::options().append(true).create(true).open(path).expect("the file can be written"))
        });
        let shared = Arc::new(Shared {
            config: config.clone(),
            pause: options.per_second.map(|rate| Duration::from_secs(1) * options.writers / rate),
            stopping: CancellationToken::new(),
            acknowledged: watch::Sender::new(0),
            in_flight: AtomicUsize::new(0),
            tally: Mutex::new((ledger.kinds, ledger.counts)),
            file,
        });
        let mut tasks = JoinSet::new();
        for writer in ledger.writers {
            tasks.spawn(writer.run(Arc::clone(&shared)));
        }
        let straddler = options.straddle.then(|| {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { straddle(&shared).await })
        });
        Self { tasks, straddler, shared }
    }

    /// Transactions that are open on the server right now: at least one statement was answered, the end was not.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// Transactions acknowledged in this run.
    pub(crate) fn acknowledged(&self) -> u64 {
        *self.shared.acknowledged.borrow()
    }

    /// Waits until this many more transactions are acknowledged, and stops the test when none comes for long.
    pub(crate) async fn advance(&self, more: u64) {
        let mut acknowledged = self.shared.acknowledged.subscribe();
        let goal = *acknowledged.borrow_and_update() + more;
        while *acknowledged.borrow_and_update() < goal {
            within("the writers make progress", LONG, acknowledged.changed()).await.unwrap();
        }
    }

    /// Waits until every operation there is was acknowledged at least once.
    pub(crate) async fn every_kind(&self) {
        let seen = |kind: &str| self.shared.tally.lock().unwrap().0.contains_key(kind);
        while !KINDS.iter().all(|kind| seen(kind)) {
            self.advance(1).await;
        }
    }

    /// Waits until at least one transaction is open.
    pub(crate) async fn busy(&self) {
        while self.in_flight() == 0 {
            self.advance(1).await;
        }
    }

    /// Lets every writer end its transaction and gives what was acknowledged.
    ///
    /// # Panics
    /// When a writer met something that the workload does not expect, or had no transaction acknowledged.
    pub(crate) async fn stop(mut self) -> Ledger {
        self.shared.stopping.cancel();
        let mut writers = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            writers.push(ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
        }
        if let Some(straddler) = self.straddler {
            straddler.await.unwrap();
        }
        writers.sort_by_key(|writer| writer.number);
        let (kinds, counts) = self.shared.tally.lock().unwrap().clone();
        Ledger { writers, kinds, counts }
    }
}

impl Writer {
    async fn run(mut self, shared: Arc<Shared>) -> Self {
        let mut session = Session::open(&shared.config).await;
        let mut ticks = shared.pause.map(interval);
        if let Some(ticks) = &mut ticks {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let before = self.book.count(Table::Done);
        while !shared.stopping.is_cancelled() {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
                // On a machine where everything is slow, the rate must not be what the mirror cannot keep up with.
                let pace = slowness() / SLOWNESS_OF_A_FULL_RUN;
                tokio::time::sleep(ticks.period().mul_f64((pace - 1.0).max(0.0))).await;
            }
            let script = self.draft();
            let committed = session.perform(self.number, &script, &shared).await;
            assert!(script.commit || !committed, "a transaction that ends with ROLLBACK commits nothing");
            if committed {
                self.book.settle();
                shared.acknowledge(self.number, &script);
            } else {
                self.book.undo_to(0);
            }
        }
        assert!(self.book.count(Table::Done) > before, "writer {} had nothing acknowledged", self.number);
        self
    }
}

impl Shared {
    fn acknowledge(&self, writer: i32, script: &Script) {
        if let Some(file) = &self.file {
            writeln!(file.lock().unwrap(), "{writer} {}", script.seq).expect("the file can be written");
        }
        let mut tally = self.tally.lock().unwrap();
        for kind in &script.kinds {
            *tally.0.entry(kind).or_default() += 1;
        }
        drop(tally);
        self.acknowledged.send_modify(|count| *count += 1);
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.tally.lock().unwrap().1);
    }
}
