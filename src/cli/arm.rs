//! `strangler arm`, and what it shares with `strangler disarm`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::environment::Environment;
use super::interrupt;
use super::open::{self, Needs, Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::ui::Ui;
use crate::arm::{self, ApplyLogins, ArmError, Design, Event, Hands, Outcome, Patience, Unproven, Verb};
use crate::check;
use crate::plan;
use crate::postgres::{ConnectError, Server, Session};
use crate::problem::Problem;
use crate::provision::Databases;
use crate::words;

/// Make slices ready for their flip: gates on the monolith's tables, and the way back
///
/// Hangs the gate on every moved table of the monolith, on partitions and children by inheritance too; it stays open, so the
/// application goes on. Writes down and drops the foreign keys between tables that move and tables that stay, in both
/// directions, also those between two slices. Makes the publication and the replication slot on the service through which a
/// flipped slice's changes come back to the monolith; the slot keeps WAL of the service from then on.
///
/// The slice must be mirrored and live. One table is locked at a time, for a moment: 50 ms at first, never as long as would
/// have autovacuum cancelled. Whom it waits for is said, with pid, application, state, age and query. A new slot waits for
/// all transactions that run on the service's server.
///
/// A second run does what is missing and no more, also after a first one that broke off, and after partitions were
/// attached or somebody took a gate off. `strangler disarm` undoes it all.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    shared: Shared,
}

/// What both verbs take.
#[derive(Debug, clap::Args)]
pub(super) struct Shared {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Print the exact SQL in order and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The longest wait for the locks of one table, or for the slot
    #[arg(long, value_name = "PERIOD", default_value = "5m", value_parser = plan::period)]
    wait: Duration,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    Box::pin(go(ui, Verb::Arm, &arguments.shared)).await
}

/// Both verbs.
pub(super) async fn go(ui: &mut Ui, verb: Verb, arguments: &Shared) -> Result<Exit, CliError> {
    let opened = open::open(ui, &arguments.plan, &arguments.slices.slices, Needs::All)?;
    let Some(opened) = opened.living(ui, &arguments.slices.slices, Needs::All).await? else {
        return Ok(Exit::Clean);
    };
    let proofs = opened.monolith.admin.clone();
    let opened = opened.answering();
    let other = match verb {
        Verb::Arm => "disarm",
        Verb::Disarm => "arm",
    };
    let state = opened.typed(&format!(
        "steps that were finished stay, the one at work is undone; type it again to go on, or strangler {other} PLAN to \
         go back"
    ));
    opened.heard(interrupt::unless(&state, Box::pin(work(ui, verb, arguments, (&opened, &proofs)))).await)
}

async fn work(
    ui: &mut Ui,
    verb: Verb,
    arguments: &Shared,
    (opened, proofs): (&Opened, &Server),
) -> Result<Exit, CliError> {
    let databases = connect(verb, opened).await?;
    let services: BTreeMap<String, Server> =
        opened.services.iter().map(|(name, ways)| (name.clone(), ways.admin.clone())).collect();
    let logins = logins(opened)?;
    let author = Environment.author();
    let hands = Hands {
        databases: &databases,
        services: &services,
        proofs,
        logins: &logins,
        patience: Patience { total: arguments.wait },
        author: &author,
    };
    let only = opened.only(&arguments.slices.slices);
    if arguments.dry_run {
        let design = arm::prepare(&opened.plan, verb, only, &hands).await.map_err(|e| typed(e, opened))?;
        return show(ui, verb, design, opened);
    }
    let mut tell = |event: Event<'_>| match event {
        Event::Started { number, total, step } => {
            ui.words(&format!("[{number}/{total}] {}: {} {}", step.database, step.purpose, step.object));
        }
        Event::Waiting(words) => ui.words(&format!("  {words}")),
    };
    let outcome = arm::run(&opened.plan, verb, only, &hands, &mut tell).await;
    let outcome = outcome.map_err(|error| typed(error, opened))?;
    Ok(finish(ui, verb, outcome, opened))
}

