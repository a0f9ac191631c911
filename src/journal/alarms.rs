//! Writes on a fenced side that were not the mirror's own. They are kept in the service's database, whichever side they
//! were made on, and never hold more of a row than its key.

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use super::JournalError;
use super::abandonment::{of_this_life, told_of_this_life};
use super::ledger::VERDICT;
use super::outside::OUTSIDE;
use super::streams::{Direction, Mode, StreamOf};
use crate::clock::SystemClock;
use crate::lsn::Lsn;
use crate::postgres::ask::Ask;

/// What a stray transaction did to one row, or to a whole table. No `Debug`: the key is a row value.
#[derive(Clone, PartialEq, Eq)]
pub struct Stray {
    /// The table, by the monolith's name.
    pub source_table: String,
    /// What was done.
    pub operation: Operation,
    /// The row's key in key order; `None` for a TRUNCATE, and where the event did not carry it.
    pub key: Option<Vec<String>>,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A row was made.
    Insert,
    /// A row was changed.
    Update,
    /// A row was taken away.
    Delete,
    /// All rows were.
    Truncate,
}

impl Operation {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
        }
    }
}

/// The transaction that did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrayTransaction {
    /// Epoch of the stream that met it.
    pub epoch: i64,
    /// Start of its commit record.
    pub lsn: Lsn,
    /// Its id, 32 bits as the stream tells it.
    pub xid: u32,
}

/// Where alarms are kept, for words to an operator.
pub const TABLE: &str = "strangler.alarm";

/// Writes alarms down, in the service. The same ones again change nothing, so it may be repeated after a crash.
/// Returns how many are new.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn raise(
    service: &Client,
    of: StreamOf<'_>,
    transaction: StrayTransaction,
    strays: &[Stray],
) -> Result<u64, JournalError> {
    // A key that is null is no equal of another null, so the table's own UNIQUE would take a TRUNCATE twice.
    let sql = "INSERT INTO strangler.alarm (slice, dir, epoch, lsn, xid, source_table, operation, key, raised_at) \
        SELECT $1, $2, $3, $4, $5, $6, $7, $8::text[], $9::timestamptz WHERE NOT EXISTS (SELECT FROM strangler.alarm \
            WHERE slice = $1 AND dir = $2 AND lsn = $4 AND source_table = $6 AND operation = $7 \
              AND key IS NOT DISTINCT FROM $8::text[]) ON CONFLICT DO NOTHING";
    let statement = service.prepare(sql).await.map_err(raising())?;
    let (mut new, now) = (0, SystemClock.now());
    for stray in strays {
        new += service
            .execute(
                &statement,
                &[
                    &of.slice,
                    &of.direction.as_str(),
                    &transaction.epoch,
                    &PgLsn::from(transaction.lsn),
                    &i64::from(transaction.xid),
                    &stray.source_table,
                    &stray.operation.as_str(),
                    &stray.key,
                    &now,
                ],
            )
            .await
            .map_err(raising())?;
    }
    Ok(new)
}

/// Both sides were proven equal by a comparison that began when so many things had disturbed the slice ([`disturbances`]): where no
/// more have by now, every alarm that is to be seen is from before it. These are kept, and are nothing to act upon any more.
/// Otherwise none is touched. Returns how many.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn clear(service: &Client, slice: &str, disturbances: i64, by: &str) -> Result<u64, JournalError> {
    // One statement, so that it counts and clears the same alarms: one that comes meanwhile is neither counted nor cleared.
    let sql = format!(
        "UPDATE strangler.alarm SET cleared_at = now(), cleared_by = $6 WHERE slice = $1 AND cleared_at IS NULL AND ({}) = $5",
        disturbances_sql()
    );
    let asked: [&(dyn ToSql + Sync); 6] = [&slice, &WAY_BACK_BEGUN, &FIRED, &OUTSIDE, &disturbances, &by];
    let done = service.execute(&sql, &asked).await;
    done.map_err(JournalError::database("clearing alarms"))
}

