//! `strangler status`.

use std::time::Duration;

use serde::Serialize;

use super::interrupt::{self, Interrupts};
use super::open::{self, Needs, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::ui::{Format, Ui};
use crate::clock::{Clock, SystemClock};
use crate::status::gather::Reader;
use crate::status::judge::Commands;
use crate::status::orphans::Orphan;
use crate::status::{SliceStatus, judge};

mod text;
mod verdict;

/// Time between readings. A second is long enough for a rate and short enough to watch.
const EVERY: Duration = Duration::from_secs(1);

/// What an interruption leaves behind.
const UNTOUCHED: &str = "status changes nothing";

/// Say where every slice stands and what to do next
///
/// Reads both sides through the admin links and changes nothing. Shown for each slice: phase, which side may write,
/// epoch, lag in bytes and seconds, rows copied, WAL held by the monolith and how long its limits will hold, tables
/// that are not live and why, indexes and constraints that wait for the data, the last verdict of the ledger with its
/// age and whether it still proves that both sides are equal, and the next command to type.
///
/// Differences that were found are an alarm until a full comparison says otherwise. A verdict that is old, void or
/// missing is none: it is said, with the next command.
///
/// Slices that were provisioned from the plan and that it does not name any longer are shown as well, unless --slice says
/// which ones are asked for.
///
/// A database that can't be reached is said at its slices; the others are still shown.
///
/// Exit code 0: nothing needs a human. 1: something does. 4: a database could not be reached.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Go on until interrupted: each second on a terminal, a line per change otherwise
    #[arg(long)]
    watch: bool,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The document of `--format json` (docs/json-output.md).
#[derive(Debug, Serialize)]
struct Document<'a> {
    plan: &'a str,
    slices: &'a [SliceStatus],
    /// Slices that the databases have and the plan lacks.
    orphans: &'a [Orphan],
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = open::open(ui, &arguments.plan, &arguments.slices.slices, Needs::Admin)?;
    let commands = opened.commands();
    let services = opened.services.iter().map(|(name, ways)| (name.clone(), ways.admin.clone())).collect();
    let mut reader = Reader::new(&opened.plan, &opened.slices, opened.monolith.admin.clone(), services);
    if arguments.watch {
        return watch(ui, &opened.plan.name, &mut reader, &commands, arguments.format).await;
    }
    let slices = interrupt::unless(UNTOUCHED, async {
        let slices = read(&mut reader, &commands).await;
        if !reader.would_learn_rates() {
            return Ok(slices);
        }
        tokio::time::sleep(EVERY).await;
        Ok(read(&mut reader, &commands).await)
    });
    let slices = Box::pin(slices).await?;
    let orphans = reader.orphans(&commands);
    match arguments.format {
        Format::Text => ui.data(&pages(&slices, &orphans, ui))?,
        Format::Json => {
            let document = Document { plan: &opened.plan.name, slices: &slices, orphans: &orphans };
            ui.json(&document, false)?;
        }
    }
    Ok(exit(&slices, &orphans))
}

async fn read(reader: &mut Reader, commands: &Commands) -> Vec<SliceStatus> {
    reader.read().await.iter().map(|facts| judge(facts, commands)).collect()
}

async fn watch(
    ui: &mut Ui,
    plan: &str,
    reader: &mut Reader,
    commands: &Commands,
    format: Format,
) -> Result<Exit, CliError> {
    let mut interrupts = Interrupts::listen().map_err(CliError::Start)?;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said: Vec<String> = Vec::new();
    loop {
        let slices = tokio::select! {
            () = interrupts.next() => {
                return Err(CliError::Interrupted { state: UNTOUCHED.to_owned() });
            }
            slices = async { ticks.tick().await; read(reader, commands).await } => slices,
        };
        let orphans = reader.orphans(commands);
        match format {
            Format::Json => ui.json(&Document { plan, slices: &slices, orphans: &orphans }, true)?,
            // Home, then clear to the end: the page changes in place and does not flicker.
            Format::Text if ui.data_on_terminal() => {
                ui.data(&format!("\x1b[H\x1b[J{}", pages(&slices, &orphans, ui)))?
            }
            Format::Text => {
                let headlines = slices.iter().map(text::headline).chain(orphans.iter().map(text::orphan));
                let headlines: Vec<String> = headlines.collect();
                let news = headlines.iter().filter(|headline| !said.contains(headline));
                let lines: String = news.map(|headline| format!("{} {headline}\n", now())).collect();
                if !lines.is_empty() {
                    ui.data(&lines)?;
                }
                said = headlines;
            }
        }
    }
}

fn pages(slices: &[SliceStatus], orphans: &[Orphan], ui: &Ui) -> String {
    let paint = ui.data_paint();
    let pages = slices.iter().map(|slice| text::page(slice, paint));
    pages.chain(orphans.iter().map(|orphan| text::orphan_page(orphan, paint))).collect::<Vec<_>>().join("\n")
}

/// The time as RFC 3339 writes it, to the second.
fn now() -> String {
    jiff::Timestamp::from_microsecond(SystemClock.now_us())
        .map(|now| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

fn exit(slices: &[SliceStatus], orphans: &[Orphan]) -> Exit {
    if slices.iter().any(|slice| !slice.unreachable.is_empty()) {
        Exit::Unreachable
    } else if !orphans.is_empty() || slices.iter().any(|slice| !slice.alarms.is_empty()) {
        Exit::Problems
    } else {
        Exit::Clean
    }
}
