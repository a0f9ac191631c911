//! Messages to and from a walsender before the stream runs: one command, its rows, its end.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the protocol has many messages, and every one that is not named is as wrong here as the next"
)]

use std::io;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{DataRowBody, Header, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::super::wire::Wire;
use super::error::{ReplicationError, server_error};

/// Longest message that is taken before the stream runs. Answers to our commands are far shorter; whoever sends a
/// longer one does not speak our protocol.
const MESSAGE_LIMIT_BYTES: i32 = 4 * 1024 * 1024;

/// A wire with what has been read from it and not yet looked at.
pub(super) struct Channel {
    pub(super) wire: Wire,
    pub(super) buffer: BytesMut,
    pub(super) label: String,
}

/// The rows that a command gave.
#[derive(Debug, Default)]
pub(super) struct Reply {
    rows: Vec<Vec<Option<String>>>,
}

impl Reply {
    /// One value; `None` for NULL and where there is none.
    pub(super) fn text(&self, row: usize, column: usize) -> Option<&str> {
        self.rows.get(row)?.get(column)?.as_deref()
    }
}

impl Channel {
    pub(super) fn new(wire: Wire, label: &str) -> Self {
        Self { wire, buffer: BytesMut::new(), label: label.to_owned() }
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.wire.write_all(message).await?;
        self.wire.flush().await
    }

    /// The next message; parameters that changed and notices are not left out.
    pub(super) async fn message(&mut self) -> io::Result<Message> {
        self.whole_message().await?;
        let incomplete = || io::Error::new(io::ErrorKind::InvalidData, "a message without its end");
        Message::parse(&mut self.buffer)?.ok_or_else(incomplete)
    }

    /// Reads until the buffer starts with a complete message; returns its tag and length without the tag.
    async fn whole_message(&mut self) -> io::Result<(u8, usize)> {
        loop {
            if let Some(header) = Header::parse(&self.buffer)? {
                if header.len() > MESSAGE_LIMIT_BYTES {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
                }
                let len = usize::try_from(header.len()).unwrap_or_default();
                if self.buffer.len() > len {
                    return Ok((header.tag(), len));
                }
            }
            if self.wire.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Runs one command and collects its rows.
    pub(super) async fn command(
        &mut self,
        action: &'static str,
        command: &str,
    ) -> Result<Reply, ReplicationError> {
        self.send_query(command).await?;
        let mut reply = Reply::default();
        let mut error = None;
        loop {
            match self.message().await.map_err(|error| self.broken(&error))? {
                Message::DataRow(row) => {
                    let row = read_row(&row).ok_or_else(|| self.unexpected("a row that can't be read"))?;
                    reply.rows.push(row);
                }
                Message::ErrorResponse(body) => error = Some(self.server(action, server_error(&body))),
                Message::ReadyForQuery(_) => return error.map_or(Ok(reply), Err),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                _ => return Err(self.unexpected("a message that answers no command")),
            }
        }
    }

    /// Sends a command that the server answers with CopyBothResponse, and reads up to it.
    pub(super) async fn start_copy(
        &mut self,
        action: &'static str,
        command: &str,
    ) -> Result<(), ReplicationError> {
        self.send_query(command).await?;
        loop {
            // The parser of the protocol crate does not know this message.
            let (tag, len) = self.whole_message().await.map_err(|error| self.broken(&error))?;
            if tag == b'W' {
                self.buffer.advance(len + 1);
                return Ok(());
            }
            match self.message().await.map_err(|error| self.broken(&error))? {
                Message::ErrorResponse(body) => return Err(self.server(action, server_error(&body))),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(self.unexpected("a message that starts no stream")),
            }
        }
    }

    async fn send_query(&mut self, command: &str) -> Result<(), ReplicationError> {
        let mut message = BytesMut::new();
        frontend::query(command, &mut message).map_err(|error| self.broken(&error))?;
        self.send(&message).await.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &io::Error) -> ReplicationError {
        let kind = error.kind();
        if matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) {
            return self.unexpected("a malformed message");
        }
        ReplicationError::Lost { label: self.label.clone(), kind }
    }

    fn server(&self, action: &'static str, (sqlstate, message): (String, String)) -> ReplicationError {
        ReplicationError::Server { label: self.label.clone(), action, sqlstate, message }
    }

    pub(super) fn unexpected(&self, fact: &'static str) -> ReplicationError {
        ReplicationError::Protocol { label: self.label.clone(), fact }
    }
}

fn read_row(row: &DataRowBody) -> Option<Vec<Option<String>>> {
    let buffer = row.buffer();
    let value = |range: Option<std::ops::Range<usize>>| match range {
        None => Some(None),
        Some(range) => Some(Some(String::from_utf8_lossy(buffer.get(range)?).into_owned())),
    };
    let ranges: Vec<_> = row.ranges().collect().ok()?;
    ranges.into_iter().map(value).collect()
}
