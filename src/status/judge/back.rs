//! The way back, and writes on a side that is fenced.

use super::{Commands, DEAD_AFTER_SECONDS, Life, Process, age_seconds, life, process};
use crate::journal::alarms::{self, Uncleared};
use crate::journal::outside::Outside;
use crate::journal::process::{TRIED_AGAIN, WAITS_FOR_ARM};
use crate::status::facts::{ServiceFacts, WayBack};
use crate::status::{Authority, SliceStatus, StrayWrites, WayBackStatus};
use crate::words;

/// A way back that is later than this is an alarm. One that keeps up is some milliseconds late.
const LATE_SECONDS: f64 = 5.0;

/// `service_now_us` is the service's time, in microseconds since 1970, when it could be asked.
pub(super) fn way_back(found: &WayBack, service_now_us: Option<i64>, commands: &Commands) -> WayBackStatus {
    let stream = &found.stream;
    let doing = found.process.as_ref().map(|row| {
        let doing = match life(row, Some(stream)) {
            Life::Alive => row.phase.clone(),
            // Its mirror lives, and looks again and again whether it can go on.
            Life::Stopped if stands(&row.phase) && row.seen_seconds_ago <= DEAD_AFTER_SECONDS => {
                row.phase.clone()
            }
            Life::Stopped => "stopped".to_owned(),
            Life::Dead => "dead".to_owned(),
        };
        let shown = process(row, commands);
        // The word that was left about a stream that was made anew since is none about this one.
        let detail = shown.detail.filter(|_| row.nonce == stream.nonce);
        Process { doing, detail, ..shown }
    });
    WayBackStatus {
        mode: found.mode.clone(),
        state: stream.state.clone(),
        detail: stream.detail.clone(),
        slot: stream.slot.clone(),
        lag_seconds: service_now_us.and_then(|now_us| age_seconds(stream, found.process.as_ref(), now_us)),
        applied_lsn: stream.applied_lsn,
        process: doing,
        blocker: found.blocker.clone(),
    }
}

/// Why nothing that was proven stands, where a way back that was read has lost its slot or is made anew: what was written
/// meanwhile does not come back. Once the new one is read, the ledger's own rule says so.
pub(super) fn lost(service: &ServiceFacts, back: &WayBack) -> Option<String> {
    let noted = service.way_back_slot.as_ref().filter(|_| !back.mode.eq_ignore_ascii_case("off"))?;
    let stream = &back.stream;
    if *noted != stream.slot {
        return Some("the way back is begun anew".to_owned());
    }
    let slot = service.slots.iter().find(|slot| slot.name == stream.slot);
    let gone = ["gap", "diverged"].contains(&stream.state.as_str())
        || slot.is_none_or(|slot| slot.wal_status == "lost");
    gone.then(|| "the way back lost its slot, and changes with it".to_owned())
}

pub(super) fn stray_writes(found: &Uncleared) -> StrayWrites {
    StrayWrites {
        count: found.count,
        transactions: found.transactions,
        side: found.side,
        table: found.source_table.clone(),
        operation: found.operation.clone(),
        lsn: found.lsn,
        xid: found.xid,
        raised_at: found.raised_at.clone(),
    }
}

/// Rows that the service's application wrote and the way back leaves where they are.
pub(super) fn outside(found: &Outside) -> String {
    format!(
        "the service wrote rows that the slice's filter forbids into {} (first commit at {}, {}): the way back does not carry \
         them, and took rows that left the filter from the monolith; give them values that the filter takes, or move them \
         elsewhere in the service, then `strangler reconcile`",
        found.tables.join(", "),
        found.lsn,
        found.at
    )
}

/// The way back was begun anew over a hole, and a flip back is refused until somebody has looked.
pub(super) fn lost_writes(slot: &str) -> String {
    format!(
        "the way back was begun anew under the slot {slot} while the service had authority: what the service wrote before that \
         may be missing on the monolith, until `strangler reconcile --repair` and a clean comparison after it"
    )
}

