//! Making the copy right where a run has proven that it is wrong.
//!
//! Nothing is written beside the mirror: the rows are asked for in the journal, and the running mirror reads them from
//! the authority again and lands them as it lands every row. Then each is looked at once more.

pub mod emptied;
pub mod owed;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use self::emptied::{Accepted, Emptied};
use self::record::{Entry, Landed};
use super::finding::{FindingKind, RawKey};
use super::form::{Side, TableForm};
use super::hands::{self, Hands, HandsError};
use super::prove::{Proof, ProveError};
use super::run::{Done, RunError, SliceJob};
use super::sides::APPLICATION;
use super::stop::{self, Stopped};
use super::verdict::{RefusedRow, Repaired};
use crate::cdc::mirror::chain_of;
use crate::cdc::repair::REFUSED_ROWS;
use crate::failpoint;
use crate::journal::JournalError;
use crate::journal::ledger::{self, Author};
use crate::journal::process::{self, ProcessRow};
use crate::journal::repairs::{self, RepairOutcome, RepairState};
use crate::journal::streams::{Direction, StreamOf};
use crate::mapping::TableMapping;
use crate::name::TableName;
use crate::postgres::connect::Session;

/// Rows that are asked for before the mirror's answers are awaited: as many as it tries together, because each of them may hold a
/// value that another one is to get.
const ROWS_AT_ONCE: usize = REFUSED_ROWS;
/// Rows that still differ after their repair of which the columns are looked at: the reason is mostly one for all.
const LOOKED_INTO: usize = 20;
/// Rows of a table that are listed as refused: the reason is mostly one for all.
const REFUSED_LISTED: usize = 100;
/// A mirror that answers no request and is not at work on any for this long does not take any.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at the requests.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A repair came to no end.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The databases, or our tables.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The authority's tables are empty, and nobody has said that this is right.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoRows(Vec<Emptied>),
    /// The authority could not be asked whether it holds any row.
    #[error(
        "slice {slice} was not repaired, because its authority could not be asked whether it holds any row: {why}"
    )]
    NotAsked {
        /// Slice.
        slice: String,
        /// Why.
        why: String,
    },
    /// The mirror took no request.
    #[error(
        "{} of slice {slice} runs, and nothing was repaired in {} s; {} for a mirror",
        if *.alive { "the mirror" } else { "no mirror" },
        PATIENCE.as_secs(),
        if *.waiting == 1 { "1 request waits".to_owned() } else { format!("{waiting} requests wait") },
    )]
    NotTaken {
        /// Slice.
        slice: String,
        /// Requests that wait.
        waiting: usize,
        /// A mirror gives signs of life, so that it waits for something.
        alive: bool,
    },
    /// What was repaired could not be looked at again.
    #[error("slice {slice} could not be looked at again after the repair: {why}")]
    NotVerified {
        /// Slice.
        slice: String,
        /// Why.
        why: String,
    },
    /// The operator stopped it.
    #[error("the repair of slice {slice} was stopped; what was asked for is still done by the mirror")]
    Stopped {
        /// Slice.
        slice: String,
    },
}

/// The rows of one table that a repair is about.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The table.
    pub mapping: &'a TableMapping,
    /// Keys, with what was found.
    pub rows: Vec<(&'a RawKey, FindingKind)>,
    /// Findings that a repair can't help.
    pub left_out: u64,
    /// Those among them that are rows of the authority itself.
    pub misplaced: u64,
    /// Generated columns among those that are listed as different: a repair does not write them.
    pub generated: BTreeSet<&'a str>,
}

