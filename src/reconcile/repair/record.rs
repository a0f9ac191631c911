//! The ledger's entries about repaired rows.

use serde_json::json;
use tokio_postgres::Client;

use crate::failpoint;
use crate::journal::JournalError;
use crate::journal::ledger::{self, Author, NewEntry, REPAIR};
use crate::journal::repairs;
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
    /// Why it is right that the authority holds no row of the table.
    pub(super) accepted: Option<&'a str>,
    /// The ledger's last entry before it was known that it lacks the rows.
    pub(super) after: i64,
}

/// The number of the ledger's last entry.
pub(super) async fn last(service: &Client) -> Result<i64, JournalError> {
    Ok(ledger::head(service).await?.map_or(0, |head| head.id))
}

/// A row that the mirror has landed again.
#[derive(Clone)]
pub(super) struct Landed {
    /// The request that it was asked for with.
    pub(super) request: i64,
    pub(super) key: RawKey,
}

/// Writes the rows into the ledger, in as many entries as it takes: keys may be long texts. Returns how many it had not
/// yet: each entry names its requests, and one that the ledger has is left out, so that two processes record a row once.
pub(super) async fn all(
    service: &Client,
    entry: &Entry<'_>,
    (mapping, redactor): (&TableMapping, &Redactor),
    rows: &[Landed],
) -> Result<usize, RunError> {
    let (mut groups, mut count) = (vec![rows], 0);
    while let Some(group) = groups.pop() {
        let failed =
            |source| RunError::Journal(JournalError::Database { action: "recording repairs", source });
        service.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(failed)?;
        match one(service, entry, (mapping, redactor), group).await {
            Ok(recorded) => {
                service.batch_execute("COMMIT").await.map_err(failed)?;
                failpoint::hit("repairs-recorded");
                count += recorded;
            }
            Err(error) => {
                // When the connection broke there is nothing to roll back; the first error tells the story.
                let _ = service.batch_execute("ROLLBACK").await;
                if !matches!(error, JournalError::TooLong { .. }) || group.len() < 2 {
                    return Err(RunError::Journal(error));
                }
                let (first, second) = group.split_at(group.len() / 2);
                groups.extend([second, first]);
            }
        }
    }
    Ok(count)
}

/// Appends one entry with those of the rows that the ledger lacks, in the open transaction.
async fn one(
    service: &Client,
    entry: &Entry<'_>,
    (mapping, redactor): (&TableMapping, &Redactor),
    rows: &[Landed],
) -> Result<usize, JournalError> {
    ledger::lock(service).await?;
    let table = mapping.source.to_string();
    let known = repairs::recorded(service, entry.slice, &[entry.run], entry.after).await?;
    let known = known.get(&(entry.run.to_owned(), table.clone()));
    let is_new = |row: &&Landed| known.is_none_or(|known| !known.ids.contains(&row.request));
    let rows: Vec<&Landed> = rows.iter().filter(is_new).collect();
    if rows.is_empty() {
        return Ok(0);
    }
    let shown: Vec<_> = rows.iter().map(|row| redactor.show_key(mapping, &row.key)).collect();
    let mut body = json!({
        "run": entry.run,
        "table": table,
        "key": mapping.key_columns().map(|column| column.target.as_str()).collect::<Vec<_>>(),
        "rows": shown,
        "requests": rows.iter().map(|row| row.request).collect::<Vec<_>>(),
    });
    if let Some((reason, body)) = entry.accepted.zip(body.as_object_mut()) {
        body.insert("accepted_no_rows".to_owned(), json!(reason));
    }
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
    ledger::append(service, &entry).await?;
    Ok(rows.len())
}
