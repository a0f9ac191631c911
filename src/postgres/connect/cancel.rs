//! Ends what a session runs, from beside it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::Route;
use crate::postgres::wire::{AlreadyEncrypted, DialError, Encryption, Wire};

/// Stops the statement that a session is running, over a connection of its own to the same address.
#[derive(Clone)]
pub struct CancelToken {
    token: tokio_postgres::CancelToken,
    route: Route,
    encryption: Encryption,
    /// The link's `connect_timeout`.
    limit: Duration,
}

impl CancelToken {
    pub(super) fn new(
        token: tokio_postgres::CancelToken,
        route: Route,
        encryption: Encryption,
        limit: Duration,
    ) -> Self {
        Self { token, route, encryption, limit }
    }

    /// Asks the server to stop, and waits until it has passed that on. The statement fails with 57014 if the request was in time; the
    /// server does not say whether it was. What the session is asked after this returned is not stopped by it.
    ///
    /// # Errors
    /// The server could not be reached, or did not answer in the time that a connection may take: the request may come yet, and stop what
    /// the session does then.
    pub async fn cancel(&self) -> Result<(), io::Error> {
        let asked = timeout(self.limit, self.ask()).await;
        asked.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn ask(&self) -> Result<(), io::Error> {
        let wire = self.route.dial(self.encryption).await.map_err(|error| match error {
            DialError::Socket(error) | DialError::Handshake(error) => error,
            DialError::NoTls => {
                io::Error::new(io::ErrorKind::ConnectionRefused, "the server has no TLS any more")
            }
        })?;
        self.token.cancel_query_raw(ToItsEnd(wire), AlreadyEncrypted).await.map_err(io::Error::other)
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelToken")
    }
}

/// A wire that is not done with until the server has closed it: that is how a server says that it has signalled the backend, and it says
/// nothing else (PostgreSQL documentation, "Canceling Requests in Progress"; libpq waits in the same way).
struct ToItsEnd(Wire);

impl AsyncRead for ToItsEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ToItsEnd {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0];
        loop {
            let mut buf = ReadBuf::new(&mut byte);
            // A connection that is reset has ended as well.
            let read = ready!(Pin::new(&mut self.0).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl TlsStream for ToItsEnd {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}
