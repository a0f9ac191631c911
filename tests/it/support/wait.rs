//! Waiting for a condition, with a limit. Tests never just sleep.
//!
//! A limit is [`Patience`]: it passes like time on a machine that is fast and has nothing else to do, and more slowly
//! on another. So a limit says how long something may take by itself, and no test fails because others build beside
//! it. What must come, must come all the same.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The shortest and the longest pause between two tries of a condition. In between it is as long as the try took, so that
/// waiting takes no more than half of a core from what is waited for, even where a try is a whole command.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The limit for whatever normally happens within a second.
pub const SOON: Duration = Duration::from_secs(60);

/// The limit for what normally takes seconds: catching up, reaching a kill point.
pub const LONG: Duration = Duration::from_secs(120);

/// What starting a server takes on a free core of the machines that the limits were chosen on.
const USUAL_START: Duration = Duration::from_millis(400);

/// A machine that is slower than this by its load or by its nature gets no more patience: at some time a person must
/// see that something hangs.
const SLOWNESS_MAX: f64 = 30.0;

/// The time that the last server took to start, in microseconds.
static LAST_START_US: AtomicU64 = AtomicU64::new(0);

/// Tells how long a server took to start. The most honest measure there is of what this machine gives a test at the
/// moment: it takes processor, memory and disk.
pub fn server_started_in(time: Duration) {
    LAST_START_US.store(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// How much of a limit is left.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    left: Duration,
    looked: Instant,
}

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self { limit, left: limit, looked: Instant::now() }
    }

    /// Whether nothing is left. Must be asked again and again: what passed since the last question is counted at the
    /// speed that the machine has now.
    pub fn is_over(&mut self) -> bool {
        let passed = self.looked.elapsed();
        self.looked += passed;
        self.spend(passed, slowness());
        self.left.is_zero()
    }

    /// Begins anew, because something has moved.
    pub fn renew(&mut self) {
        *self = Self::new(self.limit);
    }

    fn spend(&mut self, passed: Duration, slowness: f64) {
        self.left = self.left.saturating_sub(passed.div_f64(slowness));
    }
}

/// How many times longer than usual things take at the moment; at least 1.
pub fn slowness() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let running = std::fs::read_to_string("/proc/loadavg").ok().and_then(|text| running(&text));
    let start = Duration::from_micros(LAST_START_US.load(Ordering::Relaxed));
    slowness_of(running.unwrap_or(0), cores, start)
}

/// Whoever wants to run shares the cores with all that do.
fn slowness_of(running: u32, cores: usize, last_start: Duration) -> f64 {
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    let crowd = f64::from(running) / f64::from(cores);
    let start = last_start.as_secs_f64() / USUAL_START.as_secs_f64();
    crowd.max(start).clamp(1.0, SLOWNESS_MAX)
}

/// Of `0.20 0.18 0.12 1/80 11206` the 1: who can run at this moment (proc(5)).
fn running(loadavg: &str) -> Option<u32> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.0.parse().ok()
}

/// Waits until `condition` gives a value, and returns it.
///
/// # Panics
/// With `what`, when that takes longer than `limit`.
pub async fn until<T, F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let mut patience = Patience::new(limit);
    loop {
        let tried = Instant::now();
        if let Some(value) = condition().await {
            return value;
        }
        assert!(!patience.is_over(), "waited {limit:?} in vain: {what}");
        tokio::time::sleep(pause(tried)).await;
    }
}

/// As [`until`], for tests without a runtime.
pub fn until_blocking<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let mut patience = Patience::new(limit);
    loop {
        let tried = Instant::now();
        if let Some(value) = condition() {
            return value;
        }
        assert!(!patience.is_over(), "waited {limit:?} in vain: {what}");
        std::thread::sleep(pause(tried));
    }
}

/// After a try that began at this moment.
fn pause(tried: Instant) -> Duration {
    tried.elapsed().clamp(PAUSE, PAUSE_MAX)
}

/// What a look at something on its way to a fixed goal shows.
pub enum Look<T> {
    /// It is there.
    There(T),
    /// It is not, and this is where it stands, in whatever words.
    At(String),
}

/// Waits for something on its way to a goal, as long as it moves: the limit is for standing still.
///
/// # Panics
/// With `what` and where it stands, when it has not moved for `limit`, or never arrives.
pub async fn until_there<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Look<T>>,
{
    /// In limits. Whoever moves for so long runs after something that runs away.
    const ALL_THE_WAY: u32 = 10;
    let (mut patience, mut whole) = (Patience::new(limit), Patience::new(limit * ALL_THE_WAY));
    let mut place = String::new();
    loop {
        let tried = Instant::now();
        match look().await {
            Look::There(value) => return value,
            Look::At(now) if now != place => {
                place = now;
                patience.renew();
            }
            Look::At(_) => {}
        }
        assert!(!patience.is_over(), "nothing moved for {limit:?}: {what}; it stands at {place}");
        assert!(!whole.is_over(), "always on the way and never there: {what}; it is at {place}");
        tokio::time::sleep(pause(tried)).await;
    }
}

/// Waits for a future.
///
/// # Panics
/// With `what`, when that takes longer than `limit`.
pub async fn within<F: Future>(what: &str, limit: Duration, future: F) -> F::Output {
    const LOOK: Duration = Duration::from_millis(200);
    let mut patience = Patience::new(limit);
    let mut future = std::pin::pin!(future);
    loop {
        match tokio::time::timeout(LOOK, &mut future).await {
            Ok(value) => return value,
            Err(_) => assert!(!patience.is_over(), "waited {limit:?} in vain: {what}"),
        }
    }
}

#[test]
fn patience_passes_like_time_on_a_free_machine_and_slower_on_a_crowded_or_slow_one() {
    let usual = USUAL_START;
    assert_eq!(running("31.20 20.18 10.12 32/980 11206\n"), Some(32));
    assert_eq!(running("not what it was"), None);
    assert!((slowness_of(0, 2, Duration::ZERO) - 1.0).abs() < 1e-9, "nothing known, nothing given");
    assert!((slowness_of(2, 2, usual) - 1.0).abs() < 1e-9);
    assert!((slowness_of(32, 2, usual) - 16.0).abs() < 1e-9, "sixteen to a core");
    assert!((slowness_of(1, 2, usual * 8) - 8.0).abs() < 1e-9, "servers start slowly");
    assert!((slowness_of(1_000, 2, usual) - SLOWNESS_MAX).abs() < 1e-9);

    let second = Duration::from_secs(1);
    let mut patience = Patience::new(second * 10);
    patience.spend(second * 16, 16.0);
    assert_eq!(patience.left, second * 9);
    patience.spend(second * 9, 1.0);
    assert!(patience.is_over(), "what does not come is not waited for without end");
    patience.renew();
    assert!(!patience.is_over());
}

#[tokio::test]
#[should_panic(expected = "nothing moved for 30ms: the goal; it stands at 2")]
async fn who_moves_is_waited_for_and_who_stands_is_not() {
    let looks = std::cell::Cell::new(0);
    until_there::<(), _>("the goal", Duration::from_millis(30), || {
        looks.set(looks.get() + 1);
        std::future::ready(Look::At((looks.get() / 4).min(2).to_string()))
    })
    .await;
}
