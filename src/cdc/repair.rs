//! Repairs: rows that somebody found wrong on the service are read from the monolith again, between two transactions of
//! the stream. A repaired key gets a piece of its own, as a refetched one does, so that the landing rule decides which of
//! the later events it already holds.
//!
//! On the way back it is the service's rows that are read and the monolith's that are put right. There, rows that
//! contradict the stream are never skipped: with `--retry` they become requests like any other, and the stream goes on
//! once they are done.

mod doubt;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio_postgres::Client;

use super::apply::replace::{Attempt, Replaced, SourceRow};
use super::engine::Engine;
use super::error::MirrorError;
use super::refetch::{Picture, picture};
use super::start::open;
use crate::failpoint;
use crate::journal::copies::{self, Extent, PieceRow, TableState};
use crate::journal::process::AT_REPAIRS;
use crate::journal::repairs::{self, Pending};
use crate::journal::{self};
use crate::lsn::Lsn;

/// Rows repaired in one transaction: the stream stands still meanwhile, and a refused row costs the group a second
/// attempt.
const GROUP_ROWS: i64 = 100;
/// Rows that were refused in their groups and are tried again together: what holds a unique value that one of them is to
/// get may be another one of them. Some 100 MB of rows of 10 kB.
pub(crate) const REFUSED_ROWS: usize = 10_000;
/// Attempts at all rows of a table that were refused in their groups, each without those that the one before refused for good. After
/// them each row that is left is set on its own: 100 rows that hold unique values from each other in a chain would take 100.
const ATTEMPTS_AT_ALL: usize = 8;
/// Rows that are set on their own in one transaction.
const SINGLE_ROWS: i64 = 1_000;
/// How long an attempt looks for rows that are refused, or sets rows on their own: the stream stands still meanwhile.
const ATTEMPT_TIME: Duration = Duration::from_secs(2);
/// For so long after an attempt the mirror says that it is at work on repairs.
const AT_WORK_FOR: Duration = Duration::from_secs(3);
/// Pieces that are sent before the first answer is awaited.
const PIECES_AT_ONCE: usize = 30;
/// Pause between snapshots that don't see everything that was delivered, or locks that were not to be had.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Whether repairs wait, and when one was last tried.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    pub(crate) wanted: bool,
    /// Nothing of the stream is read before they are done.
    pub(crate) first: bool,
    tried: Option<Instant>,
    /// The stream has its turn until then, or until it has brought all that there is.
    rests_until: Option<Instant>,
    /// When rows of which table were last written.
    worked: Option<(Instant, String)>,
    /// Requests that were refused in their group, and not answered yet.
    refused: BTreeSet<i64>,
    /// Attempts at all of a table's, by its label.
    attempts: BTreeMap<String, usize>,
    /// Tables of which a row was refused for good in this run.
    pub(crate) in_vain: BTreeSet<String>,
}

impl Repairs {
    /// Those that wait at the start of a way back: the next event may be one that contradicts what they put right.
    pub(crate) async fn before_reading(target: &Client, slice: &str) -> Result<Self, MirrorError> {
        let waiting = repairs::are_pending(target, slice).await?;
        Ok(Self { wanted: waiting, first: waiting, ..Self::default() })
    }

