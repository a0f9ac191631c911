//! One way into one database, and the sessions made through it.
//!
//! Who calls it: everything that talks to a database. A [`Server`] resolves its link anew for every connection, so
//! that a rotated secret is picked up, and gives every session the same settings, so that text printed by one
//! database means the same in another (`settings`).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use tokio_postgres::Statement;
use tokio_postgres::config::{SslMode as ConfigSslMode, SslNegotiation};
use tokio_postgres::types::Type;
use tokio_util::task::AbortOnDropHandle;

use super::link::{self, Endpoint, Keepalive, Link, Place, SslMode};
use super::wire::{self, Address, AlreadyEncrypted, DialError, Encryption, Wire};
use super::{replication, tls};
use crate::failpoint;
use crate::plan::{LinkTemplate, Variables};

mod cancel;
mod error;
mod settings;

pub use cancel::CancelToken;
pub use error::ConnectError;
pub(super) use error::LoginError;
pub use settings::idle_limit;
pub(super) use settings::{STARTUP_SETTINGS, WAL_SETTINGS};

/// The role that appliers log in as. Gates let only this `session_user` write on a fenced side.
pub const APPLY_ROLE: &str = "strangler_apply";

/// What a session is for; decides who it is and what fires on its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRole {
    /// DDL, publications, gates.
    Admin,
    /// Catalogs, snapshots, slots.
    Read,
    /// Writes mirrored rows: the session user is [`APPLY_ROLE`] and ordinary triggers do not fire.
    Apply,
}

/// One way into one database. Cheap to clone; `Debug` shows no secret.
#[derive(Clone)]
pub struct Server {
    label: String,
    link: LinkTemplate,
    role: SessionRole,
    variables: Arc<dyn Variables>,
    /// The longest that a server may owe an answer.
    answers_within: Option<Duration>,
    /// A session of this or of a clone was ended for that.
    silent: Arc<AtomicBool>,
}

impl Server {
    /// `label` names the database in every message: `monolith`, `service orders`.
    pub fn new(
        label: impl Into<String>,
        link: LinkTemplate,
        role: SessionRole,
        variables: Arc<dyn Variables>,
    ) -> Self {
        Self { label: label.into(), link, role, variables, answers_within: None, silent: Arc::default() }
    }

    /// The same way for sessions whose statements are short: a server that owes an answer for longer than this is taken for
    /// gone, and the statement fails as over a broken connection. Without it a statement may take hours.
    #[must_use]
    pub fn answering_within(mut self, limit: Duration) -> Self {
        self.answers_within = Some(failpoint::answer_limit(limit));
        self.silent = Arc::default();
        self
    }

    /// For how long the server owed an answer when a session of this way, or of a clone of it, was ended for that. The statement
    /// itself is told no more than that its connection is closed. `None` when no session was.
    #[must_use]
    pub fn owed_an_answer(&self) -> Option<Duration> {
        self.answers_within.filter(|_| self.silent.load(Ordering::Acquire))
    }

    /// The name given at the start.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where the link leads: `monolith (host/dbname as user)`. Never the password.
    ///
    /// # Errors
    /// [`ConnectError::Link`] and [`ConnectError::Syntax`] when the link can't be read.
    pub fn describe(&self) -> Result<String, ConnectError> {
        let link = self.link()?;
        let hosts = link.endpoints.iter().map(|endpoint| match &endpoint.place {
            Place::Directory(directory) => directory.display().to_string(),
            Place::Host { name, .. } => name.clone(),
        });
        let hosts = hosts.collect::<Vec<_>>().join(",");
        Ok(format!("{} ({hosts}/{} as {})", self.label, link.database, link.user))
    }