/// Alarms of a slice that nobody has acted upon, for `status`. The keys stay in the table: they may be classified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncleared {
    /// How many rows and tables.
    pub count: i64,
    /// In how many transactions.
    pub transactions: i64,
    /// The last one's side, `monolith` or `service`.
    pub side: &'static str,
    /// Its table, by the monolith's name.
    pub source_table: String,
    /// What was done.
    pub operation: String,
    /// Start of the commit record.
    pub lsn: Lsn,
    /// Transaction id, 32 bits.
    pub xid: i64,
    /// When it was met.
    pub raised_at: String,
}

/// What nobody has acted upon; `None` when there is nothing.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn uncleared(service: &Client, slice: &str) -> Result<Option<Uncleared>, JournalError> {
    let sql = "SELECT count(*) OVER (), (SELECT count(DISTINCT lsn) FROM strangler.alarm \
                   WHERE slice = $1 AND cleared_at IS NULL), dir, source_table, operation, lsn, xid, \
               to_char(raised_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
               FROM strangler.alarm WHERE slice = $1 AND cleared_at IS NULL ORDER BY id DESC LIMIT 1";
    let row = service.query_opt(sql, &[&slice]).await;
    let row = row.map_err(JournalError::database("reading the alarms"))?;
    Ok(row.map(|row| {
        let forward = row.get::<_, &str>(2) == Direction::Forward.as_str();
        let direction = if forward { Direction::Forward } else { Direction::Reverse };
        Uncleared {
            count: row.get(0),
            transactions: row.get(1),
            side: direction.source(),
            source_table: row.get(3),
            operation: row.get(4),
            lsn: row.get::<_, PgLsn>(5).into(),
            xid: row.get(6),
            raised_at: row.get(7),
        }
    }))
}

