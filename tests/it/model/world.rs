//! The whole of what can change, and the actions that change it.

use stateright::{Model, Property};
use strangler::authority::{GroupState, Intent, Side};

use super::database::{SIDES, Slice, index};
use super::log::Entry;
use super::mirror::Batch;
use super::mutant::Mutant;
use super::operator::Operator;
use super::writers::{Isolation, Writer};
use super::{failover, invariants, mirror, operator, writers};

pub const OPERATORS: usize = 2;
pub const READERS: usize = 2;
pub const GROUPS: usize = 2;

/// What is durable, apart from each server's own way to lose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Core<const N: usize> {
    pub slices: [Slice; N],
    /// Group rows in the monolith.
    pub groups: [GroupState; GROUPS],
    /// Writes of each slice that were acknowledged, as bits.
    pub acked: [u8; N],
}

/// What dies with a server or a session, of one slice. The arrays are by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sessions {
    /// Which operator holds the gate's lock.
    pub locks: [Option<u8>; 2],
    pub writers: [Option<Writer>; 2],
    /// Readers of the stream into this side, each with what it has in hand.
    pub readers: [[Option<Batch>; READERS]; 2],
}

/// What was seen to go wrong in a step, rather than in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Marks {
    pub epoch_fell: bool,
    pub accepted_write_passed: bool,
    pub gap: bool,
    pub unjust_alarm: bool,
    /// By group: some member was opened on its new side, some was reopened.
    pub outcomes: [(bool, bool); GROUPS],
}

/// How much has happened of what is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Spent {
    pub writes: u8,
    pub starts: u8,
    pub deaths: u8,
    pub crashes: u8,
    pub rogues: u8,
    pub failovers: u8,
    pub groups: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct World<const N: usize> {
    pub core: Core<N>,
    pub sessions: [Sessions; N],
    pub operators: [Operator<N>; OPERATORS],
    pub marks: Marks,
    pub spent: Spent,
}

/// One step of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Writer(writers::Act),
    Mirror(mirror::Act),
    Operator(operator::Act),
    Server(failover::Act),
}

/// What a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All slices, together as a group when they are moved and there are several.
    All,
    /// The first slice alone.
    First,
}

/// The protocol within bounds.
#[derive(Debug, Clone)]
pub struct Protocol<const N: usize> {
    pub mutant: Mutant,
    /// Commands that each operator may be started with.
    pub commands: [&'static [(Intent, Scope)]; OPERATORS],
    /// Who has authority at the beginning.
    pub first: Side,
    pub writes: u8,
    pub starts: u8,
    pub epoch_max: i64,
    /// Deaths of operators and of their sessions.
    pub deaths: u8,
    /// Crashes of servers. Where there are any, writers and appliers do not wait for the disk.
    pub crashes: u8,
    pub rogues: u8,
    pub failovers: u8,
    pub readers: usize,
    pub isolations: &'static [Isolation],
    pub memory: invariants::Memory<N>,
}

impl<const N: usize> Model for Protocol<N> {
    type State = World<N>;
    type Action = Action;

    fn init_states(&self) -> Vec<World<N>> {
        let sessions = Sessions { locks: [None; 2], writers: [None; 2], readers: [[None; READERS]; 2] };
        vec![World {
            core: Core {
                slices: [Slice::born(self.first); N],
                groups: [GroupState::Absent; GROUPS],
                acked: [0; N],
            },
            sessions: [sessions; N],
            operators: [Operator::idle(); OPERATORS],
            marks: Marks::default(),
            spent: Spent::default(),
        }]
    }

    fn actions(&self, world: &World<N>, actions: &mut Vec<Action>) {
        let (mut writers, mut mirrors) = (Vec::new(), Vec::new());
        let (mut operators, mut servers) = (Vec::new(), Vec::new());
        for slice in 0..N {
            for side in SIDES {
                writers::actions(self, world, slice, side, &mut writers);
                mirror::actions(self, world, slice, side, &mut mirrors);
                failover::actions(self, world, slice, side, &mut servers);
            }
        }
        for number in 0..OPERATORS {
            operator::actions(self, world, number, &mut operators);
        }
        actions.extend(writers.into_iter().map(Action::Writer));
        actions.extend(mirrors.into_iter().map(Action::Mirror));
        actions.extend(operators.into_iter().map(Action::Operator));
        actions.extend(servers.into_iter().map(Action::Server));
    }

    fn next_state(&self, last: &World<N>, action: Action) -> Option<World<N>> {
        let mut world = *last;
        match action {
            Action::Writer(act) => writers::act(self, &mut world, act),
            Action::Mirror(act) => mirror::act(self, &mut world, act),
            Action::Operator(act) => operator::act(self, &mut world, act),
            Action::Server(act) => failover::act(&mut world, act),
        }
        (world != *last).then_some(world)
    }

    fn within_boundary(&self, world: &World<N>) -> bool {
        let epoch = |slice: &Slice| slice.monolith.gate.epoch.max(slice.service.gate.epoch);
        world.core.slices.iter().all(|slice| epoch(slice).0 <= self.epoch_max)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        invariants::properties(self)
    }
}

impl<const N: usize> World<N> {
    /// Frees the gate's lock if this operator holds it.
    pub fn unlock(&mut self, slice: usize, side: Side, operator: u8) {
        let lock = &mut self.sessions[slice].locks[index(side)];
        if *lock == Some(operator) {
            *lock = None;
        }
    }

    /// Everything committed becomes durable, and what waited for that is acknowledged.
    pub fn flush(&mut self, slice: usize, side: Side) {
        let database = self.core.slices[slice].on_mut(side);
        database.flush();
        for entry in database.log.entries() {
            if let Entry::Accepted(id) = entry {
                self.core.acked[slice] |= 1 << id;
            }
        }
    }
}
