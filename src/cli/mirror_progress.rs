//! The mirror's progress on stderr: bars on a terminal, a line per change otherwise.
//!
//! What is said is decided by pure functions over [`Progress`]; [`Display`] only puts it up.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::logging::WORDS;
use super::ui::{Ink, Paint, Ui};
use crate::cdc::progress::{Progress, SliceProgress, TableProgress};
use crate::journal::streams::Direction;
use crate::words;

/// Lines of a pipe are for logs: progress within a phase is worth one every so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows progress as it comes.
#[derive(Debug)]
pub struct Display {
    shown: BTreeMap<String, Shown>,
    bars: BTreeMap<String, ProgressBar>,
}

/// What was last said about a slice.
#[derive(Debug)]
struct Shown {
    milestone: String,
    at: tokio::time::Instant,
}

impl Display {
    /// Has shown nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { shown: BTreeMap::new(), bars: BTreeMap::new() }
    }

    /// Shows the latest progress.
    pub fn show(&mut self, ui: &mut Ui, progress: &Progress) {
        for slice in &progress.slices {
            if ui.words_on_terminal() {
                self.redraw(ui, slice);
            } else {
                self.say(ui, slice);
            }
        }
    }

    /// Takes the bars down, so that last words stand on their own.
    pub fn finish(&mut self) {
        for bar in self.bars.values() {
            bar.finish_and_clear();
        }
        self.bars.clear();
    }

    fn redraw(&mut self, ui: &Ui, slice: &SliceProgress) {
        let paint = ui.words_paint();
        self.bar(ui, name(slice)).set_message(slice_line(slice, paint));
        for table in &slice.tables {
            let key = format!("{}\u{0}{}", name(slice), table.name);
            // A table that is done needs no line of its own any more: the slice's line counts it.
            if shows_bar(table) {
                self.bar(ui, key).set_message(format!("  {}", table_line(table, paint)));
            } else if let Some(bar) = self.bars.remove(&key) {
                bar.finish_and_clear();
            }
        }
    }

    fn bar(&mut self, ui: &Ui, key: String) -> &ProgressBar {
        self.bars.entry(key).or_insert_with(|| {
            let bar = ui.bars().add(ProgressBar::new_spinner());
            bar.set_style(
                ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        })
    }

    fn say(&mut self, ui: &mut Ui, slice: &SliceProgress) {
        let milestone = milestone(slice);
        let now = tokio::time::Instant::now();
        let due = self.shown.get(&name(slice)).is_none_or(|shown| {
            shown.milestone != milestone
                || (still_copying(slice) && now.duration_since(shown.at) >= LINE_EVERY)
        });
        if due && ui.logs_words() {
            log(slice);
            self.shown.insert(name(slice), Shown { milestone, at: now });
        } else if due {
            ui.words(&slice_line(slice, Paint::Plain));
            for table in slice.tables.iter().filter(|table| table.state == "copying") {
                ui.words(&format!("  {}", table_line(table, Paint::Plain)));
            }
            self.shown.insert(name(slice), Shown { milestone, at: now });
        }
    }
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}

/// The same as one event, with numbers that a program can read.
fn log(slice: &SliceProgress) {
    let live = slice.tables.iter().filter(|table| table.state == "live").count();
    let rows: u64 = slice.tables.iter().map(|table| table.rows).sum();
    tracing::info!(
        target: WORDS,
        slice = slice.slice,
        direction = slice.direction.as_str(),
        phase = slice.phase,
        detail = slice.detail.as_deref().unwrap_or_default(),
        tables = slice.tables.len(),
        tables_live = live,
        rows,
        lag_bytes = slice.lag_bytes,
        lag_ms = slice.lag_ms,
        wal_held_bytes = slice.wal_held_bytes,
        "progress"
    );
}

/// A slice that is armed has two streams.
fn name(slice: &SliceProgress) -> String {
    match slice.direction {
        Direction::Forward => slice.slice.clone(),
        Direction::Reverse => format!("{} (way back)", slice.slice),
    }
}

fn still_copying(slice: &SliceProgress) -> bool {
    slice.tables.iter().any(|table| table.state == "copying")
}

fn shows_bar(table: &TableProgress) -> bool {
    matches!(table.state.as_str(), "copying" | "diverged")
}

/// What must change for a new line to be worth reading: phase, detail and the tables' states, not their numbers.
fn milestone(slice: &SliceProgress) -> String {
    let states = slice.tables.iter().map(|table| format!("{}={}", table.name, table.state));
    format!("{} {:?} {}", slice.phase, slice.detail, states.collect::<Vec<_>>().join(" "))
}

