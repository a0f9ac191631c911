//! What changes the rows of a published table without an event in the stream: ALTER TABLE that rewrites values,
//! partitions that come, go or are emptied, labels of enums that get another name. PostgreSQL sends none of it, so the
//! catalogs are watched for it.
//!
//! The rule errs to one side: what could have changed rows unheard counts as if it had. Two readings can't tell a
//! partition that was emptied from one that was only rewritten, so either counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use tokio_postgres::{Client, Row};

use super::error::{MirrorError, Refusal};
use super::identities::{self, Identity};
use super::publication::is_canary;
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::postgres::inheritance;
use crate::postgres::places;
use crate::postgres::type_trees::reached;
use crate::words::shell_word;

/// What each published table consists of.
pub type Contents = BTreeMap<TableName, TableContents>;

/// What one published table consists of, as the catalogs describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableContents {
    /// Oid and last change of the publication itself: another one when somebody altered it, also for a moment.
    pub publication: String,
    /// Labels of the enums that its columns' types are made of, by the labels' oids: a label keeps its oid when it is
    /// renamed.
    pub labels: BTreeMap<u32, String>,
    /// Composite types that its columns' types are made of, by oid. Absent from what earlier versions wrote down.
    #[serde(default)]
    pub composites: BTreeMap<u32, Composite>,
    /// Expressions of its generated columns.
    pub generated: BTreeMap<String, String>,
    /// Its own heap, or those of its partitions, by oid.
    pub heaps: BTreeMap<u32, Heap>,
}

impl TableContents {
    /// As it is kept to be compared with: without what only its arrival is judged by.
    #[must_use]
    pub fn settled(mut self) -> Self {
        self.heaps.values_mut().for_each(|heap| heap.empty = false);
        self
    }
}

/// A composite type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Composite {
    /// As it is shown.
    pub name: String,
    /// Its attributes by number, each with its type: one that is dropped and added again has another number.
    pub attributes: BTreeMap<i16, String>,
}

/// One heap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heap {
    /// As it is shown.
    pub name: String,
    /// `relfilenode`: another one after every rewrite, also after VACUUM FULL and TRUNCATE. A new table's is its oid.
    pub file: u32,
    /// The transaction that gave it its file, unless it was altered since.
    pub changed_by: String,
    /// Its changes are in the WAL: it is neither unlogged nor somewhere else.
    pub logged: bool,
    /// It is a partition.
    pub partition: bool,
    /// It and everything between it and the table were made as partitions, so that nothing was written to it before.
    pub made: bool,
    /// It has no page. Only known of partitions that were attached and not seen before.
    #[serde(default)]
    pub empty: bool,
    /// How it belongs to the table: from the table down, each parent with the transaction that tied its child to it. Other ones
    /// after DETACH and ATTACH, which can't be within the transaction that an earlier reading saw. The number of a command
    /// within that is not among them: it is gone after a crash of the server, or a DROP that was rolled back.
    #[serde(deserialize_with = "read_ties")]
    pub ties: String,
    /// Columns with their number and the transaction that described them last.
    pub columns: BTreeMap<String, (i16, String)>,
    /// Of a partition. Absent from what earlier versions wrote down.
    #[serde(default)]
    pub identity: Option<Identity>,
}

/// Reads ties; those that earlier versions wrote down have a third number for each parent, that of the command.
fn read_ties<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    let numbers: Vec<&str> = text.split_whitespace().collect();
    if text.contains('/') || !numbers.len().is_multiple_of(3) {
        return Ok(text);
    }
    let ties = numbers.chunks_exact(3).filter_map(|of| Some(format!("{}/{}", of.first()?, of.get(1)?)));
    Ok(ties.collect::<Vec<_>>().join(" "))
}

/// Something happened to a table of which the stream said nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unheard {
    /// The monolith's table.
    pub table: TableName,
    /// In words.
    pub what: String,
    /// What to run before the table is copied again, and where: `on the monolith: ALTER TABLE …`.
    pub first: Option<String>,
}

/// What the stream says of a table between two readings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heard<'a> {
    /// Transactions in which it brought a TRUNCATE of the whole table.
    pub emptied_by: &'a [String],
    /// It has passed the second reading, so it will bring no other.
    pub passed: bool,
}

