//! The ledger's entries about repaired rows.

use serde_json::json;
use tokio_postgres::Client;

use crate::journal::JournalError;
use crate::journal::ledger::{self, Author, NewEntry, REPAIR};
use crate::lsn::Lsn;
use crate::mapping::TableMapping;
use crate::reconcile::finding::RawKey;
use crate::reconcile::redact::Redactor;
use crate::reconcile::run::RunError;

/// What an entry says beside its table and keys.
pub(super) struct Entry<'a> {
    pub(super) plan: &'a str,
    pub(super) slice: &'a str,
    pub(super) author: &'a Author,
    /// The run that found the rows.
    pub(super) run: &'a str,
    pub(super) epoch: Option<i64>,
    pub(super) lsn: Option<Lsn>,
    pub(super) plan_hash: &'a str,
}

/// Writes the keys into the ledger, in as many entries as it takes: keys may be long texts.
pub(super) async fn all(
    service: &Client,
    entry: &Entry<'_>,
    (mapping, redactor): (&TableMapping, &Redactor),
    keys: &[RawKey],
) -> Result<(), RunError> {
    let mut groups = vec![keys];
    while let Some(group) = groups.pop() {
        match one(service, entry, (mapping, redactor), group).await {
            Err(RunError::Journal(JournalError::TooLong { .. })) if group.len() > 1 => {
                let (first, second) = group.split_at(group.len() / 2);
                groups.extend([second, first]);
            }
            recorded => recorded?,
        }
    }
    Ok(())
}

/// Writes one entry with the keys, as they may be shown.
async fn one(
    service: &Client,
    entry: &Entry<'_>,
    (mapping, redactor): (&TableMapping, &Redactor),
    keys: &[RawKey],
) -> Result<(), RunError> {
    if keys.is_empty() {
        return Ok(());
    }
    let shown: Vec<Vec<_>> = keys
        .iter()
        .map(|key| {
            let parts = mapping.key_columns().zip(&key.0);
            parts.map(|(column, value)| redactor.show(column, value)).collect()
        })
        .collect();
    let body = json!({
        "run": entry.run,
        "table": mapping.source.to_string(),
        "key": mapping.key_columns().map(|column| column.target.as_str()).collect::<Vec<_>>(),
        "rows": shown,
    });
    let entry = NewEntry {
        kind: REPAIR,
        plan: entry.plan,
        slice: Some(entry.slice),
        author: entry.author,
        epoch: entry.epoch,
        lsn: entry.lsn,
        plan_hash: Some(entry.plan_hash),
        body: &body,
    };
    let failed = |source| RunError::Journal(JournalError::Database { action: "recording repairs", source });
    service.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(failed)?;
    if let Err(error) = ledger::append(service, &entry).await {
        // When the connection broke there is nothing to roll back; the first error tells the story.
        let _ = service.batch_execute("ROLLBACK").await;
        return Err(RunError::Journal(error));
    }
    service.batch_execute("COMMIT").await.map_err(failed)
}
