//! What was moved into quarantine schemas, kept on the monolith. Where it stands is read by
//! [`places`](crate::postgres::places), which is left of the journal.

use tokio_postgres::Client;

use super::JournalError;
use crate::name::{TableName, quote_literal};

/// SQL that shuts out whoever applies the slice's way back, once he has ended the transaction that he is in: he begins again where that
/// ended, as soon as this one is over, and looks then where the tables are.
#[must_use]
pub fn begin_way_back_again(slice: &str) -> String {
    format!(
        "UPDATE strangler.stream SET nonce = nonce + 1 WHERE slice = {} AND dir = 'reverse'",
        quote_literal(slice)
    )
}

/// SQL that notes which schema takes a slice's tables of another one.
#[must_use]
pub fn note_schema(slice: &str, schema: &str, quarantine: &str) -> String {
    format!(
        "INSERT INTO strangler.quarantine (slice, schema_name, quarantine) VALUES ({}, {}, {})",
        quote_literal(slice),
        quote_literal(schema),
        quote_literal(quarantine)
    )
}

/// SQL that notes what is moved, by the names that it has before that.
#[must_use]
pub fn note_moved<'a>(slice: &str, moved: impl Iterator<Item = (u32, &'a TableName)>) -> String {
    let row = |(oid, name): (u32, &TableName)| {
        let [slice, schema, relation] = [slice, &name.schema, &name.name].map(quote_literal);
        format!("({slice}, {oid}, {schema}, {relation})")
    };
    let rows: Vec<String> = moved.map(row).collect();
    format!(
        "INSERT INTO strangler.quarantined (slice, relation_oid, schema_name, relation) VALUES {}",
        rows.join(", ")
    )
}

/// SQL after which nothing of a slice is in quarantine.
#[must_use]
pub fn forget(slice: &str) -> [String; 2] {
    let slice = quote_literal(slice);
    [
        format!("DELETE FROM strangler.quarantined WHERE slice = {slice}"),
        format!("DELETE FROM strangler.quarantine WHERE slice = {slice}"),
    ]
}

/// What of a slice was moved: oid, and the name that it had.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn moved(monolith: &Client, slice: &str) -> Result<Vec<(u32, TableName)>, JournalError> {
    let sql = "SELECT relation_oid, schema_name, relation FROM strangler.quarantined WHERE slice = $1 ORDER BY 2, 3";
    let rows = monolith.query(sql, &[&slice]).await;
    let rows = rows.map_err(JournalError::database("reading what was moved into quarantine"))?;
    let of = |row: &tokio_postgres::Row| {
        (row.get(0), TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)))
    };
    Ok(rows.iter().map(of).collect())
}
