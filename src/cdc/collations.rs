//! Keys whose texts the sides don't tell apart alike: a row that the stream means may be another one on the target.

use tokio_postgres::Client;

use super::error::{MirrorError, Refusal};
use super::publication::compare;
use crate::journal::streams::Direction;
use crate::mapping::SliceMapping;
use crate::postgres::collations;

/// Why a mirror in this direction must not look rows up by their keys, if it must not.
///
/// # Errors
/// [`MirrorError`].
pub(super) async fn find_fault(
    sides: (&Client, &Client),
    mapping: &SliceMapping,
    direction: Direction,
) -> Result<Option<Refusal>, MirrorError> {
    let found = collations::apart(sides, mapping.tables.iter()).await;
    let found = found.map_err(MirrorError::sql("reading how keys are collated"))?;
    if found.is_empty() {
        return Ok(None);
    }
    let (facts, statements): (Vec<String>, Vec<String>) =
        found.into_iter().map(|(_, misfit)| (misfit.fact, misfit.next)).unzip();
    let (statements, slice) = (statements.join("; "), &mapping.slice);
    let goes_on = match direction {
        Direction::Forward => format!("then strangler mirror PLAN --slice {slice}"),
        Direction::Reverse => "a running mirror goes on within seconds by itself".to_owned(),
    };
    Ok(Some(Refusal {
        what: format!("the sides don't tell the same rows apart: {}", facts.join("; ")),
        next: format!("run in the service: {statements}; {goes_on}; then {}", compare(slice)),
        anew: false,
    }))
}
