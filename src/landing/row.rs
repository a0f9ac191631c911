//! From the tuples of one relation to rows of the target: which value goes where, what the key is, and whether the
//! filter takes the row.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;

use super::key::Key;
use crate::change::{OldTuple, Relation, Tuple, Value};
use crate::mapping::TableMapping;

/// The stream describes the table otherwise than the mapping that was provisioned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table} changed its shape: {changes}")]
pub struct ShapeDrift {
    /// The monolith's table, as a plan writes it.
    pub table: String,
    /// What changed, in words.
    pub changes: String,
    /// Columns that the mapping neither carries nor leaves behind, when nothing else changed.
    pub only_new: Vec<String>,
}

/// A tuple lacks a value that identifies its row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an event on {table} carries no value for the key column {column}")]
pub struct KeyMissing {
    /// The monolith's table.
    pub table: String,
    /// Its key column.
    pub column: String,
}

/// Reads tuples of one relation, as the stream described it, through one table's mapping.
#[derive(Debug)]
pub struct RowReader {
    table: String,
    /// For each mapped column, its place in the relation's tuples.
    places: Vec<usize>,
    /// For each mapped column, its name, to name what is missing.
    names: Vec<String>,
    /// Mapped columns that form the key.
    key: Vec<usize>,
    /// Mapped columns with the values that the filter takes.
    filter: Vec<(usize, HashSet<Bytes>)>,
}

impl RowReader {
    /// Joins a relation with the mapping of its table.
    ///
    /// # Errors
    /// [`ShapeDrift`] when a mapped column is missing or has another type, or when a column appeared that the
    /// mapping neither carries nor leaves behind.
    pub fn new(relation: &Relation, mapping: &TableMapping) -> Result<Self, ShapeDrift> {
        let mut changes = Vec::new();
        let mut places = Vec::with_capacity(mapping.columns.len());
        for column in &mapping.columns {
            let place = relation.columns.iter().position(|candidate| candidate.name == column.source);
            match place.and_then(|place| Some((place, relation.columns.get(place)?))) {
                None => changes.push(format!("column {} is gone", column.source)),
                Some((_, found)) if found.type_oid != column.source_type_oid => {
                    changes.push(format!("column {} has another type", column.source));
                }
                Some((place, _)) => places.push(place),
            }
        }
        // The catalog's order is the mapping's. A column that was dropped and added again under its name and type, with
        // other values in the old rows and no event for them, has moved to the end.
        if changes.is_empty() && !places.is_sorted() {
            changes.push("the order of its columns, so one was dropped and added again".to_owned());
        }
        changes.extend(lost_identity(relation, mapping));
        let known = |name: &String| {
            mapping.others_dropped || mapping.column(name).is_some() || mapping.dropped.contains(name)
        };
        let names = relation.columns.iter().map(|found| &found.name);
        let new: Vec<String> = names.filter(|name| !known(name)).cloned().collect();
        let only_new = if changes.is_empty() { new.clone() } else { Vec::new() };
        changes.extend(new.iter().map(|name| format!("column {name} is new")));
        if !changes.is_empty() {
            let table = mapping.source.to_string();
            return Err(ShapeDrift { table, changes: changes.join(", "), only_new });
        }
        let value = |text: &String| Bytes::from(text.clone());
        Ok(Self {
            table: mapping.source.to_string(),
            places,
            names: mapping.columns.iter().map(|column| column.source.clone()).collect(),
            key: mapping.key.clone(),
            filter: mapping
                .filter
                .iter()
                .map(|term| (term.column, term.values.iter().map(value).collect()))
                .collect(),
        })
    }

    /// The mapped columns of a tuple, in mapping order.
    #[must_use]
    pub fn project(&self, tuple: &Tuple) -> Tuple {
        self.places.iter().map(|place| tuple.get(*place).cloned().unwrap_or(Value::Null)).collect()
    }

    /// The mapped columns of a new tuple, with unchanged values taken from the old tuple where it holds them: all of
    /// them under REPLICA IDENTITY FULL, those of the identity otherwise.
    #[must_use]
    pub fn project_new(&self, new: &Tuple, old: Option<&OldTuple>) -> Tuple {
        let mut row = self.project(new);
        let Some(old) = old else { return row };
        for (index, (value, place)) in row.iter_mut().zip(&self.places).enumerate() {
            let held = matches!(old, OldTuple::Full(_)) || self.key.contains(&index);
            if *value == Value::Unchanged && held {
                *value = old.tuple().get(*place).cloned().unwrap_or(Value::Unchanged);
            }
        }
        row
    }

    /// The key of a projected row.
    ///
    /// # Errors
    /// [`KeyMissing`].
    pub fn key(&self, row: &Tuple) -> Result<Key, KeyMissing> {
        let part = |index: &usize| match row.get(*index) {
            Some(Value::Text(text)) => Ok(text.clone()),
            Some(Value::Null | Value::Unchanged) | None => Err(KeyMissing {
                table: self.table.clone(),
                column: self.names.get(*index).cloned().unwrap_or_default(),
            }),
        };
        self.key.iter().map(part).collect::<Result<Vec<_>, _>>().map(Key::new)
    }

    /// Whether the filter takes a projected row. Its columns belong to the replica identity, so that old keys
    /// carry them.
    #[must_use]
    pub fn takes(&self, row: &Tuple) -> bool {
        self.filter.iter().all(|(index, values)| match row.get(*index) {
            Some(Value::Text(text)) => values.contains(text),
            Some(Value::Null | Value::Unchanged) | None => false,
        })
    }
}

/// Key and filter columns that old tuples don't carry any more: without them a changed key, or a row that leaves the
/// filter, would look like a row that stays. Partitions log under identities of their own, which this doesn't show.
fn lost_identity(relation: &Relation, mapping: &TableMapping) -> Vec<String> {
    if mapping.partitioned {
        return Vec::new();
    }
    let filtered = mapping.filter.iter().filter_map(|term| mapping.columns.get(term.column));
    let needed: BTreeSet<&str> =
        mapping.key_columns().chain(filtered).map(|column| column.source.as_str()).collect();
    let lost = |name: &&str| relation.columns.iter().any(|column| column.name == *name && !column.key);
    let words = |name| format!("column {name} has left the replica identity");
    needed.into_iter().filter(lost).map(words).collect()
}
