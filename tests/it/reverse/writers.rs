//! Applications of both sides: each writes wherever its slice may be written, and remembers what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::stage::Stage;
use crate::support::cluster::connect;
use crate::support::wait::{SOON, until};

/// Rows of one writer begin here and at multiples of it.
const ROWS_PER_WRITER: u64 = 100_000;

/// Writers that run until they are stopped.
pub struct Writers {
    over: Arc<AtomicBool>,
    /// Acknowledged transactions on the monolith and on the service.
    counts: Arc<[AtomicU64; 2]>,
    tasks: JoinSet<Vec<u64>>,
}

/// The same in the monolith's words and in the service's: what is written for row `n`, and to rows before it.
fn script(side: usize, n: u64) -> Vec<String> {
    let (orders, events) =
        [("\"Orders\" (\"Id\", \"Region\", \"Note\", \"Big\")", "events"), ("orders", "happenings")][side];
    let (id, note, of_orders) = [("\"Id\"", "\"Note\"", "\"Orders\""), ("id", "note", "orders")][side];
    let before = n.saturating_sub(3);
    vec![
        format!(
            "INSERT INTO {orders} VALUES ({n}, 'EU', 'new', repeat(md5('{n}'), 200)); \
             INSERT INTO pairs VALUES ({n}, 'w', {n}); INSERT INTO {events} VALUES ({n}, '2024-12-30', 'new')"
        ),
        format!("UPDATE {of_orders} SET {note} = {note} || '!' WHERE {id} IN ({n}, {before})"),
        format!("UPDATE pairs SET b = b || 'k', v = -v WHERE a = {n}"),
        format!("UPDATE {events} SET day = day + 30 WHERE id = {n}"),
        format!(
            "DELETE FROM pairs WHERE a = {before}; INSERT INTO pairs VALUES ({before}, 'again', {before})"
        ),
        format!("DELETE FROM {of_orders} WHERE {id} = {before} AND {id} % 5 = 0"),
    ]
}

impl Writers {
    pub async fn start(stage: &Stage, count: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let mut tasks = JoinSet::new();
        let (monolith, service) = (stage.split.pair.monolith_url(), stage.split.pair.service_url());
        for number in 1..=count {
            let sides = [connect(&monolith).await, connect(&service).await];
            let (over, counts) = (Arc::clone(&over), Arc::clone(&counts));
            tasks.spawn(async move {
                let mut rows = Vec::new();
                let mut n = number * ROWS_PER_WRITER;
                while !over.load(Ordering::Relaxed) {
                    n += 1;
                    for step in 0..script(0, n).len() {
                        write(&sides, &counts, (n, step)).await;
                    }
                    rows.push(n);
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                rows
            });
        }
        Self { over, counts, tasks }
    }

    /// Waits until so many more transactions were acknowledged on a side.
    pub async fn progress(&self, side: usize, more: u64) {
        let from = self.counts[side].load(Ordering::Relaxed);
        until("the writers go on", SOON, async || {
            (self.counts[side].load(Ordering::Relaxed) >= from + more).then_some(())
        })
        .await;
    }

    /// Ends them, and returns rows that must be in `pairs`.
    pub async fn stop(mut self) -> Vec<u64> {
        self.over.store(true, Ordering::Relaxed);
        let mut rows = Vec::new();
        while let Some(done) = self.tasks.join_next().await {
            rows.extend(done.unwrap());
        }
        rows
    }
}

/// Writes on the side that takes it. A side that does not says so with 25006, and nothing of it is done.
async fn write(sides: &[Client; 2], counts: &[AtomicU64; 2], (n, step): (u64, usize)) {
    loop {
        for (side, client) in sides.iter().enumerate() {
            let sql = format!("BEGIN; {}; COMMIT", script(side, n)[step]);
            match client.batch_execute(&sql).await {
                Ok(()) => {
                    counts[side].fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(error) => {
                    let code = error.code().map(|code| code.code().to_owned());
                    assert_eq!(code.as_deref(), Some("25006"), "{sql}: {error:?}");
                    client.batch_execute("ROLLBACK").await.unwrap();
                }
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}
