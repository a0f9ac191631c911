//! Steps of `provision`, `arm`, `disarm`, `retire` and `unretire` that the ledger does not tell of yet. Each step is in the journal
//! of the database that it changed, by the same transaction; an entry says up to where it has told of both journals. So every step
//! is told once, also where a process died between its steps and the entry: the next one tells of them.

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{ABANDON, JournalError};
use crate::journal::slices;

/// Steps that an entry lists; it counts all. A slice of a thousand tables takes some five steps a table.
const LISTED_MAX: usize = 5_000;

/// A step that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `monolith` or `service`.
    pub side: &'static str,
    /// What was done, as a bare verb phrase.
    pub action: String,
    /// To what: the name of a table, a slot, a slice.
    pub object: Option<String>,
    /// Who approved it, where somebody was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
}

/// Steps of one verb, in the order of each journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps {
    taken: Vec<Step>,
    first: Option<String>,
    last: Option<String>,
    told: Told,
}

/// The last entries of the journals that the ledger has told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    service: i64,
    monolith: i64,
    /// Uuid of the monolith's database: where the last slice was abandoned and another one provisioned, its journal begins anew.
    of: Option<String>,
}

/// Up to where the ledger is to know both journals, as an entry says it: of all that is in them.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn all_told(service: &Client, monolith: Option<&Client>) -> Result<Value, JournalError> {
    let last = async |client: &Client| {
        let sql = "SELECT coalesce(max(id), 0) FROM strangler.journal";
        client.query_typed_one(sql, &[]).await.map(|row| row.get::<_, i64>(0)).map_err(reading())
    };
    let (there, of) = match monolith {
        Some(monolith) => (last(monolith).await?, slices::database_uuid(monolith).await?),
        None => (0, None),
    };
    Ok(json!({ "service": last(service).await?, "monolith": there, "of": of }))
}

impl Steps {
    /// Nothing is to be told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// What the entry says. `first` and `last` are times of the databases that the steps were taken in.
    #[must_use]
    pub fn body(&self) -> Value {
        let listed = self.taken.get(..LISTED_MAX).unwrap_or(&self.taken);
        json!({
            "steps": self.taken.len(),
            "taken": listed,
            "first": self.first,
            "last": self.last,
            "journal": { "service": self.told.service, "monolith": self.told.monolith, "of": self.told.of },
        })
    }
}

/// The steps of a verb for a slice, or for all slices of the service where `slice` is absent, that no entry of the verb's kind
/// has told of. Of the latter, those on the monolith belong to no service and are left out.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn untold(
    service: &Client,
    monolith: &Client,
    verb: &str,
    slice: Option<&str>,
) -> Result<Steps, JournalError> {
    let sql = "SELECT coalesce((body -> 'journal' ->> 'service')::bigint, 0), \
                   coalesce((body -> 'journal' ->> 'monolith')::bigint, 0), body -> 'journal' ->> 'of' \
               FROM strangler.ledger WHERE slice IS NOT DISTINCT FROM $1 AND kind IN ($2, $3) ORDER BY id DESC LIMIT 1";
    let row = service.query_opt(sql, &[&slice, &verb, &ABANDON]).await.map_err(reading())?;
    let told = row.map_or_else(Told::default, |row| Told {
        service: row.get(0),
        monolith: row.get(1),
        of: row.get(2),
    });
    let mut steps = Steps { taken: Vec::new(), first: None, last: None, told: told.clone() };
    let here = (verb, slice, told.service);
    steps.told.service = read(service, "service", here, &mut steps).await?;
    if slice.is_some() {
        let of = slices::database_uuid(monolith).await?;
        let after = if told.of.is_some() && told.of != of { 0 } else { told.monolith };
        steps.told.of = of;
        let there = (verb, slice, after);
        steps.told.monolith = read(monolith, "monolith", there, &mut steps).await?;
    }
    Ok(steps)
}

/// Adds the steps of one journal and returns how far it goes.
async fn read(
    client: &Client,
    side: &'static str,
    (verb, slice, after): (&str, Option<&str>, i64),
    steps: &mut Steps,
) -> Result<i64, JournalError> {
    let sql = "SELECT id, action, detail ->> 'object', detail ->> 'approved_by', \
                   to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM strangler.journal \
               WHERE actor = $1 AND slice IS NOT DISTINCT FROM $2 AND id > $3 ORDER BY id";
    let rows = client.query(sql, &[&verb, &slice, &after]).await.map_err(reading())?;
    let mut upto = after;
    for row in rows {
        upto = row.get(0);
        steps.taken.push(Step { side, action: row.get(1), object: row.get(2), approved_by: row.get(3) });
        let at: String = row.get(4);
        steps.first = steps.first.take().filter(|first| *first <= at).or_else(|| Some(at.clone()));
        steps.last = steps.last.take().filter(|last| *last >= at).or(Some(at));
    }
    Ok(upto)
}

fn reading() -> impl FnOnce(tokio_postgres::Error) -> JournalError {
    JournalError::database("reading what the ledger has not told of")
}
