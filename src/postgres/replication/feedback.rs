//! Tells the server how far the stream got, whatever the consumer is doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::wire::Wire;
use crate::clock::{Clock, POSTGRES_EPOCH_US, SystemClock};
use crate::lsn::Lsn;

/// The longest silence. `pg_stat_replication` then shows positions that are at most this old.
const PERIOD_LONGEST: Duration = Duration::from_secs(10);

/// The shortest, for servers with an absurd `wal_sender_timeout`.
const PERIOD_SHORTEST: Duration = Duration::from_millis(20);

/// Positions that move faster than this are reported together: one message costs the walsender a wake-up.
const CONFIRM_EVERY: Duration = Duration::from_millis(10);

/// What reader, writer and consumer of one stream share.
#[derive(Debug)]
pub(super) struct Positions {
    received: AtomicU64,
    flushed: AtomicU64,
    /// The consumer confirmed something new.
    moved: Notify,
    /// The server wants to hear from us.
    asked: Notify,
    /// The stream is to end.
    pub(super) stopping: CancellationToken,
}

impl Positions {
    pub(super) fn new(from: Lsn) -> Self {
        Self {
            received: AtomicU64::new(from.0),
            flushed: AtomicU64::new(from.0),
            moved: Notify::new(),
            asked: Notify::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Never moves back: the server would forget nothing the less, and a reader of `pg_stat_replication` be misled.
    pub(super) fn confirm(&self, lsn: Lsn) {
        if self.flushed.fetch_max(lsn.0, Ordering::AcqRel) < lsn.0 {
            self.moved.notify_one();
        }
    }

    pub(super) fn receive(&self, lsn: Lsn) {
        self.received.fetch_max(lsn.0, Ordering::AcqRel);
    }

    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    fn flushed(&self) -> Lsn {
        Lsn(self.flushed.load(Ordering::Acquire))
    }

    /// Standby status update (PostgreSQL documentation, section 55.4).
    fn status(&self) -> BytesMut {
        let flushed = self.flushed().0;
        let received = self.received.load(Ordering::Acquire).max(flushed);
        let mut message = BytesMut::with_capacity(39);
        message.put_u8(b'd');
        message.put_i32(38);
        message.put_u8(b'r');
        message.put_u64(received);
        message.put_u64(flushed);
        message.put_u64(flushed);
        message.put_i64(SystemClock.now_us() - POSTGRES_EPOCH_US);
        message.put_u8(0);
        message
    }
}

/// Reports until the stream stops, then says good-bye. An error means that the connection is gone.
pub(super) async fn run(
    mut wire: WriteHalf<Wire>,
    positions: Arc<Positions>,
    period: Duration,
) -> std::io::Result<()> {
    loop {
        wire.write_all(&positions.status()).await?;
        wire.flush().await?;
        let sent = Instant::now();
        tokio::select! {
            () = positions.stopping.cancelled() => break,
            () = positions.asked.notified() => {}
            () = positions.moved.notified() => {
                tokio::select! {
                    () = sleep_until(sent + CONFIRM_EVERY) => {}
                    () = positions.asked.notified() => {}
                    () = positions.stopping.cancelled() => break,
                }
            }
            () = sleep_until(sent + period) => {}
        }
    }
    let mut message = positions.status();
    frontend::copy_done(&mut message);
    wire.write_all(&message).await?;
    wire.flush().await
}

/// How often to report to a server that hangs up after `sender_timeout`; `None` when it never does.
pub(super) fn period(sender_timeout: Option<Duration>) -> Duration {
    sender_timeout.map_or(PERIOD_LONGEST, |timeout| (timeout / 4).clamp(PERIOD_SHORTEST, PERIOD_LONGEST))
}

/// A time as `SHOW` prints it: `1min`, `1500ms`, `0`. `None` for 0 and what can't be read.
pub(super) fn read_timeout(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit_ms = match unit {
        "ms" | "" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let milliseconds = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_well_within_the_timeout_of_the_server() {
        for (text, period_ms) in
            [("1min", 10_000), ("1s", 250), ("500ms", 125), ("0", 10_000), ("1h", 10_000), ("1ms", 20)]
        {
            assert_eq!(period(read_timeout(text)), Duration::from_millis(period_ms), "{text}");
        }
    }

    #[test]
    fn a_confirmed_position_never_moves_back() {
        let positions = Positions::new(Lsn(100));
        positions.confirm(Lsn(300));
        positions.confirm(Lsn(200));
        assert_eq!(positions.flushed(), Lsn(300));
    }

    #[test]
    fn a_status_reports_what_was_confirmed_and_no_more() {
        let positions = Positions::new(Lsn(1));
        positions.receive(Lsn(9));
        positions.confirm(Lsn(5));
        let status = positions.status();
        let lsn = |at: usize| u64::from_be_bytes(status[at..at + 8].try_into().unwrap());
        assert_eq!((status.len(), status[5]), (39, b'r'));
        assert_eq!((lsn(6), lsn(14), lsn(22)), (9, 5, 5));
    }
}
