//! Runs the engines of a plan's slices, and starts one again when a link breaks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::engine::SliceConfig;
use super::error::MirrorError;
use super::launch;
use super::progress::{Progress, SliceProgress, TableProgress};
use super::pulse::Vitals;
use super::route::RouteCounts;
use super::start::{Memory, ProcessName, Standstill, is_armed, open};
use super::table::{TableRun, expected_rows};
use crate::failpoint;
use crate::journal::process::{self, Sighting};
use crate::journal::streams::{self, Direction, Mode, StreamOf};
use crate::postgres::connect::Server;
use crate::postgres::sqlstate;

/// Pauses between attempts after a broken link, doubled up to the longest, each with a random part so that many
/// slices don't return at once.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// A run that lasted so long was healthy: the next pause is the shortest again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// How often a waiting mirror shows that it lives.
const SIGHT_EVERY: Duration = Duration::from_secs(3);

/// How often the mirror looks whether a slice has got a way back.
const ARMED_EVERY: Duration = Duration::from_secs(1);

/// How often a way back that could not go on is tried again as it is: what stopped it may be cured on either side, and nobody
/// tells the mirror.
const BACK_AGAIN: Duration = Duration::from_secs(5);

/// How the mirror of one direction of a slice ended.
#[derive(Debug)]
pub struct SliceEnd {
    /// Slice.
    pub slice: String,
    /// Which of its streams.
    pub direction: Direction,
    /// `Ok` after a clean stop.
    pub result: Result<(), MirrorError>,
}

/// Runs all slices until `stop` is cancelled or none can go on. A slice that can't go on does not stop the others.
/// Dropped before its end, it lets go of everything at once, as a crash would.
///
/// Each slice has two streams once it is armed, and each has an engine that follows its own stream row: the ways there
/// come first among the ends, in the order of `configs`, then the ways back that ran.
pub async fn run(configs: Vec<SliceConfig>, this: ProcessName, stop: CancellationToken) -> Vec<SliceEnd> {
    let this = Arc::new(this);
    let mut running = Vec::new();
    let mut ways_back = Vec::new();
    for config in configs {
        let over = CancellationToken::new();
        if let Some(back) = config.way_back() {
            let slice = back.mapping.slice.clone();
            let (this, stop, over) = (Arc::clone(&this), stop.clone(), over.clone());
            let task = tokio::spawn(async move { Box::pin(run_back(back, &this, &stop, &over)).await });
            ways_back.push((slice, AbortOnDropHandle::new(task)));
        }
        let slice = config.mapping.slice.clone();
        let (this, stop) = (Arc::clone(&this), stop.clone());
        let task = tokio::spawn(async move {
            let ended = Box::pin(keep_running(config, &this, &stop, None)).await;
            over.cancel();
            ended
        });
        running.push((slice, AbortOnDropHandle::new(task)));
    }
    let mut ends = Vec::new();
    for (slice, task) in running {
        let result = joined(task.await);
        ends.push(SliceEnd { slice, direction: Direction::Forward, result });
    }
    for (slice, task) in ways_back {
        let result = match task.await {
            Ok(None) => continue,
            Ok(Some(result)) => result,
            Err(error) => joined(Err(error)),
        };
        ends.push(SliceEnd { slice, direction: Direction::Reverse, result });
    }
    ends
}

fn joined(ended: Result<Result<(), MirrorError>, tokio::task::JoinError>) -> Result<(), MirrorError> {
    ended.unwrap_or_else(|error| Err(MirrorError::Unreadable { what: format!("the engine's end ({error})") }))
}

/// Runs a way back from the moment when there is one; `None` when there never was before the slice's other stream was
/// over, which then is no reason to stay. One that can't go on is tried again, and at once where another is made in its place;
/// its refusal is the end where neither helps.
async fn run_back(
    mut config: SliceConfig,
    this: &ProcessName,
    stop: &CancellationToken,
    over: &CancellationToken,
) -> Option<Result<(), MirrorError>> {
    let mut refused: Option<Refused> = None;
    loop {
        let passed = refused.as_ref().map(|refused| (refused.slot.as_str(), refused.at));
        let slot = tokio::select! {
            biased;
            slot = armed(&config, this, passed) => slot,
            () = stop.cancelled() => return refused.map(|refused| Err(refused.error)),
            // The other stream's end is none of one that brings the service's writes home.
            () = over.cancelled() => match carries(&config, refused.as_ref()).await {
                Some(slot) => slot,
                None => return refused.map(|refused| Err(refused.error)),
            },
        };
        let again = refused.as_ref().filter(|refused| refused.slot == slot);
        if again.is_some() {
            // What was typed was meant for what the operator had looked at.
            Arc::make_mut(&mut config.options).retry.clear();
        }
        let standstill = again.map(|refused| standstill(&refused.error));
        match Box::pin(keep_running(config.clone(), this, stop, standstill)).await {
            // It was disarmed meanwhile, and may be armed again.
            Err(MirrorError::NotArmed { .. }) => {
                refused = None;
                tokio::time::sleep(ARMED_EVERY).await;
            }
            ended @ (Ok(()) | Err(MirrorError::Fenced { .. } | MirrorError::Retired { .. })) => {
                return Some(ended);
            }
            // `arm` may make it anew, or somebody cures what stopped it. It may also have been taken away in the moment of its
            // start, in whatever words the server says that.
            Err(error) => refused = Some(Refused::told(&config, slot, error, refused.as_ref())),
        }
    }
}

