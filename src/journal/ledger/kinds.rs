//! What entries are about.

/// What one reconciliation said of one slice.
pub const VERDICT: &str = "verdict";

/// The keys that one reconciliation had repaired.
pub const REPAIR: &str = "repair";

/// A move of authority, also one that was aborted.
pub const FLIP: &str = "flip";

/// What `provision` made for a slice, or for all slices of a service.
pub const PROVISION: &str = "provision";

/// What `arm` changed.
pub const ARM: &str = "arm";

/// What `disarm` took back.
pub const DISARM: &str = "disarm";

/// The copy of a table came to its end, or another one begins.
pub const COPY: &str = "copy";

/// Old tables were taken away, a stage at a time.
pub const RETIRE: &str = "retire";

/// Old tables were brought back.
pub const UNRETIRE: &str = "unretire";

/// A slice was taken back to where nothing of it was ever provisioned: what earlier entries say of it is of another life.
pub const ABANDON: &str = "abandon";

/// A rehearsal of a move, and what a flip would have taken.
pub const REHEARSAL: &str = "rehearsal";

/// What a mirror met that a human must look at.
pub const ALARM: &str = "alarm";

/// The hash of a slice's mapping, or of its policy, is another one than the ledger named last.
pub const PLAN: &str = "plan";

/// A human accepted that earlier entries are not what was written.
pub const ACCEPTED: &str = "accepted";
