//! Reads what there is and takes the steps.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::preflight;
use super::record::{Run, record};
use super::state::{self, State};
use super::{
    Database, Databases, Design, Event, Known, Logins, ProvisionError, Statement, Step, Survey, Work,
    anatomy, begin, design,
};
use crate::catalog::Catalog;
use crate::dualwrite::exclusion;
use crate::failpoint;
use crate::journal::ledger::{self, Author};
use crate::journal::{dropped, migrate, whereabouts};
use crate::mapping::{Mappings, compile};
use crate::plan::Plan;
use crate::postgres::introspect;
use crate::problem::{Problem, Severity};

/// Reads the catalogs and what is provisioned, each database in transactions of its own. Tables of the plan that are dropped from the
/// monolith are among its, also where only a service still has it written down what they were.
///
/// # Errors
/// [`ProvisionError::Read`], [`ProvisionError::State`], [`ProvisionError::Migrate`], [`ProvisionError::Journal`].
pub async fn survey(plan: &Plan, databases: &Databases) -> Result<Survey, ProvisionError> {
    let mut survey = survey_with(databases, &mut BTreeMap::new()).await?;
    let kept = dropped::elsewhere(&databases.monolith, databases.services.values(), &plan.name).await;
    let failed = |source| ProvisionError::Journal { database: Database::Monolith, source };
    survey.monolith = survey.monolith.with_dropped(kept.map_err(failed)?);
    Ok(survey)
}

/// What `known` has of a database is not read again.
async fn survey_with(
    databases: &Databases,
    known: &mut BTreeMap<Database, Known>,
) -> Result<Survey, ProvisionError> {
    let of_monolith = known.remove(&Database::Monolith);
    let (monolith, monolith_state) = look(&Database::Monolith, &databases.monolith, of_monolith).await?;
    let anatomy = anatomy::read(&databases.monolith).await.map_err(|source| ProvisionError::State {
        database: Database::Monolith,
        what: "the definitions of its tables",
        source,
    })?;
    let mut survey = Survey {
        monolith,
        anatomy,
        monolith_state,
        services: BTreeMap::new(),
        service_states: BTreeMap::new(),
    };
    for (name, client) in &databases.services {
        let database = Database::Service(name.clone());
        let of_service = known.remove(&database);
        let (catalog, state) = look(&database, client, of_service).await?;
        survey.services.insert(name.clone(), catalog);
        survey.service_states.insert(name.clone(), state);
    }
    Ok(survey)
}

async fn look(
    database: &Database,
    client: &Client,
    known: Option<Known>,
) -> Result<(Catalog, State), ProvisionError> {
    let (catalog, read) = match known {
        Some(Known { catalog, whereabouts, holdings }) => (catalog, Some((whereabouts, holdings))),
        None => {
            let catalog = introspect::read(client).await;
            let failed = |source| ProvisionError::Read { database: database.clone(), source };
            (catalog.map_err(failed)?, None)
        }
    };
    let state = state::read(database, client, read).await?;
    Ok((catalog, state))
}

/// Surveys, maps and designs, without changing anything: what `--dry-run` shows. `only` names the slices to look at;
/// empty means all. The plan's own problems are among the design's, and with an error there it has no steps.
///
/// # Errors
/// What reading gave: [`ProvisionError::Read`], [`ProvisionError::State`], [`ProvisionError::Migrate`].
pub async fn prepare(
    plan: &Plan,
    only: &[String],
    databases: &Databases,
    logins: &Logins,
) -> Result<Design, ProvisionError> {
    Ok(outline(plan, only, &survey(plan, databases).await?, logins).0)
}

/// All problems that `provision` would have with a plan, also those that it would not come to because of others. Nothing may
/// be done by what is looked at for them. `known` is what was just read of these databases, of all or of none; the monolith's catalog
/// in it has the tables that are dropped.
///
/// # Errors
/// As [`prepare`].
pub async fn foresee(
    (plan, only): (&Plan, &[String]),
    databases: &Databases,
    mut known: BTreeMap<Database, Known>,
    logins: &Logins,
) -> Result<Vec<Problem>, ProvisionError> {
    let survey = if databases.all().all(|(database, _)| known.contains_key(&database)) {
        survey_with(databases, &mut known).await?
    } else {
        survey(plan, databases).await?
    };
    let (outlined, _) = outline(plan, only, &survey, logins);
    let (mut mappings, mut problems) = compile(plan, &survey.monolith);
    if !only.is_empty() {
        mappings.retain(|slice, _| only.contains(slice));
        problems.retain(|problem| problem.concerns(only));
    }
    let spoilt = problems.iter().any(|problem| problem.severity == Severity::Error);
    if !spoilt || !astray(plan, only, &survey).is_empty() {
        return Ok(outlined.problems);
    }
    let whole = mappings.into_iter().map(|(name, slice)| (name, slice.with_spoilt())).collect();
    let mut found = design(plan, &whole, &survey, logins).problems;
    found.extend(outlined.problems);
    found.sort();
    found.dedup();
    Ok(found)
}

fn outline(plan: &Plan, only: &[String], survey: &Survey, logins: &Logins) -> (Design, Mappings) {
    let astray = astray(plan, only, survey);
    if !astray.is_empty() {
        // Whatever else would be said is about the wrong databases.
        return (Design { steps: Vec::new(), problems: astray }, Mappings::new());
    }
    let (mut mappings, mut problems) = compile(plan, &survey.monolith);
    mappings.retain(|name, _| only.is_empty() || only.contains(name));
    let meant: Vec<String> = mappings.keys().cloned().collect();
    if problems.iter().any(|problem| problem.stops(&meant)) {
        // Such mappings lack tables, which must not be taken for tables that left the plan.
        return (Design { steps: Vec::new(), problems }, mappings);
    }
    // What is left of errors is about slices that this run leaves alone.
    problems.retain(|problem| problem.severity != Severity::Error);
    let mut design = design(plan, &mappings, survey, logins);
    design.problems.extend(problems);
    design.problems.sort();
    design.problems.dedup();
    (design, mappings)
}

