//! The effects: each one transaction in one database, with all of its conditions in it.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::group::group_is;
use super::sequences::Stands;
use super::{Driver, FlipError, event_of, judged, of_database, standbys};
use crate::authority::{
    Awaited, Effect, Epoch, Event, Facts, Gate, GroupId, GroupState, Mode, Rows, Side, Sight, group_to_read,
};
use crate::cdc::mirror::chain_of;
use crate::cdc::source::{self, MARKER_PREFIX};
use crate::failpoint;
use crate::journal::authority::{self, SliceRows};
use crate::journal::moves::{self, Blocked};
use crate::journal::streams::Direction;
use crate::journal::{JournalError, retirement, whereabouts};
use crate::lsn::Lsn;
use crate::plan::FenceStandbys;
use crate::postgres::connect::Session;

/// Pause between two looks at a position that a mirror has to reach, while nobody can write or nobody waits.
const LOOK_EVERY: Duration = Duration::from_millis(5);
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
        let of_group = (side == Side::Monolith && group.1.is_some()).then_some(group.0);
        let primaries: Vec<&Session> = [Some(there), of_group].into_iter().flatten().collect();
        let standbys = (self.limits.fence_standbys, self.limits.position, &mut self.late);
        if let Some(event) = lock_to_open(acting, &slice, expects, &primaries, standbys).await? {
            return Ok(event);
        }
        let modes = (Mode::Apply.as_str(), Mode::Tripwire.as_str());
        // The turn holds the stream's row, without which no copy begins and no table diverges, and the gate's row is locked, without
        // which no stage of retirement is taken; what is asked behind them stays so.
        let (otherwise, turned, in_the_way, noted) = tokio::join!(
            biased;
            rests_on(there, &slice, (side, peer), group),
            authority::turn(acting, &slice, incoming, modes, (epoch.0, at_least)),
            in_the_way(acting, side, &slice, group.1),
            authority::noted_sequences(there, &slice)
        );
        if let Some(event) = otherwise? {
            return Ok(event);
        }
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
        let (acting, looking, there) = self.links.three(side).await?;
        let standbys = (self.limits.fence_standbys, self.limits.position, &mut self.late);
        lock_to_open(acting, &slice, expects, &[there], standbys).await?;
        let modes = (Mode::Apply.as_str(), Mode::Tripwire.as_str());
        let no_group = (looking, None, "open");
        let (_, turned, noted) = tokio::join!(
            biased;
            rests_on(there, &slice, (side, peer), no_group),
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
        if let Some(event) = lock(acting, &slice, expects).await? {
            return Ok(event);
        }
        if let Some(event) = rests_on(there, &slice, (side, peer), group).await? {
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
        let standbys = (self.limits.fence_standbys, self.limits.position, &mut self.late);
        if let Some(event) = lock_to_open(acting, &slice, expects, &[there], standbys).await? {
            return Ok(event);
        }
        if let Some(event) = rests_on(there, &slice, (side, peer), group).await? {
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
                Ok(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
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

/// Locks the gate row of the side that is to be opened, and makes sure that the standbys that count have what the opening rests on: a
/// fence, a bump or a group row that a failover could take back proves nothing. They were seen before, and are compared with what was seen
/// behind the lock. Nobody is waited for with the lock held. An event when something is otherwise.
async fn lock_to_open(
    acting: &Session,
    slice: &str,
    expects: &Gate,
    primaries: &[&Session],
    (which, limit, late): (FenceStandbys, Duration, &mut Vec<String>),
) -> Result<Option<Event>, FlipError> {
    let (locked, first) =
        tokio::join!(biased; lock(acting, slice, expects), standbys::at_once(primaries, which));
    if let Some(event) = locked? {
        return Ok(Some(event));
    }
    let first = first?;
    if first == Event::Hit {
        late.clear();
        return Ok(None);
    }
    if first != Event::OutOfTime {
        return Ok(Some(first));
    }
    if let Err(error) = acting.batch_execute("ROLLBACK").await {
        return of_database(&error, "waiting for standbys", false).map(Some);
    }
    for primary in primaries {
        let flushed = standbys::flushed(*primary, which, limit, late).await?;
        if flushed != Event::Hit {
            return Ok(Some(flushed));
        }
    }
    lock(acting, slice, expects).await
}

/// Locks a gate's row in a transaction of its own, and compares it with what was observed.
async fn lock(acting: &Session, slice: &str, expects: &Gate) -> Result<Option<Event>, FlipError> {
    let begin = format!(
        "BEGIN; SET LOCAL lock_timeout = {OPEN_LOCK_MS}; SET LOCAL synchronous_commit = on; \
         SET LOCAL idle_in_transaction_session_timeout = {OPEN_IDLE_MS}"
    );
    let (begun, locked) = tokio::join!(biased; acting.batch_execute(&begin), authority::lock(acting, slice));
    if let Err(error) = begun {
        return of_database(&error, "locking a gate", false).map(Some);
    }
    match locked {
        Ok(row) => Ok((Gate::try_from(&row)? != *expects).then_some(Event::Missed)),
        Err(error) => event_of(&error, "locking a gate", false).map(Some),
    }
}

/// Reads the gate row of the side beside `side`, whose own is locked already, and the group row, and compares both with what was
/// observed.
async fn rests_on(
    peer: &Session,
    slice: &str,
    (side, there): (Side, &Gate),
    (monolith, group, state): (&Session, Option<GroupId>, &str),
) -> Result<Option<Event>, FlipError> {
    let (found, grouped) = tokio::join!(
        biased;
        authority::look(peer, slice, side.peer().incoming()),
        group_is(monolith, group, state)
    );
    let found = match found {
        Ok(Some(rows)) => Gate::try_from(&rows.gate)?,
        Ok(None) => return Ok(Some(Event::Missed)),
        Err(error) => return event_of(&error, "reading the other side's gate", false).map(Some),
    };
    Ok((found != *there || !grouped?).then_some(Event::Missed))
}

pub(super) async fn commit(
    acting: &Client,
    what: &'static str,
    passed: &'static str,
) -> Result<Event, FlipError> {
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
