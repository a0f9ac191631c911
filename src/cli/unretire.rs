//! `strangler unretire`.

use std::collections::BTreeMap;

use super::environment::Environment;
use super::interrupt;
use super::open::{Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::retire::{failed, one_slice, statements};
use super::ui::Ui;
use crate::postgres::Session;
use crate::provision::Databases;
use crate::retire::{self, Restored, Undo};
use crate::words;

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler unretire";

/// Give back what retire has taken away from a slice's old tables
///
/// Every right that retire --stage revoke took away is given back as it was, by whoever gave it, in one transaction; --dry-run
/// prints it. A right whose role, table or column is gone meanwhile is named and left out for good. One that the server does not let
/// be given now is named, and the same command tries it again; the rest comes back. The service is asked for its ledger only: where
/// it can't be reached, the next command tells it.
///
/// Exit code 0: everything is as it was. 1: but for what is gone. 5: some rights are still to be given back, or nothing was done. 4:
/// the monolith could not be reached.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Print the SQL and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = one_slice(ui, "unretire", &arguments.plan, &arguments.slices)?;
    let state = "nothing is half-done: strangler status PLAN says whether the rights are away";
    interrupt::unless(&opened.typed(state), Box::pin(work(ui, arguments, &opened))).await
}

async fn work(ui: &mut Ui, arguments: &Arguments, opened: &Opened) -> Result<Exit, CliError> {
    let mappings = opened.mappings(ui).await?;
    let databases = connect(ui, opened).await?;
    let author = Environment.author();
    let slice = opened.slices.first().map(String::as_str).unwrap_or_default();
    let undo =
        Undo { plan: &opened.plan, mappings: &mappings, slice, databases: &databases, author: &author };
    if arguments.dry_run {
        match retire::preview_restore(&undo).await.map_err(|error| failed(opened, error))? {
            Some(sql) => ui.data(&statements(&sql))?,
            None => ui.words("nothing was taken away"),
        }
        return Ok(Exit::Clean);
    }
    let Some(restored) = retire::restore(&undo).await.map_err(|error| failed(opened, error))? else {
        ui.words("nothing was taken away");
        return Ok(Exit::Clean);
    };
    ui.words(&format!("{} given back", words::plural(restored.rights, "right")));
    Ok(tell(ui, opened, &restored))
}

/// The monolith has all that is needed; the service only its ledger.
async fn connect(ui: &mut Ui, opened: &Opened) -> Result<Databases, CliError> {
    let monolith = opened.monolith.admin.connect(APPLICATION).await?.into_client();
    let mut services = BTreeMap::new();
    for (name, ways) in &opened.services {
        match ways.admin.connect(APPLICATION).await.map(Session::into_client) {
            Ok(client) => drop(services.insert(name.clone(), client)),
            Err(_) => {
                ui.words(&format!("service {name} can't be reached: its ledger is told by the next command"))
            }
        }
    }
    Ok(Databases { monolith, services })
}

fn tell(ui: &mut Ui, opened: &Opened, restored: &Restored) -> Exit {
    for (right, what) in &restored.gone {
        ui.words(&format!("not given back: {}: {what} is not there any more", retire::words(right)));
    }
    for (right, why) in &restored.failed {
        ui.words(&format!("not given back yet: {}: {why}", retire::words(right)));
    }
    if !restored.failed.is_empty() {
        let slice = opened.slices.join(" ");
        ui.words(&opened.typed(&format!(
            "mend what keeps them, then type it again: strangler unretire PLAN --slice {slice}"
        )));
        return Exit::Incomplete;
    }
    if restored.gone.is_empty() { Exit::Clean } else { Exit::Problems }
}
