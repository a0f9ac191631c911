//! Whom the servers run as: ourselves, or another user where we are root, which PostgreSQL refuses.

use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{ClusterError, Result};

/// Variables that a server may need to find its libraries. All others are kept from it: `PG*` would change its
/// settings, and secrets do not belong into its environment.
const KEPT: &[&str] = &["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"];

/// A user of this machine.
#[derive(Debug, Clone)]
pub(super) struct Account {
    name: String,
    /// User and group, when it is not ourselves.
    other: Option<(u32, u32)>,
}

impl Account {
    /// Ourselves; where we are root, `postgres` if there is one, else `nobody`.
    pub(super) fn for_servers() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { name: "the one who runs this".to_owned(), other: None });
        }
        for name in ["postgres", "nobody"] {
            if let (Some(uid), Some(gid)) = (number_of("-u", name), number_of("-g", name))
                && uid != 0
            {
                return Ok(Self { name: name.to_owned(), other: Some((uid, gid)) });
            }
        }
        Err(ClusterError::NoServerUser)
    }

    /// Whose files a server's are: a name alone does not say it, since a user that was removed and made anew, or that
    /// of a container with the same folder for temporary files, has another number.
    pub(super) fn identity(&self) -> String {
        let uid = self.other.map_or_else(|| rustix::process::geteuid().as_raw(), |(uid, _)| uid);
        format!("{}, uid {uid}", self.name)
    }

    /// For messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is somebody else than ourselves.
    pub(super) fn is_other(&self) -> bool {
        self.other.is_some()
    }

    /// A program to be run as this user: without our environment, input or folder, and in a process group of its own,
    /// so that Ctrl-C in a terminal does not reach it.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).process_group(0);
        for name in KEPT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some((uid, gid)) = self.other {
            // The standard library also drops root's supplementary groups here.
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Makes this user the owner of a file or folder.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        self.other.map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)))
    }
}

/// `id` rather than /etc/passwd, because users may come from elsewhere.
fn number_of(which: &str, name: &str) -> Option<u32> {
    let out = Command::new("id").args([which, name]).stdin(Stdio::null()).output().ok()?;
    if !out.status.success() {
        return None;
    }
    String::from_utf8(out.stdout).ok()?.trim().parse().ok()
}
