//! The stream row: how far one direction of a slice has been applied, and who may go on.

use tokio_postgres::types::{PgLsn, Type};
use tokio_postgres::{Client, Row};

use super::JournalError;
use crate::lsn::Lsn;
use crate::name::quote_ident;
use crate::postgres::ask::Ask;

/// Which way a stream goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the monolith to the service; its row is in the service.
    #[default]
    Forward,
    /// From the service to the monolith; its row is in the monolith.
    Reverse,
}

impl Direction {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reverse => "reverse",
        }
    }

    /// The database that a stream reads, in words.
    #[must_use]
    pub fn source(self) -> &'static str {
        match self {
            Self::Forward => "monolith",
            Self::Reverse => "service",
        }
    }

    /// The database that a stream writes, and where its row is, in words.
    #[must_use]
    pub fn target(self) -> &'static str {
        match self {
            Self::Forward => "service",
            Self::Reverse => "monolith",
        }
    }
}

/// One direction of one slice: whose rows are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamOf<'a> {
    /// Slice.
    pub slice: &'a str,
    /// Which way.
    pub direction: Direction,
}

impl<'a> StreamOf<'a> {
    /// The stream from the monolith to the service.
    #[must_use]
    pub fn forward(slice: &'a str) -> Self {
        Self { slice, direction: Direction::Forward }
    }

    /// The stream from the service to the monolith.
    #[must_use]
    pub fn reverse(slice: &'a str) -> Self {
        Self { slice, direction: Direction::Reverse }
    }
}

/// What a stream is for at present. Set by `arm` and by whoever moves the authority; stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It writes what it reads.
    Apply,
    /// It reads a fenced side and writes nothing: what is not the mirror's own there is an alarm.
    Tripwire,
    /// It does not run.
    Off,
}

impl Mode {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "APPLY",
            Self::Tripwire => "TRIPWIRE",
            Self::Off => "OFF",
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`JournalError::Unreadable`].
    pub fn parse(text: &str) -> Result<Self, JournalError> {
        [Self::Apply, Self::Tripwire, Self::Off]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| JournalError::Unreadable { what: "stream.mode", found: text.to_owned() })
    }
}

/// How a stream stands; `gap` and `diverged` need an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamState {
    /// The row is written, the slot is not known to exist yet. Set by the mirror's first start; stored.
    Creating,
    /// The slot exists and its start position is in the row. Set once the slot is made; stored.
    Running,
    /// The slot went past the applied position, so changes are lost to the stream. Set at start; stored.
    Gap,
    /// The source is not the one, or not on the timeline, that was applied. Set at start; stored.
    Diverged,
}

impl StreamState {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Gap => "gap",
            Self::Diverged => "diverged",
        }
    }

    fn parse(text: &str) -> Result<Self, JournalError> {
        [Self::Creating, Self::Running, Self::Gap, Self::Diverged]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| JournalError::Unreadable { what: "stream.state", found: text.to_owned() })
    }
}

/// Which source a stream reads, and where in it the stream starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// System identifier of its cluster.
    pub system_identifier: String,
    /// Its database's oid.
    pub database_oid: u32,
    /// Its random uuid.
    pub uuid: String,
    /// Timeline that was current when the slot was made or last checked.
    pub timeline: i32,
}

/// One stream row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRow {
    /// Epoch of the authority that the stream serves.
    pub epoch: i64,
    /// What it is for.
    pub mode: Mode,
    /// How it stands.
    pub state: StreamState,
    /// Why, for states that need an operator.
    pub detail: Option<String>,
    /// Replication slot on the source.
    pub slot: String,
    /// Publication on the source.
    pub publication: String,
    /// The source.
    pub source: Source,
    /// End of the last applied transaction's commit record. Moved only inside the apply transaction.
    pub applied: Lsn,
    /// Number of the process that may write; each start takes the next one.
    pub nonce: i64,
}

pub(super) const COLUMNS: &str = "epoch, mode, state, detail, slot, publication, src_system_identifier, \
     src_database_oid, src_uuid::text, src_timeline, applied_lsn, nonce";

