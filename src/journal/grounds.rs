//! What compared data rests on: the mapping, the epoch, the stream, and for each table which copy of it there is and
//! what it looks like on both sides. When any of it is another one than before, what was proven before is no proof
//! any more. Nothing here is a time: what came first is told by numbers and names that never come back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::JournalError;
use super::copies::UNHEARD;
use crate::name::{TableName, quote_ident};
use crate::postgres::connect::Session;
use crate::postgres::type_trees::reached;

/// Everything that evidence about a slice rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ground {
    /// Hash of the mapping that the service was provisioned for.
    pub plan_hash: String,
    /// Epoch of the service's gate.
    pub epoch: i64,
    /// The forward stream's slot, whose name has a random end: another slot is another stream. Absent before the
    /// mirror's first start.
    pub slot: Option<String>,
    /// State of the stream; absent like the slot.
    pub stream: Option<String>,
    /// How often something happened that no state shows: see [`super::alarms::disturbances`].
    #[serde(default)]
    pub disturbances: i64,
    /// Slot of the way back that is read, or was read last. Absent before the first, and in what earlier versions wrote.
    #[serde(default)]
    pub way_back: Option<String>,
    /// The tables by the monolith's names, as a plan writes them.
    pub tables: BTreeMap<String, TableGround>,
}

/// What evidence about one table rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableGround {
    /// Which copy of it the service holds.
    pub copy: i32,
    /// `pending`, `copying`, `live` or `diverged`.
    pub state: String,
    /// Its rows changed without an event in the stream, or may have.
    #[serde(default)]
    pub unheard: bool,
    /// Shape in the service.
    pub target_shape: String,
    /// Shape on the monolith; absent when the monolith was not asked.
    pub source_shape: Option<String>,
}

/// Shape of a table that is not there, or of one that left the slice's publication.
pub const ABSENT: &str = "absent";

/// A table's shape, in four parts: what its columns and partitions are, and what it is where it is no table; what their types are made of, at any depth; marked
/// [`DESCRIBED`], the transactions that described the columns; and marked [`FILES`], the files of its rows.
/// [`is_same_shape`] compares two of them.
///
/// To be joined to a relation `t` whose `oid` is the table's. A planner takes `pg_partition_tree` for a thousand rows, and would read
/// whole catalogs for each table; `OFFSET 0` keeps what is read of them behind the index, here and in [`PARTS`].
fn shape_sql() -> String {
    let types = reached(
        "SELECT DISTINCT 0, b.atttypid FROM pg_attribute b \
         WHERE b.attrelid = t.oid AND b.attnum > 0 AND NOT b.attisdropped",
    );
    format!(
        "LATERAL (SELECT nullif(concat_ws(' ', md5(string_agg(concat_ws(' ', a.attrelid, a.attnum, a.attname, \
            a.atttypid, a.atttypmod, a.attcollation, a.attnotnull, a.attisdropped, a.attidentity, a.attgenerated, \
            (SELECT d.oid FROM pg_attrdef d WHERE (d.adrelid, d.adnum) = (a.attrelid, a.attnum)), \
            (SELECT i.xmin FROM pg_inherits i WHERE i.inhrelid = a.attrelid AND i.inhrelid <> t.oid)), \
            ',' ORDER BY a.attrelid, a.attnum)), \
            ({types} SELECT md5(string_agg(concat_ws(' ', r.oid, \
                (SELECT string_agg(quote_literal(e.enumlabel), ' ' ORDER BY e.enumsortorder) FROM pg_enum e \
                    WHERE e.enumtypid = r.oid), \
                (SELECT string_agg(concat_ws(' ', b.attnum, quote_ident(b.attname), b.atttypid, b.atttypmod), ',' \
                    ORDER BY b.attnum) FROM pg_type y JOIN pg_attribute b ON b.attrelid = y.typrelid \
                    WHERE y.oid = r.oid AND y.typrelid <> 0 AND b.attnum > 0 AND NOT b.attisdropped)), \
                ';' ORDER BY r.oid)) FROM reached r), \
            CASE WHEN bool_or(a.relpersistence <> 'p') THEN '{UNLOGGED}' END, \
            (SELECT 'children=' || string_agg(i.inhrelid::text, ',' ORDER BY i.inhrelid) FROM pg_inherits i \
                JOIN pg_class p ON p.oid = i.inhparent WHERE i.inhparent = t.oid AND p.relkind <> 'p'), \
            (SELECT 'kind=' || k.relkind::text FROM pg_class k WHERE k.oid = t.oid AND k.relkind NOT IN ('r', 'p')), \
            'described=' || md5(string_agg(a.described::text, ',' ORDER BY a.attrelid, a.attnum)), \
            'files=' || md5(string_agg(a.relfilenode::text, ',' ORDER BY a.attrelid, a.attnum))), '') AS shape \
        FROM (SELECT t.oid AS relid UNION SELECT relid FROM pg_partition_tree(t.oid)) AS r \
        CROSS JOIN LATERAL (SELECT c.relpersistence, c.relfilenode, b.*, b.xmin AS described FROM pg_class c \
            JOIN pg_attribute b ON b.attrelid = c.oid \
            WHERE c.oid = r.relid AND b.attrelid = r.relid AND b.attnum > 0 OFFSET 0) AS a) AS s"
    )
}

