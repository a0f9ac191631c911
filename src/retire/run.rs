//! Takes a stage of retirement, and takes it back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

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
use crate::name::{TableName, quote_ident};
use crate::plan::{Approval, Plan, Policy};
use crate::postgres::connect::idle_limit;
use crate::postgres::sqlstate;
use crate::problem::{Problem, Severity};
use crate::provision::{self, Databases};
use crate::reconcile::evidence;

/// How long one statement waits for somebody else's transaction, in milliseconds: an application's transaction takes less, and other
/// verbs are kept away meanwhile.
const LOCK_MS: u32 = 5_000;

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
    /// Epoch of the authority.
    pub epoch: i64,
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

/// What bringing rights back works with: the monolith, and the service's ledger where it can be reached.
#[derive(Debug, Clone, Copy)]
pub struct Undo<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// All mappings of the plan.
    pub mappings: &'a Mappings,
    /// The slice.
    pub slice: &'a str,
    /// Sessions of the admin links.
    pub databases: &'a Databases,
    /// Who.
    pub author: &'a Author,
}

/// What bringing rights back came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// How many rights were given back.
    pub rights: usize,
    /// Those that can't come back, with what of them is not there any more.
    pub gone: Vec<(Right, String)>,
    /// Those that the server did not let be given now, with what it said: another try is to bring them.
    pub failed: Vec<(Right, String)>,
}

impl Job<'_> {
    fn undo(&self) -> Undo<'_> {
        let (plan, mappings, databases, author) = (self.plan, self.mappings, self.databases, self.author);
        Undo { plan, mappings, slice: self.slice(), databases, author }
    }

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

/// What taking away the rights of a slice's old tables would do. The whole transaction is run, and rolled back: what can't work
/// is known then.
///
/// # Errors
/// [`RetireError`].
pub async fn preview(job: &Job<'_>) -> Result<Preview, RetireError> {
    let mut preview = design(job).await?;
    if preview.is_done() || preview.refusals().next().is_some() {
        return Ok(preview);
    }
    let tried = attempt(job, &preview).await;
    rolled_back(&job.databases.monolith).await;
    match tried {
        Ok(()) => {}
        Err(RetireError::Refused { problems }) => preview.problems.extend(problems),
        Err(error) => return Err(error),
    }
    Ok(preview)
}

/// What there is to do, and what forbids it as far as can be seen.
async fn design(job: &Job<'_>) -> Result<Preview, RetireError> {
    let report = judge::judge(&gather::gather(job.asked).await?);
    let done = retirement::read(&job.databases.monolith, job.slice()).await?;
    let found = grounds_of(job, &report).await?;
    let rights = read_rights(job).await?;
    let mut problems = stage::before_revoking(&report, &found);
    problems.extend(revoke::problems(job.slice(), &rights));
    let statements = statements_of(job, report.epoch, done.as_ref(), &rights);
    Ok(Preview { token: token(&statements), epoch: report.epoch, statements, problems, done })
}

fn statements_of(job: &Job<'_>, epoch: i64, done: Option<&Retirement>, rights: &Rights) -> Vec<String> {
    if done.is_some() && rights.others().next().is_none() {
        return Vec::new();
    }
    let mut sql = vec![retirement::only_in_epoch(job.slice(), epoch)];
    sql.extend(revoke::revoke((job.slice(), epoch), job.approved_by, rights));
    sql
}

/// Opens the transaction and does everything in it but the commit.
async fn attempt(job: &Job<'_>, preview: &Preview) -> Result<(), RetireError> {
    let monolith = &job.databases.monolith;
    begin(monolith).await?;
    let before = read_rights(job).await?;
    // Somebody granted or revoked since the statements were made.
    if statements_of(job, preview.epoch, preview.done.as_ref(), &before) != preview.statements {
        return Err(RetireError::Changed { slice: job.slice().to_owned() });
    }
    let failed = || RetireError::database("what the roles of the links may do");
    let could = rights::of_links(monolith, &before.relations, &before.own).await.map_err(failed())?;
    run_all(monolith, &preview.statements).await?;
    let after = read_rights(job).await?;
    let can = rights::of_links(monolith, &after.relations, &after.own).await.map_err(failed())?;
    let mut problems: Vec<Problem> = could.difference(&can).map(lost_by_a_link).collect();
    problems.extend(after.others().map(still_there));
    if problems.is_empty() { Ok(()) } else { Err(RetireError::Refused { problems }) }
}

