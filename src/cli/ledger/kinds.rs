//! The bodies of entries in some words; none where a body is not what this version writes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::words;

/// Digits of a hash that are shown: enough to tell two of them apart.
const HASH_DIGITS: usize = 12;

fn text<'a>(body: &'a Value, key: &str) -> Option<&'a str> {
    body.get(key)?.as_str()
}

/// `3 steps: 2 create table, 1 set up slice`.
pub(super) fn steps(body: &Value) -> Option<String> {
    let count = body.get("steps")?.as_u64()?;
    let mut actions: BTreeMap<&str, usize> = BTreeMap::new();
    for step in body.get("taken")?.as_array()? {
        *actions.entry(text(step, "action")?).or_default() += 1;
    }
    let actions: Vec<String> = actions.iter().map(|(action, count)| format!("{count} {action}")).collect();
    let count = words::plural(usize::try_from(count).unwrap_or(usize::MAX), "step");
    let approvers: BTreeSet<&str> =
        body.get("taken")?.as_array()?.iter().filter_map(|step| text(step, "approved_by")).collect();
    let approvers: Vec<&str> = approvers.into_iter().collect();
    let approved =
        if approvers.is_empty() { String::new() } else { format!(", approved by {}", approvers.join(", ")) };
    Some(format!("{count}: {}{approved}", actions.join(", ")))
}

/// `copy 1 of Orders ended: 1,200 rows, 4,096 bytes`.
pub(super) fn copy(body: &Value) -> Option<String> {
    let (table, number) = (text(body, "table")?, body.get("copy")?.as_i64()?);
    match text(body, "action")? {
        "ended" => {
            let count = |key: &str| body.get(key)?.as_u64().map(words::count);
            let (rows, bytes) = (count("rows")?, count("bytes")?);
            Some(format!("copy {number} of {table} ended: {rows} rows, {bytes} bytes"))
        }
        "again" => Some(format!("copy {number} of {table} begins: {}", text(body, "cause")?)),
        _ => None,
    }
}

pub(super) fn rehearsal(body: &Value) -> Option<String> {
    let number = |key: &str| body.get(key)?.as_u64().map(words::count);
    let (attempts, out_of_time) = (number("attempts")?, number("out_of_time")?);
    let mut parts = vec![format!(
        "{}: {attempts} attempts came through, {out_of_time} ran out of time",
        text(body, "action")?
    )];
    for (key, name) in [("p50_ms", "median"), ("p99_ms", "p99")] {
        let pause = body.get(key).and_then(Value::as_f64);
        parts.extend(pause.map(|pause| format!("{name} {pause:.1} ms")));
    }
    parts.push(format!("budget {:.0} ms", body.get("budget_ms")?.as_f64()?));
    Some(parts.join(", "))
}

pub(super) fn alarm(body: &Value) -> Option<String> {
    let table = text(body, "table");
    let detail = text(body, "detail");
    let of_table = |what: &str| Some(format!("{} {what}: {}", table?, detail?));
    match text(body, "alarm")? {
        "gap" => Some(format!("gap of the {} stream: {}", text(body, "direction")?, detail?)),
        "other-source" => {
            Some(format!("another source of the {} stream: {}", text(body, "direction")?, detail?))
        }
        "stopped" => Some(format!("the {} stream stopped: {}", text(body, "direction")?, detail?)),
        "diverged" => of_table("diverged and stands still"),
        "unheard" => of_table("changed in a way that is not in the stream"),
        "contradicted" => of_table("of the monolith contradicts the way back"),
        "outside-filter" => of_table("holds rows outside the filter"),
        "unwatched" => Some(format!("the watch over the {} began anew: {}", text(body, "side")?, detail?)),
        "stray-write" => {
            let tables: Vec<&str> =
                body.get("tables")?.as_array()?.iter().filter_map(Value::as_str).collect();
            let rows = words::count(body.get("rows")?.as_u64()?);
            Some(format!(
                "somebody wrote on the {}: {rows} rows of {}",
                text(body, "side")?,
                tables.join(", ")
            ))
        }
        _ => None,
    }
}

/// `arm with another policy: 0123456789ab, now fedcba987654`.
pub(super) fn plan(body: &Value) -> Option<String> {
    let verb = text(body, "verb")?;
    let change = |what: &str| {
        let change = body.get(what).filter(|change| !change.is_null())?;
        let short = |key: &str| text(change, key).map(|hash| hash.get(..HASH_DIGITS).unwrap_or(hash));
        let new = short("new")?;
        Some(match short("old") {
            Some(old) => format!("another {what}: {old}, now {new}"),
            None => format!("the first {what} that is named: {new}"),
        })
    };
    let changes: Vec<String> = ["mapping", "policy"].into_iter().filter_map(change).collect();
    if changes.is_empty() { None } else { Some(format!("{verb} with {}", changes.join(", "))) }
}

/// `entry 20 was changed: its content does not have its hash; accepted: restored from a backup`.
pub(super) fn accepted(body: &Value) -> Option<String> {
    let entry = body.get("broken_entry")?.as_i64()?;
    Some(format!("entry {entry} {}; accepted: {}", text(body, "fault")?, text(body, "reason")?))
}
