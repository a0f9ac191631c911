//! Names of schemas, tables and columns, and the only place that quotes them for SQL.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::iter::Peekable;
use std::str::Chars;

use serde::{Deserialize, Serialize};

/// A table (or other relation) in one database, by its exact, case-sensitive names.
///
/// An old table that `retire` has moved into a quarantine schema keeps its name here: the plan, the journals and the ledger know it by that, and
/// two names are the same whatever is known of the place. Only [`TableName::sql`] leads to where it stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Schema, e.g. `public`.
    pub schema: String,
    /// Relation name inside the schema.
    pub name: String,
    #[serde(skip)]
    place: Place,
}

/// The schema in which a relation stands, where that is not the one of its name. No part of what tells one name from another.
#[derive(Clone, Default)]
struct Place(Option<Box<str>>);

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// A plan wrote a table name that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing between the dots or quotes.
    #[error("{text:?} has an empty part; write schema.table, or table for the schema public")]
    Empty {
        /// What was written.
        text: String,
    },
    /// More than one unquoted dot.
    #[error("{text:?} has more than one dot; put a name that holds a dot in double quotes: schema.\"a.b\"")]
    TooManyParts {
        /// What was written.
        text: String,
    },
    /// An inner double quote that is not closed.
    #[error("{text:?} opens a double quote that it does not close")]
    Unclosed {
        /// What was written.
        text: String,
    },
    /// PostgreSQL cuts names after 63 bytes, so a longer one names something else.
    #[error("{text:?} has a part of more than 63 bytes, the longest name that PostgreSQL keeps")]
    TooLong {
        /// What was written.
        text: String,
    },
    /// A zero byte cannot be part of a name.
    #[error("{text:?} holds a zero byte")]
    ZeroByte {
        /// What was written.
        text: String,
    },
}

impl TableName {
    /// A table by its parts, taken as they are.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into(), place: Place::default() }
    }

    /// The same name of a relation that stands in this schema.
    #[must_use]
    pub fn standing_in(self, schema: &str) -> Self {
        let place = (schema != self.schema).then(|| schema.into());
        Self { place: Place(place), ..self }
    }

    /// The same name of a relation that stands where the name says: for what is written for another database.
    #[must_use]
    pub fn unmoved(&self) -> Self {
        Self::new(&self.schema, &self.name)
    }

    /// The schema in which it stands.
    #[must_use]
    pub fn place_schema(&self) -> &str {
        self.place.0.as_deref().unwrap_or(&self.schema)
    }

    /// Whether a relation that the server calls so is this one. One that was moved is still called by its own name in what was
    /// written before that.
    #[must_use]
    pub fn is_called(&self, schema: &str, name: &str) -> bool {
        self.name == name && (self.schema == schema || self.place_schema() == schema)
    }

    /// Reads `table`, `schema.table`, or either part in inner double quotes (`""` stands for one quote).
    /// The case is kept as written: plan files use the exact names of the catalog.
    ///
    /// # Errors
    /// [`NameError`], which quotes the text.
    pub fn parse(text: &str, default_schema: &str) -> Result<Self, NameError> {
        let mut parts = split_parts(text)?;
        let last = parts.pop();
        match (parts.pop(), last, parts.is_empty()) {
            (None, Some(name), true) => Ok(Self::new(default_schema, name)),
            (Some(schema), Some(name), true) => Ok(Self::new(schema, name)),
            (_, None, _) => Err(NameError::Empty { text: text.to_owned() }),
            (_, Some(_), _) => Err(NameError::TooManyParts { text: text.to_owned() }),
        }
    }

    /// `"schema"."table"` of where it stands, safe to stand in SQL text.
    #[must_use]
    pub fn sql(&self) -> String {
        format!("{}.{}", quote_ident(self.place_schema()), quote_ident(&self.name))
    }
}

/// As the plan would write it: without the schema where that is `public`.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |s: &str| if s.contains(['.', '"']) { quote_ident(s) } else { s.to_owned() };
        if self.schema == "public" {
            f.write_str(&part(&self.name))
        } else {
            write!(f, "{}.{}", part(&self.schema), part(&self.name))
        }
    }
}

impl fmt::Debug for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sql())
    }
}

fn split_parts(text: &str) -> Result<Vec<String>, NameError> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(part) = parts.last_mut() else { break };
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            '\0' => return Err(NameError::ZeroByte { text: text.to_owned() }),
            other => part.push(other),
        }
    }
    if quoted {
        return Err(NameError::Unclosed { text: text.to_owned() });
    }
    if parts.iter().any(String::is_empty) {
        return Err(NameError::Empty { text: text.to_owned() });
    }
    if parts.iter().any(|part| part.len() > 63) {
        return Err(NameError::TooLong { text: text.to_owned() });
    }
    Ok(parts)
}

