//! The manifest: what an archive holds, what it is a copy of, and how every byte of it is proven. docs/archive.md describes it for
//! whoever has to read it without this program.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hex;
use crate::name::TableName;

/// Its file.
pub const FILE: &str = "manifest.json";
/// What it says that it is.
pub(super) const FORMAT: &str = "strangler-archive";
/// The version of this form. One that adds fields keeps the number.
pub const VERSION: u32 = 1;

/// Everything about an archive. It is written last: where it is there, the archive is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `strangler-archive`.
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Version of the program that wrote it.
    pub tool: String,
    /// What was archived, and as it was when.
    pub of: Origin,
    /// Extensions that the definitions need.
    pub extensions: Vec<String>,
    /// Functions, operators and operator classes that they need and that no extension brings.
    pub routines: Vec<Routine>,
    /// Definitions in the order in which they are made.
    pub definitions: Vec<Definition>,
    /// Where the rows lie: tables, and of partitioned ones each partition that holds rows.
    pub relations: Vec<Relation>,
    /// The other files: the definitions once more, for `psql`.
    pub texts: Vec<Text>,
}

/// What was archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Plan.
    pub plan: String,
    /// Slice.
    pub slice: String,
    /// The service that has the authority.
    pub service: String,
    /// Since which epoch.
    pub epoch: i64,
    /// Position in the service's WAL up to which the rows have everything: what the way back had applied in the very snapshot that
    /// they were read in.
    pub reverse_lsn: String,
    /// The cluster that this position is of.
    pub reverse_system_identifier: String,
    /// Its timeline.
    pub reverse_timeline: i32,
    /// When the snapshot was taken, by the monolith's clock, RFC 3339 in UTC.
    pub at: String,
    /// Number of the monolith's transaction that had moved the tables away: were they brought back and moved away again, it is another one.
    /// Absent in what earlier versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_by: Option<String>,
    /// The monolith's cluster.
    pub system_identifier: String,
    /// Name of its database.
    pub database: String,
    /// Oid of its database.
    pub database_oid: u32,
    /// What `provision` named it.
    pub uuid: String,
    /// `server_version_num`.
    pub server_version_num: u32,
    /// In which the rows are written, as the server names it.
    pub encoding: String,
}

impl Origin {
    /// The monolith's major version.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.server_version_num / 10_000
    }
}

/// Something that definitions call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routine {
    /// Kind, as `pg_identify_object` names it.
    pub kind: String,
    /// As it prints it: the same on every server.
    pub identity: String,
    /// The first definition that calls it.
    pub called_by: String,
}

/// When a definition is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before the rows.
    Before,
    /// Behind them.
    After,
    /// At last, each by itself: one that can't be made where it is restored is named and left out.
    Optional,
    /// Never; somebody may want to know.
    Left,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// When.
    pub phase: Phase,
    /// What it makes: `table`, `type`, `index`, `foreign key` and so on.
    pub kind: String,
    /// Its name, as an operator names it.
    pub object: String,
    /// The statement, without a semicolon.
    pub sql: String,
}

/// A table, or a partition of one, with its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// The plan's table that it is, or is part of, as the plan names it.
    pub table: String,
    /// Its own name.
    pub name: TableName,
    /// Columns in the order in which they stand in a row; generated ones are computed again.
    pub columns: Vec<String>,
    /// How many rows.
    pub rows: u64,
    /// Their digest: see [`Rows`](super::rows::Rows).
    pub rows_digest: String,
    /// Its files, in any order.
    pub parts: Vec<Part>,
}

/// A file of rows: text of `COPY`, compressed by zstd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name in the archive.
    pub file: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// How many rows.
    pub rows: u64,
    /// Bytes of the text.
    pub plain_bytes: u64,
    /// SHA-256 of the text.
    pub plain_sha256: String,
}

/// Another file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Its name in the archive.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: String,
}

/// A manifest can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// It is no JSON, or lacks something.
    #[error("{FILE} can't be read: {why}")]
    Unreadable {
        /// Why.
        why: String,
    },
    /// It is of another program.
    #[error("{FILE} is not of an archive: its format is {found:?}")]
    Foreign {
        /// What it says that it is.
        found: String,
    },
    /// It is of a later version.
    #[error("{FILE} is of version {found}, and this program knows {VERSION}")]
    Newer {
        /// Which.
        found: u32,
    },
    /// It leads out of the archive.
    #[error("{FILE} names a file that no archive has: {name:?}")]
    Astray {
        /// Which.
        name: String,
    },
}

