//! One comparison of every slice: progress, report, repair, exit code.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::display::Display;
use super::{Arguments, Form, page};
use crate::cdc::mirror::chain_of;
use crate::cdc::refetch::COPY_AGAIN;
use crate::cli::interrupt::Interrupts;
use crate::cli::report::{CliError, Exit};
use crate::cli::ui::{Paint, Ui};
use crate::dualwrite::gate::FIRST_EPOCH;
use crate::journal::verdicts::DifferedBefore;
use crate::reconcile::finding::FindingKind;
use crate::reconcile::form::Side;
use crate::reconcile::progress::Board;
use crate::reconcile::repair::emptied::{self, Accepted, Emptied};
use crate::reconcile::repair::{self, RepairError};
use crate::reconcile::report::{json, repairs, text};
use crate::reconcile::run::{self, Done, Options, RunError, SliceJob};
use crate::reconcile::sides::Sides;
use crate::reconcile::verdict::{Outcome, Verdict};
use crate::status::judge::shell_word;
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
    /// What is known of slices that are retired: the rest of the report.
    pub(super) retired: Vec<Verdict>,
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
        interrupts: &mut Interrupts,
        stop: &CancellationToken,
    ) -> Result<Exit, CliError> {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for (slice, outcome) in ended {
            match outcome {
                Ok(one) => done.push(one),
                Err(error) => failed.push((slice, error)),
            }
        }
        let mut verdicts: Vec<Verdict> = done.iter().map(|one| one.verdict.clone()).collect();
        verdicts.extend(self.retired.iter().cloned());
        let mut exit = exit(&verdicts);
        for one in &done {
            if let Some(before) = &one.before {
                ui.words(&differed_before(&self.plan, one, before));
            }
        }
        let repairs = self.arguments.repair && !self.arguments.dry_run && exit == Exit::Problems;
        // A document is one, and says what became of the repair too. What people read comes before it, and a file may as well.
        let early = self.arguments.output.is_some() || matches!(self.arguments.format, Form::Text);
        if early || !repairs {
            self.write(ui, &verdicts)?;
        }
        if self.arguments.repair && exit == Exit::Problems {
            for one in done.iter_mut().filter(|_| !self.arguments.delete_misplaced) {
                for words in spare(one) {
                    ui.words(&words);
                }
            }
            let repaired = self.repair(ui, (jobs, &done), &mut verdicts, interrupts, stop).await;
            if repairs && early && self.arguments.output.is_none() {
                ui.data(&text::refused(&verdicts, ui.data_paint()))?;
            } else if repairs {
                self.write(ui, &verdicts)?;
            }
            let repaired = repaired?;
            let whole = verdicts.iter().all(|verdict| verdict.outcome != Outcome::Incomplete);
            if repaired && whole && verdicts.iter().all(is_compared) {
                // No repair helps what has one side only.
                exit = self::exit(&self.retired);
            }
        }
        // Without a mirror nobody can repair anything.
        if self.arguments.repair && verdicts.iter().any(Verdict::lacks_mirror) {
            exit = Exit::Refused;
        }
        if let Some(advice) = advice(&self.plan, &verdicts, self.arguments.repair, &self.kept_options()) {
            ui.words(&format!("next: {advice}"));
        }
        if failed.is_empty() {
            return Ok(exit);
        }
        Err(CliError::Reconcile { plan: self.plan.clone(), ends: failed })
    }

    /// Options without which the same command would look at something else.
    fn kept_options(&self) -> String {
        let strict = if self.arguments.strict { " --strict" } else { "" };
        let tables = self.arguments.tables.iter().map(|table| format!(" --table {}", shell_word(table)));
        strict.to_owned() + &tables.collect::<String>()
    }

    /// Tells one verdict among many: by itself on stdout, or in a file that holds the latest one of each slice.
    pub(super) fn tell(
        &self,
        ui: &mut Ui,
        verdict: Verdict,
        latest: &mut BTreeMap<String, Verdict>,
    ) -> Result<(), CliError> {
        if self.arguments.output.is_none() {
            let verdicts = [verdict];
            return match self.arguments.format {
                Form::Json => Ok(ui.data(&json::line(&verdicts))?),
                Form::Text | Form::Junit | Form::Html | Form::Markdown => self.write(ui, &verdicts),
            };
        }
        latest.insert(verdict.slice.clone(), verdict);
        self.write(ui, &latest.values().cloned().collect::<Vec<_>>())
    }

    /// Writes the report to where it was asked for.
    fn write(&self, ui: &mut Ui, verdicts: &[Verdict]) -> Result<(), CliError> {
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
        (jobs, done): (&[SliceJob], &[Done]),
        verdicts: &mut [Verdict],
        interrupts: &mut Interrupts,
        stop: &CancellationToken,
    ) -> Result<bool, CliError> {
        let emptied = self.emptied(ui, (jobs, done)).await?;
        let reason = self.arguments.accept_no_rows.as_deref();
        let accepted = reason.map(|reason| Accepted { reason, tables: &emptied });
        let by = (&self.options.author, accepted);
        let mut whole = true;
        for (one, verdict) in done.iter().zip(verdicts) {
            if one.verdict.outcome != Outcome::Differs {
                continue;
            }
            let Some(job) = jobs.iter().find(|job| job.mapping.slice == one.verdict.slice) else { continue };
            if self.arguments.dry_run {
                preview(ui, job, one);
                whole = false;
                continue;
            }
            let mut running = Box::pin(repair::run(job, one, by, stop, &mut verdict.repairs));
            let repaired = loop {
                tokio::select! {
                    repaired = &mut running => break repaired,
                    () = interrupts.next() => stop.cancel(),
                }
            };
            drop(running);
            for table in verdict.repairs.iter_mut().filter(|table| table.refused.contains_key(COPY_AGAIN)) {
                let (slice, name) = (shell_word(&table.slice), shell_word(&table.table));
                let command = format!("strangler mirror {} --slice {slice} --retry {name}", self.plan);
                table.copy_again = Some(command);
            }
            repaired.map_err(|source| self.unrepaired(source))?;
            for table in &verdict.repairs {
                ui.words(&format!("{}: {}", table.slice, repairs::line(table)));
                for (column, there) in &table.generated {
                    ui.words(&not_written(column, *there, one.sides.copy()));
                }
                whole &= table.is_complete();
            }
        }
        if whole && !self.arguments.dry_run {
            let slices: String =
                done.iter().map(|one| format!(" --slice {}", shell_word(&one.verdict.slice))).collect();
            ui.words(&format!(
                "repaired and looked at again. A verdict on everything takes another run: strangler reconcile {}{slices}{}",
                self.plan,
                if self.arguments.strict { " --strict" } else { "" }
            ));
        }
        Ok(whole)
    }

    /// Tables of which the authority holds no row: said before anything else that a repair would do, and refused where nobody has said
    /// that it is right.
    async fn emptied(
        &self,
        ui: &mut Ui,
        (jobs, done): (&[SliceJob], &[Done]),
    ) -> Result<Vec<Emptied>, CliError> {
        let mut found = Vec::new();
        for one in done.iter().filter(|one| one.verdict.outcome == Outcome::Differs) {
            let Some(job) = jobs.iter().find(|job| job.mapping.slice == one.verdict.slice) else { continue };
            found.extend(emptied::emptied(job, one).await.map_err(|source| self.unrepaired(source))?);
        }
        if found.is_empty() || self.arguments.accept_no_rows.is_some() {
            return Ok(found);
        }
        if !self.arguments.dry_run {
            return Err(self.unrepaired(RepairError::NoRows(found)));
        }
        for one in &found {
            ui.words(&format!("{one}; it is refused without --accept-no-rows REASON"));
        }
        Ok(found)
    }

    fn unrepaired(&self, source: RepairError) -> CliError {
        CliError::Repair { plan: self.plan.clone(), source: Box::new(source) }
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

/// What to do about orphans.
const ORPHANS_ONLY: &str = "see docs/runbooks/differences-found.md, \"Orphans only\"";

/// The most useful command after these verdicts, about the slices that it is for; none after a clean one, nor where a
/// repair has said its own. `options` are those that were typed and matter.
fn advice(plan: &str, verdicts: &[Verdict], repairs: bool, options: &str) -> Option<String> {
    let (retired, verdicts): (Vec<&Verdict>, Vec<&Verdict>) =
        verdicts.iter().partition(|verdict| verdict.is_of_references());
    let about = |is_meant: fn(&Verdict) -> bool| -> String {
        let meant = verdicts.iter().filter(|verdict| is_meant(verdict));
        meant.map(|verdict| format!(" --slice {}", shell_word(&verdict.slice))).collect()
    };
    if verdicts.iter().any(|one| one.lacks_mirror()) {
        let slices = about(Verdict::lacks_mirror);
        let asks = verdicts.iter().find_map(|one| one.mirror_asks());
        let command = match asks {
            Some(asks) => asks.replace(" PLAN", &format!(" {plan}")),
            None if verdicts.iter().any(|one| one.lacks_one_way()) => {
                let status = format!("strangler status {plan}{slices} says why; end the mirror that runs");
                format!("{status}, then strangler mirror {plan}{slices}, which mirrors both ways")
            }
            None => format!("strangler mirror {plan}{slices}"),
        };
        return Some(format!("{command}; once it streams, the same command again"));
    }
    if verdicts.iter().any(|one| one.waits_for_mirror()) {
        let slices = about(Verdict::waits_for_mirror);
        return Some(format!(
            "strangler status {plan}{slices} says what the mirror waits for; strangler mirror {plan}{slices} --take-over \
             replaces one that is frozen; then the same command again"
        ));
    }
    match Outcome::of(verdicts.iter().map(|verdict| verdict.outcome)) {
        Outcome::Clean if retired.iter().any(|one| one.outcome == Outcome::Differs) => {
            Some(format!("{ORPHANS_ONLY}: references without a row, which no repair can help"))
        }
        Outcome::Clean if retired.iter().any(|one| one.outcome == Outcome::Incomplete) => {
            Some("once nothing of the reasons above is in the way, the same command again".to_owned())
        }
        Outcome::Clean => None,
        Outcome::Differs if repairs => None,
        Outcome::Differs
            if verdicts.iter().all(|one| one.outcome != Outcome::Differs || one.has_only_orphans()) =>
        {
            Some(format!("{ORPHANS_ONLY}: references without a row, which no repair can help"))
        }
        Outcome::Differs => {
            let slices = about(|verdict| verdict.outcome == Outcome::Differs);
            let repair = format!(
                "strangler reconcile {plan}{slices}{options} --repair --dry-run says what a repair would do"
            );
            let left = verdicts.iter().any(|one| !is_compared(one));
            let left = if left { "; what was not compared has its reason above" } else { "" };
            Some(repair + left)
        }
        Outcome::Incomplete => {
            let slices = about(|verdict| verdict.outcome == Outcome::Incomplete);
            Some(format!(
                "strangler status {plan}{slices}; once nothing is in the way, the same command again"
            ))
        }
    }
}

/// What to know before a repair, where the side that has the authority now was the one that was wrong.
fn differed_before(plan: &str, done: &Done, before: &DifferedBefore) -> String {
    let Verdict { slice, epoch, authority, .. } = &done.verdict;
    format!(
        "warning: slice {slice}: before its authority moved (epoch {epoch} now), the verdict of {} (ledger entry {}) found that \
         rows of {} differ, and the {authority} was the copy then. A repair makes the {} what the {authority} has, also where \
         that was the wrong row: look at these rows first; strangler ledger {plan} --slice {} shows it",
        before.at,
        before.entry,
        before.tables.join(", "),
        Sides::word(done.sides.copy()),
        shell_word(slice),
    )
}

/// Leaves rows of a service that had the authority before, and that its filter forbids, out of a repair: its application may have
/// written them, the repair deletes them, and no other place has them. Says so for each table.
fn spare(done: &mut Done) -> Vec<String> {
    if done.sides.authority != Side::Source || done.verdict.epoch <= FIRST_EPOCH {
        return Vec::new();
    }
    let mut spared: BTreeMap<String, usize> = BTreeMap::new();
    done.keys.retain(|(table, _, kind)| {
        let stays = *kind == FindingKind::Misplaced;
        if stays {
            *spared.entry(table.to_string()).or_default() += 1;
        }
        !stays
    });
    let words = |(table, count): (String, usize)| {
        format!(
            "slice {}: {} of {table} in the service outside the slice's filter, and the service has had the authority \
             before: its application may have written what a repair deletes, and nothing else has it. It is left alone. Once what is wanted of it is saved: --repair --delete-misplaced",
            done.verdict.slice,
            words::plural(count, "row"),
        )
    };
    spared.into_iter().map(words).collect()
}

/// What a repair would ask the mirror for.
fn preview(ui: &mut Ui, job: &SliceJob, done: &Done) {
    for wanted in repair::wanted(job, done) {
        let (asked, source) = (wanted.rows.len(), &wanted.mapping.source);
        let (rows, them) = (words::plural(asked, "row"), if asked == 1 { "it" } else { "them" });
        ui.words(&match done.sides.copy() {
            Side::Target => format!(
                "would repair {rows} of {source} in {}: the mirror sets {them} in {} as the monolith has {them}, and deletes what the \
                 monolith has not",
                done.verdict.service, wanted.mapping.target,
            ),
            Side::Source => format!(
                "would repair {rows} of {source} in the monolith: the mirror sets {them} there as the service has {them}, and \
                 deletes what the service has not",
            ),
        });
        for column in &wanted.generated {
            ui.words(&format!(
                "  {column} is generated, so the mirror does not write it: a repair helps only where the copy computes it \
                 as the {} does",
                done.verdict.authority
            ));
        }
        if let Some(left) = repairs::left(wanted.left_out, wanted.misplaced) {
            ui.words(&format!("  {left}"));
        }
    }
}

/// Why a generated column is still another one after a repair, and what to do.
fn not_written(column: &str, generated: bool, copy: Side) -> String {
    let copy = Sides::word(copy);
    let (fact, next) = if generated {
        (
            format!("the {copy} computes it by itself, so no repair can write it"),
            "make its expression and the functions in it the same on both sides and repair again",
        )
    } else {
        (format!("it is no generated column on the {copy}, so nothing fills it there"), "make it one there")
    };
    format!("  {column} still differs: {fact}. Next: {next}, or write `drop: true` for it in the plan")
}

/// The cause of a failed run in one line, for a log.
pub(super) fn cause(error: &RunError) -> String {
    chain_of(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn verdict(slice: &str, outcome: Outcome, reason: Option<&str>) -> Verdict {
        Verdict {
            run: String::new(),
            plan: "retail".to_owned(),
            slice: slice.to_owned(),
            service: "orders".to_owned(),
            outcome,
            strict: false,
            every_table: true,
            plan_hash: String::new(),
            epoch: 1,
            authority: "monolith",
            lsn: Lsn::ZERO,
            from_lsn: Lsn::ZERO,
            started_at: String::new(),
            finished_at: String::new(),
            tables: Vec::new(),
            listed: Vec::new(),
            reasons: reason.map(str::to_owned).into_iter().collect(),
            repairs: Vec::new(),
        }
    }

    #[test]
    fn every_verdict_but_a_clean_one_is_followed_by_what_to_type() {
        use crate::reconcile::verdict::{NO_MIRROR, OTHER_WAY, STANDS_STILL};
        let clean = verdict("carts", Outcome::Clean, None);
        let differs = verdict("my orders", Outcome::Differs, None);
        let incomplete = verdict("stock", Outcome::Incomplete, Some("the table is copying"));
        let stopped =
            verdict("stock", Outcome::Incomplete, Some(&format!("{NO_MIRROR}: the last one was stopped")));
        let of = |verdicts: &[&Verdict]| {
            advice("p.yaml", &verdicts.iter().copied().cloned().collect::<Vec<_>>(), false, " --strict")
        };
        assert_eq!(of(&[&clean]), None);
        assert_eq!(
            of(&[&clean, &differs, &incomplete]).unwrap(),
            "strangler reconcile p.yaml --slice 'my orders' --strict --repair --dry-run says what a repair would do; what was \
             not compared has its reason above"
        );
        assert_eq!(
            of(&[&clean, &incomplete]).unwrap(),
            "strangler status p.yaml --slice stock; once nothing is in the way, the same command again"
        );
        assert_eq!(
            of(&[&differs, &stopped]).unwrap(),
            "strangler mirror p.yaml --slice stock; once it streams, the same command again"
        );
        assert_eq!(advice("p.yaml", &[differs], true, ""), None, "a repair says its own");
        let asked = format!(
            "{NO_MIRROR} for the way back: the last one ended by itself: a; next: strangler mirror PLAN --rebuild"
        );
        assert_eq!(
            of(&[&verdict("stock", Outcome::Incomplete, Some(&asked))]).unwrap(),
            "strangler mirror p.yaml --rebuild; once it streams, the same command again"
        );
        let one_way =
            format!("{NO_MIRROR} for the way back ({OTHER_WAY}: process 1 on box), and none ever was");
        let advised = of(&[&verdict("stock", Outcome::Incomplete, Some(&one_way))]).unwrap();
        assert!(
            advised.starts_with("strangler status p.yaml --slice stock says why; end the mirror"),
            "{advised}"
        );
        let frozen = verdict("stock", Outcome::Incomplete, Some(&format!("{STANDS_STILL} 0/1: it stands")));
        assert!(
            of(&[&frozen]).unwrap().contains("strangler mirror p.yaml --slice stock --take-over replaces")
        );
    }
}
