//! Whether the old tables of a slice are dropped: then its mirror ends, and makes nothing anew.

use tokio_postgres::Client;

use super::engine::SliceConfig;
use super::error::MirrorError;
use super::start::open;
use crate::journal::JournalError;
use crate::journal::dropped::{self, OnMonolith};
use crate::journal::streams::Direction;

/// Whether the monolith's side of a slice is gone for good. While that is decided and not done, the mirror goes on.
///
/// # Errors
/// [`JournalError`].
pub(super) async fn is_gone(
    (service, monolith): (&Client, &Client),
    slice: &str,
) -> Result<bool, JournalError> {
    let Some(known) = dropped::read(service, slice).await? else { return Ok(false) };
    Ok(match dropped::on_monolith(monolith, &known).await? {
        OnMonolith::Side => false,
        OnMonolith::Gone => true,
        OnMonolith::Nobody(_) => known.ended_at.is_some(),
    })
}

/// The same error, unless that is what is behind it, in whatever words a server said it.
pub(super) async fn explain(config: &SliceConfig, error: MirrorError) -> MirrorError {
    let slice = config.mapping.slice.as_str();
    if matches!(error, MirrorError::Stopped | MirrorError::Retired { .. }) {
        return error;
    }
    let (service, monolith) = match config.direction {
        Direction::Forward => (&config.apply, &config.read),
        Direction::Reverse => (&config.read, &config.apply),
    };
    let asked = async {
        let service = open(service, slice).await.ok()?;
        dropped::read(&service, slice).await.ok()??;
        let monolith = open(monolith, slice).await.ok()?;
        is_gone((&service, &monolith), slice).await.ok()
    };
    match asked.await {
        Some(true) => MirrorError::Retired { slice: slice.to_owned() },
        Some(false) | None => error,
    }
}
