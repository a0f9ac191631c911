//! Proof that both sides hold the same: rows are hashed where they lie, through the mapping, and only the sums
//! travel. What does not agree is narrowed down to keys, looked at again until moving rows have come to rest, and
//! only what is still unequal under a row lock is a [`finding`]. What all of it says is the [`verdict`]; what a
//! verdict is still worth later, [`evidence`] says.

pub mod barrier;
pub mod chunks;
pub mod digest;
pub mod evidence;
pub mod finding;
pub mod form;
pub mod hands;
pub mod meet;
pub mod metrics;
pub mod orphans;
pub mod progress;
pub mod prove;
pub mod reader;
pub mod redact;
pub mod repair;
pub mod report;
pub mod run;
pub mod scan;
pub mod schedule;
pub mod selftest;
pub mod sides;
pub mod statements;
pub mod stop;
pub mod tables;
pub mod throttle;
pub mod verdict;
pub mod walk;
