//! Views in place of the tables that a stream writes: rows that they leave out would be written and never seen again.

use tokio_postgres::Client;

use super::error::{MirrorError, Refusal};
use crate::journal::streams::Direction;
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::TableName;
use crate::postgres::stand_ins;

/// Why a mirror in this direction must not write into what its target has under the tables' names, if it must not.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn find_fault(
    target: &Client,
    mapping: &SliceMapping,
    direction: Direction,
) -> Result<Option<Refusal>, MirrorError> {
    let name = |table: &TableMapping| match direction {
        Direction::Forward => table.target.clone(),
        Direction::Reverse => table.source.clone(),
    };
    let tables: Vec<TableName> = mapping.tables.iter().map(name).collect();
    let found = stand_ins::read(target, &tables).await;
    let found = found.map_err(MirrorError::sql("looking for views in place of tables"))?;
    if found.is_empty() {
        return Ok(None);
    }
    let (facts, statements): (Vec<String>, Vec<String>) =
        found.iter().map(|one| (one.to_string(), one.undo())).unzip();
    let place = direction.target();
    Ok(Some(Refusal {
        what: format!("on the {place}, {}, and may leave rows out that the mirror writes", facts.join("; ")),
        next: format!(
            "run on the {place}: {}; then strangler mirror PLAN --slice {}",
            statements.join("; "),
            mapping.slice
        ),
        anew: false,
    }))
}

/// The same as a refusal to start.
///
/// # Errors
/// [`MirrorError::Refused`] among others.
pub async fn check(target: &Client, mapping: &SliceMapping, direction: Direction) -> Result<(), MirrorError> {
    find_fault(target, mapping, direction).await?.map_or(Ok(()), |refusal| Err(refusal.into()))
}
