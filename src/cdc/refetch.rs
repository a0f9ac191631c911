//! Reads rows from the source again: one for a key change whose new tuple lacks unchanged TOASTed values and whose
//! old row is not on the target, or those of keys that are to be repaired.

use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::sync::CancellationToken;

use super::apply::replace::SourceRow;
use super::error::MirrorError;
use super::source;
use crate::change::{Tuple, Value};
use crate::journal::copies::{Extent, PieceRow};
use crate::landing::key::Key;
use crate::lsn::Lsn;
use crate::mapping::TableMapping;
use crate::mapping::collated::Keys;
use crate::mapping::input::{key_type, key_value_sql};
use crate::name::{TableName, quote_ident, quote_literal};
use crate::postgres::collations;
use crate::postgres::connect::Session;
use crate::postgres::equality;
use crate::postgres::sqlstate::{self, Failure};
use crate::snapshot::Snapshot;

/// Pause between snapshots that don't see the transaction yet, doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How long one attempt may wait behind an exclusive lock.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";

/// Repairs can wait, writers behind a waiting exclusive lock should not.
const REPAIR_SETTINGS: &str = "SET LOCAL lock_timeout = '500ms'; SET LOCAL enable_seqscan = off; \
     SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

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
            source_table: mapping.label().to_string(),
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
        .zip(equality(reader, mapping).await?)
        .map(|((column, value), equals)| {
            let value = key_value_sql(&column.cast_sql, &format!("{}::text", quote_literal(&value)));
            format!("{} {equals} {value}", quote_ident(&column.source))
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

/// Rows of several keys as one snapshot sees them.
#[derive(Debug)]
pub struct Picture {
    /// The snapshot.
    pub snapshot: String,
    /// WAL insert position read after it.
    pub lsn: Lsn,
    /// One for each key, with the places of that key among those asked for.
    pub rows: Vec<(Vec<usize>, SourceRow)>,
    /// How the keys of the table are collated there.
    pub keys: Keys,
    /// Places of keys that don't read as the table's, with the reason, which holds no value.
    pub refused: Vec<(usize, String)>,
}

/// Reads the rows of `keys`, each in key order, under a snapshot that `trusts` accepts. The keys come from outside and
/// may be spelled otherwise than the stream does, so the server reads and prints them.
///
/// `None` when the snapshot is not accepted, or when the table can't be locked soon: to be tried again.
///
/// # Errors
/// [`MirrorError`].
pub async fn picture(
    (reader, position): (&Session, &Session),
    mapping: &TableMapping,
    keys: &[&[String]],
    trusts: impl FnOnce(&Snapshot) -> bool,
) -> Result<Option<Picture>, MirrorError> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {REPAIR_SETTINGS}; LOCK TABLE {} IN ACCESS SHARE MODE",
        mapping.source.sql()
    );
    let locked = reader.batch_execute(&begin).await;
    let taken = match locked {
        Ok(()) => {
            let snapshot = source::snapshot(reader).await?;
            if trusts(&snapshot) {
                let lsn = source::insert_position(position).await?;
                let key = mapping.key_columns().map(|column| &column.source);
                let collated = key_collations(reader, &mapping.source, key).await?;
                let (rows, refused) = read_rows(reader, mapping, keys).await?;
                Some(Picture { snapshot: snapshot.to_string(), lsn, rows, keys: collated, refused })
            } else {
                None
            }
        }
        Err(error) if sqlstate::is_lock_timeout(&error) => None,
        Err(error) => return Err(MirrorError::sql("opening a repair")(error)),
    };
    reader.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("closing a repair"))?;
    Ok(taken)
}

/// How the key of a table is collated, by the names of the side that `client` reads.
pub(super) async fn key_collations(
    client: &Client,
    table: &TableName,
    key: impl Iterator<Item = &String>,
) -> Result<Keys, MirrorError> {
    let columns = key.map(String::as_str).collect();
    let read = collations::read(client, std::iter::once((table, columns))).await;
    read.map_err(MirrorError::sql("reading how keys are collated"))
}

/// Why a row of the monolith is not repaired whose key nobody can look up. Nothing is ever copied whole into the monolith.
const NO_KEY: &str = "a key of type jsonb can't be repaired by itself";
/// The same of a row of the service: what helps is a copy, and nothing that can be done to the row.
pub const COPY_AGAIN: &str = "a key of type jsonb can't be repaired by itself; copy the table again";

type ReadRows = (Vec<(Vec<usize>, SourceRow)>, Vec<(usize, String)>);

async fn read_rows(
    reader: &Session,
    mapping: &TableMapping,
    keys: &[&[String]],
) -> Result<ReadRows, MirrorError> {
    let (mut rows, mut refused) = (Vec::new(), Vec::new());
    let types = key_types(reader, mapping).await?;
    let equality = equality(reader, mapping).await?;
    if types.iter().any(|name| matches!(name.as_str(), "json" | "jsonb")) {
        let why = if mapping.reversed { NO_KEY } else { COPY_AGAIN };
        return Ok((rows, (0..keys.len()).map(|place| (place, why.to_owned())).collect()));
    }
    let all: Vec<(usize, &[String])> = keys.iter().copied().enumerate().collect();
    // One key that can't be read would fail them all.
    let mut groups = vec![all.as_slice()];
    while let Some(group) = groups.pop() {
        reader.batch_execute("SAVEPOINT keys").await.map_err(MirrorError::sql("reading rows again"))?;
        match reader.simple_query(&rows_sql(mapping, (&types, &equality), group)).await {
            Ok(messages) => {
                for message in &messages {
                    if let SimpleQueryMessage::Row(row) = message {
                        take_row(row, mapping, &mut rows);
                    }
                }
            }
            Err(error) if matches!(Failure::of(&error), Failure::Data | Failure::Constraint) => {
                let back = reader.batch_execute("ROLLBACK TO SAVEPOINT keys").await;
                back.map_err(MirrorError::sql("reading rows again"))?;
                match group {
                    [(place, _)] => refused.push((*place, sqlstate::words(&error))),
                    _ => groups.extend(group.chunks(1)),
                }
            }
            Err(error) => return Err(MirrorError::sql("reading rows again")(error)),
        }
    }
    Ok((rows, refused))
}

