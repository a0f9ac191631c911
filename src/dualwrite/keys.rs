//! Whether both sides mean the same rows by a slice's keys: asked before gates are hung, and before authority moves.

use tokio_postgres::{Client, Error};

use crate::mapping::{SliceMapping, collated, keyed};
use crate::postgres;
use crate::problem::Problem;

/// Keys by which the sides don't tell the same rows apart, and tables of the service in which nothing keeps a row of a key from being there
/// twice.
///
/// # Errors
/// What a server said.
pub async fn problems(
    (monolith, service): (&Client, &Client),
    mapping: &SliceMapping,
) -> Result<Vec<Problem>, Error> {
    let apart = postgres::collations::apart((monolith, service), mapping.tables.iter()).await?;
    let apart = apart.into_iter().map(|(_, misfit)| collated::problem(&mapping.service, misfit));
    let keyless = postgres::keyed::keyless(service, &mapping.tables).await?.into_iter();
    let keyless = keyless
        .map(|table| keyed::problem(table, format!("service {}, table {}", mapping.service, table.target)));
    Ok(apart.chain(keyless).collect())
}
