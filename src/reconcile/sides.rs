//! Who holds the authority over a slice, and the ways to both sides.

use crate::journal::streams::Direction;
use crate::postgres::connect::{ConnectError, Server, Session};

use super::form::Side;

/// `pg_stat_activity.application_name` of every session of a comparison.
pub const APPLICATION: &str = "strangler reconcile";

/// The ways to the two sides of one slice.
#[derive(Debug, Clone)]
pub struct Sides {
    /// The side that says what is right.
    pub authority: Side,
    /// The monolith: catalogs, snapshots, moved tables.
    pub monolith_read: Server,
    /// The monolith under the apply role, which may lock rows.
    pub monolith_apply: Server,
    /// The service under the apply role, which may read the tables, lock rows, and write our own tables.
    pub service_apply: Server,
}

impl Sides {
    /// The side that is compared with the authority.
    #[must_use]
    pub fn copy(&self) -> Side {
        self.authority.other()
    }

    /// The stream that keeps the copy current.
    #[must_use]
    pub fn direction(&self) -> Direction {
        match self.authority {
            Side::Source => Direction::Forward,
            Side::Target => Direction::Reverse,
        }
    }

    /// The word of a side in reports: `monolith` or `service`.
    #[must_use]
    pub fn word(side: Side) -> &'static str {
        match side {
            Side::Source => "monolith",
            Side::Target => "service",
        }
    }

    /// A session that reads a side's rows.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn reader(&self, side: Side) -> Result<Session, ConnectError> {
        match side {
            Side::Source => self.monolith_read.connect(APPLICATION).await,
            Side::Target => self.service_apply.connect(APPLICATION).await,
        }
    }

    /// A session that may lock rows of a side.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn locker(&self, side: Side) -> Result<Session, ConnectError> {
        match side {
            Side::Source => self.monolith_apply.connect(APPLICATION).await,
            Side::Target => self.service_apply.connect(APPLICATION).await,
        }
    }
}
