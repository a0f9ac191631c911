//! Reads what `doctor` judges.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tokio_postgres::Client;

use super::facts::{Facts, Place, Seen};
use crate::cdc::mirror::chain_of;
use crate::journal::inventory::{self, Entries, Objects, SliceEntry};
use crate::plan::Plan;
use crate::postgres::Session;

/// Reads every database: first what there is in all of them, then what is written down in all of them. A slot is written down in
/// another database than its own, and before it is made; so one that was seen and then stands nowhere is nobody's. Called with
/// sessions of the `admin` links; one that could not be opened comes with its reason.
pub async fn gather(plan: &Plan, sessions: &BTreeMap<Place, Result<Session, String>>) -> Facts {
    let objects =
        join_all(sessions.iter().map(async |(place, session)| (place, session, objects(session).await)));
    let entries = join_all(objects.await.into_iter().map(async |(place, session, objects)| {
        let seen = match (session, objects) {
            (Ok(session), Ok(objects)) => entries(&plan.name, place, session, objects).await,
            (Err(reason), _) => Err(reason.clone()),
            (_, Err(reason)) => Err(reason),
        };
        (place.clone(), seen)
    }));
    let slices = plan.slices.keys().filter_map(|slice| {
        let (service, _) = plan.service_of(slice)?;
        Some((slice.clone(), service.to_owned()))
    });
    Facts {
        plan: plan.name.clone(),
        slices: slices.collect(),
        databases: entries.await.into_iter().collect(),
    }
}

async fn objects(session: &Result<Session, String>) -> Result<Objects, String> {
    let session = session.as_ref().map_err(Clone::clone)?;
    inventory::objects(session).await.map_err(|error| chain_of(&error))
}

async fn entries(plan: &str, place: &Place, session: &Client, objects: Objects) -> Result<Seen, String> {
    let entries = inventory::entries(session).await.map_err(|error| chain_of(&error))?;
    match astray(plan, place, &entries) {
        Some(reason) => Err(reason),
        None => Ok(Seen { objects, entries }),
    }
}

/// Why this is not the database that the plan means, by the slices that were provisioned in it. Nothing is judged through links
/// that were mixed up.
fn astray(plan: &str, place: &Place, entries: &Entries) -> Option<String> {
    let fits = |entry: &&SliceEntry| match place {
        Place::Monolith => !entry.of_service,
        Place::Service(name) => entry.of_service && (entry.plan != plan || entry.service == *name),
    };
    let entry = entries.slices.iter().find(|entry| !fits(entry))?;
    let whose = if entry.of_service { format!("service {}", entry.service) } else { "monolith".to_owned() };
    Some(format!(
        "the link leads to the {whose} of slice {} of plan {}; strangler check says more",
        entry.slice, entry.plan
    ))
}
