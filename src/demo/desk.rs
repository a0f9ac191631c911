//! The part of the shop that goes with the order service: it places, pays and cancels orders in transactions of their own, on
//! whichever side owns them, and remembers what was acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{Client, Config, Error};
use tokio_util::sync::CancellationToken;

use super::owner::{Owner, Side, connect};
use super::shop::uuid;

mod order;

pub(super) use order::FIND;
use order::{Change, Line, Order};

/// Clerks, with one connection to each side, and the time between two transactions of one of them.
const CLERKS: u64 = 4;
const PACE: Duration = Duration::from_millis(40);

/// Ids that `plans/retail_data.sql` gives out.
const CUSTOMERS: i32 = 8_000;
const PRODUCTS: i32 = 6_000;

/// Apart from the seeds of the other traffic, because order numbers come out of it.
const SEED: u64 = 7_000;

/// How an acknowledged order has to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) status: &'static str,
    pub(super) lines: i64,
}

/// An acknowledgement.
#[derive(Debug, Clone)]
pub(super) struct Acknowledged {
    pub(super) number: String,
    pub(super) side: Side,
    pub(super) at: Instant,
}

/// What the desk has been told.
#[derive(Debug, Clone, Default)]
pub(super) struct Book {
    pub(super) orders: BTreeMap<String, Expected>,
    /// In the order of their acknowledgement.
    pub(super) acknowledged: Vec<Acknowledged>,
    /// Attempts that met a closed gate.
    pub(super) refused: u64,
    /// Errors that docs/clients.md does not announce.
    pub(super) failed: Vec<String>,
}

/// The desk at work. Dropping it stops the clerks where they are.
#[derive(Debug)]
pub(super) struct Desk {
    clerks: JoinSet<()>,
    stopping: CancellationToken,
    book: Arc<Mutex<Book>>,
    road: Arc<RwLock<()>>,
    /// The last acknowledgement.
    last: watch::Receiver<Option<Acknowledged>>,
}

fn open(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// Opens the desk.
    ///
    /// # Errors
    /// When a side can't be reached.
    pub(super) async fn open(monolith: &Config, service: &Config) -> Result<Self, Error> {
        let (book, road) = (Arc::<Mutex<Book>>::default(), Arc::default());
        let (sender, last) = watch::channel(None);
        let (stopping, mut clerks) = (CancellationToken::new(), JoinSet::new());
        for number in 0..CLERKS {
            let clerk = Clerk {
                catalog: connect(monolith).await?,
                owner: Owner::open(monolith, service).await?,
                random: fastrand::Rng::with_seed(SEED + number),
                open: Vec::new(),
                book: Arc::clone(&book),
                road: Arc::clone(&road),
                stopping: stopping.clone(),
                last: sender.clone(),
            };
            clerks.spawn(clerk.work());
        }
        Ok(Self { clerks, stopping, book, road, last })
    }

    /// What it has been told so far.
    pub(super) fn book(&self) -> Book {
        open(&self.book).clone()
    }

    /// The next acknowledgement that comes from this side; `None` when the clerks are gone.
    pub(super) async fn next_on(&mut self, side: Side) -> Option<Acknowledged> {
        self.last.mark_unchanged();
        loop {
            self.last.changed().await.ok()?;
            let last = self.last.borrow_and_update().clone();
            if let Some(last) = last.filter(|last| last.side == side) {
                return Some(last);
            }
        }
    }

    /// Lets every clerk finish a transaction, and holds them until this is dropped.
    pub(super) async fn pause(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.road).write_owned().await
    }

    /// Lets every clerk finish a transaction, and sends them home.
    pub(super) async fn close(mut self) -> Book {
        self.stopping.cancel();
        while self.clerks.join_next().await.is_some() {}
        self.book()
    }
}

impl Book {
    /// How many one side acknowledged.
    pub(super) fn on(&self, side: Side) -> usize {
        self.acknowledged.iter().filter(|one| one.side == side).count()
    }

    /// The longest time without an acknowledgement among those from `first` on.
    pub(super) fn longest_silence(&self, first: usize) -> Duration {
        let since = self.acknowledged.get(first.saturating_sub(1)..).unwrap_or_default();
        let gaps = since.iter().zip(since.iter().skip(1)).map(|(one, next)| next.at.duration_since(one.at));
        gaps.max().unwrap_or_default()
    }
}

struct Clerk {
    /// Customers and products stay in the monolith, or belong to other slices.
    catalog: Client,
    owner: Owner,
    random: fastrand::Rng,
    /// Numbers of orders that are neither paid nor cancelled, with their lines.
    open: Vec<(String, i64)>,
    book: Arc<Mutex<Book>>,
    road: Arc<RwLock<()>>,
    stopping: CancellationToken,
    last: watch::Sender<Option<Acknowledged>>,
}

impl Clerk {
    async fn work(mut self) {
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let road = Arc::clone(&self.road);
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let road = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                road = road.read() => road,
            };
            if let Err(error) = self.one().await {
                open(&self.book).failed.push(error.to_string());
            }
            drop(road);
        }
    }

    /// One transaction; of an order that is known, its payment or its end.
    async fn one(&mut self) -> Result<(), Error> {
        let known = if self.random.u8(0..10) < 4 { self.open.pop() } else { None };
        let (number, expected, done) = match known {
            Some((number, lines)) => {
                let paid = self.random.u8(0..4) > 0;
                let change = Change { number: number.clone(), paid };
                let done = self.owner.write(&change).await?;
                let (status, lines) = if paid { ("Paid", lines) } else { ("Cancelled", 0) };
                (number, Expected { status, lines }, done)
            }
            None => {
                let order = self.order().await?;
                let lines = i64::try_from(order.lines.len()).unwrap_or(i64::MAX);
                let done = self.owner.write(&order).await?;
                self.open.push((order.number.clone(), lines));
                (order.number, Expected { status: "Pending", lines }, done)
            }
        };
        let acknowledged = Acknowledged { number: number.clone(), side: done.side, at: Instant::now() };
        {
            let mut book = open(&self.book);
            book.refused += done.refused;
            book.orders.insert(number, expected);
            book.acknowledged.push(acknowledged.clone());
        }
        self.last.send_replace(Some(acknowledged));
        Ok(())
    }

    /// Somebody's wishes, with names and prices as the catalog has them now.
    async fn order(&mut self) -> Result<Order, Error> {
        let customer = self.random.i32(1..=CUSTOMERS);
        let products: Vec<i32> = (0..self.random.i32(1..5)).map(|_| self.random.i32(1..=PRODUCTS)).collect();
        let number = uuid(&mut self.random);
        let sql = r#"SELECT "Email" FROM "Customers" WHERE "Id" = $1"#;
        let email = self.catalog.query_one(sql, &[&customer]).await?.try_get(0)?;
        let sql =
            r#"SELECT "Id", "Sku"::text, "Name"::text, "Price"::text FROM "Products" WHERE "Id" = ANY ($1)"#;
        let rows = self.catalog.query(sql, &[&products]).await?;
        let line = |row: &tokio_postgres::Row| {
            Ok(Line {
                product: row.try_get(0)?,
                sku: row.try_get(1)?,
                name: row.try_get(2)?,
                price: row.try_get(3)?,
            })
        };
        let lines = rows.iter().map(line).collect::<Result<_, Error>>()?;
        Ok(Order { number, customer, email, lines })
    }
}
