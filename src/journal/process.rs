//! The running mirror's own row: who it is and when it was last seen. Courtesy only; safety rests on the nonce.

use tokio_postgres::Client;

use super::JournalError;
use super::streams::StreamOf;

/// A mirror process as its row tells.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessRow {
    /// Nonce that it took.
    pub nonce: i64,
    /// Host name.
    pub host: String,
    /// Process id there.
    pub pid: i32,
    /// Seconds since it was last seen, by the database's clock.
    pub seen_s: f64,
    /// It stopped in good order.
    pub stopped: bool,
    /// Why it ended by itself, with what it asks for behind `; next: `; or what it was doing.
    pub detail: Option<String>,
}

/// A mirror that was not seen for this long is taken for dead; it gives a sign of life every 2 s.
const DEAD_AFTER_S: f64 = 15.0;

impl ProcessRow {
    /// It gives signs of life.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.stopped && self.seen_s <= DEAD_AFTER_S
    }

    /// It is at work on repairs.
    #[must_use]
    pub fn is_repairing(&self) -> bool {
        self.is_alive() && self.detail.as_ref().is_some_and(|detail| detail.starts_with(AT_REPAIRS))
    }
}

/// How the mirror is doing, for `status`.
#[derive(Debug, Clone, Default)]
pub struct Sighting {
    /// `copying`, `catching up`, `streaming`, `waiting`.
    pub phase: String,
    /// One line more.
    pub detail: Option<String>,
    /// WAL bytes not yet applied.
    pub lag_bytes: Option<i64>,
    /// Milliseconds from a commit on the source to the same state here, as last measured.
    pub lag_ms: Option<f64>,
}

/// The row of a mirror, in the database that it writes to.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn read(client: &Client, of: StreamOf<'_>) -> Result<Option<ProcessRow>, JournalError> {
    let row = client
        .query_opt(
            "SELECT nonce, host, pid, extract(epoch FROM clock_timestamp() - seen_at)::float8, \
                 stopped_at IS NOT NULL, detail \
             FROM strangler.mirror_process WHERE slice = $1 AND dir = $2",
            &[&of.slice, &of.direction.as_str()],
        )
        .await
        .map_err(JournalError::database("reading the mirror's row"))?;
    Ok(row.map(|row| ProcessRow {
        nonce: row.get(0),
        host: row.get(1),
        pid: row.get(2),
        seen_s: row.get(3),
        stopped: row.get(4),
        detail: row.get(5),
    }))
}

/// First key of the session lock that a mirror holds on the service while it runs.
const LOCK_CLASS: i32 = 1_398_035_027;

/// Takes the slice's mirror lock for this session. `false` when another session holds it: that of a live mirror, or
/// of a frozen one.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn try_lock(client: &Client, slice: &str) -> Result<bool, JournalError> {
    client
        .query_one("SELECT pg_try_advisory_lock($1, hashtext($2))", &[&LOCK_CLASS, &slice])
        .await
        .map(|row| row.get(0))
        .map_err(JournalError::database("taking the mirror's lock"))
}

/// A way back stands still, and its mirror tries it again as it is.
pub const TRIED_AGAIN: &str = "tried again";

/// A way back stands still until `arm` makes it anew; its mirror looks from time to time whether that was done.
pub const WAITS_FOR_ARM: &str = "waits for arm";

/// How the line about a mirror begins that is at work on repairs; the table's label follows.
pub const AT_REPAIRS: &str = "repairs rows of";

/// A mirror starts. One that tries a way back `again` leaves standing what was said of it, until something has come through.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn register(
    client: &Client,
    of: StreamOf<'_>,
    nonce: i64,
    (host, pid): (&str, i32),
    again: bool,
) -> Result<(), JournalError> {
    client
        .execute(
            "INSERT INTO strangler.mirror_process AS p (slice, dir, nonce, host, pid, phase) \
             VALUES ($1, $5, $2, $3, $4, 'starting') \
             ON CONFLICT (slice, dir) DO UPDATE SET nonce = excluded.nonce, host = excluded.host, \
                 pid = excluded.pid, phase = CASE WHEN $6 THEN p.phase ELSE 'starting' END, \
                 detail = CASE WHEN $6 THEN p.detail END, lag_bytes = NULL, lag_ms = NULL, \
                 started_at = now(), seen_at = now(), stopped_at = CASE WHEN $6 THEN p.stopped_at END",
            &[&of.slice, &nonce, &host, &pid, &of.direction.as_str(), &again],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("registering the mirror"))
}