/// What two readings of a table come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing happened that the stream does not tell.
    Heard,
    /// The stream decides, once it has passed the second reading.
    Open,
    /// Something did, in words.
    Unheard(String),
}

/// Partitions are found by a query and not by `pg_partition_tree`, which locks them and reads another snapshot than the
/// query that calls it. ATTACH writes every column's description anew; CREATE TABLE … PARTITION OF describes them before
/// it ties the partition to its table. The numbers of commands tell that only as long as nobody tried to delete the tie, whose
/// command then stands there instead, and the server did not crash, which leaves 0 in all of them.
const READ: &str = "WITH RECURSIVE tree AS ( \
    SELECT c.oid AS root, n.nspname::text AS schema, c.relname::text AS name, p.oid || ' ' || p.xmin AS publication, \
        c.oid AS oid, NULL::text AS ties, true AS made \
    FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
        JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1 \
    UNION ALL SELECT t.root, t.schema, t.name, t.publication, i.inhrelid, \
        concat_ws(' ', t.ties, i.inhparent || '/' || i.xmin), \
        t.made AND i.xmax::text = '0' AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.inhrelid AND a.attnum > 0 \
            AND NOT a.attisdropped AND a.xmin = i.xmin AND a.cmin::text::int8 < i.cmin::text::int8 \
            AND a.xmax::text = '0') \
    FROM tree t JOIN pg_class d ON d.oid = t.oid AND d.relkind = 'p' \
        JOIN pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending) \
SELECT t.schema, t.name, h.oid, h.oid::regclass::text, h.relfilenode, h.xmin::text, \
    h.relkind = 'r' AND h.relpersistence = 'p', h.oid <> t.root, t.made, coalesce(t.ties, ''), t.publication, \
    ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = h.oid AND a.attnum > 0 \
        AND NOT a.attisdropped ORDER BY a.attnum), \
    ARRAY(SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = h.oid AND a.attnum > 0 \
        AND NOT a.attisdropped ORDER BY a.attnum), \
    ARRAY(SELECT a.xmin::text FROM pg_attribute a WHERE a.attrelid = h.oid AND a.attnum > 0 \
        AND NOT a.attisdropped ORDER BY a.attnum), h.relkind <> 'p' \
FROM tree t JOIN pg_class h ON h.oid = t.oid";

/// Expressions of the generated columns of the tables of a publication.
const READ_EXPRESSIONS: &str = "SELECT n.nspname::text, c.relname::text, \
    ARRAY(SELECT a.attname::text FROM pg_attribute a JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum) \
        WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped ORDER BY a.attnum), \
    ARRAY(SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a \
        JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum) \
        WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped ORDER BY a.attnum) \
FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
    JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1";

/// Enums and composites that the types of a publication's tables are made of, one row for each table and type.
fn read_types_sql() -> String {
    reached(
        "SELECT DISTINCT a.attrelid, a.atttypid FROM pg_publication p JOIN pg_publication_rel l ON l.prpubid = p.oid \
         JOIN pg_attribute a ON a.attrelid = l.prrelid AND a.attnum > 0 AND NOT a.attisdropped WHERE p.pubname = $1",
    ) + "SELECT n.nspname::text, c.relname::text, y.oid, format_type(y.oid, -1), \
            ARRAY(SELECT e.oid FROM pg_enum e WHERE e.enumtypid = y.oid ORDER BY e.oid), \
            ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = y.oid ORDER BY e.oid), \
            ARRAY(SELECT b.attnum FROM pg_attribute b WHERE b.attrelid = y.typrelid AND b.attnum > 0 \
                AND NOT b.attisdropped ORDER BY b.attnum), \
            ARRAY(SELECT b.attname || ' ' || format_type(b.atttypid, b.atttypmod) FROM pg_attribute b \
                WHERE b.attrelid = y.typrelid AND b.attnum > 0 AND NOT b.attisdropped ORDER BY b.attnum) \
        FROM reached r JOIN pg_type y ON y.oid = r.oid JOIN pg_class c ON c.oid = r.root \
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE y.typtype IN ('c', 'e')"
}

