//! Types commands as an operator would: the real program, in a folder with the plan, with the links in its environment.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::links::Links;

/// The plan's path as it is typed, below the folder of the operator.
pub(super) const PLAN_PATH: &str = "plans/retail.yaml";

/// The words that start the mirror.
pub(super) const MIRROR: [&str; 2] = ["mirror", PLAN_PATH];

/// How long the mirror may take to stop before it is killed. It stops at a transaction border, within milliseconds
/// unless the machine is very busy.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// How a flip says that it was refused because the mirror lags, how long it is typed again then, and how soon.
const LAGS: &str = "(mirror-lags)";
const FLIP_PATIENCE: Duration = Duration::from_secs(240);
const FLIP_AGAIN: Duration = Duration::from_secs(1);

/// Becomes the command, after starting a process that presses Ctrl-C when our end of the pipe is closed. The kernel
/// closes it if we are killed, so that a mirror never outlives its demo. The watcher holds the command's standard error
/// open: whoever reads that to its end knows that the watcher is gone too and won't signal anybody else.
const LEASH: &str = r#"exec 3<&0
( trap '' INT; while read -r _; do :; done <&3; kill -INT $$ ) >/dev/null &
exec "$@" </dev/null 3<&-"#;

/// A command that could not be run, or that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// It did not start.
    #[error("run {command}")]
    Start {
        /// What was typed.
        command: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended with an exit code that the act does not expect.
    #[error("{command} ended with {exit}:\n{output}")]
    Failed {
        /// What was typed.
        command: String,
        /// How it ended, in words.
        exit: String,
        /// What it said.
        output: String,
    },
}

/// Somebody with the program, the plan and the links.
#[derive(Debug, Clone)]
pub(super) struct Operator {
    program: PathBuf,
    folder: PathBuf,
    links: Links,
}

/// What a command that is done has said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) data: String,
    pub(super) words: String,
}

/// A mirror that runs. Dropping it ends it the hard way.
#[derive(Debug)]
pub(super) struct Mirror {
    leash: Option<ChildStdin>,
    child: Child,
    /// Nothing comes out of it but its end, which is the mirror's own: the watcher does not hold it.
    data: ChildStdout,
    words: Lines<BufReader<ChildStderr>>,
    said: Vec<String>,
}

/// What a mirror does.
#[derive(Debug)]
pub(super) enum News {
    /// It says a line.
    Line(String),
    /// It has ended by itself, which no act wants.
    Ended(OperatorError),
}

/// What is typed, for the audience.
pub(super) fn typed(words: &[&str]) -> String {
    format!("strangler {}", words.join(" "))
}

impl Operator {
    pub(super) fn new(program: PathBuf, folder: PathBuf, links: Links) -> Self {
        Self { program, folder, links }
    }

    /// Exports one more link.
    pub(super) fn add_link(&mut self, variable: &str, url: String) {
        self.links.set(variable.to_owned(), url);
    }

    /// Where it types.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a command to its end, which must be a clean one.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub(super) async fn run(&self, words: &[&str]) -> Result<Said, OperatorError> {
        self.run_to(words, 0).await
    }

    /// Runs a flip to its end; again while it is refused because the mirror lags, as on a machine that does much else. Also gives
    /// how often that was.
    ///
    /// # Errors
    /// [`OperatorError`], also when that lasts.
    pub(super) async fn flip(&self, words: &[&str]) -> Result<(Said, u32), OperatorError> {
        let begun = Instant::now();
        let mut refused = 0;
        loop {
            match self.run(words).await {
                Ok(said) => return Ok((said, refused)),
                Err(OperatorError::Failed { output, .. })
                    if output.contains(LAGS) && begun.elapsed() < FLIP_PATIENCE =>
                {
                    refused += 1;
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(FLIP_AGAIN).await;
        }
    }

    /// Runs a command to its end, which must be this exit code.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub(super) async fn run_to(&self, words: &[&str], exit: i32) -> Result<Said, OperatorError> {
        let mut command = self.command(&self.program);
        command.args(words).stdin(Stdio::null());
        let output = command.output().await.map_err(|source| start(words, source))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = Said { data: text(&output.stdout), words: text(&output.stderr) };
        if output.status.code() == Some(exit) {
            return Ok(said);
        }
        let output_text = format!("{}{}", said.data, said.words);
        Err(OperatorError::Failed {
            command: typed(words),
            exit: output.status.to_string(),
            output: output_text.trim_end().to_owned(),
        })
    }

    /// Starts a mirror.
    ///
    /// # Errors
    /// [`OperatorError::Start`].
    pub(super) fn mirror(&self) -> Result<Mirror, OperatorError> {
        let words = &MIRROR[..];
        let mut command = self.command(Path::new("/bin/sh"));
        command.args(["-c", LEASH, "sh"]).arg(&self.program).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| start(words, source))?;
        let (Some(leash), Some(data), Some(pipe)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(start(words, std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        };
        let words = BufReader::new(pipe).lines();
        Ok(Mirror { leash: Some(leash), child, data, words, said: Vec::new() })
    }

    /// A process group of its own: Ctrl-C in a terminal reaches the demo alone, which then stops what it has started
    /// in a good order.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).envs(self.links.iter()).process_group(0).kill_on_drop(true);
        command
    }
}

fn start(words: &[&str], source: std::io::Error) -> OperatorError {
    OperatorError::Start { command: typed(words), source }
}

impl Mirror {
    /// What it does next. Cancelling this loses nothing.
    pub(super) async fn next(&mut self) -> News {
        let mut byte = [0];
        loop {
            tokio::select! {
                biased;
                line = self.words.next_line() => if let Ok(Some(line)) = line {
                    self.said.push(line.clone());
                    return News::Line(line);
                },
                read = self.data.read(&mut byte) => if !matches!(read, Ok(1)) {
                    return News::Ended(self.failure().await);
                },
            }
        }
    }

    async fn failure(&mut self) -> OperatorError {
        let rest = self.rest().await;
        self.said.extend(rest);
        let exit = self.child.wait().await.map_or_else(|error| error.to_string(), |exit| exit.to_string());
        OperatorError::Failed { command: typed(&MIRROR), exit, output: self.said.join("\n") }
    }

    /// Ctrl-C, and what it says then; kills it when it does not stop in time.
    pub(super) async fn stop(mut self) -> Vec<String> {
        let ended = async {
            let rest = self.rest().await;
            let _ = self.child.wait().await;
            rest
        };
        tokio::time::timeout(STOP_TIMEOUT, ended).await.unwrap_or_default()
    }

    /// Lets the watcher press Ctrl-C, and reads on until both it and the mirror are gone. Only then is the mirror's
    /// process id given back: until then nobody else can get it, and the signal with it.
    async fn rest(&mut self) -> Vec<String> {
        drop(self.leash.take());
        let mut lines = Vec::new();
        while let Ok(Some(line)) = self.words.next_line().await {
            lines.push(line);
        }
        lines
    }
}
