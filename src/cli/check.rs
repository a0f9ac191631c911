//! `strangler check`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::environment::Environment;
use super::interrupt;
use super::open::{self, ANSWER_MAX, Needs, Opened, PlanFile};
use super::report::{CliError, Exit};
use super::ui::{Format, Ui};
use crate::cdc::mirror::chain_of;
use crate::check::{self, LinkFailure, Links, Report};
use crate::plan::{self, LinkTemplate, Variables};
use crate::postgres::{ConnectError, Server, SessionRole};

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler check";

/// List everything that stands between the plan and a safe split
///
/// Connects through every link of the plan, reads catalogs and settings, and changes nothing. All problems are listed at
/// once, each with what was found, what follows, and what to type next; then the copy time, the WAL held meanwhile, and
/// the replication slots and senders that the plan needs.
///
/// Exit code 0: no errors. 1: errors. 4: a database could not be reached.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = open::open(ui, &arguments.plan, &[], Needs::All)?;
    let opened = opened.reachable(ui, &[], Needs::All).await?;
    if opened.slices.is_empty() {
        return Ok(Exit::Clean);
    }
    let report =
        interrupt::unless("check changes nothing", Box::pin(async { Ok(look(&opened).await) })).await?;
    match arguments.format {
        Format::Text => ui.data(&check::text(&report))?,
        Format::Json => ui.json(&report, false)?,
    }
    Ok(match report.exit_code() {
        0 => Exit::Clean,
        4 => Exit::Unreachable,
        _ => Exit::Problems,
    })
}

async fn look(opened: &Opened) -> Report {
    let monolith = ways("monolith", &opened.plan.monolith.links);
    let planned = opened.services.keys().filter_map(|name| opened.plan.services.get_key_value(name));
    let services: BTreeMap<&String, [Server; 3]> =
        planned.map(|(name, service)| (name, ways(&format!("service {name}"), &service.links))).collect();
    let there = links(&monolith, true).await;
    let here = services.iter().map(async |(name, ways)| ((*name).clone(), links(ways, false).await));
    let here = join_all(here).await.into_iter().collect();
    let mut facts = check::gather(&opened.plan, &opened.slices, (there, here)).await;
    facts.monolith.silent = silent(&monolith);
    for (name, database) in &mut facts.services {
        database.silent = services.get(name).and_then(silent);
    }
    let report = check::report(&facts);
    Report { problems: opened.typed_all(report.problems), ..report }
}

/// The admin, the read and the apply link. Every one is opened as a reader, the apply link too: whether its role can apply is
/// one of the things to find out.
fn ways(label: &str, links: &plan::Links) -> [Server; 3] {
    let variables: Arc<dyn Variables> = Arc::new(Environment);
    [&links.admin, &links.read, &links.apply].map(|link: &LinkTemplate| {
        let server = Server::new(label, link.clone(), SessionRole::Read, Arc::clone(&variables));
        server.answering_within(ANSWER_MAX)
    })
}

/// How long one of them owed an answer.
fn silent(ways: &[Server; 3]) -> Option<Duration> {
    ways.iter().find_map(Server::owed_an_answer)
}

async fn links([admin, read, apply]: &[Server; 3], with_read: bool) -> Links {
    let read = async { if with_read { Some(connect(read).await) } else { None } };
    let (admin, read, apply) = tokio::join!(connect(admin), read, connect(apply));
    Links { admin, read, apply }
}

async fn connect(server: &Server) -> check::Opened {
    let session = server.connect(APPLICATION).await;
    session.map(crate::postgres::Session::into_client).map_err(|error| LinkFailure {
        words: chain_of(&error),
        login_refused: matches!(error, ConnectError::Authentication { .. } | ConnectError::NoPassword { .. }),
    })
}
