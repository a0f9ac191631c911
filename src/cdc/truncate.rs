//! TRUNCATE: every copied row that it concerns goes, in its place in the stream.

use super::apply::Applier;
use super::borders::target_range_condition;
use super::error::MirrorError;
use super::start::empty_table;
use super::table::TableRun;
use crate::journal::baselines;
use crate::journal::copies::TableState;
use crate::landing::key::Key;
use crate::landing::pieces::{EventOrigin, Truncation};
use crate::mapping::TableMapping;
use crate::name::{quote_ident, quote_literal};

/// Applies a TRUNCATE of one table inside the open target transaction. The batch must have been flushed before.
///
/// # Errors
/// [`MirrorError`].
pub async fn apply(applier: &mut Applier, table: &TableRun, event: EventOrigin) -> Result<(), MirrorError> {
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
        Truncation::All => empty_table(session, &mapping.target.sql()).await,
        Truncation::Some { whole, ranges, keys_gone, keys_kept } => {
            let mut statements = Vec::new();
            let kept = if keys_kept.is_empty() {
                None
            } else {
                Some(format!("NOT {}", keys_condition(&table.written, &keys_kept)))
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
                statements.push(delete(mapping, Some(&keys_condition(&table.written, &keys_gone)), None));
            }
            for sql in statements {
                session.batch_execute(&sql).await.map_err(MirrorError::sql("applying a TRUNCATE"))?;
            }
            Ok(())
        }
    }
}

fn delete(mapping: &TableMapping, first: Option<&str>, second: Option<&str>) -> String {
    let terms: Vec<&str> = first.into_iter().chain(second).collect();
    let condition = if terms.is_empty() { String::new() } else { format!(" WHERE {}", terms.join(" AND ")) };
    format!("DELETE FROM {}{condition}", mapping.target.sql())
}

fn keys_condition(mapping: &TableMapping, keys: &[Key]) -> String {
    let columns: Vec<_> = mapping.key_columns().collect();
    let names: Vec<String> = columns.iter().map(|column| quote_ident(&column.target)).collect();
    let rows: Vec<String> = keys
        .iter()
        .map(|key| {
            let values: Vec<String> = key
                .to_strings()
                .iter()
                .zip(&columns)
                .map(|(value, column)| format!("{}::{}", quote_literal(value), column.cast_sql))
                .collect();
            format!("({})", values.join(", "))
        })
        .collect();
    format!("(({}) IN ({}))", names.join(", "), rows.join(", "))
}
