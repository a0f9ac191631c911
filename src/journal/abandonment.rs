//! Slices that are being taken back. The row stands in the service from the first step to the last, so that every verb but `abandon`
//! leaves the slice alone meanwhile, whatever of it is gone already.

use serde_json::Value;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::{JournalError, ledger};
use crate::name::{TableName, quote_ident, quote_literal};

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
const KEPT: &[&str] = &["journal", "ledger", "abandonment", "dropped"];

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

/// SQL that fails unless the gate in this database is closed, and holds it so until the end of the transaction.
#[must_use]
pub fn require_fenced(slice: &str) -> String {
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

/// Where it stands in the body which tables' rows were taken.
pub const DECIDED: &str = "decided";

/// SQL that writes down which tables' rows were taken, in the transaction that takes them; it fails unless the slice is being taken back.
#[must_use]
pub fn decide(slice: &str, tables: &[String]) -> String {
    let body = format!(
        " BEGIN UPDATE strangler.abandonment SET body = (body::jsonb || {}::jsonb)::json WHERE slice = {}; \
         IF NOT FOUND THEN RAISE EXCEPTION 'the slice is not being taken back'; END IF; END ",
        quote_literal(&serde_json::json!({ DECIDED: tables }).to_string()),
        quote_literal(slice)
    );
    format!("DO {}", quote_literal(&body))
}

/// Action of the entry that says what the monolith was found to lack.
const LACKS: &str = "the monolith lacks rows";

/// Writes down what the monolith was found to lack: what can be seen of that may be gone later. Who calls it: every run that saw it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn note_lack(service: &Client, slice: &str, fact: &str) -> Result<(), JournalError> {
    let detail = serde_json::json!({ "fact": fact });
    let sql = super::statements::insert_journal(ACTOR, Some(slice), LACKS, &detail);
    service.batch_execute(&sql).await.map_err(JournalError::database("writing down what the monolith lacks"))
}

