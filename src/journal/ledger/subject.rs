//! What entries about one slice have in common, and the entry about a change of its plan.

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{ABANDON, Author, Head, JournalError, NewEntry, PLAN, append, lock};
use crate::journal::slices;
use crate::lsn::Lsn;
use crate::mapping::SliceMapping;
use crate::mapping::outline::{COMPARED, Outline};

/// What every entry about one slice begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Plan.
    pub plan: String,
    /// Slice.
    pub slice: String,
    /// Hash of the slice's mapping.
    pub plan_hash: String,
    /// The same as an earlier version wrote it down.
    pub earlier_hash: String,
    /// The same as it can be compared with an earlier one.
    pub outline: Outline,
    /// Hash of the slice's policy.
    pub policy_hash: String,
    /// Who.
    pub author: Author,
}

impl Subject {
    /// The subject of a slice's entries.
    #[must_use]
    pub fn new(plan: &str, mapping: &SliceMapping, policy_hash: String, author: Author) -> Self {
        Self {
            plan: plan.to_owned(),
            slice: mapping.slice.clone(),
            plan_hash: mapping.hash.clone(),
            earlier_hash: mapping.earlier_hash.clone(),
            outline: Outline::of(mapping),
            policy_hash,
            author,
        }
    }

    /// Appends an entry with the epoch of the service's gate, in the caller's open READ COMMITTED transaction on the service.
    ///
    /// # Errors
    /// As [`append`].
    pub async fn append(
        &self,
        service: &Client,
        kind: &str,
        lsn: Option<Lsn>,
        body: &Value,
    ) -> Result<Head, JournalError> {
        let epoch = slices::gate(service, &self.slice).await?.map(|gate| gate.epoch);
        let entry = NewEntry {
            kind,
            plan: &self.plan,
            slice: Some(&self.slice),
            author: &self.author,
            epoch,
            lsn,
            plan_hash: Some(&self.plan_hash),
            body,
        };
        append(service, &entry).await
    }

    /// Appends an entry, unless one of its kind with the same `event` in its body is there, and the slice was not abandoned since: for
    /// what is met again and again.
    /// In the caller's open READ COMMITTED transaction on the service.
    ///
    /// # Errors
    /// As [`append`].
    pub async fn append_once(
        &self,
        service: &Client,
        kind: &str,
        lsn: Option<Lsn>,
        (event, body): (&str, &Value),
    ) -> Result<Option<Head>, JournalError> {
        lock(service).await?;
        let sql = "SELECT EXISTS (SELECT FROM strangler.ledger WHERE slice = $1 AND kind = $2 AND body ->> 'event' = $3 \
                       AND id > coalesce((SELECT max(id) FROM strangler.ledger WHERE slice = $1 AND kind = $4), 0))";
        let row = service.query_one(sql, &[&self.slice, &kind, &event, &ABANDON]).await.map_err(reading())?;
        if row.get(0) {
            return Ok(None);
        }
        let mut body = body.clone();
        if let Value::Object(fields) = &mut body {
            fields.insert("event".to_owned(), json!(event));
        }
        self.append(service, kind, lsn, &body).await.map(Some)
    }

    /// Notes that `verb` was typed with another mapping or policy than the ledger named last, if it was; also when it names none
    /// yet. Opens a transaction of its own on the service. `true` when there is a new entry, whose head is to be anchored.
    ///
    /// # Errors
    /// As [`append`].
    pub async fn note_plan(&self, service: &Client, verb: &str) -> Result<bool, JournalError> {
        // Asked without a lock first: mostly nothing is new, and nobody has to wait.
        if self.plan_change(verb, &named(service, &self.slice).await?).is_none() {
            return Ok(false);
        }
        transaction(service, async || {
            lock(service).await?;
            match self.plan_change(verb, &named(service, &self.slice).await?) {
                Some(body) => self.append(service, PLAN, None, &body).await.map(|_| true),
                None => Ok(false),
            }
        })
        .await
    }

    fn plan_change(&self, verb: &str, named: &Named) -> Option<Value> {
        let change = |old: &Option<String>, new: &str| {
            (old.as_deref() != Some(new)).then(|| json!({ "old": old, "new": new }))
        };
        let earlier = named.mapping.as_ref() == Some(&self.earlier_hash);
        let mapping = if earlier { None } else { change(&named.mapping, &self.plan_hash) };
        let policy = change(&named.policy, &self.policy_hash);
        if mapping.is_none() && policy.is_none() {
            return None;
        }
        let mut body =
            json!({ "verb": verb, "mapping": mapping, "policy": policy, "policy_hash": self.policy_hash });
        if let (Some(_), Value::Object(fields)) = (&mapping, &mut body) {
            fields.insert("outline".to_owned(), json!(self.outline));
        }
        Some(body)
    }
}

