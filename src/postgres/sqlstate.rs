//! What an error of the server means for whoever made the statement (PostgreSQL documentation, appendix A).

use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

use crate::name::TableName;

/// The kinds of failure that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The connection is gone or the server is going away; whether the last statement took effect is not known.
    ConnectionLost,
    /// The server can't serve anybody right now: starting, stopping, out of memory, disk or connections.
    Unavailable,
    /// Another transaction was in the way: serialization failure, deadlock, lock not available.
    Conflict,
    /// A row breaks a constraint of the table (class 23).
    Constraint,
    /// A value does not fit its column (class 22).
    Data,
    /// A table, column, type or function is not what the statement took it for (class 42, but for privileges).
    Shape,
    /// The role may not do this.
    Privilege,
    /// The transaction or server is read-only, or a gate refused the write (25006).
    ReadOnly,
    /// The statement was stopped: by a cancel request or by a time limit (57014, 25P03, 25P04).
    Cancelled,
    /// The object is in use by somebody else, e.g. a slot by another walsender (55006).
    InUse,
    /// Anything else, errors of the client among them.
    Other,
}

impl Failure {
    /// Of an error that the client returned.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        if let Some(code) = error.code() {
            return Self::of_sqlstate(code.code());
        }
        if error.is_closed() {
            return Self::ConnectionLost;
        }
        let cause = std::error::Error::source(error);
        if cause.is_some_and(|cause| cause.is::<io::Error>()) { Self::ConnectionLost } else { Self::Other }
    }

    /// Of the five characters of a SQLSTATE.
    #[must_use]
    pub fn of_sqlstate(sqlstate: &str) -> Self {
        match sqlstate {
            // Shut down by an administrator, after a crash of another backend, database dropped, idle too long.
            "57P01" | "57P02" | "57P04" | "57P05" => Self::ConnectionLost,
            "57P03" => Self::Unavailable,
            "57014" | "25P03" | "25P04" => Self::Cancelled,
            // Serialization failure, deadlock, statement completion unknown, lock not available.
            "40001" | "40P01" | "40003" | "55P03" => Self::Conflict,
            "25006" => Self::ReadOnly,
            "42501" | "28000" | "28P01" | "0LP01" | "0P000" => Self::Privilege,
            "55006" => Self::InUse,
            _ => match sqlstate.get(..2) {
                Some("08") => Self::ConnectionLost,
                // Resources, and errors of the system around the server.
                Some("53" | "58") => Self::Unavailable,
                Some("40") => Self::Conflict,
                Some("23") => Self::Constraint,
                Some("22") => Self::Data,
                Some("42") => Self::Shape,
                _ => Self::Other,
            },
        }
    }

    /// The same work may succeed when it is done again, on a new connection where the old one is lost.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::ConnectionLost | Self::Unavailable | Self::Conflict | Self::InUse => true,
            Self::Constraint
            | Self::Data
            | Self::Shape
            | Self::Privilege
            | Self::ReadOnly
            | Self::Cancelled
            | Self::Other => false,
        }
    }
}

/// The five characters of the server's SQLSTATE, when the error is the server's.
#[must_use]
pub fn code(error: &Error) -> Option<&str> {
    error.code().map(SqlState::code)
}

/// A lock was not to be had within `lock_timeout` (55P03).
#[must_use]
pub fn is_lock_timeout(error: &Error) -> bool {
    code(error) == Some("55P03")
}

/// A table that was named is not there (42P01).
#[must_use]
pub fn is_undefined_table(error: &Error) -> bool {
    code(error) == Some("42P01")
}

/// Somebody else changed the same row of a catalog at the same moment, or each waited for the other. Catalogs have no SQLSTATE for
/// that, and the server's own words for it are not translated.
#[must_use]
pub fn is_concurrent_change(error: &Error) -> bool {
    let concurrent = |server: &DbError| server.message().starts_with("tuple concurrently ");
    match code(error) {
        Some("XX000") => error.as_db_error().is_some_and(concurrent),
        other => other == Some("40P01"),
    }
}

/// The connection is gone, or the server said that it is about to be.
#[must_use]
pub fn is_connection_lost(error: &Error) -> bool {
    Failure::of(error) == Failure::ConnectionLost
}

/// The same work may succeed when it is done again.
#[must_use]
pub fn is_retryable(error: &Error) -> bool {
    Failure::of(error).is_retryable()
}

