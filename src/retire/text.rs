//! The report for a terminal.

use std::fmt::Write as _;

use super::judge::{SliceReport, TableReport, who};
use crate::authority::Side;

/// Whoever was met at one table, that many are shown; the JSON document has all.
const MET_SHOWN: usize = 10;

/// All slices, one after the other; `problems` renders what stands in the way of each.
#[must_use]
pub fn text(slices: &[SliceReport], problems: impl Fn(&SliceReport) -> String) -> String {
    let mut text = String::new();
    for slice in slices {
        let has = match slice.authority {
            Some(Side::Monolith) => "the monolith has the authority".to_owned(),
            Some(Side::Service) => format!("service {} has the authority", slice.service),
            None => "nobody has the authority".to_owned(),
        };
        let _ = writeln!(text, "slice {}: {has}, epoch {}\n", slice.slice, slice.epoch);
        for table in &slice.tables {
            of_table(&mut text, table);
        }
        let _ = writeln!(text, "\n{}", problems(slice).trim_end());
    }
    text
}

fn of_table(text: &mut String, table: &TableReport) {
    // Writing into memory does not fail.
    let _ = match (&table.watched_since, &table.last_use) {
        (None, _) => writeln!(text, "{}: not watched", table.table),
        (Some(since), None) => writeln!(text, "{}: watched from {since} on, not read by others", table.table),
        (Some(since), Some(last)) => writeln!(
            text,
            "{}: watched from {since} on, read by others: {} {}, last at {last}",
            table.table,
            table.scans_by_others,
            if table.scans_by_others == 1 { "scan" } else { "scans" }
        ),
    };
    for met in table.met.iter().take(MET_SHOWN) {
        let _ = writeln!(text, "  {}, last at {}: {}", met.how, met.last, who(met));
    }
    if table.met.len() > MET_SHOWN {
        let _ = writeln!(text, "  and {} more; --format json has all", table.met.len() - MET_SHOWN);
    }
}
