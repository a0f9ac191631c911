//! How many rows are locked at once, and for how long.
//!
//! Each column of a row is hashed and read by an expression of its own on either side, so that a statement about wide rows
//! takes long before it looks at the first of them. The limits follow the width, and a table has 1,600 columns at most.

use std::time::Duration;

/// Columns up to which the limits are the shortest ones.
const NARROW: usize = 100;
/// Rows of a narrow table that are locked at once. Their writers wait meanwhile.
const NARROW_ROWS: usize = 250;
/// How long a statement may take that locks rows of a narrow table.
const NARROW_STATEMENT: Duration = Duration::from_millis(200);
/// From the start of a locking transaction on a narrow table to its end, so the longest that a writer waits for us.
const NARROW_HELD: Duration = Duration::from_millis(500);
/// By how much each further column prolongs one statement.
const PER_COLUMN: Duration = Duration::from_millis(1);
/// Columns above which the limits are the longest ones: 1.7 s for a statement, 3.5 s in all.
const WIDEST: usize = 1_600;

/// The limits of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Rows that are locked at once.
    pub(super) rows: usize,
    /// How long the statement that locks them may take.
    pub(super) statement: Duration,
    /// From the start of the transaction to its end, so the longest that a writer waits for us.
    pub(super) held: Duration,
}

impl Limits {
    /// Those of a table with so many columns.
    pub(super) fn of(columns: usize) -> Self {
        let width = columns.clamp(NARROW, WIDEST);
        let more = PER_COLUMN * u32::try_from(width - NARROW).unwrap_or(u32::MAX);
        Self {
            rows: (NARROW_ROWS * NARROW / width).max(1),
            statement: NARROW_STATEMENT + more,
            // Both sides are read while the rows are locked.
            held: NARROW_HELD + 2 * more,
        }
    }

    /// Opens a locking transaction. Limits keep it short even where this process is frozen: the server then ends it.
    pub(super) fn begin(self) -> String {
        format!(
            "BEGIN; SET LOCAL lock_timeout = '50ms'; SET LOCAL statement_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}",
            self.statement.as_millis(),
            self.held.as_millis() + 100
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_the_width_between_two_bounds() {
        let of = |columns| {
            let Limits { rows, statement, held } = Limits::of(columns);
            (rows, statement.as_millis(), held.as_millis())
        };
        assert_eq!([1, 100].map(of), [(250, 200, 500), (250, 200, 500)]);
        assert_eq!(of(500), (50, 600, 1_300));
        assert_eq!([1_600, 100_000].map(of), [(15, 1_700, 3_500), (15, 1_700, 3_500)]);
        assert!(Limits::of(1).begin().ends_with("idle_in_transaction_session_timeout = 600"));
    }
}
