//! Takes bytes off the socket and complete frames out of the bytes.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::super::wire::Wire;
use super::Frame;
use super::error::{ReplicationError, server_error};
use super::feedback::Positions;
use super::pace::{PAUSE, Pace};
use crate::lsn::Lsn;

/// Room for one read. What a walsender sends in a pause fits in, and what is left over at the end of a message is
/// short against it.
const BUFFER_BYTES: usize = 256 * 1024;

/// Below this much free room a new buffer is begun, so that a read is never cut into small ones.
const BUFFER_SPARE_BYTES: usize = 64 * 1024;

/// What may wait for the consumer. Enough to bridge a commit on the target at full rate (some 50 MB/s), small against
/// the memory that the mirror may use. One larger message is let through alone.
pub(super) const QUEUE_BYTES: u32 = 8 * 1024 * 1024;

/// A message can't be longer: PostgreSQL allocates at most 1 GB for one (`MaxAllocSize`).
const FRAME_LIMIT_BYTES: usize = 1 << 30;

/// Frames in order, with their share of the queue.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) frames: std::vec::IntoIter<Frame>,
    /// Returned to the queue when the batch is dropped.
    pub(super) _share: Option<OwnedSemaphorePermit>,
}

pub(super) type Outcome = Result<Batch, ReplicationError>;

/// The reader task.
pub(super) struct Reader {
    pub(super) wire: ReadHalf<Wire>,
    pub(super) buffer: BytesMut,
    pub(super) label: String,
    pub(super) positions: Arc<Positions>,
    pub(super) queue: mpsc::UnboundedSender<Outcome>,
}

/// What a walk over the buffer found.
enum Walk {
    /// The rest is not complete.
    More,
    /// The server ended the stream.
    End,
}

impl Reader {
    /// Runs until the stream ends, and hands over why.
    pub(super) async fn run(mut self) {
        let room = Arc::new(Semaphore::new(usize::try_from(QUEUE_BYTES).unwrap_or(usize::MAX)));
        let error = match self.read(&room).await {
            Ok(()) => ReplicationError::Ended { label: self.label.clone() },
            Err(error) => error,
        };
        // Nobody listens when the stream was stopped.
        drop(self.queue.send(Err(error)));
        self.positions.stopping.cancel();
    }

    async fn read(&mut self, room: &Arc<Semaphore>) -> Result<(), ReplicationError> {
        let mut pace = Pace::new(Instant::now());
        let mut bytes = self.buffer.len();
        loop {
            let mut frames = Vec::new();
            let walk = self.walk(&mut frames);
            self.hand_over(frames, bytes, room).await;
            match walk? {
                Walk::More => {}
                Walk::End => return Ok(()),
            }
            if pace.pauses_after(bytes, Instant::now()) {
                // The runtime's own timer counts whole milliseconds.
                drop(tokio::task::spawn_blocking(|| std::thread::sleep(PAUSE)).await);
            }
            if self.buffer.capacity() - self.buffer.len() < BUFFER_SPARE_BYTES {
                self.buffer.reserve(BUFFER_BYTES);
            }
            bytes = self.wire.read_buf(&mut self.buffer).await.map_err(|error| self.lost(error.kind()))?;
            if bytes == 0 {
                return Err(self.lost(io::ErrorKind::UnexpectedEof));
            }
        }
    }

    /// Waits for room in the queue. Once nobody takes frames any more they are dropped, so that the server gets to
    /// read that the stream is over.
    async fn hand_over(&self, frames: Vec<Frame>, bytes: usize, room: &Arc<Semaphore>) {
        if frames.is_empty() || self.queue.is_closed() {
            return;
        }
        let cost = bytes.saturating_add(frames.len().saturating_mul(size_of::<Frame>()));
        let cost = u32::try_from(cost).unwrap_or(QUEUE_BYTES).min(QUEUE_BYTES);
        let share = tokio::select! {
            share = Arc::clone(room).acquire_many_owned(cost) => share.ok(),
            () = self.queue.closed() => None,
        };
        drop(self.queue.send(Ok(Batch { frames: frames.into_iter(), _share: share })));
    }

    /// Takes every complete frame off the front of the buffer.
    fn walk(&mut self, frames: &mut Vec<Frame>) -> Result<Walk, ReplicationError> {
        loop {
            let header =
                Header::parse(&self.buffer).map_err(|_| self.protocol("a message without a length"))?;
            let Some(header) = header else { return Ok(Walk::More) };
            let total = usize::try_from(header.len()).unwrap_or(usize::MAX).saturating_add(1);
            if total > FRAME_LIMIT_BYTES {
                return Err(self.protocol("a message that is too long"));
            }
            if self.buffer.len() < total {
                let missing = total - self.buffer.len();
                self.buffer.reserve(missing.max(BUFFER_SPARE_BYTES));
                return Ok(Walk::More);
            }
            let mut message = self.buffer.split_to(total);
            match header.tag() {
                b'd' => {
                    message.advance(5);
                    frames.extend(self.frame(message.freeze())?);
                }
                b'E' => return Err(self.refused(&mut message)),
                // ReadyForQuery, the answer to our CopyDone: the server has let go of the slot.
                b'Z' => return Ok(Walk::End),
                // The server's CopyDone and CommandComplete, which come first; a setting that changed, a notice.
                b'c' | b'C' | b'S' | b'N' => {}
                _ => return Err(self.protocol("a message that is no part of a stream")),
            }
        }
    }

    /// XLogData or a keepalive (PostgreSQL documentation, section 55.4).
    fn frame(&self, mut body: Bytes) -> Result<Option<Frame>, ReplicationError> {
        let short = || self.protocol("a message of the stream that is too short");
        match (body.try_get_u8().map_err(|_| short())?, body.len()) {
            (b'w', 24..) => {
                let (wal_start, wal_end) = (Lsn(body.get_u64()), Lsn(body.get_u64()));
                body.advance(8);
                self.positions.receive(wal_start);
                Ok(Some(Frame::Data { wal_start, wal_end, body }))
            }
            (b'k', 17..) => {
                let (wal_end, sent_at_us) = (Lsn(body.get_u64()), body.get_i64());
                self.positions.receive(wal_end);
                if body.get_u8() != 0 {
                    self.positions.ask();
                }
                Ok(Some(Frame::KeepAlive { wal_end, sent_at_us }))
            }
            (b'w' | b'k', _) => Err(short()),
            // Messages that a later version may add for replication.
            _ => Ok(None),
        }
    }

    fn refused(&self, message: &mut BytesMut) -> ReplicationError {
        let Ok(Some(Message::ErrorResponse(body))) = Message::parse(message) else {
            return self.protocol("an error that can't be read");
        };
        let (sqlstate, message) = server_error(&body);
        ReplicationError::Server {
            label: self.label.clone(),
            action: "go on with the stream",
            sqlstate,
            message,
        }
    }

    fn lost(&self, kind: io::ErrorKind) -> ReplicationError {
        ReplicationError::Lost { label: self.label.clone(), kind }
    }

    fn protocol(&self, fact: &'static str) -> ReplicationError {
        ReplicationError::Protocol { label: self.label.clone(), fact }
    }
}
