//! What is asked before rows of the service are emptied to be copied again: a copy that would be refused afterwards leaves its
//! readers with nothing.

use tokio_postgres::Client;

use super::error::MirrorError;
use super::{contents, generated, meanings};
use crate::journal::streams::Direction;
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::quote_ident;

/// Refuses where the tables can't be mirrored as they are, or those that are to be copied again can't be read.
///
/// # Errors
/// [`MirrorError::Refused`] among others.
pub(super) async fn check(
    (source, target): (&Client, &Client),
    mapping: &SliceMapping,
    copied: impl Iterator<Item = &TableMapping>,
) -> Result<(), MirrorError> {
    if let Some(refusal) = contents::children(source, mapping).await? {
        return Err(refusal.into());
    }
    meanings::check((source, target), mapping, Direction::Forward).await?;
    generated::check(source, target, mapping).await?;
    for table in copied {
        let columns: Vec<String> = table.columns.iter().map(|column| quote_ident(&column.source)).collect();
        // Rights and row level security are looked at before the first row.
        let sql = format!("SELECT {} FROM {} LIMIT 0", columns.join(", "), table.source.sql());
        source.batch_execute(&sql).await.map_err(MirrorError::sql("reading a table that is to be copied"))?;
    }
    Ok(())
}
