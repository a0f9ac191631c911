//! What each table of the monolith consisted of when it was last looked at: the measure for what changes it without an
//! event. It outlives the process, so that a change made while no mirror runs is noticed at the next start.

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, Type};

use super::JournalError;
use super::copies::TableState;
use crate::lsn::Lsn;

/// TRUNCATEs of one table that are remembered until its partitions are looked at again, a moment later.
const TRUNCATES_MAX: i32 = 50;

/// One table's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// The monolith's table, as a plan writes it.
    pub source_table: String,
    /// How the table stands.
    pub state: TableState,
    /// What was seen, as JSON; none where nothing was written down yet.
    pub contents: Option<String>,
    /// Transactions of the monolith in which the stream brought a TRUNCATE of the whole table.
    pub emptied_by: Vec<String>,
}

/// The baselines of a slice's tables, and the position up to which the stream is applied: both of one moment.
///
/// # Errors
/// [`JournalError`].
pub async fn read(client: &Client, slice: &str) -> Result<(Lsn, Vec<Baseline>), JournalError> {
    let sql = "SELECT m.source_table, m.state, b.contents::text, coalesce(b.emptied_by, ARRAY[]::text[]), t.applied_lsn \
               FROM strangler.mirror_table m LEFT JOIN strangler.baseline b USING (slice, source_table) \
               LEFT JOIN strangler.stream t ON t.slice = m.slice AND t.dir = 'forward' AND t.lane = 0 \
               WHERE m.slice = $1";
    let rows = client
        .query(sql, &[&slice])
        .await
        .map_err(JournalError::database("reading what the tables consisted of"))?;
    let applied = rows.first().and_then(|row| row.get::<_, Option<PgLsn>>(4)).map_or(Lsn::ZERO, Lsn::from);
    let baseline = |row: &tokio_postgres::Row| {
        Ok(Baseline {
            source_table: row.get(0),
            state: TableState::parse(row.get(1))?,
            contents: row.get(2),
            emptied_by: row.get(3),
        })
    };
    Ok((applied, rows.iter().map(baseline).collect::<Result<_, JournalError>>()?))
}

/// What a copy was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The service's table, as it is shown.
    pub target_table: String,
    /// The monolith's table, as a plan writes it.
    pub source_table: String,
    /// `pg_publication_rel.oid` on the monolith since the copy began, which goes with the table; none where no copy has begun.
    pub published_as: Option<u32>,
    /// What the table consisted of, as JSON.
    pub contents: Option<String>,
    /// Transactions of the monolith in which the stream brought a TRUNCATE of the whole table.
    pub emptied_by: Vec<String>,
}

/// What each copy of a slice was read from. Who calls it: `abandon`, before it takes a copy.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn copied(client: &Client, slice: &str) -> Result<Vec<Copied>, JournalError> {
    let sql = "SELECT m.target_table, m.source_table, m.published_as, b.contents::text, coalesce(b.emptied_by, ARRAY[]::text[]) \
               FROM strangler.mirror_table m LEFT JOIN strangler.baseline b USING (slice, source_table) \
               WHERE m.slice = $1 ORDER BY 1";
    let rows = client.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading what the copies were read from"))?;
    let copied = |row: &tokio_postgres::Row| Copied {
        target_table: row.get(0),
        source_table: row.get(1),
        published_as: row.get(2),
        contents: row.get(3),
        emptied_by: row.get(4),
    };
    Ok(rows.iter().map(copied).collect())
}

/// Writes down what a table consists of. Nothing is written once another process has taken the nonce: what an older one
/// saw may be older than the copy that is there now.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn write(
    client: &Client,
    (slice, nonce): (&str, i64),
    source_table: &str,
    contents: &str,
) -> Result<(), JournalError> {
    let sql = "INSERT INTO strangler.baseline (slice, source_table, contents) \
               SELECT slice, $3, $4::text::json FROM strangler.stream \
               WHERE slice = $1 AND dir = 'forward' AND lane = 0 AND nonce = $2 \
               ON CONFLICT (slice, source_table) DO UPDATE SET contents = excluded.contents, seen_at = now()";
    client
        .execute(sql, &[&slice, &nonce, &source_table, &contents])
        .await
        .map(drop)
        .map_err(JournalError::database("writing down what a table consists of"))
}

/// Notes that the stream brought a TRUNCATE of a whole table in a transaction of the monolith, in the transaction that
/// applies it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn note_truncate(
    client: &Client,
    slice: &str,
    source_table: &str,
    xid: u32,
) -> Result<(), JournalError> {
    let sql = "UPDATE strangler.baseline \
               SET emptied_by = (emptied_by || $3::text)[greatest(1, cardinality(emptied_by) + 2 - $4):] \
               WHERE slice = $1 AND source_table = $2";
    client
        .execute(sql, &[&slice, &source_table, &xid.to_string(), &TRUNCATES_MAX])
        .await
        .map(drop)
        .map_err(JournalError::database("noting a TRUNCATE"))
}
