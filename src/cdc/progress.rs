//! What a running mirror tells whoever watches it. The engine publishes it through a watch channel, so a slow
//! watcher sees the latest state and never holds the engine up.

use super::route::RouteCounts;
use crate::journal::streams::Direction;

/// All slices that one process mirrors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// One entry per slice, in the order of the plan.
    pub slices: Vec<SliceProgress>,
}

/// One slice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SliceProgress {
    /// Slice name.
    pub slice: String,
    /// Which of its streams.
    pub direction: Direction,
    /// What the engine is doing, as in `strangler.mirror_process.phase`.
    pub phase: String,
    /// Every table of the slice.
    pub tables: Vec<TableProgress>,
    /// WAL between the source's position and the one applied.
    pub lag_bytes: u64,
    /// Age of the target's data in milliseconds, when the source has told its time.
    pub lag_ms: Option<f64>,
    /// WAL that the source holds for the stream.
    pub wal_held_bytes: u64,
    /// How the stream's events fared since the engine started.
    pub counts: RouteCounts,
    /// More about the phase, such as the error that a reconnect waits after.
    pub detail: Option<String>,
}

/// One table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableProgress {
    /// The monolith's name for it.
    pub name: String,
    /// `pending`, `copying`, `live` or `diverged`.
    pub state: String,
    /// Rows copied.
    pub rows: u64,
    /// Rows expected.
    pub rows_estimate: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Rows per second, lately.
    pub rows_per_s: f64,
    /// Bytes per second, lately: they come while a piece is on its way, and rows when it has landed.
    pub bytes_per_s: f64,
    /// Seconds over which rows were seen to land: what an estimate of the time left rests on.
    pub measured_s: f64,
}
