//! Periods and sizes as a plan writes them: `7d`, `500ms`, `50GB`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

/// The longest period that makes sense in a plan: ten years. Sums of periods then never overflow.
const PERIOD_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

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

    /// One or more whole numbers with a unit each: `7d`, `500ms`, `1h30m`.
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WANTED: &str =
            "has to be a length of time: a whole number with one of the units ms, s, m, h, d";
        let mut sum = Duration::ZERO;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(WANTED);
        }
        while !rest.is_empty() {
            let (number, after) =
                rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
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
        Ok(Self(sum))
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

    fn period(text: &str) -> Option<Duration> {
        Period::try_from(text.to_owned()).ok().map(|period| period.0)
    }

    fn size(text: &str) -> Option<u64> {
        Size::try_from(text.to_owned()).ok().map(|size| size.0)
    }

    #[test]
    fn periods_have_a_unit_and_a_limit() {
        assert_eq!(period("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(period("7d"), Some(Duration::from_secs(604_800)));
        assert_eq!(period("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(period("0s"), Some(Duration::ZERO));
        for wrong in ["", "7", "d", "7 days", "-1d", "1.5h", "7D", "99999999999999999999d", "11y", "4000d"] {
            assert_eq!(period(wrong), None, "{wrong}");
        }
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
