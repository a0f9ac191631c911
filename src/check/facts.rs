//! What the rules decide on: the plan, what the databases look like, and what each link may do. Plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::catalog::Catalog;
use crate::journal::holdings::Holding;
use crate::journal::migrate::Form;
use crate::journal::whereabouts::Whereabouts;
use crate::mapping::Mappings;
use crate::mapping::adopted::Misfit;
use crate::name::TableName;
use crate::plan::{Plan, Service};
use crate::problem::Problem;

/// The role that appliers log in as, on every database.
pub const APPLY_ROLE: &str = "strangler_apply";

/// Everything that was found out. Where a database could not be reached, its parts are absent and the rules that
/// need them find nothing.
#[derive(Debug)]
pub struct Facts {
    /// The plan.
    pub plan: Plan,
    /// The plan joined with the monolith's catalog, tables with an error among them; none without that catalog.
    pub mappings: Mappings,
    /// What joining them found.
    pub mapping_problems: Vec<Problem>,
    /// Tables that move, with the slices that take them; those with a mapping error too.
    pub moved: BTreeMap<TableName, Vec<String>>,
    /// Tables with rows that none of the plan's filters takes, with those filters, as far as that is known quickly.
    pub left_behind: BTreeMap<TableName, Vec<String>>,
    /// Keys by which the sides don't tell the same rows apart, each with its service.
    pub collated: Vec<(String, Misfit)>,
    /// What `provision` would say, where all of its links are open.
    pub foreseen: Vec<Problem>,
    /// The monolith.
    pub monolith: Database,
    /// The services by name.
    pub services: BTreeMap<String, Database>,
}

/// One database, seen through its links.
#[derive(Debug, Default)]
pub struct Database {
    /// Its catalog, read through the admin link or, without that, another.
    pub catalog: Option<Catalog>,
    /// Its server.
    pub server: Option<Server>,
    /// The plan's roles that exist there, by name.
    pub roles: BTreeMap<String, Role>,
    /// The links by name.
    pub links: BTreeMap<LinkName, Link>,
    /// Where its links lead, by the database's own word; absent when it did not tell.
    pub whereabouts: Option<Whereabouts>,
    /// Which slices, of whatever plan, have which of its tables.
    pub holdings: Vec<Holding>,
    /// Which version made the tables of our own there.
    pub form: Form,
    /// How long it owed an answer, when it was given up for that.
    pub silent: Option<Duration>,
    /// What a reachable database did not tell, in words.
    pub unread: Vec<String>,
}

/// One of the three ways into a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkName {
    /// DDL, publications, gates.
    Admin,
    /// REPLICATION and SELECT.
    Read,
    /// Logs in as [`APPLY_ROLE`].
    Apply,
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "admin",
            Self::Read => "read",
            Self::Apply => "apply",
        })
    }
}

/// A link: what its role may do, or why it can't be used.
#[derive(Debug)]
pub enum Link {
    /// Connected.
    Open(LinkRole),
    /// Not connected.
    Failed(LinkFailure),
}

/// Why a link could not be opened. Never holds the url.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFailure {
    /// The error with its causes.
    pub words: String,
    /// The server answered and turned the login away (SQLSTATE class 28): a role or password is missing.
    pub login_refused: bool,
}

impl LinkFailure {
    /// Takes an error apart. Called by whoever tried to connect.
    #[must_use]
    pub fn new(error: &(dyn Error + 'static)) -> Self {
        let mut words: Vec<String> = Vec::new();
        let mut login_refused = false;
        let mut next = Some(error);
        while let Some(cause) = next {
            if let Some(code) =
                cause.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code)
            {
                login_refused |= code.code().starts_with("28");
            }
            let text = cause.to_string();
            // Some errors repeat their cause; saying it once is enough.
            if !words.iter().any(|said| said.contains(&text)) {
                words.push(text);
            }
            next = cause.source();
        }
        Self { words: words.join(": "), login_refused }
    }
}

/// The role that a link logged in as.
#[derive(Debug, Clone, Default)]
pub struct LinkRole {
    /// `session_user`.
    pub name: String,
    /// Which database it leads to: see [`crate::journal::whereabouts::place`].
    pub place: String,
    /// Superuser.
    pub superuser: bool,
    /// May use replication connections: attribute REPLICATION, or membership in `rds_replication`.
    pub replication: bool,
    /// CREATEROLE.
    pub create_role: bool,
    /// CREATE on the database.
    pub create_in_database: bool,
    /// May set `session_replication_role`, or it is `replica` already. Only asked of apply links.
    pub replica_role: bool,
    /// Schemas on which it may not grant CREATE and USAGE, with their owners. Only asked of admin links.
    pub ungrantable: BTreeMap<String, String>,
    /// Tables that it may not SELECT, or whose schema it may not use. Not asked of admin links.
    pub unreadable: BTreeSet<TableName>,
    /// Tables whose rows are filtered for it by row level security. Not asked of admin links.
    pub row_filtered: BTreeSet<TableName>,
    /// Tables of which it may not lock rows: UPDATE of one column is what that takes. Not asked of admin links.
    pub unlockable: BTreeSet<TableName>,
    /// What it may not do with tables out of what applying does. Only asked of apply links.
    pub lacking: BTreeMap<TableName, Vec<String>>,
    /// Schemas that it may not use. Not asked of admin links.
    pub closed_schemas: BTreeSet<String>,
    /// Forms of `pg_logical_emit_message` that it may not call, with their arguments' types. Not asked of admin links.
    pub silenced: BTreeSet<String>,
}

