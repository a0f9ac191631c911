//! From facts to a status: one pure function and its parts.

mod back;
mod moving;
mod retired;

use self::moving::Moving;
use super::arming::{self, ArmedState, ArmedStatus};
use super::evidence::{self, EvidenceStatus};
use super::facts::{Gate, MonolithFacts, ProcessRow, ServiceFacts, Side, Slot, Stream, TableRow};
use super::{
    ArchiveStatus, Authority, Lag, Phase, Process, RetirementStatus, SliceFacts, SliceStatus, TableStatus,
    Unreachable, Wal, WalLimit, WalReading,
};
use crate::journal::dropped::Dropped;
use crate::journal::migrate::Form;
use crate::journal::whereabouts::{self, Astray};
use crate::words;
pub use crate::words::shell_word;

/// The mirror writes a sign of life every 2 seconds; one that missed five of them is taken for dead. A second
/// mirror is harmless, so a wrong guess costs nothing.
pub const DEAD_AFTER_SECONDS: f64 = 10.0;

/// An idle stream makes its position durable every 5 seconds, so between two of them the stored time says little and the
/// mirror's own measurement is the truth. An older position means that nothing arrives, and the measurement is stale.
const MEASURED_WITHIN_SECONDS: f64 = 8.0;

/// Headroom below this part of the limit raises an alarm: one tenth leaves time to act before the limit acts.
const LITTLE_HEADROOM: u64 = 10;

/// What to type about a plan: the verbs with the plan's path, quoted for a shell.
#[derive(Debug, Clone)]
pub struct Commands {
    plan: String,
}

impl Commands {
    /// Commands about the plan in this file.
    #[must_use]
    pub fn about(plan_path: &str) -> Self {
        Self { plan: shell_word(plan_path) }
    }

    /// `check` is always about the whole plan.
    fn check(&self) -> String {
        format!("strangler check {}", self.plan)
    }

    /// Where a slice stands.
    pub(super) fn status(&self, slice: &str) -> String {
        self.of("status", slice, "")
    }

    /// A command in which the mirror wrote `PLAN`, because it doesn't know the file, as it must be typed.
    fn typed(&self, text: &str) -> String {
        text.replace(" PLAN", &format!(" {}", self.plan))
    }

    fn of(&self, verb: &str, slice: &str, rest: &str) -> String {
        self.of_all(verb, &[slice.to_owned()], rest)
    }

    fn of_all(&self, verb: &str, slices: &[String], rest: &str) -> String {
        let slices: String = slices.iter().map(|slice| format!(" --slice {}", shell_word(slice))).collect();
        format!("strangler {verb} {}{slices}{rest}", self.plan)
    }
}

/// Where a slice stands.
#[must_use]
pub fn judge(facts: &SliceFacts, commands: &Commands) -> SliceStatus {
    let dropped = facts.service_side.facts().and_then(|service| service.dropped.as_ref());
    match dropped {
        _ if !facts.astray.is_empty() => astray(facts, commands),
        Some(dropped) => retired::judge(facts, dropped, commands),
        None => match forgotten(facts) {
            Some(dropped) => retired::forgotten(facts, dropped, commands),
            None => of_both(facts, commands),
        },
    }
}

/// What the monolith alone has noted, where the service was asked and knows nothing of it.
fn forgotten(facts: &SliceFacts) -> Option<&Dropped> {
    facts.service_side.facts()?;
    let monolith = facts.monolith_side.facts().filter(|monolith| monolith.gate.is_none())?;
    monolith.dropped.as_ref()
}

