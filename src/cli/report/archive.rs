//! What ends with an archive that could not be written, proven or restored.

use super::{Exit, Page, SILENT, ended_as_idle, lost_connection};
use crate::archive::{ArchiveError, PlaceError};

/// The table of them.
pub(super) fn page(error: &ArchiveError) -> Page {
    let page = |exit, code, hint: &str| Page { exit, code, hint: Some(hint.to_owned()) };
    match error {
        error if lost_connection(error) || ended_as_idle(error) => {
            page(Exit::Unreachable, "database-unreachable", SILENT)
        }
        ArchiveError::Place(error) => place_page(error),
        ArchiveError::Damaged { .. } => page(
            Exit::Problems,
            "archive-damaged",
            "nothing was made: fetch another copy of these files, or write the archive to another place",
        ),
        ArchiveError::Missing { .. } => page(
            Exit::Refused,
            "archive-missing",
            "name the place that strangler ledger PLAN --kind retire tells; an archive that was not finished has no manifest",
        ),
        ArchiveError::Taken { .. } => {
            page(Exit::Refused, "place-taken", "the same command with another --to, a folder that is empty")
        }
        ArchiveError::Another { .. } => page(
            Exit::Refused,
            "archive-another",
            "strangler ledger PLAN --kind retire tells the place and the digest of each archive",
        ),
        ArchiveError::Manifest { .. } => {
            page(Exit::Refused, "archive-unreadable", "docs/archive.md describes what should be there")
        }
        ArchiveError::Refused { .. } => Page { exit: Exit::Refused, code: "restore-refused", hint: None },
        ArchiveError::Differs { .. } => page(
            Exit::Problems,
            "restore-differs",
            "nothing was made: the database reads these values in another way; restore into one of the monolith's version and encoding",
        ),
        ArchiveError::Definition { .. } => page(
            Exit::Incomplete,
            "restore-failed",
            "nothing was made: solve the cause, then type the same command again",
        ),
        ArchiveError::Stopped(_) => page(Exit::Interrupted, "interrupted", "type the same command again"),
        ArchiveError::Changed => page(
            Exit::Incomplete,
            "archive-failed",
            "type the same command again, which begins the archive anew",
        ),
        ArchiveError::Journal(_)
        | ArchiveError::Catalog(_)
        | ArchiveError::Compression(_)
        | ArchiveError::Gone { .. }
        | ArchiveError::Foreign { .. }
        | ArchiveError::NoWayBack { .. }
        | ArchiveError::Table { .. }
        | ArchiveError::Database { .. } => page(
            Exit::Incomplete,
            "archive-failed",
            "nothing else was changed: solve the cause, then type the same command again",
        ),
    }
}

/// What a folder or a store did not do.
fn place_page(error: &PlaceError) -> Page {
    let page = |exit, code, hint: &str| Page { exit, code, hint: Some(hint.to_owned()) };
    match error {
        PlaceError::Unclear { .. } => page(
            Exit::Usage,
            "archive-place",
            "write a folder, file:///folder, or s3://bucket/prefix where the build has the feature s3",
        ),
        PlaceError::File { .. } if error.is_full() => page(
            Exit::Incomplete,
            "archive-full",
            "nothing else was changed: make room there, then type the same command again, which begins the archive anew",
        ),
        PlaceError::File { .. } => {
            page(Exit::Incomplete, "archive-place", "solve the cause, then type the same command again")
        }
        #[cfg(feature = "s3")]
        PlaceError::Object { .. } => page(
            Exit::Unreachable,
            "archive-place",
            "see that the store can be reached and that the AWS_… variables fit it (docs/archive.md); then type the same command again",
        ),
    }
}
