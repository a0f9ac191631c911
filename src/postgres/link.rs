//! Reads a connection link: a libpq URL or a list of `key=value` (PostgreSQL documentation, section 34.1.1).
//!
//! Nothing here does I/O and no error repeats any part of the text but the name of a parameter: a link holds a
//! password. What libpq would take from the environment or from the user's home directory is not looked up;
//! a link says everything itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tokio_postgres::config::ChannelBinding;

mod text;

/// How long one attempt at one address may take, login included, when the link sets no `connect_timeout`.
/// Long enough for a server that is busy, short enough that a mistyped host is noticed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that a link says.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) user: String,
    pub(super) password: Option<SecretString>,
    pub(super) database: String,
    /// Server settings in the form `-c name=value`, sent as they are.
    pub(super) options: Option<String>,
    pub(super) tls: TlsSettings,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: Keepalive,
    pub(super) wanted: WantedSession,
    pub(super) channel_binding: ChannelBinding,
    /// `load_balance_hosts=random`.
    pub(super) shuffle: bool,
}

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) place: Place,
    pub(super) port: u16,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A directory that holds the server's unix socket.
    Directory(PathBuf),
    /// A host; certificates are checked against the name even where `hostaddr` gives the address.
    Host { name: String, address: Option<IpAddr> },
}

/// The `ssl*` parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TlsSettings {
    pub(super) mode: SslMode,
    pub(super) roots: Roots,
    /// `sslcert` and `sslkey`, PEM files.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    /// `sslnegotiation=direct` (PostgreSQL 17).
    pub(super) direct: bool,
}

/// `sslmode`, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Whom certificates must descend from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    /// Nobody was named: certificates are not checked.
    Unnamed,
    /// The machine's own list.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// When a silent peer counts as dead. The defaults notice one after about 30 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keepalive {
    pub(super) on: bool,
    pub(super) idle: Duration,
    pub(super) interval: Duration,
    pub(super) count: u32,
    /// How long sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`), in milliseconds.
    pub(super) user_timeout_ms: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        let (idle, interval) = (Duration::from_secs(10), Duration::from_secs(5));
        Self { on: true, idle, interval, count: 4, user_timeout_ms: 30_000 }
    }
}

/// `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WantedSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
}

impl WantedSession {
    /// Whether a server that reported these two settings will do. PostgreSQL 14 and newer report both at login.
    pub(super) fn admits(self, hot_standby: bool, read_only: bool) -> bool {
        match self {
            Self::Any => true,
            Self::ReadWrite => !hot_standby && !read_only,
            Self::ReadOnly => hot_standby || read_only,
            Self::Primary => !hot_standby,
            Self::Standby => hot_standby,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// A link cannot be read. Holds no part of the link but names of parameters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkSyntaxError {
    /// Neither a URL nor key=value.
    #[error(
        "it is neither postgresql://user@host/dbname nor host=… user=… dbname=…; percent-encode what is special \
         in a URL (@ is %40, / is %2F), put a value that holds spaces in single quotes"
    )]
    Shape,
    /// Parameters that this tool does not know.
    #[error("it sets {names}, which strangler does not know; remove it from the link")]
    UnknownParameters {
        /// The names, with commas between.
        names: String,
    },
    /// A known parameter with a value that it can't have.
    #[error("its {name} can't be read; {expected}")]
    BadValue {
        /// Name of the parameter.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// A parameter that must be there.
    #[error("it sets no {name}; add {name}=… to it")]
    Missing {
        /// Name of the parameter.
        name: &'static str,
    },
}

/// Reads a link.
pub(super) fn parse(text: &str) -> Result<Link, LinkSyntaxError> {
    let mut given = Given(text::pairs(text.trim())?);
    let user = given.take("user").ok_or(LinkSyntaxError::Missing { name: "user" })?;
    let link = Link {
        endpoints: endpoints(&mut given)?,
        password: given.take("password").map(SecretString::from),
        database: given.take("dbname").unwrap_or_else(|| user.clone()),
        user,
        options: given.take("options"),
        tls: tls(&mut given)?,
        connect_timeout: given.seconds("connect_timeout")?.unwrap_or(CONNECT_TIMEOUT),
        keepalive: keepalive(&mut given)?,
        wanted: wanted(&mut given)?,
        channel_binding: channel_binding(&mut given)?,
        shuffle: given.one_of("load_balance_hosts", "write disable or random", |value| match value {
            "disable" => Some(false),
            "random" => Some(true),
            _ => None,
        })? == Some(true),
    };
    accept_what_changes_nothing(&mut given)?;
    match given.names() {
        Some(names) => Err(LinkSyntaxError::UnknownParameters { names }),
        None => Ok(link),
    }
}

/// What the link sets, by name; every reader takes its own out.
struct Given(BTreeMap<String, String>);

impl Given {
    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn one_of<T>(
        &mut self,
        name: &'static str,
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, LinkSyntaxError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        read(&value).map(Some).ok_or(LinkSyntaxError::BadValue { name, expected })
    }

