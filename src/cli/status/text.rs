//! A slice's status as text: a heading, then a line per fact, then what to type.

use super::verdict;
use crate::cli::ui::{Ink, Paint};
use crate::status::orphans::Orphan;
use crate::status::{
    ArmedState, ArmedStatus, Authority, Lag, Phase, SliceStatus, TableStatus, Wal, WayBackStatus,
};
use crate::words;

/// Growth that takes longer than a month to meet its limit is nobody's worry today.
const WORTH_SAYING_SECONDS: f64 = 30.0 * 86_400.0;

/// The whole status of one slice, several lines.
pub(super) fn page(status: &SliceStatus, paint: Paint) -> String {
    let mut lines = vec![format!(
        "{}  {}  {}",
        paint.ink(Ink::Strong, &status.slice),
        paint.ink(phase_ink(status.phase), status.phase.words()),
        paint.ink(Ink::Faint, &way(status)),
    )];
    let mut fact = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
    if let Some(epoch) = status.epoch {
        fact("authority", format!("{}, epoch {epoch}", status.authority.words()));
    }
    for silent in &status.unreachable {
        fact("not read", paint.ink(Ink::Alarm, &silent.reason));
    }
    if let Some(lag) = &status.lag {
        fact("lag", lag_words(lag));
    }
    if let Some(back) = &status.way_back {
        fact("way back", back_words(back));
    }
    if !status.tables.is_empty() {
        fact("rows", rows_words(status));
        fact("tables", tables_words(&status.tables));
    }
    if let Some(wal) = &status.wal {
        fact("wal held", wal_words(wal));
        fact("slot", slot_words(wal));
    }
    if !status.deferred.is_empty() {
        let waits = |table: &TableStatus| matches!(table.state.as_str(), "pending" | "copying");
        fact("deferred", deferred_words(&status.deferred, status.tables.iter().any(waits)));
    }
    for (name, words) in verdict::lines(status, paint) {
        fact(name, words);
    }
    if let Some(armed) = &status.armed {
        fact("armed", armed_words(armed, paint));
    }
    if let Some(done) = &status.retirement {
        fact(
            "retired",
            match done.stage {
                "revoked" => format!("rights revoked since {}; to give them back: {}", done.since, done.undo),
                stage => format!("tables {stage} since {}; to bring them back: {}", done.since, done.undo),
            },
        );
        if let Some(archive) = &done.archive {
            fact(
                "archived",
                format!("at {}, on {}, as of {}", archive.place, archive.at, archive.reverse_lsn),
            );
        }
    }
    if !status.outdated.is_empty() {
        fact("schema", paint.ink(Ink::Caution, &outdated_words(&status.outdated)));
    }
    if let Some(process) = status.process.as_ref().filter(|_| shows_process(status.phase)) {
        let detail = process.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        fact("mirror", format!("process {} on {}, {}{detail}", process.pid, process.host, process.doing));
    }
    for table in status.tables.iter().filter(|table| table.state != "live" && table.state != "diverged") {
        fact("", table_words(table));
    }
    for alarm in &status.alarms {
        fact("alarm", paint.ink(Ink::Alarm, alarm));
    }
    for next in next_commands(status) {
        fact("next", paint.ink(Ink::Strong, &next));
    }
    lines.join("\n") + "\n"
}

/// From the side that has the authority to the one that follows it.
fn way(status: &SliceStatus) -> String {
    match status.authority {
        Authority::Service => format!("{} -> monolith", status.service),
        Authority::Monolith | Authority::Nobody | Authority::Both | Authority::Unknown => {
            format!("monolith -> {}", status.service)
        }
    }
}

/// What is shown of a slice that the plan lacks.
pub(super) fn orphan_page(orphan: &Orphan, paint: Paint) -> String {
    let alarm =
        "provisioned from this plan, which does not name it any longer: its gate, publication and slot stay";
    [
        format!(
            "{}  {}  {}",
            paint.ink(Ink::Strong, &orphan.slice),
            paint.ink(Ink::Alarm, "not in the plan"),
            paint.ink(Ink::Faint, &format!("monolith -> {}", orphan.service)),
        ),
        format!("  {:<10} {}", "found in", orphan.databases.join(", ")),
        format!("  {:<10} {}", "alarm", paint.ink(Ink::Alarm, alarm)),
        format!("  {:<10} {}", "next", paint.ink(Ink::Strong, &orphan.next)),
    ]
    .join("\n")
        + "\n"
}

