//! Rows that the mirror repaired for a process that died, or gave up, before it wrote them into the ledger.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::record::{self, Entry};
use crate::journal::ledger::Author;
use crate::journal::repairs;
use crate::reconcile::finding::RawKey;
use crate::reconcile::redact::Redactor;
use crate::reconcile::run::{RunError, SliceJob};

/// Records what is owed to the ledger for a slice. `requests` are the sessions of the databases that may hold requests.
///
/// Whoever asked records within seconds of the answer, so only older answers are looked at. Of one run and table the keys that
/// are recorded are the first ones, because a repair asks for some, records them, and then asks for more.
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
    let mut recorded: Option<BTreeMap<(String, String), i64>> = None;
    for client in requests {
        for done in repairs::done_long_ago(client, slice).await? {
            let known = match &recorded {
                Some(known) => known,
                None => recorded.insert(repairs::recorded(service, slice).await?),
            };
            let skip = known.get(&(done.run.clone(), done.source_table.clone())).copied().unwrap_or(0);
            let mapping =
                job.mapping.tables.iter().find(|table| table.source.to_string() == done.source_table);
            let Some(mapping) = mapping.filter(|_| done.rows > skip) else { continue };
            let keys = repairs::done_keys(client, (slice, &done), skip).await?;
            let keys: Vec<RawKey> = keys.into_iter().map(RawKey).collect();
            let entry = Entry {
                plan: &job.plan,
                slice,
                author,
                run: &done.run,
                epoch: None,
                lsn: done.lsn,
                plan_hash: &job.mapping.hash,
            };
            record::all(service, &entry, (mapping, &Redactor::new()?), &keys).await?;
            tracing::info!(
                slice,
                table = done.source_table,
                rows = keys.len(),
                "earlier repairs were recorded"
            );
        }
    }
    Ok(())
}
