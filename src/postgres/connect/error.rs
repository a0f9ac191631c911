//! Why there is no connection, in words that say what to do.

use std::error::Error;
use std::io;
use std::time::Duration;

use super::super::link::LinkSyntaxError;
use super::super::sqlstate::Failure;
use super::super::tls::CertificateFileError;
use super::APPLY_ROLE;
use crate::plan::LinkError;

/// A connection could not be made. `at` reads `monolith (host:port/dbname as user)`; no variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A `${…}` of the link has no value.
    #[error("the link of {label} could not be filled in")]
    Link {
        /// Whose link.
        label: String,
        /// What is missing.
        source: LinkError,
    },
    /// The link is no connection URL.
    #[error("the link of {label} can't be used")]
    Syntax {
        /// Whose link.
        label: String,
        /// What is wrong with it.
        source: LinkSyntaxError,
    },
    /// A certificate file of the link.
    #[error("the certificates of the link of {label} can't be used")]
    Certificates {
        /// Whose link.
        label: String,
        /// Which file.
        source: CertificateFileError,
    },
    /// No socket, or one that broke before the login was over.
    #[error("{at} can't be reached; look whether the server runs and listens there")]
    Unreachable {
        /// Where.
        at: String,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{at} did not answer within {after:?}; connect_timeout=… in the link allows more")]
    Timeout {
        /// Where.
        at: String,
        /// How long was waited.
        after: Duration,
    },
    /// The link wants TLS and the server has none.
    #[error(
        "a TLS session was required and {at} has none; set ssl = on at the server, or write sslmode=prefer in the \
         link where the network between may read the data"
    )]
    NoTls {
        /// Where.
        at: String,
    },
    /// The TLS handshake failed.
    #[error(
        "no TLS session with {at}; where its certificate was not accepted, sslrootcert=… names the authority that \
         signed it, and the certificate must carry the host as a subject alternative name"
    )]
    Tls {
        /// Where.
        at: String,
        /// What rustls said.
        source: io::Error,
    },
    /// Wrong password, unknown role, or no line for it in `pg_hba.conf`.
    #[error("{at} refused the login: {message}; check user and password of the link, and pg_hba.conf")]
    Authentication {
        /// Where.
        at: String,
        /// SQLSTATE, 28P01 or 28000.
        sqlstate: String,
        /// What the server said.
        message: String,
    },
    /// The server asked for a password.
    #[error(
        "{at} asks for a password and the link has none; write postgresql://user:${{VARIABLE}}@host/dbname"
    )]
    NoPassword {
        /// Where.
        at: String,
    },
    /// The server wants a way of logging in that this client does not speak.
    #[error("{at} asks for {method}, which strangler does not speak; let pg_hba.conf ask for scram-sha-256")]
    Method {
        /// Where.
        at: String,
        /// Which.
        method: String,
    },
    /// The database does not exist.
    #[error("{at}: there is no such database; create it, or correct the link")]
    NoDatabase {
        /// Where.
        at: String,
    },
    /// Any other refusal of the server during login.
    #[error("{at} refused the connection: {message} (SQLSTATE {sqlstate})")]
    Refused {
        /// Where.
        at: String,
        /// SQLSTATE.
        sqlstate: String,
        /// What the server said.
        message: String,
    },
    /// The server is not of the kind that `target_session_attrs` asks for.
    #[error("{at} is not a server for target_session_attrs={wanted}; name the primary in the link")]
    WrongServer {
        /// Where.
        at: String,
        /// The value in the link.
        wanted: &'static str,
    },
    /// The peer does not speak PostgreSQL's protocol.
    #[error("{at} does not answer as a PostgreSQL server: {fact}")]
    Protocol {
        /// Where.
        at: String,
        /// What was wrong.
        fact: String,
    },
    /// The fixed settings could not be made.
    #[error("the settings of a session with {at} could not be made")]
    Settings {
        /// Where.
        at: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The apply link logs in as somebody else.
    #[error(
        "{at} logs in as {user}, and gates let only {APPLY_ROLE} write; let the apply link log in as {APPLY_ROLE} \
         (or, for a development database, as a superuser)"
    )]
    NotApplier {
        /// Where.
        at: String,
        /// Who.
        user: String,
    },
    /// The applier may not switch triggers off.
    #[error("{at}: {APPLY_ROLE} may not set session_replication_role; as a superuser run: {grant}")]
    ReplicaRole {
        /// Where.
        at: String,
        /// The statement to run.
        grant: &'static str,
    },
}

