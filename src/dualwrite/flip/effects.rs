//! The effects: each one transaction in one database, with all of its conditions in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::barrier::Held;
use super::group::group_is;
use super::sequences::{Pairs, Stands};
use super::timeline::millis;
use super::{Driver, FlipError, Judged, event_of, incoming, judged, of_database, standbys};
use crate::authority::{
    Awaited, Effect, Epoch, Event, Facts, Gate, GroupId, GroupState, Mode, Rows, Side, Sight, group_to_read,
};
use crate::cdc::mirror::chain_of;
use crate::cdc::source::{self, MARKER_PREFIX};
use crate::dualwrite::guard::trees::Trees;
use crate::dualwrite::guard::{self, trees};
use crate::dualwrite::readiness::left_behind;
use crate::failpoint;
use crate::journal::authority::{self, SliceRows};
use crate::journal::moves::{self, Blocked};
use crate::journal::streams::Direction;
use crate::journal::{JournalError, retirement, whereabouts};
use crate::lsn::Lsn;
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::postgres::ask::Ask;
use crate::postgres::connect::Session;

/// Pause between two looks at the position that a mirror has reached.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// A fencing session that is idle for longer than its budget and this is ended by the server, so that a dead operator's
/// machine does not hold writers.
const IDLE_MARGIN: Duration = Duration::from_millis(50);
/// How long an opening waits for a lock: nobody but another driver holds one on a closed gate.
const OPEN_LOCK_MS: u32 = 2_000;
/// How long an opening may be idle before the server ends it: a driver that was frozen, or whose link went silent, holds the row
/// without which nobody else can open.
const OPEN_IDLE_MS: u32 = 1_000;

/// No gate and no stream has it, so a statement that asks for it hits nothing.
pub(super) const NO_EPOCH: i64 = -1;

impl Driver {
    /// Does one effect.
    pub(super) async fn perform(&mut self, effect: Effect) -> Result<Event, FlipError> {
        match effect {
            Effect::Look => Ok(Event::Observed(self.look().await?)),
            Effect::Open { side, expects, peer, epoch, incoming, applied_at_least, group } => {
                let conditions = (incoming, applied_at_least, group);
                let event = self.open(side, (&expects, &peer), epoch, conditions).await;
                self.settled(side, event)
            }
            Effect::Bump { side, expects, peer, epoch, group } => {
                let event = self.close_for_good(side, (&expects, &peer), epoch, group).await;
                self.settled(side, event)
            }
            Effect::Reopen { side, expects, peer, epoch, group } => {
                let event = self.reopen(side, (&expects, &peer), epoch, group).await;
                self.settled(side, event)
            }
            Effect::Swap { direction, epoch, applied_at_least } => {
                self.swap(direction, epoch, applied_at_least).await
            }
            Effect::Propose(id) => self.propose(id).await,
            Effect::SettleOpen(id) => self.settle_group(id, GroupState::Open).await,
            Effect::SettleAborted(id) => self.settle_group(id, GroupState::Aborted).await,
            Effect::Await(Awaited::Position { direction, at_least }) => {
                let limit = self.limits.position;
                self.position(direction, at_least, limit).await
            }
            // These concern all members and are done by the caller of `advance`; alone, the driver only looks again.
            Effect::Fence { .. } | Effect::Await(Awaited::Members(_)) => Ok(Event::Missed),
        }
    }

    /// A session in which something went wrong is not used again: what it holds is not known.
    pub(super) fn settled(
        &mut self,
        side: Side,
        event: Result<Event, FlipError>,
    ) -> Result<Event, FlipError> {
        if matches!(event, Ok(Event::Hit)) {
            self.links.ended(side);
        } else {
            self.links.drop_acting(side);
        }
        event
    }

    pub(super) async fn look(&mut self) -> Result<Facts, FlipError> {
        let slice = self.slice.clone();
        let (monolith, service) = self.sights(&slice).await?;
        let own = self.together.as_ref().map(|together| together.id);
        let group = match (monolith, service) {
            (Sight::Seen(there), Sight::Seen(here)) => group_to_read(&there.gate, &here.gate, own),
            (Sight::Seen(_) | Sight::Unreachable | Sight::Stranger, _) => None,
        };
        let group = match group {
            Some(id) => Some(self.group(id).await?),
            None => None,
        };
        Ok(Facts { monolith, service, group })
    }

