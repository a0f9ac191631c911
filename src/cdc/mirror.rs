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
use super::start::{Memory, ProcessName, open};
use super::table::{TableRun, expected_rows};
use crate::failpoint;
use crate::journal::process::{self, Sighting};

/// Pauses between attempts after a broken link, doubled up to the longest, each with a random part so that many
/// slices don't return at once.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// A run that lasted so long was healthy: the next pause is the shortest again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// How often a waiting mirror shows that it lives.
const SIGHT_EVERY: Duration = Duration::from_secs(3);

/// How the mirror of one slice ended.
#[derive(Debug)]
pub struct SliceEnd {
    /// Slice.
    pub slice: String,
    /// `Ok` after a clean stop.
    pub result: Result<(), MirrorError>,
}

/// Runs all slices until `stop` is cancelled or none can go on. A slice that can't go on does not stop the others.
/// Dropped before its end, it lets go of everything at once, as a crash would.
pub async fn run(configs: Vec<SliceConfig>, this: ProcessName, stop: CancellationToken) -> Vec<SliceEnd> {
    let this = Arc::new(this);
    let running: Vec<_> = configs
        .into_iter()
        .map(|config| {
            let slice = config.mapping.slice.clone();
            let (this, stop) = (Arc::clone(&this), stop.clone());
            let task = tokio::spawn(async move { Box::pin(keep_running(config, &this, &stop)).await });
            (slice, AbortOnDropHandle::new(task))
        })
        .collect();
    let mut ends = Vec::new();
    for (slice, task) in running {
        let result = match task.await {
            Ok(result) => result,
            Err(error) => Err(MirrorError::Unreadable { what: format!("the engine's end ({error})") }),
        };
        ends.push(SliceEnd { slice, result });
    }
    ends
}

async fn keep_running(
    config: SliceConfig,
    this: &ProcessName,
    stop: &CancellationToken,
) -> Result<(), MirrorError> {
    let slice = config.mapping.slice.clone();
    let mut pause = PAUSE_FIRST;
    let mut memory = Memory {
        started: false,
        nonce: None,
        retry: config.options.retry.clone(),
        rebuild: config.options.rebuild,
    };
    loop {
        let started = Instant::now();
        let error = match Box::pin(launch::run_once(&config, this, &mut memory, stop)).await {
            Ok(()) | Err(MirrorError::Stopped) => {
                config.board.phase(&slice, "stopped", None);
                return Ok(());
            }
            Err(error) if error.is_retryable() => error,
            Err(error) => {
                config.board.phase(&slice, "stopped", Some(&error.to_string()));
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
            error = chain,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(0),
            "trying again"
        );
        config.board.phase(&slice, "waiting", Some(&chain));
        let jitter = pause.mul_f64(fastrand::f64() * 0.3);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = Box::pin(wait(&config, &memory, &chain, pause + jitter)) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Leaves word in the service why the mirror of a slice ended, for `status`; one that was shut out leaves none.
async fn record_end(config: &SliceConfig, memory: &Memory, error: &MirrorError) {
    let Some(nonce) = memory.nonce else { return };
    let recording = async {
        let target = open(&config.apply, &config.mapping.slice).await.ok()?;
        process::stopped(&target, &config.mapping.slice, nonce, Some(&error.to_string())).await.ok()?;
        failpoint::hit("end-recorded");
        Some(())
    };
    // Without it, `status` tells by the missing sign of life.
    let _ = tokio::time::timeout(SIGHT_EVERY, recording).await;
}

/// Waits before the next attempt, and meanwhile shows the service, if it can be reached, that the mirror lives.
async fn wait(config: &SliceConfig, memory: &Memory, why: &str, pause: Duration) {
    let until = Instant::now() + pause;
    let sighting =
        Sighting { phase: "waiting".to_owned(), detail: Some(why.to_owned()), ..Sighting::default() };
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if let Some(nonce) = memory.nonce {
            let beat = async {
                let target = open(&config.apply, &config.mapping.slice).await.ok()?;
                process::beat(&target, &config.mapping.slice, nonce, &sighting).await.ok()
            };
            // A sign of life is a courtesy; without one `status` says that the mirror is not seen.
            let _ = tokio::time::timeout(left, beat).await;
        }
        tokio::time::sleep(left.min(SIGHT_EVERY)).await;
    }
}

/// An error and its causes on one line.
#[must_use]
pub fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Where engines show how they are doing.
#[derive(Debug, Clone)]
pub struct Board {
    sender: Arc<watch::Sender<Progress>>,
    speeds: Arc<Mutex<HashMap<(String, String), Speed>>>,
}

/// Copying speed of one table, smoothed.
#[derive(Debug, Clone, Copy)]
struct Speed {
    at: Instant,
    rows: u64,
    rows_per_s: f64,
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

    /// A slice enters a phase.
    pub fn phase(&self, slice: &str, phase: &str, detail: Option<&str>) {
        self.update(slice, |shown| {
            phase.clone_into(&mut shown.phase);
            shown.detail = detail.map(str::to_owned);
        });
    }

    /// Shows a slice as it is now; `lag_bytes` is the WAL received and not applied.
    pub fn show(
        &self,
        slice: &str,
        (phase, detail): (&str, Option<&str>),
        tables: &[TableRun],
        vitals: &Vitals,
        lag_bytes: u64,
    ) {
        let tables = tables.iter().map(|table| self.table(slice, table)).collect();
        self.update(slice, |shown| {
            *shown = SliceProgress {
                slice: slice.to_owned(),
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

    /// Shows how a slice's events fared.
    pub fn count(&self, slice: &str, counts: RouteCounts) {
        self.update(slice, |shown| shown.counts = counts);
    }

    fn update(&self, slice: &str, change: impl FnOnce(&mut SliceProgress)) {
        self.sender.send_modify(|progress| {
            if let Some(shown) = progress.slices.iter_mut().find(|shown| shown.slice == slice) {
                change(shown);
            }
        });
    }

    fn table(&self, slice: &str, table: &TableRun) -> TableProgress {
        TableProgress {
            name: table.label.clone(),
            state: table.state.as_str().to_owned(),
            rows: table.rows_copied,
            rows_estimate: expected_rows(&table.mapping),
            bytes: table.bytes_copied + table.bytes_moving,
            rows_per_s: self.speed(slice, table),
        }
    }

    fn speed(&self, slice: &str, table: &TableRun) -> f64 {
        /// Shorter stretches say little about a copy that lands pieces of seconds.
        const STRETCH: Duration = Duration::from_millis(500);
        let mut speeds = self.speeds.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let speed = speeds.entry((slice.to_owned(), table.label.clone())).or_insert(Speed {
            at: now,
            rows: table.rows_copied,
            rows_per_s: 0.0,
        });
        let elapsed = now.duration_since(speed.at);
        if elapsed >= STRETCH && table.rows_copied > speed.rows {
            #[expect(clippy::cast_precision_loss, reason = "a speed for display")]
            let rows = (table.rows_copied - speed.rows) as f64;
            *speed = Speed { at: now, rows: table.rows_copied, rows_per_s: rows / elapsed.as_secs_f64() };
        }
        speed.rows_per_s
    }
}
