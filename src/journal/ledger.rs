//! The ledger: what was done and proven, append-only in the service's database, chained by hashes.
//!
//! Every entry holds the hash of the entry before it, so that a changed field, a missing entry or another order
//! shows ([`verify()`]). What a chain alone can't show is that its end was cut off; for that the head is written to the
//! monolith's journal as well ([`anchor()`]). docs/protocol.md, section 15, has the form and what it proves.

mod anchor;
mod chain;
mod kinds;
pub mod steps;
mod subject;
mod verify;

use std::fmt;

use serde_json::Value;
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Row};

use super::JournalError;
use crate::clock::{Clock, SystemClock};
use crate::lsn::Lsn;

pub use anchor::{Anchor, Anchored, Memory, accept, anchor, anchors};
pub use chain::Hash;
pub use kinds::{
    ABANDON, ACCEPTED, ALARM, ARM, COPY, DISARM, FLIP, PLAN, PROVISION, REHEARSAL, REPAIR, RETIRE, UNRETIRE,
    VERDICT,
};
pub use subject::{Subject, transaction, what_changed};
pub use verify::{
    Broken, Fault, Remembered, Verified, VerifyError, remembered, verify, verify_by, verify_from,
};

/// Longest body. A verdict takes some 500 bytes per table, so this is enough for thousands of tables, and a page of
/// entries fits into memory.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// Entries that are read at once: at most 64 MiB of bodies.
const PAGE: i64 = 16;

/// Advisory lock under which entries get their numbers. Gates use the same class with keys from 1, provision 0, and
/// upgrades of our schema -1.
const LOCK: (i32, i32) = (1_398_035_026, -2);

/// Who does something that is recorded, as the command line knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// The human or the job.
    pub operator: String,
    /// The machine.
    pub host: String,
}

/// An entry to be made. What does not apply is absent.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry<'a> {
    /// What it is about: [`VERDICT`], [`FLIP`] and so on.
    pub kind: &'a str,
    /// Plan.
    pub plan: &'a str,
    /// Slice.
    pub slice: Option<&'a str>,
    /// Who.
    pub author: &'a Author,
    /// Epoch of the authority.
    pub epoch: Option<i64>,
    /// Position on the authority.
    pub lsn: Option<Lsn>,
    /// Hash of the slice's mapping.
    pub plan_hash: Option<&'a str>,
    /// The rest. It stays for ever, so it must hold no value of a classified column, and of
    /// others only keys.
    pub body: &'a Value,
}

/// An entry as it stands in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number: from 1, without gaps.
    pub id: i64,
    /// When, in microseconds since 1970.
    pub at_us: i64,
    /// What it is about.
    pub kind: String,
    /// Plan.
    pub plan: String,
    /// Slice.
    pub slice: Option<String>,
    /// Who.
    pub author: Author,
    /// Epoch of the authority.
    pub epoch: Option<i64>,
    /// Position on the authority.
    pub lsn: Option<Lsn>,
    /// Hash of the slice's mapping.
    pub plan_hash: Option<String>,
    /// The rest: JSON, to the letter as it was hashed.
    pub body: String,
    /// Hash of the entry before it; zeros in the first.
    pub previous: Hash,
    /// Its own hash.
    pub hash: Hash,
}

/// The last entry, by which the whole chain is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub id: i64,
    /// Its hash.
    pub hash: Hash,
    /// When it was made, in microseconds since 1970.
    pub at_us: i64,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}, hash {}", self.id, self.hash)
    }
}

/// Keeps others from appending until the caller's transaction ends: what is found in the ledger meanwhile stays all there is.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn lock(client: &Client) -> Result<(), JournalError> {
    let (class, key) = LOCK;
    let locked = client.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&class, &key]).await;
    locked.map(drop).map_err(JournalError::database("locking the ledger"))
}

/// Whether there is an entry about the change of authority that made this epoch. A slice that was abandoned begins with the first epoch
/// again, so only entries since then count.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn has_move(client: &Client, slice: &str, epoch: i64) -> Result<bool, JournalError> {
    let sql = "SELECT EXISTS (SELECT FROM strangler.ledger WHERE kind = $1 AND slice = $2 AND epoch = $3 \
                   AND id > coalesce((SELECT max(id) FROM strangler.ledger WHERE kind = $4 AND slice = $2), 0))";
    let row = client.query_one(sql, &[&FLIP, &slice, &epoch, &ABANDON]).await;
    Ok(row.map_err(JournalError::database("reading the ledger"))?.get(0))
}