    /// How the monolith and the service stand, looked at together since writers may wait.
    pub(super) async fn sights(&mut self, slice: &str) -> Result<(Sight, Sight), FlipError> {
        let (monolith, service) = self.links.both_looking().await;
        tokio::try_join!(sight(monolith, Side::Monolith, slice), sight(service, Side::Service, slice))
    }

    /// Closes the gate in the transaction that [`Self::hold_and_drain`] left open.
    pub(super) async fn write_fence(
        &mut self,
        side: Side,
        held: &Held,
        expects: &Gate,
        (epoch, group): (Epoch, Option<GroupId>),
    ) -> Result<Event, FlipError> {
        let slice = self.slice.clone();
        let (acting, looking, peer) = self.links.three_in_transaction(side).await?;
        let monolith = if side == Side::Monolith { looking } else { peer };
        if !group_is(monolith, group, "pending").await? {
            return Ok(Event::Missed);
        }
        let written = authority::Fence {
            from_epoch: expects.epoch.0,
            epoch: epoch.0,
            lsn: held.fence,
            sequences: &held.sequences,
            group: group.map(|id| id.0),
        };
        // A child that came meanwhile brought rows without an event. Only the commit lies between the question and the fence.
        let (children, watched, fenced, told) = tokio::join!(
            biased;
            trees::children(acting, &held.plain),
            authority::keep_watch(acting, &slice, side.incoming()),
            authority::fence(acting, &slice, written),
            authority::notify(acting, &slice, "moving", epoch.0)
        );
        match children {
            Ok(what) if !what.is_empty() => return Err(FlipError::Changed { what }),
            Ok(_) => {}
            Err(error) => return of_database(&error, "looking for children of moved tables", false),
        }
        match watched {
            Ok(true) => {}
            Ok(false) => return Err(FlipError::Changed { what: vec![incoming::not_kept(side)] }),
            Err(error) => return event_of(&error, "keeping a stream as it is", false),
        }
        match fenced {
            Ok(true) => {}
            Ok(false) => return Ok(Event::Missed),
            Err(error) => return event_of(&error, "closing a gate", false),
        }
        if let Err(error) = told {
            return event_of(&error, "closing a gate", false);
        }
        failpoint::hit("flip-before-fence");
        commit(acting, "committing a fence", "flip-fenced").await
    }

