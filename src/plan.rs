//! The migration plan: what the operator wrote, read, checked for sense and given types.
//!
//! [`parse()`] turns a file into a [`Plan`] or into all of its problems at once. A `Plan` knows nothing of any
//! database; [`crate::mapping`] joins it with catalogs.

pub(crate) mod canonical;
mod check;
mod decode;
mod file;
mod hooks;
mod link;
mod parse;
mod policy_hash;
mod problem;
mod resolve;
mod schema;
mod source;
mod tree;
pub(crate) mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use crate::name::TableName;

pub use hooks::{Action, Hook, Hooks};
pub use parse::{Parsed, parse, read};
pub use problem::{Place, PlanProblem, PlanProblems, Related, Severity};
pub use schema::json_schema;
pub use source::PlanSource;

/// Reads a length of time as a plan writes it: `500ms`, `30s`, `1h30m`.
///
/// # Errors
/// What it has to be.
pub fn period(text: &str) -> Result<Duration, &'static str> {
    units::Period::try_from(text.to_owned()).map(|period| period.0)
}

/// A plan that made sense on its own.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the plan, part of publication and slot names.
    pub name: String,
    /// The database that is split.
    pub monolith: Monolith,
    /// The services by name.
    pub services: BTreeMap<String, Service>,
    /// The slices by name, in alphabetical order.
    pub slices: BTreeMap<String, Slice>,
    /// Limits and periods.
    pub policy: Policy,
    /// Columns that need care when shown.
    pub classify: Vec<Classified>,
}

/// The three ways into a database; one template may serve several.
#[derive(Debug, Clone)]
pub struct Links {
    /// DDL, publications, gates.
    pub admin: LinkTemplate,
    /// REPLICATION and SELECT. Services have none of their own and use `apply`.
    pub read: LinkTemplate,
    /// Logs in as `strangler_apply`.
    pub apply: LinkTemplate,
}

/// The shared database.
#[derive(Debug, Clone)]
pub struct Monolith {
    /// How to reach it.
    pub links: Links,
    /// Roles that are expected to use the tables.
    pub app_roles: Vec<String>,
}

/// Who makes the tables of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ddl {
    /// `provision` creates them from the monolith's catalogs.
    Create,
    /// The service's own migrations did; `provision` verifies.
    Adopt,
}

/// Standbys that are waited for before authority is given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceStandbys {
    /// All that follow the server.
    All,
    /// Those that commits wait for.
    Sync,
    /// None: after a failover both sides may be open.
    None,
}

/// Whether somebody has to approve a move of authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    /// A flip names who approved it.
    Required,
    /// Nobody has to.
    None,
}

/// What becomes of WAL that piles up on the monolith for a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtWalLimit {
    /// The mirror warns, and goes on.
    Warn,
    /// At nine tenths of the limit the mirror drops its slot: the slice is in a gap then, and the monolith's disk has room.
    DropSlot,
}

/// One service's database.
#[derive(Debug, Clone)]
pub struct Service {
    /// How to reach it.
    pub links: Links,
    /// Role without login that owns the tables; default `<service>_owner`.
    pub owner: String,
    /// Role that the application logs in as, DML only; default `<service>_app`.
    pub app: String,
    /// Classes of classified columns that may be stored here.
    pub accepts: Vec<String>,
    /// Who makes the tables.
    pub ddl: Ddl,
    /// Schema that all tables go into; `None` keeps the monolith's schema.
    pub into: Option<String>,
}

/// Tables that change authority together.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Service that will own them.
    pub service: String,
    /// Tables as written, in the order of the file.
    pub tables: Vec<TableRule>,
    /// Policy with this slice's overrides applied.
    pub policy: Policy,
}

/// Which tables one entry of a slice means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableSelector {
    /// One table.
    Table(TableName),
    /// `schema.*`: every table of a schema; catalogs say which.
    Schema(String),
}

/// What happens to one table.
#[derive(Debug, Clone)]
pub struct TableRule {
    /// Which table.
    pub selector: TableSelector,
    /// Name in the service, when it changes. Never set for a whole schema.
    pub to: Option<String>,
    /// Columns not listed: kept or dropped.
    pub others: Others,
    /// Columns that are listed, by the monolith's exact names.
    pub columns: BTreeMap<String, ColumnRule>,
    /// Only rows whose columns hold one of these values, by column: all conditions must hold.
    pub filter: BTreeMap<String, Vec<String>>,
    /// Where the entry stands in the file, for problems found later: line and column, from 1.
    pub place: (u32, u32),
}

