//! `strangler retire`.

mod dropping;

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use clap::error::ErrorKind;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::archive_progress::Display;
use super::environment::Environment;
use super::interrupt;
use super::open::{self, Needs, Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::ui::{Format, Ui};
use crate::archive::{ArchiveError, Place, Progress};
use crate::check;
use crate::journal::ledger::Author;
use crate::mapping::Mappings;
use crate::postgres::connect::{APPLY_ROLE, Session};
use crate::postgres::introspect;
use crate::problem::{Problem, Severity};
use crate::provision::Databases;
use crate::retire::{self, Archived, Archiving, Asked, Job, RetireError, SliceReport, Work};
use crate::status::judge::shell_word;
use crate::words;

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler retire";

/// What an interruption leaves behind.
const UNTOUCHED: &str = "retire --report changes nothing";

/// Take a slice's old tables away, a stage at a time, once its service has proven itself
///
/// --report shows who still uses the old tables. While a service has the authority, a running mirror watches them: scans by
/// others, as the server counts them, with the tool's own subtracted; sessions that read or write a table, with role, application,
/// address and statement; statements that name it, where pg_stat_statements is there; rows written past a gate. Shown are these
/// since the authority moved, with the last time, and the objects of the monolith that name the tables: views with their
/// definition, functions, foreign keys, policies, publications, scheduled jobs. A table is quiet once nobody has used it for the
/// plan's quiet_period.
///
/// --stage revoke takes the rights on the old tables and their partitions away from everybody but their owner and the plan's links:
/// whoever still needs them fails, and strangler unretire gives everything back as it was. Without --confirm it runs the statements,
/// rolls them back and shows them. It is refused until safety_period is over, clean_runs_before_retire full verdicts since the flip
/// were clean, the last one stands, and --report finds nothing in the way (foreign keys may stay: they are checked with the rights of
/// the tables' owners); while the application's role owns the tables or needs no rights, because nothing would stop it; and
/// while somebody else than the owner has given rights, which could not be given back as they were. The mirror goes on; flip --back
/// and disarm are refused until the rights are back.
///
/// --stage quarantine, behind that, moves the tables and their partitions, with indexes, sequences and statistics, into a schema of
/// the tool's own: whatever looks them up by name fails. What PostgreSQL has bound to them would follow without a word and is
/// refused before, with its definition: views, rules, policies, functions with an SQL body, defaults, and here foreign keys, too. The
/// mirror goes on into the moved tables, comparisons and status as well. It waits for whoever uses a table at that moment, and
/// holds back new ones meanwhile, for at most 5 seconds each. strangler unretire brings tables and rights back at once.
///
/// --stage archive, behind that, keeps the rows and definitions of the old tables in a set of compressed files in a folder: as they are in
/// one snapshot, with the position in the service's WAL up to which the way back had brought them, and by the names that they had before
/// they were moved. The way back goes on meanwhile. Every byte is read back before the manifest is written and the ledger told. Without
/// --confirm it shows what would be read and what is in the folder. It asks for what the stages before ask for, and again at the end. The
/// same command begins an archive anew that was cut off, and proves one that is there. strangler restore makes the tables from it, in any
/// database.
///
/// --stage drop, behind that, drops the old tables, and nothing brings them back but the archive, every byte of which it reads back first. With
/// them go the gates and their triggers, both publications and slots, and the rights that no other slice needs. With the last slice of every plan
/// the tool's own schema goes from the monolith, whose journal the service keeps, and the role strangler_apply, where it was made from there and
/// nothing on the server needs it. It asks for what the stages before ask for, and for nothing that depends on the tables, all of it once more behind the
/// locks. There is no way to force it: only another policy in the plan allows more, and the ledger tells of that. A run that is cut off is
/// finished by the same command, which status names; until the tables are gone unretire takes it back as well. The mirror of
/// the slice ends by itself, every other verb leaves the slice out, and reconcile goes on to look at what its rows refer to.
///
/// Exit code of --report 0: nothing stands in the way. 1: something does. Of --stage 0: done, or shown and allowed. 3: refused. 4:
/// a database could not be reached, or others held the tables' rights. 5: nothing was done, or all of it and only the ledger's entry is
/// missing, or, of --stage drop, not all that goes behind the tables; the message says which.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["report", "stage"]))]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Look, and change nothing
    #[arg(long)]
    report: bool,
    /// The next stage
    #[arg(long, value_enum, value_name = "STAGE")]
    stage: Option<StageName>,
    /// Where the archive goes: an empty folder, file:///folder, or, in a build with the feature s3, s3://bucket/prefix
    #[arg(long, value_name = "WHERE", requires = "stage", required_if_eq("stage", "archive"))]
    to: Option<String>,
    /// Do what was shown under this token
    #[arg(long, value_name = "TOKEN", requires = "stage", conflicts_with = "report")]
    confirm: Option<String>,
    /// Who approved it; the name goes into the ledger. Needed where the plan says `approval: required`
    #[arg(long, value_name = "NAME", requires = "stage", conflicts_with = "report", value_parser = super::flip::name)]
    approved_by: Option<String>,
    /// How to report
    #[arg(long, value_enum, default_value_t, conflicts_with = "stage")]
    format: Format,
}

