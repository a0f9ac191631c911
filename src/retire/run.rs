//! Takes a stage of retirement, and takes it back: one transaction on the monolith each, shown by running it and rolling it back.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::called;
use super::gather::{self, Asked, RetireError, not_abandoned};
use super::judge::{self, SliceReport};
use super::moving;
use super::printed;
use super::quarantine::{self, Moving};
use super::revoke::{self, Giving, Restored, Taking, Transaction};
use super::rights::{self, Relation};
use super::stage::{self, Grounds, Revoked, Step};
use super::unstoppable;
use crate::catalog::Catalog;
use crate::failpoint;
use crate::journal::ledger::{Author, RETIRE, UNRETIRE};
use crate::journal::migrate::{self, Form};
use crate::journal::retirement::{self, Right, Stage};
use crate::journal::usage::How;
use crate::journal::{grounds, holdings, slices, verdicts, whereabouts};
use crate::mapping::{Mappings, SliceMapping};
use crate::name::TableName;
use crate::plan::{Approval, Plan, Policy};
use crate::postgres::connect::idle_limit;
use crate::postgres::{introspect, sqlstate};
use crate::problem::Problem;
use crate::provision::{self, Databases};
use crate::reconcile::evidence;
use crate::words;

/// How long one statement waits for somebody else's transaction, in milliseconds: an application's transaction takes less, and other
/// verbs are kept away meanwhile.
const LOCK_MS: u32 = 5_000;

/// How often it is looked for whom a statement waits.
const LOOK: Duration = Duration::from_millis(500);

/// Less than the shortest time that a statement waits for a lock, so that it is seen whom it waits for.
const LOOK_ON: Duration = Duration::from_millis(200);

/// How often a transaction is tried that somebody else's change of rights came in between of.
const ATTEMPTS: usize = 5;

/// How often a server is asked what came of a transaction whose session is lost, [`LOOK`] apart: it may not have noticed yet.
const ENDING_LOOKS: usize = 10;

/// What is committed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Commit {
    pub(super) verb: &'static str,
    /// What is then.
    pub(super) done: &'static str,
    /// Kill point before it.
    pub(super) before: &'static str,
    /// Kill point behind it.
    pub(super) behind: &'static str,
}

const TAKING: Commit = Commit {
    verb: RETIRE,
    done: "the rights are taken away",
    before: "retire-before-commit",
    behind: "retire-committed",
};

const MOVING: Commit = Commit {
    verb: RETIRE,
    done: "the tables are in quarantine",
    before: "quarantine-before-commit",
    behind: "quarantine-committed",
};

const GIVING: Commit = Commit {
    verb: UNRETIRE,
    done: "the rights are given back",
    before: "unretire-before-commit",
    behind: "unretire-committed",
};

const BRINGING: Commit = Commit { done: "the tables are back, and the rights given back", ..GIVING };

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
    /// The sessions that take it.
    pub work: Work<'a>,
    /// The slice's mapping.
    pub mapping: &'a SliceMapping,
    /// The monolith, through the link that reads its catalogs.
    pub catalogs: &'a Client,
    /// The monolith under the apply role, which watches its tables.
    pub monolith: &'a Client,
    /// The service under the same role.
    pub service: &'a Client,
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

impl Done {
    /// The stage was taken, and with it everything that it takes.
    fn before() -> Self {
        Self { statements: Vec::new(), token: String::new(), problems: Vec::new(), before: true }
    }
}

/// What speaks for and against a stage.
pub(super) struct Look {
    pub(super) problems: Vec<Problem>,
    pub(super) epoch: i64,
    /// The stage that was taken before.
    taken: Option<Stage>,
    pub(super) catalog: Catalog,
}

impl Job<'_> {
    fn policy(&self) -> &Policy {
        let plan = self.work.plan;
        plan.slices.get(self.work.slice).map_or(&plan.policy, |slice| &slice.policy)
    }

    pub(super) fn tables(&self) -> Vec<TableName> {
        self.mapping.tables.iter().map(|table| table.source.clone()).collect()
    }
}

