//! `strangler abandon`.

use std::collections::BTreeMap;

use super::doctor;
use super::environment::Environment;
use super::interrupt;
use super::open::{Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::retire::one_slice;
use super::ui::Ui;
use crate::abandon::{self, AbandonError, Done, Job};
use crate::check;
use crate::doctor::Kind;
use crate::mapping::Mappings;
use crate::postgres::Session;
use crate::provision::Databases;
use crate::status::judge::shell_word;

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler abandon";

/// Take a slice back to where nothing of it was ever provisioned
///
/// For a slice over which the monolith has the authority: to give it up, or to begin anew, with another mapping for example. The
/// monolith's tables and rows are not touched, and its application goes on. Without --confirm it shows the SQL for each database, in its
/// order, and what is lost; with --confirm and the token that it names it does exactly that.
///
/// On the monolith go the slot, the publication, the gate, the rights that provision and arm have granted and no other slice needs, and
/// what is remembered of the slice. With the last slice of every plan the schema strangler goes as well, and the role strangler_apply,
/// where it was made from there and nothing on the server depends on it. In the service, tables that provision made are dropped;
/// tables that it adopted are emptied and get back the indexes and constraints that were set aside. A table whose rows need not all be the
/// mirror's stays as it is, and is named: one that held rows when it was adopted, for example, or got partitions since. Anything else
/// stays: types, schemas, free sequences, the service's own roles.
///
/// The service's ledger stays, with the schema strangler and the rights on it, since it is the evidence of what was done:
/// strangler ledger goes on to show it. With --drop-ledger they go together with the service's last slice.
///
/// Refused in databases that are not those that the slice was provisioned in, while the service has or may have the authority, while the slice is armed or retired, while a mirror or a comparison of it
/// runs, and while something of the service's own depends on a table that would be dropped. From the first step on no other verb touches
/// the slice; a run that died is finished by the same command. At the end doctor looks whether anything of the slice is left.
///
/// Exit code 0: done and nothing is left, or shown and allowed. 1: done, and something is left, which is named. 3: refused. 4: a database
/// could not be reached, or others held what is needed. 5: not all of it was done; type it again.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Do what was shown under this token
    #[arg(long, value_name = "TOKEN")]
    confirm: Option<String>,
    /// Who approved it; the name goes into the ledger. Needed where the plan says `approval: required`
    #[arg(long, value_name = "NAME", value_parser = super::flip::name)]
    approved_by: Option<String>,
    /// Let the service's ledger go with its last slice
    #[arg(long)]
    drop_ledger: bool,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = one_slice(ui, "abandon", &arguments.plan, &arguments.slices)?;
    let state = "steps that were finished stay, the one at work is undone; strangler status PLAN says whether it has begun, and the \
                 same command goes on";
    opened.heard(interrupt::unless(&opened.typed(state), Box::pin(work(ui, arguments, &opened))).await)
}

async fn work(ui: &mut Ui, arguments: &Arguments, opened: &Opened) -> Result<Exit, CliError> {
    let mappings = match opened.mappings(ui).await {
        Err(CliError::Unfit(_)) => {
            ui.words("the plan does not fit the monolith's tables: columns of the service's own are not told apart");
            Mappings::default()
        }
        mappings => mappings?,
    };
    let known = || CliError::WhichSlice { verb: "abandon", one: true, known: opened.slices.clone() };
    let slice = opened.slices.first().ok_or_else(known)?;
    let (service, _) = opened.plan.service_of(slice).ok_or_else(known)?;
    let databases = connect(opened).await?;
    let slots = opened.monolith.read.connect(APPLICATION).await?;
    let author = Environment.author();
    let job = Job {
        plan: &opened.plan,
        slice,
        service,
        mapping: mappings.get(slice),
        databases: &databases,
        slots: &slots,
        author: &author,
        approved_by: arguments.approved_by.as_deref(),
        drop_ledger: arguments.drop_ledger,
    };
    let done = abandon::run(job, arguments.confirm.as_deref()).await;
    let done = done.map_err(|source| failed(opened, slice, source))?;
    if arguments.confirm.is_none() && !done.steps.is_empty() {
        return preview(ui, arguments, opened, (slice, &done));
    }
    finish(ui, opened, (slice, &done)).await
}

