//! Operations collected for one target transaction.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::journal::copies::PieceRow;
use crate::landing::sets::RowOperation;
use crate::lsn::Lsn;

/// When a batch is full. Whichever comes first; an idle stream commits at once.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Rows: beyond a few thousand the cost of a commit is already spread thin.
    pub rows: usize,
    /// Bytes of values: bounds the memory of one slice.
    pub bytes: usize,
    /// Age of the oldest transaction in it: bounds the lag that batching adds under load.
    pub age: Duration,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { rows: 5_000, bytes: 8 << 20, age: Duration::from_millis(50) }
    }
}

/// Where the last complete transaction in a batch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// End of its commit record.
    pub end: Lsn,
    /// The source's time of that state, in microseconds since 2000-01-01 UTC.
    pub time_us: i64,
}

/// Consecutive source transactions on their way into one target transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// Operations by table, in source order, since the last flush.
    pub operations: BTreeMap<usize, Vec<RowOperation>>,
    /// Refetched keys whose pieces are recorded with the next flush, by table.
    pub key_pieces: Vec<PieceRow>,
    /// How many operations since the last flush.
    pub rows: usize,
    /// Bytes of their values.
    pub bytes: usize,
    /// End of the last complete transaction; none while the first is still arriving.
    pub boundary: Option<Boundary>,
    /// Something was written to the target in the open target transaction.
    pub flushed: bool,
    opened: Option<Instant>,
}

impl Batch {
    /// Adds an operation of table number `table`, whose values hold `bytes`.
    pub fn push(&mut self, table: usize, operation: RowOperation, bytes: usize) {
        self.operations.entry(table).or_default().push(operation);
        self.rows += 1;
        self.bytes += bytes;
        self.opened.get_or_insert_with(Instant::now);
    }

    /// Nothing waits to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0 && self.key_pieces.is_empty()
    }

    /// Nothing has to be committed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_empty() && !self.flushed
    }

    /// Full by rows or bytes: must be written before more is taken.
    #[must_use]
    pub fn is_full(&self, limits: &BatchLimits) -> bool {
        self.rows >= limits.rows || self.bytes >= limits.bytes
    }

    /// Old enough to be committed at the next boundary.
    #[must_use]
    pub fn is_due(&self, limits: &BatchLimits) -> bool {
        self.is_full(limits) || self.opened.is_some_and(|opened| opened.elapsed() >= limits.age)
    }

    /// The operations were written into the open target transaction.
    pub fn clear_flushed(&mut self) {
        self.operations.clear();
        self.key_pieces.clear();
        self.rows = 0;
        self.bytes = 0;
        self.flushed = true;
    }

    /// The target transaction committed.
    pub fn clear_committed(&mut self) {
        *self = Self::default();
    }
}
