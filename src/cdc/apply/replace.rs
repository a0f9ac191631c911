//! Puts rows as the monolith has them in the place of whatever the target has under their keys.

use tokio_postgres::types::ToSql;

use super::{Applier, Refusal, key_arrays, refusal, replaced};
use crate::cdc::error::MirrorError;
use crate::cdc::statements;
use crate::cdc::table::TableRun;
use crate::change::Tuple;
use crate::landing::key::Key;
use crate::landing::sets::{SetUpdate, Sets};

/// A row as the monolith has it.
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

impl Applier {
    /// In the open transaction: deletes what the target has under these keys, however often, and inserts the rows that
    /// the monolith has. Keys whose row a constraint refuses stay as they are on the target, and are returned by their
    /// place in `rows` with the reason.
    ///
    /// All keys are emptied before the first row goes in, so that values which wrong rows hold from each other pass; on the way
    /// back only where setting them in place was refused.
    /// When a row is refused even so, the others are tried again without it, with the row that it did not replace back
    /// in its place, until none is refused.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn replace(
        &mut self,
        table: &TableRun,
        rows: &[SourceRow],
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        self.open().await?;
        self.will_read(std::iter::once(table)).await?;
        let mut left: Vec<(usize, &SourceRow)> = rows.iter().enumerate().collect();
        let mut refused = Vec::new();
        while !left.is_empty() {
            let forms: &[Form] =
                if table.mapping.reversed { &[Form::InPlace, Form::Anew] } else { &[Form::Anew] };
            for form in forms {
                if self.replace_together(table, &left, *form).await? {
                    return Ok(refused);
                }
            }
            self.savepoint("SAVEPOINT repair; SET CONSTRAINTS ALL IMMEDIATE").await?;
            let failed = self.replace_singly(table, &left).await?;
            if failed.is_empty() {
                self.savepoint("RELEASE SAVEPOINT repair").await?;
                break;
            }
            self.savepoint("ROLLBACK TO SAVEPOINT repair; RELEASE SAVEPOINT repair").await?;
            left.retain(|(place, _)| failed.iter().all(|(other, _)| other != place));
            refused.extend(failed);
        }
        Ok(refused)
    }

    /// All rows in one go. `false` when the table refused one, and nothing was done then.
    async fn replace_together(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
        form: Form,
    ) -> Result<bool, MirrorError> {
        self.savepoint("SAVEPOINT repair; SET CONSTRAINTS ALL IMMEDIATE").await?;
        let replaced = if table.mapping.reversed {
            let rows: Vec<&SourceRow> = rows.iter().map(|(_, row)| *row).collect();
            self.put(table, &rows, form).await
        } else {
            self.make_anew(table, rows).await
        };
        match replaced {
            Ok(()) => self.savepoint("RELEASE SAVEPOINT repair").await.map(|()| true),
            Err(Refusal::Fatal(error)) => Err(error),
            Err(Refusal::Table(_)) => {
                self.savepoint("ROLLBACK TO SAVEPOINT repair; RELEASE SAVEPOINT repair").await.map(|()| false)
            }
        }
    }

    async fn make_anew(&mut self, table: &TableRun, rows: &[(usize, &SourceRow)]) -> Result<(), Refusal> {
        self.empty_keys(table, rows).await?;
        let inserts: Vec<Tuple> = rows.iter().filter_map(|(_, row)| row.row.clone()).collect();
        self.run_set(table, &Sets { inserts, ..Sets::default() }).await
    }

    /// On the way back the target's rows also hold what the plan left behind, so a row that is there keeps it, in place or
    /// made anew.
    async fn put(&mut self, table: &TableRun, rows: &[&SourceRow], form: Form) -> Result<(), Refusal> {
        let there = self.held(table, rows).await?;
        let mut sets = Sets { respell_keys: true, ..Sets::default() };
        for (row, held) in rows.iter().zip(there) {
            match (&row.row, held) {
                (Some(tuple), true) => sets.updates.push(SetUpdate {
                    origin: row.key.clone(),
                    key: row.key.clone(),
                    row: tuple.clone(),
                }),
                (Some(tuple), false) => sets.inserts.push(tuple.clone()),
                (None, true) => sets.deletes.push(row.key.clone()),
                (None, false) => {}
            }
        }
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

    /// For each row, whether the target has one of that key. Its key is unique there.
    async fn held(&mut self, table: &TableRun, rows: &[&SourceRow]) -> Result<Vec<bool>, Refusal> {
        let statement = self.prepare(&statements::held(&table.written, &table.equality)).await?;
        let arrays = key_arrays(&table.mapping, rows.iter().map(|row| &row.key))?;
        let params: Vec<&(dyn ToSql + Sync)> =
            arrays.iter().map(|array| -> &(dyn ToSql + Sync) { array }).collect();
        let found =
            self.session.query(&statement, &params).await.map_err(|error| refusal(&self.claim, error))?;
        Ok(found.iter().map(|row| row.get(0)).collect())
    }

    /// First all deletes, then all inserts, each behind a savepoint of its own. Returns those that failed.
    async fn replace_singly(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        let mut failed: Vec<(usize, String)> = Vec::new();
        if table.mapping.reversed {
            for (place, row) in rows {
                self.savepoint("SAVEPOINT one").await?;
                let put = self.put(table, &[row], Form::InPlace).await;
                failed.extend(self.close_one(put).await?.map(|detail| (*place, detail)));
            }
            return Ok(failed);
        }
        for row in rows {
            self.savepoint("SAVEPOINT one").await?;
            let emptied = self.empty_keys(table, std::slice::from_ref(row)).await;
            failed.extend(self.close_one(emptied).await?.map(|detail| (row.0, detail)));
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
    async fn empty_keys(&mut self, table: &TableRun, rows: &[(usize, &SourceRow)]) -> Result<(), Refusal> {
        let statement = self.prepare(&statements::delete(&table.written, &table.equality)).await?;
        let arrays = key_arrays(&table.mapping, rows.iter().map(|(_, row)| &row.key))?;
        let params: Vec<&(dyn ToSql + Sync)> =
            arrays.iter().map(|array| -> &(dyn ToSql + Sync) { array }).collect();
        self.session.execute(&statement, &params).await.map(drop).map_err(|error| refusal(&self.claim, error))
    }
}
