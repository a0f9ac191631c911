//! One database, as far as one slice is concerned, and the pair of them.

use strangler::authority::GateState;
use strangler::authority::{Cause, Epoch, Gate, Mode, Side, Stream};
use strangler::journal::streams::StreamState;
use strangler::lsn::Lsn;

use super::log::{Entry, Log};
use super::writers::ROGUE_FIRST;

/// What survives the processes that use it; `flushed` and `durable` survive the server too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Database {
    pub gate: Gate,
    /// The stream that writes into this database.
    pub stream: Stream,
    pub log: Log,
    /// Up to where the log survives a crash of the server.
    pub flushed: u8,
    /// The stream row that survives a crash: apply commits need not be synchronous.
    pub durable: Stream,
    /// What the slot in this database, which the peer's stream reads, was told to forget.
    pub confirmed: u8,
    /// Numbers of rogue writes in the peer's database that the tripwire told about here, as bits.
    pub alarms: u8,
    /// What the standby has.
    pub standby: Standby,
}

/// The durable part of a database, as its asynchronous standby has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Standby {
    pub gate: Gate,
    pub stream: Stream,
    pub end: u8,
}

pub fn position(at: u8) -> Lsn {
    Lsn(u64::from(at))
}

pub fn reached(lsn: Lsn) -> u8 {
    u8::try_from(lsn.0).unwrap()
}

impl Database {
    fn born(owns: bool) -> Self {
        let (state, cause, mode) = if owns {
            (GateState::Open, Cause::Open, Mode::Tripwire)
        } else {
            (GateState::Fenced, Cause::Fence, Mode::Apply)
        };
        let gate = Gate { state, epoch: Epoch(1), cause, fence_lsn: None, cut_lsn: None, group: None };
        let stream = Stream { mode, epoch: Epoch(1), applied: Lsn::ZERO, state: StreamState::Running };
        Self {
            gate,
            stream,
            log: Log::EMPTY,
            flushed: 0,
            durable: stream,
            confirmed: 0,
            alarms: 0,
            standby: Standby { gate, stream, end: 0 },
        }
    }

    pub fn flush(&mut self) {
        self.flushed = self.log.end();
        self.durable = self.stream;
    }

    /// Commits a change of the gate: its record is in the log, and the commit is synchronous.
    pub fn commit_gate(&mut self, gate: Gate) {
        self.gate = gate;
        self.log.push(Entry::Own);
        self.flush();
    }

    /// The server dies and comes back with what it had flushed.
    pub fn crash(&mut self) {
        self.log.cut(self.flushed);
        self.stream = self.durable;
    }
}

/// Both databases of one slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slice {
    pub monolith: Database,
    pub service: Database,
}

impl Slice {
    pub fn born(first: Side) -> Self {
        let on = |side| Database::born(side == first);
        Self { monolith: on(Side::Monolith), service: on(Side::Service) }
    }

    /// A number that no write has. One that a crash took away everywhere may be given again.
    pub fn fresh_write(&self) -> u8 {
        let writes = [&self.monolith, &self.service].map(|database| {
            database.log.writes().filter(|id| *id < ROGUE_FIRST).max().map_or(0, |id| id + 1)
        });
        writes[0].max(writes[1])
    }

    pub fn on(&self, side: Side) -> &Database {
        match side {
            Side::Monolith => &self.monolith,
            Side::Service => &self.service,
        }
    }

    pub fn on_mut(&mut self, side: Side) -> &mut Database {
        match side {
            Side::Monolith => &mut self.monolith,
            Side::Service => &mut self.service,
        }
    }
}

pub const SIDES: [Side; 2] = [Side::Monolith, Side::Service];

pub fn index(side: Side) -> usize {
    match side {
        Side::Monolith => 0,
        Side::Service => 1,
    }
}
