//! Keys whose rows the stream wrote: what has to be compared again since an earlier comparison.
//!
//! They are written in the transaction that applies the rows, so that a crash can lose neither without the other.
//! The list is bounded; what falls out of it raises the table's floor in the same transaction, and whoever asks for
//! what was touched since a position below the floor is told that it is not known any more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Statement};

use super::JournalError;
use crate::landing::key::Key;
use crate::lsn::Lsn;

/// Keys listed for one table and apply transaction. A batch holds at most 5,000 rows with two keys each, so only a
/// source transaction that is larger than a batch passes it; such a table is better read whole.
const KEYS_PER_ROW_MAX: usize = 10_000;
/// Bytes of those keys as JSON: long texts as keys must not swell the apply transaction.
const BYTES_PER_ROW_MAX: usize = 1 << 20;
/// Keys that a table keeps when its list is cut. The list is cut when it holds twice as many, so that the cost of
/// cutting is spread over as many keys as are cut. More would hardly be compared one by one.
const KEYS_PER_TABLE: u64 = 100_000;

/// What the stream wrote to a table since a position.
#[derive(Clone, PartialEq, Eq)]
pub enum Touched {
    /// These keys, each once, in no particular order: the mapping's key, as the stream prints it.
    Keys(Vec<Vec<String>>),
    /// Too many to list, or a TRUNCATE: the whole table.
    All,
    /// What was touched then is not listed any more.
    Forgotten {
        /// Everything after this position is listed; none where nothing is, because the table is not live.
        floor: Option<Lsn>,
    },
}

/// Counts only: keys are row values.
impl fmt::Debug for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keys(keys) => write!(f, "Keys({} of them)", keys.len()),
            Self::All => f.write_str("All"),
            Self::Forgotten { floor } => f.debug_struct("Forgotten").field("floor", floor).finish(),
        }
    }
}

/// What was written to a table by apply transactions that moved the position beyond `after`, and by repairs since.
/// A comparison that read the service when everything up to `after` was applied has to look at nothing else again.
///
/// # Errors
/// [`JournalError`].
pub async fn since(
    client: &Client,
    slice: &str,
    source_table: &str,
    after: Lsn,
) -> Result<Touched, JournalError> {
    // The keys before the floor: as long as the floor is not above `after` by then, nothing of them was missing.
    let rows = client
        .query(
            "SELECT keys::text FROM strangler.touched WHERE slice = $1 AND source_table = $2 AND lsn > $3",
            &[&slice, &source_table, &PgLsn::from(after)],
        )
        .await
        .map_err(JournalError::database("reading touched keys"))?;
    let floor = client
        .query_opt(
            "SELECT f.lsn FROM strangler.touched_floor f JOIN strangler.mirror_table m USING (slice, source_table) \
             WHERE slice = $1 AND source_table = $2 AND m.state = 'live'",
            &[&slice, &source_table],
        )
        .await
        .map_err(JournalError::database("reading the floor of touched keys"))?
        .map(|row| Lsn::from(row.get::<_, PgLsn>(0)));
    if floor.is_none_or(|floor| floor > after) {
        return Ok(Touched::Forgotten { floor });
    }
    let mut distinct: HashSet<Vec<String>> = HashSet::new();
    for row in rows {
        let Some(text) = row.get::<_, Option<&str>>(0) else { return Ok(Touched::All) };
        let keys: Vec<Vec<String>> = serde_json::from_str(text).map_err(|_| JournalError::Unreadable {
            what: "touched.keys",
            found: format!("{} bytes of JSON", text.len()),
        })?;
        distinct.extend(keys);
    }
    Ok(Touched::Keys(distinct.into_iter().collect()))
}

/// A table goes live at `applied`: what is written from here on is listed. In the transaction that marks it live.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn begin(
    client: &Client,
    slice: &str,
    source_table: &str,
    applied: Lsn,
) -> Result<(), JournalError> {
    let forget = "DELETE FROM strangler.touched WHERE slice = $1 AND source_table = $2";
    client
        .execute(forget, &[&slice, &source_table])
        .await
        .map_err(JournalError::database("forgetting touched keys"))?;
    let floor = "INSERT INTO strangler.touched_floor (slice, source_table, lsn) VALUES ($1, $2, $3) \
                 ON CONFLICT (slice, source_table) DO UPDATE SET lsn = excluded.lsn";
    client
        .execute(floor, &[&slice, &source_table, &PgLsn::from(applied)])
        .await
        .map(drop)
        .map_err(JournalError::database("setting the floor of touched keys"))
}

