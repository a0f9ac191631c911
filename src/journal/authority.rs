//! The gate, stream and group rows that say who may write a slice, and the changes of them that move authority.
//!
//! Each change is one UPDATE whose conditions are in its WHERE clause: it hits one row, or the caller rolls back. What
//! belongs together runs in the caller's transaction. Which change is due is not decided here; see
//! `authority`, which these rows are the stored form of.
//!
//! While these run, writers wait. So every statement names the types of its parameters, which makes it one round trip instead of
//! two; a session that keeps plans has theirs.

use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, Row};

use super::JournalError;
use super::streams::Direction;
use crate::lsn::Lsn;
use crate::name::quote_ident;
use crate::postgres::ask::Ask;

/// A gate row as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateRow {
    /// `OPEN` or `FENCED`.
    pub state: String,
    /// Grows with every change.
    pub epoch: i64,
    /// `open`, `fence` or `bump`.
    pub cause: String,
    /// Insert position of this database under the lock of the last fence.
    pub fence: Option<Lsn>,
    /// Insert position of this database when its present or last time of authority began.
    pub cut: Option<Lsn>,
    /// Number of the group that the last fence belongs to.
    pub group: Option<i64>,
}

/// A stream row as it is stored, as far as it decides about authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingRow {
    /// `APPLY`, `TRIPWIRE` or `OFF`.
    pub mode: String,
    /// Epoch that gave it this mode.
    pub epoch: i64,
    /// `creating`, `running`, `gap` or `diverged`.
    pub state: String,
    /// Everything up to here is applied or looked at.
    pub applied: Lsn,
}

/// What a database says of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceRows {
    /// The gate.
    pub gate: GateRow,
    /// The stream that writes into this database: the slowest of its lanes. Absent before it is made.
    pub incoming: Option<IncomingRow>,
}

const GATE: &str = "state, epoch, cause, fence_lsn, cut_lsn, move_group";

fn gate_table(slice: &str) -> String {
    format!("strangler.{}", quote_ident(&format!("gate_{slice}")))
}

fn gate_row(row: &Row) -> GateRow {
    let lsn = |index: usize| row.get::<_, Option<PgLsn>>(index).map(Lsn::from);
    GateRow {
        state: row.get(0),
        epoch: row.get(1),
        cause: row.get(2),
        fence: lsn(3),
        cut: lsn(4),
        group: row.get(5),
    }
}

/// Reads the gate row and the incoming stream row in one statement. `None` where the slice has no gate row.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn look(
    client: &impl Ask,
    slice: &str,
    incoming: Direction,
) -> Result<Option<SliceRows>, JournalError> {
    let sql = format!(
        "SELECT {GATE}, s.mode, s.stream_epoch, s.stream_state, s.applied_lsn FROM {gate} AS g \
         LEFT JOIN LATERAL (SELECT t.mode, t.epoch AS stream_epoch, t.state AS stream_state, t.applied_lsn \
             FROM strangler.stream AS t WHERE t.slice = $1 AND t.dir = $2 ORDER BY t.applied_lsn LIMIT 1) AS s ON true",
        gate = gate_table(slice),
    );
    let row = client
        .ask_opt(&sql, &[(&slice, Type::TEXT), (&incoming.as_str(), Type::TEXT)])
        .await
        .map_err(JournalError::database("reading who may write"))?;
    Ok(row.map(|row| SliceRows {
        gate: gate_row(&row),
        incoming: row.get::<_, Option<String>>(6).map(|mode| IncomingRow {
            mode,
            epoch: row.get(7),
            state: row.get(8),
            applied: row.get::<_, PgLsn>(9).into(),
        }),
    }))
}

/// Reads the gate row. `None` where the slice has none.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn gate(client: &Client, slice: &str) -> Result<Option<GateRow>, JournalError> {
    let sql = format!("SELECT {GATE} FROM {}", gate_table(slice));
    let row = client.query_typed_opt(&sql, &[]).await.map_err(JournalError::database("reading the gate"))?;
    Ok(row.as_ref().map(gate_row))
}

