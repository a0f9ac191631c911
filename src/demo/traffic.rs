//! The retail application at work: several writers that place carts, check out, pay and keep the shop's books on
//! the monolith, at a bounded rate, for as long as the demo wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;

use super::shop::{Outcome, Shop, Work};

/// How long a writer waits before it connects again after its connection broke.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Seeds of one start, far apart from those of the next.
const SEEDS_PER_START: u64 = 1 << 40;

/// Distance between the seeds of one writer's connections: more than there are writers.
const RECONNECT_STRIDE: u64 = 1 << 10;

/// How much traffic there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Writers at the same time, one connection each.
    pub writers: u32,
    /// Transactions per second of all writers together; an upper bound, since a slow server slows them down.
    pub transactions_per_second: u32,
}

/// What became of the transactions so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// The server said that they are committed.
    pub acknowledged: u64,
    /// The application changed its mind and rolled back.
    pub rolled_back: u64,
    /// The server refused them, e.g. because of a deadlock or of a check constraint.
    pub rejected: u64,
    /// The connection broke before an answer came.
    pub unknown: u64,
}

/// Running traffic. Dropping it stops the writers where they are; [`Traffic::stop`] lets each finish its
/// transaction.
#[derive(Debug)]
pub struct Traffic {
    writers: JoinSet<()>,
    stopping: CancellationToken,
    counters: Arc<Counters>,
    /// Every transaction holds it for reading, a pause for writing.
    road: Arc<RwLock<()>>,
}

/// Nothing of the traffic is open while this lives; it goes on when this is dropped.
#[derive(Debug)]
#[must_use = "the traffic goes on as soon as the pause is dropped"]
pub struct Pause {
    _road: OwnedRwLockWriteGuard<()>,
}

#[derive(Debug, Default)]
struct Counters {
    acknowledged: AtomicU64,
    rolled_back: AtomicU64,
    rejected: AtomicU64,
    unknown: AtomicU64,
}

impl Traffic {
    /// Starts the writers against the retail monolith that `config` leads to, with `plans/retail.sql` and
    /// `plans/retail_data.sql` loaded. The same seed makes every writer decide the same again; a second start on one
    /// database needs another seed, because the ids of carts and orders come out of it.
    ///
    /// # Errors
    /// What connecting gave, when a first connection can't be made. Later a writer reconnects by itself.
    pub async fn start(config: &Config, rate: Rate, seed: u64) -> Result<Self, tokio_postgres::Error> {
        Self::at_work(config, rate, Work::All, seed).await
    }

    /// Starts writers that leave orders alone, whose tables move while they write.
    pub(super) async fn start_without_orders(
        config: &Config,
        rate: Rate,
        seed: u64,
    ) -> Result<Self, tokio_postgres::Error> {
        Self::at_work(config, rate, Work::WithoutOrders, seed).await
    }

    async fn at_work(
        config: &Config,
        rate: Rate,
        work: Work,
        seed: u64,
    ) -> Result<Self, tokio_postgres::Error> {
        let writers = rate.writers.max(1);
        let pause = Duration::from_secs(1) * writers / rate.transactions_per_second.max(1);
        let counters = Arc::new(Counters::default());
        let stopping = CancellationToken::new();
        let road = Arc::new(RwLock::new(()));
        let mut tasks = JoinSet::new();
        for number in 0..writers {
            let seed = seed.wrapping_mul(SEEDS_PER_START).wrapping_add(u64::from(number));
            let shop = Shop::open(config, work, seed).await?;
            let writer = Writer {
                config: config.clone(),
                work,
                seed,
                counters: Arc::clone(&counters),
                stopping: stopping.clone(),
                road: Arc::clone(&road),
            };
            tasks.spawn(writer.run(shop, pause));
        }
        Ok(Self { writers: tasks, stopping, counters, road })
    }

    /// What became of the transactions so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.counters.read()
    }

    /// Lets every writer finish its transaction, waits for that, and holds them until the pause is dropped.
    pub async fn pause(&self) -> Pause {
        Pause { _road: Arc::clone(&self.road).write_owned().await }
    }

    /// Lets every writer finish its transaction and waits for that: afterwards nothing of the traffic is open.
    pub async fn stop(mut self) -> Tally {
        self.stopping.cancel();
        while self.writers.join_next().await.is_some() {}
        self.counters.read()
    }
}

impl std::ops::Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            rolled_back: self.rolled_back + other.rolled_back,
            rejected: self.rejected + other.rejected,
            unknown: self.unknown + other.unknown,
        }
    }
}

impl Counters {
    fn read(&self) -> Tally {
        Tally {
            acknowledged: self.acknowledged.load(Ordering::Relaxed),
            rolled_back: self.rolled_back.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
            unknown: self.unknown.load(Ordering::Relaxed),
        }
    }

    fn count(&self, outcome: &Result<Outcome, tokio_postgres::Error>) {
        let counter = match outcome {
            Ok(Outcome::Committed) => &self.acknowledged,
            Ok(Outcome::RolledBack) => &self.rolled_back,
            Err(error) if error.as_db_error().is_some() => &self.rejected,
            Err(_) => &self.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One writer's loop.
struct Writer {
    config: Config,
    work: Work,
    seed: u64,
    counters: Arc<Counters>,
    stopping: CancellationToken,
    road: Arc<RwLock<()>>,
}

impl Writer {
    async fn run(self, mut shop: Shop, pause: Duration) {
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let road = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                road = self.road.read() => road,
            };
            let outcome = shop.act().await;
            self.counters.count(&outcome);
            drop(road);
            if shop.is_closed() {
                let Some(reopened) = self.reopen(&shop).await else { return };
                shop = reopened;
            }
        }
    }

    /// Connects again and again until it works; `None` when the traffic was stopped meanwhile.
    async fn reopen(&self, broken: &Shop) -> Option<Shop> {
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                () = tokio::time::sleep(RECONNECT_PAUSE) => {}
            }
            // Another seed than before, or the new connection would repeat the ids that the old one has used.
            let seed = self.seed.wrapping_add(broken.acts().wrapping_mul(RECONNECT_STRIDE));
            if let Ok(shop) = Shop::open(&self.config, self.work, seed).await {
                return Some(shop);
            }
        }
    }
}
