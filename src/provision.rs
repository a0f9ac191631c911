//! Makes everything that a mirror needs and that outlives it: roles, the service's schema, our own tables, gates and
//! the forward publication.
//!
//! [`survey`] reads what there is, [`design`] decides what is missing, as a list of [`Step`]s that `--dry-run` prints
//! word for word ([`prepare`]), and [`run()`] takes them one after the other, each in a transaction of its own on one database. A run
//! that is killed leaves whole steps behind, so the next run designs the rest; when all is there it designs nothing.
//!
//! Nothing waits on one database while a transaction of ours is open on another, so monolith and services may be
//! databases of one server.

mod adopt;
mod anatomy;
mod claimed;
mod columns;
mod comments;
mod deferred;
mod draft;
mod encodings;
mod error;
mod expression;
mod left_out;
pub(crate) mod monolith_rights;
mod needed;
mod objects;
mod preflight;
mod publication;
mod record;
mod rights;
mod run;
mod schema_rights;
mod slices;
mod state;
mod storage;
mod tables;
mod type_rights;
pub(crate) mod withdrawal;

use std::collections::BTreeMap;
use std::fmt;

use secrecy::SecretString;
use tokio_postgres::Client;

pub use crate::journal::provisioned::{DeferredRow, MirrorRow, SliceRow};
pub(crate) use anatomy::read as read_anatomy;
pub use anatomy::{Anatomy, ForeignKeyShape, IndexKey, IndexShape, Reference, Used};
pub(crate) use claimed::{Asking, claimed, claimed_in_service, held_by_another, renamed};
pub use draft::design;
pub(crate) use encodings::{BYTES, unfit};
pub use error::ProvisionError;
pub(crate) use needed::Needed;
pub(crate) use objects::{create_type, options as sequence_options, validated};
pub(crate) use preflight::not_a_table;
pub(crate) use publication::exact as exact_publication;
pub(crate) use record::{Run, record};
pub(crate) use rights::{DML_AND_TRUNCATE, note as note_granted};
pub use run::{execute, foresee, prepare, run, survey};
pub(crate) use run::{lock, unlock};
pub(crate) use schema_rights::{Closed, no_create_in_schema, ungrantable};
pub use state::{Grant, GrantOn, Publication, Role, State, Trigger};
pub(crate) use type_rights::{grant_usage, no_type_usage};

use crate::catalog::Catalog;
use crate::journal::holdings::Holding;
use crate::journal::migrate;
use crate::journal::whereabouts::Whereabouts;
use crate::problem::{Problem, Severity};

/// How long a step waits for one lock. Nothing of ours needs a lock that stops the application, so a longer wait
/// means DDL or VACUUM FULL; the operator runs the command again later.
const LOCK_TIMEOUT_MS: u32 = 10_000;

/// One of the databases of a plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Database {
    /// The shared one.
    Monolith,
    /// A service's, by the name in the plan.
    Service(String),
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Monolith => f.write_str("monolith"),
            Self::Service(name) => write!(f, "service {name}"),
        }
    }
}

/// One SQL statement, with what to show in its place when it holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Statement {
    sql: String,
    shown: Option<String>,
}

impl Statement {
    /// A statement that holds a secret; `shown` is printed instead.
    #[must_use]
    pub fn secret(sql: String, shown: String) -> Self {
        Self { sql, shown: Some(shown) }
    }

    /// The text that is run.
    #[must_use]
    pub(crate) fn sql(&self) -> &str {
        &self.sql
    }

    /// The text that may be shown.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.shown.as_deref().unwrap_or(&self.sql)
    }
}

impl From<String> for Statement {
    fn from(sql: String) -> Self {
        Self { sql, shown: None }
    }
}

impl From<&str> for Statement {
    fn from(sql: &str) -> Self {
        Self::from(sql.to_owned())
    }
}

impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Brings the schema `strangler` to the present version, which lacks these: see [`migrate::run`].
    Migrate(Vec<String>),
    /// Runs statements in one transaction.
    Sql(Vec<Statement>),
}

/// One transaction on one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub database: Database,
    /// What it is about, e.g. a table.
    pub object: String,
    /// What it does to the object, as a bare verb phrase.
    pub purpose: String,
    /// How.
    pub work: Work,
}

impl Step {
    /// The exact SQL, free of secrets: what `--dry-run` prints.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("-- {}: {} {}\n", self.database, self.purpose, self.object);
        match &self.work {
            Work::Migrate(missing) => text.push_str(&migrate::text(missing)),
            Work::Sql(statements) => {
                text.push_str(&begin());
                text.push_str(";\n");
                for statement in statements {
                    text.push_str(statement.shown());
                    text.push_str(";\n");
                }
                text.push_str("COMMIT;\n");
            }
        }
        text
    }
}

fn begin() -> String {
    // Definitions come from the catalogs with qualified names, so no other path must be able to capture them.
    format!("BEGIN; SET LOCAL search_path = pg_catalog; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
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

/// Who a link of the plan logs in as.
#[derive(Debug, Clone)]
pub struct Login {
    /// The role.
    pub user: String,
    /// Its password, when the link holds one.
    pub password: Option<SecretString>,
}

/// The logins of the plan's links, resolved by the caller.
#[derive(Debug, Clone, Default)]
pub struct Logins {
    /// User of the monolith's read link.
    pub monolith_read: Option<String>,
    /// The monolith's apply link.
    pub monolith_apply: Option<Login>,
    /// The services' apply links, by service.
    pub apply: BTreeMap<String, Login>,
}

/// Connections with the plan's admin links. Each must be a session of its own (no transaction pooling), outside any
/// transaction.
pub struct Databases {
    /// The monolith.
    pub monolith: Client,
    /// Every service that has a slice, by name.
    pub services: BTreeMap<String, Client>,
}

impl fmt::Debug for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Databases").field("services", &self.services.keys()).finish_non_exhaustive()
    }
}

impl Databases {
    /// Every database with its connection.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Database, &Client)> {
        let services = self.services.iter().map(|(name, client)| (Database::Service(name.clone()), client));
        std::iter::once((Database::Monolith, &self.monolith)).chain(services)
    }

    /// The connection to one database.
    #[must_use]
    pub(crate) fn get(&self, database: &Database) -> Option<&Client> {
        match database {
            Database::Monolith => Some(&self.monolith),
            Database::Service(name) => self.services.get(name),
        }
    }

    fn get_mut(&mut self, database: &Database) -> Option<&mut Client> {
        match database {
            Database::Monolith => Some(&mut self.monolith),
            Database::Service(name) => self.services.get_mut(name),
        }
    }
}

/// What there is, read from all databases.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The monolith as everybody sees it.
    pub monolith: Catalog,
    /// Definitions of the monolith in parts, for rebuilding them.
    pub anatomy: Anatomy,
    /// What is provisioned on the monolith.
    pub monolith_state: State,
    /// The services.
    pub services: BTreeMap<String, Catalog>,
    /// What is provisioned there.
    pub service_states: BTreeMap<String, State>,
}

/// What a caller has read of a database a moment ago, and in the same way: [`foresee`] does not read it again. Nothing is done by it.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its catalog.
    pub catalog: Catalog,
    /// Where the link leads.
    pub whereabouts: Whereabouts,
    /// Which slices have which tables.
    pub holdings: Vec<Holding>,
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
    /// It is committed.
    Done {
        /// Which one.
        number: usize,
        /// Out of how many.
        total: usize,
    },
}
