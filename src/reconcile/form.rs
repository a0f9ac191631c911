//! The form in which one table's rows are hashed and told apart, the same on both sides.
//!
//! The server hashes each row with `hash_record_extended`, which is several times faster than md5 and stays the same
//! across major versions because hash partitioning relies on it. It adds up the columns' hashes linearly, so that two
//! rows that swap a value would have the same sum; therefore the seed of a row is a hash of its key, which takes the
//! linearity away (docs/decisions/0011-seed-from-the-key.md).

use std::collections::BTreeMap;

use crate::catalog::INTEGERS;
use crate::mapping::input::is_users;
use crate::mapping::{ColumnMapping, TableMapping};
use crate::name::{TableName, quote_ident};

/// Types whose own hash tells values apart in the same way on every server. All others are hashed by their text:
/// enums hash the label's OID, which differs between databases; arrays leave their bounds and dimensions out of the
/// hash; json, xml, points and others have none. Nor is jsonb here: its hash leaves out the sign of a number, and calls
/// `1` and `[1]`, `{}` and `[]` the same.
const HASHABLE: &[&str] = &[
    "bigint",
    "boolean",
    "bytea",
    "cidr",
    "date",
    "double precision",
    "inet",
    "integer",
    "interval",
    "macaddr",
    "macaddr8",
    "numeric",
    "real",
    "smallint",
    "time with time zone",
    "time without time zone",
    "timestamp with time zone",
    "timestamp without time zone",
    "uuid",
];

/// Hashable types with a collation. A nondeterministic one would call different texts equal, so all are hashed
/// under `C`.
const HASHABLE_TEXT: &[&str] = &["bpchar", "character varying", "text"];

/// Hashable types with several representations of equal values: `1.0` and `1.00`, `-0` and `0`, `1 day` and
/// `24 hours`, trailing blanks.
const REPRESENTED: &[&str] = &["bpchar", "double precision", "interval", "numeric", "real"];

/// Hashable types of 64 bits whose own hash folds the two halves into one before it hashes them, so that 1 and 2^32
/// are the same to it, and so are -1 and 2^32 - 1. Two different values of a column have the same hash once in four
/// billion, which is enough for a comparison and not for strict evidence. That of `interval`, which is among
/// [`REPRESENTED`], folds too.
const FOLDED: &[&str] = &[
    "bigint",
    "time with time zone",
    "time without time zone",
    "timestamp with time zone",
    "timestamp without time zone",
];

/// Columns that are hashed as one record, at most: a `bigint` among them takes two entries, and a row of SQL has at most
/// 1,664.
const RECORD_COLUMNS_MAX: usize = 800;

/// Columns of a table up to which they are hashed one by one. That spares the record around them, a third of the time of a
/// row with four columns; with forty, hashing the key anew for each of them costs as much.
const SINGLE_COLUMNS_MAX: usize = 16;

/// Which side of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The table's origin on the monolith, seen through the mapping.
    Source,
    /// The table in the service.
    Target,
}

impl Side {
    /// The side that it is compared with.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// What a column's value is hashed as. Which form a type gets is decided from its name, and weakened by the self-test
/// of a run where two servers do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ColumnForm {
    /// By the type's own hash, or what stands in for it: equal values are equal whatever their representation.
    Native,
    /// By its text, bytewise.
    Text,
    /// By its text in UTF-8, for servers of different encodings.
    Utf8,
}

impl ColumnForm {
    /// The form of a type where nothing speaks against it. `cast_sql` is the type without a modifier.
    #[must_use]
    pub fn of(cast_sql: &str, strict: bool) -> Self {
        let own = HASHABLE.contains(&cast_sql) || HASHABLE_TEXT.contains(&cast_sql);
        let loose = REPRESENTED.contains(&cast_sql) || FOLDED.contains(&cast_sql);
        if own && !(strict && loose) { Self::Native } else { Self::Text }
    }

    /// The next weaker form, to be tried when two servers do not hash alike.
    #[must_use]
    pub fn weaker(self) -> Option<Self> {
        match self {
            Self::Native => Some(Self::Text),
            Self::Text => Some(Self::Utf8),
            Self::Utf8 => None,
        }
    }

