//! What a long test did to mirrors and servers: counted where it is done, said at the end, written into docs/soak.md.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{say, soak};

/// Counts of one test.
#[derive(Debug, Default)]
pub struct Toll {
    /// Mirrors that were killed with SIGKILL, by themselves at a kill point or from outside.
    pub kills: Count,
    /// Those of them that had a transaction of the application open beside them.
    pub kills_in_flight: Count,
    /// Servers that were stopped at once, as by a crash, and started again.
    pub restarts: Count,
    /// Mirrors that were stopped with SIGSTOP and went on later.
    pub freezes: Count,
}

/// A number that goes up.
#[derive(Debug, Default)]
pub struct Count(AtomicU32);

impl Count {
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// As scripts/soak-line.sh reads it.
impl fmt::Display for Toll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kills={} in_flight={} restarts={} freezes={}",
            self.kills.get(),
            self.kills_in_flight.get(),
            self.restarts.get(),
            self.freezes.get()
        )
    }
}

/// The seed of this run: `STRANGLER_SEED`, where a failed run is to be run again; else a new one in `make soak`, and
/// always the same otherwise. The first who asks says it, so that a failed run shows it too.
pub fn seed() -> u64 {
    const USUAL: u64 = 7;
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let given = std::env::var("STRANGLER_SEED").ok();
        let given = given.map(|text| text.parse().expect("STRANGLER_SEED is a number"));
        // Short enough for a table that people read.
        let seed = given.unwrap_or_else(|| if soak() { fastrand::u64(..100_000_000) } else { USUAL });
        if soak() || given.is_some() {
            say(&format!("soak: seed={seed}; this run again: STRANGLER_SEED={seed} make soak"));
        }
        seed
    })
}

/// The name of the test that asks. The runner gives its thread that name.
pub fn name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}
