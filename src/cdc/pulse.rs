//! What goes on beside a slice's engine on sessions of its own, so that it neither waits for the engine nor makes it
//! wait: heartbeats down the stream, the sign of life for `status`, the watch over held WAL.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::contents;
use super::error::{MirrorError, Refusal};
use super::generated;
use super::headroom::{Held, Pressure, WalLimits, WalMeter};
use super::lineage::{self, Marks};
use super::lookout::{Lookout, Truncates};
use super::meanings;
use super::publication::{self, Named, Published};
use super::record::Recorder;
use super::source::{self, HEARTBEAT_PREFIX};
use super::stamp::{self, WayBack};
use super::stand_ins;
use super::start::{Both, open};
use super::usage::UseWatch;
use super::watch::{self, Watch};
use crate::failpoint;
use crate::journal::process::{self, Sighting};
use crate::journal::streams::{Direction, Mode, StreamOf};
use crate::journal::{alarms, authority, repairs};
use crate::lsn::Lsn;
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::TableName;
use crate::postgres::connect::{Server, Session};
use crate::postgres::firing;

/// A heartbeat each second: often enough for a lag that people read, one transaction id a second on the monolith.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Every how many beats the mirror's own row and the slot's facts are refreshed.
const SIGHT_EVERY: u64 = 2;
/// A heartbeat that hangs is given up and its session dropped.
const BEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Which of two servers is silent shows in less.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// A look at who uses old tables may take this long: shorter than a beat, so that it costs no heartbeat.
const USE_TIMEOUT: Duration = Duration::from_secs(3);

/// What pulse and engine tell each other.
#[derive(Debug, Default)]
pub struct Vitals {
    inner: Mutex<Inner>,
    nudged: Notify,
    overfull: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    sighting: Sighting,
    sent: Option<(u64, Instant)>,
    fault: Option<Refusal>,
    held_bytes: u64,
    pressure: Pressure,
    /// The last heartbeat that has come down the stream.
    applied_beat: u64,
    repairs: bool,
    awaited: Option<Lsn>,
    truncates: Truncates,
}

impl Vitals {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The engine waits for the stream to pass a position: a heartbeat now brings it there.
    pub fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// What the source holds for the slot, in bytes, and how near that is to the limit.
    fn press(&self, held_bytes: u64, pressure: Pressure) {
        self.with(|inner| (inner.held_bytes, inner.pressure) = (held_bytes, pressure));
        if pressure == Pressure::Full {
            self.overfull.cancel();
        }
    }

    /// How near that was to the limit at the last look.
    #[must_use]
    pub(super) fn pressure(&self) -> Pressure {
        self.with(|inner| inner.pressure)
    }

    /// Returns when the plan wants the slot dropped.
    pub(super) async fn overfull(&self) {
        self.overfull.cancelled().await;
    }

    /// Whether repairs were seen to wait since this was last asked.
    #[must_use]
    pub fn take_repairs(&self) -> bool {
        self.with(|inner| std::mem::take(&mut inner.repairs))
    }

    /// The pulse waits until the stream is durably applied up to here.
    pub fn await_position(&self, lsn: Option<Lsn>) {
        self.with(|inner| inner.awaited = lsn);
    }

    /// Whether a position that was consumed and not applied is waited for.
    #[must_use]
    pub fn awaits(&self, applied: Lsn, consumed: Lsn) -> bool {
        self.with(|inner| inner.awaited.is_some_and(|lsn| applied < lsn && lsn <= consumed))
    }

    /// The stream brought a TRUNCATE of a table.
    pub fn truncated(&self, table: TableName, xid: u32) {
        self.with(|inner| inner.truncates.add(table, xid));
    }

    /// The TRUNCATEs that it brought of late.
    fn truncates(&self) -> Truncates {
        self.with(|inner| inner.truncates.clone())
    }

    /// The engine says what it does.
    pub fn set_phase(&self, phase: &str, detail: Option<&str>) {
        self.with(|inner| {
            phase.clone_into(&mut inner.sighting.phase);
            inner.sighting.detail = detail.map(str::to_owned);
        });
    }

    /// The engine says more of what it does.
    pub fn set_detail(&self, detail: &str) {
        self.with(|inner| inner.sighting.detail = Some(detail.to_owned()));
    }

    /// What the pulse found that the engine must not go on over.
    #[must_use]
    pub fn fault(&self) -> Option<Refusal> {
        self.with(|inner| inner.fault.clone())
    }

    /// The engine says how far behind it is, in bytes of WAL.
    pub fn set_lag_bytes(&self, bytes: u64) {
        self.with(|inner| inner.sighting.lag_bytes = i64::try_from(bytes).ok());
    }

