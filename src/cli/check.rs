//! `strangler check`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;

use super::environment::Environment;
use super::interrupt;
use super::open::{self, Needs, Opened, PlanFile};
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
    let monolith = links("monolith", &opened.plan.monolith.links, true).await;
    let services = opened.services.keys().filter_map(|name| opened.plan.services.get_key_value(name));
    let services = join_all(services.map(async |(name, service)| {
        (name.clone(), links(&format!("service {name}"), &service.links, false).await)
    }));
    let services: BTreeMap<String, Links> = services.await.into_iter().collect();
    let report = check::report(&check::gather(&opened.plan, monolith, services).await);
    Report { problems: opened.typed_all(report.problems), ..report }
}

async fn links(label: &str, links: &plan::Links, with_read: bool) -> Links {
    let read = async { if with_read { Some(connect(label, &links.read).await) } else { None } };
    let (admin, read, apply) = tokio::join!(connect(label, &links.admin), read, connect(label, &links.apply));
    Links { admin, read, apply }
}

/// Every link is opened as a reader, the apply link too: whether its role can apply is one of the things to find out.
async fn connect(label: &str, link: &LinkTemplate) -> check::Opened {
    let variables: Arc<dyn Variables> = Arc::new(Environment);
    let server = Server::new(label, link.clone(), SessionRole::Read, variables);
    let session = server.connect(APPLICATION).await;
    session.map(crate::postgres::Session::into_client).map_err(|error| LinkFailure {
        words: chain_of(&error),
        login_refused: matches!(error, ConnectError::Authentication { .. } | ConnectError::NoPassword { .. }),
    })
}
