//! Who still uses the old tables: while the service has the authority, the way back's mirror watches what others read on the
//! monolith. `strangler retire --report` shows it.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::error::MirrorError;
use crate::failpoint;
use crate::journal::usage::{self, Count, Counted, How, SETTLES_US, STATEMENT_CHARS, TableUse, TableUser};
use crate::journal::{JournalError, slices};
use crate::name::{TableName, identifiers_in, is_named};
use crate::postgres::statements_seen;
use crate::words::statement;

/// Every how many looks the counters are read: a look takes two seconds.
const COUNT_EVERY: u64 = 2;
/// A busy mirror reads a table some twenty times a second, and a look takes a millisecond.
const COUNT_TRIES: usize = 5;
/// Every how many looks at the counters the statements are read: a server keeps thousands of them in a file.
const STATEMENTS_EVERY: u64 = 15;

/// What is known of the tables, by the monolith's names.
type Known = HashMap<String, TableUse>;

/// Table, role and `queryid`.
type StatementKey = (String, String, i64);

/// Watches one slice's old tables.
#[derive(Debug)]
pub(super) struct UseWatch {
    slice: String,
    /// By the monolith's names.
    tables: Vec<TableName>,
    looks: u64,
    /// What was ours at the look before, where that matters.
    own_before: Option<Vec<Count>>,
    hands_over: Option<bool>,
    /// How often each statement had run when it was last looked at; `None` before the first look.
    ran: Option<HashMap<StatementKey, i64>>,
}

impl UseWatch {
    /// For the tables of a slice.
    pub(super) fn new(slice: &str, tables: Vec<TableName>) -> Self {
        Self { slice: slice.to_owned(), tables, looks: 0, own_before: None, hands_over: None, ran: None }
    }

    /// Looks at the monolith: at sessions each time, at counters and statements now and then.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(super) async fn look(&mut self, monolith: &Client) -> Result<(), MirrorError> {
        let Some(gate) = slices::gate(monolith, &self.slice).await? else { return Ok(()) };
        if gate.state == "OPEN" {
            return Ok(());
        }
        let met = usage::sessions(monolith, &self.tables).await?;
        let shown = |user: TableUser| TableUser {
            statement: statement::shown_within(&user.statement, STATEMENT_CHARS),
            ..user
        };
        let met: Vec<TableUser> = met.into_iter().map(shown).collect();
        usage::met(monolith, &self.slice, &met).await?;
        failpoint::hit("use-met");
        if self.looks.is_multiple_of(COUNT_EVERY) {
            let known = self.count(monolith, gate.epoch).await?;
            if self.looks.is_multiple_of(COUNT_EVERY * STATEMENTS_EVERY) {
                self.look_at_statements(monolith, has_settled(&known)).await?;
            }
        }
        self.looks += 1;
        Ok(())
    }

    /// Returns what is known of the tables after it. A table that the mirror itself reads right now is looked at again, and left
    /// for the next look in the end.
    async fn count(&mut self, monolith: &Client, epoch: i64) -> Result<Known, JournalError> {
        let mut known: Known = usage::tables(monolith, &self.slice).await?.into_iter().collect();
        let mut left = self.tables.clone();
        if !self.hands_over(monolith).await? {
            let own = usage::own(monolith, &self.tables).await?;
            let still = self.own_before.as_ref().is_some_and(|before| *before == own);
            self.own_before = Some(own);
            if !still {
                return Ok(known);
            }
        }
        for _ in 0..COUNT_TRIES {
            let counted = usage::count(monolith, &left).await?;
            let (mut rows, mut again) = (Vec::new(), Vec::new());
            for (table, now) in left.into_iter().zip(counted) {
                let label = table.to_string();
                match now {
                    Some(now) => rows.push((label.clone(), judge(known.get(&label), now, epoch))),
                    None => again.push(table),
                }
            }
            usage::save(monolith, &self.slice, &rows).await?;
            failpoint::hit("use-saved");
            known.extend(rows);
            if again.is_empty() {
                break;
            }
            left = again;
        }
        Ok(known)
    }

    /// Whether sessions hand their counts over at the end of a transaction (from PostgreSQL 15 on). Where they don't, only what was
    /// counted while nothing of ours was noted for a while is certain.
    async fn hands_over(&mut self, monolith: &Client) -> Result<bool, JournalError> {
        if let Some(known) = self.hands_over {
            return Ok(known);
        }
        let known = usage::hands_over(monolith).await?;
        self.hands_over = Some(known);
        Ok(known)
    }

    /// Statements that name a table and have run since the last look. Before the watch has settled they are noted as having been
    /// there before.
    async fn look_at_statements(&mut self, monolith: &Client, settled: bool) -> Result<(), MirrorError> {
        let seen = statements_seen::naming(monolith, &self.tables).await;
        let Ok(seen) = seen.map_err(MirrorError::sql("reading pg_stat_statements"))? else { return Ok(()) };
        let before = match self.ran.take() {
            Some(ran) => ran,
            None => self.noted(monolith).await?,
        };
        let (mut ran, mut met) = (before.clone(), Vec::new());
        for one in seen {
            let named = identifiers_in(&one.statement);
            for table in self.tables.iter().filter(|table| is_named(table, &named)) {
                let key = (table.to_string(), one.role.clone(), one.id);
                if before.get(&key) == Some(&one.calls) {
                    continue;
                }
                let at_us = (settled || before.contains_key(&key)).then_some(one.at_us);
                ran.insert(key, one.calls);
                met.push(TableUser {
                    source_table: table.to_string(),
                    how: How::Statement,
                    role: one.role.clone(),
                    application: String::new(),
                    client: String::new(),
                    statement_id: one.id,
                    statement: statement::shown_within(&one.statement, STATEMENT_CHARS),
                    calls: one.calls,
                    last_us: at_us,
                });
            }
        }
        usage::met(monolith, &self.slice, &met).await?;
        failpoint::hit("use-met");
        self.ran = Some(ran);
        Ok(())
    }

    /// How often the statements had run that an earlier mirror has noted.
    async fn noted(&self, monolith: &Client) -> Result<HashMap<StatementKey, i64>, JournalError> {
        let users = usage::users(monolith, &self.slice).await?;
        let statements = users.into_iter().filter(|user| user.how == How::Statement);
        Ok(statements.map(|user| ((user.source_table, user.role, user.statement_id), user.calls)).collect())
    }
}

