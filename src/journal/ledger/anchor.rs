//! The ledger's head in the monolith's journal: a second place that remembers how long the ledger was.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio_postgres::{Client, Row};

use super::{Head, JournalError, NewEntry, append, head, transaction};
use crate::failpoint;
use crate::journal::{record, slices};

/// Action of the journal's entries that hold a head.
const ACTION: &str = "ledger-head";

/// Where the monolith's journal is asked what it remembers.
#[derive(Debug, Clone, Copy)]
pub enum Memory<'a> {
    /// On the monolith.
    Monolith(&'a Client),
    /// In the service that keeps it since our schema went from the monolith. What a human accepts from then on is in that service's own.
    Kept(&'a Client),
}

/// The monolith's journal as a service keeps it, and behind it what that service's own says of ledgers.
const KEPT: &str = "(SELECT row_number() OVER (ORDER BY k.own, k.since, k.id) AS id, k.action, k.detail FROM ( \
        SELECT 0 AS own, d.begun_at AS since, (j ->> 'id')::bigint AS id, j ->> 'action' AS action, (j -> 'detail')::jsonb AS detail \
            FROM strangler.dropped d CROSS JOIN LATERAL json_array_elements(d.monolith_journal) AS j \
        UNION ALL SELECT 1, NULL, id, action, detail FROM strangler.journal WHERE action = 'ledger-head') AS k)";

impl<'a> Memory<'a> {
    /// The one that remembers the ledger in this service's database: the monolith's own, else what one of the keepers, which are services,
    /// keeps of it. `None` where none of these remembers anything of it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn of(
        service: &Client,
        monolith: &'a Client,
        keepers: &[&'a Client],
    ) -> Result<Option<Self>, JournalError> {
        let database = database(service).await?;
        let kept = keepers.iter().map(|keeper| Self::Kept(keeper));
        for memory in std::iter::once(Self::Monolith(monolith)).chain(kept) {
            if latest(memory, &database).await?.is_some() {
                return Ok(Some(memory));
            }
        }
        Ok(None)
    }

    fn client(self) -> &'a Client {
        match self {
            Self::Monolith(client) | Self::Kept(client) => client,
        }
    }

    fn journal(self) -> &'static str {
        match self {
            Self::Monolith(_) => "strangler.journal",
            Self::Kept(_) => KEPT,
        }
    }
}

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
    let latest = latest(Memory::Monolith(monolith), &database).await?;
    if let Some(Anchor { head: known, .. }) = &latest
        && hash_at(service, known.id).await?.as_ref() != Some(&known.hash)
    {
        return Ok(Anchored::Contradicted { head, recorded: known.id });
    }
    let Some(head) = head else { return Ok(Anchored::Empty) };
    // Another run may have written a head that is further on than the one that was read here.
    if latest.is_none_or(|known| known.head.id < head.id) {
        record(monolith, None, ACTION, &detail((service_name, &database), head, false)).await?;
    }
    Ok(Anchored::Recorded(head))
}

/// The hash of an entry of the ledger, if there is one of that number.
pub(super) async fn hash_at(service: &Client, id: i64) -> Result<Option<String>, JournalError> {
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

/// What the monolith's journal remembers of one ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The furthest head that it holds, of those since the last acceptance.
    pub(super) head: Known,
    /// The entry by which a human accepted that earlier ones were broken.
    pub(super) accepted: Option<i64>,
}

/// Heads since the last acceptance: those before it are of a ledger that was broken. A number that is higher than the journal's
/// furthest may be one that was cut off and given anew.
fn anchors_sql(memory: Memory<'_>) -> String {
    format!(
        "WITH heads AS (SELECT j.id AS place, detail ->> 'database' AS database, \
            (detail ->> 'id')::bigint AS entry, detail ->> 'hash' AS hash, \
            coalesce(detail ->> 'accepted' = 'true', false) AS accepted FROM {} AS j \
            WHERE action = 'ledger-head' AND ($1::text IS NULL OR detail ->> 'database' = $1)), \
        since AS (SELECT DISTINCT ON (database) database, place, entry FROM heads WHERE accepted \
            ORDER BY database, place DESC) \
        SELECT DISTINCT ON (h.database) h.database, h.entry, h.hash, s.entry FROM heads h LEFT JOIN since s USING (database) \
            WHERE s.place IS NULL OR h.place >= s.place ORDER BY h.database, h.entry DESC, h.place DESC",
        memory.journal()
    )
}

