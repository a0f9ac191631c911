//! `strangler mirror`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::flip;
use super::interrupt::Interrupts;
use super::mirror_progress::Display;
use super::open::{self, Needs, Opened, PlanFile, Slices, Unfit};
use super::report::{CliError, Exit};
use super::ui::Ui;
use crate::authority::Intent;
use crate::cdc::batch::BatchLimits;
use crate::cdc::engine::{BackLinks, MirrorOptions, Rebuild, SliceConfig};
use crate::cdc::error::MirrorError;
use crate::cdc::headroom::WalLimits;
use crate::cdc::mirror::{self, Board, SliceEnd};
use crate::cdc::record::Recorder;
use crate::cdc::start::ProcessName;
use crate::check;
use crate::dualwrite::flip::moves::{Member, Order};
use crate::dualwrite::flip::rescue;
use crate::journal::ledger::Subject;
use crate::journal::streams::Direction;
use crate::mapping::{Mappings, SliceMapping};
use crate::name::TableName;
use crate::status::judge::shell_word;

/// How often progress is shown: smooth on a terminal, and nothing beside the work.
const SHOW_EVERY: Duration = Duration::from_millis(250);

/// Rounds at once over all slices. One keeps the monolith's longest snapshot as short as it can be; the workers of that
/// round are the parallelism.
const ROUNDS: usize = 1;

/// Copy the tables of every slice, then keep them current
///
/// Copies first, in parallel and resumable, then follows the monolith's changes for as long as it runs. The application
/// goes on writing to the monolith all the while; the services may read.
///
/// Ctrl-C stops at a transaction border; the next start goes on there. A mirror that was killed loses nothing either.
/// Once a slice is armed, it also carries back what an opened service writes, and finishes a flip whose operator is gone.
///
/// Broken connections are made again without end. A slice that can't go on says why and what to type, and does not
/// stop the others.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Empty this table and copy it again; may be given several times
    #[arg(long, value_name = "TABLE")]
    retry: Vec<String>,
    /// Start the slices over: new replication slots, every table made equal to the monolith's again
    ///
    /// The rows that are there stay readable, and only those parts of a table are copied that differ. While a slice's service has
    /// authority nothing is copied: the slot by which the monolith is watched is made anew where it is lost.
    #[arg(long)]
    rebuild: bool,
    /// With --rebuild: empty the tables first, and copy everything
    #[arg(long, requires = "rebuild")]
    empty: bool,
    /// Take over from a mirror that seems to be alive
    #[arg(long)]
    take_over: bool,
    /// Connections that copy in parallel
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: u8,
    /// Rows per key-range piece [default: sized so that a round takes about 2 s]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    rows_per_piece: Option<u64>,
    /// Where transactions that don't fit into memory wait [default: the system's folder for temporary files]
    #[arg(long, value_name = "FOLDER", value_parser = folder)]
    spill_folder: Option<PathBuf>,
}

/// A folder that is there: a wrong one would only show at the first large transaction.
fn folder(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_dir() { Ok(path) } else { Err("there is no such folder".to_owned()) }
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = open::open(ui, &arguments.plan, &arguments.slices.slices, Needs::All)?;
    let opened = opened.reachable(ui, &arguments.slices.slices, Needs::All).await?;
    if opened.slices.is_empty() {
        return Ok(Exit::Clean);
    }
    let (mappings, unfit) = opened.fitting(ui).await?;
    let retry = tables(&arguments.retry, &opened, (&mappings, &unfit))?;
    let (board, progress) = Board::new(&mappings.keys().cloned().collect::<Vec<_>>());
    let left_out = leave_out(ui, &opened, unfit).await;
    let members = flip::members(&opened, &mappings);
    let configs = configs(&opened, mappings, &board, arguments, &retry);
    let mut interrupts = Interrupts::listen().map_err(CliError::Start)?;
    let stop = CancellationToken::new();
    let mut running = tokio::spawn(Box::pin(mirror::run(configs, this_process(), stop.clone())));
    let _rescuers = rescuers(members, &opened, &stop);
    let mut display = Display::default();
    let mut ticks = tokio::time::interval(SHOW_EVERY);
    let ends = loop {
        tokio::select! {
            ends = &mut running => break ends,
            _ = ticks.tick() => {
                let latest = progress.borrow().clone();
                display.show(ui, &latest);
            }
            () = interrupts.next() => {
                if stop.is_cancelled() {
                    display.finish();
                    return Err(interrupted("stopped in the middle of a transaction, which the next start does again"));
                }
                stop.cancel();
                ui.words("stopping at the next transaction border; once more stops at once");
            }
        }
    };
    let latest = progress.borrow().clone();
    display.show(ui, &latest);
    display.finish();
    let ends = ends.map_err(|error| CliError::Start(std::io::Error::other(error)))?;
    let (over, ends): (Vec<SliceEnd>, Vec<SliceEnd>) =
        ends.into_iter().partition(|end| matches!(end.result, Err(MirrorError::Retired { .. })));
    let retired: BTreeSet<&String> = over.iter().map(|end| &end.slice).collect();
    for slice in retired {
        ui.words(&format!(
            "slice {slice} is retired: its old tables are dropped, and there is nothing to mirror any more"
        ));
    }
    if ends.iter().all(|end| over.iter().any(|one| one.slice == end.slice)) && left_out.is_empty() {
        return Ok(Exit::Clean);
    }
    outcome(ends, left_out, &opened)
}

