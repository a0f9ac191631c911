//! Reads all databases of a plan at once, again and again for a watcher, and never lets one that is away hold up
//! the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::facts::{MonolithFacts, ServiceFacts, Side, SliceFacts, WalReading};
use super::judge::Commands;
use super::orphans::{self, Orphan};
use super::read::{self, ReadError};
use crate::cdc::mirror::chain_of;
use crate::journal::dropped;
use crate::journal::holdings::{self, Holding};
use crate::journal::ledger::{self, Anchor};
use crate::journal::whereabouts::{self, Route, Whereabouts};
use crate::mapping::{self, SliceMapping};
use crate::name::TableName;
use crate::plan::Plan;
use crate::postgres::{Server, Session, introspect};
use crate::problem::Problem;
use crate::provision::{self, Asking};

/// How long one database may take before the others are shown without it. Longer than the 10 seconds that a link gives
/// one attempt to connect, so that the reason comes from there.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// A watcher reads each second, and the whole catalog is too much for that.
const MAPPED_EVERY: Duration = Duration::from_secs(10);

/// Readings of the WAL held that are kept for the rate: a minute's worth for a watcher who reads each second.
const READINGS_KEPT: usize = 60;

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler status";

/// Reads the databases of some slices.
#[derive(Debug)]
pub struct Reader {
    plan: Plan,
    slices: Vec<Chosen>,
    monolith: Database,
    services: BTreeMap<String, Database>,
    readings: BTreeMap<String, VecDeque<WalReading>>,
    places: Places,
    mapped: Option<(Instant, BTreeMap<String, SliceMapping>)>,
}

/// Where the links led when they were read last: the monolith's, and those of the services that answered.
type Places = (Option<Whereabouts>, BTreeMap<String, Whereabouts>);

/// A slice that is read.
#[derive(Debug)]
struct Chosen {
    slice: String,
    service: String,
    wal_budget_bytes: u64,
    evidence_max_age: Duration,
}

/// One database, with the session to it while it lasts.
#[derive(Debug)]
struct Database {
    server: Server,
    session: Option<Session>,
    slices: Vec<String>,
}

impl Reader {
    /// Reads these slices of the plan, through these servers. Slices that the plan doesn't have are left out.
    #[must_use]
    pub fn new(plan: &Plan, slices: &[String], monolith: Server, services: BTreeMap<String, Server>) -> Self {
        let chosen: Vec<Chosen> = slices
            .iter()
            .filter_map(|name| plan.slices.get_key_value(name))
            .map(|(name, slice)| Chosen {
                slice: name.clone(),
                service: slice.service.clone(),
                wal_budget_bytes: slice.policy.wal_budget_bytes,
                evidence_max_age: slice.policy.evidence_max_age,
            })
            .collect();
        let of = |service: Option<&str>| {
            let wanted =
                chosen.iter().filter(|chosen| service.is_none_or(|service| chosen.service == service));
            wanted.map(|chosen| chosen.slice.clone()).collect()
        };
        let services = services
            .into_iter()
            .map(|(name, server)| {
                let slices = of(Some(&name));
                (name, Database { server, session: None, slices })
            })
            .collect();
        let monolith = Database { server: monolith, session: None, slices: of(None) };
        let (readings, places) = (BTreeMap::new(), Places::default());
        Self { plan: plan.clone(), slices: chosen, monolith, services, readings, places, mapped: None }
    }