/// What the monolith's journal remembers of every ledger, or of that in one database, by the uuids of their databases.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn anchors(
    monolith: &Client,
    database: Option<&str>,
) -> Result<BTreeMap<String, Anchor>, JournalError> {
    remembered(Memory::Monolith(monolith), database).await
}

async fn remembered(
    memory: Memory<'_>,
    database: Option<&str>,
) -> Result<BTreeMap<String, Anchor>, JournalError> {
    if !has_journal(memory).await? {
        return Ok(BTreeMap::new());
    }
    let rows = memory.client().query(&anchors_sql(memory), &[&database]).await.map_err(reading())?;
    let anchor =
        |row: &Row| Anchor { head: Known { id: row.get(1), hash: row.get(2) }, accepted: row.get(3) };
    Ok(rows.iter().map(|row| (row.get(0), anchor(row))).collect())
}

pub(super) async fn latest(memory: Memory<'_>, database: &str) -> Result<Option<Anchor>, JournalError> {
    Ok(remembered(memory, Some(database)).await?.remove(database))
}

/// A monolith whose last slice was abandoned or dropped has none, and remembers nothing.
async fn has_journal(memory: Memory<'_>) -> Result<bool, JournalError> {
    let table = match memory {
        Memory::Monolith(_) => "strangler.journal",
        Memory::Kept(_) => "strangler.dropped",
    };
    let sql = "SELECT to_regclass($1) IS NOT NULL";
    Ok(memory.client().query_one(sql, &[&table]).await.map_err(reading())?.get(0))
}

/// The heads that the journal holds of entries in (after, upto], since the last acceptance.
pub(super) async fn between(
    memory: Memory<'_>,
    database: &str,
    (after, upto): (i64, i64),
) -> Result<Vec<Known>, JournalError> {
    if !has_journal(memory).await? {
        return Ok(Vec::new());
    }
    let journal = memory.journal();
    let sql = format!(
        "SELECT DISTINCT (detail ->> 'id')::bigint, detail ->> 'hash' FROM {journal} AS j \
         WHERE action = 'ledger-head' AND detail ->> 'database' = $1 \
             AND (detail ->> 'id')::bigint > $2 AND (detail ->> 'id')::bigint <= $3 \
             AND j.id >= coalesce((SELECT max(a.id) FROM {journal} AS a WHERE action = 'ledger-head' \
                 AND detail ->> 'database' = $1 AND detail ->> 'accepted' = 'true'), 0) ORDER BY 1"
    );
    let rows = memory.client().query(&sql, &[&database, &after, &upto]).await.map_err(reading())?;
    Ok(rows.iter().map(known).collect())
}

/// Appends an entry by which a human accepts that the ledger is not what was written, and has the memory measure it
/// from there on. What is before it proves nothing any more. Sessions outside any transaction; `service_name` as for
/// [`anchor`]. Who calls it: `strangler ledger --accept-broken`.
///
/// # Errors
/// [`JournalError`]. Where the memory did not take its part nothing is accepted, and the next call does it.
pub async fn accept(
    service: &Client,
    memory: Memory<'_>,
    (service_name, entry): (&str, &NewEntry<'_>),
) -> Result<(), JournalError> {
    let head = transaction(service, async || append(service, entry).await).await?;
    failpoint::hit("ledger-accepted");
    let detail = detail((service_name, &database(service).await?), head, true);
    record(memory.client(), None, ACTION, &detail).await
}

fn detail((service_name, database): (&str, &str), head: Head, accepted: bool) -> Value {
    let mut detail = json!({
        "service": service_name,
        "database": database,
        "id": head.id,
        "hash": head.hash.to_string(),
        "at_us": head.at_us,
    });
    if let (true, Value::Object(fields)) = (accepted, &mut detail) {
        fields.insert("accepted".to_owned(), true.into());
    }
    detail
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
