//! The mirror of an armed split in this process, so that a test can take one of its safeguards away.

use std::sync::Arc;
use std::time::Duration;

use strangler::cdc::batch::BatchLimits;
use strangler::cdc::engine::{BackLinks, MirrorOptions, SliceConfig};
use strangler::cdc::headroom::WalLimits;
use strangler::cdc::mirror::{self, Board, SliceEnd, chain_of};
use strangler::cdc::start::ProcessName;
use strangler::failpoint::hooks::Hooks;
use strangler::journal::streams::Direction;
use strangler::mapping::{SliceMapping, compile};
use strangler::plan::{AtWalLimit, LinkTemplate, Variables, parse};
use strangler::postgres::connect::{Server, SessionRole};
use strangler::postgres::introspect;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::stage::Stage;
use crate::support::scenario::recorder;
use crate::support::wait::{SOON, within};

/// A running mirror. Dropping it is a crash.
pub struct Inside {
    stop: CancellationToken,
    task: AbortOnDropHandle<Vec<SliceEnd>>,
    _spill: tempfile::TempDir,
}

#[derive(Debug)]
struct Links(Vec<(&'static str, String)>);

impl Variables for Links {
    fn variable(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, link)| link.clone())
    }

    fn file(&self, _: &str) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// The ways into both databases, as the plan has them.
pub struct Ways {
    variables: Arc<dyn Variables>,
    monolith: LinkTemplate,
    service: LinkTemplate,
}

impl Ways {
    pub fn of(stage: &Stage) -> Self {
        let plan = parse(stage.split.plan_text().as_bytes(), "plan.yaml").unwrap().plan;
        let pair = &stage.split.pair;
        let variables = Links(vec![("MONOLITH", pair.monolith_url()), ("SERVICE", pair.service_url())]);
        Self {
            variables: Arc::new(variables),
            monolith: plan.monolith.links.admin.clone(),
            service: plan.services["service"].links.admin.clone(),
        }
    }

    pub fn monolith(&self, role: SessionRole) -> Server {
        Server::new("monolith", self.monolith.clone(), role, Arc::clone(&self.variables))
    }

    pub fn service(&self, role: SessionRole) -> Server {
        Server::new("service", self.service.clone(), role, Arc::clone(&self.variables))
    }
}

pub async fn mapping(stage: &Stage) -> SliceMapping {
    let plan = parse(stage.split.plan_text().as_bytes(), "plan.yaml").unwrap().plan;
    let catalog = introspect::read(&stage.monolith).await.unwrap();
    compile(&plan, &catalog).0.remove("one").unwrap()
}

impl Inside {
    /// Starts both streams with these hooks and waits until they run.
    pub async fn start(stage: &Stage, hooks: Hooks) -> Self {
        let ways = Ways::of(stage);
        let spill = tempfile::tempdir().unwrap();
        let (board, _) = Board::new(&["one".to_owned()]);
        let mapping = mapping(stage).await;
        let config = SliceConfig {
            plan: "split".to_owned(),
            direction: Direction::Forward,
            recorder: recorder(&mapping, ways.service(SessionRole::Apply)),
            mapping: Arc::new(mapping),
            read: ways.monolith(SessionRole::Read),
            apply: ways.service(SessionRole::Apply),
            admin: ways.service(SessionRole::Admin),
            back: Some(BackLinks {
                read: ways.service(SessionRole::Read),
                apply: ways.monolith(SessionRole::Apply),
                admin: ways.monolith(SessionRole::Admin),
            }),
            wal: WalLimits { budget_bytes: 1 << 30, at_limit: AtWalLimit::Warn },
            options: Arc::new(MirrorOptions {
                workers: 1,
                rows_per_range: Some(100),
                spill_folder: spill.path().to_owned(),
                limits: BatchLimits { age: Duration::ZERO, ..BatchLimits::default() },
                retry: Vec::new(),
                rebuild: None,
                take_over: true,
                hooks,
            }),
            rounds: Arc::new(Semaphore::new(1)),
            board,
        };
        let stop = CancellationToken::new();
        let process = ProcessName::new("test".to_owned(), std::process::id());
        let task = AbortOnDropHandle::new(tokio::spawn(mirror::run(vec![config], process, stop.clone())));
        Self { stop, task, _spill: spill }
    }

    /// Stops it, and returns why a stream had ended before, by its direction.
    pub async fn stop(self) -> Vec<(Direction, String)> {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits until every stream has ended by itself.
    pub async fn ended(self) -> Vec<(Direction, String)> {
        let ends = within("the mirror ends", SOON, self.task).await.unwrap();
        ends.into_iter().filter_map(|end| Some((end.direction, chain_of(&end.result.err()?)))).collect()
    }
}
