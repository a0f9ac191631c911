//! Ledgers as text.

use serde_json::Value;

use super::{ServiceLedger, Shown, Verification, kinds};
use crate::cli::ui::{Ink, Paint};
use crate::words;

/// Characters of a body of a kind that this version does not know.
const BODY_CHARACTERS: usize = 100;

/// All services.
pub(super) fn pages(services: &[ServiceLedger], paint: Paint) -> String {
    services.iter().map(|service| page(service, paint)).collect::<Vec<_>>().join("\n")
}

fn page(service: &ServiceLedger, paint: Paint) -> String {
    let mut page = format!("{}\n", paint.ink(Ink::Strong, &service.service));
    if let Some(verification) = &service.verification {
        page += &format!("  {}\n", verified(verification, paint));
    }
    let Some(entries) = &service.entries else { return page };
    if entries.is_empty() {
        page += "  no entries\n";
    }
    for entry in entries {
        let about = entry.slice.as_deref().unwrap_or("-");
        let epoch = entry.epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
        page += &format!(
            "  {:>5}  {}  {:9}  {about}, epoch {epoch}: {}{}  {}\n",
            entry.entry,
            entry.at.get(..19).unwrap_or(&entry.at).replace('T', " "),
            entry.kind,
            summary(entry),
            void(entry, paint),
            paint.ink(Ink::Faint, &format!("{}@{}", entry.operator, entry.host)),
        );
    }
    page
}

/// Why a verdict proves nothing any more.
fn void(entry: &Shown, paint: Paint) -> String {
    let reasons = entry.void.as_deref().unwrap_or_default();
    if reasons.is_empty() {
        return String::new();
    }
    format!("  {}", paint.ink(Ink::Alarm, &format!("void: {}", reasons.join("; "))))
}

fn verified(found: &Verification, paint: Paint) -> String {
    match (found.broken_entry, &found.fault) {
        (Some(entry), Some(fault)) => {
            let broken = paint.ink(Ink::Alarm, "broken");
            format!(
                "{broken}: entry {entry} {fault}. What it and earlier entries say proves nothing any more; --accept-broken REASON goes \
                 on from here"
            )
        }
        _ => {
            let entries = found.entries.unwrap_or(0);
            let last = found.head.as_deref().map(|hash| format!(", the last one's hash is {hash}"));
            let kept = if found.journal == "service" { ", which a service keeps now," } else { "" };
            let confirmed = match found.confirmed {
                Some(confirmed) if confirmed == entries => {
                    format!("; the monolith's journal{kept} confirms all of them")
                }
                Some(confirmed) => {
                    format!("; the monolith's journal{kept} confirms them up to entry {confirmed}")
                }
                None if entries == 0 => String::new(),
                None => "; the monolith's journal remembers none of them, so it can't confirm that they are all there, and as they were written: look \
                     at what is there"
                    .to_owned(),
            };
            let whole = paint.ink(Ink::Good, "whole");
            let entries = words::count(u64::try_from(entries).unwrap_or(0));
            let accepted = found.accepted.map(|entry| {
                format!("; from entry {entry} on, by which a human accepted that earlier ones were broken")
            });
            let (last, accepted) = (last.unwrap_or_default(), accepted.unwrap_or_default());
            format!("{whole}: {entries} entries{last}{confirmed}{accepted}")
        }
    }
}

/// The entry in some words; one of a kind that is not known, as it is.
fn summary(entry: &Shown) -> String {
    let body = &entry.body;
    let known = match entry.kind.as_str() {
        "verdict" => verdict(body),
        "repair" => repair(body),
        "flip" => flip(body),
        "rehearsal" => kinds::rehearsal(body),
        "provision" | "arm" | "disarm" | "retire" | "unretire" | "abandon" => kinds::steps(body),
        "copy" => kinds::copy(body),
        "alarm" => kinds::alarm(body),
        "plan" => kinds::plan(body),
        "accepted" => kinds::accepted(body),
        _ => None,
    };
    known.unwrap_or_else(|| {
        let text = body.to_string();
        let cut: String = text.chars().take(BODY_CHARACTERS).collect();
        if cut.len() < text.len() { format!("{cut}…") } else { cut }
    })
}

fn verdict(body: &Value) -> Option<String> {
    let outcome = body.get("outcome")?.as_str()?;
    let mut parts = vec![outcome.to_owned()];
    let counts = body.get("counts").and_then(Value::as_object);
    let found = counts.into_iter().flatten().filter_map(|(kind, count)| {
        let count = count.as_u64().filter(|count| *count > 0)?;
        Some(format!("{} {kind}", words::count(count)))
    });
    parts.extend(found);
    if body.get("full").and_then(Value::as_bool) == Some(false) {
        parts.push("not every row".to_owned());
    }
    if body.get("strict").and_then(Value::as_bool) == Some(true) {
        parts.push("strict".to_owned());
    }
    let reasons = body.get("reasons").and_then(Value::as_array).into_iter().flatten();
    parts.extend(reasons.filter_map(Value::as_str).map(str::to_owned));
    Some(parts.join(", "))
}

fn repair(body: &Value) -> Option<String> {
    let rows = body.get("rows")?.as_array()?.len();
    let accepted = body.get("accepted_no_rows").and_then(Value::as_str);
    let accepted = accepted.map(|reason| format!(", of which the authority holds none; accepted: {reason}"));
    let table = body.get("table")?.as_str()?;
    Some(format!("{} of {table} repaired{}", words::plural(rows, "row"), accepted.unwrap_or_default()))
}

