//! Takes a stage of retirement, and takes it back: one transaction on the monolith each, shown by running it and rolling it back.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::gather::{self, Asked, RetireError};
use super::judge::{self, SliceReport};
use super::revoke::{self, Restored, Taking, Transaction};
use super::rights;
use super::stage::{self, Grounds};
use super::unstoppable;
use crate::failpoint;
use crate::journal::ledger::{Author, RETIRE, UNRETIRE};
use crate::journal::migrate::{self, Form};
use crate::journal::retirement::{self, Right};
use crate::journal::usage::How;
use crate::journal::{grounds, verdicts};
use crate::mapping::Mappings;
use crate::name::TableName;
use crate::plan::{Approval, Plan, Policy};
use crate::postgres::connect::idle_limit;
use crate::postgres::sqlstate;
use crate::problem::{Problem, Severity};
use crate::provision::{self, Databases};
use crate::reconcile::evidence;
use crate::words;

/// How long one statement waits for somebody else's transaction, in milliseconds: an application's transaction takes less, and other
/// verbs are kept away meanwhile.
const LOCK_MS: u32 = 5_000;

/// How often it is looked for whom a statement waits.
const LOOK: Duration = Duration::from_millis(500);

/// How often a transaction is tried that somebody else's change of rights came in between of.
const ATTEMPTS: usize = 5;

/// What taking and taking back work with.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Mappings of the plan, for the ledger; where a slice is missing, a later command tells it.
    pub mappings: &'a Mappings,
    /// The slice.
    pub slice: &'a str,
    /// Sessions of the admin links: of the monolith, and of the slice's service where that can be reached.
    pub databases: &'a Databases,
    /// Another session on the monolith, to see whom the first one waits for.
    pub watch: &'a Client,
    /// Whom the monolith's admin link logs in as.
    pub user: &'a str,
    /// Who.
    pub author: &'a Author,
}

/// What a stage works with.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The sessions.
    pub work: Work<'a>,
    /// What is known of the slice's tables, asked through other sessions.
    pub asked: Asked<'a>,
    /// Roles of the plan's links to the monolith, whose rights stay.
    pub own: &'a BTreeSet<String>,
    /// Who approved it.
    pub approved_by: Option<&'a str>,
}

/// What a stage has done, or would do.
#[derive(Debug, Clone)]
pub struct Done {
    /// The statements of one transaction on the monolith, in their order.
    pub statements: Vec<String>,
    /// Names exactly what goes.
    pub token: String,
    /// What is to be known.
    pub problems: Vec<Problem>,
    /// The stage was taken before, and nothing was left to take.
    pub before: bool,
}

/// What speaks for and against a stage.
struct Look {
    problems: Vec<Problem>,
    epoch: i64,
    again: bool,
}

impl Job<'_> {
    fn policy(&self) -> &Policy {
        let plan = self.work.plan;
        plan.slices.get(self.work.slice).map_or(&plan.policy, |slice| &slice.policy)
    }

    fn tables(&self) -> Vec<TableName> {
        self.asked.mapping.tables.iter().map(|table| table.source.clone()).collect()
    }
}

/// Takes the rights on a slice's old tables away, where what goes is still what `confirm` names, and tells the ledger. Without `confirm`
/// all of it is done and rolled back. Other verbs are kept away meanwhile.
///
/// # Errors
/// [`RetireError::Refused`] where something stands in the way, [`RetireError::Changed`] where something else goes than `confirm` names.
/// [`RetireError`]; nothing was changed then.
pub async fn revoke(job: &Job<'_>, confirm: Option<&str>) -> Result<Done, RetireError> {
    let slice = job.work.slice;
    locked(job.work.databases, async || {
        // Of a run that was cut off behind its COMMIT, also where something stands in the way by now.
        if confirm.is_some() && retirement::read(&job.work.databases.monolith, slice).await?.is_some() {
            tell(job.work, RETIRE).await?;
        }
        let look = look(job).await?;
        if look.problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(RetireError::Refused { problems: look.problems });
        }
        let tables = job.tables();
        let taking = Taking {
            slice,
            epoch: look.epoch,
            tables: &tables,
            own: job.own,
            user: job.work.user,
            approved_by: job.approved_by,
            again: look.again,
        };
        let points = confirm.map(|_| ("retire-before-commit", "retire-committed"));
        let take = async |transaction: &mut Transaction<'_>| {
            let taken = revoke::take(transaction, taking).await?;
            let token = token(look.epoch, &taken);
            let before = look.again && taken.is_empty();
            if !before && confirm.is_some_and(|wanted| wanted != token) {
                return Err(RetireError::Changed { slice: slice.to_owned() });
            }
            Ok((token, before))
        };
        let ((token, before), statements) = within(job.work, points, take).await?;
        if confirm.is_some() {
            tell(job.work, RETIRE).await?;
        }
        Ok(Done { statements, token, problems: look.problems, before })
    })
    .await
}

