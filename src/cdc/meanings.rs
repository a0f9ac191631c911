//! Types of the user's: the stream carries values as text, which both sides' types have to read alike.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::error::{MirrorError, Refusal};
use crate::mapping::adopted::Misfit;
use crate::mapping::type_tree::{TypeTree, apart};
use crate::mapping::{ColumnMapping, SliceMapping, TableMapping};
use crate::postgres::type_trees::{self, Trees};

/// A fact names so many columns; a wide table may have hundreds of one type.
const COLUMNS_SHOWN: usize = 8;

/// Why the mirror must not write values of the slice's columns into the types that the service has, if it must not.
///
/// # Errors
/// [`MirrorError`].
pub async fn find_fault(
    source: &Client,
    target: &Client,
    mapping: &SliceMapping,
) -> Result<Option<Refusal>, MirrorError> {
    let reading = || MirrorError::sql("reading what the columns' types are made of");
    let monolith = type_trees::read(source, mapping.tables.iter().map(|table| &table.source));
    let monolith = monolith.await.map_err(reading())?;
    if monolith.is_empty() {
        return Ok(None);
    }
    let service = type_trees::read(target, mapping.tables.iter().map(|table| &table.target));
    Ok(judge(mapping, &monolith, &service.await.map_err(reading())?))
}

/// The same as a refusal to start.
///
/// # Errors
/// [`MirrorError::Refused`] among others.
pub async fn check(source: &Client, target: &Client, mapping: &SliceMapping) -> Result<(), MirrorError> {
    find_fault(source, target, mapping).await?.map_or(Ok(()), |refusal| Err(refusal.into()))
}

fn judge(mapping: &SliceMapping, monolith: &Trees, service: &Trees) -> Option<Refusal> {
    // Many columns are often of one type, and one fact and statement are about all of them.
    let mut facts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut statements, mut retries) = (Vec::new(), String::new());
    for table in &mapping.tables {
        let misfits = table.columns.iter().filter_map(|c| Some((c, of_column(table, c, monolith, service)?)));
        let mut fits = true;
        for (column, misfit) in misfits {
            fits = false;
            facts.entry(misfit.fact).or_default().push(format!("{}.{}", table.source, column.source));
            if !statements.contains(&misfit.next) {
                statements.push(misfit.next);
            }
        }
        if !fits {
            retries.push_str(&format!(" --retry {}", table.source));
        }
    }
    if facts.is_empty() {
        return None;
    }
    let what: Vec<String> =
        facts.iter().map(|(fact, columns)| format!("{}: {fact}", some_of(columns))).collect();
    Some(Refusal {
        what: what.join("; "),
        next: format!(
            "{}; then strangler mirror PLAN --slice {}{retries}, which copies what is named again",
            statements.join(" ").trim_end_matches(';'),
            mapping.slice
        ),
    })
}

fn some_of(columns: &[String]) -> String {
    let shown = columns.iter().take(COLUMNS_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match columns.len().saturating_sub(COLUMNS_SHOWN) {
        0 => shown,
        others => format!("{shown} and {others} more"),
    }
}

fn of_column(
    table: &TableMapping,
    column: &ColumnMapping,
    monolith: &Trees,
    service: &Trees,
) -> Option<Misfit> {
    let there = monolith.get(&(table.source.clone(), column.source.clone()))?;
    let here = service.get(&(table.target.clone(), column.target.clone()))?;
    let misfit = apart(there, here)?;
    let filtered = table.filter.iter().any(|term| table.columns.get(term.column) == Some(column));
    // The plan's filter names the label, and a filter can't be changed once the mirror has begun.
    let back = filtered.then(|| apart(here, there)).flatten();
    let (place, next) = match (back, there) {
        (Some(back), TypeTree::Enum { .. }) => ("on the monolith", back.next),
        _ => ("in the service", misfit.next),
    };
    Some(Misfit { fact: misfit.fact, next: format!("run {place}: {next}") })
}
