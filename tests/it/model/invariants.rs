//! What must hold in every state.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use stateright::Property;
use strangler::authority::Side;
use strangler::journal::streams::StreamState;

use super::database::{SIDES, Slice, position, reached};
use super::log::Entry;
use super::recovery::comes_home;
use super::world::{Core, Protocol, World};
use super::writers::ROGUE_FIRST;

/// Answers of [`comes_home`], which depend on what is durable only.
#[derive(Debug, Clone, Default)]
pub struct Memory<const N: usize>(Arc<Mutex<HashMap<Core<N>, bool>>>);

impl<const N: usize> Memory<N> {
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

pub const NEVER_BOTH_OPEN: &str = "I1: never are both sides open";
pub const NO_WRITE_LOST: &str = "I2: the authority has every acknowledged write";
pub const ONE_CHAIN: &str = "I3: the sides' writes are prefixes of one chain";
pub const NONE_TWICE: &str = "I4: no side has a write twice";
pub const SLOT_BEHIND: &str = "I5: no slot is told of what is not durable";
pub const OWNER_HAS_ALL: &str = "I6: an open side has everything that its peer has";
pub const EPOCH_GROWS: &str = "I7: epochs grow with every change";
pub const COMES_HOME: &str = "I8: one operator alone brings authority home with every write";
pub const TRIPWIRE_WAITS: &str = "T1: a tripwire passes no accepted write";
pub const ROGUES_ARE_TOLD: &str = "T2: no stream passes a rogue write in silence";
pub const NO_GAP: &str = "T3: no stream is cut off from its slot";
pub const JUST_ALARM: &str = "P: nobody is called for a contradiction that is none";
pub const ALL_OR_NONE: &str = "G: the members of a group move all or none";

pub const FLIPPED: &str = "the service gets authority";
pub const FLIPPED_BACK: &str = "the monolith gets it back";
pub const ABORTED: &str = "a flip is aborted";

/// What holds whatever is lost: with a failover to an asynchronous standby acknowledged writes may be gone, and their
/// order with them, and that is found out by the mirror and told. What must never happen even so is two open sides.
pub fn properties<const N: usize>(protocol: &Protocol<N>) -> Vec<Property<Protocol<N>>> {
    let mut all = vec![
        Property::always(NEVER_BOTH_OPEN, |_, world: &World<N>| {
            each(world, |pair| !(pair.monolith.gate.is_open() && pair.service.gate.is_open()))
        }),
        Property::always(ALL_OR_NONE, |_, world: &World<N>| {
            world.marks.outcomes.iter().all(|outcome| *outcome != (true, true))
        }),
    ];
    if protocol.failovers > 0 {
        return all;
    }
    all.extend([
        Property::always(NO_WRITE_LOST, no_write_lost),
        Property::always(ONE_CHAIN, |_, world: &World<N>| each(world, one_chain)),
        Property::always(NONE_TWICE, |_, world: &World<N>| {
            each(world, |pair| SIDES.iter().all(|side| none_twice(pair, *side)))
        }),
        Property::always(SLOT_BEHIND, |_, world: &World<N>| {
            each(world, |pair| {
                SIDES
                    .iter()
                    .all(|side| position(pair.on(side.peer()).confirmed) <= pair.on(*side).durable.applied)
            })
        }),
        Property::always(OWNER_HAS_ALL, |_, world: &World<N>| {
            each(world, |pair| SIDES.iter().all(|side| owner_has_all(pair, *side)))
        }),
        Property::always(EPOCH_GROWS, |_, world: &World<N>| !world.marks.epoch_fell),
        Property::always(COMES_HOME, |protocol: &Protocol<N>, world: &World<N>| {
            let known = protocol.memory.0.lock().unwrap().get(&world.core).copied();
            known.unwrap_or_else(|| {
                let home = comes_home(protocol.mutant, &world.core);
                protocol.memory.0.lock().unwrap().insert(world.core, home);
                home
            })
        }),
        Property::always(TRIPWIRE_WAITS, |_, world: &World<N>| !world.marks.accepted_write_passed),
        Property::always(ROGUES_ARE_TOLD, |_, world: &World<N>| {
            each(world, |pair| SIDES.iter().all(|side| rogues_are_told(pair, *side)))
        }),
        Property::always(NO_GAP, |_, world: &World<N>| {
            each(world, |pair| SIDES.iter().all(|side| pair.on(*side).stream.state == StreamState::Running))
        }),
        Property::always(JUST_ALARM, |_, world: &World<N>| !world.marks.unjust_alarm),
    ]);
    all
}

/// That a model moves at all: without these, a protocol in which nothing can happen would pass.
pub fn examples<const N: usize>() -> Vec<Property<Protocol<N>>> {
    vec![
        Property::sometimes(FLIPPED, |_, world: &World<N>| each(world, |pair| pair.service.gate.is_open())),
        Property::sometimes(FLIPPED_BACK, |_, world: &World<N>| {
            each(world, |pair| pair.monolith.gate.is_open() && pair.monolith.gate.cut_lsn.is_some())
        }),
        Property::sometimes(ABORTED, |_, world: &World<N>| {
            each(world, |pair| {
                pair.monolith.gate.is_open() && pair.service.gate.cause == strangler::authority::Cause::Bump
            })
        }),
    ]
}

fn each<const N: usize>(world: &World<N>, holds: impl Fn(&Slice) -> bool) -> bool {
    world.core.slices.iter().all(holds)
}

fn chain(pair: &Slice, side: Side) -> impl Iterator<Item = u8> + '_ {
    pair.on(side).log.writes().filter(|id| *id < ROGUE_FIRST)
}

fn held(pair: &Slice, side: Side) -> u8 {
    chain(pair, side).fold(0, |bits, id| bits | 1 << id)
}

/// While nobody has authority, one of them must have every write, to go on with.
fn no_write_lost<const N: usize>(_: &Protocol<N>, world: &World<N>) -> bool {
    (0..N).all(|slice| {
        let (pair, acked) = (&world.core.slices[slice], world.core.acked[slice]);
        let has = |side| acked & !held(pair, side) == 0;
        match SIDES.into_iter().find(|side| pair.on(*side).gate.is_open()) {
            Some(owner) => has(owner),
            None => SIDES.into_iter().any(has),
        }
    })
}

fn one_chain(pair: &Slice) -> bool {
    chain(pair, Side::Monolith).zip(chain(pair, Side::Service)).all(|(left, right)| left == right)
}

fn none_twice(pair: &Slice, side: Side) -> bool {
    let mut seen = 0_u8;
    pair.on(side).log.writes().all(|id| {
        let fresh = seen & 1 << id == 0;
        seen |= 1 << id;
        fresh
    })
}

fn owner_has_all(pair: &Slice, side: Side) -> bool {
    !pair.on(side).gate.is_open() || held(pair, side.peer()) & !held(pair, side) == 0
}

/// Of the stream into `side`.
fn rogues_are_told(pair: &Slice, side: Side) -> bool {
    let (target, source) = (pair.on(side), pair.on(side.peer()));
    let passed = usize::from(reached(target.stream.applied));
    source.log.entries().take(passed).all(|entry| match entry {
        Entry::Rogue(id) => {
            target.alarms & 1 << id != 0 || target.log.entries().any(|entry| entry == Entry::Applied(id))
        }
        Entry::Accepted(_) | Entry::Applied(_) | Entry::Own => true,
    })
}
