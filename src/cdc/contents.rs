//! What changes the rows of a published table without an event in the stream: ALTER TABLE that rewrites values, and
//! partitions that come, go or are emptied. PostgreSQL sends none of it, so the catalogs are watched for it.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::error::{MirrorError, Refusal};
use crate::name::TableName;

/// The heaps of each published table: its own, or those of its partitions, by oid.
pub type Contents = BTreeMap<TableName, BTreeMap<u32, Heap>>;

/// One heap, as the catalogs describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heap {
    /// As it is shown.
    pub name: String,
    /// `relfilenode`: another one after every rewrite, also after VACUUM FULL and TRUNCATE.
    pub file: u32,
    /// It is a partition.
    pub partition: bool,
    /// It was made by itself, and attached in a later transaction.
    pub attached: bool,
    /// It may hold rows: false only where VACUUM, ANALYZE or TRUNCATE found none and none was counted since.
    pub holds_rows: bool,
    /// Its rows were counted since it got its file: not yet after TRUNCATE, at once by VACUUM FULL and CLUSTER.
    pub counted: bool,
    /// Columns with their number and the transaction that described them last.
    pub columns: BTreeMap<String, (i16, String)>,
}

/// Something happened to a table of which the stream said nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unheard {
    /// The monolith's table.
    pub table: TableName,
    /// In words.
    pub what: String,
}

/// Reads what the tables of a publication consist of. Takes no lock on them.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn read(source: &Client, publication: &str) -> Result<Contents, MirrorError> {
    let rows = source
        .query(
            "SELECT n.nspname::text, c.relname::text, h.oid, h.oid::regclass::text, h.relfilenode, h.oid <> c.oid, \
                 coalesce((SELECT i.xmin <> a.xmin FROM pg_inherits i JOIN pg_attribute a \
                     ON a.attrelid = i.inhrelid AND a.attname = 'tableoid' WHERE i.inhrelid = h.oid), false), \
                 h.reltuples <> 0 OR pg_stat_get_live_tuples(h.oid) > 0, \
                 ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = h.oid AND a.attnum > 0 \
                     AND NOT a.attisdropped ORDER BY a.attnum), \
                 ARRAY(SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = h.oid AND a.attnum > 0 \
                     AND NOT a.attisdropped ORDER BY a.attnum), \
                 ARRAY(SELECT a.xmin::text FROM pg_attribute a WHERE a.attrelid = h.oid AND a.attnum > 0 \
                     AND NOT a.attisdropped ORDER BY a.attnum), h.reltuples >= 0 \
             FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
                 JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                 CROSS JOIN LATERAL (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid)) AS t \
                 JOIN pg_class h ON h.oid = t.oid AND h.relkind = 'r' \
             WHERE p.pubname = $1",
            &[&publication],
        )
        .await
        .map_err(MirrorError::sql("reading what the tables consist of"))?;
    let mut found = Contents::new();
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        found.entry(table).or_default().insert(row.get(2), heap(row));
    }
    Ok(found)
}

fn heap(row: &Row) -> Heap {
    let (names, numbers, described): (Vec<String>, Vec<i16>, Vec<String>) =
        (row.get(8), row.get(9), row.get(10));
    Heap {
        name: row.get(3),
        file: row.get(4),
        partition: row.get(5),
        attached: row.get(6),
        holds_rows: row.get(7),
        counted: row.get(11),
        columns: names.into_iter().zip(numbers.into_iter().zip(described)).collect(),
    }
}

/// Finds out which partitions were attached without a row since an earlier reading. Those are looked at, because
/// nothing is counted in them yet.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn look_into_attached(
    source: &Client,
    before: &Contents,
    now: &mut Contents,
) -> Result<(), MirrorError> {
    let known = |table: &TableName, oid: &u32| before.get(table).is_none_or(|heaps| heaps.contains_key(oid));
    for (table, heaps) in now.iter_mut() {
        for (oid, heap) in heaps.iter_mut().filter(|(oid, heap)| heap.attached && !known(table, oid)) {
            let row = source
                .query_one("SELECT coalesce(pg_relation_size($1::oid::regclass) > 0, false)", &[oid])
                .await
                .map_err(MirrorError::sql("looking into a partition that was attached"))?;
            heap.holds_rows = row.get(0);
        }
    }
    Ok(())
}