/// Where a slice stands that has its two sides.
fn of_both(facts: &SliceFacts, commands: &Commands) -> SliceStatus {
    let service = facts.service_side.facts();
    let monolith = facts.monolith_side.facts();
    let (authority, epoch) =
        authority(service.and_then(|s| s.gate.as_ref()), monolith.and_then(|m| m.gate.as_ref()));
    let slot = slot_of(service, monolith);
    let phase = service.map_or(Phase::Unknown, |service| phase(service, slot));
    let tables: Vec<TableStatus> = service
        .map(|service| service.tables.iter().map(|row| table(row, &facts.slice, commands)).collect())
        .unwrap_or_default();
    let wal = match slot {
        SlotFacts::Present(slot) => Some(wal(slot, facts.wal_budget_bytes, monolith, facts.earlier)),
        SlotFacts::None | SlotFacts::Missing => None,
    };
    let mut status = SliceStatus {
        slice: facts.slice.clone(),
        service: facts.service.clone(),
        phase,
        authority,
        epoch,
        lag: service.and_then(|service| lag(service, monolith)),
        rows_copied: tables.iter().map(|table| table.rows_copied).sum(),
        rows_estimate: tables.iter().map(|table| table.rows_estimate).sum(),
        copy_seconds_left: service
            .filter(|_| phase == Phase::Copying)
            .and_then(|s| copy_seconds_left(&s.tables)),
        wal,
        process: service.and_then(|service| service.process.as_ref()).map(|row| process(row, commands)),
        way_back: monolith
            .and_then(|monolith| monolith.back.as_ref())
            .map(|found| back::way_back(found, service.map(|service| service.now_us), commands)),
        stray_writes: service.and_then(|service| service.strays.as_ref()).map(back::stray_writes),
        tables,
        deferred: service.map(|service| service.deferred.clone()).unwrap_or_default(),
        evidence: evidence_of(facts, slot),
        armed: armed_of(monolith, service),
        retirement: monolith
            .and_then(|monolith| retirement_of(monolith, commands.of("unretire", &facts.slice, ""))),
        outdated: outdated(facts),
        unreachable: unreachable(facts),
        alarms: Vec::new(),
        next: None,
    };
    let moving = Moving::of(&facts.slice, monolith, service);
    status.alarms.extend(moving.as_ref().map(|moving| moving.alarm(commands)));
    status.alarms.extend(facts.claimed.iter().map(|one| format!("{}: {}", one.object, one.fact)));
    if facts.mapping_changed {
        status.alarms.push(format!(
            "slice {}: its mapping is another one than when it was provisioned, and data was mirrored since [mapping-changed]",
            facts.slice
        ));
    }
    status.alarms.extend(monolith.and_then(|monolith| rights_alarm(monolith, &facts.slice, commands)));
    status.alarms.extend(alarms(&status, service, slot));
    status.alarms.extend(back::alarms(&status));
    let outside = service.and_then(|service| service.outside.as_ref());
    status.alarms.extend(outside.map(back::outside));
    let lost = lost_writes(&status, service);
    status.alarms.extend(lost.map(back::lost_writes));
    status.next = next(&status, (moving.as_ref(), service), commands);
    if is_open(monolith) && moving.is_none() {
        // Writers are let in, and may not use their tables.
        status.next = status.retirement.as_ref().map(|done| done.undo.clone()).or(status.next);
    }
    if (!facts.claimed.is_empty() || facts.mapping_changed) && moving.is_none() {
        // No other verb works, or may, before it is settled whose the table is.
        status.next = Some(commands.check());
    }
    status
}

/// What the databases say is not about this slice: only that is said.
fn astray(facts: &SliceFacts, commands: &Commands) -> SliceStatus {
    let alarm = |one: &Astray| {
        let problem = one.problem();
        format!("{}: {}", problem.object, problem.fact)
    };
    SliceStatus {
        alarms: facts.astray.iter().map(alarm).collect(),
        next: Some(match whereabouts::is_abandoned(&facts.astray) {
            true => commands.of("abandon", &facts.slice, ""),
            false => commands.check(),
        }),
        ..nothing(facts)
    }
}

/// A slice of which nothing is known yet.
fn nothing(facts: &SliceFacts) -> SliceStatus {
    SliceStatus {
        slice: facts.slice.clone(),
        service: facts.service.clone(),
        phase: Phase::Unknown,
        authority: Authority::Unknown,
        epoch: None,
        lag: None,
        rows_copied: 0,
        rows_estimate: 0,
        copy_seconds_left: None,
        wal: None,
        process: None,
        way_back: None,
        stray_writes: None,
        tables: Vec::new(),
        deferred: Vec::new(),
        evidence: None,
        armed: None,
        retirement: None,
        outdated: Vec::new(),
        unreachable: unreachable(facts),
        alarms: Vec::new(),
        next: None,
    }
}