/// Takes the gate's lock exclusively in the caller's transaction: writers that passed the gate have ended, those that come
/// wait. Bounded by the session's `lock_timeout`.
///
/// # Errors
/// [`JournalError::Database`]; SQLSTATE 55P03 when the writers did not end in time.
pub async fn hold_writers(client: &impl Ask, slice: &str) -> Result<(), JournalError> {
    // The class is that of the trigger function, `dualwrite::gate::LOCK_CLASS`; the key is the slice's in this database.
    let sql = "SELECT pg_advisory_xact_lock(1398035026, lock_key) FROM strangler.slice WHERE slice = $1";
    client
        .ask_one(sql, &[(&slice, Type::TEXT)])
        .await
        .map(drop)
        .map_err(JournalError::database("holding writers at the gate"))
}

/// Reads the gate row and locks it until the caller's transaction ends.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn lock(client: &impl Ask, slice: &str) -> Result<GateRow, JournalError> {
    let sql = format!("SELECT {GATE} FROM {} FOR UPDATE", gate_table(slice));
    let row = client.ask_one(&sql, &[]).await.map_err(JournalError::database("locking the gate"))?;
    Ok(gate_row(&row))
}

/// What a fence writes.
#[derive(Debug, Clone, Copy)]
pub struct Fence<'a> {
    /// Epoch of the open gate.
    pub from_epoch: i64,
    /// The new one.
    pub epoch: i64,
    /// Insert position under the lock.
    pub lsn: Lsn,
    /// Sequences under the lock, as JSON.
    pub sequences: &'a str,
    /// Number of the group, which must be pending: only asked where the group rows are, on the monolith.
    pub group: Option<i64>,
}

/// Closes an open gate. `false` when it was not as expected.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn fence(client: &impl Ask, slice: &str, fence: Fence<'_>) -> Result<bool, JournalError> {
    let sql = format!(
        "UPDATE {} SET state = 'FENCED', epoch = $2, cause = 'fence', owner = 'moving', fence_lsn = $3, \
             seqs = $4::text::jsonb, move_group = $5 WHERE state = 'OPEN' AND epoch = $1",
        gate_table(slice)
    );
    let lsn = PgLsn::from(fence.lsn);
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&fence.from_epoch, Type::INT8),
        (&fence.epoch, Type::INT8),
        (&lsn, Type::PG_LSN),
        (&fence.sequences, Type::TEXT),
        (&fence.group, Type::INT8),
    ];
    hit(client.tell(&sql, &parameters).await, "closing the gate")
}

/// Keeps the stream into this database as it is until the caller's transaction ends. `false` unless it watches, and can go on
/// watching: it will have to bring what the other side accepts.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn keep_watch(client: &impl Ask, slice: &str, incoming: Direction) -> Result<bool, JournalError> {
    let sql = "SELECT 1 FROM strangler.stream WHERE slice = $1 AND dir = $2 AND lane = 0 AND mode = 'TRIPWIRE' \
               AND state = 'running' FOR SHARE";
    let row = client.ask_opt(sql, &[(&slice, Type::TEXT), (&incoming.as_str(), Type::TEXT)]).await;
    row.map(|row| row.is_some()).map_err(JournalError::database("keeping a stream as it is"))
}

/// Opens a closed gate for a new owner: what is committed here from now on was accepted by it. Returns the position at which
/// it begins; `None` when the gate was not as expected.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn open(
    client: &impl Ask,
    slice: &str,
    (from_epoch, epoch): (i64, i64),
    owner: &str,
) -> Result<Option<Lsn>, JournalError> {
    let sql = format!(
        "UPDATE {} SET state = 'OPEN', epoch = $2, cause = 'open', owner = $3, fence_lsn = NULL, \
             cut_lsn = pg_current_wal_insert_lsn() WHERE state = 'FENCED' AND epoch = $1 RETURNING cut_lsn",
        gate_table(slice)
    );
    let row = client
        .ask_opt(&sql, &[(&from_epoch, Type::INT8), (&epoch, Type::INT8), (&owner, Type::TEXT)])
        .await
        .map_err(JournalError::database("opening the gate"))?;
    Ok(row.map(|row| row.get::<_, PgLsn>(0).into()))
}

