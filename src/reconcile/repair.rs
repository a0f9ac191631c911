//! Making the copy right where a run has proven that it is wrong.
//!
//! Nothing is written beside the mirror: the rows are asked for in the journal, and the running mirror reads them from
//! the authority again and lands them as it lands every row. Then each is looked at once more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::finding::{FindingKind, RawKey};
use super::form::TableForm;
use super::hands;
use super::prove::ProveError;
use super::redact::Redactor;
use super::run::{Done, RunError, SliceJob};
use super::sides::APPLICATION;
use super::stop::{self, Stopped};
use super::verdict::Counts;
use crate::cdc::mirror::chain_of;
use crate::journal::JournalError;
use crate::journal::ledger::{self, Author, NewEntry, REPAIR};
use crate::journal::repairs::{self, RepairState};
use crate::mapping::TableMapping;
use crate::postgres::connect::Session;

/// Rows that are asked for before the mirror's answers are awaited: a few seconds' work for it.
const ROWS_AT_ONCE: usize = 2_000;
/// A mirror that takes no request for this long does not take any.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at the requests.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What became of one table's rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Repaired {
    /// Slice.
    pub slice: String,
    /// The table by the monolith's name.
    pub table: String,
    /// Rows that the mirror was asked for.
    pub asked: u64,
    /// Rows that it has landed again.
    pub done: u64,
    /// Rows that it could not land, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Findings that were not asked for, because no row of the copy is wrong by itself: orphans, and rows without a key.
    pub left_out: u64,
    /// Rows that still differ when they are looked at again.
    pub still: Counts,
}

impl Repaired {
    /// Every row that was found is right now.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left_out == 0 && self.refused.is_empty() && self.still.is_empty() && self.done == self.asked
    }
}

/// A repair came to no end.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The databases, or our tables.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The mirror took no request.
    #[error(
        "the mirror of slice {slice} took no repair in {} s; {waiting} requests stay, and a mirror that runs does them",
        PATIENCE.as_secs()
    )]
    NotTaken {
        /// Slice.
        slice: String,
        /// Requests that wait.
        waiting: usize,
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
}

/// What a repair would ask for, in the plan's order of tables.
#[must_use]
pub fn wanted<'a>(job: &'a SliceJob, done: &'a Done) -> Vec<Wanted<'a>> {
    let of = |mapping: &'a TableMapping| {
        let found = done.keys.iter().filter(|(table, _, _)| *table == mapping.source);
        let rows: Vec<_> = found
            .filter(|(_, key, kind)| *kind != FindingKind::Orphan && !key.0.is_empty())
            .map(|(_, key, kind)| (key, *kind))
            .collect();
        let verdict = done.verdict.tables.iter().find(|verdict| verdict.source_table == mapping.source);
        let counted: u64 = verdict.map_or(0, |verdict| verdict.findings.values().sum());
        let asked = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        Wanted { mapping, rows, left_out: counted.saturating_sub(asked) }
    };
    job.mapping
        .tables
        .iter()
        .map(of)
        .filter(|wanted| !wanted.rows.is_empty() || wanted.left_out > 0)
        .collect()
}

/// Has everything repaired that the run found, looks at it again, and records it in the ledger.
///
/// # Errors
/// [`RepairError`]; what was repaired until then is recorded.
pub async fn run(
    job: &SliceJob,
    done: &Done,
    author: &Author,
    stop: &CancellationToken,
) -> Result<Vec<Repaired>, RepairError> {
    let service = job.service_apply.connect(APPLICATION).await.map_err(RunError::Connect)?;
    let mut repaired = Vec::new();
    for wanted in wanted(job, done) {
        let mut one = Repaired {
            slice: job.mapping.slice.clone(),
            table: wanted.mapping.source.to_string(),
            left_out: wanted.left_out,
            ..Repaired::default()
        };
        for rows in wanted.rows.chunks(ROWS_AT_ONCE) {
            let stopped = |Stopped| RepairError::Stopped { slice: job.mapping.slice.clone() };
            stop::look(stop).map_err(stopped)?;
            let repaired = async {
                let (landed, waiting) = ask(job, &service, done, rows, &mut one, author).await?;
                // First the record: rows that can't be looked at again have been written all the same.
                record_all(job, &service, done, wanted.mapping, &landed, author).await?;
                if waiting > 0 {
                    return Err(RepairError::NotTaken { slice: job.mapping.slice.clone(), waiting });
                }
                verify((job, done), wanted.mapping, &landed, &mut one, stop).await
            };
            stop::work(stop, repaired).await.map_err(stopped)??;
        }
        repaired.push(one);
    }
    let monolith = job.monolith_apply.connect(APPLICATION).await.ok();
    ledger::anchor(&service, monolith.as_deref(), &job.mapping.service).await;
    Ok(repaired)
}