/// What was written down of that in this life of the slice.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn noted_lacks(service: &Client, slice: &str) -> Result<Vec<String>, JournalError> {
    let sql = format!(
        "SELECT DISTINCT detail ->> 'fact' FROM strangler.journal j WHERE slice = $1 AND actor = $2 AND action = $3 AND {} ORDER BY 1",
        of_this_life("j", "$1")
    );
    let asked: [(&(dyn ToSql + Sync), Type); 3] =
        [(&slice, Type::TEXT), (&ACTOR, Type::TEXT), (&LACKS, Type::TEXT)];
    let rows = service.query_typed(&sql, &asked).await;
    let rows = rows.map_err(JournalError::database("reading what the monolith lacks"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
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

/// Action of the entry that says that a slice was taken back: what the journal says of it from before is of an earlier life.
pub const TAKEN_BACK: &str = "take back slice";
/// The same where an administrator did it, as docs/runbooks/start-anew.md has it.
const UNDONE_BY_HAND: &str = "undone by hand";
/// Action of the entry about what was set aside and could not be put back.
const STAYS_AWAY: &str = "could not put back";
/// Action of the entry about a foreign key between two slices that was put back.
const PUT_BACK: &str = "put back between slices";

/// A condition on entries of the journal under this name: they are of the life that a slice has now. `slice` is an expression.
#[must_use]
pub(super) fn of_this_life(entry: &str, slice: &str) -> String {
    format!(
        "{entry}.id > coalesce((SELECT max(ended.id) FROM strangler.journal ended \
             WHERE ended.slice = {slice} AND ended.action IN ({}, {})), 0)",
        quote_literal(TAKEN_BACK),
        quote_literal(UNDONE_BY_HAND)
    )
}

/// The same of the ledger's entries.
#[must_use]
pub(super) fn told_of_this_life(entry: &str, slice: &str) -> String {
    format!(
        "{entry}.id > coalesce((SELECT max(ended.id) FROM strangler.ledger ended \
             WHERE ended.slice = {slice} AND ended.kind = {}), 0)",
        quote_literal(ledger::ABANDON)
    )
}

/// Whether a slice was taken back from this database, and nothing was provisioned for it since. The tables must be there.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn has_ended(service: &Client, slice: &str) -> Result<bool, JournalError> {
    let sql = "SELECT NOT EXISTS (SELECT FROM strangler.slice WHERE slice = $1) \
                   AND EXISTS (SELECT FROM strangler.journal WHERE slice = $1 AND actor = $2 AND action = $3)";
    let asked: [(&(dyn ToSql + Sync), Type); 3] =
        [(&slice, Type::TEXT), (&ACTOR, Type::TEXT), (&TAKEN_BACK, Type::TEXT)];
    let row = service.query_typed_one(sql, &asked).await;
    Ok(row.map_err(JournalError::database("reading whether a slice was abandoned"))?.get(0))
}

/// SQL that puts back what was set aside, unless what is there now does not allow it, which is written down, whatever it is. Where somebody
/// holds what it needs it is an error, and the next run does it; a statement that is cancelled, or whose session ends, never gets there.
///
/// `on` are the tables that it names, by their numbers: behind it, when it holds locks that keep their names as they are, they must be those.
#[must_use]
pub fn put_back(slice: &str, sql: &str, on: &[(u32, TableName)]) -> String {
    let others: Vec<String> = on
        .iter()
        .map(|(oid, name)| {
            format!(
                "IF to_regclass({}) IS DISTINCT FROM {oid} THEN RAISE 'another table has its name'; END IF; ",
                quote_literal(&name.sql())
            )
        })
        .collect();
    let body = format!(
        " BEGIN EXECUTE {}; {}EXCEPTION WHEN lock_not_available OR deadlock_detected THEN RAISE; WHEN OTHERS OR assert_failure THEN {}; END ",
        quote_literal(sql),
        others.concat(),
        leave_away(slice, sql)
    );
    format!("DO {}", quote_literal(&body))
}

/// SQL that writes down that something was not put back.
#[must_use]
pub fn leave_away(slice: &str, sql: &str) -> String {
    let detail = serde_json::json!({ "create_sql": sql });
    super::statements::insert_journal(ACTOR, Some(slice), STAYS_AWAY, &detail)
}

/// SQL that notes that a foreign key between two slices was to come back, so that it is done once.
#[must_use]
pub fn note_put_back(slice: &str, object: &str) -> String {
    let detail = serde_json::json!({ "object": object });
    super::statements::insert_journal(ACTOR, Some(slice), PUT_BACK, &detail)
}

/// What an abandonment could not put back, as SQL, of those entries that are behind this one; 0 for all.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn stays_away(service: &Client, slice: &str, after: i64) -> Result<Vec<String>, JournalError> {
    let sql = "SELECT detail ->> 'create_sql' FROM strangler.journal WHERE slice = $1 AND action = $2 AND id > $3 ORDER BY id";
    let asked: [(&(dyn ToSql + Sync), Type); 3] =
        [(&slice, Type::TEXT), (&STAYS_AWAY, Type::TEXT), (&after, Type::INT8)];
    let rows = service.query_typed(sql, &asked).await;
    let rows = rows.map_err(JournalError::database("reading what could not be put back"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The number of the journal's last entry; 0 where there is none.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn last_entry(client: &Client) -> Result<i64, JournalError> {
    let sql = "SELECT coalesce(max(id), 0) FROM strangler.journal";
    let row = client.query_typed_one(sql, &[]).await;
    Ok(row.map_err(JournalError::database("reading the journal"))?.get(0))
}

/// Who holds locks in this database on what is ours or on these tables for the longest time, in words.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn holder(client: &Client, tables: &[String]) -> Result<Option<String>, JournalError> {
    let sql = "SELECT coalesce(format('process %s (%s)%s', l.pid, \
                   coalesce(nullif(a.application_name, ''), 'role ' || a.usename, 'no application name'), \
                   ', whose transaction is open for ' || round(extract(epoch FROM clock_timestamp() - a.xact_start)) || ' s'), \
                   'a prepared transaction') || ' holds ' || string_agg(DISTINCT l.relation::regclass::text, ', ') \
               FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_class c ON c.oid = l.relation \
                   JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() \
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                   AND (n.nspname = 'strangler' OR c.oid IN (SELECT to_regclass(t)::oid FROM unnest($1::text[]) AS t)) \
                   AND c.relkind IN ('r', 'p') \
               GROUP BY l.pid, a.application_name, a.usename, a.xact_start ORDER BY a.xact_start LIMIT 1";
    let row = client.query_typed_opt(sql, &[(&tables, Type::TEXT_ARRAY)]).await;
    Ok(row.map_err(JournalError::database("looking for who holds a lock"))?.map(|row| row.get(0)))
}

/// Tells the life of a slice from any other that it has had in this database; `None` where it has none.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn life(client: &Client, slice: &str) -> Result<Option<String>, JournalError> {
    let sql = "SELECT concat_ws(' ', d.uuid, (extract(epoch FROM s.provisioned_at) * 1000000)::bigint) \
               FROM strangler.slice s LEFT JOIN strangler.database d ON true WHERE s.slice = $1";
    let row = client.query_typed_opt(sql, &[(&slice, Type::TEXT)]).await;
    Ok(row.map_err(JournalError::database("reading the slice"))?.map(|row| row.get(0)))
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
    /// Slices whose old tables are dropped: what is written down of them is in no other place.
    pub dropped: Vec<String>,
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
                       WHERE action = 'create role' AND detail ->> 'object' <> 'strangler_apply' ORDER BY 1), \
                   ARRAY(SELECT slice FROM strangler.dropped ORDER BY slice)";
    let row = client.query_typed_one(sql, &[(&slice, Type::TEXT)]).await;
    let row = row.map_err(JournalError::database("looking who else is provisioned"))?;
    Ok(Others {
        slices: row.get(0),
        ledger: row.get(1),
        made_role: row.get(2),
        quieted: row.get(3),
        roles: row.get(4),
        dropped: row.get(5),
    })
}