/// Takes the rights on a slice's old tables away, where what goes is still what `confirm` names, and tells the ledger. Without `confirm`
/// all of it is done and rolled back. Other verbs are kept away meanwhile; what nobody can keep away (readers, comparisons, a mirror,
/// somebody who makes a view) is looked for once more behind the last wait, so that a stage rests on nothing that was seen before it.
///
/// # Errors
/// [`RetireError::Refused`] where something stands in the way, [`RetireError::Changed`] where something else goes than `confirm` names.
/// [`RetireError`]; but for [`RetireError::Untold`] and [`RetireError::Unknown`] nothing was changed then.
pub async fn revoke(job: &Job<'_>, confirm: Option<&str>) -> Result<Done, RetireError> {
    let slice = job.work.slice;
    locked(job.work.databases, async || {
        itself(&job.work.databases.monolith, slice).await?;
        // Of a run that was cut off behind its COMMIT, also where something stands in the way by now.
        if let Some(taken) = retirement::read(&job.work.databases.monolith, slice).await? {
            tell(job.work, TAKING).await?;
            if taken.stage > Stage::Revoked {
                return Ok(Done::before());
            }
        }
        let begun = Instant::now();
        let look = allowed(job, Step::Revoke, None).await?;
        let took = begun.elapsed();
        let again = look.taken.is_some();
        let tables = job.tables();
        let taking = Taking {
            slice,
            epoch: look.epoch,
            tables: &tables,
            own: job.own,
            user: job.work.user,
            approved_by: job.approved_by,
            again,
        };
        let commit = confirm.map(|_| TAKING);
        let take = async |transaction: &mut Transaction<'_>| {
            let taken = revoke::take(transaction, taking).await?;
            let token = token(look.epoch, &taken);
            let before = again && taken.is_empty();
            if !before && confirm.is_some_and(|wanted| wanted != token) {
                return Err(RetireError::Changed { slice: slice.to_owned() });
            }
            if confirm.is_some() && !before {
                Box::pin(look_again(job, transaction, (Step::Revoke, None), took)).await?;
            }
            Ok((token, before))
        };
        let ((token, before), statements) = within(job.work, commit, take).await?;
        if confirm.is_some() {
            tell(job.work, TAKING).await?;
        }
        Ok(Done { statements, token, problems: look.problems, before })
    })
    .await
}

/// Moves a slice's old tables into a schema of their own, where what goes is still what `confirm` names, and tells the ledger. Without `confirm`
/// all of it is done and rolled back. The way back goes on into them. Whatever speaks against it is looked for once more behind the locks
/// that keep everybody away from the tables.
///
/// # Errors
/// As [`revoke()`].
pub async fn quarantine(job: &Job<'_>, confirm: Option<&str>) -> Result<Done, RetireError> {
    let Work { slice, databases, user, .. } = job.work;
    locked(databases, async || {
        itself(&databases.monolith, slice).await?;
        if let Some(taken) = retirement::read(&databases.monolith, slice).await? {
            tell(job.work, MOVING).await?;
            if taken.stage >= Stage::Quarantined {
                return Ok(Done::before());
            }
        }
        let begun = Instant::now();
        let look = Box::pin(allowed(job, Step::Quarantine, None)).await?;
        let (took, tables) = (begun.elapsed(), job.tables());
        let moving = Moving {
            slice,
            epoch: look.epoch,
            tables: &tables,
            own: job.own,
            user,
            approved_by: job.approved_by,
        };
        let judge = async |transaction: &Transaction<'_>| match confirm {
            Some(_) => {
                let step = (Step::Quarantine, Some(&look.catalog));
                Box::pin(look_again(job, transaction, step, took)).await
            }
            None => Ok(()),
        };
        let take = async |transaction: &mut Transaction<'_>| {
            let token = Box::pin(quarantine::take(transaction, moving, &judge)).await?;
            if confirm.is_some_and(|wanted| wanted != token) {
                return Err(RetireError::Changed { slice: slice.to_owned() });
            }
            Ok(token)
        };
        let (token, statements) = within(job.work, confirm.map(|_| MOVING), take).await?;
        if confirm.is_some() {
            tell(job.work, MOVING).await?;
        }
        Ok(Done { statements, token, problems: look.problems, before: false })
    })
    .await
}

