//! `strangler reconcile`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::interrupt::Interrupts;
use super::open::{self, Needs, Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::ui::{Paint, Ui};
use crate::journal::ledger::Author;
use crate::lsn::Lsn;
use crate::mapping::Mappings;
use crate::name::TableName;
use crate::reconcile::progress::Board;
use crate::reconcile::report::{html, json, junit, markdown, text};
use crate::reconcile::run::{self, Done, Look, Options, RunError, SliceJob};
use crate::reconcile::verdict::{Outcome, Verdict};
use crate::status::judge::shell_word;
use display::Display;

mod display;

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(250);
/// A run is gone on with for this long after it began: a verdict is as old as the first rows that were compared.
const RESUME_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Prove that both sides of every slice are equal, while the application writes
///
/// Rows are hashed where they lie, on the side that holds the authority and on its copy, and what differs is narrowed
/// down to single rows. A difference is reported only when it is proven under a lock of that row, of a few milliseconds.
/// A mirror must be running. What was found is recorded in the ledger of the service's database.
///
/// Ctrl-C stops; the same command goes on with the run, and so it does after a kill.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 clean, 1 differences, 2 usage or plan error, 3 refused, \
4 a database could not be reached, 5 incomplete: something was not compared, 130 interrupted")]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Only this table, by the monolith's name; may be given several times [default: all]
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Compare representations too (1.0 and 1.00 differ), under 128 bits of hash
    #[arg(long)]
    strict: bool,
    /// Compare a random share of the rows, such as 5%
    #[arg(long, value_name = "PERCENT", value_parser = percent, conflicts_with = "changed_since")]
    sample: Option<f64>,
    /// Compare the rows that were written since the last clean full verdict (`last`), or since a WAL position
    #[arg(long, value_name = "SINCE", value_parser = since)]
    changed_since: Option<Since>,
    /// Begin anew instead of going on with a run that was cut off
    #[arg(long)]
    fresh: bool,
    /// Findings that are listed; all are counted
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    list: usize,
    /// How the report looks
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Form,
    /// Write the report to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Chunks that are compared at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel: u8,
    /// Wait while the authority's server has more transactions open than this
    #[arg(long, value_name = "NUMBER")]
    max_load: Option<u32>,
}

/// How a report looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Form {
    /// For a human
    #[default]
    Text,
    /// For a program; the fields are documented in docs/json-output.md
    Json,
    /// For a CI system that shows test reports: a test case for each table
    Junit,
    /// One file for a browser
    Html,
    /// For a comment on a pull request
    Markdown,
}

/// From where on rows are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Last,
    Position(Lsn),
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent < 100.0 => Ok(percent),
        Ok(_) | Err(_) => Err("a share is above 0% and below 100%, such as 5%".to_owned()),
    }
}

fn since(text: &str) -> Result<Since, String> {
    if text == "last" {
        return Ok(Since::Last);
    }
    text.parse()
        .map(Since::Position)
        .map_err(|_| "write `last`, or a position such as 16/B374D848".to_owned())
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = open::open(ui, &arguments.plan, &arguments.slices.slices, Needs::All)?;
    let mappings = opened.mappings(ui).await?;
    let options = options(arguments, &opened, &mappings)?;
    let jobs = jobs(&opened, mappings, &options);
    let mut interrupts = Interrupts::listen().map_err(CliError::Start)?;
    let stop = CancellationToken::new();
    let ended = every_slice(ui, &jobs, &options, &mut interrupts, &stop).await;
    report(ui, arguments, &opened, ended)
}