/// Says why a way back stands still while its mirror lives: the phase is [`TRIED_AGAIN`] or [`WAITS_FOR_ARM`].
///
/// # Errors
/// [`JournalError::Database`].
pub async fn stands_still(
    client: &Client,
    of: StreamOf<'_>,
    nonce: i64,
    (phase, why): (&str, &str),
) -> Result<(), JournalError> {
    let sql = "UPDATE strangler.mirror_process SET seen_at = clock_timestamp(), phase = $4, detail = $5, \
                   stopped_at = coalesce(stopped_at, clock_timestamp()) \
               WHERE slice = $1 AND dir = $2 AND nonce = $3";
    let done = client.execute(sql, &[&of.slice, &of.direction.as_str(), &nonce, &phase, &why]).await;
    done.map(drop).map_err(JournalError::database("recording why the way back stands still"))
}

/// The mirror whose way back stands still is alive.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn beat_still(
    client: &Client,
    of: StreamOf<'_>,
    (host, pid): (&str, i32),
) -> Result<(), JournalError> {
    let sql = "UPDATE strangler.mirror_process SET seen_at = clock_timestamp() \
               WHERE slice = $1 AND dir = $2 AND host = $3 AND pid = $4 AND phase IN ($5, $6)";
    let direction = of.direction.as_str();
    let done = client.execute(sql, &[&of.slice, &direction, &host, &pid, &TRIED_AGAIN, &WAITS_FOR_ARM]).await;
    done.map(drop).map_err(JournalError::database("updating the mirror's row"))
}

/// The mirror is alive.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn beat(
    client: &Client,
    of: StreamOf<'_>,
    nonce: i64,
    sighting: &Sighting,
) -> Result<(), JournalError> {
    client
        .execute(
            "UPDATE strangler.mirror_process SET seen_at = clock_timestamp(), phase = $3, detail = $4, \
                 lag_bytes = $5, lag_ms = $6, \
                 stopped_at = CASE WHEN $3 IN ($8, $9) THEN stopped_at END \
             WHERE slice = $1 AND dir = $7 AND nonce = $2",
            &[
                &of.slice,
                &nonce,
                &sighting.phase,
                &sighting.detail,
                &sighting.lag_bytes,
                &sighting.lag_ms,
                &of.direction.as_str(),
                &TRIED_AGAIN,
                &WAITS_FOR_ARM,
            ],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("updating the mirror's row"))
}

/// Says of a slice that no mirror of it began, and why. Whoever holds the slice's lock knows that none lives.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn left_out(client: &Client, of: StreamOf<'_>, detail: &str) -> Result<(), JournalError> {
    let sql = "UPDATE strangler.mirror_process SET stopped_at = clock_timestamp(), phase = 'stopped', detail = $3 \
               WHERE slice = $1 AND dir = $2";
    let done = client.execute(sql, &[&of.slice, &of.direction.as_str(), &detail]).await;
    done.map(drop).map_err(JournalError::database("recording why the mirror did not begin"))
}

/// The mirror stopped in good order.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn stopped(
    client: &Client,
    of: StreamOf<'_>,
    nonce: i64,
    detail: Option<&str>,
) -> Result<(), JournalError> {
    client
        .execute(
            "UPDATE strangler.mirror_process SET seen_at = clock_timestamp(), stopped_at = clock_timestamp(), \
                 phase = 'stopped', detail = $3 \
             WHERE slice = $1 AND dir = $4 AND nonce = $2",
            &[&of.slice, &nonce, &detail, &of.direction.as_str()],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("recording the mirror's stop"))
}
