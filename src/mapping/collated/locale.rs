//! ICU locales, which servers keep in the form in which they were typed or as BCP 47 tags.

use std::collections::BTreeMap;

/// An ICU locale as a BCP 47 tag with its keywords in order: `und@colStrength=secondary` is `und-u-ks-level2` (PostgreSQL documentation,
/// section 24.2.3.1; what is not known stays as it is, and is then equal to itself alone).
pub(super) fn canonical(locale: &str) -> String {
    let lower = locale.to_ascii_lowercase();
    let (language, mut keywords) = match lower.split_once('@') {
        Some((language, keywords)) => {
            (language.replace('_', "-"), keywords.split(';').filter_map(keyword).collect())
        }
        None => {
            let tag = lower.replace('_', "-");
            match tag.split_once("-u-") {
                Some((language, extension)) => (language.to_owned(), extended(extension)),
                None => (tag, BTreeMap::new()),
            }
        }
    };
    let language = if matches!(language.as_str(), "" | "root") { "und".to_owned() } else { language };
    // The value that a keyword has where none is given.
    keywords.retain(|key, value| !(key == "ks" && value == "level3"));
    if keywords.is_empty() {
        return language;
    }
    let parts: Vec<String> = keywords
        .into_iter()
        .map(|(key, value)| if value.is_empty() { key } else { format!("{key}-{value}") })
        .collect();
    format!("{language}-u-{}", parts.join("-"))
}

/// The keywords of a tag's Unicode extension: keys have two letters, values more.
fn extended(extension: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut key = String::new();
    for part in extension.split('-') {
        if part.len() == 2 {
            part.clone_into(&mut key);
            found.entry(key.clone()).or_default();
        } else if let Some(value) = found.get_mut(&key) {
            let joined = if value.is_empty() { part.to_owned() } else { format!("{value}-{part}") };
            *value = joined;
        }
    }
    found.values_mut().filter(|value| *value == "true" || *value == "yes").for_each(String::clear);
    found
}

/// One keyword of ICU's older form.
fn keyword(text: &str) -> Option<(String, String)> {
    let (key, value) = text.trim().split_once('=')?;
    let key = match key {
        "colstrength" => "ks",
        "colcaselevel" => "kc",
        "colcasefirst" => "kf",
        "colalternate" => "ka",
        "colbackwards" => "kb",
        "colnormalization" => "kk",
        "colnumeric" => "kn",
        "colreorder" => "kr",
        "collation" => "co",
        other => other,
    };
    let value = match value {
        "primary" => "level1",
        "secondary" => "level2",
        "tertiary" => "level3",
        "quaternary" | "quarternary" => "level4",
        "identical" => "identic",
        "non-ignorable" => "noignore",
        "yes" | "true" => "",
        "no" => "false",
        other => other,
    };
    Some((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_are_one_however_they_are_written() {
        for (written, tag) in [
            ("und-u-ks-level2", "und-u-ks-level2"),
            ("@colStrength=secondary", "und-u-ks-level2"),
            ("root@colCaseLevel=yes;colStrength=primary", "und-u-kc-ks-level1"),
            ("und-u-ks-level1-kc-true", "und-u-kc-ks-level1"),
            ("de_AT@colStrength=secondary", "de-at-u-ks-level2"),
            ("de-AT", "de-at"),
            ("und-u-kr-latn-digit", "und-u-kr-latn-digit"),
        ] {
            assert_eq!(canonical(written), tag, "{written}");
        }
    }
}