/// A part of the shape of a table that is UNLOGGED, or has a partition that is.
const UNLOGGED: &str = "unlogged";

/// Whether a shape is of a table that a crash empties.
#[must_use]
pub fn is_unlogged(shape: &str) -> bool {
    shape.split(' ').any(|part| part == UNLOGGED)
}

/// Begins the part of a shape that a GRANT on a column changes, as any change of its definition does.
const DESCRIBED: &str = "described=";
/// Begins the part of a shape that VACUUM FULL, CLUSTER and TRUNCATE change, as any rewriting of the rows does.
const FILES: &str = "files=";

/// Whether nothing has happened to a table between two of its shapes that would void what was proven about its rows.
///
/// What a definition says is compared as it is. An ALTER TABLE that rewrites values and leaves type and name as they were
/// (`TYPE int USING v + 1`) shows only in this: it describes the column anew, and gives the rows another file. A GRANT on
/// a column does the first alone, and VACUUM FULL, CLUSTER and TRUNCATE the second alone, so that neither voids anything.
/// Both kinds between two shapes can't be told from a rewrite, and count as one.
#[must_use]
pub fn is_same_shape(then: &str, now: &str) -> bool {
    let part = |shape: &str, mark: &str| -> Option<String> {
        shape.split(' ').find(|part| part.starts_with(mark)).map(str::to_owned)
    };
    let says = |shape: &str| -> Vec<String> {
        let marked = |part: &&str| part.starts_with(DESCRIBED) || part.starts_with(FILES);
        shape.split(' ').filter(|part| !marked(part)).map(str::to_owned).collect()
    };
    let same = |mark: &str| part(then, mark) == part(now, mark);
    says(then) == says(now) && (same(DESCRIBED) || same(FILES))
}

/// Files of a table's partitions, and the transactions that tied them to it: TRUNCATE of one, or DETACH and ATTACH, is not in the stream
/// and changes no description; nor is another replica identity, which each choice of an index, and against it, leaves in the
/// index's row. None where a table has no partitions. To be joined like [`shape_sql`].
const PARTS: &str = "LATERAL (SELECT md5(string_agg(concat_ws(' ', p.oid, p.relfilenode, p.relpersistence, p.xmin, \
            p.relreplident, (SELECT string_agg(concat_ws(' ', x.indexrelid, x.xmin, x.indisreplident), ',' \
                ORDER BY x.indexrelid) FROM pg_index x WHERE x.indrelid = p.oid AND x.indisunique)), \
            ',' ORDER BY p.oid)) AS parts \
        FROM pg_partition_tree(t.oid) AS r CROSS JOIN LATERAL (SELECT c.oid, c.relfilenode, c.relpersistence, c.relreplident, \
            i.xmin FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid \
            WHERE c.oid = r.relid AND i.inhrelid = r.relid OFFSET 0) AS p WHERE r.level > 0) AS f";

