//! What an entry's hash is over.

use std::fmt;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::{Entry, JournalError};

/// First bytes under every hash; another form of the entries gets another number.
const FORM: &[u8] = b"strangler-ledger 1\n";

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What the first entry holds as the hash of the one before it.
    pub const NONE: Self = Self([0; 32]);

    /// Reads a `bytea` of 32 bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, JournalError> {
        let wrong =
            |_| JournalError::Unreadable { what: "ledger.hash", found: format!("{} bytes", bytes.len()) };
        bytes.try_into().map(Self).map_err(wrong)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// In hexadecimal.
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SHA-256 over the form's name, every field but the hash itself, and the previous hash. Each field is a byte that
/// says whether it is there and, where it is, the length of its text in four bytes and the text: two different
/// entries never have the same bytes. Positions are decimal, because their text differs between versions of
/// PostgreSQL.
pub(super) fn hash_of(entry: &Entry) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(FORM);
    let mut field = |text: Option<&str>| match text {
        None => hasher.update([0]),
        Some(text) => {
            hasher.update([1]);
            // Bodies are limited and PostgreSQL's values end at 1 GB.
            hasher.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            hasher.update(text.as_bytes());
        }
    };
    field(Some(&entry.id.to_string()));
    field(Some(&entry.at_us.to_string()));
    field(Some(&entry.kind));
    field(Some(&entry.plan));
    field(entry.slice.as_deref());
    field(Some(&entry.author.operator));
    field(Some(&entry.author.host));
    field(entry.epoch.map(|epoch| epoch.to_string()).as_deref());
    field(entry.lsn.map(|lsn| lsn.0.to_string()).as_deref());
    field(entry.plan_hash.as_deref());
    field(Some(&entry.body));
    hasher.update(entry.previous.as_bytes());
    Hash(hasher.finalize().into())
}

/// JSON with everything outside ASCII as `\u` escapes (RFC 8259, section 7), so that it comes back to the letter
/// from a database of any encoding.
pub(super) fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::ledger::Author;
    use crate::lsn::Lsn;

    fn entry() -> Entry {
        Entry {
            id: 7,
            at_us: 1_700_000_000_000_000,
            kind: "verdict".to_owned(),
            plan: "retail".to_owned(),
            slice: Some("ordering".to_owned()),
            author: Author { operator: "ann".to_owned(), host: "box".to_owned() },
            epoch: Some(3),
            lsn: Some(Lsn(0x16_0000_0A00)),
            plan_hash: Some("ab".to_owned()),
            body: "{}".to_owned(),
            previous: Hash::NONE,
            hash: Hash::NONE,
        }
    }

    #[test]
    fn every_field_is_under_the_hash() {
        let changes: &[fn(&mut Entry)] = &[
            |e| e.id = 8,
            |e| e.at_us += 1,
            |e| e.kind.push('s'),
            |e| e.plan.push('s'),
            |e| e.slice = None,
            |e| e.slice = Some(String::new()),
            |e| e.author.operator.push('e'),
            |e| e.author.host.push('e'),
            |e| e.epoch = None,
            |e| e.lsn = None,
            |e| e.plan_hash = None,
            |e| e.body.push(' '),
            |e| e.previous = Hash([1; 32]),
            // A letter that moves over to the next field.
            |e| (e.author.operator, e.author.host) = ("annb".to_owned(), "ox".to_owned()),
        ];
        let mut seen = vec![hash_of(&entry())];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = entry();
            change(&mut changed);
            let hash = hash_of(&changed);
            assert!(!seen.contains(&hash), "change {index}");
            seen.push(hash);
        }
        let mut signed = entry();
        signed.hash = Hash([9; 32]);
        assert_eq!(hash_of(&signed), hash_of(&entry()), "a hash is not over itself");
    }

    #[test]
    fn json_outside_ascii_is_escaped_and_means_the_same() {
        let value = serde_json::json!({ "größe": "π 😀 \u{7f} \"\\\n" });
        let text = ascii(&value.to_string());
        assert!(text.is_ascii(), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