/// What a table of the service was to `provision`, by the last word of its journal: `create table` or `adopt table`.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn origins(service: &Client, slice: &str) -> Result<Vec<(String, String)>, JournalError> {
    let sql = format!(
        "SELECT DISTINCT ON (detail ->> 'object') detail ->> 'object', action FROM strangler.journal j \
         WHERE slice = $1 AND action IN ('create table', 'adopt table') AND detail ? 'object' AND {} \
         ORDER BY detail ->> 'object', id DESC",
        of_this_life("j", "$1")
    );
    let rows = service.query_typed(&sql, &[(&slice, Type::TEXT)]).await;
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
                   AND NOT EXISTS (SELECT FROM strangler.journal b WHERE b.action = 'put back between slices' \
                       AND b.detail ->> 'object' = j.detail ->> 'object' AND b.id > j.id) \
               ORDER BY detail ->> 'object', id DESC";
    let rows = service.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading which foreign keys were set aside"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Indexes and constraints of a slice's tables that wait, with table, object and SQL, in the order in which they are put back.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn waiting(service: &Client, slice: &str) -> Result<Vec<(String, String, String)>, JournalError> {
    let sql = "SELECT target_table, object, create_sql FROM strangler.deferred WHERE slice = $1 AND done_at IS NULL ORDER BY id";
    let rows = service.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading what waits"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// What of others depends on our schema: what outside of it leans on something in it, and what is in it and not ours. With that it is not
