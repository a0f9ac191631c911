//! References that the tables of retired slices hold: there is nothing to compare them with, and their rows may still name others that are not
//! there. What is found is a verdict like any other's, in every form of the report; only that nothing of it is written down.

use std::time::{Duration, Instant};

use crate::cdc::mirror::chain_of;
use crate::cli::open::Opened;
use crate::clock::{Clock, SystemClock};
use crate::journal::dropped::Dropped;
use crate::lsn::Lsn;
use crate::mapping::{Mappings, SliceMapping, TableMapping};
use crate::name::TableName;
use crate::reconcile::finding::{Finding, FindingKind};
use crate::reconcile::form::{Side, TableForm};
use crate::reconcile::orphans::{Neighbour, Orphans, orphans};
use crate::reconcile::redact::Redactor;
use crate::reconcile::sides::Sides;
use crate::reconcile::verdict::{Counts, Coverage, Outcome, TableVerdict, Verdict};
use crate::words;

/// Why a slice's mapping lacks tables though it is written down what they were.
const NOT_AS_IT_WAS: &str = "its entry in the plan does not fit what is written down of the dropped tables; bring it back to what it was";

/// In the place of a run's uuid: the ledger has no entry of it.
const NO_RUN: &str = "not recorded";

/// Looks at the references of those of the retired slices that hold any; `list` findings are listed of each table, all are counted. Who calls
/// it: a comparison of everything.
pub(super) async fn verdicts(opened: &Opened, mappings: &Mappings, list: usize) -> Vec<Verdict> {
    let mut found = Vec::new();
    for dropped in opened.dropped.values() {
        found.extend(of_one((opened, mappings), dropped, list).await);
    }
    found
}

/// The same of one slice; `None` where it holds none. Where it is not known which it holds, that is what the verdict says.
pub(super) async fn of_one(
    (opened, mappings): (&Opened, &Mappings),
    dropped: &Dropped,
    list: usize,
) -> Option<Verdict> {
    let mapping = mappings.get(&dropped.slice)?;
    let refers = mapping.tables.iter().any(|table| !table.soft_references.is_empty());
    let whole = mapping.unmapped.is_empty() && !mapping.tables.is_empty();
    if refers || !whole { Some(verdict((opened, mappings), (mapping, dropped), list).await) } else { None }
}

async fn verdict(
    (opened, mappings): (&Opened, &Mappings),
    (mapping, dropped): (&SliceMapping, &Dropped),
    list: usize,
) -> Verdict {
    let now = || words::exact_instant(SystemClock.now_us());
    let mut verdict = Verdict {
        run: NO_RUN.to_owned(),
        plan: opened.plan.name.clone(),
        slice: mapping.slice.clone(),
        service: mapping.service.clone(),
        outcome: Outcome::Incomplete,
        strict: false,
        every_table: true,
        plan_hash: mapping.hash.clone(),
        epoch: dropped.epoch,
        authority: "service",
        lsn: Lsn::ZERO,
        from_lsn: Lsn::ZERO,
        started_at: now(),
        finished_at: String::new(),
        tables: Vec::new(),
        listed: Vec::new(),
        reasons: Vec::new(),
        repairs: Vec::new(),
    };
    for table in mapping.tables.iter().filter(|table| !table.soft_references.is_empty()) {
        let begun = Instant::now();
        let looked = look((opened, mappings), (mapping, table), list).await;
        let (told, listed) = told(table, looked, begun.elapsed());
        verdict.tables.push(told);
        verdict.listed.extend(listed);
    }
    verdict.tables.extend(mapping.unmapped.iter().map(|table| unknown(mapping, table)));
    if verdict.tables.is_empty() && verdict.reasons.is_empty() {
        verdict.reasons.push(format!("what its references are is not known: {}", why_unknown(mapping)));
    }
    let gap = verdict.reasons.iter().map(|_| Outcome::Incomplete);
    verdict.outcome = Outcome::of(verdict.tables.iter().map(|table| table.outcome).chain(gap));
    verdict.finished_at = now();
    verdict
}

/// A table of which nobody knows what it refers to.
fn unknown(mapping: &SliceMapping, table: &TableName) -> TableVerdict {
    let spoilt = mapping.spoilt.iter().find(|spoilt| spoilt.source == *table);
    let target = spoilt.map_or(table, |spoilt| &spoilt.target);
    let reason = format!("what it refers to is not known: {}", why_unknown(mapping));
    TableVerdict {
        reasons: vec![reason],
        outcome: Outcome::Incomplete,
        ..blank((table, target), Duration::ZERO)
    }
}

fn why_unknown(mapping: &SliceMapping) -> &str {
    mapping.unknown.as_deref().unwrap_or(NOT_AS_IT_WAS)
}

fn blank((source, target): (&TableName, &TableName), duration: Duration) -> TableVerdict {
    TableVerdict {
        source_table: source.clone(),
        target_table: target.clone(),
        outcome: Outcome::Clean,
        coverage: Coverage::References,
        rows_authority: 0,
        rows_copy: 0,
        bytes: 0,
        duration,
        findings: Counts::new(),
        reasons: Vec::new(),
    }
}

/// What is found of one table; why it could not be looked at, where it could not.
async fn look(
    (opened, mappings): (&Opened, &Mappings),
    (mapping, table): (&SliceMapping, &TableMapping),
    list: usize,
) -> Result<Orphans, String> {
    let neighbours: Vec<Neighbour<'_>> = mappings
        .values()
        .filter_map(|mapping| Some(Neighbour { mapping, server: &opened.ways_of(&mapping.service)?.apply }))
        .collect();
    let ways = opened.ways_of(&mapping.service).ok_or_else(|| "its service is not in the plan".to_owned())?;
    let redactor = Redactor::new().map_err(|error| chain_of(&error))?;
    let sides = Sides {
        authority: Side::Target,
        monolith_read: opened.monolith.read.clone(),
        monolith_apply: opened.monolith.apply.clone(),
        service_apply: ways.apply.clone(),
    };
    let form = TableForm::new(table.clone(), false);
    let found = orphans(&sides, &mapping.slice, &form, &neighbours, &redactor, list).await;
    found.map_err(|error| chain_of(&error))
}

fn told(
    table: &TableMapping,
    looked: Result<Orphans, String>,
    duration: Duration,
) -> (TableVerdict, Vec<Finding>) {
    let (count, listed, reasons) = match looked {
        Ok(found) => (found.count, found.listed, found.reasons),
        Err(reason) => (0, Vec::new(), vec![reason]),
    };
    let outcome = match (count, reasons.is_empty()) {
        (1.., _) => Outcome::Differs,
        (0, false) => Outcome::Incomplete,
        (0, true) => Outcome::Clean,
    };
    let findings: Counts = (count > 0).then_some((FindingKind::Orphan, count)).into_iter().collect();
    let told = TableVerdict { outcome, findings, reasons, ..blank((&table.source, &table.target), duration) };
    (told, listed)
}
