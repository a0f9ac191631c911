//! Keys of rows, and their order where both servers and this process agree on it.

use std::fmt;

use bytes::Bytes;

use crate::mapping::KeyOrder;

/// The key of a row: its key columns' text forms, in key order. Never holds NULL.
///
/// `Debug` shows lengths only: key values never reach a log.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<[Bytes]>);

impl Key {
    /// A key from its parts.
    #[must_use]
    pub fn new(parts: Vec<Bytes>) -> Self {
        Self(parts.into_boxed_slice())
    }

    /// The parts in key order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.0
    }

    /// The parts as text, for the stored form of a key piece.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    /// A key from its stored form.
    #[must_use]
    pub fn from_strings(parts: Vec<String>) -> Self {
        Self(parts.into_iter().map(Bytes::from).collect())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} columns)", self.0.len())
    }
}

/// A single-column key as a point in an order that is the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// `smallint`, `integer`, `bigint`.
    Integer(i64),
    /// `uuid`, which PostgreSQL compares bytewise.
    Uuid([u8; 16]),
}

/// A key's text does not read as its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key value of {bytes} bytes does not read as {expected}")]
pub struct PointError {
    bytes: usize,
    expected: &'static str,
}

impl Point {
    /// Reads the text form under a key order. `Opaque` has no points.
    ///
    /// # Errors
    /// [`PointError`], without the value.
    pub fn parse(order: KeyOrder, text: &[u8]) -> Result<Self, PointError> {
        let error = |expected| PointError { bytes: text.len(), expected };
        match order {
            KeyOrder::Integer => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse().ok())
                .map(Self::Integer)
                .ok_or_else(|| error("an integer")),
            KeyOrder::Uuid => parse_uuid(text).map(Self::Uuid).ok_or_else(|| error("a uuid")),
            KeyOrder::Opaque => Err(error("a key with a shared order")),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            Self::Uuid(bytes) => {
                for (index, byte) in bytes.iter().enumerate() {
                    if matches!(index, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'-').collect();
    let hex = std::str::from_utf8(&digits).ok().filter(|hex| hex.len() == 32)?;
    u128::from_str_radix(hex, 16).ok().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_read_and_show_the_servers_text_forms() {
        for text in ["0", "-9223372036854775808", "42"] {
            assert_eq!(Point::parse(KeyOrder::Integer, text.as_bytes()).unwrap().to_string(), text);
        }
        let uuid = "0188d6a0-1b2c-7d3e-8f40-0123456789ab";
        assert_eq!(Point::parse(KeyOrder::Uuid, uuid.as_bytes()).unwrap().to_string(), uuid);
        assert!(Point::parse(KeyOrder::Uuid, b"0188").is_err());
        assert!(Point::parse(KeyOrder::Integer, b"1.5").is_err());
        assert!(Point::parse(KeyOrder::Opaque, b"1").is_err());
    }
}
