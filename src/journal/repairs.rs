//! Rows of the copy that the running mirror is asked to read from the authority again. Who finds a wrong row never
//! writes beside the mirror: it leaves a request here, and the mirror does it where it knows what it has applied.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::JournalError;
use super::ledger::REPAIR;
use crate::lsn::Lsn;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairState {
    /// It waits for the mirror. Set by who asks; stored.
    Requested,
    /// The row is as the authority has it. Set by the mirror with the row; stored.
    Done,
    /// It can't be done; the detail says why. Set by the mirror; stored.
    Refused,
}

impl RepairState {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }

    fn parse(text: &str) -> Result<Self, JournalError> {
        [Self::Requested, Self::Done, Self::Refused]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| JournalError::Unreadable { what: "repair.state", found: text.to_owned() })
    }
}

/// A request that waits. No `Debug`: the key is a row value.
#[derive(Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub id: i64,
    /// The monolith's table, by its label.
    pub source_table: String,
    /// The row's key, in key order.
    pub key: Vec<String>,
}

/// How a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairOutcome {
    /// Its number.
    pub id: i64,
    /// What became of it.
    pub state: RepairState,
    /// Why it was refused, without row values.
    pub detail: Option<String>,
    /// Once done: position on the authority at or before which the row was read.
    pub lsn: Option<Lsn>,
}

/// How long an answered request is kept: whoever asked has long read the answer, and what was repaired is in the ledger
/// for good.
const KEPT: &str = "7 days";

/// Deletes the oldest requests of a slice that were answered more than 7 days ago, at most so many. Returns how many. Of
/// those that were done, only the ones in `tables`, which the caller knows to be in the ledger.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn prune(
    client: &Client,
    slice: &str,
    tables: &[String],
    most: usize,
) -> Result<u64, JournalError> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let sql = "DELETE FROM strangler.repair WHERE id IN (SELECT id FROM strangler.repair \
        WHERE slice = $1 AND done_at < clock_timestamp() - $2::text::interval \
        AND (state = 'refused' OR state = 'done' AND source_table = ANY ($3)) ORDER BY id LIMIT $4)";
    client
        .execute(sql, &[&slice, &KEPT, &tables, &most])
        .await
        .map_err(JournalError::database("deleting old repairs"))
}

/// Asks for the rows of these keys, each with the finding that it is for. Returns the requests' numbers in their order.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn request(
    client: &Client,
    (run, slice): (&str, &str),
    source_table: &str,
    rows: &[(Vec<String>, &str)],
    requested_by: &str,
) -> Result<Vec<i64>, JournalError> {
    let keys: Vec<String> = rows.iter().map(|(key, _)| serde_json::json!(key).to_string()).collect();
    let findings: Vec<&str> = rows.iter().map(|(_, finding)| *finding).collect();
    let sql = "INSERT INTO strangler.repair (run, slice, source_table, key, finding, requested_by) \
        SELECT $1::text::uuid, $2, $3, \
            ARRAY(SELECT part FROM json_array_elements_text(k::json) WITH ORDINALITY AS e(part, n) ORDER BY n), f, $6 \
        FROM unnest($4::text[], $5::text[]) WITH ORDINALITY AS r(k, f, n) ORDER BY r.n RETURNING id";
    let rows = client
        .query(sql, &[&run, &slice, &source_table, &keys, &findings, &requested_by])
        .await
        .map_err(JournalError::database("asking for repairs"))?;
    let mut ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Requests that were done for one run in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The run's uuid.
    pub run: String,
    /// The monolith's table, by its label.
    pub source_table: String,
    /// Their numbers, in the order in which they were done.
    pub ids: Vec<i64>,
    /// Position on the authority at or before which the last of them was read.
    pub lsn: Option<Lsn>,
}

/// Whoever asks for repairs records them within seconds of the mirror's answer, or never.
const RECORDED_WITHIN: &str = "2 minutes";

/// What was done for runs, so long ago that they have recorded it by now or will not. What a mirror was asked for by `--retry`
/// belongs to no run.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn done_long_ago(client: &Client, slice: &str) -> Result<Vec<Done>, JournalError> {
    let sql = "SELECT run::text, source_table, array_agg(id ORDER BY done_at, id), max(lsn) FROM strangler.repair \
        WHERE slice = $1 AND state = 'done' AND run <> '00000000-0000-0000-0000-000000000000' \
        AND done_at < clock_timestamp() - $2::text::interval GROUP BY run, source_table ORDER BY min(id)";
    let rows = client.query(sql, &[&slice, &RECORDED_WITHIN]).await.map_err(reading())?;
    let done = rows.iter().map(|row| Done {
        run: row.get(0),
        source_table: row.get(1),
        ids: row.get(2),
        lsn: row.get::<_, Option<PgLsn>>(3).map(Lsn::from),
    });
    Ok(done.collect())
}

/// The keys of requests, by their numbers.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn keys(client: &Client, ids: &[i64]) -> Result<Vec<(i64, Vec<String>)>, JournalError> {
    let sql = "SELECT id, key FROM strangler.repair WHERE id = ANY ($1) ORDER BY id";
    let rows = client.query(sql, &[&ids]).await.map_err(reading())?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What the ledger has of the requests of one run in one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Their numbers.
    pub ids: BTreeSet<i64>,
    /// How many rows stand in entries without numbers, which earlier versions made.
    pub unnumbered: usize,
}

