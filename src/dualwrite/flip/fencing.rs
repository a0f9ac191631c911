//! Closing a gate: the writers of a side are held, what they wrote is drained to the other one, and the fence is written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::barrier::Held;
use super::effects::{commit, failed};
use super::group::group_is;
use super::sequences::{Pairs, Stands};
use super::timeline::millis;
use super::{Driver, FlipError, Judged, event_of, incoming, judged, of_database};
use crate::authority::{Epoch, Event, Gate, GroupId, Mode, Side};
use crate::cdc::mirror::chain_of;
use crate::cdc::source::{self, MARKER_PREFIX};
use crate::dualwrite::guard::trees::Trees;
use crate::dualwrite::guard::{self, trees};
use crate::dualwrite::readiness::left_behind;
use crate::failpoint;
use crate::journal::streams::Direction;
use crate::journal::{JournalError, authority, retirement};
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

impl Driver {
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
        let (_, (drained, not_whole)) = drained?;
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
        if changed.is_empty() {
            changed = not_whole;
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

/// Waits until the stream has applied everything up to the fence. A tripwire that has passed it proves nothing. Behind each look the
/// tables of a service that are no whole copies are asked for, since what is drained may make a table diverge; those of the last
/// look.
async fn reached(
    peer: &Session,
    slice: &str,
    (direction, fence): (Direction, Lsn),
    deadline: Instant,
) -> Result<(bool, Vec<String>), FlipError> {
    let whole = async || match direction {
        Direction::Forward => judged::not_whole(peer, slice).await,
        Direction::Reverse => Ok(Vec::new()),
    };
    loop {
        // Sent together: an answer about the tables is of behind the look.
        let (found, tables) = tokio::join!(biased; authority::look(peer, slice, direction), whole());
        let rows = found.map_err(|error| failed("reading the drained position", &error))?;
        let drained = rows.and_then(|rows| rows.incoming).is_some_and(|row| {
            row.mode == Mode::Apply.as_str() && row.state == "running" && row.applied >= fence
        });
        if drained || Instant::now() >= deadline {
            let tables = tables.map_err(|error| failed("reading the states of tables", &error))?;
            return Ok((drained, tables));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