/// Stages, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StageName {
    /// Take away the rights on the old tables
    Revoke,
    /// Move the old tables to a schema of their own
    Quarantine,
    /// Keep their rows and definitions in an archive
    Archive,
    /// Drop them, with everything that stood between the two databases for the slice
    Drop,
}

/// What a stage takes away.
#[derive(Debug, Clone, Copy)]
enum Taking {
    Rights,
    Tables,
}

/// What is said of that.
struct Words {
    /// What could not be done, as `taken away`.
    undone: &'static str,
    before: &'static str,
    done: &'static str,
    undo: &'static str,
}

impl Taking {
    fn words(self) -> Words {
        match self {
            Self::Rights => Words {
                undone: "taken away",
                before: "the rights were taken away before",
                done: "the rights on the old tables are taken away",
                undo: "to give them back",
            },
            Self::Tables => Words {
                undone: "moved away",
                before: "the tables were moved away before",
                done: "the old tables are moved away",
                undo: "to bring them back, with the rights on them",
            },
        }
    }
}

/// The document of `--format json` (docs/json-output.md).
#[derive(Debug, Serialize)]
struct Document<'a> {
    format: &'static str,
    version: u8,
    plan: &'a str,
    slices: Vec<SliceReport>,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    match arguments.stage {
        Some(StageName::Revoke | StageName::Quarantine | StageName::Drop) if arguments.to.is_some() => {
            let words = "--to is where an archive goes: it belongs to --stage archive";
            Err(CliError::CommandLine(clap::Error::raw(ErrorKind::ArgumentConflict, words)))
        }
        Some(StageName::Revoke) => Box::pin(stage(ui, arguments, Taking::Rights)).await,
        Some(StageName::Quarantine) => Box::pin(stage(ui, arguments, Taking::Tables)).await,
        Some(StageName::Archive) => Box::pin(archive(ui, arguments)).await,
        Some(StageName::Drop) => Box::pin(dropping::run(ui, arguments)).await,
        None => Box::pin(report(ui, arguments)).await,
    }
}

async fn report(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let named = &arguments.slices.slices;
    let opened = open::open(ui, &arguments.plan, named, Needs::Rows)?.answering();
    let Some(opened) = opened.living(ui, named, Needs::Rows).await? else { return Ok(Exit::Clean) };
    let mut slices = Vec::new();
    for slice in opened.heard(interrupt::unless(UNTOUCHED, Box::pin(look(ui, &opened))).await)? {
        let problems = opened.typed_all(slice.problems);
        slices.push(SliceReport { problems, ..slice });
    }
    let in_the_way = slices.iter().flat_map(|slice| &slice.problems);
    let exit = match in_the_way.filter(|problem| problem.severity == Severity::Error).count() {
        0 => Exit::Clean,
        _ => Exit::Problems,
    };
    match arguments.format {
        Format::Text => ui.data(&retire::text(&slices, |slice| check::list(&slice.problems)))?,
        Format::Json => {
            let plan = opened.plan.name.as_str();
            ui.json(&Document { format: "strangler.retire", version: 1, plan, slices }, false)?;
        }
    }
    Ok(exit)
}

async fn look(ui: &mut Ui, opened: &Opened) -> Result<Vec<SliceReport>, CliError> {
    let mappings = opened.mappings(ui).await?;
    let catalog = introspect::read(&*opened.monolith.read.connect(APPLICATION).await?).await?;
    let monolith = opened.monolith.apply.connect(APPLICATION).await?;
    let mut slices = Vec::new();
    for slice in &opened.slices {
        let (Some(mapping), Some((service, _))) = (mappings.get(slice), opened.plan.service_of(slice)) else {
            continue;
        };
        let Some(ways) = opened.services.get(service) else { continue };
        let policy = opened.plan.slices.get(slice).map_or(&opened.plan.policy, |slice| &slice.policy);
        let session = ways.apply.connect(APPLICATION).await?;
        let asked = Asked {
            mapping,
            quiet_period: policy.quiet_period,
            catalog: &catalog,
            monolith: &monolith,
            service: &session,
        };
        let failed = |source| {
            if let RetireError::Refused { problems } = source {
                return CliError::RetireRefused(opened.typed_all(problems));
            }
            CliError::Retire {
                slice: slice.clone(),
                done: "looked at",
                provision: opened.typed(&format!("strangler provision PLAN --slice {slice}")),
                source: Box::new(source),
            }
        };
        slices.push(retire::judge(&retire::gather(asked).await.map_err(failed)?));
    }
    Ok(slices)
}

