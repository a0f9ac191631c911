//! What several test files need.

use std::io::Write as _;

pub mod bench;
pub mod binary;
pub mod catalogs;
pub mod cluster;
pub mod follower;
pub mod prepared;
pub mod privilege;
pub mod proxy;
pub mod scenario;
pub mod split;
pub mod tables;
pub mod toll;
pub mod wait;
pub mod writers;

/// Whether the long tests run their full matrices: `make soak`.
pub fn soak() -> bool {
    std::env::var_os("STRANGLER_SOAK").is_some()
}

/// The points of a matrix that `make test` takes, every third one; all of them in `make soak`.
pub fn every_third<T: Copy>(points: &[T]) -> Vec<T> {
    points.iter().step_by(if soak() { 1 } else { 3 }).copied().collect()
}

/// Says something that a green run shows too: the test runner keeps back what is printed, and not what is written.
pub fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}
