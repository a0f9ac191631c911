//! What the first copy will take: time, WAL that the slot keeps meanwhile, slots and senders.

use std::collections::BTreeMap;

use serde::Serialize;

use super::facts::Facts;
use super::slots::{ServerNeeds, needs};
use crate::catalog::Persistence;
use crate::mapping::{KeyOrder, TableMapping};
use crate::name::TableName;
use crate::problem::Problem;

/// Heap bytes copied per second. A binary copy between two servers reached 40 to 150 MB/s on two slow cores; the
/// prediction takes half of the lower figure, since other work, the network and indexes stand between.
pub const COPY_BYTES_PER_SECOND: u64 = 20_000_000;

/// How long a round of key ranges takes at most; the stream catches up after each.
const RANGE_ROUND_SECONDS: u64 = 10;

/// Below this correlation a key's ranges lie scattered over the heap, so the table is copied whole, in one round.
const CORRELATION_MIN: f64 = 0.5;

/// What check foretells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Predictions {
    /// By slice.
    pub slices: BTreeMap<String, SlicePrediction>,
    /// Slots and senders by server.
    pub servers: Vec<ServerNeeds>,
    /// WAL that the monolith writes per second, where it could be measured.
    pub wal_bytes_per_second: Option<u64>,
    /// The rate that copy times assume.
    pub copy_bytes_per_second: u64,
}

/// One slice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlicePrediction {
    /// Its tables.
    pub tables: Vec<TablePrediction>,
    /// Heap bytes of all.
    pub bytes: u64,
    /// Copy time of all, one after the other.
    pub copy_seconds: u64,
    /// WAL that the slot keeps during the longest round.
    pub wal_held_bytes: Option<u64>,
    /// The plan's limit for it.
    pub wal_budget_bytes: u64,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TablePrediction {
    /// Name in the monolith.
    pub table: String,
    /// Rows that its statistics expect.
    pub rows: u64,
    /// Heap bytes.
    pub bytes: u64,
    /// Copy time.
    pub copy_seconds: u64,
    /// It is copied in one round rather than by key ranges.
    pub whole: bool,
    /// The plan means it and it can't be mirrored: `unlogged`. It is in no sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<&'static str>,
}

/// Foretells from sizes and the WAL that was seen.
pub(super) fn predict(facts: &Facts) -> Predictions {
    let rate = facts.monolith.server.as_ref().and_then(|server| server.wal_bytes_per_second).map(rounded);
    let slices = facts.mappings.iter().filter_map(|(name, mapping)| {
        let tables: Vec<TablePrediction> = mapping.tables.iter().map(table).collect();
        let longest = tables.iter().map(|table| {
            if table.whole { table.copy_seconds } else { table.copy_seconds.min(RANGE_ROUND_SECONDS) }
        });
        let longest = longest.max().unwrap_or(0);
        let slice = SlicePrediction {
            bytes: tables.iter().map(|table| table.bytes).sum(),
            copy_seconds: tables.iter().map(|table| table.copy_seconds).sum(),
            wal_held_bytes: rate.map(|rate| rate.saturating_mul(longest)),
            wal_budget_bytes: facts.plan.slices.get(name)?.policy.wal_budget_bytes,
            tables: tables.into_iter().chain(unlogged(facts, name)).collect(),
        };
        Some((name.clone(), slice))
    });
    Predictions {
        slices: slices.collect(),
        servers: needs(facts),
        wal_bytes_per_second: rate,
        copy_bytes_per_second: COPY_BYTES_PER_SECOND,
    }
}

fn table(mapping: &TableMapping) -> TablePrediction {
    TablePrediction {
        table: mapping.source.to_string(),
        rows: rounded(mapping.rows_estimate),
        bytes: mapping.heap_bytes,
        copy_seconds: mapping.heap_bytes.div_ceil(COPY_BYTES_PER_SECOND),
        whole: mapping.key_order == KeyOrder::Opaque
            || mapping.partitioned
            || mapping.key_correlation.is_none_or(|correlation| correlation.abs() < CORRELATION_MIN),
        left_out: None,
    }
}

