//! When to let bytes pile up in the socket.
//!
//! The walsender sends every message by itself. A reader that wakes for each one makes the walsender up to three
//! times dearer, because it is woken and interrupted each time, too. So the reader waits a little between reads while
//! data pours in, and never when it trickles: then every message is wanted at once.

use std::time::{Duration, Instant};

/// The wait. Well under the latency that anybody sees, and long enough for some hundred messages to arrive.
pub(super) const PAUSE: Duration = Duration::from_micros(400);

/// Traffic is judged over at least this time.
const WINDOW: Duration = Duration::from_millis(1);

/// Above this rate, data pours: 4 MB/s, some ten times what an application of 2,000 small transactions each second
/// causes, and a tenth of what a walsender can send.
const POURING_BYTES_PER_WINDOW: u64 = 4 * 1024;

/// A read that brought this much was a burst already; the next one needs no wait.
const BURST_BYTES: usize = 48 * 1024;

/// Watches the traffic of one stream.
#[derive(Debug)]
pub(super) struct Pace {
    window_start: Instant,
    window_bytes: u64,
    pouring: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { window_start: now, window_bytes: 0, pouring: false }
    }

    /// Notes a read; says whether to wait before the next.
    pub(super) fn pauses_after(&mut self, bytes: usize, now: Instant) -> bool {
        self.window_bytes = self.window_bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let elapsed = now.saturating_duration_since(self.window_start);
        if elapsed >= WINDOW {
            let windows = u64::try_from(elapsed.as_micros() / WINDOW.as_micros()).unwrap_or(u64::MAX).max(1);
            self.pouring = self.window_bytes / windows >= POURING_BYTES_PER_WINDOW;
            self.window_start = now;
            self.window_bytes = 0;
        }
        self.pouring && bytes < BURST_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of `bytes` each, one every `every_us`; how many of 1,000 were followed by a pause.
    fn pauses(bytes: usize, every_us: u64) -> usize {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        (0..1000)
            .filter(|_| {
                now += Duration::from_micros(every_us);
                pace.pauses_after(bytes, now)
            })
            .count()
    }

    #[test]
    fn a_flood_of_small_messages_is_read_in_bursts() {
        assert!(pauses(100, 5) > 700);
    }

    #[test]
    fn a_trickle_is_read_at_once() {
        assert_eq!(pauses(100, 100_000), 0);
        assert_eq!(pauses(300, 500), 0, "2,000 small transactions each second");
        assert_eq!(pauses(20_000, 10_000), 0, "a large transaction now and then");
    }

    #[test]
    fn reads_that_are_bursts_already_are_not_slowed() {
        assert_eq!(pauses(64 * 1024, 200), 0);
    }

    #[test]
    fn the_first_message_after_a_flood_is_read_at_once() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..1000 {
            now += Duration::from_micros(5);
            pace.pauses_after(100, now);
        }
        now += Duration::from_millis(50);
        assert!(!pace.pauses_after(100, now));
    }
}
