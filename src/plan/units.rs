//! Periods and sizes as a plan writes them: `7d`, `500ms`, `50GB`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::clock;

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Period(pub(crate) Duration);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Size(pub(crate) u64);

impl TryFrom<String> for Period {
    type Error = &'static str;

    /// See [`clock::period`].
    fn try_from(text: String) -> Result<Self, Self::Error> {
        clock::period(&text).map(Self)
    }
}

impl TryFrom<String> for Size {
    type Error = &'static str;

    /// A number with a unit: `50GB` is 50,000,000,000 bytes, `50GiB` is 53,687,091,200.
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WANTED: &str = "has to be a size: a number with one of the units MB, GB, TB (or MiB, GiB, TiB)";
        let text = text.trim();
        // Without a unit, bytes would be meant, and nobody means bytes.
        if !text.ends_with(['B', 'b']) || !text.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(WANTED);
        }
        text.parse::<bytesize::ByteSize>().map(|size| Self(size.as_u64())).map_err(|_| WANTED)
    }
}

impl JsonSchema for Period {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^ *([0-9]+(ms|s|m|h|d) *)+$" })
    }
}

impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^ *[0-9]+(\\.[0-9]+)? *[kKMGTPE]?i?[Bb] *$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Option<u64> {
        Size::try_from(text.to_owned()).ok().map(|size| size.0)
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size("50GB"), Some(50_000_000_000));
        assert_eq!(size("1.5 GiB"), Some(1_610_612_736));
        for wrong in ["", "50", "GB", "-1GB", "50 apples", "1e99GBB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }
}
