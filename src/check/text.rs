//! The report for a terminal: plain, aligned, without colour.

use std::fmt::Write as _;

use super::{Predictions, Problem, Report, Severity, TablePrediction};

/// Prose is wrapped to this many columns; what is to be typed is not, so that it can be copied.
const WIDTH: usize = 100;

/// Where the words of a problem start.
const INDENT: usize = 9;

/// Renders a report.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut out = list(&report.problems);
    predictions(&mut out, &report.predictions);
    let counts = [Severity::Error, Severity::Warning, Severity::Note].map(|severity| {
        let count = report.count(severity);
        format!("{count} {severity}{}", if count == 1 { "" } else { "s" })
    });
    let _ = writeln!(out, "Plan {}: {}.", report.plan, counts.join(", "));
    out
}

/// Renders problems alone, for verbs that refuse because of them.
#[must_use]
pub fn list(problems: &[Problem]) -> String {
    let mut out = String::new();
    for problem in problems {
        show(&mut out, problem);
    }
    out
}

fn show(out: &mut String, problem: &Problem) {
    let place = problem.place.map(|place| format!(", plan line {}", place.line)).unwrap_or_default();
    let _ = writeln!(
        out,
        "{:<width$}{} ({}{place})",
        problem.severity,
        problem.object,
        problem.code,
        width = INDENT
    );
    for (label, words) in [("found", &problem.fact), ("means", &problem.consequence)] {
        for (index, line) in wrapped(words, WIDTH - INDENT - 7).iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            let _ = writeln!(out, "{:INDENT$}{label:<7}{line}", "");
        }
    }
    if problem.next.is_empty() {
        out.push('\n');
    } else {
        let _ = writeln!(out, "{:INDENT$}{:<7}{}\n", "", "next", problem.next);
    }
}

/// Breaks at spaces; a longer word stands alone.
fn wrapped(words: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn predictions(out: &mut String, predictions: &Predictions) {
    let size = |bytes: u64| bytesize::ByteSize::b(bytes).display().si().to_string();
    let mut rows = vec![["slice", "tables", "size", "copy", "WAL kept", "budget"].map(str::to_owned)];
    rows.extend(predictions.slices.iter().map(|(name, slice)| {
        [
            name.clone(),
            count(&slice.tables),
            size(slice.bytes),
            duration(slice.copy_seconds),
            slice.wal_held_bytes.map_or_else(|| "unknown".to_owned(), size),
            size(slice.wal_budget_bytes),
        ]
    }));
    if rows.len() > 1 {
        table(out, &rows);
    }
    let limit = |limit: Option<u32>| limit.map_or_else(|| "?".to_owned(), |limit| limit.to_string());
    let mut rows = vec![["server of", "forward", "reverse", "slots used", "senders used"].map(str::to_owned)];
    rows.extend(predictions.servers.iter().map(|server| {
        [
            server.databases.join(", "),
            server.forward.len().to_string(),
            server.reverse.len().to_string(),
            format!("{} of {}", server.slots_used, limit(server.slots_max)),
            format!("{} of {}", server.senders_used, limit(server.senders_max)),
        ]
    }));
    if rows.len() > 1 {
        table(out, &rows);
    }
}

/// How many tables, those that can't be mirrored apart.
fn count(tables: &[TablePrediction]) -> String {
    let out = tables.iter().filter(|table| table.left_out.is_some()).count();
    let carried = tables.len() - out;
    if out == 0 { carried.to_string() } else { format!("{carried} + {out} unlogged") }
}

fn table<const N: usize>(out: &mut String, rows: &[[String; N]]) {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column).unwrap_or(0);
            // Names stand left, numbers right.
            let _ =
                if column == 0 { write!(line, "{cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out.push('\n');
}

/// A rough time, in the two largest units.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::clean;
    use crate::check::report;

    #[test]
    fn a_report_reads_calmly() {
        let mut facts = clean();
        facts.monolith_catalog().settings.insert("max_replication_slots".into(), "1".into());
        insta::assert_snapshot!(text(&report(&facts)), @r"
    error    monolith (slots)
             found  the slices need one slot here per direction: 2 forward (catalog, ordering); still to
                    come are 2, and of max_replication_slots = 1 there are 0 in use and 1 free
             means  the mirror of some slice could not start
             next   run: ALTER SYSTEM SET max_replication_slots = 2; and restart the server

    note     OrderLines (cut-key)
             found  fk_ProductId (ProductId) references Products (Id), and the two tables go into
                    different slices
             means  the service keeps a soft reference, which nothing enforces; the monolith's
                    constraint has to go before the flip
             next   nothing now; the application must no longer rely on it once OrderLines or Products has flipped

    slice     tables     size  copy  WAL kept   budget
    catalog        1   8.2 kB   1 s    1.0 kB  50.0 GB
    ordering       2  16.4 kB   2 s    1.0 kB  50.0 GB

    server of         forward  reverse  slots used  senders used
    monolith                2        0      0 of 1       0 of 10
    service catalog         0        1     0 of 10       0 of 10
    service ordering        0        1     0 of 10       0 of 10

    Plan retail: 1 error, 0 warnings, 1 note.
    ");
    }

    #[test]
    fn tables_that_can_not_be_mirrored_are_counted_apart() {
        let mut monolith = crate::mapping::fixture::retail();
        let orders = crate::mapping::fixture::name("Orders");
        monolith.tables.get_mut(&orders).unwrap().persistence = crate::catalog::Persistence::Unlogged;
        let facts = crate::check::fixture::with(crate::check::fixture::retail_plan(), monolith);
        assert!(text(&report(&facts)).contains("ordering  1 + 1 unlogged"));
    }

    #[test]
    fn times_take_two_units() {
        assert_eq!([5, 65, 7300].map(duration), ["5 s", "1 min 5 s", "2 h 1 min"]);
    }

    #[test]
    fn long_words_are_not_broken() {
        assert_eq!(wrapped("a bc def ghijklmn", 4), ["a bc", "def", "ghijklmn"]);
    }
}
