//! Where the old tables of the monolith stand that `retire` has moved away, and by which names everything else knows them.
//!
//! A quarantine schema holds the tables of one slice that came from one schema, so that nothing in it, no index, sequence or type either, can
//! have another's name. Whoever reads names of relations from the server's catalogs, to compare them with a plan's, translates them
//! here; what is sent to the server says [`TableName::sql`].

use std::collections::BTreeMap;

use tokio_postgres::Error;

use super::ask::Ask;
use crate::name::{TableName, quote_ident};

/// How the name of each quarantine schema begins. Only where a name from the catalogs begins so is it asked what that schema holds.
pub const PREFIX: &str = "strangler_quarantine";

/// Bytes of a slice's name in the name of its quarantine schema, which a number may follow.
const SLICE_BYTES: usize = 32;

/// A quarantine schema.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quarantine {
    /// The slice whose tables stand in it.
    pub slice: String,
    /// The schema that they came from.
    pub schema: String,
    /// Its own name.
    pub quarantine: String,
}

/// The quarantine schemas of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places(pub Vec<Quarantine>);

impl Places {
    /// The name by which a relation is known that the server calls so.
    #[must_use]
    pub fn named(&self, schema: impl Into<String>, name: impl Into<String>) -> TableName {
        self.translated(TableName::new(schema, name))
    }

    /// The same of a name that the server gave.
    #[must_use]
    pub fn translated(&self, raw: TableName) -> TableName {
        match self.0.iter().find(|place| place.quarantine == raw.schema) {
            Some(place) => TableName::new(&place.schema, raw.name).standing_in(&place.quarantine),
            None => raw,
        }
    }

    /// A definition that the server prints now, as it printed it before the move.
    #[must_use]
    pub fn said(&self, text: String) -> String {
        self.0.iter().fold(text, |text, place| {
            let [from, to] = [&place.quarantine, &place.schema].map(|schema| as_printed(schema) + ".");
            replaced(text, &from, &to)
        })
    }

    /// A slice's table, by the plan's name, with the place where it stands.
    #[must_use]
    pub fn located(&self, slice: &str, table: &TableName) -> TableName {
        let of = |place: &&Quarantine| place.slice == slice && place.schema == table.schema;
        let place = self.0.iter().find(of).map_or(&table.schema, |place| &place.quarantine);
        table.clone().standing_in(place)
    }
}

/// Tables of which a catalog is asked by schema and name, where they stand.
#[derive(Debug)]
pub struct Asked<'a>(BTreeMap<(&'a str, &'a str), &'a TableName>);

impl<'a> Asked<'a> {
    /// These tables.
    #[must_use]
    pub fn of(tables: impl Iterator<Item = &'a TableName>) -> Self {
        Self(tables.map(|table| ((table.place_schema(), table.name.as_str()), table)).collect())
    }

    /// Schemas and names for a statement's two arrays, in one order.
    #[must_use]
    pub fn arrays(&self) -> (Vec<&'a str>, Vec<&'a str>) {
        self.0.keys().copied().unzip()
    }

    /// The table that the server calls so, by the name under which it was asked for.
    #[must_use]
    pub fn table(&self, schema: &str, name: &str) -> TableName {
        self.0.get(&(schema, name)).map_or_else(|| TableName::new(schema, name), |table| (*table).clone())
    }
}

/// A name for the quarantine schema of a slice that nobody has: the slice's own with a number where it is needed.
#[must_use]
pub fn new_name(slice: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let cut = (0..=SLICE_BYTES.min(slice.len())).rev().find(|at| slice.is_char_boundary(*at)).unwrap_or(0);
    let stem = format!("{PREFIX}_{}", slice.get(..cut).unwrap_or_default());
    let numbered = (2_u32..).map(|number| format!("{stem}_{number}"));
    std::iter::once(stem.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(stem)
}

/// The quarantine schemas of a database; none where none was ever provisioned, or an earlier version did.
///
/// # Errors
/// What the server said.
pub async fn read(client: &impl Ask) -> Result<Places, Error> {
    let there = "SELECT to_regclass('strangler.quarantine') IS NOT NULL";
    if !client.ask_one(there, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(Places::default());
    }
    let sql = "SELECT slice, schema_name, quarantine FROM strangler.quarantine ORDER BY 1, 2";
    let rows = client.ask(sql, &[]).await?;
    let place = |row: &tokio_postgres::Row| {
        Ok(Quarantine { slice: row.try_get(0)?, schema: row.try_get(1)?, quarantine: row.try_get(2)? })
    };
    rows.iter().map(place).collect::<Result<_, Error>>().map(Places)
}

/// The same where one of these schemas may be one; else nothing is asked.
///
/// # Errors
/// What the server said.
pub async fn among<'a>(
    client: &impl Ask,
    mut schemas: impl Iterator<Item = &'a str>,
) -> Result<Places, Error> {
    if schemas.any(|schema| schema.starts_with(PREFIX)) { read(client).await } else { Ok(Places::default()) }
}

