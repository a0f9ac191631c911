//! The stream that watches the side which is to be opened, asked again while the writers of the other one are held: it is what brings
//! back what the new owner accepts.
//!
//! Its slot may have been lost, or its watch begun anew, since that was judged. Authority that moves then can't come back, and no
//! stream carries the new owner's first writes.

use tokio_postgres::types::{PgLsn, Type};

use super::FlipError;
use super::effects::failed;
use crate::authority::Side;
use crate::journal::streams::{self, Direction, StreamOf, StreamState};
use crate::lsn::Lsn;
use crate::postgres::ask::Ask;
use crate::postgres::connect::Session;
use crate::postgres::sqlstate;

/// Which slot the stream into `side` reads, asked before anybody is held.
pub(super) async fn slot_of(own: &Session, slice: &str, side: Side) -> Result<Option<String>, FlipError> {
    Ok(row(own, slice, side).await?.map(|row| row.slot))
}

/// Why the stream into `side`, which is about to be closed, can't bring anything; nothing when it can. `slot` is what
/// [`slot_of`] said.
pub(super) async fn is_lost(
    (own, peer): (&Session, &Session),
    slice: &str,
    (side, slot): (Side, Option<&str>),
) -> Result<Option<String>, FlipError> {
    let stream = format!("the stream from the {} to the {side}", side.peer());
    let Some(slot) = slot else { return Ok(Some(format!("{stream} is not there"))) };
    // The slot first: who reads it moves its row before the slot.
    let sql = "SELECT wal_status, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
    let found = peer.ask_opt(sql, &[(&slot, Type::TEXT)]).await;
    let found = found
        .map_err(|error| FlipError::Failed { what: "looking for a slot", words: sqlstate::words(&error) })?;
    let Some(row) = row(own, slice, side).await? else { return Ok(Some(format!("{stream} is not there"))) };
    if row.slot != slot {
        return Ok(Some(format!("{stream} was begun anew")));
    }
    if row.state != StreamState::Running {
        return Ok(Some(format!("{stream} is {}", row.state.as_str())));
    }
    let Some(found) = found else { return Ok(Some(format!("{stream} has lost its slot {slot}"))) };
    let (status, confirmed): (Option<&str>, Option<PgLsn>) = (found.get(0), found.get(1));
    let behind = confirmed.map(Lsn::from).is_some_and(|confirmed| confirmed <= row.applied);
    Ok((status == Some("lost") || !behind)
        .then(|| format!("the slot {slot} of {stream} lacks what it has to read next")))
}

/// What is said when it was begun anew, or lost, behind that look.
pub(super) fn not_kept(side: Side) -> String {
    format!("the stream from the {} to the {side} does not run any more", side.peer())
}

async fn row(own: &Session, slice: &str, side: Side) -> Result<Option<streams::StreamRow>, FlipError> {
    let direction: Direction = side.incoming();
    let found = streams::read(own, StreamOf { slice, direction }).await;
    found.map_err(|error| failed("reading a stream", &error))
}