pub(super) fn from_row(row: &Row) -> Result<StreamRow, JournalError> {
    let read = |source| JournalError::Database { action: "reading the stream row", source };
    let applied: PgLsn = row.try_get(10).map_err(read)?;
    Ok(StreamRow {
        epoch: row.try_get(0).map_err(read)?,
        mode: Mode::parse(row.try_get(1).map_err(read)?)?,
        state: StreamState::parse(row.try_get(2).map_err(read)?)?,
        detail: row.try_get(3).map_err(read)?,
        slot: row.try_get(4).map_err(read)?,
        publication: row.try_get(5).map_err(read)?,
        source: Source {
            system_identifier: row.try_get(6).map_err(read)?,
            database_oid: row.try_get(7).map_err(read)?,
            uuid: row.try_get(8).map_err(read)?,
            timeline: row.try_get(9).map_err(read)?,
        },
        applied: applied.into(),
        nonce: row.try_get(11).map_err(read)?,
    })
}

/// A stream, asked of the database that it writes to: the forward one when it was ever started, the reverse one when
/// the slice is armed.
///
/// # Errors
/// [`JournalError`].
pub async fn read(client: &impl Ask, of: StreamOf<'_>) -> Result<Option<StreamRow>, JournalError> {
    let sql = format!("SELECT {COLUMNS} FROM strangler.stream WHERE slice = $1 AND dir = $2 AND lane = 0");
    let row = client
        .ask_opt(&sql, &[(&of.slice, Type::TEXT), (&of.direction.as_str(), Type::TEXT)])
        .await
        .map_err(JournalError::database("reading the stream row"))?;
    row.as_ref().map(from_row).transpose()
}

/// How far a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// `creating`, `running`, `gap` or `diverged`.
    pub state: String,
    /// `APPLY`, `TRIPWIRE` or `OFF`.
    pub mode: String,
    /// Epoch of the authority that the stream was last turned for.
    pub epoch: i64,
    /// Everything up to here is durably applied.
    pub applied: Lsn,
}

/// How far a slice's stream in one direction is, asked of the database that it writes to. `None` when there never was
/// one.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn position(
    client: &Client,
    slice: &str,
    direction: Direction,
) -> Result<Option<Position>, JournalError> {
    let sql = "SELECT state, mode, applied_lsn, epoch FROM strangler.stream \
               WHERE slice = $1 AND dir = $2 AND lane = 0";
    let row = client
        .query_typed_opt(sql, &[(&slice, Type::TEXT), (&direction.as_str(), Type::TEXT)])
        .await
        .map_err(JournalError::database("reading the applied position"))?;
    Ok(row.map(|row| Position {
        state: row.get(0),
        mode: row.get(1),
        epoch: row.get(3),
        applied: row.get::<_, PgLsn>(2).into(),
    }))
}

