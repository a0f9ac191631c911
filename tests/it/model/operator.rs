//! Operators: they look at both sides, one after the other, ask the shipping function, and do what it says, with time
//! for everybody else between any two of these.

use strangler::authority::{
    self, Awaited, Effect, Event, Facts, Gate, Group, GroupId, Intent, Refusal, Rows, Side, Sight, State,
    Step, group_to_read,
};

use super::database::{SIDES, index, position};
use super::mutant::Mutant;
use super::transaction::{self, group, peer_is_as_expected, target};
use super::world::{Core, GROUPS, Protocol, Scope, World};
use super::writers::Writer;

/// What an operator has in hand besides its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hands {
    Free,
    /// The gate's lock, taken when the log ended here.
    Locked(u8),
    /// Its own row is locked, and the peer was found to be as expected.
    Ready,
    /// Its session is gone, and it has not noticed.
    Severed,
}

/// One process. It moves its slices in their order, each with a driver of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operator<const N: usize> {
    drivers: [Option<State>; N],
    turn: usize,
    /// The group row under which it moves them, if it does.
    own: Option<GroupId>,
    /// The monolith's rows, when it has looked at one side only.
    seen: Option<Rows>,
    pub hands: Hands,
}

impl<const N: usize> Operator<N> {
    pub fn idle() -> Self {
        Self { drivers: [None; N], turn: 0, own: None, seen: None, hands: Hands::Free }
    }

    fn state(&self) -> Option<State> {
        self.drivers[self.turn]
    }

    /// The effect that it is about to do.
    pub fn effect(&self) -> Option<Effect> {
        match self.state() {
            Some(State::Acting { effect, .. }) => Some(effect),
            Some(State::Looking { .. } | State::Settled { .. }) | None => None,
        }
    }

    /// Turns to the next slice that is not done; forgets everything when all are.
    fn pass(&mut self) {
        let next = (1..=N).map(|step| (self.turn + step) % N).find(|slice| self.drivers[*slice].is_some());
        match next {
            Some(slice) => self.turn = slice,
            None => *self = Self::idle(),
        }
    }
}

/// One step of an operator, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    Starts(usize, Intent, Scope),
    LooksAtMonolith(usize),
    LooksAtService(usize),
    Prepares(usize),
    Commits(usize),
    RunsOutOfTime(usize),
    OperatorDies(usize),
    SessionDies(usize),
}

pub fn actions<const N: usize>(
    protocol: &Protocol<N>,
    world: &World<N>,
    number: usize,
    actions: &mut Vec<Act>,
) {
    let operator = &world.operators[number];
    let Some(state) = operator.state() else {
        if world.spent.starts < protocol.starts {
            for (intent, scope) in protocol.commands[number] {
                actions.push(Act::Starts(number, *intent, *scope));
            }
        }
        return;
    };
    // Who holds nothing and dies is like who never acts again; what dying changes is that locks are freed.
    if world.spent.deaths < protocol.deaths && matches!(operator.hands, Hands::Locked(_) | Hands::Ready) {
        actions.push(Act::OperatorDies(number));
        actions.push(Act::SessionDies(number));
    }
    match state {
        State::Looking { .. } if operator.seen.is_none() => actions.push(Act::LooksAtMonolith(number)),
        State::Looking { .. } => actions.push(Act::LooksAtService(number)),
        State::Acting { task, effect } => {
            if can_prepare(protocol, world, operator, &effect) {
                actions.push(Act::Prepares(number));
            }
            if can_commit(protocol.mutant, world, number, &effect) {
                actions.push(Act::Commits(number));
            }
            if matches!(operator.hands, Hands::Locked(_)) && task.attempts == 0 {
                actions.push(Act::RunsOutOfTime(number));
            }
        }
        State::Settled { .. } => unreachable!(),
    }
}

fn can_prepare<const N: usize>(
    protocol: &Protocol<N>,
    world: &World<N>,
    operator: &Operator<N>,
    effect: &Effect,
) -> bool {
    let sessions = &world.sessions[operator.turn];
    operator.hands == Hands::Free
        && match *effect {
            Effect::Fence { side, .. } => {
                let writes = sessions.writers[index(side)] == Some(Writer::Passed);
                sessions.locks[index(side)].is_none()
                    && (!writes || protocol.mutant == Mutant::NoWaitForWriters)
            }
            Effect::Open { .. } | Effect::Bump { .. } | Effect::Reopen { .. } => true,
            Effect::Look
            | Effect::Swap { .. }
            | Effect::Propose(_)
            | Effect::SettleOpen(_)
            | Effect::SettleAborted(_)
            | Effect::Await(_) => false,
        }
}

