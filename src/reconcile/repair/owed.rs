//! Rows that the mirror repaired for a process that died, or gave up, before it wrote them into the ledger.

use tokio_postgres::Client;

use super::record::{self, Entry, Landed};
use crate::journal::ledger::Author;
use crate::journal::repairs;
use crate::reconcile::finding::RawKey;
use crate::reconcile::redact::Redactor;
use crate::reconcile::run::{RunError, SliceJob};

/// Records what is owed to the ledger for a slice. `requests` are the sessions of the databases that may hold requests.
///
/// Whoever asked records within seconds of the answer, so only older answers are looked at: what they say is theirs to say.
/// Should they do it later even so, the ledger has the request's number already, and nothing twice.
///
/// # Errors
/// [`RunError`]; what was recorded until then stays.
pub async fn settle(
    job: &SliceJob,
    service: &Client,
    requests: &[&Client],
    author: &Author,
) -> Result<(), RunError> {
    let slice = job.mapping.slice.as_str();
    for client in requests {
        let done = repairs::done_long_ago(client, slice).await?;
        let after = record::last(service).await?;
        let runs: Vec<&str> = done.iter().map(|done| done.run.as_str()).collect();
        let mut recorded = repairs::recorded(service, slice, &runs, 0).await?;
        for done in &done {
            let tables = &job.mapping.tables;
            let mapping = tables.iter().find(|table| table.source.to_string() == done.source_table);
            // Without the table nobody knows which parts of its keys are classified.
            let Some(mapping) = mapping else { continue };
            let known = recorded.remove(&(done.run.clone(), done.source_table.clone())).unwrap_or_default();
            let keys = repairs::keys(client, &known.lacks(&done.ids)).await?;
            let rows: Vec<Landed> =
                keys.into_iter().map(|(request, key)| Landed { request, key: RawKey(key) }).collect();
            let entry = Entry {
                plan: &job.plan,
                slice,
                author,
                run: &done.run,
                epoch: None,
                lsn: done.lsn,
                plan_hash: &job.mapping.hash,
                accepted: None,
                after,
            };
            let rows = record::all(service, &entry, (mapping, &Redactor::new()?), &rows).await?;
            if rows > 0 {
                tracing::info!(slice, table = done.source_table, rows, "earlier repairs were recorded");
            }
        }
    }
    Ok(())
}
