//! Values at the edges of the built-in types.

const INTEGERS: &[&str] = &["0", "1", "-1", "32767", "-32768"];

/// Types that have a list, by their names without a modifier.
const LISTED: &[(&str, &[&str])] = &[
    ("smallint", INTEGERS),
    ("integer", &["0", "1", "-1", "2147483647", "-2147483648"]),
    ("bigint", &["0", "1", "-1", "4294967296", "9223372036854775807", "-9223372036854775808"]),
    (
        "numeric",
        &[
            "0",
            "-0.00",
            "1",
            "1.00",
            "-1",
            "0.1",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e130",
            "-1e-130",
            "123456789.123456789",
        ],
    ),
    ("real", &["0", "-0", "1.5", "NaN", "Infinity", "-Infinity", "3.4e38", "1e-45"]),
    ("double precision", &["0", "-0", "0.1", "NaN", "Infinity", "-Infinity", "1.7e308", "5e-324"]),
    ("boolean", &["t", "f"]),
    ("bytea", &["\\x", "\\x00", "\\x00ff5c27"]),
    ("text", TEXTS),
    ("character varying", TEXTS),
    ("bpchar", TEXTS),
    ("name", &["", "a", "A b"]),
    ("date", &["2000-01-01", "2024-02-29", "4713-01-01 BC", "5874897-12-31", "infinity", "-infinity"]),
    ("time without time zone", &["00:00", "12:34:56.789012", "23:59:59.999999", "24:00"]),
    ("time with time zone", &["00:00+14", "10:00+05:30", "23:59:59.999999-12", "24:00+00"]),
    ("timestamp without time zone", MOMENTS),
    ("timestamp with time zone", MOMENTS),
    (
        "interval",
        &["0", "1 mon", "30 days", "1 day", "24:00", "-1 year 2 days -03:04:05.678901", "178000000 years"],
    ),
    (
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "0188d6a0-1b2c-7d3e-8f40-0123456789ab",
        ],
    ),
    ("json", DOCUMENTS),
    ("jsonb", DOCUMENTS),
    ("inet", &["10.0.0.1", "10.1.2.3/8", "0.0.0.0/0", "::1", "fe80::1/10", "::ffff:1.2.3.4"]),
    ("cidr", &["10.0.0.0/8", "10.0.0.1/32", "::/0", "fe80::/10"]),
    ("macaddr", &["00:00:00:00:00:00", "08:00:2b:01:02:03"]),
    ("macaddr8", &["00:00:00:00:00:00:00:00", "08:00:2b:01:02:03:04:05"]),
];

const TEXTS: &[&str] = &["", " ", "a", "A", "a ", "\ta\n", "it's \"quoted\" \\", "NULL", "0"];

/// Beside [`TEXTS`], where both servers keep text in UTF-8.
const UNICODE: &[&str] = &["ä", "e\u{301}", "é", "ß", "ı", "日本", "🐘", "\u{202e}x"];

const MOMENTS: &[&str] = &[
    "2000-01-01 00:00",
    "1970-01-01 00:00:00.000001",
    "4713-01-01 00:00 BC",
    "294276-12-31 23:59:59.999999",
    "infinity",
    "-infinity",
];

const DOCUMENTS: &[&str] = &[
    "null",
    "1",
    "1.0",
    "-1",
    "\"a\"",
    "[]",
    "{}",
    "[1, [2, {\"a\": null}]]",
    "{\"b\": 1, \"a\": {\"c\": [true, false]}}",
];

/// The samples of a type; `None` when it has no list. `unicode`: characters beyond ASCII can be had on both sides.
pub(super) fn of(cast_sql: &str, unicode: bool) -> Option<Vec<String>> {
    let (_, listed) = LISTED.iter().find(|(name, _)| *name == cast_sql)?;
    let more = if unicode && listed.as_ptr() == TEXTS.as_ptr() { UNICODE } else { &[] };
    Some(listed.iter().chain(more).map(|text| (*text).to_owned()).collect())
}

/// Values at the edges of types that have no list: of whatever they are made, some of these can be read as theirs.
const OTHERS: &[&str] = &[
    "{}",
    "{NULL}",
    "{a,\"b c\"}",
    "{0,-1}",
    "{2024-02-29}",
    "{{1,2},{3,4}}",
    "()",
    "(,)",
    "(0,)",
    "(1,\"a b\")",
    "(1.5,-0)",
    "(,,)",
    "(,,,)",
    "empty",
    "[1,5)",
    "(,7.5]",
    "[2000-01-01,2024-02-29)",
    "a.b.c",
    "\"a\"=>\"b c\", \"d\"=>NULL",
    "[1,2,3]",
    "<a>b</a>",
    "1010",
    "a@example.org",
    "AB-12",
    "A1",
];

/// Texts of every kind, for a type of which nothing is known.
pub(super) fn any() -> impl Iterator<Item = &'static str> {
    const KINDS: [&str; 7] =
        ["text", "numeric", "date", "timestamp with time zone", "interval", "uuid", "inet"];
    let listed = LISTED.iter().filter(|(name, _)| KINDS.contains(name));
    listed.flat_map(|(_, texts)| texts.iter().copied()).chain(OTHERS.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_has_samples_beyond_ascii() {
        assert!(of("text", true).unwrap().contains(&"🐘".to_owned()));
        assert!(of("text", false).unwrap().iter().all(|text| text.is_ascii()));
        assert!(of("jsonb", true).unwrap().iter().all(|text| text.is_ascii()));
        assert_eq!(of("public.\"Mood\"", true), None);
    }
}
