//! The way back: the tables of a slice as the stream from the service to the monolith carries them.

use std::sync::Arc;

use tokio_postgres::Client;

use super::error::MirrorError;
use super::launch::{self, Links};
use super::publication::{Named, Published};
use super::stamp::{self, WayBack};
use super::table::{TableRun, Target};
use crate::failpoint;
use crate::journal::alarms;
use crate::journal::claims::Claim;
use crate::journal::copies::{self, TableState};
use crate::mapping::inverse::{ServiceTable, inverse};
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::TableName;

/// The inverse mappings of a slice's tables, joined with the service's catalog as it is now.
///
/// # Errors
/// [`MirrorError::Refused`] when a table or a column of the mapping is gone from the service.
pub(crate) async fn mappings(
    service: &Client,
    slice: &SliceMapping,
) -> Result<Vec<TableMapping>, MirrorError> {
    let mut found = Vec::with_capacity(slice.tables.len());
    for table in &slice.tables {
        let there = service_table(service, &table.target).await?;
        let turned = inverse(table, &there).map_err(|error| MirrorError::Refused {
            what: format!("slice {} can't be mirrored back: {error}", slice.slice),
            next: "strangler check PLAN".to_owned(),
        })?;
        found.push(turned);
    }
    Ok(found)
}

/// Columns whose values a stream carries: not generated ones, which pgoutput leaves out before PostgreSQL 18 and
/// publishes there only on demand.
async fn service_table(service: &Client, table: &TableName) -> Result<ServiceTable, MirrorError> {
    let rows = service
        .query(
            "SELECT a.attname::text, a.atttypid, c.relkind = 'p' FROM pg_attribute a \
                 JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped \
               AND a.attgenerated = '' ORDER BY a.attnum",
            &[&table.place_schema(), &table.name],
        )
        .await
        .map_err(MirrorError::sql("reading the columns of a service's table"))?;
    Ok(ServiceTable {
        columns: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        partitioned: rows.first().is_some_and(|row| row.get(2)),
    })
}

/// The tables of a way back. There is nothing to copy: they are live from the slot's first position on, because
/// everything before it came from the monolith itself.
pub(super) async fn restore_tables(
    links: &Links,
    claim: &Claim,
    (slice, slot): (&SliceMapping, &str),
    (published, named): (&Published, Named<'_>),
) -> Result<Vec<TableRun>, MirrorError> {
    let mappings = mappings(&links.source, slice).await?;
    let labels: Vec<(String, String)> =
        mappings.iter().map(|table| (table.label().to_string(), table.source.to_string())).collect();
    alarms::note_way_back(&links.source, &claim.slice, (slot, claim.mode)).await?;
    copies::register_way_back(&links.target, &claim.slice, claim.applied, &labels).await?;
    failpoint::hit("reverse-registered");
    let way = WayBack { slice: &claim.slice, slot, publication: named.publication, nonce: claim.nonce };
    if let Some(altered) = stamp::look(&links.source, &links.target, way, &mut None).await? {
        return Err(altered.into());
    }
    let rows = copies::tables(&links.target, &claim.slice).await?;
    let pieces = copies::pieces(&links.target, &claim.slice).await?;
    let mut tables = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let label = mapping.label().to_string();
        let Some(row) = rows.iter().find(|row| row.source_table == label && row.state == TableState::Live)
        else {
            return Err(MirrorError::Unreadable { what: format!("the way back's row of table {label}") });
        };
        if let Some(entry) = published.get(&mapping.source) {
            launch::check_entry(&links.target, named, row, *entry).await?;
        }
        let facts = Target::read(&links.target, &mapping).await?;
        tables.push(TableRun::restore(&Arc::new(mapping), row, &pieces, facts, false)?);
    }
    Ok(tables)
}