/// One line about a slice, such as `ordering: streaming, 12 ms behind, 16.8 MB of WAL held`. Before the engine is
/// up and after it has ended there are no numbers that mean anything.
fn slice_line(slice: &SliceProgress, paint: Paint) -> String {
    let ink = if matches!(slice.phase.as_str(), "streaming" | "watching") { Ink::Good } else { Ink::Strong };
    let mut line = format!("{}: {}", name(slice), paint.ink(ink, &slice.phase));
    let measured = !slice.tables.is_empty() && slice.phase != "stopped";
    for part in measured.then(|| measurements(slice)).into_iter().flatten() {
        line.push_str(", ");
        line.push_str(&part);
    }
    if let Some(detail) = &slice.detail {
        line.push_str(&format!(" ({detail})"));
    }
    line
}

fn measurements(slice: &SliceProgress) -> Vec<String> {
    let mut parts = Vec::new();
    let live = slice.tables.iter().filter(|table| table.state == "live").count();
    let total = slice.tables.len();
    if live < total {
        parts.push(format!("{live} of {} live", words::plural(total, "table")));
    }
    if let Some(seconds) = seconds_left(&slice.tables) {
        parts.push(format!("about {} left", words::seconds(seconds)));
    }
    // Before the first message of the stream nobody knows how much is to come.
    if !still_copying(slice) && (slice.lag_ms.is_some() || slice.lag_bytes > 0) {
        parts.push(lag_words(slice));
    }
    parts.push(format!("{} of WAL held", words::bytes(slice.wal_held_bytes)));
    parts
}

/// Bytes say something while the stream is behind. After that they count WAL of others, which the position only passes
/// from time to time.
fn lag_words(slice: &SliceProgress) -> String {
    let bytes = words::bytes(slice.lag_bytes);
    match slice.lag_ms {
        Some(ms) if ms < 1000.0 => format!("{} behind", words::seconds(ms / 1000.0)),
        Some(ms) => format!("{} behind ({bytes})", words::seconds(ms / 1000.0)),
        None => format!("{bytes} behind"),
    }
}

/// One line about a table, such as `public.Orders: 120,000 of about 200,000 rows (60 %), 80,000 rows/s, 8.0 MB/s, 1.0 s left`.
fn table_line(table: &TableProgress, paint: Paint) -> String {
    let name = &table.name;
    if table.state == "diverged" {
        return format!("{name}: {}", paint.ink(Ink::Alarm, "diverged"));
    }
    let mut line = format!("{name}: {} ", words::count(table.rows));
    match share(table) {
        Some(percent) => {
            line.push_str(&format!("of about {} rows ({percent} %)", words::count(table.rows_estimate)))
        }
        None => line.push_str("rows"),
    }
    if table.rows_per_s >= 1.0 {
        line.push_str(&format!(", {} rows/s", words::count(whole(table.rows_per_s))));
    }
    if table.bytes_per_s >= 1.0 {
        line.push_str(&format!(", {}/s", words::bytes(whole(table.bytes_per_s))));
    }
    if let Some(seconds) = seconds_left(std::slice::from_ref(table)) {
        line.push_str(&format!(", {} left", words::seconds(seconds)));
    }
    line
}

/// Percent copied, when the estimate still makes sense: it is the planner's, and the table may have grown past it.
fn share(table: &TableProgress) -> Option<u64> {
    (table.rows_estimate > 0 && table.rows <= table.rows_estimate)
        .then(|| table.rows.saturating_mul(100) / table.rows_estimate)
}

/// What a rate must have been seen for before a time left is made of it: the first pieces say nothing about the rest.
const BASIS_S: f64 = 2.0;

/// Rows to go over the rate of the tables that move. None without a basis: too short a time, or a table of which nobody knows
/// how many rows it has.
#[expect(clippy::cast_precision_loss, reason = "an estimate that is shown")]
fn seconds_left(tables: &[TableProgress]) -> Option<f64> {
    let unfinished = || tables.iter().filter(|table| matches!(table.state.as_str(), "pending" | "copying"));
    let left: u64 = unfinished().map(|table| table.rows_estimate.saturating_sub(table.rows)).sum();
    let rate: f64 = unfinished().map(|table| table.rows_per_s).sum();
    let known = unfinished().all(|table| table.rows_estimate > 0);
    let measured = unfinished().any(|table| table.rows_per_s >= 1.0 && table.measured_s >= BASIS_S);
    (left > 0 && known && measured).then(|| left as f64 / rate)
}

