//! A socket whose server is taken for gone when it owes an answer for too long. TCP itself notices a peer that vanished, and not
//! one behind a proxy or a firewall that goes on acknowledging and passes nothing on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::Wire;

/// `ReadyForQuery` but for its last byte, the state of the transaction: the last message of every answer (PostgreSQL
/// documentation, section 55.7). The server sends nothing behind it until it is asked again.
const READY: [u8; 5] = [b'Z', 0, 0, 0, 5];

/// A wire, and for how long its server owes an answer.
#[derive(Debug)]
pub(in crate::postgres) struct Watched {
    wire: Wire,
    limit: Duration,
    /// There while an answer is owed.
    due: Option<Pin<Box<Sleep>>>,
    /// The last bytes that were read: a message may come in pieces.
    tail: [u8; 6],
}

impl Watched {
    /// `limit` is the longest silence within an answer.
    pub(in crate::postgres) fn new(wire: Wire, limit: Duration) -> Self {
        Self { wire, limit, due: None, tail: [0; 6] }
    }

    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    fn asked(&mut self) {
        match &mut self.due {
            Some(due) => due.as_mut().reset(Instant::now() + self.limit),
            None => self.due = Some(Box::pin(sleep(self.limit))),
        }
    }

    fn heard(&mut self, bytes: &[u8]) {
        for byte in bytes.get(bytes.len().saturating_sub(self.tail.len())..).unwrap_or_default() {
            self.tail.rotate_left(1);
            self.tail[5] = *byte;
        }
        if self.tail.starts_with(&READY) {
            self.due = None;
        } else if self.due.is_some() {
            self.asked();
        }
    }
}

/// A connection ended because the server owed an answer for too long.
pub(in crate::postgres) fn is_silence(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    // Those that the system makes have its number.
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut && cause.raw_os_error().is_none())
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.wire).poll_read(cx, buf) {
            this.heard(buf.filled().get(before..).unwrap_or_default());
            return Poll::Ready(read);
        }
        let Some(due) = &mut this.due else { return Poll::Pending };
        ready!(due.as_mut().poll(cx));
        let words = format!("no answer within {} s", this.limit.as_secs());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, words)))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.wire).poll_write(cx, buf));
        this.asked();
        // Whoever writes has often looked for an answer before, and does not look again until it is woken.
        if let Some(due) = &mut this.due {
            let _ = due.as_mut().poll(cx);
        }
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }
}
