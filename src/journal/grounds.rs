//! What compared data rests on: the mapping, the epoch, the stream, and for each table which copy of it there is and
//! what it looks like on both sides. When any of it is another one than before, what was proven before is no proof
//! any more. Nothing here is a time: what came first is told by numbers and names that never come back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::JournalError;
use super::copies::UNHEARD;
use crate::name::{TableName, quote_ident, quote_literal};
use crate::postgres::ask::Ask;
use crate::postgres::places::{self, Places};
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
    /// The side that the stream of this epoch writes: `service`, or `monolith` once authority has moved. Absent like the slot, and
    /// in what earlier versions wrote.
    #[serde(default)]
    pub copy: Option<String>,
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

impl Ground {
    /// Whether the tables of a side, `monolith` or `service`, are copies. Where it is not known, those of both may be.
    #[must_use]
    pub fn may_copy(&self, side: &str) -> bool {
        self.copy.as_deref().is_none_or(|copy| copy == side)
    }
}

/// Shape of a table that is not there, or of one that left the slice's publication.
pub const ABSENT: &str = "absent";

/// A table's shape, in four parts: what its columns and partitions are, and what it is where it is no table; what their types are made of, at any depth; marked
/// [`DESCRIBED`], the transactions that described the columns; and marked [`FILES`], the files of its rows.
/// [`is_same_shape`] and [`has_same_files`] compare two of them.
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
/// Begins the part of a shape that VACUUM FULL, CLUSTER and TRUNCATE change, as any rewriting of the rows does, and a crash of
/// a table that is UNLOGGED.
const FILES: &str = "files=";
/// Begins the part of a copy's shape that says which files the mirror's last TRUNCATE left it with.
const EMPTIED: &str = "emptied=";

fn part<'a>(shape: &'a str, mark: &str) -> Option<&'a str> {
    shape.split(' ').find_map(|part| part.strip_prefix(mark))
}

/// Whether nothing has happened to a table between two of its shapes that would void what was proven about its rows, whichever
/// side has the authority.
///
/// What a definition says is compared as it is. An ALTER TABLE that rewrites values and leaves type and name as they were
/// (`TYPE int USING v + 1`) shows only in this: it describes the column anew, and gives the rows another file. A GRANT on
/// a column does the first alone, and VACUUM FULL, CLUSTER and TRUNCATE the second alone, so that neither voids anything.
/// Both kinds between two shapes can't be told from a rewrite, and count as one.
///
/// Of a copy this is half of it: see [`has_same_files`].
#[must_use]
pub fn is_same_shape(then: &str, now: &str) -> bool {
    let says = |shape: &str| -> Vec<String> {
        let marked = |part: &&str| [DESCRIBED, FILES, EMPTIED].iter().any(|mark| part.starts_with(mark));
        shape.split(' ').filter(|part| !marked(part)).map(str::to_owned).collect()
    };
    let same = |mark: &str| part(then, mark) == part(now, mark);
    says(then) == says(now) && (same(DESCRIBED) || same(FILES))
}

/// Whether a copy's rows are in the files that they were in, or in those that the mirror's last TRUNCATE made.
///
/// The authority's rows are right whatever became of their files; a TRUNCATE there is in the stream. A copy gets other files with
/// no word of it anywhere when it is emptied past the mirror: by a crash while it was UNLOGGED, also where it is LOGGED again by now, or
/// by somebody's TRUNCATE. A whole TRUNCATE by the mirror leaves the copy right whatever became of it before, and notes its
/// files in its transaction ([`note_emptied`]); files never come back, so what has those now was touched by nobody since.
#[must_use]
pub fn has_same_files(then: &str, now: &str) -> bool {
    let files = part(now, FILES);
    files == part(then, FILES) || files.is_some() && files == part(now, EMPTIED)
}

/// Notes which files a table has, in the transaction in which the mirror has emptied it with TRUNCATE. `table` is its name, quoted for
/// SQL.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn note_emptied(
    client: &Client,
    slice: &str,
    source_table: &str,
    table: &str,
) -> Result<(), JournalError> {
    let sql = format!(
        "UPDATE strangler.mirror_table SET emptied_as = (SELECT substring(s.shape FROM {}) \
             FROM (SELECT to_regclass($3)::oid AS oid) AS t CROSS JOIN {}) WHERE slice = $1 AND source_table = $2",
        quote_literal(&format!("{FILES}([^ ]*)")),
        shape_sql()
    );
    let of = [(&slice as &(dyn ToSql + Sync), Type::TEXT), (&source_table, Type::TEXT), (&table, Type::TEXT)];
    let noted = client.execute_typed(&sql, &of).await;
    noted.map(drop).map_err(JournalError::database("noting the files of a table that was emptied"))
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
pub async fn service(client: &impl Ask, slice: &str) -> Result<Option<Ground>, JournalError> {
    let there = "SELECT EXISTS (SELECT FROM strangler.slice WHERE slice = $1)";
    let of = [(&slice as &(dyn ToSql + Sync), Type::TEXT)];
    let gate = quote_ident(&format!("gate_{slice}"));
    let sql = format!(
        "SELECT p.plan_hash, g.epoch, t.slot, t.state, \
             CASE t.mode WHEN 'APPLY' THEN 'service' WHEN 'TRIPWIRE' THEN 'monolith' END \
         FROM strangler.slice p CROSS JOIN strangler.{gate} g \
         LEFT JOIN strangler.stream t ON t.slice = p.slice AND t.dir = 'forward' AND t.lane = 0 \
         WHERE p.slice = $1"
    );
    // Without the slice there is no table of its gate.
    let provisioned = async {
        let there: bool = client.ask_one(there, &of).await.map_err(reading())?.get(0);
        if there { client.ask_opt(&sql, &of).await.map_err(reading()) } else { Ok(None) }
    };
    // Sent together, since writers may wait.
    let (row, tables, disturbances, way_back) = tokio::try_join!(
        biased;
        provisioned,
        tables(client, slice),
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
        copy: row.get(4),
        tables,
    }))
}

