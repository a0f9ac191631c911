//! Puts rows as the authority has them in the place of whatever the target has under their keys.

use tokio_postgres::types::ToSql;

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

/// How rows that are there are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
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
fn forms(table: &TableRun) -> &'static [Form] {
    let computed = !table.mapping.reversed && !table.mapping.generated.is_empty();
    if computed { &[Form::Anew] } else { &[Form::InPlace, Form::Anew] }
}

impl Applier {
    /// In the open transaction: makes what the target has under these keys, however often, the rows that the authority has. Keys whose
    /// row is refused, by a constraint or because several rows of it hold values of columns that are not mapped, stay as they are on the
    /// target, and are returned by their place in `rows` with the reason.
    ///
    /// A row that is there keeps what the plan does not map: what the service has of its own, or what was left behind on the monolith. It is
    /// set in place, and where that is refused, all rows go before the first one comes again, so that values which wrong rows hold
    /// from each other pass. When a row is refused even so, the others are tried again without it, with the row that it did not replace
    /// back in its place, until none is refused. Where rows hold values from each other in a chain, each such pass may refuse one more:
    /// after `passes` of them each row that is left is set on its own, if the target takes it as things are.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn replace(
        &mut self,
        table: &mut TableRun,
        rows: &[SourceRow],
        passes: usize,
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        self.open().await?;
        self.will_read(std::iter::once(&*table)).await?;
        self.look_at_columns(table).await?;
        let mut left: Vec<(usize, &SourceRow)> = rows.iter().enumerate().collect();
        let mut refused = self.ambiguous(table, &left).await?;
        left.retain(|(place, _)| refused.iter().all(|(other, _)| other != place));
        for pass in 0..=passes {
            if left.is_empty() {
                break;
            }
            for form in forms(table) {
                if self.replace_together(table, &left, *form).await? {
                    return Ok(refused);
                }
            }
            self.savepoint("SAVEPOINT repair; SET CONSTRAINTS ALL IMMEDIATE").await?;
            let last = pass == passes;
            let failed = if last {
                self.one_by_one(table, &left).await?
            } else {
                self.replace_singly(table, &left).await?
            };
            if last || failed.is_empty() {
                self.savepoint("RELEASE SAVEPOINT repair").await?;
                refused.extend(failed);
                break;
            }
            self.savepoint("ROLLBACK TO SAVEPOINT repair; RELEASE SAVEPOINT repair").await?;
            left.retain(|(place, _)| failed.iter().all(|(other, _)| other != place));
            refused.extend(failed);
        }
        Ok(refused)
    }

    /// Which columns the target has beside the mapped ones, as it is from here to the end of the transaction: somebody may have added one
    /// since the mirror began.
    async fn look_at_columns(&self, table: &mut TableRun) -> Result<(), MirrorError> {
        let lock = format!("LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE", table.mapping.target.sql());
        self.session.batch_execute(&lock).await.map_err(MirrorError::sql("holding a table's definition"))?;
        table.left_behind = left_behind(&self.session, &table.mapping).await?;
        Ok(())
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
    async fn put(&mut self, table: &TableRun, rows: &[&SourceRow], form: Form) -> Result<(), Refusal> {
        let there = self.held(table, rows).await?;
        let mut sets = Sets { respell_keys: true, ..Sets::default() };
        let mut several = Vec::new();
        for (row, held) in rows.iter().zip(there) {
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
        let statement = self.prepare(&sql).await?;
        let arrays = key_arrays(&table.mapping, rows.iter().map(|row| &row.key))?;
        let params: Vec<&(dyn ToSql + Sync)> =
            arrays.iter().map(|array| -> &(dyn ToSql + Sync) { array }).collect();
        let found =
            self.session.query(&statement, &params).await.map_err(|error| refusal(&self.claim, error))?;
        Ok(found.iter().map(|row| Held { rows: row.get(0), filled: row.get(1) }).collect())
    }

    /// Each row behind a savepoint of its own, where a row holds more than is mapped; else first all deletes, then all inserts.
    /// Returns those that failed.
    async fn replace_singly(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        if table.mapping.reversed || !table.rows_are_whole() {
            return self.one_by_one(table, rows).await;
        }
        let mut failed: Vec<(usize, String)> = Vec::new();
        for (place, row) in rows {
            self.savepoint("SAVEPOINT one").await?;
            let emptied = self.empty_keys(table, &[row]).await;
            failed.extend(self.close_one(emptied).await?.map(|detail| (*place, detail)));
        }
        for (place, row) in rows {
            let Some(tuple) = &row.row else { continue };
            if failed.iter().any(|(other, _)| other == place) {
                continue;
            }
            self.savepoint("SAVEPOINT one").await?;
            let sets = Sets { inserts: vec![tuple.clone()], ..Sets::default() };
            let inserted = self.run_set(table, &sets).await;
            failed.extend(self.close_one(inserted).await?.map(|detail| (*place, detail)));
        }
        Ok(failed)
    }

    /// Each row behind a savepoint of its own. Returns those that failed, which stay as they are.
    async fn one_by_one(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        let mut failed = Vec::new();
        let form = forms(table).first().copied().unwrap_or(Form::Anew);
        for (place, row) in rows {
            self.savepoint("SAVEPOINT one").await?;
            let put = self.put(table, &[row], form).await;
            failed.extend(self.close_one(put).await?.map(|detail| (*place, detail)));
        }
        Ok(failed)
    }

    async fn close_one(&self, result: Result<(), Refusal>) -> Result<Option<String>, MirrorError> {
        match result {
            Ok(()) => self.savepoint("RELEASE SAVEPOINT one").await.map(|()| None),
            Err(Refusal::Fatal(error)) => Err(error),
            Err(Refusal::Table(trouble)) => {
                self.savepoint("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one").await?;
                Ok(Some(trouble.detail))
            }
        }
    }

    /// A wrong target may hold no row of a key, or several, so the count says nothing.
    async fn empty_keys(&mut self, table: &TableRun, rows: &[&SourceRow]) -> Result<(), Refusal> {
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
