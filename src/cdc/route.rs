//! From an event to operations on the target: binds tables, asks the landing rule, refetches where it must.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio_postgres::Client;

use super::batch::Batch;
use super::error::MirrorError;
use super::refetch::{RefetchSessions, refetch};
use super::table::TableRun;
use crate::change::{OldTuple, Relation, RowChange, Tuple, Value};
use crate::failpoint::hooks::{Hooks, Mutant};
use crate::journal::alarms::Operation;
use crate::landing::key::Key;
use crate::landing::pieces::{EventOrigin, Standing};
use crate::landing::row::{KeyMissing, RowReader, ShapeDrift};
use crate::landing::rule::{UpdateVerdict, decide_update};
use crate::landing::sets::RowOperation;
use crate::mapping::TableMapping;
use crate::name::TableName;
use crate::problem::{START_ANEW, arm_anew};

/// How events fared, for tests that must know that the load met the rare cases, and for `status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteCounts {
    /// Events that became operations.
    pub applied: u64,
    /// Events that a piece already held, or whose rows are not copied yet.
    pub skipped: u64,
    /// Key changes between ends that stood differently.
    pub mixed_key_changes: u64,
    /// Rows read again from the source.
    pub refetched: u64,
}

/// A relation of the stream, bound to the slice's table where it has one.
#[derive(Debug)]
struct Binding {
    relation: Arc<Relation>,
    table: Option<(usize, RowReader)>,
}

/// Routes events of one slice.
#[derive(Debug, Default)]
pub struct Router {
    bindings: HashMap<u32, Binding>,
    /// Counts since the start.
    pub counts: RouteCounts,
    slice: String,
    hooks: Hooks,
    /// On the way back, tables of the transaction at hand into which the service wrote a row that its filter forbids.
    pub(crate) outside: BTreeSet<usize>,
}

/// Number of a table, what was done to a row of it, and that row's key.
pub(crate) type StrayChange = (usize, Operation, Option<Vec<String>>);

/// One end of a change: its projected row and how it stands.
struct End {
    key: Key,
    standing: Standing,
}

impl Router {
    /// A router of a slice that has met nothing yet.
    #[must_use]
    pub fn new(slice: &str, hooks: Hooks) -> Self {
        Self { slice: slice.to_owned(), hooks, ..Self::default() }
    }

    /// The slice's table that a relation is, when it is one.
    ///
    /// # Errors
    /// [`MirrorError::Refused`] when the table changed its shape.
    pub async fn table_of(
        &mut self,
        relation: &Arc<Relation>,
        tables: &[TableRun],
        source: &Client,
    ) -> Result<Option<usize>, MirrorError> {
        self.bind(relation, tables, source).await?;
        Ok(self
            .bindings
            .get(&relation.oid)
            .and_then(|binding| binding.table.as_ref())
            .map(|(table, _)| *table))
    }

    async fn bind(
        &mut self,
        relation: &Arc<Relation>,
        tables: &[TableRun],
        source: &Client,
    ) -> Result<(), MirrorError> {
        if self.bindings.get(&relation.oid).is_some_and(|known| Arc::ptr_eq(&known.relation, relation)) {
            return Ok(());
        }
        let called = |table: &TableRun| table.mapping.source.is_called(&relation.schema, &relation.name);
        let number = tables.iter().position(called);
        let table = match number.and_then(|number| Some((number, tables.get(number)?))) {
            // The publication holds the slice's tables and no other, so this is one of them under another name.
            None => {
                return Err(MirrorError::Refused {
                    what: format!(
                        "the stream carries {}, which the mapping does not know: a table of the slice was renamed, or \
                         one was added to its publication; the mirror stopped before its first event",
                        TableName::new(relation.schema.clone(), relation.name.clone())
                    ),
                    next: "strangler check PLAN".to_owned(),
                });
            }
            Some((number, table)) => {
                let reader = match RowReader::new(relation, &table.mapping) {
                    Err(drift) if !drift.only_new.is_empty() => {
                        let mut mapping = TableMapping::clone(&table.mapping);
                        mapping.dropped.extend(gone(source, relation, drift.only_new).await?);
                        RowReader::new(relation, &mapping)
                    }
                    bound => bound,
                };
                let named = (self.slice.as_str(), table.mapping.reversed);
                Some((number, reader.map_err(|drift| drifted(named, &drift))?))
            }
        };
        self.bindings.insert(relation.oid, Binding { relation: Arc::clone(relation), table });
        Ok(())
    }

