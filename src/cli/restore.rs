//! `strangler restore`.

use std::sync::Arc;

use super::archive_progress::Display;
use super::environment::Environment;
use super::interrupt;
use super::report::{CliError, Exit};
use super::ui::Ui;
use crate::archive::{self, ArchiveError, Manifest, NotMade, Place, Progress, Restoring};
use crate::plan::{LinkTemplate, Variables};
use crate::postgres::{Server, SessionRole};
use crate::words;

/// `pg_stat_activity.application_name` of its session.
const APPLICATION: &str = "strangler restore";

/// What an interruption leaves behind.
const UNTOUCHED: &str = "nothing was made: restore makes everything in one transaction";

/// Make the tables of an archive again, in any database
///
/// Reads the archive that retire --stage archive has written, and proves every byte of it. Then, in one transaction, the tables are made
/// with their types, sequences, keys, checks and indexes, filled, and read again: the rows must have the digests that the manifest says.
/// Only then it commits. Refused, before anything is made, where a table or sequence has one of the names, a type of one of the names is
/// another one, or an extension or a function is missing.
///
/// Triggers, rules, policies, comments, statistics and foreign keys among the tables are made where the database can take them, and
/// named where not. Never made, and named: owners, rights, and foreign keys to tables outside the archive; the archive's left.sql has
/// them. Everything belongs to whom the link logs in as. The definitions are run as they stand in the archive: --digest makes sure that
/// it is the one which the ledger names.
///
/// Exit code 0: the tables are there, and proven. 1: the archive is damaged, or rows did not come back as they were; nothing was made.
/// 3: refused; nothing was made. 4: the database could not be reached. 5: nothing was made; the message says why.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where the archive is: a folder, file:///folder, or, in a build with the feature s3, s3://bucket/prefix
    #[arg(long, value_name = "ARCHIVE")]
    from: String,
    /// The database that gets the tables, as a link of a plan is written: '${RESTORE_URL}' keeps passwords out of the list of processes
    #[arg(long, value_name = "URL", required_unless_present = "verify")]
    to: Option<String>,
    /// Only the archive whose manifest has this SHA-256, as the ledger tells it
    #[arg(long, value_name = "SHA256")]
    digest: Option<String>,
    /// Prove every byte of the archive, and make nothing
    #[arg(long, conflicts_with = "to")]
    verify: bool,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let not_made = interrupt::unless(UNTOUCHED, Box::pin(work(ui, arguments))).await?;
    for NotMade { kind, object, why } in &not_made {
        ui.words(&format!("not made: {kind} {object}: {why}"));
    }
    Ok(Exit::Clean)
}

async fn work(ui: &mut Ui, arguments: &Arguments) -> Result<Vec<NotMade>, CliError> {
    let place = place(&arguments.from)?;
    let missing = || ArchiveError::Missing { place: place.to_string() };
    let (manifest, digest) = archive::find(&place).await?.ok_or_else(missing)?;
    if let Some(wanted) = arguments.digest.as_ref().filter(|wanted| !wanted.eq_ignore_ascii_case(&digest)) {
        let (place, wanted) = (place.to_string(), wanted.clone());
        return Err(ArchiveError::Another { place, found: digest, wanted }.into());
    }
    ui.words(&described(&manifest, &digest));
    let display = Display::new(ui);
    let tell = |progress: Progress| display.show(progress);
    let Some(to) = &arguments.to else {
        archive::verify(&place, &manifest, &tell).await?;
        display.words(&format!(
            "every byte of {} is as it was written",
            words::plural(files(&manifest), "file")
        ));
        if arguments.digest.is_none() {
            display.words("that manifest.json is the one that was written is proven by --digest alone; strangler status and the ledger have it");
        }
        return Ok(Vec::new());
    };
    // Before the archive is read, which may take hours.
    let variables: Arc<dyn Variables> = Arc::new(Environment);
    let server = Server::new("the database", LinkTemplate::new(to), SessionRole::Admin, variables);
    let target = server.connect(APPLICATION).await?;
    archive::verify(&place, &manifest, &tell).await?;
    display.words(&format!("every byte of {} is as it was written", words::plural(files(&manifest), "file")));
    let restoring = Restoring { place: &place, manifest: &manifest, target: &target, tell: &tell };
    let restored = archive::restore(restoring).await?;
    display.words(&format!("{} restored and proven; run ANALYZE there", rows_of_tables(&manifest)));
    Ok(restored.not_made)
}

fn files(manifest: &Manifest) -> usize {
    manifest.texts.len() + manifest.relations.iter().map(|relation| relation.parts.len()).sum::<usize>()
}

fn rows_of_tables(manifest: &Manifest) -> String {
    let rows = words::count(manifest.rows());
    let tables = words::plural(manifest.relations.len(), "table");
    format!("{rows} rows of {tables}")
}

fn described(manifest: &Manifest, digest: &str) -> String {
    let of = &manifest.of;
    format!(
        "archive of slice {} of plan {}, {} as of {} ({}), PostgreSQL {}, manifest {digest}",
        of.slice,
        of.plan,
        rows_of_tables(manifest),
        of.reverse_lsn,
        of.at,
        of.major()
    )
}

/// What was typed as a place, from where the command was typed.
pub(super) fn place(text: &str) -> Result<Place, CliError> {
    let here = std::env::current_dir().map_err(CliError::Start)?;
    Ok(Place::parse(text, &here, &Environment.of_stores()).map_err(ArchiveError::from)?)
}