/// Whether the watch over the tables has begun to count.
fn has_settled(known: &Known) -> bool {
    known.values().all(|table| table.since_us <= table.sampled_us)
}

/// What is known of a table after another look at its counters. What others have read never gets less: where it does, the server has
/// lost counts.
fn judge(before: Option<&TableUse>, now: Counted, epoch: i64) -> TableUse {
    let Some(before) = before.filter(|before| before.epoch == epoch) else {
        return TableUse {
            epoch,
            since_us: now.at_us + SETTLES_US,
            counted: now.others,
            others: Count::default(),
            unseen_us: None,
            last_us: None,
            sampled_us: now.at_us,
        };
    };
    let mut table = TableUse { counted: now.others, sampled_us: now.at_us, ..before.clone() };
    if now.others.falls_below(before.counted) {
        table.unseen_us = Some((before.sampled_us, now.at_us));
        return table;
    }
    let settling = now.at_us < table.since_us
        || table.unseen_us.is_some_and(|(_, until)| now.at_us < until + SETTLES_US);
    if now.others != before.counted && !settling {
        table.others = table.others + (now.others - before.counted);
        table.last_us = Some((before.sampled_us, now.at_us));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn counted(scans: i64, second: i64) -> Counted {
        Counted { others: Count { scans, rows: scans * 10 }, at_us: second * SECOND }
    }

    /// Looked at in turn, in epoch 2.
    fn after(looks: &[Counted]) -> TableUse {
        let fold = |before: Option<TableUse>, now: &Counted| Some(judge(before.as_ref(), *now, 2));
        looks.iter().fold(None, fold).unwrap()
    }

    #[test]
    fn whatever_others_read_is_counted_and_lies_between_two_looks() {
        let quiet = after(&[counted(100, 0), counted(100, 70), counted(100, 74)]);
        assert_eq!((quiet.others, quiet.last_us), (Count::default(), None));
        let read = after(&[counted(100, 0), counted(100, 70), counted(103, 74), counted(103, 78)]);
        assert_eq!((read.others.scans, read.last_us), (3, Some((70 * SECOND, 74 * SECOND))));
    }

    #[test]
    fn rows_that_were_read_without_a_scan_are_use() {
        let mut sampled = counted(100, 74);
        sampled.others.rows += 1;
        let read = after(&[counted(100, 0), counted(100, 70), sampled]);
        assert_eq!((read.others, read.last_us.is_some()), (Count { scans: 0, rows: 1 }, true));
    }

    #[test]
    fn what_was_read_before_the_watch_settled_does_not_count() {
        let looks = [counted(100, 0), counted(120, 59), counted(120, 61)];
        assert_eq!((after(&looks).others.scans, after(&looks).since_us), (0, 60 * SECOND));
    }

    #[test]
    fn counters_that_were_lost_leave_a_gap_and_a_new_beginning() {
        let looks = [counted(100, 0), counted(104, 70), counted(3, 80), counted(9, 100), counted(11, 150)];
        let table = after(&looks);
        assert_eq!(table.unseen_us, Some((70 * SECOND, 80 * SECOND)));
        assert_eq!((table.others.scans, table.last_us), (6, Some((100 * SECOND, 150 * SECOND))));
        let back = after(&[counted(100, 0), counted(100, 70), counted(-40, 80)]);
        assert_eq!(
            back.unseen_us,
            Some((70 * SECOND, 80 * SECOND)),
            "also where ours have passed the old number since"
        );
    }

    #[test]
    fn another_epoch_is_another_watch() {
        let before = after(&[counted(100, 0), counted(105, 70)]);
        assert_eq!(before.others.scans, 5);
        let anew = judge(Some(&before), counted(200, 80), 4);
        assert_eq!((anew.others.scans, anew.last_us, anew.since_us), (0, None, 140 * SECOND));
    }
}
