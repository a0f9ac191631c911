//! Statements on our own tables as text, for steps that are shown before they are taken.

use serde_json::Value;

use crate::name::quote_literal;

/// Records who the database is.
#[must_use]
pub fn insert_database(system_identifier: &str, database_oid: u32) -> String {
    format!(
        "INSERT INTO strangler.database (system_identifier, database_oid) VALUES ({}, {database_oid})",
        quote_literal(system_identifier)
    )
}

/// Enters a slice. `lock_key` is given, not drawn, so that it is known before the row exists.
#[must_use]
pub fn insert_slice(slice: &str, row: &super::provisioned::SliceRow) -> String {
    let values = [slice, &row.plan, &row.service, &row.side, &row.plan_hash, &row.publication]
        .map(quote_literal)
        .join(", ");
    format!(
        "INSERT INTO strangler.slice (slice, plan, service, side, plan_hash, publication, lock_key) \
         OVERRIDING SYSTEM VALUE VALUES ({values}, {})",
        row.lock_key
    )
}

/// Notes that a slice's mapping is another one now.
#[must_use]
pub fn set_plan_hash(slice: &str, hash: &str) -> String {
    format!(
        "UPDATE strangler.slice SET plan_hash = {} WHERE slice = {}",
        quote_literal(hash),
        quote_literal(slice)
    )
}

/// Enters a table by which the mirror knows it; names as they are shown, rows as they are estimated.
#[must_use]
pub fn insert_mirror_table(slice: &str, source: &str, target: &str, rows_estimate: f64) -> String {
    format!(
        "INSERT INTO strangler.mirror_table (slice, source_table, target_table, state, rows_estimate) \
         VALUES ({}, {}, {}, 'pending', {rows_estimate:.0}) ON CONFLICT (slice, source_table) DO NOTHING",
        quote_literal(slice),
        quote_literal(source),
        quote_literal(target),
    )
}

/// Forgets the tables of a slice.
#[must_use]
pub fn delete_mirror_tables(slice: &str) -> String {
    format!("DELETE FROM strangler.mirror_table WHERE slice = {}", quote_literal(slice))
}

/// Writes down a statement that waits for the data: slice, target table, kind, object, SQL.
#[must_use]
pub fn insert_deferred(values: [&str; 5]) -> String {
    format!(
        "INSERT INTO strangler.deferred (slice, target_table, kind, object, create_sql) VALUES ({}) \
         ON CONFLICT (slice, target_table, kind, object) DO NOTHING",
        values.map(quote_literal).join(", ")
    )
}

/// Forgets what waits in a slice, but for these of its tables.
#[must_use]
pub fn delete_deferred(slice: &str, but_for: &[String]) -> String {
    let name = quote_literal(slice);
    if but_for.is_empty() {
        return format!("DELETE FROM strangler.deferred WHERE slice = {name}");
    }
    let kept: Vec<String> = but_for.iter().map(|table| quote_literal(table)).collect();
    format!(
        "DELETE FROM strangler.deferred WHERE slice = {name} AND NOT target_table = ANY (ARRAY[{}]::text[])",
        kept.join(", ")
    )
}

/// An entry of the journal by a verb, e.g. `provision`.
#[must_use]
pub fn insert_journal(actor: &str, slice: Option<&str>, action: &str, detail: &Value) -> String {
    let slice = slice.map_or_else(|| "NULL".to_owned(), quote_literal);
    format!(
        "INSERT INTO strangler.journal (slice, actor, action, detail) VALUES ({slice}, {}, {}, {}::jsonb)",
        quote_literal(actor),
        quote_literal(action),
        quote_literal(&detail.to_string())
    )
}
