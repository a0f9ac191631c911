//! What was so when a slice began, as it is needed when the slice is taken back: which of the service's tables held no row, and which
//! database the service's was. Facts that nobody wrote down then can't be found out later, so what is not here is not known.

use std::collections::BTreeMap;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::{JournalError, slices};
use crate::name::{TableName, quote_ident, quote_literal};

/// SQL that writes down that a table holds no row: for the transaction that makes it.
#[must_use]
pub fn note_made(slice: &str, table: &TableName) -> Vec<String> {
    let (name, label) = (quote_literal(slice), quote_literal(&table.to_string()));
    vec![
        forget(slice, table),
        format!(
            "INSERT INTO strangler.begun_empty VALUES ({name}, {label}, to_regclass({}))",
            quote_literal(&table.sql())
        ),
    ]
}

/// SQL that writes it down where it is so, with the partitions that the table has at this moment; it keeps writers away until the end of
/// the transaction. Where rows may be hidden from the role nothing is written.
#[must_use]
pub fn note_adopted(slice: &str, table: &TableName) -> Vec<String> {
    let (name, label) = (quote_literal(slice), quote_literal(&table.to_string()));
    let body = format!(
        " BEGIN IF NOT EXISTS (SELECT FROM {table}) THEN INSERT INTO strangler.begun_empty \
         WITH RECURSIVE below (oid) AS (SELECT to_regclass({literal})::oid \
             UNION SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid) \
         SELECT {name}, {label}, c.oid FROM below b JOIN pg_class c ON c.oid = b.oid WHERE c.relkind IN ('r', 'p'); END IF; \
         EXCEPTION WHEN insufficient_privilege THEN NULL; END ",
        table = table.sql(),
        literal = quote_literal(&table.sql()),
    );
    vec![
        forget(slice, table),
        format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", table.sql()),
        format!("DO {}", quote_literal(&body)),
    ]
}

fn forget(slice: &str, table: &TableName) -> String {
    format!(
        "DELETE FROM strangler.begun_empty WHERE slice = {} AND target_table = {}",
        quote_literal(slice),
        quote_literal(&table.to_string())
    )
}

