//! What is observed of one slice before anything is decided about it.

use std::fmt;

use super::standing::Standing;
pub use crate::journal::streams::Mode;
use crate::journal::streams::{Direction, StreamState};
use crate::lsn::Lsn;

/// One of the two databases that hold a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The shared database that is being split.
    Monolith,
    /// The database that the slice moves to.
    Service,
}

impl Side {
    /// The other side.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Monolith => Self::Service,
            Self::Service => Self::Monolith,
        }
    }

    /// The stream that writes into this side. Its row is in this side's database.
    #[must_use]
    pub fn incoming(self) -> Direction {
        match self {
            Self::Monolith => Direction::Reverse,
            Self::Service => Direction::Forward,
        }
    }

    /// The stream that reads this side. Its row is in the peer's database.
    #[must_use]
    pub fn outgoing(self) -> Direction {
        self.peer().incoming()
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Monolith => "monolith",
            Self::Service => "service",
        })
    }
}

/// Number of a change of authority. Every change of a gate row raises it; it never falls and no number is given to two
/// changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub i64);

impl Epoch {
    /// The epoch of the next change.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a gate lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GateState {
    /// The application may write here.
    Open,
    /// Every write of the application fails with SQLSTATE 25006.
    Fenced,
}

impl GateState {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Fenced => "FENCED",
        }
    }

    /// Reads the stored form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Fenced].into_iter().find(|state| state.as_str() == text)
    }
}

/// How a gate row came to be. Two pairs of rows with the same states and epochs mean different things by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Opened, or born open. Set by opening and reopening.
    Open,
    /// Closed because authority leaves, or born closed. Set by a fence.
    Fence,
    /// It was closed and its epoch was raised, which shuts out everybody who wanted to open it. Set by a bump.
    Bump,
}

impl Cause {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Fence => "fence",
            Self::Bump => "bump",
        }
    }

    /// Reads the stored form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Fence, Self::Bump].into_iter().find(|cause| cause.as_str() == text)
    }
}

/// Number of a group row. It is made for one attempt to move several slices together and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub i64);

/// A gate row as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gate {
    /// What it lets through.
    pub state: GateState,
    /// The change that made it so.
    pub epoch: Epoch,
    /// Which kind of change.
    pub cause: Cause,
    /// WAL insert position of this database under the exclusive lock of the last fence: every accepted write lies
    /// before it. `None` when it was born closed, was bumped, or is open.
    pub fence_lsn: Option<Lsn>,
    /// WAL insert position of this database at which its present or last time of authority began. `None` when it had
    /// authority from the beginning or never. Kept by fence, bump and reopening.
    pub cut_lsn: Option<Lsn>,
    /// The group row under which the last fence was made; `None` for a slice that moved alone. Set by a fence, cleared
    /// by reopening.
    pub group: Option<GroupId>,
}

impl Gate {
    /// Whether the application may write.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == GateState::Open
    }

    /// The part that decides.
    #[must_use]
    pub fn posture(&self) -> Posture {
        Posture { state: self.state, epoch: self.epoch, cause: self.cause }
    }

    /// Whether this row is that of a fence which nobody has answered on this side, made under `group`.
    #[must_use]
    pub fn is_fenced_under(&self, group: GroupId) -> bool {
        self.state == GateState::Fenced && self.cause == Cause::Fence && self.group == Some(group)
    }
}

/// The part of a gate row that decides, for words about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Posture {
    /// What it lets through.
    pub state: GateState,
    /// The change that made it so.
    pub epoch: Epoch,
    /// Which kind of change.
    pub cause: Cause,
}

impl fmt::Display for Posture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at epoch {} (cause {})", self.state.as_str(), self.epoch, self.cause.as_str())
    }
}

/// A stream row as it is stored in the database that the stream writes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream {
    /// What it may do.
    pub mode: Mode,
    /// Epoch of the change of authority that gave it this mode.
    pub epoch: Epoch,
    /// Position in the source up to which everything is applied or, as a tripwire, looked at.
    pub applied: Lsn,
    /// Whether it can go on at all.
    pub state: StreamState,
}

/// What one side's database says, read in one statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rows {
    /// The slice's gate row.
    pub gate: Gate,
    /// The row of the stream that writes into this side; `None` before it is made.
    pub incoming: Option<Stream>,
}

/// What came of looking at one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    /// Its rows.
    Seen(Rows),
    /// It did not answer.
    Unreachable,
    /// It answered, and is not the database that the slice was provisioned in: a clone, or restored from a backup.
    Stranger,
}

/// Where a group row stands. `Open` and `Aborted` are for ever, so that an old look at them is never wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupState {
    /// Not written yet: the command that looks is about to.
    Absent,
    /// Written; nothing may be opened, bumped or reopened for it.
    Pending,
    /// Every member was found fenced: each may be opened on its new side, and none goes back.
    Open,
    /// Given up: each fenced member goes back, and none may be opened on its new side.
    Aborted,
}

/// The group row in the monolith, when the slice moves together with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    /// Its number.
    pub id: GroupId,
    /// Where it stands.
    pub state: GroupState,
    /// Whether every member's gate was found to be [`Gate::is_fenced_under`] it.
    pub complete: bool,
}

/// All that is observed of one slice. The sides are read one after the other, so the whole may never have been true
/// at any one moment; [`super::step`] is made for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Facts {
    /// The monolith.
    pub monolith: Sight,
    /// The service.
    pub service: Sight,
    /// The group row that the fenced gate names; else the one that this command moves the slice under; else none.
    pub group: Option<Group>,
}

/// Which group row has to be read to complete the [`Facts`], once both gates were. `own` is the row under which the command
/// that looks moves the slice, if it moves several.
#[must_use]
pub fn group_to_read(monolith: &Gate, service: &Gate, own: Option<GroupId>) -> Option<GroupId> {
    let named = match Standing::of(monolith, service) {
        Standing::Fenced { from, .. } | Standing::Aborted { from, .. } => match from {
            Side::Monolith => monolith.group,
            Side::Service => service.group,
        },
        // What an open slice's peer names is a move that is over.
        Standing::Owned { .. } | Standing::Behind { .. } | Standing::BothOpen | Standing::Broken => None,
    };
    named.or(own)
}
