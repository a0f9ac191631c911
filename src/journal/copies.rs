//! Copy state: which tables wait, copy or live, and the pieces whose snapshots still decide about events.

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, Type};

use super::JournalError;
use crate::clock::SystemClock;
use crate::lsn::Lsn;
use crate::postgres::ask::Ask;

/// How a table stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableState {
    /// Nothing copied. Set by `provision`; stored.
    Pending,
    /// Some pieces are in. Set by the first landing; stored.
    Copying,
    /// All pieces are in and the stream is past them. Set by the mirror; stored.
    Live,
    /// An event met rows that it could not have met: the table stands still until it is copied again. Stored.
    Diverged,
}

impl TableState {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Copying => "copying",
            Self::Live => "live",
            Self::Diverged => "diverged",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, JournalError> {
        [Self::Pending, Self::Copying, Self::Live, Self::Diverged]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| JournalError::Unreadable { what: "mirror_table.state", found: text.to_owned() })
    }
}

/// One table's row.
#[derive(Debug, Clone)]
pub struct TableRow {
    /// The monolith's table, as a plan writes it.
    pub source_table: String,
    /// How it stands.
    pub state: TableState,
    /// Why, where it stands still.
    pub detail: Option<String>,
    /// Rows landed so far.
    pub rows_copied: i64,
    /// Bytes of COPY data landed so far.
    pub bytes_copied: i64,
    /// `pg_publication_rel.oid` on the monolith since the copy began.
    pub published_as: Option<u32>,
    /// Its rows are those of the last copy, of which nothing counts.
    pub kept: bool,
}

/// Extent of a piece, in the form that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// Keys in (lo, hi]; `None` is open.
    Range {
        /// Exclusive lower border.
        lo: Option<String>,
        /// Inclusive upper border.
        hi: Option<String>,
    },
    /// The whole table.
    Whole,
    /// One key, in key order.
    Key(Vec<String>),
}

/// One piece's row.
#[derive(Debug, Clone)]
pub struct PieceRow {
    /// The monolith's table, as a plan writes it.
    pub source_table: String,
    /// What it covers.
    pub extent: Extent,
    /// Snapshot that it was read under.
    pub snapshot: String,
    /// WAL insert position read after that snapshot.
    pub lsn: Lsn,
}

/// All tables of a slice.
///
/// # Errors
/// [`JournalError`].
pub async fn tables(client: &Client, slice: &str) -> Result<Vec<TableRow>, JournalError> {
    let rows = client
        .query(
            "SELECT source_table, state, detail, rows_copied, bytes_copied, published_as, kept \
             FROM strangler.mirror_table \
             WHERE slice = $1 ORDER BY source_table",
            &[&slice],
        )
        .await
        .map_err(JournalError::database("reading the tables' states"))?;
    rows.iter()
        .map(|row| {
            Ok(TableRow {
                source_table: row.get(0),
                state: TableState::parse(row.get(1))?,
                detail: row.get(2),
                rows_copied: row.get(3),
                bytes_copied: row.get(4),
                published_as: row.get(5),
                kept: row.get(6),
            })
        })
        .collect()
}

/// Writes the rows of a way back's tables, in the monolith, where they are missing: each is live, and what is written to
/// it is listed from `applied` on. `labels` are the monolith's names with the service's.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn register_way_back(
    client: &Client,
    slice: &str,
    applied: Lsn,
    labels: &[(String, String)],
) -> Result<(), JournalError> {
    let (here, there): (Vec<&str>, Vec<&str>) =
        labels.iter().map(|(here, there)| (here.as_str(), there.as_str())).unzip();
    let sql = "WITH made AS (INSERT INTO strangler.mirror_table (slice, source_table, target_table, state, live_at) \
                 SELECT $1, h, t, 'live', $5::timestamptz FROM unnest($2::text[], $3::text[]) AS n(h, t) ON CONFLICT DO NOTHING) \
             INSERT INTO strangler.touched_floor (slice, source_table, lsn) \
                 SELECT $1, h, $4 FROM unnest($2::text[]) AS n(h) ON CONFLICT DO NOTHING";
    client
        .execute(sql, &[&slice, &here, &there, &PgLsn::from(applied), &SystemClock.now()])
        .await
        .map(drop)
        .map_err(JournalError::database("registering the tables of the way back"))
}