/// Raises a closed gate's epoch, which shuts out whoever means to open it. `false` when it was not as expected.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn bump(
    client: &Client,
    slice: &str,
    (from_epoch, epoch): (i64, i64),
) -> Result<bool, JournalError> {
    let sql = format!(
        "UPDATE {} SET epoch = $2, cause = 'bump', fence_lsn = NULL, move_group = NULL \
         WHERE state = 'FENCED' AND epoch = $1",
        gate_table(slice)
    );
    hit(
        client.execute_typed(&sql, &[(&from_epoch, Type::INT8), (&epoch, Type::INT8)]).await,
        "raising the gate's epoch",
    )
}

/// Gives authority back to the side that was fenced. `false` when the gate was not as expected.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn reopen(
    client: &Client,
    slice: &str,
    (from_epoch, epoch): (i64, i64),
    owner: &str,
) -> Result<bool, JournalError> {
    let sql = format!(
        "UPDATE {} SET state = 'OPEN', epoch = $2, cause = 'open', owner = $3, fence_lsn = NULL, move_group = NULL \
         WHERE state = 'FENCED' AND epoch = $1",
        gate_table(slice)
    );
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&from_epoch, Type::INT8), (&epoch, Type::INT8), (&owner, Type::TEXT)];
    hit(client.execute_typed(&sql, &parameters).await, "opening the gate again")
}

/// Names the owner in the closed gate of the side that lost authority, for the words of its error, and tells those who listen
/// there. Does nothing where it is named already. Nothing rests on it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn name_owner(client: &impl Ask, slice: &str, epoch: i64, owner: &str) -> Result<(), JournalError> {
    let sql = format!(
        "WITH named AS (UPDATE {} SET owner = $2 WHERE state = 'FENCED' AND epoch = $1 AND owner IS DISTINCT FROM $2 \
             RETURNING epoch) \
         SELECT pg_notify('strangler_authority', json_build_object('slice', $3::text, 'owner', $2::text, \
             'epoch', epoch)::text) FROM named",
        gate_table(slice)
    );
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&epoch, Type::INT8), (&owner, Type::TEXT), (&slice, Type::TEXT)];
    let named = client.ask(&sql, &parameters).await;
    named.map(drop).map_err(JournalError::database("naming the owner"))
}

/// Whether this side may be written, asked through the view that everybody may read.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn is_open(client: &Client, slice: &str) -> Result<bool, JournalError> {
    let sql = "SELECT state = 'OPEN' FROM strangler.authority WHERE slice = $1";
    let row = client.query_typed_opt(sql, &[(&slice, Type::TEXT)]).await;
    let row = row.map_err(JournalError::database("reading who may write"))?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// Whether this side may be written, and since which change of authority it stands so, asked through that view. `None` where it has
/// no gate of the slice.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn stands(client: &Client, slice: &str) -> Result<Option<(bool, i64)>, JournalError> {
    let sql = "SELECT state = 'OPEN', epoch FROM strangler.authority WHERE slice = $1";
    let row = client.query_typed_opt(sql, &[(&slice, Type::TEXT)]).await;
    let row = row.map_err(JournalError::database("reading who may write"))?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// Whether this side is closed for a move of several slices of which it is settled that they go, asked of the monolith by who may
/// read its gates.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn is_settled_to_go(monolith: &Client, slice: &str) -> Result<bool, JournalError> {
    let found = gate(monolith, slice).await?.filter(|gate| gate.state == "FENCED");
    let Some(id) = found.and_then(|gate| gate.group) else { return Ok(false) };
    Ok(group(monolith, id).await?.is_some_and(|(state, _)| state == "open"))
}

/// Sequences as the fence of this side noted them, as JSON. `None` when it noted none.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn noted_sequences(client: &impl Ask, slice: &str) -> Result<Option<String>, JournalError> {
    let sql = format!("SELECT seqs::text FROM {}", gate_table(slice));
    let row = client.ask_one(&sql, &[]).await;
    let row = row.map_err(JournalError::database("reading the noted sequences"))?;
    Ok(row.get(0))
}

