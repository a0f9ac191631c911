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
    /// Its rows are in partitions, which log old rows under identities of their own.
    partitioned: bool,
    /// The table's own identity is FULL.
    full: bool,
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
            mapping.others_dropped
                || mapping.column(name).is_some()
                || mapping.dropped.contains(name)
                || mapping.generated.iter().any(|column| column.source == *name)
        };
        let generated = mapping.generated.iter().map(|column| &column.source);
        let ordinary = generated.filter(|name| relation.columns.iter().any(|found| found.name == **name));
        // The service goes on computing it.
        changes.extend(ordinary.map(|name| format!("column {name} is not generated any more")));
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
            partitioned: mapping.partitioned,
            full: relation.replica_identity == b'f',
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
                // A value that was left out for its size is not NULL, so a partition's old row does not hold it.
                let held = old.tuple().get(*place).filter(|value| **value != Value::Null);
                *value = held.cloned().unwrap_or(Value::Unchanged);
            }
        }
        row
    }

    /// Whether the old row of an update or delete shows that a partition logged less than its table's identity asks for. An
    /// update that only lacks an old row shows nothing, unless the identity is FULL: then there has to be one.
    #[must_use]
    pub fn lacks_identity(&self, old: Option<&OldTuple>) -> bool {
        if !self.partitioned {
            return false;
        }
        let Some(old) = old else { return self.full };
        let is_null = |row: &Tuple, index: &usize| row.get(*index) == Some(&Value::Null);
        let row = self.project(old.tuple());
        let filtered =
            || self.filter.iter().map(|(index, _)| index).filter(|index| !self.key.contains(index));
        if self.key.iter().any(|index| is_null(&row, index)) {
            return true;
        }
        if !self.full {
            // Columns of an index that is an identity are NOT NULL.
            return filtered().any(|index| is_null(&row, index));
        }
        // The filter's columns may be NULL there; a whole row of which nothing but the key is known is none.
        let known = old.tuple().iter().filter(|value| **value != Value::Null).count();
        filtered().next().is_some() && known <= self.key.len()
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
/// filter, would look like a row that stays. Partitions log under identities of their own, which this doesn't show: see
/// [`RowReader::lacks_identity`], and the watch over the catalogs.
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

#[cfg(test)]
mod tests {
    use tokio_postgres::types::Type;

    use super::*;
    use crate::change::RelationColumn;
    use crate::mapping::compile;
    use crate::mapping::fixture::{name, plan, retail, table_rule};

    /// A reader of `Orders (Id, Region)` with a filter on the region, under this identity of the root.
    fn reader(identity: u8, partitioned: bool) -> RowReader {
        let mut rule = table_rule("Orders");
        rule.filter.insert("Region".into(), vec!["EU".into()]);
        let mut catalog = retail();
        let orders = catalog.tables.get_mut(&name("Orders")).unwrap();
        orders.replica_identity = crate::catalog::ReplicaIdentity::Full;
        let (mappings, _) = compile(&plan(vec![("ordering", vec![rule])]), &catalog);
        let mut mapping = mappings["ordering"].tables[0].clone();
        mapping.partitioned = partitioned;
        let column = |name: &str, of: &Type| RelationColumn {
            key: true,
            name: name.into(),
            type_oid: of.oid(),
            type_modifier: -1,
        };
        let relation = Relation {
            oid: 1,
            schema: "public".into(),
            name: "Orders".into(),
            replica_identity: identity,
            columns: vec![column("Id", &Type::INT8), column("Region", &Type::TEXT)],
        };
        RowReader::new(&relation, &mapping).unwrap()
    }

    #[test]
    fn a_partitions_old_row_that_holds_less_than_the_tables_identity_is_told() {
        let only_key = || OldTuple::Key(vec![Value::text("1"), Value::Null]);
        let whole = || OldTuple::Key(vec![Value::text("1"), Value::text("US")]);
        let by_index = reader(b'i', true);
        assert!(by_index.lacks_identity(Some(&only_key())));
        assert!(by_index.lacks_identity(Some(&OldTuple::Key(vec![Value::Null, Value::text("EU")]))));
        assert!(!by_index.lacks_identity(Some(&whole())));
        assert!(!by_index.lacks_identity(None), "nothing of the identity changed, or so it says");
        let full = reader(b'f', true);
        assert!(full.lacks_identity(None), "under FULL each update has its old row");
        assert!(full.lacks_identity(Some(&only_key())));
        assert!(!full.lacks_identity(Some(&whole())));
        assert!(!reader(b'i', false).lacks_identity(Some(&only_key())), "the relation tells of plain tables");
    }

    #[test]
    fn a_value_that_was_left_out_is_not_taken_for_null_from_an_old_row_without_it() {
        let full = reader(b'f', true);
        let old = OldTuple::Full(vec![Value::text("1"), Value::Null]);
        let row = full.project_new(&vec![Value::text("1"), Value::Unchanged], Some(&old));
        assert_eq!(row[1], Value::Unchanged);
    }
}
