//! Every way a command can end, and the one place that says what is shown for it: a heading, the numbered causes,
//! a hint with what to type, and the exit code. docs/errors.md explains each code.

mod abandonment;
mod archive;
mod reconciliation;
mod retirement;

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use super::logging::WORDS;
use super::ui::{Ink, Paint, Ui};
use crate::abandon::AbandonError;
use crate::archive::ArchiveError;
use crate::arm::ArmError;
use crate::cdc::error::MirrorError;
use crate::check;
use crate::demo::DemoError;
use crate::doctor::CleanError;
use crate::dualwrite::flip::{FlipError, Left};
use crate::journal::{JournalError, whereabouts};
use crate::plan::PlanProblems;
use crate::postgres::introspect::IntrospectError;
use crate::postgres::sqlstate;
use crate::postgres::{ConnectError, Server};
use crate::problem::Problem;
use crate::provision::ProvisionError;
use crate::reconcile::repair::RepairError;
use crate::reconcile::run::RunError;
use crate::reconcile::schedule::ScheduleError;
use crate::retire::RetireError;
use crate::status::judge::shell_word;
use crate::words;

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
    /// An option names something that the plan doesn't have.
    #[error("the plan has no {what} {}", quoted_list(.names))]
    Unknown {
        /// `slice` or `table`.
        what: &'static str,
        /// Option that named it.
        option: &'static str,
        /// What was typed.
        names: Vec<String>,
        /// What the plan has.
        known: Vec<String>,
    },
    /// The plan does not make sense, or its links can't be used.
    #[error(transparent)]
    Plan(PlanProblems),
    /// A database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A database was reached, and then owed an answer for too long.
    #[error("{database}: no answer within {}", words::seconds(.limit.as_secs_f64()))]
    Silent {
        /// `monolith` or `service NAME`.
        database: String,
        /// How long it owed the answer.
        limit: Duration,
        /// What that ended.
        #[source]
        ended: Box<CliError>,
    },
    /// A database could be reached, but not read.
    #[error("the catalogs of the monolith could not be read")]
    Catalog(#[from] IntrospectError),
    /// The plan and the monolith's tables don't go together.
    #[error("the plan does not fit the monolith")]
    Unfit(Vec<Problem>),
    /// Links of the plan lead to other databases than it says, or its slices are another plan's.
    #[error("{}", whereabouts::summary(.0).0)]
    Astray(Vec<Problem>),
    /// Our own tables could not be read.
    #[error("the databases could not be told apart")]
    Journal(#[from] JournalError),
    /// A service's ledger could not be read.
    #[error("the ledger of service {service} could not be read")]
    Ledger {
        /// The service.
        service: String,
        /// The command that makes one, as it must be typed.
        provision: String,
        /// Why.
        #[source]
        source: JournalError,
    },
    /// Nothing came of what was to be done about a slice's old tables.
    #[error("{}", retirement::heading(slice, done, source))]
    Retire {
        /// The slice.
        slice: String,
        /// What was to be done, as `looked at`.
        done: &'static str,
        /// The command that makes and grants what is needed, as it must be typed.
        provision: String,
        /// Why.
        #[source]
        source: Box<RetireError>,
    },
    /// A stage of retirement is not allowed.
    #[error("the old tables stay as they are")]
    RetireRefused(Vec<Problem>),
    /// A slice could not be taken back, or not all of it.
    #[error("slice {slice} is not taken back")]
    Abandon {
        /// The slice.
        slice: String,
        /// Why.
        #[source]
        source: Box<AbandonError>,
    },
    /// A slice may not be taken back.
    #[error("the slice stays as it is")]
    AbandonRefused(Vec<Problem>),
    /// The old tables of slices that were named are dropped.
    #[error("the slice is retired")]
    SliceDropped(Vec<Problem>),
    /// An archive could not be proven or restored.
    #[error(transparent)]
    Archive(Box<ArchiveError>),
    /// Nothing was removed.
    #[error(transparent)]
    Clean(#[from] CleanError),
    /// Provisioning stopped.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// Arming or disarming stopped.
    #[error(transparent)]
    Arm(Box<ArmError>),
    /// Several slices could be meant.
    #[error("{verb} takes {}", if *.one { "one slice: --slice NAME" } else { SEVERAL })]
    WhichSlice {
        /// The verb.
        verb: &'static str,
        /// It takes no more than one.
        one: bool,
        /// What the plan has.
        known: Vec<String>,
    },
    /// Authority stays where it is.
    #[error("authority was not moved")]
    FlipRefused(Vec<Problem>),
    /// A slice was not moved, and authority is where it was.
    #[error("slice {slice} was not moved; authority is where it was")]
    Flip {
        /// The plan file, as it must be typed.
        plan: String,
        /// The slice.
        slice: String,
        /// Why.
        source: FlipError,
    },
    /// A move stopped after it had changed something.
    #[error("{}", left_heading(.0.left))]
    FlipLeft(Box<LeftBehind>),
    /// Slices whose mirror can't go on.
    #[error("the mirror of {} can't go on", .ends.iter().map(|(slice, _)| slice.as_str()).collect::<Vec<_>>().join(", "))]
    Mirror {
        /// The plan file, as it must be typed.
        plan: String,
        /// Slices and why.
        ends: Vec<(String, MirrorError)>,
    },
    /// Slices that got no verdict.
    #[error("{} got no verdict", .ends.iter().map(|(slice, _)| slice.as_str()).collect::<Vec<_>>().join(", "))]
    Reconcile {
        /// The plan file, as it must be typed.
        plan: String,
        /// Slices and why.
        ends: Vec<(String, RunError)>,
    },
    /// Rows could not be repaired.
    #[error("rows could not be repaired")]
    Repair {
        /// The plan file, as it must be typed.
        plan: String,
        /// Why.
        source: Box<RepairError>,
    },
    /// A schedule can't be kept.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A report could not be written.
    #[error("the report could not be written to {path}")]
    File {
        /// Its path, as typed.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody can listen there.
    #[error("the address {address} can't be listened at")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The demo's servers, or its commentary.
    #[error("the demo stopped")]
    Demo(#[from] DemoError),
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

/// A move that stopped after it had changed something.
#[derive(Debug)]
pub struct LeftBehind {
    /// Where the slices stand.
    pub left: Left,
    /// The command that goes on, as it must be typed.
    pub again: String,
    /// The one that takes it back.
    pub abort: String,
    /// The one that says where it stands.
    pub status: String,
    /// Why it stopped, when that is a refusal.
    pub problems: Vec<Problem>,
    /// Why, when a database failed.
    pub source: Option<FlipError>,
}

/// What is shown for an error.
struct Page {
    exit: Exit,
    /// Stable name, explained in docs/errors.md.
    code: &'static str,
    hint: Option<String>,
}

impl From<ArchiveError> for CliError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(Box::new(error))
    }
}

impl From<ArmError> for CliError {
    fn from(error: ArmError) -> Self {
        Self::Arm(Box::new(error))
    }
}

impl CliError {
    /// The same error under the name of the server that was given up because it owed an answer, where one of these was. What a
    /// statement itself is told is no more than that its connection is closed.
    pub(super) fn over_silence<'a>(self, servers: impl IntoIterator<Item = &'a Server>) -> Self {
        let silent = |server: &'a Server| Some((server.label().to_owned(), server.owed_an_answer()?));
        let Some((database, limit)) = servers.into_iter().find_map(silent) else { return self };
        if let Self::Reconcile { plan, ends } = self {
            let named = |error: RunError| {
                if matches!(error, RunError::Journal(_)) && lost_connection(&error) {
                    RunError::Silent { database: database.clone(), limit, ended: Box::new(error) }
                } else {
                    error
                }
            };
            let ends = ends.into_iter().map(|(slice, error)| (slice, named(error))).collect();
            return Self::Reconcile { plan, ends };
        }
        if let Self::Retire { source, .. } = &self
            && matches!(
                **source,
                RetireError::Untold { .. }
                    | RetireError::Unknown { .. }
                    | RetireError::Behind { .. }
                    | RetireError::Decided { .. }
            )
        {
            // What was done matters more than who keeps silent about it.
            return self;
        }
        match self.page().exit {
            Exit::Unreachable | Exit::Incomplete => Self::Silent { database, limit, ended: Box::new(self) },
            Exit::Clean | Exit::Problems | Exit::Usage | Exit::Refused | Exit::Interrupted => self,
        }
    }

    /// The table of all errors.
    fn page(&self) -> Page {
        let page = |exit, code, hint| Page { exit, code, hint };
        match self {
            Self::CommandLine(_) => page(Exit::Usage, "command-line", None),
            Self::Unknown { option, names, known, .. } => {
                page(Exit::Usage, "unknown-name", Some(name_hint(option, names, known)))
            }
            Self::Plan(_) => page(Exit::Usage, "plan", None),
            Self::Connect(error) => page(Exit::Unreachable, "database-unreachable", reach_it(error)),
            Self::Silent { .. } => page(Exit::Unreachable, "database-unreachable", Some(FROZEN.to_owned())),
            Self::Catalog(error) if lost_connection(error) => {
                page(Exit::Unreachable, "database-unreachable", None)
            }
            Self::Catalog(_) => page(Exit::Incomplete, "catalog-unreadable", None),
            Self::Unfit(_) => page(Exit::Usage, "plan-unfit", None),
            Self::Astray(problems) => page(Exit::Refused, whereabouts::summary(problems).1, None),
            Self::Journal(_) => page(Exit::Incomplete, "catalog-unreadable", None),
            Self::Ledger { source, .. } if lost_connection(source) => {
                page(Exit::Unreachable, "database-unreachable", None)
            }
            Self::Ledger { provision, .. } => {
                let hint =
                    format!("{provision} makes it, and grants strangler_apply what it needs to read it");
                page(Exit::Incomplete, "ledger-unreadable", Some(hint))
            }
            Self::SliceDropped(_) => page(Exit::Refused, "slice-dropped", None),
            Self::RetireRefused(_) => page(Exit::Refused, "retire-refused", None),
            Self::Abandon { source, .. } => abandonment::page(source),
            Self::AbandonRefused(_) => page(Exit::Refused, "abandon-refused", None),
            Self::Retire { provision, source, .. } => retirement::page(source, provision),
            Self::Archive(error) => archive::page(error),
            Self::Clean(CleanError::Busy { .. }) => page(Exit::Refused, "databases-busy", None),
            Self::Clean(CleanError::Database { .. }) => page(Exit::Unreachable, "database-unreachable", None),
            Self::Provision(ProvisionError::Refused { .. }) => page(Exit::Refused, "provision-refused", None),
            Self::Provision(_) => page(Exit::Incomplete, "provision-failed", None),
            Self::Arm(error) => arm_page(error),
            Self::WhichSlice { known, .. } => {
                page(Exit::Usage, "which-slice", Some(format!("the plan has {}", known.join(", "))))
            }
            Self::FlipRefused(_) => page(Exit::Refused, "flip-refused", None),
            Self::Flip { plan, slice, .. } => {
                let hint = format!(
                    "strangler status {plan} --slice {slice} says where it stands; the same command goes on from there"
                );
                page(Exit::Incomplete, "flip-failed", Some(hint))
            }
            Self::FlipLeft(left) => page(Exit::Incomplete, "flip-unfinished", Some(left_hint(left))),
            Self::Mirror { plan, ends } => {
                let exits = ends.iter().map(|(_, error)| mirror_page(error, plan).exit);
                page(exits.fold(Exit::Incomplete, said_first), "mirror", None)
            }
            Self::Reconcile { plan, ends } => {
                let exits = ends.iter().map(|(_, error)| reconciliation::run_page(error, plan).exit);
                page(exits.fold(Exit::Incomplete, said_first), "reconcile", None)
            }
            Self::Repair { plan, source } => reconciliation::repair_page(source, plan),
            Self::Schedule(_) => page(Exit::Usage, "schedule", None),
            Self::File { .. } => page(Exit::Incomplete, "output", None),
            Self::Listen { .. } => page(Exit::Usage, "metrics-listen", None),
            Self::Demo(_) => page(Exit::Incomplete, "demo", None),
            Self::Output(_) => page(Exit::Incomplete, "output", None),
            Self::Start(_) => page(Exit::Incomplete, "start", None),
            Self::Interrupted { .. } => page(Exit::Interrupted, "interrupted", None),
        }
    }
}

/// What to do about a server that can't be reached now; where it refuses, or the link is wrong, the error says it.
fn reach_it(error: &ConnectError) -> Option<String> {
    let words = "see that the server runs and that the link leads to it; then type the same command again";
    error.is_retryable().then(|| words.to_owned())
}

const SEVERAL: &str =
    "the slices that it is about: --slice NAME, more than once for several that move together";

/// What a move that stopped on the way has come to.
fn left_heading(left: Left) -> &'static str {
    match left {
        Left::Moved => "authority has moved, and something is left to do after it",
        Left::Stayed => "authority is where it was, and the command came to no end",
        Left::Between => "the move is not finished, and until it is, a slice of it can be written by nobody",
        Left::Unknown => {
            "it is not known whether authority has moved, because a side does not answer; until it does, the other one may refuse \
             every writer"
        }
    }
}

fn left_hint(behind: &LeftBehind) -> String {
    let LeftBehind { left, again, abort, status, problems, source } = behind;
    if let (Left::Between, Some(FlipError::Full { sequence, settled, .. })) = (left, source) {
        let room = format!(
            "give the sequence {sequence} room (ALTER SEQUENCE, and the column's type), then {again}"
        );
        return if *settled {
            format!("{room}; it was settled that all of these slices move, so none can be taken back")
        } else {
            format!("{abort} gives authority back to the side that had it; or {room}")
        };
    }
    if let (Left::Between, Some(FlipError::NotWhole { settled, .. })) = (left, source) {
        return if *settled {
            format!(
                "it was settled that all of these slices move, so none can be taken back: {status} names the tables and the \
                 strangler mirror that copies them again from the closed monolith; then {again}"
            )
        } else {
            format!("{abort} gives authority back to the monolith, which has all rows")
        };
    }
    if *left == Left::Between && problems.iter().any(|problem| problem.code == "authority-stream-down") {
        return format!(
            "{abort} gives authority back to the side that had it, which has all rows; {status} says what else helps"
        );
    }
    if let (Left::Between, Some(FlipError::Retired { undo, .. })) = (left, source) {
        return format!("{undo}; then {again} finishes it, or {abort} takes it back");
    }
    match left {
        Left::Moved => format!(
            "a running mirror does the rest by itself, and so does {again}; {status} says where it stands"
        ),
        Left::Stayed => format!("{status} says where it stands; the same command goes on from there"),
        Left::Between if again == abort => {
            format!("{abort} goes on to take it back; a running mirror ends it by itself where it can")
        }
        Left::Between => {
            format!(
                "{again} finishes it, and {abort} takes it back; a running mirror finishes it by itself where it can"
            )
        }
        Left::Unknown if again == abort => {
            format!("bring that side back; then {status}, and {abort} to take it back")
        }
        Left::Unknown => format!(
            "bring that side back; then {status}, and {again} to finish it or {abort} to take it back"
        ),
    }
}

/// Why arming or disarming stopped.
fn arm_page(error: &ArmError) -> Page {
    let page = |exit, code, hint| Page { exit, code, hint };
    let again =
        || Some("solve what the cause says and type the same command again: it does the rest".to_owned());
    match error {
        ArmError::Refused { .. } => page(Exit::Refused, "arm-refused", None),
        ArmError::Survey(ProvisionError::Busy { .. }) => page(Exit::Refused, "databases-busy", None),
        ArmError::Waited { next, .. } => page(Exit::Unreachable, "arm-waited", Some(next.clone())),
        ArmError::Connect(error) => page(Exit::Unreachable, "database-unreachable", reach_it(error)),
        error if lost_connection(error) || ended_as_idle(error) => {
            page(Exit::Unreachable, "database-unreachable", Some(SILENT.to_owned()))
        }
        ArmError::Survey(_)
        | ArmError::Journal { .. }
        | ArmError::Read { .. }
        | ArmError::Slot { .. }
        | ArmError::Step { .. }
        | ArmError::Replication { .. }
        | ArmError::SlotInUse { .. }
        | ArmError::Restless { .. } => page(Exit::Incomplete, "arm-failed", again()),
    }
}

/// What ended for one slice; refusals name theirs themselves.
fn mirror_heading(slice: &str, error: &MirrorError) -> String {
    let named =
        matches!(error, MirrorError::Refused { .. } | MirrorError::Anew { .. } | MirrorError::Fenced { .. });
    if named { error.to_string() } else { format!("slice {slice}: {error}") }
}

/// Why one slice's mirror ended.
fn mirror_page(error: &MirrorError, plan: &str) -> Page {
    let (exit, code) = match error {
        MirrorError::Connect(_) | MirrorError::Link(_) => (Exit::Unreachable, "database-unreachable"),
        MirrorError::Refused { .. } | MirrorError::Anew { .. } => (Exit::Refused, "mirror-refused"),
        MirrorError::Fenced { .. } => (Exit::Refused, "mirror-taken-over"),
        MirrorError::Sql { .. }
        | MirrorError::Denied { .. }
        | MirrorError::Journal(_)
        | MirrorError::Replication(_)
        | MirrorError::Stream(_)
        | MirrorError::Unreadable { .. }
        | MirrorError::InUse { .. }
        | MirrorError::Restart { .. }
        | MirrorError::Turned { .. }
        | MirrorError::NotArmed { .. }
        | MirrorError::Retired { .. }
        | MirrorError::Overfull
        | MirrorError::Stopped => (Exit::Incomplete, "mirror-failed"),
    };
    Page { exit, code, hint: error.next().map(|next| next.replace(" PLAN", &format!(" {plan}"))) }
}

/// Of two exit codes the one that says that less is known, then the one that asks for more.
fn said_first(one: Exit, other: Exit) -> Exit {
    let order = [Exit::Interrupted, Exit::Unreachable, Exit::Refused, Exit::Usage, Exit::Incomplete];
    order.into_iter().find(|exit| *exit == one || *exit == other).unwrap_or(one)
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
        CliError::Output(error) | CliError::Demo(DemoError::Write(error))
            if error.kind() == io::ErrorKind::BrokenPipe =>
        {
            return page.exit;
        }
        CliError::Plan(problems) => ui.words(problems.render(ui.words_paint() == Paint::Colour).trim_end()),
        CliError::Interrupted { .. } => ui.words(&error.to_string()),
        CliError::Mirror { plan, ends } => {
            for (slice, error) in ends {
                show(ui, &mirror_heading(slice, error), error, &mirror_page(error, plan));
            }
        }
        CliError::Reconcile { plan, ends } => {
            for (slice, error) in ends {
                if let RunError::Astray(problems) = error {
                    ui.words(check::list(problems).replace(" PLAN", &format!(" {plan}")).trim_end());
                }
                show(
                    ui,
                    &reconciliation::run_heading(slice, error),
                    error,
                    &reconciliation::run_page(error, plan),
                );
            }
        }
        CliError::Repair { source, .. } => show(ui, &source.to_string(), source.as_ref(), &page),
        CliError::FlipLeft(behind) => left_behind(ui, (&error, behind), &page),
        CliError::Unfit(problems)
        | CliError::Astray(problems)
        | CliError::FlipRefused(problems)
        | CliError::RetireRefused(problems)
        | CliError::AbandonRefused(problems)
        | CliError::SliceDropped(problems)
        | CliError::Provision(ProvisionError::Refused { problems }) => {
            show_behind(ui, problems, &error, &page);
        }
        CliError::Arm(_) | CliError::Archive(_) => show_behind(ui, refused(&error), &error, &page),
        CliError::Unknown { .. }
        | CliError::WhichSlice { .. }
        | CliError::Flip { .. }
        | CliError::Provision(_)
        | CliError::Connect(_)
        | CliError::Silent { .. }
        | CliError::Catalog(_)
        | CliError::Journal(_)
        | CliError::Ledger { .. }
        | CliError::Retire { .. }
        | CliError::Abandon { .. }
        | CliError::Clean(_)
        | CliError::Demo(_)
        | CliError::Output(_)
        | CliError::Schedule(_)
        | CliError::File { .. }
        | CliError::Listen { .. }
        | CliError::Start(_) => show(ui, &error.to_string(), &error, &page),
    }
    page.exit
}