/// What is known about a slice's slot.
#[derive(Debug, Clone, Copy)]
enum SlotFacts<'a> {
    /// Nothing: no stream yet, or the monolith can't be read.
    None,
    /// The stream row names a slot that the monolith does not have.
    Missing,
    /// The slot.
    Present(&'a Slot),
}

impl SlotFacts<'_> {
    /// The server does not keep any more what the stream has to read next.
    fn is_lost(self) -> bool {
        match self {
            Self::Missing => true,
            Self::Present(slot) => slot.wal_status == "lost",
            Self::None => false,
        }
    }
}

fn slot_of<'a>(service: Option<&ServiceFacts>, monolith: Option<&'a MonolithFacts>) -> SlotFacts<'a> {
    let (Some(stream), Some(monolith)) = (service.and_then(|service| service.stream.as_ref()), monolith)
    else {
        return SlotFacts::None;
    };
    match monolith.slots.iter().find(|slot| slot.name == stream.slot) {
        Some(slot) => SlotFacts::Present(slot),
        // The row is written before the slot is made, so its absence means nothing yet.
        None if stream.state == "creating" => SlotFacts::None,
        None => SlotFacts::Missing,
    }
}

fn phase(service: &ServiceFacts, slot: SlotFacts<'_>) -> Phase {
    if !service.provisioned {
        return Phase::NotProvisioned;
    }
    match service.stream.as_ref().map(|stream| stream.state.as_str()) {
        Some("gap") => return Phase::Gap,
        Some("diverged") => return Phase::Diverged,
        Some(_) if slot.is_lost() => return Phase::Gap,
        Some(_) | None => {}
    }
    let Some(process) = &service.process else {
        return if service.stream.is_some() { Phase::Stopped } else { Phase::Provisioned };
    };
    match life(process, service.stream.as_ref()) {
        Life::Stopped => Phase::Stopped,
        Life::Dead => Phase::Dead,
        Life::Alive if still_copying(service) => Phase::Copying,
        Life::Alive if matches!(process.phase.as_str(), "streaming" | "watching") => Phase::Streaming,
        Life::Alive => Phase::CatchingUp,
    }
}

fn still_copying(service: &ServiceFacts) -> bool {
    let waits = |table: &TableRow| matches!(table.state.as_str(), "pending" | "copying");
    service.tables.iter().any(waits)
        || service.stream.as_ref().is_none_or(|stream| stream.state == "creating")
}

enum Life {
    Alive,
    Stopped,
    Dead,
}

/// A goodbye counts only from the process that may apply: an older one that was frozen and woke up may say goodbye
/// while its successor works.
fn life(process: &ProcessRow, stream: Option<&Stream>) -> Life {
    let current = stream.is_none_or(|stream| stream.nonce == process.nonce);
    if process.stopped && current {
        Life::Stopped
    } else if process.seen_seconds_ago > DEAD_AFTER_SECONDS {
        Life::Dead
    } else {
        Life::Alive
    }
}

fn authority(service: Option<&Gate>, monolith: Option<&Gate>) -> (Authority, Option<i64>) {
    let open = |gate: &Gate| gate.state == "OPEN";
    let authority = match (monolith.map(open), service.map(open)) {
        (Some(true), Some(true)) => Authority::Both,
        (Some(false), Some(false)) => Authority::Nobody,
        (Some(true), _) => Authority::Monolith,
        (_, Some(true)) => Authority::Service,
        (Some(false) | None, Some(false) | None) => Authority::Unknown,
    };
    (authority, [service, monolith].into_iter().flatten().map(|gate| gate.epoch).max())
}