    /// Zero and less mean "not set", as libpq reads it.
    fn seconds(&mut self, name: &'static str) -> Result<Option<Duration>, LinkSyntaxError> {
        let seconds = self.one_of(name, "write a number of seconds", |value| value.parse::<i64>().ok())?;
        Ok(seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|s| *s > 0)
            .map(Duration::from_secs))
    }

    /// What nobody took. A text that is not a word may be a part of a badly quoted password.
    fn names(&self) -> Option<String> {
        let word =
            |name: &&String| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && name.len() < 40;
        let shown = self.0.keys().filter(word).map(String::as_str).collect::<Vec<_>>().join(", ");
        match (self.0.is_empty(), shown.is_empty()) {
            (true, _) => None,
            (false, true) => Some("a parameter whose name is no word".to_owned()),
            (false, false) => Some(shown),
        }
    }
}

fn endpoints(given: &mut Given) -> Result<Vec<Endpoint>, LinkSyntaxError> {
    let hosts = given.take("host");
    let addresses = given.take("hostaddr");
    let ports = given.take("port").unwrap_or_default();
    let split = |list: Option<String>| -> Vec<String> {
        list.map(|list| list.split(',').map(|item| item.trim().to_owned()).collect()).unwrap_or_default()
    };
    let (hosts, addresses) = (split(hosts), split(addresses));
    let ports = ports.split(',').map(port).collect::<Result<Vec<_>, _>>()?;
    let count = hosts.len().max(addresses.len());
    let equal = |len: usize| len == count || len == 0;
    if count == 0 {
        return Err(LinkSyntaxError::Missing { name: "host" });
    }
    if !equal(hosts.len()) || !equal(addresses.len()) || (ports.len() != 1 && ports.len() != count) {
        let expected = "give as many hosts as addresses, and one port or one for each";
        return Err(LinkSyntaxError::BadValue { name: "host", expected });
    }
    let one = |index: usize| {
        let place = place(hosts.get(index), addresses.get(index))?;
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        Ok(Endpoint { place, port })
    };
    (0..count).map(one).collect()
}

fn port(text: &str) -> Result<u16, LinkSyntaxError> {
    let text = text.trim();
    let error = LinkSyntaxError::BadValue { name: "port", expected: "write a number from 1 to 65535" };
    if text.is_empty() { Ok(5432) } else { text.parse().ok().filter(|port| *port > 0).ok_or(error) }
}

fn place(host: Option<&String>, address: Option<&String>) -> Result<Place, LinkSyntaxError> {
    let host = host.map(String::as_str).unwrap_or_default();
    if host.contains('@') {
        let expected = "it holds an @; in a URL, write an @ of the user or the password as %40";
        return Err(LinkSyntaxError::BadValue { name: "host", expected });
    }
    if host.starts_with('/') {
        return Ok(Place::Directory(PathBuf::from(host)));
    }
    let wrong = LinkSyntaxError::BadValue { name: "hostaddr", expected: "write an IP address" };
    let address = match address.filter(|address| !address.is_empty()) {
        Some(address) => Some(address.parse::<IpAddr>().map_err(|_| wrong)?),
        None => None,
    };
    match (host.is_empty(), address) {
        (true, None) => Err(LinkSyntaxError::Missing { name: "host" }),
        (true, Some(address)) => Ok(Place::Host { name: address.to_string(), address: Some(address) }),
        (false, address) => Ok(Place::Host { name: host.to_owned(), address }),
    }
}

