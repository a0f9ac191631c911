//! From which tables constraints and indexes were set aside, by number: a name may be another table's when they are put back.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::JournalError;
use super::abandonment::of_this_life;
use crate::name::{TableName, quote_literal};

/// Action of the entry about an index or a constraint.
const SET_ASIDE: &str = "set aside";
/// Action of the entry about a replica identity that is about to be another one.
const HAD_IDENTITY: &str = "had replica identity";

/// SQL that writes down from which table something is set aside, with all `tables` that its definition names, for the transaction that
/// takes it off.
#[must_use]
pub fn note(slice: &str, (table, object): (&TableName, &str), tables: &[&TableName]) -> String {
    let named: Vec<String> =
        tables.iter().map(|one| format!("to_regclass({})", quote_literal(&one.sql()))).collect();
    format!(
        "INSERT INTO strangler.journal (slice, actor, action, detail) SELECT {}, 'provision', {}, jsonb_build_object('table', {}::text, \
             'object', {}::text, 'names', jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname, \
             'plain', format('%I.%I', n.nspname, c.relname), 'relation', c.oid::int8))) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ({})",
        quote_literal(slice),
        quote_literal(SET_ASIDE),
        quote_literal(&table.to_string()),
        quote_literal(object),
        named.join(", ")
    )
}

/// A table that a definition names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// As it was called then.
    pub then: TableName,
    /// The same as the server writes it in definitions.
    pub plain: String,
    /// Its number.
    pub relation: u32,
    /// As it is called now; none where it is gone.
    pub now: Option<TableName>,
}

/// Something that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The slice.
    pub slice: String,
    /// Its table, as it was shown then.
    pub table: String,
    /// What it is called.
    pub object: String,
    /// The tables that its definition names.
    pub names: Vec<Named>,
}

/// Everything that is written down so, for all slices; of each thing the last word.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn all(service: &Client) -> Result<Vec<SetAside>, JournalError> {
    let sql = "SELECT d.slice, d.detail ->> 'table', d.detail ->> 'object', x ->> 'schema', x ->> 'name', x ->> 'plain', \
                   (x ->> 'relation')::oid, n.nspname::text, c.relname::text \
               FROM (SELECT DISTINCT ON (slice, detail ->> 'table', detail ->> 'object') slice, detail FROM strangler.journal \
                   WHERE action = $1 AND actor = 'provision' ORDER BY slice, detail ->> 'table', detail ->> 'object', id DESC) AS d \
               CROSS JOIN LATERAL jsonb_array_elements(d.detail -> 'names') WITH ORDINALITY AS e (x, number) \
               LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace) ON c.oid = (x ->> 'relation')::oid ORDER BY 1, 2, 3, e.number";
    let rows = service.query_typed(sql, &[(&SET_ASIDE, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("reading what was set aside"))?;
    let mut found: Vec<SetAside> = Vec::new();
    for row in &rows {
        let now = row.get::<_, Option<String>>(7).zip(row.get::<_, Option<String>>(8));
        let named = Named {
            then: TableName::new(row.get::<_, String>(3), row.get::<_, String>(4)),
            plain: row.get(5),
            relation: row.get(6),
            now: now.map(|(schema, name)| TableName::new(schema, name)),
        };
        let one = SetAside { slice: row.get(0), table: row.get(1), object: row.get(2), names: Vec::new() };
        match found.last_mut() {
            Some(last)
                if (&last.slice, &last.table, &last.object) == (&one.slice, &one.table, &one.object) =>
            {
                last.names.push(named);
            }
            _ => found.push(SetAside { names: vec![named], ..one }),
        }
    }
    Ok(found)
}

/// SQL that writes down which replica identity a table has, for the transaction that gives it another one: `to` is that, as the catalog
/// has it.
#[must_use]
pub fn note_identity(slice: &str, table: &TableName, to: char) -> String {
    format!(
        "INSERT INTO strangler.journal (slice, actor, action, detail) SELECT {}, 'arm', {}, jsonb_build_object('relation', c.oid::int8, \
             'identity', c.relreplident, 'to', {}, 'index', (SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
                 WHERE x.indrelid = c.oid AND x.indisreplident)) FROM pg_class c WHERE c.oid = to_regclass({})",
        quote_literal(slice),
        quote_literal(HAD_IDENTITY),
        quote_literal(&to.to_string()),
        quote_literal(&table.sql())
    )
}

/// A table whose replica identity is the one that `arm` gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub relation: u32,
    /// As it is called now.
    pub now: TableName,
    /// What it was before: `DEFAULT`, `FULL`, `NOTHING`, or `USING INDEX` with its name.
    pub before: String,
}

/// Tables of a slice whose replica identity is still the one that `arm` gave them, in this life of the slice.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn identities(service: &Client, slice: &str) -> Result<Vec<Identity>, JournalError> {
    let sql = format!(
        "WITH noted AS (SELECT (detail ->> 'relation')::oid AS relation, detail, j.id FROM strangler.journal j \
             WHERE slice = $1 AND action = $2 AND {}), \
         first AS (SELECT DISTINCT ON (relation) relation, detail FROM noted ORDER BY relation, id), \
         last AS (SELECT DISTINCT ON (relation) relation, detail ->> 'to' AS identity FROM noted ORDER BY relation, id DESC) \
         SELECT c.oid, n.nspname::text, c.relname::text, CASE f.detail ->> 'identity' WHEN 'd' THEN 'DEFAULT' WHEN 'f' THEN 'FULL' \
             WHEN 'n' THEN 'NOTHING' ELSE 'USING INDEX ' || quote_ident(f.detail ->> 'index') END \
         FROM first f JOIN last l USING (relation) JOIN pg_class c ON c.oid = f.relation AND c.relreplident = l.identity::\"char\" \
             JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 2, 3",
        of_this_life("j", "$1")
    );
    let asked: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&slice, Type::TEXT), (&HAD_IDENTITY, Type::TEXT)];
    let rows = service.query_typed(&sql, &asked).await;
    let rows = rows.map_err(JournalError::database("reading which replica identities were changed"))?;
    let identity = |row: &tokio_postgres::Row| {
        let now = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        row.get::<_, Option<String>>(3).map(|before| Identity { relation: row.get(0), now, before })
    };
    Ok(rows.iter().filter_map(identity).collect())
}
