//! Takes a stage of retirement, and takes it back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::gather::{self, Asked, RetireError};
use super::judge::{self, SliceReport};
use super::revoke::{self, Rights};
use super::rights;
use super::stage::{self, Grounds};
use crate::failpoint;
use crate::journal::ledger::{Author, RETIRE};
use crate::journal::retirement::{self, Retirement, Right};
use crate::journal::{grounds, verdicts};
use crate::mapping::{Mappings, SliceMapping};
use crate::name::TableName;
use crate::plan::{Approval, Plan, Policy};
use crate::postgres::connect::idle_limit;
use crate::problem::{Problem, Severity};
use crate::provision::{self, Databases};
use crate::reconcile::evidence;

/// What a stage works with.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// All mappings of the plan.
    pub mappings: &'a Mappings,
    /// What is known of the slice's tables, asked through other sessions.
    pub asked: Asked<'a>,
    /// Sessions of the admin links: of the monolith, and of the slice's service.
    pub databases: &'a Databases,
    /// Roles of the plan's links to the monolith, whose rights stay.
    pub own: &'a BTreeSet<String>,
    /// Whom the monolith's admin link logs in as.
    pub user: &'a str,
    /// Who.
    pub author: &'a Author,
    /// Who approved it.
    pub approved_by: Option<&'a str>,
}

/// What a stage would do, for somebody who reads it first.
#[derive(Debug, Clone)]
pub struct Preview {
    /// The statements of one transaction on the monolith, in their order.
    pub statements: Vec<String>,
    /// Names exactly these statements.
    pub token: String,
    /// What stands in the way, and what is to be known.
    pub problems: Vec<Problem>,
    /// How far the slice is already.
    pub done: Option<Retirement>,
}

impl Preview {
    /// Nothing is left to take away.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done.is_some() && self.statements.is_empty()
    }

    /// What forbids it.
    pub fn refusals(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error)
    }
}

/// What bringing rights back came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// How many rights were given back.
    pub rights: usize,
    /// Those of roles that are not there any more.
    pub lost: Vec<Right>,
}

impl Job<'_> {
    fn slice(&self) -> &str {
        &self.asked.mapping.slice
    }

    fn policy(&self) -> &Policy {
        self.plan.slices.get(self.slice()).map_or(&self.plan.policy, |slice| &slice.policy)
    }

    fn service(&self) -> Result<&Client, RetireError> {
        let name = &self.asked.mapping.service;
        let there = self.databases.services.get(name);
        there.ok_or_else(|| RetireError::NotProvisioned { slice: self.slice().to_owned() })
    }
}

/// What taking away the rights of a slice's old tables would do.
///
/// # Errors
/// [`RetireError`].
pub async fn preview(job: &Job<'_>) -> Result<Preview, RetireError> {
    let report = judge::judge(&gather::gather(job.asked).await?);
    let done = retirement::read(&job.databases.monolith, job.slice()).await?;
    let found = grounds_of(job, &report).await?;
    let rights = read_rights(job).await?;
    let mut problems = stage::before_revoking(&report, &found);
    problems.extend(revoke::problems(job.slice(), &rights));
    let statements = if done.is_some() && rights.others().next().is_none() {
        Vec::new()
    } else {
        let mut sql = vec![retirement::only_in_epoch(job.slice(), report.epoch)];
        sql.extend(revoke::revoke((job.slice(), report.epoch), job.approved_by, &rights));
        sql
    };
    Ok(Preview { token: token(&statements), statements, problems, done })
}

