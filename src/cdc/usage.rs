//! Who still uses the old tables: while the service has the authority, the way back's mirror watches what others read on the
//! monolith. `strangler retire --report` shows it.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::error::MirrorError;
use crate::journal::usage::{self, Counted, How, SETTLES_US, TableUse, TableUser};
use crate::journal::{JournalError, slices};
use crate::name::{TableName, identifiers_in, is_named};
use crate::postgres::statements_seen;
use crate::words::statement;

/// Every how many looks the counters are read: a look takes two seconds.
const COUNT_EVERY: u64 = 2;
/// Every how many looks the statements are read: a server keeps thousands of them in a file.
const STATEMENTS_EVERY: u64 = 30;
/// Longest statement that is kept, in characters: enough to find it in the application's code.
const STATEMENT_CHARS: usize = 200;

/// Table, role and `queryid`.
type StatementKey = (String, String, i64);

/// Watches one slice's old tables.
#[derive(Debug)]
pub(super) struct UseWatch {
    slice: String,
    /// By the monolith's names.
    tables: Vec<TableName>,
    looks: u64,
    /// How often each statement had run when it was last looked at; `None` before the first look.
    ran: Option<HashMap<StatementKey, i64>>,
}

impl UseWatch {
    /// For the tables of a slice.
    pub(super) fn new(slice: &str, tables: Vec<TableName>) -> Self {
        Self { slice: slice.to_owned(), tables, looks: 0, ran: None }
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
        if self.looks.is_multiple_of(COUNT_EVERY) {
            self.count(monolith, gate.epoch).await?;
        }
        if self.looks.is_multiple_of(STATEMENTS_EVERY) {
            self.look_at_statements(monolith).await?;
        }
        self.looks += 1;
        Ok(())
    }

    async fn count(&self, monolith: &Client, epoch: i64) -> Result<(), JournalError> {
        let known: HashMap<String, TableUse> =
            usage::tables(monolith, &self.slice).await?.into_iter().collect();
        let counted = usage::count(monolith, &self.tables).await?;
        let labels = self.tables.iter().map(ToString::to_string);
        let rows: Vec<(String, TableUse)> = labels
            .zip(counted)
            .map(|(label, now)| {
                let table = judge(known.get(&label), now, epoch);
                (label, table)
            })
            .collect();
        usage::save(monolith, &self.slice, &rows).await
    }

    /// Statements that name a table and have run since the last look. Before the watch has settled they are noted as having been
    /// there before.
    async fn look_at_statements(&mut self, monolith: &Client) -> Result<(), MirrorError> {
        let seen = statements_seen::naming(monolith, &self.tables).await;
        let Ok(seen) = seen.map_err(MirrorError::sql("reading pg_stat_statements"))? else { return Ok(()) };
        let settled = self.settled(monolith).await?;
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
        self.ran = Some(ran);
        Ok(())
    }

    /// Whether the watch over the tables has begun to count.
    async fn settled(&self, monolith: &Client) -> Result<bool, JournalError> {
        let known = usage::tables(monolith, &self.slice).await?;
        Ok(known.iter().all(|(_, table)| table.since_us <= table.sampled_us))
    }

    /// How often the statements had run that an earlier mirror has noted.
    async fn noted(&self, monolith: &Client) -> Result<HashMap<StatementKey, i64>, JournalError> {
        let users = usage::users(monolith, &self.slice).await?;
        let statements = users.into_iter().filter(|user| user.how == How::Statement);
        Ok(statements.map(|user| ((user.source_table, user.role, user.statement_id), user.calls)).collect())
    }
}

/// What is known of a table after another look at its counters.
fn judge(before: Option<&TableUse>, now: Counted, epoch: i64) -> TableUse {
    let beyond = now.scans - now.own;
    let Some(before) = before.filter(|before| before.epoch == epoch) else {
        return TableUse {
            epoch,
            since_us: now.at_us + SETTLES_US,
            scans: now.scans,
            most: beyond,
            others: 0,
            unseen_us: None,
            last_us: None,
            sampled_us: now.at_us,
        };
    };
    let mut table = TableUse { scans: now.scans, sampled_us: now.at_us, ..before.clone() };
    if now.scans < before.scans {
        table.unseen_us = Some((before.sampled_us, now.at_us));
        table.most = beyond;
        return table;
    }
    let settling = now.at_us < table.since_us
        || table.unseen_us.is_some_and(|(_, until)| now.at_us < until + SETTLES_US);
    if beyond > table.most {
        if !settling {
            table.others += beyond - table.most;
            table.last_us = Some((before.sampled_us, now.at_us));
        }
        table.most = beyond;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn counted(scans: i64, own: i64, second: i64) -> Counted {
        Counted { scans, own, at_us: second * SECOND }
    }

    /// Looked at in turn, in epoch 2.
    fn after(looks: &[Counted]) -> TableUse {
        let fold = |before: Option<TableUse>, now: &Counted| Some(judge(before.as_ref(), *now, 2));
        looks.iter().fold(None, fold).unwrap()
    }

    #[test]
    fn whatever_goes_beyond_our_own_scans_is_somebodys() {
        let quiet = after(&[counted(100, 0, 0), counted(140, 40, 70), counted(150, 50, 74)]);
        assert_eq!((quiet.others, quiet.last_us), (0, None));
        let read =
            after(&[counted(100, 0, 0), counted(140, 40, 70), counted(153, 50, 74), counted(153, 50, 78)]);
        assert_eq!((read.others, read.last_us), (3, Some((70 * SECOND, 74 * SECOND))));
    }

    #[test]
    fn scans_of_ours_that_the_server_has_not_counted_yet_hide_nothing_for_good() {
        let looks = [counted(100, 0, 0), counted(100, 5, 70), counted(103, 5, 74), counted(106, 5, 78)];
        assert_eq!(after(&looks).others, 1);
    }

    #[test]
    fn what_was_read_before_the_watch_settled_does_not_count() {
        let looks = [counted(100, 0, 0), counted(130, 10, 59), counted(140, 20, 61)];
        assert_eq!((after(&looks).others, after(&looks).since_us), (0, 60 * SECOND));
    }

    #[test]
    fn counters_that_were_lost_leave_a_gap_and_a_new_beginning() {
        let looks = [
            counted(100, 0, 0),
            counted(104, 0, 70),
            counted(3, 2, 80),
            counted(9, 2, 100),
            counted(11, 3, 150),
        ];
        let table = after(&looks);
        assert_eq!(table.unseen_us, Some((70 * SECOND, 80 * SECOND)));
        assert_eq!((table.others, table.last_us), (5, Some((100 * SECOND, 150 * SECOND))));
    }

    #[test]
    fn another_epoch_is_another_watch() {
        let before = after(&[counted(100, 0, 0), counted(105, 0, 70)]);
        assert_eq!(before.others, 5);
        let anew = judge(Some(&before), counted(200, 0, 80), 4);
        assert_eq!((anew.others, anew.last_us, anew.since_us), (0, None, 140 * SECOND));
    }
}
