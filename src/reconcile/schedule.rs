//! When a scheduled reconciliation runs next: every so often, or by a cron expression, moved a little so that not all
//! slices and all machines start at the same moment.
//!
//! Times are microseconds since 1970-01-01 UTC, as a [`Clock`](crate::clock::Clock) tells them. The caller asks again
//! after each run with the time it is then, so times that a long run has missed are skipped and never made up for.

use std::time::Duration;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use crate::plan::units::Period;

/// Below this a run would begin before the one before it has read its tables.
const PERIOD_MIN: Duration = Duration::from_secs(1);

/// Jitter that nobody asked for is this part of the interval, in per cent, and no longer than [`JITTER_MAX`].
const JITTER_PERCENT: u32 = 10;
const JITTER_MAX: Duration = Duration::from_secs(60);

/// How many times ahead are looked at for the shortest interval of a cron expression: a week of hours.
const LOOK_AHEAD: usize = 168;

/// When the runs of a slice begin.
#[derive(Debug, Clone)]
pub struct Schedule {
    rule: Rule,
    jitter: Duration,
    seed: u64,
}

#[derive(Debug, Clone)]
enum Rule {
    /// At the start and at whole periods after it.
    Every { period: Duration, start_us: i64 },
    /// By the wall clock of a place that keeps one offset all year.
    Cron { cron: Box<Cron>, offset: Offset },
}

/// A schedule that can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Not a length of time.
    #[error("{text:?} {fact}")]
    Period {
        /// What was written.
        text: String,
        /// What is wrong with it.
        fact: &'static str,
    },
    /// A period of almost nothing.
    #[error("a run every {text} is too often; once a second is the most")]
    TooOften {
        /// What was written.
        text: String,
    },
    /// Not five fields that mean something.
    #[error(
        "{text:?} is no cron expression of five fields (minute, hour, day of the month, month, day of the week), with a \
         zone offset after them if it is not UTC: \"30 3 * * 1-5\", \"0 */6 * * * +02:00\""
    )]
    Cron {
        /// What was written.
        text: String,
        /// What the parser says.
        source: CronError,
    },
    /// Days like 30 February.
    #[error("{text:?} names a time that never comes")]
    Never {
        /// What was written.
        text: String,
    },
    /// Runs would overtake one another.
    #[error("a jitter of {jitter:?} is longer than the shortest interval between two runs, {interval:?}")]
    Jitter {
        /// What was asked for.
        jitter: Duration,
        /// What there is room for.
        interval: Duration,
    },
}

