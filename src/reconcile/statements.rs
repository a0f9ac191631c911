//! The statements of a scan: sums over ranges and buckets of one side of a table, the hashes of single rows, and the
//! borders between ranges.

use super::form::{Side, TableForm};

/// A range of keys `(lo, hi]` in key order, texts per key column; an absent border is open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRange {
    /// Exclusive.
    pub lo: Option<Vec<String>>,
    /// Inclusive.
    pub hi: Option<Vec<String>>,
}

/// Some buckets of a hash of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// How many there are, a power of two.
    pub of: u32,
    /// Those that are meant.
    pub numbers: Vec<i32>,
}

/// Seed of the key's hash that makes buckets; rows and samples have others.
const BUCKET_SEED: u8 = 0;

/// Count and sums over the rows of a subquery `q` with the hashes `h` and, with two seeds, `h2`.
fn sums(strict: bool) -> &'static str {
    if strict {
        "count(*) AS n, coalesce(sum(h), 0)::text AS s, coalesce(bit_xor(h), 0) AS x, \
         coalesce(sum(h2), 0)::text AS s2, coalesce(bit_xor(h2), 0) AS x2"
    } else {
        "count(*) AS n, coalesce(sum(h), 0)::text AS s, coalesce(bit_xor(h), 0) AS x"
    }
}

fn hashes(form: &TableForm, side: Side) -> String {
    let first = format!("{} AS h", form.row_hash(side, false));
    if form.strict { format!("{first}, {} AS h2", form.row_hash(side, true)) } else { first }
}

fn bucket(form: &TableForm, side: Side, of: u32) -> String {
    format!("({} & {})::int4", form.key_hash(side, BUCKET_SEED), of - 1)
}

/// `t."A"`, or `(t."A", t."B")`.
fn key(form: &TableForm, side: Side) -> String {
    let columns: Vec<String> =
        form.mapping.key_columns().map(|column| TableForm::column(column, side)).collect();
    tuple(&columns)
}

fn tuple(parts: &[String]) -> String {
    match parts {
        [only] => only.clone(),
        all => format!("({})", all.join(", ")),
    }
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("{prefix}{number}")).collect()
}

fn and(conditions: Vec<String>) -> String {
    if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") }
}

/// Sums over many closed ranges in one statement. Parameters: for each key column an array of lower borders, then for
/// each an array of upper borders. Rows: number of the range from 0, then the sums. `types` are the key's, quoted.
///
/// Each range is summed up for itself, which costs less than a GROUP BY over all of them.
#[must_use]
pub fn sums_of_ranges(form: &TableForm, side: Side, types: &[String]) -> String {
    let arrays: Vec<String> = (1..=types.len() * 2)
        .zip(types.iter().chain(types))
        .map(|(number, name)| format!("${number}::text[]::{name}[]"))
        .collect();
    let (lo, hi) = (names("lo", types.len()), names("hi", types.len()));
    let of = |names: &[String]| tuple(&names.iter().map(|name| format!("r.{name}")).collect::<Vec<_>>());
    let key = key(form, side);
    let mut conditions = vec![format!("{key} > {}", of(&lo)), format!("{key} <= {}", of(&hi))];
    conditions.extend(form.conditions(side));
    format!(
        "SELECT (r.number - 1)::int4, z.* FROM unnest({}) WITH ORDINALITY AS r ({}, number) \
         CROSS JOIN LATERAL (SELECT {} FROM (SELECT {} FROM {} AS t WHERE {} OFFSET 0) AS q) AS z",
        arrays.join(", "),
        [lo, hi].concat().join(", "),
        sums(form.strict),
        hashes(form, side),
        form.from(side),
        and(conditions),
    )
}

/// The conditions of one range, with its borders as parameters, and these. Rows that have a null for a key are in no
/// range, also not in the one that is open on both sides.
fn within<'a>(
    form: &TableForm,
    side: Side,
    range: &'a KeyRange,
    types: &[String],
) -> (Vec<String>, Vec<&'a String>) {
    let key = key(form, side);
    let mut conditions = Vec::new();
    let mut parameters = Vec::new();
    for (operator, border) in [(">", &range.lo), ("<=", &range.hi)] {
        let Some(border) = border else { continue };
        let first = parameters.len() + 1;
        let values: Vec<String> =
            (first..).zip(types).map(|(number, name)| format!("${number}::text::{name}")).collect();
        conditions.push(format!("{key} {operator} {}", tuple(&values)));
        parameters.extend(border);
    }
    if parameters.is_empty() {
        // A border leaves out rows without a key; here nothing else does, and the hash of such a key may be null.
        let columns = form.mapping.key_columns();
        // Not IS NOT NULL, which is about the fields of a composite key.
        conditions
            .extend(columns.map(|column| format!("num_nulls({}) = 0", TableForm::column(column, side))));
    }
    conditions.extend(form.conditions(side));
    (conditions, parameters)
}

