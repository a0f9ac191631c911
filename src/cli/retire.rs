//! `strangler retire`.

use serde::Serialize;

use super::interrupt;
use super::open::{self, Needs, Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::ui::{Format, Ui};
use crate::check;
use crate::postgres::introspect;
use crate::problem::Severity;
use crate::retire::{self, Asked, SliceReport};

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler retire";

/// What an interruption leaves behind.
const UNTOUCHED: &str = "retire --report changes nothing";

/// Show who still uses the old tables of a slice that its service has taken over
///
/// While a service has the authority, a running mirror watches the monolith's tables: scans by others, as the server counts
/// them, with the tool's own subtracted; sessions that hold a lock on a table, with role, application, address and statement;
/// statements that name it, where pg_stat_statements is there; rows written past a gate. Shown are these since the authority
/// moved, with the last time, and the objects of the monolith that name the tables: views with their definition, functions,
/// foreign keys, policies, publications, scheduled jobs.
///
/// A table is quiet once nobody has used it for the plan's quiet_period.
///
/// Reads through the read and apply links and changes nothing.
///
/// Exit code 0: nothing stands in the way. 1: something does. 4: a database could not be reached.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Look, and change nothing
    #[arg(long, required = true)]
    report: bool,
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
    slices: Vec<SliceReport>,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = open::open(ui, &arguments.plan, &arguments.slices.slices, Needs::Rows)?.answering();
    let mut slices = Vec::new();
    for slice in opened.heard(interrupt::unless(UNTOUCHED, Box::pin(look(ui, &opened))).await)? {
        let problems = opened.typed_all(slice.problems);
        slices.push(SliceReport { problems, ..slice });
    }
    let in_the_way = slices.iter().flat_map(|slice| &slice.problems);
    let exit = match in_the_way.filter(|problem| problem.severity == Severity::Error).count() {
        0 => Exit::Clean,
        _ => Exit::Problems,
    };
    match arguments.format {
        Format::Text => ui.data(&retire::text(&slices, |slice| check::list(&slice.problems)))?,
        Format::Json => {
            let plan = opened.plan.name.as_str();
            ui.json(&Document { format: "strangler.retire", version: 1, plan, slices }, false)?;
        }
    }
    Ok(exit)
}

async fn look(ui: &mut Ui, opened: &Opened) -> Result<Vec<SliceReport>, CliError> {
    let mappings = opened.mappings(ui).await?;
    let catalog = introspect::read(&*opened.monolith.read.connect(APPLICATION).await?).await?;
    let monolith = opened.monolith.apply.connect(APPLICATION).await?;
    let mut slices = Vec::new();
    for slice in &opened.slices {
        let (Some(mapping), Some((service, _))) = (mappings.get(slice), opened.plan.service_of(slice)) else {
            continue;
        };
        let Some(ways) = opened.services.get(service) else { continue };
        let policy = opened.plan.slices.get(slice).map_or(&opened.plan.policy, |slice| &slice.policy);
        let session = ways.apply.connect(APPLICATION).await?;
        let asked = Asked {
            mapping,
            quiet_period: policy.quiet_period,
            catalog: &catalog,
            monolith: &monolith,
            service: &session,
        };
        let failed = |source| CliError::Retire {
            slice: slice.clone(),
            provision: opened.typed(&format!("strangler provision PLAN --slice {slice}")),
            source,
        };
        slices.push(retire::judge(&retire::gather(asked).await.map_err(failed)?));
    }
    Ok(slices)
}
