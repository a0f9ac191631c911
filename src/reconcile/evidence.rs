//! What verdicts prove: how one gets into the ledger, and whether it still stands.
//!
//! A verdict stands for as long as what it rested on is there unchanged ([`voids()`] compares one
//! [`Ground`] with another). It is a proof when it is clean, covers every row, stands, and is not too old
//! ([`Evidence::lacks`]); `status` shows the same answer that a flip asks for.

mod conclude;

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::Client;

pub use conclude::{ConcludeError, Concluded, Monolith, conclude};

use super::finding::FindingKind;
use super::verdict::{Counts, Coverage, Outcome};
use crate::journal::JournalError;
use crate::journal::grounds::{ABSENT, Ground, TableGround, has_same_files, is_same_shape, is_unlogged};
use crate::journal::ledger::{self, Broken, Remembered, VerifyError};
use crate::journal::verdicts::{self, VerdictRow};
use crate::lsn::Lsn;

/// Why a verdict proves nothing any more. The list is complete: what is not here voids nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Void {
    /// The slice was provisioned for another mapping.
    Mapping,
    /// Authority moved.
    Epoch {
        /// Epoch of the verdict.
        then: i64,
        /// Epoch in force.
        now: i64,
    },
    /// The stream was started over under a new slot: `mirror --rebuild`, after a gap or because somebody wanted it.
    StreamAnew,
    /// The stream is not running: `gap` when changes were lost, `diverged` when the source is another one.
    Stream {
        /// Its state.
        state: String,
    },
    /// The stream was not running when the rows were compared, so nobody watched the closed side, or followed the open one.
    Unwatched {
        /// Its state then.
        state: String,
    },
    /// A table is not live, `diverged` among others.
    NotLive {
        /// Table by the monolith's name.
        table: String,
        /// Its state.
        state: String,
    },
    /// A table was copied again: `mirror --retry`.
    Copied {
        /// Table by the monolith's name.
        table: String,
    },
    /// Its rows changed without an event in the stream, or may have: a rewrite, TRUNCATE of a partition and the like.
    Unheard {
        /// Table by the monolith's name.
        table: String,
    },
    /// It is UNLOGGED, or was when the verdict was given: a crash empties it, and its changes are in no stream.
    Unlogged {
        /// Table by the monolith's name.
        table: String,
        /// `monolith` or `service`.
        side: &'static str,
    },
    /// The definition of a table's columns, partitions or enums changed, or the table was replaced.
    Changed {
        /// Table by the monolith's name.
        table: String,
        /// `monolith` or `service`.
        side: &'static str,
    },
    /// A copy's rows are in other files, and the mirror did not do that: a crash emptied it while it was UNLOGGED, somebody did, or
    /// somebody wrote it anew.
    Files {
        /// Table by the monolith's name.
        table: String,
        /// `monolith` or `service`.
        side: &'static str,
    },
    /// A table came to the slice or left it.
    Tables {
        /// Table by the monolith's name.
        table: String,
    },
    /// Somebody wrote on a fenced side, the way back was begun anew, or triggers fired on mirrored rows: see
    /// [`crate::journal::alarms::disturbances`].
    Disturbed,
    /// The slice is not provisioned any more.
    NotProvisioned,
}

impl Void {
    /// The table that it is about, if it is about one.
    #[must_use]
    pub fn table(&self) -> Option<&str> {
        match self {
            Self::NotLive { table, .. }
            | Self::Copied { table }
            | Self::Unheard { table }
            | Self::Unlogged { table, .. }
            | Self::Changed { table, .. }
            | Self::Files { table, .. }
            | Self::Tables { table } => Some(table),
            Self::Mapping
            | Self::Epoch { .. }
            | Self::StreamAnew
            | Self::Stream { .. }
            | Self::Unwatched { .. }
            | Self::Disturbed
            | Self::NotProvisioned => None,
        }
    }
}