impl ConnectError {
    /// Trying again later may succeed without anybody changing anything but the state of a server or network.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::WrongServer { .. } => true,
            Self::Refused { sqlstate, .. } => Failure::of_sqlstate(sqlstate).is_retryable(),
            Self::Settings { source, .. } => Failure::of(source).is_retryable(),
            // A handshake that broke off is the network's doing; a certificate that was refused is not.
            Self::Tls { source, .. } => {
                source.get_ref().is_none_or(|cause| !cause.is::<rustls::Error>())
                    && source.kind() != io::ErrorKind::InvalidData
            }
            Self::Link { .. }
            | Self::Syntax { .. }
            | Self::Certificates { .. }
            | Self::NoTls { .. }
            | Self::Authentication { .. }
            | Self::NoPassword { .. }
            | Self::Method { .. }
            | Self::NoDatabase { .. }
            | Self::Protocol { .. }
            | Self::NotApplier { .. }
            | Self::ReplicaRole { .. } => false,
        }
    }

    /// The SQLSTATE, when a server gave one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        if let Self::Authentication { sqlstate, .. } | Self::Refused { sqlstate, .. } = self {
            return Some(sqlstate);
        }
        if matches!(self, Self::NoDatabase { .. }) {
            return Some("3D000");
        }
        let Self::Settings { source, .. } = self else { return None };
        source.code().map(tokio_postgres::error::SqlState::code)
    }

    /// The server answered and will not have this user or database.
    pub(super) fn is_refused_login(&self) -> bool {
        matches!(self, Self::Authentication { .. } | Self::NoPassword { .. } | Self::NoDatabase { .. })
    }

    /// `pg_hba.conf` may have a line for the other kind of connection (`hostssl`, `hostnossl`), or the handshake
    /// failed where it need not succeed.
    pub(super) fn may_depend_on_encryption(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::NoTls { .. }) || self.sqlstate() == Some("28000")
    }

    pub(super) fn from_login(error: LoginError, at: &str) -> Self {
        let at = at.to_owned();
        match error {
            LoginError::Server { sqlstate, message } => match sqlstate.as_str() {
                "28P01" | "28000" => Self::Authentication { at, sqlstate, message },
                "3D000" => Self::NoDatabase { at },
                _ => Self::Refused { at, sqlstate, message },
            },
            LoginError::NoPassword => Self::NoPassword { at },
            LoginError::Method(method) => Self::Method { at, method },
            LoginError::Lost(source) => Self::Unreachable { at, source },
            LoginError::Protocol(fact) => Self::Protocol { at, fact },
        }
    }
}

/// A login failed, wherever it was.
#[derive(Debug)]
pub(in crate::postgres) enum LoginError {
    /// The server said so.
    Server { sqlstate: String, message: String },
    /// A password was asked for and there is none.
    NoPassword,
    /// An authentication method that is not spoken.
    Method(String),
    /// The connection broke.
    Lost(io::Error),
    /// Not PostgreSQL's protocol.
    Protocol(String),
}

impl LoginError {
    pub(super) fn from_client(error: tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            let (sqlstate, message) = (server.code().code().to_owned(), server.message().to_owned());
            return Self::Server { sqlstate, message };
        }
        let closed = error.is_closed();
        let words = error.to_string();
        let cause = error.into_source();
        let cause_words = cause.as_ref().map(ToString::to_string).unwrap_or_default();
        match cause.map(|cause: Box<dyn Error + Send + Sync>| cause.downcast::<io::Error>()) {
            Some(Ok(source)) if source.kind() != io::ErrorKind::InvalidInput => Self::Lost(*source),
            _ if closed => Self::Lost(io::ErrorKind::UnexpectedEof.into()),
            _ if cause_words == "password missing" => Self::NoPassword,
            _ if cause_words.contains("unsupported authentication") => {
                Self::Method("Kerberos, GSSAPI or SSPI".into())
            }
            _ => Self::Protocol(format!("{words}: {cause_words}")),
        }
    }
}