fn lag(service: &ServiceFacts, monolith: Option<&MonolithFacts>) -> Option<Lag> {
    let stream = service.stream.as_ref().filter(|stream| stream.state != "creating")?;
    let now_us = monolith.map_or(service.now_us, |monolith| monolith.now_us);
    let seconds = age_seconds(stream, service.process.as_ref(), now_us);
    Some(Lag {
        bytes: monolith.map(|monolith| monolith.current_lsn.bytes_since(stream.applied_lsn)),
        seconds,
        applied_lsn: stream.applied_lsn,
    })
}

/// Age of what a stream has applied, by the source's clock.
fn age_seconds(stream: &Stream, process: Option<&ProcessRow>, now_us: i64) -> Option<f64> {
    let durable = stream.source_time_us.map(|at| seconds_between(at, now_us));
    let measured = process.filter(|process| !process.stopped).and_then(|process| process.lag_ms);
    match (durable, measured) {
        (Some(durable), Some(ms)) if durable <= MEASURED_WITHIN_SECONDS => Some(durable.min(ms / 1000.0)),
        (durable, _) => durable,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a period that is shown; 2^53 microseconds are 285 years")]
fn seconds_between(from_us: i64, to_us: i64) -> f64 {
    to_us.saturating_sub(from_us).max(0) as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "an estimate that is shown; 2^53 rows or bytes are far away")]
fn as_float(number: u64) -> f64 {
    number as f64
}

fn wal(slot: &Slot, budget_bytes: u64, monolith: Option<&MonolithFacts>, earlier: Option<WalReading>) -> Wal {
    let in_budget = budget_bytes.saturating_sub(slot.held_bytes);
    let safe = slot.safe_wal_bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0));
    let (headroom_bytes, limit) = match safe {
        Some(safe) if safe < in_budget => (safe, WalLimit::MaxSlotWalKeepSize),
        Some(_) | None => (in_budget, WalLimit::WalBudget),
    };
    let rate = monolith.zip(earlier).and_then(|(monolith, earlier)| {
        let grown = slot.held_bytes.checked_sub(earlier.held_bytes).filter(|grown| *grown > 0)?;
        let seconds = seconds_between(earlier.at_us, monolith.now_us);
        (seconds > 0.0).then(|| as_float(grown) / seconds)
    });
    Wal {
        slot: slot.name.clone(),
        active: slot.active,
        wal_status: slot.wal_status.clone(),
        held_bytes: slot.held_bytes,
        budget_bytes,
        headroom_bytes,
        limit,
        seconds_left: rate.map(|rate| as_float(headroom_bytes) / rate),
    }
}

/// What a copy must have run for before a time left is made of its rate: the first pieces say nothing about the rest.
const BASIS_SECONDS: f64 = 2.0;

/// Rows to go over the rate since the copy began. The rate counts pauses of the mirror too, so it errs to the
/// long side. None without a basis: too short a time, or a table of which nobody knows how many rows it has.
fn copy_seconds_left(tables: &[TableRow]) -> Option<f64> {
    let begun = || tables.iter().filter_map(|table| table.copy_seconds.map(|seconds| (table, seconds)));
    let elapsed = begun().map(|(_, seconds)| seconds).fold(0.0, f64::max);
    let copied: u64 = begun().map(|(table, _)| table.rows_copied).sum();
    let unfinished = || tables.iter().filter(|table| matches!(table.state.as_str(), "pending" | "copying"));
    let left: u64 = unfinished().map(|table| table.rows_estimate.saturating_sub(table.rows_copied)).sum();
    let known = unfinished().all(|table| table.rows_estimate > 0);
    (copied > 0 && left > 0 && known && elapsed >= BASIS_SECONDS)
        .then(|| as_float(left) * elapsed / as_float(copied))
}

fn process(row: &ProcessRow, commands: &Commands) -> Process {
    Process {
        host: row.host.clone(),
        pid: row.pid,
        doing: row.phase.clone(),
        detail: row.detail.as_deref().map(|detail| commands.typed(detail)),
        seen_seconds_ago: row.seen_seconds_ago,
    }
}

