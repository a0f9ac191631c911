//! Everything that reaches a human or a pipe goes through here: data to stdout, words to stderr.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;

use super::logging::WORDS;
pub use crate::ink::{Ink, Paint};

/// How a verb reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For a human
    #[default]
    Text,
    /// For a program; the fields are documented in docs/json-output.md
    Json,
}

/// stdout and stderr, and what they can show.
pub struct Ui {
    data: Box<dyn Write + Send>,
    words: Box<dyn Write + Send>,
    data_paint: Paint,
    words_paint: Paint,
    data_on_terminal: bool,
    words_on_terminal: bool,
    words_to_log: bool,
    bars: MultiProgress,
}

impl fmt::Debug for Ui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ui").field("data_paint", &self.data_paint).finish_non_exhaustive()
    }
}

impl Ui {
    /// The process's own stdout and stderr. Colours need a terminal and a user who did not set `NO_COLOR`
    /// (<https://no-color.org>).
    #[must_use]
    pub fn standard(no_color: bool) -> Self {
        let (data_on_terminal, words_on_terminal) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let paint = |terminal| if terminal && !no_color { Paint::Colour } else { Paint::Plain };
        let target =
            if words_on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self {
            data: Box::new(io::stdout()),
            words: Box::new(io::stderr()),
            data_paint: paint(data_on_terminal),
            words_paint: paint(words_on_terminal),
            data_on_terminal,
            words_on_terminal,
            words_to_log: false,
            bars: MultiProgress::with_draw_target(target),
        }
    }

    /// From now on words are events of the log, so that every line of stderr is one JSON object: no colours and no bars.
    pub fn words_to_log(&mut self) {
        self.words_to_log = true;
        self.words_on_terminal = false;
        self.words_paint = Paint::Plain;
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// Words are events of the log.
    #[must_use]
    pub fn logs_words(&self) -> bool {
        self.words_to_log
    }

    /// Colours of stdout.
    #[must_use]
    pub fn data_paint(&self) -> Paint {
        self.data_paint
    }

    /// Colours of stderr.
    #[must_use]
    pub fn words_paint(&self) -> Paint {
        self.words_paint
    }

    /// stdout is a terminal, so that a display may redraw itself.
    #[must_use]
    pub fn data_on_terminal(&self) -> bool {
        self.data_on_terminal
    }

    /// stderr is a terminal, so that progress bars may show.
    #[must_use]
    pub fn words_on_terminal(&self) -> bool {
        self.words_on_terminal
    }

    /// The progress bars on stderr; words and log lines appear above them.
    #[must_use]
    pub fn bars(&self) -> MultiProgress {
        self.bars.clone()
    }

    /// Writes data, as it is, and hands it on at once, so that a reader of the pipe sees it.
    ///
    /// # Errors
    /// What writing to stdout gave, a broken pipe among it.
    pub fn data(&mut self, text: &str) -> io::Result<()> {
        let Self { data, bars, .. } = self;
        bars.suspend(|| {
            data.write_all(text.as_bytes())?;
            data.flush()
        })
    }

    /// stdout itself, for a commentary that is written as it happens.
    pub fn data_writer(&mut self) -> &mut (dyn Write + Send) {
        &mut *self.data
    }

    /// Writes a value as one JSON document: indented for a report, or on one line for a sequence of them.
    ///
    /// # Errors
    /// What writing to stdout gave.
    pub fn json<T: Serialize>(&mut self, value: &T, one_line: bool) -> io::Result<()> {
        let text =
            if one_line { serde_json::to_string(value)? } else { serde_json::to_string_pretty(value)? };
        self.data(&format!("{text}\n"))
    }

    /// Writes words and a line break. Whether anybody reads them changes nothing about the work, so a closed
    /// stderr is no error.
    pub fn words(&mut self, text: &str) {
        if self.words_to_log {
            tracing::info!(target: WORDS, "{text}");
            return;
        }
        let Self { words, bars, .. } = self;
        let _ = bars.suspend(|| words.write_all(format!("{text}\n").as_bytes()));
    }
}