    /// Heartbeat number `number` and everything before it is applied.
    pub fn heartbeat_applied(&self, number: u64) {
        self.with(|inner| {
            inner.applied_beat = inner.applied_beat.max(number);
            if let Some((sent, at)) = inner.sent
                && sent == number
            {
                inner.sighting.lag_ms = Some(at.elapsed().as_secs_f64() * 1000.0);
            }
        });
    }

    /// The last measured lag in milliseconds.
    #[must_use]
    pub fn lag_ms(&self) -> Option<f64> {
        self.with(|inner| inner.sighting.lag_ms)
    }

    /// WAL that the monolith holds for the slot, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.with(|inner| inner.held_bytes)
    }
}

/// What a pulse needs.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// Slice.
    pub slice: String,
    /// Which of its streams.
    pub direction: Direction,
    /// Whether it applies, or only looks on.
    pub mode: Mode,
    /// Nonce of the engine that it belongs to.
    pub nonce: i64,
    /// Its slot.
    pub slot: String,
    /// What the plan says about WAL that the source holds.
    pub wal: WalLimits,
    /// The source.
    pub read: Server,
    /// The target.
    pub apply: Server,
    /// What is carried where.
    pub mapping: Arc<SliceMapping>,
    /// Publication on the source.
    pub publication: String,
    /// What it held at the start.
    pub published: Arc<Published>,
    /// Shared with the engine.
    pub vitals: Arc<Vitals>,
    /// What the ledger is told.
    pub recorder: Recorder,
}

/// Content of heartbeat `number` of the engine with `nonce`.
#[must_use]
pub fn heartbeat_content(slice: &str, nonce: i64, number: u64) -> String {
    format!("{slice}:{nonce}:{number}")
}

/// Number of a heartbeat, when it is one of this slice's engine.
#[must_use]
pub fn heartbeat_number(content: &[u8], slice: &str, nonce: i64) -> Option<u64> {
    let mut parts = std::str::from_utf8(content).ok()?.rsplitn(3, ':');
    let (number, found_nonce, found_slice) = (parts.next()?, parts.next()?, parts.next()?);
    if found_slice == slice && found_nonce.parse() == Ok(nonce) { number.parse().ok() } else { None }
}