fn table(row: &TableRow, slice: &str, commands: &Commands) -> TableStatus {
    let retry = || commands.of("mirror", slice, &format!(" --retry {}", shell_word(&row.source_table)));
    TableStatus {
        table: row.source_table.clone(),
        target: row.target_table.clone(),
        state: row.state.clone(),
        detail: row.detail.clone(),
        rows_copied: row.rows_copied,
        rows_estimate: row.rows_estimate,
        unheard: row.unheard,
        next: (row.state == "diverged" || row.unheard).then(retry),
    }
}

/// Nothing before the slice is provisioned: there is nothing to compare yet.
fn evidence_of(facts: &SliceFacts, slot: SlotFacts<'_>) -> Option<EvidenceStatus> {
    let Side::Read(known) =
        facts.service_side.facts().filter(|service| service.provisioned)?.evidence.as_ref()?
    else {
        return None;
    };
    let (service, monolith) = (facts.service_side.facts(), facts.monolith_side.facts());
    let shapes = monolith.map(|monolith| &monolith.shapes);
    let mut proof = evidence::judge(known, shapes, facts.evidence_max_age);
    let running =
        service.and_then(|service| service.stream.as_ref()).is_some_and(|row| row.state == "running");
    // Only a mirror writes the gap down, and none may have run since.
    if running && slot.is_lost() {
        proof.stands = Some(false);
        proof.lacks.push("the stream lost its slot, and changes with it".to_owned());
    }
    let back = service.zip(monolith.and_then(|monolith| monolith.back.as_ref()));
    if let Some(lost) = back.and_then(|(service, back)| back::lost(service, back)) {
        proof.stands = Some(false);
        proof.lacks.push(lost);
    }
    Some(proof)
}

fn retirement_of(monolith: &MonolithFacts, undo: String) -> Option<RetirementStatus> {
    let done = monolith.arming.as_ref()?.retirement.as_ref()?;
    let archive = monolith.arming.as_ref()?.archive.as_ref().filter(|archive| archive.epoch == done.epoch);
    let archive = archive.map(|archive| ArchiveStatus {
        place: archive.place.clone(),
        at: archive.at.clone(),
        reverse_lsn: archive.reverse_lsn,
        manifest_sha256: archive.manifest_sha256.clone(),
    });
    Some(RetirementStatus { stage: done.stage.as_str(), since: done.at.clone(), undo, archive })
}

/// The monolith's gate is open.
fn is_open(monolith: Option<&MonolithFacts>) -> bool {
    monolith.and_then(|monolith| monolith.gate.as_ref()).is_some_and(|gate| !gate.is_closed())
}

/// Only while they are the truth do the service's writes have to come back.
fn lost_writes<'a>(status: &SliceStatus, service: Option<&'a ServiceFacts>) -> Option<&'a str> {
    service
        .filter(|_| status.authority == Authority::Service)
        .and_then(|service| service.lost_writes.as_deref())
}

/// Rights on old tables that are away while the monolith has the authority, or that could not be given back.
fn rights_alarm(monolith: &MonolithFacts, slice: &str, commands: &Commands) -> Option<String> {
    let arming = monolith.arming.as_ref()?;
    let undo = commands.of("unretire", slice, "");
    match &arming.retirement {
        Some(done) if is_open(Some(monolith)) => Some(format!(
            "slice {slice}: the monolith has the authority, and its tables are {} since {}, so that its application can't use them; {undo} \
             gives them back [retired]",
            done.stage.as_str(),
            done.at
        )),
        None if arming.rights_away > 0 => Some(format!(
            "slice {slice}: {} on its old tables could not be given back; {undo} names what is gone and tries again, and with --give-up \
             forgets it [rights-left]",
            words::plural(arming.rights_away, "right")
        )),
        Some(_) | None => None,
    }
}

/// Nothing before the slice is provisioned: there is no gate to hang.
fn armed_of(monolith: Option<&MonolithFacts>, service: Option<&ServiceFacts>) -> Option<ArmedStatus> {
    let monolith = monolith.filter(|monolith| monolith.gate.is_some())?;
    let closed = monolith.gate.as_ref().is_some_and(Gate::is_closed);
    monolith.arming.as_ref().map(|facts| arming::judge(facts, closed, service))
}

