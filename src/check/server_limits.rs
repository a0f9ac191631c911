//! Settings of the monolith's server that a mirror runs into.

use super::facts::{Facts, Named};
use crate::name::quote_literal;
use crate::problem::Problem;

/// PostgreSQL's default. With less, transactions of ordinary size are spilled to disk or streamed in pieces.
const DECODING_MEMORY_BYTES: u64 = 64 << 20;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(slot_wal(facts));
    problems.extend(idle_slots(facts));
    problems.extend(prepared(facts));
    let memory = facts.monolith.setting("logical_decoding_work_mem").and_then(bytes);
    if let Some(memory) = memory.filter(|memory| *memory < DECODING_MEMORY_BYTES) {
        problems.push(
            Problem::note("decoding-memory", "monolith")
                .fact(format!("logical_decoding_work_mem is {}", shown(memory)))
                .consequence("transactions above that size are streamed before they end, and many at once slow each other down")
                .next("run: ALTER SYSTEM SET logical_decoding_work_mem = '64MB'; SELECT pg_reload_conf();"),
        );
    }
    problems
}

/// A slot keeps WAL without limit unless `max_slot_wal_keep_size` says otherwise; with it, the slot is lost at the
/// limit (PostgreSQL documentation, section 20.6.1).
fn slot_wal(facts: &Facts) -> Option<Problem> {
    let setting = facts.monolith.setting("max_slot_wal_keep_size")?;
    let budget = facts.plan.slices.values().map(|slice| slice.policy.wal_budget_bytes).max()?;
    if setting == "-1" {
        let problem = Problem::warning("slot-wal-unlimited", "monolith")
            .fact("max_slot_wal_keep_size is -1, so a slot may keep any amount of WAL")
            .consequence("while no mirror runs, WAL grows until the disk is full and the monolith stops")
            .next(format!(
                "run: ALTER SYSTEM SET max_slot_wal_keep_size = {}; SELECT pg_reload_conf();",
                setting_of(budget * 2)
            ));
        return Some(problem);
    }
    let kept = bytes(setting).filter(|kept| *kept < budget)?;
    let problem = Problem::warning("slot-wal-limit", "monolith")
        .fact(format!("max_slot_wal_keep_size is {}, and the plan's wal_budget {}", shown(kept), shown(budget)))
        .consequence("the server would drop the slot before the budget is used up, and the copy would start anew")
        .next(format!(
            "run: ALTER SYSTEM SET max_slot_wal_keep_size = {}; SELECT pg_reload_conf(); or lower policy.wal_budget",
            setting_of(budget * 2)
        ));
    Some(problem)
}

fn idle_slots(facts: &Facts) -> Option<Problem> {
    let timeout =
        facts.monolith.setting("idle_replication_slot_timeout").filter(|timeout| *timeout != "0")?;
    let problem = Problem::warning("slot-idle-timeout", "monolith")
        .fact(format!("idle_replication_slot_timeout is {timeout}"))
        .consequence("a mirror that is stopped for that long loses its slot, and the copy starts anew")
        .next("run: ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();");
    Some(problem)
}

fn prepared(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for Named { name, database, .. } in facts.databases() {
        let waiting = database.server.as_ref().map_or(0, |server| server.prepared_transactions);
        if waiting > 0 {
            problems.push(
                Problem::error("prepared-transactions", &name)
                    .fact(format!("prepared transactions that wait for their end on its server: {waiting}"))
                    .consequence(
                        "a slot can't be created before they end, and a gate they hold can't be fenced",
                    )
                    .next("look at pg_prepared_xacts, then COMMIT PREPARED or ROLLBACK PREPARED each"),
            );
        }
    }
    let allowed = facts.monolith.number("max_prepared_transactions").filter(|max| *max > 0);
    if let Some(max) = allowed {
        problems.push(
            Problem::warning("two-phase", "monolith")
                .fact(format!("max_prepared_transactions is {max}, so the application may prepare transactions"))
                .consequence("one that is left open holds its gate, so a flip waits for it")
                .next("make sure that nothing leaves prepared transactions open; where nobody uses them, set it to 0 and restart"),
        );
    }
    problems
}

/// A size as `SHOW` prints it: kB, MB, GB and TB are powers of 1024 (PostgreSQL documentation, section 20.1.1).
fn bytes(setting: &str) -> Option<u64> {
    let digits = setting.find(|c: char| !c.is_ascii_digit()).unwrap_or(setting.len());
    let (number, unit) = setting.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A size as the server reads it, rounded up to whole megabytes, quoted for SQL.
fn setting_of(size_bytes: u64) -> String {
    quote_literal(&format!("{}MB", size_bytes.div_ceil(1 << 20)))
}

fn shown(size_bytes: u64) -> String {
    bytesize::ByteSize::b(size_bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    fn set(name: &str, value: &str) -> Vec<Problem> {
        let mut facts = clean();
        facts.monolith_catalog().settings.insert(name.into(), value.into());
        rule(&facts)
    }

    #[test]
    fn settings_that_a_mirror_runs_into_are_named() {
        assert_eq!(rule(&clean()), []);
        expect(&set("max_slot_wal_keep_size", "-1"), Severity::Warning, "slot-wal-unlimited", "'95368MB'");
        expect(&set("max_slot_wal_keep_size", "10GB"), Severity::Warning, "slot-wal-limit", "10.0 GiB");
        expect(
            &set("idle_replication_slot_timeout", "10min"),
            Severity::Warning,
            "slot-idle-timeout",
            "10min",
        );
        expect(&set("max_prepared_transactions", "5"), Severity::Warning, "two-phase", "is 5");
        expect(&set("logical_decoding_work_mem", "4MB"), Severity::Note, "decoding-memory", "4.0 MiB");
        let mut facts = clean();
        facts.service("ordering").server.as_mut().unwrap().prepared_transactions = 2;
        expect(&rule(&facts), Severity::Error, "prepared-transactions", "service ordering");
    }

    #[test]
    fn sizes_are_read_as_the_server_prints_them() {
        for (text, size) in
            [("0", 0), ("64MB", 64 << 20), ("512kB", 512 << 10), ("2GB", 2 << 30), ("1TB", 1 << 40)]
        {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        assert_eq!(bytes("-1"), None);
        assert_eq!(bytes("99999999999999TB"), None);
    }
}
