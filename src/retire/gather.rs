//! Asks the databases about a slice's old tables.

use std::time::Duration;

use tokio_postgres::Client;

use super::dependents;
use super::facts::{SliceFacts, StrayWrites};
use crate::archive::ArchiveError;
use crate::authority::Side;
use crate::catalog::Catalog;
use crate::clock::{Clock, SystemClock};
use crate::journal::usage::{self, STATEMENT_CHARS, TableUser};
use crate::journal::whereabouts::Astray;
use crate::journal::{JournalError, abandonment, alarms, slices};
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::postgres::introspect::IntrospectError;
use crate::postgres::{clocks, sqlstate, statements_seen};
use crate::problem::{Problem, Severity};
use crate::provision::ProvisionError;
use crate::words::statement;

/// What is asked, and whom.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The slice.
    pub mapping: &'a SliceMapping,
    /// The plan's `quiet_period`.
    pub quiet_period: Duration,
    /// The monolith's catalogs.
    pub catalog: &'a Catalog,
    /// The monolith under the apply role, which watches.
    pub monolith: &'a Client,
    /// The service.
    pub service: &'a Client,
}

/// The databases could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// Our own tables.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The monolith's catalogs.
    #[error(transparent)]
    Catalog(#[from] IntrospectError),
    /// The slice is not provisioned.
    #[error("slice {slice} is not provisioned")]
    NotProvisioned {
        /// Slice.
        slice: String,
    },
    /// An earlier version provisioned the monolith.
    #[error("strangler's tables in the monolith are of an earlier version")]
    Outdated,
    /// Something stands in the way.
    #[error("the old tables stay as they are")]
    Refused {
        /// What.
        problems: Vec<Problem>,
    },
    /// What is to be done is not what was shown.
    #[error(
        "what is to be done for slice {slice} is not what was shown: something changed since; nothing was done"
    )]
    Changed {
        /// Slice.
        slice: String,
    },
    /// The catalog does not have afterwards what was given back.
    #[error("the server did not give back {missing}; nothing was done")]
    NotExact {
        /// Which rights.
        missing: String,
    },
    /// The catalog does not have afterwards what was moved.
    #[error("the server did not move {missing} with all its rights; nothing was done")]
    NotMoved {
        /// Which tables, where they should be.
        missing: String,
    },
    /// Somebody else changed rights at the same moment.
    #[error("somebody else changes the old tables or rights on them at the same time, so nothing was done")]
    Raced,
    /// Somebody holds what is needed.
    #[error("waited too long for somebody else's transaction{}; nothing was done", .who.as_ref().map(|who| format!(": {who}")).unwrap_or_default())]
    Waited {
        /// Who it is, as far as that is to be seen.
        who: Option<String>,
    },
    /// A statement of a stage failed.
    #[error("{}, and nothing was done: {sql}", failure(.owner.as_deref(), .source))]
    Statement {
        /// The statement.
        sql: String,
        /// As whom it was made, where that is not the administrator.
        owner: Option<String>,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A step behind the tables failed.
    #[error("a step behind the old tables failed: {sql}")]
    Step {
        /// The statements of its transaction.
        sql: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Somebody holds what a step behind the tables needs.
    #[error("a step behind the old tables could not be done: {what}")]
    Left {
        /// What, and who.
        what: String,
    },
    /// Somebody else needs our schema.
    #[error(
        "the schema strangler stays in the monolith, because of others depends on it: {objects}; drop that, or move it away"
    )]
    Used {
        /// What, as kind and identity.
        objects: String,
    },
    /// The service did not write down in time that the tables are to be dropped, and they are not.
    #[error(
        "the service did not write down within {limit:?} that the old tables are to be dropped: {why}; nothing was dropped"
    )]
    Unnoted {
        /// How long everybody would have waited for the old tables meanwhile.
        limit: Duration,
        /// What it waited for, as far as that is known.
        why: String,
    },
    /// The service has it written down that the tables are to be dropped, or may have, and they are not.
    #[error("the old tables are not dropped, and their service may have it written down that they are to be")]
    Decided {
        /// What the operator may type.
        next: String,
        /// Why they are not.
        #[source]
        source: Box<RetireError>,
    },
    /// The old tables are dropped, and not all that goes behind them.
    #[error("the old tables are dropped, and what goes behind them is not all done")]
    Behind {
        /// The command that does the rest.
        next: String,
        /// Why it was not.
        #[source]
        source: Box<RetireError>,
    },
    /// What the catalogs say of tables can't be written down.
    #[error("what the catalogs say of the old tables could not be written down")]
    Kept {
        /// Why.
        source: serde_json::Error,
    },
    /// The databases are held by somebody else.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// An archive could not be written, read back or found.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It was done and committed, and the service's ledger could not be told.
    #[error("{done}; only the ledger's entry is missing")]
    Untold {
        /// What is so now, as `the rights are taken away`.
        done: &'static str,
        /// Why.
        #[source]
        source: ProvisionError,
    },
    /// The link was lost at the COMMIT, and what came of it could not be asked.
    #[error("it is not known whether {done}: the link was lost at the COMMIT")]
    Unknown {
        /// What may be so now, as `the rights are taken away`.
        done: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A statement failed.
    #[error("could not read {what}")]
    Database {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
}

/// Where `track_counts` is off: the server, databases and roles.
const UNCOUNTED: &str = "SELECT 'the server' WHERE current_setting('track_counts') = 'off' \
    UNION ALL SELECT CASE WHEN s.setrole = 0 THEN 'database ' || current_database() ELSE 'role ' || pg_get_userbyid(s.setrole) END \
    FROM pg_db_role_setting s, unnest(s.setconfig) AS c WHERE CASE WHEN c ~* '^track_counts=' THEN NOT split_part(c, '=', 2)::boolean ELSE false END \
        AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))";

/// As whom a statement failed, and the server's own words: GRANT and REVOKE meet no rows, so that these can't quote any, also where a
/// trigger said them.
fn failure(owner: Option<&str>, source: &tokio_postgres::Error) -> String {
    let owner = owner.map(|owner| format!(" as {owner}")).unwrap_or_default();
    let said = raised(source).map(|said| format!(" ({said})")).unwrap_or_default();
    format!("a statement failed{owner}{said}")
}

/// The words of a trigger or function, which are left out elsewhere.
fn raised(source: &tokio_postgres::Error) -> Option<&str> {
    let said = source.as_db_error()?.message();
    (!sqlstate::words(source).contains(said)).then_some(said)
}

impl RetireError {
    pub(super) fn database(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Database { what, source }
    }

    /// The problems again, where none of them stands in the way.
    pub(super) fn unless_allowed(problems: Vec<Problem>) -> Result<Vec<Problem>, Self> {
        let stops = problems.iter().any(|problem| problem.severity == Severity::Error);
        if stops { Err(Self::Refused { problems }) } else { Ok(problems) }
    }
}

/// Reads everything about one slice; changes nothing.
///
/// # Errors
/// [`RetireError`].
pub async fn gather(asked: Asked<'_>) -> Result<SliceFacts, RetireError> {
    let Asked { mapping, monolith, service, .. } = asked;
    let slice = mapping.slice.as_str();
    not_abandoned(service, slice).await?;
    let (here, there) = (slices::gate(monolith, slice).await?, slices::gate(service, slice).await?);
    let (Some(here), Some(there)) = (here, there) else {
        return Err(RetireError::NotProvisioned { slice: slice.to_owned() });
    };
    let authority = match (here.state.as_str(), there.state.as_str()) {
        ("OPEN", _) => Some(Side::Monolith),
        (_, "OPEN") => Some(Side::Service),
        (_, _) => None,
    };
    let known = usage::tables(monolith, slice).await?;
    let sources: Vec<TableName> = mapping.tables.iter().map(|table| table.source.clone()).collect();
    let names = dependents::with_partitions(asked.catalog, sources.iter());
    let tables = mapping.tables.iter().map(|table| {
        let label = table.source.to_string();
        let seen = known.iter().find(|(name, seen)| *name == label && seen.epoch == here.epoch);
        (label, seen.map(|(_, seen)| seen.clone()))
    });
    let uncounted = monolith.query_typed(UNCOUNTED, &[]).await;
    let uncounted = uncounted.map_err(RetireError::database("what the monolith does not count"))?;
    // Before the clock is read, so that nobody was met in the future.
    let now = usage::sessions(monolith, &sources).await?;
    let now_us = SystemClock.now_us();
    let asking = "SELECT pg_has_role('pg_read_all_stats', 'USAGE'), \
                  (SELECT count(*) FROM pg_stat_replication r JOIN pg_stat_activity a USING (pid) WHERE a.datid IS NULL)";
    let row = monolith
        .query_typed_one(asking, &[])
        .await
        .map_err(RetireError::database("who follows the monolith"))?;
    let apart_us =
        clocks::apart_us([monolith, service]).await.map_err(RetireError::database("the servers' clocks"))?;
    let statements = statements_seen::state(monolith).await;
    let dependents = dependents::read(monolith, asked.catalog, &names).await;
    let strays = alarms::on_monolith(service, slice, here.epoch).await?;
    Ok(SliceFacts {
        slice: slice.to_owned(),
        service: mapping.service.clone(),
        authority,
        epoch: here.epoch,
        now_us,
        apart_us,
        quiet_us: i64::try_from(asked.quiet_period.as_micros()).unwrap_or(i64::MAX),
        tables: tables.collect(),
        users: with(usage::users(monolith, slice).await?, now),
        strays: strays
            .into_iter()
            .map(|(source_table, count, last_us)| StrayWrites { source_table, count, last_us })
            .collect(),
        dependents: dependents.map_err(RetireError::database("what depends on the old tables"))?,
        blind: statements.map_err(RetireError::database("the extensions"))?.err(),
        standbys: row.get(1),
        uncounted: uncounted.iter().map(|row| row.get(0)).collect(),
        hidden: !row.get::<_, bool>(0),
    })
}

/// Refuses a slice that is being taken back: what is asked about it may be gone already.
pub(super) async fn not_abandoned(service: &Client, slice: &str) -> Result<(), RetireError> {
    if abandonment::read(service, slice).await?.is_none() {
        return Ok(());
    }
    let problems = vec![Astray::Abandoned { slice: slice.to_owned() }.problem()];
    Err(RetireError::Refused { problems })
}

/// Whoever was met before, and whoever is there now, also where no mirror has looked since.
fn with(mut known: Vec<TableUser>, now: Vec<TableUser>) -> Vec<TableUser> {
    let key = |user: &TableUser| {
        let TableUser { source_table, how, role, application, client, .. } = user.clone();
        (source_table, how, role, application, client)
    };
    for user in now {
        let user = TableUser { statement: statement::shown_within(&user.statement, STATEMENT_CHARS), ..user };
        match known.iter_mut().find(|one| key(one) == key(&user)) {
            Some(one) => (one.last_us, one.statement) = (user.last_us, user.statement),
            None => known.push(user),
        }
    }
    known
}
