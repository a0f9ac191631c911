//! The ledger's head in the monolith's journal: a second place that remembers how long the ledger was.

use serde_json::json;
use tokio_postgres::{Client, Row};

use super::{Head, JournalError, head};
use crate::journal::{record, slices};

/// Action of the journal's entries that hold a head.
const ACTION: &str = "ledger-head";

/// How the monolith's journal stands to the ledger.
#[derive(Debug)]
pub enum Anchored {
    /// The ledger is empty.
    Empty,
    /// The journal holds this head.
    Recorded(Head),
    /// The journal could not be written. The ledger stands; the next call writes the head, whoever makes it.
    Owed {
        /// The head, when the service could be asked.
        head: Option<Head>,
        /// Why: an error with its causes, or that no session was given.
        why: String,
    },
    /// The journal holds a head that the ledger does not have: entries were cut off, or the ledger was replaced.
    /// Nothing was written.
    Contradicted {
        /// The ledger's head.
        head: Option<Head>,
        /// Number of the entry that the journal remembers.
        recorded: i64,
    },
}

/// Writes the ledger's head to the monolith's journal, unless it is there. To be called after a commit that appended,
/// and before a run begins, with sessions outside any transaction. `service` is the service's name in the plan.
pub async fn anchor(service: &Client, monolith: Option<&Client>, service_name: &str) -> Anchored {
    let head = match head(service).await {
        Ok(head) => head,
        Err(error) => return Anchored::Owed { head: None, why: causes(&error) },
    };
    let Some(monolith) = monolith else {
        return Anchored::Owed { head, why: "the monolith was not reached".to_owned() };
    };
    match write(service, monolith, service_name, head).await {
        Ok(anchored) => anchored,
        Err(error) => Anchored::Owed { head, why: causes(&error) },
    }
}

async fn write(
    service: &Client,
    monolith: &Client,
    service_name: &str,
    head: Option<Head>,
) -> Result<Anchored, JournalError> {
    let database = database(service).await?;
    let latest = latest(monolith, &database).await?;
    if let Some(known) = &latest
        && hash_at(service, known.id).await?.as_ref() != Some(&known.hash)
    {
        return Ok(Anchored::Contradicted { head, recorded: known.id });
    }
    let Some(head) = head else { return Ok(Anchored::Empty) };
    // Another run may have written a head that is further on than the one that was read here.
    if latest.is_none_or(|known| known.id < head.id) {
        let detail = json!({
            "service": service_name,
            "database": database,
            "id": head.id,
            "hash": head.hash.to_string(),
            "at_us": head.at_us,
        });
        record(monolith, None, ACTION, &detail).await?;
    }
    Ok(Anchored::Recorded(head))
}

/// The hash of an entry of the ledger, if there is one of that number.
async fn hash_at(service: &Client, id: i64) -> Result<Option<String>, JournalError> {
    let sql = "SELECT encode(hash, 'hex') FROM strangler.ledger WHERE id = $1";
    let row = service.query_opt(sql, &[&id]).await.map_err(reading())?;
    Ok(row.map(|row| row.get(0)))
}

/// A head as the monolith's journal holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) id: i64,
    pub(super) hash: String,
}

fn known(row: &Row) -> Known {
    Known { id: row.get(0), hash: row.get(1) }
}

/// Tells ledgers apart: a service's database that is made anew begins another one.
pub(super) async fn database(service: &Client) -> Result<String, JournalError> {
    let uuid = slices::database_uuid(service).await?;
    uuid.ok_or_else(|| JournalError::Unreadable { what: "database.uuid", found: "nothing".to_owned() })
}

/// The furthest head that the journal holds of the ledger in this database.
pub(super) async fn latest(monolith: &Client, database: &str) -> Result<Option<Known>, JournalError> {
    let sql = "SELECT (detail ->> 'id')::bigint, detail ->> 'hash' FROM strangler.journal \
               WHERE action = 'ledger-head' AND detail ->> 'database' = $1 \
               ORDER BY (detail ->> 'id')::bigint DESC LIMIT 1";
    let row = monolith.query_opt(sql, &[&database]).await.map_err(reading())?;
    Ok(row.as_ref().map(known))
}

/// The heads that the journal holds of entries in (after, upto].
pub(super) async fn between(
    monolith: &Client,
    database: &str,
    (after, upto): (i64, i64),
) -> Result<Vec<Known>, JournalError> {
    let sql = "SELECT DISTINCT (detail ->> 'id')::bigint, detail ->> 'hash' FROM strangler.journal \
               WHERE action = 'ledger-head' AND detail ->> 'database' = $1 \
                 AND (detail ->> 'id')::bigint > $2 AND (detail ->> 'id')::bigint <= $3 ORDER BY 1";
    let rows = monolith.query(sql, &[&database, &after, &upto]).await.map_err(reading())?;
    Ok(rows.iter().map(known).collect())
}

fn reading() -> impl FnOnce(tokio_postgres::Error) -> JournalError {
    JournalError::database("comparing the ledger's head with the monolith's journal")
}

fn causes(error: &JournalError) -> String {
    let mut words = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        next = cause.source();
    }
    words
}