    /// Opens a transaction on `side` in which the gate's triggers stay as they are, the writers have ended and new ones wait, and
    /// waits until everything that they wrote is applied on the peer, or time is up. An event when they could not be held. The
    /// transaction stays open.
    pub(super) async fn hold_and_drain(
        &mut self,
        side: Side,
        drain: Direction,
    ) -> Result<Result<Held, Event>, FlipError> {
        let (slice, sequences) = (self.slice.clone(), self.sequences.clone());
        let (unguarded, plain) = match self.begin_fence(side).await? {
            Ok(found) => found,
            Err(event) => return Ok(Err(event)),
        };
        let (judged, mapping) = (self.judged.clone(), Arc::clone(&self.mapping));
        let sessions = self.links.four_in_transaction(side).await?;
        let (acting, looking, peer, _) = sessions;
        let slot = incoming::slot_of(looking, &slice, side).await?;
        let begun = Instant::now();
        let budget = self.limits.pause_budget;
        let deadline = begun + budget;
        self.timeline.writers_wait();
        // A session does what it is sent in order, each with a snapshot of its own: where the sequences and the log stand is
        // read behind the lock, although both are sent before it is granted.
        let (held, found) =
            tokio::join!(biased; authority::hold_writers(acting, &slice), stands(acting, &sequences, side));
        if let Err(error) = held {
            self.timeline.note("lock", begun, "out of time");
            return event_of(&error, "holding writers", false).map(Err);
        }
        failpoint::hit("flip-writers-held");
        let reading = |error: &tokio_postgres::Error| of_database(error, "reading sequences", false);
        let (given, fence) = match found {
            Ok(found) => found,
            Err(error) => return reading(&error).map(Err),
        };
        self.timeline.note("lock", begun, "done");
        let draining = Instant::now();
        let look = Barrier { sessions, judged: judged.as_ref(), mapping: &mapping, side, budget };
        // Nobody is kept from drawing numbers on the closed side either.
        let (waiting, drained) = tokio::join!(
            biased;
            sequences.read(peer, side.peer()),
            look.drain((drain, fence), slot.as_deref(), deadline)
        );
        let (drained, changed) = match drained? {
            Ok(found) => found,
            Err(event) => {
                self.timeline.note("drain", draining, "out of time");
                return Ok(Err(event));
            }
        };
        let noted = match waiting {
            Ok(waiting) => sequences.furthest(side.peer(), &given, &waiting),
            Err(error) => return reading(&error).map(Err),
        };
        let short = sequences.short(&noted, side.peer(), (self.limits.sequence_margin, 1));
        let sequences = serde_json::to_string(&noted).unwrap_or_else(|_| "{}".to_owned());
        self.timeline.note("drain", draining, if drained { "done" } else { "out of time" });
        failpoint::hit("flip-drained");
        let lock_ms = millis(draining.duration_since(begun));
        let drain_ms = millis(draining.elapsed());
        Ok(Ok(Held { lock_ms, drain_ms, sequences, short, fence, changed, unguarded, drained, plain }))
    }

    /// Begins the transaction of a fence: what guards the tables is found, and stays so to its end, and no partition comes or goes.
    /// No writer waits yet. Returns what is not guarded, and the plain tables.
    async fn begin_fence(&mut self, side: Side) -> Result<Result<(Vec<String>, Vec<u32>), Event>, FlipError> {
        let lock = (self.limits.lock_first * (1 << self.attempts().min(4))).min(self.limits.pause_budget);
        let idle = self.limits.pause_budget + IDLE_MARGIN;
        let mapping = Arc::clone(&self.mapping);
        let acting = self.links.acting(side).await?;
        let plain = match lock_tables(acting, (&mapping, side), (lock, idle)).await {
            Ok(plain) => plain,
            Err(error) => return of_database(&error, "beginning a fence", false).map(Err),
        };
        match guard::unguarded(acting, &mapping, side).await {
            Ok(unguarded) => Ok(Ok((unguarded, plain))),
            Err(error) => event_of(&error, "looking at the gates", false).map(Err),
        }
    }

