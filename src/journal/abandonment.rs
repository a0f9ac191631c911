//! Slices that are being taken back. The row stands in the service from the first step to the last, so that every verb but `abandon`
//! leaves the slice alone meanwhile, whatever of it is gone already.

use serde_json::Value;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::{JournalError, ledger};
use crate::name::{quote_ident, quote_literal};

/// Actor of the journal's entries.
pub const ACTOR: &str = ledger::ABANDON;

/// What was begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Abandonment {
    /// Plan that the slice was provisioned from.
    pub plan: String,
    /// What was confirmed.
    pub token: String,
    /// What the ledger is told at the end.
    pub body: Value,
}

/// Tables of ours that outlive a slice, though they have a column for it.
const KEPT: &[&str] = &["journal", "ledger", "abandonment"];

/// Whether a slice is being taken back; asked of its service. Never in a database that an earlier version provisioned, or none.
///
/// # Errors
/// [`JournalError`].
pub async fn read(service: &Client, slice: &str) -> Result<Option<Abandonment>, JournalError> {
    let failed = || JournalError::database("reading which slices are abandoned");
    if !readable(service).await.map_err(failed())? {
        return Ok(None);
    }
    let sql = "SELECT plan, token, body::text FROM strangler.abandonment WHERE slice = $1";
    let row = service.query_typed_opt(sql, &[(&slice, Type::TEXT)]).await.map_err(failed())?;
    row.map(|row| {
        let text: &str = row.get(2);
        let unreadable = |_| JournalError::Unreadable { what: "abandonment.body", found: text.to_owned() };
        let body = serde_json::from_str(text).map_err(unreadable)?;
        Ok(Abandonment { plan: row.get(0), token: row.get(1), body })
    })
    .transpose()
}

/// All slices that are being taken back in this database, as far as the role may look.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn all(client: &Client) -> Result<Vec<String>, JournalError> {
    let failed = || JournalError::database("reading which slices are abandoned");
    if !readable(client).await.map_err(failed())? {
        return Ok(Vec::new());
    }
    let rows = client.query_typed("SELECT slice FROM strangler.abandonment ORDER BY slice", &[]).await;
    Ok(rows.map_err(failed())?.iter().map(|row| row.get(0)).collect())
}

async fn readable(client: &Client) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'strangler' AND c.relname = 'abandonment' \
                   AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))";
    client.query_typed_one(sql, &[]).await?.try_get(0)
}

/// SQL with which the service says that the slice is being taken back: refused unless its gate is closed, and no mirror of it may
/// write from then on, nor one that begins. It waits for what a mirror writes at this moment.
#[must_use]
pub fn begin(slice: &str, (plan, token): (&str, &str), body: &Value) -> Vec<String> {
    let name = quote_literal(slice);
    vec![
        require_fenced(slice),
        // The mirror of a service looks here before it writes, also where no provision has granted that since an upgrade.
        "DO $$ BEGIN IF to_regrole('strangler_apply') IS NOT NULL THEN \
         GRANT SELECT ON strangler.abandonment TO strangler_apply; END IF; END $$"
            .to_owned(),
        format!(
            "INSERT INTO strangler.abandonment (slice, plan, token, body) VALUES ({name}, {}, {}, {}::json)",
            quote_literal(plan),
            quote_literal(token),
            quote_literal(&body.to_string())
        ),
        format!(
            "UPDATE strangler.stream SET nonce = nonce + 1, holder = NULL, mode = 'OFF' WHERE slice = {name}"
        ),
    ]
}

/// Fails unless the gate in this database is closed, and holds it so until the end of the transaction.
fn require_fenced(slice: &str) -> String {
    let gate = quote_ident(&format!("gate_{slice}"));
    let message = quote_literal(&format!("the gate of slice {slice} is not closed here"));
    format!(
        "DO $strangler$ DECLARE held text; BEGIN IF to_regclass({}) IS NOT NULL THEN \
         SELECT state INTO held FROM strangler.{gate} FOR UPDATE; \
         IF held IS DISTINCT FROM 'FENCED' THEN RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = {message}; END IF; \
         END IF; END $strangler$",
        quote_literal(&format!("strangler.{gate}"))
    )
}