    /// The expression that is hashed for `value`, an SQL expression of type `cast_sql`.
    #[must_use]
    pub fn sql(self, cast_sql: &str, value: &str) -> String {
        let text = text_sql(cast_sql, value);
        match self {
            Self::Native if HASHABLE_TEXT.contains(&cast_sql) => format!("{value} COLLATE \"C\""),
            // Its own hash leaves out the sign, and is the same for NaN and both infinities.
            Self::Native if cast_sql == "numeric" => format!("trim_scale({value})::text COLLATE \"C\""),
            Self::Native => value.to_owned(),
            Self::Text => format!("{text} COLLATE \"C\""),
            Self::Utf8 => format!("convert_to({text}, 'UTF8')"),
        }
    }
}

/// The expression of the text that a value's type prints, as COPY and the stream carry it; null where `value` is.
///
/// A cast to text may be somebody's own (CREATE CAST) and give one text for two values, also on the way to a domain's
/// base type. `format` takes the output function of any type, and makes an empty text of null; a record whose fields
/// are all null is not one.
#[must_use]
pub fn text_sql(cast_sql: &str, value: &str) -> String {
    // Its cast gives the bytes that were typed, of which the output function leaves out the declaration.
    if is_users(cast_sql) || cast_sql == "xml" {
        format!("CASE WHEN num_nulls({value}) = 0 THEN format('%s', {value}) END")
    } else if cast_sql == "bpchar" {
        // The cast of `character` to text drops its padding.
        format!("textin(bpcharout({value}))")
    } else {
        format!("{value}::text")
    }
}

/// [`text_sql`] of a value that is to be found again: blanks at the end of `character` are no part of it, since columns
/// of other lengths hold other numbers of them.
#[must_use]
pub fn key_text_sql(cast_sql: &str, value: &str) -> String {
    if cast_sql == "bpchar" { format!("{value}::text") } else { text_sql(cast_sql, value) }
}

/// A share of the rows, chosen by the hash of their keys, so that both sides choose the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// First of the 65,536 parts of the key's hash that is taken.
    pub first: u16,
    /// How many parts are taken from there on, round the end; at least 1.
    pub parts: u32,
}

/// How many parts [`Sample`] counts.
pub const SAMPLE_PARTS: u32 = 65_536;

/// How one table is compared.
#[derive(Debug, Clone)]
pub struct TableForm {
    /// Its way from the monolith to the service; generated columns, which no stream carries, stand behind the others.
    pub mapping: TableMapping,
    /// The form of each mapped column, in mapping order.
    pub forms: Vec<ColumnForm>,
    /// Two seeds, and representations.
    pub strict: bool,
    /// Rows that are looked at; all of them without.
    pub sample: Option<Sample>,
    /// Generated columns by their name in the service, and whether the copy generates them too: if not, nothing fills them
    /// there.
    pub generated: BTreeMap<String, bool>,
}

impl TableForm {
    /// The table in the forms of its types, before any self-test.
    #[must_use]
    pub fn new(mut mapping: TableMapping, strict: bool) -> Self {
        let generated = mapping.generated.iter().map(|column| (column.target.clone(), true)).collect();
        mapping.columns.extend(mapping.generated.iter().cloned());
        let forms = mapping.columns.iter().map(|column| ColumnForm::of(&column.cast_sql, strict)).collect();
        Self { mapping, forms, strict, sample: None, generated }
    }

    /// Does without a generated column. `false` when it is none: the others are what the table is.
    pub fn leave_out(&mut self, column: &str) -> bool {
        let place = self.mapping.columns.iter().position(|mapped| mapped.target == column);
        match (self.generated.remove(column), place) {
            (Some(_), Some(place)) if place < self.forms.len() => {
                self.mapping.columns.remove(place);
                self.forms.remove(place);
                true
            }
            _ => false,
        }
    }

    /// Its name on a side.
    #[must_use]
    pub fn name(&self, side: Side) -> &TableName {
        match side {
            Side::Source => &self.mapping.source,
            Side::Target => &self.mapping.target,
        }
    }

    /// For a FROM clause: a partitioned table has its rows in its partitions; of any other, tables that inherit from it
    /// are not part.
    #[must_use]
    pub fn from(&self, side: Side) -> String {
        let only = if side == Side::Source && !self.mapping.partitioned { "ONLY " } else { "" };
        format!("{only}{}", self.name(side).sql())
    }

