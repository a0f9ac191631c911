//! The hash of a slice's policy: what the ledger tells a change of the rules by.

use super::canonical::Canonical;
use super::{Action, Approval, AtWalLimit, FenceStandbys, Hook, Policy};

/// Changes when the canonical form does, so that hashes of two forms are never compared by accident.
const VERSION: &str = "policy 3";

/// Hex SHA-256 of everything that the policy says. Periods count in milliseconds. The URL of a webhook counts as the plan writes it,
/// with `${ENV}` in place; one that holds its secret in clear is under the hash with all the rest.
pub(super) fn of(policy: &Policy) -> String {
    // Without `..`, so that a new key of the policy can't be forgotten here.
    let Policy {
        min_mirror_time,
        safety_period,
        quiet_period,
        evidence_max_age,
        clean_runs_before_retire,
        write_pause_budget,
        wal_budget_bytes,
        at_wal_limit,
        sequence_margin,
        fence_standbys,
        approval,
        flip_together,
        hooks,
    } = policy;
    let mut text = Canonical::default();
    text.word(VERSION);
    for period in [min_mirror_time, safety_period, quiet_period, evidence_max_age, write_pause_budget] {
        text.word(&period.as_millis().to_string());
    }
    for number in [u64::from(*clean_runs_before_retire), *wal_budget_bytes, u64::from(*sequence_margin)] {
        text.word(&number.to_string());
    }
    text.word(match at_wal_limit {
        AtWalLimit::Warn => "warn",
        AtWalLimit::DropSlot => "drop_slot",
    });
    text.word(match fence_standbys {
        FenceStandbys::All => "all",
        FenceStandbys::Sync => "sync",
        FenceStandbys::None => "none",
    });
    text.word(match approval {
        Approval::Required => "required",
        Approval::None => "none",
    });
    text.list(flip_together, |text, group| text.list(group, |text, slice| text.word(slice)));
    for hooks in [&hooks.before, &hooks.after] {
        text.list(hooks, Canonical::hook);
    }
    text.hash()
}

impl Canonical {
    fn hook(&mut self, hook: &Hook) {
        match &hook.action {
            Action::Command(command) => self.list(command, |text, word| text.word(word)),
            Action::Webhook(url) => self.word(&url.text),
        }
        self.word(&hook.timeout.as_millis().to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_key_of_a_policy_is_under_its_hash() {
        let changes: &[fn(&mut Policy)] = &[
            |p| p.min_mirror_time += Duration::from_secs(1),
            |p| p.safety_period += Duration::from_secs(1),
            |p| p.quiet_period += Duration::from_secs(1),
            |p| p.evidence_max_age += Duration::from_secs(1),
            |p| p.clean_runs_before_retire += 1,
            |p| p.write_pause_budget += Duration::from_millis(1),
            |p| p.wal_budget_bytes += 1,
            |p| p.at_wal_limit = AtWalLimit::DropSlot,
            |p| p.sequence_margin += 1,
            |p| p.fence_standbys = FenceStandbys::Sync,
            |p| p.approval = Approval::Required,
            |p| p.flip_together = vec![vec!["a".to_owned(), "b".to_owned()]],
            |p| p.flip_together = vec![vec!["a".to_owned()], vec!["b".to_owned()]],
            |p| {
                let action = Action::Command(vec!["stop".to_owned()]);
                p.hooks.before.push(Hook { action, timeout: Duration::from_secs(1) });
            },
            |p| {
                let action = Action::Command(vec!["stop".to_owned()]);
                p.hooks.after.push(Hook { action, timeout: Duration::from_secs(1) });
            },
        ];
        let mut seen = vec![of(&Policy::default())];
        for (index, change) in changes.iter().enumerate() {
            let mut policy = Policy::default();
            change(&mut policy);
            let hash = of(&policy);
            assert!(!seen.contains(&hash), "change {index}");
            seen.push(hash);
        }
        assert_eq!(of(&Policy::default()), seen[0]);
    }
}