async fn stage(ui: &mut Ui, arguments: &Arguments, taking: Taking) -> Result<Exit, CliError> {
    let opened = standing(one_slice(ui, "retire", &arguments.plan, &arguments.slices)?).await?;
    let words = taking.words();
    let state =
        "nothing is half-done: the stage is taken, or nothing of it; strangler status PLAN says which";
    let work = async {
        let hands = Hands::connect(ui, &opened).await?;
        let job = hands.job(&opened, arguments.approved_by.as_deref())?;
        let confirm = arguments.confirm.as_deref();
        let done = match taking {
            Taking::Rights => retire::revoke(&job, confirm).await,
            Taking::Tables => Box::pin(retire::quarantine(&job, confirm)).await,
        };
        let done = done.map_err(|source| failed(&opened, words.undone, source))?;
        warn(ui, &opened.typed_all(done.problems));
        let slice = shell_word(job.work.slice);
        if done.before {
            ui.words(words.before);
        } else if arguments.confirm.is_none() {
            ui.data(&statements(&done.statements))?;
            let command = match taking {
                Taking::Rights => format!("strangler retire PLAN --slice {slice} --stage revoke"),
                Taking::Tables => format!("strangler retire PLAN --slice {slice} --stage quarantine"),
            };
            ui.words(&opened.typed(&format!(
                "nothing was done. To do exactly this: {command}{} --confirm {}",
                approved_by(arguments),
                done.token
            )));
            return Ok(Exit::Clean);
        } else {
            ui.words(words.done);
        }
        ui.words(&opened.typed(&format!("{}: strangler unretire PLAN --slice {slice}", words.undo)));
        Ok(Exit::Clean)
    };
    opened.heard(interrupt::unless(&opened.typed(state), Box::pin(work)).await)
}

async fn archive(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let place = super::restore::place(arguments.to.as_deref().unwrap_or_default())?;
    let opened = standing(one_slice(ui, "retire", &arguments.plan, &arguments.slices)?).await?;
    let state = opened.typed(
        "nothing was taken from anybody; what is at the place is begun anew by the same command, or proven and written down",
    );
    let stop = CancellationToken::new();
    let work = async {
        let hands = Hands::connect(ui, &opened).await?;
        let job = hands.job(&opened, arguments.approved_by.as_deref())?;
        let reader = opened.monolith.admin.connect(APPLICATION).await?;
        let display = Display::new(ui);
        let tell = |progress: Progress| display.show(progress);
        let archiving = Archiving { job: &job, reader: &reader, place: &place, tell: &tell, stop: &stop };
        let done = Box::pin(retire::archive(archiving, arguments.confirm.as_deref())).await;
        let done = done.map_err(|source| {
            if matches!(source, RetireError::Archive(ArchiveError::Stopped(_))) {
                return CliError::Interrupted { state: state.clone() };
            }
            failed(&opened, "archived", source)
        })?;
        told(ui, &opened, arguments, (&place, done))
    };
    opened.heard(interrupt::asking((&state, &stop), Box::pin(work)).await)
}

fn told(
    ui: &mut Ui,
    opened: &Opened,
    arguments: &Arguments,
    (place, done): (&Place, Archived),
) -> Result<Exit, CliError> {
    warn(ui, &opened.typed_all(done.problems));
    if let Some(archive) = done.archive {
        let how = if done.before { "archived before" } else { "archived" };
        ui.words(&format!(
            "the old tables are {how}, and every byte was read back: {} rows as of {} at {}, manifest {}",
            words::count(u64::try_from(archive.rows).unwrap_or(0)),
            archive.reverse_lsn,
            archive.place,
            archive.manifest_sha256
        ));
        return Ok(Exit::Clean);
    }
    for (table, bytes) in &done.tables {
        ui.data(&format!("{table}: about {} on disk\n", words::bytes(*bytes)))?;
    }
    ui.words(&format!("{place} {}", done.there));
    let slice = opened.slices.first().map(|slice| shell_word(slice)).unwrap_or_default();
    let approved = approved_by(arguments);
    let to = shell_word(arguments.to.as_deref().unwrap_or_default());
    ui.words(&opened.typed(&format!(
        "nothing was done. To archive these tables there: strangler retire PLAN --slice {slice} --stage archive --to {to}{approved} \
         --confirm {}",
        done.token
    )));
    Ok(Exit::Clean)
}