/// A statement over one range, with the texts of its parameters.
#[derive(Debug)]
pub struct OverRange<'a> {
    /// The statement.
    pub sql: String,
    /// Its first parameters, texts.
    pub parameters: Vec<&'a String>,
}

/// Sums over one range, open or not. One row: the sums.
#[must_use]
pub fn sums_of_range<'a>(
    form: &TableForm,
    side: Side,
    range: &'a KeyRange,
    types: &[String],
) -> OverRange<'a> {
    let (conditions, parameters) = within(form, side, range, types);
    let sql = format!(
        "SELECT {} FROM (SELECT {} FROM {} AS t WHERE {} OFFSET 0) AS q",
        sums(form.strict),
        hashes(form, side),
        form.from(side),
        and(conditions),
    );
    OverRange { sql, parameters }
}

/// Sums over each bucket of one range. Rows: number of the bucket, then the sums; empty buckets have none.
#[must_use]
pub fn sums_of_buckets<'a>(
    form: &TableForm,
    side: Side,
    range: &'a KeyRange,
    types: &[String],
    of: u32,
) -> OverRange<'a> {
    let (conditions, parameters) = within(form, side, range, types);
    let sql = format!(
        "SELECT bucket, {} FROM (SELECT {} AS bucket, {} FROM {} AS t WHERE {} OFFSET 0) AS q GROUP BY bucket",
        sums(form.strict),
        bucket(form, side, of),
        hashes(form, side),
        form.from(side),
        and(conditions),
    );
    OverRange { sql, parameters }
}

/// Key and hashes of each row of some buckets of one range; the numbers of the buckets are one more parameter, an array.
/// Columns: the key's texts in key order, the hash, with two seeds the other one, the number of the bucket. In the order
/// of the buckets when that is asked for.
#[must_use]
pub fn rows_of_buckets<'a>(
    form: &TableForm,
    side: Side,
    range: &'a KeyRange,
    types: &[String],
    buckets: &Buckets,
    in_order: bool,
) -> OverRange<'a> {
    let (mut conditions, parameters) = within(form, side, range, types);
    let number = parameters.len() + 1;
    let bucket = bucket(form, side, buckets.of);
    conditions.push(format!("{bucket} = ANY (${number}::int4[])"));
    let sql = format!(
        "SELECT {}, {}, {bucket} AS bucket FROM {} AS t WHERE {}{}",
        form.key_texts(side).join(", "),
        hashes(form, side),
        form.from(side),
        and(conditions),
        if in_order { " ORDER BY bucket" } else { "" },
    );
    OverRange { sql, parameters }
}

/// The next borders after a key, every so many rows, at most so many. Parameters: rows between two borders, number of
/// borders, then the key's texts when there is a lower border, then those of the last key to look at when there is an
/// upper one. Rows: the key's texts, in key order; fewer than asked for when the end is reached.
///
/// Each border is found from the one before it: that reads the index alone, once.
#[must_use]
pub fn borders<'a>(form: &TableForm, side: Side, range: &'a KeyRange, types: &[String]) -> OverRange<'a> {
    let columns: Vec<String> =
        form.mapping.key_columns().map(|column| TableForm::column(column, side)).collect();
    let keys = names("k", types.len());
    let mut parameters = Vec::new();
    let mut values = |border: &'a [String]| -> String {
        let first = parameters.len() + 3;
        parameters.extend(border);
        tuple(
            &(first..)
                .zip(types)
                .map(|(number, name)| format!("${number}::text::{name}"))
                .collect::<Vec<_>>(),
        )
    };
    let lower = range.lo.as_deref().map(|lo| format!("{} > {}", tuple(&columns), values(lo)));
    let upper = range.hi.as_deref().map(|hi| format!("{} <= {}", tuple(&columns), values(hi)));
    let after = format!(
        "{} > {}",
        tuple(&columns),
        tuple(&keys.iter().map(|name| format!("b.{name}")).collect::<Vec<_>>())
    );
    let one = |conditions: Vec<String>| {
        format!(
            "SELECT {columns} FROM {from} AS t WHERE {conditions} ORDER BY {columns} OFFSET $1::int8 - 1 LIMIT 1",
            columns = columns.join(", "),
            from = form.from(side),
            conditions = and(conditions),
        )
    };
    let first = one(lower.into_iter().chain(upper.clone()).collect());
    let next = one(std::iter::once(after).chain(upper).collect());
    let sql = format!(
        "WITH RECURSIVE b ({keys}, n) AS (SELECT x.*, 1 FROM ({first}) AS x \
         UNION ALL SELECT x.*, b.n + 1 FROM b CROSS JOIN LATERAL ({next}) AS x WHERE b.n < $2::int4) \
         SELECT {texts} FROM b ORDER BY n",
        keys = keys.join(", "),
        texts = keys.iter().map(|name| format!("{name}::text")).collect::<Vec<_>>().join(", "),
    );
    OverRange { sql, parameters }
}
