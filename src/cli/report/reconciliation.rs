//! What ends for a slice that got no verdict, and with a repair that came to no end.

use std::collections::BTreeSet;

use super::{Exit, FROZEN, Page, lost_connection};
use crate::journal::whereabouts;
use crate::reconcile::repair::RepairError;
use crate::reconcile::repair::emptied::Emptied;
use crate::reconcile::run::RunError;
use crate::status::judge::shell_word;

/// Why one slice got no verdict.
pub(super) fn run_page(error: &RunError, plan: &str) -> Page {
    let full;
    let (exit, code, hint) = match error {
        RunError::Connect(error) => {
            let hint = error.is_retryable().then_some("type the same command again: it goes on");
            (Exit::Unreachable, "database-unreachable", hint)
        }
        RunError::Silent { .. } => (Exit::Unreachable, "database-unreachable", Some(FROZEN)),
        RunError::Journal(error) if lost_connection(error) => {
            (Exit::Unreachable, "database-unreachable", Some("type the same command again: it goes on"))
        }
        RunError::Redact(_) => (Exit::Incomplete, "no-randomness", None),
        RunError::Journal(_) => (Exit::Incomplete, "journal-unreadable", None),
        RunError::Astray(problems) => (Exit::Refused, whereabouts::summary(problems).1, None),
        RunError::NotProvisioned { .. } => {
            (Exit::Refused, "not-provisioned", Some("strangler provision PLAN, then strangler mirror PLAN"))
        }
        RunError::OtherMapping { .. } => {
            (Exit::Refused, "other-mapping", Some("strangler provision PLAN says what it would take"))
        }
        RunError::NoAuthority { .. } => (Exit::Refused, "no-authority", Some("strangler status PLAN")),
        RunError::Held { .. } => (
            Exit::Refused,
            "reconcile-held",
            Some("wait until it has ended, then type the same command again"),
        ),
        RunError::Ahead { .. } => {
            (Exit::Usage, "position-ahead", Some("name a position of the past, or --changed-since last"))
        }
        RunError::Position(_) => {
            (Exit::Unreachable, "database-unreachable", Some("type the same command again"))
        }
        RunError::NothingToLookBackTo { slice } => {
            let slice = shell_word(slice);
            full = format!("strangler reconcile PLAN --slice {slice}, without --changed-since");
            (Exit::Refused, "nothing-to-look-back-to", Some(full.as_str()))
        }
        RunError::Resumed { .. } => {
            (Exit::Refused, "reconcile-resumed", Some("strangler status PLAN, which shows that verdict"))
        }
        RunError::Stopped { fresh, .. } => (Exit::Interrupted, "interrupted", Some(goes_on(*fresh))),
    };
    Page { exit, code, hint: hint.map(|hint| hint.replace(" PLAN", &format!(" {plan}"))) }
}

/// What becomes of a run that was stopped.
fn goes_on(fresh: bool) -> &'static str {
    if fresh {
        "type the same command again without --fresh: it goes on with the run, behind what was compared to its end; with \
         --fresh it begins anew. A table that goes by buckets is compared anew in either case"
    } else {
        "type the same command again: it goes on with the run, behind what was compared to its end; a table that goes by \
         buckets is compared anew"
    }
}

/// What one slice got instead of a verdict; some errors name their slice themselves.
pub(super) fn run_heading(slice: &str, error: &RunError) -> String {
    match error {
        RunError::Connect(_)
        | RunError::Silent { .. }
        | RunError::Journal(_)
        | RunError::Redact(_)
        | RunError::Position(_)
        | RunError::Astray(_) => {
            format!("slice {slice}: {error}")
        }
        RunError::NotProvisioned { .. }
        | RunError::OtherMapping { .. }
        | RunError::NoAuthority { .. }
        | RunError::Held { .. }
        | RunError::NothingToLookBackTo { .. }
        | RunError::Ahead { .. }
        | RunError::Resumed { .. }
        | RunError::Stopped { .. } => error.to_string(),
    }
}

/// Why a repair came to no end.
pub(super) fn repair_page(error: &RepairError, plan: &str) -> Page {
    let page = |exit, code, hint: String| Page { exit, code, hint: Some(hint) };
    match error {
        RepairError::Run(error) => run_page(error, plan),
        RepairError::NoRows(tables) => page(Exit::Refused, "no-rows-on-authority", no_rows(tables, plan)),
        RepairError::NotAsked { .. } => {
            page(Exit::Unreachable, "database-unreachable", "type the same command again".to_owned())
        }
        RepairError::NotTaken { slice, alive, .. } => {
            let status = format!("strangler status {plan} --slice {}", shell_word(slice));
            let hint = match alive {
                true => {
                    format!("{status}, which says what the mirror waits for; then the same command again")
                }
                false => format!("strangler mirror {plan}, then {status}"),
            };
            page(Exit::Refused, "repair-not-taken", hint)
        }
        RepairError::NotVerified { .. } => {
            page(Exit::Incomplete, "repair-not-verified", format!("strangler reconcile {plan}"))
        }
        RepairError::Stopped { .. } => {
            page(Exit::Interrupted, "interrupted", format!("strangler reconcile {plan}"))
        }
    }
}

/// What to do before a repair deletes all that there is of tables.
fn no_rows(tables: &[Emptied], plan: &str) -> String {
    let names: Vec<&str> = tables.iter().map(|one| one.table.as_str()).collect();
    let authority = tables.first().map_or("authority", |one| one.authority);
    let slices: BTreeSet<&str> = tables.iter().map(|one| one.slice.as_str()).collect();
    let slices: String = slices.into_iter().map(|slice| format!(" --slice {}", shell_word(slice))).collect();
    let command = format!("strangler reconcile {plan}{slices}");
    format!(
        "look into the {authority} why {} has no row there. Rows that should be there are put back there first, as the application \
         would, from those of the copy; then {command}. Where it is right that there is none: {command} --repair --accept-no-rows \
         REASON",
        names.join(", ")
    )
}