    /// The stream has its turn: it gets as long as the rows before took.
    pub(crate) fn is_resting(&self) -> bool {
        !self.first && self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// The stream has brought all that there is.
    pub(crate) fn rested(&mut self) {
        self.rests_until = None;
    }

    /// How rows are tried: a group as well as it can be, those that were refused in their groups together, and after some attempts each on
    /// its own.
    fn attempt(&self, label: &str, again: bool) -> Attempt {
        let attempts = self.attempts.get(label).copied().unwrap_or_default();
        let last = again && attempts >= ATTEMPTS_AT_ALL;
        Attempt { finds: !last, singly: last || !again, until: Instant::now() + ATTEMPT_TIME }
    }

    /// What is refused in a group, and what there was no time for, is tried with all others; what is refused there is answered.
    fn note(&mut self, label: &str, again: bool, tried: &mut Tried) {
        let failed = std::mem::take(&mut tried.failed);
        if again {
            tried.refused.extend(failed);
            *self.attempts.entry(label.to_owned()).or_default() += 1;
        } else {
            self.refused.extend(failed.into_iter().map(|(id, _)| id).chain(tried.waiting.iter().copied()));
        }
    }

    /// Rows of which table are being repaired, in words, while that is so.
    pub(crate) fn at_work(&self) -> Option<String> {
        let (at, label) = self.worked.as_ref()?;
        (at.elapsed() < AT_WORK_FOR).then(|| format!("{AT_REPAIRS} {label}"))
    }
}

/// What came of a group's rows.
#[derive(Debug)]
struct Tried {
    /// Rows that are as the authority has them.
    repaired: Vec<SourceRow>,
    /// Requests for them.
    done: Vec<i64>,
    /// Requests that are answered with a reason.
    refused: Vec<(i64, String)>,
    /// Requests whose rows the target refused.
    failed: Vec<(i64, String)>,
    /// Requests that are for another attempt.
    waiting: Vec<i64>,
}

impl Tried {
    /// `refused` are places of requests, `replaced` speaks of places of rows, each of which has those of its requests.
    fn sort(
        group: &Group,
        refused: Vec<(usize, String)>,
        (places, rows): (Vec<Vec<usize>>, Vec<SourceRow>),
        replaced: Replaced,
    ) -> Self {
        let id = |place: usize| group.pending.get(place).map(|pending| pending.id);
        let refused = refused.into_iter().filter_map(|(place, why)| Some((id(place)?, why))).collect();
        let mut tried =
            Self { repaired: Vec::new(), done: Vec::new(), refused, failed: Vec::new(), waiting: Vec::new() };
        let failed: BTreeMap<usize, String> = replaced.refused.into_iter().collect();
        let left: BTreeSet<usize> = replaced.left.into_iter().collect();
        for (place, (asked, row)) in places.into_iter().zip(rows).enumerate() {
            let ids = asked.into_iter().filter_map(id);
            if let Some(why) = failed.get(&place) {
                tried.failed.extend(ids.map(|id| (id, why.clone())));
            } else if left.contains(&place) {
                tried.waiting.extend(ids);
            } else {
                tried.done.extend(ids);
                tried.repaired.push(row);
            }
        }
        tried
    }
}

/// What a group of requests comes to before anything is read.
struct Group {
    /// Number of the table in the slice.
    table: usize,
    /// Those whose rows are to be read.
    pending: Vec<Pending>,
}

impl Engine {
    /// Repairs the next group of rows when some are asked for and a snapshot may be trusted. `true` when it did
    /// something. Between transactions with an idle batch only.
    pub(crate) async fn repair_next(&mut self) -> Result<bool, MirrorError> {
        self.repairs.wanted |= self.vitals.take_repairs();
        if !self.repairs.wanted || self.repairs.tried.is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
            return Ok(false);
        }
        if !self.copying.barrier_passed(&self.source, &self.config.options.hooks).await? {
            return Ok(false);
        }
        if self.repairs.is_resting() {
            return Ok(false);
        }
        let begun = Instant::now();
        let waiting = self.next_requests().await?;
        let Some(label) = waiting.first().map(|pending| pending.source_table.clone()) else {
            let in_vain = std::mem::take(&mut self.repairs.in_vain);
            self.repairs = Repairs { in_vain, ..Repairs::default() };
            return Ok(false);
        };
        let pending: Vec<Pending> =
            waiting.into_iter().filter(|pending| pending.source_table == label).collect();
        let group = match self.group(&label, pending) {
            Ok(group) => group,
            Err(refused) => return self.refuse(&label, refused).await.map(|()| true),
        };
        let Some(table) = self.tables.get(group.table) else { return Ok(false) };
        let keys: Vec<&[String]> = group.pending.iter().map(|pending| pending.key.as_slice()).collect();
        let hooks = &self.config.options.hooks;
        let sessions = (&self.reader, &self.source);
        let Some(picture) =
            picture(sessions, &table.mapping, &keys, |snapshot| self.copying.trusts(snapshot, hooks)).await?
        else {
            self.repairs.tried = Some(Instant::now());
            return Ok(false);
        };
        self.repairs.worked = Some((Instant::now(), label));
        if let Some(words) = self.repairs.at_work() {
            // The stream stands still meanwhile, and nothing else tells whoever waits for the repairs.
            self.vitals.set_detail(&words);
        }
        hooks.pass("repair-read").await;
        self.write_repairs(group, picture).await?;
        self.repairs.rests_until = Some(Instant::now() + begun.elapsed());
        Ok(true)
    }