/// Why a way back stands still.
#[derive(Debug)]
struct Refused {
    slot: String,
    at: Instant,
    error: MirrorError,
}

impl Refused {
    /// Logs it, unless the same was said before; ages and process numbers make no difference.
    fn told(config: &SliceConfig, slot: String, error: MirrorError, before: Option<&Self>) -> Self {
        let words =
            |error: &MirrorError| -> String { why(error).chars().filter(|c| !c.is_ascii_digit()).collect() };
        if before.is_none_or(|before| words(&before.error) != words(&error)) {
            tracing::error!(
                slice = config.mapping.slice,
                error = why(&error),
                again_s = BACK_AGAIN.as_secs(),
                "the way back stands still; it is tried again from time to time"
            );
        }
        Self { slot, at: Instant::now(), error }
    }
}

/// What is shown of a way back that could not go on over this.
fn standstill(error: &MirrorError) -> Standstill {
    let anew = matches!(error, MirrorError::Anew { .. });
    let phase = if anew { process::WAITS_FOR_ARM } else { process::TRIED_AGAIN };
    Standstill { phase, why: why(error) }
}

/// The slot of a way back that applies and was not tried yet.
async fn carries(config: &SliceConfig, refused: Option<&Refused>) -> Option<String> {
    if refused.is_some() {
        return None;
    }
    let target = open(&config.apply, &config.mapping.slice).await.ok()?;
    let row = streams::read(&target, config.of()).await.ok()??;
    (is_armed(&row) && row.mode == Mode::Apply).then_some(row.slot)
}

/// Waits until the monolith has a stream row for the way back: with another slot than the one that was `passed`, or with that
/// one again a while later. Trouble on the way there is the other stream's to tell.
async fn armed(config: &SliceConfig, this: &ProcessName, passed: Option<(&str, Instant)>) -> String {
    let pid = i32::try_from(this.pid).unwrap_or(i32::MAX);
    loop {
        if let Ok(target) = open(&config.apply, &config.mapping.slice).await {
            while let Ok(found) = streams::read(&target, config.of()).await {
                let is_due = |row: &streams::StreamRow| {
                    passed.is_none_or(|(slot, at)| row.slot != slot || at.elapsed() >= BACK_AGAIN)
                };
                let found = found.filter(|row| is_armed(row) && is_due(row));
                if let Some(row) = found {
                    return row.slot;
                }
                if passed.is_some()
                    && process::beat_still(&target, config.of(), (&this.host, pid)).await.is_err()
                {
                    break;
                }
                tokio::time::sleep(ARMED_EVERY).await;
            }
        }
        tokio::time::sleep(ARMED_EVERY).await;
    }
}

