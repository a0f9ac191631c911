//! `strangler doctor`.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde::Serialize;

use super::interrupt;
use super::open::{self, Needs, Opened, PlanFile};
use super::report::{CliError, Exit};
use super::ui::{Format, Ui};
use crate::cdc::mirror::chain_of;
use crate::check;
use crate::doctor::{self, DatabaseReport, Place, Removed};
use crate::postgres::{Server, Session};
use crate::problem::{Problem, Severity};

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler doctor";

/// What an interruption leaves behind.
const UNTOUCHED: &str = "doctor changes nothing without --clean, and with it only what nobody needs";

/// List everything in the plan's databases that carries our names, and say what is wrong with it
///
/// Shown for each database: the schema strangler, slices, gates with the tables that they hang on, publications, replication
/// slots with the WAL that they hold, copies that are not over, and the role strangler_apply; for each, the slice or the other plan
/// that needs it. What nobody needs, what nobody reads, and what is dangerous comes as a problem with what to type.
///
/// With --clean it removes what is safe to remove: slots that nobody reads and no stream is written down with, publications
/// and gates without a slice that guard nothing. It does so while no other verb changes these databases, and says each
/// removal.
///
/// Reads through the admin links. --clean drops the monolith's slots through the read link.
///
/// Exit code 0: everything is needed and sound. 1: something is not. 4: a database could not be reached.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    /// Remove what nobody needs and is safe to remove
    #[arg(long)]
    clean: bool,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The document of `--format json` (docs/json-output.md).
#[derive(Debug, Serialize)]
struct Document<'a> {
    format: &'static str,
    version: u8,
    plan: &'a str,
    removed: Vec<Shown>,
    databases: Vec<DatabaseReport>,
}

/// One removal, or why there was none.
#[derive(Debug, Serialize)]
struct Shown {
    database: String,
    sql: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

impl From<&Removed> for Shown {
    fn from(removed: &Removed) -> Self {
        Self {
            database: removed.place.to_string(),
            sql: removed.removal.sql(),
            failed: removed.failed.as_ref().map(|error| chain_of(error)),
        }
    }
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let needs = if arguments.clean { Needs::All } else { Needs::Admin };
    let opened = open::open(ui, &arguments.plan, &[], needs)?;
    let (removed, mut databases) =
        interrupt::unless(UNTOUCHED, Box::pin(look(&opened, arguments.clean))).await?;
    for problem in
        databases.iter_mut().flat_map(|report| &mut report.objects).filter_map(|of| of.problem.as_mut())
    {
        problem.next = opened.typed(&problem.next);
    }
    let exit = exit(&removed, &databases);
    let removed = removed.iter().map(Shown::from).collect::<Vec<_>>();
    match arguments.format {
        Format::Text => {
            for Shown { database, sql, failed } in &removed {
                ui.words(&match failed {
                    None => format!("{database}: {sql}"),
                    Some(error) => format!("{database}: could not do {sql}: {error}"),
                });
            }
            ui.data(&doctor::text(&databases, |report| check::list(&problems(report))))?;
        }
        Format::Json => {
            let plan = opened.plan.name.as_str();
            ui.json(&Document { format: "strangler.doctor", version: 1, plan, removed, databases }, false)?;
        }
    }
    Ok(exit)
}

fn problems(report: &DatabaseReport) -> Vec<Problem> {
    let mut problems: Vec<Problem> =
        report.objects.iter().filter_map(|object| object.problem.clone()).collect();
    problems.sort();
    problems
}

fn exit(removed: &[Removed], databases: &[DatabaseReport]) -> Exit {
    let wrong = databases.iter().flat_map(problems).any(|problem| problem.severity != Severity::Note);
    if databases.iter().any(|report| report.unread.is_some()) {
        Exit::Unreachable
    } else if wrong || removed.iter().any(|removed| removed.failed.is_some()) {
        Exit::Problems
    } else {
        Exit::Clean
    }
}

pub(super) async fn look(
    opened: &Opened,
    clean: bool,
) -> Result<(Vec<Removed>, Vec<DatabaseReport>), CliError> {
    let sessions = connect(opened, |ways| &ways.admin).await;
    let removed = if clean {
        // A role that replicates may drop slots; on the monolith that is the read link's.
        let slots = connect(opened, |ways| &ways.read).await;
        let slots = slots.into_iter().filter_map(|(place, session)| Some((place, session.ok()?))).collect();
        doctor::clean(&opened.plan, &sessions, &slots).await?
    } else {
        Vec::new()
    };
    Ok((removed, doctor::judge(&doctor::gather(&opened.plan, &sessions).await)))
}

async fn connect(
    opened: &Opened,
    link: impl Fn(&open::Ways) -> &Server,
) -> BTreeMap<Place, Result<Session, String>> {
    let services = opened.services.iter().chain(&opened.others);
    let services = services.map(|(name, ways)| (Place::Service(name.clone()), link(ways)));
    let all = std::iter::once((Place::Monolith, link(&opened.monolith))).chain(services);
    let sessions = all.map(async |(place, server)| {
        (place, server.connect(APPLICATION).await.map_err(|error| chain_of(&error)))
    });
    join_all(sessions).await.into_iter().collect()
}
