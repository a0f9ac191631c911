//! `strangler retire --stage drop`.

use tokio_util::sync::CancellationToken;

use super::{APPLICATION, Arguments, Hands, approved_by, failed, one_slice, statements, warn};
use crate::archive::{ArchiveError, Place, Progress};
use crate::cli::archive_progress::Display;
use crate::cli::environment::Environment;
use crate::cli::interrupt;
use crate::cli::open::{Needs, Opened};
use crate::cli::report::{CliError, Exit};
use crate::cli::ui::Ui;
use crate::journal::migrate::{self, Form};
use crate::retire::{self, Dropping, Gone, RetireError};
use crate::words::shell_word;

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let mut opened = one_slice(ui, "retire", &arguments.plan, &arguments.slices)?;
    opened.ask_dropped(Needs::All).await?;
    let done = opened.slices.first().and_then(|slice| opened.dropped.get(slice));
    if let Some(done) = done.filter(|one| one.ended_at.is_some())
        && !is_in_monolith(&opened).await?
    {
        ui.words(&format!(
            "the old tables of slice {} were dropped before; the archive of {} is at {}, manifest {}",
            done.slice, done.archived_at, done.place, done.manifest_sha256
        ));
        return Ok(Exit::Clean);
    }
    let slice = opened.slices.first().map(|slice| shell_word(slice)).unwrap_or_default();
    let state = opened.typed(&format!(
        "strangler status PLAN --slice {slice} says whether it was begun; the same command finishes it then"
    ));
    let stop = CancellationToken::new();
    let here = std::env::current_dir().map_err(CliError::Start)?;
    let open = |text: &str| Place::parse(text, &here, &Environment.of_stores());
    let work = async {
        let hands = Hands::connect(ui, &opened).await?;
        let job = hands.job(&opened, arguments.approved_by.as_deref())?;
        let slots = opened.monolith.read.connect(APPLICATION).await?;
        let display = Display::new(ui);
        let tell = |progress: Progress| display.show(progress);
        let dropping = Dropping { job: &job, slots: &slots, open: &open, tell: &tell, stop: &stop };
        let gone = Box::pin(retire::drop_tables(dropping, arguments.confirm.as_deref())).await;
        let gone = gone.map_err(|source| {
            if matches!(source, RetireError::Archive(ArchiveError::Stopped(_))) {
                return CliError::Interrupted { state: state.clone() };
            }
            failed(&opened, "dropped", source)
        })?;
        told(ui, &opened, arguments, &gone)
    };
    opened.heard(interrupt::asking((&state, &stop), Box::pin(work)).await)
}

/// Whether our schema is in the monolith, and with it perhaps old tables that came back with an earlier state. A monolith that can't be
/// reached may be gone for good.
async fn is_in_monolith(opened: &Opened) -> Result<bool, CliError> {
    let Ok(session) = opened.monolith.admin.connect(APPLICATION).await else { return Ok(false) };
    Ok(migrate::form(&session).await? != Form::Absent)
}

fn told(ui: &mut Ui, opened: &Opened, arguments: &Arguments, gone: &Gone) -> Result<Exit, CliError> {
    warn(ui, &opened.typed_all(gone.problems.clone()));
    if gone.before {
        ui.words(&format!("the old tables were dropped before; {}", gone.archive));
        return Ok(Exit::Clean);
    }
    if arguments.confirm.is_some() {
        ui.words(&format!("the old tables are dropped; {}", gone.archive));
        return Ok(Exit::Clean);
    }
    if gone.begun {
        ui.words("the old tables are dropped; what is behind that is not done");
    } else {
        ui.data(&statements(&gone.statements))?;
    }
    ui.words(&gone.archive);
    ui.words("behind that go:");
    for what in &gone.behind {
        ui.words(&format!("  {what}"));
    }
    let slice = opened.slices.first().map(|slice| shell_word(slice)).unwrap_or_default();
    // What can't be taken back is the drop itself, which is over where it was begun.
    let (before, warning) = if gone.begun {
        ("nothing was done now", "")
    } else {
        ("nothing was done", ", which nothing takes back")
    };
    ui.words(&opened.typed(&format!(
        "{before}. To do exactly this{warning}: strangler retire PLAN --slice {slice} --stage drop{} --confirm {}",
        approved_by(arguments),
        gone.token
    )));
    Ok(Exit::Clean)
}