/// Writes into the monolith's tables that got past their gates since `epoch`: table by the monolith's name, how many rows and
/// tables, and when the last was met, in microseconds since 1970.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn on_monolith(
    service: &Client,
    slice: &str,
    epoch: i64,
) -> Result<Vec<(String, i64, i64)>, JournalError> {
    let sql = "SELECT source_table, count(*), (extract(epoch FROM max(raised_at)) * 1000000)::bigint \
               FROM strangler.alarm WHERE slice = $1 AND dir = $2 AND epoch >= $3 GROUP BY 1 ORDER BY 1";
    let rows = service.query(sql, &[&slice, &Direction::Forward.as_str(), &epoch]).await;
    let rows = rows.map_err(JournalError::database("reading the alarms"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Action of the entry in the service's journal that says which slot a way back reads.
const WAY_BACK_BEGUN: &str = "way-back-begun";

/// Notes in the service that a way back reads from this slot, and in which mode it began. Another slot than the last one
/// means that changes in between did not come back, which voids what was proven before; see [`lost_writes`].
///
/// # Errors
/// [`JournalError::Database`].
pub async fn note_way_back(
    service: &Client,
    slice: &str,
    (slot, mode): (&str, Mode),
) -> Result<(), JournalError> {
    let sql = format!(
        "INSERT INTO strangler.journal (slice, actor, action, detail) \
        SELECT $1, session_user, $2, jsonb_build_object('slot', $3::text, 'mode', $4::text) WHERE $3 IS DISTINCT FROM \
            (SELECT detail ->> 'slot' FROM strangler.journal j WHERE slice = $1 AND action = $2 AND {} \
             ORDER BY id DESC LIMIT 1)",
        of_this_life("j", "$1")
    );
    let done = service.execute(&sql, &[&slice, &WAY_BACK_BEGUN, &slot, &mode.as_str()]).await;
    done.map(drop).map_err(JournalError::database("noting the slot of the way back"))
}

/// The slot that the last way back of a slice reads or read; none before the first.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn noted_way_back(service: &impl Ask, slice: &str) -> Result<Option<String>, JournalError> {
    let sql = format!(
        "SELECT detail ->> 'slot' FROM strangler.journal j WHERE slice = $1 AND action = $2 AND {} ORDER BY id DESC LIMIT 1",
        of_this_life("j", "$1")
    );
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&slice, Type::TEXT), (&WAY_BACK_BEGUN, Type::TEXT)];
    let row = service.ask_opt(&sql, &asked).await;
    let row = row.map_err(JournalError::database("reading the slot of the way back"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// The slot of a way back that was begun while the service had the authority, where no full verdict since says that no row
/// differs: what the service wrote before that slot was made did not come back. Before a flip begins it is a tripwire, and
/// one that is begun anew then has lost nothing. What an earlier version noted lacks the mode; of that, all but a slice's
/// first way back counts.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn lost_writes(service: &Client, slice: &str) -> Result<Option<String>, JournalError> {
    let sql = format!(
        "WITH begun AS (SELECT id, detail ->> 'slot' AS slot, detail ->> 'mode' AS mode, \
                row_number() OVER (ORDER BY id) AS number FROM strangler.journal j WHERE slice = $1 AND action = $2 AND {}), \
            anew AS (SELECT id, slot FROM begun WHERE mode = $3 OR mode IS NULL AND number > 1 ORDER BY id DESC LIMIT 1) \
        SELECT a.slot FROM anew a WHERE NOT EXISTS (SELECT FROM strangler.ledger l \
            WHERE l.slice = $1 AND l.kind = $4 AND {} AND l.body ->> 'full' = 'true' \
              AND (l.body ->> 'outcome' = 'clean' OR l.body ->> 'outcome' = 'differs' AND NOT EXISTS ( \
                  SELECT FROM json_each_text(l.body -> 'counts') AS c WHERE c.key <> 'orphan' AND c.value <> '0')) \
              AND l.body -> 'ground' ->> 'way_back' IN (SELECT b.slot FROM begun b WHERE b.id >= a.id))",
        of_this_life("j", "$1"),
        told_of_this_life("l", "$1")
    );
    let row = service.query_opt(&sql, &[&slice, &WAY_BACK_BEGUN, &Mode::Apply.as_str(), &VERDICT]).await;
    let row = row.map_err(JournalError::database("reading whether the way back lost writes"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Action of the entry in the service's journal that says what fired on rows that the mirror wrote.
const FIRED: &str = "fired-on-mirrored-rows";

/// Notes in the service that triggers or rules may have changed rows which the mirror wrote, on either side: that voids what
/// was proven before, also when they are gone again. `what` names them.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn note_fired(service: &Client, slice: &str, what: &str) -> Result<(), JournalError> {
    super::record(service, Some(slice), FIRED, &serde_json::json!({ "what": what })).await
}

/// How often something happened to a slice that no later state shows: writes on a fenced side, ways back that were
/// begun anew, triggers that were found firing on mirrored rows, and rows of the service that its filter forbids.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn disturbances(service: &impl Ask, slice: &str) -> Result<i64, JournalError> {
    let asked: [(&(dyn ToSql + Sync), Type); 4] =
        [(&slice, Type::TEXT), (&WAY_BACK_BEGUN, Type::TEXT), (&FIRED, Type::TEXT), (&OUTSIDE, Type::TEXT)];
    let row = service.ask_one(&disturbances_sql(), &asked).await;
    Ok(row.map_err(JournalError::database("counting what disturbed the slice"))?.get(0))
}

/// The slice is `$1`, the actions `$2` to `$4`.
fn disturbances_sql() -> String {
    let now = of_this_life("j", "$1");
    format!(
        "SELECT (SELECT count(*) FROM strangler.alarm WHERE slice = $1) + greatest(0, \
               (SELECT count(*) FROM strangler.journal j WHERE slice = $1 AND action = $2 AND {now}) - 1) + \
               (SELECT count(*) FROM strangler.journal j WHERE slice = $1 AND action IN ($3, $4) AND {now})"
    )
}

fn raising() -> impl FnOnce(tokio_postgres::Error) -> JournalError {
    JournalError::database("raising an alarm")
}
