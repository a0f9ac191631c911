//! How the rows of a table are walked, so that both sides see them in the same parts.
//!
//! Where both sides order the key alike and have an index on it, a table is walked in ranges of the key. Else, and where
//! rows lie in another order than their keys, so that ranges would read the table page by page in random order, it is
//! taken apart by a hash of the key, with one scan for each level.

use tokio_postgres::Client;

use super::form::{Side, TableForm};
use crate::name::quote_ident;

/// Below this correlation of rows and keys, ranges cost more than whole scans.
const CORRELATION_MIN: f64 = 0.5;
/// A table of this size is read by ranges however its rows lie: it fits into any cache.
const SCATTERED_BYTES_MIN: u64 = 32 << 20;
/// Rows that one bucket of a whole scan is meant to hold.
const BUCKET_ROWS: u64 = 512;
/// Limits of the number of buckets: as many groups as one aggregate holds in a few megabytes.
const BUCKETS_MIN: u64 = 64;
/// See [`BUCKETS_MIN`].
const BUCKETS_MAX: u64 = 16_384;
/// Bytes that a row is taken to have where the catalog has no estimate of their number.
const ROW_BYTES: u64 = 64;

/// Built-in types that every server of every version orders alike. Not `"char"`: from 18 on the server fails to look up its
/// collation when it compares it in a row or between two borders.
const ORDERED: &[&str] = &[
    "bool",
    "bytea",
    "date",
    "int2",
    "int4",
    "int8",
    "numeric",
    "oid",
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
];
/// Types that servers order alike under a bytewise collation.
const ORDERED_BYTEWISE: &[&str] = &["bpchar", "name", "text", "varchar"];

/// How a table is taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Walk {
    /// In ranges of the key; the types of its columns, quoted, for casts from text.
    Ranges(Vec<String>),
    /// By a hash of the key, a power of two of buckets.
    Buckets(u32),
}

/// What one side says of a table's key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyFacts {
    /// Types of the key's columns in key order, e.g. `int8`; shorter than the key when a column is not there.
    pub types: Vec<String>,
    /// All of them are ordered alike by every server.
    pub ordered: bool,
    /// None of them can be null: NOT NULL, and validated.
    pub not_null: bool,
    /// A B-tree index begins with these columns in this order, and gives them in it: all upwards or all downwards, by the order
    /// of their types. One of `(a, b DESC)` gives each border only after a sort.
    pub indexed: bool,
    /// `pg_stats.correlation` of the first column.
    pub correlation: Option<f64>,
}

/// Decides how a table is walked. Pure.
#[must_use]
pub fn choose(form: &TableForm, authority: &KeyFacts, copy: &KeyFacts) -> Walk {
    let alike = authority.ordered && copy.ordered && authority.types == copy.types;
    let scattered = form.mapping.heap_bytes >= SCATTERED_BYTES_MIN
        && authority.correlation.is_some_and(|correlation| correlation.abs() < CORRELATION_MIN);
    if alike && authority.indexed && copy.indexed && !scattered {
        Walk::Ranges(authority.types.iter().map(|name| quote_ident(name)).collect())
    } else {
        Walk::Buckets(buckets(form))
    }
}

fn buckets(form: &TableForm) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate that is never negative, and `as` saturates"
    )]
    let estimate = form.mapping.rows_estimate as u64;
    let rows = estimate.max(form.mapping.heap_bytes / ROW_BYTES);
    let wanted = (rows / BUCKET_ROWS).clamp(BUCKETS_MIN, BUCKETS_MAX).next_power_of_two();
    u32::try_from(wanted.min(BUCKETS_MAX)).unwrap_or(u32::MAX)
}