    /// What a change that nobody should have made is: the table's number, what was done, and the row's key in text. `None`
    /// when neither end of it belongs to the slice.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(crate) async fn stray(
        &mut self,
        (relation, change): (&Arc<Relation>, &RowChange),
        tables: &[TableRun],
        source: &Client,
    ) -> Result<Option<StrayChange>, MirrorError> {
        self.bind(relation, tables, source).await?;
        check_width(relation, change)?;
        let Some(Binding { table: Some((number, reader)), .. }) = self.bindings.get(&relation.oid) else {
            return Ok(None);
        };
        let (operation, before, after) = match change {
            RowChange::Insert { new } => (Operation::Insert, None, Some(reader.project(new))),
            RowChange::Delete { old } => (Operation::Delete, Some(reader.project(old.tuple())), None),
            RowChange::Update { old, new } => {
                let row = reader.project_new(new, old.as_ref());
                (Operation::Update, old.as_ref().map(|old| reader.project(old.tuple())), Some(row))
            }
        };
        let ends = [before.as_ref(), after.as_ref()];
        if !ends.into_iter().flatten().any(|row| reader.takes(row)) {
            return Ok(None);
        }
        // The key by which the row was known before: that is the one which the other side has.
        let key = ends.into_iter().flatten().find_map(|row| reader.key(row).ok());
        Ok(Some((*number, operation, key.map(|key| key.to_strings()))))
    }

    /// Adds to the batch what a row change means for the target.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn row(
        &mut self,
        (relation, change): (&Arc<Relation>, &RowChange),
        event: EventOrigin,
        tables: &mut [TableRun],
        batch: &mut Batch,
        sessions: RefetchSessions<'_>,
    ) -> Result<(), MirrorError> {
        self.bind(relation, tables, sessions.position).await?;
        check_width(relation, change)?;
        let Some(Binding { table: Some((number, reader)), .. }) = self.bindings.get(&relation.oid) else {
            return Ok(());
        };
        let number = *number;
        let Some(table) = tables.get_mut(number) else { return Ok(()) };
        let lacks = match change {
            RowChange::Insert { .. } => false,
            RowChange::Update { old, .. } => reader.lacks_identity(old.as_ref()),
            RowChange::Delete { old } => reader.lacks_identity(Some(old)),
        };
        if lacks {
            return Err(without_identity((&self.slice, table.mapping.reversed), &table.label));
        }
        let operation = match change {
            RowChange::Insert { new } => {
                let row = reader.project(new);
                if table.mapping.reversed && !reader.takes(&row) {
                    self.outside.insert(number);
                }
                let end = end_of(reader, (&self.slice, table), &row, event)?;
                (end.standing == Standing::Apply).then_some(RowOperation::Insert { key: end.key, row })
            }
            RowChange::Delete { old } => {
                let end = end_of(reader, (&self.slice, table), &reader.project(old.tuple()), event)?;
                (end.standing == Standing::Apply).then_some(RowOperation::Delete { key: end.key })
            }
            RowChange::Update { old, new } => {
                let of = (self.slice.as_str(), &*table);
                let (old, new, row) = ends_of_update(reader, of, (old.as_ref(), new), event)?;
                if table.mapping.reversed && !reader.takes(&row) {
                    self.outside.insert(number);
                }
                if old.key != new.key && old.standing != new.standing {
                    self.counts.mixed_key_changes += 1;
                }
                let complete = !row.contains(&Value::Unchanged) || self.hooks.mutant(Mutant::NoRefetch);
                let in_both = old.standing != Standing::Absent && new.standing != Standing::Absent;
                let verdict = if self.hooks.mutant(Mutant::OneUpdate) && old.key != new.key && in_both {
                    UpdateVerdict::Update
                } else {
                    decide_update(old.standing, new.standing, complete)
                };
                match verdict {
                    UpdateVerdict::Nothing => None,
                    UpdateVerdict::Update => Some(RowOperation::Update { old: old.key, new: new.key, row }),
                    UpdateVerdict::DeleteOld => Some(RowOperation::Delete { key: old.key }),
                    UpdateVerdict::InsertNew => Some(RowOperation::Insert { key: new.key, row }),
                    UpdateVerdict::Refetch => {
                        self.counts.refetched += 1;
                        refetch_into(table, batch, (new.key, event.xid), sessions).await?
                    }
                }
            }
        };
        match operation {
            None => self.counts.skipped += 1,
            Some(operation) => {
                self.counts.applied += 1;
                let bytes = size_bytes(&operation);
                batch.push(number, operation, bytes);
            }
        }
        Ok(())
    }
}