/// A clause about what happened.
impl fmt::Display for Void {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapping => f.write_str("the slice's mapping is another one now"),
            Self::Epoch { then, now } => write!(f, "authority moved: epoch {then} then, {now} now"),
            Self::StreamAnew => f.write_str("the stream was started over"),
            Self::Stream { state } => write!(f, "the stream is not running: {state}"),
            Self::Unwatched { state } => {
                write!(f, "the stream from the monolith was not running when the rows were compared: {state}")
            }
            Self::NotLive { table, state } => write!(f, "table {table} is {state}"),
            Self::Copied { table } => write!(f, "table {table} was copied again"),
            Self::Unheard { table } => {
                write!(f, "table {table} changed in a way that is not in the stream")
            }
            Self::Unlogged { table, side } => {
                write!(
                    f,
                    "table {table}, or a partition of it, is UNLOGGED on the {side}'s side, and a crash empties it"
                )
            }
            Self::Changed { table, side } => {
                write!(f, "the definition of table {table} changed on the {side}'s side")
            }
            Self::Files { table, side } => write!(
                f,
                "the copy of table {table} on the {side}'s side was emptied or written anew, and not by the mirror"
            ),
            Self::Tables { table } => write!(f, "table {table} came to the slice or left it"),
            Self::Disturbed => {
                f.write_str(
                    "somebody wrote on the fenced side, a trigger fired on mirrored rows, a generated column was computed otherwise, the service \
                     wrote rows outside its filter, or the way back was begun anew",
                )
            }
            Self::NotProvisioned => f.write_str("the slice is not provisioned"),
        }
    }
}

/// What voids evidence that rested on `then`. Where `now` lacks the monolith's part, that part is not compared.
#[must_use]
pub fn voids(then: &Ground, now: Option<&Ground>) -> Vec<Void> {
    let Some(now) = now else { return vec![Void::NotProvisioned] };
    let mut found = Vec::new();
    if then.plan_hash != now.plan_hash {
        found.push(Void::Mapping);
    }
    if then.epoch != now.epoch {
        found.push(Void::Epoch { then: then.epoch, now: now.epoch });
    }
    if then.slot.is_none() || then.slot != now.slot {
        found.push(Void::StreamAnew);
    }
    match now.stream.as_deref() {
        Some("running") => {}
        other => found.push(Void::Stream { state: other.unwrap_or("never started").to_owned() }),
    }
    // Its slot may have been made behind a write that was compared before, and then that write is in no stream.
    if let Some(state) = then.stream.as_ref().filter(|state| *state != "running") {
        found.push(Void::Unwatched { state: state.clone() });
    }
    if then.disturbances != now.disturbances {
        found.push(Void::Disturbed);
    }
    for (table, ground) in &now.tables {
        match then.tables.get(table) {
            Some(before) => {
                found.extend(table_voids(table, before, ground));
                found.extend(other_files(then, table, (before, ground)));
            }
            None => found.push(Void::Tables { table: table.clone() }),
        }
    }
    let gone = then.tables.keys().filter(|table| !now.tables.contains_key(*table));
    found.extend(gone.map(|table| Void::Tables { table: table.clone() }));
    found
}

fn table_voids(table: &str, then: &TableGround, now: &TableGround) -> Vec<Void> {
    let mut found = Vec::new();
    let table = table.to_owned();
    if now.state != "live" {
        found.push(Void::NotLive { table: table.clone(), state: now.state.clone() });
    } else if then.copy != now.copy || then.state != "live" {
        found.push(Void::Copied { table: table.clone() });
    }
    if now.unheard {
        found.push(Void::Unheard { table: table.clone() });
    }
    let unlogged = |shape: Option<&str>| shape.is_some_and(is_unlogged);
    if unlogged(Some(&then.target_shape)) || unlogged(Some(&now.target_shape)) {
        found.push(Void::Unlogged { table: table.clone(), side: "service" });
    }
    if unlogged(now.source_shape.as_deref()) {
        found.push(Void::Unlogged { table: table.clone(), side: "monolith" });
    }
    if !is_same_shape(&then.target_shape, &now.target_shape) || now.target_shape == ABSENT {
        found.push(Void::Changed { table: table.clone(), side: "service" });
    }
    if let Some(shape) = &now.source_shape
        && (then.source_shape.as_ref().is_none_or(|then| !is_same_shape(then, shape)) || shape == ABSENT)
    {
        found.push(Void::Changed { table, side: "monolith" });
    }
    found
}