fn lost_by_a_link((role, privilege, table): &(String, String, String)) -> Problem {
    Problem::error("link-loses-right", format!("role {role}"))
        .fact(format!("a link of the plan logs in as it, and it may {privilege} {table} only by way of a right that would go"))
        .consequence("the mirror or a comparison would fail")
        .next(format!("GRANT {privilege} ON {table} TO {};", quote_ident(role)))
}

fn still_there(right: &Right) -> Problem {
    Problem::error("right-stays", &right.relation)
        .fact(format!("{} would still be there afterwards", revoke::words(right)))
        .consequence("somebody could still use the table")
        .next("take it away by hand, as the role that gave it, then type the same command again")
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
    let owners: BTreeSet<&str> = relations.iter().map(|relation| relation.owner.as_str()).collect();
    let owners: Vec<&str> = owners.into_iter().collect();
    let own: Vec<&str> = job.own.iter().map(String::as_str).collect();
    let app_roles = &job.plan.monolith.app_roles;
    let asked = rights::Asked { owners: &owners, own: &own, app_roles };
    let unstoppable = rights::unstoppable(monolith, asked).await.map_err(failed())?;
    let grantors = relations.iter().flat_map(|relation| &relation.rights).map(|right| right.grantor.as_str());
    let grantors: Vec<&str> = grantors.collect::<BTreeSet<&str>>().into_iter().collect();
    let acts_as = rights::acts_as(monolith, &grantors).await.map_err(failed())?;
    Ok(Rights {
        unstoppable,
        own: job.own.clone(),
        app_roles: app_roles.clone(),
        user: job.user.to_owned(),
        acts_as,
        relations,
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
    locked(job.databases, async || {
        let preview = design(job).await?;
        if preview.is_done() {
            tell(&job.undo()).await?;
            return Ok(preview);
        }
        if preview.refusals().next().is_some() {
            return Err(RetireError::Refused { problems: preview.problems });
        }
        if preview.token != wanted {
            return Err(RetireError::Changed { slice: job.slice().to_owned() });
        }
        let monolith = &job.databases.monolith;
        let taken = async {
            attempt(job, &preview).await?;
            failpoint::hit("retire-before-commit");
            monolith
                .batch_execute("COMMIT")
                .await
                .map_err(RetireError::database("whether it was committed"))?;
            failpoint::hit("retire-committed");
            Ok(())
        };
        ended(monolith, taken.await).await?;
        tell(&job.undo()).await?;
        Ok(preview)
    })
    .await
}

/// Gives back every right that was taken away, as it was, and tells the ledger. What is gone meanwhile (a role, a table, a column) is
/// left out for good; what can't be given now is left for another try. `None` when nothing was taken.
///
/// # Errors
/// [`RetireError`]; everything is as it was then.
pub async fn restore(undo: &Undo<'_>) -> Result<Option<Restored>, RetireError> {
    locked(undo.databases, async || {
        let monolith = &undo.databases.monolith;
        if retirement::read(monolith, undo.slice).await?.is_none() {
            tell(undo).await?;
            return Ok(None);
        }
        begin(monolith).await?;
        let given = async {
            let restored = give_all(undo).await?;
            failpoint::hit("unretire-before-commit");
            monolith
                .batch_execute("COMMIT")
                .await
                .map_err(RetireError::database("whether it was committed"))?;
            failpoint::hit("unretire-committed");
            Ok(restored)
        };
        let restored = match given.await {
            Ok(restored) => restored,
            Err(error) => {
                rolled_back(monolith).await;
                return Err(error);
            }
        };
        tell(undo).await?;
        Ok(Some(restored))
    })
    .await
}

/// In the open transaction.
async fn give_all(undo: &Undo<'_>) -> Result<Restored, RetireError> {
    let monolith = &undo.databases.monolith;
    let mut restored = Restored::default();
    let (mut settled, mut given) = (Vec::new(), Vec::new());
    for (id, right) in retirement::rights(monolith, undo.slice).await? {
        if let Some(gone) = gone(monolith, &right).await? {
            restored.gone.push((right, gone));
            settled.push(id);
            continue;
        }
        run_all(monolith, &["SAVEPOINT one".to_owned()]).await?;
        match run_all(monolith, &revoke::grant(&right)).await {
            Ok(()) => given.push((id, right)),
            Err(RetireError::Statement { source, .. }) if !sqlstate::is_connection_lost(&source) => {
                run_all(monolith, &["ROLLBACK TO SAVEPOINT one".to_owned()]).await?;
                restored.failed.push((right, sqlstate::words(&source)));
            }
            Err(error) => return Err(error),
        }
    }
    let relations: BTreeSet<TableName> = given.iter().map(|(_, right)| right.relation.clone()).collect();
    let relations: Vec<TableName> = relations.into_iter().collect();
    let now = rights::read(monolith, &relations)
        .await
        .map_err(RetireError::database("the rights on old tables"))?;
    for (id, right) in given {
        // A GRANT by somebody who may not pass the right on is a mere warning of the server.
        if now.iter().any(|relation| relation.has(&right)) {
            restored.rights += 1;
            settled.push(id);
        } else {
            restored.failed.push((right, "whoever gave it may not pass it on now".to_owned()));
        }
    }
    retirement::settled(monolith, &settled).await?;
    run_all(monolith, &revoke::restored(undo.slice, restored.failed.is_empty())).await?;
    Ok(restored)
}

/// What of a right is not there any more.
async fn gone(monolith: &Client, right: &Right) -> Result<Option<String>, RetireError> {
    let sql = "SELECT CASE WHEN to_regclass($1) IS NULL THEN 'the relation' \
            WHEN $2 IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2 \
                AND NOT attisdropped) THEN 'the column' \
            WHEN $3 IS NOT NULL AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $3) THEN 'the role that had it' \
            WHEN NOT $5 AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $4) THEN 'the role that gave it' END";
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&right.relation.sql(), Type::TEXT),
        (&right.column, Type::TEXT),
        (&right.grantee, Type::TEXT),
        (&right.grantor, Type::TEXT),
        (&right.by_owner, Type::BOOL),
    ];
    let row = monolith.query_typed_one(sql, &parameters).await;
    Ok(row.map_err(RetireError::database("what became of the rights"))?.get(0))
}