async fn keep_running(
    config: SliceConfig,
    this: &ProcessName,
    stop: &CancellationToken,
    standstill: Option<Standstill>,
) -> Result<(), MirrorError> {
    let (slice, direction) = (config.mapping.slice.clone(), config.direction.as_str());
    let mut pause = PAUSE_FIRST;
    let mut memory = Memory {
        started: false,
        nonce: None,
        retry: config.options.retry.clone(),
        rebuild: config.options.rebuild,
        standstill,
        in_vain: Arc::default(),
        located: None,
    };
    loop {
        let started = Instant::now();
        config.recorder.begin();
        let error = match Box::pin(launch::run_once(&config, this, &mut memory, stop)).await {
            Ok(()) | Err(MirrorError::Stopped) => {
                config.board.phase(config.of(), "stopped", None);
                return Ok(());
            }
            // The row says what the stream is for now; whoever waits for it should not wait longer than it takes.
            Err(MirrorError::Turned { .. }) => {
                tracing::info!(slice, direction, "the authority moves");
                failpoint::hit("turned");
                config.board.phase(config.of(), "turning", None);
                continue;
            }
            Err(error @ (MirrorError::NotArmed { .. } | MirrorError::Retired { .. })) => {
                config.board.phase(config.of(), "stopped", None);
                return Err(error);
            }
            Err(error) if error.is_retryable() => error,
            Err(error) => {
                let phase = match config.direction {
                    Direction::Forward => "stopped",
                    Direction::Reverse => self::standstill(&error).phase,
                };
                config.board.phase(config.of(), phase, Some(&error.to_string()));
                record_end(&config, &memory, &error).await;
                return Err(error);
            }
        };
        if started.elapsed() >= HEALTHY_AFTER {
            pause = PAUSE_FIRST;
        }
        let chain = chain_of(&error);
        tracing::warn!(
            slice,
            direction,
            error = chain,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(0),
            "trying again"
        );
        config.board.phase(config.of(), "waiting", Some(&chain));
        let jitter = pause.mul_f64(fastrand::f64() * 0.3);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = Box::pin(wait(&config, &memory, &chain, pause + jitter)) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Leaves word in the target why the mirror of a slice ended, for `status`; one that was shut out leaves none.
async fn record_end(config: &SliceConfig, memory: &Memory, error: &MirrorError) {
    let Some(nonce) = memory.nonce else { return };
    let recording = async {
        let target = open(&config.apply, &config.mapping.slice).await.ok()?;
        match config.direction {
            Direction::Forward => {
                process::stopped(&target, config.of(), nonce, Some(&why(error))).await.ok()?
            }
            Direction::Reverse => {
                let Standstill { phase, why } = standstill(error);
                process::stands_still(&target, config.of(), nonce, (phase, &why)).await.ok()?;
            }
        }
        failpoint::hit("end-recorded");
        let applied = streams::read(&target, config.of()).await.ok()??.applied;
        config.recorder.stopped(config.direction, error, applied).await;
        Some(())
    };
    // Without it, `status` tells by the missing sign of life.
    let _ = tokio::time::timeout(SIGHT_EVERY, recording).await;
}

/// Leaves word in a slice's service why its mirror did not even begin, where no other mirror of it lives.
pub async fn leave_word(service: &Server, slice: &str, error: &MirrorError) {
    let leaving = async {
        let target = open(service, slice).await.ok()?;
        if process::try_lock(&target, slice).await.ok()? {
            process::left_out(&target, StreamOf::forward(slice), &why(error)).await.ok()?;
            failpoint::hit("word-left");
        }
        Some(())
    };
    // It is said on the screen as well; in the service it is a courtesy to `status`.
    let _ = tokio::time::timeout(SIGHT_EVERY, leaving).await;
}

fn why(error: &MirrorError) -> String {
    let what = chain_of(error);
    error.next().map_or_else(|| what.clone(), |next| format!("{what}; next: {next}"))
}

/// Waits before the next attempt, and meanwhile shows the target, if it can be reached, that the mirror lives.
async fn wait(config: &SliceConfig, memory: &Memory, why: &str, pause: Duration) {
    let until = Instant::now() + pause;
    let sighting =
        Sighting { phase: "waiting".to_owned(), detail: Some(why.to_owned()), ..Sighting::default() };
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if let Some(nonce) = memory.nonce {
            let beat = async {
                let target = open(&config.apply, &config.mapping.slice).await.ok()?;
                process::beat(&target, config.of(), nonce, &sighting).await.ok()
            };
            // A sign of life is a courtesy; without one `status` says that the mirror is not seen.
            let _ = tokio::time::timeout(left, beat).await;
        }
        tokio::time::sleep(left.min(SIGHT_EVERY)).await;
    }
}

/// An error and its causes on one line, without row values: it is logged, and kept in the service.
#[must_use]
pub fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    sqlstate::causes(error).join(": ")
}

/// Where engines show how they are doing.
#[derive(Debug, Clone)]
pub struct Board {
    sender: Arc<watch::Sender<Progress>>,
    speeds: Arc<Mutex<HashMap<(String, String), Speed>>>,
}

/// Copying speed of one table.
#[derive(Debug, Clone, Copy)]
struct Speed {
    first: Instant,
    rows: Pace,
    bytes: Pace,
    measured_s: f64,
}

/// A count, when it last grew, and how fast.
#[derive(Debug, Clone, Copy)]
struct Pace {
    at: Instant,
    count: u64,
    per_s: f64,
}