impl Manifest {
    /// Rows of all tables.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.relations.iter().map(|relation| relation.rows).sum()
    }

    /// Bytes of all files but itself.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let parts = self.relations.iter().flat_map(|relation| &relation.parts).map(|part| part.bytes);
        parts.chain(self.texts.iter().map(|text| text.bytes)).sum()
    }

    /// Bytes of all rows as they come out of the files.
    #[must_use]
    pub fn plain_bytes(&self) -> u64 {
        self.relations.iter().flat_map(|relation| &relation.parts).map(|part| part.plain_bytes).sum()
    }

    /// Its file, and the SHA-256 of that.
    ///
    /// # Errors
    /// [`ManifestError::Unreadable`]: no value of ours is.
    pub fn written(&self) -> Result<(Vec<u8>, String), ManifestError> {
        let unreadable = |error: serde_json::Error| ManifestError::Unreadable { why: error.to_string() };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(unreadable)?;
        bytes.push(b'\n');
        let digest = hex(&Sha256::digest(&bytes));
        Ok((bytes, digest))
    }

    /// Reads its file, with the SHA-256 of that.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(bytes: &[u8]) -> Result<(Self, String), ManifestError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            format: String,
            #[serde(default)]
            version: u32,
        }
        let unreadable = |error: serde_json::Error| ManifestError::Unreadable { why: error.to_string() };
        let head: Head = serde_json::from_slice(bytes).map_err(unreadable)?;
        if head.format != FORMAT {
            return Err(ManifestError::Foreign { found: head.format });
        }
        if head.version > VERSION {
            return Err(ManifestError::Newer { found: head.version });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(unreadable)?;
        let parts = manifest.relations.iter().flat_map(|relation| &relation.parts).map(|part| &part.file);
        let files = parts.chain(manifest.texts.iter().map(|text| &text.file));
        if let Some(name) = files.into_iter().find(|name| !stays_inside(name)) {
            return Err(ManifestError::Astray { name: name.clone() });
        }
        Ok((manifest, hex(&Sha256::digest(bytes))))
    }
}

/// Whoever can write a manifest must not be able to make us read, or hash, a file elsewhere.
fn stays_inside(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let part = |part: &str| !part.is_empty() && part.chars().all(plain) && !part.chars().all(|c| c == '.');
    name.split('/').all(part)
}

#[cfg(test)]
pub(super) mod fixture {
    use super::{FORMAT, Manifest, Origin, VERSION};

    /// An archive of nothing.
    pub(in crate::archive) fn empty() -> Manifest {
        Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            tool: "0".to_owned(),
            of: Origin {
                plan: "split".to_owned(),
                slice: "one".to_owned(),
                service: "service".to_owned(),
                epoch: 2,
                reverse_lsn: "0/1".to_owned(),
                reverse_system_identifier: "2".to_owned(),
                reverse_timeline: 1,
                at: "2026-01-01T00:00:00Z".to_owned(),
                system_identifier: "1".to_owned(),
                database: "monolith".to_owned(),
                database_oid: 5,
                uuid: "u".to_owned(),
                server_version_num: 150_000,
                encoding: "UTF8".to_owned(),
                moved_by: None,
            },
            extensions: Vec::new(),
            routines: Vec::new(),
            definitions: Vec::new(),
            relations: Vec::new(),
            texts: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_under_the_same_digest() {
        let manifest = fixture::empty();
        let (bytes, digest) = manifest.written().unwrap();
        assert_eq!(Manifest::read(&bytes).unwrap(), (manifest, digest));
    }

    #[test]
    fn what_is_no_archive_of_ours_is_told_apart() {
        let read = |text: &str| Manifest::read(text.as_bytes()).unwrap_err();
        assert!(matches!(read("no"), ManifestError::Unreadable { .. }));
        assert_eq!(read("{}"), ManifestError::Foreign { found: String::new() });
        assert_eq!(read(r#"{"format":"strangler-archive","version":2}"#), ManifestError::Newer { found: 2 });
        assert!(matches!(
            read(r#"{"format":"strangler-archive","version":1}"#),
            ManifestError::Unreadable { .. }
        ));
    }

    #[test]
    fn no_file_outside_the_archive_is_named() {
        for inside in ["data/0001_public.t/0001.copy.zst", "before.sql"] {
            assert!(stays_inside(inside), "{inside}");
        }
        for outside in ["", "/etc/passwd", "../a", "data/../../a", "data//a", "a\\b", "data/."] {
            assert!(!stays_inside(outside), "{outside}");
        }
        let mut manifest = fixture::empty();
        manifest.texts.push(Text { file: "../a".to_owned(), bytes: 0, sha256: String::new() });
        let (bytes, _) = manifest.written().unwrap();
        assert_eq!(Manifest::read(&bytes).unwrap_err(), ManifestError::Astray { name: "../a".to_owned() });
    }
}