async fn tables(client: &impl Ask, slice: &str) -> Result<BTreeMap<String, TableGround>, JournalError> {
    let sql = "SELECT source_table, target_table, copy_number, state, coalesce(published_as = $2, false) \
         FROM strangler.mirror_table WHERE slice = $1";
    let asked = [(&slice as &(dyn ToSql + Sync), Type::TEXT), (&UNHEARD, Type::OID)];
    let rows = client.ask(sql, &asked).await.map_err(reading())?;
    let targets = rows.iter().map(|row| regclass(row.get(1))).collect::<Result<Vec<String>, _>>()?;
    let labels: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let shapes = shapes(client, slice, (&targets, &labels)).await?;
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

/// The shapes of tables of the service, in the order of their names, which are quoted for SQL; `labels` are the monolith's.
async fn shapes(
    client: &impl Ask,
    slice: &str,
    (tables, labels): (&[String], &[&str]),
) -> Result<Vec<String>, JournalError> {
    let asked: [(&(dyn ToSql + Sync), Type); 3] =
        [(&tables, Type::TEXT_ARRAY), (&labels, Type::TEXT_ARRAY), (&slice, Type::TEXT)];
    let rows = client.ask(&shapes_sql(), &asked).await;
    Ok(rows.map_err(reading())?.iter().map(|row| shape(row.get(0))).collect())
}

/// What the mirror noted is read by the statement that reads the files: a TRUNCATE that is applied meanwhile is in both, or in neither.
/// Tables of an earlier version lack the column, and are read all the same.
fn shapes_sql() -> String {
    format!(
        "SELECT nullif(concat_ws(' ', s.shape, f.parts, {} || (to_jsonb(m) ->> 'emptied_as')), '') \
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS n (name, label, number) \
         LEFT JOIN strangler.mirror_table m ON (m.slice, m.source_table) = ($3::text, n.label) \
         CROSS JOIN LATERAL (SELECT to_regclass(n.name)::oid AS oid) AS t CROSS JOIN {} CROSS JOIN {OWN_PARTS} \
         ORDER BY n.number",
        quote_literal(EMPTIED),
        shape_sql()
    )
}

/// The shapes of a slice's tables on the monolith, by their names as a plan writes them. A table that is not in the
/// slice's publication is not in the answer; one that left it and came back has another shape, because changes in
/// between are not in the stream. So have all of them when the publication itself was altered.
///
/// # Errors
/// [`JournalError::Database`]. The session needs SELECT on `strangler.slice`.
pub async fn monolith(client: &impl Ask, slice: &str) -> Result<BTreeMap<String, String>, JournalError> {
    let rows = client.ask(&monolith_sql(), &[(&slice, Type::TEXT)]).await.map_err(reading())?;
    named_all(client, &rows).await
}

fn monolith_sql() -> String {
    format!(
        "SELECT t.schema, t.name, concat_ws(' ', t.entry, s.shape, f.parts), \
             (SELECT json_object_agg(m.source_table, to_jsonb(m) ->> 'emptied_as')::text FROM strangler.mirror_table m \
                 WHERE m.slice = $1::text AND to_jsonb(m) ->> 'emptied_as' IS NOT NULL) FROM (SELECT c.oid, n.nspname::text AS schema, \
                c.relname::text AS name, concat_ws(' ', u.oid, u.xmin, r.oid) AS entry FROM strangler.slice p \
             JOIN pg_publication u ON u.pubname = p.publication JOIN pg_publication_rel r ON r.prpubid = u.oid \
             JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE p.slice = $1::text) AS t CROSS JOIN {shape} CROSS JOIN {PARTS}",
        shape = shape_sql()
    )
}

/// By the names that tables had before they were moved away.
async fn named_all(client: &impl Ask, rows: &[Row]) -> Result<BTreeMap<String, String>, JournalError> {
    let places = places::among(client, rows.iter().map(|row| row.get(0))).await.map_err(reading())?;
    rows.iter().map(|row| named(row, &places)).collect()
}

fn named(row: &Row, places: &Places) -> Result<(String, String), JournalError> {
    let name = places.named(row.get::<_, String>(0), row.get::<_, String>(1)).to_string();
    let mut shape = shape(row.get(2));
    if let Some(noted) = row.get::<_, Option<&str>>(3) {
        let unreadable =
            |_| JournalError::Unreadable { what: "mirror_table.emptied_as", found: noted.to_owned() };
        let noted: BTreeMap<String, String> = serde_json::from_str(noted).map_err(unreadable)?;
        if let Some(files) = noted.get(&name) {
            shape.push_str(&format!(" {EMPTIED}{files}"));
        }
    }
    Ok((name, shape))
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
        assert!(same("17 abc described=1 files=2 end emptied=1"), "no part of what the definition says");
    }

    #[test]
    fn a_copy_has_other_files_by_the_mirror_s_own_truncate_alone() {
        let same = |now: &str| has_same_files("17 described=1 files=1 emptied=0", now);
        assert!(same("17 described=1 files=1") && same("18 described=2 files=1 emptied=0"));
        assert!(!same("17 described=1 files=2 emptied=0"), "a crash, or somebody's TRUNCATE");
        assert!(same("17 described=1 files=2 emptied=2"), "the mirror's TRUNCATE");
        assert!(!same("17 described=1 files=3 emptied=2"), "a crash behind the mirror's TRUNCATE");
        assert!(!same(ABSENT) && has_same_files(ABSENT, ABSENT));
    }
}
