//! Puts rows as the authority has them in the place of whatever the target has under their keys.

use std::collections::BTreeMap;
use std::time::Instant;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::singly::Singly;
use super::{Applier, Refusal, key_arrays, refusal, replaced};
use crate::cdc::error::MirrorError;
use crate::cdc::statements;
use crate::cdc::table::{TableRun, left_behind};
use crate::change::Tuple;
use crate::landing::key::Key;
use crate::landing::sets::{SetUpdate, Sets};

/// A row as the authority has it.
#[derive(Debug)]
pub struct SourceRow {
    /// Its key, as the stream prints it.
    pub key: Key,
    /// Its columns in mapping order; `None` when there is none that the filter takes.
    pub row: Option<Tuple>,
}

/// How rows are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// When they are not taken together, those are found that are refused by themselves.
    pub finds: bool,
    /// Each of those that are left is set on its own then.
    pub singly: bool,
    /// The stream stands still meanwhile: what is not done then is for another attempt. The target's answers to one statement about all
    /// rows are awaited however long they take.
    pub until: Instant,
}

/// What an attempt came to, by the places of rows; those that it does not name are as the authority has them.
#[derive(Debug, Default)]
pub struct Replaced {
    /// Rows that were refused, with the reason.
    pub refused: Vec<(usize, String)>,
    /// Rows that stay as they were, and are for another attempt.
    pub left: Vec<usize>,
}

/// How rows that are there are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By UPDATE.
    InPlace,
    /// They go, all of them, and come again.
    Anew,
}

/// What the target has of a key.
#[derive(Debug)]
struct Held {
    /// How many rows: more than one only where nothing guards the key.
    rows: i64,
    /// A column that is not mapped, quoted, and that holds a value in one of them.
    filled: Option<String>,
}

impl Held {
    /// Why they can't become one row: nobody knows which of them has the values that are right.
    fn is_ambiguous(&self) -> Option<String> {
        let column = self.filled.as_ref().filter(|_| self.rows > 1)?;
        Some(format!(
            "{} rows have its key, and column {column}, which is not mapped, holds values in them: all of them but the one that \
             is right have to be deleted first",
            self.rows
        ))
    }
}

/// In which forms rows are set, the first one that passes. Columns that are generated come out anew where the row is written anew: an
/// UPDATE computes only those whose own columns it sets (PostgreSQL's `ExecComputeStoredGenerated`).
pub(super) fn forms(table: &TableRun) -> &'static [Form] {
    let computed = !table.mapping.reversed && !table.mapping.generated.is_empty();
    if computed { &[Form::Anew] } else { &[Form::InPlace, Form::Anew] }
}