/// Gives back every right that was taken away, as it was, and tells the ledger; what is gone meanwhile (a role, a table, a column) is
/// left out. Without `commit` all of it is done and rolled back. `None` when nothing was taken.
///
/// # Errors
/// [`RetireError`]; everything is as it was then.
pub async fn restore(work: Work<'_>, commit: bool) -> Result<Option<Restored>, RetireError> {
    locked(work.databases, async || {
        let Some(done) = retirement::read(&work.databases.monolith, work.slice).await? else {
            tell(work, UNRETIRE).await?;
            return Ok(None);
        };
        let points = commit.then_some(("unretire-before-commit", "unretire-committed"));
        let give = async |transaction: &mut Transaction<'_>| {
            revoke::give(transaction, (work.slice, work.user), &done).await
        };
        let (restored, statements) = within(work, points, give).await?;
        if commit {
            tell(work, UNRETIRE).await?;
        }
        Ok(Some(Restored { statements, ..restored }))
    })
    .await
}

async fn look(job: &Job<'_>) -> Result<Look, RetireError> {
    let Work { slice, databases, user, plan, .. } = job.work;
    let monolith = &databases.monolith;
    if migrate::form(monolith).await? == Form::Older {
        return Err(RetireError::Outdated);
    }
    let facts = gather::gather(job.asked).await?;
    let report = judge::judge(&facts);
    let mut problems = stage::before_revoking(&report, &grounds_of(job, &report).await?);
    let failed = || RetireError::database("the rights on old tables");
    let relations = rights::read(monolith, &job.tables()).await.map_err(failed())?;
    problems.extend(rights::problems(&relations, job.own, user));
    let recent = facts.users.iter().filter(|user| {
        user.how == How::Session && user.last_us.is_some_and(|last| last + facts.quiet_us > facts.now_us)
    });
    let asked = unstoppable::Asked {
        slice,
        owners: &relations.iter().map(|relation| relation.owner.as_str()).collect(),
        own: job.own,
        app_roles: &plan.monolith.app_roles,
        recent: &recent.map(|user| user.role.as_str()).collect(),
    };
    problems.extend(unstoppable::problems(monolith, asked).await.map_err(failed())?);
    problems.sort();
    let again = retirement::read(monolith, slice).await?.is_some();
    Ok(Look { problems, epoch: report.epoch, again })
}