    async fn open(
        &mut self,
        side: Side,
        (expects, peer): (&Gate, &Gate),
        epoch: Epoch,
        (incoming, at_least, group): (Direction, Lsn, Option<GroupId>),
    ) -> Result<Event, FlipError> {
        let (slice, sequences) = (self.slice.clone(), self.sequences.clone());
        let margin = self.limits.sequence_margin;
        let (acting, looking, there) = self.links.three(side).await?;
        let group = (if side == Side::Monolith { looking } else { there }, group, "open");
        // A fence or a group row that a failover could take back proves nothing. Both were seen before, and the rows are compared
        // with what was seen once more below.
        let (which, limit) = (self.limits.fence_standbys, self.limits.position);
        let of_group = (side == Side::Monolith && group.1.is_some()).then_some(group.0);
        for primary in [Some(there), of_group].into_iter().flatten() {
            let flushed = standbys::flushed(primary, which, limit, &mut self.late).await?;
            if flushed != Event::Hit {
                return Ok(flushed);
            }
        }
        if let Some(event) = conditions(acting, there, &slice, (side, expects, peer), group).await? {
            return Ok(event);
        }
        let modes = (Mode::Apply.as_str(), Mode::Tripwire.as_str());
        // The turn holds the stream's row, without which no copy begins and no table diverges, and the conditions hold the gate's,
        // without which no stage of retirement is taken; what is asked behind them stays so.
        let (turned, in_the_way, noted) = tokio::join!(
            biased;
            authority::turn(acting, &slice, incoming, modes, (epoch.0, at_least)),
            in_the_way(acting, side, &slice, group.1),
            authority::noted_sequences(there, &slice)
        );
        match turned {
            Ok(true) => {}
            Ok(false) => return Ok(Event::Missed),
            Err(error) => return event_of(&error, "turning a stream", false),
        }
        if let Some(why) = in_the_way? {
            self.note_blocked(epoch, &why).await;
            return Err(why);
        }
        let noted = noted.map_err(|error| failed("reading noted sequences", &error))?;
        let noted: Stands = serde_json::from_str(noted.as_deref().unwrap_or("{}"))
            .map_err(|error| unreadable("the noted sequences", &error.to_string()))?;
        let owner = side.to_string();
        let (set, opened, told) = tokio::join!(
            biased;
            sequences.set_ahead(acting, side, (&noted, margin)),
            authority::open(acting, &slice, (expects.epoch.0, epoch.0), &owner),
            authority::notify(acting, &slice, &owner, epoch.0)
        );
        if let Err(error) = set {
            if !error.is_full() {
                return of_database(&error.source, "setting sequences", false);
            }
            let full =
                FlipError::Full { side, sequence: error.sequence.to_string(), settled: group.1.is_some() };
            self.note_blocked(epoch, &full).await;
            return Err(full);
        }
        match opened {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Event::Missed),
            Err(error) => return event_of(&error, "opening a gate", false),
        }
        if let Err(error) = told {
            return event_of(&error, "opening a gate", false);
        }
        failpoint::hit("flip-before-open");
        let opened = commit(acting, "committing an opening", "flip-opened").await?;
        if opened == Event::Hit {
            self.timeline.writers_go_on();
            // For the words of the closed gate's error only; without it they say that the slice is moving.
            let _ = authority::name_owner(there, &slice, epoch.0, &owner).await;
        }
        Ok(opened)
    }

    /// The statements of an opening with conditions that nothing meets, in a transaction that the caller rolls back.
    pub(super) async fn try_opening(
        &mut self,
        side: Side,
        (expects, peer): (&Gate, &Gate),
    ) -> Result<(), FlipError> {
        let (slice, sequences) = (self.slice.clone(), self.sequences.clone());
        let (which, limit) = (self.limits.fence_standbys, self.limits.position);
        let (acting, _, there) = self.links.three(side).await?;
        standbys::flushed(there, which, limit, &mut self.late).await?;
        lock_both(acting, there, &slice, (side, expects, peer)).await?;
        let modes = (Mode::Apply.as_str(), Mode::Tripwire.as_str());
        let (turned, noted) = tokio::join!(
            authority::turn(acting, &slice, side.incoming(), modes, (NO_EPOCH, Lsn::default())),
            authority::noted_sequences(there, &slice)
        );
        let trying = |error: &JournalError| failed("trying an opening", error);
        turned.map_err(|error| trying(&error))?;
        noted.map_err(|error| trying(&error))?;
        let (read, opened, told) = tokio::join!(
            biased;
            sequences.read(acting, side),
            authority::open(acting, &slice, (NO_EPOCH, NO_EPOCH), "nobody"),
            authority::notify(acting, &slice, "nobody", NO_EPOCH)
        );
        read.map_err(|error| FlipError::Failed {
            what: "trying an opening",
            words: crate::postgres::sqlstate::words(&error),
        })?;
        opened.map_err(|error| trying(&error))?;
        told.map_err(|error| trying(&error))
    }

    /// Leaves word on the monolith why a side can't be opened, for `status`; without it the next command finds out anew.
    async fn note_blocked(&mut self, epoch: Epoch, why: &FlipError) {
        let slice = self.slice.clone();
        let Ok(monolith) = self.links.looking(Side::Monolith).await else { return };
        let blocked = Blocked { epoch: epoch.0, why: why.to_string() };
        // A mirror tries again and again, and says it once.
        if moves::blocked(monolith, &slice).await.is_ok_and(|known| known.as_ref() == Some(&blocked)) {
            return;
        }
        if let Err(error) = moves::block(monolith, &slice, &blocked).await {
            tracing::debug!(
                slice,
                error = chain_of(&error),
                "it could not be noted why a side can't be opened"
            );
        }
    }

    async fn close_for_good(
        &mut self,
        side: Side,
        (expects, peer): (&Gate, &Gate),
        epoch: Epoch,
        group: Option<GroupId>,
    ) -> Result<Event, FlipError> {
        let slice = self.slice.clone();
        let (acting, looking, there) = self.links.three(side).await?;
        let group = (if side == Side::Monolith { looking } else { there }, group, "aborted");
        if let Some(event) = conditions(acting, there, &slice, (side, expects, peer), group).await? {
            return Ok(event);
        }
        match authority::bump(acting, &slice, (expects.epoch.0, epoch.0)).await {
            Ok(true) => {}
            Ok(false) => return Ok(Event::Missed),
            Err(error) => return event_of(&error, "raising an epoch", false),
        }
        failpoint::hit("flip-before-bump");
        commit(acting, "committing a raised epoch", "flip-bumped").await
    }

    async fn reopen(
        &mut self,
        side: Side,
        (expects, peer): (&Gate, &Gate),
        epoch: Epoch,
        group: Option<GroupId>,
    ) -> Result<Event, FlipError> {
        let slice = self.slice.clone();
        let (acting, looking, there) = self.links.three(side).await?;
        let group = (if side == Side::Monolith { looking } else { there }, group, "aborted");
        // A bump that a failover could take back would let somebody open that side, too.
        let (which, limit) = (self.limits.fence_standbys, self.limits.position);
        let flushed = standbys::flushed(there, which, limit, &mut self.late).await?;
        if flushed != Event::Hit {
            return Ok(flushed);
        }
        if let Some(event) = conditions(acting, there, &slice, (side, expects, peer), group).await? {
            return Ok(event);
        }
        let why = if side == Side::Monolith { retired(acting, &slice).await? } else { None };
        if let Some(why) = why {
            self.note_blocked(epoch, &why).await;
            return Err(why);
        }
        let owner = side.to_string();
        match authority::reopen(acting, &slice, (expects.epoch.0, epoch.0), &owner).await {
            Ok(true) => {}
            Ok(false) => return Ok(Event::Missed),
            Err(error) => return event_of(&error, "opening a gate again", false),
        }
        if let Err(error) = authority::notify(acting, &slice, &owner, epoch.0).await {
            return event_of(&error, "opening a gate again", false);
        }
        failpoint::hit("flip-before-reopen");
        let opened = commit(acting, "committing an opening", "flip-reopened").await?;
        if opened == Event::Hit {
            self.timeline.writers_go_on();
        }
        Ok(opened)
    }

    async fn swap(&mut self, direction: Direction, epoch: Epoch, at_least: Lsn) -> Result<Event, FlipError> {
        let slice = self.slice.clone();
        let into = match direction {
            Direction::Forward => Side::Service,
            Direction::Reverse => Side::Monolith,
        };
        let client = self.links.looking(into).await?;
        let modes = (Mode::Tripwire.as_str(), Mode::Apply.as_str());
        match authority::turn(client, &slice, direction, modes, (epoch.0, at_least)).await {
            Ok(true) => {
                failpoint::hit("flip-swapped");
                Ok(Event::Hit)
            }
            Ok(false) => Ok(Event::Missed),
            Err(error) => event_of(&error, "turning a stream", true),
        }
    }

    async fn position(
        &mut self,
        direction: Direction,
        at_least: Lsn,
        limit: Duration,
    ) -> Result<Event, FlipError> {
        let slice = self.slice.clone();
        let into = match direction {
            Direction::Forward => Side::Service,
            Direction::Reverse => Side::Monolith,
        };
        let (_, looking, peer) = self.links.three(into).await?;
        let marker = source::marker_content(&slice, "flip");
        if let Err(error) = source::emit(peer, MARKER_PREFIX, &marker).await {
            tracing::debug!(slice, error = chain_of(&error), "a marker could not be sent");
        }
        let deadline = Instant::now() + limit;
        loop {
            let found = authority::look(looking, &slice, direction).await;
            match found {
                Ok(Some(SliceRows { incoming: Some(row), .. })) if row.applied >= at_least => {
                    return Ok(Event::Hit);
                }
                Ok(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY * 5).await,
                Ok(_) => return Ok(Event::OutOfTime),
                Err(error) => return event_of(&error, "reading a position", false),
            }
        }
    }
}