/// The same for a watcher.
pub(super) fn orphan(orphan: &Orphan) -> String {
    format!("{} not in the plan, found in {}", orphan.slice, orphan.databases.join(", "))
}

/// What must change for a watcher to want a new line: not the numbers that change all the time.
pub(super) fn headline(status: &SliceStatus) -> String {
    let live = status.tables.iter().filter(|table| table.state == "live").count();
    let mut parts = vec![
        format!("{} {}", status.slice, status.phase.words()),
        format!("authority {}", status.authority.words()),
    ];
    if let Some(epoch) = status.epoch {
        parts.push(format!("epoch {epoch}"));
    }
    if !status.tables.is_empty() {
        parts.push(format!("{live} of {} live", words::plural(status.tables.len(), "table")));
    }
    if !status.deferred.is_empty() {
        parts.push(format!("{} deferred", status.deferred.len()));
    }
    parts.extend(verdict::headline(status));
    if let Some(armed) = status.armed.as_ref().filter(|armed| armed.state != ArmedState::NotArmed) {
        parts.push(format!("armed {}", armed.state.words()));
    }
    if !status.outdated.is_empty() {
        parts.push(outdated_words(&status.outdated));
    }
    parts.extend(status.unreachable.iter().map(|silent| format!("not read: {}", silent.reason)));
    // The seconds in a dead mirror's alarm grow without anything having changed.
    parts.extend(
        status.alarms.iter().filter(|_| status.phase != Phase::Dead).map(|alarm| format!("alarm: {alarm}")),
    );
    parts.join(", ")
}

fn phase_ink(phase: Phase) -> Ink {
    match phase {
        Phase::Streaming | Phase::Retired => Ink::Good,
        Phase::Copying | Phase::CatchingUp | Phase::Provisioned => Ink::Strong,
        Phase::NotProvisioned | Phase::Stopped | Phase::Dropping => Ink::Caution,
        Phase::Unknown | Phase::Dead | Phase::Gap | Phase::Diverged => Ink::Alarm,
    }
}

/// A process that said goodbye is no news, and a dead one has an alarm.
fn shows_process(phase: Phase) -> bool {
    matches!(phase, Phase::Copying | Phase::CatchingUp | Phase::Streaming)
}

fn lag_words(lag: &Lag) -> String {
    let bytes = lag.bytes.map(|bytes| format!("at most {} of WAL", words::bytes(bytes)));
    let seconds = lag.seconds.map(words::seconds);
    let parts: Vec<String> = [seconds, bytes].into_iter().flatten().collect();
    let parts = if parts.is_empty() { "unknown".to_owned() } else { parts.join(", ") };
    format!("{parts}; applied up to {}", lag.applied_lsn)
}

/// `applies, 12 ms; applied up to 0/1000`: whether it brings the service's writes back, and how far it is.
fn back_words(back: &WayBackStatus) -> String {
    let doing = match (back.process.as_ref().map(|process| process.doing.as_str()), back.mode.as_str()) {
        (None, _) => "never ran".to_owned(),
        (Some("streaming"), "apply") => "applies".to_owned(),
        (Some("watching"), "tripwire") => "watches".to_owned(),
        (Some(doing), _) => doing.to_owned(),
    };
    let lag = back.lag_seconds.map(|seconds| format!(", {}", words::seconds(seconds))).unwrap_or_default();
    let noted = if back.mode == "apply" { "applied" } else { "looked through" };
    format!("{doing}{lag}; {noted} up to {}", back.applied_lsn)
}

fn rows_words(status: &SliceStatus) -> String {
    let copied = words::count(status.rows_copied);
    let left = status.copy_seconds_left.map(|seconds| format!(", about {} left", words::seconds(seconds)));
    format!(
        "{copied} copied{}{}",
        of_about(status.rows_copied, status.rows_estimate),
        left.unwrap_or_default()
    )
}

