//! The process that tidies up after us, however we end.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::Result;
use super::error::io;

/// The file in a cluster's folder that holds the server's process id; written by the server's own process before it
/// becomes the server, so there is no moment at which a server runs and the guard cannot know.
pub(super) const PID_FILE: &str = "server.pid";

/// Waits until its input ends, which the kernel sees to when we die, then stops the server and removes the folder.
///
/// The folder is moved away first. A server that is just being started has either written its process id before that,
/// and is found, or cannot write it any more, and does not start. A process id is believed only while its command line
/// names the folder (where the system shows command lines), because ids are used again. SIGCONT is for a server that
/// was frozen; SIGKILL comes last.
///
/// A server that was killed leaves its lock file behind, whose seventh line names its System V memory segment.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
while read -r _; do :; done
dir=$1 gone=$1.gone
case $dir in *.gone) gone=$dir ;; *) mv "$dir" "$gone" 2>/dev/null || exit 0 ;; esac
pid=$(cat "$gone/server.pid" 2>/dev/null)
ours() {
  kill -0 "$pid" 2>/dev/null || return 1
  [ -e /proc/$$/cmdline ] || return 0
  grep -qF "${dir%.gone}" "/proc/$pid/cmdline" 2>/dev/null
}
if [ -n "$pid" ]; then
  tries=0
  while ours && [ $tries -lt 150 ]; do
    case $tries in 0) kill -QUIT "$pid"; kill -CONT "$pid" ;; 100) kill -KILL "$pid" ;; esac
    tries=$((tries + 1))
    sleep 0.1
  done 2>/dev/null
fi
segment=$(sed -n '7s/.* //p' "$gone/data/postmaster.pid" 2>/dev/null)
[ -z "$segment" ] || ipcrm -m "$segment" 2>/dev/null
tries=0
until rm -rf "$gone" 2>/dev/null || [ $tries -ge 50 ]; do tries=$((tries + 1)); sleep 0.1; done
"#;

/// The guard of one cluster's folder.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    /// Nothing is ever written to it: that it stays open is the message.
    input: Option<ChildStdin>,
}

impl Guard {
    /// Guards `dir` from now on. The guard holds `lock` as well, so that nobody takes the folder for an abandoned one
    /// while the guard is at work.
    pub(super) fn over(dir: &Path, lock: &File) -> Result<Self> {
        let lock = lock.try_clone().map_err(io("keep the lock of", dir))?;
        let mut child =
            command(dir).stdin(Stdio::piped()).stdout(lock).spawn().map_err(io("start a guard for", dir))?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }
}

/// Lets the guard go to its work and waits for the end of it.
impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// Does at once what a guard does: for the folder of a process that has died together with its guard.
pub(super) fn clear(dir: &Path) -> Result<()> {
    command(dir).stdin(Stdio::null()).stdout(Stdio::null()).status().map_err(io("clear", dir))?;
    Ok(())
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(SCRIPT).arg("strangler-guard").arg(dir);
    // A group of its own: Ctrl-C in a terminal must not end the guard before its work.
    command.stderr(Stdio::null()).current_dir("/").process_group(0);
    command
}