/// Brings tables back from quarantine, gives back every right that was taken away, as it was, and tells the ledger; what is gone meanwhile (a role, a table, a column) is
/// left out and stays written down, unless it is given up. Without `commit` all of it is done and rolled back. `None` when nothing was
/// taken, and nothing was left.
///
/// # Errors
/// [`RetireError`]; but for [`RetireError::Untold`] and [`RetireError::Unknown`] everything is as it was then.
pub async fn restore(
    work: Work<'_>,
    (commit, give_up): (bool, bool),
) -> Result<Option<Restored>, RetireError> {
    locked(work.databases, async || {
        let (monolith, slice) = (&work.databases.monolith, work.slice);
        for service in work.databases.services.values() {
            not_abandoned(service, slice).await?;
        }
        itself(monolith, slice).await?;
        let stage = retirement::read(monolith, slice).await?.map(|done| done.stage);
        if stage.is_none() && retirement::rights(monolith, slice).await?.is_empty() {
            tell(work, GIVING).await?;
            return Ok(None);
        }
        let moved = stage.is_some_and(|stage| stage >= Stage::Quarantined);
        let giving = Giving { slice, user: work.user, stage: stage.map(|_| Stage::Revoked), give_up };
        let give = async |transaction: &mut Transaction<'_>| {
            if !moved {
                return revoke::give(transaction, giving).await;
            }
            let back = Box::pin(quarantine::back(transaction, slice, work.user)).await?;
            let restored = revoke::give(transaction, giving).await?;
            Ok(Restored { tables: back.tables, lost: back.gone, left: back.left, ..restored })
        };
        let ending = if moved { BRINGING } else { GIVING };
        let (restored, statements) = within(work, commit.then_some(ending), give).await?;
        if commit {
            tell(work, ending).await?;
        }
        Ok(Some(Restored { statements, ..restored }))
    })
    .await
}

/// Refuses a clone or a restored copy of the monolith: rights are written down by the numbers of tables and roles, which may be others'
/// there.
pub(super) async fn itself(monolith: &Client, slice: &str) -> Result<(), RetireError> {
    // Nothing is written down where an earlier version provisioned, or none.
    if migrate::form(monolith).await? != Form::Current || whereabouts::is_itself(monolith).await? {
        return Ok(());
    }
    let problem = Problem::error("database-cloned", "monolith")
        .fact(whereabouts::CLONED)
        .consequence(format!("rights on the old tables of slice {slice} could go to others than they were taken from"))
        .next(format!(
            "correct the link, if it should lead to the other one; else grant by hand what SELECT * FROM {} names",
            retirement::RIGHTS
        ));
    Err(RetireError::Refused { problems: vec![problem] })
}

/// Looks, and refuses where something stands in the way.
pub(super) async fn allowed(job: &Job<'_>, step: Step, known: Option<&Catalog>) -> Result<Look, RetireError> {
    let look = look(job, step, known).await?;
    let problems = RetireError::unless_allowed(look.problems)?;
    Ok(Look { problems, ..look })
}

