//! Verdicts as the ledger has them, without what their bodies mean.

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use super::JournalError;
use super::ledger::{ABANDON, FLIP, VERDICT};
use crate::clock::SystemClock;
use crate::lsn::Lsn;
use crate::postgres::ask::Ask;

/// A verdict's entry.
#[derive(Debug, Clone, PartialEq)]
pub struct VerdictRow {
    /// Number of the entry.
    pub entry: i64,
    /// When it was given, as RFC 3339.
    pub at: String,
    /// Seconds since then.
    pub age_s: f64,
    /// Seconds since its run began.
    pub begun_ago_s: f64,
    /// Epoch of the authority.
    pub epoch: Option<i64>,
    /// Position on the authority that everything compared had reached.
    pub lsn: Option<Lsn>,
    /// Hash of the slice's mapping.
    pub plan_hash: Option<String>,
    /// JSON with the body's `run`, `outcome`, `full`, `strict`, `authority`, `from_lsn`, `counts` and `ground`. In place of the list
    /// of tables, which may be long: `compared`, how many there are, `coverage`, what was looked at of them, each once,
    /// and `differing`, the names of those that differ.
    pub body: String,
}

/// The last verdict on a slice: whatever it covered, or the last one that covers every row.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn last(client: &Client, slice: &str, full: bool) -> Result<Option<VerdictRow>, JournalError> {
    let sql = "SELECT id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
            greatest(0, extract(epoch FROM $4::timestamptz - at))::float8, \
            greatest(0, extract(epoch FROM $4::timestamptz - (body ->> 'started_at')::timestamptz))::float8, \
            epoch, lsn, plan_hash, json_build_object('run', body -> 'run', 'outcome', body -> 'outcome', \
                'full', body -> 'full', 'strict', body -> 'strict', 'authority', body -> 'authority', 'from_lsn', body -> 'from_lsn', \
                'counts', body -> 'counts', 'ground', body -> 'ground', \
                'compared', coalesce(json_array_length(body -> 'tables'), 0), \
                'coverage', (SELECT coalesce(json_agg(DISTINCT (t -> 'coverage')::jsonb), '[]') \
                    FROM json_array_elements(body -> 'tables') AS t), \
                'differing', (SELECT coalesce(json_agg(t -> 'source_table'), '[]') \
                    FROM json_array_elements(body -> 'tables') AS t WHERE t ->> 'outcome' = 'differs'))::text \
        FROM strangler.ledger WHERE slice = $1 AND kind = $2 AND (NOT $3 OR body ->> 'full' = 'true') \
            AND id > (SELECT coalesce(max(id), 0) FROM strangler.ledger WHERE slice = $1 AND kind = 'abandon') \
        ORDER BY id DESC LIMIT 1";
    let row =
        client.query_opt(sql, &[&slice, &VERDICT, &full, &SystemClock.now()]).await.map_err(reading())?;
    Ok(row.map(|row| VerdictRow {
        entry: row.get(0),
        at: row.get(1),
        age_s: row.get(2),
        begun_ago_s: row.get(3),
        epoch: row.get(4),
        lsn: row.get::<_, Option<PgLsn>>(5).map(Lsn::from),
        plan_hash: row.get(6),
        body: row.get(7),
    }))
}

/// What verdicts after an entry found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffersAfter {
    /// Differences.
    pub any: bool,
    /// Some that are no orphans.
    pub rows: bool,
}

/// A verdict found differences after an entry, and after the last full one that is clean. An incomplete one, however much it
/// covers, takes nothing back: pass 0 for it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn differs_after(client: &impl Ask, slice: &str, entry: i64) -> Result<DiffersAfter, JournalError> {
    let sql = "SELECT count(*) > 0, count(*) FILTER (WHERE EXISTS (SELECT FROM json_each_text(body -> 'counts') AS c \
                   WHERE c.key <> 'orphan' AND c.value <> '0')) > 0 \
               FROM strangler.ledger WHERE slice = $1 AND kind = $2 \
               AND id > greatest($3, (SELECT max(id) FROM strangler.ledger WHERE slice = $1 AND (kind = 'abandon' OR kind = $2 \
                   AND body ->> 'full' = 'true' AND body ->> 'outcome' = 'clean'))) \
               AND body ->> 'outcome' = 'differs'";
    let asked: [(&(dyn ToSql + Sync), Type); 3] =
        [(&slice, Type::TEXT), (&VERDICT, Type::TEXT), (&entry, Type::INT8)];
    let row = client.ask_one(sql, &asked).await.map_err(reading())?;
    Ok(DiffersAfter { any: row.get(0), rows: row.get(1) })
}

