//! A slice whose old tables are dropped, or about to be.

use super::super::{ArchiveStatus, Authority, Phase, RetirementStatus, SliceFacts, SliceStatus};
use super::{Commands, nothing};
use crate::journal::dropped::Dropped;
use crate::words::shell_word;

/// Only the service is asked: the monolith has nothing of it, or not for long.
pub(super) fn judge(facts: &SliceFacts, dropped: &Dropped, commands: &Commands) -> SliceStatus {
    let over = dropped.ended_at.is_some();
    // While the tables stand, it can be taken back.
    let stands = facts.monolith_side.facts().is_some_and(|monolith| monolith.gate.is_some());
    let restore = format!("strangler restore --from {} --to URL", shell_word(&dropped.place));
    let slice = shell_word(&facts.slice);
    let finish = commands.typed(&format!("strangler retire PLAN --slice {slice} --stage drop"));
    let alarm = || {
        let how = if stands {
            "their drop was begun"
        } else {
            "they are dropped, and what is behind that is not done"
        };
        format!("slice {}: of its old tables, {how}; {finish} finishes it [slice-dropped]", facts.slice)
    };
    SliceStatus {
        phase: if over { Phase::Retired } else { Phase::Dropping },
        authority: Authority::Service,
        epoch: Some(dropped.epoch),
        retirement: Some(RetirementStatus {
            stage: if over { "dropped" } else { "dropping" },
            since: dropped.ended_at.clone().unwrap_or_else(|| dropped.begun_at.clone()),
            undo: if stands { commands.of("unretire", &facts.slice, "") } else { restore },
            archive: Some(ArchiveStatus {
                place: dropped.place.clone(),
                at: dropped.archived_at.clone(),
                reverse_lsn: dropped.reverse_lsn,
                manifest_sha256: dropped.manifest_sha256.clone(),
            }),
        }),
        unreachable: if over { Vec::new() } else { super::unreachable(facts) },
        alarms: (!over).then(alarm).into_iter().collect(),
        next: (!over).then(|| finish.clone()),
        ..nothing(facts)
    }
}