/// Asks the mirror for some rows and waits for its answers. Returns those that it landed, and how many it did not take.
async fn ask(
    job: &SliceJob,
    service: &Session,
    done: &Done,
    rows: &[(&RawKey, FindingKind)],
    one: &mut Repaired,
    author: &Author,
) -> Result<(Vec<RawKey>, usize), RepairError> {
    let slice = &job.mapping.slice;
    let asked: Vec<(Vec<String>, &str)> =
        rows.iter().map(|(key, kind)| (key.0.clone(), kind.as_str())).collect();
    let names = (done.verdict.run.as_str(), slice.as_str());
    let by = format!("{}@{}", author.operator, author.host);
    let ids = repairs::request(service, names, &one.table, &asked, &by).await.map_err(RunError::Journal)?;
    let (mut left, mut moved) = (usize::MAX, Instant::now());
    let outcomes = loop {
        let outcomes = repairs::outcomes(service, &ids).await.map_err(RunError::Journal)?;
        let waiting = outcomes.iter().filter(|outcome| outcome.state == RepairState::Requested).count();
        if waiting == 0 {
            break outcomes;
        }
        if waiting < left {
            (left, moved) = (waiting, Instant::now());
        }
        if moved.elapsed() >= PATIENCE {
            // Those that were done until then are recorded all the same.
            break outcomes;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    one.asked += u64::try_from(rows.len()).unwrap_or(u64::MAX);
    let (mut landed, mut waiting) = (Vec::new(), 0);
    for (outcome, (key, _)) in outcomes.iter().zip(rows) {
        match outcome.state {
            RepairState::Done => {
                one.done += 1;
                landed.push((*key).clone());
            }
            RepairState::Refused => {
                let why = outcome.detail.clone().unwrap_or_else(|| outcome.state.as_str().to_owned());
                *one.refused.entry(why).or_default() += 1;
            }
            RepairState::Requested => waiting += 1,
        }
    }
    Ok((landed, waiting))
}

/// Looks at rows that were landed again.
async fn verify(
    (job, done): (&SliceJob, &Done),
    mapping: &TableMapping,
    keys: &[RawKey],
    one: &mut Repaired,
    stop: &CancellationToken,
) -> Result<(), RepairError> {
    let slice = &job.mapping.slice;
    let failed = |why: String| RepairError::NotVerified { slice: slice.clone(), why };
    let redactor = Redactor::new().map_err(|error| failed(chain_of(&error)))?;
    let opened = Box::pin(hands::open(slice, &done.sides, &Arc::new(redactor), (1, None), stop)).await;
    let hands = opened.map_err(|error| failed(chain_of(&error)))?;
    let mut forms = [TableForm::new(mapping.clone(), done.verdict.strict)];
    if let Some(why) =
        hands.trust(&mut forms, done.sides.authority).await.map_err(failed)?.into_values().next()
    {
        return Err(failed(why));
    }
    let [form] = &forms;
    let mut prover = hands.prover.lock().await;
    let prover = prover.get().await.map_err(|error| failed(chain_of(&error)))?;
    let proof = match prover.prove(slice, form, keys.to_vec(), 0).await {
        Ok(proof) => proof,
        Err(ProveError::Stopped(_)) => return Err(RepairError::Stopped { slice: slice.clone() }),
        Err(error) => return Err(failed(chain_of(&error))),
    };
    if let Some(why) = proof.unsettled.first() {
        return Err(failed(why.clone()));
    }
    for (kind, count) in proof.counts {
        *one.still.entry(kind).or_default() += count;
    }
    Ok(())
}

/// Writes the keys into the ledger, in as many entries as it takes: keys may be long texts.
async fn record_all(
    job: &SliceJob,
    service: &Session,
    done: &Done,
    mapping: &TableMapping,
    keys: &[RawKey],
    author: &Author,
) -> Result<(), RepairError> {
    let mut groups = vec![keys];
    while let Some(group) = groups.pop() {
        match record(job, service, done, mapping, group, author).await {
            Err(RepairError::Run(RunError::Journal(JournalError::TooLong { .. }))) if group.len() > 1 => {
                let (first, second) = group.split_at(group.len() / 2);
                groups.extend([second, first]);
            }
            recorded => recorded?,
        }
    }
    Ok(())
}

/// Writes one entry with the keys, as they may be shown.
async fn record(
    job: &SliceJob,
    service: &Session,
    done: &Done,
    mapping: &TableMapping,
    keys: &[RawKey],
    author: &Author,
) -> Result<(), RepairError> {
    if keys.is_empty() {
        return Ok(());
    }
    let redactor = Redactor::new().map_err(RunError::Redact)?;
    let shown: Vec<Vec<_>> = keys
        .iter()
        .map(|key| {
            mapping.key_columns().zip(&key.0).map(|(column, value)| redactor.show(column, value)).collect()
        })
        .collect();
    let body = json!({
        "run": done.verdict.run,
        "table": mapping.source.to_string(),
        "key": mapping.key_columns().map(|column| column.target.as_str()).collect::<Vec<_>>(),
        "rows": shown,
    });
    let entry = NewEntry {
        kind: REPAIR,
        plan: &job.plan,
        slice: Some(&job.mapping.slice),
        author,
        epoch: Some(done.verdict.epoch),
        lsn: Some(done.verdict.lsn),
        plan_hash: Some(&done.verdict.plan_hash),
        body: &body,
    };
    let failed = |source| RunError::Journal(JournalError::Database { action: "recording repairs", source });
    service.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(failed)?;
    if let Err(error) = ledger::append(service, &entry).await {
        // When the connection broke there is nothing to roll back; the first error tells the story.
        let _ = service.batch_execute("ROLLBACK").await;
        return Err(RunError::Journal(error).into());
    }
    service.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(())
}
