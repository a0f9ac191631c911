//! Reads the messages of the output plugin pgoutput, protocol version 2, text format (PostgreSQL documentation,
//! sections 55.5 and 55.9).
//!
//! Values are slices of the message, nothing is copied. Any bytes are read or refused; nothing panics. Who calls
//! it: the stream of the mirror, once for each `replication::Frame::Data`.

use bytes::Bytes;

use crate::change::{OldTuple, Relation, RelationColumn, RowChange, TransactionFrame, Tuple, Value};
use crate::lsn::Lsn;

mod cursor;

use cursor::Cursor;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A transaction that had committed before it was sent.
    Begin(TransactionFrame),
    /// Its end.
    Commit {
        /// Start of the commit record.
        commit_lsn: Lsn,
        /// End of the commit record: the position that progress is kept in.
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        commit_time_us: i64,
    },
    /// The changes that follow were replayed from another server.
    Origin {
        /// Position of the commit there.
        lsn: Lsn,
        /// Name of the replication origin.
        name: String,
    },
    /// The shape of a table, before its first change and after each change of the shape.
    Relation(Relation),
    /// The name of a column's type that is not built in.
    Type {
        /// `pg_type.oid` on the source.
        oid: u32,
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
    /// An inserted, updated or deleted row.
    Row {
        /// `pg_class.oid` on the source.
        relation: u32,
        /// What happened.
        change: RowChange,
    },
    /// Tables that were emptied together.
    Truncate {
        /// `pg_class.oid` of each.
        relations: Vec<u32>,
        /// `CASCADE` was written.
        cascade: bool,
        /// `RESTART IDENTITY` was written.
        restart_identity: bool,
    },
    /// `pg_logical_emit_message`.
    Logical {
        /// Part of the transaction around it; else it stands on its own and is there even after a rollback.
        transactional: bool,
        /// Position of the message.
        lsn: Lsn,
        /// Who it is for.
        prefix: String,
        /// What it says.
        content: Bytes,
    },
    /// A part of a transaction that is still running on the source.
    StreamStart {
        /// Top-level transaction id.
        xid: u32,
        /// The first part of this transaction.
        first: bool,
    },
    /// The end of the part.
    StreamStop,
    /// A transaction that was sent in parts has committed.
    StreamCommit {
        /// Top-level transaction id.
        xid: u32,
        /// Start of the commit record.
        commit_lsn: Lsn,
        /// End of the commit record.
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        commit_time_us: i64,
    },
    /// A transaction that was sent in parts, or one of its savepoints, was rolled back.
    StreamAbort {
        /// Top-level transaction id.
        xid: u32,
        /// What was rolled back; equal to `xid` for all of it.
        subxid: u32,
    },
}

/// A message with what stands around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Inside a streamed part: the id of the (sub)transaction that made the change. A rolled-back savepoint is
    /// recognised by it.
    pub xid: Option<u32>,
    /// The message.
    pub message: Message,
}

/// A message that is not what the protocol says. Holds no value of any row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pgoutput message of type {tag:?} is not as the protocol says: {fact}, at byte {offset}")]
pub struct DecodeError {
    /// First byte of the message.
    pub tag: char,
    /// What is wrong.
    pub fact: &'static str,
    /// Where, from the start of the message.
    pub offset: usize,
}

