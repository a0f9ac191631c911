//! A client of the streaming replication protocol (PostgreSQL documentation, sections 55.4 and 55.5): slots, and the
//! logical stream with feedback.
//!
//! `tokio_postgres` has no CopyBoth, so this module speaks the protocol itself, on the same sockets and with the
//! same settings as SQL sessions. [`Connection`] takes commands; [`Connection::start`] turns it into a [`Stream`].

use std::fmt;

use bytes::Bytes;

use crate::lsn::Lsn;
use crate::name::{quote_ident, quote_literal};

mod channel;
mod error;
mod feedback;
mod login;
mod pace;
mod reader;
mod stream;

use channel::Channel;
pub use error::ReplicationError;
pub(super) use login::WalLogin;
pub use stream::Stream;

/// `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Identifier of the cluster, shared by its copies.
    pub system_identifier: String,
    /// Current timeline.
    pub timeline: u32,
    /// Position up to which the log is durable.
    pub flush_lsn: Lsn,
    /// Database of the connection.
    pub database: Option<String>,
}

/// The end of an earlier timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that ended.
    pub timeline: u32,
    /// Where it ended.
    pub switch_lsn: Lsn,
}

/// How a slot is made. It always uses pgoutput and never exports a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotOptions {
    /// Dropped by the server when the connection ends.
    pub temporary: bool,
    /// Kept on standbys (`failover`). PostgreSQL 17 and newer, lasting slots; where the server can't, the option is
    /// left out.
    pub failover: bool,
}

/// How a stream is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamOptions {
    /// Large transactions are sent in parts while they still run.
    pub streaming: bool,
}

/// What a stream carries.
#[derive(Clone, PartialEq, Eq)]
pub enum Frame {
    /// One message of the output plugin, for `pgoutput::decode`.
    Data {
        /// Position of the message in the log; 0 for messages without one.
        wal_start: Lsn,
        /// End of the log as far as the server had read when it sent this.
        wal_end: Lsn,
        /// The message.
        body: Bytes,
    },
    /// Everything before `wal_end` that concerns the stream has been sent.
    KeepAlive {
        /// Position of the server.
        wal_end: Lsn,
        /// The server's clock, microseconds since 2000-01-01 UTC.
        sent_at_us: i64,
    },
}

/// Row values stay out of logs.
impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data { wal_start, wal_end, body } => {
                write!(f, "Data({wal_start}..{wal_end}, {} bytes)", body.len())
            }
            Self::KeepAlive { wal_end, .. } => write!(f, "KeepAlive({wal_end})"),
        }
    }
}

/// A connection that takes replication commands, one at a time.
pub struct Connection {
    channel: Channel,
    server_major: u32,
}

impl Connection {
    /// Major version of the server, e.g. 15.
    #[must_use]
    pub fn server_major(&self) -> u32 {
        self.server_major
    }

    /// Who the server is and how far its log goes.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let reply = self.channel.command("identify the system", "IDENTIFY_SYSTEM").await?;
        let text = |index| reply.text(0, index);
        let read = || {
            Some(SystemIdentity {
                system_identifier: text(0)?.to_owned(),
                timeline: text(1)?.parse().ok()?,
                flush_lsn: text(2)?.parse().ok()?,
                database: text(3).map(str::to_owned),
            })
        };
        read().ok_or_else(|| self.channel.unexpected("the answer to IDENTIFY_SYSTEM"))
    }

    /// Makes a slot and returns its consistent point: the stream starts with the first transaction that commits
    /// after it. The server waits for all transactions that are running, for as long as they run.
    ///
    /// # Errors
    /// [`ReplicationError`]; 42710 when the slot exists, 53400 when `max_replication_slots` is used up.
    pub async fn create_slot(&mut self, slot: &str, options: SlotOptions) -> Result<Lsn, ReplicationError> {
        let command = create_slot_command(self.server_major, slot, options);
        let reply = self.channel.command("create the slot", &command).await?;
        let lsn = reply.text(0, 1).and_then(|lsn| lsn.parse().ok());
        lsn.ok_or_else(|| self.channel.unexpected("the answer to CREATE_REPLICATION_SLOT"))
    }

    /// Drops a slot at once.
    ///
    /// # Errors
    /// [`ReplicationError`]; 42704 when there is none, 55006 when it is in use.
    pub async fn drop_slot(&mut self, slot: &str) -> Result<(), ReplicationError> {
        let command = format!("DROP_REPLICATION_SLOT {}", quote_ident(slot));
        self.channel.command("drop the slot", &command).await.map(|_reply| ())
    }

    /// Where the timelines before `timeline` ended, oldest first. The first timeline has no history.
    ///
    /// # Errors
    /// [`ReplicationError`]; 58P01 when the server has no history of that timeline.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<TimelineSwitch>, ReplicationError> {
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let command = format!("TIMELINE_HISTORY {timeline}");
        let reply = self.channel.command("read the timeline history", &command).await?;
        let switches = reply.text(0, 1).and_then(timeline_switches);
        switches.ok_or_else(|| self.channel.unexpected("the answer to TIMELINE_HISTORY"))
    }

    /// Starts to stream the changes of a publication. The server sends every transaction whose commit record begins
    /// at or after `from`, but silently nothing that the slot was already told to forget: callers compare `from`
    /// with the slot's `confirmed_flush_lsn` first.
    ///
    /// # Errors
    /// [`ReplicationError`]; 42704 when there is no such slot, 55006 when another connection uses it (transient
    /// after a broken connection, until the server notices).
    pub async fn start(
        mut self,
        slot: &str,
        from: Lsn,
        publication: &str,
        options: StreamOptions,
    ) -> Result<Stream, ReplicationError> {
        // The writer must report well within this, or the server hangs up. The setting may differ by role.
        let reply = self.channel.command("read wal_sender_timeout", "SHOW wal_sender_timeout").await?;
        let sender_timeout = reply.text(0, 0).and_then(feedback::read_timeout);
        let command = start_command(slot, from, publication, options);
        self.channel.start_copy("start the stream", &command).await?;
        Ok(Stream::run(self.channel, from, feedback::period(sender_timeout)))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server_major", &self.server_major).finish_non_exhaustive()
    }
}

