//! A socket whose server is taken for gone when it owes an answer for too long. TCP itself notices a peer that vanished, and not
//! one behind a proxy or a firewall that goes on acknowledging and passes nothing on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::Wire;

/// Bytes of a message's type and length.
const HEAD: usize = 5;

/// One direction of a connection, cut into messages: a byte for the type, four for the length of the rest and themselves.
#[derive(Debug, Default)]
struct Messages {
    head: [u8; HEAD],
    /// Bytes of the head that are there.
    got: usize,
    /// Bytes that the message still has behind its head.
    left: usize,
}

impl Messages {
    /// Of a client: the first message has no type.
    fn of_client() -> Self {
        Self { got: 1, ..Self::default() }
    }

    /// Calls `begun` with the type of each message that begins in the bytes.
    fn pass(&mut self, mut bytes: &[u8], mut begun: impl FnMut(u8)) {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            bytes = rest;
            if let Some(place) = self.head.get_mut(self.got) {
                *place = *byte;
            }
            self.got += 1;
            if self.got == HEAD {
                let [kind, length @ ..] = self.head;
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                (self.got, self.left) = (0, length.saturating_sub(4));
                begun(kind);
            }
        }
    }
}

/// How many answers a server owes. Each ends with `ReadyForQuery`, whatever is in it; statements may be sent before the answers to
/// earlier ones have come (PostgreSQL documentation, sections 55.2 and 55.7).
#[derive(Debug)]
struct Owed {
    sent: Messages,
    heard: Messages,
    /// At first the one to the login.
    answers: usize,
}

impl Owed {
    fn from_the_start() -> Self {
        Self { sent: Messages::of_client(), heard: Messages::default(), answers: 1 }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let answers = &mut self.answers;
        self.sent.pass(bytes, |kind| match kind {
            // Query, Sync.
            b'Q' | b'S' => *answers += 1,
            // The end of a COPY into the server, which passes over the Sync that came before its rows.
            b'c' | b'f' => *answers = answers.saturating_sub(1),
            _ => {}
        });
    }

    fn heard(&mut self, bytes: &[u8]) {
        let answers = &mut self.answers;
        self.heard.pass(bytes, |kind| {
            if kind == b'Z' {
                *answers = answers.saturating_sub(1);
            }
        });
    }
}

/// A wire, and for how long its server owes an answer.
#[derive(Debug)]
pub(in crate::postgres) struct Watched {
    wire: Wire,
    limit: Duration,
    /// The answers to what is asked while this is set may take any time.
    unhurried: Arc<AtomicBool>,
    owed: Owed,
    /// There while an answer is owed.
    due: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    /// `limit` is the longest silence within an answer, but to what is asked while `unhurried` is set.
    pub(in crate::postgres) fn new(wire: Wire, limit: Duration, unhurried: Arc<AtomicBool>) -> Self {
        Self { wire, limit, unhurried, owed: Owed::from_the_start(), due: None }
    }

    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The limit runs anew from here, where an answer is owed.
    fn moved(&mut self) {
        if self.owed.answers == 0 || self.unhurried.load(Ordering::Acquire) {
            self.due = None;
            return;
        }
        match &mut self.due {
            Some(due) => due.as_mut().reset(Instant::now() + self.limit),
            None => self.due = Some(Box::pin(sleep(self.limit))),
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
            this.owed.heard(buf.filled().get(before..).unwrap_or_default());
            this.moved();
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
        if let Ok(count) = &written {
            this.owed.sent(buf.get(..*count).unwrap_or_default());
        }
        this.moved();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, rest: &[u8]) -> Vec<u8> {
        let length = u32::try_from(rest.len() + 4).unwrap().to_be_bytes();
        [&[kind], &length as &[u8], rest].concat()
    }

    #[test]
    fn an_answer_is_owed_until_the_last_of_several_that_were_asked_for_has_come() {
        let ready = message(b'Z', b"I");
        let mut owed = Owed::from_the_start();
        // The startup message has no type, and what looks like a message in it is none.
        owed.sent(&[&12_u32.to_be_bytes() as &[u8], b"QQQQSSSS"].concat());
        assert_eq!(owed.answers, 1);
        owed.heard(&[message(b'R', &[0; 4]), message(b'S', b"Z\0Z\0"), ready.clone()].concat());
        assert_eq!(owed.answers, 0);
        // A statement that is let go, and the next one behind it.
        let asked = [message(b'C', b"Ss1\0"), message(b'S', b""), message(b'Q', b"SELECT 1\0")].concat();
        for byte in &asked {
            owed.sent(&[*byte]);
        }
        assert_eq!(owed.answers, 2);
        let answer = [message(b'3', b""), ready.clone()].concat();
        for byte in &answer {
            owed.heard(&[*byte]);
        }
        assert_eq!(owed.answers, 1);
        owed.heard(&[message(b'D', b"Z\0\0\0\x05I"), ready].concat());
        assert_eq!(owed.answers, 0);
    }

    #[test]
    fn the_sync_before_the_rows_of_a_copy_has_no_answer_of_its_own() {
        let mut owed = Owed { answers: 0, ..Owed::from_the_start() };
        owed.sent = Messages::default();
        owed.sent(&[message(b'E', b"\0\0\0\0\0"), message(b'S', b""), message(b'd', b"Q\n")].concat());
        owed.sent(&[message(b'c', b""), message(b'S', b"")].concat());
        owed.heard(&message(b'Z', b"I"));
        assert_eq!(owed.answers, 0);
    }
}