fn approved_by(arguments: &Arguments) -> String {
    let by = arguments.approved_by.as_deref();
    by.map(|name| format!(" --approved-by {}", shell_word(name))).unwrap_or_default()
}

/// One transaction, as it could be typed.
pub(super) fn statements(sql: &[String]) -> String {
    let lines = std::iter::once("BEGIN").chain(sql.iter().map(String::as_str)).chain(["COMMIT"]);
    lines.map(|line| format!("{line};\n")).collect()
}

fn warn(ui: &mut Ui, problems: &[Problem]) {
    if !problems.is_empty() {
        ui.words(check::list(problems).trim_end());
    }
}

/// A plan and the one slice of it that the command is about.
pub(super) fn one_slice(
    ui: &mut Ui,
    verb: &'static str,
    plan: &PlanFile,
    slices: &Slices,
) -> Result<Opened, CliError> {
    let opened = open::open(ui, plan, &slices.slices, Needs::All)?.answering();
    if opened.slices.len() > 1 {
        return Err(CliError::WhichSlice { verb, one: true, known: opened.slices.clone() });
    }
    Ok(opened)
}

/// The same, unless its old tables are dropped, or about to be.
async fn standing(mut opened: Opened) -> Result<Opened, CliError> {
    opened.ask_dropped(Needs::All).await?;
    match opened.slices.first().and_then(|slice| opened.dropped.get(slice)) {
        None => opened.known_to_services(),
        Some(dropped) => {
            let problems = opened.typed_all(vec![dropped.problem()]);
            Err(CliError::SliceDropped(problems))
        }
    }
}

/// The sessions and facts that a stage works with.
struct Hands {
    mappings: Mappings,
    catalogs: Session,
    monolith: Session,
    service: Session,
    databases: Databases,
    watch: Session,
    own: BTreeSet<String>,
    user: String,
    author: Author,
}

impl Hands {
    async fn connect(ui: &mut Ui, opened: &Opened) -> Result<Self, CliError> {
        let mappings = opened.mappings(ui).await?;
        let links = &opened.monolith;
        let mut own = BTreeSet::from([APPLY_ROLE.to_owned()]);
        for server in [&links.admin, &links.read, &links.apply] {
            own.insert(server.login()?.0);
        }
        let Some((name, ways)) = opened.services.iter().next() else {
            return Err(CliError::WhichSlice { verb: "retire", one: true, known: opened.slices.clone() });
        };
        let admin = ways.admin.connect(APPLICATION).await?.into_client();
        let databases = Databases {
            monolith: links.admin.connect(APPLICATION).await?.into_client(),
            services: BTreeMap::from([(name.clone(), admin)]),
        };
        Ok(Self {
            mappings,
            catalogs: links.read.connect(APPLICATION).await?,
            monolith: links.apply.connect(APPLICATION).await?,
            service: ways.apply.connect(APPLICATION).await?,
            databases,
            watch: links.admin.connect(APPLICATION).await?,
            own,
            user: links.admin.login()?.0,
            author: Environment.author(),
        })
    }

    fn job<'a>(&'a self, opened: &'a Opened, approved_by: Option<&'a str>) -> Result<Job<'a>, CliError> {
        let slice = opened.slices.first().and_then(|slice| self.mappings.get(slice));
        let Some(mapping) = slice else {
            return Err(CliError::WhichSlice { verb: "retire", one: true, known: opened.slices.clone() });
        };
        let work = Work {
            plan: &opened.plan,
            mappings: &self.mappings,
            slice: &mapping.slice,
            databases: &self.databases,
            watch: &self.watch,
            user: &self.user,
            author: &self.author,
        };
        Ok(Job {
            work,
            mapping,
            catalogs: &self.catalogs,
            monolith: &self.monolith,
            service: &self.service,
            own: &self.own,
            approved_by,
        })
    }
}

/// `done` is what was to be done.
pub(super) fn failed(opened: &Opened, done: &'static str, source: RetireError) -> CliError {
    if let RetireError::Refused { problems } = source {
        return CliError::RetireRefused(opened.typed_all(problems));
    }
    let mut source = source;
    if let RetireError::Behind { next, .. } | RetireError::Decided { next, .. } = &mut source {
        *next = opened.typed(next);
    }
    CliError::Retire {
        slice: opened.slices.join(", "),
        done,
        provision: opened.typed("strangler provision PLAN"),
        source: Box::new(source),
    }
}
