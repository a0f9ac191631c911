//! Where a slice's old tables stand on the monolith, as an engine knows it.
//!
//! `retire` and `unretire` move them in a transaction that shuts the running way back out, at a border of its own transactions: whoever then takes
//! its place reads first where they are. What the place is matters to nothing else: a table is known by the plan's name.

use std::sync::Arc;

use tokio_postgres::Client;

use super::engine::SliceConfig;
use super::error::MirrorError;
use super::launch::Links;
use super::start::{Both, open};
use crate::journal::streams::Direction;
use crate::mapping::SliceMapping;
use crate::postgres::places::{self, Places};

/// Why an engine begins anew whose tables were moved.
const MOVED: &str = "the slice's old tables stand somewhere else now";

/// The configuration with the places that the monolith names.
///
/// # Errors
/// [`MirrorError`].
pub(super) async fn located(config: &SliceConfig, monolith: &Client) -> Result<SliceConfig, MirrorError> {
    let places = places::read(monolith).await.map_err(MirrorError::sql("reading where old tables stand"))?;
    if stands(&config.mapping, &places) {
        return Ok(config.clone());
    }
    let mut mapping = SliceMapping::clone(&config.mapping);
    for table in &mut mapping.tables {
        table.source = places.located(&mapping.slice, &table.source);
    }
    Ok(SliceConfig { mapping: Arc::new(mapping), ..config.clone() })
}

/// Checks, behind the claim of the stream, that the tables are where they were before it. From then on nobody moves them without ending
/// the claim.
///
/// # Errors
/// [`MirrorError::Restart`] where they were moved meanwhile.
pub(super) async fn still(config: &SliceConfig, links: &Links) -> Result<(), MirrorError> {
    let both = Both::of(config.direction, &links.source, &links.target);
    let places =
        places::read(both.monolith).await.map_err(MirrorError::sql("reading where old tables stand"))?;
    if stands(&config.mapping, &places) { Ok(()) } else { Err(MirrorError::Restart { why: MOVED }) }
}

/// What a run ended with, unless the tables were moved under it: then that is why, and the next run knows.
pub(super) async fn explain(config: &SliceConfig, known: &SliceMapping, error: MirrorError) -> MirrorError {
    if matches!(
        error,
        MirrorError::Stopped
            | MirrorError::Turned { .. }
            | MirrorError::Fenced { .. }
            | MirrorError::NotArmed { .. }
            | MirrorError::Retired { .. }
            | MirrorError::Restart { .. }
    ) {
        return error;
    }
    let server = match config.direction {
        Direction::Forward => &config.read,
        Direction::Reverse => &config.apply,
    };
    // Where the monolith can't be asked, what is known already is said.
    let Ok(monolith) = open(server, &known.slice).await else { return error };
    match places::read(&monolith).await {
        Ok(places) if !stands(known, &places) => MirrorError::Restart { why: MOVED },
        Ok(_) | Err(_) => error,
    }
}

fn stands(mapping: &SliceMapping, places: &Places) -> bool {
    mapping.tables.iter().all(|table| {
        places.located(&mapping.slice, &table.source).place_schema() == table.source.place_schema()
    })
}
