//! The one source of wall-clock time, so that tests can move it. Time is shown and compared with periods;
//! it never orders events.
//!
//! Whatever a period of the plan is counted from is written by it, and whoever asks whether the period is over asks it again.
//! In a build with the feature `failpoints` the variable `STRANGLER_CLOCK_OFFSET` moves it: `+29d12h`, or `@FILE`, a file that says
//! so and is read again each time. `STRANGLER_CLOCK_WRONG` makes the machine's own clock wrong by so much, as nobody means it to be.
//! Other builds hold none of it.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tells the time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Microseconds since 1970-01-01 UTC.
    fn now_us(&self) -> i64;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_us(&self) -> i64 {
        machine_us().saturating_add(moved_us("STRANGLER_CLOCK_OFFSET"))
    }
}

impl SystemClock {
    /// The same as a parameter of a statement, for a column of type `timestamptz`.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        time(self.now_us())
    }
}

/// What the machine's clock says, in microseconds since 1970: for a comparison with another machine's, and for ages of files. Nothing
/// that the plan asks for is measured by it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the system's clock")]
pub fn machine_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX).saturating_add(moved_us("STRANGLER_CLOCK_WRONG"))
}

/// Microseconds since 1970 as a parameter of a statement; what lies before is 1970.
#[must_use]
pub fn time(us: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

/// By how much a variable moves a clock, in microseconds.
#[cfg(feature = "failpoints")]
fn moved_us(variable: &str) -> i64 {
    let Ok(text) = std::env::var(variable) else { return 0 };
    let text = match text.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).unwrap_or_default(),
        None => text,
    };
    offset_us(&text).unwrap_or(0)
}

/// By how much a variable moves a clock: not at all, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
fn moved_us(_variable: &str) -> i64 {
    0
}

/// `+29d12h` or `-5m` in microseconds.
#[cfg(feature = "failpoints")]
fn offset_us(text: &str) -> Option<i64> {
    let text = text.trim();
    let (sign, text) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(later), _) => (1, later),
        (_, Some(earlier)) => (-1, earlier),
        (None, None) => return None,
    };
    Some(sign * i64::try_from(period(text).ok()?.as_micros()).ok()?)
}

/// The longest period that makes sense: ten years. Sums of periods then never overflow.
const PERIOD_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Reads a length of time as a plan writes it, one or more whole numbers with a unit each: `7d`, `500ms`, `1h30m`.
///
/// # Errors
/// What it has to be.
pub fn period(text: &str) -> Result<Duration, &'static str> {
    const WANTED: &str = "has to be a length of time: a whole number with one of the units ms, s, m, h, d";
    let mut sum = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(WANTED);
    }
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, after) =
            after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(WANTED),
        };
        let number: u64 = number.parse().map_err(|_| WANTED)?;
        let part = Duration::from_millis(number.checked_mul(millis).ok_or("is longer than ten years")?);
        sum = sum.checked_add(part).filter(|sum| *sum <= PERIOD_MAX).ok_or("is longer than ten years")?;
        rest = after.trim_start();
    }
    Ok(sum)
}

/// A clock that stands still until it is set.
#[derive(Debug, Default)]
pub struct FixedClock(AtomicI64);

impl FixedClock {
    /// Stands at `now_us`.
    #[must_use]
    pub fn at(now_us: i64) -> Self {
        Self(AtomicI64::new(now_us))
    }

    /// Moves by `us` microseconds.
    pub fn advance_us(&self, us: i64) {
        self.0.fetch_add(us, Ordering::SeqCst);
    }
}

impl Clock for FixedClock {
    fn now_us(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Microseconds between 1970-01-01 and PostgreSQL's epoch, 2000-01-01.
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_have_a_unit_and_a_limit() {
        let read = |text| period(text).ok();
        assert_eq!(read("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(read("7d"), Some(Duration::from_secs(604_800)));
        assert_eq!(read("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(read("0s"), Some(Duration::ZERO));
        for wrong in ["", "7", "d", "7 days", "-1d", "1.5h", "7D", "99999999999999999999d", "11y", "4000d"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[cfg(feature = "failpoints")]
    #[test]
    fn an_offset_says_into_which_direction() {
        assert_eq!(offset_us("+1d1s\n"), Some(86_401_000_000));
        assert_eq!(offset_us("-5m"), Some(-300_000_000));
        for wrong in ["", "5m", "+", "+-5m", "+5"] {
            assert_eq!(offset_us(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_time_before_1970_is_1970() {
        assert_eq!(time(-1), UNIX_EPOCH);
        assert_eq!(time(1_500_000), UNIX_EPOCH + Duration::from_millis(1_500));
    }
}
