//! Row filters: values in the text form that PostgreSQL itself would print, so that they can be compared with what
//! the stream carries.

use tokio_postgres::types::Type;

use super::columns::{object, unknown};
use super::expand::Listed;
use super::spelling::{advice, nearest};
use super::{ColumnMapping, FilterTerm, TableMapping};
use crate::catalog::{Catalog, Column, ReplicaIdentity, UserTypeKind};
use crate::name::quote_ident;
use crate::problem::Problem;

/// How a filter's values are read.
enum ValueType<'a> {
    /// Whole numbers within these bounds.
    Integer(i64, i64),
    Text,
    Boolean,
    Uuid,
    Date,
    /// One of these labels.
    Enum(&'a [String]),
}

/// Compiles the filter of one table.
pub(super) fn terms(
    monolith: &Catalog,
    one: &Listed<'_>,
    columns: &[ColumnMapping],
    problems: &mut Vec<Problem>,
) -> Vec<FilterTerm> {
    let mut terms = Vec::new();
    for (name, values) in &one.rule.filter {
        let Some(column) = one.table.column(name) else {
            problems.push(unknown(one, name));
            continue;
        };
        let Some(index) = columns.iter().position(|mapped| mapped.source == *name) else {
            problems.push(not_carried(one, name));
            continue;
        };
        if !in_identity(one, name) {
            problems.push(outside_identity(one, name));
        }
        let Some(value_type) = value_type(monolith, column) else {
            problems.push(wrong_type(one, column));
            continue;
        };
        if values.is_empty() {
            problems.push(no_values(one, column));
        }
        let mut canonical_values = Vec::new();
        for value in values {
            match canonical(&value_type, value) {
                Ok(value) => canonical_values.push(value),
                Err(next) => problems.push(wrong_value(one, column, value, next)),
            }
        }
        canonical_values.sort();
        canonical_values.dedup();
        terms.push(FilterTerm { column: index, values: canonical_values });
    }
    terms
}

/// Whether no row can pass both filters: some column takes values of its own in each.
pub(super) fn disjoint(a: &TableMapping, b: &TableMapping) -> bool {
    let named =
        |table: &TableMapping, term: &FilterTerm| table.columns.get(term.column).map(|c| c.source.clone());
    a.filter.iter().any(|mine| {
        b.filter.iter().any(|theirs| {
            named(a, mine).is_some()
                && named(a, mine) == named(b, theirs)
                && !mine.values.iter().any(|value| theirs.values.contains(value))
        })
    })
}

fn in_identity(one: &Listed<'_>, name: &str) -> bool {
    one.table.replica_identity == ReplicaIdentity::Full
        || one.table.key_columns().is_none_or(|key| key.is_empty() || key.contains(&name))
}

fn value_type<'a>(monolith: &'a Catalog, column: &Column) -> Option<ValueType<'a>> {
    if !column.type_builtin {
        // An array of an enum or a domain over one also has this base kind; their own type is not the enum.
        let labels =
            column.user_type.as_ref().and_then(|name| monolith.types.get(name)).map(|found| &found.kind);
        return match labels {
            Some(UserTypeKind::Enum(labels)) if !column.type_sql.ends_with(']') => {
                Some(ValueType::Enum(labels))
            }
            _ => None,
        };
    }
    // A collation of the user's own may call different texts equal (nondeterministic collations); ours compares bytes.
    let own_collation = column.collation_sql.as_ref().is_some_and(|name| !name.starts_with("pg_catalog."));
    match Type::from_oid(column.type_oid)? {
        Type::INT2 => Some(ValueType::Integer(i16::MIN.into(), i16::MAX.into())),
        Type::INT4 => Some(ValueType::Integer(i32::MIN.into(), i32::MAX.into())),
        Type::INT8 => Some(ValueType::Integer(i64::MIN, i64::MAX)),
        Type::TEXT | Type::VARCHAR if !own_collation => Some(ValueType::Text),
        Type::BOOL => Some(ValueType::Boolean),
        Type::UUID => Some(ValueType::Uuid),
        Type::DATE => Some(ValueType::Date),
        _ => None,
    }
}