/// Reads what the tables of a publication consist of. Takes no lock on them.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn read(source: &Client, publication: &str) -> Result<Contents, MirrorError> {
    let failed = || MirrorError::sql("reading what the tables consist of");
    let rows = source.query(READ, &[&publication]).await.map_err(failed())?;
    let places = places::among(source, rows.iter().map(|row| row.get(0))).await.map_err(failed())?;
    let named = |row: &Row| places.named(row.get::<_, String>(0), row.get::<_, String>(1));
    let mut found = Contents::new();
    for row in &rows {
        let table = named(row);
        if is_canary(&table) {
            continue;
        }
        let table = found.entry(table).or_insert_with(|| TableContents {
            publication: row.get(10),
            labels: BTreeMap::new(),
            composites: BTreeMap::new(),
            generated: BTreeMap::new(),
            heaps: BTreeMap::new(),
        });
        // A partitioned table holds no rows of its own.
        if row.get(14) {
            table.heaps.insert(row.get(2), heap(row));
        }
    }
    for row in source.query(READ_EXPRESSIONS, &[&publication]).await.map_err(failed())? {
        let Some(table) = found.get_mut(&named(&row)) else { continue };
        let (columns, expressions): (Vec<String>, Vec<String>) = (row.get(2), row.get(3));
        table.generated = columns.into_iter().zip(expressions).collect();
    }
    for row in source.query(&read_types_sql(), &[&publication]).await.map_err(failed())? {
        let Some(table) = found.get_mut(&named(&row)) else { continue };
        let (oids, labels): (Vec<u32>, Vec<String>) = (row.get(4), row.get(5));
        table.labels.extend(oids.into_iter().zip(labels));
        let (numbers, attributes): (Vec<i16>, Vec<String>) = (row.get(6), row.get(7));
        if !numbers.is_empty() {
            let attributes = numbers.into_iter().zip(attributes).collect();
            table.composites.insert(row.get(2), Composite { name: row.get(3), attributes });
        }
    }
    identities::read(source, &mut found).await?;
    Ok(found)
}

fn heap(row: &Row) -> Heap {
    let (names, numbers, described): (Vec<String>, Vec<i16>, Vec<String>) =
        (row.get(11), row.get(12), row.get(13));
    Heap {
        name: row.get(3),
        file: row.get(4),
        changed_by: row.get(5),
        logged: row.get(6),
        partition: row.get(7),
        made: row.get(8),
        empty: false,
        ties: row.get(9),
        columns: names.into_iter().zip(numbers.into_iter().zip(described)).collect(),
        identity: None,
    }
}

/// Finds out which partitions were attached without a row since an earlier reading.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn look_into_attached(
    source: &Client,
    before: &Contents,
    now: &mut Contents,
) -> Result<(), MirrorError> {
    for (table, contents) in now.iter_mut() {
        let Some(before) = before.get(table) else { continue };
        let new = contents.heaps.iter_mut().filter(|(oid, heap)| {
            heap.partition && !heap.made && heap.logged && !before.heaps.contains_key(*oid)
        });
        for (oid, heap) in new {
            // NULL where it was dropped meanwhile.
            let row = source
                .query_one("SELECT coalesce(pg_relation_size($1::oid::regclass) = 0, false)", &[oid])
                .await
                .map_err(MirrorError::sql("looking into a partition that was attached"))?;
            heap.empty = row.get(0);
        }
    }
    Ok(())
}

/// Why the mirror must not go on over tables that others inherit from: whoever reads such a table reads the children's rows
/// too, and the stream does not bring them.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn children(source: &Client, mapping: &SliceMapping) -> Result<Option<Refusal>, MirrorError> {
    let tables: Vec<TableName> = mapping.tables.iter().map(|table| table.source.clone()).collect();
    let found = inheritance::children(source, &tables).await;
    let found = found.map_err(MirrorError::sql("looking for tables that inherit"))?;
    if found.is_empty() {
        return Ok(None);
    }
    let (facts, statements): (Vec<String>, Vec<String>) =
        found.iter().map(|one| (one.to_string(), one.undo())).unzip();
    Ok(Some(Refusal {
        what: format!("{}, and its rows are not in the stream of the table that moves", facts.join("; ")),
        next: format!(
            "run on the monolith: {}; or attach it as a partition; then strangler mirror PLAN --slice {}",
            statements.join("; "),
            mapping.slice
        ),
        anew: false,
    }))
}

