//! What `retire` and `unretire` end with when they don't come to their end.

use super::{Exit, Page, SILENT, archive, ended_as_idle, lost_connection};
use crate::postgres::sqlstate;
use crate::retire::RetireError;

/// What nothing, or not all, came of.
pub(super) fn heading(slice: &str, done: &str, source: &RetireError) -> String {
    if matches!(source, RetireError::Untold { .. }) {
        return format!("it is done for slice {slice}, and the service's ledger does not know of it");
    }
    if matches!(source, RetireError::Unknown { .. }) {
        return format!("it is not known whether it is done for slice {slice}");
    }
    if matches!(source, RetireError::Behind { .. }) {
        return format!("the old tables of slice {slice} are dropped, and not all that goes behind them");
    }
    if matches!(source, RetireError::Decided { .. }) {
        return format!(
            "the old tables of slice {slice} are not dropped, and it may stay written down that they are to be"
        );
    }
    format!("the old tables of slice {slice} could not be {done}")
}

/// How a command ends that has done some of it, by what kept it from the rest.
fn left(source: &RetireError, provision: &str) -> Exit {
    let unreachable = page(source, provision).exit == Exit::Unreachable;
    if unreachable { Exit::Unreachable } else { Exit::Incomplete }
}

/// `provision` is the command that makes and grants what is needed, as it must be typed.
pub(super) fn page(error: &RetireError, provision: &str) -> Page {
    let (exit, code, hint) = match error {
        // Before what a lost connection means elsewhere: here something was done.
        RetireError::Untold { .. } => {
            let hint = "the next retire or unretire that is typed writes it";
            (Exit::Incomplete, "retire-untold", Some(hint.to_owned()))
        }
        RetireError::Unknown { .. } => {
            let hint = "all of it was done or nothing: strangler status says how far the slice is retired";
            (Exit::Incomplete, "retire-unknown", Some(hint.to_owned()))
        }
        // Also where the link to the service was lost: some of it is done, or decided.
        RetireError::Behind { next, source } => {
            let exit = left(source, provision);
            (exit, "retire-left", Some(format!("{next}, which does the rest and nothing twice")))
        }
        RetireError::Decided { next, source } => {
            (left(source, provision), "retire-decided", Some(next.clone()))
        }
        RetireError::Archive(error) => return archive::page(error),
        error if lost_connection(error) || ended_as_idle(error) => {
            (Exit::Unreachable, "database-unreachable", Some(SILENT.to_owned()))
        }
        RetireError::Changed { .. } => {
            let hint = "the same command without --confirm shows what is to be done now";
            (Exit::Refused, "retire-changed", Some(hint.to_owned()))
        }
        RetireError::Raced | RetireError::Waited { .. } => (
            Exit::Unreachable,
            "retire-waited",
            Some("once that has ended, type the same command again".to_owned()),
        ),
        RetireError::Statement { source, .. } if sqlstate::is_retryable(source) => {
            (Exit::Incomplete, "retire-failed", Some("nothing was done; type it again".to_owned()))
        }
        RetireError::Statement { .. } | RetireError::NotExact { .. } | RetireError::NotMoved { .. } => {
            let hint = "nothing was done: solve the cause, then type it again";
            (Exit::Incomplete, "retire-failed", Some(hint.to_owned()))
        }
        RetireError::Provision(_) => (Exit::Incomplete, "retire-failed", None),
        RetireError::Step { .. } | RetireError::Used { .. } => (Exit::Incomplete, "retire-left", None),
        RetireError::Left { .. } | RetireError::Unnoted { .. } => (
            Exit::Unreachable,
            "retire-waited",
            Some("once that has ended, type the same command again".to_owned()),
        ),
        RetireError::Kept { .. } => (Exit::Incomplete, "retire-failed", None),
        RetireError::Catalog(_) => (Exit::Incomplete, "catalog-unreadable", None),
        RetireError::Journal(_)
        | RetireError::NotProvisioned { .. }
        | RetireError::Outdated
        | RetireError::Refused { .. }
        | RetireError::Database { .. } => {
            let hint = format!(
                "{provision} makes our tables, and grants strangler_apply what it needs to read them"
            );
            (Exit::Incomplete, "use-unreadable", Some(hint))
        }
    };
    Page { exit, code, hint }
}
