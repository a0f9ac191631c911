//! The SQL that applies sets of row operations to one target table.
//!
//! Every statement takes one `text[]` per column and reads the values inside, so that one form serves every type. Casts
//! name the type without its modifier: a value that doesn't fit is an error, never cut. Nothing says ONLY: an adopted
//! table may be partitioned, and one that others inherit from is refused by `provision`.

use crate::mapping::input::{key_value_sql, value_sql};
use crate::mapping::{ColumnMapping, TableMapping};
use crate::name::{quote_ident, quote_literal};
use crate::postgres::equality::BUILT_IN;

/// Deletes rows by key: one `text[]` per key column, in key order. `equality` are the operators of the key's columns.
#[must_use]
pub fn delete(table: &TableMapping, equality: &[String]) -> String {
    let keys = unnest(table.key.len(), "k");
    format!("DELETE FROM {} AS t USING {keys} WHERE {}", table.target.sql(), key_match(table, equality))
}

/// Which form of update a row needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpdateForm {
    /// The key changes, so key columns are set too.
    pub key_changes: bool,
    /// For each mapped column, whether the row holds a value for it.
    pub carried: Vec<bool>,
}

/// What an update comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateSql {
    /// A statement that takes one `text[]` per key column with the old key, then one per carried column. It meets every row
    /// once.
    Statement(String),
    /// There is nothing to set.
    Nothing,
    /// The key changes, and it is a column that can't be set (GENERATED ALWAYS AS IDENTITY).
    FixedKey,
}

/// Updates rows by key. `equality` are the operators of the key's columns.
#[must_use]
pub fn update(table: &TableMapping, equality: &[String], form: &UpdateForm) -> UpdateSql {
    if form.key_changes && table.key_columns().any(|column| column.identity_always) {
        return UpdateSql::FixedKey;
    }
    let mut assignments = Vec::new();
    let mut guards = vec![key_match(table, equality)];
    let mut place = 0;
    for (index, column) in table.columns.iter().enumerate() {
        if form.carried.get(index) != Some(&true) {
            continue;
        }
        let value = value_sql(&column.cast_sql, &format!("s.v{place}"));
        place += 1;
        let in_key = table.key.contains(&index);
        if column.identity_always {
            // Such a column can't be set; where it did change, the row must not be taken for updated.
            if !in_key || form.key_changes {
                guards.push(format!("t.{} IS NOT DISTINCT FROM {value}", quote_ident(&column.target)));
            }
        } else if !in_key || form.key_changes {
            assignments.push(format!("{} = {value}", quote_ident(&column.target)));
        }
    }
    let names: Vec<String> =
        (0..table.key.len()).map(|k| format!("k{k}")).chain((0..place).map(|v| format!("v{v}"))).collect();
    let arrays: Vec<String> = (1..=names.len()).map(|n| format!("${n}::text[]")).collect();
    if assignments.is_empty() {
        if guards.len() == 1 {
            return UpdateSql::Nothing;
        }
        // Nothing can be set, and what can't may have changed.
        return UpdateSql::Statement(format!(
            "SELECT FROM {} AS t, unnest({}) AS s({}) WHERE {}",
            table.target.sql(),
            arrays.join(", "),
            names.join(", "),
            guards.join(" AND ")
        ));
    }
    UpdateSql::Statement(format!(
        "UPDATE {} AS t SET {} FROM unnest({}) AS s({}) WHERE {}",
        table.target.sql(),
        assignments.join(", "),
        arrays.join(", "),
        names.join(", "),
        guards.join(" AND ")
    ))
}

/// How many rows the target has of each key, in their order: one `text[]` per key column. Beside the number the name of a column that is
/// not mapped and that holds a value in one of them, if there is one. `left_behind` are those columns, quoted.
#[must_use]
pub fn held((table, left_behind): (&TableMapping, &[String]), equality: &[String]) -> String {
    let count = table.key.len();
    let arrays: Vec<String> = (1..=count).map(|n| format!("${n}::text[]")).collect();
    let names: Vec<String> = (0..count).map(|n| format!("k{n}")).collect();
    let filled = |column: &String| {
        format!("WHEN bool_or(num_nonnulls(t.{column}) = 1) THEN {}", quote_literal(column))
    };
    let filled: Vec<String> = left_behind.iter().map(filled).collect();
    let filled =
        if filled.is_empty() { "NULL::text".to_owned() } else { format!("CASE {} END", filled.join(" ")) };
    format!(
        "SELECT c.rows, c.filled FROM unnest({}) WITH ORDINALITY AS s({}, n) \
         CROSS JOIN LATERAL (SELECT count(*) AS rows, {filled} AS filled FROM {} AS t WHERE {}) AS c ORDER BY s.n",
        arrays.join(", "),
        names.join(", "),
        table.target.sql(),
        key_match(table, equality),
    )
}