/// What became of the files of a copy whose definition is as it was. Which side it is on stands in the ground that is rested on.
fn other_files(then: &Ground, table: &str, (before, after): (&TableGround, &TableGround)) -> Option<Void> {
    let sides = [
        ("service", Some(&before.target_shape).zip(Some(&after.target_shape))),
        ("monolith", before.source_shape.as_ref().zip(after.source_shape.as_ref())),
    ];
    // Another copy has other files, and that it is another one is said.
    let mut sides = sides.into_iter().filter(|_| before.copy == after.copy);
    sides.find_map(|(side, shapes)| {
        let (before, after) = shapes.filter(|_| then.may_copy(side))?;
        let moved = is_same_shape(before, after) && !has_same_files(before, after);
        moved.then(|| Void::Files { table: table.to_owned(), side })
    })
}

/// A verdict as the ledger has it.
#[derive(Debug, Clone, PartialEq)]
pub struct LastVerdict {
    /// Number of its entry.
    pub entry: i64,
    /// The run's uuid.
    pub run: String,
    /// What it says.
    pub outcome: Outcome,
    /// It is about every row of every table of the slice.
    pub full: bool,
    /// Representations were compared too.
    pub strict: bool,
    /// Who held the authority: `monolith` or `service`.
    pub authority: String,
    /// When it was given, as RFC 3339.
    pub at: String,
    /// How long ago that was.
    pub age: Duration,
    /// How long ago its run began: evidence is as old as the first rows that were compared.
    pub begun_ago: Duration,
    /// Epoch of the authority.
    pub epoch: i64,
    /// Position on the authority that everything compared had reached.
    pub lsn: Lsn,
    /// Position on the authority before anything was compared.
    pub from_lsn: Lsn,
    /// Hash of the slice's mapping.
    pub plan_hash: String,
    /// Findings by kind.
    pub counts: Counts,
    /// How many tables it is about.
    pub compared: usize,
    /// What was looked at of them, each once.
    pub coverage: Vec<Coverage>,
    /// The tables that differ, by the monolith's names.
    pub differing: Vec<String>,
    /// What it rests on.
    pub ground: Ground,
}

/// Which verdict is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Any,
    Full,
}

/// The last verdict on a slice, whatever it covered.
///
/// # Errors
/// [`JournalError`].
pub async fn last_verdict(service: &Client, slice: &str) -> Result<Option<LastVerdict>, JournalError> {
    read(service, slice, Scope::Any).await
}

/// The fields of a verdict's body that are read back; [`conclude()`] writes them.
#[derive(Debug, Deserialize)]
struct Body {
    run: String,
    outcome: Outcome,
    full: bool,
    strict: bool,
    authority: String,
    from_lsn: Lsn,
    counts: Counts,
    ground: Ground,
    compared: usize,
    coverage: Vec<Coverage>,
    differing: Vec<String>,
}

async fn read(service: &Client, slice: &str, scope: Scope) -> Result<Option<LastVerdict>, JournalError> {
    let row = verdicts::last(service, slice, scope == Scope::Full).await?;
    row.map(from_row).transpose()
}