/// What a repair would ask for, in the plan's order of tables.
#[must_use]
pub fn wanted<'a>(job: &'a SliceJob, done: &'a Done) -> Vec<Wanted<'a>> {
    // Of two sides the service alone can hold a row that the filter forbids. Where it has the authority, such a row is the
    // truth, and only the application can say what it should be.
    let own = done.sides.authority == Side::Target;
    let of = |mapping: &'a TableMapping| {
        let found = done.keys.iter().filter(|(table, _, _)| *table == mapping.source);
        let rows: Vec<_> = found
            .filter(|(_, key, kind)| *kind != FindingKind::Orphan && !key.0.is_empty())
            .filter(|(_, _, kind)| !own || *kind != FindingKind::Misplaced)
            .map(|(_, key, kind)| (key, *kind))
            .collect();
        let verdict = done.verdict.tables.iter().find(|verdict| verdict.source_table == mapping.source);
        let counted: u64 = verdict.map_or(0, |verdict| verdict.findings.values().sum());
        let asked = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let listed = done.verdict.listed.iter().filter(|finding| finding.source_table == mapping.source);
        let differ = |name: &str| {
            listed.clone().flat_map(|finding| &finding.columns).any(|column| column.column == name)
        };
        let generated = mapping.generated.iter().map(|column| column.target.as_str());
        let misplaced = verdict.and_then(|verdict| verdict.findings.get(&FindingKind::Misplaced)).copied();
        Wanted {
            mapping,
            rows,
            misplaced: misplaced.filter(|_| own).unwrap_or(0),
            left_out: counted.saturating_sub(asked),
            generated: generated.filter(|name| differ(name)).collect(),
        }
    };
    job.mapping
        .tables
        .iter()
        .map(of)
        .filter(|wanted| !wanted.rows.is_empty() || wanted.left_out > 0)
        .collect()
}

/// Has everything repaired that the run found, looks at it again, and records it in the ledger. Adds what became of each
/// table to `repaired`. What [`emptied::emptied`] found is accepted, or nobody calls this.
///
/// # Errors
/// [`RepairError`]; what was repaired until then is recorded, and said.
pub async fn run(
    job: &SliceJob,
    done: &Done,
    (author, accepted): (&Author, Option<Accepted<'_>>),
    stop: &CancellationToken,
    repaired: &mut Vec<Repaired>,
) -> Result<(), RepairError> {
    let service = job.service_apply.connect(APPLICATION).await.map_err(RunError::Connect)?;
    // Requests wait where the stream writes, so that a repair and its rows are one transaction.
    let monolith = match done.sides.direction() {
        Direction::Forward => None,
        Direction::Reverse => Some(job.monolith_apply.connect(APPLICATION).await.map_err(RunError::Connect)?),
    };
    let mut repair = Repair { job, done, author, accepted, stop, service, monolith, looking: None };
    repair.tidy().await;
    for wanted in wanted(job, done) {
        let mut one = Repaired {
            slice: job.mapping.slice.clone(),
            table: wanted.mapping.source.to_string(),
            left_out: wanted.left_out,
            misplaced: wanted.misplaced,
            ..Repaired::default()
        };
        let ended = repair.table(&wanted, &mut one).await;
        repaired.push(one);
        ended?;
    }
    let monolith = job.monolith_apply.connect(APPLICATION).await.ok();
    ledger::anchor(&repair.service, monolith.as_deref(), &job.mapping.service).await;
    Ok(())
}

/// One repair of one slice.
struct Repair<'a> {
    job: &'a SliceJob,
    done: &'a Done,
    author: &'a Author,
    accepted: Option<Accepted<'a>>,
    stop: &'a CancellationToken,
    service: Session,
    /// Where the mirror looks for requests when it is the monolith that it writes.
    monolith: Option<Session>,
    /// What rows are looked at again with; opened at the first of them.
    looking: Option<Looking>,
}

/// Sessions, and the tables in forms that both servers hash alike.
struct Looking {
    hands: Hands,
    forms: Vec<TableForm>,
    /// Why a table can't be compared, by the monolith's name.
    hopeless: BTreeMap<TableName, String>,
}

impl Looking {
    fn form(&self, mapping: &TableMapping) -> Option<&TableForm> {
        self.forms.iter().find(|form| form.mapping.source == mapping.source)
    }
}

