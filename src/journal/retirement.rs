//! How far the old tables of a slice were taken away, and what it takes to bring everything back. Kept on the monolith.

use serde_json::json;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::{JournalError, statements};
use crate::name::{TableName, quote_ident, quote_literal};
use crate::postgres::ask::Ask;
use crate::postgres::connect::Session;
use crate::postgres::sqlstate;

/// Where rights that are away are written down, as an administrator types it.
pub const RIGHTS: &str = "strangler.revoked_right";

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retirement {
    /// The last stage.
    pub stage: Stage,
    /// Epoch of the authority at that time.
    pub epoch: i64,
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// Number of the transaction that took it: the same stage, taken back and taken again, has another.
    pub transaction: String,
}

impl Retirement {
    fn of(row: &Row) -> Result<Self, JournalError> {
        Ok(Self {
            stage: Stage::read(row.get(0))?,
            epoch: row.get(1),
            at: row.get(2),
            transaction: row.get(3),
        })
    }
}

/// A stage of retirement, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nobody but the tool, the owner and superusers may use the tables.
    Revoked,
    /// They stand in a schema of their own, where nothing that names them finds them.
    Quarantined,
}

impl Stage {
    /// The stored form, which reports use too.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Quarantined => "quarantined",
        }
    }

    fn read(text: &str) -> Result<Self, JournalError> {
        match text {
            "revoked" => Ok(Self::Revoked),
            "quarantined" => Ok(Self::Quarantined),
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
    /// What the names lead to.
    pub ids: Ids,
}

/// What tells the objects of a right apart, whatever they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ids {
    /// Oid of the relation.
    pub relation: u32,
    /// Number of the column; 0 for the whole table.
    pub column: i16,
    /// Oid of the role; 0 for PUBLIC.
    pub grantee: u32,
}

/// A right that was taken away and is not given back yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// With the names of that time.
    pub right: Right,
    /// With the names that the same relation, column and role have now; else what became of them, as `the role is not there any more`.
    pub now: Result<Right, String>,
}

const READ: &str = "SELECT stage, epoch, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), xmin::text \
    FROM strangler.retirement WHERE slice = $1";

/// How far a slice's retirement is; `None` when nothing was done. In a database that an earlier version provisioned nothing was: a flip
/// back must not wait for an upgrade.
///
/// # Errors
/// [`JournalError`].
pub async fn read(monolith: &impl Ask, slice: &str) -> Result<Option<Retirement>, JournalError> {
    let failed = || JournalError::database("reading how far a slice is retired");
    if !are_there(monolith).await.map_err(failed())? {
        return Ok(None);
    }
    let row = monolith.ask_opt(READ, &[(&slice, Type::TEXT)]).await.map_err(failed())?;
    row.as_ref().map(Retirement::of).transpose()
}

/// The same in one round trip, for whoever asks inside a transaction while writers wait. Without the table the question fails, and what
/// it failed in is taken back with it.
///
/// # Errors
/// [`JournalError`].
pub async fn read_at_once(monolith: &Session, slice: &str) -> Result<Option<Retirement>, JournalError> {
    let of: [(&(dyn ToSql + Sync), Type); 1] = [(&slice, Type::TEXT)];
    let (begun, row, ended) = tokio::join!(
        biased;
        monolith.batch_execute("SAVEPOINT retirement"),
        monolith.ask_opt(READ, &of),
        monolith.batch_execute("ROLLBACK TO SAVEPOINT retirement")
    );
    let failed = || JournalError::database("reading how far a slice is retired");
    begun.and(ended).map_err(failed())?;
    match row {
        Err(error) if sqlstate::is_undefined_table(&error) => Ok(None),
        row => row.map_err(failed())?.as_ref().map(Retirement::of).transpose(),
    }
}

/// Our tables of retirement are there.
async fn are_there(monolith: &impl Ask) -> Result<bool, tokio_postgres::Error> {
    let there = "SELECT to_regclass('strangler.retirement') IS NOT NULL";
    Ok(monolith.ask_one(there, &[]).await?.get(0))
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

/// SQL after which nothing is taken away but the rights that are `left`, which are still to be given back.
#[must_use]
pub fn forget<'a>(slice: &str, left: impl Iterator<Item = &'a Right>) -> [String; 2] {
    let slice = quote_literal(slice);
    let key = |right: &Right| {
        let Ids { relation, column, grantee } = right.ids;
        format!("({relation}, {column}, {grantee}, {})", quote_literal(&right.privilege))
    };
    let left: Vec<String> = left.map(key).collect();
    let but = if left.is_empty() {
        String::new()
    } else {
        format!(" AND (relation_oid, attnum, grantee_oid, privilege) NOT IN ({})", left.join(", "))
    };
    [
        format!("DELETE FROM strangler.revoked_right WHERE slice = {slice}{but}"),
        format!("DELETE FROM strangler.retirement WHERE slice = {slice}"),
    ]
}