/// The command of [`Connection::create_slot`], for a server of this major version, to be shown.
#[must_use]
pub fn create_slot_text(server_major: u32, slot: &str, options: SlotOptions) -> String {
    create_slot_command(server_major, slot, options)
}

/// The grammar changed in PostgreSQL 15; `FAILOVER` came with 17, which refuses it for temporary slots (PostgreSQL
/// documentation, section 55.4).
fn create_slot_command(server_major: u32, slot: &str, options: SlotOptions) -> String {
    let slot = quote_ident(slot);
    let temporary = if options.temporary { " TEMPORARY" } else { "" };
    let rest = match (server_major, options.failover) {
        (..=14, _) => "NOEXPORT_SNAPSHOT",
        (17.., true) if !options.temporary => "(SNAPSHOT 'nothing', FAILOVER true)",
        (15.., _) => "(SNAPSHOT 'nothing')",
    };
    format!("CREATE_REPLICATION_SLOT {slot}{temporary} LOGICAL pgoutput {rest}")
}

/// Names are quoted as identifiers inside a string, because the plugin splits the string as a list of identifiers.
/// The walsender's own grammar knows no `E''` strings, so quotes are doubled and backslashes stay.
fn start_command(slot: &str, from: Lsn, publication: &str, options: StreamOptions) -> String {
    let publication = quote_literal(&quote_ident(publication));
    let streaming = if options.streaming { ", streaming 'on'" } else { "" };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '2', publication_names {publication}, \
         messages 'true'{streaming})",
        quote_ident(slot)
    )
}

/// Lines of `timeline<TAB>position<TAB>reason`; empty lines and comments are allowed.
fn timeline_switches(content: &str) -> Option<Vec<TimelineSwitch>> {
    let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut fields = line.split_whitespace();
            let timeline = fields.next()?.parse().ok()?;
            Some(TimelineSwitch { timeline, switch_lsn: fields.next()?.parse().ok()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_follow_the_grammar_of_each_major_version() {
        let plain = SlotOptions { temporary: false, failover: false };
        let lasting = SlotOptions { temporary: false, failover: true };
        let full = SlotOptions { temporary: true, failover: true };
        for (major, options, expected) in [
            (14, plain, "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
            (14, full, "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
            (15, plain, "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'nothing')"),
            (16, full, "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')"),
            (
                17,
                lasting,
                "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)",
            ),
            (17, full, "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')"),
            (18, plain, "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'nothing')"),
        ] {
            assert_eq!(create_slot_command(major, "s", options), expected);
        }
    }

    #[test]
    fn odd_publication_names_are_quoted_twice() {
        let command =
            start_command("s", Lsn(0x16_B374_D848), "it's \"A\"", StreamOptions { streaming: true });
        assert_eq!(
            command,
            "START_REPLICATION SLOT \"s\" LOGICAL 16/B374D848 (proto_version '2', \
             publication_names '\"it''s \"\"A\"\"\"', messages 'true', streaming 'on')"
        );
    }

    #[test]
    fn a_timeline_history_is_read() {
        let content = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000060\tbefore 2020 UTC\n";
        let switch = |timeline, lsn| TimelineSwitch { timeline, switch_lsn: Lsn(lsn) };
        assert_eq!(timeline_switches(content), Some(vec![switch(1, 0x0300_0148), switch(2, 0x0500_0060)]));
        assert_eq!(timeline_switches("x\ty"), None);
    }
}