/// Reads one message. `in_stream_block` says whether it stands between `StreamStart` and `StreamStop`, where
/// changes carry their transaction id; the message itself does not tell.
///
/// # Errors
/// [`DecodeError`] when bytes are missing, left over, or have no meaning.
pub fn decode(body: Bytes, in_stream_block: bool) -> Result<Decoded, DecodeError> {
    let mut cursor = Cursor::new(body);
    let tag = cursor.u8()?;
    let carries_xid = matches!(tag, b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M');
    let xid = if in_stream_block && carries_xid { Some(cursor.u32()?) } else { None };
    let message = match tag {
        b'B' => begin(&mut cursor)?,
        b'C' => commit(&mut cursor)?,
        b'O' => Message::Origin { lsn: cursor.lsn()?, name: cursor.name()? },
        b'R' => Message::Relation(relation(&mut cursor)?),
        b'Y' => Message::Type { oid: cursor.u32()?, schema: schema(&mut cursor)?, name: cursor.name()? },
        b'I' | b'U' | b'D' => Message::Row { relation: cursor.u32()?, change: row(tag, &mut cursor)? },
        b'T' => truncate(&mut cursor)?,
        b'M' => logical(&mut cursor)?,
        b'S' => Message::StreamStart { xid: cursor.u32()?, first: cursor.flag()? },
        b'E' => Message::StreamStop,
        b'c' => stream_commit(&mut cursor)?,
        b'A' => Message::StreamAbort { xid: cursor.u32()?, subxid: cursor.u32()? },
        _ => return Err(cursor.error("no such message in protocol version 2")),
    };
    cursor.end()?;
    Ok(Decoded { xid, message })
}

fn begin(cursor: &mut Cursor) -> Result<Message, DecodeError> {
    let (commit_lsn, commit_time_us) = (cursor.lsn()?, cursor.i64()?);
    Ok(Message::Begin(TransactionFrame { commit_lsn, commit_time_us, xid: cursor.u32()? }))
}

fn commit(cursor: &mut Cursor) -> Result<Message, DecodeError> {
    cursor.unused_flags()?;
    Ok(Message::Commit { commit_lsn: cursor.lsn()?, end_lsn: cursor.lsn()?, commit_time_us: cursor.i64()? })
}

fn stream_commit(cursor: &mut Cursor) -> Result<Message, DecodeError> {
    let xid = cursor.u32()?;
    cursor.unused_flags()?;
    let (commit_lsn, end_lsn, commit_time_us) = (cursor.lsn()?, cursor.lsn()?, cursor.i64()?);
    Ok(Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time_us })
}

/// The plugin writes `pg_catalog` as an empty name.
fn schema(cursor: &mut Cursor) -> Result<String, DecodeError> {
    let name = cursor.name()?;
    Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
}

fn relation(cursor: &mut Cursor) -> Result<Relation, DecodeError> {
    let (oid, schema, name) = (cursor.u32()?, schema(cursor)?, cursor.name()?);
    let replica_identity = cursor.u8()?;
    if !matches!(replica_identity, b'd' | b'n' | b'f' | b'i') {
        return Err(cursor.error("no such replica identity"));
    }
    let count = cursor.count()?;
    let mut columns = Vec::with_capacity(cursor.at_most(count, 10));
    for _ in 0..count {
        let key = cursor.u8()? & 1 == 1;
        let (name, type_oid, type_modifier) = (cursor.name()?, cursor.u32()?, cursor.i32()?);
        columns.push(RelationColumn { key, name, type_oid, type_modifier });
    }
    Ok(Relation { oid, schema, name, replica_identity, columns })
}

fn row(tag: u8, cursor: &mut Cursor) -> Result<RowChange, DecodeError> {
    let mut part = cursor.u8()?;
    let old = match (tag, part) {
        (b'U' | b'D', b'K') => Some(OldTuple::Key(tuple(cursor)?)),
        (b'U' | b'D', b'O') => Some(OldTuple::Full(tuple(cursor)?)),
        _ => None,
    };
    if tag == b'U' && old.is_some() {
        part = cursor.u8()?;
    }
    match (tag, old, part) {
        (b'I', None, b'N') => Ok(RowChange::Insert { new: tuple(cursor)? }),
        (b'U', old, b'N') => Ok(RowChange::Update { old, new: tuple(cursor)? }),
        (b'D', Some(old), _) => Ok(RowChange::Delete { old }),
        _ => Err(cursor.error("no such part of a row change")),
    }
}

fn tuple(cursor: &mut Cursor) -> Result<Tuple, DecodeError> {
    let count = cursor.count()?;
    let mut values = Vec::with_capacity(cursor.at_most(count, 1));
    for _ in 0..count {
        values.push(match cursor.u8()? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            b't' => Value::Text(cursor.bytes()?),
            b'b' => return Err(cursor.error("a binary value, which was not asked for")),
            _ => return Err(cursor.error("no such kind of value")),
        });
    }
    Ok(values)
}

fn truncate(cursor: &mut Cursor) -> Result<Message, DecodeError> {
    let count = cursor.long_count()?;
    let options = cursor.u8()?;
    let mut relations = Vec::with_capacity(cursor.at_most(count, 4));
    for _ in 0..count {
        relations.push(cursor.u32()?);
    }
    Ok(Message::Truncate { relations, cascade: options & 1 == 1, restart_identity: options & 2 == 2 })
}

fn logical(cursor: &mut Cursor) -> Result<Message, DecodeError> {
    let transactional = cursor.flag()?;
    Ok(Message::Logical {
        transactional,
        lsn: cursor.lsn()?,
        prefix: cursor.name()?,
        content: cursor.bytes()?,
    })
}

#[cfg(test)]
mod tests;
