//! The settings that every session gets, and who an apply session is.

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use super::{APPLY_ROLE, ConnectError, Session, SessionRole};

/// How values are written, whatever role, database or server would have set. With these, the text that one database
/// prints is read by another as the same value.
pub(in crate::postgres) const STARTUP_SETTINGS: &[(&str, &str)] = &[
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("lc_monetary", "C"),
    // Expressions that the server prints then name the schema of everything that is not built in.
    ("search_path", "pg_catalog"),
    // Who a link logs in as is who it works as: rights are checked, granted and named for that role.
    ("role", "none"),
];

/// What only a replication connection needs: it waits for its stream's start in between commands, and a new slot waits
/// for whoever writes.
pub(in crate::postgres) const WAL_SETTINGS: &[(&str, &str)] =
    &[("lock_timeout", "0"), ("idle_session_timeout", "0")];

/// What only an SQL session needs. Limits that an administrator set for a role are made for the application: a copy
/// of a large table may run for hours. Callers that want a limit set their own. A row that a policy hides makes the
/// statement fail rather than be missed (PostgreSQL documentation, section 20.11.1, `row_security`).
const SQL_SETTINGS: &[(&str, &str)] = &[
    // `statement_timeout` has gone before these.
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("row_security", "off"),
    // How values and literals are read. With `array_nulls = off` a NULL in an array would become the text "NULL".
    ("array_nulls", "on"),
    ("standard_conforming_strings", "on"),
    // How expressions and types are printed: with quotes around everything, no type would be the one that was asked for.
    ("quote_all_identifiers", "off"),
    ("xmloption", "content"),
    // Landings of one table count their rows side by side, which a stricter level would refuse.
    ("default_transaction_isolation", "read committed"),
    // Questions to catalogs are estimated as costly and take a millisecond; compiling one takes thirty.
    ("jit", "off"),
];

/// `default_transaction_read_only` of a database or a role is made to keep an application from writing by accident; what writes
/// here means to. That of the whole server is how services that host databases keep a disk from running full, so that one is
/// waited out.
const MAY_WRITE: &str = "SELECT pg_catalog.set_config(name, 'off', false) FROM pg_catalog.pg_settings \
     WHERE pg_catalog.current_setting('default_transaction_read_only') = 'on' \
       AND name = 'default_transaction_read_only' AND source IN ('database', 'user', 'database user'); ";

/// With `synchronous_commit = off`, which a role, a database or a server may have, a commit is acknowledged up to 0.6 s before it
/// is in the WAL: a stream learns of it as late, and a position is confirmed that a crash takes back. Other values say who else
/// is waited for, and stay. What may be lost says so where it is written.
const FLUSHED: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'on', false) \
     WHERE pg_catalog.current_setting('synchronous_commit') = 'off'; ";

/// How long a transaction that holds locks of the application may be idle, in milliseconds. From one statement to the next takes
/// us a round trip; a process that was frozen, or whose link went silent, would hold readers and writers for as long as it is.
const LOCKS_IDLE_MS: u32 = 1_000;

/// The statement behind a `BEGIN` that lets the server end such a transaction, and its session with it. Who calls it: `arm`,
/// `disarm`, `retire`, `unretire` and `abandon`.
#[must_use]
pub fn idle_limit() -> String {
    format!("SET LOCAL idle_in_transaction_session_timeout = {LOCKS_IDLE_MS}")
}

const ABOUT_ME: &str = "SELECT session_user,
    (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user),
    EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'strangler_apply'),
    pg_catalog.current_setting('session_replication_role')";

/// How often a limit on statements is taken away before it is believed to win.
const TRIES: usize = 20;

/// Makes the settings of a new session.
pub(super) async fn prepare(session: &Session, role: SessionRole, at: &str) -> Result<(), ConnectError> {
    let failed = |source| ConnectError::Settings { at: at.to_owned(), source };
    unlimit(session).await.map_err(failed)?;
    session.batch_execute(&statements(session.server_major())).await.map_err(failed)?;
    match role {
        SessionRole::Admin | SessionRole::Read => Ok(()),
        SessionRole::Apply => become_applier(session, at).await,
    }
}

/// Takes the limit on statements away before anything else is asked. The limit that a role was given holds for this
/// statement, too: a server under load may not even read one in a limit of a few milliseconds, so it is tried again.
async fn unlimit(session: &Session) -> Result<(), tokio_postgres::Error> {
    let mut tries = 1;
    loop {
        match session.batch_execute("SET statement_timeout = 0").await {
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) && tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

fn statements(server_major: u32) -> String {
    let newer: &[(&str, &str)] = if server_major >= 17 { &[("transaction_timeout", "0")] } else { &[] };
    let all = STARTUP_SETTINGS.iter().chain(SQL_SETTINGS).chain(newer);
    all.map(|(name, value)| match *name {
        // The only settings here that are lists; a quoted list would be one element.
        "DateStyle" | "search_path" => format!("SET {name} = {value}; "),
        _ => format!("SET {name} = '{value}'; "),
    })
    .chain([MAY_WRITE, FLUSHED].map(str::to_owned))
    .collect()
}

/// Triggers must not fire a second time on mirrored rows, and the gate looks at `session_user`. A superuser becomes
/// the applier, so that one link is enough on a development database.
async fn become_applier(session: &Session, at: &str) -> Result<(), ConnectError> {
    let failed = |source| ConnectError::Settings { at: at.to_owned(), source };
    let answer = session.simple_query(ABOUT_ME).await.map_err(failed)?;
    let row = answer.iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        Some(row)
    });
    let text = |index| row.and_then(|row| row.get(index)).unwrap_or_default();
    let (user, superuser, role_exists, replica) =
        (text(0), text(1) == "t", text(2) == "t", text(3) == "replica");
    if user != APPLY_ROLE && !superuser {
        return Err(ConnectError::NotApplier { at: at.to_owned(), user: user.to_owned() });
    }
    if !replica {
        let set = session.batch_execute("SET session_replication_role = replica").await;
        set.map_err(|source| match source.code() {
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                ConnectError::ReplicaRole { at: at.to_owned(), grant: grant(session.server_major()) }
            }
            _ => failed(source),
        })?;
    }
    if user != APPLY_ROLE && role_exists {
        session.batch_execute("SET SESSION AUTHORIZATION strangler_apply").await.map_err(failed)?;
    }
    Ok(())
}

/// PostgreSQL 15 made parameters grantable; before it, only a setting of the role helps, made by a superuser.
fn grant(server_major: u32) -> &'static str {
    if server_major >= 15 {
        "GRANT SET ON PARAMETER session_replication_role TO strangler_apply"
    } else {
        "ALTER ROLE strangler_apply SET session_replication_role = replica"
    }
}
