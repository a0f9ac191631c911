//! What `provision`, `arm`, `disarm`, `retire` and `unretire` tell the ledgers: once for each step that was taken, after the last
//! one. A run that was killed or stopped before that has its steps in the journals, and the next one tells of them.

use tokio_postgres::Client;

use super::{Database, Databases, ProvisionError};
use crate::failpoint;
use crate::journal::JournalError;
use crate::journal::ledger::{
    self, ARM, Author, DISARM, NewEntry, PROVISION, RETIRE, Subject, UNRETIRE, steps,
};
use crate::journal::{beginnings, slices};
use crate::lsn::Lsn;
use crate::mapping::{Mappings, SliceMapping};
use crate::plan::Plan;

/// Whose run it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The verb that was typed.
    pub verb: &'a str,
    /// Slices that it was typed for; empty means all.
    pub only: &'a [String],
    /// Who.
    pub author: &'a Author,
}

/// Tells the ledgers what was done for each slice, and that its mapping or policy is another one than they named last.
///
/// # Errors
/// [`ProvisionError::Journal`], [`ProvisionError::NoConnection`]; what was done stays, and the next run tells of it.
pub(crate) async fn record(
    databases: &Databases,
    run: Run<'_>,
    mappings: &Mappings,
) -> Result<(), ProvisionError> {
    for (name, service) in &databases.services {
        let failed = |source| ProvisionError::Journal { database: Database::Service(name.clone()), source };
        let chosen = |slice: &&SliceMapping| {
            slice.service == *name && (run.only.is_empty() || run.only.contains(&slice.slice))
        };
        let slices: Vec<&SliceMapping> = mappings.values().filter(chosen).collect();
        // A service of other slices need not have a ledger yet.
        if slices.is_empty() {
            continue;
        }
        let mut made = false;
        for slice in slices {
            made |= of_slice((service, &databases.monolith), run, slice).await.map_err(failed)?;
            if run.verb == PROVISION {
                let of = (slice.slice.as_str(), name.as_str());
                beginnings::note_home(&databases.monolith, service, of).await.map_err(failed)?;
            }
        }
        if run.verb == PROVISION {
            made |= of_service(service, &databases.monolith, run).await.map_err(failed)?;
        }
        if made {
            failpoint::hit("steps-recorded");
            // What the monolith does not get now, it gets with the next head.
            let anchored = ledger::anchor(service, Some(&databases.monolith), name).await;
            tracing::debug!(service = name, ?anchored, "the ledger's head");
        }
    }
    Ok(())
}

/// `true` when an entry was made.
async fn of_slice(
    (service, monolith): (&Client, &Client),
    run: Run<'_>,
    slice: &SliceMapping,
) -> Result<bool, JournalError> {
    let name = slice.slice.as_str();
    if slices::read(service, name).await?.is_none() {
        return Ok(false);
    }
    let policy = run.plan.slices.get(name).map_or(&run.plan.policy, |slice| &slice.policy);
    let subject = Subject::new(&run.plan.name, slice, policy.hash(), run.author.clone());
    let mut made = subject.note_plan(service, run.verb).await?;
    // Of an `arm` that was cut off the `disarm` after it tells, too, and so on.
    let verbs: &[&str] = match run.verb {
        PROVISION => &[PROVISION],
        RETIRE | UNRETIRE => &[RETIRE, UNRETIRE],
        _ => &[ARM, DISARM],
    };
    for verb in verbs {
        if steps::untold(service, monolith, verb, Some(name)).await?.is_empty() {
            continue;
        }
        let lsn = authority_position(service, monolith, name).await?;
        made |= ledger::transaction(service, async || {
            ledger::lock(service).await?;
            let steps = steps::untold(service, monolith, verb, Some(name)).await?;
            if steps.is_empty() {
                return Ok(false);
            }
            subject.append(service, verb, lsn, &steps.body()).await.map(|_| true)
        })
        .await?;
    }
    Ok(made)
}

/// What was made for all slices of a service together: roles and their rights.
async fn of_service(service: &Client, monolith: &Client, run: Run<'_>) -> Result<bool, JournalError> {
    ledger::transaction(service, async || {
        ledger::lock(service).await?;
        let steps = steps::untold(service, monolith, PROVISION, None).await?;
        if steps.is_empty() {
            return Ok(false);
        }
        let entry = NewEntry {
            kind: PROVISION,
            plan: &run.plan.name,
            slice: None,
            author: run.author,
            epoch: None,
            lsn: None,
            plan_hash: None,
            body: &steps.body(),
        };
        ledger::append(service, &entry).await.map(|_| true)
    })
    .await
}

/// Position on the side that has authority; `None` where no side has it.
async fn authority_position(
    service: &Client,
    monolith: &Client,
    slice: &str,
) -> Result<Option<Lsn>, JournalError> {
    for side in [monolith, service] {
        // The monolith's goes with old tables that are dropped.
        if slices::gate_if_any(side, slice).await?.is_some_and(|gate| gate.state == "OPEN") {
            return slices::insert_position(side).await.map(Some);
        }
    }
    Ok(None)
}
