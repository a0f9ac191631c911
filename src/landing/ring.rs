//! Transactions that the stream has delivered and that no snapshot of ours has been seen to see yet.

use std::collections::HashSet;

use crate::snapshot::{Snapshot, extend_xid};

/// Remembers consumed transactions until a snapshot sees them (rule R1). It is pruned by visibility alone, never by
/// age or size: with a synchronous standby a commit can stay invisible for as long as the standby is away.
#[derive(Debug, Default)]
pub struct Ring {
    /// 32-bit top-level ids as the stream gave them.
    consumed: HashSet<u32>,
}

impl Ring {
    /// The stream delivered the commit of `xid`.
    pub fn consume(&mut self, xid: u32) {
        self.consumed.insert(xid);
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.consumed.len()
    }

    /// Nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.consumed.is_empty()
    }

    /// Drops every transaction that `snapshot` sees. Returns whether it saw them all: only then may pieces be read
    /// under it. `near` is the snapshot's xmin, which gives the ids their epoch.
    pub fn prune(&mut self, snapshot: &Snapshot) -> bool {
        self.consumed.retain(|xid| !snapshot.sees(extend_xid(*xid, snapshot.xmin())));
        self.consumed.is_empty()
    }

    /// Forgets everything. Only after a barrier may snapshots be trusted again.
    pub fn clear(&mut self) {
        self.consumed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_taken_only_when_it_sees_all_that_was_consumed() {
        let mut ring = Ring::default();
        for xid in [740, 744, 745] {
            ring.consume(xid);
        }
        assert!(!ring.prune(&"744:746:744".parse().unwrap()), "744 is committed in the log but not visible");
        assert_eq!(ring.len(), 1);
        assert!(ring.prune(&"745:746:".parse().unwrap()));
    }
}