/// Nothing where the monolith has no statistics yet, or where they are refuted: "of about 0" would be a number that looks
/// like a fact, and 33,000 of about 23,000 is none.
fn of_about(copied: u64, estimate: u64) -> String {
    if estimate == 0 || copied > estimate {
        String::new()
    } else {
        format!(" of about {}", words::count(estimate))
    }
}

fn tables_words(tables: &[TableStatus]) -> String {
    let number = |state: &str| tables.iter().filter(|table| table.state == state).count();
    let states = ["live", "copying", "pending", "diverged"].map(|state| (number(state), state));
    let parts =
        states.iter().filter(|(number, _)| *number > 0).map(|(number, state)| format!("{number} {state}"));
    parts.collect::<Vec<_>>().join(", ")
}

fn wal_words(wal: &Wal) -> String {
    let left = wal
        .seconds_left
        .filter(|seconds| *seconds < WORTH_SAYING_SECONDS)
        .map(|seconds| format!(", full in about {}", words::seconds(seconds)));
    format!(
        "{} of a budget of {}; {} left to {}{}",
        words::bytes(wal.held_bytes),
        words::bytes(wal.budget_bytes),
        words::bytes(wal.headroom_bytes),
        wal.limit.words(),
        left.unwrap_or_default(),
    )
}

fn slot_words(wal: &Wal) -> String {
    format!("{}, {}, {}", wal.slot, if wal.active { "in use" } else { "not in use" }, wal.wal_status)
}

fn deferred_words(deferred: &[String], copying: bool) -> String {
    const SHOWN: usize = 3;
    let when = if copying { "made once the copy is done" } else { "tried when the mirror starts" };
    let first = deferred.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match deferred.len().saturating_sub(SHOWN) {
        0 => format!("{first}; {when}"),
        more => format!("{first} and {more} more; {when}"),
    }
}

fn armed_words(armed: &ArmedStatus, paint: Paint) -> String {
    let ink = match armed.state {
        ArmedState::Armed => Ink::Good,
        ArmedState::PartlyArmed => Ink::Caution,
        ArmedState::NotArmed => Ink::Faint,
    };
    let mut text = paint.ink(ink, armed.state.words());
    // What is missing after a finished arm is said as alarms.
    if !armed.finished && !armed.lacks.is_empty() {
        text.push_str(&format!(": {}", armed.lacks.join("; ")));
    }
    if let Some(held) = armed.held_bytes {
        text.push_str(&format!("; the service holds {} of WAL for the way back", words::bytes(held)));
    }
    text
}

fn outdated_words(databases: &[String]) -> String {
    format!(
        "strangler's tables in {} are of an earlier version; provision upgrades them",
        databases.join(" and ")
    )
}

fn table_words(table: &TableStatus) -> String {
    let detail = table.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
    let (rows, estimate) =
        (words::count(table.rows_copied), of_about(table.rows_copied, table.rows_estimate));
    format!("{} {}, {rows}{estimate} rows{detail}", table.table, table.state)
}