/// What verdicts of this life of a slice say of one of its tables, and no later comparison of all its rows, nor a new copy, has taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The table by the service's name, as it is shown.
    pub target_table: String,
    /// Number of the verdict's entry.
    pub entry: i64,
    /// When it was given, as RFC 3339.
    pub at: String,
    /// Who held the authority then: `monolith` or `service`.
    pub authority: String,
    /// JSON object with the findings, by kind.
    pub findings: String,
}

/// Reads it. Which kinds of findings matter is the caller's to say.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn named(service: &Client, slice: &str) -> Result<Vec<Named>, JournalError> {
    let sql = "WITH told AS (SELECT l.id, l.at, l.body ->> 'authority' AS authority, t ->> 'target_table' AS target, \
                t ->> 'source_table' AS source, t -> 'coverage' ->> 'kind' AS coverage, t ->> 'outcome' AS outcome, t -> 'findings' AS findings, \
                (l.body -> 'ground' -> 'tables' -> (t ->> 'source_table') ->> 'copy')::int AS copy \
            FROM strangler.ledger l CROSS JOIN LATERAL json_array_elements(l.body -> 'tables') AS t \
            WHERE l.slice = $1 AND l.kind = $2 \
                AND l.id > coalesce((SELECT max(id) FROM strangler.ledger WHERE slice = $1 AND kind = $3), 0)) \
        SELECT target, id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), coalesce(authority, 'monolith'), findings::text \
        FROM told WHERE target IS NOT NULL AND findings IS NOT NULL AND outcome = 'differs' \
            AND NOT EXISTS (SELECT FROM told whole WHERE whole.source = told.source AND whole.id > told.id \
                AND whole.coverage = 'full' AND whole.outcome <> 'incomplete') \
            AND NOT EXISTS (SELECT FROM strangler.mirror_table m WHERE m.slice = $1 AND m.source_table = told.source \
                AND (m.copy_number <> told.copy OR m.state IN ('pending', 'copying'))) \
        ORDER BY id";
    let asked: [(&(dyn ToSql + Sync), Type); 3] =
        [(&slice, Type::TEXT), (&VERDICT, Type::TEXT), (&ABANDON, Type::TEXT)];
    let rows = service.query_typed(sql, &asked).await.map_err(reading())?;
    let named = |row: &tokio_postgres::Row| Named {
        target_table: row.get(0),
        entry: row.get(1),
        at: row.get(2),
        authority: row.get(3),
        findings: row.get(4),
    };
    Ok(rows.iter().map(named).collect())
}

/// The number of the last verdict on a slice, 0 without one.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn last_number(client: &Client, slice: &str) -> Result<i64, JournalError> {
    let sql = "SELECT coalesce(max(id), 0) FROM strangler.ledger WHERE slice = $1 AND kind = $2";
    let row = client.query_one(sql, &[&slice, &VERDICT]).await.map_err(reading())?;
    Ok(row.get(0))
}

/// A verdict of an earlier epoch, when the other side had the authority, that found rows to differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DifferedBefore {
    /// Number of its entry.
    pub entry: i64,
    /// When it was given, as RFC 3339.
    pub at: String,
    /// The tables that differed, by the monolith's names.
    pub tables: Vec<String>,
}