/// How one side stands; `session` where it can be reached.
async fn sight(session: Result<&Session, FlipError>, side: Side, slice: &str) -> Result<Sight, FlipError> {
    let Ok(session) = session else { return Ok(Sight::Unreachable) };
    let (itself, rows) =
        tokio::join!(whereabouts::is_itself(session), authority::look(session, slice, side.incoming()));
    match itself {
        Ok(true) => {}
        Ok(false) => return Ok(Sight::Stranger),
        Err(error) => return unreachable(&error),
    }
    match rows {
        Ok(Some(rows)) => Ok(Sight::Seen(Rows::try_from(&rows)?)),
        Ok(None) => Err(FlipError::Failed {
            what: "looking at a side",
            words: format!("slice {slice} has no gate row in the {side}"),
        }),
        Err(error) => unreachable(&error),
    }
}

/// Begins a transaction in which triggers stay as they are and no partition comes to a moved table. Returns the plain tables'
/// oids. No wait for a lock is as long as that after which the server looks for a deadlock: a writer that has passed the gate and
/// waits for one of these locks, as TRUNCATE of a second table does, would be its victim.
async fn lock_tables(
    acting: &Client,
    (mapping, side): (&SliceMapping, Side),
    (lock, idle): (Duration, Duration),
) -> Result<Vec<u32>, tokio_postgres::Error> {
    let row =
        acting.query_typed_one("SELECT setting::int4 FROM pg_settings WHERE name = 'deadlock_timeout'", &[]);
    let deadlock_ms: i32 = row.await?.try_get(0)?;
    let deadlock = Duration::from_millis(u64::try_from(deadlock_ms).unwrap_or(0));
    let begin = format!(
        "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}; \
         SET LOCAL synchronous_commit = on",
        lock.min(deadlock / 2).as_millis().max(1),
        idle.as_millis()
    );
    acting.batch_execute(&begin).await?;
    let tables = guard::tables(mapping, side);
    let mut kept = Vec::new();
    let plain = loop {
        let Trees { partitioned, plain } = trees::read(acting, &tables).await?;
        let new: Vec<TableName> = partitioned.into_iter().filter(|table| !kept.contains(table)).collect();
        let Some(keep) = trees::keep(&new) else { break plain };
        // One that came before its parent was locked may be partitioned itself.
        acting.batch_execute(&keep).await?;
        kept.extend(new);
    };
    if let Some(keep) = guard::keep(mapping, side) {
        acting.batch_execute(&keep).await?;
    }
    Ok(plain)
}