impl Applier {
    /// Opens the transaction of a repair, in which the target's table stays as it is: nobody may alter it before the end. Which columns it
    /// has beside the mapped ones is read again, because somebody may have added one since the mirror began.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn hold(&mut self, table: &mut TableRun) -> Result<(), MirrorError> {
        self.open().await?;
        self.will_read(std::iter::once(&*table)).await?;
        let lock = format!("LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE", table.mapping.target.sql());
        self.session.batch_execute(&lock).await.map_err(MirrorError::sql("holding a table's definition"))?;
        table.left_behind = left_behind(&self.session, &table.mapping).await?;
        Ok(())
    }

    /// In the transaction that [`Applier::hold`] has opened: makes what the target has under these keys, however often, the rows that the
    /// authority has. Keys whose row is refused, by a constraint or because several rows of it hold values of columns that are not mapped,
    /// stay as they are on the target, and are named with the reason.
    ///
    /// A row that is there keeps what the plan does not map: what the service has of its own, or what was left behind on the monolith. It is
    /// set in place, and where that is refused, all rows go before the first one comes again, so that values which wrong rows hold
    /// from each other pass. When a row is refused even so, those that are refused by themselves are found, and the others are for another
    /// attempt without them, with the row that each of them did not replace back in its place. Where rows hold values from each other in a
    /// chain, each such pass may refuse one more: the last attempt sets each row on its own, if the target takes it as things are.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn replace(
        &mut self,
        table: &TableRun,
        rows: &[SourceRow],
        attempt: Attempt,
    ) -> Result<Replaced, MirrorError> {
        let mut left: Vec<(usize, &SourceRow)> = rows.iter().enumerate().collect();
        let mut refused = self.ambiguous(table, &left).await?;
        left.retain(|(place, _)| refused.iter().all(|(other, _)| other != place));
        if left.is_empty() || self.together(table, &left).await? {
            return Ok(Replaced { refused, left: Vec::new() });
        }
        if attempt.finds {
            let failed = self.refused_alone(table, &left, attempt.until).await?;
            let failed: BTreeMap<usize, String> = failed.into_iter().collect();
            left.retain(|(place, _)| !failed.contains_key(place));
            refused.extend(failed);
            if left.is_empty() || attempt.singly && self.together(table, &left).await? {
                return Ok(Replaced { refused, left: Vec::new() });
            }
        }
        if attempt.singly {
            let Singly { failed, untried } = self.one_by_one(table, &left, attempt.until).await?;
            refused.extend(failed);
            return Ok(Replaced { refused, left: untried });
        }
        Ok(Replaced { refused, left: left.into_iter().map(|(place, _)| place).collect() })
    }

    /// All rows in one go, in the first form that passes. `false` when the table refused one, and nothing was done then.
    async fn together(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
    ) -> Result<bool, MirrorError> {
        for form in forms(table) {
            if self.replace_together(table, rows, *form).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The keys of what the target has under these keys where it prints them in another way, each with the place of the row that was
    /// asked for, in ascending order.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn spelled_otherwise(
        &mut self,
        table: &TableRun,
        rows: &[SourceRow],
    ) -> Result<Vec<(usize, Vec<String>)>, MirrorError> {
        self.savepoint("SAVEPOINT repair").await?;
        let keys: Vec<&SourceRow> = rows.iter().collect();
        match self.printed(table, &keys).await {
            Ok(found) => self.savepoint("RELEASE SAVEPOINT repair").await.map(|()| found),
            Err(Refusal::Fatal(error)) => Err(error),
            // A key that can't be looked up finds nothing, and is refused when its row is written.
            Err(Refusal::Table(_)) => {
                let undone = self.savepoint("ROLLBACK TO SAVEPOINT repair; RELEASE SAVEPOINT repair").await;
                undone.map(|()| Vec::new())
            }
        }
    }

    async fn printed(
        &mut self,
        table: &TableRun,
        rows: &[&SourceRow],
    ) -> Result<Vec<(usize, Vec<String>)>, Refusal> {
        let sql = statements::spelled_otherwise(&table.written, &table.equality);
        let found = self.ask(table, &sql, rows).await?;
        let of = |row: &Row| Some((usize::try_from(row.get::<_, i64>(0)).ok()?.checked_sub(1)?, row.get(1)));
        Ok(found.iter().filter_map(of).collect())
    }

    /// Asks the target a question about keys.
    async fn ask(&mut self, table: &TableRun, sql: &str, rows: &[&SourceRow]) -> Result<Vec<Row>, Refusal> {
        let statement = self.prepare(sql).await?;
        let arrays = key_arrays(&table.mapping, rows.iter().map(|row| &row.key))?;
        let params: Vec<&(dyn ToSql + Sync)> =
            arrays.iter().map(|array| -> &(dyn ToSql + Sync) { array }).collect();
        self.session.query(&statement, &params).await.map_err(|error| refusal(&self.claim, error))
    }

    /// Keys of which the target has several rows that can't become one.
    async fn ambiguous(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        if table.rows_are_whole() {
            return Ok(Vec::new());
        }
        self.savepoint("SAVEPOINT repair").await?;
        let keys: Vec<&SourceRow> = rows.iter().map(|(_, row)| *row).collect();
        match self.held(table, &keys).await {
            Ok(held) => {
                self.savepoint("RELEASE SAVEPOINT repair").await?;
                let places = rows.iter().map(|(place, _)| *place);
                let named = places.zip(held).filter_map(|(place, held)| Some((place, held.is_ambiguous()?)));
                Ok(named.collect())
            }
            Err(Refusal::Fatal(error)) => Err(error),
            // Which of them it is, and why, is found when they are written.
            Err(Refusal::Table(_)) => {
                self.savepoint("ROLLBACK TO SAVEPOINT repair; RELEASE SAVEPOINT repair").await?;
                Ok(Vec::new())
            }
        }
    }

    /// All rows in one go. `false` when the table refused one, and nothing was done then.
    async fn replace_together(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
        form: Form,
    ) -> Result<bool, MirrorError> {
        self.savepoint("SAVEPOINT repair; SET CONSTRAINTS ALL IMMEDIATE").await?;
        let rows: Vec<&SourceRow> = rows.iter().map(|(_, row)| *row).collect();
        match self.put(table, &rows, form).await {
            Ok(()) => self.savepoint("RELEASE SAVEPOINT repair").await.map(|()| true),
            Err(Refusal::Fatal(error)) => Err(error),
            Err(Refusal::Table(_)) => {
                self.savepoint("ROLLBACK TO SAVEPOINT repair; RELEASE SAVEPOINT repair").await.map(|()| false)
            }
        }
    }

    /// A row that is there once keeps what is not mapped of it, in place or made anew. Of a key that is there several times all go.
    pub(super) async fn put(
        &mut self,
        table: &TableRun,
        rows: &[&SourceRow],
        form: Form,
    ) -> Result<(), Refusal> {
        let there = self.held(table, rows).await?;
        let mut sets = Sets { respell_keys: true, ..Sets::default() };
        let mut several = Vec::new();
        for (row, held) in rows.iter().zip(&there) {
            if let Some(why) = held.is_ambiguous() {
                return Err(Refusal::Table(why.into()));
            }
            match (&row.row, held.rows) {
                (Some(tuple), 0) => sets.inserts.push(tuple.clone()),
                (None, 0) => {}
                (Some(tuple), 1) => sets.updates.push(SetUpdate {
                    origin: row.key.clone(),
                    key: row.key.clone(),
                    row: tuple.clone(),
                }),
                (None, 1) => sets.deletes.push(row.key.clone()),
                (tuple, _) => {
                    several.push(*row);
                    sets.inserts.extend(tuple.clone());
                }
            }
        }
        self.empty_keys(table, &several).await?;
        if form == Form::InPlace || sets.updates.is_empty() {
            return self.run_set(table, &sets).await;
        }
        let (updates, inserts) = (std::mem::take(&mut sets.updates), std::mem::take(&mut sets.inserts));
        self.run_set(table, &sets).await?;
        let updates: Vec<&SetUpdate> = updates.iter().collect();
        let carried = vec![true; table.mapping.columns.len()];
        self.run_works(&[replaced(table, &updates, &carried)?]).await?;
        self.run_set(table, &Sets { inserts, ..Sets::default() }).await
    }

    /// What the target has of each row's key.
    async fn held(&mut self, table: &TableRun, rows: &[&SourceRow]) -> Result<Vec<Held>, Refusal> {
        let sql = statements::held((&table.written, &table.left_behind), &table.equality);
        let found = self.ask(table, &sql, rows).await?;
        Ok(found.iter().map(|row| Held { rows: row.get(0), filled: row.get(1) }).collect())
    }

    /// A wrong target may hold no row of a key, or several, so the count says nothing.
    pub(super) async fn empty_keys(&mut self, table: &TableRun, rows: &[&SourceRow]) -> Result<(), Refusal> {
        if rows.is_empty() {
            return Ok(());
        }
        let statement = self.prepare(&statements::delete(&table.written, &table.equality)).await?;
        let arrays = key_arrays(&table.mapping, rows.iter().map(|row| &row.key))?;
        let params: Vec<&(dyn ToSql + Sync)> =
            arrays.iter().map(|array| -> &(dyn ToSql + Sync) { array }).collect();
        self.session.execute(&statement, &params).await.map(drop).map_err(|error| refusal(&self.claim, error))
    }
}
