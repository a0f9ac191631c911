//! Coalescing: a run of row operations on one table becomes one set of deletes, updates and inserts.
//!
//! Operations are merged per *row chain*: the key that a row had on the target before the run (its origin, if it was
//! there), the key that it has after it (if it still is), and its merged columns. A delete followed by an insert of
//! the same key stays two chains. Executed as deletes, then updates, then inserts, the sets either give exactly what
//! the operations one by one would have given, or meet a constraint; then the run is replayed in its own order.

use std::collections::{HashMap, HashSet};

use super::key::Key;
use crate::change::{Tuple, Value};

/// One operation on a target row, after the landing rule.
#[derive(Debug, Clone)]
pub enum RowOperation {
    /// A row that is not there.
    Insert {
        /// Its key.
        key: Key,
        /// All its columns.
        row: Tuple,
    },
    /// A row that is there.
    Update {
        /// Key before.
        old: Key,
        /// Key after.
        new: Key,
        /// Columns; `Unchanged` keeps what the target holds.
        row: Tuple,
    },
    /// A row that is there.
    Delete {
        /// Its key.
        key: Key,
    },
}

impl RowOperation {
    /// The keys whose rows it writes: one, or both ends of a key change.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        let (first, second) = match self {
            Self::Insert { key, .. } | Self::Delete { key } => (key, None),
            Self::Update { old, new, .. } => (old, Some(new).filter(|new| *new != old)),
        };
        std::iter::once(first).chain(second)
    }
}

/// The operations contradict what earlier ones of the same run made of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// An insert, or a key change, onto a key that holds a row.
    #[error("a row arrives on a key that already holds one")]
    KeyTaken,
    /// An update or delete of a key that holds no row.
    #[error("a change arrives for a key that holds no row")]
    KeyGone,
}

/// An update of a row that was on the target before the run.
#[derive(Debug, Clone)]
pub struct SetUpdate {
    /// Key before.
    pub origin: Key,
    /// Key after; the same unless it changed.
    pub key: Key,
    /// Merged columns.
    pub row: Tuple,
}

/// What a run of operations comes to.
#[derive(Debug, Default)]
pub struct Sets {
    /// Rows to delete, executed first.
    pub deletes: Vec<Key>,
    /// Rows to update, executed next.
    pub updates: Vec<SetUpdate>,
    /// Rows to insert, executed last.
    pub inserts: Vec<Tuple>,
    /// Updates set the key's columns also where the key is the same: equal keys may be spelled otherwise (`1.5` and `1.50`, `A`
    /// and `a` where the collation says so).
    pub respell_keys: bool,
}

#[derive(Debug)]
struct Chain {
    origin: Option<Key>,
    end: Option<Key>,
    row: Tuple,
}

/// Coalesces a run. `rows_are_whole` says that every column of the target table is mapped, so that a changed key may
/// be written as delete and insert.
///
/// # Errors
/// [`Contradiction`]: the operations can't have happened on what the target holds.
pub fn coalesce(operations: &[RowOperation], rows_are_whole: bool) -> Result<Sets, Contradiction> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut held: HashMap<&Key, usize> = HashMap::new();
    let mut vacated: HashSet<&Key> = HashSet::new();
    for operation in operations {
        match operation {
            RowOperation::Insert { key, row } => {
                if held.contains_key(key) {
                    return Err(Contradiction::KeyTaken);
                }
                vacated.remove(key);
                held.insert(key, chains.len());
                chains.push(Chain { origin: None, end: Some(key.clone()), row: row.clone() });
            }
            RowOperation::Delete { key } => {
                let index = chain_of(&mut chains, &held, &vacated, key)?;
                held.remove(key);
                vacated.insert(key);
                if let Some(chain) = chains.get_mut(index) {
                    chain.end = None;
                }
            }
            RowOperation::Update { old, new, row } => {
                let index = chain_of(&mut chains, &held, &vacated, old)?;
                if old != new {
                    if held.contains_key(new) {
                        return Err(Contradiction::KeyTaken);
                    }
                    held.remove(old);
                    vacated.insert(old);
                    vacated.remove(new);
                }
                held.insert(new, index);
                if let Some(chain) = chains.get_mut(index) {
                    chain.end = Some(new.clone());
                    merge(&mut chain.row, row);
                }
            }
        }
    }
    Ok(into_sets(chains, rows_are_whole))
}

/// The chain that holds `key` now: a known one, or a new one for a row that was there before the run.
fn chain_of(
    chains: &mut Vec<Chain>,
    held: &HashMap<&Key, usize>,
    vacated: &HashSet<&Key>,
    key: &Key,
) -> Result<usize, Contradiction> {
    if let Some(index) = held.get(key) {
        return Ok(*index);
    }
    if vacated.contains(key) {
        return Err(Contradiction::KeyGone);
    }
    chains.push(Chain { origin: Some(key.clone()), end: Some(key.clone()), row: Vec::new() });
    Ok(chains.len() - 1)
}

fn merge(into: &mut Tuple, from: &Tuple) {
    if into.is_empty() {
        into.clone_from(from);
        return;
    }
    for (into, from) in into.iter_mut().zip(from) {
        if *from != Value::Unchanged {
            into.clone_from(from);
        }
    }
}