/// Appends an entry, in the caller's open READ COMMITTED transaction on the service: it is durable together with what
/// it is about. Others that append wait for the end of that transaction. [`anchor()`] is to follow the commit.
///
/// # Errors
/// [`JournalError::TooLong`], [`JournalError::Database`]. In a transaction with an older snapshot, or outside any, two
/// that append at once get a unique violation instead of waiting: the chain never forks.
pub async fn append(client: &Client, entry: &NewEntry<'_>) -> Result<Head, JournalError> {
    let failed = || JournalError::database("appending to the ledger");
    let body = chain::ascii(&entry.body.to_string());
    if body.len() > BODY_BYTES_MAX {
        let what = "the body of a ledger entry";
        return Err(JournalError::TooLong { what, bytes: body.len(), limit: BODY_BYTES_MAX });
    }
    lock(client).await?;
    let before = "SELECT id, hash FROM strangler.ledger ORDER BY id DESC LIMIT 1";
    let row = client.query_typed_opt(before, &[]).await.map_err(failed())?;
    let id = row.as_ref().map_or(0, |row| row.get::<_, i64>(0)) + 1;
    let previous = row.map_or(Ok(Hash::NONE), |row| Hash::read(row.get(1)))?;
    let mut made = Entry {
        id,
        at_us: SystemClock.now_us(),
        kind: entry.kind.to_owned(),
        plan: entry.plan.to_owned(),
        slice: entry.slice.map(str::to_owned),
        author: entry.author.clone(),
        epoch: entry.epoch,
        lsn: entry.lsn,
        plan_hash: entry.plan_hash.map(str::to_owned),
        body,
        previous,
        hash: Hash::NONE,
    };
    made.hash = chain::hash_of(&made);
    insert(client, &made).await.map_err(failed())?;
    Ok(Head { id, hash: made.hash, at_us: made.at_us })
}

async fn insert(client: &Client, entry: &Entry) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "INSERT INTO strangler.ledger (id, at, kind, plan, slice, operator, host, epoch, lsn, plan_hash, body, \
                 previous, hash) \
             VALUES ($1, timestamptz '1970-01-01 00:00:00+00' + $2::bigint * interval '1 microsecond', $3, $4, $5, \
                 $6, $7, $8, $9, $10, $11::text::json, $12, $13)",
            &[
                &entry.id,
                &entry.at_us,
                &entry.kind,
                &entry.plan,
                &entry.slice,
                &entry.author.operator,
                &entry.author.host,
                &entry.epoch,
                &entry.lsn.map(PgLsn::from),
                &entry.plan_hash,
                &entry.body,
                &entry.previous.as_bytes(),
                &entry.hash.as_bytes(),
            ],
        )
        .await
        .map(drop)
}

/// Which entries to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those of this slice.
    pub slice: Option<String>,
    /// Only those of this kind.
    pub kind: Option<String>,
    /// Only those with a higher number.
    pub after: i64,
}

const COLUMNS: &str = "id, (extract(epoch FROM at) * 1000000)::bigint, kind, plan, slice, operator, host, epoch, lsn, \
     plan_hash, body::text, previous, hash";

fn from_row(row: &Row) -> Result<Entry, JournalError> {
    let lsn: Option<PgLsn> = row.get(8);
    Ok(Entry {
        id: row.get(0),
        at_us: row.get(1),
        kind: row.get(2),
        plan: row.get(3),
        slice: row.get(4),
        author: Author { operator: row.get(5), host: row.get(6) },
        epoch: row.get(7),
        lsn: lsn.map(Lsn::from),
        plan_hash: row.get(9),
        body: row.get(10),
        previous: Hash::read(row.get(11))?,
        hash: Hash::read(row.get(12))?,
    })
}

/// The next page of entries, oldest first; empty when there are no more. The last one's number is the `after` of
/// the next page.
///
/// # Errors
/// [`JournalError`].
pub async fn entries(client: &Client, filter: &Filter) -> Result<Vec<Entry>, JournalError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM strangler.ledger WHERE id > $1 AND ($2::text IS NULL OR slice = $2) \
         AND ($3::text IS NULL OR kind = $3) ORDER BY id LIMIT $4"
    );
    let parameters: [&(dyn ToSql + Sync); 4] = [&filter.after, &filter.slice, &filter.kind, &PAGE];
    let rows = client.query(&sql, &parameters).await.map_err(JournalError::database("reading the ledger"))?;
    rows.iter().map(from_row).collect()
}

/// Which of the last entries to read.
#[derive(Debug, Clone, Copy)]
pub struct Latest<'a> {
    /// Only those of these slices; of all, and those of none, when there are none.
    pub slices: &'a [String],
    /// Only those of this kind.
    pub kind: Option<&'a str>,
    /// How many.
    pub number: i64,
}

/// The last entries, oldest first. Who calls it: `strangler ledger`.
///
/// # Errors
/// [`JournalError`].
pub async fn latest(client: &Client, wanted: Latest<'_>) -> Result<Vec<Entry>, JournalError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM strangler.ledger WHERE (cardinality($1::text[]) = 0 OR slice = ANY ($1)) \
         AND ($2::text IS NULL OR kind = $2) ORDER BY id DESC LIMIT $3"
    );
    let parameters: [&(dyn ToSql + Sync); 3] = [&wanted.slices, &wanted.kind, &wanted.number];
    let rows = client.query(&sql, &parameters).await.map_err(JournalError::database("reading the ledger"))?;
    rows.iter().rev().map(from_row).collect()
}

/// The last entry; `None` while there is none.
///
/// # Errors
/// [`JournalError`].
pub async fn head(client: &Client) -> Result<Option<Head>, JournalError> {
    let sql = "SELECT id, hash, (extract(epoch FROM at) * 1000000)::bigint FROM strangler.ledger \
               ORDER BY id DESC LIMIT 1";
    let row = client
        .query_typed_opt(sql, &[])
        .await
        .map_err(JournalError::database("reading the ledger's head"))?;
    row.map(|row| Ok(Head { id: row.get(0), hash: Hash::read(row.get(1))?, at_us: row.get(2) })).transpose()
}
