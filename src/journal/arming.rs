//! What `arm` writes down on the monolith and `disarm` takes back: foreign keys that were dropped, the reverse
//! stream's row, and that a slice is armed.
//!
//! Statements come as text, because both verbs show them before they run them.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::JournalError;
use super::abandonment::of_this_life;
use super::process::WAITS_FOR_ARM;
use super::streams::{self, Mode, Source, StreamRow};
use crate::name::{TableName, quote_literal};

/// Action of the journal entry that says that a slice is armed. Written as the last step of `arm`.
pub const ARMED: &str = "armed";

/// Action of the entry with which `disarm` begins: from then on a missing gate is no alarm.
pub const DISARMING: &str = "disarming";

/// Action of the entry with which `disarm` ends.
pub const DISARMED: &str = "disarmed";

/// A foreign key across the cut that was dropped and not restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutKey {
    /// Number of its row.
    pub id: i64,
    /// Slice whose arming dropped it, or that it was handed over to.
    pub slice: String,
    /// Referencing table.
    pub child: TableName,
    /// Constraint name.
    pub name: String,
    /// Referenced table.
    pub parent: TableName,
    /// Referencing columns, in key order.
    pub columns: Vec<String>,
    /// Referenced columns, in key order.
    pub referenced_columns: Vec<String>,
    /// `pg_get_constraintdef` under an empty search path, so that every name in it is qualified.
    pub definition: String,
    /// It was validated.
    pub validated: bool,
    /// `COMMENT ON CONSTRAINT`.
    pub comment: Option<String>,
}

/// How a slice stands in the books of the monolith.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Armed {
    /// The last word of the journal is that the slice is armed.
    pub recorded: bool,
    /// `disarm` has begun and not ended.
    pub disarming: bool,
    /// Foreign keys that were dropped for it and not restored.
    pub cut_keys: i64,
}

/// How a slice stands. Called by `arm`, `disarm` and `status` on the monolith.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn armed(client: &Client, slice: &str) -> Result<Armed, JournalError> {
    let sql = format!(
        "SELECT (SELECT action FROM strangler.journal j WHERE slice = $1 AND action IN ($2, $3, $4) AND {} \
                   ORDER BY id DESC LIMIT 1), \
                   (SELECT count(*) FROM strangler.cut_key WHERE slice = $1 AND restored_at IS NULL)",
        of_this_life("j", "$1")
    );
    let row = client
        .query_one(&sql, &[&slice, &ARMED, &DISARMING, &DISARMED])
        .await
        .map_err(JournalError::database("reading whether a slice is armed"))?;
    let action: Option<&str> = row.get(0);
    Ok(Armed { recorded: action == Some(ARMED), disarming: action == Some(DISARMING), cut_keys: row.get(1) })
}

/// Second key of the gate's lock of a slice in this database; `None` when the slice is not provisioned here.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn lock_key(client: &Client, slice: &str) -> Result<Option<i32>, JournalError> {
    client
        .query_typed_opt("SELECT lock_key FROM strangler.slice WHERE slice = $1", &[(&slice, Type::TEXT)])
        .await
        .map(|row| row.map(|row| row.get(0)))
        .map_err(JournalError::database("reading the slice"))
}

/// The reverse stream's row of a slice, asked of the monolith.
///
/// # Errors
/// [`JournalError`].
pub async fn reverse(client: &Client, slice: &str) -> Result<Option<StreamRow>, JournalError> {
    let sql = format!(
        "SELECT {} FROM strangler.stream WHERE slice = $1 AND dir = 'reverse' AND lane = 0",
        streams::COLUMNS
    );
    let row = client
        .query_opt(&sql, &[&slice])
        .await
        .map_err(JournalError::database("reading the reverse stream's row"))?;
    row.as_ref().map(streams::from_row).transpose()
}

/// Foreign keys that were dropped and not restored, of every slice.
///
/// # Errors
/// [`JournalError`].
pub async fn cut_keys(client: &Client) -> Result<Vec<CutKey>, JournalError> {
    let sql = "SELECT id, slice, child_table, name, parent_table, definition, validated, comment, columns, \
               referenced_columns FROM strangler.cut_key WHERE restored_at IS NULL ORDER BY id";
    let rows = client
        .query_typed(sql, &[])
        .await
        .map_err(JournalError::database("reading the foreign keys that were cut"))?;
    rows.iter().map(cut_key).collect()
}

fn cut_key(row: &Row) -> Result<CutKey, JournalError> {
    let table = |index: usize| {
        let text: &str = row.get(index);
        TableName::parse(text, "public")
            .map_err(|_| JournalError::Unreadable { what: "cut_key's table", found: text.to_owned() })
    };
    Ok(CutKey {
        id: row.get(0),
        slice: row.get(1),
        child: table(2)?,
        name: row.get(3),
        parent: table(4)?,
        definition: row.get(5),
        validated: row.get(6),
        comment: row.get(7),
        columns: row.get(8),
        referenced_columns: row.get(9),
    })
}