/// Our tables in this database that hold rows of slices, but for what outlives them.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn tables_of_slices(client: &Client) -> Result<Vec<String>, JournalError> {
    let sql = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'slice' AND NOT a.attisdropped \
               WHERE n.nspname = 'strangler' AND c.relkind = 'r' ORDER BY 1";
    let rows = client.query_typed(sql, &[]).await;
    let rows = rows.map_err(JournalError::database("looking for rows of slices"))?;
    let names = rows.iter().map(|row| row.get::<_, String>(0));
    Ok(names.filter(|name| !KEPT.contains(&name.as_str())).collect())
}

/// SQL that forgets what these tables of ours hold of a slice. `slice` itself comes last, by which everything else knows it.
#[must_use]
pub fn forget(slice: &str, tables: &[String]) -> Vec<String> {
    let name = quote_literal(slice);
    let (last, first): (Vec<&String>, Vec<&String>) = tables.iter().partition(|table| *table == "slice");
    let delete =
        |table: &String| format!("DELETE FROM strangler.{} WHERE slice = {name}", quote_ident(table));
    first.into_iter().chain(last).map(delete).collect()
}

/// SQL after which the slice is being taken back no longer.
#[must_use]
pub fn end(slice: &str) -> String {
    format!("DELETE FROM strangler.abandonment WHERE slice = {}", quote_literal(slice))
}

/// What else stands in this database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Other slices that are provisioned here, of whatever plan and side.
    pub slices: Vec<String>,
    /// The ledger has entries.
    pub ledger: bool,
    /// `provision` or `arm` made the role that mirrors act as, as this database's journal tells.
    pub made_role: bool,
    /// `provision` let that role keep triggers quiet.
    pub quieted: bool,
    /// Roles of the service that `provision` made.
    pub roles: Vec<String>,
}

/// Who else needs our schema here, and which roles were made from here. The tables must be there.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn others(client: &Client, slice: &str) -> Result<Others, JournalError> {
    let sql = "SELECT ARRAY(SELECT slice FROM strangler.slice WHERE slice <> $1 ORDER BY slice), \
                   EXISTS (SELECT FROM strangler.ledger), \
                   EXISTS (SELECT FROM strangler.journal WHERE action = 'create role' AND detail ->> 'object' = 'strangler_apply'), \
                   EXISTS (SELECT FROM strangler.journal WHERE action = 'let the mirror keep triggers quiet:'), \
                   ARRAY(SELECT DISTINCT detail ->> 'object' FROM strangler.journal \
                       WHERE action = 'create role' AND detail ->> 'object' <> 'strangler_apply' ORDER BY 1)";
    let row = client.query_typed_one(sql, &[(&slice, Type::TEXT)]).await;
    let row = row.map_err(JournalError::database("looking who else is provisioned"))?;
    Ok(Others {
        slices: row.get(0),
        ledger: row.get(1),
        made_role: row.get(2),
        quieted: row.get(3),
        roles: row.get(4),
    })
}

/// What a table of the service was to `provision`, by the last word of its journal: `create table` or `adopt table`.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn origins(service: &Client, slice: &str) -> Result<Vec<(String, String)>, JournalError> {
    let sql = "SELECT DISTINCT ON (detail ->> 'object') detail ->> 'object', action FROM strangler.journal \
               WHERE slice = $1 AND action IN ('create table', 'adopt table') AND detail ? 'object' \
               ORDER BY detail ->> 'object', id DESC";
    let rows = service.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading which tables were made"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Tables of the service that the slice is mirrored into, as names are shown, with the rows that were copied into each.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn targets(service: &Client, slice: &str) -> Result<Vec<(String, i64)>, JournalError> {
    let sql =
        "SELECT target_table, rows_copied FROM strangler.mirror_table WHERE slice = $1 ORDER BY target_table";
    let rows = service.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading the slice's tables"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Foreign keys between adopted tables of two slices that were set aside, with what puts each back: of this slice, and of slices that
