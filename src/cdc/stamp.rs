//! Whether the service's publication is the one that a way back began with. Whoever alters what it publishes, for a moment even,
//! leaves changes out of the stream, and neither the stream nor the entries of its tables show it.

use tokio_postgres::Client;

use super::error::{MirrorError, Refusal};
use super::publication::compare;
use crate::failpoint;
use crate::journal::arming;
use crate::journal::streams::{self, StreamOf, StreamState};
use crate::problem::arm_anew;

/// A way back at work.
#[derive(Debug, Clone, Copy)]
pub(super) struct WayBack<'a> {
    pub(super) slice: &'a str,
    pub(super) slot: &'a str,
    pub(super) publication: &'a str,
    pub(super) nonce: i64,
}

/// Notes the publication of a slot that is new, and marks the stream of one whose publication was altered since: changes are
/// missing from it. `known` is what an earlier look has read, so that the journal is read once.
///
/// # Errors
/// [`MirrorError`].
pub(super) async fn look(
    service: &Client,
    monolith: &Client,
    way: WayBack<'_>,
    known: &mut Option<String>,
) -> Result<Option<Refusal>, MirrorError> {
    // Each ALTER PUBLICATION that concerns the whole of it writes its row anew.
    let stamp = "SELECT oid || ' ' || xmin FROM pg_publication WHERE pubname = $1";
    let stamp = service.query_opt(stamp, &[&way.publication]).await;
    let Some(stamp) = stamp.map_err(MirrorError::sql("reading the publication"))? else { return Ok(None) };
    let stamp: String = stamp.get(0);
    if known.is_none() {
        *known = arming::noted_publication(monolith, way.slice, way.slot).await?;
    }
    let Some(known) = known else {
        arming::note_publication(monolith, way.slice, (way.slot, &stamp)).await?;
        failpoint::hit("publication-noted");
        return Ok(None);
    };
    if *known == stamp {
        return Ok(None);
    }
    let what = format!(
        "somebody altered the publication {} of the service: what it left out meanwhile is missing from the stream, and nobody \
         can tell what that was",
        way.publication
    );
    streams::set_state(monolith, StreamOf::reverse(way.slice), way.nonce, StreamState::Gap, Some(&what))
        .await?;
    failpoint::hit("fault-recorded");
    let next = format!("{}; then {}", arm_anew(way.slice), compare(way.slice));
    Ok(Some(Refusal { what, next, anew: true }))
}
