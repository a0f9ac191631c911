//! Whether a key means the same rows on both sides, asked in the transaction that writes them: the target's table is held then, and the
//! source's was while its rows were read, so that what is found can't change before it is used.

use super::super::apply::Applier;
use super::super::apply::replace::SourceRow;
use super::super::engine::SliceConfig;
use super::super::error::MirrorError;
use super::super::refetch::{Picture, key_collations, picture};
use super::super::table::TableRun;
use crate::failpoint::hooks::Mutant;
use crate::mapping::collated;
use crate::postgres::connect::Session;

/// Why a row is not written over another one.
const ANOTHER: &str = "its key finds a row on the copy that is another row of the authority, so the sides don't tell keys apart alike; \
    strangler check PLAN says more";
/// Why it can't be told whether it would be.
const LOCKED: &str = "the authority's table is locked, so that a row of the copy under another spelling of its key could not be looked \
    up there; the same command again tries it anew";

/// Why none of a table's rows may be looked up by their keys, if so.
pub(super) async fn unlike(
    config: &SliceConfig,
    (applier, table): (&Applier, &TableRun),
    there: &Picture,
) -> Result<Option<String>, MirrorError> {
    if config.options.hooks.mutant(Mutant::AnyCollation) {
        return Ok(None);
    }
    let mapping = &table.mapping;
    let key = mapping.key_columns().map(|column| &column.target);
    let here = key_collations(applier.session(), &mapping.target, key).await?;
    let (monolith, service) = if mapping.reversed { (&here, &there.keys) } else { (&there.keys, &here) };
    let way_there = config.mapping.tables.iter().find(|one| one.source.to_string() == table.label);
    let misfits = way_there.map(|one| collated::apart(one, monolith, service)).unwrap_or_default();
    Ok(misfits
        .into_iter()
        .next()
        .map(|misfit| format!("{}; run in the service: {}", misfit.fact, misfit.next)))
}

/// Places of rows whose key finds a row of the target that the source has as another one: it must not go for this one. They are in
/// ascending order, each with the reason.
///
/// Servers agree on which values are equal, as far as anybody knows of; this holds where they don't.
pub(super) async fn others(
    sessions: (&Session, &Session),
    (applier, table): (&mut Applier, &TableRun),
    rows: &[SourceRow],
) -> Result<Vec<(usize, String)>, MirrorError> {
    let spelled = applier.spelled_otherwise(table, rows).await?;
    if spelled.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<&[String]> = spelled.iter().map(|(_, key)| key.as_slice()).collect();
    let Some(seen) = picture(sessions, &table.mapping, &keys, |_| true).await? else {
        let mut places: Vec<usize> = spelled.iter().map(|(place, _)| *place).collect();
        places.dedup();
        return Ok(places.into_iter().map(|place| (place, LOCKED.to_owned())).collect());
    };
    let mut found: Vec<usize> = Vec::new();
    for (places, row) in seen.rows.iter().filter(|(_, row)| row.row.is_some()) {
        let of = places.iter().filter_map(|place| spelled.get(*place)).map(|(of, _)| *of);
        found.extend(of.filter(|of| rows.get(*of).is_some_and(|asked| asked.key != row.key)));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found.into_iter().map(|place| (place, ANOTHER.to_owned())).collect())
}