/// dropped. As kind and identity; gates that hang on tables are left out, since they go with their slice, or stop it.
///
/// # Errors
/// The server's.
pub async fn foreign(client: &Client) -> Result<Vec<String>, JournalError> {
    let rows = client.query_typed(&foreign_sql("AND g.oid IS NULL"), &[]).await;
    let rows = rows.map_err(JournalError::database("looking what depends on the schema"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Our relations beside the gates, each made by a migration.
const RELATIONS: &[&str] = &[
    "abandonment",
    "alarm",
    "archive",
    "authority",
    "baseline",
    "begun_empty",
    "canary",
    "cut_key",
    "database",
    "deferred",
    "dropped",
    "freshness",
    "granted",
    "home",
    "journal",
    "ledger",
    "lineage",
    "mirror_process",
    "mirror_table",
    "move_group",
    "operator",
    "own_scan",
    "part",
    "piece",
    "quarantine",
    "quarantined",
    "reconcile_chunk",
    "reconcile_run",
    "repair",
    "retirement",
    "revoked_right",
    "schema_history",
    "slice",
    "stream",
    "table_use",
    "table_user",
    "touched",
    "touched_floor",
];
/// Our functions beside the gates'.
const FUNCTIONS: &[&str] = &["append_only", "authority_rows"];

/// Objects of others as above, under one more condition on triggers. What belongs to our own objects, as their indexes, types and
/// sequences do, is ours.
fn foreign_sql(condition: &str) -> String {
    let list = |names: &[&str]| names.iter().map(|name| quote_literal(name)).collect::<Vec<_>>().join(", ");
    format!(
        "WITH RECURSIVE ours (class, oid) AS ( \
        SELECT 'pg_class'::regclass::oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname = 'strangler' AND c.relkind IN ('r', 'v') \
                AND (c.relname IN ({relations}) OR left(c.relname::text, 5) = 'gate_' AND c.relkind = 'r') \
        UNION SELECT 'pg_proc'::regclass::oid, p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
            WHERE n.nspname = 'strangler' AND p.pronargs = 0 AND (p.proname IN ({functions}) OR left(p.proname::text, 5) = 'gate_') \
        UNION SELECT d.classid, d.objid FROM ours o JOIN pg_depend d ON d.refclassid = o.class AND d.refobjid = o.oid \
            WHERE d.deptype IN ('a', 'i')), \
    leaning AS (SELECT DISTINCT d.classid, d.objid FROM ours o \
        JOIN pg_depend d ON d.refclassid = o.class AND d.refobjid = o.oid AND d.deptype = 'n' \
        WHERE NOT EXISTS (SELECT FROM ours x WHERE x.class = d.classid AND x.oid = d.objid) \
        UNION SELECT d.classid, d.objid FROM pg_depend d WHERE d.refclassid = 'pg_namespace'::regclass \
            AND d.refobjid = to_regnamespace('strangler')::oid AND d.deptype = 'n' \
            AND NOT EXISTS (SELECT FROM ours x WHERE x.class = d.classid AND x.oid = d.objid)) \
    SELECT DISTINCT i.type || ' ' || i.identity FROM leaning l \
        LEFT JOIN pg_rewrite r ON l.classid = 'pg_rewrite'::regclass AND r.oid = l.objid \
        LEFT JOIN (SELECT t.oid FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE left(p.proname::text, 5) = 'gate_') g \
            ON l.classid = 'pg_trigger'::regclass AND g.oid = l.objid \
        CROSS JOIN LATERAL pg_identify_object(CASE WHEN r.oid IS NULL THEN l.classid ELSE 'pg_class'::regclass END, \
            CASE WHEN r.oid IS NULL THEN l.objid ELSE r.ev_class END, 0) i \
        WHERE (r.oid IS NULL OR NOT EXISTS (SELECT FROM ours x WHERE x.class = 'pg_class'::regclass AND x.oid = r.ev_class)) {condition} \
    ORDER BY 1",
        relations = list(RELATIONS),
        functions = list(FUNCTIONS),
    )
}

/// SQL that drops our schema, where no slice is left in it, nothing is written down of one whose old tables are dropped, nothing of others
/// depends on it and, unless the ledger goes with it, nothing told there: all that is looked at under the locks.
#[must_use]
pub fn drop_schema(with_ledger: bool) -> String {
    let ledger = if with_ledger {
        ""
    } else {
        "IF EXISTS (SELECT FROM strangler.ledger) THEN RAISE EXCEPTION 'a ledger is kept here'; END IF; "
    };
    format!(
        "DO $strangler$ DECLARE one text; BEGIN \
         FOR one IN SELECT format('%I.%I', 'strangler', c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = 'strangler' AND c.relkind = 'r' LOOP EXECUTE 'LOCK TABLE ' || one; END LOOP; \
         IF EXISTS (SELECT FROM strangler.slice) THEN RAISE EXCEPTION 'a slice is provisioned here'; END IF; \
         IF EXISTS (SELECT FROM strangler.abandonment) THEN RAISE EXCEPTION 'a slice is being taken back here'; END IF; \
         IF EXISTS (SELECT FROM strangler.dropped) THEN RAISE EXCEPTION 'what was dropped is written down here'; END IF; {ledger}\
         SELECT string_agg(f.words, ', ') INTO one FROM ({}) AS f (words); \
         IF one IS NOT NULL THEN RAISE EXCEPTION 'of others there depends on the schema strangler: %', one; END IF; \
         DROP SCHEMA strangler CASCADE; END $strangler$",
        foreign_sql("")
    )
}
