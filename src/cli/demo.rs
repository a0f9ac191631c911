//! `strangler demo`.

use tokio_util::sync::CancellationToken;

use super::interrupt::Interrupts;
use super::report::{CliError, Exit};
use super::ui::Ui;
use crate::demo::{self, Act, Ending, Options};

/// Show the journey on servers of its own
///
/// Starts a PostgreSQL server for a retail monolith and one for each of six services, lets an application write to the
/// monolith, and walks the journey: the commands that an operator would type, run by this very program, with a
/// commentary. The application pauses once, and every table is compared on both sides; later the right to write orders moves
/// to their service, back, and there again, and every acknowledged order is looked for. In the end the old order tables are
/// taken away and archived, and made again from the archive elsewhere. Takes about three minutes, one of them to see that nobody
/// uses these tables.
///
/// Needs PostgreSQL's server programs (STRANGLER_PG_BIN names their folder; else pg_config and the usual folders are
/// tried), and nothing that is running already. Everything is gone afterwards, also after Ctrl-C.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long, value_name = "ACT", default_value_t = last_act(), help = until_help())]
    until: Act,
    /// Keep everything running afterwards, with lines to connect by, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

fn last_act() -> Act {
    let [.., last] = Act::ALL;
    last
}

fn until_help() -> String {
    format!("The last act to play: {}", Act::ALL.map(|act| act.to_string()).join(", "))
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let mut interrupts = Interrupts::listen().map_err(CliError::Start)?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    let listening = tokio::spawn(async move {
        interrupts.next().await;
        asked.cancel();
    });
    // The acts run this very program, which they must be able to start again even from another folder.
    let program = std::env::current_exe().map_err(CliError::Start)?;
    let options = Options { program, until: arguments.until, keep: arguments.keep };
    let ending = demo::run(options, ui.data_writer(), &stop).await;
    listening.abort();
    match ending? {
        Ending::Played => Ok(Exit::Clean),
        Ending::Interrupted => {
            Err(CliError::Interrupted { state: "the demo's servers and files are gone".to_owned() })
        }
    }
}
