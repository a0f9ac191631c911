//! Keeping out of the way of the databases' real work.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::progress::Board;
use super::sides::APPLICATION;
use super::stop;
use crate::postgres::connect::Session;
use crate::postgres::sqlstate;

/// First and longest pause while the authority is busy.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// See [`PAUSE_FIRST`].
const PAUSE_LAST: Duration = Duration::from_secs(5);

/// Sessions of others that have a transaction open. Every transaction holds its virtual id as a lock, and everybody may
/// see locks, where `pg_stat_activity` shows nothing of other roles' sessions.
const LOAD: &str = "SELECT count(DISTINCT l.pid) FROM pg_locks l \
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
    WHERE l.locktype = 'virtualxid' AND l.granted AND coalesce(a.application_name, '') <> $1";

/// Waits while the authority has more transactions open than the operator allows.
#[derive(Debug)]
pub struct Throttle {
    limit: Option<(i64, Session)>,
}

impl Throttle {
    /// `limit` is the number of open transactions above which nothing new is read; `session` asks for it.
    #[must_use]
    pub fn new(limit: Option<(u32, Session)>) -> Self {
        Self { limit: limit.map(|(most, session)| (i64::from(most), session)) }
    }

    /// Returns once the load is within the limit, or when the run is stopped.
    ///
    /// # Errors
    /// The server's words, when it can't be asked.
    pub async fn wait(&self, slice: &str, board: &Board, stop: &CancellationToken) -> Result<(), String> {
        let Some((most, session)) = &self.limit else { return Ok(()) };
        let mut pause = PAUSE_FIRST;
        loop {
            let row = session.query_one(LOAD, &[&APPLICATION]).await;
            let load: i64 = row.map_err(|error| sqlstate::words(&error))?.get(0);
            let waits = (load > *most)
                .then(|| format!("the authority has {load} transactions open, more than --max-load {most}"));
            let busy = waits.is_some();
            board.update(slice, |shown| {
                if shown.waits != waits {
                    shown.waits = waits;
                }
            });
            if !busy {
                return Ok(());
            }
            // Who is stopped reads nothing new either.
            if stop::wait(stop, tokio::time::sleep(pause)).await.is_err() {
                return Ok(());
            }
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }
}