/// Writes a foreign key down as it stands at this moment. Runs in the transaction that drops it. A row that is there
/// already, from a key that came back without being proven, holds the first form and stays.
#[must_use]
pub fn insert_cut_key(slice: &str, child: &TableName, name: &str, parent: &TableName) -> String {
    let [shown_slice, shown_child, shown_parent, regclass, constraint] =
        [slice, &child.to_string(), &parent.to_string(), &child.sql(), name].map(quote_literal);
    let names = |relation: &str, numbers: &str| {
        format!(
            "ARRAY(SELECT a.attname::text FROM unnest({numbers}) WITH ORDINALITY AS k (number, place) JOIN pg_attribute a \
             ON a.attrelid = {relation} AND a.attnum = k.number ORDER BY k.place)"
        )
    };
    format!(
        "INSERT INTO strangler.cut_key (slice, child_table, name, columns, parent_table, referenced_columns, on_delete, \
         definition, validated, comment)\n    SELECT {shown_slice}, {shown_child}, conname, {}, {shown_parent}, {}, \
         confdeltype, pg_get_constraintdef(oid), convalidated, obj_description(oid, 'pg_constraint')\n    \
         FROM pg_constraint WHERE contype = 'f' AND conrelid = {regclass}::regclass AND conname = {constraint}\n    \
         ON CONFLICT (child_table, name) WHERE restored_at IS NULL DO NOTHING",
        names("conrelid", "conkey"),
        names("confrelid", "confkey")
    )
}

/// Notes that a dropped foreign key stands again.
#[must_use]
pub fn set_restored(id: i64) -> String {
    format!("UPDATE strangler.cut_key SET restored_at = now() WHERE id = {id}")
}

/// From now on another slice answers for a dropped foreign key, because its tables need it gone.
#[must_use]
pub fn hand_over(id: i64, slice: &str) -> String {
    format!("UPDATE strangler.cut_key SET slice = {} WHERE id = {id}", quote_literal(slice))
}

/// Why the way back can't be read on, where its mirror has recorded that it waits for `arm`. Of the stream that is there now
/// only: another one has been made since otherwise. `asked` is how versions before this one asked, whose rows say `stopped`.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn asked_anew(monolith: &Client, slice: &str, asked: &str) -> Result<Option<String>, JournalError> {
    let sql = "SELECT p.detail FROM strangler.mirror_process p JOIN strangler.stream s ON s.nonce = p.nonce \
               WHERE p.slice = $1 AND s.slice = $1 AND p.dir = 'reverse' AND s.dir = 'reverse' \
                   AND p.stopped_at IS NOT NULL AND (p.phase = $2 OR p.phase = 'stopped' AND position($3 IN p.detail) > 0)";
    let row = monolith.query_opt(sql, &[&slice, &WAITS_FOR_ARM, &asked]).await;
    Ok(row.map_err(JournalError::database("reading why the way back ended"))?.and_then(|row| row.get(0)))
}

/// Action of the journal's entry about the publication that a way back began with.
const PUBLICATION: &str = "way-back-publication";

/// The publication that the way back with this slot began with, as [`note_publication`] wrote it down.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn noted_publication(
    monolith: &Client,
    slice: &str,
    slot: &str,
) -> Result<Option<String>, JournalError> {
    let sql = "SELECT detail ->> 'stamp' FROM strangler.journal \
               WHERE slice = $1 AND action = $2 AND detail ->> 'slot' = $3 ORDER BY id DESC LIMIT 1";
    let row = monolith.query_opt(sql, &[&slice, &PUBLICATION, &slot]).await;
    Ok(row.map_err(JournalError::database("reading the journal"))?.and_then(|row| row.get(0)))
}

/// Writes it down, once for a slot.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn note_publication(
    monolith: &Client,
    slice: &str,
    (slot, stamp): (&str, &str),
) -> Result<(), JournalError> {
    let detail = serde_json::json!({ "slot": slot, "stamp": stamp });
    super::record(monolith, Some(slice), PUBLICATION, &detail).await
}

/// Where a reverse stream is to begin.
#[derive(Debug, Clone, Copy)]
pub struct Beginning<'a> {
    /// Epoch of the gates.
    pub epoch: i64,
    /// What it is for: a tripwire while the monolith has the authority, else it applies.
    pub mode: Mode,
    /// Slot in the service that is about to be made.
    pub slot: &'a str,
    /// Publication of the service.
    pub publication: &'a str,
    /// The service's database.
    pub source: &'a Source,
}

