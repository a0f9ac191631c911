//! References that the tables of retired slices hold: there is nothing to compare them with, and their rows may still name others that are not
//! there.

use crate::cdc::mirror::chain_of;
use crate::cli::open::Opened;
use crate::cli::report::{CliError, Exit};
use crate::cli::ui::Ui;
use crate::mapping::Mappings;
use crate::reconcile::form::{Side, TableForm};
use crate::reconcile::orphans::{Neighbour, orphans};
use crate::reconcile::redact::Redactor;
use crate::reconcile::sides::Sides;

/// Looks at all of them and says what is found; values are not shown. Who calls it: a comparison of everything.
pub(super) async fn look(ui: &mut Ui, opened: &Opened, mappings: &Mappings) -> Result<Exit, CliError> {
    let server = |service: &String| opened.services.get(service).or_else(|| opened.others.get(service));
    let neighbours: Vec<Neighbour<'_>> = mappings
        .values()
        .filter_map(|mapping| Some(Neighbour { mapping, server: &server(&mapping.service)?.apply }))
        .collect();
    let mut exit = Exit::Clean;
    // No value is shown, so that a key to hide them with is made and not needed.
    let Ok(redactor) = Redactor::new() else { return Ok(Exit::Incomplete) };
    for mapping in opened.dropped.keys().filter_map(|slice| mappings.get(slice)) {
        let Some(ways) = server(&mapping.service) else { continue };
        let sides = Sides {
            authority: Side::Target,
            monolith_read: opened.monolith.read.clone(),
            monolith_apply: opened.monolith.apply.clone(),
            service_apply: ways.apply.clone(),
        };
        for table in mapping.tables.iter().filter(|table| !table.soft_references.is_empty()) {
            let form = TableForm::new(table.clone(), false);
            let found = orphans(&sides, &mapping.slice, &form, &neighbours, &redactor, 0).await;
            let (count, reasons) = match found {
                Ok(found) => (found.count, found.reasons),
                Err(error) => (0, vec![chain_of(&error)]),
            };
            for reason in reasons {
                ui.words(&format!("slice {} is retired; {reason}", mapping.slice));
                exit = if exit == Exit::Problems { exit } else { Exit::Incomplete };
            }
            if count > 0 {
                ui.words(&format!(
                    "slice {} is retired; rows of {} that refer to rows which are not there: {count}",
                    mapping.slice, table.target
                ));
                exit = Exit::Problems;
            }
        }
    }
    Ok(exit)
}