/// What happens to columns that a table's rule doesn't list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// They move under their own names.
    Keep,
    /// They stay behind.
    Drop,
}

/// What happens to one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnRule {
    /// It moves.
    Keep {
        /// New name, when it changes.
        to: Option<String>,
        /// Table that this column refers to across the cut: a soft reference.
        references: Option<TableName>,
    },
    /// It stays behind.
    Drop,
}

/// A column whose values are never shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    /// The monolith's table.
    pub table: TableName,
    /// Its column.
    pub column: String,
    /// Class, e.g. `pii`.
    pub class: String,
}

/// Limits and periods, with defaults for what the plan leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long a slice must have been mirrored before a flip.
    pub min_mirror_time: Duration,
    /// How long the old tables are kept after a flip.
    pub safety_period: Duration,
    /// How long nobody may have used the old tables before they are retired.
    pub quiet_period: Duration,
    /// How old a clean verdict may be.
    pub evidence_max_age: Duration,
    /// Clean verdicts since the flip that retirement needs.
    pub clean_runs_before_retire: u32,
    /// How long one flip attempt may hold writers: lock request and drain.
    pub write_pause_budget: Duration,
    /// WAL in bytes that the monolith may hold for one slice.
    pub wal_budget_bytes: u64,
    /// What the mirror does near that, or near the server's own limit.
    pub at_wal_limit: AtWalLimit,
    /// Increments that a sequence skips at a flip.
    pub sequence_margin: u32,
    /// Standbys of a closed side that have to have its fence before the other side is opened.
    pub fence_standbys: FenceStandbys,
    /// Whether a flip has to name who approved it.
    pub approval: Approval,
    /// Groups of slices that flip together.
    pub flip_together: Vec<Vec<String>>,
    /// What is run around a flip. In a slice's policy: the plan's hooks, then the slice's own.
    pub hooks: Hooks,
}

impl Policy {
    /// Hex SHA-256 of everything that it says.
    #[must_use]
    pub fn hash(&self) -> String {
        policy_hash::of(self)
    }
}

impl Default for Policy {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            min_mirror_time: 7 * DAY,
            safety_period: 30 * DAY,
            quiet_period: 7 * DAY,
            evidence_max_age: DAY,
            clean_runs_before_retire: 3,
            write_pause_budget: Duration::from_millis(500),
            wal_budget_bytes: 50_000_000_000,
            at_wal_limit: AtWalLimit::Warn,
            sequence_margin: 1000,
            fence_standbys: FenceStandbys::All,
            approval: Approval::None,
            flip_together: Vec::new(),
            hooks: Hooks::default(),
        }
    }
}

/// A connection URL as the plan writes it, with `${ENV}` and `${file:/path}` still in place.
/// It may hold a secret in clear, so it is never shown.
///
/// Two are equal when their texts are, wherever they stand.
#[derive(Clone)]
pub struct LinkTemplate {
    text: Arc<str>,
    place: Option<Place>,
}

impl PartialEq for LinkTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for LinkTemplate {}

/// Where `${…}` in a link finds its value. The library never reads the environment by itself: the command line
/// passes this in.
pub trait Variables: fmt::Debug + Send + Sync {
    /// The environment variable, when set.
    fn variable(&self, name: &str) -> Option<String>;

    /// The text of a file such as a mounted secret, without its last line break.
    ///
    /// # Errors
    /// What reading the file gave.
    fn file(&self, path: &str) -> std::io::Result<String>;
}

/// A link's `${…}` could not be filled in.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No such environment variable.
    #[error("the environment variable {name} is not set")]
    NoVariable {
        /// Its name.
        name: String,
    },
    /// The file could not be read.
    #[error("the file {path} named by a link could not be read")]
    NoFile {
        /// Its path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// `${` without `}`.
    #[error("a link opens ${{ and does not close it")]
    Unclosed,
}