fn can_commit<const N: usize>(mutant: Mutant, world: &World<N>, number: usize, effect: &Effect) -> bool {
    let operator = &world.operators[number];
    let pair = &world.core.slices[operator.turn];
    match (*effect, operator.hands) {
        (_, Hands::Severed) => true,
        (Effect::Fence { drain, .. }, Hands::Locked(locked)) => {
            pair.on(target(drain)).stream.applied >= position(locked) || mutant == Mutant::NoDrain
        }
        (Effect::Fence { .. } | Effect::Open { .. } | Effect::Bump { .. } | Effect::Reopen { .. }, hands) => {
            hands == Hands::Ready
        }
        (Effect::Await(Awaited::Position { direction, at_least }), _) => {
            pair.on(target(direction)).stream.applied >= at_least
        }
        (Effect::Await(Awaited::Members(_)), _) => true,
        (Effect::Swap { .. } | Effect::Propose(_) | Effect::SettleOpen(_) | Effect::SettleAborted(_), _) => {
            true
        }
        (Effect::Look, _) => unreachable!(),
    }
}

pub fn act<const N: usize>(protocol: &Protocol<N>, world: &mut World<N>, action: Act) {
    match action {
        Act::Starts(number, intent, scope) => start(world, number, intent, scope),
        Act::LooksAtMonolith(number) => {
            let turn = world.operators[number].turn;
            world.operators[number].seen = Some(rows(&world.core, turn, Side::Monolith));
        }
        Act::LooksAtService(number) => {
            let Operator { turn, own, seen, .. } = world.operators[number];
            world.operators[number].seen = None;
            let facts = facts(protocol.mutant, &world.core, turn, seen.unwrap(), own);
            happens(protocol, world, number, Event::Observed(facts));
        }
        Act::Prepares(number) => prepare(protocol, world, number),
        Act::Commits(number) => commit(protocol, world, number),
        Act::RunsOutOfTime(number) => {
            release(world, number);
            happens(protocol, world, number, Event::OutOfTime);
        }
        Act::OperatorDies(number) => {
            world.spent.deaths += 1;
            release(world, number);
            world.operators[number] = Operator::idle();
        }
        Act::SessionDies(number) => {
            world.spent.deaths += 1;
            release(world, number);
            world.operators[number].hands = Hands::Severed;
        }
    }
}

fn start<const N: usize>(world: &mut World<N>, number: usize, intent: Intent, scope: Scope) {
    world.spent.starts += 1;
    let operator = &mut world.operators[number];
    for slice in 0..if scope == Scope::All { N } else { 1 } {
        operator.drivers[slice] = Some(State::begin(intent));
    }
    let moves = matches!(intent, Intent::Flip | Intent::FlipBack);
    if N > 1 && scope == Scope::All && moves && usize::from(world.spent.groups) < GROUPS {
        operator.own = Some(GroupId(i64::from(world.spent.groups)));
        world.spent.groups += 1;
    }
}

fn rows<const N: usize>(core: &Core<N>, slice: usize, side: Side) -> Rows {
    let database = core.slices[slice].on(side);
    Rows { gate: database.gate, incoming: Some(database.stream) }
}

/// What an operator knows that saw these rows of the monolith a while ago and everything else now.
pub fn facts<const N: usize>(
    mutant: Mutant,
    core: &Core<N>,
    slice: usize,
    mut monolith: Rows,
    own: Option<GroupId>,
) -> Facts {
    let mut service = rows(core, slice, Side::Service);
    let moving = !monolith.gate.is_open() && !service.gate.is_open();
    if mutant == Mutant::CauseIgnored {
        for gate in [&mut monolith.gate, &mut service.gate].into_iter().filter(|_| moving) {
            gate.cause = authority::Cause::Fence;
            gate.fence_lsn = Some(gate.fence_lsn.unwrap_or_default());
        }
    }
    // These two do not ask how far a stream is.
    if mutant == Mutant::NoDrain || (mutant == Mutant::SwapMovesPosition && !moving) {
        for stream in [&mut monolith.incoming, &mut service.incoming].into_iter().flatten() {
            stream.applied = strangler::lsn::Lsn(u64::MAX);
        }
    }
    let mut own = own;
    if mutant == Mutant::OpenWithoutGroup && moving {
        monolith.gate.group = None;
        service.gate.group = None;
        own = None;
    }
    let id = group_to_read(&monolith.gate, &service.gate, own);
    let fenced =
        |id| core.slices.iter().all(|pair| SIDES.iter().any(|side| pair.on(*side).gate.is_fenced_under(id)));
    let group = id.map(|id| Group { id, state: group(core, id), complete: fenced(id) });
    Facts { monolith: Sight::Seen(monolith), service: Sight::Seen(service), group }
}

/// What the shipping function answers; `None` when the slice is done with.
pub fn answer(mutant: Mutant, state: State, event: Event) -> (Option<State>, Option<Refusal>) {
    match authority::step(state, event) {
        Ok(Step { state: State::Settled { .. }, .. }) => (None, None),
        Ok(Step { state: state @ State::Looking { doubt: Some(_), .. }, .. })
            if mutant == Mutant::OneLook =>
        {
            (None, authority::step(state, event).err())
        }
        Ok(Step { state: State::Acting { task, effect }, .. }) => {
            (Some(State::Acting { task, effect: changed(mutant, effect) }), None)
        }
        Ok(Step { state: state @ State::Looking { .. }, .. }) => (Some(state), None),
        Err(refusal) => (None, Some(refusal)),
    }
}