fn from_row(row: VerdictRow) -> Result<LastVerdict, JournalError> {
    let body: Body = serde_json::from_str(&row.body)
        .map_err(|error| JournalError::Unreadable { what: "ledger.body", found: error.to_string() })?;
    let duration = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    let copy = if body.authority == "service" { "monolith" } else { "service" };
    let ground = Ground { copy: Some(body.ground.copy.unwrap_or_else(|| copy.to_owned())), ..body.ground };
    Ok(LastVerdict {
        entry: row.entry,
        run: body.run,
        outcome: body.outcome,
        full: body.full,
        strict: body.strict,
        authority: body.authority,
        at: row.at,
        age: duration(row.age_s),
        begun_ago: duration(row.begun_ago_s),
        epoch: row.epoch.unwrap_or(0),
        lsn: row.lsn.unwrap_or_default(),
        from_lsn: body.from_lsn,
        plan_hash: row.plan_hash.unwrap_or_default(),
        counts: body.counts,
        compared: body.compared,
        coverage: body.coverage,
        differing: body.differing,
        ground,
    })
}

/// All that the ledger says of whether a slice's sides are equal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// The last verdict.
    pub last: Option<LastVerdict>,
    /// The last one that covers every row; often the same.
    pub last_full: Option<LastVerdict>,
    /// A verdict found differences that no full one has taken back: one about a part, later than the last full one; or
    /// any, where that one is incomplete.
    pub differs_since: bool,
    /// Some of those differences are no orphans.
    pub rows_differ_since: bool,
    /// A strict verdict found rows that differ, and no full strict one has taken that back: one by meaning can't.
    pub differs_strictly: bool,
    /// The last full verdict, or an entry after it, is not as it was written.
    pub broken: Option<Broken>,
}

/// Reads it.
///
/// # Errors
/// [`JournalError`].
pub async fn evidence(service: &Client, slice: &str) -> Result<Evidence, JournalError> {
    let Some(last) = last_verdict(service, slice).await? else { return Ok(Evidence::default()) };
    let last_full = if last.full { Some(last.clone()) } else { read(service, slice, Scope::Full).await? };
    let settled = last_full.as_ref().filter(|verdict| verdict.outcome != Outcome::Incomplete);
    let after = settled.map_or(0, |verdict| verdict.entry);
    let since = verdicts::differs_after(service, slice, after).await?;
    let differs_strictly = verdicts::differs_strictly(service, slice).await?;
    let broken = match &last_full {
        Some(full) => broken(service, None, full).await?,
        None => None,
    };
    Ok(Evidence {
        last: Some(last),
        last_full,
        differs_since: since.any,
        rows_differ_since: since.rows,
        differs_strictly,
        broken,
    })
}

/// What is wrong with a verdict in the ledger, or with what follows it. With the monolith also that the end was cut off.
///
/// # Errors
/// [`JournalError`].
pub async fn broken(
    service: &Client,
    monolith: Option<&Client>,
    verdict: &LastVerdict,
) -> Result<Option<Broken>, JournalError> {
    match ledger::verify_from(service, monolith, verdict.entry).await {
        Ok(_) => Ok(None),
        Err(VerifyError::Broken(broken)) => Ok(Some(broken)),
        Err(VerifyError::Journal(error)) => Err(error),
    }
}

/// Why there is no proof that both sides are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// Nothing was ever compared.
    NoVerdict,
    /// No verdict covers every row of every table.
    NoFullVerdict,
    /// The last full verdict found differences.
    Differs,
    /// The last full verdict left something out.
    Incomplete,
    /// The ledger is not as it was written.
    Broken(Broken),
    /// A later verdict about a part found differences, or an earlier one did and the last full one is incomplete.
    DiffersSince,
    /// A strict verdict found differences, and only one by meaning found none since, which does not see them.
    DiffersStrictly,
    /// Something happened since that voids the last full verdict.
    Void(Void),
    /// The comparison of the last full verdict began too long ago.
    Old {
        /// How long ago.
        begun_ago: Duration,
        /// The plan's `evidence_max_age`.
        max_age: Duration,
    },
}

