//! The progress of a comparison on stderr: bars on a terminal, a line now and then otherwise.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::ui::Ui;
use crate::reconcile::progress::SliceProgress;
use crate::words;

/// Lines of a pipe are for logs: progress is worth one every so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows progress as it comes.
#[derive(Debug)]
pub(super) struct Display {
    bars: BTreeMap<String, ProgressBar>,
    begun: BTreeMap<String, Instant>,
    said: Instant,
}

impl Display {
    pub(super) fn new() -> Self {
        Self { bars: BTreeMap::new(), begun: BTreeMap::new(), said: Instant::now() }
    }

    /// Shows the latest progress of the slices that have begun and not ended.
    pub(super) fn show(&mut self, ui: &mut Ui, slices: &[SliceProgress]) {
        let now = Instant::now();
        let due = now.duration_since(self.said) >= LINE_EVERY;
        for slice in slices.iter().filter(|slice| !slice.tables.is_empty()) {
            let begun = *self.begun.entry(slice.slice.clone()).or_insert(now);
            if slice.tables.iter().all(|table| table.done) {
                if let Some(bar) = self.bars.remove(&slice.slice) {
                    bar.finish_and_clear();
                }
                continue;
            }
            let line = line(slice, now.duration_since(begun));
            if ui.words_on_terminal() {
                self.bar(ui, &slice.slice).set_message(line);
            } else if due {
                ui.words(&line);
            }
        }
        if due {
            self.said = now;
        }
    }

    /// Takes the bars down, so that last words stand on their own.
    pub(super) fn finish(&mut self) {
        for bar in self.bars.values() {
            bar.finish_and_clear();
        }
        self.bars.clear();
    }

    fn bar(&mut self, ui: &Ui, slice: &str) -> &ProgressBar {
        self.bars.entry(slice.to_owned()).or_insert_with(|| {
            let bar = ui.bars().add(ProgressBar::new_spinner());
            bar.set_style(
                ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        })
    }
}

/// `ordering: Orders, 1,204,000 of about 5,000,000 rows, 612,000 rows/s, about 6 s left, 2 findings`.
fn line(slice: &SliceProgress, elapsed: Duration) -> String {
    let table = slice.tables.iter().find(|table| !table.done);
    let rows: u64 = slice.tables.iter().map(|table| table.rows).sum();
    // A table that is done counts as what it had, whatever was expected.
    let expected: u64 = slice
        .tables
        .iter()
        .map(|table| if table.done { table.rows } else { table.rows_estimate.max(table.rows) })
        .sum();
    let findings: u64 = slice.tables.iter().map(|table| table.findings).sum();
    let mut parts = vec![format!("{} of about {} rows", words::count(rows), words::count(expected))];
    let seconds = elapsed.as_secs_f64();
    if rows > 0 && seconds >= 1.0 {
        #[expect(clippy::cast_precision_loss, reason = "a speed for display")]
        let (per_s, left) = (rows as f64 / seconds, expected.saturating_sub(rows) as f64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a speed for display, and `as` saturates"
        )]
        parts.push(format!("{} rows/s", words::count(per_s as u64)));
        parts.push(format!("about {:.0} s left", left / per_s));
    }
    if findings > 0 {
        parts.push(format!("{} findings", words::count(findings)));
    }
    if let Some(waits) = &slice.waits {
        parts.push(format!("waits: {waits}"));
    }
    let table = table.map_or(String::new(), |table| format!(" {},", table.name));
    format!("{}:{table} {}", slice.slice, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::progress::TableProgress;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let table = |name: &str, rows, rows_estimate, done| TableProgress {
            name: name.to_owned(),
            rows,
            rows_estimate,
            findings: 1,
            done,
        };
        let slice = SliceProgress {
            slice: "ordering".to_owned(),
            run: String::new(),
            waits: None,
            tables: vec![table("Orders", 1_000, 5_000, true), table("OrderLines", 3_000, 7_000, false)],
        };
        assert_eq!(
            line(&slice, Duration::from_secs(2)),
            "ordering: OrderLines, 4,000 of about 8,000 rows, 2,000 rows/s, about 2 s left, 2 findings"
        );
    }
}
