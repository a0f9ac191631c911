//! What is asked before rows of the service are emptied to be copied again: a copy that would be refused afterwards leaves its
//! readers with nothing.

use tokio_postgres::Client;

use super::error::{MirrorError, Refusal};
use super::intake::{self, Fault};
use super::{contents, generated, meanings};
use crate::journal::streams::Direction;
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::quote_ident;

/// Refuses where the tables can't be mirrored as they are, or those that are to be copied again can't be read, or would not
/// take their rows. `order` is what was typed to have them copied.
///
/// # Errors
/// [`MirrorError::Refused`] among others.
pub(super) async fn check(
    (source, target): (&Client, &Client),
    mapping: &SliceMapping,
    (copied, order): (&[&TableMapping], &str),
) -> Result<(), MirrorError> {
    if let Some(refusal) = contents::children(source, mapping).await? {
        return Err(refusal.into());
    }
    meanings::check((source, target), mapping, Direction::Forward).await?;
    if let Some(refusal) = generated::find_fault((source, target), mapping).await? {
        return Err(refusal.into());
    }
    let mut faults = Vec::new();
    for table in copied {
        let columns: Vec<String> = table.columns.iter().map(|column| quote_ident(&column.source)).collect();
        // Rights and row level security are looked at before the first row.
        let sql = format!("SELECT {} FROM {} LIMIT 0", columns.join(", "), table.source.sql());
        source.batch_execute(&sql).await.map_err(MirrorError::sql("reading a table that is to be copied"))?;
        for fault in intake::faults((source, target), &mapping.slice, table).await? {
            faults.push((*table, fault));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(would_refuse(&mapping.slice, &faults, order).into()) }
}

/// Tables that would not take their rows, all faults at once.
fn would_refuse(slice: &str, faults: &[(&TableMapping, Fault)], order: &str) -> Refusal {
    let facts: Vec<String> =
        faults.iter().map(|(table, fault)| format!("{}: {}", table.target, fault.fact)).collect();
    let mut statements: Vec<&str> = Vec::new();
    for (_, fault) in faults {
        if !statements.contains(&fault.next.as_str()) {
            statements.push(&fault.next);
        }
    }
    Refusal {
        what: format!(
            "tables of slice {slice} would not take their rows, so none was emptied: {}",
            facts.join("; ")
        ),
        next: format!("run in the service: {}; then {}", statements.join("; "), again(slice, order)),
        anew: false,
    }
}

/// Tables that did not take the rows that were tried.
pub(super) fn rows_refused(slice: &str, refused: &[(&TableMapping, String)], order: &str) -> Refusal {
    let facts: Vec<String> =
        refused.iter().map(|(table, why)| format!("{} refuses rows: {why}", table.target)).collect();
    Refusal {
        what: format!("tables of slice {slice} keep their rows, for none was emptied: {}", facts.join("; ")),
        next: format!("take away what refuses them in the service, then {}", again(slice, order)),
        anew: false,
    }
}

fn again(slice: &str, order: &str) -> String {
    format!("strangler mirror PLAN --slice {slice} {order}")
}
