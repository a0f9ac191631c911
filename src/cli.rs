//! The command line: what can be typed, and which module does it.
//!
//! Only this module and what is below it read the environment, print, or know of exit codes.

use std::ffi::OsString;

use clap::Parser;

mod abandon;
mod archive_progress;
mod arm;
mod check;
mod demo;
mod disarm;
mod doctor;
pub mod environment;
mod flip;
mod interrupt;
mod ledger;
pub mod logging;
mod mirror;
pub mod mirror_progress;
mod open;
mod provision;
mod reason;
mod reconcile;
pub mod report;
mod restore;
mod retire;
mod schema;
mod status;
pub mod ui;
mod unretire;

use logging::{LogFormat, LogLevel};
use report::{CliError, Exit};
use ui::Ui;

/// Split a shared PostgreSQL database into one database per service, while the application keeps running
///
/// The order of a journey: check, provision, mirror, reconcile, arm; status says at any time where every slice stands and
/// what to type next.
#[derive(Debug, clap::Parser)]
#[command(name = "strangler", version, max_term_width = 110, infer_subcommands = false)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// How log lines on stderr look
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Log")]
    log_format: LogFormat,
    /// Which events are logged
    #[arg(long, global = true, value_enum, default_value_t, value_name = "LEVEL", help_heading = "Log")]
    log_level: LogLevel,
}

const EXIT_CODES: &str = "Exit codes: 0 done and clean, 1 problems or differences, 2 usage or plan error, 3 refused, \
4 a database could not be reached, 5 incomplete, 130 interrupted";

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Check(check::Arguments),
    Provision(provision::Arguments),
    Mirror(mirror::Arguments),
    Status(status::Arguments),
    Reconcile(reconcile::Arguments),
    Arm(arm::Arguments),
    Disarm(disarm::Arguments),
    Flip(flip::Arguments),
    Ledger(ledger::Arguments),
    Retire(retire::Arguments),
    Unretire(unretire::Arguments),
    Abandon(abandon::Arguments),
    Restore(restore::Arguments),
    Doctor(doctor::Arguments),
    Demo(demo::Arguments),
    Schema(schema::Arguments),
}

impl Arguments {
    /// Reads the command line.
    ///
    /// # Errors
    /// [`CliError::CommandLine`], which also carries help and version.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, CliError> {
        Self::try_parse_from(words).map_err(CliError::CommandLine)
    }

    /// Starts the log that was asked for. One of JSON takes up the words on stderr as well.
    pub fn start_log(&self, ui: &mut Ui) {
        if self.log_format == LogFormat::Json {
            ui.words_to_log();
        }
        logging::start(self.log_format, self.log_level, ui.words_paint(), ui.bars());
    }

    /// Does what was typed, on a runtime of its own.
    ///
    /// # Errors
    /// [`CliError`]; [`report::finish`] shows it.
    pub fn run(self, ui: &mut Ui) -> Result<Exit, CliError> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Start)?;
        let outcome = runtime.block_on(async {
            match &self.verb {
                Verb::Check(arguments) => Box::pin(check::run(ui, arguments)).await,
                Verb::Provision(arguments) => Box::pin(provision::run(ui, arguments)).await,
                Verb::Mirror(arguments) => Box::pin(mirror::run(ui, arguments)).await,
                Verb::Status(arguments) => Box::pin(status::run(ui, arguments)).await,
                Verb::Reconcile(arguments) => Box::pin(reconcile::run(ui, arguments)).await,
                Verb::Arm(arguments) => Box::pin(arm::run(ui, arguments)).await,
                Verb::Disarm(arguments) => Box::pin(disarm::run(ui, arguments)).await,
                Verb::Flip(arguments) => Box::pin(flip::run(ui, arguments)).await,
                Verb::Ledger(arguments) => Box::pin(ledger::run(ui, arguments)).await,
                Verb::Retire(arguments) => Box::pin(retire::run(ui, arguments)).await,
                Verb::Abandon(arguments) => Box::pin(abandon::run(ui, arguments)).await,
                Verb::Unretire(arguments) => Box::pin(unretire::run(ui, arguments)).await,
                Verb::Restore(arguments) => Box::pin(restore::run(ui, arguments)).await,
                Verb::Doctor(arguments) => Box::pin(doctor::run(ui, arguments)).await,
                Verb::Demo(arguments) => Box::pin(demo::run(ui, arguments)).await,
                Verb::Schema(arguments) => schema::run(ui, arguments),
            }
        });
        // A resolver thread may still wait for a name server; nobody waits for it.
        runtime.shutdown_background();
        outcome
    }
}
