//! Values of classified columns as digests: nobody gets from a report to a value by trying, and yet the same value can
//! be recognised within one run.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::finding::{RawKey, Shown};
use crate::mapping::{ColumnMapping, TableMapping};
use crate::name::quote_literal;
use crate::words::hex;

/// Hex digits of a digest in a report: 64 bits tell the values of one report apart.
const DIGITS: usize = 16;

/// Characters of a value in a report, so that no finding is larger than what a reader or a terminal can take.
pub const SHOWN_CHARACTERS: usize = 2_000;

/// Stand around the true length behind a value that was cut. ASCII, because a server's encoding may have nothing else.
const CUT: [&str; 2] = [" ... (the first 2000 of ", " characters)"];

/// There is no randomness to be had.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes for the key that hides classified values")]
pub struct RedactError;

/// The key of one run. It is never stored, so that digests of two runs can't be compared and a dictionary of digests
/// is worth nothing.
pub struct Redactor {
    key: [u8; 32],
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// With a key of its own.
    ///
    /// # Errors
    /// [`RedactError`].
    pub fn new() -> Result<Self, RedactError> {
        let mut key = [0; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut key).map_err(|_| RedactError)?;
        Ok(Self { key })
    }

    /// A value of a column as a report may show it.
    #[must_use]
    pub fn show(&self, column: &ColumnMapping, value: &str) -> Shown {
        if column.class.is_some() {
            return self.digest_of_hash(&hex(&Sha256::digest(value.as_bytes())));
        }
        match value.char_indices().nth(SHOWN_CHARACTERS) {
            None => Shown::Text(value.to_owned()),
            Some((end, _)) => {
                let (kept, count) = (value.get(..end).unwrap_or_default(), value.chars().count());
                Shown::Text(format!("{kept}{}{count}{}", CUT[0], CUT[1]))
            }
        }
    }

    /// A row's key as a report may show it.
    #[must_use]
    pub fn show_key(&self, mapping: &TableMapping, key: &RawKey) -> Vec<Shown> {
        mapping.key_columns().zip(&key.0).map(|(column, value)| self.show(column, value)).collect()
    }

    /// What values of columns are read as when they are only to be shown, an SQL array: [`Self::shown`] takes each. A
    /// classified value does not leave its server. With each column comes an SQL expression of type `text`.
    ///
    /// Each of them stands there once: of a row with very many columns the statement itself is what takes long.
    #[must_use]
    pub fn sql<'a>(columns: impl Iterator<Item = (&'a ColumnMapping, String)>) -> String {
        let texts = columns.map(|(column, text)| match column.class {
            Some(_) => format!("encode(sha256(convert_to({text}, 'UTF8')), 'hex')"),
            None => text,
        });
        let [before, after] = CUT.map(quote_literal);
        format!(
            "ARRAY(SELECT CASE WHEN char_length(u.v) > {SHOWN_CHARACTERS} \
             THEN left(u.v, {SHOWN_CHARACTERS}) || {before} || char_length(u.v) || {after} ELSE u.v END \
             FROM unnest(ARRAY[{}]::text[]) WITH ORDINALITY AS u (v, n) ORDER BY u.n)",
            texts.collect::<Vec<_>>().join(", ")
        )
    }

    /// What was read through [`Self::sql`].
    #[must_use]
    pub fn shown(&self, column: &ColumnMapping, read: Option<&str>) -> Shown {
        match read {
            None => Shown::Null,
            Some(hash) if column.class.is_some() => self.digest_of_hash(hash),
            Some(text) => Shown::Text(text.to_owned()),
        }
    }

    fn digest_of_hash(&self, hash: &str) -> Shown {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            return Shown::Digest(String::new());
        };
        mac.update(hash.as_bytes());
        let mut digest = hex(&mac.finalize().into_bytes());
        digest.truncate(DIGITS);
        Shown::Digest(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(class: Option<&str>) -> ColumnMapping {
        ColumnMapping {
            source: "Email".to_owned(),
            target: "email".to_owned(),
            type_sql: "text".to_owned(),
            cast_sql: "text".to_owned(),
            binary: true,
            source_type_oid: 25,
            class: class.map(str::to_owned),
            identity_always: false,
        }
    }

    #[test]
    fn a_classified_value_has_one_digest_in_a_run_and_another_in_the_next() {
        let (one, two, column) = (Redactor::new().unwrap(), Redactor::new().unwrap(), column(Some("pii")));
        let Shown::Digest(digest) = one.show(&column, "ann@example.org") else { panic!("shown in clear") };
        assert_eq!(digest.len(), 16);
        let read = hex(&Sha256::digest(b"ann@example.org"));
        assert_eq!(one.shown(&column, Some(&read)), Shown::Digest(digest.clone()), "both ways give the same");
        assert_ne!(one.show(&column, "bob@example.org"), Shown::Digest(digest.clone()));
        assert_ne!(two.show(&column, "ann@example.org"), Shown::Digest(digest));
        assert_eq!(one.shown(&column, None), Shown::Null);
        assert_eq!(format!("{one:?}"), "Redactor");
    }

    #[test]
    fn the_digest_is_hmac_sha_256() {
        // RFC 4231, test case 2, whose key is padded with zeros by HMAC itself.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let shown = Redactor { key }.digest_of_hash("what do ya want for nothing?");
        assert_eq!(shown, Shown::Digest("5bdcc146bf60754e".to_owned()));
    }

    #[test]
    fn a_long_value_is_cut_and_says_so() {
        let redactor = Redactor::new().unwrap();
        let Shown::Text(text) = redactor.show(&column(None), &"ä".repeat(2_001)) else { panic!() };
        assert_eq!(text, format!("{} ... (the first 2000 of 2001 characters)", "ä".repeat(2_000)));
        let whole = "ä".repeat(2_000);
        assert_eq!(redactor.show(&column(None), &whole), Shown::Text(whole));
    }
}
