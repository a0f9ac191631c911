//! Where every slice stands: read from both databases, decided here, shown by the command line.
//!
//! [`gather`] asks the databases, by the statements of [`read`], for [`facts`]; [`judge()`] turns the facts of one slice into a [`SliceStatus`] without
//! any I/O. Nothing is remembered between runs: what `status` says is what the databases hold, so it is right
//! whether the mirror runs, was stopped, or died.

use serde::Serialize;

use crate::lsn::Lsn;

pub mod arming;
pub mod evidence;
pub mod facts;
pub mod gather;
pub mod judge;
pub mod orphans;
pub mod read;

pub use arming::{ArmedState, ArmedStatus};
pub use evidence::{EvidenceStatus, VerdictStatus};
pub use facts::{Side, SliceFacts, WalReading};
pub use judge::judge;

/// How far a slice's old tables were taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetirementStatus {
    /// `revoked`: nobody but the tool, the owner and superusers may use them; `quarantined`: they stand in a schema of their own;
    /// `dropping`: they are being dropped; `dropped`: they are gone.
    pub stage: &'static str,
    /// Since when, RFC 3339.
    pub since: String,
    /// The command that brings everything back; once they are dropped, what they held.
    pub undo: String,
    /// Where their rows and definitions are kept; null while they are not.
    pub archive: Option<ArchiveStatus>,
}

/// An archive of a slice's old tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchiveStatus {
    /// The folder.
    pub place: String,
    /// When it was written down, RFC 3339.
    pub at: String,
    /// Position in the service's WAL up to which its rows have everything.
    pub reverse_lsn: Lsn,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
}

/// Where one slice stands. Serialised as `status --format json` shows it (docs/json-output.md).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SliceStatus {
    /// Slice name.
    pub slice: String,
    /// Service that will own it.
    pub service: String,
    /// What is happening to it.
    pub phase: Phase,
    /// Which side may write.
    pub authority: Authority,
    /// Epoch of the gates, when one could be read.
    pub epoch: Option<i64>,
    /// How far the service is behind.
    pub lag: Option<Lag>,
    /// Rows copied so far, over all tables.
    pub rows_copied: u64,
    /// Rows expected, over all tables; the planner's estimate.
    pub rows_estimate: u64,
    /// Seconds that the copy still needs at the rate so far; only while it runs.
    pub copy_seconds_left: Option<f64>,
    /// WAL that the monolith holds for the slice.
    pub wal: Option<Wal>,
    /// The mirror's process, when one has ever run.
    pub process: Option<Process>,
    /// The stream from the service to the monolith, once the slice is armed.
    pub way_back: Option<WayBackStatus>,
    /// Writes on a fenced side that were not the mirror's and that nobody has acted upon.
    pub stray_writes: Option<StrayWrites>,
    /// Every table of the slice, by the monolith's name.
    pub tables: Vec<TableStatus>,
    /// Indexes and constraints that wait for the data.
    pub deferred: Vec<String>,
    /// Whether both sides are proven equal. Absent where the ledger can't be read or is not there yet.
    pub evidence: Option<EvidenceStatus>,
    /// Whether it is ready for a flip and back. Absent where the monolith can't be read or is not provisioned.
    pub armed: Option<ArmedStatus>,
    /// How far its old tables were taken away; null while nothing was.
    pub retirement: Option<RetirementStatus>,
    /// Databases in which our own tables are of an earlier version, `monolith` or the service's name.
    pub outdated: Vec<String>,
    /// Databases that could not be read.
    pub unreachable: Vec<Unreachable>,
    /// What a human must look at.
    pub alarms: Vec<String>,
    /// What to type next; absent when there is nothing to do.
    pub next: Option<String>,
}

/// What is happening to a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The service's database could not be read, or links lead to other databases than the plan says, so nobody can
    /// tell.
    Unknown,
    /// `provision` has not run.
    NotProvisioned,
    /// Ready to be mirrored; the mirror has never run.
    Provisioned,
    /// Rows are being copied.
    Copying,
    /// The copy is done; the stream works off what was written meanwhile, or waits for a database.
    CatchingUp,
    /// Changes arrive as they are made.
    Streaming,
    /// The mirror was stopped in an orderly way and can go on where it was.
    Stopped,
    /// The mirror's process gave no sign of life for [`judge::DEAD_AFTER_SECONDS`] and never said goodbye.
    Dead,
    /// Changes were lost before they could be applied: the slice needs a new copy.
    Gap,
    /// The service's rows are not what the mirror left there.
    Diverged,
    /// Its old tables are being dropped.
    Dropping,
    /// Its old tables are dropped: the service has its rows alone, and there is nothing to mirror.
    Retired,
}

impl Phase {
    /// The phase in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotProvisioned => "not provisioned",
            Self::Provisioned => "provisioned",
            Self::Copying => "copying",
            Self::CatchingUp => "catching up",
            Self::Streaming => "streaming",
            Self::Stopped => "stopped",
            Self::Dead => "dead",
            Self::Gap => "gap",
            Self::Diverged => "diverged",
            Self::Dropping => "dropping",
            Self::Retired => "retired",
        }
    }
}