fn outdated(facts: &SliceFacts) -> Vec<String> {
    let monolith = facts.monolith_side.facts().filter(|monolith| monolith.form == Form::Older);
    let service = facts.service_side.facts().filter(|service| service.form == Form::Older);
    let names = [monolith.map(|_| "monolith".to_owned()), service.map(|_| facts.service.clone())];
    names.into_iter().flatten().collect()
}

fn unreachable(facts: &SliceFacts) -> Vec<Unreachable> {
    let mut list = Vec::new();
    if let Side::Silent(reason) = &facts.monolith_side {
        list.push(Unreachable { database: "monolith".to_owned(), reason: reason.clone() });
    }
    if let Side::Silent(reason) = &facts.service_side {
        list.push(Unreachable { database: facts.service.clone(), reason: reason.clone() });
    }
    list
}

fn alarms(status: &SliceStatus, service: Option<&ServiceFacts>, slot: SlotFacts<'_>) -> Vec<String> {
    let mut alarms = Vec::new();
    if status.authority == Authority::Both {
        alarms.push("both gates are open: stop the application's writes before anything else".to_owned());
    }
    alarms.extend(of_stream(status, service, slot));
    alarms.extend(late(status));
    alarms.extend(status.tables.iter().filter(|table| table.state == "diverged").map(|table| {
        format!("table {} diverged: {}", table.table, table.detail.as_deref().unwrap_or("no reason recorded"))
    }));
    alarms.extend(status.tables.iter().filter(|table| table.unheard).map(|table| {
        format!("table {} changed in a way that is not in the stream: it must be copied again", table.table)
    }));
    let failed = service.map(|service| service.deferred_failed.as_slice()).unwrap_or_default();
    alarms.extend(failed.iter().map(|object| {
        format!(
            "{object} could not be made. Where rows contradict it, correct them on the monolith; then start the mirror again, \
             which tries once more"
        )
    }));
    alarms.extend(why_it_stopped(status));
    alarms.extend(status.evidence.as_ref().and_then(|proof| proof.alarm.clone()));
    if let Some(Side::Silent(reason)) = service.and_then(|service| service.evidence.as_ref()) {
        alarms.push(format!("the ledger can't be read: {reason}"));
    }
    alarms.extend(status.wal.as_ref().and_then(wal_alarm));
    if let Some(armed) = holes(status) {
        let why = if armed.closed { "the monolith is closed" } else { "the slice is armed" };
        alarms.extend(armed.holes.iter().map(|lack| format!("{why}, and {lack}")));
    }
    alarms.extend(service.map(of_service).unwrap_or_default());
    alarms
}

/// What is wrong with the stream from the monolith.
fn of_stream(status: &SliceStatus, service: Option<&ServiceFacts>, slot: SlotFacts<'_>) -> Option<String> {
    let detail =
        service.and_then(|service| service.stream.as_ref()).and_then(|stream| stream.detail.as_deref());
    match (status.phase, slot) {
        (Phase::Gap | Phase::Diverged, _) if status.authority == Authority::Service => Some(format!(
            "nobody watches the closed monolith: {}. Writes past its gate are not seen, and authority can't come back, until \
             the watch is begun anew; nothing is copied for that",
            detail.unwrap_or("the slot of the stream from there is gone")
        )),
        (Phase::Gap, SlotFacts::Missing) => Some(match detail {
            Some(detail) => format!("changes are missing: {detail}"),
            None => {
                "the replication slot is gone from the monolith, and the changes since with it".to_owned()
            }
        }),
        (Phase::Gap, SlotFacts::Present(slot)) if slot.wal_status == "lost" => {
            Some("the monolith dropped WAL that the slot still needed (max_slot_wal_keep_size)".to_owned())
        }
        (Phase::Gap, SlotFacts::None | SlotFacts::Present(_)) => {
            Some(format!("changes are missing: {}", detail.unwrap_or("no reason recorded")))
        }
        (Phase::Diverged, _) => {
            Some(format!("the service differs: {}", detail.unwrap_or("no reason recorded")))
        }
        (Phase::Dead, _) => status.process.as_ref().map(|process| {
            let (pid, host) = (process.pid, &process.host);
            let seconds = process.seen_seconds_ago;
            format!(
                "the mirror (process {pid} on {host}) gave its last sign of life {seconds:.0} seconds ago"
            )
        }),
        (
            Phase::Unknown
            | Phase::NotProvisioned
            | Phase::Provisioned
            | Phase::Copying
            | Phase::CatchingUp
            | Phase::Streaming
            | Phase::Stopped
            | Phase::Dropping
            | Phase::Retired,
            _,
        ) => None,
    }
}