/// Looks once more, as the last thing before the COMMIT: while statements waited for somebody else's transaction, a reader may have
/// come, a comparison found differences, a view been made, or a move been begun, which the gate that is held does not show on the
/// service's side. The transaction's session is idle meanwhile, for about as long as the first look `took`.
///
/// `known` are the catalogs where they can't be read meanwhile, because the transaction has locked the tables.
pub(super) async fn look_again(
    job: &Job<'_>,
    transaction: &Transaction<'_>,
    (step, known): (Step, Option<&Catalog>),
    took: Duration,
) -> Result<(), RetireError> {
    let look = async { Box::pin(allowed(job, step, known)).await.map(drop) };
    patiently(transaction, idle_ms(took), look).await
}

/// Does something elsewhere while the transaction stands open, whose session may be idle for so many milliseconds.
pub(super) async fn patiently(
    transaction: &Transaction<'_>,
    idle_ms: u128,
    doing: impl Future<Output = Result<(), RetireError>>,
) -> Result<(), RetireError> {
    let limit = format!("SET LOCAL idle_in_transaction_session_timeout = {idle_ms}");
    let limited = transaction.monolith.batch_execute(&limit).await;
    limited.map_err(RetireError::database("how long a look may take"))?;
    doing.await?;
    let limited = transaction.monolith.batch_execute(&idle_limit()).await;
    limited.map_err(RetireError::database("how long a transaction may be idle"))
}

/// Leaves a second look three times what the first one took, on a machine that others use as well, and one second.
pub(super) fn idle_ms(took: Duration) -> u128 {
    took.as_millis() * 3 + 1_000
}

async fn look(job: &Job<'_>, step: Step, known: Option<&Catalog>) -> Result<Look, RetireError> {
    let Work { slice, databases, user, plan, .. } = job.work;
    let monolith = &databases.monolith;
    if migrate::form(monolith).await? == Form::Older {
        return Err(RetireError::Outdated);
    }
    // Whoever has locked the tables asks by himself: no other session gets at them.
    let (catalog, asks) = match known {
        Some(known) => (known.clone(), monolith),
        None => (introspect::read(job.catalogs).await?, job.monolith),
    };
    let asked = Asked {
        mapping: job.mapping,
        quiet_period: job.policy().quiet_period,
        catalog: &catalog,
        monolith: asks,
        service: job.service,
    };
    let facts = gather::gather(asked).await?;
    let report = judge::judge(&facts);
    let failed = || RetireError::database("the rights on old tables");
    let relations = rights::read(monolith, &job.tables()).await.map_err(failed())?;
    let taken = retirement::read(monolith, slice).await?.map(|done| done.stage);
    let grounds = grounds_of(job, &report).await?;
    let mut problems = match step {
        Step::Revoke => stage::before_revoking(&report, &grounds),
        Step::Quarantine => {
            let mut problems = stage::before_moving(&report, &grounds, revoked(job, taken, &relations));
            let bound = in_the_way_of_moving(job, &relations, known.is_some()).await?;
            // What is said of a function with more reason is said once.
            problems.retain(|problem| !stage::is_said_of(problem, &bound));
            problems.extend(bound);
            problems
        }
        Step::Archive | Step::Drop => {
            let taken = (taken, revoked(job, taken, &relations));
            let mut problems = stage::before_archiving(&report, &grounds, taken);
            problems.extend(printed::names(monolith, &relations).await.map_err(failed())?);
            problems.extend(printed::collations(monolith, &relations).await.map_err(failed())?);
            if step == Step::Drop {
                let bound = in_the_way_of_dropping(job, &relations, known.is_some()).await?;
                problems.retain(|problem| !stage::is_said_of(problem, &bound));
                problems.extend(bound);
            }
            problems
        }
    };
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
    problems.dedup();
    Ok(Look { problems, epoch: report.epoch, taken, catalog })
}

/// How the first stage stands.
fn revoked(job: &Job<'_>, taken: Option<Stage>, relations: &[Relation]) -> Revoked {
    match taken {
        None => Revoked::Not,
        Some(_) if relations.iter().any(|relation| relation.taken(job.own).next().is_some()) => {
            Revoked::GivenSince
        }
        Some(_) => Revoked::Wholly,
    }
}

