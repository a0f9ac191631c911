//! PostgreSQL servers of our own, for `strangler demo` and for the tests.
//!
//! A [`LocalCluster`] is a fresh data directory and a server on it, ready in a fraction of a second: `initdb` runs once
//! per installation into a template, which is copied. Nothing is left behind, even when the process that started the
//! server is killed with SIGKILL, because a small guard process outlives it and tidies up.
//!
//! Reads the environment (`STRANGLER_PG_BIN`, `STRANGLER_CLUSTER_DIR`), as the only part of the library beside the
//! failpoints. Calls block: in asynchronous code use a blocking task, unless a few hundred milliseconds do not matter.

mod account;
mod binaries;
#[cfg(feature = "containers")]
mod container;
mod error;
mod guard;
mod home;
mod local;

use std::fmt;

pub use binaries::{Binaries, Version};
#[cfg(feature = "containers")]
pub use container::ContainerCluster;
pub use error::ClusterError;
pub use home::random_password;
pub use local::{Auth, LocalCluster, Options};

/// What the functions of this module return.
pub type Result<T> = std::result::Result<T, ClusterError>;

/// The superuser of every cluster.
pub const SUPERUSER: &str = "postgres";

/// What every cluster is set to, unless its options say otherwise. Crashes of the machine need not be survived
/// (`fsync`), crashes of the server must be; `synchronous_commit` stays on because with it off the logical stream sees
/// a commit only after the next flush of the WAL writer, up to 0.6 s later.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("synchronous_commit", "on"),
    ("wal_level", "logical"),
    ("max_replication_slots", "40"),
    ("max_wal_senders", "40"),
    ("max_connections", "200"),
    ("shared_buffers", "32MB"),
    ("max_wal_size", "512MB"),
    // Databases are small here: questions to catalogs are estimated as costly, and compiling them takes longer than answering.
    ("jit", "off"),
    // In files of the data directory, so that they go with it even if the server is killed.
    ("dynamic_shared_memory_type", "mmap"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
];

/// How a server is told to stop (PostgreSQL documentation, section 19.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits until every client has gone. SIGTERM.
    Smart,
    /// Ends the sessions, writes a checkpoint. SIGINT.
    Fast,
    /// Drops everything, as a crash would: the next start recovers. SIGQUIT.
    Immediate,
}

/// A PostgreSQL server that was started for us alone, with the superuser [`SUPERUSER`].
pub trait Cluster: fmt::Debug + Send + Sync {
    /// The connection URL of `database` for the superuser. It may hold a password.
    fn url(&self, database: &str) -> String;

    /// The connection URL of `database` for `role`; an empty password is left out.
    fn url_as(&self, role: &str, password: &str, database: &str) -> String;

    /// The connection URL for administration: the superuser in the database `postgres`.
    fn admin_url(&self) -> String {
        self.url("postgres")
    }

    /// The server's version as `server_version_num` writes it, e.g. 150018.
    fn version_num(&self) -> u32;

    /// Stops the server and waits until it is gone; its data stay. Stopping a stopped server does nothing.
    ///
    /// # Errors
    /// [`ClusterError::StillRunning`] when it does not stop in time: with [`StopMode::Smart`], while a client stays. A client
    /// whose connection lives on a runtime of one thread cannot leave while this call blocks that thread.
    fn stop(&mut self, mode: StopMode) -> Result<()>;

    /// Starts the stopped server on the same data and the same port, and waits until it takes connections.
    ///
    /// # Errors
    /// [`ClusterError`] when it does not come up, with the end of its log.
    fn start(&mut self) -> Result<()>;
}

/// A connection URL by its parts, each percent-encoded. An empty password is left out.
fn connection_url(role: &str, password: &str, host: &str, port: u16, database: &str) -> String {
    let secret = if password.is_empty() { String::new() } else { format!(":{}", percent(password)) };
    format!("postgres://{}{secret}@{host}:{port}/{}", percent(role), percent(database))
}

/// Everything but the unreserved characters of RFC 3986 as `%XX`.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_keep_odd_names_and_passwords() {
        let url = connection_url("o'r/é", "p@:%", "127.0.0.1", 5432, "a b?");
        assert_eq!(url, "postgres://o%27r%2F%C3%A9:p%40%3A%25@127.0.0.1:5432/a%20b%3F");
        let config: tokio_postgres::Config = url.parse().unwrap();
        assert_eq!(config.get_user(), Some("o'r/é"));
        assert_eq!(config.get_password(), Some("p@:%".as_bytes()));
        assert_eq!(config.get_dbname(), Some("a b?"));
        assert_eq!(connection_url("r", "", "h", 1, "d"), "postgres://r@h:1/d");
    }
}
