//! Rows by their keys: the statements, and what they bring.

use std::fmt;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::super::finding::RawKey;
use super::super::form::{ColumnForm, Side, TableForm};
use super::super::redact::Redactor;
use super::judge::Held;
use crate::mapping::input::{key_value_sql, value_sql};
use crate::mapping::{ColumnMapping, FilterTerm};
use crate::name::quote_literal;
use crate::postgres::equality::BUILT_IN;

/// What is done with the authority's rows while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// They are only read.
    None,
    /// Locked against change; rows that somebody else holds are left out.
    SkipHeld,
    /// Locked against change; rows that somebody else holds are waited for.
    Wait,
}

impl Lock {
    fn clause(self) -> &'static str {
        match self {
            Self::None => "",
            Self::SkipHeld => " FOR SHARE OF t SKIP LOCKED",
            Self::Wait => " FOR SHARE OF t",
        }
    }
}

/// What differs between the sides in how a key is looked up.
#[derive(Debug, Clone, Default)]
pub(super) struct Equality {
    /// By which operator each key column is compared, in key order.
    pub(super) source: Vec<String>,
    /// The same on the target.
    pub(super) target: Vec<String>,
    /// Types of all columns as the target names them: an adopted enum may have another name.
    pub(super) target_casts: Vec<String>,
}

/// The statements of one table.
pub(super) struct Lookup<'a> {
    form: &'a TableForm,
    authority: Side,
    equality: Equality,
}

impl fmt::Debug for Lookup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("table", &self.form.mapping.source).finish_non_exhaustive()
    }
}

impl<'a> Lookup<'a> {
    pub(super) fn new(form: &'a TableForm, authority: Side, equality: Equality) -> Self {
        Self { form, authority, equality }
    }

    /// The authority's rows of `keys`, by the key's place in the list.
    pub(super) async fn here(
        &self,
        client: &Client,
        keys: &[RawKey],
        lock: Lock,
        values: bool,
    ) -> Result<Vec<Vec<Held>>, tokio_postgres::Error> {
        let sql = format!("{}{}", self.select(self.authority, values), lock.clause());
        self.fetch(client, &sql, keys).await
    }

    /// The copy's rows of `keys`, by the key's place in the list.
    pub(super) async fn there(
        &self,
        client: &Client,
        keys: &[RawKey],
        values: bool,
    ) -> Result<Vec<Vec<Held>>, tokio_postgres::Error> {
        self.fetch(client, &self.select(self.authority.other(), values), keys).await
    }

    /// A version is that of one row: a partitioned table has its rows in several places.
    fn select(&self, side: Side, values: bool) -> String {
        let (hashes, texts) =
            if values { self.values(side) } else { (String::new(), "ARRAY[]::text[]".to_owned()) };
        let mut row_hash = self.form.row_hash(side, false);
        if self.form.strict {
            row_hash = format!("{row_hash}, {}", self.form.row_hash(side, true));
        }
        let (names, arrays) = self.keys();
        format!(
            "SELECT w.o, {fits}, ARRAY[{row_hash}]::int8[], concat_ws('/', t.tableoid, t.ctid, t.xmin), \
                 ARRAY[{hashes}]::int8[], {texts}, ARRAY[{key}]::text[] \
             FROM unnest({arrays}) WITH ORDINALITY AS w ({names}, o) \
             JOIN {from} AS t ON {matched}",
            fits = self.fits(side),
            key = self.form.key_texts(side).join(", "),
            from = self.form.from(side),
            matched = self.matched(side),
        )
    }

    fn keys(&self) -> (String, String) {
        let count = self.form.mapping.key.len();
        let names: Vec<String> = (0..count).map(|index| format!("k{index}")).collect();
        let arrays: Vec<String> = (1..=count).map(|number| format!("${number}::text[]")).collect();
        (names.join(", "), arrays.join(", "))
    }

    fn matched(&self, side: Side) -> String {
        let operators = match side {
            Side::Source => &self.equality.source,
            Side::Target => &self.equality.target,
        };
        let terms = self.form.mapping.key.iter().enumerate().filter_map(|(index, number)| {
            let column = self.form.mapping.columns.get(*number)?;
            let equals = operators.get(index).map_or(BUILT_IN, String::as_str);
            let value = key_value_sql(self.cast(side, *number)?, &format!("w.k{index}"));
            Some(format!("{} {equals} {value}", TableForm::column(column, side)))
        });
        terms.collect::<Vec<_>>().join(" AND ")
    }

    /// A column's type as a side names it.
    fn cast(&self, side: Side, number: usize) -> Option<&str> {
        let written = (side == Side::Target).then(|| self.equality.target_casts.get(number)).flatten();
        let column = self.form.mapping.columns.get(number)?;
        Some(written.unwrap_or(&column.cast_sql))
    }

    /// A record hashes NULL to 0, and a float of 0 to its seed, so the seed is not 0.
    fn values(&self, side: Side) -> (String, String) {
        let hashes = self.form.values(side).map(|value| format!("hash_record_extended(ROW({value}), 1)"));
        let texts =
            self.form.mapping.columns.iter().map(|column| {
                (column, ColumnForm::Text.sql(&column.cast_sql, &TableForm::column(column, side)))
            });
        (hashes.collect::<Vec<_>>().join(", "), Redactor::sql(texts))
    }

    /// Whether the slice's filter takes a row, by the columns of that side.
    fn fits(&self, side: Side) -> String {
        let term = |term: &FilterTerm| {
            let column: &ColumnMapping = self.form.mapping.columns.get(term.column)?;
            let cast = self.cast(side, term.column)?;
            let value = |value: &String| value_sql(cast, &format!("{}::text", quote_literal(value)));
            let values: Vec<String> = term.values.iter().map(value).collect();
            Some(format!("{} IN ({})", TableForm::column(column, side), values.join(", ")))
        };
        let terms: Vec<String> = self.form.mapping.filter.iter().filter_map(term).collect();
        if terms.is_empty() { "true".to_owned() } else { format!("(({}) IS TRUE)", terms.join(" AND ")) }
    }

    async fn fetch(
        &self,
        client: &Client,
        sql: &str,
        keys: &[RawKey],
    ) -> Result<Vec<Vec<Held>>, tokio_postgres::Error> {
        let part = |index: usize| -> Vec<Option<&str>> {
            keys.iter().map(|key| key.0.get(index).map(String::as_str)).collect()
        };
        let columns: Vec<_> = (0..self.form.mapping.key.len()).map(part).collect();
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
            columns.iter().map(|column| (column as _, Type::TEXT_ARRAY)).collect();
        let rows = client.query_typed(sql, &parameters).await?;
        let mut found = vec![Vec::new(); keys.len()];
        for row in &rows {
            let place = usize::try_from(row.try_get::<_, i64>(0)? - 1).ok();
            let held = Held {
                fits: row.try_get(1)?,
                hashes: row.try_get(2)?,
                version: row.try_get(3)?,
                columns: row.try_get(4)?,
                texts: row.try_get(5)?,
                key: row.try_get(6)?,
            };
            if let Some(place) = place.and_then(|place| found.get_mut(place)) {
                place.push(held);
            }
        }
        Ok(found)
    }
}