/// Why the rows of tables can't be proven to be the mirror's, as a query of the table's name as it is shown and the reason. The gate
/// of the slice must be there. `true` beside a table that `provision` made. It has no row exactly where nothing but the mirror can have
/// written there since the tables were empty.
#[must_use]
pub fn doubts_sql(slice: &str, tables: &[(TableName, bool)]) -> String {
    let name = quote_literal(slice);
    let gate = quote_ident(&format!("gate_{slice}"));
    let meant: Vec<String> = tables
        .iter()
        .map(|(table, made)| {
            format!(
                "({}, to_regclass({})::oid, {made})",
                quote_literal(&table.to_string()),
                quote_literal(&table.sql())
            )
        })
        .collect();
    format!(
        "WITH RECURSIVE meant (label, oid, made) AS (VALUES {meant}), \
        below (label, oid) AS (SELECT label, oid FROM meant WHERE oid IS NOT NULL \
            UNION SELECT b.label, i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid), \
        known (label, oid) AS (SELECT target_table, relation FROM strangler.begun_empty WHERE slice = {name}), \
        hinges AS (SELECT b.label, t.tgname, t.tgrelid, t.tgenabled, t.tgparentid FROM below b JOIN pg_trigger t ON t.tgrelid = b.oid \
            AND t.tgfoid = to_regprocedure({function})) \
        SELECT m.label, CASE WHEN m.made \
                THEN 'nothing says that this is the table that provision made: it is another one, or a version made it that wrote nothing down' \
                ELSE 'nothing says that it held no row when it was adopted: it held some, or a version adopted it that wrote nothing down' END \
            FROM meant m WHERE NOT EXISTS (SELECT FROM known k WHERE (k.label, k.oid) = (m.label, m.oid)) \
        UNION ALL SELECT m.label, format('%s has become a part of it, and may hold rows of its own', b.oid::regclass) \
            FROM meant m JOIN below b ON b.label = m.label AND b.oid <> m.oid \
            WHERE EXISTS (SELECT FROM known k WHERE (k.label, k.oid) = (m.label, m.oid)) \
                AND NOT EXISTS (SELECT FROM known k WHERE (k.label, k.oid) = (b.label, b.oid)) \
        UNION ALL SELECT m.label, format('it has become a part of %s', i.inhparent::regclass) \
            FROM meant m JOIN pg_inherits i ON i.inhrelid = m.oid \
        UNION ALL SELECT b.label, format('%s has become a part of %s', b.oid::regclass, i.inhparent::regclass) \
            FROM below b JOIN meant m ON m.label = b.label AND m.oid <> b.oid JOIN pg_inherits i ON i.inhrelid = b.oid \
            WHERE NOT EXISTS (SELECT FROM below p WHERE (p.label, p.oid) = (b.label, i.inhparent)) \
        UNION ALL SELECT m.label, 'it is no plain table any more' FROM meant m JOIN pg_class c ON c.oid = m.oid \
            WHERE m.made AND c.relkind <> 'r' \
        UNION ALL SELECT m.label, format('slice %s has it for a table of its own', o.slice) \
            FROM meant m JOIN strangler.mirror_table o ON o.target_table = m.label AND o.slice <> {name} \
        UNION ALL SELECT m.label, 'the slice''s gate does not hang on it' FROM meant m \
            WHERE NOT EXISTS (SELECT FROM hinges h WHERE (h.label, h.tgrelid) = (m.label, m.oid)) \
        UNION ALL SELECT DISTINCT h.label, format('the slice''s gate on %s is put to sleep', h.tgrelid::regclass) FROM hinges h \
            WHERE h.tgenabled <> 'A' AND (h.tgparentid = 0 OR h.tgenabled IN ('D', 'R')) \
        UNION ALL SELECT m.label, 'somebody wrote in the service past the gate' FROM meant m \
            WHERE EXISTS (SELECT FROM strangler.alarm WHERE slice = {name} AND dir = 'reverse' AND cleared_at IS NULL) \
        UNION ALL SELECT m.label, 'the service has had the authority, and its application may have written there' \
            FROM meant m, strangler.{gate} g WHERE NOT m.made AND (g.state <> 'FENCED' OR g.epoch <> 1)",
        meant = meant.join(", "),
        function = quote_literal(&format!("strangler.{gate}()")),
    )
}

