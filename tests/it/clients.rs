//! What docs/clients.md promises to applications, with the example that it shows, against real gates and a real mirror.

#[rustfmt::skip]
mod retry;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use strangler::cluster::Cluster;
use strangler::dualwrite::gate::{self, Hinge};
use strangler::journal::authority::{self, Fence};
use strangler::journal::streams::Direction;
use strangler::lsn::Lsn;
use strangler::name::TableName;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config};

use crate::support::cluster::Pair;
use crate::support::split::Split;
use crate::support::wait::{SOON, until, within};
use retry::{Side, write};

const SCHEMA: &str = "
CREATE ROLE strangler_apply LOGIN;
CREATE ROLE shop LOGIN;
CREATE TABLE requests (id text PRIMARY KEY, accepted_by text NOT NULL DEFAULT current_database());
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, moves bigint NOT NULL);
INSERT INTO accounts SELECT i, 0, 0 FROM generate_series(1, 20) i;
GRANT SELECT, INSERT, UPDATE, DELETE ON requests, accounts TO shop;";

const WRITERS: usize = 6;

/// What the writers did.
#[derive(Default)]
struct Tally {
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

fn config(cluster: &dyn Cluster, role: &str, database: &str) -> Config {
    let mut config: Config = cluster.url_as(role, "", database).parse().unwrap();
    config.application_name("shop");
    config
}

/// Transfers between accounts until it is told to stop; half of the writers with old snapshots. Returns the requests that
/// were acknowledged.
async fn transfers(writer: usize, mut sides: [Side; 2], tally: Arc<Tally>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    while !tally.stop.load(Ordering::Relaxed) {
        let request = format!("{writer}/{}", acknowledged.len());
        let (one, other) = (fastrand::i32(1..=20), fastrand::i32(1..=20));
        let done = write(&mut sides, &request, |transaction| {
            Box::pin(async move {
                let update = "UPDATE accounts SET balance = balance + $2, moves = moves + 1 WHERE id = $1";
                // In one order, so that no time is spent on deadlocks.
                transaction.execute(update, &[&one.min(other), &-1_i64]).await?;
                transaction.execute(update, &[&one.max(other), &1_i64]).await?;
                Ok(())
            })
        });
        done.await.unwrap_or_else(|error| panic!("{request}: {error:?}"));
        acknowledged.push(request);
        tally.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    acknowledged
}

struct Shop {
    /// The servers end with it.
    _split: Split,
    monolith: Client,
    service: Client,
    tally: Arc<Tally>,
    writers: JoinSet<Vec<String>>,
}

impl Shop {
    /// Mirrored and gated, with writers at work.
    async fn open() -> (Self, crate::support::split::Mirror) {
        let (split, monolith, service) = Split::launch("{ requests: {}, accounts: {} }", SCHEMA).await;
        split.provision();
        let mirror = split.mirror(None);
        mirror.caught_up(&monolith, &service).await;
        let key = "SELECT lock_key FROM strangler.slice WHERE slice = 'one'";
        let key: i32 = monolith.query_one(key, &[]).await.unwrap().get(0);
        let mut statements = vec![gate::create_function("one", key)];
        for table in ["requests", "accounts"] {
            statements.extend(gate::create_triggers(
                "one",
                &TableName::new("public", table),
                Hinge::Statement,
            ));
        }
        monolith.batch_execute(&statements.join(";")).await.unwrap();
        let tally = Arc::new(Tally::default());
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let level = if writer % 2 == 0 { "read committed" } else { "repeatable read" };
            let side = |mut config: Config| {
                config.options(format!("-c default_transaction_isolation={}", level.replace(' ', "\\ ")));
                Side { config, client: None }
            };
            let sides = [
                side(config(&split.pair.monolith, "shop", Pair::MONOLITH)),
                side(config(&split.pair.service, "service_app", Pair::SERVICE)),
            ];
            writers.spawn(transfers(writer, sides, Arc::clone(&tally)));
        }
        (Self { _split: split, monolith, service, tally, writers }, mirror)
    }

    /// Waits for more acknowledged transfers.
    async fn progress(&self, more: u64) {
        let goal = self.tally.acknowledged.load(Ordering::Relaxed) + more;
        until("writers come on", SOON, async || {
            (self.tally.acknowledged.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    /// Breaks every connection of the writers, at whatever they are.
    async fn cut(&self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shop'";
        for side in [&self.monolith, &self.service] {
            side.query(sql, &[]).await.unwrap();
        }
    }

    /// Closes the monolith's gate with writers held, and returns where.
    async fn fence(&self) -> Lsn {
        self.monolith.batch_execute("BEGIN").await.unwrap();
        authority::hold_writers(&self.monolith, "one").await.unwrap();
        let sql = "SELECT pg_current_wal_insert_lsn()::text";
        let lsn: Lsn = self.monolith.query_one(sql, &[]).await.unwrap().get::<_, String>(0).parse().unwrap();
        let fence = Fence { from_epoch: 1, epoch: 2, lsn, sequences: "{}", group: None };
        assert!(authority::fence(&self.monolith, "one", fence).await.unwrap());
        authority::notify(&self.monolith, "one", "moving", 2).await.unwrap();
        self.monolith.batch_execute("COMMIT").await.unwrap();
        lsn
    }

    /// Opens the service's gate.
    async fn open_service(&self, fence: Lsn) {
        self.service.batch_execute("BEGIN").await.unwrap();
        let turned = ("APPLY", "TRIPWIRE");
        let drained =
            authority::turn(&self.service, "one", Direction::Forward, turned, (2, fence)).await.unwrap();
        assert!(drained, "the stream has not drained");
        assert!(authority::open(&self.service, "one", (1, 2), "service").await.unwrap().is_some());
        self.service.batch_execute("COMMIT").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_retry_loses_and_doubles_nothing_while_both_gates_are_closed() {
    let (mut shop, mirror) = Shop::open().await;
    shop.progress(100).await;
    shop.cut().await;
    shop.progress(100).await;
    let fence = shop.fence().await;
    mirror.caught_up(&shop.monolith, &shop.service).await;
    // In the gap nobody is served, and connections may break as well.
    let (before, calls) = (shop.tally.acknowledged.load(Ordering::Relaxed), calls(&shop.service).await);
    until("writers are refused by both sides", SOON, async || {
        (self::calls(&shop.service).await > calls + 20).then_some(())
    })
    .await;
    shop.cut().await;
    let gap = shop.tally.acknowledged.load(Ordering::Relaxed) - before;
    assert!(gap <= u64::try_from(WRITERS).unwrap(), "{gap} acknowledged while both gates were closed");
    shop.open_service(fence).await;
    shop.progress(100).await;
    shop.cut().await;
    shop.progress(100).await;
    shop.tally.stop.store(true, Ordering::Relaxed);
    let mut acknowledged: Vec<String> =
        within("the writers end", SOON, std::mem::take(&mut shop.writers).join_all()).await.concat();
    acknowledged.sort();

    let rows = shop
        .service
        .query("SELECT id, accepted_by FROM requests ORDER BY id COLLATE \"C\"", &[])
        .await
        .unwrap();
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(found, acknowledged, "every acknowledged request is there once, and no other");
    let by = |database: &str| rows.iter().filter(|row| row.get::<_, &str>(1) == database).count();
    assert!(by(Pair::MONOLITH) >= 200 && by(Pair::SERVICE) >= 200, "both sides took part");
    let sums = "SELECT sum(balance)::int8, sum(moves)::int8 FROM accounts";
    let sums = shop.service.query_one(sums, &[]).await.unwrap();
    let moves = 2 * i64::try_from(acknowledged.len()).unwrap();
    assert_eq!(
        (sums.get(0), sums.get(1)),
        (0_i64, moves),
        "half of a transfer was lost, or one was done twice"
    );
}

/// Attempts that reached the service's gate so far: what is rolled back is counted, too.
async fn calls(service: &Client) -> i64 {
    let sql = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    service.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_fenced_write_gets_25006_with_owner_and_epoch_and_anybody_may_ask_who_owns_a_slice() {
    let (split, monolith, service) = Split::launch("{ requests: {} }", SCHEMA).await;
    split.provision();
    let application = config(&split.pair.service, "service_app", Pair::SERVICE);
    let (client, mut connection) = application.connect(tokio_postgres::NoTls).await.unwrap();
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let tokio_postgres::AsyncMessage::Notification(note) = message {
                let _ = sender.send(note.payload().to_owned());
            }
        }
    });
    client.batch_execute("LISTEN strangler_authority").await.unwrap();
    let error = client.execute("INSERT INTO requests (id) VALUES ('a')", &[]).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "25006");
    assert_eq!(error.message(), "strangler: public.requests is owned by monolith");
    assert_eq!(error.hint(), Some("slice one, epoch 1: retry the whole transaction on the owner, monolith"));
    let owner = "SELECT side, state, owner, epoch FROM strangler.authority WHERE slice = 'one'";
    let row = client.query_one(owner, &[]).await.unwrap();
    let told: (String, String, String, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
    assert_eq!(told, ("service".to_owned(), "FENCED".to_owned(), "monolith".to_owned(), 1));
    authority::notify(&service, "one", "service", 2).await.unwrap();
    let note = within("the note arrives", SOON, heard.recv()).await.unwrap();
    assert_eq!(note, r#"{"slice" : "one", "owner" : "service", "epoch" : 2}"#);
    let there = monolith.query_one(owner, &[]).await.unwrap();
    assert_eq!(there.get::<_, &str>(1), "OPEN");
}

#[test]
fn the_documentation_shows_the_example_that_is_run_here() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = std::fs::read_to_string(root.join("tests/it/clients/retry.rs")).unwrap();
    let page = std::fs::read_to_string(root.join("docs/clients.md")).unwrap();
    assert!(
        page.contains(&format!("```rust\n{example}```\n")),
        "docs/clients.md shows another text than retry.rs"
    );
}