    /// Who the link logs in as, and with which password: `provision` makes those roles.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub fn login(&self) -> Result<(String, Option<SecretString>), ConnectError> {
        let link = self.link()?;
        Ok((link.user, link.password))
    }

    /// Opens a session for SQL. `application` is what `pg_stat_activity.application_name` shows.
    ///
    /// # Errors
    /// [`ConnectError`]; the hosts of the link are tried in order, and the last failure is the one returned,
    /// unless a server refused the login itself.
    pub async fn connect(&self, application: &str) -> Result<Session, ConnectError> {
        let link = self.link()?;
        let (answers_within, silent) = (self.answers_within, &self.silent);
        let login = SqlLogin { link: &link, application, answers_within, silent };
        let (session, at) = self.open(&link, &login).await?;
        let prepared = timeout(link.connect_timeout, settings::prepare(&session, self.role, &at)).await;
        match prepared {
            Ok(result) => result.map(|()| session),
            Err(_elapsed) => Err(ConnectError::Timeout { at, after: link.connect_timeout }),
        }
    }

    /// Opens a connection that speaks the replication protocol to one database (`replication=database`).
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn replicate(&self, application: &str) -> Result<replication::Connection, ConnectError> {
        let link = self.link()?;
        let login = replication::WalLogin { link: &link, application, label: &self.label };
        Ok(self.open(&link, &login).await?.0)
    }

    fn link(&self) -> Result<Link, ConnectError> {
        let label = || self.label.clone();
        let text = self.link.resolve(&*self.variables);
        let text = text.map_err(|source| ConnectError::Link { label: label(), source })?;
        link::parse(text.expose_secret()).map_err(|source| ConnectError::Syntax { label: label(), source })
    }

    /// Tries every address of every endpoint until one takes the login; returns where that was, too.
    async fn open<L: Login>(&self, link: &Link, login: &L) -> Result<(L::Made, String), ConnectError> {
        let tls = self.tls(link)?;
        let mut endpoints = link.endpoints.clone();
        if link.shuffle {
            fastrand::shuffle(&mut endpoints);
        }
        let mut last = None;
        for endpoint in &endpoints {
            let at = self.at(link, endpoint);
            let addresses = match timeout(link.connect_timeout, wire::addresses(endpoint)).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(source)) => {
                    last = Some(ConnectError::Unreachable { at, source });
                    continue;
                }
                Err(_elapsed) => {
                    last = Some(ConnectError::Timeout { at, after: link.connect_timeout });
                    continue;
                }
            };
            for address in addresses {
                let route =
                    Route { address, keepalive: link.keepalive, tls: tls.clone(), direct: link.tls.direct };
                match self.attempt(link, login, &route, &at).await {
                    Ok(made) => return Ok((made, at)),
                    // Another host would refuse the same login: say so rather than what the last host said.
                    Err(error) if error.is_refused_login() => return Err(error),
                    Err(error) => last = Some(error),
                }
            }
        }
        let nothing = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        Err(last.unwrap_or_else(|| ConnectError::Unreachable { at: self.label.clone(), source: nothing() }))
    }

    /// One address, with the second try that `sslmode=allow` and `prefer` mean.
    async fn attempt<L: Login>(
        &self,
        link: &Link,
        login: &L,
        route: &Route,
        at: &str,
    ) -> Result<L::Made, ConnectError> {
        let mut result = Err(ConnectError::Timeout { at: at.to_owned(), after: link.connect_timeout });
        for encryption in wire::attempts(link.tls.mode, &route.address) {
            let once = timeout(link.connect_timeout, once(link, login, route, *encryption, at)).await;
            result = once.unwrap_or_else(|_elapsed| {
                Err(ConnectError::Timeout { at: at.to_owned(), after: link.connect_timeout })
            });
            match &result {
                Err(error) if error.may_depend_on_encryption() => {}
                Ok(_) | Err(_) => return result,
            }
        }
        result
    }

    fn tls(&self, link: &Link) -> Result<Option<Arc<ClientConfig>>, ConnectError> {
        let over_tcp = |endpoint: &Endpoint| matches!(endpoint.place, Place::Host { .. });
        if link.tls.mode == SslMode::Disable || !link.endpoints.iter().any(over_tcp) {
            return Ok(None);
        }
        let config = tls::client_config(&link.tls);
        let config =
            config.map_err(|source| ConnectError::Certificates { label: self.label.clone(), source })?;
        Ok(Some(Arc::new(config)))
    }

    fn at(&self, link: &Link, endpoint: &Endpoint) -> String {
        let host = match &endpoint.place {
            Place::Directory(directory) => directory.display().to_string(),
            Place::Host { name, .. } => name.clone(),
        };
        format!("{} ({host}:{}/{} as {})", self.label, endpoint.port, link.database, link.user)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("label", &self.label).field("role", &self.role).finish_non_exhaustive()
    }
}

