//! Makes a mirrored slice ready for its flip, and undoes that: gates on the monolith's tables, foreign keys across the
//! cut, and the reverse stream.
//!
//! As in [`crate::provision`], [`survey()`] reads what there is, a pure function decides what is missing as a list of
//! [`Step`]s that `--dry-run` prints word for word ([`prepare`]), and [`run()`] takes them one after the other, each in a
//! transaction of its own. A run that is killed leaves whole steps behind, so the next one designs the rest.
//!
//! What is different from provision: the steps need locks that an application in full swing holds all the time. Each
//! step asks for the locks of one table, briefly, and waits in [`patience`] when it can't have them.
//!
//! The order matters. The reverse stream comes first, because it costs the application nothing and may have to wait for
//! minutes; then the gates, which stay open; the foreign keys go last, so that they guard the data for as long as they
//! can. `disarm` goes the other way.

mod design;
mod error;
mod keys;
mod locks;
pub mod patience;
mod readiness;
mod reverse;
mod rights;
mod run;
mod slot;
mod survey;
mod withdraw;

use crate::name::TableName;
use crate::problem::{Problem, Severity};
use crate::provision::{Database, Statement};

pub use design::{ApplyLogins, design};
pub use error::ArmError;
pub use locks::{LockMode, Locks};
pub use patience::Patience;
pub use reverse::unidentified;
pub use run::{Hands, prepare, run};
pub use survey::{ServerFacts, SliceFacts, Survey, survey};

/// Which way to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Makes a slice ready for its flip.
    Arm,
    /// Undoes that.
    Disarm,
}

impl Verb {
    /// As it is typed, and as the journal's actor.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arm => "arm",
            Self::Disarm => "disarm",
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Runs statements in one transaction, under these locks.
    Sql {
        /// Statements that come before the locks.
        before: Vec<Statement>,
        /// The locks, when any are needed that an application may hold.
        locks: Option<Locks>,
        /// Statements under the locks.
        statements: Vec<Statement>,
    },
    /// Proves a foreign key that stands unproven. Rows that contradict it are reported, and it stays as it is.
    Prove {
        /// The locks.
        locks: Locks,
        /// Validates it and notes that.
        statements: Vec<Statement>,
        /// The key.
        key: KeyNamed,
    },
    /// Makes the reverse slot over a replication connection to the service.
    CreateSlot {
        /// Its name.
        slot: String,
        /// Major version of the service's server.
        server_major: u32,
    },
    /// Drops a reverse slot of the service, and ends who reads from it.
    DropSlot {
        /// Its name.
        slot: String,
    },
    /// Notes on the monolith where the slot that was just made starts.
    Start {
        /// The slot.
        slot: String,
        /// The entry of the journal that says that it was made.
        entry: Statement,
    },
}

/// A foreign key with what an operator needs when rows contradict it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyNamed {
    /// Referencing table.
    pub child: TableName,
    /// Constraint.
    pub name: String,
    /// FROM and WHERE that find the rows which refer to nothing; `None` where the key is more than equality.
    pub orphans_sql: Option<String>,
    /// While it is not proven, it stands as NOT VALID: new rows are checked. Else it is not there.
    pub stands: bool,
}

/// One durable step on one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub database: Database,
    /// The slice that it is for.
    pub slice: String,
    /// What it is about, e.g. a table.
    pub object: String,
    /// What it does to the object, as a bare verb phrase.
    pub purpose: &'static str,
    /// How.
    pub work: Work,
    /// The kill point that lies behind it.
    pub point: &'static str,
}

/// Stands for the slot's start where a statement is shown before there is one.
pub(crate) const START_SHOWN: &str = "'<where the slot starts>'";

/// Stands for the service's timeline there.
pub(crate) const TIMELINE_SHOWN: &str = "<the service's timeline>";

impl Step {
    /// The exact SQL: what `--dry-run` prints.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("-- {}: {} {}\n", self.database, self.purpose, self.object);
        match &self.work {
            Work::Sql { before, locks, statements } => {
                transaction(&mut text, before, locks.as_ref(), statements)
            }
            Work::Prove { locks, statements, .. } => transaction(&mut text, &[], Some(locks), statements),
            Work::CreateSlot { slot, server_major } => {
                text.push_str(&slot::create_text(slot, *server_major));
            }
            Work::DropSlot { slot } => text.push_str(&slot::drop_text(slot)),
            Work::Start { slot, entry } => {
                let update =
                    crate::journal::arming::start_reverse(&self.slice, slot, START_SHOWN, TIMELINE_SHOWN);
                text.push_str(&format!("BEGIN;\n{update};\n{};\nCOMMIT;\n", entry.shown()));
            }
        }
        text
    }
}

fn transaction(text: &mut String, before: &[Statement], locks: Option<&Locks>, statements: &[Statement]) {
    let first = patience::FIRST_LOCK_TIMEOUT_MS;
    let mut line = |statement: &str| text.push_str(&format!("{statement};\n"));
    patience::begin(first).iter().for_each(|statement| line(statement));
    before.iter().for_each(|statement| line(statement.shown()));
    if let Some(locks) = locks {
        locks.statements(first).iter().for_each(|statement| line(statement));
    }
    statements.iter().for_each(|statement| line(statement.shown()));
    line("COMMIT");
}

/// What is to be done, and what stands in the way. With an error among the problems nothing may be done.
#[derive(Debug, Clone, Default)]
pub struct Design {
    /// Steps in the exact order of execution.
    pub steps: Vec<Step>,
    /// All problems.
    pub problems: Vec<Problem>,
}

impl Design {
    /// The problems that stop the run.
    pub fn refusals(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error)
    }
}

/// A foreign key that came back and could not be proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unproven {
    /// Slice.
    pub slice: String,
    /// The key.
    pub key: KeyNamed,
    /// Rows that refer to nothing, when they could be counted.
    pub orphans: Option<i64>,
}

/// What a run did.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Steps that were taken.
    pub steps: usize,
    /// Problems that did not stop it.
    pub problems: Vec<Problem>,
    /// Foreign keys that stand again without being proven.
    pub unproven: Vec<Unproven>,
}

/// Progress of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// Step `number` of `total` begins, from 1.
    Started {
        /// Which one.
        number: usize,
        /// Out of how many.
        total: usize,
        /// The step.
        step: &'a Step,
    },
    /// It waits, for whom and for how long already.
    Waiting(&'a str),
}