fn into_sets(chains: Vec<Chain>, rows_are_whole: bool) -> Sets {
    let mut sets = Sets::default();
    for chain in chains {
        match (chain.origin, chain.end) {
            (None, None) => {}
            (Some(origin), None) => sets.deletes.push(origin),
            (None, Some(_)) => sets.inserts.push(chain.row),
            (Some(origin), Some(key)) => {
                let whole = rows_are_whole && !chain.row.contains(&Value::Unchanged);
                if origin != key && whole {
                    sets.deletes.push(origin);
                    sets.inserts.push(chain.row);
                } else {
                    sets.updates.push(SetUpdate { origin, key, row: chain.row });
                }
            }
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A target table with two columns, the key and one value.
    type Table = BTreeMap<String, String>;

    fn key(name: &str) -> Key {
        Key::from_strings(vec![name.to_owned()])
    }

    fn name_of(key: &Key) -> String {
        key.to_strings().concat()
    }

    fn value_of(value: &Value) -> Option<String> {
        value.as_bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// What the source did, one by one. `None` when it could not have happened.
    fn replay(table: &mut Table, operations: &[RowOperation]) -> Option<()> {
        for operation in operations {
            match operation {
                RowOperation::Insert { key, row } => {
                    let taken = table.insert(name_of(key), value_of(&row[1])?).is_some();
                    (!taken).then_some(())?;
                }
                RowOperation::Delete { key } => table.remove(&name_of(key)).map(drop)?,
                RowOperation::Update { old, new, row } => {
                    let before = table.remove(&name_of(old))?;
                    let taken = table.insert(name_of(new), value_of(&row[1]).unwrap_or(before)).is_some();
                    (!taken).then_some(())?;
                }
            }
        }
        Some(())
    }

    /// What PostgreSQL does with the sets: `Err` stands for a unique violation or a wrong row count.
    fn execute(table: &mut Table, sets: &Sets) -> Result<(), ()> {
        for deleted in &sets.deletes {
            table.remove(&name_of(deleted)).ok_or(())?;
        }
        for update in &sets.updates {
            let before = table.remove(&name_of(&update.origin)).ok_or(())?;
            let after = value_of(&update.row[1]).unwrap_or(before);
            if table.insert(name_of(&update.key), after).is_some() {
                return Err(());
            }
        }
        for row in &sets.inserts {
            let name = value_of(&row[0]).ok_or(())?;
            if table.insert(name, value_of(&row[1]).ok_or(())?).is_some() {
                return Err(());
            }
        }
        Ok(())
    }

    /// Random operations that can have happened on a table that holds every even key of 0..12.
    fn history() -> impl Strategy<Value = (Table, Vec<RowOperation>)> {
        prop::collection::vec((0..3u8, 0..12u8, 0..12u8, any::<bool>()), 0..40).prop_map(|draws| {
            let start: Table = (0..12).step_by(2).map(|n| (n.to_string(), format!("start {n}"))).collect();
            let mut table = start.clone();
            let mut operations = Vec::new();
            for (count, (kind, a, b, unchanged)) in draws.into_iter().enumerate() {
                let (a, b) = (a.to_string(), b.to_string());
                let value = if unchanged { Value::Unchanged } else { Value::text(format!("v{count}")) };
                let operation = match kind {
                    0 => RowOperation::Insert {
                        key: key(&a),
                        row: vec![Value::text(a.clone()), Value::text(format!("v{count}"))],
                    },
                    1 => RowOperation::Delete { key: key(&a) },
                    _ => {
                        RowOperation::Update { old: key(&a), new: key(&b), row: vec![Value::text(b), value] }
                    }
                };
                let mut after = table.clone();
                if replay(&mut after, std::slice::from_ref(&operation)).is_some() {
                    table = after;
                    operations.push(operation);
                }
            }
            (start, operations)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn sets_give_what_the_operations_give_or_meet_a_constraint((start, operations) in history(), whole: bool) {
            let mut expected = start.clone();
            prop_assert!(replay(&mut expected, &operations).is_some());
            let sets = coalesce(&operations, whole).unwrap();
            let mut found = start;
            if execute(&mut found, &sets).is_ok() {
                prop_assert_eq!(found, expected);
            } else {
                let changes_keys =
                    operations.iter().any(|o| matches!(o, RowOperation::Update { old, new, .. } if old != new));
                prop_assert!(changes_keys, "only key changes may fall to strict replay");
            }
        }

        #[test]
        fn what_can_not_have_happened_is_never_taken_silently((start, mut operations) in history(), at: prop::sample::Index, pick in 0..12u8) {
            let extra = RowOperation::Delete { key: key(&pick.to_string()) };
            operations.insert(at.index(operations.len() + 1), extra);
            let possible = replay(&mut start.clone(), &operations).is_some();
            let mut found = start;
            let taken = match coalesce(&operations, true) {
                Err(_) => false,
                Ok(sets) => execute(&mut found, &sets).is_ok(),
            };
            prop_assert!(possible || !taken);
        }
    }

    #[test]
    fn a_delete_and_an_insert_of_one_key_stay_two_rows() {
        let row = vec![Value::text("1"), Value::text("new")];
        let operations =
            [RowOperation::Delete { key: key("1") }, RowOperation::Insert { key: key("1"), row }];
        let sets = coalesce(&operations, true).unwrap();
        assert_eq!((sets.deletes.len(), sets.updates.len(), sets.inserts.len()), (1, 0, 1));
    }

    #[test]
    fn a_key_change_with_an_unchanged_value_stays_an_update() {
        let row = vec![Value::text("2"), Value::Unchanged];
        let operations = [RowOperation::Update { old: key("1"), new: key("2"), row }];
        let sets = coalesce(&operations, true).unwrap();
        assert_eq!((sets.deletes.len(), sets.updates.len(), sets.inserts.len()), (0, 1, 0));
    }
}
