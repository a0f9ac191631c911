//! Comparing again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::pass::{Pass, cause};
use super::{Arguments, asked, jobs, options, retired};
use crate::cli::interrupt::Interrupts;
use crate::cli::open::Opened;
use crate::cli::report::{CliError, Exit};
use crate::cli::ui::Ui;
use crate::clock::{Clock, SystemClock};
use crate::journal::streams;
use crate::mapping::{Mappings, SliceMapping};
use crate::name::TableName;
use crate::postgres::Server;
use crate::reconcile::metrics::{self, Metrics};
use crate::reconcile::run::{Options, RunError};
use crate::reconcile::schedule::Schedule;
use crate::reconcile::sides::APPLICATION;
use crate::reconcile::verdict::Verdict;
use crate::status::judge::shell_word;

/// How often the age of the mirrored data is asked for, for the metrics.
const LAG_EVERY: Duration = Duration::from_secs(10);
/// How often the clock is looked at while nothing is due.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);
/// What a stop leaves behind.
const BETWEEN: &str = "no run was under way";

/// Compares each slice at its times until it is stopped. A run that fails is told and tried again at its next time.
pub(super) async fn run(
    ui: &mut Ui,
    arguments: &Arguments,
    opened: &Opened,
    schedule: Schedule,
    interrupts: &mut Interrupts,
    stop: &CancellationToken,
) -> Result<Exit, CliError> {
    let mut asked_for = AskedFor::default();
    if !arguments.tables.is_empty() {
        match opened.mappings(ui).await {
            // A name that the plan never had is refused here, and not at the first run, which may be tomorrow.
            Ok(mappings) => asked_for.learn(asked(arguments, opened, &mappings)?, &mappings),
            Err(error) => tracing::warn!(
                error = crate::cdc::mirror::chain_of(&error),
                "the tables of --table are looked for at the first run"
            ),
        }
    }
    let metrics = Arc::new(Metrics::new(opened.slices.iter().map(String::as_str)));
    let _serving = serve(arguments, opened, &metrics).await?;
    let now = SystemClock.now_us();
    // What retired slices refer to is looked at, too, where everything is.
    let everything = arguments.tables.is_empty() && arguments.slices.slices.is_empty();
    let retired = opened.dropped.keys().filter(|_| everything);
    let mut times: Vec<(String, Option<i64>)> = opened
        .slices
        .iter()
        .chain(retired)
        .map(|slice| (slice.clone(), schedule.first(slice, now)))
        .collect();
    let mut latest = BTreeMap::new();
    loop {
        let next = times.iter_mut().filter_map(|(slice, at)| at.map(|at| (at, slice))).min();
        let Some((at, slice)) = next else { return Ok(Exit::Clean) };
        let slice = slice.clone();
        tokio::select! {
            () = interrupts.next() => return Err(CliError::Interrupted { state: BETWEEN.to_owned() }),
            () = due(at) => {}
        }
        let told = (&*metrics, &mut asked_for, &mut latest);
        once(ui, arguments, opened, &slice, (interrupts, stop), told).await?;
        let next = schedule.next(&slice, SystemClock.now_us());
        if let Some((_, at)) = times.iter_mut().find(|(name, _)| *name == slice) {
            *at = next;
        }
    }
}

/// Waits until the clock has come to a time, in microseconds since 1970. It is asked again and again: while a machine sleeps, and when
/// its clock is set, time passes that no timer counts.
async fn due(at_us: i64) {
    loop {
        let left = u64::try_from(at_us.saturating_sub(SystemClock.now_us())).unwrap_or(0);
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_micros(left).min(LOOK_AT_CLOCK)).await;
    }
}

/// Which slices the tables of `--table` belonged to when they were last seen: a run that lasts for months outlives them.
#[derive(Debug, Default)]
struct AskedFor(BTreeMap<TableName, String>);

impl AskedFor {
    /// Remembers whose the tables are now.
    fn learn(&mut self, tables: Vec<TableName>, mappings: &Mappings) {
        for table in tables {
            let has = |mapping: &&SliceMapping| mapping.tables.iter().any(|one| one.source == table);
            if let Some(mapping) = mappings.values().find(has) {
                let slice = mapping.slice.clone();
                self.0.insert(table, slice);
            }
        }
    }

    /// The tables that were asked for, and those of them that are gone from this slice; one that was never seen anywhere
    /// is missed in every slice.
    fn tables(
        &mut self,
        arguments: &Arguments,
        slice: &str,
        mappings: &Mappings,
    ) -> (Vec<TableName>, Vec<TableName>) {
        let names = arguments.tables.iter().filter_map(|typed| TableName::parse(typed, "public").ok());
        let tables: Vec<TableName> = names.collect();
        self.learn(tables.clone(), mappings);
        let there =
            |table: &TableName| mappings.values().flat_map(|one| &one.tables).any(|one| one.source == *table);
        let missed =
            |table: &&TableName| !there(table) && self.0.get(table).is_none_or(|owner| owner == slice);
        let lost = tables.iter().filter(missed).cloned().collect();
        (tables, lost)
    }
}