/// All pieces of a slice.
///
/// # Errors
/// [`JournalError`].
pub async fn pieces(client: &Client, slice: &str) -> Result<Vec<PieceRow>, JournalError> {
    let rows = client
        .query(
            "SELECT source_table, kind, lo, hi, key, snapshot, lsn FROM strangler.piece WHERE slice = $1",
            &[&slice],
        )
        .await
        .map_err(JournalError::database("reading the pieces"))?;
    rows.iter()
        .map(|row| {
            let kind: &str = row.get(1);
            let extent = match kind {
                "range" => Extent::Range { lo: row.get(2), hi: row.get(3) },
                "whole" => Extent::Whole,
                "key" => Extent::Key(row.get(4)),
                other => {
                    return Err(JournalError::Unreadable { what: "piece.kind", found: other.to_owned() });
                }
            };
            let lsn: PgLsn = row.get(6);
            Ok(PieceRow { source_table: row.get(0), extent, snapshot: row.get(5), lsn: lsn.into() })
        })
        .collect()
}

/// Records a piece, in the transaction that lands its rows.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn insert_piece(
    client: &Client,
    slice: &str,
    piece: &PieceRow,
    rows: i64,
) -> Result<(), JournalError> {
    let (kind, lo, hi, key): (&str, Option<&str>, Option<&str>, Option<&[String]>) = match &piece.extent {
        Extent::Range { lo, hi } => ("range", lo.as_deref(), hi.as_deref(), None),
        Extent::Whole => ("whole", None, None, None),
        Extent::Key(key) => ("key", None, None, Some(key)),
    };
    client
        .execute(
            "INSERT INTO strangler.piece (slice, source_table, kind, lo, hi, key, snapshot, lsn, rows) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &[
                &slice,
                &piece.source_table,
                &kind,
                &lo,
                &hi,
                &key,
                &piece.snapshot,
                &PgLsn::from(piece.lsn),
                &rows,
            ],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("recording a piece"))
}

/// Replaces the piece of one key: a later refetch decides from its own snapshot on.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn replace_key_piece(client: &Client, slice: &str, piece: &PieceRow) -> Result<(), JournalError> {
    if let Extent::Key(key) = &piece.extent {
        client
            .execute(
                "DELETE FROM strangler.piece WHERE slice = $1 AND source_table = $2 AND kind = 'key' AND key = $3",
                &[&slice, &piece.source_table, key],
            )
            .await
            .map_err(JournalError::database("replacing a key's piece"))?;
    }
    insert_piece(client, slice, piece, 1).await
}

/// Records a finished part of a whole-table piece.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn insert_part(
    client: &Client,
    slice: &str,
    source_table: &str,
    part: (i32, i32),
    snapshot: &str,
    rows: i64,
) -> Result<(), JournalError> {
    client
        .execute(
            "INSERT INTO strangler.part (slice, source_table, part, parts, snapshot, rows) \
             VALUES ($1, $2, $3, $4, $5, $6)",
            &[&slice, &source_table, &part.0, &part.1, &snapshot, &rows],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("recording a part"))
}

/// Whether a part is finished: asked only by the mutant that keeps parts over a crash.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn has_part(
    client: &Client,
    slice: &str,
    source_table: &str,
    part: u32,
) -> Result<bool, JournalError> {
    client
        .query_opt(
            "SELECT 1 FROM strangler.part WHERE slice = $1 AND source_table = $2 AND part = $3::int8",
            &[&slice, &source_table, &i64::from(part)],
        )
        .await
        .map(|row| row.is_some())
        .map_err(JournalError::database("reading parts"))
}

/// Removes a table's parts and returns how many there were.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn delete_parts(client: &Client, slice: &str, source_table: &str) -> Result<u64, JournalError> {
    client
        .execute(
            "DELETE FROM strangler.part WHERE slice = $1 AND source_table = $2",
            &[&slice, &source_table],
        )
        .await
        .map_err(JournalError::database("removing parts"))
}

/// Tables that hold parts of an unfinished whole-table piece.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn tables_with_parts(client: &Client, slice: &str) -> Result<Vec<String>, JournalError> {
    let rows = client
        .query("SELECT DISTINCT source_table FROM strangler.part WHERE slice = $1 ORDER BY 1", &[&slice])
        .await
        .map_err(JournalError::database("reading parts"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Adds to a table's copied counts, in the transaction that lands the rows. `false` when the table stands still: another
/// landing found that it can't take its rows, and this one must not be kept.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn add_copied(
    client: &Client,
    slice: &str,
    source_table: &str,
    rows: i64,
    bytes: i64,
) -> Result<bool, JournalError> {
    client
        .execute(
            "UPDATE strangler.mirror_table SET rows_copied = rows_copied + $3, bytes_copied = bytes_copied + $4, \
                 state = 'copying', copy_started_at = coalesce(copy_started_at, $5) \
             WHERE slice = $1 AND source_table = $2 AND state <> 'diverged'",
            &[&slice, &source_table, &rows, &bytes, &SystemClock.now()],
        )
        .await
        .map(|rows| rows == 1)
        .map_err(JournalError::database("counting copied rows"))
}

/// A copy that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Rows that were copied.
    pub rows: i64,
    /// Bytes of COPY data.
    pub bytes: i64,
    /// Which copy of the table it is, from 1.
    pub copy: i32,
}