impl Pulse {
    fn of(&self) -> StreamOf<'_> {
        StreamOf { slice: &self.slice, direction: self.direction }
    }

    /// Whether the target's tables are copies, which can be copied again.
    fn copies(&self) -> bool {
        self.direction == Direction::Forward && self.mode == Mode::Apply
    }

    /// Beats until it is stopped. Trouble with its sessions only costs beats: the engine notices by itself what
    /// concerns it.
    pub async fn run(self, stop: CancellationToken) {
        let mut sessions: Option<(Session, Session)> = None;
        let mut seen = Seen::default();
        let mut number = 0;
        loop {
            number += 1;
            let beat = tokio::time::timeout(BEAT_TIMEOUT, self.beat(&mut sessions, number, &mut seen));
            let beaten = tokio::select! {
                () = stop.cancelled() => return,
                beaten = beat => beaten,
            };
            match beaten {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(slice = self.slice, error = %error, "a heartbeat failed");
                    sessions = None;
                }
                Err(_) => {
                    let server = self.silent(sessions.as_ref()).await;
                    tracing::warn!(
                        slice = self.slice,
                        direction = self.direction.as_str(),
                        server,
                        "a heartbeat got no answer in 5 s"
                    );
                    sessions = None;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.vitals.nudged.notified() => {}
                () = tokio::time::sleep(BEAT_EVERY) => {}
            }
        }
    }

    /// Who does not answer, in words. A session whose last question has no answer yet answers none behind it.
    async fn silent(&self, sessions: Option<&(Session, Session)>) -> String {
        let Some((source, target)) = sessions else {
            return format!("{} or {}, to a new session", self.read.label(), self.apply.label());
        };
        let answers = async |session: &Session| {
            tokio::time::timeout(ASK_TIMEOUT, session.batch_execute(""))
                .await
                .is_ok_and(|asked| asked.is_ok())
        };
        let (source, target) = tokio::join!(answers(source), answers(target));
        match (source, target) {
            (false, true) => self.read.label().to_owned(),
            (true, false) => self.apply.label().to_owned(),
            (false, false) => format!("{} and {}", self.read.label(), self.apply.label()),
            (true, true) => "both answer again".to_owned(),
        }
    }

    async fn beat(
        &self,
        sessions: &mut Option<(Session, Session)>,
        number: u64,
        seen: &mut Seen,
    ) -> Result<(), MirrorError> {
        if sessions.is_none() {
            let source = open(&self.read, &self.slice).await?;
            // A heartbeat tells a time and nothing else, so no standby has to hold it. One that waited for a standby
            // would keep its server process for as long as the standby is away, whoever hangs up on it.
            source
                .batch_execute("SET synchronous_commit = local")
                .await
                .map_err(MirrorError::sql("setting up the heartbeat's session"))?;
            *sessions = Some((source, open(&self.apply, &self.slice).await?));
        }
        let Some((source, target)) = sessions.as_ref() else { return Ok(()) };
        if repairs::are_pending(target, &self.slice).await? {
            self.vitals.with(|inner| inner.repairs = true);
        }
        if number % SIGHT_EVERY == 1 {
            if let Some(slot) = source::slot(source, &self.slot).await? {
                let held = Held {
                    bytes: slot.held_bytes,
                    safe: slot.safe_bytes,
                    unbrought: slot.unconfirmed_bytes,
                    confirmed: slot.confirmed,
                };
                let pressure = seen.meter.watch(self.of(), held, self.wal, Instant::now());
                // A move of authority needs the stream more than the disk needs the room.
                let kept = pressure == Pressure::Full && !authority::is_open(source, &self.slice).await?;
                let pressure = if kept { Pressure::Tight } else { pressure };
                self.vitals.press(slot.held_bytes, pressure);
            }
            let fault = match self.watch_publication(source, target).await? {
                None => self.watch_contents(source, target, seen).await?,
                fault => fault,
            };
            let fault = match self.watch_lineage(source, target, number, seen).await? {
                None => fault,
                set_back => set_back,
            };
            if fault.is_some() {
                self.vitals.with(|inner| inner.fault = fault);
            }
            self.watch_firing(source, target, seen).await?;
            let mut sighting = self.vitals.with(|inner| inner.sighting.clone());
            if let Some(who) = source::in_the_way(target).await? {
                (sighting.phase, sighting.detail) = ("waiting".to_owned(), Some(who));
            }
            process::beat(target, self.of(), self.nonce, &sighting).await?;
        }
        self.vitals.with(|inner| inner.sent = Some((number, Instant::now())));
        let content = heartbeat_content(&self.slice, self.nonce, number);
        source::emit(source, HEARTBEAT_PREFIX, &content).await?;
        if number.is_multiple_of(SIGHT_EVERY)
            && self.direction == Direction::Reverse
            && self.mode == Mode::Apply
        {
            let answered = self.watch_use(target, seen).await;
            if !answered {
                *sessions = None;
            }
        }
        Ok(())
    }

    /// What fires on the rows that this stream applies, and columns that are computed in another way. It stops nothing, because only a comparison could find the rows; it is
    /// noted, so that what was proven before does not stand when the trigger is gone again.
    async fn watch_firing(
        &self,
        source: &Session,
        target: &Session,
        seen: &mut Seen,
    ) -> Result<(), MirrorError> {
        if self.mode != Mode::Apply {
            return Ok(());
        }
        let (service, name): (_, fn(&TableMapping) -> TableName) = match self.direction {
            Direction::Forward => (target, |table| table.target.clone()),
            Direction::Reverse => (source, |table| table.source.clone()),
        };
        let tables: Vec<TableName> = self.mapping.tables.iter().map(name).collect();
        let found = firing::read(target, &tables).await.map_err(MirrorError::sql("looking for triggers"))?;
        let both = Both::of(self.direction, source, target);
        let computed = generated::find_fault((both.monolith, both.service), &self.mapping).await?;
        let found: Vec<String> =
            found.iter().map(ToString::to_string).chain(computed.map(|fault| fault.what)).collect();
        if !found.is_empty() && found != seen.disturbing {
            let what = found.join("; ");
            tracing::error!(
                slice = self.slice,
                direction = self.direction.as_str(),
                what,
                "rows may be changed on their way; compare the slice with `strangler reconcile PLAN`"
            );
            alarms::note_fired(service, &self.slice, &what).await?;
            failpoint::hit("fired-noted");
        }
        seen.disturbing = found;
        Ok(())
    }

    /// Whether the source is still the one that was read.
    async fn watch_lineage(
        &self,
        source: &Session,
        target: &Session,
        number: u64,
        seen: &mut Seen,
    ) -> Result<Option<Refusal>, MirrorError> {
        let applied = self.vitals.with(|inner| inner.applied_beat);
        let stream = lineage::Stream { of: self.of(), slot: &self.slot, nonce: self.nonce };
        let lacks = seen.marks.beat((source, target), stream, (number, applied)).await?;
        // The next start writes it down, and says what helps.
        let next = format!("strangler mirror PLAN --slice {}", self.slice);
        Ok(lacks.map(|what| Refusal { what, next, anew: false }))
    }

    /// Who still uses the monolith's tables. What goes wrong with it concerns nobody else: the next look makes up for it. `false`
    /// when the session still waits for an answer.
    async fn watch_use(&self, monolith: &Session, seen: &mut Seen) -> bool {
        let tables = || self.mapping.tables.iter().map(|table| table.source.clone()).collect();
        let watch = seen.usage.get_or_insert_with(|| UseWatch::new(&self.slice, tables()));
        let looked = tokio::time::timeout(USE_TIMEOUT, watch.look(monolith)).await;
        if let Ok(Err(error)) = &looked {
            tracing::debug!(slice = self.slice, error = %error, "the use of old tables could not be watched");
        }
        looked.is_ok()
    }

    /// What happened to the publication since the start that the engine must not go on over.
    async fn watch_publication(
        &self,
        source: &Session,
        target: &Session,
    ) -> Result<Option<Refusal>, MirrorError> {
        let named = Named {
            publication: &self.publication,
            slice: &self.slice,
            direction: self.direction,
            mode: self.mode,
            slot: Some(self.slot.as_str()),
        };
        let Some(found) = publication::read(source, &self.publication).await? else {
            return Ok(Some(publication::gone(named)));
        };
        if self.copies() {
            let of = (self.slice.as_str(), self.nonce);
            watch::note_what_is_left_out(target, of, (&self.publication, &found), &self.recorder).await?;
        }
        let fault = found.fault(self.published.keys(), named);
        Ok(fault.or_else(|| publication::came_back(&self.published, &found.tables, named)))
    }

    /// What happened to a table that no event tells. It is noted first: the next start must know it too.
    async fn watch_contents(
        &self,
        source: &Session,
        target: &Session,
        seen: &mut Seen,
    ) -> Result<Option<Refusal>, MirrorError> {
        let site = watch::Site {
            source,
            target,
            slice: &self.slice,
            nonce: self.nonce,
            publication: &self.publication,
            mapping: &self.mapping,
            recorder: &self.recorder,
        };
        if self.mode == Mode::Apply
            && let Some(stands_in) = stand_ins::find_fault(target, &self.mapping, self.direction).await?
        {
            return Ok(Some(stands_in));
        }
        if self.direction == Direction::Reverse {
            let (slice, slot, publication) = (&*self.slice, &*self.slot, &*self.publication);
            let way = WayBack { slice, slot, publication, nonce: self.nonce };
            if let Some(altered) = stamp::look(source, target, way, &mut seen.stamp).await? {
                return Ok(Some(altered));
            }
        }
        if !self.copies() {
            let mut lookout = match seen.lookout.take() {
                Some(lookout) => lookout,
                None => Lookout::begin(site, self.direction).await?,
            };
            let looked = lookout.look(site, || self.vitals.truncates()).await;
            self.vitals.await_position(lookout.awaits());
            seen.lookout = Some(lookout);
            looked?;
            return match (self.direction, self.mode) {
                (Direction::Reverse, Mode::Apply) => {
                    meanings::find_fault((target, source), &self.mapping, self.direction).await
                }
                _ => Ok(None),
            };
        }
        let mut watch = match seen.watch.take() {
            Some(watch) => watch,
            None => Watch::restore(site).await?,
        };
        let fault = watch.look(site).await?;
        self.vitals.await_position(watch.awaits());
        seen.watch = Some(watch);
        if let (None, Some(children)) = (&fault, contents::children(source, &self.mapping).await?) {
            return Ok(Some(children));
        }
        let apart = meanings::find_fault((source, target), &self.mapping, self.direction).await?;
        Ok(match (fault, apart) {
            // Copying again alone would bring the same values into the same types.
            (Some(fault), Some(apart)) => {
                Some(Refusal { what: format!("{}; {}", fault.what, apart.what), ..apart })
            }
            (fault, apart) => fault.or(apart),
        })
    }
}

/// What a pulse remembers from beat to beat.
#[derive(Debug, Default)]
struct Seen {
    meter: WalMeter,
    watch: Option<Watch>,
    lookout: Option<Lookout>,
    marks: Marks,
    /// What was about to change rows on the target at the last look, in words.
    disturbing: Vec<String>,
    /// The publication that the way back began with.
    stamp: Option<String>,
    usage: Option<UseWatch>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_heartbeats_of_the_same_slice_and_engine_count() {
        let content = heartbeat_content("orders", 7, 42);
        assert_eq!(heartbeat_number(content.as_bytes(), "orders", 7), Some(42));
        assert_eq!(heartbeat_number(content.as_bytes(), "orders", 8), None);
        assert_eq!(heartbeat_number(content.as_bytes(), "order", 7), None);
        assert_eq!(heartbeat_number(b"\xff", "orders", 7), None);
    }
}