    /// A column as `t."Name"` on a side.
    #[must_use]
    pub fn column(column: &ColumnMapping, side: Side) -> String {
        let name = match side {
            Side::Source => &column.source,
            Side::Target => &column.target,
        };
        format!("t.{}", quote_ident(name))
    }

    /// What each column is hashed as, in mapping order, on table alias `t`. A `bigint` comes with its upper half, which
    /// its own hash folds into the lower one.
    pub fn values(&self, side: Side) -> impl Iterator<Item = String> + '_ {
        let pairs = self.mapping.columns.iter().zip(&self.forms);
        pairs.map(move |(column, form)| {
            let value = Self::column(column, side);
            let hashed = form.sql(&column.cast_sql, &value);
            match upper_half(*form, &column.cast_sql, &value) {
                Some(upper) => format!("{hashed}, {upper}"),
                None => hashed,
            }
        })
    }

    /// The hash of a row on table alias `t`, a `bigint`; under another seed for `second`. Null where the key is.
    #[must_use]
    pub fn row_hash(&self, side: Side, second: bool) -> String {
        if let Some(key) = self.cheap_key(side)
            && self.mapping.columns.len() <= SINGLE_COLUMNS_MAX
        {
            return self.column_hashes(side, &key, if second { 1_000 } else { 100 });
        }
        let values: Vec<String> = self.values(side).collect();
        let first = if second { 2 } else { 1 };
        let seeds = (first..=u8::MAX).step_by(10);
        let record = |(values, seed): (&[String], u8)| {
            format!("hash_record_extended(ROW({}), {})", values.join(", "), self.key_hash(side, seed))
        };
        values.chunks(RECORD_COLUMNS_MAX).zip(seeds).map(record).collect::<Vec<_>>().join(" # ")
    }

    /// The hashes of all columns, each under a seed that is a hash of the key and of the column's place, joined by
    /// exclusive-or; `first` begins the numbers of the places. What no function takes alone is hashed as one record.
    fn column_hashes(&self, side: Side, key: &CheapKey, first: usize) -> String {
        let mut numbers = first..;
        let mut seed = || {
            let number = numbers.next().unwrap_or(first);
            (number, key.hash(number))
        };
        let (mut terms, mut rest) = (Vec::new(), Vec::new());
        for (index, (column, form)) in self.mapping.columns.iter().zip(&self.forms).enumerate() {
            let value = Self::column(column, side);
            let upper = upper_half(*form, &column.cast_sql, &value);
            if self.mapping.key.contains(&index) {
                terms.push(seed().1);
            } else if let Some(function) = direct_hash(*form, &column.cast_sql) {
                let ((number, seed), value) = (seed(), form.sql(&column.cast_sql, &value));
                terms.push(format!("coalesce({function}({value}, {seed}), {number})"));
            } else {
                rest.push(form.sql(&column.cast_sql, &value));
            }
            if let Some(upper) = upper {
                let (number, seed) = seed();
                terms.push(format!("coalesce(hashint4extended({upper}, {seed}), {number})"));
            }
        }
        if !rest.is_empty() {
            terms.push(format!("hash_record_extended(ROW({}), {})", rest.join(", "), seed().1));
        }
        terms.join(" # ")
    }

    /// The key, where it is a single integer: its hash costs next to nothing, so that every column can have one of its own.
    fn cheap_key(&self, side: Side) -> Option<CheapKey> {
        let [index] = self.mapping.key.as_slice() else { return None };
        let (form, column) = (self.forms.get(*index)?, self.mapping.columns.get(*index)?);
        let integer = INTEGERS.contains(&&*column.cast_sql);
        let function =
            direct_hash(*form, &column.cast_sql).filter(|_| integer && *form == ColumnForm::Native)?;
        Some(CheapKey { function, value: Self::column(column, side) })
    }

    /// A hash of a row's key on table alias `t`, a `bigint` that is the same on both sides.
    #[must_use]
    pub fn key_hash(&self, side: Side, seed: u8) -> String {
        let parts: Vec<String> = self.key_values(side);
        let only = match (parts.as_slice(), self.mapping.key.as_slice()) {
            ([value], [index]) => {
                self.forms.get(*index).zip(self.mapping.columns.get(*index)).and_then(|(form, column)| {
                    direct_hash(*form, &column.cast_sql).map(|function| (value, function))
                })
            }
            _ => None,
        };
        match only {
            // A single key of a common type: its own function, without the record around it.
            Some((value, function)) => format!("{function}({value}, {seed})"),
            None => format!("hash_record_extended(ROW({}), {seed})", parts.join(", ")),
        }
    }

    fn key_values(&self, side: Side) -> Vec<String> {
        let of = |index: &usize| {
            let (column, form) = (self.mapping.columns.get(*index)?, self.forms.get(*index)?);
            Some(form.sql(&column.cast_sql, &Self::column(column, side)))
        };
        self.mapping.key.iter().filter_map(of).collect()
    }

    /// The key columns on table alias `t` as texts, in key order.
    #[must_use]
    pub fn key_texts(&self, side: Side) -> Vec<String> {
        let text = |column: &ColumnMapping| key_text_sql(&column.cast_sql, &Self::column(column, side));
        self.mapping.key_columns().map(text).collect()
    }

    /// Conditions that a row of this side must meet to be looked at, each to be joined with AND: the slice's filter on
    /// the source, and the sample. The target has no filter: a row there that the filter forbids is a finding.
    #[must_use]
    pub fn conditions(&self, side: Side) -> Vec<String> {
        let filter = if side == Side::Source { self.filter() } else { None };
        let sample = self.sample.map(|sample| {
            let hash = format!("({} & {})", self.key_hash(side, 3), SAMPLE_PARTS - 1);
            let (first, end) = (u32::from(sample.first), u32::from(sample.first) + sample.parts);
            if end <= SAMPLE_PARTS {
                format!("{hash} >= {first} AND {hash} < {end}")
            } else {
                format!("({hash} >= {first} OR {hash} < {})", end - SAMPLE_PARTS)
            }
        });
        filter.into_iter().chain(sample).collect()
    }

    /// The slice's filter on the source's columns of the table itself, not of an alias.
    #[must_use]
    pub fn filter(&self) -> Option<String> {
        self.mapping.filter_sql().map(|filter| format!("({filter})"))
    }
}

