//! A monolith, one service and a mirror in this process, which a test can hold at named places, stop, or drop as a
//! crash would.

use std::sync::Arc;
use std::time::Duration;

use strangler::cdc::batch::BatchLimits;
use strangler::cdc::engine::{MirrorOptions, Rebuild, SliceConfig};
use strangler::cdc::error::MirrorError;
use strangler::cdc::headroom::WalLimits;
use strangler::cdc::mirror::{self, Board, SliceEnd, chain_of};
use strangler::cdc::progress::Progress;
use strangler::cdc::record::Recorder;
use strangler::cdc::route::RouteCounts;
use strangler::cdc::start::ProcessName;
use strangler::failpoint::hooks::{Hooks, Mutant};
use strangler::journal::ledger::{Author, Subject};
use strangler::journal::streams::Direction;
use strangler::mapping::{SliceMapping, TableMapping, compile};
use strangler::name::TableName;
use strangler::plan::{AtWalLimit, LinkTemplate, Plan, Variables, parse};
use strangler::postgres::connect::{Server, SessionRole};
use strangler::postgres::introspect;
use strangler::provision::{Databases, Logins};
use strangler::reconcile::form::Side as SideOf;
use strangler::reconcile::meet::Meeting;
use strangler::reconcile::sides::Sides;
use tokio::sync::{Semaphore, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::cluster::Pair;
use super::tables::{Side, difference, dump};
use super::wait::{SOON, until, within};

const SLICE: &str = "things";

/// Whoever a test says to be.
pub fn author() -> Author {
    Author { operator: "a test".to_owned(), host: "here".to_owned() }
}

/// Tells the ledger of a mirror in this process; nobody writes its head to the monolith.
pub fn recorder(mapping: &SliceMapping, service: Server) -> Recorder {
    let subject = Subject::new("retail", mapping, "policy".to_owned(), author());
    Recorder::new(subject, &mapping.service, service, None)
}

/// The two databases, provisioned for one slice, and a session in each.
pub struct Scenario {
    pub pair: Pair,
    pub source: Client,
    pub target: Client,
    pub mapping: SliceMapping,
    plan: Plan,
    spill: tempfile::TempDir,
}

/// How a mirror of a scenario runs.
#[derive(Clone)]
pub struct Run {
    pub hooks: Hooks,
    pub workers: usize,
    pub rows_per_range: u64,
    pub take_over: bool,
    pub retry: Vec<TableName>,
    pub rebuild: bool,
}

impl Run {
    /// One worker, two ranges of 10 rows a round, every transaction applied by itself.
    pub fn new(mutants: &[Mutant]) -> Self {
        Self {
            hooks: Hooks::with(mutants).eager(),
            workers: 1,
            rows_per_range: 10,
            take_over: true,
            retry: Vec::new(),
            rebuild: false,
        }
    }
}

/// A running mirror. Dropping it is a crash.
pub struct Running {
    pub hooks: Hooks,
    pub board: watch::Receiver<Progress>,
    stop: CancellationToken,
    task: AbortOnDropHandle<Vec<SliceEnd>>,
}

#[derive(Debug)]
struct NoVariables;

impl Variables for NoVariables {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, _: &str) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

impl Scenario {
    /// Creates the tables of `schema` in the monolith and provisions those of `tables`, lines of the plan, in the
    /// service.
    pub async fn new(schema: &str, tables: &str) -> Self {
        let pair = Pair::launch().await;
        let source = pair.monolith().await;
        // The test's own writes never wait for a standby.
        source.batch_execute("SET synchronous_commit = local").await.unwrap();
        source.batch_execute(schema).await.unwrap();
        source.batch_execute("ANALYZE").await.unwrap();
        let plan = plan(&pair, tables);
        let mut databases = Databases {
            monolith: pair.monolith().await,
            services: [("other".to_owned(), pair.service().await)].into(),
        };
        strangler::provision::run(&plan, &[], &mut databases, (&Logins::default(), &author()), &mut |_| {})
            .await
            .unwrap_or_else(|error| panic!("{error:?}"));
        let catalog = introspect::read(&source).await.unwrap();
        let (mut mappings, _) = compile(&plan, &catalog);
        let mapping = mappings.remove(SLICE).unwrap();
        let target = pair.service().await;
        Self { pair, source, target, mapping, plan, spill: tempfile::tempdir().unwrap() }
    }

    /// What the mapping says of the only table, to be bent: how large it is taken to be, whether it is copied whole.
    pub fn table(&mut self) -> &mut TableMapping {
        &mut self.mapping.tables[0]
    }

    /// Starts a mirror.
    pub fn start(&self, run: &Run) -> Running {
        let (board, receiver) = Board::new(&[SLICE.to_owned()]);
        let server =
            |link: &LinkTemplate, role| Server::new("test", link.clone(), role, Arc::new(NoVariables));
        let service = &self.plan.services["other"];
        let config = SliceConfig {
            plan: self.plan.name.clone(),
            direction: Direction::Forward,
            back: None,
            mapping: Arc::new(self.mapping.clone()),
            read: server(&self.plan.monolith.links.read, SessionRole::Read),
            apply: server(&service.links.apply, SessionRole::Apply),
            admin: server(&service.links.admin, SessionRole::Admin),
            wal: WalLimits { budget_bytes: 1 << 30, at_limit: AtWalLimit::Warn },
            options: Arc::new(MirrorOptions {
                workers: run.workers,
                rows_per_range: Some(run.rows_per_range),
                spill_folder: self.spill.path().to_owned(),
                limits: BatchLimits { age: Duration::ZERO, ..BatchLimits::default() },
                retry: run.retry.clone(),
                rebuild: run.rebuild.then_some(Rebuild::Compare),
                take_over: run.take_over,
                hooks: run.hooks.clone(),
            }),
            rounds: Arc::new(Semaphore::new(1)),
            board,
            recorder: recorder(&self.mapping, server(&service.links.apply, SessionRole::Apply)),
        };
        let stop = CancellationToken::new();
        let process = ProcessName::new("test".to_owned(), std::process::id());
        let task = tokio::spawn(mirror::run(vec![config], process, stop.clone()));
        Running { hooks: run.hooks.clone(), board: receiver, stop, task: AbortOnDropHandle::new(task) }
    }

    /// The ways to both sides, while the monolith has the authority.
    pub fn sides(&self) -> Sides {
        let server =
            |link: &LinkTemplate, role| Server::new("test", link.clone(), role, Arc::new(NoVariables));
        let (monolith, service) = (&self.plan.monolith.links, &self.plan.services["other"].links);
        Sides {
            authority: SideOf::Source,
            monolith_read: server(&monolith.read, SessionRole::Read),
            monolith_apply: server(&monolith.apply, SessionRole::Apply),
            service_apply: server(&service.apply, SessionRole::Apply),
        }
    }

    /// Where both sides meet.
    pub async fn meeting(&self) -> Arc<Meeting> {
        let sides = self.sides();
        let authority = sides.reader(sides.authority).await.unwrap();
        let copy = sides.reader(sides.copy()).await.unwrap();
        Arc::new(Meeting::new(SLICE, sides.direction(), authority, copy).await.unwrap())
    }

    /// Starts a mirror that passes a place so many times, and waits until it stands there again.
    pub async fn hold(&self, run: &Run, (place, passes): (&'static str, usize)) -> Running {
        run.hooks.close(place, passes);
        let running = self.start(run);
        running.hooks.reached(place).await;
        running
    }

    /// The frame of the cases about visibility. A mirror is held at a place; a transaction commits into the log that no
    /// snapshot sees; the mirror is let go, or crashes, as `meanwhile` does it; then the commit becomes visible and
    /// everything settles. Returns what is wrong then.
    pub async fn unseen(
        &self,
        (run, place, query): (&Run, (&'static str, usize), &str),
        commit: &str,
        meanwhile: impl AsyncFnOnce(Running) -> Running,
    ) -> Option<String> {
        let running = self.hold(run, place).await;
        self.lose_the_standby().await;
        self.commit_invisibly(commit).await;
        let running = meanwhile(running).await;
        self.forget_the_standby().await;
        self.outcome(running, query).await
    }

    /// Lets everything settle, stops the mirror in good order, and returns what is wrong then.
    pub async fn outcome(&self, running: Running, query: &str) -> Option<String> {
        self.settled().await;
        let fault = self.fault(query).await;
        running.stop().await;
        fault
    }

    /// Runs SQL on the monolith.
    pub async fn write(&self, sql: &str) {
        self.source.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Another session on the monolith.
    pub async fn writer(&self) -> Client {
        self.pair.monolith().await
    }

    /// Waits until a query on the service gives `true`.
    pub async fn until_target(&self, sql: &str) {
        until(sql, SOON, async || holds(&self.target, sql).await.then_some(())).await;
    }

    /// Waits until a query on the monolith gives `true`.
    pub async fn until_source(&self, sql: &str) {
        until(sql, SOON, async || holds(&self.source, sql).await.then_some(())).await;
    }

    /// Waits until so many pieces of a kind are recorded.
    pub async fn until_pieces(&self, kind: &str, count: usize) {
        self.until_target(&format!("SELECT count(*) >= {count} FROM strangler.piece WHERE kind = '{kind}'"))
            .await;
    }

    /// The monolith's present end of the log.
    pub async fn position(&self) -> String {
        self.source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0)
    }

    /// Waits until everything written so far is applied. The test's own marker brings the stream there.
    pub async fn until_applied(&self) {
        let position = self.position().await;
        self.write("SELECT pg_logical_emit_message(true, 'test', '')").await;
        self.until_target(&format!("SELECT applied_lsn >= '{position}' FROM strangler.stream")).await;
    }

    /// Waits until every table is live or stands still, and everything written so far is applied.
    pub async fn settled(&self) {
        self.until_target("SELECT bool_and(state IN ('live', 'diverged')) FROM strangler.mirror_table").await;
        self.until_applied().await;
    }

    /// What is wrong with the only table of the service, if anything: its mirror raised an alarm, or its rows are
    /// not those of the monolith.
    pub async fn fault(&self, query: &str) -> Option<String> {
        let sql =
            "SELECT source_table || ': ' || detail FROM strangler.mirror_table WHERE state = 'diverged'";
        if let Some(row) = self.target.query_opt(sql, &[]).await.unwrap() {
            return Some(format!("alarm: {}", row.get::<_, String>(0)));
        }
        difference(&dump(&self.source, query).await, &dump(&self.target, query).await)
    }

    /// Checks that the rows of a query are the same on both sides and that nothing raised an alarm.
    pub async fn assert_equal(&self, query: &str) {
        assert_eq!(self.fault(query).await, None);
        let side = |client| Side { client, query };
        super::tables::assert_same(side(&self.source), side(&self.target)).await;
    }

    /// From now on commits on the monolith reach the log and the stream but are not visible, because a standby that
    /// does not exist has to confirm them.
    pub async fn lose_the_standby(&self) {
        self.write("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
        self.write("SELECT pg_reload_conf()").await;
        self.until_source("SELECT current_setting('synchronous_standby_names') = 'nobody'").await;
        // The checkpointer tells the others; until it has, a commit does not wait.
        let probe = self.pair.monolith().await;
        let probing = tokio::spawn(async move {
            // Nothing of it is in the stream, so no round waits for it.
            while probe.batch_execute("CREATE TABLE probe (); DROP TABLE probe").await.is_ok() {}
        });
        self.until_hung(1).await;
        probing.abort();
    }

    /// Waits until so many commits hang.
    pub async fn until_hung(&self, count: usize) {
        self.until_source(&format!(
            "SELECT count(*) >= {count} FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        ))
        .await;
    }

    /// How many commits hang.
    pub async fn hung(&self) -> usize {
        let hanging = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let hung: i64 = self.source.query_one(hanging, &[]).await.unwrap().get(0);
        usize::try_from(hung).unwrap()
    }

    /// Runs a transaction whose commit hangs, and returns once it does.
    pub async fn commit_invisibly(&self, sql: &str) {
        let before = self.hung().await;
        let writer = self.writer().await;
        let sql = sql.to_owned();
        tokio::spawn(async move { writer.batch_execute(&sql).await });
        self.until_hung(before + 1).await;
    }

    /// The standby is no longer needed: what hangs becomes visible.
    pub async fn forget_the_standby(&self) {
        self.write("ALTER SYSTEM RESET synchronous_standby_names").await;
        self.write("SELECT pg_reload_conf()").await;
        self.until_source("SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await;
    }
}

impl Running {
    /// How the stream's events have fared since the engine started.
    pub fn counts(&self) -> RouteCounts {
        self.board.borrow().slices[0].counts
    }

    /// Waits until the operator is told what the test names.
    pub async fn until_told(&mut self, words: &str) {
        let told = |progress: &Progress| {
            progress.slices[0].detail.as_ref().is_some_and(|detail| detail.contains(words))
        };
        let told = self.board.wait_for(told);
        drop(within(words, SOON, told).await.expect("the mirror runs until the operator is told"));
    }

    /// Waits until the events so far have fared as the test says.
    pub async fn until_counted(&mut self, so: impl Fn(&RouteCounts) -> bool) {
        let counted = self.board.wait_for(|p| so(&p.slices[0].counts));
        drop(within("the events are counted", SOON, counted).await.expect("the mirror runs until then"));
    }

    /// Waits until the engine is in a phase.
    pub async fn until_phase(&mut self, phase: &str) {
        let reached = self.board.wait_for(|p| p.slices[0].phase == phase);
        drop(within(phase, SOON, reached).await.expect("the mirror runs until then"));
    }

    /// Lets go of everything at once, as a crash would.
    pub async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Stops in good order.
    ///
    /// # Panics
    /// When that takes long, or when the slice had failed before.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.end().await {
            panic!("{}", chain_of(&error));
        }
    }

    /// Waits for its end and returns how it ended.
    pub async fn end(self) -> Result<(), MirrorError> {
        let ends = within("the mirror ends", SOON, self.task).await;
        ends.unwrap().remove(0).result
    }
}

async fn holds(client: &Client, sql: &str) -> bool {
    client
        .query_one(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        .get::<_, Option<bool>>(0)
        == Some(true)
}

fn plan(pair: &Pair, tables: &str) -> Plan {
    let (monolith, service) = (pair.monolith_url(), pair.service_url());
    let text = format!(
        "version: 1\nplan: scenario\nmonolith:\n  url: \"{monolith}\"\nservices:\n  \
         other: {{ url: \"{service}\" }}\nslices:\n  {SLICE}:\n    service: other\n    tables:\n{tables}"
    );
    parse(text.as_bytes(), "scenario.yaml")
        .unwrap_or_else(|problems| panic!("{}", problems.render(false)))
        .plan
}
