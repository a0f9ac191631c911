//! Keeps a transaction of the application open at every moment: each is ended once the next one has written.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::Shared;
use super::session::{InFlight, Session};

/// How long each stays open at least.
const OPEN: Duration = Duration::from_millis(20);

/// Where the next one can't begin, because it waits for a writer that waits for this one, this one ends without it. That writer's own
/// transaction is open then.
const WAIT_MAX: Duration = Duration::from_millis(200);

/// A session with the account that it writes, and its open transaction.
struct Turn<'a> {
    session: Session,
    account: u32,
    open: Option<InFlight<'a>>,
}

impl<'a> Turn<'a> {
    async fn new(shared: &Shared, account: u32) -> Self {
        Self { session: Session::open(&shared.config).await, account, open: None }
    }

    /// What goes wrong is the server's end or a deadlock; either way nothing is open.
    async fn begin(&mut self, shared: &'a Shared) {
        let sql = format!("BEGIN; UPDATE accounts SET balance = balance WHERE id = {}", self.account);
        if self.session.try_batch(&sql).await {
            self.open = Some(InFlight::enter(shared));
        } else {
            self.end().await;
        }
    }

    async fn end(&mut self) {
        drop(self.open.take());
        if !self.session.try_batch("COMMIT").await {
            self.session.reconnect().await;
        }
    }
}

/// Runs until the workload stops.
pub(super) async fn straddle(shared: &Shared) {
    let mut ending = Turn::new(shared, 1).await;
    let mut next = Turn::new(shared, 2).await;
    while !shared.stopping.is_cancelled() {
        let begun = Notify::new();
        let begin = async {
            next.begin(shared).await;
            begun.notify_one();
        };
        let end = async {
            let _ = timeout(WAIT_MAX, begun.notified()).await;
            ending.end().await;
        };
        tokio::join!(begin, end);
        std::mem::swap(&mut ending, &mut next);
        // An application that thinks in the middle of a transaction; nothing is waited for.
        tokio::time::sleep(OPEN).await;
    }
    ending.end().await;
}
