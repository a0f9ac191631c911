//! Every way a command can end, and the one place that says what is shown for it: a heading, the numbered causes,
//! a hint with what to type, and the exit code. docs/errors.md explains each code.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use super::ui::{Ink, Ui};
use crate::plan::LinkError;

/// What a command's end means to the shell. The numbers are a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done and clean.
    Clean = 0,
    /// Done, and problems or differences were found.
    Problems = 1,
    /// The command line or the plan is wrong; nothing was done.
    Usage = 2,
    /// Refused: authority, evidence or policy forbid it.
    Refused = 3,
    /// A database could not be reached, or did not answer in time.
    Unreachable = 4,
    /// Something could not be finished or compared.
    Incomplete = 5,
    /// Stopped by Ctrl-C or SIGTERM.
    Interrupted = 130,
}

impl Exit {
    /// The number itself.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line does not parse, or asked for help or the version.
    #[error(transparent)]
    CommandLine(clap::Error),
    /// `--slice` names no slice of the plan.
    #[error("the plan has no slice {}", quoted_list(.names))]
    UnknownSlice {
        /// What was typed.
        names: Vec<String>,
        /// What the plan has.
        known: Vec<String>,
    },
    /// Links could not be filled in, all of them.
    #[error("{} of the plan can't be filled in", if .0.len() == 1 { "a link" } else { "links" })]
    Links(Vec<BadLink>),
    /// stdout is closed, or its disk full.
    #[error("the output could not be written")]
    Output(#[from] io::Error),
    /// The process could not be set up.
    #[error("the process could not start its workers")]
    Start(#[source] io::Error),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted; {state}")]
    Interrupted {
        /// What is left behind, in words.
        state: String,
    },
}

/// A link that could not be filled in.
#[derive(Debug, thiserror::Error)]
#[error("{database}, link {link}")]
pub struct BadLink {
    /// `monolith` or the service's name.
    pub database: String,
    /// Key in the plan: `admin`, `read` or `apply`.
    pub link: &'static str,
    /// Why.
    pub source: LinkError,
}

/// What is shown for an error.
struct Page {
    exit: Exit,
    /// Stable name, explained in docs/errors.md.
    code: &'static str,
    hint: Option<String>,
}

impl CliError {
    /// The table of all errors.
    fn page(&self) -> Page {
        let page = |exit, code, hint| Page { exit, code, hint };
        match self {
            Self::CommandLine(_) => page(Exit::Usage, "command-line", None),
            Self::UnknownSlice { names, known } => {
                page(Exit::Usage, "unknown-slice", Some(slice_hint(names, known)))
            }
            Self::Links(bad) => page(Exit::Usage, "link-not-filled", Some(link_hint(bad))),
            Self::Output(_) => page(Exit::Incomplete, "output", None),
            Self::Start(_) => page(Exit::Incomplete, "start", None),
            Self::Interrupted { .. } => page(Exit::Interrupted, "interrupted", None),
        }
    }
}

/// Shows how a command ended and gives its exit code.
pub fn finish(ui: &mut Ui, outcome: Result<Exit, CliError>) -> Exit {
    let error = match outcome {
        Ok(exit) => return exit,
        Err(error) => error,
    };
    let page = error.page();
    match &error {
        CliError::CommandLine(error) => return command_line(ui, error),
        // Whoever closed the pipe knows; a message would only disturb what follows it.
        CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return page.exit,
        CliError::Interrupted { .. } => ui.words(&error.to_string()),
        CliError::UnknownSlice { .. } | CliError::Links(_) | CliError::Output(_) | CliError::Start(_) => {
            show(ui, &error, &page);
        }
    }
    page.exit
}

fn show(ui: &mut Ui, error: &CliError, page: &Page) {
    let paint = ui.words_paint();
    let heading = paint.ink(Ink::Alarm, &format!("error[{}]:", page.code));
    ui.words(&format!("{heading} {error}"));
    let causes = if let CliError::Links(bad) = error {
        bad.iter().map(|bad| chain(bad)).collect()
    } else {
        sources(error)
    };
    for (index, cause) in causes.iter().enumerate() {
        ui.words(&format!("  {}. {cause}", index + 1));
    }
    if let Some(hint) = &page.hint {
        ui.words(&format!("{} {hint}", paint.ink(Ink::Strong, "hint:")));
    }
}

/// Help and version are data that was asked for; the rest are words about a mistake.
fn command_line(ui: &mut Ui, error: &clap::Error) -> Exit {
    let text = error.render().to_string();
    if error.use_stderr() {
        ui.words(text.trim_end());
        return Exit::Usage;
    }
    match ui.data(&text) {
        Ok(()) => Exit::Clean,
        Err(_) => Exit::Incomplete,
    }
}

/// An error and its causes on one line, outermost first.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut parts = vec![error.to_string()];
    parts.extend(sources(error));
    parts.join(": ")
}

fn sources(error: &dyn Error) -> Vec<String> {
    std::iter::successors(error.source(), |cause: &&dyn Error| (*cause).source())
        .map(ToString::to_string)
        .collect()
}

fn quoted_list(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

fn slice_hint(names: &[String], known: &[String]) -> String {
    let likely = names.iter().filter_map(|name| {
        let distance = |known: &&String| strsim::damerau_levenshtein(name, known);
        // Up to a third of the letters wrong is a slip; more is another word.
        known.iter().min_by_key(distance).filter(|known| distance(known) * 3 <= name.chars().count().max(3))
    });
    let likely: Vec<&str> = likely.map(String::as_str).collect();
    let all = known.join(", ");
    if likely.is_empty() {
        format!("its slices are {all}")
    } else {
        format!("did you mean --slice {}? The slices are {all}", likely.join(" --slice "))
    }
}

fn link_hint(bad: &[BadLink]) -> String {
    let mut names: Vec<&str> = bad
        .iter()
        .filter_map(|bad| match &bad.source {
            LinkError::NoVariable { name } => Some(name.as_str()),
            LinkError::NoFile { .. } | LinkError::Unclosed => None,
        })
        .collect();
    names.dedup();
    match names.first() {
        None => "correct the links in the plan, or the files that they name".to_owned(),
        Some(name) => {
            format!("set it before the command: export {name}=postgresql://user@host:5432/database")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_slice_and_another_word_does_not() {
        let known = ["catalog".to_owned(), "ordering".to_owned()];
        assert!(slice_hint(&["orderng".to_owned()], &known).starts_with("did you mean --slice ordering?"));
        assert_eq!(slice_hint(&["payments".to_owned()], &known), "its slices are catalog, ordering");
    }

    #[test]
    fn exit_numbers_are_the_contract() {
        let all = [
            Exit::Clean,
            Exit::Problems,
            Exit::Usage,
            Exit::Refused,
            Exit::Unreachable,
            Exit::Incomplete,
            Exit::Interrupted,
        ];
        assert_eq!(all.map(Exit::number), [0, 1, 2, 3, 4, 5, 130]);
    }
}
