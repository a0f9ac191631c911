//! Whether the publication still carries every kind of change, row and column: what it leaves out never arrives, and
//! nothing else would say so.

use tokio_postgres::Client;

use super::error::MirrorError;
use crate::name::quote_ident;

/// Refuses to follow a publication that lost a kind of change, rows or columns since it was provisioned. One
/// that is gone is left to the server, which refuses by itself.
///
/// # Errors
/// [`MirrorError::Refused`] with what to run on the monolith; [`MirrorError::Sql`].
pub async fn check(source: &Client, publication: &str, slice: &str) -> Result<(), MirrorError> {
    // Row filters and column lists came with PostgreSQL 15, so the columns are looked for by name.
    let row = source
        .query_opt(
            "SELECT pubviaroot AND pubinsert AND pubupdate AND pubdelete AND pubtruncate, \
                 ARRAY(SELECT r.prrelid::regclass::text FROM pg_publication_rel r WHERE r.prpubid = p.oid \
                     AND coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') IS NOT NULL ORDER BY 1) \
             FROM pg_publication p WHERE pubname = $1",
            &[&publication],
        )
        .await
        .map_err(MirrorError::sql("reading the publication"))?;
    let Some(row) = row else { return Ok(()) };
    let (whole, restricted): (bool, Vec<String>) = (row.get(0), row.get(1));
    let name = quote_ident(publication);
    let (mut facts, mut remedies) = (Vec::new(), Vec::new());
    for table in &restricted {
        facts.push(format!("leaves out rows or columns of {table}"));
        remedies
            .push(format!("ALTER PUBLICATION {name} DROP TABLE {table}; the same with ADD TABLE {table};"));
    }
    if !whole {
        facts.push("does not carry every kind of change".to_owned());
        remedies.push(format!(
            "ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate', \
             publish_via_partition_root = true);"
        ));
    }
    if facts.is_empty() {
        return Ok(());
    }
    Err(MirrorError::Refused {
        what: format!(
            "the publication {publication} {}: changes made since then are missing from the stream",
            facts.join(", ")
        ),
        next: format!(
            "on the monolith: {} Then strangler mirror PLAN --slice {} --rebuild",
            remedies.join(" "),
            slice
        ),
    })
}