/// How old a slice's mirrored data in this database is, in seconds; `None` before the first change, and where no stream
/// applies.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn age_s(client: &Client, slice: &str) -> Result<Option<f64>, JournalError> {
    let sql = "SELECT greatest(0, extract(epoch FROM clock_timestamp() - source_time))::float8 \
               FROM strangler.stream WHERE slice = $1 AND mode = 'APPLY'";
    let row = client
        .query_opt(sql, &[&slice])
        .await
        .map_err(JournalError::database("reading the age of the mirrored data"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Writes the row of a stream whose slot is about to be made. Leaves an existing row alone.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn insert_creating(
    client: &Client,
    slice: &str,
    epoch: i64,
    names: (&str, &str),
    source: &Source,
) -> Result<(), JournalError> {
    let (slot, publication) = names;
    client
        .execute(
            "INSERT INTO strangler.stream (slice, dir, lane, epoch, mode, state, slot, publication, \
                 src_system_identifier, src_database_oid, src_uuid, src_timeline, applied_lsn) \
             VALUES ($1, 'forward', 0, $2, 'APPLY', 'creating', $3, $4, $5, $6, $7::text::uuid, $8, '0/0') \
             ON CONFLICT DO NOTHING",
            &[
                &slice,
                &epoch,
                &slot,
                &publication,
                &source.system_identifier,
                &source.database_oid,
                &source.uuid,
                &source.timeline,
            ],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("writing the stream row"))
}

/// Takes the next nonce: waits for every landing and apply of an older process, then shuts it out. `holder` tells
/// processes apart. One that has already held a nonce `again` asks for the next, and gets none when somebody else has
/// taken it meanwhile; its own row tells it even when the answer to its last attempt was lost. A row that nobody has taken
/// yet, because it was made anew, is anybody's.
///
/// # Errors
/// [`JournalError::Database`], also when the wait passes the session's `lock_timeout`.
pub async fn take_nonce(
    client: &Client,
    of: StreamOf<'_>,
    holder: &str,
    again: bool,
) -> Result<Option<StreamRow>, JournalError> {
    let sql = format!(
        "UPDATE strangler.stream SET nonce = nonce + 1, holder = $2 \
         WHERE slice = $1 AND dir = $4 AND lane = 0 AND (NOT $3 OR holder = $2 OR holder IS NULL) RETURNING {COLUMNS}"
    );
    let row = client
        .query_opt(&sql, &[&of.slice, &holder, &again, &of.direction.as_str()])
        .await
        .map_err(JournalError::database("taking the nonce"))?;
    row.as_ref().map(from_row).transpose()
}

/// What a stream that carries no row needs to begin anywhere but at its start: its own side has the authority. Seen behind the
/// position where it begins, that position is before every write of the other side that a later move lets in.
fn watches_or_applies(slice: &str) -> String {
    let gate = quote_ident(&format!("gate_{slice}"));
    format!(
        "(mode = 'APPLY' OR mode = 'TRIPWIRE' AND EXISTS (SELECT FROM strangler.{gate} WHERE state = 'OPEN'))"
    )
}

/// The slot exists: the stream starts at `start`. `false` when another process took over meanwhile, or when it is a tripwire
/// and its service does not take writes any more.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_running(client: &Client, slice: &str, nonce: i64, start: Lsn) -> Result<bool, JournalError> {
    let sql = format!(
        "UPDATE strangler.stream SET state = 'running', detail = NULL, applied_lsn = $3, applied_at = now() \
         WHERE slice = $1 AND dir = 'forward' AND lane = 0 AND nonce = $2 AND state = 'creating' AND {}",
        watches_or_applies(slice)
    );
    client
        .execute(&sql, &[&slice, &nonce, &PgLsn::from(start)])
        .await
        .map(|rows| rows == 1)
        .map_err(JournalError::database("recording the new slot"))
}

/// Puts a stream into a state that needs an operator. Returns its slot; `None` when another process took over meanwhile.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_state(
    client: &Client,
    of: StreamOf<'_>,
    nonce: i64,
    state: StreamState,
    detail: Option<&str>,
) -> Result<Option<String>, JournalError> {
    client
        .query_opt(
            "UPDATE strangler.stream SET state = $3, detail = $4 \
             WHERE slice = $1 AND dir = $5 AND lane = 0 AND nonce = $2 RETURNING slot",
            &[&of.slice, &nonce, &state.as_str(), &detail, &of.direction.as_str()],
        )
        .await
        .map(|row| row.map(|row| row.get(0)))
        .map_err(JournalError::database("recording the stream's state"))
}

/// Starts a stream over: a new slot name and source, nothing applied. `false` when another process took over.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn reset(
    client: &Client,
    slice: &str,
    nonce: i64,
    slot: &str,
    source: &Source,
) -> Result<bool, JournalError> {
    start_over(client, (slice, nonce), (slot, source), ("", "true"))
        .await
        .map_err(JournalError::database("starting the stream over"))
}