    /// The facts of every slice, in the order given. Never fails: a database that says nothing is a fact too.
    pub async fn read(&mut self) -> Vec<SliceFacts> {
        let services = join_all(self.services.iter_mut().map(async |(name, database)| {
            let ask = async |session: &Session, slices: &[&str]| {
                Ok((read::service(session, slices).await?, whereabouts::read(session).await?))
            };
            let facts = split(database.ask(ask).await);
            (name.clone(), facts)
        }));
        let monolith = self.monolith.ask(async |session: &Session, slices: &[&str]| {
            let (facts, at) = (read::monolith(session, slices).await?, whereabouts::read(session).await?);
            Ok(((facts, at), (holdings::read(session).await?, read::anchors(session).await?)))
        });
        let (monolith, services) = tokio::join!(monolith, services);
        let (monolith, (holdings, anchors)) = match monolith {
            Ok((monolith, others)) => (Ok(monolith), others),
            Err(reason) => (Err(reason), (Vec::new(), BTreeMap::new())),
        };
        let (monolith, monolith_at) = split(monolith);
        let mut services: BTreeMap<String, Answer<ServiceFacts>> = services.into_iter().collect();
        self.hold_against(&anchors, &mut services).await;
        let places = services.values().filter_map(|(_, at)| at.as_ref());
        let pinned: BTreeMap<String, String> = places.flat_map(|at| at.begun.clone()).collect();
        let begun: BTreeSet<String> = pinned.keys().cloned().collect();
        if monolith.is_ok() && self.slices.iter().any(|chosen| begun.contains(&chosen.slice)) {
            self.map().await;
        }
        let mapped = self.mapped.as_ref();
        let changed = |slice: &str| {
            let mapping = mapped.and_then(|(_, mapped)| mapped.get(slice));
            mapping.zip(pinned.get(slice)).is_some_and(|(mapping, hash)| !mapping.is_pinned_by(hash))
        };
        let mut all = Vec::new();
        for chosen in &self.slices {
            let (service_side, service_at) = match services.get(&chosen.service) {
                Some((answer, at)) => (side(answer, &chosen.slice), at.as_ref()),
                None => (Side::Silent("the plan names no such service".to_owned()), None),
            };
            let route = Route { plan: &self.plan.name, slice: &chosen.slice, service: &chosen.service };
            let monolith_side = side(&monolith, &chosen.slice);
            let readings = self.readings.entry(chosen.slice.clone()).or_default();
            let earlier = readings.front().copied();
            if let Some(reading) = reading(&service_side, &monolith_side) {
                readings.push_back(reading);
                if readings.len() > READINGS_KEPT {
                    readings.pop_front();
                }
            }
            all.push(SliceFacts {
                slice: chosen.slice.clone(),
                service: chosen.service.clone(),
                wal_budget_bytes: chosen.wal_budget_bytes,
                evidence_max_age: chosen.evidence_max_age,
                service_side,
                monolith_side,
                astray: whereabouts::astray(route, monolith_at.as_ref(), service_at),
                claimed: claimed(Asking { plan: &self.plan, slice: &chosen.slice, begun: &begun }, &holdings),
                mapping_changed: changed(&chosen.slice),
                earlier,
            });
        }
        let places = services.into_iter().filter_map(|(name, (_, at))| Some((name, at?)));
        self.places = (monolith_at, places.collect());
        all
    }

    /// Holds the ledgers against what the monolith remembers of them: that the end of one was cut off shows nowhere else. The
    /// ledgers are asked after the monolith, which never remembers what is not there yet.
    async fn hold_against(
        &mut self,
        anchors: &BTreeMap<String, Anchor>,
        services: &mut BTreeMap<String, Answer<ServiceFacts>>,
    ) {
        let asked = join_all(self.services.iter_mut().map(async |(name, database)| {
            let ask = async |session: &Session, _: &[&str]| Ok(ledger::remembered(session, anchors).await?);
            (name, database.ask(ask).await)
        }));
        let held = if anchors.is_empty() { Vec::new() } else { asked.await };
        for (name, remembered) in held {
            let Some((Ok(slices), _)) = services.get_mut(name) else { continue };
            for facts in slices.values_mut().filter_map(|facts| facts.evidence.as_mut()) {
                match (&remembered, facts) {
                    (Ok(remembered), Side::Read(known)) => known.evidence.hold_against(remembered),
                    (Ok(_), Side::Silent(_)) => {}
                    (Err(reason), facts) => *facts = Side::Silent(reason.clone()),
                }
            }
        }
    }

    /// Compiles the mappings of the slices that fit the monolith's tables, once in a while. Why others do not is `check`'s to say.
    async fn map(&mut self) {
        if self.mapped.as_ref().is_some_and(|(at, _)| at.elapsed() < MAPPED_EVERY) {
            return;
        }
        let read = async |session: &Session, _: &[&str]| {
            let known = dropped::known_to(session).await?;
            Ok((introspect::read(session).await.ok(), known))
        };
        let Ok((Some(catalog), known)) = self.monolith.ask(read).await else { return };
        let unknown: Vec<&String> = self.plan.slices.keys().filter(|slice| !known.contains(slice)).collect();
        let of = (self.plan.name.as_str(), known.as_slice());
        let asked = self.services.iter_mut().filter(|_| !unknown.is_empty()).map(async |(name, database)| {
            let read = async |session: &Session, _: &[&str]| Ok(dropped::fragments(session, of).await?);
            database.ask(read).await.map_err(|_| name.clone())
        });
        let (mut kept, mut silent) = (Vec::new(), Vec::new());
        for answer in join_all(asked).await {
            match answer {
                Ok(fragments) => kept.extend(fragments),
                Err(service) => silent.push(service),
            }
        }
        let catalog = catalog.with_dropped(kept);
        let (mut mappings, problems) = mapping::compile(&self.plan, &catalog);
        let is_silent = |slice: &str| {
            let service = self.plan.service_of(slice).map(|(service, _)| service);
            service
                .is_some_and(|name| silent.iter().any(|one| one == name) || !self.services.contains_key(name))
        };
        if unknown.iter().any(|slice| is_silent(slice) && mapping::lacks_tables(&problems, slice)) {
            // What refers to tables that may be dropped is not known, and no mapping is said to be another one for that.
            return;
        }
        mappings.retain(|name, _| !problems.iter().any(|problem| problem.stops(std::slice::from_ref(name))));
        self.mapped = Some((Instant::now(), mappings));
    }