fn tls(given: &mut Given) -> Result<TlsSettings, LinkSyntaxError> {
    let modes = "write disable, allow, prefer, require, verify-ca or verify-full";
    let mode = given.one_of("sslmode", modes, |value| match value {
        "disable" => Some(SslMode::Disable),
        "allow" => Some(SslMode::Allow),
        "prefer" => Some(SslMode::Prefer),
        "require" => Some(SslMode::Require),
        "verify-ca" => Some(SslMode::VerifyCa),
        "verify-full" => Some(SslMode::VerifyFull),
        _ => None,
    })?;
    let direct = given.one_of("sslnegotiation", "write postgres or direct", |value| match value {
        "postgres" => Some(false),
        "direct" => Some(true),
        _ => None,
    })?;
    let root = given.take("sslrootcert");
    let bad = |name, expected| Err(LinkSyntaxError::BadValue { name, expected });
    // The rules of libpq: the machine's list of authorities is worth something only with the host name checked.
    let (mode, roots) = match (mode, root.as_deref()) {
        (None | Some(SslMode::VerifyFull), Some("system")) => (SslMode::VerifyFull, Roots::System),
        (Some(_), Some("system")) => return bad("sslmode", "with sslrootcert=system write verify-full"),
        (Some(SslMode::VerifyFull), None) => (SslMode::VerifyFull, Roots::System),
        (Some(SslMode::VerifyCa), None) => return Err(LinkSyntaxError::Missing { name: "sslrootcert" }),
        (Some(SslMode::Require), Some(file)) => (SslMode::VerifyCa, Roots::File(PathBuf::from(file))),
        (mode, Some(file)) => (mode.unwrap_or(SslMode::Prefer), Roots::File(PathBuf::from(file))),
        (mode, None) => (mode.unwrap_or(SslMode::Prefer), Roots::Unnamed),
    };
    let identity = match (given.take("sslcert"), given.take("sslkey")) {
        (Some(cert), Some(key)) => Some((PathBuf::from(cert), PathBuf::from(key))),
        (None, None) => None,
        (Some(_), None) => return Err(LinkSyntaxError::Missing { name: "sslkey" }),
        (None, Some(_)) => return Err(LinkSyntaxError::Missing { name: "sslcert" }),
    };
    let direct = direct == Some(true);
    if direct && mode < SslMode::Require {
        return bad("sslnegotiation", "direct needs sslmode=require or stronger");
    }
    Ok(TlsSettings { mode, roots, identity, direct })
}

fn keepalive(given: &mut Given) -> Result<Keepalive, LinkSyntaxError> {
    let default = Keepalive::default();
    let number = |value: &str| value.parse::<u32>().ok();
    let count = given.one_of("keepalives_count", "write a number", number)?;
    Ok(Keepalive {
        on: given.one_of("keepalives", "write 0 or 1", number)?.is_none_or(|on| on != 0),
        idle: given.seconds("keepalives_idle")?.unwrap_or(default.idle),
        interval: given.seconds("keepalives_interval")?.unwrap_or(default.interval),
        count: count.filter(|count| *count > 0).unwrap_or(default.count),
        user_timeout_ms: given
            .one_of("tcp_user_timeout", "write a number of milliseconds", number)?
            .unwrap_or(default.user_timeout_ms),
    })
}

fn wanted(given: &mut Given) -> Result<WantedSession, LinkSyntaxError> {
    let expected = "write any, read-write, read-only, primary or standby";
    let wanted = given.one_of("target_session_attrs", expected, |value| match value {
        "any" => Some(WantedSession::Any),
        "read-write" => Some(WantedSession::ReadWrite),
        "read-only" => Some(WantedSession::ReadOnly),
        "primary" => Some(WantedSession::Primary),
        "standby" => Some(WantedSession::Standby),
        _ => None,
    })?;
    Ok(wanted.unwrap_or(WantedSession::Any))
}

fn channel_binding(given: &mut Given) -> Result<ChannelBinding, LinkSyntaxError> {
    let binding =
        given.one_of("channel_binding", "write disable, prefer or require", |value| match value {
            "disable" => Some(ChannelBinding::Disable),
            "prefer" => Some(ChannelBinding::Prefer),
            "require" => Some(ChannelBinding::Require),
            _ => None,
        })?;
    Ok(binding.unwrap_or(ChannelBinding::Prefer))
}

/// Parameters that links carry for other clients and whose only meaning here is one that we fulfil anyway.
/// The application name is always ours, because it tells an administrator which part of the tool a session is.
fn accept_what_changes_nothing(given: &mut Given) -> Result<(), LinkSyntaxError> {
    given.take("application_name");
    given.take("fallback_application_name");
    let encoding = |value: &str| ["utf8", "utf-8", "auto"].contains(&&*value.to_lowercase()).then_some(());
    given.one_of("client_encoding", "sessions are always UTF8: write that or remove it", encoding)?;
    let gss = |value: &str| ["disable", "prefer"].contains(&value).then_some(());
    given.one_of("gssencmode", "GSSAPI is not spoken: write disable or remove it", gss)?;
    Ok(())
}

#[cfg(test)]
mod tests;