/// Which of a relation's columns the source has no longer. What they held is lost there as well, so nothing of them can be carried,
/// and no plan can name them.
async fn gone(
    source: &Client,
    relation: &Relation,
    mut columns: Vec<String>,
) -> Result<Vec<String>, MirrorError> {
    let sql =
        "SELECT attname::text FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped";
    let rows = source.query(sql, &[&relation.oid]).await;
    let there: Vec<String> =
        rows.map_err(MirrorError::sql("looking for columns"))?.iter().map(|row| row.get(0)).collect();
    columns.retain(|column| !there.contains(column));
    Ok(columns)
}

/// Why the slice stops, and its way on: columns that were only added can be left behind, where the stream stands. Any
/// other change stays in the stream, also when it is undone, so that only another stream gets past it.
fn drifted((slice, reversed): (&str, bool), drift: &ShapeDrift) -> MirrorError {
    let what = format!("{drift}; the mirror stopped before the first event of the new shape");
    let next = if reversed {
        format!(
            "where the service lost a column of the mapping, bring it back there; then {}; then strangler reconcile PLAN \
             --slice {slice} --repair",
            arm_anew(slice)
        )
    } else if drift.only_new.is_empty() {
        format!(
            "undo the change on the monolith, then strangler mirror PLAN --slice {slice} --rebuild, which copies the slice \
             again; else start the slice anew: {START_ANEW}"
        )
    } else {
        let columns: Vec<String> =
            drift.only_new.iter().map(|name| format!("{}: {{ drop: true }}", yaml(name))).collect();
        format!(
            "to leave it behind, write under {} in the plan: columns: {{ {} }}, and start the mirror again; to carry it \
             over, start the slice anew: {START_ANEW}",
            drift.table,
            columns.join(", "),
        )
    };
    stopped(reversed, what, next)
}

/// A partition logged less of an old row than tells which row it was and whether it was the slice's. What is in the stream
/// stays as it is, so only another stream gets past it.
fn without_identity((slice, reversed): (&str, bool), table: &str) -> MirrorError {
    let what = format!(
        "an update or delete of {table} does not say which row it was: a partition has, or had, another replica identity \
         than its table; the mirror stopped before it"
    );
    let next = if reversed {
        format!("{}; then strangler reconcile PLAN --slice {slice} --repair", arm_anew(slice))
    } else {
        format!(
            "strangler check PLAN, which names partitions that have another one still and the statement for each; then \
             strangler mirror PLAN --slice {slice} --rebuild, which copies the slice again"
        )
    };
    stopped(reversed, what, next)
}

fn stopped(reversed: bool, what: String, next: String) -> MirrorError {
    if reversed { MirrorError::Anew { what, next } } else { MirrorError::Refused { what, next } }
}