/// A mirror that lives and carries nothing on, where nothing of its own says why: a server that does not answer, or a transaction that is
/// longer than all before it. How late it is changes all the time, and a watcher is told of an alarm once.
fn late(status: &SliceStatus) -> Option<String> {
    let applies = status.phase == Phase::Streaming && status.authority == Authority::Monolith;
    status.lag.as_ref()?.seconds.filter(|lag| applies && *lag > DEAD_AFTER_SECONDS)?;
    Some(format!(
        "the service is more than {DEAD_AFTER_SECONDS:.0} s behind, and the mirror lives: one of the servers may not answer, \
         or a large transaction is on its way; see docs/runbooks/mirror-stopped.md"
    ))
}

/// What the service's gate does not guard, and what else is wrong with its tables.
fn of_service(service: &ServiceFacts) -> Vec<String> {
    let Some(gate) = &service.gate else { return Vec::new() };
    // An open one is closed one day, and nobody can be sure to be asked then.
    let why = if gate.is_closed() { "closed" } else { "open" };
    let unfit = service.unfit.iter().map(|one| &one.words);
    let lacks = service.unguarded.iter().chain(unfit);
    lacks.map(|lack| format!("the service is {why}, and {lack}")).collect()
}

/// What was whole once and is not any more.
fn holes(status: &SliceStatus) -> Option<&ArmedStatus> {
    status.armed.as_ref().filter(|armed| !armed.holes.is_empty())
}

fn why_it_stopped(status: &SliceStatus) -> Option<String> {
    last_word(status).map(|(why, _)| format!("the mirror ended by itself: {why}"))
}

/// A mirror that ended by itself left word why, and mostly what to type; one that was asked to stop left none.
fn last_word(status: &SliceStatus) -> Option<(&str, Option<&str>)> {
    let detail = status.process.as_ref()?.detail.as_deref().filter(|_| status.phase == Phase::Stopped)?;
    Some(detail.split_once("; next: ").map_or((detail, None), |(why, next)| (why, Some(next))))
}

fn wal_alarm(wal: &Wal) -> Option<String> {
    // The real limit behind a headroom is that headroom and what is already held.
    let limit_bytes = wal.headroom_bytes.saturating_add(wal.held_bytes);
    if wal.wal_status == "unreserved" {
        Some("the monolith may drop WAL that the slot needs at its next checkpoint".to_owned())
    } else if wal.wal_status != "lost" && wal.held_bytes > wal.budget_bytes {
        // How much it is changes all the time, and a watcher is told of an alarm once.
        Some(format!(
            "the monolith holds more WAL than wal_budget ({}), at which nothing stops: PostgreSQL drops it at \
             max_slot_wal_keep_size, and without that it fills the disk; see docs/runbooks/slot-and-wal.md",
            words::bytes(wal.budget_bytes)
        ))
    } else if wal.wal_status != "lost" && wal.headroom_bytes < limit_bytes / LITTLE_HEADROOM {
        Some(format!(
            "less than a tenth of {} is left for the WAL held; see docs/runbooks/slot-and-wal.md",
            wal.limit.words()
        ))
    } else {
        None
    }
}