/// What is looked at while the writers of `side` are held.
struct Barrier<'a> {
    /// The one that holds them, another one on the same side, one on the peer, and another one there.
    sessions: (&'a Session, &'a Session, &'a Session, &'a Session),
    judged: Option<&'a Judged>,
    mapping: &'a SliceMapping,
    side: Side,
    /// How long writers may be held in all.
    budget: Duration,
}

impl Barrier<'_> {
    /// Sends a marker and waits until everything up to the fence is applied on the peer, or time is up: `false`. Beside it, so that it
    /// costs writers nothing as long as it is the quicker one, asks again what was judged; what is not so any more, in words. An event
    /// when time was up for that.
    async fn drain(
        &self,
        (direction, fence): (Direction, Lsn),
        slot: Option<&str>,
        deadline: Instant,
    ) -> Result<Result<(bool, Vec<String>), Event>, FlipError> {
        let (side, slice) = (self.side, self.mapping.slice.as_str());
        let (acting, looking, peer, idle) = self.sessions;
        let (monolith, service) = if side == Side::Monolith { (looking, idle) } else { (idle, looking) };
        let left = deadline.saturating_duration_since(Instant::now());
        let marker = source::marker_content(slice, "flip");
        // Nothing arrives of a marker that could not be sent, and nobody is held for it until time is up.
        let passed = async {
            let sent = async {
                let sent = source::emit(looking, MARKER_PREFIX, &marker).await;
                sent.map_err(|error| FlipError::Failed { what: "sending a marker", words: chain_of(&error) })
            };
            tokio::try_join!(biased; sent, reached(peer, slice, (direction, fence), deadline))
        };
        let (drained, lost, changed, outside) = tokio::join!(
            biased;
            passed,
            incoming::is_lost((acting, peer), slice, (side, slot)),
            still_as_judged(self.judged, (monolith, service), (side, slice)),
            left_behind::again(looking, self.mapping, (side, left, self.budget))
        );
        let (_, drained) = drained?;
        let mut changed = match changed {
            Ok(changed) => changed,
            Err(error) => return event_of(&error, "asking again what was judged", false).map(Err),
        };
        changed.extend(lost?);
        match outside {
            Ok(Some(outside)) => changed.extend(outside),
            // What was found beside it is said.
            Ok(None) if changed.is_empty() => return Ok(Err(Event::OutOfTime)),
            Ok(None) => {}
            Err(error) => {
                return of_database(&error, "looking for rows that no filter takes", false).map(Err);
            }
        }
        if side == Side::Monolith && changed.is_empty() {
            let not_whole = judged::not_whole(peer, slice).await;
            changed = not_whole.map_err(|error| failed("reading the states of tables", &error))?;
        }
        Ok(Ok((drained, changed)))
    }
}

