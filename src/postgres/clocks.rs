//! Whether this machine and the servers agree on what time it is. The plan's periods are counted by this machine's clock, and
//! another machine may have written down when they began.

use tokio_postgres::{Client, Error};

use crate::clock;
use crate::problem::Problem;
use crate::words;

/// Clocks that are set over the network are milliseconds apart. Microseconds.
const APART_US_MAX: i64 = 60_000_000;

/// By how much this machine's clock is ahead of the nearest of these servers' clocks, in microseconds; less than 0 where it is behind.
/// `None` where it agrees with one of them within a minute: then another one is wrong, which nothing is counted by.
///
/// # Errors
/// A server's.
pub async fn apart_us(servers: [&Client; 2]) -> Result<Option<i64>, Error> {
    let mut nearest: Option<i64> = None;
    for server in servers {
        let before = clock::machine_us();
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let there: i64 = server.query_typed_one(sql, &[]).await?.get(0);
        let Some(apart) = apart((before, clock::machine_us()), there) else { return Ok(None) };
        nearest = nearest.into_iter().chain([apart]).min_by_key(|apart| apart.abs());
    }
    Ok(nearest)
}

/// The same of one server, which told its time at some moment between two others of this machine.
fn apart((before, after): (i64, i64), there: i64) -> Option<i64> {
    let (ahead, behind) = (before.saturating_sub(there), there.saturating_sub(after));
    if ahead > APART_US_MAX {
        return Some(ahead);
    }
    (behind > APART_US_MAX).then_some(-behind)
}

/// What is said of it: `2 h 0 min ahead of both databases' servers`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a period in words")]
pub fn words(apart_us: i64) -> String {
    let period = words::seconds(apart_us.saturating_abs() as f64 / 1e6);
    format!("{period} {} both databases' servers", if apart_us > 0 { "ahead of" } else { "behind" })
}

/// The same as a problem, where a period of the plan is to be judged.
#[must_use]
pub fn problem(apart_us: i64) -> Problem {
    Problem::error("clock-apart", "this machine")
        .fact(format!("its clock is {}", words(apart_us)))
        .consequence("the plan's periods are counted by it, and would end too early or too late")
        .next("set it right (`timedatectl` shows whether it is synchronized), then type the command again")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000_000;

    #[test]
    fn a_slow_answer_is_no_difference_and_more_than_a_minute_is_one() {
        assert_eq!(apart((100 * MINUTE, 105 * MINUTE), 102 * MINUTE), None);
        assert_eq!(apart((100 * MINUTE, 100 * MINUTE), 99 * MINUTE), None);
        assert_eq!(apart((100 * MINUTE, 101 * MINUTE), 98 * MINUTE), Some(2 * MINUTE));
        assert_eq!(apart((100 * MINUTE, 101 * MINUTE), 104 * MINUTE), Some(-3 * MINUTE));
    }

    #[test]
    fn it_is_said_who_is_ahead() {
        assert_eq!(words(120 * MINUTE), "2 h 0 min ahead of both databases' servers");
        assert_eq!(words(-2 * MINUTE), "2 min 0 s behind both databases' servers");
    }
}
