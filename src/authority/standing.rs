//! What a pair of gate rows means: the rows of the recovery table.

use super::facts::GateState;
use super::facts::{Cause, Epoch, Gate, Side};

/// The meaning of a pair of gate rows. Not stored: it is read off the rows each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// `owner` is open and its peer closed, at the same epoch.
    Owned {
        /// Who has authority.
        owner: Side,
        /// Since which change.
        epoch: Epoch,
    },
    /// `owner` is open and its peer closed at an earlier epoch: a failover of the peer lost a commit. Until the peer is
    /// raised to `epoch`, somebody who looked long ago could still open it.
    Behind {
        /// Who has authority.
        owner: Side,
        /// Since which change.
        epoch: Epoch,
    },
    /// `from` was fenced at `epoch` and its peer has not answered: nobody has authority.
    Fenced {
        /// Who had authority.
        from: Side,
        /// The fence.
        epoch: Epoch,
    },
    /// As `Fenced`, and then the peer was bumped to `epoch`, so that it can't be opened: nobody has authority.
    Aborted {
        /// Who had authority and gets it back.
        from: Side,
        /// The bump.
        epoch: Epoch,
    },
    /// Both let the application write.
    BothOpen,
    /// No sequence of commits that are all still there leads here.
    Broken,
}

impl Standing {
    /// Reads the meaning off the two rows.
    #[must_use]
    pub fn of(monolith: &Gate, service: &Gate) -> Self {
        match (monolith.state, service.state) {
            (GateState::Open, GateState::Open) => Self::BothOpen,
            (GateState::Open, GateState::Fenced) => Self::owned(Side::Monolith, monolith, service),
            (GateState::Fenced, GateState::Open) => Self::owned(Side::Service, service, monolith),
            (GateState::Fenced, GateState::Fenced) => Self::moving(Side::Monolith, monolith, service)
                .or_else(|| Self::moving(Side::Service, service, monolith))
                .unwrap_or(Self::Broken),
        }
    }

    fn owned(owner: Side, open: &Gate, closed: &Gate) -> Self {
        let epoch = open.epoch;
        if closed.epoch == epoch {
            Self::Owned { owner, epoch }
        } else if closed.epoch < epoch {
            Self::Behind { owner, epoch }
        } else {
            Self::Broken
        }
    }

    /// Authority leaves `from`, if these two closed rows say so.
    fn moving(from: Side, fenced: &Gate, peer: &Gate) -> Option<Self> {
        if fenced.cause != Cause::Fence {
            return None;
        }
        if fenced.epoch == peer.epoch.next() && fenced.fence_lsn.is_some() {
            return Some(Self::Fenced { from, epoch: fenced.epoch });
        }
        let bumped = peer.cause == Cause::Bump && peer.epoch == fenced.epoch.next();
        bumped.then_some(Self::Aborted { from, epoch: peer.epoch })
    }
}