/// The value as PostgreSQL prints it, or what to write instead.
fn canonical(value_type: &ValueType<'_>, value: &str) -> Result<String, String> {
    match value_type {
        ValueType::Text => Ok(value.to_owned()),
        ValueType::Integer(low, high) => {
            let number = value.trim().parse::<i64>().ok().filter(|number| (low..=high).contains(&number));
            number.map(|n| n.to_string()).ok_or_else(|| format!("write a whole number from {low} to {high}"))
        }
        // As the server's bool output: t and f (PostgreSQL documentation, section 8.6).
        ValueType::Boolean => match value.trim().to_ascii_lowercase().as_str() {
            "t" | "true" | "yes" | "on" | "1" => Ok("t".to_owned()),
            "f" | "false" | "no" | "off" | "0" => Ok("f".to_owned()),
            _ => Err("write true or false".to_owned()),
        },
        ValueType::Uuid => uuid(value).ok_or_else(|| "write 32 hexadecimal digits as 8-4-4-4-12".to_owned()),
        ValueType::Date => {
            let value = value.trim();
            if matches!(value, "infinity" | "-infinity") {
                return Ok(value.to_owned());
            }
            let date = value.parse::<jiff::civil::Date>().ok().filter(|date| date.year() > 0);
            date.map(|date| date.to_string())
                .ok_or_else(|| "write a date as YYYY-MM-DD, infinity or -infinity".to_owned())
        }
        ValueType::Enum(labels) if labels.iter().any(|label| label == value) => Ok(value.to_owned()),
        ValueType::Enum(labels) => {
            let near = nearest(value, labels.iter().map(String::as_str));
            Err(advice(near, &format!("its labels are {}", labels.join(", "))))
        }
    }
}

fn uuid(value: &str) -> Option<String> {
    let digits: String = value.trim().chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
    if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let part = |from: usize, to: usize| digits.get(from..to);
    Some([part(0, 8)?, part(8, 12)?, part(12, 16)?, part(16, 20)?, part(20, 32)?].join("-"))
}

fn not_carried(one: &Listed<'_>, name: &str) -> Problem {
    Problem::error("filter-not-carried", object(&one.table.name, name))
        .at(one.rule.place)
        .fact("the filter tests it and the plan drops it")
        .consequence("the service's side could not tell which rows are its own")
        .next("keep the column")
}

fn outside_identity(one: &Listed<'_>, name: &str) -> Problem {
    let key = one.table.key_columns().unwrap_or_default();
    let mut wider: Vec<&str> = key.clone();
    wider.push(name);
    let list: Vec<String> = wider.iter().map(|name| quote_ident(name)).collect();
    let table = one.table.name.sql();
    Problem::error("filter-outside-identity", object(&one.table.name, name))
        .at(one.rule.place)
        .fact(format!("the filter tests it, and the table's replica identity is only ({})", key.join(", ")))
        .consequence("an update that takes a row in or out of the filter, or a delete, would not say on which side the row was")
        .next(format!(
            "run on the monolith: ALTER TABLE {table} REPLICA IDENTITY FULL; or, where the column is NOT NULL, \
             the cheaper CREATE UNIQUE INDEX CONCURRENTLY … ON {table} ({}); \
             ALTER TABLE {table} REPLICA IDENTITY USING INDEX …;",
            list.join(", ")
        ))
}

fn wrong_type(one: &Listed<'_>, column: &Column) -> Problem {
    Problem::error("filter-type", object(&one.table.name, &column.name))
        .at(one.rule.place)
        .fact(format!("the filter tests it and its type is {}", column.type_sql))
        .consequence("equal values of that type can have several forms, so rows would be told apart wrongly")
        .next("filter on a column of type smallint, integer, bigint, text, varchar, boolean, uuid, date or an enum, without a collation of your own")
}

fn wrong_value(one: &Listed<'_>, column: &Column, value: &str, next: String) -> Problem {
    Problem::error("filter-value", object(&one.table.name, &column.name))
        .at(one.rule.place)
        .fact(format!("the filter compares it with {value:?}, which is no {}", column.type_sql))
        .consequence("which rows it means is not known")
        .next(next)
}

fn no_values(one: &Listed<'_>, column: &Column) -> Problem {
    Problem::error("filter-value", object(&one.table.name, &column.name))
        .at(one.rule.place)
        .fact("the filter compares it with an empty list")
        .consequence("no row could ever match")
        .next("list the values that the slice takes, or remove the condition")
}
