//! What takes back from the monolith what `provision` made there for one slice: the slot that its stream read, its publication, its
//! gate, the rights that no other slice needs, and what is remembered of it. Who calls it: `abandon`; whoever else ends a slice does the
//! same.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use crate::dualwrite::gate::{self, APPLY_ROLE};
use crate::journal::granted::{self, Granted, ReliedOn};
use crate::journal::migrate::{self, Form};
use crate::journal::{JournalError, abandonment, statements};
use crate::name::{quote_ident, quote_literal};

/// A slice whose traces are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traces<'a> {
    /// Its name.
    pub(crate) slice: &'a str,
    /// The publication that is written down for it, on either side.
    pub(crate) publication: Option<&'a str>,
    /// The slot that its stream is written down with, in the service.
    pub(crate) slot: Option<&'a str>,
    /// No other slice is provisioned on the monolith.
    pub(crate) last: bool,
}

/// What of a slice is there on the monolith.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    slice: String,
    /// The slot, where there is one.
    pub(crate) slot: Option<String>,
    /// The process that reads it.
    pub(crate) reader: Option<i32>,
    publication: Option<String>,
    gate: (bool, bool),
    granted: Vec<Granted>,
    /// Rights that were granted for it and stay, since others rely on them.
    pub(crate) relied_on: Vec<ReliedOn>,
    /// Our tables that hold rows of slices; none where our schema is not there.
    tables: Vec<String>,
    row: bool,
}

/// Looks for it. Called with the admin link.
///
/// # Errors
/// [`JournalError`].
pub(crate) async fn standing(monolith: &Client, traces: Traces<'_>) -> Result<Standing, JournalError> {
    let failed = || JournalError::database("looking for what was made for the slice");
    let mut found = catalog(monolith, traces).await.map_err(failed())?;
    if migrate::form(monolith).await? != Form::Current {
        return Ok(found);
    }
    found.granted = granted::dispensable(monolith, traces.slice, traces.last).await?;
    found.relied_on = granted::relied_on(monolith, traces.slice, traces.last).await?;
    found.tables = abandonment::tables_of_slices(monolith).await?;
    found.row = crate::journal::slices::read(monolith, traces.slice).await?.is_some();
    Ok(found)
}

async fn catalog(monolith: &Client, traces: Traces<'_>) -> Result<Standing, Error> {
    let sql = "SELECT s.slot_name::text, s.active_pid, p.pubname::text, to_regclass($3) IS NOT NULL, \
                   to_regprocedure($3 || '()') IS NOT NULL \
               FROM (VALUES (1)) AS one LEFT JOIN pg_replication_slots s \
                       ON s.slot_name = $1 AND s.database = current_database() \
                   LEFT JOIN pg_publication p ON p.pubname = $2";
    let gate = gate::name(traces.slice).sql();
    let asked: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(&traces.slot, Type::TEXT), (&traces.publication, Type::TEXT), (&gate, Type::TEXT)];
    let row = monolith.query_typed_one(sql, &asked).await?;
    Ok(Standing {
        slice: traces.slice.to_owned(),
        slot: row.try_get(0)?,
        reader: row.try_get(1)?,
        publication: row.try_get(2)?,
        gate: (row.try_get(3)?, row.try_get(4)?),
        ..Standing::default()
    })
}

impl Standing {
    /// Something beside the slot is.
    pub(crate) fn is_provisioned(&self) -> bool {
        self.row || self.publication.is_some() || self.gate != (false, false)
    }

    /// What drops the slot. It is no part of any transaction.
    pub(crate) fn slot_sql(&self) -> Option<String> {
        self.slot.as_ref().map(|slot| format!("SELECT pg_drop_replication_slot({})", quote_literal(slot)))
    }

    /// What takes the rest, in one transaction; `actor` is who the journal says did it. Nothing is dropped with what depends on it: a gate
    /// that still hangs on a table stops all of it.
    pub(crate) fn statements(&self, actor: &str) -> Vec<String> {
        let mut statements = revoke(&self.granted);
        statements
            .extend(self.publication.as_ref().map(|name| format!("DROP PUBLICATION {}", quote_ident(name))));
        statements.extend(drop_gate(&self.slice));
        statements.extend(abandonment::forget(&self.slice, &self.tables));
        if !self.tables.is_empty() {
            let detail = serde_json::json!({ "object": self.slice });
            let taken_back = abandonment::TAKEN_BACK;
            statements.push(statements::insert_journal(actor, Some(&self.slice), taken_back, &detail));
        }
        statements
    }
}

/// What takes rights back and forgets that they were given.
pub(crate) fn revoke(granted: &[Granted]) -> Vec<String> {
    granted.iter().filter_map(Granted::revoke).chain(granted.iter().map(Granted::forget)).collect()
}

/// What drops a gate that hangs on no table.
pub(crate) fn drop_gate(slice: &str) -> [String; 2] {
    let gate = gate::name(slice).sql();
    [format!("DROP TABLE IF EXISTS {gate}"), format!("DROP FUNCTION IF EXISTS {gate}()")]
}

/// What drops our schema, and behind it the role that mirrors act as, where it was made here and no database of the server needs it any
/// more; and what that role was let do, where it was let do it here.
pub(crate) fn drop_schema(
    with_ledger: bool,
    (made_role, quieted): (bool, bool),
    server_major: u32,
) -> Vec<String> {
    let mut statements = vec![abandonment::drop_schema(with_ledger)];
    statements.extend(drop_role((made_role, quieted), server_major));
    statements
}

fn drop_role((made_role, quieted): (bool, bool), server_major: u32) -> Option<String> {
    if !made_role && !quieted {
        return None;
    }
    let loud = if server_major >= 15 {
        format!("REVOKE SET ON PARAMETER session_replication_role FROM {APPLY_ROLE}")
    } else {
        format!("ALTER ROLE {APPLY_ROLE} RESET session_replication_role")
    };
    let drop = if made_role { format!("DROP ROLE {APPLY_ROLE};") } else { String::new() };
    // What it was let set is written down among its dependencies, under no database.
    Some(format!(
        "DO $strangler$ BEGIN IF to_regrole({role}) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_shdepend d \
             WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = to_regrole({role}) \
                 AND d.classid IS DISTINCT FROM to_regclass('pg_catalog.pg_parameter_acl')::oid) THEN {loud}; {drop} END IF; \
         END $strangler$",
        role = quote_literal(APPLY_ROLE)
    ))
}