    /// Slices that the databases have and the plan lacks, as they were read last; none where only some slices are asked for.
    #[must_use]
    pub fn orphans(&self, commands: &Commands) -> Vec<Orphan> {
        if self.slices.len() < self.plan.slices.len() {
            return Vec::new();
        }
        let (monolith, services) = &self.places;
        let services = services.iter().map(|(name, at)| (name.as_str(), at));
        orphans::find(&self.plan, monolith.as_ref(), services, commands)
    }

    /// Some slice has a slot, so that a second reading would tell how fast its WAL grows.
    #[must_use]
    pub fn would_learn_rates(&self) -> bool {
        self.readings.values().any(|readings| readings.len() == 1)
    }
}

impl Database {
    /// Asks one question, over a new session when there is none or the old one broke.
    async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(&Session, &[&str]) -> Result<T, ReadError>,
    ) -> Result<T, String> {
        let Self { server, session, slices } = self;
        let slices: Vec<&str> = slices.iter().map(String::as_str).collect();
        // Taken out meanwhile: a session whose question was given up half-way must not answer the next one.
        let kept = session.take().filter(|session| !session.is_closed());
        let answer = timeout(READ_TIMEOUT, async {
            let open = match kept {
                Some(open) => open,
                None => server.connect(APPLICATION).await.map_err(|error| chain_of(&error))?,
            };
            let answer = question(&open, &slices).await;
            let answer = answer.map_err(|error| format!("{}: {}", server.label(), chain_of(&error)))?;
            Ok((open, answer))
        });
        match answer.await {
            Ok(Ok((open, answer))) => {
                *session = Some(open);
                Ok(answer)
            }
            Ok(Err(reason)) => {
                tracing::debug!(database = server.label(), reason, "not read");
                Err(reason)
            }
            Err(_elapsed) => {
                Err(format!("{}: no answer within {} seconds", server.label(), READ_TIMEOUT.as_secs()))
            }
        }
    }
}

/// The tables that a slice means and that another one has. Its own need not be known yet: nothing may be provisioned.
fn claimed(asking: Asking<'_>, holdings: &[Holding]) -> Vec<Problem> {
    let tables: BTreeSet<&TableName> = holdings.iter().map(|holding| &holding.table).collect();
    let meant = tables.into_iter().filter(|table| asking.plan.takes(asking.slice, table));
    provision::claimed(asking, meant, holdings)
}

/// What a database said about its slices, and where the link to it leads.
type Answer<T> = (Result<BTreeMap<String, T>, String>, Option<Whereabouts>);

fn split<T>(answer: Result<(BTreeMap<String, T>, Whereabouts), String>) -> Answer<T> {
    match answer {
        Ok((facts, at)) => (Ok(facts), Some(at)),
        Err(reason) => (Err(reason), None),
    }
}

fn side<T: Clone + Default>(answer: &Result<BTreeMap<String, T>, String>, slice: &str) -> Side<T> {
    match answer {
        Ok(facts) => Side::Read(facts.get(slice).cloned().unwrap_or_default()),
        Err(reason) => Side::Silent(reason.clone()),
    }
}

fn reading(service: &Side<ServiceFacts>, monolith: &Side<MonolithFacts>) -> Option<WalReading> {
    let (stream, monolith) = (service.facts()?.stream.as_ref()?, monolith.facts()?);
    let slot = monolith.slots.iter().find(|slot| slot.name == stream.slot)?;
    Some(WalReading { at_us: monolith.now_us, held_bytes: slot.held_bytes })
}