/// What arms a slice again, or what `arm` would ask for first; none where it would refuse as long as tables are not live.
fn arm(status: &SliceStatus, commands: &Commands) -> Option<String> {
    if let Some(first) = status.armed.as_ref().and_then(|armed| armed.first.clone()) {
        return Some(first);
    }
    let waits =
        status.authority == Authority::Monolith && status.tables.iter().any(|one| one.state != "live");
    (!waits).then(|| commands.of("arm", &status.slice, ""))
}

/// One command, the most urgent one.
fn next(
    status: &SliceStatus,
    (moving, service): (Option<&Moving>, Option<&ServiceFacts>),
    commands: &Commands,
) -> Option<String> {
    let of = |verb, rest: &str| Some(commands.of(verb, &status.slice, rest));
    if status.phase != Phase::Unknown && !status.outdated.is_empty() {
        // No other verb works before that.
        return of("provision", "");
    }
    let mirrored = matches!(status.phase, Phase::Copying | Phase::CatchingUp | Phase::Streaming)
        // A mirror would not go on before the move has ended.
        || status.phase == Phase::Gap && moving.is_some_and(Moving::needs_no_stream);
    if let Some(moving) = moving.filter(|moving| mirrored || !moving.needs_mirror()) {
        // Nobody can write, and every other verb refuses. Without a mirror it would not drain; that one ends it, too.
        return Some(moving.next(commands));
    }
    if status.phase != Phase::Unknown && holes(status).is_some() {
        let armed = arm(status, commands);
        if armed.is_some() {
            return armed;
        }
    }
    if service.is_some_and(|service| !service.unguarded.is_empty()) {
        return of("provision", "");
    }
    if let Some(unfit) = service.and_then(|service| service.unfit.first()) {
        return unfit.next.clone().or_else(|| arm(status, commands));
    }
    match status.phase {
        Phase::Unknown | Phase::Dropping | Phase::Retired => None,
        Phase::NotProvisioned => of("provision", ""),
        Phase::Provisioned | Phase::Stopped | Phase::Dead => {
            let again: Vec<String> = status
                .tables
                .iter()
                .filter(|table| table.unheard)
                .map(|table| format!(" --retry {}", shell_word(&table.table)))
                .collect();
            // The mirror alone would end again, as long as nobody has done what it asked for. What it asked for knows of the
            // tables that have to be copied again, and of what has to be done before that.
            let asked = last_word(status).and_then(|(_, next)| next);
            asked.map(str::to_owned).or_else(|| of("mirror", &again.concat()))
        }
        // With both gates open it refuses, and what it would copy over may be the last copy; the alarm says what comes first.
        Phase::Gap | Phase::Diverged if status.authority == Authority::Both => None,
        Phase::Gap | Phase::Diverged => of("mirror", " --rebuild"),
        Phase::Copying | Phase::CatchingUp => {
            let retry = status.tables.iter().find_map(|table| table.next.clone());
            // A process that was stopped while it began leaves no word.
            retry.or_else(|| back::next(status, commands))
        }
        Phase::Streaming => {
            let unproven = status.evidence.as_ref().is_some_and(|proof| proof.stands == Some(false));
            let retry = status.tables.iter().find_map(|table| table.next.clone());
            let broken = back::next(status, commands);
            let strict = status.evidence.as_ref().is_some_and(|proof| proof.asks_for_strict);
            let strict = if strict { " --strict" } else { "" };
            let told =
                status.stray_writes.is_some() || service.is_some_and(|service| service.outside.is_some());
            let stray = match lost_writes(status, service) {
                Some(_) => of("reconcile", &format!("{strict} --repair")),
                None => told.then(|| of("reconcile", strict)).flatten(),
            };
            let half = status.armed.as_ref().filter(|armed| armed.state == ArmedState::PartlyArmed);
            let half =
                half.and_then(|armed| if armed.disarming { of("disarm", "") } else { arm(status, commands) });
            let proof = || match &status.evidence {
                // No verdict is evidence before that.
                Some(proof) if proof.broken => Some(commands.of_all("ledger", &[], " --verify")),
                _ if unproven => of("reconcile", strict),
                _ => None,
            };
            retry.or(broken).or(stray).or(half).or_else(proof)
        }
    }
}

#[cfg(test)]
mod tests;