    /// Those that were not tried yet; when there are none, those that were refused in their groups, all together.
    async fn next_requests(&self) -> Result<Vec<Pending>, MirrorError> {
        let refused: Vec<i64> = self.repairs.refused.iter().copied().collect();
        let (session, slice) = (self.applier.session(), self.slice());
        let fresh = repairs::pending(session, slice, (&refused, false), GROUP_ROWS).await?;
        if fresh.is_empty() && !refused.is_empty() {
            let singly = self.repairs.attempts.values().any(|attempts| *attempts >= ATTEMPTS_AT_ALL);
            let most = if singly { SINGLE_ROWS } else { i64::try_from(REFUSED_ROWS).unwrap_or(i64::MAX) };
            return Ok(repairs::pending(session, slice, (&refused, true), most).await?);
        }
        Ok(fresh)
    }

    /// Rows of the monolith contradict the way back: asks for them to be read from the service again, as the operator has
    /// allowed with `--retry`. The open transaction is lost with this run.
    pub(crate) async fn mend(&self, label: &str, keys: &[Vec<String>]) -> Result<MirrorError, MirrorError> {
        /// Requests that no comparison made.
        const NO_RUN: &str = "00000000-0000-0000-0000-000000000000";
        let target = open(&self.config.apply, self.slice()).await?;
        let rows: Vec<(Vec<String>, &str)> = keys.iter().map(|key| (key.clone(), "contradicts")).collect();
        repairs::request(&target, (NO_RUN, self.slice()), label, &rows, "mirror --retry").await?;
        failpoint::hit("reverse-mended");
        tracing::warn!(
            slice = self.slice(),
            table = label,
            rows = rows.len(),
            "rows of the monolith contradict the service's writes; they are read from the service again"
        );
        Ok(MirrorError::Restart {
            why: "rows of the monolith that contradict the service's writes are read again",
        })
    }

    /// The requests of one table that can be tried; else each with why not.
    fn group(&self, label: &str, pending: Vec<Pending>) -> Result<Group, Vec<(i64, String)>> {
        let number = self.tables.iter().position(|table| table.label == label);
        let table = number.and_then(|number| self.tables.get(number));
        let all = |why: &str| pending.iter().map(|pending| (pending.id, why.to_owned())).collect();
        let (Some(number), Some(table)) = (number, table) else {
            return Err(all("the slice has no such table"));
        };
        match table.state {
            TableState::Live => {}
            TableState::Pending | TableState::Copying => {
                return Err(all("the table is being copied, which brings all of its rows"));
            }
            TableState::Diverged => {
                return Err(all("the table diverged and stands still until it is copied again"));
            }
        }
        let width = table.mapping.key.len();
        let bad: Vec<(i64, String)> = pending
            .iter()
            .filter(|pending| pending.key.len() != width)
            .map(|pending| {
                (pending.id, format!("its key has {} values, the table's has {width}", pending.key.len()))
            })
            .collect();
        if bad.is_empty() { Ok(Group { table: number, pending }) } else { Err(bad) }
    }

    /// Nothing is written but the refusals; they take the claim all the same, so that only the mirror that may write
    /// answers.
    async fn refuse(&mut self, label: &str, refused: Vec<(i64, String)>) -> Result<(), MirrorError> {
        let slice = self.slice().to_owned();
        let session = self.applier.open_session().await?;
        repairs::set_refused(session, &refused).await?;
        let entry = serde_json::json!({ "table": label, "repaired": 0, "refused": refused.len() });
        journal::record(session, Some(&slice), "repair", &entry).await?;
        self.commit_repairs(self.consumed.end).await
    }

