//! What is found out before anything is judged.

use std::time::Duration;

use super::defaults::ColumnDefault;
use crate::dualwrite::flip::sequences::{Pairs, Stands};
use crate::journal::grounds::Ground;
use crate::journal::operators::OperatorRow;
use crate::journal::readiness::Told;
use crate::journal::retirement::Retirement;
use crate::lsn::Lsn;
use crate::name::TableName;
use crate::problem::Problem;
use crate::reconcile::evidence::Evidence;

/// What other rooms find out by means of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Relations of moved tables, on either side, that rows can be written through without asking the gate: a clause each.
    pub unguarded: Vec<String>,
    /// Tables of the monolith that ask the gate of another slice, with that slice.
    pub claimed: Vec<(TableName, String)>,
    /// Ways to write into moved tables on either side past gates that are all there, and keys by which the sides don't tell the same
    /// rows apart.
    pub ways_past: Vec<Problem>,
    /// Why the way back could not be proven: a canary did not arrive, or a statement of it was refused. A clause.
    pub way_back: Option<String>,
}

/// Everything that decides whether a flip may begin. `from` is the side that would be fenced, `to` the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Our tables on the side that would be fenced; its stream is the way back.
    pub from: Told,
    /// Our tables on the other side; its stream is the one that has to drain.
    pub to: Told,
    /// Hash of the mapping that the plan means now.
    pub mapping: String,
    /// What the plan maps in another way than the slice was provisioned, in words.
    pub changed: String,
    /// By how much this machine's clock is ahead of the servers', in microseconds, where it agrees with neither.
    pub apart_us: Option<i64>,
    /// How long markers take from one side to the other.
    pub probe: Probe,
    /// The ledger's verdicts.
    pub evidence: Evidence,
    /// What they would have to rest on now; absent when the slice is not provisioned.
    pub ground: Option<Ground>,
    /// The slot of a way back that has lost writes of the service, as far as anything proves: see
    /// [`crate::journal::alarms::lost_writes`].
    pub lost_writes: Option<String>,
    /// The slot of the way back, which is on the side that opens; absent when there is none of the stream's name.
    pub slot: Option<Slot>,
    /// Prepared transactions on the side that would be fenced that hold the gate or write moved tables.
    pub prepared: Vec<Prepared>,
    /// Transactions there that passed the gate.
    pub holders: Vec<Holder>,
    /// Locks there that keep writers out of moved tables, and with them the fence.
    pub locked_from: Vec<TableLock>,
    /// Such locks on the other side, for which the mirror waits.
    pub locked_to: Vec<TableLock>,
    /// Tables of the side that would be fenced with rows that the slice's filter does not take.
    pub behind: Vec<Behind>,
    /// Sessions there that the gate lets pass and that are not ours: process and application.
    pub passing: Vec<(i32, String)>,
    /// Servers that follow the side that would be fenced.
    pub standbys: Vec<Standby>,
    /// Sequences on both sides.
    pub sequences: Pairs,
    /// Where those of the side that would be fenced stand.
    pub stands_from: Stands,
    /// Where those of the other side stand.
    pub stands_to: Stands,
    /// The application's roles on the side that opens.
    pub access: Vec<Access>,
    /// Published tables of the side that opens that have no replica identity.
    pub unidentified: Vec<TableName>,
    /// Defaults on the side that opens.
    pub defaults: Vec<ColumnDefault>,
    /// The monolith's old tables were taken away from the application.
    pub retired: Option<Retirement>,
    /// Who else is at work.
    pub other: Option<OperatorRow>,
    /// What other rooms found.
    pub findings: Findings,
}

/// Round trips of markers through the outgoing stream, in the order in which they were sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probe {
    /// Milliseconds of each marker that arrived.
    pub millis: Vec<f64>,
    /// The last one did not arrive in time.
    pub unanswered: bool,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Position that was last confirmed.
    pub confirmed: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
}

/// A prepared transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Its name, by which it is ended.
    pub gid: String,
    /// Role that prepared it.
    pub owner: String,
    /// How old it is, in seconds.
    pub age_s: i64,
}

/// A transaction that holds the gate's lock with others, as every writer does until it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// Server process.
    pub pid: i32,
    /// Age of the transaction in seconds.
    pub age_s: f64,
    /// This role may not see how old it is: `age_s` is for how long it was seen to be there.
    pub hidden: bool,
    /// `application_name`, or the role where there is none.
    pub application: String,
    /// `active`, `idle in transaction`, and so on.
    pub state: String,
    /// The last statement, shortened and without constants.
    pub query: String,
}

/// A lock on a moved table that whoever writes it waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct TableLock {
    /// Whose transaction it is.
    pub holder: Holder,
    /// As `pg_locks` calls it.
    pub mode: String,
    /// The table or partition.
    pub table: String,
}

/// A table of which the slice takes some rows only, where others are or may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// The table, by the name it has on the side that would be fenced.
    pub table: String,
    /// The filter as a condition.
    pub filter: String,
    /// How an index is made that answers the look at once.
    pub index: String,
    /// What a look for others came to.
    pub look: Look,
}

/// What a look for rows that the filter does not take came to, where it did not find that there are none in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// There are some.
    Found,
    /// It took long: longer than writers may be held, or a good part of that.
    Slow {
        /// How long it took at least.
        took: Duration,
        /// How long it may take.
        budget: Duration,
    },
}

/// How a standby follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replica {
    /// Commits wait for it.
    Synchronous,
    /// Commits don't wait for it.
    Asynchronous,
    /// Its slot is there and it is not connected.
    Away,
    /// This role may not see it.
    Hidden,
}

/// A server that follows another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standby {
    /// `application_name`, or the name of its slot.
    pub name: String,
    /// How.
    pub kind: Replica,
    /// WAL in bytes that it has not flushed a moment after it was written, 0 or less when it has all; `None` where it does not
    /// tell.
    pub behind_bytes: Option<i64>,
}

impl Standby {
    /// It is connected and has not flushed what it should have.
    #[must_use]
    pub fn is_late(&self) -> bool {
        match self.kind {
            Replica::Synchronous | Replica::Asynchronous => self.behind_bytes.is_none_or(|bytes| bytes > 0),
            Replica::Away | Replica::Hidden => false,
        }
    }
}

/// What a role may do with one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The role.
    pub role: String,
    /// It exists.
    pub exists: bool,
    /// It, or a member of it, can log in.
    pub login: bool,
    /// The table, by the name it has there.
    pub table: String,
    /// Of SELECT, INSERT, UPDATE and DELETE those that it may not.
    pub missing: Vec<String>,
    /// Sequences of the table that it may insert into and may not draw from, as SQL.
    pub sequences: Vec<String>,
}
