//! `doctor --clean`: removes what nobody needs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use tokio_postgres::Client;

use super::facts::Place;
use super::gather::gather;
use super::judge::{Object, Removal, judge};
use crate::dualwrite::exclusion;
use crate::journal;
use crate::plan::Plan;
use crate::postgres::Session;

/// Nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// Somebody changes these databases.
    #[error("{place}: {} is at work there; wait until it has ended and run it again{}",
        holder.as_ref().map_or_else(|| "another verb".to_owned(), ToString::to_string),
        holder.as_ref().map_or_else(String::new, |holder| format!("; where whoever typed it is gone, there: {}", holder.end())))]
    Busy {
        /// Where.
        place: Place,
        /// Who.
        holder: Option<exclusion::Holder>,
    },
    /// A server did not say whether somebody does.
    #[error("{place}: could not ask whether somebody works there")]
    Database {
        /// Where.
        place: Place,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
}

/// What became of one object.
#[derive(Debug)]
pub struct Removed {
    /// Where.
    pub place: Place,
    /// What was done.
    pub removal: Removal,
    /// Why it could not be done.
    pub failed: Option<tokio_postgres::Error>,
}

/// Keeps every other verb that makes or removes such objects away, reads and judges everything again, and removes what nobody
/// needs. `sessions` are of the `admin` links, `slots` a session of each place that may drop slots. Each removal stands for
/// itself, so an interruption leaves the rest to the next run.
///
/// # Errors
/// [`CleanError`]: nothing was removed.
pub async fn clean(
    plan: &Plan,
    sessions: &BTreeMap<Place, Result<Session, String>>,
    slots: &BTreeMap<Place, Session>,
) -> Result<Vec<Removed>, CleanError> {
    // A link that leads elsewhere may lead to a database that another link leads to.
    let readable = gather(plan, sessions).await.databases.into_iter().filter(|(_, seen)| seen.is_ok());
    let places: BTreeSet<Place> = readable.map(|(place, _)| place).collect();
    let locked = lock(sessions, &places).await;
    let mut removed = Vec::new();
    if locked.is_ok() {
        for report in judge(&gather(plan, sessions).await) {
            let Some(Ok(session)) = sessions.get(&report.place) else { continue };
            if !places.contains(&report.place) {
                continue;
            }
            for removal in report.objects.into_iter().filter_map(|object: Object| object.removal) {
                let failed = remove(session, slots.get(&report.place), &removal).await.err();
                removed.push(Removed { place: report.place.clone(), removal, failed });
            }
        }
    }
    for session in sessions.values().flatten() {
        exclusion::release(session).await;
    }
    locked.map(|()| removed)
}

async fn lock(
    sessions: &BTreeMap<Place, Result<Session, String>>,
    places: &BTreeSet<Place>,
) -> Result<(), CleanError> {
    for place in places {
        let Some(Ok(session)) = sessions.get(place) else { continue };
        let taken = exclusion::take(session).await;
        if !taken.map_err(|source| CleanError::Database { place: place.clone(), source })? {
            return Err(CleanError::Busy { place: place.clone(), holder: exclusion::holder(session).await });
        }
    }
    Ok(())
}

/// The server itself refuses to drop a slot that somebody reads.
async fn remove(
    session: &Client,
    slots: Option<&Session>,
    removal: &Removal,
) -> Result<(), tokio_postgres::Error> {
    let dropper: &Client = match (removal, slots) {
        (Removal::Slot(_), Some(slots)) => slots,
        _ => session,
    };
    dropper.batch_execute(&removal.sql()).await?;
    let written = journal::record(session, None, "doctor-removed", &json!({ "sql": removal.sql() })).await;
    // The note is a courtesy, and our schema need not be there.
    tracing::debug!(?written, "the journal");
    Ok(())
}