/// What happened to a table between two readings, as far as the stream does not tell it. Pure.
#[must_use]
pub fn judge(before: &TableContents, now: &TableContents, heard: Heard<'_>) -> Judgement {
    let certain = before
        .heaps
        .iter()
        .find_map(|(oid, heap)| change(heap, now.heaps.get(oid)))
        .or_else(|| now.heaps.iter().find_map(|(oid, heap)| arrival(heap, before.heaps.get(oid))))
        .or_else(|| renamed(before, now))
        .or_else(|| other_attributes(before, now));
    if let Some(what) = certain {
        return Judgement::Unheard(what);
    }
    let other_file = |(oid, heap): &(&u32, &Heap)| match before.heaps.get(*oid) {
        Some(before) => before.file != heap.file,
        None => heap.file != **oid,
    };
    let changed: Vec<&Heap> = now
        .heaps
        .iter()
        .filter(|(_, heap)| heap.partition)
        .filter(other_file)
        .map(|(_, heap)| heap)
        .collect();
    let told = |heap: &&&Heap| !heard.emptied_by.contains(&heap.changed_by);
    let Some(untold) = changed.iter().find(told) else { return Judgement::Heard };
    // TRUNCATE of the whole table would have given every partition another file.
    let kept =
        before.heaps.iter().any(|(oid, heap)| now.heaps.get(oid).is_some_and(|now| now.file == heap.file));
    if kept || heard.passed {
        return Judgement::Unheard(format!(
            "its partition {} was emptied by TRUNCATE, or rewritten as by VACUUM FULL",
            untold.name
        ));
    }
    Judgement::Open
}

/// What is certain of a heap that was there before.
fn change(before: &Heap, now: Option<&Heap>) -> Option<String> {
    let name = &before.name;
    let Some(now) = now else {
        return Some(format!("its partition {name} was detached or dropped"));
    };
    let moved = |(column, (number, _)): (&String, &(i16, String))| {
        now.columns.get(column).is_some_and(|(other, _)| other != number)
    };
    if before.columns.iter().any(moved) {
        return Some(format!("a column of {name} was dropped and another of its name added"));
    }
    let described = |(column, described): (&String, &(i16, String))| {
        now.columns.get(column).is_some_and(|other| other != described)
    };
    if before.ties != now.ties {
        return Some(format!("its partition {name} was detached and attached again"));
    }
    let rewritten = before.file != now.file && before.columns.iter().any(described);
    rewritten.then(|| format!("ALTER TABLE rewrote the rows of {name}"))
}

/// What is certain of a heap as it is, or as it came.
fn arrival(heap: &Heap, before: Option<&Heap>) -> Option<String> {
    if !heap.logged {
        return Some(format!(
            "its partition {} is unlogged or foreign, so its changes are not in the WAL",
            heap.name
        ));
    }
    let attached = before.is_none() && heap.partition && !heap.made && !heap.empty;
    attached.then(|| format!("its partition {} was attached with rows", heap.name))
}

fn renamed(before: &TableContents, now: &TableContents) -> Option<String> {
    let changed = |(oid, label): (&u32, &String)| {
        let now = now.labels.get(oid).filter(|now| *now != label)?;
        Some(format!("ALTER TYPE renamed the label {label} of an enum to {now}"))
    };
    before.labels.iter().find_map(changed)
}

/// A composite type whose attributes are others. Rows that are there lose what was dropped and have NULL in what came, and
/// rows that come are read by the places of the attributes.
fn other_attributes(before: &TableContents, now: &TableContents) -> Option<String> {
    let changed = |(oid, then): (&u32, &Composite)| {
        let now = now.composites.get(oid).filter(|now| now.attributes != then.attributes)?;
        let list = |of: &Composite| of.attributes.values().cloned().collect::<Vec<_>>().join(", ");
        Some(format!(
            "ALTER TYPE changed the attributes of {} from ({}) to ({})",
            now.name,
            list(then),
            list(now)
        ))
    };
    before.composites.iter().find_map(changed)
}

/// A generated column whose expression is another one, in words. The stream does not carry such columns.
#[must_use]
pub fn other_expression(before: &TableContents, now: &TableContents) -> Option<String> {
    let changed = |(column, expression): (&String, &String)| {
        now.generated.get(column).filter(|now| *now != expression)?;
        Some(format!("the generated column {column} has another expression"))
    };
    before.generated.iter().find_map(changed)
}

