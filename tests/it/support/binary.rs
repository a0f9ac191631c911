//! Runs the real binary in an empty environment.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// How a command ended.
pub struct Ended {
    pub exit: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(output: Output) -> Self {
        Self {
            exit: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// All of it as one text, for a snapshot.
    pub fn page(&self) -> String {
        let exit = self.exit.map_or_else(|| "killed".to_owned(), |exit| exit.to_string());
        let part = |name: &str, text: &str| {
            if text.is_empty() { String::new() } else { format!("----- {name} -----\n{text}") }
        };
        format!("exit code: {exit}\n{}{}", part("stdout", &self.stdout), part("stderr", &self.stderr))
    }
}

/// Words as they follow each other, whatever line a page has put them on.
pub fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The binary with nothing in its environment but a width of 100 columns, no terminal, started in `dir`.
pub fn command(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strangler"));
    command.args(words).current_dir(dir).env_clear().env("COLUMNS", "100").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(dir: &Path, variables: &[(&str, &str)], words: &[&str]) -> Ended {
    Ended::of(command(dir, words).envs(variables.iter().copied()).output().unwrap())
}