/// A collation that orders by bytes: the default one is the database's (`datlocprovider` exists from 15 on). `indoption` is 0
/// for ASC NULLS LAST and 3 for DESC NULLS FIRST, which is the same read backwards.
const SQL: &str = "
WITH k AS (
    SELECT w.number, w.place, r.oid AS rel, a.attnum, a.attname, a.attcollation, y.typname::text AS type,
        a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = a.attrelid
            AND o.contype = 'n' AND o.conkey = ARRAY[a.attnum] AND NOT o.convalidated) AS not_null,
        y.oid < 16384 AND (y.typname = ANY ($5) OR y.typname = ANY ($6) AND CASE a.attcollation
            WHEN 0 THEN false
            WHEN 100 THEN coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') IN ('c', 'b') AND
                coalesce(to_jsonb(d) ->> 'datlocale', d.datcollate) IN ('C', 'POSIX')
            ELSE c.collprovider = 'c' AND c.collcollate IN ('C', 'POSIX') END) AS ordered
    FROM unnest($1::int4[], $2::int4[], $3::text[], $4::text[]) AS w (number, place, name, col)
    CROSS JOIN LATERAL (SELECT to_regclass(w.name)::oid AS oid) AS r
    JOIN pg_attribute a ON a.attrelid = r.oid AND a.attname = w.col AND a.attnum > 0
    JOIN pg_type y ON y.oid = a.atttypid
    JOIN pg_database d ON d.datname = current_database()
    LEFT JOIN pg_collation c ON c.oid = a.attcollation)
SELECT g.number, g.types, g.ordered, g.not_null,
    EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
        WHERE i.indrelid = g.rel AND i.indisvalid AND i.indpred IS NULL AND m.amname = 'btree'
            AND (string_to_array(i.indkey::text, ' ')::int2[])[1:cardinality(g.numbers)] = g.numbers
            AND (SELECT bool_and(p.sorted = p.wanted AND c.opcdefault) AND (bool_and(p.way = 0) OR bool_and(p.way = 3))
                FROM unnest((string_to_array(i.indoption::text, ' ')::int2[])[1:cardinality(g.numbers)],
                    (string_to_array(i.indcollation::text, ' ')::oid[])[1:cardinality(g.numbers)],
                    (string_to_array(i.indclass::text, ' ')::oid[])[1:cardinality(g.numbers)], g.collations)
                    AS p (way, sorted, class, wanted) LEFT JOIN pg_opclass c ON c.oid = p.class)),
    (SELECT s.correlation::float8 FROM pg_class x JOIN pg_namespace n ON n.oid = x.relnamespace
        JOIN pg_stats s ON (s.schemaname, s.tablename) = (n.nspname, x.relname)
        WHERE x.oid = g.rel AND s.attname = g.first ORDER BY s.inherited LIMIT 1)
FROM (SELECT k.number, k.rel, array_agg(k.type ORDER BY k.place) AS types, bool_and(k.ordered) AS ordered,
        bool_and(k.not_null) AS not_null, array_agg(k.attnum ORDER BY k.place) AS numbers,
        array_agg(k.attcollation ORDER BY k.place) AS collations,
        (array_agg(k.attname ORDER BY k.place))[1] AS first
    FROM k GROUP BY k.number, k.rel) AS g ORDER BY g.number";

/// Asks one side about the keys of tables, all in one statement. The answer is in the order of `forms`; a table that is
/// not there has no types.
///
/// # Errors
/// What the server said.
pub async fn key_facts(
    client: &Client,
    forms: &[TableForm],
    side: Side,
) -> Result<Vec<KeyFacts>, tokio_postgres::Error> {
    let (mut numbers, mut places, mut names, mut columns) = (vec![], vec![], vec![], vec![]);
    for (number, form) in (0_i32..).zip(forms) {
        for (place, column) in (0_i32..).zip(form.mapping.key_columns()) {
            numbers.push(number);
            places.push(place);
            names.push(form.name(side).sql());
            columns.push(match side {
                Side::Source => column.source.as_str(),
                Side::Target => column.target.as_str(),
            });
        }
    }
    let rows = client.query(SQL, &[&numbers, &places, &names, &columns, &ORDERED, &ORDERED_BYTEWISE]).await?;
    let nothing =
        KeyFacts { types: vec![], ordered: false, not_null: true, indexed: false, correlation: None };
    let mut facts = vec![nothing; forms.len()];
    for row in rows {
        let number = usize::try_from(row.try_get::<_, i32>(0)?).unwrap_or(usize::MAX);
        if let Some(of) = facts.get_mut(number) {
            *of = KeyFacts {
                types: row.try_get(1)?,
                ordered: row.try_get(2)?,
                not_null: row.try_get(3)?,
                indexed: row.try_get(4)?,
                correlation: row.try_get(5)?,
            };
        }
    }
    Ok(facts)
}