/// Keys of one table in one apply transaction.
enum Listed {
    /// The elements of a JSON array, without its brackets.
    Keys {
        json: Vec<u8>,
        count: usize,
    },
    All,
}

/// Collects the keys of the open apply transaction of a slice, and writes them with it.
pub struct Register {
    slice: String,
    insert: Statement,
    open: BTreeMap<String, Listed>,
    /// Keys listed of a table in the database, once known.
    kept: HashMap<String, u64>,
    /// Live tables without a floor have got one: an older version kept no list.
    floors: bool,
}

/// Counts only: keys are row values.
impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Register({} tables)", self.open.len())
    }
}

impl Register {
    /// For the session that applies.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn prepare(client: &Client, slice: &str) -> Result<Self, JournalError> {
        let sql = "INSERT INTO strangler.touched (slice, source_table, lsn, keys, key_count) \
                   SELECT $1, t, $2, k::json, n FROM unnest($3::text[], $4::text[], $5::int[]) AS s(t, k, n)";
        let insert = client
            .prepare(sql)
            .await
            .map_err(JournalError::database("preparing the statement for touched keys"))?;
        let (open, kept) = (BTreeMap::new(), HashMap::new());
        Ok(Self { slice: slice.to_owned(), insert, open, kept, floors: false })
    }

    /// The open transaction wrote the rows of these keys.
    pub fn add<'a>(&mut self, source_table: &str, keys: impl Iterator<Item = &'a Key>) {
        let listed = match self.open.get_mut(source_table) {
            Some(listed) => listed,
            None => self
                .open
                .entry(source_table.to_owned())
                .or_insert(Listed::Keys { json: Vec::new(), count: 0 }),
        };
        let Listed::Keys { json, count } = listed else { return };
        let mut seen = HashSet::new();
        for key in keys.filter(|key| seen.insert(*key)) {
            if *count >= KEYS_PER_ROW_MAX || json.len() >= BYTES_PER_ROW_MAX {
                *listed = Listed::All;
                return;
            }
            append(json, key);
            *count += 1;
        }
    }

    /// The open transaction wrote too much of the table to list it.
    pub fn add_all(&mut self, source_table: &str) {
        self.open.insert(source_table.to_owned(), Listed::All);
    }

    /// Nothing that the open transaction wrote to the table stays.
    pub fn take_back(&mut self, source_table: &str) {
        self.open.remove(source_table);
    }

    /// First half of writing, in the open transaction: makes room, and sees to floors. `applied` is the position
    /// before it, `to` the one that the keys are listed under. Mostly there is nothing to do.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn make_room(&mut self, client: &Client, applied: Lsn, to: Lsn) -> Result<(), JournalError> {
        if !self.floors {
            let sql = "INSERT INTO strangler.touched_floor (slice, source_table, lsn) \
                       SELECT slice, source_table, $2 FROM strangler.mirror_table \
                       WHERE slice = $1 AND state = 'live' ON CONFLICT DO NOTHING";
            client
                .execute(sql, &[&self.slice, &PgLsn::from(applied)])
                .await
                .map_err(JournalError::database("setting the floors of touched keys"))?;
            self.floors = true;
        }
        for (table, listed) in &self.open {
            let kept = match (listed, self.kept.get(table)) {
                (Listed::All, _) => {
                    forget_covered(client, &self.slice, table, to).await?;
                    0
                }
                (Listed::Keys { .. }, None) => count(client, &self.slice, table).await?,
                (Listed::Keys { .. }, Some(kept)) => *kept,
            };
            let more = match listed {
                Listed::Keys { count, .. } => u64::try_from(*count).unwrap_or(u64::MAX),
                Listed::All => 0,
            };
            let kept = if kept + more > 2 * KEYS_PER_TABLE {
                cut(client, &self.slice, table, KEYS_PER_TABLE).await?
            } else {
                kept
            };
            self.kept.insert(table.clone(), kept + more);
        }
        Ok(())
    }

    /// Second half: writes the keys. Sends its statement at once when it is polled, so that it can stand in a row with
    /// others that are sent without waiting.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn write(&mut self, client: &Client, to: Lsn) -> Result<(), JournalError> {
        if self.open.is_empty() {
            return Ok(());
        }
        let (mut tables, mut texts, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (table, listed) in std::mem::take(&mut self.open) {
            let (text, count) = match listed {
                Listed::Keys { json, count } => {
                    (Some(format!("[{}]", String::from_utf8_lossy(&json))), count)
                }
                Listed::All => (None, 0),
            };
            tables.push(table);
            texts.push(text);
            counts.push(i32::try_from(count).unwrap_or(i32::MAX));
        }
        client
            .execute(&self.insert, &[&self.slice, &PgLsn::from(to), &tables, &texts, &counts])
            .await
            .map(drop)
            .map_err(JournalError::database("writing touched keys"))
    }
}