/// One run of one slice.
async fn once(
    ui: &mut Ui,
    arguments: &Arguments,
    opened: &Opened,
    slice: &str,
    (interrupts, stop): (&mut Interrupts, &CancellationToken),
    (metrics, asked_for, latest): (&Metrics, &mut AskedFor, &mut BTreeMap<String, Verdict>),
) -> Result<(), CliError> {
    // The plan's tables are read anew each time: a run that lasts for months outlives them.
    let mappings = match opened.mappings_of(ui, &[slice.to_owned()]).await {
        Ok(mappings) => mappings,
        Err(error) => {
            tracing::error!(
                slice,
                error = crate::cdc::mirror::chain_of(&error),
                "a scheduled run could not begin"
            );
            metrics.record_failure(slice);
            return Ok(());
        }
    };
    if let Some(dropped) = opened.dropped_now(slice).await {
        let pass = Pass {
            arguments,
            options: &options(arguments, Vec::new()),
            plan: shell_word(&opened.path),
            retired: Vec::new(),
        };
        if let Some(verdict) = retired::of_one((opened, &mappings), &dropped, arguments.list).await {
            metrics.record(&verdict);
            pass.tell(ui, verdict, latest)?;
        }
        return Ok(());
    }
    let (tables, lost) = asked_for.tables(arguments, slice, &mappings);
    let options = Options { lost, ..options(arguments, tables) };
    let jobs: Vec<_> =
        jobs(opened, mappings, &options).into_iter().filter(|job| job.mapping.slice == slice).collect();
    let pass = Pass { arguments, options: &options, plan: shell_word(&opened.path), retired: Vec::new() };
    for (slice, outcome) in pass.compare(ui, &jobs, interrupts, stop).await {
        match outcome {
            Ok(done) => {
                metrics.record(&done.verdict);
                pass.tell(ui, done.verdict, latest)?;
            }
            Err(RunError::Stopped { fresh, .. }) => {
                let command = if fresh { "the same command without --fresh" } else { "the same command" };
                let state = format!(
                    "the run of slice {slice} is kept: {command} goes on with it, behind what was compared to its end; a \
                     table that goes by buckets is compared anew"
                );
                return Err(CliError::Interrupted { state });
            }
            Err(error @ RunError::Held { .. }) => {
                tracing::info!(slice, why = cause(&error), "a scheduled run is left out");
            }
            Err(error) => {
                tracing::error!(slice, error = cause(&error), "a scheduled run gave no verdict");
                metrics.record_failure(&slice);
            }
        }
    }
    Ok(())
}

/// Serves the metrics for as long as the guard lives, where that is asked for.
async fn serve(
    arguments: &Arguments,
    opened: &Opened,
    metrics: &Arc<Metrics>,
) -> Result<Option<DropGuard>, CliError> {
    let Some(address) = arguments.metrics_listen else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    let listener = bound.map_err(|source| CliError::Listen { address: address.to_string(), source })?;
    let stop = CancellationToken::new();
    tokio::spawn(metrics::serve(listener, Arc::clone(metrics), stop.clone()));
    for (service, ways) in &opened.services {
        let of = |slice: &&String| opened.plan.service_of(slice).is_some_and(|(owner, _)| owner == service);
        let slices: Vec<String> = opened.slices.iter().filter(of).cloned().collect();
        let sides = [ways.apply.clone(), opened.monolith.apply.clone()];
        tokio::spawn(watch_lag(sides, slices, Arc::clone(metrics), stop.clone()));
    }
    Ok(Some(stop.drop_guard()))
}

/// Keeps the ages of the mirrored data of one service's slices current. They are asked where the data is: in the service,
/// and in the monolith for slices that the service owns.
async fn watch_lag(sides: [Server; 2], slices: Vec<String>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut sessions = [None, None];
    while !stop.is_cancelled() {
        for (server, session) in sides.iter().zip(&mut sessions) {
            if session.is_none() {
                *session = server.connect(APPLICATION).await.ok();
            }
        }
        for slice in &slices {
            let mut found = None;
            for session in &mut sessions {
                let Some(client) = session.as_ref().filter(|_| found.is_none()) else { continue };
                match streams::age_s(client, slice).await {
                    Ok(age) => found = age,
                    Err(_) => *session = None,
                }
            }
            metrics.set_lag(slice, found);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LAG_EVERY) => {}
        }
    }
}
