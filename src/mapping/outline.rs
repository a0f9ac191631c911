//! What a mapping says, in a form that is kept beside its hash: where the hash is another one later, the two forms say what
//! changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{SliceMapping, TableMapping};
use crate::plan::canonical::Canonical;

/// What two mappings are compared by, for who has no form of the earlier one.
pub const COMPARED: &str = "what counts is the slice's name and service, its tables under both names and, of each, the columns \
     under both names with their types, the key, the filter, and the foreign keys across the cut";

/// Changes that are named; the rest is counted.
const NAMED: usize = 10;

/// The tables of a slice by the monolith's names. Holds no value of a row: filters are hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Outline(BTreeMap<String, Table>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    /// The service's name.
    target: String,
    /// By the monolith's name: the service's, and the type.
    columns: BTreeMap<String, (String, String)>,
    key: Vec<String>,
    filter: String,
    references: String,
}

impl Outline {
    /// The form of a mapping of the way there.
    #[must_use]
    pub fn of(slice: &SliceMapping) -> Self {
        Self(slice.tables.iter().map(|table| (table.source.to_string(), Table::of(table))).collect())
    }

    /// What is another thing in `now`, a clause each, the first ones. Empty where the slice has the same tables.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let mut changes: Vec<String> =
            names.into_iter().flat_map(|name| changes(name, self.0.get(name), now.0.get(name))).collect();
        let more = changes.len().saturating_sub(NAMED);
        if more > 0 {
            changes.truncate(NAMED);
            changes.push(format!("and {more} more"));
        }
        changes
    }
}

impl Table {
    fn of(table: &TableMapping) -> Self {
        let source = |index: usize| table.columns.get(index).map_or("", |column| column.source.as_str());
        let columns = table
            .columns
            .iter()
            .map(|column| (column.source.clone(), (column.target.clone(), column.type_sql.clone())));
        let (mut filter, mut references) = (Canonical::default(), Canonical::default());
        let mut terms: Vec<_> = table.filter.iter().map(|term| (source(term.column), &term.values)).collect();
        terms.sort();
        filter.list(&terms, |text, (column, values)| {
            text.word(column);
            text.list(values, |text, value| text.word(value));
        });
        references.references(table);
        Self {
            target: table.target.to_string(),
            columns: columns.collect(),
            key: table.key.iter().map(|index| source(*index).to_owned()).collect(),
            filter: filter.hash(),
            references: references.hash(),
        }
    }
}

fn changes(name: &str, then: Option<&Table>, now: Option<&Table>) -> Vec<String> {
    let (Some(then), Some(now)) = (then, now) else {
        let word = if then.is_some() { "left the slice" } else { "came to the slice" };
        return vec![format!("table {name} {word}")];
    };
    let mut found = Vec::new();
    if then.target != now.target {
        found.push(format!("table {name} goes to {}, and went to {}", now.target, then.target));
    }
    let columns: BTreeSet<&String> = then.columns.keys().chain(now.columns.keys()).collect();
    for column in columns {
        let what = match (then.columns.get(column), now.columns.get(column)) {
            (None, _) => "is carried over, and was not".to_owned(),
            (_, None) => "is not carried over, and was".to_owned(),
            (Some((was, _)), Some((is, _))) if was != is => format!("goes to {is}, and went to {was}"),
            (Some((_, was)), Some((_, is))) if was != is => format!("is {is}, and was {was}"),
            _ => continue,
        };
        found.push(format!("column {column} of table {name} {what}"));
    }
    let parts = [
        ("key", then.key == now.key),
        ("filter", then.filter == now.filter),
        ("foreign keys across the cut", then.references == now.references),
    ];
    let others = parts.iter().filter(|(_, same)| !same);
    found.extend(others.map(|(part, _)| format!("the {part} of table {name} changed")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(change: impl FnOnce(&mut BTreeMap<String, Table>)) -> Outline {
        let columns = [("id", "int"), ("note", "text")];
        let columns = columns.map(|(name, kind)| (name.to_owned(), (name.to_owned(), kind.to_owned())));
        let table = Table {
            target: "sales.orders".to_owned(),
            columns: columns.into(),
            key: vec!["id".to_owned()],
            filter: "f".to_owned(),
            references: "r".to_owned(),
        };
        let mut tables = BTreeMap::from([("Orders".to_owned(), table)]);
        change(&mut tables);
        Outline(tables)
    }

    fn orders(change: impl FnOnce(&mut Table)) -> Vec<String> {
        let now = outline(|tables| change(tables.get_mut("Orders").unwrap()));
        outline(|_| ()).changes(&now)
    }

    #[test]
    fn each_change_names_its_table_and_column() {
        let column = |target: &str, kind: &str| (target.to_owned(), kind.to_owned());
        assert_eq!(orders(|_| ()), [] as [&str; 0]);
        assert_eq!(
            orders(|table| drop(table.columns.insert("id".to_owned(), column("id", "bigint")))),
            ["column id of table Orders is bigint, and was int"]
        );
        assert_eq!(
            orders(|table| drop(table.columns.insert("note".to_owned(), column("remark", "text")))),
            ["column note of table Orders goes to remark, and went to note"]
        );
        assert_eq!(
            orders(|table| {
                table.columns.remove("note");
                table.columns.insert("rest".to_owned(), column("rest", "text"));
                table.filter = "g".to_owned();
            }),
            [
                "column note of table Orders is not carried over, and was",
                "column rest of table Orders is carried over, and was not",
                "the filter of table Orders changed"
            ]
        );
        let other = outline(|tables| {
            let table = tables.remove("Orders").unwrap();
            tables.insert("Lines".to_owned(), table);
        });
        let both = ["table Lines came to the slice", "table Orders left the slice"];
        assert_eq!(outline(|_| ()).changes(&other), both);
        let many = outline(|tables| {
            tables.extend((0..12).map(|n| (format!("t{n}"), tables["Orders"].clone())).collect::<Vec<_>>());
        });
        assert_eq!(outline(|_| ()).changes(&many).last().unwrap(), "and 2 more");
    }
}