/// The last verdict before the authority moved to `authority` that found rows to differ, where no full clean one has taken
/// that back.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn differed_before(
    client: &Client,
    slice: &str,
    (epoch, authority): (i64, &str),
) -> Result<Option<DifferedBefore>, JournalError> {
    let sql = "SELECT id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
                   ARRAY(SELECT t ->> 'source_table' FROM json_array_elements(body -> 'tables') AS t \
                       WHERE t ->> 'outcome' = 'differs') \
               FROM strangler.ledger WHERE slice = $1 AND kind = $2 AND epoch < $3 AND body ->> 'authority' <> $4 \
                   AND EXISTS (SELECT FROM json_each_text(body -> 'counts') AS c WHERE c.key <> 'orphan' AND c.value <> '0') \
                   AND id > coalesce((SELECT max(id) FROM strangler.ledger WHERE slice = $1 AND (kind = 'abandon' OR kind = $2 \
                       AND body ->> 'full' = 'true' AND body ->> 'outcome' = 'clean')), 0) \
               ORDER BY id DESC LIMIT 1";
    let row = client.query_opt(sql, &[&slice, &VERDICT, &epoch, &authority]).await.map_err(reading())?;
    Ok(row.map(|row| DifferedBefore { entry: row.get(0), at: row.get(1), tables: row.get(2) }))
}

/// The move that gave a service its authority, and what was proven since.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SinceMove {
    /// How long ago it was, in seconds.
    pub ago_s: f64,
    /// Full clean verdicts after it.
    pub clean: i64,
}

/// The same; `None` where the ledger has no entry of the move that made `epoch`, since the slice was abandoned, if it ever was.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn since_move(client: &Client, slice: &str, epoch: i64) -> Result<Option<SinceMove>, JournalError> {
    let sql = "SELECT greatest(0, extract(epoch FROM $6::timestamptz - m.at))::float8, \
                   (SELECT count(*) FROM strangler.ledger v WHERE v.slice = $1 AND v.kind = $2 AND v.id > m.id \
                       AND v.body ->> 'full' = 'true' AND v.body ->> 'outcome' = 'clean') \
               FROM strangler.ledger m WHERE m.slice = $1 AND m.kind = $3 AND m.epoch = $4 \
                   AND m.id > coalesce((SELECT max(id) FROM strangler.ledger WHERE slice = $1 AND kind = $5), 0) \
               ORDER BY m.id LIMIT 1";
    let asked: [&(dyn ToSql + Sync); 6] = [&slice, &VERDICT, &FLIP, &epoch, &ABANDON, &SystemClock.now()];
    let row = client.query_opt(sql, &asked).await.map_err(reading())?;
    Ok(row.map(|row| SinceMove { ago_s: row.get(0), clean: row.get(1) }))
}

/// A strict verdict found rows that differ, and no full strict one has taken that back: one by meaning does not see them.
/// Each verdict carries the answer on; entries of an earlier version lack it, and all of them are looked at.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn differs_strictly(client: &Client, slice: &str) -> Result<bool, JournalError> {
    let sql = "SELECT coalesce((SELECT (body ->> 'differs_strictly')::bool FROM strangler.ledger \
            WHERE slice = $1 AND kind = $2 \
                AND id > (SELECT coalesce(max(id), 0) FROM strangler.ledger WHERE slice = $1 AND kind = 'abandon') \
            ORDER BY id DESC LIMIT 1), \
        EXISTS (SELECT FROM strangler.ledger WHERE slice = $1 AND kind = $2 \
            AND id > coalesce((SELECT max(id) FROM strangler.ledger WHERE slice = $1 AND (kind = 'abandon' OR kind = $2 \
                AND body ->> 'strict' = 'true' AND body ->> 'full' = 'true' AND body ->> 'outcome' = 'clean')), 0) \
            AND body ->> 'strict' = 'true' AND coalesce(body -> 'counts' ->> 'differs', '0') <> '0'))";
    let row = client.query_one(sql, &[&slice, &VERDICT]).await.map_err(reading())?;
    Ok(row.get(0))
}

fn reading() -> impl FnOnce(tokio_postgres::Error) -> JournalError {
    JournalError::database("reading the verdicts")
}