/// The same of a table of the service, whose replica identities and indexes come and go with the mirror and with `arm`.
const OWN_PARTS: &str = "LATERAL (SELECT md5(string_agg(concat_ws(' ', p.oid, p.relfilenode, p.relpersistence, p.xmin), \
            ',' ORDER BY p.oid)) AS parts \
        FROM pg_partition_tree(t.oid) AS r CROSS JOIN LATERAL (SELECT c.oid, c.relfilenode, c.relpersistence, i.xmin \
            FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid \
            WHERE c.oid = r.relid AND i.inhrelid = r.relid OFFSET 0) AS p WHERE r.level > 0) AS f";

/// The service's part of the ground of a slice: `source_shape` is absent in every table. `None` when the slice is not
/// provisioned here.
///
/// # Errors
/// [`JournalError`].
pub async fn service(client: &Client, slice: &str) -> Result<Option<Ground>, JournalError> {
    of_service(client, slice, None).await
}

/// The same, over a session that plans the question about shapes once: for a flip, which asks while writers wait.
///
/// # Errors
/// [`JournalError`].
pub async fn service_again(session: &Session, slice: &str) -> Result<Option<Ground>, JournalError> {
    let shapes = session.planned(&shapes_sql()).await.map_err(reading())?;
    of_service(session, slice, Some(&shapes)).await
}

async fn of_service(
    client: &Client,
    slice: &str,
    planned: Option<&Statement>,
) -> Result<Option<Ground>, JournalError> {
    let there = "SELECT EXISTS (SELECT FROM strangler.slice WHERE slice = $1)";
    let of = [(&slice as &(dyn ToSql + Sync), Type::TEXT)];
    if !client.query_typed_one(there, &of).await.map_err(reading())?.get::<_, bool>(0) {
        return Ok(None);
    }
    let gate = quote_ident(&format!("gate_{slice}"));
    let sql = format!(
        "SELECT p.plan_hash, g.epoch, t.slot, t.state FROM strangler.slice p CROSS JOIN strangler.{gate} g \
         LEFT JOIN strangler.stream t ON t.slice = p.slice AND t.dir = 'forward' AND t.lane = 0 \
         WHERE p.slice = $1"
    );
    // Sent together and answered in this order.
    let (row, tables, disturbances, way_back) = tokio::try_join!(
        biased;
        async { client.query_typed_opt(&sql, &of).await.map_err(reading()) },
        tables(client, slice, planned),
        super::alarms::disturbances(client, slice),
        super::alarms::noted_way_back(client, slice)
    )?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Ground {
        plan_hash: row.get(0),
        epoch: row.get(1),
        slot: row.get(2),
        stream: row.get(3),
        disturbances,
        way_back,
        tables,
    }))
}

async fn tables(
    client: &Client,
    slice: &str,
    planned: Option<&Statement>,
) -> Result<BTreeMap<String, TableGround>, JournalError> {
    let sql = "SELECT source_table, target_table, copy_number, state, coalesce(published_as = $2, false) \
         FROM strangler.mirror_table WHERE slice = $1";
    let asked = [(&slice as &(dyn ToSql + Sync), Type::TEXT), (&UNHEARD, Type::OID)];
    let rows = client.query_typed(sql, &asked).await.map_err(reading())?;
    let targets = rows.iter().map(|row| regclass(row.get(1))).collect::<Result<Vec<String>, _>>()?;
    let shapes = shapes(client, &targets, planned).await?;
    let ground = |(row, shape): (&Row, String)| {
        let ground = TableGround {
            copy: row.get(2),
            state: row.get(3),
            unheard: row.get(4),
            target_shape: shape,
            source_shape: None,
        };
        (row.get(0), ground)
    };
    Ok(rows.iter().zip(shapes).map(ground).collect())
}

/// The shapes of tables, in the order of their names, which are quoted for SQL.
async fn shapes(
    client: &Client,
    tables: &[String],
    planned: Option<&Statement>,
) -> Result<Vec<String>, JournalError> {
    let rows = match planned {
        Some(planned) => client.query(planned, &[&tables]).await,
        None => client.query_typed(&shapes_sql(), &[(&tables, Type::TEXT_ARRAY)]).await,
    };
    Ok(rows.map_err(reading())?.iter().map(|row| shape(row.get(0))).collect())
}