/// A clause that says what is missing.
impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVerdict => f.write_str("nothing was compared yet"),
            Self::NoFullVerdict => f.write_str("no verdict covers every row of every table"),
            Self::Differs => f.write_str("the last full verdict found differences"),
            Self::Incomplete => f.write_str("the last full verdict left something out"),
            Self::Broken(broken) => write!(f, "{broken}"),
            Self::DiffersSince => {
                f.write_str("another verdict found differences, which no full one has taken back")
            }
            Self::DiffersStrictly => f.write_str(
                "a verdict with --strict found rows that differ, which no full one with --strict has taken back",
            ),
            Self::Void(void) => write!(f, "the last full verdict is void: {void}"),
            Self::Old { begun_ago, max_age } => write!(
                f,
                "the last full comparison began {} ago, and evidence_max_age is {}",
                period(*begun_ago),
                period(*max_age)
            ),
        }
    }
}

/// Down to minutes: `3 d 4 h`, `1 d`, `4 h 12 min`.
fn period(period: Duration) -> String {
    let minutes = period.as_secs() / 60;
    let (days, hours, minutes) = (minutes / 1440, minutes / 60 % 24, minutes % 60);
    let parts = [(days, "d"), (hours, "h"), (minutes, "min")];
    let some = parts.iter().filter(|(number, _)| *number > 0);
    let shown: Vec<String> = some.map(|(number, unit)| format!("{number} {unit}")).collect();
    if shown.is_empty() { "0 min".to_owned() } else { shown.join(" ") }
}

impl Evidence {
    /// Adds what the monolith remembers of the ledger, where nothing else is wrong with it.
    pub fn hold_against(&mut self, remembered: &Remembered) {
        let entry = self.last_full.as_ref().map_or(i64::MAX, |full| full.entry);
        self.broken = self.broken.take().or_else(|| remembered.broken(entry));
    }

    /// How many orphans are known, where all differences that are known are orphans: rows that both sides hold alike, and that
    /// refer to nothing on the authority too. `None` where a row differs, or nothing does.
    #[must_use]
    pub fn only_orphans(&self) -> Option<u64> {
        let full = self.last_full.as_ref().filter(|verdict| verdict.outcome == Outcome::Differs);
        let others = |verdict: &LastVerdict| {
            verdict.counts.iter().any(|(kind, count)| *kind != FindingKind::Orphan && *count > 0)
        };
        if self.rows_differ_since
            || self.differs_strictly
            || full.is_some_and(others)
            || !self.differs_since && full.is_none()
        {
            return None;
        }
        let told = full.or(self.last.as_ref())?;
        Some(told.counts.get(&FindingKind::Orphan).copied().unwrap_or(0))
    }

    /// What is known to differ may be seen by a strict comparison alone, so the next one has to be strict too.
    #[must_use]
    pub fn asks_for_strict(&self) -> bool {
        let mut found = self.last.iter().chain(&self.last_full);
        self.differs_strictly || found.any(|verdict| verdict.strict && verdict.outcome == Outcome::Differs)
    }

    /// Why this is no proof that both sides are equal; empty when it is one. `now` is what the slice rests on at
    /// present.
    #[must_use]
    pub fn lacks(&self, now: Option<&Ground>, max_age: Duration) -> Vec<Lack> {
        if self.last.is_none() {
            return vec![Lack::NoVerdict];
        }
        let said = |full: &LastVerdict| full.strict && full.outcome == Outcome::Differs;
        let strictly = self.differs_strictly && !self.last_full.as_ref().is_some_and(said);
        let strictly = strictly.then_some(Lack::DiffersStrictly);
        let since = self.differs_since.then_some(Lack::DiffersSince).or(strictly);
        let Some(full) = &self.last_full else {
            return since.into_iter().chain([Lack::NoFullVerdict]).collect();
        };
        let mut lacks = Vec::new();
        match full.outcome {
            Outcome::Clean => {}
            Outcome::Differs => lacks.push(Lack::Differs),
            Outcome::Incomplete => lacks.push(Lack::Incomplete),
        }
        lacks.extend(self.broken.clone().map(Lack::Broken));
        lacks.extend(since);
        lacks.extend(voids(&full.ground, now).into_iter().map(Lack::Void));
        if full.begun_ago > max_age {
            lacks.push(Lack::Old { begun_ago: full.begun_ago, max_age });
        }
        lacks
    }
}

#[cfg(test)]
mod tests;