async fn once<L: Login>(
    link: &Link,
    login: &L,
    route: &Route,
    encryption: Encryption,
    at: &str,
) -> Result<L::Made, ConnectError> {
    let wire = route.dial(encryption).await.map_err(|error| match error {
        DialError::Socket(source) => ConnectError::Unreachable { at: at.to_owned(), source },
        DialError::NoTls => ConnectError::NoTls { at: at.to_owned() },
        DialError::Handshake(source) => ConnectError::Tls { at: at.to_owned(), source },
    })?;
    let made = login.login(wire, route).await;
    let (made, reported) = made.map_err(|error| ConnectError::from_login(error, at))?;
    if link.wanted.admits(reported.hot_standby, reported.read_only) {
        Ok(made)
    } else {
        Err(ConnectError::WrongServer { at: at.to_owned(), wanted: link.wanted.as_str() })
    }
}

/// One address with everything that dialling it again takes.
#[derive(Debug, Clone)]
pub(super) struct Route {
    address: Address,
    keepalive: Keepalive,
    tls: Option<Arc<ClientConfig>>,
    direct: bool,
}

impl Route {
    async fn dial(&self, encryption: Encryption) -> Result<Wire, DialError> {
        wire::dial(&self.address, encryption, self.keepalive, self.tls.as_ref(), self.direct).await
    }
}

/// What a server said of itself at login.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reported {
    pub(super) hot_standby: bool,
    pub(super) read_only: bool,
}

impl Reported {
    /// From the parameters `in_hot_standby` and `default_transaction_read_only`, which PostgreSQL 14 and newer
    /// report (PostgreSQL documentation, section 55.2.7).
    pub(super) fn from_parameters<'a>(parameter: impl Fn(&str) -> Option<&'a str>) -> Self {
        let on = |name| parameter(name) == Some("on");
        Self { hot_standby: on("in_hot_standby"), read_only: on("default_transaction_read_only") }
    }
}

/// Logs in over a wire that is ready for it.
pub(super) trait Login: Sync {
    /// What a login makes.
    type Made: Send;

    /// Sends the startup message and answers what the server asks.
    fn login(
        &self,
        wire: Wire,
        route: &Route,
    ) -> impl Future<Output = Result<(Self::Made, Reported), LoginError>> + Send;
}

struct SqlLogin<'a> {
    link: &'a Link,
    application: &'a str,
    answers_within: Option<Duration>,
    silent: &'a Arc<AtomicBool>,
}

impl Login for SqlLogin<'_> {
    type Made = Session;

    async fn login(&self, wire: Wire, route: &Route) -> Result<(Session, Reported), LoginError> {
        let encryption = if wire.is_encrypted() { Encryption::Always } else { Encryption::Never };
        let unhurried = Arc::new(AtomicBool::new(false));
        let wire = match self.answers_within {
            Some(limit) => wire.watched(limit, Arc::clone(&unhurried)),
            None => wire,
        };
        let mut config = tokio_postgres::Config::new();
        config.user(&self.link.user).dbname(&self.link.database).application_name(self.application);
        config.channel_binding(self.link.channel_binding);
        if let Some(password) = &self.link.password {
            config.password(password.expose_secret());
        }
        if let Some(options) = &self.link.options {
            config.options(options);
        }
        // The wire is encrypted already: "direct" keeps the client from asking for it once more.
        if encryption == Encryption::Always {
            config.ssl_mode(ConfigSslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        } else {
            config.ssl_mode(ConfigSslMode::Disable);
        }
        let connected = config.connect_raw(wire, AlreadyEncrypted).await;
        let (client, connection) = connected.map_err(LoginError::from_client)?;
        let reported = Reported::from_parameters(|name| connection.parameter(name));
        let server_major = connection.parameter("server_version").map_or(0, major);
        let (token, limit) = (client.cancel_token(), self.link.connect_timeout);
        let cancel = CancelToken::new(token, route.clone(), encryption, limit);
        let silent = Arc::clone(self.silent);
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // Pinned, so that whoever waits for an answer is told after this is noted.
            let mut connection = std::pin::pin!(connection);
            if let Err(error) = connection.as_mut().await {
                silent.fetch_or(wire::is_silence(&error), Ordering::Release);
                tracing::debug!(error = %error, "session ended");
            }
        }));
        let (planned, keeps_plans) = (Mutex::default(), AtomicBool::default());
        Ok((
            Session { client, cancel, server_major, unhurried, planned, keeps_plans, _driver: driver },
            reported,
        ))
    }
}