/// A name as `quote_ident()` of the server prints it, but for key words, which no schema of ours is.
fn as_printed(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && name.chars().all(plain) { name.to_owned() } else { quote_ident(name) }
}

/// `from` stands at the beginning of a name.
fn replaced(text: String, from: &str, to: &str) -> String {
    if !text.contains(from) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once(from) {
        let inside = before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"' || c == '.');
        out.push_str(before);
        out.push_str(if inside { from } else { to });
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        let place = |slice: &str, schema: &str, quarantine: &str| Quarantine {
            slice: slice.into(),
            schema: schema.into(),
            quarantine: quarantine.into(),
        };
        Places(vec![
            place("one", "public", "strangler_quarantine_one"),
            place("one", "sales", "strangler_quarantine_one_2"),
            place("two", "public", "strangler_quarantine_two"),
        ])
    }

    #[test]
    fn a_relation_in_quarantine_is_known_by_the_name_that_it_had() {
        let found = places().named("strangler_quarantine_one_2", "Orders");
        assert_eq!(found, TableName::new("sales", "Orders"));
        assert_eq!(found.sql(), "\"strangler_quarantine_one_2\".\"Orders\"");
        let other = places().named("public", "Orders");
        assert_eq!(other.sql(), "\"public\".\"Orders\"", "one that came since under the old name");
    }

    #[test]
    fn a_table_is_located_by_its_slice() {
        let at = |slice: &str, schema: &str| {
            places().located(slice, &TableName::new(schema, "t")).place_schema().to_owned()
        };
        assert_eq!(at("one", "public"), "strangler_quarantine_one");
        assert_eq!(at("two", "public"), "strangler_quarantine_two");
        assert_eq!(at("two", "sales"), "sales");
        let back =
            places().located("two", &TableName::new("sales", "t").standing_in("strangler_quarantine_x"));
        assert_eq!(back.place_schema(), "sales", "it was moved back");
    }

    #[test]
    fn what_was_asked_where_it_stands_is_known_by_its_name() {
        let moved = TableName::new("sales", "t").standing_in("strangler_quarantine_x");
        let stays = TableName::new("public", "t");
        let asked = Asked::of([&moved, &stays].into_iter());
        assert_eq!(asked.arrays(), (vec!["public", "strangler_quarantine_x"], vec!["t", "t"]));
        assert_eq!(asked.table("strangler_quarantine_x", "t").sql(), moved.sql());
        assert_eq!(asked.table("strangler_quarantine_x", "t"), moved);
        assert_eq!(asked.table("public", "t"), stays);
    }

    #[test]
    fn a_schema_is_called_after_its_slice_and_never_as_another_one() {
        assert_eq!(new_name("one", |_| false), "strangler_quarantine_one");
        let taken = ["strangler_quarantine_one", "strangler_quarantine_one_2"];
        assert_eq!(new_name("one", |name| taken.contains(&name)), "strangler_quarantine_one_3");
        let long = new_name(&"ä".repeat(40), |name| !name.ends_with("_12"));
        assert!(long.len() <= 63 && long.ends_with("_12"), "{long}");
    }

    #[test]
    fn definitions_say_what_they_said_before_the_move() {
        let text = "CREATE INDEX i ON strangler_quarantine_a.\"Orders\" USING btree (x)".to_owned();
        let says = replaced(text, "strangler_quarantine_a.", "public.");
        assert_eq!(says, "CREATE INDEX i ON public.\"Orders\" USING btree (x)");
        let both = "f(strangler_quarantine_one.a, strangler_quarantine_one_2.b)".to_owned();
        assert_eq!(places().said(both), "f(public.a, sales.b)");
        let default = "nextval('strangler_quarantine_a.ids'::regclass)".to_owned();
        assert_eq!(replaced(default, "strangler_quarantine_a.", "\"S\"."), "nextval('\"S\".ids'::regclass)");
        let other = "my_strangler_quarantine_a.f(strangler_quarantine_a.g)".to_owned();
        assert_eq!(replaced(other, "strangler_quarantine_a.", "s."), "my_strangler_quarantine_a.f(s.g)");
        assert_eq!(
            (as_printed("a_1"), as_printed("Sales"), as_printed("1a")),
            ("a_1".into(), "\"Sales\"".into(), "\"1a\"".into())
        );
    }
}
