//! What a driver is told to do: each effect is one transaction in one database whose conditions are data here.

use super::facts::{Epoch, Gate, GroupId, Side};
use crate::journal::streams::Direction;
use crate::lsn::Lsn;

/// One thing to do. All but [`Effect::Look`] and [`Effect::Await`] are **one transaction in one database**, in which
/// every condition named below is checked and every UPDATE must hit exactly one row; otherwise it is rolled back
/// and reported as [`super::Event::Missed`]. Doing one twice is harmless: the second time misses.
///
/// `expects` is the acting side's gate row as it was observed; state and epoch in the WHERE clause are enough, since no
/// gate ever has the same state and epoch twice. `peer` is what the other side's row has to be, all of it, **read
/// after the acting side's row is locked** (`SELECT … FOR UPDATE` in the session that commits; a session that breaks
/// starts over from observation). Commits are synchronous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Read the gate row and incoming stream row of both sides, and the group row. Report
    /// [`super::Event::Observed`].
    Look,
    /// Let the writers of `side` finish, hold new ones, wait until everything accepted is applied on the peer, and
    /// close the gate:
    ///
    /// 1. `pg_advisory_xact_lock` of the gate, with `lock_timeout`; then, under the lock, read
    ///    `pg_current_wal_insert_lsn()` as `fence_lsn` and the sequences.
    /// 2. In a session of its own, commit a marker.
    /// 3. Wait until the row of `drain` on the peer has mode APPLY, state `running` and `applied_lsn >= fence_lsn`.
    ///    A tripwire that has passed the position proves nothing.
    /// 4. Where `group` is given: its group row must be pending, and is read under the lock.
    /// 5. Lock the row of the stream that comes into `side` for SHARE: it must be a tripwire and `running`. Without it the writes of
    ///    the new owner would go nowhere; who begins it anew changes that row, on an open gate that it locks.
    /// 6. `UPDATE gate SET state='FENCED', epoch=epoch, cause='fence', owner='moving', fence_lsn, seqs, group_id WHERE
    ///    expects`; COMMIT. `cut_lsn` stays.
    ///
    /// Anything that takes too long is a rollback that no writer saw as an error: [`super::Event::OutOfTime`].
    /// Members of one group whose `side` is in one database may be fenced in one transaction.
    Fence {
        /// Where authority leaves.
        side: Side,
        /// Its gate row: open.
        expects: Gate,
        /// The new epoch.
        epoch: Epoch,
        /// The stream that has to be drained.
        drain: Direction,
        /// The group row that the fence is made under.
        group: Option<GroupId>,
    },
    /// Open the gate of `side` and turn its incoming stream into a tripwire:
    ///
    /// 1. Wait until the standbys of the peer that the plan's `fence_standbys` names have flushed the peer's fence, which was
    ///    observed, and those of the monolith the group row. Else a failover could take either back.
    /// 2. Lock the gate row; re-read the peer's and compare with `peer`. Where `group` is given: its group row must
    ///    be open. Nothing is waited for under the lock, and the server ends a session that is idle under it: whoever is frozen
    ///    there would keep everybody else from opening.
    /// 3. `UPDATE stream SET mode='TRIPWIRE', epoch=epoch WHERE dir=incoming AND mode='APPLY' AND state IN ('running', 'gap') AND
    ///    applied_lsn >= applied_at_least`, every lane: what a stream has brought is there, whatever became of its slot.
    /// 4. `UPDATE gate SET state='OPEN', epoch=epoch, cause='open', owner=side, cut_lsn=pg_current_wal_insert_lsn(),
    ///    fence_lsn=NULL, group_id=NULL WHERE expects`, and the sequences; COMMIT.
    Open {
        /// Where authority goes.
        side: Side,
        /// Its gate row: closed.
        expects: Gate,
        /// The peer's gate row: fenced at `epoch`.
        peer: Gate,
        /// The epoch of the fence.
        epoch: Epoch,
        /// The stream into `side`.
        incoming: Direction,
        /// The fence position: what has to be applied.
        applied_at_least: Lsn,
        /// The group row, which must be open.
        group: Option<GroupId>,
    },
    /// Raise a closed gate's epoch, which shuts out whoever means to open it: lock the row, compare `peer`, `UPDATE
    /// gate SET epoch=epoch, cause='bump', fence_lsn=NULL, group_id=NULL WHERE expects`. Where `group` is given: its group row
    /// must be aborted.
    Bump {
        /// Whose epoch is raised.
        side: Side,
        /// Its gate row: closed.
        expects: Gate,
        /// The peer's gate row.
        peer: Gate,
        /// The new epoch.
        epoch: Epoch,
        /// The group row, which must be aborted.
        group: Option<GroupId>,
    },
    /// Give authority back to the side that was fenced, after the peer was bumped: wait until the peer's standbys as in `Open`
    /// have flushed the bump, lock the row, compare `peer`, `UPDATE gate SET state='OPEN', epoch=epoch,
    /// cause='open', owner=side, fence_lsn=NULL, group_id=NULL WHERE expects`. `cut_lsn` stays, since authority was
    /// never elsewhere; the streams stay as they are. Where `group` is given: its group row must be aborted.
    Reopen {
        /// Who gets authority back.
        side: Side,
        /// Its gate row: fenced.
        expects: Gate,
        /// The peer's gate row: bumped to `epoch`.
        peer: Gate,
        /// The epoch of the bump.
        epoch: Epoch,
        /// The group row, which must be aborted.
        group: Option<GroupId>,
    },
    /// Let the new owner's outgoing stream apply: `UPDATE stream SET mode='APPLY', epoch=epoch WHERE dir=direction AND
    /// mode='TRIPWIRE' AND state='running' AND epoch < epoch AND applied_lsn >= applied_at_least`, every lane. Its position
    /// is **not** moved: the tripwire has looked at everything before the cut and passed no accepted write behind it.
    Swap {
        /// Which stream; its row is in the database that it writes into.
        direction: Direction,
        /// The epoch of the owner's gate.
        epoch: Epoch,
        /// The owner's cut.
        applied_at_least: Lsn,
    },
    /// Write the group row in the monolith as pending, with the members' names. Its number must be new; a row that is
    /// there already is a miss.
    Propose(GroupId),
    /// `UPDATE group SET state='open' WHERE id AND state='pending'` in the monolith, after the standbys of every
    /// fenced member's side have flushed its fence. For ever.
    SettleOpen(GroupId),
    /// `UPDATE group SET state='aborted' WHERE id AND state='pending'` in the monolith. For ever.
    SettleAborted(GroupId),
    /// Nothing can be done before this; wait for it with a limit, then report [`super::Event::Hit`], or
    /// [`super::Event::OutOfTime`].
    Await(Awaited),
}

/// What somebody else has to do first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Awaited {
    /// The mirror has to bring a stream to a position.
    Position {
        /// Which stream.
        direction: Direction,
        /// Its `applied_lsn` must get here.
        at_least: Lsn,
    },
    /// The other members of the group have to be fenced; the same command does that, slice by slice.
    Members(GroupId),
}

impl Effect {
    /// The database whose transaction it is; `None` for looking and waiting.
    #[must_use]
    pub fn database(&self) -> Option<Side> {
        match *self {
            Self::Fence { side, .. }
            | Self::Open { side, .. }
            | Self::Bump { side, .. }
            | Self::Reopen { side, .. } => Some(side),
            Self::Swap { direction: Direction::Forward, .. } => Some(Side::Service),
            Self::Swap { direction: Direction::Reverse, .. }
            | Self::Propose(_)
            | Self::SettleOpen(_)
            | Self::SettleAborted(_) => Some(Side::Monolith),
            Self::Look | Self::Await(_) => None,
        }
    }
}