/// Writes the reverse stream's row before its slot is made, in place of an earlier one, and forgets what that one left.
/// Whoever read that one is shut out by the nonce. A row that was turned by a flip since it was looked at is left alone.
#[must_use]
pub fn begin_reverse(slice: &str, beginning: Beginning<'_>) -> Vec<String> {
    let begin = write_reverse(slice, beginning);
    // The stream's row comes first: its reader has ended its transaction then, and begins no other.
    std::iter::once(begin).chain(forget_tables(slice)).collect()
}

fn write_reverse(slice: &str, beginning: Beginning<'_>) -> String {
    let Beginning { epoch, mode, slot, publication, source } = beginning;
    let [slice, mode, slot, publication, system, uuid] =
        [slice, mode.as_str(), slot, publication, &source.system_identifier, &source.uuid].map(quote_literal);
    let (database, timeline) = (source.database_oid, source.timeline);
    format!(
        "INSERT INTO strangler.stream (slice, dir, lane, epoch, mode, state, slot, publication, \
         src_system_identifier, src_database_oid, src_uuid, src_timeline, applied_lsn, nonce)\n    \
         VALUES ({slice}, 'reverse', 0, {epoch}, {mode}, 'creating', {slot}, {publication}, {system}, {database}, \
         {uuid}, {timeline}, '0/0', (random() * 1e12)::bigint)\n    ON CONFLICT (slice, dir, lane) DO UPDATE SET epoch = excluded.epoch, \
         mode = excluded.mode, state = excluded.state, detail = NULL, slot = excluded.slot, \
         publication = excluded.publication, src_system_identifier = excluded.src_system_identifier, \
         src_database_oid = excluded.src_database_oid, src_uuid = excluded.src_uuid, \
         src_timeline = excluded.src_timeline, applied_lsn = excluded.applied_lsn, applied_at = now(), \
         source_time = NULL, nonce = stream.nonce + 1\n    WHERE stream.epoch <= excluded.epoch"
    )
}

/// The slot is there: the reverse stream starts at its position. `start` and `timeline` are SQL, or what stands for it
/// where the statement is only shown. Does nothing to a row that has another slot by now.
#[must_use]
pub fn start_reverse(slice: &str, slot: &str, start: &str, timeline: &str) -> String {
    format!(
        "UPDATE strangler.stream SET state = 'running', detail = NULL, applied_lsn = {start}, applied_at = now(), \
         src_timeline = {timeline}\n    WHERE slice = {} AND dir = 'reverse' AND lane = 0 AND slot = {} \
         AND state = 'creating'",
        quote_literal(slice),
        quote_literal(slot)
    )
}

/// Shuts out whoever reads the reverse stream, so that its slot can go.
#[must_use]
pub fn stop_reverse(slice: &str) -> String {
    format!(
        "UPDATE strangler.stream SET mode = 'OFF', nonce = nonce + 1 WHERE slice = {} AND dir = 'reverse'",
        quote_literal(slice)
    )
}

/// Forgets the reverse stream and all that it kept, after its slot has gone.
#[must_use]
pub fn forget_reverse(slice: &str) -> Vec<String> {
    let stream =
        format!("DELETE FROM strangler.stream WHERE slice = {} AND dir = 'reverse'", quote_literal(slice));
    std::iter::once(stream).chain(forget_tables(slice)).collect()
}

/// What a way back keeps of its tables belongs to one slot and one publication: under which entries the tables were
/// published, which pieces were read again, and what was written since when. Another way back begins without it.
fn forget_tables(slice: &str) -> impl Iterator<Item = String> {
    let slice = quote_literal(slice);
    ["piece", "touched", "touched_floor", "mirror_table"]
        .into_iter()
        .map(move |table| format!("DELETE FROM strangler.{table} WHERE slice = {slice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_stay_inside_their_quotes() {
        let child = TableName::new("public", "it's");
        let sql = insert_cut_key("a'b", &child, "f'k", &TableName::new("s.t", "p"));
        for part in
            ["'a''b'", "'it''s'", "'\"public\".\"it''s\"'::regclass", "conname = 'f''k'", "'\"s.t\".p'"]
        {
            assert!(sql.contains(part), "{part} is not in {sql}");
        }
    }

    #[test]
    fn a_stream_that_begins_anew_shuts_its_reader_out() {
        let source =
            Source { system_identifier: "1".to_owned(), database_oid: 2, uuid: "u".to_owned(), timeline: 3 };
        let beginning =
            Beginning { epoch: 4, mode: Mode::Tripwire, slot: "slot", publication: "pub", source: &source };
        let statements = begin_reverse("one", beginning);
        let sql = &statements[0];
        assert!(sql.contains("nonce = stream.nonce + 1"));
        assert_eq!(statements[1..], forget_reverse("one")[1..], "nothing of the earlier one stays");
        assert!(sql.contains("'TRIPWIRE', 'creating', 'slot', 'pub', '1', 2, 'u', 3, '0/0'"), "{sql}");
        assert!(start_reverse("one", "slot", "'0/1'", "1").contains("slot = 'slot' AND state = 'creating'"));
    }
}