/// What is not as it was judged where authority goes away from `side`; of the data nothing where this driver did not judge it.
async fn still_as_judged(
    judged: Option<&Judged>,
    sides: (&Session, &Session),
    (side, slice): (Side, &str),
) -> Result<Vec<String>, JournalError> {
    let data = async {
        match judged {
            Some(judged) => judged.changed(sides, slice).await,
            None => Ok(Vec::new()),
        }
    };
    let rights = async {
        match side {
            Side::Service => retirement::read(sides.0, slice).await,
            Side::Monolith => Ok(None),
        }
    };
    let (mut changed, retired) = tokio::try_join!(data, rights)?;
    changed.extend(retired.map(|_| "the rights on the monolith's old tables were taken away".to_owned()));
    Ok(changed)
}

/// What keeps a side from being opened: tables of a service that are no whole copies; old tables of a monolith that nobody may use.
async fn in_the_way(
    acting: &Session,
    side: Side,
    slice: &str,
    group: Option<GroupId>,
) -> Result<Option<FlipError>, FlipError> {
    match side {
        Side::Service => {
            let tables = judged::not_whole(acting, slice).await;
            let tables = tables.map_err(|error| failed("reading the states of tables", &error))?;
            Ok((!tables.is_empty()).then_some(FlipError::NotWhole { tables, settled: group.is_some() }))
        }
        Side::Monolith => retired(acting, slice).await,
    }
}

/// Keeps a monolith from being opened whose old tables nobody may use. Asked behind the lock on the gate's row, which a stage of
/// retirement holds as well: either it is seen here, or the stage sees an open gate.
async fn retired(monolith: &Session, slice: &str) -> Result<Option<FlipError>, FlipError> {
    let done = retirement::read_at_once(monolith, slice).await;
    let done = done.map_err(|error| failed("reading how far a slice is retired", &error))?;
    let undo = format!("strangler unretire PLAN --slice {slice}");
    Ok(done.map(|done| FlipError::Retired { since: done.at, undo }))
}

/// What every change of a closed gate rests on: both gates as they were observed, see [`lock_both`], and the group row, on the
/// monolith, in this state. An event when something is otherwise.
async fn conditions(
    acting: &Session,
    peer: &Session,
    slice: &str,
    gates: (Side, &Gate, &Gate),
    (monolith, group, state): (&Session, Option<GroupId>, &str),
) -> Result<Option<Event>, FlipError> {
    if let Some(event) = lock_both(acting, peer, slice, gates).await? {
        return Ok(Some(event));
    }
    Ok((!group_is(monolith, group, state).await?).then_some(Event::Missed))
}