/// Links that lead elsewhere.
fn astray(plan: &Plan, only: &[String], survey: &Survey) -> Vec<Problem> {
    let there = |service: &str| survey.service_states.get(service).map(|state| &state.whereabouts);
    preflight::astray(plan, only, &survey.monolith_state.whereabouts, there)
}

/// Does what [`prepare`] shows, step by step, while it keeps other runs of provision away, and tells the ledgers. Returns what
/// was done.
///
/// # Errors
/// [`ProvisionError`]. Committed steps stay.
pub async fn run(
    plan: &Plan,
    only: &[String],
    databases: &mut Databases,
    (logins, author): (&Logins, &Author),
    report: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<Design, ProvisionError> {
    look_around(plan, only, databases).await?;
    lock(databases).await?;
    let outcome = match locked_run(plan, only, databases, logins, report).await {
        Ok((design, mappings)) => {
            failpoint::hit("steps-taken");
            let run = Run { plan, verb: ledger::PROVISION, only, author };
            record(databases, run, &mappings).await.map(|()| design)
        }
        Err(error) => Err(error),
    };
    unlock(databases).await;
    outcome
}

/// Where the links lead, before anything is locked: two links to one database would meet each other's lock, and it
/// would seem that somebody else was at work there.
async fn look_around(plan: &Plan, only: &[String], databases: &Databases) -> Result<(), ProvisionError> {
    let mut places = BTreeMap::new();
    for (database, client) in databases.all() {
        let found = whereabouts::read(client).await;
        let found = found.map_err(|source| ProvisionError::Journal { database: database.clone(), source })?;
        places.insert(database, found);
    }
    let there = |service: &str| places.get(&Database::Service(service.to_owned()));
    let problems = places
        .get(&Database::Monolith)
        .map(|monolith| preflight::astray(plan, only, monolith, there))
        .unwrap_or_default();
    if problems.is_empty() { Ok(()) } else { Err(ProvisionError::Refused { problems }) }
}

async fn locked_run(
    plan: &Plan,
    only: &[String],
    databases: &mut Databases,
    logins: &Logins,
    report: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(Design, Mappings), ProvisionError> {
    loop {
        let survey = survey(plan, databases).await?;
        let (design, mappings) = outline(plan, only, &survey, logins);
        if design.refusals().next().is_some() {
            return Err(ProvisionError::Refused { problems: design.problems });
        }
        let total = design.steps.len();
        for (step, number) in design.steps.iter().zip(1..) {
            report(Event::Started { number, total, step });
            execute(databases, step).await?;
            report(Event::Done { number, total });
        }
        // Upgrades of our own tables come alone; what is left to do shows once they are through.
        let mut states = std::iter::once(&survey.monolith_state).chain(survey.service_states.values());
        if !states.any(|state| state.outdated) {
            return Ok((design, mappings));
        }
    }
}

/// Takes one step. A step is either kept as a whole or not at all.
///
/// # Errors
/// [`ProvisionError::Step`], [`ProvisionError::Migrate`], [`ProvisionError::NoConnection`].
pub async fn execute(databases: &mut Databases, step: &Step) -> Result<(), ProvisionError> {
    let database = &step.database;
    let client = databases
        .get_mut(database)
        .ok_or_else(|| ProvisionError::NoConnection { database: database.clone() })?;
    match &step.work {
        Work::Migrate(_) => migrate::run(client)
            .await
            .map_err(|source| ProvisionError::Migrate { database: database.clone(), source }),
        Work::Sql(statements) => {
            let outcome = transact(client, statements).await;
            if outcome.is_err() {
                // When the connection broke there is nothing to roll back; the first error tells the story.
                let _ = client.batch_execute("ROLLBACK").await;
            }
            outcome.map_err(|(statement, source)| ProvisionError::Step {
                statement,
                database: database.clone(),
                purpose: step.purpose.clone(),
                object: step.object.clone(),
                source,
            })
        }
    }
}

/// An error comes with the statement that it met.
async fn transact(client: &Client, statements: &[Statement]) -> Result<(), (String, tokio_postgres::Error)> {
    let (first, last) = (Statement::from(begin()), Statement::from("COMMIT"));
    for statement in std::iter::once(&first).chain(statements).chain([&last]) {
        let done = client.batch_execute(&statement.sql).await;
        done.map_err(|source| (shortened(statement.shown()), source))?;
    }
    Ok(())
}

/// The beginning of a statement, which says what it is about.
fn shortened(sql: &str) -> String {
    /// Characters: more than any GRANT has, and less than a screen.
    const SHOWN_MAX: usize = 400;
    let mut text: String = sql.chars().take(SHOWN_MAX).collect();
    if text.len() < sql.len() {
        text.push('…');
    }
    text
}

/// Keeps other verbs away from every database.
pub(crate) async fn lock(databases: &Databases) -> Result<(), ProvisionError> {
    for (database, client) in databases.all() {
        match exclusion::take(client).await {
            Ok(true) => {}
            Ok(false) => {
                let holder = exclusion::holder(client).await;
                unlock(databases).await;
                return Err(ProvisionError::Busy { database, holder });
            }
            Err(source) => {
                unlock(databases).await;
                return Err(ProvisionError::State { database, what: "its locks", source });
            }
        }
    }
    Ok(())
}

/// Undoes [`lock`].
pub(crate) async fn unlock(databases: &Databases) {
    for (_, client) in databases.all() {
        exclusion::release(client).await;
    }
}
