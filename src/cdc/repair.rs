//! Repairs: rows that somebody found wrong on the service are read from the monolith again, between two transactions of
//! the stream. A repaired key gets a piece of its own, as a refetched one does, so that the landing rule decides which of
//! the later events it already holds.
//!
//! On the way back it is the service's rows that are read and the monolith's that are put right. There, rows that
//! contradict the stream are never skipped: with `--retry` they become requests like any other, and the stream goes on
//! once they are done.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::apply::replace::SourceRow;
use super::engine::Engine;
use super::error::MirrorError;
use super::refetch::{Picture, picture};
use super::start::open;
use crate::failpoint;
use crate::journal::copies::{self, Extent, PieceRow, TableState};
use crate::journal::repairs::{self, Pending};
use crate::journal::{self};
use crate::lsn::Lsn;

/// Rows repaired in one transaction: the stream stands still meanwhile, and a refused row costs the group a second
/// attempt.
const GROUP_ROWS: i64 = 100;
/// Rows that were refused in their groups and are tried again together: what holds a unique value that one of them is to
/// get may be another one of them. Some 100 MB of rows of 10 kB.
const REFUSED_ROWS: i64 = 10_000;
/// Passes over a group, each without the rows that the one before refused. What holds a value may be in another group, so it is not
/// tried for long: 100 rows that hold unique values from each other in a chain would take 100 passes.
const PASSES_OF_A_GROUP: usize = 1;
/// The same for all rows that were refused in their groups.
const PASSES_OF_ALL: usize = 8;
/// Pause between snapshots that don't see everything that was delivered, or locks that were not to be had.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Whether repairs wait, and when one was last tried.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    pub(crate) wanted: bool,
    /// Nothing of the stream is read before they are done.
    pub(crate) first: bool,
    tried: Option<Instant>,
    /// Requests that were refused in their group, and not answered yet.
    refused: BTreeSet<i64>,
    /// Tables of which a row was refused for good in this run.
    pub(crate) in_vain: BTreeSet<String>,
}

impl Repairs {
    /// Those that wait at the start of a way back: the next event may be one that contradicts what they put right.
    pub(crate) async fn before_reading(target: &Client, slice: &str) -> Result<Self, MirrorError> {
        let waiting = repairs::are_pending(target, slice).await?;
        Ok(Self { wanted: waiting, first: waiting, ..Self::default() })
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
        hooks.pass("repair-read").await;
        self.write_repairs(group, picture).await?;
        Ok(true)
    }

    /// Those that were not tried yet; when there are none, those that were refused in their groups, all together.
    async fn next_requests(&self) -> Result<Vec<Pending>, MirrorError> {
        let refused: Vec<i64> = self.repairs.refused.iter().copied().collect();
        let (session, slice) = (self.applier.session(), self.slice());
        let fresh = repairs::pending(session, slice, (&refused, false), GROUP_ROWS).await?;
        if fresh.is_empty() && !refused.is_empty() {
            return Ok(repairs::pending(session, slice, (&refused, true), REFUSED_ROWS).await?);
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
        let slice = self.config.mapping.slice.clone();
        let Picture { snapshot, lsn, rows, refused } = picture;
        let mut refused: Vec<(usize, String)> = refused;
        let (places, rows): (Vec<Vec<usize>>, Vec<SourceRow>) = rows.into_iter().unzip();
        // A row that was refused is not answered before all that were refused were tried together.
        let again = group.pending.iter().all(|pending| self.repairs.refused.contains(&pending.id));
        let passes = if again { PASSES_OF_ALL } else { PASSES_OF_A_GROUP };
        let failed = self.applier.replace(table, &rows, passes).await?;
        let kept = |place: usize| failed.iter().all(|(other, _)| *other != place);
        let repaired: Vec<(usize, &SourceRow)> =
            rows.iter().enumerate().filter(|(place, _)| kept(*place)).collect();
        let asked = |place: usize| places.get(place).into_iter().flatten().copied();
        let id = |place: usize| group.pending.get(place).map(|pending| pending.id);
        let failed = failed.iter().flat_map(|(place, why)| asked(*place).map(|asked| (asked, why.clone())));
        if again {
            refused.extend(failed);
        } else {
            let failed: Vec<i64> = failed.filter_map(|(place, _)| id(place)).collect();
            self.repairs.refused.extend(failed);
        }
        let ids: Vec<i64> = repaired.iter().flat_map(|(place, _)| asked(*place)).filter_map(id).collect();
        let refusals: Vec<(i64, String)> =
            refused.into_iter().filter_map(|(place, why)| Some((id(place)?, why))).collect();
        if !refusals.is_empty() {
            self.repairs.in_vain.insert(table.label.clone());
        }
        let session = self.applier.open_session().await?;
        let mut pieces = Vec::with_capacity(repaired.len());
        for (_, row) in &repaired {
            let piece = PieceRow {
                source_table: table.label.clone(),
                extent: Extent::Key(row.key.to_strings()),
                snapshot: snapshot.clone(),
                lsn,
            };
            copies::replace_key_piece(session, &slice, &piece).await?;
            pieces.push(piece);
        }
        repairs::set_done(session, &ids, lsn).await?;
        repairs::set_refused(session, &refusals).await?;
        let entry = serde_json::json!({
            "table": table.label, "repaired": ids.len(), "refused": refusals.len(), "lsn": lsn.to_string(),
            "requests": ids,
        });
        journal::record(session, Some(&slice), "repair", &entry).await?;
        self.applier.touched().add(&table.label, repaired.iter().map(|(_, row)| &row.key));
        tracing::info!(
            slice,
            table = table.label,
            repaired = ids.len(),
            refused = refusals.len(),
            "rows were repaired"
        );
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