/// Locks the gate row of `side`, reads the peer's afterwards, and compares both with what was observed.
async fn lock_both(
    acting: &Session,
    peer: &Session,
    slice: &str,
    (side, expects, there): (Side, &Gate, &Gate),
) -> Result<Option<Event>, FlipError> {
    let begin = format!(
        "BEGIN; SET LOCAL lock_timeout = {OPEN_LOCK_MS}; SET LOCAL synchronous_commit = on; \
         SET LOCAL idle_in_transaction_session_timeout = {OPEN_IDLE_MS}"
    );
    let (begun, locked) = tokio::join!(biased; acting.batch_execute(&begin), authority::lock(acting, slice));
    if let Err(error) = begun {
        return of_database(&error, "locking a gate", false).map(Some);
    }
    let own = match locked {
        Ok(row) => Gate::try_from(&row)?,
        Err(error) => return event_of(&error, "locking a gate", false).map(Some),
    };
    let found = match authority::look(peer, slice, side.peer().incoming()).await {
        Ok(Some(rows)) => Gate::try_from(&rows.gate)?,
        Ok(None) => return Ok(Some(Event::Missed)),
        Err(error) => return event_of(&error, "reading the other side's gate", false).map(Some),
    };
    Ok((own != *expects || found != *there).then_some(Event::Missed))
}

async fn commit(acting: &Client, what: &'static str, passed: &'static str) -> Result<Event, FlipError> {
    match acting.batch_execute("COMMIT").await {
        Ok(()) => {
            failpoint::hit(passed);
            Ok(Event::Hit)
        }
        Err(error) => of_database(&error, what, true),
    }
}

pub(super) fn hit(
    done: Result<bool, JournalError>,
    what: &'static str,
    passed: &'static str,
) -> Result<Event, FlipError> {
    match done {
        Ok(true) => {
            failpoint::hit(passed);
            Ok(Event::Hit)
        }
        Ok(false) => Ok(Event::Missed),
        Err(error) => event_of(&error, what, true),
    }
}

/// Where the sequences stand, and the insert position, both under the lock.
async fn stands(
    acting: &Session,
    sequences: &Pairs,
    side: Side,
) -> Result<(Stands, Lsn), tokio_postgres::Error> {
    let position = acting.ask_one("SELECT pg_current_wal_insert_lsn()", &[]);
    let (stands, row) = tokio::try_join!(sequences.read(acting, side), position)?;
    let lsn = row.try_get::<_, tokio_postgres::types::PgLsn>(0)?.into();
    Ok((stands, lsn))
}

/// Waits until the stream has applied everything up to the fence. A tripwire that has passed it proves nothing.
async fn reached(
    peer: &impl Ask,
    slice: &str,
    (direction, fence): (Direction, Lsn),
    deadline: Instant,
) -> Result<bool, FlipError> {
    loop {
        let found = authority::look(peer, slice, direction).await;
        let rows = found.map_err(|error| failed("reading the drained position", &error))?;
        let drained = rows.and_then(|rows| rows.incoming).is_some_and(|row| {
            row.mode == Mode::Apply.as_str() && row.state == "running" && row.applied >= fence
        });
        if drained {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn unreachable(error: &JournalError) -> Result<Sight, FlipError> {
    match error.database_error() {
        Some(database) if crate::postgres::sqlstate::is_connection_lost(database) => Ok(Sight::Unreachable),
        Some(_) | None => Err(failed("looking at a side", error)),
    }
}

pub(super) fn failed(what: &'static str, error: &JournalError) -> FlipError {
    let words = error.database_error().map_or_else(|| chain_of(error), crate::postgres::sqlstate::words);
    FlipError::Failed { what, words }
}

pub(super) fn unreadable(what: &'static str, found: &str) -> FlipError {
    FlipError::Failed { what: "reading our tables", words: format!("{what}: {found}") }
}