fn shapes_sql() -> String {
    format!(
        "SELECT nullif(concat_ws(' ', s.shape, f.parts), '') FROM unnest($1::text[]) WITH ORDINALITY AS n (name, number) \
         CROSS JOIN LATERAL (SELECT to_regclass(n.name)::oid AS oid) AS t CROSS JOIN {} CROSS JOIN {OWN_PARTS} \
         ORDER BY n.number",
        shape_sql()
    )
}

/// The shapes of a slice's tables on the monolith, by their names as a plan writes them. A table that is not in the
/// slice's publication is not in the answer; one that left it and came back has another shape, because changes in
/// between are not in the stream. So have all of them when the publication itself was altered.
///
/// # Errors
/// [`JournalError::Database`]. The session needs SELECT on `strangler.slice`.
pub async fn monolith(client: &Client, slice: &str) -> Result<BTreeMap<String, String>, JournalError> {
    let rows = client.query_typed(&monolith_sql(), &[(&slice, Type::TEXT)]).await.map_err(reading())?;
    Ok(rows.iter().map(named).collect())
}

/// The same, over a session that plans it once: see [`service_again`].
///
/// # Errors
/// [`JournalError::Database`].
pub async fn monolith_again(
    session: &Session,
    slice: &str,
) -> Result<BTreeMap<String, String>, JournalError> {
    let planned = session.planned(&monolith_sql()).await.map_err(reading())?;
    let rows = session.query(&planned, &[&slice]).await.map_err(reading())?;
    Ok(rows.iter().map(named).collect())
}

fn monolith_sql() -> String {
    format!(
        "SELECT t.schema, t.name, concat_ws(' ', t.entry, s.shape, f.parts) \
             FROM (SELECT c.oid, n.nspname::text AS schema, \
                c.relname::text AS name, concat_ws(' ', u.oid, u.xmin, r.oid) AS entry FROM strangler.slice p \
             JOIN pg_publication u ON u.pubname = p.publication JOIN pg_publication_rel r ON r.prpubid = u.oid \
             JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE p.slice = $1::text) AS t CROSS JOIN {shape} CROSS JOIN {PARTS}",
        shape = shape_sql()
    )
}

fn named(row: &Row) -> (String, String) {
    let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    (name.to_string(), shape(row.get(2)))
}

impl Ground {
    /// The ground with the monolith's part, which [`monolith`] gave.
    #[must_use]
    pub fn with_monolith(mut self, shapes: &BTreeMap<String, String>) -> Self {
        for (name, table) in &mut self.tables {
            table.source_shape = Some(shapes.get(name).cloned().unwrap_or_else(|| ABSENT.to_owned()));
        }
        self
    }
}

fn shape(found: Option<String>) -> String {
    found.unwrap_or_else(|| ABSENT.to_owned())
}

fn regclass(name: &str) -> Result<String, JournalError> {
    let unreadable =
        |_| JournalError::Unreadable { what: "mirror_table.target_table", found: name.to_owned() };
    TableName::parse(name, "public").map(|table| table.sql()).map_err(unreadable)
}

fn reading() -> impl FnOnce(tokio_postgres::Error) -> JournalError {
    JournalError::database("reading what evidence rests on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_description_and_a_file_that_change_together_void_what_the_definition_does_not() {
        let same = |now: &str| is_same_shape("17 abc described=1 files=1 end", now);
        assert!(same("17 abc described=1 files=1 end"));
        assert!(same("17 abc described=2 files=1 end"), "a GRANT on a column");
        assert!(same("17 abc described=1 files=2 end"), "VACUUM FULL");
        assert!(!same("17 abc described=2 files=2 end"), "ALTER TABLE rewrote the rows");
        assert!(!same("17 abd described=1 files=1 end"));
        assert!(!same("18 abc described=1 files=1 end"));
        assert!(!same("17 abc end"), "of an earlier version");
        assert!(is_same_shape(ABSENT, ABSENT) && !same(ABSENT));
    }
}