impl LinkTemplate {
    /// Wraps the text of a plan.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: Arc::from(text), place: None }
    }

    /// The same, with the place in the plan file.
    pub(crate) fn placed(text: &str, place: Place) -> Self {
        Self { text: Arc::from(text), place: Some(place) }
    }

    /// Where the plan file writes it, for problems such as a missing variable.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    /// Names of the environment variables that the template uses, in order.
    #[must_use]
    pub fn variables(&self) -> Vec<String> {
        self.text
            .split("${")
            .skip(1)
            .filter_map(|rest| rest.split_once('}'))
            .map(|(name, _)| name)
            .filter(|name| !name.starts_with("file:"))
            .map(str::to_owned)
            .collect()
    }

    /// One problem for each variable or file that cannot be had.
    fn missing(&self, variables: &dyn Variables) -> Vec<PlanProblem> {
        let mut found = Vec::new();
        for name in
            self.text.split("${").skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
        {
            let problem = if let Some(path) = name.strip_prefix("file:") {
                let Err(error) = variables.file(path) else { continue };
                PlanProblem::error(
                    "plan.missing-file",
                    format!("the file {path} of this link cannot be read: {error}"),
                )
                .help(format!("mount or write the file; `ls -l {path}` shows whether this user may read it"))
            } else if variables.variable(name).is_none() {
                let whole = *self.text == *format!("${{{name}}}");
                let example = if whole { "postgres://user:password@host:5432/database" } else { "…" };
                PlanProblem::error(
                    "plan.missing-variable",
                    format!("the environment variable {name} is not set"),
                )
                .help(format!("type `export {name}={example}` with the real value, then try again"))
            } else {
                continue;
            };
            found.push(problem.at(self.place));
        }
        found
    }

    /// Fills in the variables. Done again for every new connection, so that a rotated secret is picked up.
    ///
    /// # Errors
    /// [`LinkError`], which names the variable or file and never a value.
    pub fn resolve(&self, variables: &dyn Variables) -> Result<SecretString, LinkError> {
        let mut url = String::new();
        let mut rest: &str = &self.text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, after) = after.split_once('}').ok_or(LinkError::Unclosed)?;
            url.push_str(before);
            if let Some(path) = name.strip_prefix("file:") {
                let text = variables
                    .file(path)
                    .map_err(|source| LinkError::NoFile { path: path.to_owned(), source })?;
                url.push_str(&text);
            } else {
                let value = variables.variable(name);
                url.push_str(&value.ok_or_else(|| LinkError::NoVariable { name: name.to_owned() })?);
            }
            rest = after;
        }
        url.push_str(rest);
        Ok(SecretString::from(url))
    }
}

impl fmt::Debug for LinkTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkTemplate(…)")
    }
}

impl Plan {
    /// Variables and files that the links name and that cannot be had, one problem for each place. To be asked
    /// before connecting, so that the operator hears of all of them at once.
    #[must_use]
    pub fn missing_variables(&self, variables: &dyn Variables) -> Vec<PlanProblem> {
        let of = |links: &Links| [links.admin.clone(), links.read.clone(), links.apply.clone()];
        let services = self.services.values().flat_map(|service| of(&service.links));
        let mut found: Vec<PlanProblem> = Vec::new();
        for link in of(&self.monolith.links).into_iter().chain(services) {
            for problem in link.missing(variables) {
                // A `url` serves as three links and is one place.
                if !found.contains(&problem) {
                    found.push(problem);
                }
            }
        }
        found
    }

    /// Whether a slice means a table of this name, by its own entry or by one for the whole schema.
    #[must_use]
    pub fn takes(&self, slice: &str, table: &TableName) -> bool {
        let named = |rule: &TableRule| matches!(&rule.selector, TableSelector::Table(name) if name == table);
        let of_schema =
            |rule: &TableRule| matches!(&rule.selector, TableSelector::Schema(name) if *name == table.schema);
        let Some(asked) = self.slices.get(slice) else { return false };
        // A table with an entry of its own is left out of every entry for a schema.
        let apart = self.slices.values().any(|slice| slice.tables.iter().any(named));
        asked.tables.iter().any(|rule| named(rule) || !apart && of_schema(rule))
    }

    /// Slices of one service.
    pub fn slices_of<'a>(&'a self, service: &'a str) -> impl Iterator<Item = (&'a str, &'a Slice)> {
        self.slices
            .iter()
            .filter(move |(_, slice)| slice.service == service)
            .map(|(name, slice)| (name.as_str(), slice))
    }

    /// The service that a slice belongs to. `parse` made sure that it exists.
    #[must_use]
    pub fn service_of(&self, slice: &str) -> Option<(&str, &Service)> {
        let service = &self.slices.get(slice)?.service;
        self.services.get_key_value(service).map(|(name, service)| (name.as_str(), service))
    }
}