fn token(statements: &[String]) -> String {
    let hash = Sha256::digest(statements.join(";\n").as_bytes());
    hash.iter().take(4).fold(String::new(), |mut text, byte| {
        // Writing into memory does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

async fn grounds_of(job: &Job<'_>, report: &SliceReport) -> Result<Grounds, RetireError> {
    let (slice, policy, service) = (job.slice(), job.policy(), job.service()?);
    let since = verdicts::since_move(service, slice, report.epoch).await?;
    let shapes = grounds::monolith(&job.databases.monolith, slice).await?;
    let ground = grounds::service(service, slice).await?.map(|ground| ground.with_monolith(&shapes));
    let evidence = evidence::evidence(service, slice).await?;
    Ok(Grounds {
        moved_ago: since.map(|since| Duration::try_from_secs_f64(since.ago_s).unwrap_or(Duration::MAX)),
        safety_period: policy.safety_period,
        clean_runs: since.map_or(0, |since| since.clean),
        clean_runs_wanted: policy.clean_runs_before_retire,
        not_approved: policy.approval == Approval::Required && job.approved_by.is_none(),
        lacks: evidence.lacks(ground.as_ref(), policy.evidence_max_age),
    })
}

async fn read_rights(job: &Job<'_>) -> Result<Rights, RetireError> {
    let failed = || RetireError::database("the rights on old tables");
    let monolith = &job.databases.monolith;
    let relations = rights::read(monolith, &tables(job.asked.mapping)).await.map_err(failed())?;
    let unstoppable = rights::unstoppable(monolith, &relations).await.map_err(failed())?;
    Ok(Rights {
        relations,
        unstoppable,
        own: job.own.clone(),
        app_roles: job.plan.monolith.app_roles.clone(),
        user: job.user.to_owned(),
    })
}

fn tables(mapping: &SliceMapping) -> Vec<TableName> {
    mapping.tables.iter().map(|table| table.source.clone()).collect()
}

/// Takes the rights away as [`preview`] has shown it, keeps other verbs away meanwhile, and tells the ledger.
///
/// # Errors
/// [`RetireError::Refused`] where something stands in the way, [`RetireError::Changed`] where the statements are others than
/// `token` names; nothing was changed then. [`RetireError`].
pub async fn revoke(job: &Job<'_>, wanted: &str) -> Result<Preview, RetireError> {
    locked(job, async || {
        let preview = preview(job).await?;
        if preview.is_done() {
            tell(job).await?;
            return Ok(preview);
        }
        if preview.refusals().next().is_some() {
            return Err(RetireError::Refused { problems: preview.problems });
        }
        if preview.token != wanted {
            return Err(RetireError::Changed { slice: job.slice().to_owned() });
        }
        let before = read_rights(job).await?;
        let monolith = &job.databases.monolith;
        begin(monolith).await?;
        let taken = async {
            run_all(monolith, &preview.statements).await?;
            let after = read_rights(job).await?;
            if after.others().next().is_some() || after.kept() != before.kept() {
                return Err(RetireError::NotExact { slice: job.slice().to_owned() });
            }
            failpoint::hit("retire-before-commit");
            monolith
                .batch_execute("COMMIT")
                .await
                .map_err(RetireError::database("whether it was committed"))?;
            failpoint::hit("retire-committed");
            Ok(())
        };
        ended(monolith, taken.await).await?;
        tell(job).await?;
        Ok(preview)
    })
    .await
}

/// Gives back every right that was taken away, as it was, and tells the ledger. `None` when nothing was taken.
///
/// # Errors
/// [`RetireError`]; everything is given back, or nothing.
pub async fn restore(job: &Job<'_>) -> Result<Option<Restored>, RetireError> {
    locked(job, async || {
        let monolith = &job.databases.monolith;
        if retirement::read(monolith, job.slice()).await?.is_none() {
            tell(job).await?;
            return Ok(None);
        }
        let taken = retirement::rights(monolith, job.slice()).await?;
        let (statements, lost) = design_restore(job, &taken).await?;
        begin(monolith).await?;
        let given = async {
            run_all(monolith, &statements).await?;
            let now = read_rights(job).await?;
            let now: BTreeSet<&Right> = now.relations.iter().flat_map(|relation| &relation.rights).collect();
            if taken.iter().any(|right| !now.contains(right) && !lost.contains(right)) {
                return Err(RetireError::NotExact { slice: job.slice().to_owned() });
            }
            failpoint::hit("unretire-before-commit");
            monolith
                .batch_execute("COMMIT")
                .await
                .map_err(RetireError::database("whether it was committed"))?;
            failpoint::hit("unretire-committed");
            Ok(())
        };
        ended(monolith, given.await).await?;
        tell(job).await?;
        Ok(Some(Restored { rights: taken.len() - lost.len(), lost }))
    })
    .await
}

/// What giving the rights back takes, for `--dry-run`.
///
/// # Errors
/// [`RetireError`].
pub async fn preview_restore(job: &Job<'_>) -> Result<Option<(Vec<String>, Vec<Right>)>, RetireError> {
    let monolith = &job.databases.monolith;
    if retirement::read(monolith, job.slice()).await?.is_none() {
        return Ok(None);
    }
    let taken = retirement::rights(monolith, job.slice()).await?;
    design_restore(job, &taken).await.map(Some)
}

async fn design_restore(job: &Job<'_>, taken: &[Right]) -> Result<(Vec<String>, Vec<Right>), RetireError> {
    let monolith = &job.databases.monolith;
    let relations = read_rights(job).await?.relations;
    let owners: BTreeMap<String, String> =
        relations.iter().map(|relation| (relation.name.to_string(), relation.owner.clone())).collect();
    let roles = monolith.query("SELECT rolname::text FROM pg_roles", &[]).await;
    let roles = roles.map_err(RetireError::database("the roles"))?;
    let roles: BTreeSet<String> = roles.iter().map(|row| row.get(0)).collect();
    Ok(revoke::restore(job.slice(), &owners, taken, &roles))
}

/// Does something while other verbs are kept away from the databases.
async fn locked<T>(
    job: &Job<'_>,
    doing: impl AsyncFnOnce() -> Result<T, RetireError>,
) -> Result<T, RetireError> {
    provision::lock(job.databases).await?;
    let done = doing().await;
    provision::unlock(job.databases).await;
    done
}

async fn begin(monolith: &Client) -> Result<(), RetireError> {
    let sql = format!("BEGIN; {}", idle_limit());
    monolith.batch_execute(&sql).await.map_err(RetireError::database("whether a transaction began"))
}

async fn run_all(monolith: &Client, statements: &[String]) -> Result<(), RetireError> {
    for sql in statements {
        let done = monolith.batch_execute(sql).await;
        done.map_err(|source| RetireError::Statement { sql: sql.clone(), source })?;
    }
    Ok(())
}

/// A transaction that failed is rolled back, so that the session can go on.
async fn ended(monolith: &Client, done: Result<(), RetireError>) -> Result<(), RetireError> {
    if done.is_err() {
        // Where the link is gone, the server has rolled back by itself.
        let _ = monolith.batch_execute("ROLLBACK").await;
    }
    done
}

/// Tells the ledger of every step that it does not know of.
async fn tell(job: &Job<'_>) -> Result<(), RetireError> {
    failpoint::hit("steps-taken");
    let only = [job.slice().to_owned()];
    let run = provision::Run { plan: job.plan, verb: RETIRE, only: &only, author: job.author };
    provision::record(job.databases, run, job.mappings).await.map_err(RetireError::from)
}