/// Turns every lane of a stream that has applied everything up to `at_least` from one mode into another. `false` unless all
/// of them were as expected. One that is to apply has to be able to go on; of one that ends here it is enough what it has brought.
///
/// A stream that only watched has listed no key meanwhile, and what the other side wrote is in no list at all. So one that is to
/// apply raises the floor of what was touched ([`super::touched`]) to where it is, in the same statement: writers wait for it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn turn(
    client: &impl Ask,
    slice: &str,
    direction: Direction,
    (from, to): (&str, &str),
    (epoch, at_least): (i64, Lsn),
) -> Result<bool, JournalError> {
    let sql = "WITH turned AS (UPDATE strangler.stream SET mode = $4, epoch = $5 WHERE slice = $1 AND dir = $2 \
                   AND mode = $3 AND (state = 'running' OR state = 'gap' AND $4 = 'TRIPWIRE') AND epoch < $5 AND applied_lsn >= $6 RETURNING lane, applied_lsn), \
               raised AS (UPDATE strangler.touched_floor f SET lsn = greatest(f.lsn, t.lsn) \
                   FROM (SELECT max(applied_lsn) AS lsn FROM turned) AS t WHERE f.slice = $1 AND $4 = 'APPLY' AND t.lsn IS NOT NULL) \
               SELECT count(*) > 0 AND count(*) = (SELECT count(*) FROM strangler.stream WHERE slice = $1 AND dir = $2) \
               FROM turned";
    let row = client
        .ask_one(
            sql,
            &[
                (&slice, Type::TEXT),
                (&direction.as_str(), Type::TEXT),
                (&from, Type::TEXT),
                (&to, Type::TEXT),
                (&epoch, Type::INT8),
                (&PgLsn::from(at_least), Type::PG_LSN),
            ],
        )
        .await
        .map_err(JournalError::database("turning the stream"))?;
    Ok(row.get(0))
}

/// Writes the row of a new group, pending. `false` when there is one of that number.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn propose(client: &Client, group: i64, members: &[String]) -> Result<bool, JournalError> {
    let sql = "INSERT INTO strangler.move_group (id, members) VALUES ($1, to_json($2::text[])) ON CONFLICT DO NOTHING";
    hit(client.execute(sql, &[&group, &members]).await, "writing the group")
}

/// Decides about a pending group, for ever. `false` when it was decided already.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn settle(client: &Client, group: i64, state: &str) -> Result<bool, JournalError> {
    let sql =
        "UPDATE strangler.move_group SET state = $2, decided_at = now() WHERE id = $1 AND state = 'pending'";
    hit(client.execute(sql, &[&group, &state]).await, "deciding about the group")
}

/// A group's state and the names of its slices. `None` when there is none of that number.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn group(client: &impl Ask, group: i64) -> Result<Option<(String, Vec<String>)>, JournalError> {
    let sql = "SELECT state, ARRAY(SELECT json_array_elements_text(members)) FROM strangler.move_group WHERE id = $1";
    let row = client.ask_opt(sql, &[(&group, Type::INT8)]).await;
    let row = row.map_err(JournalError::database("reading the group"))?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// Tells everybody who listens on `strangler_authority` that a slice's owner changed, once the transaction commits.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn notify(client: &impl Ask, slice: &str, owner: &str, epoch: i64) -> Result<(), JournalError> {
    let sql = "SELECT pg_notify('strangler_authority', json_build_object('slice', $1::text, 'owner', $2::text, \
               'epoch', $3::int8)::text)";
    client
        .tell(sql, &[(&slice, Type::TEXT), (&owner, Type::TEXT), (&epoch, Type::INT8)])
        .await
        .map(drop)
        .map_err(JournalError::database("telling who owns the slice"))
}

fn hit(done: Result<u64, tokio_postgres::Error>, action: &'static str) -> Result<bool, JournalError> {
    done.map(|rows| rows == 1).map_err(JournalError::database(action))
}

/// Moves of several slices that a slice is one of, the latest ones first: number, state and members.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn groups_of(
    client: &Client,
    slice: &str,
) -> Result<Vec<(i64, String, Vec<String>)>, JournalError> {
    // A slice is in the middle of one at most; what others were aborted meanwhile are few.
    let sql = "SELECT id, state, ARRAY(SELECT json_array_elements_text(members)) FROM strangler.move_group AS g \
               WHERE EXISTS (SELECT FROM json_array_elements_text(g.members) AS m (name) WHERE m.name = $1) \
               ORDER BY created_at DESC LIMIT 10";
    let rows = client.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading the groups"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}