/// All pieces of a table are in and passed: forgets them and marks the table live. `None` where the table has no row.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_live(
    client: &Client,
    slice: &str,
    source_table: &str,
) -> Result<Option<Ended>, JournalError> {
    forget_pieces(client, slice, source_table).await?;
    let row = client
        .query_opt(
            "UPDATE strangler.mirror_table SET state = 'live', detail = NULL, live_at = $3, kept = false \
             WHERE slice = $1 AND source_table = $2 RETURNING rows_copied, bytes_copied, copy_number",
            &[&slice, &source_table, &SystemClock.now()],
        )
        .await
        .map_err(JournalError::database("marking a table live"))?;
    Ok(row.map(|row| Ended { rows: row.get(0), bytes: row.get(1), copy: row.get(2) }))
}

/// Takes a table back to nothing copied, or to standing still; its pieces are gone either way. Returns which copy of it the
/// next one is; 0 where the table has no row.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_without_pieces(
    client: &Client,
    slice: &str,
    source_table: &str,
    state: TableState,
    detail: Option<&str>,
) -> Result<i32, JournalError> {
    // The row first: a landing that holds it then ends before its piece is looked for.
    let row = client
        .query_opt(
            "UPDATE strangler.mirror_table SET state = $3, detail = $4, rows_copied = 0, bytes_copied = 0, \
                 copy_started_at = NULL, live_at = NULL, published_as = NULL, kept = false, copy_number = copy_number + 1 \
             WHERE slice = $1 AND source_table = $2 RETURNING copy_number",
            &[&slice, &source_table, &state.as_str(), &detail],
        )
        .await
        .map_err(JournalError::database("taking a table back"))?;
    forget_pieces(client, slice, source_table).await?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// Takes a table back to nothing copied, and notes that the rows of its last copy are left in it to be compared. Returns which copy of
/// it the next one is; 0 where the table has no row.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn keep(client: &Client, slice: &str, source_table: &str) -> Result<i32, JournalError> {
    let copy = set_without_pieces(client, slice, source_table, TableState::Pending, None).await?;
    let sql = "UPDATE strangler.mirror_table SET kept = true WHERE slice = $1 AND source_table = $2";
    let noted = client.execute(sql, &[&slice, &source_table]).await;
    noted.map(|_| copy).map_err(JournalError::database("keeping the rows of a copy"))
}

/// In place of an entry of the publication: rows changed without an event, so that only another copy helps. No object
/// has this oid.
pub const UNHEARD: u32 = 0;

/// Remembers under which entry of the publication a table's changes come, before the first piece is copied.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_published_as(
    client: &Client,
    slice: &str,
    source_table: &str,
    entry: u32,
) -> Result<(), JournalError> {
    client
        .execute(
            "UPDATE strangler.mirror_table SET published_as = $3 WHERE slice = $1 AND source_table = $2",
            &[&slice, &source_table, &entry],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("recording a table's place in the publication"))
}

/// The tables whose copy is not over or not right, with their states.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn not_live(client: &impl Ask, slice: &str) -> Result<Vec<(String, String)>, JournalError> {
    let sql = "SELECT m.source_table, CASE m.state WHEN 'live' THEN 'copied, and not all of its indexes and constraints are made' \
                   ELSE m.state END FROM strangler.mirror_table m WHERE m.slice = $1 AND (m.state <> 'live' \
                   OR EXISTS (SELECT FROM strangler.deferred d WHERE d.slice = m.slice AND d.target_table = m.target_table \
                       AND d.done_at IS NULL AND d.kind <> 'foreign_key')) ORDER BY 1";
    let rows = client.ask(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading the states of tables"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Notes that rows of a table changed without an event. `true` when that is news.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_unheard(client: &Client, slice: &str, source_table: &str) -> Result<bool, JournalError> {
    client
        .execute(
            "UPDATE strangler.mirror_table SET published_as = $3 \
             WHERE slice = $1 AND source_table = $2 AND published_as IS DISTINCT FROM $3",
            &[&slice, &source_table, &UNHEARD],
        )
        .await
        .map(|rows| rows == 1)
        .map_err(JournalError::database("noting that a table changed unheard"))
}

/// Forgets all pieces of a table, e.g. the refetched keys of a live one once the stream has passed them.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn forget_pieces(client: &Client, slice: &str, source_table: &str) -> Result<(), JournalError> {
    client
        .execute(
            "DELETE FROM strangler.piece WHERE slice = $1 AND source_table = $2",
            &[&slice, &source_table],
        )
        .await
        .map(drop)
        .map_err(JournalError::database("forgetting pieces"))
}