/// The key columns' types with their modifiers, which decide how a value is printed.
async fn key_types(reader: &Session, mapping: &TableMapping) -> Result<Vec<String>, MirrorError> {
    let names: Vec<&str> = mapping.key_columns().map(|column| column.source.as_str()).collect();
    let sql = "SELECT format_type(atttypid, atttypmod) FROM unnest($2::text[]) WITH ORDINALITY AS k(name, n) \
               JOIN pg_attribute ON attrelid = $1::text::regclass AND attname = k.name ORDER BY k.n";
    let rows = reader
        .query(sql, &[&mapping.source.sql(), &names])
        .await
        .map_err(MirrorError::sql("reading the types of a key"))?;
    Ok(rows.iter().map(|row| key_type(row.get(0)).to_owned()).collect())
}

/// By which operators the monolith finds a key, so that its index is used.
async fn equality(reader: &Session, mapping: &TableMapping) -> Result<Vec<String>, MirrorError> {
    let columns = mapping.key_columns().map(|column| column.source.as_str()).collect();
    let found = equality::of_keys(reader, &[(mapping.source.sql(), columns)]).await;
    let found = found.map_err(MirrorError::sql("reading how keys are compared"))?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// One row for each key: its place, its values as the server prints them, whether there is a row, and the row. A record
/// is read from JSON with the column's own input function and modifier, and refuses what a cast would cut.
fn rows_sql(
    mapping: &TableMapping,
    (types, equality): (&[String], &[String]),
    keys: &[(usize, &[String])],
) -> String {
    let records: Vec<serde_json::Value> = keys
        .iter()
        .map(|(place, key)| {
            let parts = key.iter().enumerate().map(|(n, part)| (format!("k{n}"), part.as_str().into()));
            let place = std::iter::once(("n".to_owned(), serde_json::Value::from(*place)));
            serde_json::Value::Object(place.chain(parts).collect())
        })
        .collect();
    let fields: Vec<String> = types.iter().enumerate().map(|(n, name)| format!("k{n} {name}")).collect();
    let printed: Vec<String> = (0..types.len()).map(|n| format!("k.k{n}")).collect();
    let of_row = |name: &str| format!("t.{}", quote_ident(name));
    let key: Vec<String> = mapping.key_columns().map(|column| of_row(&column.source)).collect();
    let columns: Vec<String> = mapping.columns.iter().map(|column| of_row(&column.source)).collect();
    let terms = key.iter().zip(&printed).zip(equality);
    let matches: Vec<String> =
        terms.map(|((column, value), equals)| format!("{column} {equals} {value}")).collect();
    format!(
        "SELECT k.n, {}, num_nulls({}) = 0, {} FROM json_to_recordset({}) AS k(n int, {}) \
         LEFT JOIN (SELECT {} FROM {}{}{}) AS t ON {} ORDER BY k.n",
        printed.join(", "),
        key.first().map_or("NULL", String::as_str),
        columns.join(", "),
        quote_literal(&serde_json::Value::Array(records).to_string()),
        fields.join(", "),
        mapping.source_list(),
        if mapping.partitioned { "" } else { "ONLY " },
        mapping.source.sql(),
        mapping.filter_sql().map_or_else(String::new, |filter| format!(" WHERE {filter}")),
        matches.join(" AND "),
    )
}

/// Adds a row of [`rows_sql`]; a key that was asked for twice is one row.
fn take_row(row: &SimpleQueryRow, mapping: &TableMapping, rows: &mut Vec<(Vec<usize>, SourceRow)>) {
    let width = mapping.key.len();
    let Some(place) = row.get(0).and_then(|text| text.parse().ok()) else { return };
    let bytes = |index: usize| row.get(index).map(|text| Bytes::from(text.to_owned()));
    let tuple: Option<Tuple> = (row.get(1 + width) == Some("t")).then(|| {
        (0..mapping.columns.len()).map(|n| bytes(2 + width + n).map_or(Value::Null, Value::Text)).collect()
    });
    // Equal keys may be printed in several ways, e.g. 1.0 and 1.00: the stream prints what the row holds.
    let held = |n: &usize| tuple.as_ref().and_then(|_| bytes(2 + width + n));
    let parts =
        mapping.key.iter().enumerate().filter_map(|(n, column)| held(column).or_else(|| bytes(1 + n)));
    let key = Key::new(parts.collect());
    match rows.iter_mut().find(|(_, known)| known.key == key) {
        Some((places, _)) => places.push(place),
        None => rows.push((vec![place], SourceRow { key, row: tuple })),
    }
}