/// What changed in the mapping of a slice since it was provisioned under this hash, in words: tables and columns, where the
/// ledger has the form of that mapping, which earlier versions did not write down; else what mappings are compared by.
/// `mapping` is of the way there.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn what_changed(
    service: &Client,
    mapping: &SliceMapping,
    provisioned: &str,
) -> Result<String, JournalError> {
    let sql = "SELECT body ->> 'outline' FROM strangler.ledger WHERE slice = $1 AND kind = $2 AND plan_hash = $3 \
               AND body -> 'outline' IS NOT NULL ORDER BY id DESC LIMIT 1";
    let row = service.query_opt(sql, &[&mapping.slice, &PLAN, &provisioned]).await.map_err(reading())?;
    let then = row.and_then(|row| serde_json::from_str::<Outline>(row.get(0)).ok());
    let changes = then.map(|then| then.changes(&Outline::of(mapping))).unwrap_or_default();
    Ok(if changes.is_empty() { COMPARED.to_owned() } else { changes.join("; ") })
}

/// Hashes that the last entries about a slice name.
#[derive(Debug, Default)]
struct Named {
    mapping: Option<String>,
    policy: Option<String>,
}

async fn named(service: &Client, slice: &str) -> Result<Named, JournalError> {
    let sql = "WITH now AS (SELECT id, kind, plan_hash, body FROM strangler.ledger WHERE slice = $1 \
                   AND id > (SELECT coalesce(max(id), 0) FROM strangler.ledger WHERE slice = $1 AND kind = 'abandon')) \
               SELECT (SELECT plan_hash FROM now WHERE plan_hash IS NOT NULL ORDER BY id DESC LIMIT 1), \
               (SELECT body ->> 'policy_hash' FROM now WHERE kind = $2 ORDER BY id DESC LIMIT 1)";
    let row = service.query_one(sql, &[&slice, &PLAN]).await.map_err(reading())?;
    Ok(Named { mapping: row.get(0), policy: row.get(1) })
}

/// Runs `work` in a READ COMMITTED transaction, which is rolled back when it fails.
///
/// # Errors
/// Those of `work`, and [`JournalError::Database`].
pub async fn transaction<T>(
    client: &Client,
    work: impl AsyncFnOnce() -> Result<T, JournalError>,
) -> Result<T, JournalError> {
    let failed = || JournalError::database("recording in the ledger");
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(failed())?;
    match work().await {
        Ok(made) => {
            client.batch_execute("COMMIT").await.map_err(failed())?;
            Ok(made)
        }
        Err(error) => {
            // When the connection broke there is nothing to roll back; the first error tells the story.
            let _ = client.batch_execute("ROLLBACK").await;
            Err(error)
        }
    }
}

fn reading() -> impl FnOnce(tokio_postgres::Error) -> JournalError {
    JournalError::database("reading the ledger")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject {
            plan: "retail".to_owned(),
            slice: "ordering".to_owned(),
            plan_hash: "m2".to_owned(),
            earlier_hash: "m0".to_owned(),
            outline: serde_json::from_value(json!({})).unwrap(),
            policy_hash: "p2".to_owned(),
            author: Author { operator: "ann".to_owned(), host: "desk".to_owned() },
        }
    }

    fn named(mapping: Option<&str>, policy: Option<&str>) -> Named {
        Named { mapping: mapping.map(str::to_owned), policy: policy.map(str::to_owned) }
    }

    #[test]
    fn only_a_hash_that_is_another_one_is_told() {
        let told = |mapping, policy| subject().plan_change("arm", &named(mapping, policy));
        assert_eq!(told(Some("m2"), Some("p2")), None);
        let policy = told(Some("m2"), Some("p1")).unwrap();
        assert_eq!(
            policy,
            json!({ "verb": "arm", "mapping": null, "policy": { "old": "p1", "new": "p2" }, "policy_hash": "p2" })
        );
        let mapping = told(Some("m1"), Some("p2")).unwrap();
        assert_eq!(mapping["mapping"], json!({ "old": "m1", "new": "m2" }));
        assert_eq!(mapping["outline"], json!({}), "with what it says");
        assert_eq!(told(Some("m0"), Some("p2")), None, "the same mapping in an earlier form");
        let first = told(None, None).unwrap();
        assert_eq!(first["mapping"]["old"], Value::Null);
        let older = told(Some("m2"), None).unwrap();
        assert_eq!((&older["mapping"], &older["policy"]["old"]), (&Value::Null, &Value::Null));
    }
}