/// A role of the plan as it exists on a server.
#[derive(Debug, Clone, Default)]
pub struct Role {
    /// Superuser.
    pub superuser: bool,
    /// LOGIN.
    pub login: bool,
    /// Roles that it is a member of, directly or through others.
    pub member_of: BTreeSet<String>,
    /// A password is set; unknown to all but superusers.
    pub has_password: Option<bool>,
    /// May connect to this database.
    pub may_connect: bool,
    /// Schemas that it owns, or in which it was itself granted CREATE and USAGE.
    pub creates_in: BTreeSet<String>,
    /// Schemas that it may not use.
    pub closed_schemas: BTreeSet<String>,
}

/// What matters of a server beside its catalogs.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// Tells servers apart, also those copied from one template: system identifier and start time.
    pub instance: String,
    /// Replication slots of the whole server.
    pub slots: Vec<Slot>,
    /// WAL senders in use.
    pub senders_in_use: u32,
    /// Prepared transactions that wait for their end, on the whole server.
    pub prepared_transactions: u32,
    /// WAL written per second, the larger of the long-term mean and what was just seen.
    pub wal_bytes_per_second: Option<f64>,
    /// Extensions that could be created.
    pub available_extensions: BTreeSet<String>,
    /// Those of them for which the right to create in the database is enough.
    pub trusted_extensions: BTreeSet<String>,
    /// Publications of this database.
    pub publications: BTreeSet<String>,
    /// Tables that already hold rows, out of those that the plan would fill.
    pub filled: BTreeSet<TableName>,
    /// Tables that the plan would fill whose rows could not be looked at.
    pub closed: BTreeSet<TableName>,
    /// Slices that `provision` has entered into `strangler.slice`.
    pub provisioned: BTreeSet<String>,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Database, absent for physical slots.
    pub database: Option<String>,
}

/// A database with how a report names it.
#[derive(Debug)]
pub struct Named<'a> {
    /// `monolith`, `service orders`.
    pub name: String,
    /// The service; `None` for the monolith.
    pub service: Option<&'a str>,
    /// What is known of it.
    pub database: &'a Database,
}

impl Database {
    /// The role of an open link.
    #[must_use]
    pub fn role(&self, link: LinkName) -> Option<&LinkRole> {
        match self.links.get(&link)? {
            Link::Open(role) => Some(role),
            Link::Failed(_) => None,
        }
    }

    /// A setting, as `SHOW` gives it.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.catalog.as_ref()?.settings.get(name).map(String::as_str)
    }

    /// A setting that is a whole number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u32> {
        self.setting(name)?.parse().ok()
    }
}

impl Facts {
    /// The monolith and all services.
    pub fn databases(&self) -> impl Iterator<Item = Named<'_>> {
        let services = self.services.iter().map(|(name, database)| Named {
            name: format!("service {name}"),
            service: Some(name),
            database,
        });
        let monolith = Named { name: "monolith".to_owned(), service: None, database: &self.monolith };
        std::iter::once(monolith).chain(services)
    }

    /// The services with their plan, where both are known.
    pub fn planned_services(&self) -> impl Iterator<Item = (&str, &Service, &Database)> {
        self.plan
            .services
            .iter()
            .filter_map(|(name, service)| Some((name.as_str(), service, self.services.get(name)?)))
    }

    /// Whether some slice takes the table.
    #[must_use]
    pub fn moves(&self, table: &TableName) -> bool {
        self.moved.contains_key(table)
    }

    /// Whether both tables go into one slice.
    #[must_use]
    pub fn together(&self, one: &TableName, other: &TableName) -> bool {
        let slices = |table| self.moved.get(table).map(Vec::as_slice).unwrap_or_default();
        slices(one).iter().any(|slice| slices(other).contains(slice))
    }

    /// Moved tables as the monolith's catalog has them.
    pub fn moved_tables(&self) -> impl Iterator<Item = &crate::catalog::Table> {
        let catalog = self.monolith.catalog.as_ref();
        self.moved.keys().filter_map(move |name| catalog?.table(name))
    }
}
