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
            "the drop of its old tables was begun"
        } else {
            "its old tables are dropped, and what is behind that is not done"
        };
        format!("slice {}: {how}; {finish} finishes it [slice-dropped]", facts.slice)
    };
    let back = over && stands;
    let back_alarm = || {
        format!(
            "slice {}: its old tables were dropped, and the monolith has them again: an earlier state of it was put back; {finish} drops them \
             again, where they hold what the archive has and nothing else [dropped-tables-back]",
            facts.slice
        )
    };
    SliceStatus {
        phase: if over { Phase::Retired } else { Phase::Dropping },
        authority: Authority::Service,
        epoch: Some(dropped.epoch),
        retirement: Some(RetirementStatus {
            stage: if over { "dropped" } else { "dropping" },
            since: dropped.ended_at.clone().unwrap_or_else(|| dropped.begun_at.clone()),
            undo: if stands && !over { commands.of("unretire", &facts.slice, "") } else { restore },
            archive: Some(ArchiveStatus {
                place: dropped.place.clone(),
                at: dropped.archived_at.clone(),
                reverse_lsn: dropped.reverse_lsn,
                manifest_sha256: dropped.manifest_sha256.clone(),
            }),
        }),
        unreachable: if over { Vec::new() } else { super::unreachable(facts) },
        alarms: (!over).then(alarm).into_iter().chain(back.then(back_alarm)).collect(),
        next: (!over || back).then(|| finish.clone()),
        ..nothing(facts)
    }
}

/// The service was set back to before it was told that they are dropped; the monolith says it.
pub(super) fn forgotten(facts: &SliceFacts, dropped: &Dropped, commands: &Commands) -> SliceStatus {
    let slice = shell_word(&facts.slice);
    let restore = format!("strangler restore --from {} --to URL", shell_word(&dropped.place));
    let tell = commands.typed(&format!("strangler retire PLAN --slice {slice} --stage drop"));
    let alarm = format!(
        "slice {}: the monolith says that its old tables were dropped at {}, and service {} knows nothing of that: it was set back to an earlier \
         state, and what it lacks is in its own backups and in the archive at {}; once it has that, {tell} tells it [drop-forgotten]",
        facts.slice, dropped.begun_at, facts.service, dropped.place
    );
    SliceStatus {
        phase: Phase::Dropping,
        epoch: Some(dropped.epoch),
        retirement: Some(RetirementStatus {
            stage: "dropping",
            since: dropped.begun_at.clone(),
            undo: restore,
            archive: Some(ArchiveStatus {
                place: dropped.place.clone(),
                at: dropped.archived_at.clone(),
                reverse_lsn: dropped.reverse_lsn,
                manifest_sha256: dropped.manifest_sha256.clone(),
            }),
        }),
        alarms: vec![alarm],
        next: Some(tell),
        ..nothing(facts)
    }
}
