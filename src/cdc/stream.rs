//! From the messages of the replication stream to transactions in commit order.
//!
//! Transactions that are streamed while they run are spilled to disk and come out at their commit, without their
//! rolled-back subtransactions. Every other transaction comes out as it arrives, already committed.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::spill::{Replay, Spill};
use crate::change::{Relation, RowChange, TransactionFrame};
use crate::lsn::Lsn;
use crate::postgres::pgoutput::{self, DecodeError, Message};
use crate::postgres::replication::{Frame, ReplicationError, Stream};

/// What the stream tells, in commit order.
#[derive(Debug)]
pub enum Event {
    /// A committed transaction begins.
    Begin(TransactionFrame),
    /// One of its row changes.
    Row {
        /// Table, as last described.
        relation: Arc<Relation>,
        /// The change.
        change: RowChange,
    },
    /// It truncates these tables.
    Truncate(Vec<Arc<Relation>>),
    /// A logical message.
    Marker {
        /// Its prefix.
        prefix: String,
        /// Its content.
        content: Bytes,
    },
    /// It ends.
    Commit {
        /// End of its commit record.
        end: Lsn,
        /// Commit time in microseconds since 2000-01-01 UTC.
        time_us: i64,
    },
    /// Nothing up to here concerns us.
    Idle {
        /// The server has sent everything before this position.
        wal_end: Lsn,
        /// Its clock, in microseconds since 2000-01-01 UTC.
        time_us: i64,
    },
}

