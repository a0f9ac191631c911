//! What `abandon` ends with when it does not come to its end.

use super::{Exit, Page, SILENT, ended_as_idle, lost_connection};
use crate::abandon::AbandonError;
use crate::provision::ProvisionError;

/// Steps that were taken stay in all of these.
pub(super) fn page(error: &AbandonError) -> Page {
    let again = "steps before it are done: solve the cause, then type the same command again";
    let (exit, code, hint) = match error {
        AbandonError::Provision(ProvisionError::Busy { .. }) => (Exit::Refused, "databases-busy", None),
        error if lost_connection(error) || ended_as_idle(error) => {
            (Exit::Unreachable, "database-unreachable", Some(SILENT.to_owned()))
        }
        AbandonError::Changed { .. } => {
            let hint = "the same command without --confirm shows what is to be done now";
            (Exit::Refused, "abandon-changed", Some(hint.to_owned()))
        }
        AbandonError::Waited { .. } => {
            let hint = "once that transaction has ended, type the same command again; where its process is frozen or gone: SELECT pg_terminate_backend(PID)";
            (Exit::Unreachable, "abandon-waited", Some(hint.to_owned()))
        }
        AbandonError::Journal(_)
        | AbandonError::Mirror(_)
        | AbandonError::Provision(_)
        | AbandonError::Refused { .. }
        | AbandonError::Database { .. }
        | AbandonError::Step { .. } => (Exit::Incomplete, "abandon-failed", Some(again.to_owned())),
    };
    Page { exit, code, hint }
}
