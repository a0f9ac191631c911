//! An archive of a slice's old tables: their rows and definitions in a set of files that proves itself, and the tables made from it again.
//!
//! [`write()`] copies what is there in one snapshot, [`verify()`] reads every byte back, and only then the [`Manifest`] is written
//! ([`conclude()`]): where it is, the archive is whole. [`restore()`] makes the tables in another database, and proves the rows there before
//! it commits. Who calls it: [`retire`](crate::retire), and `strangler restore`. docs/archive.md describes the files for whoever has to
//! do without this program.

mod begun;
#[cfg(feature = "s3")]
mod bucket;
mod compare;
mod definitions;
mod details;
mod manifest;
mod part;
mod place;
mod restore;
mod rows;
mod verify;
mod write;

use std::io;

pub use begun::{Begun, There, Whose, begin, end, look};
#[cfg(feature = "s3")]
pub use bucket::{Bucket, BucketError};
pub use compare::differs;
pub use manifest::{
    Definition, FILE, Manifest, ManifestError, Origin, Part, Phase, Relation, Routine, Text, VERSION,
};
pub use place::{Place, PlaceError};
pub use restore::{NotMade, Restored, Restoring, restore};
pub use rows::Rows;
pub use verify::{conclude, find, still_there, verify};
pub use write::{Writing, sizes, write};

use crate::journal::JournalError;
use crate::postgres::introspect::IntrospectError;
use crate::problem::Problem;
use crate::reconcile::stop::Stopped;
use crate::words::hex;

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is done to the bytes, as `written`.
    pub what: &'static str,
    /// Bytes so far.
    pub done: u64,
    /// Of so many, or about so many where they are read from a table.
    pub total: u64,
}

/// Who hears of it.
pub type Tell<'a> = &'a dyn Fn(Progress);

/// Something about an archive did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Our own tables.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A database's catalogs.
    #[error(transparent)]
    Catalog(#[from] IntrospectError),
    /// The place, or a file in it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The manifest.
    #[error("the archive at {place} can't be used")]
    Manifest {
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// There is no manifest.
    #[error("no archive is at {place}: there is no {FILE}")]
    Missing {
        /// Where.
        place: String,
    },
    /// It is another one than it should be.
    #[error(
        "the archive at {place} is not the one that is meant: the SHA-256 of its {FILE} is {found}, not {wanted}"
    )]
    Another {
        /// Where.
        place: String,
        /// What its manifest has.
        found: String,
        /// What it should have.
        wanted: String,
    },
    /// Two have found a place empty, and the other one got it.
    #[error("somebody else has begun an archive at {place} meanwhile")]
    Taken {
        /// Where.
        place: String,
    },
    /// Files are not what the manifest says.
    #[error("{}", damaged(.files))]
    Damaged {
        /// Each with what is wrong with it.
        files: Vec<(String, String)>,
    },
    /// A file could not be compressed.
    #[error("a file could not be compressed")]
    Compression(#[from] io::Error),
    /// A table is not there.
    #[error("table {table} is not there any more")]
    Gone {
        /// Which.
        table: String,
    },
    /// Rows lie in another server.
    #[error("{table} is a foreign table: its rows are not in this server")]
    Foreign {
        /// Which.
        table: String,
    },
    /// Partitions came or went meanwhile.
    #[error("partitions of the tables came or went meanwhile")]
    Changed,
    /// Nothing says how far the tables are.
    #[error("slice {slice} has no way back, so that nobody knows how far its old tables are")]
    NoWayBack {
        /// Slice.
        slice: String,
    },
    /// Somebody asked to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Something stands in the way of making the tables again.
    #[error("nothing was made")]
    Refused {
        /// What.
        problems: Vec<Problem>,
    },
    /// A definition could not be made again.
    #[error("could not make {kind} {object}")]
    Definition {
        /// What it makes.
        kind: String,
        /// Its name.
        object: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Rows are not the same in the other database.
    #[error("the rows of {table} are not those of the archive: {why}")]
    Differs {
        /// The table, or partition.
        table: String,
        /// In which way.
        why: String,
    },
    /// A statement about a table failed.
    #[error("could not {action} {table}")]
    Table {
        /// As a bare verb.
        action: &'static str,
        /// Which.
        table: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Another statement failed.
    #[error("could not {action}")]
    Database {
        /// As a bare verb phrase.
        action: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
}

impl ArchiveError {
    fn database(action: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Database { action, source }
    }
}

/// Files that are named; all are counted.
const DAMAGED_SHOWN: usize = 5;

fn damaged(files: &[(String, String)]) -> String {
    let shown: Vec<String> =
        files.iter().take(DAMAGED_SHOWN).map(|(file, why)| format!("{file} {why}")).collect();
    let more = files.len().saturating_sub(DAMAGED_SHOWN);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("the archive is damaged: {}{more}", shown.join("; "))
}
