//! What became of repairs, in the same words in every form.

use super::facts;
use super::visible::visible;
use crate::cdc::refetch::COPY_AGAIN;
use crate::reconcile::verdict::{RefusedRow, Repaired};
use crate::words;

/// What became of one table's rows, on one line without its slice. Who calls it: the reports, and the command that has rows
/// repaired.
#[must_use]
pub fn line(repaired: &Repaired) -> String {
    let mut parts =
        vec![format!("{} of {} rows repaired", words::count(repaired.done), words::count(repaired.asked))];
    parts.extend(repaired.refused.iter().map(|(why, count)| format!("{count} refused: {}", visible(why))));
    parts.extend(repaired.still.iter().map(|(kind, count)| format!("{count} still {kind}")));
    parts.extend(left(repaired.left_out, repaired.misplaced));
    format!("{}: {}", visible(&repaired.table), parts.join(", "))
}

/// What a repair leaves, and why; nothing where it leaves nothing.
#[must_use]
pub fn left(left_out: u64, misplaced: u64) -> Option<String> {
    let others = left_out.saturating_sub(misplaced);
    let others = (others > 0).then(|| {
        format!("{} left, for another run, or no copied row can help them", facts::findings(others))
    });
    let misplaced = (misplaced > 0).then(|| {
        format!(
            "{} misplaced in the service, which has the authority: the application has to change or delete them there",
            facts::number(misplaced, "row"),
        )
    });
    let parts: Vec<String> = others.into_iter().chain(misplaced).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What is to be done about rows that were refused.
const NEXT: &str =
    "next: take away what refuses them on that side, as the reason says, then the same command again";

/// A line for each row that was refused and is listed, one for the rest, and what to do.
pub(super) fn refused(repaired: &Repaired) -> Vec<String> {
    let row = |row: &RefusedRow| format!("refused   {}  ({})", facts::key(&row.key), visible(&row.reason));
    let more = repaired.refused_count().saturating_sub(repaired.refused_rows.len() as u64);
    let more = (more > 0).then(|| format!("and {} more refused, not listed", words::count(more)));
    let again = repaired.copy_again.as_ref();
    let others = repaired.refused.keys().any(|why| again.is_none() || why != COPY_AGAIN);
    let again = again
        .map(|command| format!("next: end the running mirror; then {command}, which copies the table again"));
    let next = others.then(|| NEXT.to_owned());
    repaired.refused_rows.iter().map(row).chain(more).chain(again).chain(next).collect()
}
