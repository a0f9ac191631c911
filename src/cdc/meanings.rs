//! What both sides make of a value: the stream carries it as text, which their types have to read alike, and their keys to tell
//! apart alike.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::collations;
use super::error::{MirrorError, Refusal};
use super::publication::compare;
use super::rounding;
use crate::journal::streams::Direction;
use crate::mapping::adopted::Misfit;
use crate::mapping::narrower;
use crate::mapping::type_tree::{TypeTree, apart};
use crate::mapping::{ColumnMapping, SliceMapping, TableMapping};
use crate::postgres::type_trees::{self, Trees};
use crate::words::shell_word;

/// A fact names so many columns; a wide table may have hundreds of one type.
const COLUMNS_SHOWN: usize = 8;

/// Why a mirror in this direction must not write values of the slice's columns into the types that its target has, or look rows up by
/// its keys, if it must not.
///
/// # Errors
/// [`MirrorError`].
pub async fn find_fault(
    (monolith, service): (&Client, &Client),
    mapping: &SliceMapping,
    direction: Direction,
) -> Result<Option<Refusal>, MirrorError> {
    let reading = || MirrorError::sql("reading what the columns' types are made of");
    let there = type_trees::read(monolith, mapping.tables.iter().map(|table| &table.source));
    let there = there.await.map_err(reading())?;
    if !there.is_empty() {
        let here = type_trees::read(service, mapping.tables.iter().map(|table| &table.target));
        let fault = judge(mapping, (&there, &here.await.map_err(reading())?), direction);
        if fault.is_some() {
            return Ok(fault);
        }
    }
    if let Some(fault) = collations::find_fault((monolith, service), mapping, direction).await? {
        return Ok(Some(fault));
    }
    match direction {
        Direction::Forward => rounding::find_fault((monolith, service), mapping).await,
        // An adopted column may be wider than the monolith's.
        Direction::Reverse => Ok(None),
    }
}

/// The same as a refusal to start.
///
/// # Errors
/// [`MirrorError::Refused`] among others.
pub async fn check(
    sides: (&Client, &Client),
    mapping: &SliceMapping,
    direction: Direction,
) -> Result<(), MirrorError> {
    find_fault(sides, mapping, direction).await?.map_or(Ok(()), |refusal| Err(refusal.into()))
}

/// Why the monolith's types refuse what the service's take, in tables of these names: asked of a way back over which a value was
/// refused, because before that it is no fault.
///
/// # Errors
/// [`MirrorError`].
pub async fn find_refusing(
    (monolith, service): (&Client, &Client),
    mapping: &SliceMapping,
    refusing: &[String],
) -> Result<Option<Refusal>, MirrorError> {
    let reading = || MirrorError::sql("reading what the columns' types ask for");
    let tables = || mapping.tables.iter().filter(|table| refusing.contains(&table.source.to_string()));
    let (sources, targets) = (|| tables().map(|table| &table.source), || tables().map(|table| &table.target));
    let trees = (
        type_trees::read(monolith, sources()).await.map_err(reading())?,
        type_trees::read(service, targets()).await.map_err(reading())?,
    );
    let domains = (
        type_trees::domains(monolith, sources()).await.map_err(reading())?,
        type_trees::domains(service, targets()).await.map_err(reading())?,
    );
    let (mut facts, mut statements) = (Vec::new(), Vec::new());
    for (table, column) in tables().flat_map(|table| table.columns.iter().map(move |column| (table, column)))
    {
        let here = (table.source.clone(), column.source.clone());
        let there = (table.target.clone(), column.target.clone());
        let labels = trees.0.get(&here).zip(trees.1.get(&there));
        let labels = labels.and_then(|(monolith, service)| narrower::lacking(monolith, service));
        let theirs = domains.1.get(&there).map(Vec::as_slice).unwrap_or_default();
        let asked = domains.0.get(&here).and_then(|monolith| narrower::stricter(monolith, theirs));
        for misfit in labels.into_iter().chain(asked) {
            facts.push(format!("{}.{}: {}", table.source, column.source, misfit.fact));
            if !statements.contains(&misfit.next) {
                statements.push(misfit.next);
            }
        }
    }
    if facts.is_empty() {
        return Ok(None);
    }
    let statements = statements.join(" ");
    Ok(Some(Refusal {
        what: format!(
            "the monolith refuses a value that the service took, and the way back stands still before it: {}",
            facts.join("; ")
        ),
        next: format!(
            "run on the monolith: {}; a running mirror goes on within seconds by itself",
            statements.trim_end_matches(';')
        ),
        anew: false,
    }))
}

fn judge(mapping: &SliceMapping, sides: (&Trees, &Trees), direction: Direction) -> Option<Refusal> {
    // Many columns are often of one type, and one fact and statement are about all of them.
    let mut facts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut statements, mut retries) = (Vec::new(), String::new());
    for table in &mapping.tables {
        let misfits = table.columns.iter().filter_map(|c| Some((c, of_column(table, c, sides, direction)?)));
        let mut fits = true;
        for (column, misfit) in misfits {
            fits = false;
            facts.entry(misfit.fact).or_default().push(format!("{}.{}", table.source, column.source));
            if !statements.contains(&misfit.next) {
                statements.push(misfit.next);
            }
        }
        if !fits {
            retries.push_str(&format!(" --retry {}", shell_word(&table.source.to_string())));
        }
    }
    if facts.is_empty() {
        return None;
    }
    let what: Vec<String> =
        facts.iter().map(|(fact, columns)| format!("{}: {fact}", some_of(columns))).collect();
    let (statements, slice) = (statements.join(" "), &mapping.slice);
    let statements = statements.trim_end_matches(';');
    Some(Refusal {
        what: what.join("; "),
        next: match direction {
            Direction::Forward => format!(
                "{statements}; then strangler mirror PLAN --slice {slice}{retries}, which copies what is named again"
            ),
            Direction::Reverse => format!(
                "{statements}; a running mirror goes on within seconds by itself; then {}",
                compare(slice)
            ),
        },
        anew: false,
    })
}

fn some_of(columns: &[String]) -> String {
    let shown = columns.iter().take(COLUMNS_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match columns.len().saturating_sub(COLUMNS_SHOWN) {
        0 => shown,
        others => format!("{shown} and {others} more"),
    }
}

/// The side that is written into is brought in line, but for a label that the plan's filter names: it can't be changed once the
/// mirror has begun.
fn of_column(
    table: &TableMapping,
    column: &ColumnMapping,
    (monolith, service): (&Trees, &Trees),
    direction: Direction,
) -> Option<Misfit> {
    let there = monolith.get(&(table.source.clone(), column.source.clone()))?;
    let here = service.get(&(table.target.clone(), column.target.clone()))?;
    let misfit = apart(there, here)?;
    let filtered = matches!(there, TypeTree::Enum { .. })
        && table.filter.iter().any(|term| table.columns.get(term.column) == Some(column));
    let on_the_monolith = filtered == (direction == Direction::Forward);
    let (place, next) = match on_the_monolith.then(|| apart(here, there)).flatten() {
        Some(back) => ("on the monolith", back.next),
        None => ("in the service", misfit.next),
    };
    Some(Misfit { fact: misfit.fact, next: format!("run {place}: {next}") })
}
