//! How far the old tables of a slice were taken away, and what it takes to bring everything back. Kept on the monolith.

use tokio_postgres::{Client, Row};

use super::JournalError;
use crate::name::{TableName, quote_ident, quote_literal};

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retirement {
    /// The last stage.
    pub stage: Stage,
    /// Epoch of the authority at that time.
    pub epoch: i64,
    /// When, RFC 3339 in UTC.
    pub at: String,
}

/// A stage of retirement, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nobody but the tool, the owner and superusers may use the tables.
    Revoked,
}

impl Stage {
    /// The stored form, which reports use too.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
        }
    }

    fn read(text: &str) -> Result<Self, JournalError> {
        match text {
            "revoked" => Ok(Self::Revoked),
            other => Err(JournalError::Unreadable { what: "retirement.stage", found: other.to_owned() }),
        }
    }
}

/// A right on a relation, as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The table, partition or sequence.
    pub relation: TableName,
    /// It is a sequence.
    pub is_sequence: bool,
    /// The column, of a right on one.
    pub column: Option<String>,
    /// Who has it; `None` for everybody (PUBLIC).
    pub grantee: Option<String>,
    /// Who gave it.
    pub grantor: String,
    /// That was the relation's owner.
    pub by_owner: bool,
    /// `SELECT`, `INSERT` and so on.
    pub privilege: String,
    /// With grant option.
    pub grantable: bool,
}

/// How far a slice's retirement is; `None` when nothing was done.
///
/// # Errors
/// [`JournalError`].
pub async fn read(monolith: &Client, slice: &str) -> Result<Option<Retirement>, JournalError> {
    let sql = "SELECT stage, epoch, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
               FROM strangler.retirement WHERE slice = $1";
    let row = monolith.query_opt(sql, &[&slice]).await;
    let row = row.map_err(JournalError::database("reading how far a slice is retired"))?;
    row.map(|row| Ok(Retirement { stage: Stage::read(row.get(0))?, epoch: row.get(1), at: row.get(2) }))
        .transpose()
}

/// SQL that notes a stage.
#[must_use]
pub fn set_stage(slice: &str, stage: Stage, epoch: i64) -> String {
    format!(
        "INSERT INTO strangler.retirement (slice, stage, epoch) VALUES ({}, {}, {epoch}) \
         ON CONFLICT (slice) DO UPDATE SET stage = excluded.stage, epoch = excluded.epoch, at = now()",
        quote_literal(slice),
        quote_literal(stage.as_str())
    )
}

/// SQL after which nothing was done.
#[must_use]
pub fn forget(slice: &str) -> String {
    format!("DELETE FROM strangler.retirement WHERE slice = {}", quote_literal(slice))
}

/// SQL that notes a right which is taken away. One that was noted before, and given again by hand since, is one right.
#[must_use]
pub fn note_right(slice: &str, right: &Right) -> String {
    let text = |value: &Option<String>| value.as_deref().map_or_else(|| "NULL".to_owned(), quote_literal);
    let key = format!(
        "slice = {} AND relation_schema = {} AND relation = {} AND column_name IS NOT DISTINCT FROM {} \
         AND grantee IS NOT DISTINCT FROM {} AND grantor = {} AND privilege = {} AND restored_at IS NULL",
        quote_literal(slice),
        quote_literal(&right.relation.schema),
        quote_literal(&right.relation.name),
        text(&right.column),
        text(&right.grantee),
        quote_literal(&right.grantor),
        quote_literal(&right.privilege),
    );
    format!(
        "WITH known AS (UPDATE strangler.revoked_right SET grantable = grantable OR {grantable} WHERE {key} RETURNING 1) \
         INSERT INTO strangler.revoked_right (slice, relation_schema, relation, is_sequence, column_name, grantee, grantor, \
             by_owner, privilege, grantable) SELECT {}, {}, {}, {}, {}, {}, {}, {}, {}, {grantable} \
         WHERE NOT EXISTS (SELECT FROM known)",
        quote_literal(slice),
        quote_literal(&right.relation.schema),
        quote_literal(&right.relation.name),
        right.is_sequence,
        text(&right.column),
        text(&right.grantee),
        quote_literal(&right.grantor),
        right.by_owner,
        quote_literal(&right.privilege),
        grantable = right.grantable
    )
}

/// Notes that these rights, by their numbers, need not be brought back any more.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn settled(monolith: &Client, ids: &[i64]) -> Result<(), JournalError> {
    let sql = "UPDATE strangler.revoked_right SET restored_at = now() WHERE id = ANY ($1)";
    let done = monolith.execute(sql, &[&ids]).await;
    done.map(drop).map_err(JournalError::database("noting the rights that were given back"))
}

/// Rights that were taken away and not brought back, with their numbers, in the order in which they can be given: what somebody gives whom it was given
/// comes after it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn rights(monolith: &Client, slice: &str) -> Result<Vec<(i64, Right)>, JournalError> {
    let sql = "SELECT relation_schema, relation, is_sequence, column_name, grantee, grantor, by_owner, privilege, grantable, id \
               FROM strangler.revoked_right WHERE slice = $1 AND restored_at IS NULL ORDER BY id";
    let rows = monolith.query(sql, &[&slice]).await;
    let rows = rows.map_err(JournalError::database("reading the rights that were taken away"))?;
    let read = |row: &Row| {
        let right = Right {
            relation: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            is_sequence: row.get(2),
            column: row.get(3),
            grantee: row.get(4),
            grantor: row.get(5),
            by_owner: row.get(6),
            privilege: row.get(7),
            grantable: row.get(8),
        };
        (row.get(9), right)
    };
    Ok(rows.iter().map(read).collect())
}

/// SQL that holds the monolith's gate as it is until the end of the transaction, and fails where the authority is not away from it
/// in this epoch.
#[must_use]
pub fn only_in_epoch(slice: &str, epoch: i64) -> String {
    format!(
        "DO $$ BEGIN PERFORM FROM strangler.{} WHERE state <> 'OPEN' AND epoch = {epoch} FOR SHARE; \
         IF NOT FOUND THEN RAISE EXCEPTION 'the authority over slice % has moved', {} USING ERRCODE = '55000'; END IF; END $$",
        quote_ident(&format!("gate_{slice}")),
        quote_literal(slice)
    )
}