/// A key whose hash is cheap.
struct CheapKey {
    function: &'static str,
    value: String,
}

impl CheapKey {
    fn hash(&self, seed: usize) -> String {
        format!("{}({}, {seed})", self.function, self.value)
    }
}

/// The half of a `bigint` that its own hash folds into the other one.
fn upper_half(form: ColumnForm, cast_sql: &str, value: &str) -> Option<String> {
    // The column itself may be a smaller integer on one side, which shifts by 32 to itself.
    (form == ColumnForm::Native && cast_sql == "bigint").then(|| format!("({value}::int8 >> 32)::int4"))
}

/// The function that hashes one value in this form, with a seed, where SQL can call one (PostgreSQL 14 to 18). All are those
/// that `hash_record_extended` calls, on which hash partitioning rests; each gives null for null.
pub(super) fn direct_hash(form: ColumnForm, cast_sql: &str) -> Option<&'static str> {
    match (form, cast_sql) {
        // Integers of equal value have equal hashes, whatever their width.
        (ColumnForm::Native, "bigint") => Some("hashint8extended"),
        (ColumnForm::Native, "integer") => Some("hashint4extended"),
        (ColumnForm::Native, "smallint") => Some("hashint2extended"),
        (ColumnForm::Native, "bpchar") => Some("hashbpcharextended"),
        (ColumnForm::Native, "double precision") => Some("hashfloat8extended"),
        (ColumnForm::Native, "timestamp without time zone") => Some("timestamp_hash_extended"),
        (ColumnForm::Native, "uuid") => Some("uuid_hash_extended"),
        (ColumnForm::Native, "text" | "character varying") | (ColumnForm::Text, _) => {
            Some("hashtextextended")
        }
        (ColumnForm::Native | ColumnForm::Utf8, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{compile, fixture};
    use tokio_postgres::types::Type;

    fn form(columns: &[(&str, &Type)], strict: bool) -> TableForm {
        let columns = columns.iter().map(|(name, of)| fixture::column(name, of)).collect();
        let plan = fixture::plan(vec![("one", vec![fixture::table_rule("t")])]);
        let (mut mappings, problems) = compile(&plan, &fixture::catalog(vec![fixture::table("t", columns)]));
        assert!(problems.is_empty(), "{problems:?}");
        TableForm::new(mappings.remove("one").unwrap().tables.remove(0), strict)
    }

    #[test]
    fn columns_of_a_narrow_table_with_an_integer_key_are_hashed_one_by_one_under_seeds_of_the_key() {
        let columns = [("id", &Type::INT8), ("n", &Type::INT4), ("note", &Type::TEXT), ("doc", &Type::JSON)];
        assert_eq!(
            form(&columns, false).row_hash(Side::Target, false),
            "hashint8extended(t.\"id\", 100) \
             # coalesce(hashint4extended((t.\"id\"::int8 >> 32)::int4, hashint8extended(t.\"id\", 101)), 101) \
             # coalesce(hashint4extended(t.\"n\", hashint8extended(t.\"id\", 102)), 102) \
             # coalesce(hashtextextended(t.\"note\" COLLATE \"C\", hashint8extended(t.\"id\", 103)), 103) \
             # coalesce(hashtextextended(t.\"doc\"::text COLLATE \"C\", hashint8extended(t.\"id\", 104)), 104)"
        );
    }

    #[test]
    fn other_tables_are_hashed_as_records() {
        let record =
            |form: &TableForm| form.row_hash(Side::Target, false).starts_with("hash_record_extended(");
        assert!(record(&form(&[("id", &Type::UUID), ("n", &Type::INT4)], false)), "by the key");
        assert!(record(&form(&[("id", &Type::INT8), ("n", &Type::INT4)], true)), "a strict bigint is text");
        let names: Vec<String> = (0..=SINGLE_COLUMNS_MAX).map(|number| format!("c{number}")).collect();
        let wide: Vec<(&str, &Type)> = names.iter().map(|name| (name.as_str(), &Type::INT4)).collect();
        assert!(record(&form(&wide, false)), "by the width");
        assert!(!record(&form(wide.get(..SINGLE_COLUMNS_MAX).unwrap(), false)));
        let names: Vec<String> = (0..=RECORD_COLUMNS_MAX).map(|number| format!("c{number}")).collect();
        let widest: Vec<(&str, &Type)> = names.iter().map(|name| (name.as_str(), &Type::INT8)).collect();
        let hash = form(&widest, false).row_hash(Side::Target, false);
        let (first, second) = hash.split_once(") # hash_record_extended(ROW(").unwrap();
        assert!(first.ends_with(", hashint8extended(t.\"c0\", 1)"), "{first}");
        assert_eq!(
            second, "t.\"c800\", (t.\"c800\"::int8 >> 32)::int4), hashint8extended(t.\"c0\", 11))",
            "each under a seed of its own"
        );
    }

    #[test]
    fn only_types_with_a_hash_of_their_own_are_hashed_as_they_are() {
        for (cast_sql, loose, strict) in [
            ("integer", "v", "v"),
            ("bigint", "v", r#"v::text COLLATE "C""#),
            ("time with time zone", "v", r#"v::text COLLATE "C""#),
            ("time without time zone", "v", r#"v::text COLLATE "C""#),
            ("timestamp with time zone", "v", r#"v::text COLLATE "C""#),
            ("interval", "v", r#"v::text COLLATE "C""#),
            ("numeric", r#"trim_scale(v)::text COLLATE "C""#, r#"v::text COLLATE "C""#),
            ("jsonb", r#"v::text COLLATE "C""#, r#"v::text COLLATE "C""#),
            ("numeric[]", r#"v::text COLLATE "C""#, r#"v::text COLLATE "C""#),
            ("bpchar", r#"v COLLATE "C""#, r#"textin(bpcharout(v)) COLLATE "C""#),
            ("text", r#"v COLLATE "C""#, r#"v COLLATE "C""#),
            ("json", r#"v::text COLLATE "C""#, r#"v::text COLLATE "C""#),
            (
                "public.\"Status\"",
                r#"CASE WHEN num_nulls(v) = 0 THEN format('%s', v) END COLLATE "C""#,
                r#"CASE WHEN num_nulls(v) = 0 THEN format('%s', v) END COLLATE "C""#,
            ),
        ] {
            for (strictly, expected) in [(false, loose), (true, strict)] {
                assert_eq!(ColumnForm::of(cast_sql, strictly).sql(cast_sql, "v"), expected, "{cast_sql}");
            }
        }
        assert_eq!(ColumnForm::Utf8.sql("text", "v"), "convert_to(v::text, 'UTF8')");
    }
}