/// Why the mirror must not go on over a table, and what to type.
#[must_use]
pub fn refusal(slice: &str, table: &str, what: &str) -> Refusal {
    let typed = shell_word(table);
    Refusal {
        what: format!("{table} changed in a way that is not in the stream: {what}"),
        next: format!("strangler mirror PLAN --slice {slice} --retry {typed}, which copies that table again"),
        anew: false,
    }
}

/// The same over several tables; `None` over none.
#[must_use]
pub fn refusal_over(slice: &str, unheard: &[Unheard]) -> Option<Refusal> {
    let (first, others) = unheard.split_first()?;
    let mut refusal = refusal(slice, &first.table.to_string(), &first.what);
    if !others.is_empty() {
        let facts = others.iter().map(|other| format!("; {}: {}", other.table, other.what));
        refusal.what.extend(facts);
        let retries = unheard
            .iter()
            .map(|one| format!(" --retry {}", shell_word(&one.table.to_string())))
            .collect::<String>();
        refusal.next =
            format!("strangler mirror PLAN --slice {slice}{retries}, which copies what is named again");
    }
    let statements: Vec<&str> = unheard.iter().filter_map(|one| one.first.as_deref()).collect();
    if !statements.is_empty() {
        refusal.next = format!("run {}; then {}", statements.join("; "), refusal.next);
    }
    Some(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(oid: u32) -> Heap {
        let columns =
            [("id".to_owned(), (1, "700".to_owned())), ("v".to_owned(), (2, "700".to_owned()))].into();
        Heap {
            name: format!("p{oid}"),
            file: oid,
            changed_by: "700".into(),
            logged: true,
            partition: true,
            made: true,
            empty: false,
            ties: "9/700".into(),
            columns,
            identity: None,
        }
    }

    fn of(heaps: &[(u32, Heap)]) -> TableContents {
        TableContents {
            publication: "7 700".into(),
            labels: BTreeMap::new(),
            composites: BTreeMap::new(),
            generated: BTreeMap::new(),
            heaps: heaps.iter().cloned().collect(),
        }
    }

    fn edited(oid: u32, edit: impl FnOnce(&mut Heap)) -> (u32, Heap) {
        let mut heap = heap(oid);
        edit(&mut heap);
        (oid, heap)
    }

    fn emptied(oid: u32, by: &str) -> (u32, Heap) {
        edited(oid, |heap| {
            heap.file = oid + 100;
            heap.changed_by = by.into();
        })
    }

    fn said(before: &[(u32, Heap)], now: &[(u32, Heap)]) -> String {
        match judge(&of(before), &of(now), Heard::default()) {
            Judgement::Heard => String::new(),
            Judgement::Open => "open".into(),
            Judgement::Unheard(what) => what,
        }
    }

    #[test]
    fn what_rewrites_a_table_of_its_own_is_told_from_housekeeping() {
        let plain = |edit: &dyn Fn(&mut Heap)| {
            edited(1, |heap| {
                heap.partition = false;
                edit(heap);
            })
        };
        let before = [plain(&|_| ())];
        let redescribed = |heap: &mut Heap| drop(heap.columns.insert("v".into(), (2, "800".into())));
        assert_eq!(said(&before, &before), "");
        assert_eq!(
            said(&before, &[plain(&|heap| heap.file = 2)]),
            "",
            "VACUUM FULL, or a TRUNCATE that the stream tells"
        );
        assert_eq!(said(&before, &[plain(&redescribed)]), "", "SET STATISTICS, or a type that is only wider");
        let both = plain(&|heap| {
            heap.file = 2;
            redescribed(heap);
        });
        assert_eq!(said(&before, &[both]), "ALTER TABLE rewrote the rows of p1");
        let moved = plain(&|heap| drop(heap.columns.insert("v".into(), (3, "800".into()))));
        assert_eq!(said(&before, &[moved]), "a column of p1 was dropped and another of its name added");
    }

    #[test]
    fn partitions_may_come_as_partitions_or_empty_and_in_no_other_way() {
        let (one, two) = ((1, heap(1)), (2, heap(2)));
        let before = [one.clone()];
        assert_eq!(said(&before, &[one.clone(), two]), "", "made as a partition");
        let attached = |empty| edited(2, |heap| (heap.made, heap.empty) = (false, empty));
        assert_eq!(said(&before, &[one.clone(), attached(false)]), "its partition p2 was attached with rows");
        assert_eq!(said(&before, &[one.clone(), attached(true)]), "");
        let unlogged = edited(2, |heap| heap.logged = false);
        assert!(said(&before, &[one.clone(), unlogged]).contains("is unlogged or foreign"));
        assert_eq!(said(&before, &[]), "its partition p1 was detached or dropped");
        let again = edited(1, |heap| heap.ties = "9/900".into());
        assert_eq!(said(&before, &[again]), "its partition p1 was detached and attached again");
    }

    #[test]
    fn ties_that_an_earlier_version_wrote_down_are_the_same_without_their_commands() {
        let stored = |ties: &str| {
            let mut text = serde_json::to_value(heap(1)).unwrap();
            text["ties"] = ties.into();
            serde_json::from_value::<Heap>(text).unwrap().ties
        };
        assert_eq!(stored(" 9 700 3"), "9/700");
        assert_eq!(stored(" 9 700 3 12 701 0"), "9/700 12/701");
        assert_eq!((stored(""), stored("9/700")), (String::new(), "9/700".to_owned()));
        assert_eq!(stored("9/700 12/701 13/702"), "9/700 12/701 13/702");
    }

    #[test]
    fn a_partition_gets_another_file_by_the_truncate_that_the_stream_brought_and_by_nothing_else() {
        let before = [(1, heap(1)), (2, heap(2))];
        let one = [emptied(1, "900"), (2, heap(2))];
        assert!(
            said(&before, &one).contains("p1 was emptied by TRUNCATE"),
            "no TRUNCATE of the table leaves one out"
        );
        let all = of(&[emptied(1, "900"), emptied(2, "900")]);
        let told = ["900".to_owned()];
        let judged =
            |now: &TableContents, emptied_by, passed| judge(&of(&before), now, Heard { emptied_by, passed });
        assert_eq!(judged(&all, &[], false), Judgement::Open);
        assert_eq!(judged(&all, &told, false), Judgement::Heard);
        assert!(
            matches!(judged(&all, &[], true), Judgement::Unheard(_)),
            "TRUNCATE of every partition by name"
        );
        let later = of(&[emptied(1, "900"), emptied(2, "901")]);
        assert!(matches!(judged(&later, &told, true), Judgement::Unheard(_)), "one was emptied again");
        let new = of(&[(1, heap(1)), (2, heap(2)), emptied(3, "950")]);
        assert!(matches!(judged(&new, &[], false), Judgement::Unheard(_)), "it came, was filled and emptied");
    }

    #[test]
    fn attributes_that_change_are_told_also_when_they_look_the_same() {
        let made_of = |attributes: &[(i16, &str)]| {
            let attributes = attributes.iter().map(|(number, of)| (*number, (*of).to_owned())).collect();
            let composite = Composite { name: "public.full".to_owned(), attributes };
            TableContents { composites: [(9, composite)].into(), ..of(&[]) }
        };
        let before = made_of(&[(1, "first text"), (2, "last text")]);
        let judged = |now: &TableContents| judge(&before, now, Heard::default());
        assert_eq!(judged(&before), Judgement::Heard);
        assert_eq!(judged(&of(&[])), Judgement::Heard, "no column is of it any more");
        for other in [
            made_of(&[(2, "last text"), (3, "first text")]),
            made_of(&[(1, "first text"), (3, "last text")]),
            made_of(&[(1, "last text"), (2, "first text")]),
            made_of(&[(1, "first text"), (2, "last text"), (3, "nick text")]),
        ] {
            assert!(
                matches!(judged(&other), Judgement::Unheard(what) if what.contains("the attributes of public.full"))
            );
        }
    }

    #[test]
    fn a_label_that_is_renamed_is_told_and_a_new_one_is_not() {
        let labelled = |labels: &[(u32, &str)]| TableContents {
            labels: labels.iter().map(|(oid, label)| (*oid, (*label).to_owned())).collect(),
            ..of(&[])
        };
        let before = labelled(&[(5, "in")]);
        assert_eq!(judge(&before, &labelled(&[(5, "in"), (6, "out")]), Heard::default()), Judgement::Heard);
        let renamed = judge(&before, &labelled(&[(5, "inside")]), Heard::default());
        assert!(
            matches!(renamed, Judgement::Unheard(what) if what.contains("label in of an enum to inside"))
        );
    }
}
