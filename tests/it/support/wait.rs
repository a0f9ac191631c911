//! Waiting for a condition, with a limit. Tests never just sleep.

use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is tried.
const POLL: Duration = Duration::from_millis(5);

/// The limit for whatever normally happens within a second: generous, because test machines are loaded.
pub const SOON: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value, and returns it.
///
/// # Panics
/// With `what`, when that takes longer than `limit`.
pub async fn until<T, F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// As [`until`], for tests without a runtime.
pub fn until_blocking<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        std::thread::sleep(POLL);
    }
}