impl Recorded {
    /// Those of `done`, which is in the order in which they were done, that the ledger does not have. An entry without numbers
    /// has what was done when it was made, so the first ones.
    #[must_use]
    pub fn lacks(&self, done: &[i64]) -> Vec<i64> {
        done.iter().copied().filter(|id| !self.ids.contains(id)).skip(self.unnumbered).collect()
    }
}

/// What entries of the ledger after one have of a slice's requests, by run and table. Under [`super::ledger::lock`] it is
/// all that there is.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn recorded(
    service: &Client,
    slice: &str,
    runs: &[&str],
    after: i64,
) -> Result<BTreeMap<(String, String), Recorded>, JournalError> {
    let sql = "SELECT body->>'run', body->>'table', \
            CASE WHEN body->'requests' IS NULL THEN json_array_length(body->'rows') ELSE 0 END, \
            ARRAY(SELECT e::int8 FROM json_array_elements_text(body->'requests') AS e) \
        FROM strangler.ledger WHERE slice = $1 AND kind = $2 AND id > $4 AND body->>'run' = ANY ($3)";
    let rows = service.query(sql, &[&slice, &REPAIR, &runs, &after]).await.map_err(reading())?;
    let mut all = BTreeMap::<_, Recorded>::new();
    for row in rows {
        let one = all.entry((row.get(0), row.get(1))).or_default();
        one.unnumbered += usize::try_from(row.get::<_, i32>(2)).unwrap_or(0);
        one.ids.extend(row.get::<_, Vec<i64>>(3));
    }
    Ok(all)
}

/// Whether requests of a slice wait.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn are_pending(client: &Client, slice: &str) -> Result<bool, JournalError> {
    let sql = "SELECT EXISTS (SELECT FROM strangler.repair WHERE slice = $1 AND state = 'requested')";
    let row = client.query_one(sql, &[&slice]).await.map_err(reading())?;
    Ok(row.get(0))
}

/// The oldest requests of a slice that wait: those among `chosen`, or those that are not.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn pending(
    client: &Client,
    slice: &str,
    (chosen, among): (&[i64], bool),
    limit: i64,
) -> Result<Vec<Pending>, JournalError> {
    let sql = "SELECT id, source_table, key FROM strangler.repair \
               WHERE slice = $1 AND state = 'requested' AND (id = ANY ($2)) = $3 ORDER BY id LIMIT $4";
    let rows = client.query(sql, &[&slice, &chosen, &among, &limit]).await.map_err(reading())?;
    Ok(rows.iter().map(|row| Pending { id: row.get(0), source_table: row.get(1), key: row.get(2) }).collect())
}

/// How requests stand, by their numbers; in ascending order.
///
/// # Errors
/// [`JournalError`].
pub async fn outcomes(client: &Client, ids: &[i64]) -> Result<Vec<RepairOutcome>, JournalError> {
    let sql = "SELECT id, state, detail, lsn FROM strangler.repair WHERE id = ANY ($1) ORDER BY id";
    let rows = client.query(sql, &[&ids]).await.map_err(reading())?;
    rows.iter()
        .map(|row| {
            Ok(RepairOutcome {
                id: row.get(0),
                state: RepairState::parse(row.get(1))?,
                detail: row.get(2),
                lsn: row.get::<_, Option<PgLsn>>(3).map(Lsn::from),
            })
        })
        .collect()
}

/// These are done, with rows read at or before `lsn`. In the transaction that writes the rows.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_done(client: &Client, ids: &[i64], lsn: Lsn) -> Result<(), JournalError> {
    let sql = "UPDATE strangler.repair SET state = 'done', done_at = clock_timestamp(), lsn = $2 \
               WHERE id = ANY ($1) AND state = 'requested'";
    let done = client.execute(sql, &[&ids, &PgLsn::from(lsn)]).await;
    done.map(drop).map_err(JournalError::database("recording repairs"))
}

/// These can't be done, each with its reason, which holds no row value.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn set_refused(client: &Client, refused: &[(i64, String)]) -> Result<(), JournalError> {
    let (ids, details): (Vec<i64>, Vec<&str>) =
        refused.iter().map(|(id, detail)| (*id, detail.as_str())).unzip();
    let sql = "UPDATE strangler.repair r SET state = 'refused', done_at = clock_timestamp(), detail = d.detail \
               FROM unnest($1::int8[], $2::text[]) AS d(id, detail) WHERE r.id = d.id AND r.state = 'requested'";
    let done = client.execute(sql, &[&ids, &details]).await;
    done.map(drop).map_err(JournalError::database("recording repairs that were refused"))
}

fn reading() -> impl FnOnce(tokio_postgres::Error) -> JournalError {
    JournalError::database("reading the repairs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_ledger_lacks_is_told_by_number_and_for_earlier_entries_by_order() {
        let recorded = |ids: &[i64], unnumbered| Recorded { ids: ids.iter().copied().collect(), unnumbered };
        assert_eq!(
            recorded(&[2, 3, 9], 0).lacks(&[2, 3, 1]),
            [1],
            "one that was done late, though asked for first"
        );
        assert_eq!(
            recorded(&[], 2).lacks(&[2, 3, 1]),
            [1],
            "an earlier version recorded what was done first"
        );
        assert_eq!(recorded(&[4], 2).lacks(&[2, 3, 4, 1]), [1]);
        assert_eq!(recorded(&[1, 2, 3], 0).lacks(&[3]), [] as [i64; 0], "others were deleted");
    }
}
