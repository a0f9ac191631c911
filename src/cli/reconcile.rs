//! `strangler reconcile`.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::interrupt::Interrupts;
use super::open::{self, Needs, Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::ui::{Paint, Ui};
use crate::clock::{Clock, SystemClock};
use crate::lsn::Lsn;
use crate::mapping::{Mappings, SliceMapping};
use crate::name::TableName;
use crate::reconcile::report::{html, json, junit, markdown, text};
use crate::reconcile::run::{Look, Options, SliceJob};
use crate::reconcile::schedule::{self, Schedule};
use crate::reconcile::verdict::Verdict;
use crate::status::judge::shell_word;
use pass::Pass;

mod display;
mod pass;
mod retired;
mod scheduled;

/// A run is gone on with for this long after it began: a verdict is as old as the first rows that were compared.
const RESUME_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// The smallest share of the rows, in per cent: a sample counts in parts of 65,536.
const SHARE_MIN: f64 = 0.002;

/// Prove that both sides of every slice are equal, while the application writes
///
/// Rows are hashed where they lie, on the side that has the authority and on the copy, and what differs is narrowed down
/// to single rows. A difference is reported only when it is proven, most of them under a lock of that row for some
/// milliseconds. The mirror must be running. The verdict is recorded in the ledger of the service's database, and status
/// shows what it still proves.
///
/// Ctrl-C stops; the same command, without --fresh, goes on with the run for a day, and so it does after a kill. What was
/// compared to its end by then is not compared again; a table that goes by buckets is one such part.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("schedule").args(["every", "cron"]))]
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
    /// Compare a random share of the rows, such as 5%: quick, and no proof for the others
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
    /// Write the report to this file instead of stdout, whatever the outcome; with a schedule it always holds the latest
    /// verdict of each slice
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Have the running mirror replace the rows that were found by those of the authority, and look at them again
    #[arg(long, conflicts_with = "schedule")]
    repair: bool,
    /// With --repair: only say what would be repaired
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// With --repair: delete rows of the copy though the authority holds no row of their table; the reason goes into the ledger
    #[arg(long, value_name = "REASON", requires = "repair", value_parser = super::reason::reason)]
    accept_no_rows: Option<String>,
    /// With --repair: also delete rows of a service that had the authority before and that its filter forbids. Its application
    /// may have written them, and nothing else has them
    #[arg(long, requires = "repair")]
    delete_misplaced: bool,
    /// Compare again and again, with this period, such as 15m; until Ctrl-C
    #[arg(long, value_name = "PERIOD", help_heading = "Schedule")]
    every: Option<String>,
    /// Compare at the times of a cron expression of five fields, in UTC or at the offset behind them, such as "30 3 * *
    /// 1-5 +02:00"; until Ctrl-C
    #[arg(long, value_name = "EXPRESSION", help_heading = "Schedule")]
    cron: Option<String>,
    /// The most by which a run begins later than its time, so that not all begin at once [default: a tenth of the
    /// period, at most 60s]
    #[arg(long, value_name = "PERIOD", help_heading = "Schedule", requires = "schedule")]
    jitter: Option<String>,
    /// Serve metrics for Prometheus at this address, such as 127.0.0.1:9187, under /metrics
    #[arg(long, value_name = "ADDRESS", help_heading = "Schedule", requires = "schedule")]
    metrics_listen: Option<std::net::SocketAddr>,
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

impl Arguments {
    /// When to compare again, if at all.
    fn schedule(&self) -> Result<Option<Schedule>, CliError> {
        let jitter = self.jitter.as_deref().map(schedule::period).transpose()?;
        let (seed, now_us) = (fastrand::u64(..), SystemClock.now_us());
        Ok(match (&self.every, &self.cron) {
            (Some(period), _) => Some(Schedule::every(period, jitter, seed, now_us)?),
            (None, Some(expression)) => Some(Schedule::cron(expression, jitter, seed, now_us)?),
            (None, None) => None,
        })
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if (SHARE_MIN..100.0).contains(&percent) => Ok(percent),
        Ok(_) | Err(_) => Err(format!("a share is {SHARE_MIN}% at least and below 100%, such as 5%")),
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
    let opened = open::open(ui, &arguments.plan, &arguments.slices.slices, Needs::Rows)?.answering();
    let schedule = arguments.schedule()?;
    arguments.output.as_deref().map_or(Ok(()), can_write)?;
    let opened = opened.reachable(ui, &arguments.slices.slices, Needs::Rows).await?;
    let mut interrupts = Interrupts::listen().map_err(CliError::Start)?;
    let stop = CancellationToken::new();
    if let Some(schedule) = schedule {
        return Box::pin(scheduled::run(ui, arguments, &opened, schedule, &mut interrupts, &stop)).await;
    }
    let mappings = opened.mappings(ui).await?;
    let retired = if arguments.tables.is_empty() && arguments.slices.slices.is_empty() {
        Box::pin(retired::verdicts(&opened, &mappings, arguments.list)).await
    } else {
        Vec::new()
    };
    if opened.slices.is_empty() && retired.is_empty() {
        return Ok(Exit::Clean);
    }
    let options = options(arguments, asked(arguments, &opened, &mappings)?);
    let jobs = jobs(&opened, mappings, &options);
    let pass = Pass { arguments, options: &options, plan: shell_word(&opened.path), retired };
    let ended = pass.compare(ui, &jobs, &mut interrupts, &stop).await;
    opened.heard(pass.finish(ui, &jobs, ended, &mut interrupts, &stop).await)
}

/// Makes sure that a report can be written to a file before hours of work go into it. What is there stays as it is.
fn can_write(file: &Path) -> Result<(), CliError> {
    let failed = |source| CliError::File { path: file.display().to_string(), source };
    match std::fs::metadata(file) {
        // Opening anything else, such as a pipe, may wait for a reader.
        Ok(there) if !there.is_file() && !there.is_dir() => Ok(()),
        Ok(_) => OpenOptions::new().append(true).open(file).map(drop).map_err(failed),
        Err(_) => {
            OpenOptions::new().write(true).create_new(true).open(file).map_err(failed)?;
            std::fs::remove_file(file).map_err(failed)
        }
    }
}

/// The tables that were asked for, which must be in the plan's slices.
fn asked(arguments: &Arguments, opened: &Opened, mappings: &Mappings) -> Result<Vec<TableName>, CliError> {
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
    Ok(tables)
}

fn options(arguments: &Arguments, tables: Vec<TableName>) -> Options {
    let look = match (arguments.sample, arguments.changed_since) {
        (Some(percent), _) => Look::Sample(percent),
        (None, Some(Since::Last)) => Look::ChangedSince(None),
        (None, Some(Since::Position(lsn))) => Look::ChangedSince(Some(lsn)),
        (None, None) => Look::Full,
    };
    Options {
        tables,
        lost: Vec::new(),
        strict: arguments.strict,
        look,
        parallel: usize::from(arguments.parallel),
        max_load: arguments.max_load,
        list: arguments.list,
        resume_within: if arguments.fresh { Duration::ZERO } else { RESUME_WITHIN },
        author: super::environment::Environment.author(),
    }
}

/// The slices that have a table to be compared.
fn jobs(opened: &Opened, mappings: Mappings, options: &Options) -> Vec<SliceJob> {
    let mut jobs = Vec::new();
    let neighbour =
        |mapping: &SliceMapping| Some((mapping.clone(), opened.ways_of(&mapping.service)?.apply.clone()));
    let neighbours = Arc::new(mappings.values().filter_map(neighbour).collect::<Vec<_>>());
    for (slice, mapping) in mappings {
        let Some(ways) = opened.services.get(&mapping.service) else { continue };
        let mut tables = mapping.tables.iter();
        let wanted = !options.lost.is_empty() || tables.any(|table| options.wants(&table.source));
        if opened.slices.contains(&slice) && wanted {
            let policy = opened.plan.slices.get(&slice).map_or(&opened.plan.policy, |slice| &slice.policy);
            jobs.push(SliceJob {
                plan: opened.plan.name.clone(),
                policy_hash: policy.hash(),
                mapping: Arc::new(mapping),
                monolith_read: opened.monolith.read.clone(),
                monolith_apply: opened.monolith.apply.clone(),
                service_apply: ways.apply.clone(),
                neighbours: Arc::clone(&neighbours),
            });
        }
    }
    jobs
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_takes_no_part_of_the_rows_is_refused() {
        for text in ["0", "-1", "1e-300%", "0.001%", "100%", "NaN", "inf", "five"] {
            assert!(percent(text).is_err(), "{text}");
        }
        assert_eq!(["0.002%", "5%", "99.9"].map(|text| percent(text).unwrap()), [0.002, 5.0, 99.9]);
    }
}