/// The major version in `server_version`, e.g. 15 in `15.18 (Debian 15.18-1)`; 0 when there is none.
pub(super) fn major(version: &str) -> u32 {
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// A session with its settings made. Everything that [`tokio_postgres::Client`] does, it does; dropping it closes
/// the connection at once.
pub struct Session {
    client: tokio_postgres::Client,
    cancel: CancelToken,
    server_major: u32,
    unhurried: Arc<AtomicBool>,
    /// By their text.
    planned: Mutex<HashMap<String, Statement>>,
    /// Whether a statement that has no plan yet gets one that is kept.
    keeps_plans: AtomicBool,
    _driver: AbortOnDropHandle<()>,
}

impl Session {
    /// A handle that can stop the running statement from elsewhere.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// The connection is gone; every further call fails.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether the answers to statements that are sent from now on may take any time, also over a way that has a limit
    /// ([`Server::answering_within`]).
    pub fn set_unhurried(&self, unhurried: bool) {
        self.unhurried.store(unhurried, Ordering::Release);
    }

    /// A statement that the server parses once in this session, and plans once where `plan_cache_mode` is
    /// `force_generic_plan` (PostgreSQL documentation, PREPARE). For statements that are sent again while somebody waits; they
    /// are kept as long as the session, so their texts must be few.
    ///
    /// # Errors
    /// What the server said to `sql`.
    pub async fn planned(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.plan_of(sql) {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        self.keep_plan(sql, &statement);
        Ok(statement)
    }

    /// From now on, whether statements of [`super::ask::Ask`] that come without a plan get one that is kept, for the next time that they
    /// are sent. It takes a round trip of its own, so it is asked for where nobody waits, and statements that are sent together come in
    /// the order of their plans then.
    pub fn keep_plans(&self, keep: bool) {
        self.keeps_plans.store(keep, Ordering::Release);
    }

    /// The plan that is kept for a statement, without a wait; else a new one where plans are kept.
    pub(super) async fn kept_plan(
        &self,
        sql: &str,
        types: impl FnOnce() -> Vec<Type>,
    ) -> Result<Option<Statement>, tokio_postgres::Error> {
        let found = self.plan_of(sql);
        if found.is_some() || !self.keeps_plans.load(Ordering::Acquire) {
            return Ok(found);
        }
        let statement = self.client.prepare_typed(sql, &types()).await?;
        self.keep_plan(sql, &statement);
        Ok(Some(statement))
    }

    fn plan_of(&self, sql: &str) -> Option<Statement> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned()
    }

    fn keep_plan(&self, sql: &str, statement: &Statement) {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).insert(sql.to_owned(), statement.clone());
    }

    /// Major version of the server, e.g. 15.
    #[must_use]
    pub fn server_major(&self) -> u32 {
        self.server_major
    }
}

impl Session {
    /// The client alone, for code that wants to own one. Its connection ends when it is dropped.
    #[must_use]
    pub fn into_client(self) -> tokio_postgres::Client {
        drop(self._driver.detach());
        self.client
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl Deref for Session {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}