/// What happened between two readings that the stream does not tell. Pure. A table that is not in both is the
/// business of whoever watches the publication.
#[must_use]
pub fn unheard(before: &Contents, now: &Contents) -> Vec<Unheard> {
    let mut found = Vec::new();
    for (table, heaps) in before {
        let Some(present) = now.get(table) else { continue };
        let other_file =
            |(oid, heap): (&u32, &Heap)| present.get(oid).is_some_and(|now| now.file != heap.file);
        // TRUNCATE of the whole table is in the stream.
        let whole = heaps.iter().all(other_file);
        let went = heaps.iter().filter_map(|(oid, heap)| change(heap, present.get(oid), whole));
        let came = present
            .iter()
            .filter(|(oid, heap)| !heaps.contains_key(*oid) && heap.attached && heap.holds_rows);
        let came = came.map(|(_, heap)| format!("its partition {} was attached with rows", heap.name));
        found.extend(went.chain(came).map(|what| Unheard { table: table.clone(), what }));
    }
    found
}

fn change(before: &Heap, now: Option<&Heap>, whole: bool) -> Option<String> {
    let name = &before.name;
    let Some(now) = now else {
        return before.holds_rows.then(|| format!("its partition {name} was detached or dropped with rows"));
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
    if before.file != now.file && before.columns.iter().any(described) {
        return Some(format!("ALTER TABLE rewrote the rows of {name}"));
    }
    let emptied = before.file != now.file && before.partition && before.holds_rows && !now.counted && !whole;
    emptied.then(|| format!("its partition {name} was emptied by TRUNCATE"))
}

/// Why the mirror must not go on over a table, and what to type.
#[must_use]
pub fn refusal(slice: &str, table: &str, what: &str) -> Refusal {
    Refusal {
        what: format!("{table} changed in a way that is not in the stream: {what}"),
        next: format!("strangler mirror PLAN --slice {slice} --retry {table}, which copies that table again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(name: &str) -> Heap {
        let columns =
            [("id".to_owned(), (1, "700".to_owned())), ("v".to_owned(), (2, "700".to_owned()))].into();
        let (partition, attached, holds_rows, counted) = (true, false, true, true);
        Heap { name: name.into(), file: 1, partition, attached, holds_rows, counted, columns }
    }

    fn of(heaps: &[(u32, Heap)]) -> Contents {
        [(TableName::new("public", "t"), heaps.iter().cloned().collect())].into()
    }

    fn said(before: &[(u32, Heap)], now: &[(u32, Heap)]) -> String {
        let found = unheard(&of(before), &of(now));
        found.into_iter().map(|unheard| unheard.what).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_the_stream_does_not_carry_is_found_and_nothing_else() {
        let one = heap("one");
        let with = |edit: &dyn Fn(&mut Heap)| {
            let mut heap = heap("one");
            edit(&mut heap);
            heap
        };
        let redescribed = |heap: &mut Heap| {
            heap.columns.insert("v".into(), (2, "800".into()));
        };
        let same = [(1, one.clone())];
        let now = |heap: Heap| said(&same, &[(1, heap)]);
        assert_eq!(now(one.clone()), "");
        assert_eq!(now(with(&|heap| heap.file = 2)), "", "VACUUM FULL");
        assert_eq!(now(with(&redescribed)), "", "SET STATISTICS, or a type that is only wider");
        assert_eq!(
            now(with(&|heap| {
                heap.file = 2;
                heap.columns.insert("w".into(), (3, "800".into()));
            })),
            "",
            "a new column, which the stream tells"
        );
        assert_eq!(
            now(with(&|heap| {
                heap.file = 2;
                redescribed(heap);
            })),
            "ALTER TABLE rewrote the rows of one"
        );
        assert_eq!(
            now(with(&|heap| drop(heap.columns.insert("v".into(), (3, "800".into()))))),
            "a column of one was dropped and another of its name added"
        );
        let emptied = with(&|heap| {
            heap.file = 2;
            heap.counted = false;
        });
        assert_eq!(now(emptied.clone()), "", "TRUNCATE of the whole table");
        let both = [(1, one.clone()), (2, heap("two"))];
        let emptied = said(&both, &[(1, emptied), (2, heap("two"))]);
        assert_eq!(emptied, "its partition one was emptied by TRUNCATE");
        assert_eq!(said(&same, &[]), "its partition one was detached or dropped with rows");
        assert_eq!(said(&[(1, with(&|heap| heap.holds_rows = false))], &[]), "", "an empty one may go");
        let two = heap("two");
        assert_eq!(said(&same, &[(1, one.clone()), (2, two.clone())]), "", "made as a partition");
        let attached = Heap { attached: true, ..two };
        assert_eq!(said(&same, &[(1, one), (2, attached)]), "its partition two was attached with rows");
        assert_eq!(unheard(&of(&same), &Contents::new()), [], "the publication's watch tells that");
    }
}