/// Asks it. Nothing for no tables.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn doubts(
    service: &Client,
    slice: &str,
    tables: &[(TableName, bool)],
) -> Result<Vec<(String, String)>, JournalError> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    if !slices::has_gate(service, slice).await? {
        let gone =
            |(table, _): &(TableName, bool)| (table.to_string(), "the slice's gate is gone".to_owned());
        return Ok(tables.iter().map(gone).collect());
    }
    let sql = format!(
        "SELECT DISTINCT label, why FROM ({}) AS d (label, why) ORDER BY 1, 2",
        doubts_sql(slice, tables)
    );
    let rows = service.query_typed(&sql, &[]).await;
    let rows = rows.map_err(JournalError::database("looking whose rows the service's tables hold"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What holds a table's rows, but for partitions and heirs that came after it was adopted; the table itself, where nothing was written
/// down then.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn leaves(
    service: &Client,
    slice: &str,
    table: &TableName,
) -> Result<Vec<TableName>, JournalError> {
    let sql = "WITH RECURSIVE below (oid) AS (SELECT to_regclass($1)::oid \
            UNION SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid) \
        SELECT n.nspname::text, c.relname::text FROM below b JOIN pg_class c ON c.oid = b.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind = 'r' AND (c.oid = to_regclass($1)::oid OR EXISTS (SELECT FROM strangler.begun_empty e \
            WHERE e.slice = $2 AND e.target_table = $3 AND e.relation = c.oid)) ORDER BY 1, 2";
    let (name, label) = (table.sql(), table.to_string());
    let asked: [(&(dyn ToSql + Sync), Type); 3] =
        [(&name, Type::TEXT), (&slice, Type::TEXT), (&label, Type::TEXT)];
    let rows = service.query_typed(sql, &asked).await;
    let rows = rows.map_err(JournalError::database("reading a table's partitions"))?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Partitions of a slice's tables as they were when those were adopted, by their numbers, each with the table as it is shown.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn partitions(service: &Client, slice: &str) -> Result<BTreeMap<u32, String>, JournalError> {
    let sql = "SELECT DISTINCT e.relation, e.target_table FROM strangler.begun_empty e JOIN strangler.begun_empty w USING (slice, target_table) \
                   JOIN pg_class p ON p.oid = w.relation AND p.relkind = 'p' JOIN pg_class c ON c.oid = e.relation AND c.relkind = 'r' \
               WHERE e.slice = $1";
    let rows = service.query_typed(sql, &[(&slice, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading which partitions there were"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// SQL that fails where there is such a doubt about one of these tables, in the transaction that takes their rows and behind the locks
/// that keep others away.
#[must_use]
pub fn require_proof(slice: &str, tables: &[(TableName, bool)]) -> String {
    let body = format!(
        " DECLARE doubt text; BEGIN SELECT string_agg(d.label || ': ' || d.why, '; ') INTO doubt FROM ({}) AS d (label, why); \
         IF doubt IS NOT NULL THEN RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = doubt, \
             HINT = 'the rows there need not be the mirror''s; the same command without --confirm shows what is left to do'; \
         END IF; END ",
        doubts_sql(slice, tables)
    );
    format!("DO {}", quote_literal(&body))
}

/// The database that a slice was provisioned in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Its uuid.
    pub uuid: String,
    /// Its name.
    pub database: String,
}

/// Where a slice was provisioned first, as the monolith knows it; `None` where nobody wrote that down.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn home(monolith: &Client, slice: &str) -> Result<Option<Home>, JournalError> {
    let sql = "SELECT uuid::text, database FROM strangler.home WHERE slice = $1";
    let row = monolith.query_typed_opt(sql, &[(&slice, Type::TEXT)]).await;
    let row = row.map_err(JournalError::database("reading where a slice was provisioned"))?;
    Ok(row.map(|row| Home { uuid: row.get(0), database: row.get(1) }))
}

/// What an administrator of the monolith runs where that database is gone for good.
#[must_use]
pub fn forget_home(slice: &str) -> String {
    format!("DELETE FROM strangler.home WHERE slice = {}", quote_literal(slice))
}

/// Writes down where a slice was provisioned, unless that is known: another database is never taken for the first one. Both sides of
/// the slice must be there. Who calls it: `provision`, behind its last step.
///
/// # Errors
/// [`JournalError`].
pub async fn note_home(
    monolith: &Client,
    service: &Client,
    (slice, name): (&str, &str),
) -> Result<(), JournalError> {
    let Some(uuid) = slices::database_uuid(service).await? else { return Ok(()) };
    let row = service.query_typed_one("SELECT current_database()::text", &[]).await;
    let database: String = row.map_err(JournalError::database("reading a database's name"))?.get(0);
    let sql = "INSERT INTO strangler.home (slice, service, uuid, database) SELECT $1, $2, $3::text::uuid, $4 \
               WHERE EXISTS (SELECT FROM strangler.slice WHERE slice = $1) ON CONFLICT DO NOTHING";
    let asked: [(&(dyn ToSql + Sync), Type); 4] =
        [(&slice, Type::TEXT), (&name, Type::TEXT), (&uuid, Type::TEXT), (&database, Type::TEXT)];
    let done = monolith.query_typed(sql, &asked).await;
    done.map(drop).map_err(JournalError::database("writing down where a slice was provisioned"))
}