/// The slice's next command, then that of every diverged table.
fn next_commands(status: &SliceStatus) -> Vec<String> {
    let mut commands: Vec<String> = status.next.iter().cloned().collect();
    for command in status.tables.iter().filter_map(|table| table.next.as_ref()) {
        if !commands.contains(command) {
            commands.push(command.clone());
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::status::{Process, Unreachable, WalLimit};

    fn status() -> SliceStatus {
        let table = |name: &str, state: &str| TableStatus {
            table: name.to_owned(),
            target: name.to_lowercase(),
            state: state.to_owned(),
            detail: (state == "diverged").then(|| "update hit 0 rows".to_owned()),
            unheard: false,
            rows_copied: 1500,
            rows_estimate: 2000,
            next: (state == "diverged")
                .then(|| format!("strangler mirror p.yaml --slice ordering --retry {name}")),
        };
        SliceStatus {
            slice: "ordering".to_owned(),
            service: "orders".to_owned(),
            phase: Phase::Copying,
            authority: Authority::Monolith,
            epoch: Some(0),
            lag: Some(Lag { bytes: Some(2048), seconds: Some(0.0124), applied_lsn: Lsn(0x16_0000_0A00) }),
            rows_copied: 4500,
            rows_estimate: 6000,
            copy_seconds_left: Some(90.0),
            wal: Some(Wal {
                slot: "strangler_retail_ordering".to_owned(),
                active: true,
                wal_status: "reserved".to_owned(),
                held_bytes: 16_800_000,
                budget_bytes: 50_000_000_000,
                headroom_bytes: 1_000_000_000,
                limit: WalLimit::MaxSlotWalKeepSize,
                seconds_left: Some(7200.0),
            }),
            process: Some(Process {
                host: "box".to_owned(),
                pid: 42,
                doing: "copying".to_owned(),
                detail: None,
                seen_seconds_ago: 1.0,
            }),
            way_back: None,
            stray_writes: None,
            tables: vec![table("Carts", "live"), table("Orders", "copying"), table("Lines", "diverged")],
            deferred: vec!["index orders_sku on sales.orders".to_owned()],
            evidence: None,
            armed: None,
            retirement: None,
            outdated: Vec::new(),
            unreachable: Vec::new(),
            alarms: vec!["table Lines diverged: update hit 0 rows".to_owned()],
            next: Some("strangler mirror p.yaml --slice ordering --retry Lines".to_owned()),
        }
    }

    #[test]
    fn a_page_says_every_fact_and_each_command_once() {
        insta::assert_snapshot!(page(&status(), Paint::Plain), @r"
        ordering  copying  monolith -> orders
          authority  monolith, epoch 0
          lag        12 ms, at most 2.0 kB of WAL; applied up to 16/A00
          rows       4,500 copied of about 6,000, about 1 min 30 s left
          tables     1 live, 1 copying, 1 diverged
          wal held   16.8 MB of a budget of 50.0 GB; 1.0 GB left to max_slot_wal_keep_size, full in about 2 h 0 min
          slot       strangler_retail_ordering, in use, reserved
          deferred   index orders_sku on sales.orders; made once the copy is done
          mirror     process 42 on box, copying
                     Orders copying, 1,500 of about 2,000 rows
          alarm      table Lines diverged: update hit 0 rows
          next       strangler mirror p.yaml --slice ordering --retry Lines
        ");
    }

    #[test]
    fn a_page_points_from_the_authority_to_the_copy() {
        let status = SliceStatus { authority: Authority::Service, ..status() };
        assert!(page(&status, Paint::Plain).starts_with("ordering  copying  orders -> monolith\n"));
    }

    #[test]
    fn alarms_are_red_on_a_terminal() {
        let page = page(&status(), Paint::Colour);
        assert!(page.contains("\u{1b}[31;1mtable Lines diverged"), "{page}");
    }

    #[test]
    fn a_silent_database_is_named_with_its_reason() {
        let mut status = status();
        status.unreachable =
            vec![Unreachable { database: "monolith".to_owned(), reason: "monolith: refused".to_owned() }];
        assert!(page(&status, Paint::Plain).contains("not read   monolith: refused"));
        assert!(headline(&status).contains("not read: monolith: refused"));
    }

    #[test]
    fn numbers_do_not_change_the_headline_and_states_do() {
        let (before, mut after) = (status(), status());
        after.lag = None;
        after.rows_copied += 1;
        assert_eq!(headline(&before), headline(&after));
        after.phase = Phase::Streaming;
        assert_ne!(headline(&before), headline(&after));
    }

    #[test]
    fn rows_that_nobody_has_counted_yet_are_not_estimated_as_none() {
        let mut status = status();
        status.rows_estimate = 0;
        status.tables.iter_mut().for_each(|table| table.rows_estimate = 0);
        assert_eq!(rows_words(&status), "4,500 copied, about 1 min 30 s left");
        assert_eq!(table_words(&status.tables[0]), "Carts live, 1,500 rows");
    }

    #[test]
    fn an_estimate_that_is_passed_is_no_figure_to_show() {
        assert_eq!(of_about(15, 20), " of about 20");
        assert_eq!((of_about(33, 23), of_about(0, 0)), (String::new(), String::new()));
    }
}