impl Schedule {
    /// A run at `start_us`, and one after every period: `30s`, `15m`, `2h`, `1d`, `1h30m`. `jitter` is the most by
    /// which a run may begin later; without one it is a tenth of the period, and at most a minute. `seed` makes the
    /// jitter of this process: a random number, except in tests.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub fn every(
        text: &str,
        jitter: Option<Duration>,
        seed: u64,
        start_us: i64,
    ) -> Result<Self, ScheduleError> {
        let period = period(text)?;
        if period < PERIOD_MIN {
            return Err(ScheduleError::TooOften { text: text.to_owned() });
        }
        let jitter = checked_jitter(jitter, period)?;
        Ok(Self { rule: Rule::Every { period, start_us }, jitter, seed })
    }

    /// Runs by a cron expression of five fields, in UTC, or in the offset that stands after them. `@hourly`, `@daily`
    /// and the like are understood. `now_us` is where the expression is looked at from; see [`every`](Self::every) for
    /// the rest.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub fn cron(text: &str, jitter: Option<Duration>, seed: u64, now_us: i64) -> Result<Self, ScheduleError> {
        let refused = |source| ScheduleError::Cron { text: text.to_owned(), source };
        let (fields, offset) = split_offset(text);
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = Box::new(parser.parse(fields).map_err(refused)?);
        let from = local(now_us, offset);
        let mut interval = None;
        let mut last = None;
        for time in cron.iter_after(from).take(LOOK_AHEAD) {
            let since = last.and_then(|last: DateTime| time.duration_since(last).try_into().ok());
            interval = interval.into_iter().chain(since).min();
            last = Some(time);
        }
        if last.is_none() {
            return Err(ScheduleError::Never { text: text.to_owned() });
        }
        // One that comes only once more has all the room there is.
        let jitter = checked_jitter(jitter, interval.unwrap_or(Duration::MAX))?;
        Ok(Self { rule: Rule::Cron { cron, offset }, jitter, seed })
    }

    /// When a slice's next run begins: the first of its times after `now_us`. None when there will be no more.
    #[must_use]
    pub fn next(&self, slice: &str, now_us: i64) -> Option<i64> {
        let late_us = self.late_us(slice);
        let due_us = self.due(now_us.saturating_sub(late_us))?;
        due_us.checked_add(late_us)
    }

    /// When a slice's first run begins: for a period at once, but for the jitter; else the [`next`](Self::next) time.
    #[must_use]
    pub fn first(&self, slice: &str, now_us: i64) -> Option<i64> {
        match self.rule {
            Rule::Every { start_us, .. } => Some(start_us.saturating_add(self.late_us(slice)).max(now_us)),
            Rule::Cron { .. } => self.next(slice, now_us),
        }
    }

    /// The most by which a run begins later than its time.
    #[must_use]
    pub fn jitter(&self) -> Duration {
        self.jitter
    }

    /// By how much a slice's runs are late: the same for all of them, so that the interval between two is the one that
    /// was asked for.
    fn late_us(&self, slice: &str) -> i64 {
        let most = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX);
        let share = spread(slice, self.seed) % most.saturating_add(1).max(1);
        i64::try_from(share).unwrap_or(i64::MAX)
    }

    /// The first time of the rule after a moment, without jitter.
    fn due(&self, after_us: i64) -> Option<i64> {
        match &self.rule {
            Rule::Every { period, start_us } => {
                let period_us = i64::try_from(period.as_micros()).ok()?;
                let passed = after_us.checked_sub(*start_us)?;
                let periods = passed.div_euclid(period_us).checked_add(1)?;
                start_us.checked_add(periods.max(0).checked_mul(period_us)?)
            }
            Rule::Cron { cron, offset } => {
                let next = cron.find_next_occurrence(&local(after_us, *offset), false).ok()?;
                offset.to_timestamp(next).ok().map(Timestamp::as_microsecond)
            }
        }
    }
}

/// Reads a length of time as a plan writes it: `30s`, `15m`, `2h`, `1d`.
///
/// # Errors
/// [`ScheduleError::Period`].
pub fn period(text: &str) -> Result<Duration, ScheduleError> {
    let period = Period::try_from(text.to_owned());
    period.map(|period| period.0).map_err(|fact| ScheduleError::Period { text: text.to_owned(), fact })
}

fn checked_jitter(asked: Option<Duration>, interval: Duration) -> Result<Duration, ScheduleError> {
    match asked {
        Some(jitter) if jitter > interval => Err(ScheduleError::Jitter { jitter, interval }),
        Some(jitter) => Ok(jitter),
        None => Ok((interval / 100 * JITTER_PERCENT).min(JITTER_MAX)),
    }
}

/// The wall clock of an offset. Times outside the calendar are at its ends.
fn local(us: i64, offset: Offset) -> DateTime {
    let end = if us < 0 { Timestamp::MIN } else { Timestamp::MAX };
    offset.to_datetime(Timestamp::from_microsecond(us).unwrap_or(end))
}

/// The five fields, and the offset behind them: `+02:00`, `-05:30` or `Z`. What is no offset is left for the parser to
/// refuse.
fn split_offset(text: &str) -> (&str, Offset) {
    let whole = (text, Offset::UTC);
    let Some((fields, word)) = text.trim().rsplit_once(char::is_whitespace) else { return whole };
    if word == "Z" {
        return (fields, Offset::UTC);
    }
    let Some((sign, clock)) =
        word.strip_prefix('+').map(|rest| (1, rest)).or(word.strip_prefix('-').map(|rest| (-1, rest)))
    else {
        return whole;
    };
    let two = |text: &str| (text.len() == 2).then(|| text.parse::<i32>().ok()).flatten();
    match clock.split_once(':').map(|(hours, minutes)| (two(hours), two(minutes))) {
        Some((Some(hours @ 0..=15), Some(minutes @ 0..=59))) => {
            Offset::from_seconds(sign * (hours * 3600 + minutes * 60))
                .map_or(whole, |offset| (fields, offset))
        }
        _ => whole,
    }
}

