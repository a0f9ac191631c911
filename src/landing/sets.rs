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