async fn connect(opened: &Opened) -> Result<Databases, CliError> {
    let monolith = opened.monolith.admin.connect(APPLICATION).await?.into_client();
    let mut services = BTreeMap::new();
    for (name, ways) in &opened.services {
        services.insert(name.clone(), ways.admin.connect(APPLICATION).await.map(Session::into_client)?);
    }
    Ok(Databases { monolith, services })
}

fn preview(
    ui: &mut Ui,
    arguments: &Arguments,
    opened: &Opened,
    (slice, done): (&str, &Done),
) -> Result<Exit, CliError> {
    let problems = opened.typed_all(done.problems.clone());
    if !problems.is_empty() {
        ui.words(check::list(&problems).trim_end());
    }
    let sql: Vec<String> = done.steps.iter().map(abandon::Step::text).collect();
    ui.data(&sql.join("\n"))?;
    let approved =
        arguments.approved_by.as_deref().map(|name| format!(" --approved-by {}", shell_word(name)));
    let ledger = if done.drop_ledger { " --drop-ledger" } else { "" };
    let before =
        if done.resumed { "it was begun before, and this is what is left" } else { "nothing was done" };
    ui.words(&opened.typed(&format!(
        "{before}. To do exactly this: strangler abandon PLAN --slice {}{}{ledger} --confirm {}",
        shell_word(slice),
        approved.unwrap_or_default(),
        done.token
    )));
    Ok(Exit::Clean)
}

/// Says what was done, and what `doctor` still finds.
async fn finish(ui: &mut Ui, opened: &Opened, (slice, done): (&str, &Done)) -> Result<Exit, CliError> {
    for step in &done.steps {
        ui.words(&format!("{}: {} {}", step.database, step.purpose, step.object));
    }
    let (_, reports) = doctor::look(opened, false).await?;
    let mut exit = Exit::Clean;
    for report in &reports {
        if let Some(reason) = &report.unread {
            ui.words(&format!("{}: not looked at: {reason}", report.database));
            exit = Exit::Problems;
        }
    }
    for (database, object) in abandon::left(&reports, (&opened.plan.name, slice), &done.names) {
        ui.words(&format!("left: {database}: {} {}: {}", object.kind.as_str(), object.name, object.detail));
        exit = Exit::Problems;
    }
    for problem in done.problems.iter().filter(|problem| {
        matches!(problem.code, "schema-stays" | "key-stays-away" | "table-stays" | "rows-stay" | "stays-away")
    }) {
        ui.words(check::list(&opened.typed_all(vec![problem.clone()])).trim_end());
        exit = Exit::Problems;
    }
    for problem in done.problems.iter().filter(|problem| problem.code == "right-stays") {
        ui.words(check::list(&opened.typed_all(vec![problem.clone()])).trim_end());
    }
    let roles = reports.iter().flat_map(|report| report.objects.iter().map(move |object| (report, object)));
    for (report, object) in roles.filter(|(_, object)| object.kind == Kind::Role) {
        if let Some(problem) = &object.problem {
            ui.words(&format!(
                "{}: role {}: {}; {}",
                report.database, object.name, problem.fact, problem.next
            ));
        }
    }
    if exit == Exit::Clean {
        let was = if done.steps.is_empty() { "nothing of slice" } else { "it is done: nothing of slice" };
        ui.words(&format!("{was} {slice} is left"));
    } else {
        ui.words(&opened.typed("strangler doctor PLAN says more about what is left"));
    }
    Ok(exit)
}

fn failed(opened: &Opened, slice: &str, source: AbandonError) -> CliError {
    if let AbandonError::Refused { problems } = source {
        return CliError::AbandonRefused(opened.typed_all(problems));
    }
    CliError::Abandon { slice: slice.to_owned(), source: Box::new(source) }
}
