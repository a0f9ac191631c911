//! How far the old tables of a slice were taken away, and what it takes to bring everything back. Kept on the monolith.

use serde_json::json;
use tokio_postgres::{Client, Row};

use super::{JournalError, statements};
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

/// A right on a table or partition, as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The relation.
    pub relation: TableName,
    /// The column, of a right on one.
    pub column: Option<String>,
    /// Who has it; `None` for everybody (PUBLIC).
    pub grantee: Option<String>,
    /// `SELECT`, `INSERT` and so on.
    pub privilege: String,
    /// With grant option.
    pub grantable: bool,
    /// Who gave it.
    pub grantor: String,
}

/// How far a slice's retirement is; `None` when nothing was done. In a database that an earlier version provisioned nothing was: a flip
/// back must not wait for an upgrade.
///
/// # Errors
/// [`JournalError`].
pub async fn read(monolith: &Client, slice: &str) -> Result<Option<Retirement>, JournalError> {
    let failed = || JournalError::database("reading how far a slice is retired");
    let there = monolith.query_one("SELECT to_regclass('strangler.retirement') IS NOT NULL", &[]).await;
    if !there.map_err(failed())?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT stage, epoch, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
               FROM strangler.retirement WHERE slice = $1";
    let row = monolith.query_opt(sql, &[&slice]).await;
    let row = row.map_err(failed())?;
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
pub fn forget(slice: &str) -> [String; 2] {
    let slice = quote_literal(slice);
    [
        format!("DELETE FROM strangler.revoked_right WHERE slice = {slice}"),
        format!("DELETE FROM strangler.retirement WHERE slice = {slice}"),
    ]
}

/// SQL that notes rights which are taken away. One that was noted before, and given again by hand since, is one right.
#[must_use]
pub fn note_rights(slice: &str, rights: &[&Right]) -> String {
    let text = |value: Option<&str>| quote_literal(value.unwrap_or_default());
    let row = |right: &&Right| {
        format!(
            "({}, {}, {}, {}, {}, {}, {}, {})",
            quote_literal(slice),
            quote_literal(&right.relation.schema),
            quote_literal(&right.relation.name),
            text(right.column.as_deref()),
            text(right.grantee.as_deref()),
            quote_literal(&right.privilege),
            right.grantable,
            quote_literal(&right.grantor)
        )
    };
    let rows: Vec<String> = rights.iter().map(row).collect();
    format!(
        "INSERT INTO strangler.revoked_right AS r (slice, relation_schema, relation, column_name, grantee, privilege, grantable, \
             grantor) VALUES {} \
         ON CONFLICT (slice, relation_schema, relation, column_name, grantee, privilege) \
         DO UPDATE SET grantable = r.grantable OR excluded.grantable, grantor = excluded.grantor",
        rows.join(", ")
    )
}

/// SQL that tells the journal of a step that a verb has taken, and with it the ledger.
#[must_use]
pub fn tell(verb: &str, slice: &str, (action, object): (&str, &str), approved_by: Option<&str>) -> String {
    let mut detail = json!({ "object": object });
    if let (Some(name), Some(detail)) = (approved_by, detail.as_object_mut()) {
        detail.insert("approved_by".to_owned(), name.into());
    }
    statements::insert_journal(verb, Some(slice), action, &detail)
}

/// Rights that were taken away, by relation, grantee and whether with grant option.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn rights(monolith: &Client, slice: &str) -> Result<Vec<Right>, JournalError> {
    let sql = "SELECT relation_schema, relation, nullif(column_name, ''), nullif(grantee, ''), privilege, grantable, grantor \
               FROM strangler.revoked_right WHERE slice = $1 \
               ORDER BY relation_schema, relation, grantee, grantable, privilege, column_name";
    let rows = monolith.query(sql, &[&slice]).await;
    let rows = rows.map_err(JournalError::database("reading the rights that were taken away"))?;
    let read = |row: &Row| Right {
        relation: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        column: row.get(2),
        grantee: row.get(3),
        privilege: row.get(4),
        grantable: row.get(5),
        grantor: row.get(6),
    };
    Ok(rows.iter().map(read).collect())
}

/// SQL that holds the monolith's gate as it is until the end of the transaction; it brings a row only where the authority is away
/// from the monolith in this epoch.
#[must_use]
pub fn only_in_epoch(slice: &str, epoch: i64) -> String {
    format!(
        "SELECT state FROM strangler.{} WHERE state <> 'OPEN' AND epoch = {epoch} FOR SHARE",
        quote_ident(&format!("gate_{slice}"))
    )
}