/// A move that stopped after it had changed something.
fn left_behind(ui: &mut Ui, (error, behind): (&CliError, &LeftBehind), page: &Page) {
    if !behind.problems.is_empty() {
        ui.words(check::list(&behind.problems).trim_end());
    }
    match &behind.source {
        Some(source) => show(ui, &format!("{error}: {source}"), source, page),
        None => show(ui, &error.to_string(), error, page),
    }
}

/// What stood in the way, where that is why.
fn refused(error: &CliError) -> &[Problem] {
    if let CliError::Arm(cause) = error
        && let ArmError::Refused { problems, .. } = cause.as_ref()
    {
        return problems;
    }
    let CliError::Archive(cause) = error else { return &[] };
    if let ArchiveError::Refused { problems } = cause.as_ref() { problems } else { &[] }
}

fn show_behind(ui: &mut Ui, problems: &[Problem], error: &CliError, page: &Page) {
    if !problems.is_empty() {
        ui.words(check::list(problems).trim_end());
    }
    show(ui, &error.to_string(), error, page);
}

fn show(ui: &mut Ui, heading: &str, error: &(dyn Error + 'static), page: &Page) {
    if ui.logs_words() {
        let causes: Vec<String> = sqlstate::causes(error).into_iter().skip(1).collect();
        let (causes, hint) = (causes.join(": "), page.hint.as_deref().unwrap_or_default());
        tracing::error!(target: WORDS, code = page.code, causes, hint, "{heading}");
        return;
    }
    let paint = ui.words_paint();
    let code = paint.ink(Ink::Alarm, &format!("error[{}]:", page.code));
    ui.words(&format!("{code} {heading}"));
    for (index, cause) in sqlstate::causes(error).iter().skip(1).enumerate() {
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

fn quoted_list(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

fn name_hint(option: &str, names: &[String], known: &[String]) -> String {
    let likely = names.iter().filter_map(|name| {
        // Another case is the least of slips, in a name of one letter too.
        let distance =
            |known: &&String| strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase());
        // Up to a third of the letters wrong is a slip; more is another word.
        known.iter().min_by_key(distance).filter(|known| distance(known) * 3 <= name.chars().count().max(3))
    });
    let likely: Vec<String> = likely.map(|name| format!("{option} {}", shell_word(name))).collect();
    let all = known.join(", ");
    if likely.is_empty() {
        format!("it has {all}")
    } else {
        format!("did you mean {}? The plan has {all}", likely.join(" "))
    }
}

/// What is to be done about a server that took the login and then owed an answer.
const FROZEN: &str = "see that its processes are not frozen or starved, and that a proxy between lets their answers through; then \
                      type the same command again";

/// What a verb that takes locks says when its session is gone.
const SILENT: &str = "see that the server can be reached, then type the same command again: it does the rest. A server ends a \
                      transaction whose process was silent for a second, so that nobody waits for its locks";

/// The server ended a transaction whose process was silent (25P03).
fn ended_as_idle(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error: &&(dyn std::error::Error + 'static)| (*error).source())
        .filter_map(|error| error.downcast_ref::<tokio_postgres::Error>())
        .any(|error| sqlstate::code(error) == Some("25P03"))
}

/// Whether somewhere among the causes a link broke.
fn lost_connection(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error: &&(dyn std::error::Error + 'static)| (*error).source())
        .filter_map(|error| error.downcast_ref::<tokio_postgres::Error>())
        .any(sqlstate::is_connection_lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_slice_and_another_word_does_not() {
        let known = ["catalog".to_owned(), "ordering".to_owned()];
        let hint = |name: &str| name_hint("--slice", &[name.to_owned()], &known);
        assert!(hint("orderng").starts_with("did you mean --slice ordering?"));
        assert_eq!(hint("payments"), "it has catalog, ordering");
        let letters = ["c", "o", "t"].map(str::to_owned);
        let hint = name_hint("--table", &["T".to_owned()], &letters);
        assert!(hint.starts_with("did you mean --table t?"), "{hint}");
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