/// Slices that don't fit the monolith's tables end before they began: that is said at once, here and in their services,
/// and again at the end.
async fn leave_out(ui: &mut Ui, opened: &Opened, unfit: Vec<Unfit>) -> Vec<(String, MirrorError)> {
    let mut left_out = Vec::new();
    for Unfit { slice, problems, .. } in unfit {
        let found: Vec<String> =
            problems.iter().map(|problem| format!("{}: {}", problem.object, problem.fact)).collect();
        let error = MirrorError::Refused {
            what: format!("slice {slice} does not fit the monolith's tables: {}", found.join("; ")),
            next: "strangler check PLAN".to_owned(),
        };
        ui.words(check::list(&problems).trim_end());
        ui.words(&format!("slice {slice} is not mirrored, because of these problems; the others are"));
        let service = opened.plan.service_of(&slice).and_then(|(service, _)| opened.services.get(service));
        if let Some(service) = service {
            mirror::leave_word(&service.apply, &slice, &error).await;
        }
        left_out.push((slice, error));
    }
    left_out
}

/// Finishes moves of authority whose operator is gone; ends when it is dropped.
fn rescuers(members: Vec<Member>, opened: &Opened, stop: &CancellationToken) -> JoinSet<()> {
    let order = Order {
        plan: opened.plan.name.clone(),
        intent: Intent::Resume,
        author: Environment.author(),
        remark: Some("finished by the mirror".to_owned()),
        approved_by: None,
        judged: BTreeMap::new(),
    };
    let mut rescuers = JoinSet::new();
    for member in members {
        rescuers.spawn(rescue::watch(member, order.clone(), stop.clone()));
    }
    rescuers
}

/// A slice that stopped because it was asked to is no failure; being asked to stop is still an interruption.
fn outcome(
    ends: Vec<SliceEnd>,
    left_out: Vec<(String, MirrorError)>,
    opened: &Opened,
) -> Result<Exit, CliError> {
    let failed: Vec<(String, MirrorError)> = ends
        .into_iter()
        .filter_map(|end| {
            let name = match end.direction {
                Direction::Forward => end.slice,
                Direction::Reverse => format!("{} (way back)", end.slice),
            };
            end.result.err().map(|error| (name, error))
        })
        .chain(left_out)
        .collect();
    if failed.is_empty() {
        Err(interrupted(&format!(
            "every slice stopped at a transaction border; {} goes on there",
            again(opened)
        )))
    } else {
        Err(CliError::Mirror { plan: shell_word(&opened.path), ends: failed })
    }
}

fn interrupted(state: &str) -> CliError {
    CliError::Interrupted { state: state.to_owned() }
}

fn again(opened: &Opened) -> String {
    opened.typed("strangler mirror PLAN")
}

/// The tables that `--retry` names, each in one of the chosen slices. Those of a slice that does not fit are left out with it, which is
/// said of the slice.
fn tables(
    names: &[String],
    opened: &Opened,
    (mappings, unfit): (&Mappings, &[Unfit]),
) -> Result<Vec<TableName>, CliError> {
    let chosen = opened.slices.iter().filter_map(|slice| mappings.get(slice));
    let fit = chosen.flat_map(|slice| &slice.tables).map(|table| &table.source);
    let known: Vec<&TableName> = fit.chain(unfit.iter().flat_map(|unfit| &unfit.tables)).collect();
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for name in names {
        match TableName::parse(name, "public") {
            Ok(table) if known.contains(&&table) => found.push(table),
            Ok(_) | Err(_) => unknown.push(name.clone()),
        }
    }
    if unknown.is_empty() {
        return Ok(found);
    }
    let known = known.iter().map(ToString::to_string).collect();
    Err(CliError::Unknown { what: "table", option: "--retry", names: unknown, known })
}

fn configs(
    opened: &Opened,
    mut mappings: Mappings,
    board: &Board,
    arguments: &Arguments,
    retry: &[TableName],
) -> Vec<SliceConfig> {
    let options = Arc::new(MirrorOptions {
        workers: usize::from(arguments.workers),
        rows_per_range: arguments.rows_per_piece,
        spill_folder: arguments.spill_folder.clone().unwrap_or_else(std::env::temp_dir),
        limits: BatchLimits::default(),
        retry: retry.to_vec(),
        rebuild: arguments.rebuild.then_some(if arguments.empty { Rebuild::Empty } else { Rebuild::Compare }),
        take_over: arguments.take_over,
        hooks: crate::failpoint::hooks::Hooks::default(),
    });
    let rounds = Arc::new(Semaphore::new(ROUNDS));
    let config = |mapping: SliceMapping| {
        let service = opened.services.get(&mapping.service)?;
        let policy = &opened.plan.slices.get(&mapping.slice)?.policy;
        let subject = Subject::new(&opened.plan.name, &mapping, policy.hash(), Environment.author());
        let monolith = Some(opened.monolith.apply.clone());
        let recorder = Recorder::new(subject, &mapping.service, service.apply.clone(), monolith);
        Some(SliceConfig {
            plan: opened.plan.name.clone(),
            wal: WalLimits { budget_bytes: policy.wal_budget_bytes, at_limit: policy.at_wal_limit },
            direction: Direction::Forward,
            mapping: Arc::new(mapping),
            read: opened.monolith.read.clone(),
            apply: service.apply.clone(),
            admin: service.admin.clone(),
            back: Some(BackLinks {
                read: service.read.clone(),
                apply: opened.monolith.apply.clone(),
                admin: opened.monolith.admin.clone(),
            }),
            options: Arc::clone(&options),
            rounds: Arc::clone(&rounds),
            board: board.clone(),
            recorder,
        })
    };
    opened.slices.iter().filter_map(|slice| config(mappings.remove(slice)?)).collect()
}

fn this_process() -> ProcessName {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    ProcessName::new(host, std::process::id())
}