/// The tables that were asked for, which must be in the plan.
fn options(arguments: &Arguments, opened: &Opened, mappings: &Mappings) -> Result<Options, CliError> {
    let known: Vec<&TableName> = opened
        .slices
        .iter()
        .filter_map(|slice| mappings.get(slice))
        .flat_map(|slice| slice.tables.iter().map(|table| &table.source))
        .collect();
    let mut tables = Vec::new();
    let mut unknown = Vec::new();
    for typed in &arguments.tables {
        match TableName::parse(typed, "public") {
            Ok(name) if known.contains(&&name) => tables.push(name),
            Ok(_) | Err(_) => unknown.push(typed.clone()),
        }
    }
    if !unknown.is_empty() {
        let known = known.iter().map(ToString::to_string).collect();
        return Err(CliError::Unknown { what: "table", option: "--table", names: unknown, known });
    }
    let look = match (arguments.sample, arguments.changed_since) {
        (Some(percent), _) => Look::Sample(percent),
        (None, Some(Since::Last)) => Look::ChangedSince(None),
        (None, Some(Since::Position(lsn))) => Look::ChangedSince(Some(lsn)),
        (None, None) => Look::Full,
    };
    Ok(Options {
        tables,
        strict: arguments.strict,
        look,
        parallel: usize::from(arguments.parallel),
        max_load: arguments.max_load,
        list: arguments.list,
        resume_within: if arguments.fresh { Duration::ZERO } else { RESUME_WITHIN },
        author: author(),
    })
}

/// Who runs this, for the ledger.
fn author() -> Author {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Author { operator: super::environment::Environment.operator(), host }
}

/// The slices that have a table to be compared.
fn jobs(opened: &Opened, mappings: Mappings, options: &Options) -> Vec<SliceJob> {
    let mut jobs = Vec::new();
    for (slice, mapping) in mappings {
        let Some(ways) = opened.services.get(&mapping.service) else { continue };
        let wanted = mapping.tables.iter().any(|table| options.wants(&table.source));
        if opened.slices.contains(&slice) && wanted {
            jobs.push(SliceJob {
                plan: opened.plan.name.clone(),
                mapping: Arc::new(mapping),
                monolith_read: opened.monolith.read.clone(),
                monolith_apply: opened.monolith.apply.clone(),
                service_apply: ways.apply.clone(),
            });
        }
    }
    jobs
}

/// How each slice ended, in the plan's order; those after an interruption are not there.
type Ended = Vec<(String, Result<Done, RunError>)>;

/// Compares the slices one after the other.
async fn every_slice(
    ui: &mut Ui,
    jobs: &[SliceJob],
    options: &Options,
    interrupts: &mut Interrupts,
    stop: &CancellationToken,
) -> Ended {
    let names: Vec<String> = jobs.iter().map(|job| job.mapping.slice.clone()).collect();
    let (board, progress) = Board::new(&names);
    let mut display = Display::new();
    let mut ended = Vec::new();
    for job in jobs {
        let mut running = Box::pin(run::run(job, options, &board, stop));
        let mut ticks = tokio::time::interval(SHOW_EVERY);
        let outcome = loop {
            tokio::select! {
                outcome = &mut running => break outcome,
                () = interrupts.next() => stop.cancel(),
                _ = ticks.tick() => display.show(ui, &progress.borrow()),
            }
        };
        let stopped = matches!(outcome, Err(RunError::Stopped { .. }));
        ended.push((job.mapping.slice.clone(), outcome));
        if stopped {
            break;
        }
    }
    display.finish();
    ended
}

fn report(ui: &mut Ui, arguments: &Arguments, opened: &Opened, ended: Ended) -> Result<Exit, CliError> {
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut failed = Vec::new();
    for (slice, outcome) in ended {
        match outcome {
            Ok(done) => verdicts.push(done.verdict),
            Err(error) => failed.push((slice, error)),
        }
    }
    if !verdicts.is_empty() {
        let paint = if arguments.output.is_some() { Paint::Plain } else { ui.data_paint() };
        let page = page(arguments.format, &verdicts, paint);
        match &arguments.output {
            Some(file) => std::fs::write(file, page)?,
            None => ui.data(&page)?,
        }
    }
    let outcome = Outcome::of(verdicts.iter().map(|verdict| verdict.outcome));
    let exit = match outcome {
        Outcome::Clean => Exit::Clean,
        Outcome::Differs => Exit::Problems,
        Outcome::Incomplete => Exit::Incomplete,
    };
    if failed.is_empty() {
        return Ok(exit);
    }
    Err(CliError::Reconcile { plan: shell_word(&opened.path), ends: failed })
}

fn page(form: Form, verdicts: &[Verdict], paint: Paint) -> String {
    match form {
        Form::Text => text::page(verdicts, paint),
        Form::Json => json::page(verdicts),
        Form::Junit => junit::page(verdicts),
        Form::Html => html::page(verdicts),
        Form::Markdown => markdown::page(verdicts),
    }
}
