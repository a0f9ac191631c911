//! What the demo itself sees of both sides, through the same links and the same reader as `strangler status`.

use std::fmt;
use std::sync::Arc;

use super::links::Links;
use super::operator::PLAN_PATH;
use crate::cdc::error::MirrorError;
use crate::cdc::source::{self, MARKER_PREFIX};
use crate::lsn::Lsn;
use crate::mapping::{self, Mappings};
use crate::plan::{LinkTemplate, Plan, Variables};
use crate::postgres::introspect::{self, IntrospectError};
use crate::postgres::{ConnectError, Server, SessionRole};
use crate::reconcile::digest::{self, DigestError, TableDigest};
use crate::status::gather::Reader;
use crate::status::judge::Commands;
use crate::status::{Phase, SliceStatus, judge};

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler demo";

/// Both sides could not be seen or compared.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The monolith's catalogs could not be read.
    #[error("read the monolith's tables")]
    Catalog(#[from] IntrospectError),
    /// The monolith's position could not be read, or no marker sent.
    #[error("mark the monolith's position")]
    Position(#[from] MirrorError),
    /// A table could not be read.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// Eyes on both sides.
#[derive(Debug)]
pub(super) struct View {
    plan: Plan,
    variables: Arc<dyn Variables>,
    reader: Reader,
}

/// All slices at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Glance {
    pub(super) slices: usize,
    pub(super) streaming: usize,
    /// Of those that stream, how many seconds the one furthest behind is behind.
    pub(super) lag_seconds: Option<f64>,
}

impl View {
    pub(super) fn new(plan: &Plan, links: &Links) -> Self {
        let variables: Arc<dyn Variables> = Arc::new(links.clone());
        let services = plan.services.iter();
        let services = services.map(|(name, service)| {
            (name.clone(), server(name, &service.links.admin, SessionRole::Admin, &variables))
        });
        let slices: Vec<String> = plan.slices.keys().cloned().collect();
        let monolith = server("monolith", &plan.monolith.links.admin, SessionRole::Admin, &variables);
        let reader = Reader::new(plan, &slices, monolith, services.collect());
        Self { plan: plan.clone(), variables, reader }
    }

    /// Where the slices stand.
    pub(super) async fn slices(&mut self) -> Vec<SliceStatus> {
        let commands = Commands::about(PLAN_PATH);
        self.reader.read().await.iter().map(|facts| judge(facts, &commands)).collect()
    }

    /// The end of what the monolith has written, with a marker behind it for each slice, so that its mirror notes at
    /// once that it has got there.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(super) async fn mark(&self) -> Result<Lsn, ViewError> {
        let session = self.monolith().connect(APPLICATION).await?;
        let position = source::insert_position(&session).await?;
        for slice in self.plan.slices.keys() {
            source::emit(&session, MARKER_PREFIX, &source::marker_content(slice, "demo")).await?;
        }
        Ok(position)
    }

    /// How the plan's tables map, by slice.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(super) async fn mappings(&self) -> Result<Mappings, ViewError> {
        let session = self.monolith().connect(APPLICATION).await?;
        // What is wrong between plan and tables, the mirror has refused before.
        Ok(mapping::compile(&self.plan, &introspect::read(&session).await?).0)
    }

    /// The ends of what both sides of a slice have written, monolith first, each with a marker behind it.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(super) async fn mark_both(&self, slice: &str, service: &str) -> Result<[Lsn; 2], ViewError> {
        let mut servers = vec![self.monolith()];
        servers.extend(self.service(service));
        let mut positions = [Lsn::default(); 2];
        for (place, server) in positions.iter_mut().zip(servers) {
            let session = server.connect(APPLICATION).await?;
            *place = source::insert_position(&session).await?;
            source::emit(&session, MARKER_PREFIX, &source::marker_content(slice, "demo")).await?;
        }
        Ok(positions)
    }

    /// Compares every table of a slice, row by row, through digests.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(super) async fn compare(&self, slice: &mapping::SliceMapping) -> Result<Vec<TableDigest>, ViewError> {
        let Some(target) = self.service(&slice.service) else { return Ok(Vec::new()) };
        let mut source = self.monolith().connect(APPLICATION).await?.into_client();
        let mut target = target.connect(APPLICATION).await?.into_client();
        Ok(digest::compare(&mut source, &mut target, &slice.tables).await?)
    }

    fn service(&self, name: &str) -> Option<Server> {
        let service = self.plan.services.get(name)?;
        Some(server(name, &service.links.admin, SessionRole::Admin, &self.variables))
    }

    fn monolith(&self) -> Server {
        server("monolith", &self.plan.monolith.links.read, SessionRole::Read, &self.variables)
    }
}

fn server(label: &str, link: &LinkTemplate, role: SessionRole, variables: &Arc<dyn Variables>) -> Server {
    Server::new(label, link.clone(), role, Arc::clone(variables))
}

impl Glance {
    pub(super) fn of(slices: &[SliceStatus]) -> Self {
        let streaming = || slices.iter().filter(|slice| slice.phase == Phase::Streaming);
        let lags = streaming().filter_map(|slice| slice.lag.as_ref()?.seconds);
        Self { slices: slices.len(), streaming: streaming().count(), lag_seconds: lags.reduce(f64::max) }
    }

    /// Everything is copied, and no slice is further behind than this.
    pub(super) fn is_within(&self, lag_seconds: f64) -> bool {
        self.streaming == self.slices && self.lag_seconds.is_some_and(|lag| lag <= lag_seconds)
    }
}

impl fmt::Display for Glance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} slices stream", self.streaming, self.slices)?;
        match self.lag_seconds {
            None => Ok(()),
            Some(lag) if lag < 1.0 => write!(f, ", at most {:.0} ms behind", lag * 1000.0),
            Some(lag) => write!(f, ", at most {lag:.1} s behind"),
        }
    }
}
