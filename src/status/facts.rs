//! What the databases say about a slice, before anything is concluded from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use super::arming::ArmingFacts;
use super::evidence::EvidenceFacts;
use crate::journal::alarms::Uncleared;
use crate::journal::dropped::Dropped;
use crate::journal::migrate::Form;
use crate::journal::moves::Blocked;
use crate::journal::outside::Outside;
use crate::journal::whereabouts::Astray;
use crate::lsn::Lsn;
use crate::problem::Problem;

/// Everything that is known about one slice.
#[derive(Debug, Clone)]
pub struct SliceFacts {
    /// Slice name.
    pub slice: String,
    /// Service that will own it.
    pub service: String,
    /// The plan's limit on the WAL held for it, in bytes.
    pub wal_budget_bytes: u64,
    /// The plan's `evidence_max_age`.
    pub evidence_max_age: Duration,
    /// What the service's database says.
    pub service_side: Side<ServiceFacts>,
    /// What the monolith says.
    pub monolith_side: Side<MonolithFacts>,
    /// Links that lead to other databases than the plan says.
    pub astray: BTreeSet<Astray>,
    /// Tables of it that another slice has, as `check` says it.
    pub claimed: Vec<Problem>,
    /// The plan's mapping is another one than the provisioned one, and data was mirrored since.
    pub mapping_changed: bool,
    /// An earlier reading of the WAL held, for the rate.
    pub earlier: Option<WalReading>,
}

/// What one database said, or why it said nothing.
#[derive(Debug, Clone)]
pub enum Side<T> {
    /// It answered.
    Read(T),
    /// It could not be reached or read; the reason holds no secret.
    Silent(String),
}

impl<T> Side<T> {
    /// The facts, when there are any.
    pub fn facts(&self) -> Option<&T> {
        match self {
            Self::Read(facts) => Some(facts),
            Self::Silent(_) => None,
        }
    }
}

/// How much WAL a slot held at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalReading {
    /// When, by the monolith's clock, in microseconds since 1970.
    pub at_us: i64,
    /// WAL held, in bytes.
    pub held_bytes: u64,
}

/// What the service's database says about a slice. Ages are by that database's clock, which is the only one that
/// wrote the times.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ServiceFacts {
    /// `now()` in microseconds since 1970.
    pub now_us: i64,
    /// `strangler.slice` has a row: `provision` got this far.
    pub provisioned: bool,
    /// `strangler.gate_<slice>`.
    pub gate: Option<Gate>,
    /// The forward row of `strangler.stream`.
    pub stream: Option<Stream>,
    /// The forward row of `strangler.mirror_process`.
    pub process: Option<ProcessRow>,
    /// Rows of `strangler.mirror_table`.
    pub tables: Vec<TableRow>,
    /// Rows of `strangler.deferred` that are not done, as `kind object on table`.
    pub deferred: Vec<String>,
    /// Every logical slot of this database.
    #[serde(skip)]
    pub slots: Vec<Slot>,
    /// Those of them that were tried once the copy was done and that the data contradicts, with why.
    pub deferred_failed: Vec<String>,
    /// Which version made the tables of ours.
    #[serde(skip)]
    pub form: Form,
    /// Where rows of the service can be written without asking its gate.
    #[serde(skip)]
    pub unguarded: Vec<String>,
    /// What else about its tables keeps rows from being right there, or from being written.
    #[serde(skip)]
    pub unfit: Vec<Unfit>,
    /// Writes on a fenced side that nobody has acted upon.
    #[serde(skip)]
    pub strays: Option<Uncleared>,
    /// Rows of the service that its filter forbids, which nobody has acted upon.
    #[serde(skip)]
    pub outside: Option<Outside>,
    /// [`crate::journal::alarms::lost_writes`].
    #[serde(skip)]
    pub lost_writes: Option<String>,
    /// The slot that the last way back of the slice read.
    #[serde(skip)]
    pub way_back_slot: Option<String>,
    /// The slice's old tables are dropped, or about to be.
    #[serde(skip)]
    pub dropped: Option<Dropped>,
    /// What the ledger says, or why it can't be read; absent where the tables have no ledger yet.
    #[serde(skip)]
    pub evidence: Option<Side<EvidenceFacts>>,
}

/// Something about the service's tables that somebody has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// What it is, a clause.
    pub words: String,
    /// What to type or run; none where `arm` ends it.
    pub next: Option<String>,
}

