//! Rows that the target does not take together, one after the other: which of them it refuses, and which it takes as things are.

use std::time::Instant;

use futures_util::future::{join_all, join3};
use tokio_postgres::types::ToSql;

use super::replace::{Form, SourceRow, forms};
use super::{Applier, PIPELINE_MAX, Refusal, refusal, value_text};
use crate::cdc::error::MirrorError;
use crate::cdc::statements;
use crate::cdc::table::TableRun;

/// Rows whose insertion is tried without waiting for the one before: each takes three statements.
const TRIED_AT_ONCE: usize = PIPELINE_MAX / 3;
/// Rows that are set in one go before each of them is set on its own.
const SET_AT_ONCE: usize = 16;

/// What was set on its own, and what there was no time for.
#[derive(Debug, Default)]
pub(super) struct Singly {
    /// Places of rows that the target refused, with the reason.
    pub(super) failed: Vec<(usize, String)>,
    /// Places of rows that were not tried.
    pub(super) untried: Vec<usize>,
}

impl Applier {
    /// Those of the rows that the target refuses whatever the others are, as far as there is time to find them. Nothing is changed.
    ///
    /// Where a row holds no more than is mapped, all keys are emptied first, and then each row is tried by itself. Else a row can't be put
    /// back once it is gone, so each is set as things are.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(super) async fn refused_alone(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
        until: Instant,
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        self.savepoint("SAVEPOINT repair; SET CONSTRAINTS ALL IMMEDIATE").await?;
        let failed = if table.mapping.reversed || !table.rows_are_whole() {
            self.set_each(table, rows, until).await?.failed
        } else {
            let mut failed = self.empty_all(table, rows).await?;
            for some in rows.chunks(TRIED_AT_ONCE) {
                if Instant::now() >= until {
                    break;
                }
                let some: Vec<(usize, &SourceRow)> = some
                    .iter()
                    .filter(|(place, _)| failed.iter().all(|(other, _)| other != place))
                    .copied()
                    .collect();
                failed.extend(self.try_each(table, &some).await?);
            }
            failed
        };
        self.savepoint("ROLLBACK TO SAVEPOINT repair; RELEASE SAVEPOINT repair").await?;
        Ok(failed)
    }

    /// Each row on its own, as long as there is time. Those that failed stay as they are.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(super) async fn one_by_one(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
        until: Instant,
    ) -> Result<Singly, MirrorError> {
        self.savepoint("SAVEPOINT repair; SET CONSTRAINTS ALL IMMEDIATE").await?;
        let set = self.set_each(table, rows, until).await?;
        self.savepoint("RELEASE SAVEPOINT repair").await?;
        Ok(set)
    }

    /// Takes away what the target has under the keys. Returns those where it refused that: halves of what is refused are tried again.
    async fn empty_all(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        let (mut failed, mut groups) = (Vec::new(), vec![rows]);
        while let Some(group) = groups.pop() {
            self.savepoint("SAVEPOINT one").await?;
            let keys: Vec<&SourceRow> = group.iter().map(|(_, row)| *row).collect();
            let emptied = self.empty_keys(table, &keys).await;
            match (self.close_one(emptied).await?, group) {
                (None, _) => {}
                (Some(why), [(place, _)]) => failed.push((*place, why)),
                (Some(_), _) => {
                    let (one, other) = group.split_at(group.len() / 2);
                    groups.extend([one, other]);
                }
            }
        }
        Ok(failed)
    }

    /// Inserts each row and takes it back. Returns those that were refused.
    async fn try_each(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
    ) -> Result<Vec<(usize, String)>, MirrorError> {
        let statement = match self.prepare(&statements::insert(&table.written)).await {
            Ok(statement) => statement,
            Err(Refusal::Fatal(error)) => return Err(error),
            Err(Refusal::Table(trouble)) => return Ok(all_refused(rows, &trouble.detail)),
        };
        let (mut failed, mut tried) = (Vec::new(), Vec::new());
        for (place, row) in rows {
            let Some(tuple) = &row.row else { continue };
            let values = (0..table.mapping.columns.len())
                .map(|column| value_text(tuple.get(column)).map(|one| vec![one]));
            match values.collect::<Result<Vec<_>, _>>() {
                Ok(values) => tried.push((*place, values)),
                Err(Refusal::Fatal(error)) => return Err(error),
                Err(Refusal::Table(trouble)) => failed.push((*place, trouble.detail)),
            }
        }
        let session = &self.session;
        // The futures are first polled in this order, and what they send goes out in it.
        let running = tried.iter().map(|(_, values)| {
            let statement = &statement;
            async move {
                let params: Vec<&(dyn ToSql + Sync)> =
                    values.iter().map(|array| -> &(dyn ToSql + Sync) { array }).collect();
                let (begun, inserted, undone) = join3(
                    session.batch_execute("SAVEPOINT one"),
                    session.execute(statement, &params),
                    session.batch_execute("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one"),
                )
                .await;
                begun.and(undone).map(|()| inserted)
            }
        });
        let answers = join_all(running).await;
        for ((place, _), answer) in tried.iter().zip(answers) {
            let inserted = answer.map_err(MirrorError::sql("setting a savepoint"))?;
            match inserted.map_err(|error| refusal(&self.claim, error)) {
                Ok(1) => {}
                Ok(rows) => failed.push((*place, format!("{rows} rows were met where 1 had to be"))),
                Err(Refusal::Fatal(error)) => return Err(error),
                Err(Refusal::Table(trouble)) => failed.push((*place, trouble.detail)),
            }
        }
        Ok(failed)
    }

    /// Sets some rows at a time, and each of those that are refused so behind a savepoint of its own.
    async fn set_each(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
        until: Instant,
    ) -> Result<Singly, MirrorError> {
        let mut set = Singly::default();
        for (number, some) in rows.chunks(SET_AT_ONCE).enumerate() {
            // Some are always set, or attempts would never end.
            if number > 0 && Instant::now() >= until {
                set.untried.extend(some.iter().map(|(place, _)| *place));
                continue;
            }
            match (self.set_some(table, some).await?, some) {
                (None, _) => {}
                (Some(why), [(place, _)]) => set.failed.push((*place, why)),
                (Some(_), _) => {
                    for one in some.chunks(1) {
                        let failed = self.set_some(table, one).await?;
                        set.failed.extend(failed.into_iter().flat_map(|why| all_refused(one, &why)));
                    }
                }
            }
        }
        Ok(set)
    }

    /// Behind a savepoint. Returns why they were refused, if they were; they stay as they are then.
    async fn set_some(
        &mut self,
        table: &TableRun,
        rows: &[(usize, &SourceRow)],
    ) -> Result<Option<String>, MirrorError> {
        let form = forms(table).first().copied().unwrap_or(Form::Anew);
        let rows: Vec<&SourceRow> = rows.iter().map(|(_, row)| *row).collect();
        self.savepoint("SAVEPOINT one").await?;
        let set = self.put(table, &rows, form).await;
        self.close_one(set).await
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
}

fn all_refused(rows: &[(usize, &SourceRow)], why: &str) -> Vec<(usize, String)> {
    rows.iter().map(|(place, _)| (*place, why.to_owned())).collect()
}