fn append(json: &mut Vec<u8>, key: &Key) {
    json.extend_from_slice(if json.is_empty() { b"[" } else { b",[" });
    for (number, part) in key.parts().iter().enumerate() {
        if number > 0 {
            json.push(b',');
        }
        // Writing text into memory does not fail.
        let _ = serde_json::to_writer(&mut *json, &String::from_utf8_lossy(part));
    }
    json.push(b']');
}

/// A row that stands for the whole table makes all before it needless: whoever asks for them is told of all anyway.
async fn forget_covered(
    client: &Client,
    slice: &str,
    source_table: &str,
    to: Lsn,
) -> Result<(), JournalError> {
    let sql = "DELETE FROM strangler.touched WHERE slice = $1 AND source_table = $2 AND lsn <= $3";
    client
        .execute(sql, &[&slice, &source_table, &PgLsn::from(to)])
        .await
        .map(drop)
        .map_err(JournalError::database("forgetting touched keys"))
}

async fn count(client: &Client, slice: &str, source_table: &str) -> Result<u64, JournalError> {
    let sql = "SELECT coalesce(sum(key_count), 0)::int8 FROM strangler.touched \
               WHERE slice = $1 AND source_table = $2";
    let row = client
        .query_one(sql, &[&slice, &source_table])
        .await
        .map_err(JournalError::database("counting touched keys"))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// Keeps the last `keep` keys of a table and raises its floor over the others. Returns how many are left.
async fn cut(client: &Client, slice: &str, source_table: &str, keep: u64) -> Result<u64, JournalError> {
    let keep = i64::try_from(keep).unwrap_or(i64::MAX);
    let sql = "WITH counted AS ( \
            SELECT lsn, sum(key_count) OVER (ORDER BY lsn DESC, id DESC) AS keys FROM strangler.touched \
            WHERE slice = $1 AND source_table = $2), \
        floor AS (SELECT max(lsn) AS lsn FROM counted WHERE keys > $3 HAVING max(lsn) IS NOT NULL), \
        gone AS (DELETE FROM strangler.touched t USING floor \
            WHERE slice = $1 AND source_table = $2 AND t.lsn <= floor.lsn) \
        INSERT INTO strangler.touched_floor AS f (slice, source_table, lsn) SELECT $1, $2, lsn FROM floor \
        ON CONFLICT (slice, source_table) DO UPDATE SET lsn = greatest(f.lsn, excluded.lsn)";
    client
        .execute(sql, &[&slice, &source_table, &keep])
        .await
        .map_err(JournalError::database("forgetting the oldest touched keys"))?;
    count(client, slice, source_table).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_json_that_reads_back_as_they_are() {
        let keys = [vec!["1", "a\"b\\"], vec!["", "\u{e9}\n\u{1}"]];
        let mut json = Vec::new();
        for key in &keys {
            append(&mut json, &Key::from_strings(key.iter().map(ToString::to_string).collect()));
        }
        let text = format!("[{}]", String::from_utf8(json).unwrap());
        assert_eq!(serde_json::from_str::<Vec<Vec<String>>>(&text).unwrap(), keys);
    }
}
