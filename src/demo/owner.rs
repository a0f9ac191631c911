//! A connection to each side of a slice, and transactions on whichever of them owns it: what docs/clients.md asks of an
//! application.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, Config, Error, NoTls, Transaction};

/// The pause after both sides refused, at first and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// How long a transaction is tried.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Monolith,
    Service,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Monolith, Self::Service];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Monolith => Self::Service,
            Self::Service => Self::Monolith,
        }
    }
}

/// Both databases, and where the last transaction succeeded.
#[derive(Debug)]
pub(super) struct Owner {
    configs: [Config; 2],
    clients: [Option<Client>; 2],
    side: Side,
}

/// What became of a transaction that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    /// Who acknowledged it.
    pub(super) side: Side,
    /// Attempts that a closed gate refused.
    pub(super) refused: u64,
}

/// Work of one transaction, which says by itself whether it was done before: an answer to COMMIT may be lost.
pub(super) trait Work {
    /// Sends the statements, in the words of this side's tables.
    async fn run(&self, to: &Transaction<'_>, side: Side) -> Result<(), Error>;
}

impl Owner {
    /// Connects to both sides, so that no login falls into a move. The monolith is asked first.
    ///
    /// # Errors
    /// When one of them can't be reached.
    pub(super) async fn open(monolith: &Config, service: &Config) -> Result<Self, Error> {
        let clients = [Some(connect(monolith).await?), Some(connect(service).await?)];
        Ok(Self { configs: [monolith.clone(), service.clone()], clients, side: Side::Monolith })
    }

    /// Does the work once, on the side that owns the tables.
    ///
    /// # Errors
    /// What no other side and no other time would help against, or the last error when patience was over.
    pub(super) async fn write(&mut self, work: &impl Work) -> Result<Done, Error> {
        let deadline = Instant::now() + PATIENCE;
        let (mut pause, mut failed, mut refused) = (PAUSE_FIRST, 0_u32, 0);
        loop {
            let error = match self.once(work).await {
                Ok(()) => return Ok(Done { side: self.side, refused }),
                Err(error) if is_worth_a_retry(&error) && Instant::now() < deadline => error,
                Err(error) => return Err(error),
            };
            if error.code().is_some_and(|code| code.code() == "25006") {
                refused += 1;
            }
            self.side = self.side.other();
            failed += 1;
            if failed.is_multiple_of(2) {
                // Both sides refused: authority is on its way.
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    async fn once(&mut self, work: &impl Work) -> Result<(), Error> {
        let side = self.side;
        let [monolith, service] = &mut self.clients;
        let ([there, here], place) = (&self.configs, if side == Side::Monolith { monolith } else { service });
        let client = match place.take().filter(|client| !client.is_closed()) {
            Some(client) => place.insert(client),
            None => place.insert(connect(if side == Side::Monolith { there } else { here }).await?),
        };
        let transaction = client.transaction().await?;
        work.run(&transaction, side).await?;
        transaction.commit().await
    }
}

pub(super) async fn connect(config: &Config) -> Result<Client, Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // The connection ends with its client; what went wrong on it comes out of the client's calls.
    tokio::spawn(connection);
    Ok(client)
}

/// Fenced, an old snapshot, a deadlock, or a connection that broke or could not be made.
fn is_worth_a_retry(error: &Error) -> bool {
    match error.code().map(|code| code.code()) {
        Some(code) => {
            matches!(code, "25006" | "40001" | "40P01") || code.starts_with("08") || code.starts_with("57P0")
        }
        None => error.as_db_error().is_none(),
    }
}