/// A number that looks random and is always the same for a slice and a seed (FNV-1a, then the finalizer of
/// `splitmix64`). The standard library's hasher may change with its version.
fn spread(slice: &str, seed: u64) -> u64 {
    let start = 0xCBF2_9CE4_8422_2325 ^ seed;
    let hash =
        slice.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    fn shown(us: i64) -> String {
        Timestamp::from_microsecond(us).unwrap().to_string()
    }

    const NOW: &str = "2026-11-29T08:07:30Z";

    /// The next three times of a cron expression without jitter.
    fn times(text: &str) -> Vec<String> {
        let schedule = Schedule::cron(text, Some(Duration::ZERO), 1, at(NOW)).unwrap();
        let next = |us: &i64| schedule.next("a", *us);
        std::iter::successors(next(&at(NOW)), next).take(3).map(shown).collect()
    }

    #[test]
    fn cron_expressions_are_in_utc_or_in_the_offset_behind_them() {
        assert_eq!(
            times("*/15 * * * *"),
            ["2026-11-29T08:15:00Z", "2026-11-29T08:30:00Z", "2026-11-29T08:45:00Z"]
        );
        assert_eq!(
            times("30 3 * * MON-FRI"),
            ["2026-11-30T03:30:00Z", "2026-12-01T03:30:00Z", "2026-12-02T03:30:00Z"]
        );
        assert_eq!(
            times("0 3 * * * +02:00"),
            ["2026-11-30T01:00:00Z", "2026-12-01T01:00:00Z", "2026-12-02T01:00:00Z"]
        );
        assert_eq!(times("0 3 * * * -05:30")[0], "2026-11-29T08:30:00Z");
        assert_eq!(times("0 3 * * * Z")[0], "2026-11-30T03:00:00Z");
        assert_eq!(times("@daily")[0], "2026-11-30T00:00:00Z");
        assert_eq!(
            times("0 0 29 2 *"),
            ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z", "2036-02-29T00:00:00Z"]
        );
        // Either day, as in every cron (POSIX, crontab).
        assert_eq!(times("0 0 1 * SUN")[..2], ["2026-12-01T00:00:00Z", "2026-12-06T00:00:00Z"]);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        let cron = |text: &str| Schedule::cron(text, None, 1, at(NOW));
        for wrong in [
            "",
            "* * * *",
            "* * * * * *",
            "0 0 * * * * *",
            "61 * * * *",
            "every day",
            "0 3 * * * +2",
            "0 3 * * * +25:00",
        ] {
            assert!(matches!(cron(wrong), Err(ScheduleError::Cron { .. })), "{wrong}");
        }
        assert!(matches!(cron("0 0 30 2 *"), Err(ScheduleError::Never { .. })));
        let every = |text: &str, jitter| Schedule::every(text, jitter, 1, 0).unwrap_err().to_string();
        insta::assert_snapshot!(every("15", None), @r#""15" has to be a length of time: a whole number with one of the units ms, s, m, h, d"#);
        insta::assert_snapshot!(every("500ms", None), @"a run every 500ms is too often; once a second is the most");
        insta::assert_snapshot!(every("1m", Some(Duration::from_secs(61))), @"a jitter of 61s is longer than the shortest interval between two runs, 60s");
    }

    #[test]
    fn jitter_is_a_tenth_and_at_most_a_minute() {
        let every = |text: &str| Schedule::every(text, None, 1, 0).unwrap().jitter();
        assert_eq!(["30s", "15m", "2h", "1d"].map(|text| every(text).as_secs()), [3, 60, 60, 60]);
        let cron = |text: &str| Schedule::cron(text, None, 1, at(NOW)).unwrap().jitter();
        assert_eq!(["* * * * *", "0,5 * * * *", "0 3 * * *"].map(|text| cron(text).as_secs()), [6, 30, 60]);
    }

    #[test]
    fn a_period_begins_at_once_and_a_cron_expression_waits_for_its_time() {
        let every = Schedule::every("15m", Some(Duration::ZERO), 1, at(NOW)).unwrap();
        assert_eq!(every.first("a", at(NOW)).map(shown).as_deref(), Some(NOW));
        assert_eq!(every.next("a", at(NOW)).map(shown).as_deref(), Some("2026-11-29T08:22:30Z"));
        let cron = Schedule::cron("0 * * * *", Some(Duration::ZERO), 1, at(NOW)).unwrap();
        assert_eq!(cron.first("a", at(NOW)).map(shown).as_deref(), Some("2026-11-29T09:00:00Z"));
    }

    #[test]
    fn slices_and_machines_do_not_start_together() {
        let late = |slice: &str, seed| Schedule::every("1h", None, seed, 0).unwrap().late_us(slice);
        let slices: std::collections::BTreeSet<_> = (0..50).map(|n| late(&format!("slice{n}"), 7)).collect();
        let machines: std::collections::BTreeSet<_> = (0..50).map(|seed| late("slice", seed)).collect();
        assert!(slices.len() == 50 && machines.len() == 50, "{slices:?} {machines:?}");
        assert!(slices.iter().max().unwrap() - slices.iter().min().unwrap() > 30_000_000, "{slices:?}");
    }

    fn periods() -> impl Strategy<Value = Duration> {
        (1_u64..200_000).prop_map(Duration::from_secs)
    }

    proptest! {
        /// However long a run takes, one run follows and no burst: the next time lies ahead, by no more than a period.
        #[test]
        fn the_next_time_lies_ahead_by_a_period_at_most(
            period in periods(), start in 0_i64..2_000_000_000_000_000, passed in 0_i64..4_000_000_000_000_000, seed: u64,
            jitter in 0_u32..100,
        ) {
            let text = format!("{}s", period.as_secs());
            let schedule = Schedule::every(&text, Some(period / 100 * jitter), seed, start).unwrap();
            let period_us = i64::try_from(period.as_micros()).unwrap();
            let now = start + passed;
            let next = schedule.next("ordering", now).unwrap();
            let late = schedule.late_us("ordering");
            prop_assert!(next > now && next - now <= period_us + late, "{next} after {now}");
            prop_assert!((0..=i64::try_from(schedule.jitter().as_micros()).unwrap()).contains(&late));
            // It is one of the schedule's own times, and the one after it comes a period later.
            prop_assert_eq!((next - late - start) % period_us, 0);
            prop_assert_eq!(schedule.next("ordering", next), Some(next + period_us));
            // Nothing lies between: a moment before it, it is still the next.
            prop_assert_eq!(schedule.next("ordering", next - 1), Some(next));
            prop_assert_eq!(schedule.next("ordering", now), Some(next));
        }

        #[test]
        fn a_cron_time_is_ahead_matches_and_has_none_before_it(
            minute in 0_u8..60, hour in 0_u8..24, now in 1_000_000_000_i64..3_000_000_000, seed: u64, east in -12_i32..=14,
        ) {
            let text = format!("{minute} {hour} * * * {}{:02}:00", if east < 0 { '-' } else { '+' }, east.abs());
            let now_us = now * 1_000_000 + 123;
            let schedule = Schedule::cron(&text, None, seed, now_us).unwrap();
            let next = schedule.next("a", now_us).unwrap();
            let late = schedule.late_us("a");
            prop_assert!(next > now_us && next - now_us <= 86_400_000_000 + late);
            let wall = local(next - late, Offset::from_seconds(east * 3600).unwrap());
            prop_assert_eq!((wall.minute(), wall.hour(), wall.second()), (i8::try_from(minute).unwrap(), i8::try_from(hour).unwrap(), 0));
        }

        #[test]
        fn no_text_panics(text in any::<String>(), fields in "[0-9*/,LW#?@A-Z+ -]{0,24}") {
            let _ = Schedule::every(&text, None, 1, 0);
            for text in [text, fields] {
                if let Ok(schedule) = Schedule::cron(&text, None, 1, at(NOW)) {
                    let _ = schedule.next("a", at(NOW));
                }
            }
        }

        #[test]
        fn no_time_panics(now: i64, start: i64, seed: u64) {
            let every = Schedule::every("90s", None, seed, start).unwrap();
            let cron = Schedule::cron("*/7 * * * *", None, seed, now).unwrap_or_else(|_| Schedule::every("1d", None, 1, 0).unwrap());
            for schedule in [every, cron] {
                let _ = schedule.first("a", now);
                let _ = schedule.next("a", now);
            }
        }
    }
}