/// SQL that notes rights which are taken away. One that was noted before, and given again by hand since, is one right.
#[must_use]
pub fn note_rights(slice: &str, rights: &[&Right]) -> String {
    let text = |value: Option<&str>| quote_literal(value.unwrap_or_default());
    let row = |right: &&Right| {
        format!(
            "({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {})",
            quote_literal(slice),
            right.ids.relation,
            right.ids.column,
            right.ids.grantee,
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
        "INSERT INTO strangler.revoked_right AS r (slice, relation_oid, attnum, grantee_oid, relation_schema, relation, column_name, \
             grantee, privilege, grantable, grantor) VALUES {} \
         ON CONFLICT (slice, relation_oid, attnum, grantee_oid, privilege) \
         DO UPDATE SET grantable = r.grantable OR excluded.grantable, grantor = excluded.grantor, \
             relation_schema = excluded.relation_schema, relation = excluded.relation, column_name = excluded.column_name, \
             grantee = excluded.grantee",
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

/// What the same objects are called now, and what is not there.
const NOTED: &str = "SELECT r.relation_schema, r.relation, nullif(r.column_name, ''), nullif(r.grantee, ''), r.privilege, r.grantable, \
        r.grantor, r.relation_oid, r.attnum, r.grantee_oid, \
        n.nspname::text, c.relname::text, a.attname::text, g.rolname::text, \
        CASE WHEN c.oid IS NULL THEN 'table' WHEN r.attnum <> 0 AND a.attname IS NULL THEN 'column' \
            WHEN r.grantee_oid <> 0 AND g.oid IS NULL THEN 'role' END, \
        CASE WHEN c.oid IS NULL THEN EXISTS (SELECT FROM pg_class o JOIN pg_namespace s ON s.oid = o.relnamespace \
                WHERE s.nspname = r.relation_schema AND o.relname = r.relation) \
            WHEN r.attnum <> 0 AND a.attname IS NULL THEN EXISTS (SELECT FROM pg_attribute o WHERE o.attrelid = c.oid \
                AND o.attname = r.column_name AND NOT o.attisdropped) \
            ELSE EXISTS (SELECT FROM pg_roles o WHERE o.rolname = r.grantee) END \
    FROM strangler.revoked_right r LEFT JOIN pg_class c ON c.oid = r.relation_oid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace \
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = r.attnum AND NOT a.attisdropped \
        LEFT JOIN pg_roles g ON g.oid = r.grantee_oid \
    WHERE r.slice = $1 ORDER BY relation_schema, relation, grantee, grantable, privilege, column_name";

/// Rights that were taken away and are not given back, by relation, grantee and whether with grant option. None in a database that an
/// earlier version provisioned.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn rights(monolith: &Client, slice: &str) -> Result<Vec<Noted>, JournalError> {
    let failed = || JournalError::database("reading the rights that were taken away");
    if !are_there(monolith).await.map_err(failed())? {
        return Ok(Vec::new());
    }
    let rows = monolith.query(NOTED, &[&slice]).await.map_err(failed())?;
    Ok(rows.iter().map(noted).collect())
}

fn noted(row: &Row) -> Noted {
    let right = Right {
        relation: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        column: row.get(2),
        grantee: row.get(3),
        privilege: row.get(4),
        grantable: row.get(5),
        grantor: row.get(6),
        ids: Ids { relation: row.get(7), column: row.get(8), grantee: row.get(9) },
    };
    let name = row.get::<_, Option<String>>(10).zip(row.get::<_, Option<String>>(11));
    let now = match (row.get::<_, Option<String>>(14), name, row.get::<_, bool>(15)) {
        (None, Some((schema, relation)), _) => Ok(Right {
            relation: TableName::new(schema, relation),
            column: row.get(12),
            grantee: row.get(13),
            ..right.clone()
        }),
        (what, _, another) => {
            let what = what.unwrap_or_else(|| "table".to_owned());
            let another = if another { "; what is called so now is another one" } else { "" };
            Err(format!("the {what} is not there any more{another}"))
        }
    };
    Noted { right, now }
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
