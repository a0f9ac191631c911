//! One comparison of every slice: progress, report, repair, exit code.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::display::Display;
use super::{Arguments, page};
use crate::cdc::mirror::chain_of;
use crate::cli::interrupt::Interrupts;
use crate::cli::report::{CliError, Exit};
use crate::cli::ui::{Paint, Ui};
use crate::reconcile::progress::Board;
use crate::reconcile::repair::{self, Repaired};
use crate::reconcile::run::{self, Done, Options, RunError, SliceJob};
use crate::reconcile::verdict::{Outcome, Verdict};
use crate::words;

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(250);

/// How each slice ended, in the plan's order; those after an interruption are not there.
pub(super) type Ended = Vec<(String, Result<Done, RunError>)>;

/// What a pass is made with.
pub(super) struct Pass<'a> {
    pub(super) arguments: &'a Arguments,
    pub(super) options: &'a Options,
    /// The plan file, as it must be typed.
    pub(super) plan: String,
}

impl Pass<'_> {
    /// Compares the slices one after the other.
    pub(super) async fn compare(
        &self,
        ui: &mut Ui,
        jobs: &[SliceJob],
        interrupts: &mut Interrupts,
        stop: &CancellationToken,
    ) -> Ended {
        let names: Vec<String> = jobs.iter().map(|job| job.mapping.slice.clone()).collect();
        let (board, progress) = Board::new(&names);
        let mut display = Display::new();
        let mut ended = Vec::new();
        for job in jobs {
            let mut running = Box::pin(run::run(job, self.options, &board, stop));
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

    /// Shows the report, has differences repaired when that is asked for, and says how it all ended.
    pub(super) async fn finish(
        &self,
        ui: &mut Ui,
        jobs: &[SliceJob],
        ended: Ended,
        (interrupts, stop): (&mut Interrupts, &CancellationToken),
    ) -> Result<Exit, CliError> {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for (slice, outcome) in ended {
            match outcome {
                Ok(one) => done.push(one),
                Err(error) => failed.push((slice, error)),
            }
        }
        let verdicts: Vec<Verdict> = done.iter().map(|one| one.verdict.clone()).collect();
        self.write(ui, &verdicts)?;
        let mut exit = exit(&verdicts);
        if self.arguments.repair && exit == Exit::Problems {
            let mut repairing = Box::pin(self.repair(ui, jobs, &done, stop));
            let repaired = loop {
                tokio::select! {
                    repaired = &mut repairing => break repaired?,
                    () = interrupts.next() => stop.cancel(),
                }
            };
            drop(repairing);
            let whole = verdicts.iter().all(|verdict| verdict.outcome != Outcome::Incomplete);
            if repaired && whole && verdicts.iter().all(|verdict| is_compared(verdict)) {
                exit = Exit::Clean;
            }
        }
        if failed.is_empty() {
            return Ok(exit);
        }
        Err(CliError::Reconcile { plan: self.plan.clone(), ends: failed })
    }

    /// Writes the report to where it was asked for.
    pub(super) fn write(&self, ui: &mut Ui, verdicts: &[Verdict]) -> Result<(), CliError> {
        if verdicts.is_empty() {
            return Ok(());
        }
        let paint = if self.arguments.output.is_some() { Paint::Plain } else { ui.data_paint() };
        let page = page(self.arguments.format, verdicts, paint);
        match &self.arguments.output {
            Some(file) => std::fs::write(file, page)
                .map_err(|source| CliError::File { path: file.display().to_string(), source }),
            None => Ok(ui.data(&page)?),
        }
    }

    /// Whether everything that was found is right now.
    async fn repair(
        &self,
        ui: &mut Ui,
        jobs: &[SliceJob],
        done: &[Done],
        stop: &CancellationToken,
    ) -> Result<bool, CliError> {
        let mut whole = true;
        for one in done.iter().filter(|one| one.verdict.outcome == Outcome::Differs) {
            let Some(job) = jobs.iter().find(|job| job.mapping.slice == one.verdict.slice) else { continue };
            if self.arguments.dry_run {
                preview(ui, job, one);
                whole = false;
                continue;
            }
            let repaired = Box::pin(repair::run(job, one, &self.options.author, stop)).await;
            let repaired = repaired
                .map_err(|source| CliError::Repair { plan: self.plan.clone(), source: Box::new(source) })?;
            for table in &repaired {
                ui.words(&line(table));
                whole &= table.is_complete();
            }
        }
        if whole && !self.arguments.dry_run {
            ui.words(&format!(
                "repaired and looked at again. A verdict on everything takes another run: strangler reconcile {}",
                self.plan
            ));
        }
        Ok(whole)
    }
}

/// Every table of a verdict was compared to its end, whatever was found.
fn is_compared(verdict: &Verdict) -> bool {
    verdict.reasons.is_empty() && verdict.tables.iter().all(|table| table.reasons.is_empty())
}

/// What the verdicts mean to the shell.
pub(super) fn exit(verdicts: &[Verdict]) -> Exit {
    match Outcome::of(verdicts.iter().map(|verdict| verdict.outcome)) {
        Outcome::Clean => Exit::Clean,
        Outcome::Differs => Exit::Problems,
        Outcome::Incomplete => Exit::Incomplete,
    }
}

/// What a repair would ask the mirror for.
fn preview(ui: &mut Ui, job: &SliceJob, done: &Done) {
    for wanted in repair::wanted(job, done) {
        let asked = wanted.rows.len();
        ui.words(&format!(
            "would repair {} of {} in {}: the mirror deletes {} from {} by key and inserts what the {} has",
            words::plural(asked, "row"),
            wanted.mapping.source,
            done.verdict.service,
            if asked == 1 { "it" } else { "them" },
            wanted.mapping.target,
            done.verdict.authority,
        ));
        if wanted.left_out > 0 {
            ui.words(&format!("  {} can't be repaired by copying a row", findings(wanted.left_out)));
        }
    }
}

fn findings(count: u64) -> String {
    words::plural(usize::try_from(count).unwrap_or(usize::MAX), "finding")
}

/// What became of one table's repairs.
fn line(repaired: &Repaired) -> String {
    let mut parts =
        vec![format!("{} of {} rows repaired", words::count(repaired.done), words::count(repaired.asked))];
    parts.extend(repaired.refused.iter().map(|(why, count)| format!("{count} refused: {why}")));
    parts.extend(repaired.still.iter().map(|(kind, count)| format!("{count} still {kind}")));
    if repaired.left_out > 0 {
        parts.push(format!("{} left, which no copied row can help", findings(repaired.left_out)));
    }
    format!("{}: {}: {}", repaired.slice, repaired.table, parts.join(", "))
}

/// The cause of a failed run in one line, for a log.
pub(super) fn cause(error: &RunError) -> String {
    chain_of(error)
}
