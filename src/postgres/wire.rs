//! One socket to one server, plain or encrypted, before anybody has logged in.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::link::{Endpoint, Keepalive, Place, SslMode};
use super::tls::server_end_point;

mod watched;

pub(super) use watched::{Watched, is_silence};

/// A connected socket.
#[derive(Debug)]
pub(super) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// Any of the others, whose server may not owe an answer for long.
    Watched(Box<Watched>),
}

/// One address of an endpoint.
#[derive(Debug, Clone)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp { ip: IpAddr, port: u16, name: String },
}

/// How one attempt at an address treats encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encryption {
    Never,
    /// When the server has it.
    Offered,
    Always,
}

/// An attempt failed before login.
#[derive(Debug)]
pub(super) enum DialError {
    /// No socket.
    Socket(io::Error),
    /// The server answered that it has no TLS.
    NoTls,
    /// The handshake failed; most often a certificate that was not accepted.
    Handshake(io::Error),
}

/// The addresses of an endpoint, in the resolver's order.
pub(super) async fn addresses(endpoint: &Endpoint) -> io::Result<Vec<Address>> {
    let port = endpoint.port;
    match &endpoint.place {
        Place::Directory(directory) => Ok(vec![Address::Unix(directory.join(format!(".s.PGSQL.{port}")))]),
        Place::Host { name, address: Some(ip) } => {
            Ok(vec![Address::Tcp { ip: *ip, port, name: name.clone() }])
        }
        Place::Host { name, address: None } => {
            let found = lookup_host((name.as_str(), port)).await?;
            let address =
                |found: std::net::SocketAddr| Address::Tcp { ip: found.ip(), port, name: name.clone() };
            Ok(found.map(address).collect())
        }
    }
}

/// What to try at an address, in order: the meaning of `sslmode` (PostgreSQL documentation, table 34.1).
/// A unix socket is never encrypted.
pub(super) fn attempts(mode: SslMode, address: &Address) -> &'static [Encryption] {
    match (address, mode) {
        (Address::Unix(_), _) | (Address::Tcp { .. }, SslMode::Disable) => &[Encryption::Never],
        (Address::Tcp { .. }, SslMode::Allow) => &[Encryption::Never, Encryption::Always],
        (Address::Tcp { .. }, SslMode::Prefer) => &[Encryption::Offered, Encryption::Never],
        (Address::Tcp { .. }, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => {
            &[Encryption::Always]
        }
    }
}

/// Connects, and encrypts as asked. `tls` is present unless no attempt can need it.
pub(super) async fn dial(
    address: &Address,
    encryption: Encryption,
    keepalive: Keepalive,
    tls: Option<&Arc<ClientConfig>>,
    direct: bool,
) -> Result<Wire, DialError> {
    let (stream, name) = match address {
        Address::Unix(path) => {
            let socket = UnixStream::connect(path).await.map_err(DialError::Socket)?;
            return Ok(Wire::Unix(socket));
        }
        Address::Tcp { ip, port, name } => {
            let stream = TcpStream::connect((*ip, *port)).await.map_err(DialError::Socket)?;
            tune(&stream, keepalive).map_err(DialError::Socket)?;
            (stream, name)
        }
    };
    match (encryption, tls) {
        (Encryption::Never, _) => Ok(Wire::Tcp(stream)),
        (Encryption::Offered | Encryption::Always, None) => Err(DialError::NoTls),
        (Encryption::Offered | Encryption::Always, Some(config)) => {
            encrypt(stream, name, encryption, config, direct).await
        }
    }
}

async fn encrypt(
    mut stream: TcpStream,
    name: &str,
    encryption: Encryption,
    config: &Arc<ClientConfig>,
    direct: bool,
) -> Result<Wire, DialError> {
    if !direct {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(DialError::Socket)?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await.map_err(DialError::Socket)?;
        match (answer, encryption) {
            ([b'S'], _) => {}
            ([b'N'], Encryption::Offered) => return Ok(Wire::Tcp(stream)),
            ([b'N'], Encryption::Always | Encryption::Never) => return Err(DialError::NoTls),
            _ => {
                let text = "the answer to the request for TLS is not PostgreSQL's";
                return Err(DialError::Handshake(io::Error::new(io::ErrorKind::InvalidData, text)));
            }
        }
    }
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| DialError::Handshake(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    // Anything sent in plain after the answer would be an attacker's: the handshake fails on it by itself.
    let session = connector.connect(name, stream).await.map_err(DialError::Handshake)?;
    Ok(Wire::Tls(Box::new(session)))
}

/// Small messages leave at once, and a peer that vanished without a word is noticed.
fn tune(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    if keepalive.on {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, keepalive.idle)?;
        sockopt::set_tcp_keepintvl(stream, keepalive.interval)?;
        sockopt::set_tcp_keepcnt(stream, keepalive.count)?;
    }
    #[cfg(target_os = "linux")]
    if keepalive.user_timeout_ms > 0 {
        sockopt::set_tcp_user_timeout(stream, keepalive.user_timeout_ms)?;
    }
    Ok(())
}

impl Wire {
    /// Encrypted or not.
    pub(super) fn is_encrypted(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::Watched(watched) => watched.wire().is_encrypted(),
        }
    }

    /// The same, on which a silence of the server within an answer is an error after so long.
    pub(super) fn watched(self, limit: std::time::Duration, unhurried: Arc<AtomicBool>) -> Self {
        Self::Watched(Box::new(Watched::new(self, limit, unhurried)))
    }

    /// `tls-server-end-point` of the session, when there is one.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        let session = match self {
            Self::Tls(session) => session,
            Self::Tcp(_) | Self::Unix(_) => return None,
            Self::Watched(watched) => return watched.wire().end_point(),
        };
        let certificate = session.get_ref().1.peer_certificates()?.first()?;
        server_end_point(certificate.as_ref())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Watched(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Watched(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Watched(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Watched(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// Hands a [`Wire`], or what wraps one, that is already encrypted to `tokio_postgres`, which would otherwise dial and encrypt by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct AlreadyEncrypted;

impl<S: TlsStream + Unpin> TlsConnect<S> for AlreadyEncrypted {
    type Stream = S;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<S>>;

    fn connect(self, stream: S) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}