/// Tables that the slice means and whose changes are in no log.
fn unlogged<'a>(facts: &'a Facts, slice: &'a str) -> impl Iterator<Item = TablePrediction> + 'a {
    let tables = facts.monolith.catalog.iter().flat_map(|catalog| catalog.tables.values());
    let meant = tables.filter(|table| {
        table.persistence == Persistence::Unlogged
            && table.partition_of.is_none()
            && facts.plan.takes(slice, &table.name)
    });
    meant.map(|table| TablePrediction {
        table: table.name.to_string(),
        rows: rounded(table.rows_estimate),
        bytes: table.heap_bytes,
        copy_seconds: 0,
        whole: false,
        left_out: Some("unlogged"),
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what a u64 holds; a cast saturates"
)]
fn rounded(number: f64) -> u64 {
    number.max(0.0).ceil() as u64
}

/// The budget must hold what the slot keeps during the longest round.
pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let predictions = predict(facts);
    let rate = predictions.wal_bytes_per_second.unwrap_or(0);
    let mut problems = Vec::new();
    for (name, slice) in &predictions.slices {
        let Some(held) = slice.wal_held_bytes.filter(|held| *held > slice.wal_budget_bytes) else { continue };
        let longest = slice.tables.iter().filter(|table| table.whole).max_by_key(|table| table.copy_seconds);
        let size = |bytes: u64| bytesize::ByteSize::b(bytes).display().si().to_string();
        let table = longest.map_or("", |table| table.table.as_str());
        problems.push(
            Problem::error("wal-budget", format!("slice {name}"))
                .fact(format!(
                    "copying {table} in one round takes about {} s at {}/s, the monolith writes {}/s of WAL, so the slot would keep {}; wal_budget is {}",
                    longest.map_or(0, |table| table.copy_seconds),
                    size(COPY_BYTES_PER_SECOND),
                    size(rate),
                    size(held),
                    size(slice.wal_budget_bytes)
                ))
                .consequence(
                    "nothing stops at wal_budget: the monolith's disk fills up to max_slot_wal_keep_size, where the slot is lost and \
                     the copy begins anew, or without that until it is full",
                )
                .next(format!(
                    "raise policy.wal_budget above {} where the disk allows, or copy at a time of fewer writes, or run: ANALYZE {};",
                    size(held),
                    TableName::parse(table, "public").map_or_else(|_| "…".to_owned(), |table| table.sql())
                )),
        );
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect, retail_plan, with};
    use crate::mapping::fixture::{name, retail};
    use crate::problem::Severity;

    /// 200 GB of OrderLines, whose uuid keys lie scattered, under 10 MB/s of WAL.
    fn large(correlation: Option<f64>) -> Facts {
        let mut monolith = retail();
        let lines = monolith.tables.get_mut(&name("OrderLines")).unwrap();
        lines.heap_bytes = 200_000_000_000;
        lines.columns[0].correlation = correlation;
        let mut facts = with(retail_plan(), monolith);
        facts.monolith.server.as_mut().unwrap().wal_bytes_per_second = Some(10_000_000.0);
        facts
    }

    #[test]
    fn a_whole_table_round_must_fit_the_budget() {
        assert_eq!(rule(&clean()), []);
        let problems = rule(&large(None));
        expect(
            &problems,
            Severity::Error,
            "wal-budget",
            "copying OrderLines in one round takes about 10000 s",
        );
        expect(&problems, Severity::Error, "wal-budget", "would keep 100.0 GB; wal_budget is 50.0 GB");
        assert_eq!(rule(&large(Some(1.0))), [], "key ranges land in rounds of seconds");
        let mut unmeasured = large(None);
        unmeasured.monolith.server.as_mut().unwrap().wal_bytes_per_second = None;
        assert_eq!(rule(&unmeasured), []);
    }

    #[test]
    fn an_unlogged_table_is_listed_and_counts_for_nothing() {
        let mut monolith = retail();
        monolith.tables.get_mut(&name("Orders")).unwrap().persistence = Persistence::Unlogged;
        let ordering = &predict(&with(retail_plan(), monolith)).slices["ordering"];
        let listed: Vec<_> = ordering.tables.iter().map(|one| (one.table.as_str(), one.left_out)).collect();
        assert_eq!(listed, [("OrderLines", None), ("Orders", Some("unlogged"))]);
        assert_eq!(ordering.bytes, 8192);
    }

    #[test]
    fn predictions_add_up() {
        let predictions = predict(&large(Some(0.9)));
        let ordering = &predictions.slices["ordering"];
        assert_eq!((ordering.bytes, ordering.copy_seconds), (200_000_008_192, 10_001));
        assert_eq!(ordering.wal_held_bytes, Some(100_000_000));
        assert_eq!(predictions.servers.len(), 3);
    }
}
