//! Takes a slice back to where nothing of it was ever provisioned, while the monolith has the authority over it.
//!
//! [`run()`] looks, refuses where something could be lost or somebody is at work, and takes one durable step after the other. The first
//! one writes down in the service that the slice is being taken back: from then on every other verb leaves it alone, and the same
//! command goes on from wherever the one before it died. The last one forgets it. Who calls it: `strangler abandon`.
//!
//! What is taken from the monolith is in `provision::withdrawal`, which goes the other way of what `provision` does there.

mod asides;
mod design;
mod facts;
mod lacking;
mod lost;
mod monolith;
mod refuse;
mod run;
mod service;
mod sources;
mod verdicts;

use tokio_postgres::Client;

use crate::cdc::error::MirrorError;
use crate::doctor::{Belongs, DatabaseReport, Kind, Object};
use crate::journal::JournalError;
use crate::journal::ledger::Author;
use crate::mapping::SliceMapping;
use crate::plan::Plan;
use crate::problem::Problem;
use crate::provision::{Database, Databases, ProvisionError};

pub use run::run;

/// What it works with.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The slice.
    pub slice: &'a str,
    /// Its service.
    pub service: &'a str,
    /// The slice's mapping where it fits the monolith's tables: it tells the service's own columns.
    pub mapping: Option<&'a SliceMapping>,
    /// Sessions of the admin links.
    pub databases: &'a Databases,
    /// A session on the monolith that may drop slots.
    pub slots: &'a Client,
    /// Who.
    pub author: &'a Author,
    /// Who approved it.
    pub approved_by: Option<&'a str>,
    /// The service's ledger goes as well, where this is its last slice.
    pub drop_ledger: bool,
}

/// One durable step on one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub database: Database,
    /// What it is about.
    pub object: String,
    /// What it does to the object, as a bare verb phrase.
    pub purpose: &'static str,
    /// In their order; of one transaction, but for a slot, which is no part of any.
    pub statements: Vec<String>,
    /// Which one.
    pub(crate) kind: StepKind,
    /// The ledger is told with it.
    pub(crate) told: bool,
}

/// The steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// The service says that the slice is being taken back.
    Begin,
    /// The rows that the mirror has put into the service go, while the monolith can still be asked whether it has them.
    Copies,
    /// The slot on the monolith goes.
    Slot,
    /// What else the monolith has of the slice goes.
    Monolith,
    /// The monolith's last slice is gone, and our schema goes.
    Schema,
    /// What else the service has of the slice goes, and the ledger is told.
    Service,
}

impl Step {
    fn tells(&self) -> bool {
        self.told
    }

    /// The exact SQL, as it could be typed.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("-- {}: {} {}\n", self.database, self.purpose, self.object);
        let begin = run::begin();
        let lines = self.statements.iter().map(String::as_str);
        let lines: Vec<&str> = match self.kind {
            StepKind::Slot => lines.collect(),
            StepKind::Begin
            | StepKind::Copies
            | StepKind::Monolith
            | StepKind::Schema
            | StepKind::Service => std::iter::once(begin.as_str()).chain(lines).chain(["COMMIT"]).collect(),
        };
        for line in lines {
            text.push_str(line);
            text.push_str(";\n");
        }
        text
    }
}

/// What was done, or would be.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// The steps, in their order; none where nothing of the slice is there.
    pub steps: Vec<Step>,
    /// Names exactly what is done.
    pub token: String,
    /// What is lost, and what stays.
    pub problems: Vec<Problem>,
    /// An earlier run has begun, and this one goes on.
    pub resumed: bool,
    /// The service's ledger goes as well.
    pub drop_ledger: bool,
    /// The slice's publication and slot, by which what is left of it is known.
    pub names: Vec<String>,
}

/// It was not done, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum AbandonError {
    /// Our own tables.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What the monolith's tables consist of could not be read.
    #[error(transparent)]
    Mirror(Box<MirrorError>),
    /// Other verbs could not be kept away.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// Something stands in the way.
    #[error("the slice stays as it is")]
    Refused {
        /// What.
        problems: Vec<Problem>,
    },
    /// What is to be done is not what was shown.
    #[error(
        "what is to be done for slice {slice} is not what was shown: something changed since; {}",
        if *begun { "it was begun, and is not gone on with" } else { "nothing was done" }
    )]
    Changed {
        /// Slice.
        slice: String,
        /// A step was taken, now or by an earlier run.
        begun: bool,
    },
    /// Somebody held what a step needs; those before it are done, and nothing of this one.
    #[error(
        "{database}: could not {purpose} {object}: {who}, and was waited for in vain; nothing of this step was done"
    )]
    Waited {
        /// Where.
        database: Database,
        /// What the step was to do.
        purpose: &'static str,
        /// To what.
        object: String,
        /// Who, and what is held.
        who: String,
        /// What the server said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The databases could not be asked.
    #[error("could not read {what}")]
    Database {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A step failed; those before it are done, and nothing of this one.
    #[error("{database}: could not {purpose} {object}; nothing of this step was done. It was at: {sql}")]
    Step {
        /// Where.
        database: Database,
        /// What the step was to do.
        purpose: &'static str,
        /// To what.
        object: String,
        /// The statement.
        sql: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
}

impl AbandonError {
    fn database(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Database { what, source }
    }
}

/// What is still there of a slice that was taken back, by what `doctor` found: the database, and the object. `names` are those of its
/// publication and slot. Pure.
#[must_use]
pub fn left<'a>(
    reports: &'a [DatabaseReport],
    (plan, slice): (&str, &str),
    names: &[String],
) -> Vec<(&'a str, &'a Object)> {
    let gate = format!("gate_{slice}");
    let all = reports
        .iter()
        .flat_map(|report| report.objects.iter().map(|object| (report.database.as_str(), object)));
    all.filter(|(_, object)| {
        matches!(&object.belongs, Belongs::Slice(of) if of == slice)
            || object.name == gate
            || names.contains(&object.name)
            || object.kind == Kind::Slot && is_slot_of(&object.name, &format!("strangler_{plan}_{slice}_"))
    })
    .collect()
}

/// Slots of earlier streams of a slice have its stem and another end.
fn is_slot_of(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem)
        .is_some_and(|end| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_lowercase()))
}
