//! The log: to stderr, for humans or as JSON, one line per event.

use std::io::{self, Write};

use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;

use super::ui::Paint;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For a human
    #[default]
    Human,
    /// One JSON object per line, and nothing else on stderr
    Json,
}

/// Which events are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogLevel {
    /// Nothing
    Off,
    /// What a human must look at
    Error,
    /// What a human may want to look at
    #[default]
    Warn,
    /// What was done
    Info,
    /// How it was done
    Debug,
    /// Every step
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Target of what a verb says on stderr, where the log takes it up. It is no log, so no level leaves it out.
pub const WORDS: &str = "strangler::words";

/// Starts the log of this process. Only our own events are let through: the libraries underneath know nothing of
/// our rule that no secret and no row value is logged.
pub fn start(format: LogFormat, level: LogLevel, paint: Paint, bars: MultiProgress) {
    let ours = Targets::new()
        .with_target("strangler", LevelFilter::from(level))
        .with_target(WORDS, LevelFilter::INFO);
    let lines = tracing_subscriber::fmt::layer().with_writer(AboveBars(bars));
    let registry = registry().with(ours);
    // A second start in one process, as a test may do, leaves the first log in place.
    let _ = match format {
        LogFormat::Human => tracing::subscriber::set_global_default(
            registry.with(lines.with_ansi(paint == Paint::Colour).with_target(false)),
        ),
        LogFormat::Json => tracing::subscriber::set_global_default(
            registry.with(lines.json().flatten_event(true).with_current_span(false)),
        ),
    };
}

/// Writes log lines to stderr above the progress bars.
#[derive(Debug)]
struct AboveBars(MultiProgress);

/// One log line in the making. The formatter writes it in one piece.
#[derive(Debug)]
struct Line<'a>(&'a MultiProgress);

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}