/// A row, or what stands on its table, is the trouble: a constraint, a value, a trigger that refused or failed. Neither the
/// link nor the server nor a role's rights are, and doing it again changes nothing.
#[must_use]
pub fn is_about_the_table(error: &Error) -> bool {
    match Failure::of(error) {
        Failure::Constraint | Failure::Data => true,
        Failure::Shape | Failure::Privilege | Failure::Other => error
            .as_db_error()
            .is_some_and(|server| server.code().code().starts_with("P0") || is_from_user_code(server)),
        Failure::ConnectionLost
        | Failure::Unavailable
        | Failure::Conflict
        | Failure::ReadOnly
        | Failure::Cancelled
        | Failure::InUse => false,
    }
}

/// Other rows that are there, or not there, forbid a row: unique and foreign keys, exclusion constraints. Whatever else refuses one
/// would refuse it in an empty table as well.
#[must_use]
pub fn is_about_other_rows(error: &Error) -> bool {
    matches!(code(error), Some("23503" | "23505" | "23P01"))
}

/// The error in words that hold no row value: SQLSTATE, object names, and the server's message where that can't
/// quote data. The detail of an error often does ("Key (id)=(5) already exists."), messages of class 22 do, too
/// ("invalid input syntax for type integer: …"), and so does whatever a trigger or function raises, under any SQLSTATE.
#[must_use]
pub fn words(error: &Error) -> String {
    let Some(server) = error.as_db_error() else {
        return match std::error::Error::source(error) {
            Some(cause) if cause.is::<io::Error>() => format!("{error}: {cause}"),
            Some(_) | None => error.to_string(),
        };
    };
    let quotes_data = matches!(server.code().code().get(..2), Some("22" | "P0")) || is_from_user_code(server);
    let message = if quotes_data { condition(server.code()) } else { server.message() };
    let names = [
        ("table", server.table()),
        ("column", server.column()),
        ("type", server.datatype()),
        ("constraint", server.constraint()),
    ];
    let names = names.into_iter().filter_map(|(kind, name)| Some(format!(", {kind} {}", name?)));
    format!("{message} (SQLSTATE {}{})", server.code().code(), names.collect::<String>())
}

/// The relation, quoted, that has no partition for a row. PostgreSQL gives that the SQLSTATE of a violated check, and no
/// constraint's name with it.
#[must_use]
pub fn lacks_partition(error: &Error) -> Option<String> {
    let server = error.as_db_error().filter(|server| *server.code() == SqlState::CHECK_VIOLATION)?;
    if server.constraint().is_some() {
        return None;
    }
    Some(TableName::new(server.schema()?, server.table()?).sql())
}

/// An error and its causes. What a server said is told by [`words`], because its own words may quote rows.
#[must_use]
pub fn causes(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut texts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(server) = error.downcast_ref::<Error>() {
            texts.push(words(server));
            break;
        }
        texts.push(error.to_string());
        next = error.source();
    }
    texts
}

/// It was raised in a function of a procedural language, whose words are anybody's.
fn is_from_user_code(server: &DbError) -> bool {
    server.routine() == Some("exec_stmt_raise")
        || server.where_().is_some_and(|context| context.contains("PL/"))
}

fn condition(code: &SqlState) -> &'static str {
    match code.code() {
        "22001" => "a value is too long for its column",
        "22003" => "a number is out of range",
        "22007" | "22008" => "a date or time can't be read",
        "22021" => "a character does not exist in the encoding of the database",
        "22P02" => "a value can't be read as its type",
        "P0001" => "a trigger or function refused",
        code if code.starts_with("22") => "a value was refused",
        _ => "a trigger or function refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_that_passes_by_itself_is_retryable() {
        for sqlstate in [
            "40001", "40P01", "55P03", "57P01", "57P02", "57P03", "08006", "08P01", "53300", "53100",
            "58030", "55006",
        ] {
            assert!(Failure::of_sqlstate(sqlstate).is_retryable(), "{sqlstate}");
        }
    }

    #[test]
    fn no_failure_that_stays_is_retryable() {
        for (sqlstate, failure) in [
            ("23505", Failure::Constraint),
            ("23P01", Failure::Constraint),
            ("23503", Failure::Constraint),
            ("22P02", Failure::Data),
            ("42P01", Failure::Shape),
            ("42501", Failure::Privilege),
            ("25006", Failure::ReadOnly),
            ("57014", Failure::Cancelled),
            ("XX000", Failure::Other),
            ("", Failure::Other),
            ("é", Failure::Other),
        ] {
            assert_eq!(Failure::of_sqlstate(sqlstate), failure, "{sqlstate}");
            assert!(!failure.is_retryable(), "{sqlstate}");
        }
    }
}
