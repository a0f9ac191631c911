//! What can stop provisioning.

use super::Database;
use crate::dualwrite::exclusion::Holder;
use crate::journal::{JournalError, migrate};
use crate::postgres::introspect;
use crate::problem::{Problem, Severity};

/// Provisioning stopped. What was committed before stays, and the next run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// A step failed.
    #[error(
        "{database}: could not {purpose} {object}; nothing of this step was kept: solve it and run provision again. It was at: \
         {statement}"
    )]
    Step {
        /// Where.
        database: Database,
        /// What the step was to do.
        purpose: String,
        /// To what.
        object: String,
        /// The statement that failed, as it may be shown.
        statement: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// Our own schema could not be created or upgraded.
    #[error("{database}: could not bring the schema strangler to the present version")]
    Migrate {
        /// Where.
        database: Database,
        /// Why.
        source: migrate::MigrateError,
    },
    /// Catalogs could not be read.
    #[error("{database}: could not read the catalogs")]
    Read {
        /// Where.
        database: Database,
        /// Why.
        source: introspect::IntrospectError,
    },
    /// What is provisioned could not be read.
    #[error("{database}: could not read {what}")]
    State {
        /// Where.
        database: Database,
        /// Which part.
        what: &'static str,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// Our own tables could not be read.
    #[error("{database}: could not read what was provisioned")]
    Journal {
        /// Where.
        database: Database,
        /// Why.
        source: JournalError,
    },
    /// Another provision, arm or disarm works on the database.
    #[error(
        "{database}: another `strangler provision`, `arm`, `disarm`, `retire`, `unretire` or `abandon`, or a `flip`, is at work there{}; wait until it has \
         ended and run it again{}",
        holder.as_ref().map_or_else(String::new, |holder| format!(": {holder}")),
        holder.as_ref().map_or_else(String::new, |holder| format!(
            "; where whoever typed it is gone, in that database: {}", holder.end()))
    )]
    Busy {
        /// Where.
        database: Database,
        /// Who, as far as that is to be seen.
        holder: Option<Holder>,
    },
    /// No connection was given for a database of the plan.
    #[error("{database}: no admin connection was opened; check the plan's admin link of it")]
    NoConnection {
        /// Which.
        database: Database,
    },
    /// The design holds refusals.
    #[error("provision refused: {} of the problems found must be solved first", problems.iter().filter(|p| p.severity == Severity::Error).count())]
    Refused {
        /// All problems, refusals and warnings.
        problems: Vec<Problem>,
    },
}