/// are not provisioned any more.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn keys_between(service: &Client, slice: &str) -> Result<Vec<(String, String)>, JournalError> {
    let sql = "SELECT DISTINCT ON (detail ->> 'object') detail ->> 'object', detail ->> 'create_sql' \
               FROM strangler.journal j WHERE action = 'set aside between slices' \
                   AND (slice = $1 OR NOT EXISTS (SELECT FROM strangler.slice s WHERE s.slice = j.slice)) \
               ORDER BY detail ->> 'object', id DESC";
    let rows = service.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading which foreign keys were set aside"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Indexes and constraints of a slice's tables that wait, in the order in which they are put back.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn waiting(service: &Client, slice: &str) -> Result<Vec<(String, String)>, JournalError> {
    let sql = "SELECT target_table, create_sql FROM strangler.deferred WHERE slice = $1 AND done_at IS NULL ORDER BY id";
    let rows = service.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading what waits"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What outside of our schema depends on something in it: with that it is not dropped. As kind and identity; gates that hang on tables
/// are left out, since they go with their slice, or stop it.
///
/// # Errors
/// The server's.
pub async fn foreign(client: &Client) -> Result<Vec<String>, JournalError> {
    let rows = client.query_typed(&foreign_sql("AND g.oid IS NULL"), &[]).await;
    let rows = rows.map_err(JournalError::database("looking what depends on the schema"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Views, functions and the like of others that lean on our relations and functions, under one more condition. What belongs to our own
/// objects is in `ours`.
fn foreign_sql(condition: &str) -> String {
    format!(
        "WITH RECURSIVE ours (class, oid) AS ( \
        SELECT 'pg_class'::regclass::oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname = 'strangler' \
        UNION SELECT 'pg_proc'::regclass::oid, p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
            WHERE n.nspname = 'strangler' \
        UNION SELECT 'pg_type'::regclass::oid, t.oid FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace \
            WHERE n.nspname = 'strangler' \
        UNION SELECT d.classid, d.objid FROM ours o JOIN pg_depend d ON d.refclassid = o.class AND d.refobjid = o.oid \
            WHERE d.deptype IN ('a', 'i')), \
    leaning AS (SELECT DISTINCT d.classid, d.objid FROM ours o \
        JOIN pg_depend d ON d.refclassid = o.class AND d.refobjid = o.oid AND d.deptype = 'n' \
        WHERE NOT EXISTS (SELECT FROM ours x WHERE x.class = d.classid AND x.oid = d.objid)) \
    SELECT DISTINCT i.type || ' ' || i.identity FROM leaning l \
        LEFT JOIN pg_rewrite r ON l.classid = 'pg_rewrite'::regclass AND r.oid = l.objid \
        LEFT JOIN (SELECT t.oid FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE left(p.proname::text, 5) = 'gate_') g \
            ON l.classid = 'pg_trigger'::regclass AND g.oid = l.objid \
        CROSS JOIN LATERAL pg_identify_object(CASE WHEN r.oid IS NULL THEN l.classid ELSE 'pg_class'::regclass END, \
            CASE WHEN r.oid IS NULL THEN l.objid ELSE r.ev_class END, 0) i \
        WHERE (r.oid IS NULL OR NOT EXISTS (SELECT FROM ours x WHERE x.class = 'pg_class'::regclass AND x.oid = r.ev_class)) {condition} \
    ORDER BY 1"
    )
}

/// SQL that drops our schema, where no slice is left in it and nothing of others depends on it: that is looked at under the locks.
#[must_use]
pub fn drop_schema() -> String {
    format!(
        "DO $strangler$ DECLARE one text; BEGIN \
         FOR one IN SELECT format('%I.%I', 'strangler', c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = 'strangler' AND c.relkind = 'r' LOOP EXECUTE 'LOCK TABLE ' || one; END LOOP; \
         IF EXISTS (SELECT FROM strangler.slice) THEN RAISE EXCEPTION 'a slice is provisioned here'; END IF; \
         SELECT string_agg(f.words, ', ') INTO one FROM ({}) AS f (words); \
         IF one IS NOT NULL THEN RAISE EXCEPTION 'of others there depends on the schema strangler: %', one; END IF; \
         DROP SCHEMA strangler CASCADE; END $strangler$",
        foreign_sql("")
    )
}