fn changed(mutant: Mutant, effect: Effect) -> Effect {
    if let Effect::Bump { side, expects, peer, epoch, group } = effect
        && mutant == Mutant::AbortWithoutBump
        && !peer.is_open()
    {
        return Effect::Reopen { side: side.peer(), expects: peer, peer: expects, epoch, group };
    }
    effect
}

fn happens<const N: usize>(protocol: &Protocol<N>, world: &mut World<N>, number: usize, event: Event) {
    let operator = &mut world.operators[number];
    operator.hands = Hands::Free;
    let (state, refusal) = answer(protocol.mutant, operator.state().unwrap(), event);
    operator.drivers[operator.turn] = state;
    if state.is_none() {
        operator.pass();
    }
    let page =
        matches!(refusal, Some(Refusal::BothOpen { .. } | Refusal::Broken { .. } | Refusal::OutOfStep));
    world.marks.unjust_alarm |= page && world.spent.failovers == 0;
}

fn prepare<const N: usize>(protocol: &Protocol<N>, world: &mut World<N>, number: usize) {
    let operator = world.operators[number];
    let (slice, effect) = (operator.turn, operator.effect().unwrap());
    if let Effect::Fence { side, .. } = effect {
        world.sessions[slice].locks[index(side)] = u8::try_from(number).ok();
        // The marker's commit makes everything before it durable.
        world.flush(slice, side);
        let end = world.core.slices[slice].on(side).log.end();
        world.operators[number].hands = Hands::Locked(end);
        return;
    }
    let hasty = if matches!(effect, Effect::Open { .. }) {
        Mutant::OpenBeforeStandby
    } else {
        Mutant::ReopenBeforeStandby
    };
    let waits = protocol.mutant != hasty;
    if peer_is_as_expected(protocol.mutant, &world.core, slice, &effect, waits && protocol.failovers > 0) {
        world.operators[number].hands = Hands::Ready;
    } else {
        happens(protocol, world, number, Event::Missed);
    }
}

fn commit<const N: usize>(protocol: &Protocol<N>, world: &mut World<N>, number: usize) {
    let operator = world.operators[number];
    let (slice, effect) = (operator.turn, operator.effect().unwrap());
    let before = world.core.slices[slice];
    let event = match (effect, operator.hands) {
        (_, Hands::Severed) => Event::Unclear,
        (Effect::Await(Awaited::Members(_)), _) => {
            happens(protocol, world, number, Event::Hit);
            world.operators[number].pass();
            return;
        }
        (Effect::Await(Awaited::Position { .. }), _) => Event::Hit,
        (Effect::Fence { .. }, Hands::Locked(locked)) => {
            hit(transaction::fence(protocol.mutant, &mut world.core, slice, &effect, locked))
        }
        (
            Effect::Look
            | Effect::Fence { .. }
            | Effect::Open { .. }
            | Effect::Bump { .. }
            | Effect::Reopen { .. }
            | Effect::Swap { .. }
            | Effect::Propose(_)
            | Effect::SettleOpen(_)
            | Effect::SettleAborted(_),
            Hands::Free | Hands::Locked(_) | Hands::Ready,
        ) => hit(transaction::commit(protocol.mutant, &mut world.core, slice, &effect)),
    };
    release(world, number);
    if event == Event::Hit {
        note(world, slice, &effect, &before);
    }
    happens(protocol, world, number, event);
}

fn hit(committed: bool) -> Event {
    if committed { Event::Hit } else { Event::Missed }
}

/// Notes what can be seen in a step only, and acknowledges what the commit made durable.
fn note<const N: usize>(
    world: &mut World<N>,
    slice: usize,
    effect: &Effect,
    before: &super::database::Slice,
) {
    for side in SIDES {
        let (old, new) = (before.on(side).gate, world.core.slices[slice].on(side).gate);
        world.marks.epoch_fell |= new.epoch < old.epoch || (new != old && new.epoch == old.epoch);
    }
    let named = |gate: Gate| gate.group.and_then(|id| usize::try_from(id.0).ok());
    if let Effect::Open { side, .. } = *effect
        && let Some(id) = named(before.on(side.peer()).gate)
    {
        world.marks.outcomes[id].0 = true;
    }
    if let Effect::Reopen { side, .. } = *effect
        && let Some(id) = named(before.on(side).gate)
    {
        world.marks.outcomes[id].1 = true;
    }
    if let Some(side) = effect.database() {
        world.flush(slice, side);
    }
}

/// Lets go of the lock that this operator holds.
fn release<const N: usize>(world: &mut World<N>, number: usize) {
    let slice = world.operators[number].turn;
    for side in SIDES {
        world.unlock(slice, side, u8::try_from(number).unwrap());
    }
}