/// The same for a stream that watched when authority came home, and was lost before it was turned: it applies from now on, at the
/// epoch of that change. `false` also where the gate beside it is not the one that was closed by it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn reset_at_home(
    client: &Client,
    (slice, nonce): (&str, i64),
    (slot, source): (&str, &Source),
    epoch: i64,
) -> Result<bool, JournalError> {
    let gate = quote_ident(&format!("gate_{slice}"));
    let condition = format!(
        "mode = 'TRIPWIRE' AND EXISTS (SELECT FROM strangler.{gate} WHERE state = 'FENCED' AND epoch = {epoch})"
    );
    let turned = format!(", mode = 'APPLY', epoch = {epoch}");
    start_over(client, (slice, nonce), (slot, source), (&turned, &condition))
        .await
        .map_err(JournalError::database("starting the stream over"))
}

/// A new slot name and source for the forward stream, and what else is set, where this condition holds too.
async fn start_over(
    client: &Client,
    (slice, nonce): (&str, i64),
    (slot, source): (&str, &Source),
    (more, condition): (&str, &str),
) -> Result<bool, tokio_postgres::Error> {
    let sql = format!(
        "UPDATE strangler.stream SET state = 'creating', detail = NULL, slot = $3, applied_lsn = '0/0', \
             src_system_identifier = $4, src_database_oid = $5, src_uuid = $6::text::uuid, src_timeline = $7{more} \
         WHERE slice = $1 AND dir = 'forward' AND lane = 0 AND nonce = $2 AND {condition}"
    );
    let Source { system_identifier, database_oid, uuid, timeline } = source;
    let rows = client
        .execute(&sql, &[&slice, &nonce, &slot, system_identifier, database_oid, uuid, timeline])
        .await?;
    Ok(rows == 1)
}

/// Begins a tripwire anew in the open transaction: a new slot name and source, nothing looked at. `false` when another process
/// took over, or when the service that it watches for does not take writes. A fence holds the row while it closes that gate, so the
/// row is waited for before the gate is read.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn rewatch(
    client: &Client,
    slice: &str,
    nonce: i64,
    slot: &str,
    source: &Source,
) -> Result<bool, JournalError> {
    let condition = format!("mode = 'TRIPWIRE' AND {}", watches_or_applies(slice));
    let failed = JournalError::database("beginning the watch anew");
    let hold = "SELECT FROM strangler.stream WHERE slice = $1 AND dir = 'forward' AND lane = 0 FOR UPDATE";
    if let Err(error) = client.execute(hold, &[&slice]).await {
        return Err(failed(error));
    }
    start_over(client, (slice, nonce), (slot, source), ("", &condition)).await.map_err(failed)
}

/// Records that the source went on under a new timeline that holds everything applied so far.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_timeline(
    client: &Client,
    of: StreamOf<'_>,
    nonce: i64,
    timeline: i32,
) -> Result<(), JournalError> {
    client
        .execute(
            "UPDATE strangler.stream SET src_timeline = $3 \
             WHERE slice = $1 AND dir = $4 AND lane = 0 AND nonce = $2",
            &[&of.slice, &nonce, &timeline, &of.direction.as_str()],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("recording the timeline"))
}

/// Other sessions of this application name that hold a lock on the stream rows, by process id.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn sessions_at(client: &Client, application: &str) -> Result<Vec<i32>, JournalError> {
    let sql = "SELECT DISTINCT a.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
             WHERE l.relation = 'strangler.stream'::regclass AND a.pid <> pg_backend_pid() \
               AND a.application_name = $1";
    let rows = client
        .query(sql, &[&application])
        .await
        .map_err(JournalError::database("looking for an older mirror's sessions"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The nonce in force, to notice a successor while nothing is written.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn current_nonce(client: &Client, of: StreamOf<'_>) -> Result<Option<i64>, JournalError> {
    client
        .query_opt(
            "SELECT nonce FROM strangler.stream WHERE slice = $1 AND dir = $2 AND lane = 0",
            &[&of.slice, &of.direction.as_str()],
        )
        .await
        .map(|row| row.map(|row| row.get(0)))
        .map_err(JournalError::database("reading the nonce"))
}