pub(super) fn alarms(status: &SliceStatus) -> Vec<String> {
    let mut alarms = Vec::new();
    if let Some(stray) = &status.stray_writes {
        let number = |count: i64| usize::try_from(count).unwrap_or(0);
        alarms.push(format!(
            "somebody wrote on the fenced {}: {} in {}, last {} of table {} (transaction {}, commit at {}, {}); the keys \
             are in {} of the service's database",
            stray.side,
            words::plural(number(stray.count), "row"),
            words::plural(number(stray.transactions), "transaction"),
            stray.operation,
            stray.table,
            stray.xid,
            stray.lsn,
            stray.raised_at,
            alarms::TABLE
        ));
    }
    if let Some(back) = &status.way_back {
        let detail = back.detail.as_deref().unwrap_or("no reason recorded");
        match back.state.as_str() {
            "gap" => alarms.push(format!("changes of the service are missing on the way back: {detail}")),
            "diverged" => alarms.push(format!("the way back leads elsewhere: {detail}")),
            _ => alarms.extend(halted(status, back).or_else(|| late(status, back))),
        }
    }
    alarms
}

/// Whether this phase is that of a way back which stands still under a mirror that lives.
fn stands(phase: &str) -> bool {
    [TRIED_AGAIN, WAITS_FOR_ARM].contains(&phase)
}

/// Why a way back ended by itself, and what it said to type; one that was asked to stop left no word.
fn last_word(back: &WayBackStatus) -> Option<(&str, Option<&str>)> {
    let over = |process: &&Process| process.doing == "stopped" || stands(&process.doing);
    let process = back.process.as_ref().filter(over)?;
    let detail = process.detail.as_deref()?;
    Some(detail.split_once("; next: ").map_or((detail, None), |(why, next)| (why, Some(next))))
}

/// No flip can begin without a way back that runs. While the service has the authority, the monolith's old tables are
/// also as current as the way back keeps them.
fn halted(status: &SliceStatus, back: &WayBackStatus) -> Option<String> {
    if let Some((why, _)) = last_word(back) {
        return Some(format!("the way back stands still: {why}"));
    }
    if status.authority != Authority::Service || back.mode != "apply" {
        return None;
    }
    // Whatever process lives: that one may run the way there alone.
    let Some(process) = &back.process else {
        return Some("nobody reads the way back, and nobody ever did".to_owned());
    };
    match process.doing.as_str() {
        "dead" => Some(format!(
            "the way back (process {} on {}) gave its last sign of life {:.0} seconds ago",
            process.pid, process.host, process.seen_seconds_ago
        )),
        "stopped" => Some(format!(
            "nobody reads the way back: process {} on {} was stopped, and the service's writes wait in its log",
            process.pid, process.host
        )),
        _ => None,
    }
}

/// Readers of the monolith's old tables see what the service wrote that much later, and a flip back waits for it. How much it is
/// changes all the time, and a watcher is told of an alarm once.
fn late(status: &SliceStatus, back: &WayBackStatus) -> Option<String> {
    let applies = status.authority == Authority::Service && back.mode == "apply";
    back.lag_seconds.filter(|lag| applies && *lag > LATE_SECONDS)?;
    let why = back.blocker.as_ref().map(|blocker| format!("; on the monolith {blocker}")).unwrap_or_default();
    Some(format!(
        "the way back is more than {LATE_SECONDS:.0} s behind, and so are the monolith's tables{why}"
    ))
}

/// What brings a way back that does not work to work again.
pub(super) fn next(status: &SliceStatus, commands: &Commands) -> Option<String> {
    let back = status.way_back.as_ref()?;
    match back.state.as_str() {
        "gap" | "diverged" => Some(commands.of("arm", &status.slice, "")),
        _ => {
            halted(status, back)?;
            let asked = last_word(back).and_then(|(_, next)| next).map(str::to_owned);
            Some(asked.unwrap_or_else(|| commands.of("mirror", &status.slice, "")))
        }
    }
}