/// What the monolith says about a slice.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct MonolithFacts {
    /// It has noted that the slice's old tables went from it.
    #[serde(skip)]
    pub dropped: Option<Dropped>,
    /// `now()` in microseconds since 1970.
    pub now_us: i64,
    /// `pg_current_wal_lsn()`.
    #[serde(deserialize_with = "from_text")]
    pub current_lsn: Lsn,
    /// `strangler.gate_<slice>`.
    pub gate: Option<Gate>,
    /// Every logical slot of this database.
    #[serde(skip)]
    pub slots: Vec<Slot>,
    /// Which version made the tables of ours.
    #[serde(skip)]
    pub form: Form,
    /// Gates, reverse stream and foreign keys; absent where the tables of ours are not of this version.
    #[serde(skip)]
    pub arming: Option<ArmingFacts>,
    /// Shapes of the slice's tables, by their names in the plan.
    #[serde(skip)]
    pub shapes: BTreeMap<String, String>,
    /// The slice's way back, once it is armed.
    #[serde(skip)]
    pub back: Option<WayBack>,
    /// Moves of several slices that it is one of, the latest ones; asked while its gate is closed.
    #[serde(skip)]
    pub groups: Vec<MoveGroup>,
    /// Why its last move that could not be finished could not.
    #[serde(skip)]
    pub blocked: Option<Blocked>,
}

/// The way back of a slice: its rows of `strangler.stream` and `strangler.mirror_process`.
#[derive(Debug, Clone, Deserialize)]
pub struct WayBack {
    /// `apply`, `tripwire` or `off`.
    pub mode: String,
    /// Its stream; the slot is the service's.
    pub stream: Stream,
    /// The process that last ran it.
    pub process: Option<ProcessRow>,
    /// Who keeps it out of a table of the monolith; asked while it applies.
    #[serde(skip)]
    pub blocker: Option<String>,
}

/// A gate row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Gate {
    /// `open`, `fence` or `bump`: how the row came to be.
    #[serde(default)]
    pub cause: String,
    /// `OPEN` or `FENCED`.
    pub state: String,
    /// Its epoch.
    pub epoch: i64,
    /// Number of the move of several slices for which it was closed.
    #[serde(default)]
    pub group: Option<i64>,
    /// Where this side's log stood when it was closed: what the other one has to have before it may be opened.
    #[serde(skip)]
    pub fence: Option<Lsn>,
}

/// A move of several slices, as the monolith has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveGroup {
    /// Its number.
    pub id: i64,
    /// `pending`, `open` or `aborted`.
    pub state: String,
    /// All of its slices.
    pub members: Vec<String>,
}

impl Gate {
    /// The application may not write there.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state != "OPEN"
    }
}

/// A stream row.
#[derive(Debug, Clone, Deserialize)]
pub struct Stream {
    /// `creating`, `running`, `gap` or `diverged`.
    pub state: String,
    /// Why, for a gap or a divergence.
    pub detail: Option<String>,
    /// Slot on the monolith.
    pub slot: String,
    /// Position up to which everything is applied.
    #[serde(deserialize_with = "from_text")]
    pub applied_lsn: Lsn,
    /// Time on the monolith at which its state was the one applied, in microseconds since 1970.
    pub source_time_us: Option<i64>,
    /// The process that may apply.
    pub nonce: i64,
}

/// A process row.
#[derive(Debug, Clone, Deserialize)]
pub struct ProcessRow {
    /// Its number among all that ever ran.
    pub nonce: i64,
    /// Machine.
    pub host: String,
    /// Process number.
    pub pid: i32,
    /// What it said it was doing.
    pub phase: String,
    /// More about that.
    pub detail: Option<String>,
    /// Age in milliseconds of the monolith's state that it applied last, measured by a heartbeat through the stream.
    pub lag_ms: Option<f64>,
    /// Seconds since its last sign of life.
    pub seen_seconds_ago: f64,
    /// It said goodbye.
    pub stopped: bool,
}

/// A table row.
#[derive(Debug, Clone, Deserialize)]
pub struct TableRow {
    /// The monolith's name.
    pub source_table: String,
    /// The service's name.
    pub target_table: String,
    /// `pending`, `copying`, `live` or `diverged`.
    pub state: String,
    /// Why.
    pub detail: Option<String>,
    /// Its rows changed without an event in the stream, or may have.
    pub unheard: bool,
    /// Rows copied, with those of unfinished pieces.
    pub rows_copied: u64,
    /// Rows expected.
    pub rows_estimate: u64,
    /// Seconds since its copy began.
    pub copy_seconds: Option<f64>,
}

/// A row of `pg_replication_slots` (PostgreSQL documentation, section 54.19).
#[derive(Debug, Clone, Deserialize)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Somebody streams from it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// WAL held, in bytes: from `restart_lsn` to the current position.
    pub held_bytes: u64,
    /// Bytes until the slot is in danger of being lost; absent without `max_slot_wal_keep_size`.
    pub safe_wal_bytes: Option<i64>,
}

/// Reads a position from its text.
fn from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}