/// What giving the rights back takes, for `--dry-run`.
///
/// # Errors
/// [`RetireError`].
pub async fn preview_restore(undo: &Undo<'_>) -> Result<Option<Vec<String>>, RetireError> {
    let monolith = &undo.databases.monolith;
    if retirement::read(monolith, undo.slice).await?.is_none() {
        return Ok(None);
    }
    let taken = retirement::rights(monolith, undo.slice).await?;
    let mut sql: Vec<String> = taken.iter().flat_map(|(_, right)| revoke::grant(right)).collect();
    sql.extend(revoke::restored(undo.slice, true));
    Ok(Some(sql))
}

/// Does something while other verbs are kept away from the databases.
async fn locked<T>(
    databases: &Databases,
    doing: impl AsyncFnOnce() -> Result<T, RetireError>,
) -> Result<T, RetireError> {
    provision::lock(databases).await?;
    let done = doing().await;
    provision::unlock(databases).await;
    done
}

async fn begin(monolith: &Client) -> Result<(), RetireError> {
    // Whoever holds the gate's row, or changes rights himself, is waited for this long.
    let sql = format!("BEGIN; {}; SET LOCAL lock_timeout = {LOCK_MS}", idle_limit());
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
        rolled_back(monolith).await;
    }
    done
}

/// Where the link is gone, the server has rolled back by itself.
async fn rolled_back(monolith: &Client) {
    let _ = monolith.batch_execute("ROLLBACK").await;
}

/// Tells the ledger of every step that it does not know of.
async fn tell(undo: &Undo<'_>) -> Result<(), RetireError> {
    failpoint::hit("steps-taken");
    let only = [undo.slice.to_owned()];
    let run = provision::Run { plan: undo.plan, verb: RETIRE, only: &only, author: undo.author };
    provision::record(undo.databases, run, undo.mappings).await.map_err(RetireError::from)
}