/// The stream can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The link or the server.
    #[error("the replication stream ended")]
    Replication(#[from] ReplicationError),
    /// Bytes that pgoutput doesn't send.
    #[error("a message of the replication stream can't be read")]
    Decode(#[from] DecodeError),
    /// The spill file.
    #[error("a large transaction could not be spilled to the folder {folder}", folder = folder.display())]
    Spill {
        /// Folder of the spill files.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Messages in an order that pgoutput doesn't send.
    #[error("the replication stream broke its order: {what}")]
    Order {
        /// What came.
        what: &'static str,
    },
}

/// A transaction that is being streamed.
#[derive(Debug)]
struct Streamed {
    spill: Spill,
    /// When it last described each table, as a count of descriptions.
    described: HashMap<u32, u64>,
}

/// A transaction that is being read back.
#[derive(Debug)]
struct Replaying {
    replay: Replay,
    /// Tables as this transaction described them; adopted by all at its end.
    relations: HashMap<u32, Arc<Relation>>,
    described: HashMap<u32, u64>,
    end: Lsn,
    time_us: i64,
}

/// Puts transactions together.
#[derive(Debug)]
pub struct Assembler {
    stream: Stream,
    folder: PathBuf,
    relations: HashMap<u32, Arc<Relation>>,
    /// When each of them was described, as a count of descriptions.
    described: HashMap<u32, u64>,
    descriptions: u64,
    streamed: HashMap<u32, Streamed>,
    /// The transaction whose stream block is open.
    block: Option<u32>,
    replaying: Option<Replaying>,
    received: Lsn,
}

impl Assembler {
    /// Reads `stream`, spilling to files in `folder`.
    #[must_use]
    pub fn new(stream: Stream, folder: PathBuf) -> Self {
        Self {
            stream,
            folder,
            relations: HashMap::new(),
            described: HashMap::new(),
            descriptions: 0,
            streamed: HashMap::new(),
            block: None,
            replaying: None,
            received: Lsn::ZERO,
        }
    }

    /// Position up to which everything is durably applied, for the server to let go of.
    pub fn confirm(&self, lsn: Lsn) {
        self.stream.confirm(lsn);
    }

    /// Ends the stream in good order.
    pub async fn stop(self) {
        self.stream.stop().await;
    }

    /// The server's position, as last heard of.
    #[must_use]
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// The next event; waits for it. Safe to cancel while it waits.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn next(&mut self) -> Result<Event, StreamError> {
        loop {
            if let Some(event) = self.replay_next()? {
                return Ok(event);
            }
            let frame = self.stream.next().await?;
            if let Some(event) = self.take(frame)? {
                return Ok(event);
            }
        }
    }

    /// The next event if it has already arrived.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn try_next(&mut self) -> Result<Option<Event>, StreamError> {
        loop {
            if let Some(event) = self.replay_next()? {
                return Ok(Some(event));
            }
            let Some(frame) = self.stream.try_next()? else { return Ok(None) };
            if let Some(event) = self.take(frame)? {
                return Ok(Some(event));
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Option<Event>, StreamError> {
        match frame {
            Frame::KeepAlive { wal_end, sent_at_us } => {
                self.received = self.received.max(wal_end);
                Ok(Some(Event::Idle { wal_end, time_us: sent_at_us }))
            }
            Frame::Data { wal_end, body, .. } => {
                self.received = self.received.max(wal_end);
                match self.block {
                    Some(top) => self.take_in_block(top, body),
                    None => self.take_message(pgoutput::decode(body, false)?.message),
                }
            }
        }
    }

    fn take_message(&mut self, message: Message) -> Result<Option<Event>, StreamError> {
        match message {
            Message::Begin(frame) => Ok(Some(Event::Begin(frame))),
            Message::Commit { end_lsn, commit_time_us, .. } => {
                Ok(Some(Event::Commit { end: end_lsn, time_us: commit_time_us }))
            }
            Message::Relation(relation) => {
                self.descriptions += 1;
                self.described.insert(relation.oid, self.descriptions);
                self.relations.insert(relation.oid, Arc::new(relation));
                Ok(None)
            }
            Message::Row { relation, change } => {
                Ok(Some(Event::Row { relation: known(&self.relations, relation)?, change }))
            }
            Message::Truncate { relations, .. } => Ok(Some(Event::Truncate(
                relations.iter().map(|oid| known(&self.relations, *oid)).collect::<Result<_, _>>()?,
            ))),
            Message::Logical { prefix, content, .. } => Ok(Some(Event::Marker { prefix, content })),
            Message::Origin { .. } | Message::Type { .. } => Ok(None),
            Message::StreamStart { xid, .. } => {
                self.block = Some(xid);
                if !self.streamed.contains_key(&xid) {
                    let spill = Spill::create(&self.folder).map_err(self.spill_error())?;
                    self.streamed.insert(xid, Streamed { spill, described: HashMap::new() });
                }
                Ok(None)
            }
            Message::StreamStop => {
                Err(StreamError::Order { what: "a stream block ended that had not begun" })
            }
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time_us } => {
                self.begin_replay(xid, commit_lsn, end_lsn, commit_time_us)
            }
            Message::StreamAbort { xid, subxid } => {
                if xid == subxid {
                    self.streamed.remove(&xid);
                } else if let Some(streamed) = self.streamed.get_mut(&xid) {
                    streamed.spill.abort(subxid);
                }
                Ok(None)
            }
        }
    }

    /// A message inside a stream block: decoded far enough to see the block's end, else kept for the commit.
    fn take_in_block(&mut self, top: u32, body: Bytes) -> Result<Option<Event>, StreamError> {
        let decoded = pgoutput::decode(body.clone(), true)?;
        if matches!(decoded.message, Message::StreamStop) {
            self.block = None;
            return Ok(None);
        }
        let folder = self.folder.clone();
        let streamed = self
            .streamed
            .get_mut(&top)
            .ok_or(StreamError::Order { what: "a block of a transaction that was rolled back" })?;
        if let Message::Relation(relation) = &decoded.message {
            self.descriptions += 1;
            streamed.described.insert(relation.oid, self.descriptions);
        }
        streamed
            .spill
            .push(decoded.xid.unwrap_or(top), &body)
            .map_err(|source| StreamError::Spill { folder, source })?;
        Ok(None)
    }

    fn begin_replay(
        &mut self,
        xid: u32,
        commit_lsn: Lsn,
        end: Lsn,
        time_us: i64,
    ) -> Result<Option<Event>, StreamError> {
        let streamed = self
            .streamed
            .remove(&xid)
            .ok_or(StreamError::Order { what: "a streamed transaction committed that had not begun" })?;
        let described = streamed.described;
        let replay = streamed.spill.replay().map_err(self.spill_error())?;
        self.replaying = Some(Replaying { replay, relations: HashMap::new(), described, end, time_us });
        Ok(Some(Event::Begin(TransactionFrame { xid, commit_lsn, commit_time_us: time_us })))
    }

    /// The next event of the transaction that is being read back, its commit at the end; `None` when there is none.
    fn replay_next(&mut self) -> Result<Option<Event>, StreamError> {
        let Some(replaying) = self.replaying.as_mut() else { return Ok(None) };
        loop {
            let folder = &self.folder;
            let message = replaying
                .replay
                .next_message()
                .map_err(|source| StreamError::Spill { folder: folder.clone(), source })?;
            let Some(message) = message else {
                let event = Event::Commit { end: replaying.end, time_us: replaying.time_us };
                if let Some(done) = self.replaying.take() {
                    self.adopt(done);
                }
                return Ok(Some(event));
            };
            let relation_of = |oid: u32| match replaying.relations.get(&oid) {
                Some(relation) => Ok(Arc::clone(relation)),
                None => known(&self.relations, oid),
            };
            match pgoutput::decode(message.body, true)?.message {
                // A table described inside a subtransaction that was rolled back is not described again later in
                // the same transaction, so descriptions count even where rows don't.
                Message::Relation(relation) => {
                    replaying.relations.insert(relation.oid, Arc::new(relation));
                }
                _ if message.aborted => {}
                Message::Row { relation, change } => {
                    return Ok(Some(Event::Row { relation: relation_of(relation)?, change }));
                }
                Message::Truncate { relations, .. } => {
                    let relations = relations.into_iter().map(relation_of).collect::<Result<_, _>>()?;
                    return Ok(Some(Event::Truncate(relations)));
                }
                Message::Logical { prefix, content, .. } => {
                    return Ok(Some(Event::Marker { prefix, content }));
                }
                Message::Origin { .. } | Message::Type { .. } => {}
                Message::Begin(_)
                | Message::Commit { .. }
                | Message::StreamStart { .. }
                | Message::StreamStop
                | Message::StreamCommit { .. }
                | Message::StreamAbort { .. } => {
                    return Err(StreamError::Order { what: "a transaction boundary inside a streamed one" });
                }
            }
        }
    }

    /// The descriptions of a transaction that was read back hold for all from its commit on, but for tables that
    /// somebody described anew while it ran.
    fn adopt(&mut self, done: Replaying) {
        for (oid, relation) in done.relations {
            let count = done.described.get(&oid).copied().unwrap_or(0);
            if self.described.get(&oid).is_none_or(|known| *known < count) {
                self.described.insert(oid, count);
                self.relations.insert(oid, relation);
            }
        }
    }

    fn spill_error(&self) -> impl FnOnce(io::Error) -> StreamError {
        let folder = self.folder.clone();
        move |source| StreamError::Spill { folder, source }
    }
}

fn known(relations: &HashMap<u32, Arc<Relation>>, oid: u32) -> Result<Arc<Relation>, StreamError> {
    relations
        .get(&oid)
        .map(Arc::clone)
        .ok_or(StreamError::Order { what: "a row of a table not yet described" })
}
