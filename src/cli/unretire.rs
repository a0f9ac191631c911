//! `strangler unretire`.

use std::collections::BTreeMap;

use super::environment::Environment;
use super::interrupt;
use super::open::{Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::retire::{failed, one_slice, statements};
use super::ui::Ui;
use crate::mapping::Mappings;
use crate::postgres::Session;
use crate::provision::Databases;
use crate::retire::{self, Work};
use crate::status::judge::shell_word;
use crate::words;

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler unretire";

/// Give back what retire has taken away from a slice's old tables
///
/// Tables that retire --stage quarantine moved away come back under their names, with everything on them: it is refused while something
/// else has one of the names. Every right that retire --stage revoke took away is given back as it was, with its grant option, by whoever owns the table now: all of
/// them in one transaction, or none. What somebody has granted meanwhile stays. A role, table or column that was renamed gets its rights
/// under its new name; where it is gone, or another one has its name, the right is named, left out and stays written down, until
/// --give-up forgets it. Where retire --stage drop was cut off before the tables were gone, that they are to be dropped is taken back first; once
/// they are gone it is refused, and strangler restore makes tables from the archive. --dry-run does it, rolls it back and prints the statements. The service is asked for its ledger only: where
/// it can't be reached, the next command tells it.
///
/// Exit code 0: everything is as it was. 1: but for what is gone. 3: refused. 4: the monolith could not be reached, or others held
/// the tables' rights; nothing was done. 5: nothing was done, or only the ledger's entry is missing; the message says which.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Print the SQL and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Forget the rights that can't be given back, because their role, table or column is gone
    #[arg(long)]
    give_up: bool,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = one_slice(ui, "unretire", &arguments.plan, &arguments.slices)?;
    let state = "nothing is half-done: strangler status PLAN says whether the rights are away";
    opened.heard(interrupt::unless(&opened.typed(state), Box::pin(work(ui, arguments, &opened))).await)
}

async fn work(ui: &mut Ui, arguments: &Arguments, opened: &Opened) -> Result<Exit, CliError> {
    // What was taken is written down, so a plan that no longer fits the tables must not stand in the way.
    let mappings = match opened.mappings(ui).await {
        Err(CliError::Unfit(_)) => {
            ui.words(&opened.typed(
                "the plan does not fit the monolith's tables (strangler check PLAN): the ledger is told by a later command",
            ));
            Mappings::default()
        }
        mappings => mappings?,
    };
    let databases = connect(ui, opened).await?;
    let admin = &opened.monolith.admin;
    let watch = admin.connect(APPLICATION).await?;
    let work = Work {
        plan: &opened.plan,
        mappings: &mappings,
        slice: opened.slices.first().map(String::as_str).unwrap_or_default(),
        databases: &databases,
        watch: &watch,
        user: &admin.login()?.0,
        author: &Environment.author(),
    };
    reconsider(ui, opened, work, !arguments.dry_run).await?;
    let restored = retire::restore(work, (!arguments.dry_run, arguments.give_up)).await;
    let Some(restored) = restored.map_err(|error| failed(opened, "brought back", error))? else {
        ui.words("nothing is retired: no rights were taken away");
        return Ok(Exit::Clean);
    };
    if arguments.dry_run {
        ui.data(&statements(&restored.statements))?;
    } else {
        if restored.tables > 0 {
            ui.words(&format!("{} moved back", words::plural(restored.tables, "table")));
        }
        ui.words(&format!("{} given back", words::plural(restored.rights, "right")));
    }
    for table in &restored.lost {
        ui.words(&format!("not moved back: {table}: it is not there any more"));
    }
    for (schema, holds) in &restored.left {
        ui.words(&format!("schema {schema} is left to whoever made what it holds: {holds}"));
    }
    for (table, before, now) in &restored.moved {
        ui.words(&format!(
            "{table} belongs to {now} now, not to {before}: the rights on it are given by {now}"
        ));
    }
    if let Some(archive) = &restored.archive {
        ui.words(&format!(
            "the archive of {} stays at {}, and is none of the next retirement's",
            archive.at, archive.place
        ));
    }
    let verb = if arguments.give_up { "given up" } else { "not given back" };
    for (right, why) in &restored.gone {
        ui.words(&format!("{verb}: {}: {why}", retire::words(right)));
    }
    if restored.gone.is_empty() || arguments.give_up {
        return Ok(Exit::Clean);
    }
    let slice = shell_word(work.slice);
    ui.words(&opened.typed(&format!(
        "they stay written down; to forget them: strangler unretire PLAN --slice {slice} --give-up"
    )));
    Ok(Exit::Problems)
}

/// Tables that were about to be dropped, and were not, stay.
async fn reconsider(ui: &mut Ui, opened: &Opened, work: Work<'_>, commit: bool) -> Result<(), CliError> {
    let taken_back = retire::reconsider(work, commit).await;
    if taken_back.map_err(|source| failed(opened, "given back", source))? {
        let is = if commit { "is" } else { "would be" };
        ui.words(&format!("that they are to be dropped {is} taken back: nothing of them was"));
    }
    Ok(())
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