impl Pace {
    /// Takes a new count, and says whether it made a new pace.
    fn step(&mut self, now: Instant, count: u64) -> bool {
        /// Shorter stretches say little about a copy that lands pieces of seconds.
        const STRETCH: Duration = Duration::from_millis(500);
        let elapsed = now.duration_since(self.at);
        if elapsed < STRETCH || count <= self.count {
            return false;
        }
        #[expect(clippy::cast_precision_loss, reason = "a speed for display")]
        let grown = (count - self.count) as f64;
        *self = Self { at: now, count, per_s: grown / elapsed.as_secs_f64() };
        true
    }
}

impl Board {
    /// A board for these slices, and the receiver to watch it with.
    #[must_use]
    pub fn new(slices: &[String]) -> (Self, watch::Receiver<Progress>) {
        let slices = slices
            .iter()
            .map(|slice| SliceProgress {
                slice: slice.clone(),
                phase: "starting".to_owned(),
                ..SliceProgress::default()
            })
            .collect();
        let (sender, receiver) = watch::channel(Progress { slices });
        (Self { sender: Arc::new(sender), speeds: Arc::default() }, receiver)
    }

    /// A stream enters a phase.
    pub fn phase(&self, of: StreamOf<'_>, phase: &str, detail: Option<&str>) {
        self.update(of, |shown| {
            phase.clone_into(&mut shown.phase);
            shown.detail = detail.map(str::to_owned);
        });
    }

    /// Shows a stream as it is now; `lag_bytes` is the WAL received and not applied.
    pub fn show(
        &self,
        of: StreamOf<'_>,
        (phase, detail): (&str, Option<&str>),
        tables: &[TableRun],
        vitals: &Vitals,
        lag_bytes: u64,
    ) {
        let tables = tables.iter().map(|table| self.table(of.slice, table)).collect();
        self.update(of, |shown| {
            *shown = SliceProgress {
                slice: of.slice.to_owned(),
                direction: of.direction,
                phase: phase.to_owned(),
                tables,
                lag_bytes,
                lag_ms: vitals.lag_ms(),
                wal_held_bytes: vitals.held_bytes(),
                detail: detail.map(str::to_owned),
                counts: shown.counts,
            };
        });
    }

    /// Shows how a stream's events fared.
    pub fn count(&self, of: StreamOf<'_>, counts: RouteCounts) {
        self.update(of, |shown| shown.counts = counts);
    }

    /// A way back has its place behind all slices from the moment when it is first told of.
    fn update(&self, of: StreamOf<'_>, change: impl FnOnce(&mut SliceProgress)) {
        let same = |shown: &SliceProgress| shown.slice == of.slice && shown.direction == of.direction;
        self.sender.send_modify(|progress| {
            if of.direction == Direction::Reverse && !progress.slices.iter().any(same) {
                progress.slices.push(SliceProgress {
                    slice: of.slice.to_owned(),
                    direction: of.direction,
                    ..SliceProgress::default()
                });
            }
            if let Some(shown) = progress.slices.iter_mut().find(|shown| same(shown)) {
                change(shown);
            }
        });
    }

    fn table(&self, slice: &str, table: &TableRun) -> TableProgress {
        let speed = self.speed(slice, table);
        TableProgress {
            name: table.label.clone(),
            state: table.state.as_str().to_owned(),
            rows: table.rows_copied,
            rows_estimate: expected_rows(&table.mapping),
            bytes: table.bytes_copied + table.bytes_moving,
            rows_per_s: speed.rows.per_s,
            bytes_per_s: speed.bytes.per_s,
            measured_s: speed.measured_s,
        }
    }

    fn speed(&self, slice: &str, table: &TableRun) -> Speed {
        let mut speeds = self.speeds.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (rows, bytes) = (table.rows_copied, table.bytes_copied + table.bytes_moving);
        let begun = |count| Pace { at: now, count, per_s: 0.0 };
        let speed = speeds.entry((slice.to_owned(), table.label.clone())).or_insert(Speed {
            first: now,
            rows: begun(rows),
            bytes: begun(bytes),
            measured_s: 0.0,
        });
        if rows < speed.rows.count {
            // It is copied again.
            *speed = Speed { first: now, rows: begun(rows), bytes: begun(bytes), measured_s: 0.0 };
        }
        speed.bytes.step(now, bytes);
        if speed.rows.step(now, rows) {
            speed.measured_s = now.duration_since(speed.first).as_secs_f64();
        }
        *speed
    }
}
