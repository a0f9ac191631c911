//! Reads one row from the source again: for a key change whose new tuple lacks unchanged TOASTed values and whose
//! old row is not on the target.

use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;

use super::error::MirrorError;
use super::source;
use crate::change::{Tuple, Value};
use crate::journal::copies::{Extent, PieceRow};
use crate::landing::key::Key;
use crate::mapping::TableMapping;
use crate::name::{quote_ident, quote_literal};
use crate::postgres::connect::Session;

/// Pause between snapshots that don't see the transaction yet, doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How long one attempt may wait behind an exclusive lock.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";

/// The sessions that a refetch reads through.
#[derive(Debug, Clone, Copy)]
pub struct RefetchSessions<'a> {
    /// Reads the row.
    pub reader: &'a Session,
    /// Reads the position.
    pub position: &'a Session,
    /// The operator asks to stop.
    pub stop: &'a CancellationToken,
}

/// A row as one snapshot sees it, with the piece that decides about its later events.
#[derive(Debug)]
pub struct Refetched {
    /// The row in mapping order; `None` when the snapshot has none that the filter takes.
    pub row: Option<Tuple>,
    /// The key's piece, to be recorded in the same target transaction as the row.
    pub piece: PieceRow,
}

/// Reads the row of `key` under a snapshot that sees `xid`. Whoever touched the key before `xid` is then visible
/// too: it had left the list of running transactions before `xid` could lock the row.
///
/// # Errors
/// [`MirrorError::Stopped`] when the operator asks to stop while no snapshot sees it yet; [`MirrorError`].
pub async fn refetch(
    RefetchSessions { reader, position, stop }: RefetchSessions<'_>,
    mapping: &TableMapping,
    key: &Key,
    xid: u32,
) -> Result<Refetched, MirrorError> {
    let mut pause = PAUSE_FIRST;
    loop {
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {LOCK_TIMEOUT}; \
             LOCK TABLE {} IN ACCESS SHARE MODE",
            mapping.source.sql()
        );
        reader.batch_execute(&begin).await.map_err(MirrorError::sql("opening a refetch"))?;
        let snapshot = source::snapshot(reader).await?;
        if !snapshot.sees(snapshot.extend(xid)) {
            reader.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("closing a refetch"))?;
            // With a synchronous standby away that can take for as long as it is away.
            tokio::select! {
                () = stop.cancelled() => return Err(MirrorError::Stopped),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
            continue;
        }
        let lsn = source::insert_position(position).await?;
        let row = read_row(reader, mapping, key).await?;
        reader.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("closing a refetch"))?;
        let piece = PieceRow {
            source_table: mapping.source.to_string(),
            extent: Extent::Key(key.to_strings()),
            snapshot: snapshot.to_string(),
            lsn,
        };
        return Ok(Refetched { row, piece });
    }
}

/// The simple protocol gives each value as its output function writes it, which is what the stream carries.
async fn read_row(reader: &Session, mapping: &TableMapping, key: &Key) -> Result<Option<Tuple>, MirrorError> {
    let mut conditions: Vec<String> = mapping
        .key_columns()
        .zip(key.to_strings())
        .map(|(column, value)| {
            format!("{} = {}::{}", quote_ident(&column.source), quote_literal(&value), column.cast_sql)
        })
        .collect();
    conditions.extend(mapping.filter_sql());
    let sql = format!(
        "SELECT {} FROM {}{} WHERE {}",
        mapping.source_list(),
        if mapping.partitioned { "" } else { "ONLY " },
        mapping.source.sql(),
        conditions.join(" AND ")
    );
    let messages = reader.simple_query(&sql).await.map_err(MirrorError::sql("reading a row again"))?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|index| {
                    row.get(index).map_or(Value::Null, |text| Value::Text(Bytes::from(text.to_owned())))
                })
                .collect(),
        ),
        SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
    }))
}
