//! What our tables say of whether a slice's authority may move, in one statement per database.

use serde::Deserialize;
use tokio_postgres::Client;

use super::JournalError;
use super::streams::Direction;
use crate::clock::SystemClock;
use crate::lsn::Lsn;

/// What one database says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Told {
    /// The slice, where it is provisioned.
    pub slice: Option<Provisioned>,
    /// The stream that writes into this database.
    pub stream: Option<Stream>,
    /// The mirror that runs it.
    pub mirror: Option<Mirror>,
    /// The slice's tables; in the service only.
    pub tables: Vec<Table>,
    /// Seconds since the last of them went live; absent while none did.
    pub live_s: Option<f64>,
    /// Indexes and constraints that still wait for the data.
    pub deferred: Vec<Deferred>,
    /// Writes on a fenced side that nobody has cleared; in the service only.
    pub alarms: i64,
    /// The first of them, in words.
    pub alarm: Option<String>,
}

/// A provisioned slice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Provisioned {
    /// Hash of the mapping.
    pub plan_hash: String,
    /// Second key of the gate's advisory lock here.
    pub lock_key: u32,
}

/// A stream row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Stream {
    /// `creating`, `running`, `gap` or `diverged`.
    pub state: String,
    /// Why, where an operator is needed.
    pub detail: Option<String>,
    /// `APPLY`, `TRIPWIRE` or `OFF`.
    pub mode: String,
    /// Its slot in the other database.
    pub slot: String,
    /// Everything up to here is applied or looked at.
    pub applied: Lsn,
}

/// A mirror's row.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Mirror {
    /// Where it runs.
    pub host: String,
    /// Its process there.
    pub pid: i32,
    /// Seconds since its last sign of life.
    pub seen_s: f64,
    /// It ended in good order.
    pub stopped: bool,
    /// More about what it does, or why it ended.
    pub detail: Option<String>,
}

/// A mirror that was not seen for this long, in seconds, is away. It writes its row every other second.
const AWAY_AFTER_S: f64 = 5.0;

impl Mirror {
    /// It gave a sign of life lately and did not end.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.stopped && self.seen_s < AWAY_AFTER_S
    }
}

/// A table of the slice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Table {
    /// By the monolith's name.
    pub name: String,
    /// `pending`, `copying`, `live` or `diverged`.
    pub state: String,
}

/// Something that waits for the data.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Deferred {
    /// `index`, `constraint`, `foreign_key` or `statement`.
    pub kind: String,
    /// Its name and its table's.
    pub object: String,
}

const SQL: &str = "
SELECT jsonb_build_object(
    'slice', (SELECT jsonb_build_object('plan_hash', plan_hash, 'lock_key', lock_key)
        FROM strangler.slice WHERE slice = $1),
    'stream', (SELECT jsonb_build_object('state', state, 'detail', detail, 'mode', mode, 'slot', slot,
            'applied', applied_lsn) FROM strangler.stream WHERE slice = $1 AND dir = $2 ORDER BY applied_lsn LIMIT 1),
    'mirror', (SELECT jsonb_build_object('host', host, 'pid', pid, 'stopped', stopped_at IS NOT NULL,
            'detail', detail, 'seen_s', greatest(0, extract(epoch FROM clock_timestamp() - seen_at)))
        FROM strangler.mirror_process WHERE slice = $1 AND dir = $2),
    'tables', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', source_table, 'state', state)
            ORDER BY source_table), '[]') FROM strangler.mirror_table WHERE slice = $1),
    'live_s', (SELECT extract(epoch FROM $3::timestamptz - max(live_at))
        FROM strangler.mirror_table WHERE slice = $1 AND state = 'live'),
    'deferred', (SELECT coalesce(jsonb_agg(jsonb_build_object('kind', kind, 'object', object || ' on ' || target_table)
            ORDER BY id), '[]') FROM strangler.deferred WHERE slice = $1 AND done_at IS NULL),
    'alarms', (SELECT count(*) FROM strangler.alarm WHERE slice = $1 AND cleared_at IS NULL),
    'alarm', (SELECT format('%s on %s at %s in transaction %s, seen by the %s stream', operation, source_table, lsn,
            xid, dir) FROM strangler.alarm WHERE slice = $1 AND cleared_at IS NULL ORDER BY id LIMIT 1))::text";

/// Asks one database; `incoming` is the stream that writes into it. The session needs SELECT on our tables.
///
/// # Errors
/// [`JournalError`].
pub async fn read(client: &Client, slice: &str, incoming: Direction) -> Result<Told, JournalError> {
    let row = client.query_one(SQL, &[&slice, &incoming.as_str(), &SystemClock.now()]).await;
    let text: String = row.map_err(JournalError::database("reading whether authority may move"))?.get(0);
    serde_json::from_str(&text)
        .map_err(|error| JournalError::Unreadable { what: "the slice's rows", found: error.to_string() })
}
