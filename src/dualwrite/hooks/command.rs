//! A hook that is a program.

use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Ended, OUTPUT_BYTES_MAX, shown};

/// How long a pipe may stay open behind a program that has ended: something that it left running may hold it for ever.
const PIPE_GRACE: Duration = Duration::from_millis(200);

/// The process group of a program that runs. Whoever drops it early, because the operator interrupts the flip, leaves
/// nothing of it behind.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(leader) = self.0.take() {
            // It may have ended at this moment, which is what is wanted.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What was printed so far.
#[derive(Default)]
struct Printed {
    bytes: Vec<u8>,
    cut: bool,
}

/// Runs the program with the document on its standard input. `hidden` are variables that it does not see.
pub(super) async fn run(words: &[String], hidden: &[String], document: &str, limit: Duration) -> Ended {
    let Some((program, arguments)) = words.split_first() else {
        return Ended { output: String::new(), failure: Some("names no program".to_owned()) };
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    for name in hidden {
        command.env_remove(name);
    }
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let failure = Some(format!("could not be started: {error}"));
            return Ended { output: String::new(), failure };
        }
    };
    let printed = Mutex::new(Printed::default());
    let failure = attend(child, document, &printed, limit).await;
    let printed = printed.into_inner().unwrap_or_default();
    Ended { output: shown(&printed.bytes, printed.cut), failure }
}

/// Feeds the program, keeps what it prints and waits for its end; returns why it counts as failed.
async fn attend(
    mut child: Child,
    document: &str,
    printed: &Mutex<Printed>,
    limit: Duration,
) -> Option<String> {
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group(leader);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input is none the worse for it.
            let _ = stdin.write_all(document.as_bytes()).await;
        }
    };
    let pipes = async { tokio::join!(feed, keep(stdout, printed), keep(stderr, printed)) };
    let mut pipes = std::pin::pin!(pipes);
    let end = async {
        let mut open = true;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                _ = &mut pipes, if open => open = false,
            }
        };
        if open {
            let _ = timeout(PIPE_GRACE, &mut pipes).await;
        }
        status
    };
    match timeout(limit, end).await {
        Ok(Ok(status)) => {
            // The number of the group may soon be another one's.
            group.0 = None;
            failure_of(status)
        }
        Ok(Err(error)) => Some(format!("could not be waited for: {error}")),
        Err(_elapsed) => {
            group.kill();
            let _ = child.wait().await;
            Some(format!("did not end within {} ms, and its process group was killed", limit.as_millis()))
        }
    }
}

fn failure_of(status: ExitStatus) -> Option<String> {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("ended with code {code}")),
        (None, Some(signal)) => Some(format!("was ended by signal {signal}")),
        (None, None) => Some("ended in an unknown way".to_owned()),
    }
}

/// Reads to the end, so that the program never waits for us, and keeps the beginning.
async fn keep(pipe: Option<impl AsyncRead + Unpin>, printed: &Mutex<Printed>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0_u8; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let Ok(mut printed) = printed.lock() else { return };
        let room = OUTPUT_BYTES_MAX.saturating_sub(printed.bytes.len());
        printed.cut |= count > room;
        printed.bytes.extend(buffer.iter().take(count.min(room)));
    }
}