/// Keys of rows that the target has under these keys and prints in another way: the place of the key that was asked for, from 1, and an
/// array of texts. One `text[]` per key column. Texts are compared byte by byte, whatever their collation calls equal.
#[must_use]
pub fn spelled_otherwise(table: &TableMapping, equality: &[String]) -> String {
    let count = table.key.len();
    let arrays: Vec<String> = (1..=count).map(|n| format!("${n}::text[]")).collect();
    let names: Vec<String> = (0..count).map(|n| format!("k{n}")).collect();
    // As the type prints it: a cast to text may be the user's own.
    let printed: Vec<String> = table
        .key_columns()
        .map(|column| {
            let value = format!("t.{}", quote_ident(&column.target));
            format!("CASE WHEN num_nulls({value}) = 0 THEN format('%s', {value}) END")
        })
        .collect();
    let other: Vec<String> = printed
        .iter()
        .zip(&names)
        .map(|(text, name)| format!("({text} COLLATE pg_catalog.\"C\") <> s.{name}"))
        .collect();
    format!(
        "SELECT s.n, ARRAY[{}]::text[] FROM unnest({}) WITH ORDINALITY AS s({}, n) JOIN {} AS t ON {} \
         WHERE {} ORDER BY s.n",
        printed.join(", "),
        arrays.join(", "),
        names.join(", "),
        table.target.sql(),
        key_match(table, equality),
        other.join(" OR "),
    )
}

/// Updates rows by key where that can't be done in place: a column that can't be set has changed (GENERATED ALWAYS AS
/// IDENTITY, `SET n = DEFAULT`), or rows hold unique values that others of them are to get. Each row goes and comes again
/// in one statement, with the values that the update does not carry and those of columns that are not mapped. All of them
/// are gone before the first one comes, which is what the sort is for. Takes what [`update`] takes.
#[must_use]
pub fn replace(
    (table, left_behind): (&TableMapping, &[String]),
    equality: &[String],
    carried: &[bool],
) -> String {
    let mut place = 0;
    let (mut kept, mut values) = (Vec::new(), Vec::new());
    for (index, column) in table.columns.iter().enumerate() {
        if carried.get(index) == Some(&true) {
            values.push(value_sql(&column.cast_sql, &format!("g.v{place}")));
            place += 1;
        } else {
            kept.push(format!(", t.{} AS t{index}", quote_ident(&column.target)));
            values.push(format!("g.t{index}"));
        }
    }
    for (number, column) in left_behind.iter().enumerate() {
        kept.push(format!(", t.{column} AS l{number}"));
        values.push(format!("g.l{number}"));
    }
    let columns = std::iter::once(table.target_list()).chain(left_behind.iter().cloned());
    let names: Vec<String> =
        (0..table.key.len()).map(|k| format!("k{k}")).chain((0..place).map(|v| format!("v{v}"))).collect();
    let arrays: Vec<String> = (1..=names.len()).map(|n| format!("${n}::text[]")).collect();
    format!(
        "WITH gone AS (DELETE FROM {target} AS t USING unnest({}) AS s({}) WHERE {} RETURNING s.*{}) \
         INSERT INTO {target} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM gone AS g ORDER BY g.k0",
        arrays.join(", "),
        names.join(", "),
        key_match(table, equality),
        kept.concat(),
        columns.collect::<Vec<_>>().join(", "),
        values.join(", "),
        target = table.target.sql(),
    )
}

/// Inserts rows: one `text[]` per mapped column.
#[must_use]
pub fn insert(table: &TableMapping) -> String {
    let value = |(n, column): (usize, &ColumnMapping)| value_sql(&column.cast_sql, &format!("s.v{n}"));
    let values: Vec<String> = table.columns.iter().enumerate().map(value).collect();
    format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
        table.target.sql(),
        table.target_list(),
        values.join(", "),
        unnest(table.columns.len(), "v")
    )
}

/// Reads rows of the source, those that the slice takes of `rows`: a WHERE, a LIMIT, or nothing. `format` is COPY's, or empty.
#[must_use]
pub fn copy_out(table: &TableMapping, rows: &str, format: &str) -> String {
    // A partitioned table has no rows of its own.
    let only = if table.partitioned { "" } else { "ONLY " };
    format!("COPY (SELECT {} FROM {only}{}{rows}) TO STDOUT{format}", table.source_list(), table.source.sql())
}

/// Inserts rows through COPY in text format.
#[must_use]
pub fn copy_in_text(table: &TableMapping) -> String {
    format!("COPY {} ({}) FROM STDIN", table.target.sql(), table.target_list())
}

fn unnest(count: usize, prefix: &str) -> String {
    let arrays: Vec<String> = (1..=count).map(|n| format!("${n}::text[]")).collect();
    let names: Vec<String> = (0..count).map(|n| format!("{prefix}{n}")).collect();
    format!("unnest({}) AS s({})", arrays.join(", "), names.join(", "))
}

fn key_match(table: &TableMapping, equality: &[String]) -> String {
    let terms: Vec<String> = table
        .key_columns()
        .enumerate()
        .map(|(n, column)| {
            let equals = equality.get(n).map_or(BUILT_IN, String::as_str);
            let value = key_value_sql(&column.cast_sql, &format!("s.k{n}"));
            format!("t.{} {equals} {value}", quote_ident(&column.target))
        })
        .collect();
    terms.join(" AND ")
}