/// The whole part of a rate that is shown.
fn whole(rate: f64) -> u64 {
    std::time::Duration::try_from_secs_f64(rate).map_or(0, |as_duration| as_duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, state: &str, rows: u64) -> TableProgress {
        TableProgress {
            name: name.to_owned(),
            state: state.to_owned(),
            rows,
            rows_estimate: 200_000,
            bytes: rows * 100,
            rows_per_s: if state == "copying" { 80_000.0 } else { 0.0 },
            bytes_per_s: if state == "copying" { 8_000_000.0 } else { 0.0 },
            measured_s: 3.0,
        }
    }

    fn slice(phase: &str, tables: Vec<TableProgress>) -> SliceProgress {
        SliceProgress {
            slice: "ordering".to_owned(),
            phase: phase.to_owned(),
            tables,
            lag_bytes: 64,
            lag_ms: Some(12.0),
            wal_held_bytes: 16_800_000,
            ..SliceProgress::default()
        }
    }

    #[test]
    fn a_copying_slice_shows_rows_rate_and_time_left_and_no_lag() {
        let copying = table("public.Orders", "copying", 120_000);
        let slice = slice("copying", vec![copying.clone(), table("public.Carts", "live", 200_000)]);
        assert_eq!(
            slice_line(&slice, Paint::Plain),
            "ordering: copying, 1 of 2 tables live, about 1.0 s left, 16.8 MB of WAL held"
        );
        assert_eq!(
            table_line(&copying, Paint::Plain),
            "public.Orders: 120,000 of about 200,000 rows (60 %), 80,000 rows/s, 8.0 MB/s, 1.0 s left"
        );
    }

    #[test]
    fn a_time_left_is_shown_only_where_it_has_a_basis() {
        let mut early = table("public.Orders", "copying", 5_000);
        early.measured_s = 0.6;
        let shown = table_line(&early, Paint::Plain);
        assert_eq!(shown, "public.Orders: 5,000 of about 200,000 rows (2 %), 80,000 rows/s, 8.0 MB/s");
        let mut unknown = table("public.Carts", "pending", 0);
        unknown.rows_estimate = 0;
        assert_eq!(seconds_left(&[table("public.Orders", "copying", 5_000), unknown]), None);
        // A table that lands as a whole shows what is on its way.
        let mut whole = table("public.Orders", "copying", 0);
        (whole.rows_per_s, whole.measured_s) = (0.0, 0.0);
        assert_eq!(
            table_line(&whole, Paint::Plain),
            "public.Orders: 0 of about 200,000 rows (0 %), 8.0 MB/s"
        );
    }

    #[test]
    fn a_streaming_slice_shows_its_lag() {
        let mut slice = slice("streaming", vec![table("public.Orders", "live", 200_000)]);
        assert_eq!(
            slice_line(&slice, Paint::Plain),
            "ordering: streaming, 12 ms behind, 16.8 MB of WAL held"
        );
        slice.lag_ms = Some(3400.0);
        assert!(slice_line(&slice, Paint::Plain).contains("3.4 s behind (64 B)"));
        slice.lag_ms = None;
        assert!(slice_line(&slice, Paint::Plain).contains("streaming, 64 B behind"));
    }

    #[test]
    fn a_way_back_is_told_from_the_way_there() {
        let mut back = slice("watching", vec![table("public.Orders", "live", 200_000)]);
        back.direction = Direction::Reverse;
        assert_eq!(
            slice_line(&back, Paint::Plain),
            "ordering (way back): watching, 12 ms behind, 16.8 MB of WAL held"
        );
    }

    #[test]
    fn a_slice_without_an_engine_shows_its_reason_and_no_numbers() {
        let mut waiting = slice("waiting", Vec::new());
        waiting.detail = Some("connection refused".to_owned());
        assert_eq!(slice_line(&waiting, Paint::Plain), "ordering: waiting (connection refused)");
        let stopped = slice("stopped", vec![table("public.Orders", "live", 200_000)]);
        assert_eq!(slice_line(&stopped, Paint::Plain), "ordering: stopped");
    }

    #[test]
    fn a_table_that_outgrew_its_estimate_shows_no_share_and_no_time_left() {
        let grown = table("public.Orders", "copying", 200_001);
        assert_eq!(table_line(&grown, Paint::Plain), "public.Orders: 200,001 rows, 80,000 rows/s, 8.0 MB/s");
    }

    #[test]
    fn numbers_alone_are_no_milestone_and_states_are() {
        let at = |state, rows| milestone(&slice("copying", vec![table("public.Orders", state, rows)]));
        assert_eq!(at("copying", 1), at("copying", 2));
        assert_ne!(at("copying", 2), at("live", 2));
    }
}
