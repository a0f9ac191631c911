//! `strangler provision`.

use std::collections::BTreeMap;

use super::environment::Environment;
use super::interrupt;
use super::open::{self, Needs, Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::ui::Ui;
use crate::check;
use crate::postgres::{ConnectError, Server, Session};
use crate::problem::Problem;
use crate::provision::{self, Databases, Design, Event, Login, Logins, ProvisionError};
use crate::words;

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler provision";

/// Make everything that the mirror needs: roles, tables, gates, publications
///
/// Creates the service side from the monolith's catalogs: tables with their types, defaults, sequences, keys and checks;
/// an owner role without login, the application's role, and strangler_apply with the password of the apply link; our own
/// tables in a schema strangler on both sides; gates that only the mirror may pass; the publication on the monolith, and the
/// apply link's right to lock rows there. With `ddl: adopt` it verifies the service's own tables instead. Tables of the
/// monolith are not changed.
///
/// Every step is one transaction. A second run does what is missing and no more, also after a first one that broke off.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Print the exact SQL in order and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let mut opened = open::open(ui, &arguments.plan, &arguments.slices.slices, Needs::All)?.answering();
    opened.ask_dropped(Needs::All).await?;
    let Some(opened) = opened.known_to_services()?.left(ui, &arguments.slices.slices)? else {
        return Ok(Exit::Clean);
    };
    let state = "steps that were finished stay, the one at work is undone; type it again to go on";
    let ended = interrupt::unless(state, async {
        let mut databases = connect(&opened).await?;
        let logins = logins(&opened)?;
        if arguments.dry_run {
            let design =
                provision::prepare(&opened.plan, opened.only(&arguments.slices.slices), &databases, &logins)
                    .await?;
            return show(ui, design, &opened);
        }
        let only = opened.only(&arguments.slices.slices);
        let author = Environment.author();
        let mut tell = |event: Event<'_>| {
            if let Event::Started { number, total, step } = event {
                ui.words(&format!("[{number}/{total}] {}: {} {}", step.database, step.purpose, step.object));
            }
        };
        let design = provision::run(&opened.plan, only, &mut databases, (&logins, &author), &mut tell).await;
        finish(ui, design.map_err(|error| typed(error, &opened))?, &opened);
        Ok(Exit::Clean)
    });
    opened.heard(Box::pin(ended).await)
}

/// The dry run: SQL on stdout, problems on stderr.
fn show(ui: &mut Ui, design: Design, opened: &Opened) -> Result<Exit, CliError> {
    if design.refusals().next().is_some() {
        return Err(typed(ProvisionError::Refused { problems: design.problems }, opened).into());
    }
    warn(ui, &opened.typed_all(design.problems));
    let sql: Vec<String> = design.steps.iter().map(provision::Step::text).collect();
    if sql.is_empty() {
        ui.words("nothing is missing");
    } else {
        ui.data(&sql.join("\n"))?;
    }
    Ok(Exit::Clean)
}

fn finish(ui: &mut Ui, design: Design, opened: &Opened) {
    warn(ui, &opened.typed_all(design.problems));
    if design.steps.is_empty() {
        ui.words("nothing was missing");
    } else {
        ui.words(&format!("{} done", words::plural(design.steps.len(), "step")));
    }
    ui.words(&format!("next: {}", opened.typed("strangler mirror PLAN")));
}

fn typed(error: ProvisionError, opened: &Opened) -> ProvisionError {
    if let ProvisionError::Refused { problems } = error {
        ProvisionError::Refused { problems: opened.typed_all(problems) }
    } else {
        error
    }
}

fn warn(ui: &mut Ui, problems: &[Problem]) {
    if !problems.is_empty() {
        ui.words(check::list(problems).trim_end());
    }
}

async fn connect(opened: &Opened) -> Result<Databases, ConnectError> {
    let monolith = opened.monolith.admin.connect(APPLICATION).await?.into_client();
    let mut services = BTreeMap::new();
    for (name, ways) in &opened.services {
        services.insert(name.clone(), ways.admin.connect(APPLICATION).await.map(Session::into_client)?);
    }
    Ok(Databases { monolith, services })
}

/// Whom the links log in as, so that the roles get those names and the apply role its password.
fn logins(opened: &Opened) -> Result<Logins, ConnectError> {
    let login = |server: &Server| server.login().map(|(user, password)| Login { user, password });
    let apply = opened.services.iter().map(|(name, ways)| Ok((name.clone(), login(&ways.apply)?)));
    Ok(Logins {
        monolith_read: Some(login(&opened.monolith.read)?.user),
        monolith_apply: Some(login(&opened.monolith.apply)?),
        apply: apply.collect::<Result<_, ConnectError>>()?,
    })
}