fn flip(body: &Value) -> Option<String> {
    let action = body.get("action")?.as_str()?;
    let mut parts = vec![match body.get("owner").and_then(Value::as_str) {
        Some(owner) => format!("{action}, the {owner} has the authority"),
        None => action.to_owned(),
    }];
    let pause = body.get("pause_ms").and_then(Value::as_f64);
    parts.extend(pause.map(|pause| format!("writers paused for {pause:.1} ms")));
    let remark = body.get("remark").and_then(Value::as_str);
    parts.extend(remark.map(|remark| format!("without evidence: {remark}")));
    let approved = body.get("approved_by").and_then(Value::as_str);
    parts.extend(approved.map(|name| format!("approved by {name}")));
    Some(parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(kind: &str, body: Value) -> Shown {
        Shown {
            entry: 12,
            at: "2026-11-01T12:00:00.123456Z".to_owned(),
            kind: kind.to_owned(),
            plan: "retail".to_owned(),
            slice: Some("ordering".to_owned()),
            operator: "anna".to_owned(),
            host: "desk".to_owned(),
            epoch: Some(2),
            lsn: None,
            plan_hash: None,
            body,
            previous: "00".to_owned(),
            hash: "0a".to_owned(),
            void: None,
        }
    }

    #[test]
    fn entries_are_told_in_some_words() {
        let entries = vec![
            entry(
                "verdict",
                json!({ "outcome": "clean", "full": true, "counts": { "missing": 0 }, "reasons": [] }),
            ),
            entry(
                "verdict",
                json!({ "outcome": "differs", "full": false, "strict": true, "counts": { "missing": 1200, "extra": 0 },
                    "reasons": ["the table is copying"] }),
            ),
            entry("repair", json!({ "table": "Orders", "rows": [["1"], ["2"]] })),
            entry(
                "flip",
                json!({ "action": "flip", "owner": "service", "pause_ms": 14.24, "remark": "seen before" }),
            ),
            entry("flip", json!({ "action": "flip-back", "owner": "monolith", "approved_by": "Ada" })),
            entry(
                "rehearsal",
                json!({ "action": "flip", "slices": ["ordering"], "attempts": 20, "out_of_time": 2, "p50_ms": 14.2,
                    "p99_ms": 31.0, "budget_ms": 500.0 }),
            ),
            entry(
                "provision",
                json!({ "steps": 3, "taken": [{ "side": "service", "action": "create table", "object": "Orders" },
                    { "side": "service", "action": "create table", "object": "Lines" },
                    { "side": "monolith", "action": "set up slice", "object": "ordering", "approved_by": "Ada" }] }),
            ),
            entry(
                "copy",
                json!({ "action": "ended", "table": "Orders", "rows": 1200, "bytes": 4096, "copy": 1 }),
            ),
            entry("copy", json!({ "action": "again", "table": "Orders", "cause": "retry", "copy": 2 })),
            entry("alarm", json!({ "alarm": "gap", "direction": "forward", "detail": "the slot is gone" })),
            entry(
                "alarm",
                json!({ "alarm": "unwatched", "side": "monolith", "detail": "writes past its gate were not seen" }),
            ),
            entry(
                "alarm",
                json!({ "alarm": "stray-write", "side": "monolith", "rows": 3, "tables": ["Orders"] }),
            ),
            entry(
                "alarm",
                json!({ "alarm": "stopped", "direction": "reverse", "detail": "a column is gone" }),
            ),
            entry(
                "alarm",
                json!({ "alarm": "unheard", "table": "Orders", "detail": "TRUNCATE of a partition" }),
            ),
            entry(
                "plan",
                json!({ "verb": "arm", "mapping": null,
                    "policy": { "old": "0123456789abcdef", "new": "fedcba9876543210" } }),
            ),
            entry(
                "plan",
                json!({ "verb": "provision", "mapping": { "old": null, "new": "00ff" }, "policy": null }),
            ),
            Shown {
                void: Some(vec!["authority moved: epoch 1 then, 2 now".to_owned()]),
                ..entry("verdict", json!({ "outcome": "clean", "full": true, "counts": {}, "reasons": [] }))
            },
            entry("retire", json!({ "stage": "x".repeat(200) })),
        ];
        let service =
            ServiceLedger { service: "orders".to_owned(), entries: Some(entries), verification: None };
        insta::assert_snapshot!(pages(&[service], Paint::Plain));
    }

    #[test]
    fn a_chain_is_whole_or_its_first_fault_is_told() {
        let verification = |whole: bool, entries: Option<i64>, confirmed: Option<i64>| Verification {
            whole,
            entries,
            head: entries.filter(|entries| *entries > 0).map(|_| "0a1b".to_owned()),
            confirmed,
            accepted: None,
            broken_entry: (!whole).then_some(3),
            fault: (!whole).then(|| "was changed: its content does not have its hash".to_owned()),
            journal: "monolith",
        };
        let all = [
            verification(true, Some(12), Some(12)),
            verification(true, Some(12), Some(11)),
            verification(true, Some(12), None),
            verification(true, Some(0), None),
            verification(false, None, None),
            Verification { accepted: Some(9), ..verification(true, Some(12), Some(12)) },
        ];
        insta::assert_snapshot!(all.map(|one| verified(&one, Paint::Plain)).join("\n"));
    }
}
