//! The consumer's end of a running stream.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::Frame;
use super::channel::Channel;
use super::error::ReplicationError;
use super::feedback::{self, Positions};
use super::reader::{Batch, Outcome, Reader};
use crate::lsn::Lsn;

/// How long [`Stream::stop`] waits for the server to say good-bye. It answers between two messages, so this is long;
/// one that is busy inside a large transaction is left to notice by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A running stream. One task reads, one reports positions; both go on while nobody calls [`Self::next`], the reader
/// until the queue is full. Dropping the stream closes the connection at once.
#[derive(Debug)]
pub struct Stream {
    batch: Option<Batch>,
    failed: bool,
    queue: mpsc::UnboundedReceiver<Outcome>,
    positions: Arc<Positions>,
    label: String,
    reader: AbortOnDropHandle<()>,
    writer: AbortOnDropHandle<()>,
}

impl Stream {
    pub(super) fn run(channel: Channel, from: Lsn, period: Duration) -> Self {
        let Channel { wire, buffer, label } = channel;
        let (read, write) = tokio::io::split(wire);
        let (sender, queue) = mpsc::unbounded_channel();
        let positions = Arc::new(Positions::new(from));
        let (error_to, of, shared) = (sender.clone(), label.clone(), Arc::clone(&positions));
        let reader = Reader {
            wire: read,
            buffer,
            label: label.clone(),
            positions: Arc::clone(&positions),
            queue: sender,
        };
        let reporting = feedback::run(write, Arc::clone(&positions), period);
        let writer = tokio::spawn(async move {
            match reporting.await {
                // The reader has the better reason when it ended first.
                Err(error) if !shared.stopping.is_cancelled() => {
                    drop(error_to.send(Err(ReplicationError::Lost { label: of, kind: error.kind() })));
                }
                Ok(()) | Err(_) => {}
            }
        });
        Self {
            batch: None,
            failed: false,
            queue,
            positions,
            label,
            reader: AbortOnDropHandle::new(tokio::spawn(reader.run())),
            writer: AbortOnDropHandle::new(writer),
        }
    }

    /// The next frame, waiting for it. Cancel safe: a frame is either returned or still there.
    ///
    /// # Errors
    /// [`ReplicationError`], once; then [`ReplicationError::Ended`].
    pub async fn next(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            if let Some(frame) = self.batch.as_mut().and_then(|batch| batch.frames.next()) {
                return Ok(frame);
            }
            // Dropped before waiting: its share of the queue is free again.
            self.batch = None;
            if self.failed {
                return Err(self.ended());
            }
            let outcome = self.queue.recv().await;
            self.take(outcome)?;
        }
    }

    /// The next frame if one has been received, else `None`. Never waits.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&mut self) -> Result<Option<Frame>, ReplicationError> {
        loop {
            if let Some(frame) = self.batch.as_mut().and_then(|batch| batch.frames.next()) {
                return Ok(Some(frame));
            }
            self.batch = None;
            if self.failed {
                return Err(self.ended());
            }
            match self.queue.try_recv() {
                Ok(outcome) => self.take(Some(outcome))?,
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => self.take(None)?,
            }
        }
    }

    /// Tells the server that everything before `flushed` is durable on the target and may be forgotten. Reported
    /// within some 10 ms, and again with every status. Never moves back.
    pub fn confirm(&self, flushed: Lsn) {
        self.positions.confirm(flushed);
    }

    /// Ends the stream in order: the last confirmed position is reported, and the slot is free when this returns,
    /// unless the server took too long to answer.
    pub async fn stop(self) {
        let Self { batch, queue, positions, label, reader, writer, failed: _ } = self;
        // Frees the queue, so that the reader gets to the server's answer.
        drop((batch, queue));
        positions.stopping.cancel();
        let ended = timeout(STOP_TIMEOUT, async move {
            drop(writer.await);
            drop(reader.await);
        });
        if ended.await.is_err() {
            tracing::debug!(database = %label, "the server did not end the stream in time");
        }
    }

    /// An error is the last thing that a stream gives, whatever is still in the queue behind it.
    fn take(&mut self, outcome: Option<Outcome>) -> Result<(), ReplicationError> {
        match outcome.unwrap_or_else(|| Err(self.ended())) {
            Ok(batch) => self.batch = Some(batch),
            Err(error) => {
                self.failed = true;
                return Err(error);
            }
        }
        Ok(())
    }

    fn ended(&self) -> ReplicationError {
        ReplicationError::Ended { label: self.label.clone() }
    }
}
