//! What a stream in tripwire mode makes of a transaction that does not carry the slice's tag.

use super::facts::GateState;
use super::facts::{Cause, Gate};
use crate::lsn::Lsn;

/// Whose an untagged transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Untagged {
    /// The side that the stream reads accepted it while it had authority. The tripwire must not pass it: it waits
    /// until its mode is APPLY and then applies it.
    Accepted,
    /// Somebody wrote past a closed gate: an alarm, recorded in the transaction that moves the position past it.
    Rogue,
}

/// Judges an untagged transaction whose commit record starts at `commit`. `gate` is the row of the database that the
/// stream reads, read **after** the transaction came in: an accepted write is visible there later than the opening
/// that let it in.
///
/// A gate that is closed again by a fence still answers for what lies between its cut and its fence. (The condition
/// "open, and not before the cut" alone would take such a write for a rogue one.)
#[must_use]
pub fn judge(gate: &Gate, commit: Lsn) -> Untagged {
    let begun = commit >= gate.cut_lsn.unwrap_or(Lsn::ZERO);
    let accepted = match (gate.state, gate.cause) {
        (GateState::Open, Cause::Open | Cause::Fence | Cause::Bump) => begun,
        (GateState::Fenced, Cause::Fence) => begun && gate.fence_lsn.is_some_and(|fence| commit < fence),
        (GateState::Fenced, Cause::Open | Cause::Bump) => false,
    };
    if accepted { Untagged::Accepted } else { Untagged::Rogue }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::facts::Epoch;

    fn gate(state: GateState, cause: Cause, cut: Option<u64>, fence: Option<u64>) -> Gate {
        Gate { state, epoch: Epoch(2), cause, cut_lsn: cut.map(Lsn), fence_lsn: fence.map(Lsn), group: None }
    }

    #[test]
    fn a_write_before_the_cut_is_rogue_and_one_behind_it_accepted() {
        let open = gate(GateState::Open, Cause::Open, Some(10), None);
        assert_eq!(judge(&open, Lsn(9)), Untagged::Rogue);
        assert_eq!(judge(&open, Lsn(10)), Untagged::Accepted);
    }

    #[test]
    fn a_closed_gate_answers_for_its_time_of_authority_and_no_longer() {
        let fenced = gate(GateState::Fenced, Cause::Fence, Some(10), Some(20));
        assert_eq!(judge(&fenced, Lsn(19)), Untagged::Accepted);
        assert_eq!(judge(&fenced, Lsn(20)), Untagged::Rogue);
    }

    #[test]
    fn a_gate_that_was_never_open_or_was_bumped_accepts_nothing() {
        assert_eq!(judge(&gate(GateState::Fenced, Cause::Fence, None, None), Lsn(5)), Untagged::Rogue);
        assert_eq!(judge(&gate(GateState::Fenced, Cause::Bump, Some(1), None), Lsn(5)), Untagged::Rogue);
    }
}