/// An identifier in double quotes, always, so that no name can be read as anything else
/// (PostgreSQL documentation, section 4.1.1).
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string constant. Uses the `E''` form when the text holds a backslash, so that the meaning does not depend
/// on `standard_conforming_strings` (PostgreSQL documentation, section 4.1.2).
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let body = text.replace('\'', "''");
    if body.contains('\\') { format!("E'{}'", body.replace('\\', "\\\\")) } else { format!("'{body}'") }
}

/// Several identifiers, quoted, with commas between.
pub fn quote_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quote_ident).collect::<Vec<_>>().join(", ")
}

/// Identifiers found in a text, each with the one before it when a dot joins them.
pub type Identifiers = BTreeSet<(Option<String>, String)>;

/// The identifiers of an SQL text as PostgreSQL would read them: unquoted ones in lower case, quoted ones as they
/// are. Strings are searched too, since dynamic SQL stands in them, and so are comments: it errs on the side of
/// finding too much.
#[must_use]
pub fn identifiers_in(text: &str) -> Identifiers {
    let mut found = Identifiers::new();
    let mut before: Option<String> = None;
    let mut joined = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let name = if c == '"' {
            quoted_rest(&mut chars)
        } else if c.is_alphabetic() || c == '_' {
            let mut name = c.to_lowercase().to_string();
            while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_' || *c == '$') {
                name.extend(c.to_lowercase());
            }
            name
        } else {
            joined = c == '.' && before.is_some();
            if !joined {
                before = None;
            }
            continue;
        };
        found.insert((if joined { before.take() } else { None }, name.clone()));
        before = Some(name);
        joined = false;
    }
    found
}

/// What stands up to the closing double quote.
fn quoted_rest(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    while let Some(c) = chars.next() {
        match c {
            '"' if chars.peek() == Some(&'"') => {
                chars.next();
                name.push('"');
            }
            '"' => break,
            other => name.push(other),
        }
    }
    name
}

/// Whether SQL that has these identifiers names a table. One that gives a schema names the table only in that one; without a schema
/// it may be any.
#[must_use]
pub fn is_named(table: &TableName, named: &Identifiers) -> bool {
    named.contains(&(Some(table.schema.clone()), table.name.clone()))
        || named.contains(&(None, table.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_names_are_read_with_exact_case() {
        let parse = |text| TableName::parse(text, "public");
        assert_eq!(parse("Products"), Ok(TableName::new("public", "Products")));
        assert_eq!(parse("sales.Orders"), Ok(TableName::new("sales", "Orders")));
        assert_eq!(parse("\"a.b\".\"c\"\"d\""), Ok(TableName::new("a.b", "c\"d")));
        assert_eq!(parse("a b"), Ok(TableName::new("public", "a b")));
    }

    #[test]
    fn unreadable_names_are_refused() {
        for text in ["", ".", "a.", ".b", "a.b.c", "\"a", "a\0b", &"x".repeat(64)] {
            assert!(TableName::parse(text, "public").is_err(), "{text}");
        }
    }

    #[test]
    fn shown_names_are_read_back() {
        for name in [("public", "Orders"), ("s", "t"), ("a.b", "c\"d"), ("public", "x.y")] {
            let table = TableName::new(name.0, name.1);
            assert_eq!(TableName::parse(&table.to_string(), "public"), Ok(table));
        }
    }

    #[test]
    fn a_moved_table_is_the_same_by_name_and_is_led_to_where_it_stands() {
        let orders = TableName::new("sales", "Orders");
        let moved = orders.clone().standing_in("away");
        assert_eq!((&moved, moved.to_string()), (&orders, "sales.Orders".to_owned()));
        assert_eq!(moved.cmp(&orders), Ordering::Equal);
        assert_eq!(moved.sql(), "\"away\".\"Orders\"");
        assert!(moved.is_called("away", "Orders") && moved.is_called("sales", "Orders"));
        assert!(!moved.is_called("public", "Orders") && !orders.is_called("away", "Orders"));
        assert_eq!(moved.unmoved().sql(), orders.sql());
        assert_eq!(moved.standing_in("sales").sql(), orders.sql());
    }

    #[test]
    fn quoting_survives_quotes_and_backslashes() {
        assert_eq!(quote_ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
    }

    #[test]
    fn identifiers_are_found_as_postgresql_reads_them() {
        let found = identifiers_in("SELECT Lower(o.\"Na\"\"me\"), 1 FROM s.t");
        let has =
            |before: Option<&str>, name: &str| found.contains(&(before.map(str::to_owned), name.to_owned()));
        assert!(has(None, "lower") && has(Some("o"), "Na\"me") && has(Some("s"), "t"));
        assert!(!has(None, "t") && !has(None, "Lower"));
        for text in ["", "\"", "a.", ".a", "\"a\".\"", "é.ü", "a..b", "$1$"] {
            assert!(identifiers_in(text).len() <= 3, "{text}");
        }
    }
}
