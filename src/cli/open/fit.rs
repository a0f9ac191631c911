//! The plan joined with the monolith's tables, also with those that are dropped from it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;

use super::{ANSWER_MAX, Opened};
use crate::catalog::{Catalog, Fragment};
use crate::cdc::mirror::chain_of;
use crate::check;
use crate::cli::report::CliError;
use crate::cli::ui::Ui;
use crate::journal::dropped;
use crate::journal::whereabouts::{self, Route, Whereabouts};
use crate::mapping::{self, Mappings};
use crate::name::TableName;
use crate::postgres::{Server, introspect};
use crate::problem::{Problem, Severity};

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler mirror";

/// A service that could not be asked whether slices that the monolith does not know are retired.
struct Silent {
    service: String,
    unknown: Vec<String>,
    error: CliError,
}

/// A slice that does not fit the monolith's tables.
#[derive(Debug)]
pub(in crate::cli) struct Unfit {
    /// The slice.
    pub(in crate::cli) slice: String,
    /// Its tables, those that don't fit too.
    pub(in crate::cli) tables: Vec<TableName>,
    /// What stops it.
    pub(in crate::cli) problems: Vec<Problem>,
}

/// What is only good to know. Errors that stop nothing are about slices that the command leaves alone; `check` shows them.
fn tell(ui: &mut Ui, slices: &[String], mut problems: Vec<Problem>) {
    problems.retain(|problem| problem.severity != Severity::Error && problem.concerns(slices));
    if !problems.is_empty() {
        ui.words(check::list(&problems).trim_end());
    }
}

impl Opened {
    /// Joins the plan with the monolith's tables. The mappings are those of every slice of the plan; whole are those of the
    /// slices that were asked for. What is only good to know goes to stderr.
    ///
    /// # Errors
    /// The monolith can't be read, its link leads elsewhere, or one of the slices doesn't fit it: all problems.
    pub(in crate::cli) async fn mappings(&self, ui: &mut Ui) -> Result<Mappings, CliError> {
        self.mappings_of(ui, &self.slices).await
    }

    /// The same for some of the slices: what is wrong with others is no matter of theirs.
    ///
    /// # Errors
    /// As [`Self::mappings`].
    pub(in crate::cli) async fn mappings_of(
        &self,
        ui: &mut Ui,
        slices: &[String],
    ) -> Result<Mappings, CliError> {
        let (mappings, problems) = self.compile(slices).await?;
        if problems.iter().any(|problem| problem.stops(slices)) {
            return Err(CliError::Unfit(problems));
        }
        tell(ui, slices, problems);
        Ok(mappings)
    }

    /// The mappings of those of the slices that fit the monolith's tables. The others come with all problems that stop
    /// them.
    ///
    /// # Errors
    /// As [`Self::mappings`], where no slice fits.
    pub(in crate::cli) async fn fitting(&self, ui: &mut Ui) -> Result<(Mappings, Vec<Unfit>), CliError> {
        let (mut mappings, problems) = self.compile(&self.slices).await?;
        let of = |slice: &String| {
            let stops = problems.iter().filter(|problem| problem.stops(std::slice::from_ref(slice)));
            let mapping = mappings.get(slice).into_iter();
            let named = mapping.flat_map(|mapping| {
                mapping.tables.iter().map(|table| &table.source).chain(&mapping.unmapped)
            });
            Unfit {
                slice: slice.clone(),
                tables: named.cloned().collect(),
                problems: stops.cloned().collect(),
            }
        };
        let unfit: Vec<Unfit> =
            self.slices.iter().map(of).filter(|unfit| !unfit.problems.is_empty()).collect();
        if unfit.len() == self.slices.len() {
            return Err(CliError::Unfit(problems));
        }
        mappings
            .retain(|name, _| self.slices.contains(name) && unfit.iter().all(|unfit| unfit.slice != *name));
        tell(ui, &self.slices, problems);
        Ok((mappings, unfit))
    }