async fn grounds_of(job: &Job<'_>, report: &SliceReport) -> Result<Grounds, RetireError> {
    let (slice, policy) = (job.work.slice, job.policy());
    let service = job.work.databases.services.get(&job.asked.mapping.service);
    let service = service.ok_or_else(|| RetireError::NotProvisioned { slice: slice.to_owned() })?;
    let since = verdicts::since_move(service, slice, report.epoch).await?;
    let shapes = grounds::monolith(&job.work.databases.monolith, slice).await?;
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

fn token(epoch: i64, taken: &[Right]) -> String {
    let hash = Sha256::digest(format!("{epoch} {taken:?}").as_bytes());
    hash.iter().take(4).fold(String::new(), |mut text, byte| {
        // Writing into memory does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
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

/// Does something in a transaction on the monolith, and returns the statements that were run: once more where somebody else changed
/// rights at the same moment. `points` are the kill points before and behind its COMMIT; without them it is rolled back.
async fn within<T>(
    work: Work<'_>,
    points: Option<(&'static str, &'static str)>,
    doing: impl AsyncFn(&mut Transaction<'_>) -> Result<T, RetireError>,
) -> Result<(T, Vec<String>), RetireError> {
    let monolith = &work.databases.monolith;
    let failed = || RetireError::database("whether a transaction began");
    let process = monolith.query_one("SELECT pg_backend_pid()", &[]).await.map_err(failed())?.get(0);
    for _ in 0..ATTEMPTS {
        let begin = format!("BEGIN; {}; SET LOCAL lock_timeout = {LOCK_MS}", idle_limit());
        monolith.batch_execute(&begin).await.map_err(failed())?;
        let mut transaction = Transaction { monolith, statements: Vec::new() };
        let (done, who) = watched((work.watch, process), doing(&mut transaction)).await;
        match (done, points) {
            (Ok(done), Some((before, behind))) => {
                failpoint::hit(before);
                let committed = monolith.batch_execute("COMMIT").await;
                committed.map_err(RetireError::database("whether it was committed"))?;
                failpoint::hit(behind);
                return Ok((done, transaction.statements));
            }
            (Ok(done), None) => {
                rolled_back(monolith).await;
                return Ok((done, transaction.statements));
            }
            (Err(error), _) => {
                rolled_back(monolith).await;
                let source =
                    if let RetireError::Statement { source, .. } = &error { Some(source) } else { None };
                if source.is_some_and(sqlstate::is_lock_timeout) {
                    return Err(RetireError::Waited { who });
                }
                let raced = matches!(error, RetireError::Raced);
                if !raced && !source.is_some_and(sqlstate::is_concurrent_change) {
                    return Err(error);
                }
            }
        }
    }
    Err(RetireError::Raced)
}

/// Where the link is gone, the server has rolled back by itself.
async fn rolled_back(monolith: &Client) {
    let _ = monolith.batch_execute("ROLLBACK").await;
}

/// Does something in another session, and sees whom that waits for.
async fn watched<T>((watch, process): (&Client, i32), doing: impl Future<Output = T>) -> (T, Option<String>) {
    let who = Cell::new(None);
    let done = tokio::select! {
        done = doing => done,
        never = look_on(watch, process, &who) => match never {},
    };
    (done, who.take())
}

async fn look_on(watch: &Client, process: i32, who: &Cell<Option<String>>) -> Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        let seen = waits_for(watch, process).await;
        who.set(seen.or(who.take()));
    }
}

async fn waits_for(watch: &Client, process: i32) -> Option<String> {
    // State and age stay empty where the role may not see them.
    let sql = "SELECT b.pid, coalesce(nullif(a.application_name, ''), 'role ' || a.usename, 'unknown') \
                   || coalesce(', ' || a.state, ''), extract(epoch FROM clock_timestamp() - a.xact_start)::float8 \
               FROM unnest(pg_blocking_pids($1)) AS b (pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid LIMIT 1";
    let row = watch.query_opt(sql, &[&process]).await.ok().flatten()?;
    let (pid, who): (i32, String) = (row.get(0), row.get(1));
    let age = row.get::<_, Option<f64>>(2).map(|age_s| format!(", {}", words::seconds(age_s)));
    Some(match pid {
        0 => "a prepared transaction (see pg_prepared_xacts)".to_owned(),
        pid => format!("process {pid} ({who}{})", age.unwrap_or_default()),
    })
}

/// Tells the ledger of every step that it does not know of.
async fn tell(work: Work<'_>, verb: &str) -> Result<(), RetireError> {
    failpoint::hit("steps-taken");
    let only = [work.slice.to_owned()];
    let run = provision::Run { plan: work.plan, verb, only: &only, author: work.author };
    provision::record(work.databases, run, work.mappings).await.map_err(RetireError::from)
}
