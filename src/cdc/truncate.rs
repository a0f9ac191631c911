//! TRUNCATE: every copied row that it concerns goes, in its place in the stream.

use std::sync::{Mutex, PoisonError};

use tokio_postgres::Client;

use super::apply::Applier;
use super::borders::target_range_condition;
use super::emptying::{LOCK_TIMEOUT_MS, is_busy};
use super::error::MirrorError;
use super::source;
use super::start::{InUse, empty_table};
use super::table::TableRun;
use crate::journal::copies::TableState;
use crate::journal::{baselines, grounds};
use crate::landing::key::Key;
use crate::landing::pieces::{EventOrigin, Truncation};
use crate::mapping::input::key_value_sql;
use crate::mapping::{ColumnMapping, TableMapping};
use crate::name::{quote_ident, quote_literal};
use crate::postgres::equality::BUILT_IN;

/// Applies a TRUNCATE of one table inside the open target transaction. The batch must have been flushed before.
///
/// # Errors
/// [`MirrorError`].
pub async fn apply(
    applier: &mut Applier,
    table: &TableRun,
    (event, in_vain): (EventOrigin, &InVain),
) -> Result<(), MirrorError> {
    if table.state == TableState::Live {
        applier.touched().add_all(&table.label);
    }
    let slice = applier.claim().slice.clone();
    applier.open_session().await?;
    applier.will_read(std::iter::once(table)).await?;
    let session = applier.session();
    let mapping = &table.mapping;
    if mapping.partitioned && !mapping.reversed {
        // Its partitions get other files by this, which the watch over them must know. The way back's is in memory.
        baselines::note_truncate(session, &slice, &table.label, event.xid).await?;
    }
    match table.pieces.truncation(&event) {
        // The monolith's table also holds what the filter leaves to others.
        Truncation::All if mapping.reversed && !mapping.filter.is_empty() => {
            let sql = delete(mapping, mapping.target_filter_sql().as_deref(), None);
            session.batch_execute(&sql).await.map_err(MirrorError::sql("applying a TRUNCATE"))
        }
        Truncation::All => {
            empty(session, mapping, (event.xid, in_vain)).await?;
            // By its files it is told from a copy that a crash, or somebody, has emptied.
            Ok(grounds::note_emptied(session, &slice, &table.label, &mapping.target.sql()).await?)
        }
        Truncation::Some { whole, ranges, keys_gone, keys_kept } => {
            let mut statements = Vec::new();
            let kept = if keys_kept.is_empty() {
                None
            } else {
                Some(format!("NOT {}", keys_condition(table, &keys_kept)))
            };
            if whole {
                statements.push(delete(mapping, None, kept.as_deref()));
            }
            for range in ranges {
                statements.push(delete(
                    mapping,
                    target_range_condition(mapping, range).as_deref(),
                    kept.as_deref(),
                ));
            }
            if !keys_gone.is_empty() {
                statements.push(delete(mapping, Some(&keys_condition(table, &keys_gone)), None));
            }
            for sql in statements {
                session.batch_execute(&sql).await.map_err(MirrorError::sql("applying a TRUNCATE"))?;
            }
            Ok(())
        }
    }
}

/// Attempts after which a TRUNCATE becomes a DELETE where readers still leave no moment for it: with the pauses between them some ten
/// seconds, in which all but an endless row of readers have ended. DELETE takes as long as the table is large and leaves its rows to
/// VACUUM, but waits for nobody who reads. It means the same here: foreign keys and the triggers of users don't fire on what the
/// apply role writes, what CASCADE reached comes as tables of their own, and sequences are not the stream's.
const ATTEMPTS_MAX: u32 = 5;

/// How often a TRUNCATE was given up. Each transaction of the source counts for itself, so what has come through once leaves nothing to
/// the next.
#[derive(Debug, Default)]
pub struct InVain(Mutex<(u32, u32)>);

impl InVain {
    fn of(&self, xid: u32) -> u32 {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 == xid { held.1 } else { 0 }
    }

    fn add(&self, xid: u32) {
        let attempts = self.of(xid).saturating_add(1);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (xid, attempts);
    }
}

/// Empties the target's table, unless somebody uses it: the application's readers would queue behind whoever waits for that. The
/// transaction is given up then, and comes again with the stream, for its position goes with it.
async fn empty(
    session: &Client,
    mapping: &TableMapping,
    (xid, in_vain): (u32, &InVain),
) -> Result<(), MirrorError> {
    let failed = || MirrorError::sql("applying a TRUNCATE");
    let patience = format!("SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}");
    session.batch_execute(&patience).await.map_err(failed())?;
    let target = mapping.target.sql();
    let in_use = if in_vain.of(xid) < ATTEMPTS_MAX { InUse::GiveUp } else { InUse::Delete };
    match empty_table(session, &target, in_use).await {
        Err(error) if is_busy(&error) => {
            in_vain.add(xid);
            session.batch_execute("ROLLBACK").await.map_err(failed())?;
            let who = source::lock_holder(session, &[target]).await?;
            Err(MirrorError::InUse {
                what: format!("a TRUNCATE waits while table {} is in use: {who}", mapping.target),
            })
        }
        Err(error) => Err(error),
        Ok(()) => session.batch_execute("SET LOCAL lock_timeout = 0").await.map_err(failed()),
    }
}

fn delete(mapping: &TableMapping, first: Option<&str>, second: Option<&str>) -> String {
    let terms: Vec<&str> = first.into_iter().chain(second).collect();
    let condition = if terms.is_empty() { String::new() } else { format!(" WHERE {}", terms.join(" AND ")) };
    format!("DELETE FROM {}{condition}", mapping.target.sql())
}

/// Rows of these keys. What the target's index calls equal is, as everywhere else: see [`equality`](crate::postgres::equality).
fn keys_condition(table: &TableRun, keys: &[Key]) -> String {
    let terms = |key: &Key| {
        let columns = table.written.key_columns().zip(key.to_strings()).enumerate();
        let term = |(number, (column, value)): (usize, (&ColumnMapping, String))| {
            let equals = table.equality.get(number).map_or(BUILT_IN, String::as_str);
            let value = key_value_sql(&column.cast_sql, &quote_literal(&value));
            format!("{} {equals} {value}", quote_ident(&column.target))
        };
        format!("({})", columns.map(term).collect::<Vec<_>>().join(" AND "))
    };
    format!("({})", keys.iter().map(terms).collect::<Vec<_>>().join(" OR "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_count_for_the_transaction_that_was_given_up_and_for_no_other() {
        let in_vain = InVain::default();
        (0..ATTEMPTS_MAX).for_each(|_| in_vain.add(7));
        assert_eq!((in_vain.of(7), in_vain.of(8)), (ATTEMPTS_MAX, 0));
        in_vain.add(8);
        assert_eq!((in_vain.of(7), in_vain.of(8)), (0, 1));
    }
}
