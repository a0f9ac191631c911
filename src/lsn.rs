//! A position in the write-ahead log of one PostgreSQL server.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio_postgres::types::PgLsn;

/// A WAL position in bytes since the start of the log (`pg_lsn`, PostgreSQL documentation, section 8.20).
///
/// Positions of two servers, or of two timelines of one server, can't be compared: callers keep them apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// The text is not of the form `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a WAL position; one looks like 16/B374D848")]
pub struct LsnParseError {
    text: String,
}

impl Lsn {
    /// The position before everything; PostgreSQL's "invalid" LSN.
    pub const ZERO: Self = Self(0);

    /// Bytes from `earlier` to `self`, 0 when `earlier` is not earlier.
    #[must_use]
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || LsnParseError { text: text.to_owned() };
        let (high, low) = text.split_once('/').ok_or_else(error)?;
        let part = |hex: &str| {
            let digits = !hex.is_empty() && hex.len() <= 8 && hex.bytes().all(|b| b.is_ascii_hexdigit());
            if digits { u64::from_str_radix(hex, 16).ok() } else { None }
        };
        match (part(high), part(low)) {
            (Some(high), Some(low)) => Ok(Self(high << 32 | low)),
            (None, _) | (_, None) => Err(error()),
        }
    }
}

/// As its text, because JSON numbers lose the last bits of it.
impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl From<PgLsn> for Lsn {
    fn from(lsn: PgLsn) -> Self {
        Self(lsn.into())
    }
}

impl From<Lsn> for PgLsn {
    fn from(lsn: Lsn) -> Self {
        Self::from(lsn.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_agree_both_ways() {
        for number in [0, 1, 0xFFFF_FFFF, 0x1_0000_0000, 0x16_B374_D848, u64::MAX] {
            assert_eq!(Lsn(number).to_string().parse(), Ok(Lsn(number)));
        }
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["", "/", "1/", "/1", "1", "g/1", "1/123456789", "+1/0", "1/0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}