/// What only moving tables away asks for. What the catalogs have told before the tables were locked is asked again behind that.
async fn in_the_way_of_moving(
    job: &Job<'_>,
    relations: &[Relation],
    locked: bool,
) -> Result<Vec<Problem>, RetireError> {
    const TOLD: &[&str] = &["view", "materialized view", "rewrite rule", "policy", "foreign key"];
    let (monolith, slice) = (&job.work.databases.monolith, job.work.slice);
    let told = if locked { &[] } else { TOLD };
    let failed = || RetireError::database("what depends on the old tables");
    let mut problems = moving::followers(monolith, relations, told).await.map_err(failed())?;
    problems.extend(moving::shared(slice, &job.tables(), &holdings::read(monolith).await?));
    let objects = moving::objects(monolith, relations).await.map_err(failed())?;
    let wanted = objects.iter().map(|object| (object.owner.clone(), object.name.schema.clone())).collect();
    let (_, no_way_back) = moving::who_puts(monolith, &wanted).await.map_err(failed())?;
    problems.extend(no_way_back);
    problems.extend(called::problems(monolith, relations, &job.tables()).await.map_err(failed())?);
    problems.extend(printed::names(monolith, relations).await.map_err(failed())?);
    Ok(problems)
}

/// What would break, or stop it, when tables are dropped. What the catalogs have told before the tables were `locked` is asked behind that.
pub(super) async fn in_the_way_of_dropping(
    job: &Job<'_>,
    relations: &[Relation],
    locked: bool,
) -> Result<Vec<Problem>, RetireError> {
    const TOLD: &[&str] = &["view", "materialized view", "rewrite rule", "policy", "foreign key"];
    let monolith = &job.work.databases.monolith;
    let told = if locked { &[] } else { TOLD };
    let failed = || RetireError::database("what depends on the old tables");
    let mut problems = moving::followers(monolith, relations, told).await.map_err(failed())?;
    problems.extend(moving::shared(job.work.slice, &job.tables(), &holdings::read(monolith).await?));
    if locked {
        let own = slices::read(monolith, job.work.slice).await?.map(|row| row.publication);
        let own = own.unwrap_or_default();
        problems.extend(moving::published(monolith, relations, &own).await.map_err(failed())?);
    }
    Ok(problems)
}

async fn grounds_of(job: &Job<'_>, report: &SliceReport) -> Result<Grounds, RetireError> {
    let (slice, policy) = (job.work.slice, job.policy());
    let service = job.work.databases.services.get(&job.mapping.service);
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
    shown(&Sha256::digest(format!("{epoch} {taken:?}").as_bytes()))
}

/// The beginning of a hash, as it is typed.
pub(crate) fn shown(hash: &[u8]) -> String {
    words::hex(hash).chars().take(8).collect()
}

/// Does something while other verbs are kept away from the databases.
pub(super) async fn locked<T>(
    databases: &Databases,
    doing: impl AsyncFnOnce() -> Result<T, RetireError>,
) -> Result<T, RetireError> {
    provision::lock(databases).await?;
    let done = doing().await;
    provision::unlock(databases).await;
    done
}