    async fn write_repairs(&mut self, group: Group, picture: Picture) -> Result<(), MirrorError> {
        let Some(table) = self.tables.get_mut(group.table) else { return Ok(()) };
        let label = table.label.clone();
        self.applier.hold(table).await?;
        if let Some(why) = doubt::unlike(&self.config, (&self.applier, table), &picture).await? {
            let refused = group.pending.iter().map(|pending| (pending.id, why.clone())).collect();
            self.repairs.in_vain.insert(label.clone());
            return self.refuse(&label, refused).await;
        }
        let Picture { snapshot, lsn, rows, mut refused, .. } = picture;
        let (mut places, mut rows): (Vec<Vec<usize>>, Vec<SourceRow>) = rows.into_iter().unzip();
        let others = doubt::others((&self.reader, &self.source), (&mut self.applier, table), &rows).await?;
        for (place, why) in others.into_iter().rev() {
            if place >= rows.len() {
                continue;
            }
            rows.remove(place);
            refused.extend(places.remove(place).into_iter().map(|asked| (asked, why.clone())));
        }
        // A row that was refused is not answered before all that were refused were tried together.
        let again = group.pending.iter().all(|pending| self.repairs.refused.contains(&pending.id));
        let attempt = self.repairs.attempt(&label, again);
        let replaced = self.applier.replace(table, &rows, attempt).await?;
        let mut tried = Tried::sort(&group, refused, (places, rows), replaced);
        self.repairs.note(&label, again, &mut tried);
        self.land(&group, &label, tried, (&snapshot, lsn)).await
    }

    /// Commits rows that were repaired, with a piece for each of their keys, and the answers to what was asked.
    async fn land(
        &mut self,
        group: &Group,
        label: &str,
        tried: Tried,
        (snapshot, lsn): (&str, Lsn),
    ) -> Result<(), MirrorError> {
        let slice = self.config.mapping.slice.clone();
        let Tried { repaired, done, refused, .. } = tried;
        if !refused.is_empty() {
            self.repairs.in_vain.insert(label.to_owned());
        }
        let session = self.applier.open_session().await?;
        let piece = |row: &SourceRow| PieceRow {
            source_table: label.to_owned(),
            extent: Extent::Key(row.key.to_strings()),
            snapshot: snapshot.to_owned(),
            lsn,
        };
        let pieces: Vec<PieceRow> = repaired.iter().map(piece).collect();
        for some in pieces.chunks(PIECES_AT_ONCE) {
            try_join_all(some.iter().map(|piece| copies::replace_key_piece(session, &slice, piece))).await?;
        }
        repairs::set_done(session, &done, lsn).await?;
        repairs::set_refused(session, &refused).await?;
        if !(done.is_empty() && refused.is_empty()) {
            let entry = serde_json::json!({
                "table": label, "repaired": done.len(), "refused": refused.len(), "lsn": lsn.to_string(),
                "requests": done,
            });
            journal::record(session, Some(&slice), "repair", &entry).await?;
            let (repaired, refused) = (done.len(), refused.len());
            tracing::info!(slice, table = label, repaired, refused, "rows were repaired");
        }
        self.applier.touched().add(label, repaired.iter().map(|row| &row.key));
        self.commit_repairs(lsn).await?;
        if let Some(table) = self.tables.get_mut(group.table) {
            for piece in &pieces {
                table.add(piece)?;
            }
        }
        // The stream passes the new pieces with the next heartbeat, and they can be forgotten.
        self.vitals.nudge();
        Ok(())
    }

    /// Commits what was repaired with rows read at or before `lsn`. The keys are noted past it, and past everything
    /// applied: a comparison that ended before this is then always older than they are.
    async fn commit_repairs(&mut self, lsn: Lsn) -> Result<(), MirrorError> {
        failpoint::hit("repair-before-commit");
        let at = Lsn(lsn.max(self.consumed.end).0 + 1);
        self.applier.commit_touching(self.consumed, at).await?;
        failpoint::hit("repair-committed");
        self.persisted_at = Instant::now();
        self.assembler.confirm(self.consumed.end);
        Ok(())
    }
}
