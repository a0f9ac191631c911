//! Measures how long writers are kept from committing while the right to write moves; `bench/pause.sh` sets the scene.
//!
//! Writers commit at a fixed rate and, when they are refused, do what docs/clients.md says. For each move it prints the gap
//! (from the last commit on the old side to the first on the new one), the longest that one transaction took from its first
//! attempt to its commit, and what the mover said itself. At the end every acknowledged write has to be there once.

mod moves;
mod writers;

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use moves::{Mover, Way};
use writers::{Commit, Pool};

/// Traffic on one side between two moves.
const BETWEEN: Duration = Duration::from_millis(800);

/// How long a rate is tried before the next higher one.
const TRIAL: Duration = Duration::from_secs(4);

/// A rate is sustained when so much of it is reached, and the mirror is not further behind than this.
const REACHED: f64 = 0.97;
const BEHIND_MAX: Duration = Duration::from_millis(250);

/// What is measured.
struct Asked {
    way: Way,
    /// Transactions per second of all writers; none finds the highest that is sustained.
    rate: Option<f64>,
    moves: usize,
    sides: [String; 2],
    owners: [String; 2],
}

/// `pause WAY RATE MOVES APP_MONOLITH APP_SERVICE OWNER_MONOLITH OWNER_SERVICE [STRANGLER PLAN]`
fn asked() -> Result<Asked, Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |place: usize| {
        words.get(place).cloned().ok_or("see the top of bench/pause/main.rs for the arguments")
    };
    let rate = match word(1)?.as_str() {
        "highest" => None,
        rate => Some(rate.parse()?),
    };
    let way = match word(0)?.as_str() {
        "strangler" => Way::Strangler { program: word(7)?, plan: word(8)? },
        "lock" => Way::Lock,
        "revoke" => Way::Revoke,
        other => return Err(format!("no way {other}").into()),
    };
    Ok(Asked {
        way,
        rate,
        moves: word(2)?.parse()?,
        sides: [word(3)?, word(4)?],
        owners: [word(5)?, word(6)?],
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let asked = asked()?;
    let mover = Mover::new(asked.way, &asked.owners).await?;
    let pool = Pool::start(&asked.sides).await?;
    let rate = match asked.rate {
        Some(rate) => rate,
        None => highest(&pool, &mover).await?,
    };
    pool.pace(rate);
    tokio::time::sleep(BETWEEN).await;
    let mut side = 0;
    for number in 0..asked.moves {
        let to = if mover.goes_back() { 1 - side } else { 1 };
        let begun = Instant::now();
        let said = mover.move_to(to).await?;
        let commits = pool.commits_on(to, begun).await?;
        let (gap, worst) = (gap_ms(&commits, begun, to), worst_ms(&commits, begun));
        writeln!(std::io::stdout(), "{}\t{rate:.0}\t{number}\t{gap:.2}\t{worst:.2}\t{said}", mover.name())?;
        side = to;
        if !mover.goes_back() {
            let begun = Instant::now();
            mover.take_back().await?;
            pool.commits_on(0, begun).await?;
        }
        tokio::time::sleep(BETWEEN).await;
    }
    let written = pool.stop().await;
    let lost = mover.lost(&written.acknowledged).await?;
    let surprises = written.refused.keys().filter(|code| !mover.announced().contains(&code.as_str())).count();
    writeln!(
        std::io::stderr(),
        "{} at {rate:.0}/s: {} acknowledged, {lost} lost or doubled; failed attempts by SQLSTATE {:?}",
        mover.name(),
        written.acknowledged.len(),
        written.refused
    )?;
    let promised = mover.goes_back() && (lost > 0 || surprises > 0);
    if promised { Err("a promise of docs/clients.md was broken".into()) } else { Ok(()) }
}

/// Raises the rate until the writers or the mirror fall behind.
async fn highest(pool: &Pool, mover: &Mover) -> Result<f64, Box<dyn Error>> {
    let (mut held, mut rate) = (200.0, 400.0);
    loop {
        pool.pace(rate);
        tokio::time::sleep(TRIAL / 2).await;
        let (begun, before) = (Instant::now(), pool.acknowledged());
        tokio::time::sleep(TRIAL).await;
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let reached = (pool.acknowledged() - before) as f64 / begun.elapsed().as_secs_f64();
        if reached < rate * REACHED || mover.behind().await? > BEHIND_MAX {
            pool.pace(held);
            tokio::time::sleep(TRIAL).await;
            return Ok(held);
        }
        held = rate;
        rate *= 1.25;
    }
}

/// From the last commit on the old side to the first on the new one.
fn gap_ms(commits: &[Commit], begun: Instant, to: usize) -> f64 {
    let first = commits
        .iter()
        .filter(|commit| commit.side == to && commit.done > begun)
        .map(|commit| commit.done)
        .min();
    let last = commits.iter().filter(|commit| commit.side != to).map(|commit| commit.done).max();
    match (last, first) {
        (Some(last), Some(first)) => first.saturating_duration_since(last).as_secs_f64() * 1000.0,
        _ => f64::NAN,
    }
}

/// The longest that a transaction took which ended after the move began.
fn worst_ms(commits: &[Commit], begun: Instant) -> f64 {
    let ended = commits.iter().filter(|commit| commit.done > begun);
    ended.map(|commit| (commit.done - commit.begun).as_secs_f64() * 1000.0).fold(0.0, f64::max)
}
