//! The ways in which the protocol is broken on purpose.

/// One broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// None: the protocol as it ships.
    None,
    /// The fence does not wait for writers that passed the gate.
    NoWaitForWriters,
    /// Nothing asks whether what was accepted is applied.
    NoDrain,
    /// The side is opened whatever its own row says.
    OpenWithoutOwnRow,
    /// The fenced side is opened again without raising the peer's epoch.
    AbortWithoutBump,
    /// The applier writes without looking at its row.
    UnfencedApplier,
    /// The applier looks at mode and epoch, and not at the position.
    EpochOnlyApplier,
    /// The tripwire takes every untagged transaction for a rogue one.
    TripwirePassesAuthority,
    /// Recovery looks at states and epochs only.
    CauseIgnored,
    /// Transactions with an old snapshot read the gate without locking it.
    OldSnapshotReadsGate,
    /// The change of direction sets the position to the cut.
    SwapMovesPosition,
    /// A refusal is believed at the first look.
    OneLook,
    /// The slot is told of positions that are not durable.
    ConfirmBeforeDurable,
    /// Opening does not wait for the peer's standby.
    OpenBeforeStandby,
    /// Reopening does not wait for the peer's standby.
    ReopenBeforeStandby,
    /// Members of a group are moved as if each were alone.
    OpenWithoutGroup,
    /// The group row is aborted even when it was settled open.
    AbortAfterGroupOpen,
}