/// A name as the plan's YAML takes it; a string of JSON is one of YAML.
fn yaml(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain { name.to_owned() } else { serde_json::Value::from(name).to_string() }
}

/// A tuple of another width than the table's description would shift values between columns.
fn check_width(relation: &Relation, change: &RowChange) -> Result<(), MirrorError> {
    let wide = |tuple: &Tuple| tuple.len() == relation.columns.len();
    let fits = match change {
        RowChange::Insert { new } => wide(new),
        RowChange::Delete { old } => wide(old.tuple()),
        RowChange::Update { old, new } => wide(new) && old.as_ref().is_none_or(|old| wide(old.tuple())),
    };
    if fits {
        return Ok(());
    }
    Err(MirrorError::Unreadable { what: format!("a row of {}.{}", relation.schema, relation.name) })
}

/// A row without a key, which only a table whose key was no key for a while can have. No other side can hold it, and the event stays
/// in the stream when the row is gone, so only another stream gets past it.
fn without_key((slice, reversed): (&str, bool), missing: &KeyMissing) -> MirrorError {
    let what = format!("{missing}: the column held a null, which no key has; the mirror stopped before it");
    let next = if reversed {
        format!(
            "give the row a key or delete it, and make the column NOT NULL again in the service; then {}; then strangler \
             reconcile PLAN --slice {slice} --repair",
            arm_anew(slice)
        )
    } else {
        format!(
            "give the row a key or delete it, and make the column NOT NULL again on the monolith; then strangler mirror PLAN \
             --slice {slice} --rebuild, which copies the slice again"
        )
    };
    stopped(reversed, what, next)
}

/// An end that the filter leaves out stands like one that is not copied: the target never holds it.
fn end_of(
    reader: &RowReader,
    (slice, table): (&str, &TableRun),
    row: &Tuple,
    event: EventOrigin,
) -> Result<End, MirrorError> {
    let key = reader.key(row).map_err(|missing| without_key((slice, table.mapping.reversed), &missing))?;
    let standing = if reader.takes(row) {
        table
            .pieces
            .standing(&key, &event)
            .map_err(|error| MirrorError::Unreadable { what: format!("{}: {error}; a key", table.label) })?
    } else {
        Standing::Absent
    };
    Ok(End { key, standing })
}

/// Both ends of an update. Without an old tuple neither the key nor a column of the filter has changed, because
/// both belong to the replica identity.
fn ends_of_update(
    reader: &RowReader,
    table: (&str, &TableRun),
    (old, new): (Option<&OldTuple>, &Tuple),
    event: EventOrigin,
) -> Result<(End, End, Tuple), MirrorError> {
    let row = reader.project_new(new, old);
    let new_end = end_of(reader, table, &row, event)?;
    let old_end = match old {
        None => End { key: new_end.key.clone(), standing: new_end.standing },
        Some(old) => end_of(reader, table, &reader.project(old.tuple()), event)?,
    };
    Ok((old_end, new_end, row))
}

async fn refetch_into(
    table: &mut TableRun,
    batch: &mut Batch,
    (key, xid): (Key, u32),
    sessions: RefetchSessions<'_>,
) -> Result<Option<RowOperation>, MirrorError> {
    let fetched = refetch(sessions, &table.mapping, &key, xid).await?;
    table.add(&fetched.piece)?;
    batch.key_pieces.push(fetched.piece);
    Ok(fetched.row.map(|row| RowOperation::Insert { key, row }))
}

fn size_bytes(operation: &RowOperation) -> usize {
    /// What an operation costs beside its values: keys, vectors, map entries.
    const OVERHEAD_BYTES: usize = 128;
    let row = match operation {
        RowOperation::Insert { row, .. } | RowOperation::Update { row, .. } => row.as_slice(),
        RowOperation::Delete { .. } => &[],
    };
    OVERHEAD_BYTES + row.iter().map(|value| value.size_bytes() + size_of::<Value>()).sum::<usize>()
}
