//! Where slices stand in a service, as JSON: what `status` reads of our tables.

use tokio_postgres::Client;

use super::JournalError;
use crate::clock::SystemClock;

const SERVICE_SQL: &str = "
SELECT s.slice, jsonb_build_object(
    'now_us', (extract(epoch FROM now()) * 1000000)::bigint,
    'provisioned', EXISTS (SELECT FROM strangler.slice p WHERE p.slice = s.slice),
    'stream', (SELECT jsonb_build_object('state', state, 'detail', detail, 'slot', slot, 'applied_lsn', applied_lsn,
            'source_time_us', (extract(epoch FROM source_time) * 1000000)::bigint, 'nonce', nonce)
        FROM strangler.stream t WHERE t.slice = s.slice AND dir = 'forward' AND lane = 0),
    'process', (SELECT jsonb_build_object('nonce', nonce, 'host', host, 'pid', pid, 'phase', phase,
            'detail', detail, 'lag_ms', lag_ms, 'seen_seconds_ago', greatest(0, extract(epoch FROM now() - seen_at)),
            'stopped', stopped_at IS NOT NULL)
        FROM strangler.mirror_process m WHERE m.slice = s.slice AND dir = 'forward'),
    'tables', (SELECT coalesce(jsonb_agg(jsonb_build_object('source_table', source_table,
            'target_table', target_table, 'state', state, 'detail', detail,
            'unheard', coalesce(published_as = 0, false),
            'rows_copied', greatest(0, rows_copied,
                (SELECT sum(rows) FROM strangler.piece p
                    WHERE (p.slice, p.source_table) = (m.slice, m.source_table) AND kind <> 'key'),
                (SELECT sum(rows) FROM strangler.part p
                    WHERE (p.slice, p.source_table) = (m.slice, m.source_table)))::bigint,
            'rows_estimate', greatest(0, rows_estimate),
            'copy_seconds', extract(epoch FROM coalesce(live_at, $2::timestamptz) - copy_started_at))
            ORDER BY source_table), '[]')
        FROM strangler.mirror_table m WHERE m.slice = s.slice),
    'deferred', (SELECT coalesce(jsonb_agg(replace(kind, '_', ' ') || ' ' || object || ' on ' || target_table
            ORDER BY id), '[]')
        FROM strangler.deferred d WHERE d.slice = s.slice AND done_at IS NULL),
    'deferred_failed', (SELECT coalesce(jsonb_agg(replace(kind, '_', ' ') || ' ' || object || ' on ' || target_table
            || ' (SQLSTATE ' || f.code || ')' ORDER BY d.id), '[]')
        FROM strangler.deferred d CROSS JOIN LATERAL (SELECT j.detail ->> 'sqlstate' AS code FROM strangler.journal j
            WHERE j.slice = d.slice AND j.action = 'deferred-failed' AND j.detail ->> 'object' = d.object
              AND j.id > coalesce((SELECT max(e.id) FROM strangler.journal e WHERE e.slice = d.slice AND e.action = 'take back slice'), 0)
            ORDER BY j.id DESC LIMIT 1) AS f
        WHERE d.slice = s.slice AND done_at IS NULL AND NOT EXISTS (SELECT FROM strangler.mirror_table m
            WHERE m.slice = s.slice AND m.state IN ('pending', 'copying'))))::text
FROM unnest($1::text[]) AS s (slice)";

/// The process goes with the stream, because both are rows of the way back.
const WAY_BACK_SQL: &str = "
SELECT t.slice, jsonb_build_object('mode', lower(t.mode),
    'stream', jsonb_build_object('state', state, 'detail', t.detail, 'slot', slot, 'applied_lsn', applied_lsn,
        'source_time_us', (extract(epoch FROM source_time) * 1000000)::bigint, 'nonce', t.nonce),
    'process', CASE WHEN m.slice IS NOT NULL THEN jsonb_build_object('nonce', m.nonce, 'host', host, 'pid', pid,
        'phase', phase, 'detail', m.detail, 'lag_ms', lag_ms,
        'seen_seconds_ago', greatest(0, extract(epoch FROM now() - seen_at)), 'stopped', stopped_at IS NOT NULL) END)::text
FROM strangler.stream t LEFT JOIN strangler.mirror_process m ON m.slice = t.slice AND m.dir = t.dir
WHERE t.slice = ANY ($1) AND t.dir = 'reverse' AND t.lane = 0";

/// Ways back, asked of the monolith, as JSON; `status::facts::WayBack` is its form. None where a role may not look, as
/// before `provision` has granted it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn ways_back(client: &Client, slices: &[&str]) -> Result<Vec<(String, String)>, JournalError> {
    let failed = || JournalError::database("reading the ways back");
    let may = "SELECT coalesce(has_table_privilege(to_regclass('strangler.stream'), 'SELECT') \
                   AND has_table_privilege(to_regclass('strangler.mirror_process'), 'SELECT'), false)";
    if !client.query_typed_one(may, &[]).await.map_err(failed())?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let rows = client.query(WAY_BACK_SQL, &[&slices]).await.map_err(failed())?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// One document per slice, all of one moment, because it is one statement; `status::facts::ServiceFacts` is its form.
/// `None` where nothing was ever provisioned.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn service(
    client: &Client,
    slices: &[&str],
) -> Result<Option<Vec<(String, String)>>, JournalError> {
    let failed = || JournalError::database("reading the mirror's progress");
    let exists = "SELECT to_regclass('strangler.deferred') IS NOT NULL";
    if !client.query_typed_one(exists, &[]).await.map_err(failed())?.get::<_, bool>(0) {
        return Ok(None);
    }
    let rows = client.query(SERVICE_SQL, &[&slices, &SystemClock.now()]).await.map_err(failed())?;
    Ok(Some(rows.iter().map(|row| (row.get(0), row.get(1))).collect()))
}
