//! `strangler unretire`.

use super::interrupt;
use super::open::{PlanFile, Slices};
use super::report::{CliError, Exit};
use super::retire::{Hands, one_slice, statements};
use super::ui::Ui;
use crate::journal::retirement::Right;
use crate::retire;
use crate::words;

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler unretire";

/// Give back what retire has taken away from a slice's old tables
///
/// Every right that retire --stage revoke took away is given back as it was, by whoever gave it, in one transaction; --dry-run
/// prints it. Rights of roles that are not there any more are listed, and the rest comes back.
///
/// Exit code 0: everything is as it was. 1: but for rights of roles that are gone. 4: a database could not be reached.
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
    let state =
        "nothing is half-done: the rights are all back, or all away; strangler status PLAN says which";
    let work = async {
        let hands = Hands::connect(ui, &opened, APPLICATION).await?;
        let job = hands.job(&opened, None)?;
        let failed = |source| hands.failed(&opened, source);
        if arguments.dry_run {
            let Some((sql, lost)) = retire::preview_restore(&job).await.map_err(failed)? else {
                ui.words("nothing was taken away");
                return Ok(Exit::Clean);
            };
            ui.data(&statements(&sql))?;
            return Ok(tell(ui, &lost));
        }
        let Some(restored) = retire::restore(&job).await.map_err(failed)? else {
            ui.words("nothing was taken away");
            return Ok(Exit::Clean);
        };
        ui.words(&format!("{} given back", words::plural(restored.rights, "right")));
        Ok(tell(ui, &restored.lost))
    };
    interrupt::unless(&opened.typed(state), Box::pin(work)).await
}

fn tell(ui: &mut Ui, lost: &[Right]) -> Exit {
    for right in lost {
        let whose = right.grantee.as_deref().unwrap_or("PUBLIC");
        ui.words(&format!(
            "not given back: {} on {} of {whose}, by {}: that role is not there any more",
            right.privilege, right.relation, right.grantor
        ));
    }
    if lost.is_empty() { Exit::Clean } else { Exit::Problems }
}