    /// All mappings, complete for those of the slices that fit, and what is wrong with any of the plan's.
    async fn compile(&self, slices: &[String]) -> Result<(Mappings, Vec<Problem>), CliError> {
        let read = self.monolith.read.clone().answering_within(ANSWER_MAX);
        let (catalog, silent) = self.catalog(&read).await.map_err(|error| error.over_silence([&read]))?;
        let (mut mappings, problems) = mapping::compile(&self.plan, &catalog);
        for Silent { service, unknown, error } in silent {
            let missing: Vec<String> =
                unknown.into_iter().filter(|slice| mapping::lacks_tables(&problems, slice)).collect();
            if missing.iter().any(|slice| slices.contains(slice)) {
                return Err(error);
            }
            let why = format!(
                "the monolith lacks tables of it, and service {service} can't be asked whether they are dropped: {}",
                chain_of(&error)
            );
            for (_, mapping) in mappings.iter_mut().filter(|(slice, _)| missing.contains(slice)) {
                mapping.unknown = Some(why.clone());
            }
        }
        Ok((mappings, problems))
    }

    /// The monolith's catalog, with tables that are dropped from it as far as anybody knows what they were.
    async fn catalog(&self, monolith: &Server) -> Result<(Catalog, Vec<Silent>), CliError> {
        let session = monolith.connect(APPLICATION).await?;
        self.stay_away(&whereabouts::read(&session).await?).await?;
        let catalog = introspect::read(&session).await?;
        // It keeps that itself, until our schema goes with the last slice; a schema that was made since knows nothing of those before it.
        let known = dropped::known_to(&session).await?;
        let mut unknown: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for slice in self.plan.slices.keys().filter(|slice| !known.contains(slice)) {
            if let Some((service, _)) = self.plan.service_of(slice) {
                unknown.entry(service).or_default().push(slice.clone());
            }
        }
        // One that the plan has no slice of any more may keep what those of it had.
        let is_used = |name: &String| self.plan.slices.values().any(|slice| slice.service == *name);
        for name in self.plan.services.keys().filter(|name| !is_used(name)) {
            unknown.entry(name).or_default();
        }
        let asked = unknown.into_iter().map(async |(service, unknown)| {
            let kept = self.kept(service, &known).await;
            kept.map_err(|error| Silent { service: service.to_owned(), unknown, error })
        });
        let (mut fragments, mut silent) = (Vec::new(), Vec::new());
        for kept in join_all(asked).await {
            match kept {
                Ok(kept) => fragments.extend(kept),
                Err(one) => silent.push(one),
            }
        }
        Ok((catalog.with_dropped(fragments), silent))
    }

    /// What a service keeps of the tables of slices that are dropped, and that the monolith does not know.
    async fn kept(&self, service: &str, known: &[String]) -> Result<Vec<Fragment>, CliError> {
        let Some(ways) = self.ways_of(service) else { return Ok(Vec::new()) };
        let apply = ways.apply.clone().answering_within(ANSWER_MAX);
        let kept = async {
            let session = apply.connect(APPLICATION).await?;
            Ok(dropped::fragments(&session, (&self.plan.name, known)).await?)
        };
        kept.await.map_err(|error: CliError| error.over_silence([&apply]))
    }

    /// Refuses a monolith's link that leads to a service's database, before its tables are taken for the monolith's. The
    /// services are asked only then, to say what else is mixed up; the engine asks them again at each of its starts.
    async fn stay_away(&self, monolith: &Whereabouts) -> Result<(), CliError> {
        let route = |slice| -> Option<Route<'_>> {
            let (service, _) = self.plan.service_of(slice)?;
            Some(Route { plan: &self.plan.name, slice, service })
        };
        let routes: Vec<Route<'_>> = self.slices.iter().filter_map(|slice| route(slice)).collect();
        if routes.iter().all(|route| whereabouts::astray(*route, Some(monolith), None).is_empty()) {
            return Ok(());
        }
        let mut found = BTreeSet::new();
        for route in routes {
            let there = match self.services.get(route.service) {
                Some(ways) => match ways.clone().answering().apply.connect(APPLICATION).await {
                    Ok(session) => Some(whereabouts::read(&session).await?),
                    Err(_) => None,
                },
                None => None,
            };
            found.extend(whereabouts::astray(route, Some(monolith), there.as_ref()));
        }
        Err(CliError::Astray(self.typed_all(found.iter().map(whereabouts::Astray::problem).collect())))
    }
}
