//! Numbers as people read them, and statements of others as people may read them.

pub mod statement;

use std::fmt::Write as _;

use bytesize::ByteSize;

/// Bytes in powers of ten, as `wal_budget` is written: `16.8 MB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    ByteSize::b(count).display().si().to_string()
}

/// Bytes in hex, two lower-case digits each: how digests are written and compared.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into memory does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The text as one word of a POSIX shell.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A whole number with its thousands apart: `1,234,567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A period with the precision that matters: `12 ms`, `3.4 s`, `2 min 5 s`, `3 h 4 min`, `2 d 3 h`.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    if !seconds.is_finite() || seconds >= 1000.0 * 365.0 * 86_400.0 {
        return "for ever".to_owned();
    }
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds.max(0.0) * 1000.0);
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = std::time::Duration::from_secs_f64(seconds.round()).as_secs();
    match whole {
        0..HOUR => format!("{} min {} s", whole / MINUTE, whole % MINUTE),
        HOUR..DAY => format!("{} h {} min", whole / HOUR, whole % HOUR / MINUTE),
        DAY.. => format!("{} d {} h", whole / DAY, whole % DAY / HOUR),
    }
}

/// A time in microseconds since 1970 as reports give it: RFC 3339, in UTC, to the second.
#[must_use]
pub fn instant(at_us: i64) -> String {
    written(at_us, "%Y-%m-%dT%H:%M:%SZ")
}

/// The same to the microsecond, where entries are told apart by it.
#[must_use]
pub fn exact_instant(at_us: i64) -> String {
    written(at_us, "%Y-%m-%dT%H:%M:%S.%6fZ")
}

fn written(at_us: i64, format: &str) -> String {
    jiff::Timestamp::from_microsecond(at_us).map(|at| at.strftime(format).to_string()).unwrap_or_default()
}

/// A text of several lines on one, cut to so many characters.
#[must_use]
pub fn one_line(text: &str, chars_max: usize) -> String {
    cut(&text.split_whitespace().collect::<Vec<_>>().join(" "), chars_max)
}

/// A text of at most so many characters, which says when it was longer.
fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// One noun or several: `1 table`, `2 tables`.
#[must_use]
pub fn plural(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn periods_keep_two_units_at_most() {
        let all = [0.0, 0.0124, 0.9994, 0.9996, 3.44, 59.96, 125.0, 11_040.0, 183_600.0, f64::INFINITY, -1.0];
        let words =
            ["0 ms", "12 ms", "999 ms", "1.0 s", "3.4 s", "1 min 0 s", "2 min 5 s", "3 h 4 min", "2 d 3 h"];
        assert_eq!(all.map(seconds)[..9], words);
        assert_eq!(seconds(f64::INFINITY), "for ever");
        assert_eq!(seconds(-1.0), "0 ms");
    }

    #[test]
    fn bytes_are_decimal_like_the_plans() {
        assert_eq!([0, 999, 50_000_000_000].map(bytes), ["0 B", "999 B", "50.0 GB"]);
    }
}