impl Repair<'_> {
    /// Has one table's rows repaired, some at a time.
    async fn table(&mut self, wanted: &Wanted<'_>, one: &mut Repaired) -> Result<(), RepairError> {
        let stop = self.stop;
        for rows in wanted.rows.chunks(ROWS_AT_ONCE) {
            let slice = one.slice.clone();
            let stopped = |Stopped| RepairError::Stopped { slice };
            if let Err(gone) = stop::look(stop) {
                return Err(stopped(gone));
            }
            let work = Box::pin(self.rows(wanted.mapping, rows, one));
            stop::work(stop, work).await.map_err(stopped)??;
        }
        Ok(())
    }

    /// Has some rows of a table repaired, records them and looks at them again.
    async fn rows(
        &mut self,
        mapping: &TableMapping,
        rows: &[(&RawKey, FindingKind)],
        one: &mut Repaired,
    ) -> Result<(), RepairError> {
        let after = record::last(&self.service).await.map_err(RunError::Journal)?;
        let (landed, waiting) = self.ask(mapping, rows, one).await?;
        failpoint::hit("repairs-answered");
        // First the record: rows that can't be looked at again have been written all the same.
        self.record(mapping, &landed, after).await?;
        if waiting > 0 {
            let alive = self.mirror().await.map_err(RunError::Journal)?.is_some_and(|seen| seen.is_alive());
            return Err(RepairError::NotTaken { slice: self.job.mapping.slice.clone(), waiting, alive });
        }
        let keys: Vec<RawKey> = landed.into_iter().map(|row| row.key).collect();
        self.verify(mapping, &keys, one).await
    }

    /// Where requests wait.
    fn requests(&self) -> &Session {
        self.monolith.as_ref().unwrap_or(&self.service)
    }

    /// Who adds requests takes old ones away, twice as many, so that their number follows what a week asks for: what was done
    /// for nobody is recorded first. That a database which an earlier version provisioned does not allow it is no reason not to
    /// repair.
    async fn tidy(&self) {
        let slice = &self.job.mapping.slice;
        let asked: usize = wanted(self.job, self.done).iter().map(|wanted| wanted.rows.len()).sum();
        let tables: Vec<String> =
            self.job.mapping.tables.iter().map(|table| table.source.to_string()).collect();
        if let Err(error) = owed::settle(self.job, &self.service, &[self.requests()], self.author).await {
            tracing::warn!(
                slice,
                error = chain_of(&error),
                "earlier repairs could not be recorded, and stay"
            );
            return;
        }
        let pruned = repairs::prune(self.requests(), slice, &tables, asked.saturating_mul(2)).await;
        if let Err(error) = pruned {
            tracing::warn!(
                slice,
                error = chain_of(&error),
                "answered repairs stay; provision grants what is missing"
            );
        }
    }

    /// Asks the mirror for some rows and waits for its answers. Returns those that it landed, and how many it did not
    /// take.
    async fn ask(
        &self,
        mapping: &TableMapping,
        rows: &[(&RawKey, FindingKind)],
        one: &mut Repaired,
    ) -> Result<(Vec<Landed>, usize), RepairError> {
        let slice = &self.job.mapping.slice;
        let asked: Vec<(Vec<String>, &str)> =
            rows.iter().map(|(key, kind)| (key.0.clone(), kind.as_str())).collect();
        let names = (self.done.verdict.run.as_str(), slice.as_str());
        let by = format!("{}@{}", self.author.operator, self.author.host);
        let requests = self.requests();
        let ids = repairs::request(requests, names, &one.table, &asked, &by).await;
        let ids = ids.map_err(RunError::Journal)?;
        let outcomes = self.answers(&ids).await?;
        one.asked += u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let (mut landed, mut waiting) = (Vec::new(), 0);
        let asked: BTreeMap<i64, &RawKey> = ids.into_iter().zip(rows.iter().map(|(key, _)| *key)).collect();
        for outcome in &outcomes {
            let Some(key) = asked.get(&outcome.id) else { continue };
            match outcome.state {
                RepairState::Done => {
                    one.done += 1;
                    landed.push(Landed { request: outcome.id, key: (*key).clone() });
                }
                RepairState::Refused => {
                    let why = outcome.detail.clone().unwrap_or_else(|| outcome.state.as_str().to_owned());
                    if one.refused_rows.len() < REFUSED_LISTED {
                        let names = mapping.key_columns().map(|column| column.target.clone());
                        let key = names.zip(self.done.redactor.show_key(mapping, key)).collect();
                        one.refused_rows.push(RefusedRow { key, reason: why.clone() });
                    }
                    *one.refused.entry(why).or_default() += 1;
                }
                RepairState::Requested => waiting += 1,
            }
        }
        Ok((landed, waiting))
    }

    /// How requests stand once the mirror has answered all of them, or has not been at work on any for too long: those that were
    /// done until then are recorded all the same. Thousands of rows that are tried together are answered together, so that a
    /// mirror at work may answer none for long.
    async fn answers(&self, ids: &[i64]) -> Result<Vec<RepairOutcome>, RunError> {
        let (mut left, mut moved) = (usize::MAX, Instant::now());
        loop {
            let outcomes = repairs::outcomes(self.requests(), ids).await?;
            let waiting = outcomes.iter().filter(|outcome| outcome.state == RepairState::Requested).count();
            if waiting < left || self.mirror().await?.is_some_and(|seen| seen.is_repairing()) {
                (left, moved) = (waiting, Instant::now());
            }
            if waiting == 0 || moved.elapsed() >= PATIENCE {
                return Ok(outcomes);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The mirror whose answers are awaited, as its row tells.
    async fn mirror(&self) -> Result<Option<ProcessRow>, JournalError> {
        let of = StreamOf { slice: &self.job.mapping.slice, direction: self.done.sides.direction() };
        process::read(self.requests(), of).await
    }

    /// Looks at rows that were landed again. Sessions that broke since the last rows are made anew once.
    async fn verify(
        &mut self,
        mapping: &TableMapping,
        keys: &[RawKey],
        one: &mut Repaired,
    ) -> Result<(), RepairError> {
        let proof = match self.look(mapping, keys).await {
            Err(LookError::Prove(error)) if error.is_lost() => {
                self.looking = None;
                self.look(mapping, keys).await
            }
            proof => proof,
        };
        let slice = self.job.mapping.slice.clone();
        let proof = match proof {
            Ok(proof) => proof,
            Err(LookError::Prove(ProveError::Stopped(_))) => return Err(RepairError::Stopped { slice }),
            Err(error) => return Err(RepairError::NotVerified { slice, why: chain_of(&error) }),
        };
        if let Some(why) = proof.unsettled.first() {
            return Err(RepairError::NotVerified { slice, why: why.clone() });
        }
        for (kind, count) in proof.counts {
            *one.still.entry(kind).or_default() += count;
        }
        let Some(form) = self.looking.as_ref().and_then(|looking| looking.form(mapping)) else {
            return Ok(());
        };
        for column in proof.listed.iter().flat_map(|finding| &finding.columns) {
            let generated = form.generated.get_key_value(&column.column);
            one.generated.extend(generated.map(|(name, there)| (name.clone(), *there)));
        }
        Ok(())
    }

    async fn look(&mut self, mapping: &TableMapping, keys: &[RawKey]) -> Result<Proof, LookError> {
        let looking = match self.looking.take() {
            Some(looking) => looking,
            None => self.open().await?,
        };
        let looking = self.looking.insert(looking);
        if let Some(why) = looking.hopeless.get(&mapping.source) {
            return Err(LookError::Hopeless(why.clone()));
        }
        let form = looking.form(mapping);
        let form = form.ok_or_else(|| LookError::Hopeless("the slice has no such table".to_owned()))?;
        let mut prover = looking.hands.prover.lock().await;
        Ok(prover.get().await?.prove(&self.job.mapping.slice, form, keys.to_vec(), LOOKED_INTO).await?)
    }

    async fn open(&self) -> Result<Looking, LookError> {
        let (slice, sides) = (&self.job.mapping.slice, &self.done.sides);
        let hands = Box::pin(hands::open(slice, sides, &self.done.redactor, (1, None), self.stop)).await?;
        let tables = wanted(self.job, self.done).into_iter().filter(|wanted| !wanted.rows.is_empty());
        let mut forms: Vec<TableForm> =
            tables.map(|wanted| TableForm::new(wanted.mapping.clone(), self.done.verdict.strict)).collect();
        let distrusted = hands.trust(&mut forms, sides.authority).await.map_err(LookError::Hopeless)?;
        Ok(Looking { hands, forms, hopeless: distrusted.tables })
    }

    async fn record(&self, mapping: &TableMapping, rows: &[Landed], after: i64) -> Result<(), RepairError> {
        let verdict = &self.done.verdict;
        let entry = Entry {
            plan: &self.job.plan,
            slice: &self.job.mapping.slice,
            author: self.author,
            run: &verdict.run,
            epoch: Some(verdict.epoch),
            lsn: Some(verdict.lsn),
            plan_hash: &verdict.plan_hash,
            accepted: self
                .accepted
                .and_then(|accepted| accepted.of(&self.job.mapping.slice, &mapping.source.to_string())),
            after,
        };
        record::all(&self.service, &entry, (mapping, &self.done.redactor), rows).await?;
        Ok(())
    }
}

/// Why rows could not be looked at again.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Hands(#[from] HandsError),
    #[error(transparent)]
    Prove(#[from] ProveError),
    #[error("{0}")]
    Hopeless(String),
}