/// Which side may write a slice, as its gates say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    /// The monolith: the service's gate is fenced.
    Monolith,
    /// The service: the monolith's gate is fenced.
    Service,
    /// Neither, for the moment of a flip or after one that was cut off.
    Nobody,
    /// Both gates are open, which must never be.
    Both,
    /// No gate could be read.
    Unknown,
}

impl Authority {
    /// The authority in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Monolith => "monolith",
            Self::Service => "service",
            Self::Nobody => "nobody (a flip is under way)",
            Self::Both => "BOTH SIDES",
            Self::Unknown => "unknown",
        }
    }
}

/// How far the service is behind the monolith.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lag {
    /// WAL written since the position that the service holds, in bytes. It counts the whole server's WAL, so it
    /// is an upper bound. Absent while the monolith can't be read.
    pub bytes: Option<u64>,
    /// Age of the service's data in seconds, by the monolith's clock. Absent before the first change.
    pub seconds: Option<f64>,
    /// Position that the service holds.
    #[serde(serialize_with = "as_text")]
    pub applied_lsn: Lsn,
}

/// WAL that the monolith holds back for a slice's slot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Wal {
    /// Slot name.
    pub slot: String,
    /// Whether a mirror is connected to it.
    pub active: bool,
    /// `pg_replication_slots.wal_status`.
    pub wal_status: String,
    /// WAL held, in bytes.
    pub held_bytes: u64,
    /// The plan's `wal_budget`, in bytes.
    pub budget_bytes: u64,
    /// Bytes until the nearer of the two limits.
    pub headroom_bytes: u64,
    /// Which limit is nearer.
    pub limit: WalLimit,
    /// Seconds until that limit at the rate of the last two readings; absent when the WAL held does not grow.
    pub seconds_left: Option<f64>,
}

/// A limit on the WAL that a slot may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WalLimit {
    /// The plan's `wal_budget`: the mirror warns on the way there, and nothing stops.
    WalBudget,
    /// The server's `max_slot_wal_keep_size`: PostgreSQL drops the WAL there, and the slot is lost.
    MaxSlotWalKeepSize,
}

impl WalLimit {
    /// The setting's name.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::WalBudget => "wal_budget",
            Self::MaxSlotWalKeepSize => "max_slot_wal_keep_size",
        }
    }
}

/// The process that mirrors a slice, as it described itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Process {
    /// Its machine.
    pub host: String,
    /// Its process number there.
    pub pid: i32,
    /// What it said it was doing.
    pub doing: String,
    /// More about that.
    pub detail: Option<String>,
    /// Seconds since its last sign of life, by the service's clock.
    pub seen_seconds_ago: f64,
}

/// The stream from the service to the monolith.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WayBackStatus {
    /// `apply` when it brings the service's writes to the monolith, `tripwire` when it watches that there are none.
    pub mode: String,
    /// `running`, `gap` or `diverged`.
    pub state: String,
    /// Why, for a gap or a divergence.
    pub detail: Option<String>,
    /// Its slot on the service.
    pub slot: String,
    /// Age of the monolith's data in seconds, by the service's clock; in mode `tripwire` of what was looked through.
    pub lag_seconds: Option<f64>,
    /// Position of the service up to which everything is applied, or looked through.
    #[serde(serialize_with = "as_text")]
    pub applied_lsn: Lsn,
    /// The process that runs it, as it described itself.
    pub process: Option<Process>,
    /// Who keeps it out of a table of the monolith.
    #[serde(skip)]
    pub blocker: Option<String>,
}

/// Writes on a fenced side. Keys are in the service's database ([`crate::journal::alarms::TABLE`]).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StrayWrites {
    /// Rows and truncated tables.
    pub count: i64,
    /// Transactions.
    pub transactions: i64,
    /// The last one's side: `monolith` or `service`.
    pub side: &'static str,
    /// Its table, by the monolith's name.
    pub table: String,
    /// `insert`, `update`, `delete` or `truncate`.
    pub operation: String,
    /// Start of its commit record.
    #[serde(serialize_with = "as_text")]
    pub lsn: Lsn,
    /// Its transaction id, 32 bits.
    pub xid: i64,
    /// When it was met.
    pub raised_at: String,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableStatus {
    /// The monolith's name for it.
    pub table: String,
    /// The service's name for it.
    pub target: String,
    /// `pending`, `copying`, `live` or `diverged`.
    pub state: String,
    /// Why it is not live, when the mirror said so.
    pub detail: Option<String>,
    /// Its rows changed without an event in the stream, or may have: it must be copied again.
    pub unheard: bool,
    /// Rows copied so far.
    pub rows_copied: u64,
    /// Rows expected.
    pub rows_estimate: u64,
    /// What to type to bring a diverged table back.
    pub next: Option<String>,
}

/// A database that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreachable {
    /// `monolith` or the service's name.
    pub database: String,
    /// Which database and why, without any secret.
    pub reason: String,
}

/// Writes a position as PostgreSQL does.
fn as_text<S: serde::Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}