/// The dry run: SQL on stdout, problems on stderr.
fn show(ui: &mut Ui, verb: Verb, design: Design, opened: &Opened) -> Result<Exit, CliError> {
    if design.refusals().next().is_some() {
        let refused = ArmError::Refused { verb: verb.as_str(), problems: design.problems };
        return Err(typed(refused, opened).into());
    }
    warn(ui, &opened.typed_all(design.problems));
    let sql: Vec<String> = design.steps.iter().map(arm::Step::text).collect();
    if sql.is_empty() {
        ui.words(nothing(verb, false));
    } else {
        ui.data(&sql.join("\n"))?;
    }
    Ok(Exit::Clean)
}

fn nothing(verb: Verb, done: bool) -> &'static str {
    match (verb, done) {
        (Verb::Arm, false) => "nothing is missing",
        (Verb::Arm, true) => "nothing was missing",
        (Verb::Disarm, false) => "nothing is armed",
        (Verb::Disarm, true) => "nothing was armed",
    }
}

fn finish(ui: &mut Ui, verb: Verb, outcome: Outcome, opened: &Opened) -> Exit {
    warn(ui, &opened.typed_all(outcome.problems));
    if outcome.steps == 0 {
        ui.words(nothing(verb, true));
    } else {
        ui.words(&format!("{} done", words::plural(outcome.steps, "step")));
    }
    for unproven in &outcome.unproven {
        ui.words(&unproven_words(unproven));
    }
    if !outcome.unproven.is_empty() {
        ui.words(&format!("next: mend or delete those rows, then {}", opened.typed("strangler disarm PLAN")));
        return Exit::Problems;
    }
    if verb == Verb::Arm {
        ui.words(&format!("next: {}", opened.typed("strangler status PLAN")));
    }
    Exit::Clean
}

fn unproven_words(unproven: &Unproven) -> String {
    let key = &unproven.key;
    let rows = unproven.orphans.map_or_else(
        || "rows of it refer to nothing".to_owned(),
        |rows| match rows {
            1 => "1 row refers to nothing".to_owned(),
            rows => format!("{rows} rows refer to nothing"),
        },
    );
    let stands = if key.stands {
        "it stands as NOT VALID, so that new rows are checked and old ones are not"
    } else {
        "it could not be brought back"
    };
    let query = key.orphans_sql.as_ref().map(|from| format!("\n  SELECT c.* {from};")).unwrap_or_default();
    format!("foreign key {} of {}: {rows}; {stands}{query}", key.name, key.child)
}

/// Errors with the commands that they name as they must be typed.
fn typed(error: ArmError, opened: &Opened) -> ArmError {
    if let ArmError::Refused { verb, problems } = error {
        ArmError::Refused { verb, problems: opened.typed_all(problems) }
    } else {
        error
    }
}

fn warn(ui: &mut Ui, problems: &[Problem]) {
    if !problems.is_empty() {
        ui.words(check::list(problems).trim_end());
    }
}

async fn connect(verb: Verb, opened: &Opened) -> Result<Databases, ConnectError> {
    let application = format!("strangler {}", verb.as_str());
    let monolith = opened.monolith.admin.connect(&application).await?.into_client();
    let mut services = BTreeMap::new();
    for (name, ways) in &opened.services {
        services.insert(name.clone(), ways.admin.connect(&application).await.map(Session::into_client)?);
    }
    Ok(Databases { monolith, services })
}

/// Whom the services' apply links log in as: the reverse slot is read through them.
fn logins(opened: &Opened) -> Result<ApplyLogins, ConnectError> {
    let login = |server: &Server| server.login().map(|(user, _)| user);
    opened.services.iter().map(|(name, ways)| Ok((name.clone(), login(&ways.apply)?))).collect()
}