/// Does something in a transaction on the monolith, and returns the statements that were run: once more where somebody else changed
/// rights at the same moment. Without a `commit` it is rolled back.
pub(super) async fn within<T>(
    work: Work<'_>,
    commit: Option<Commit>,
    doing: impl AsyncFn(&mut Transaction<'_>) -> Result<T, RetireError>,
) -> Result<(T, Vec<String>), RetireError> {
    let monolith = &work.databases.monolith;
    let failed = || RetireError::database("whether a transaction began");
    let process = monolith.query_typed_one("SELECT pg_backend_pid()", &[]).await.map_err(failed())?.get(0);
    for _ in 0..ATTEMPTS {
        let begin = format!("BEGIN; {}; SET LOCAL lock_timeout = {LOCK_MS}", idle_limit());
        monolith.batch_execute(&begin).await.map_err(failed())?;
        let mut transaction = Transaction { monolith, statements: Vec::new() };
        let (done, who) = watched((work.watch, process), doing(&mut transaction)).await;
        let error = match (done, commit) {
            (Ok(done), Some(commit)) => {
                committed(work, commit).await?;
                return Ok((done, transaction.statements));
            }
            (Ok(done), None) => {
                rolled_back(monolith).await;
                return Ok((done, transaction.statements));
            }
            (Err(error), _) => error,
        };
        rolled_back(monolith).await;
        let source = if let RetireError::Statement { source, .. } = &error { Some(source) } else { None };
        if source.is_some_and(sqlstate::is_lock_timeout) {
            return Err(RetireError::Waited { who });
        }
        let raced = matches!(error, RetireError::Raced);
        if !raced && !source.is_some_and(sqlstate::is_concurrent_change) {
            return Err(error);
        }
    }
    Err(RetireError::Raced)
}

/// Commits. Where the link is lost meanwhile, the server is asked through another one what came of it.
async fn committed(work: Work<'_>, commit: Commit) -> Result<(), RetireError> {
    let monolith = &work.databases.monolith;
    let number = monolith.query_typed_one("SELECT pg_current_xact_id()::text", &[]).await;
    let number: String = number.map_err(RetireError::database("the number of a transaction"))?.get(0);
    failpoint::hit(commit.before);
    if let Err(source) = monolith.batch_execute("COMMIT").await {
        came_to(work, commit, (&number, source)).await?;
    }
    failpoint::hit(commit.behind);
    Ok(())
}

/// Looks what came of a COMMIT that failed here; `Ok` where it was committed all the same.
async fn came_to(
    work: Work<'_>,
    commit: Commit,
    (number, source): (&str, tokio_postgres::Error),
) -> Result<(), RetireError> {
    let lost = sqlstate::is_connection_lost(&source);
    match if lost { outcome(work.watch, number).await } else { Some(false) } {
        Some(true) => Ok(()),
        Some(false) => Err(RetireError::Statement { sql: "the COMMIT".to_owned(), owner: None, source }),
        None => Err(RetireError::Unknown { done: commit.done, source }),
    }
}

/// Whether a transaction was committed; `None` where the server does not tell, or not yet.
async fn outcome(watch: &Client, number: &str) -> Option<bool> {
    for _ in 0..ENDING_LOOKS {
        let sql = "SELECT pg_xact_status($1::text::xid8)";
        match watch.query_one(sql, &[&number]).await.ok()?.get::<_, Option<&str>>(0)? {
            "in progress" => tokio::time::sleep(LOOK).await,
            status => return Some(status == "committed"),
        }
    }
    None
}

/// Where the link is gone, the server has rolled back by itself.
async fn rolled_back(monolith: &Client) {
    let _ = monolith.batch_execute("ROLLBACK").await;
}

/// Does something in another session, and sees whom that waits for.
pub(super) async fn watched<T>(
    (watch, process): (&Client, i32),
    doing: impl Future<Output = T>,
) -> (T, Option<String>) {
    let who = Cell::new(None);
    let done = tokio::select! {
        done = doing => done,
        never = look_on(watch, process, &who) => match never {},
    };
    (done, who.take())
}

async fn look_on(watch: &Client, process: i32, who: &Cell<Option<String>>) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_ON).await;
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

/// Tells the ledger of every step that it does not know of. All of them are committed.
pub(super) async fn tell(work: Work<'_>, commit: Commit) -> Result<(), RetireError> {
    failpoint::hit("steps-taken");
    let only = [work.slice.to_owned()];
    let run = provision::Run { plan: work.plan, verb: commit.verb, only: &only, author: work.author };
    let told = provision::record(work.databases, run, work.mappings).await;
    told.map_err(|source| RetireError::Untold { done: commit.done, source })
}
