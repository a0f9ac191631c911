//! What can go wrong with a server of our own, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::StopMode;

/// A cluster could not be made, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No installation has the programs of a server.
    #[error(
        "no PostgreSQL server programs were found. Looked at:\n  {}\nRun scripts/install-postgres.sh, or set \
         STRANGLER_PG_BIN to the folder that holds initdb and postgres",
        looked.join("\n  ")
    )]
    NotFound {
        /// One line per place: where, and what is wrong there.
        looked: Vec<String>,
    },
    /// `STRANGLER_PG_BIN` names a folder that does not do.
    #[error(
        "STRANGLER_PG_BIN is {}, but {fact}. Set it to the folder that holds initdb and postgres, or unset it to have \
         the usual places searched",
        path.display()
    )]
    BadVariable {
        /// What the variable says.
        path: PathBuf,
        /// What is wrong with it.
        fact: String,
    },
    /// We are root, PostgreSQL refuses to run as root, and there is nobody else to run it as.
    #[error(
        "running as root, and PostgreSQL refuses that, but there is neither a user postgres nor a user nobody; \
             create one with: useradd --system postgres"
    )]
    NoServerUser,
    /// The folder for clusters could be changed by somebody else.
    #[error("{} {fact}. Remove it, or set STRANGLER_CLUSTER_DIR to another folder", path.display())]
    UnsafeHome {
        /// The folder.
        path: PathBuf,
        /// Why it is not trusted.
        fact: String,
    },
    /// The operating system refused a step.
    #[error("{what} {}", path.display())]
    Io {
        /// The step, as a bare verb: "create".
        what: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
    /// A program of the installation failed.
    #[error("{} failed as user {user}: {output}\nCheck that this user may run it, or set STRANGLER_PG_BIN to another \
             installation", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Whom it ran as.
        user: String,
        /// The end of what it said.
        output: String,
    },
    /// The server ended instead of starting.
    #[error("the server in {} ended before it took connections; the end of its log:\n{log}", dir.display())]
    Ended {
        /// The cluster's folder.
        dir: PathBuf,
        /// The end of its log.
        log: String,
    },
    /// The server neither ended nor took connections.
    #[error("the server in {} took no connections within {seconds} s; the end of its log:\n{log}", dir.display())]
    NotReady {
        /// The cluster's folder.
        dir: PathBuf,
        /// How long it was given.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// The server did not stop.
    #[error("the server in {} was still running {seconds} s after it was told to stop ({mode:?}); close its clients, \
             or stop it with StopMode::Immediate", dir.display())]
    StillRunning {
        /// The cluster's folder.
        dir: PathBuf,
        /// How it was told.
        mode: StopMode,
        /// How long it was given.
        seconds: u64,
    },
    /// A running server's files are not a copy of its databases.
    #[error("the server in {} runs; stop it before it is copied", dir.display())]
    Running {
        /// The cluster's folder.
        dir: PathBuf,
    },
    /// A setting cannot be written into a configuration file.
    #[error("the setting {name} has a line break or a zero byte in its name or value; write it on one line")]
    BadSetting {
        /// The setting.
        name: String,
    },
    /// The container engine refused, or there is none.
    #[cfg(feature = "containers")]
    #[error(
        "the container engine could not {what} a PostgreSQL container; check that the engine runs and that DOCKER_HOST names its socket"
    )]
    Container {
        /// The step, as a bare verb.
        what: &'static str,
        /// Why it was refused.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// For `map_err`: the step `what` on `path` was refused.
pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
    let path = path.to_owned();
    move |source| ClusterError::Io { what, path, source }
}
