//! Slices that were provisioned from the plan and that it does not name any longer: their gates, publications and slots are
//! still there, and no verb speaks of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::judge::Commands;
use crate::journal::whereabouts::Whereabouts;
use crate::plan::Plan;
use crate::problem::START_ANEW;

/// A slice of the databases that the plan lacks. Serialised as `status --format json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// Its name.
    pub slice: String,
    /// The service that it went to.
    pub service: String,
    /// Databases that hold a side of it: `monolith` or the service's name.
    pub databases: Vec<String>,
    /// What to type.
    pub next: String,
}

/// All of them, by name. Databases that could not be read say nothing. Pure.
#[must_use]
pub fn find<'a>(
    plan: &Plan,
    monolith: Option<&Whereabouts>,
    services: impl Iterator<Item = (&'a str, &'a Whereabouts)>,
    commands: &Commands,
) -> Vec<Orphan> {
    let mut found: BTreeMap<&str, Orphan> = BTreeMap::new();
    let at = monolith.into_iter().map(|at| ("monolith", false, at));
    let at = at.chain(services.map(|(name, at)| (name, true, at)));
    for (database, of_service, at) in at {
        let theirs = at.sides.iter().filter(|side| {
            side.of_service == of_service && side.plan == plan.name && !plan.slices.contains_key(&side.slice)
        });
        for side in theirs {
            let orphan = found.entry(&side.slice).or_insert_with(|| Orphan {
                slice: side.slice.clone(),
                service: side.service.clone(),
                databases: Vec::new(),
                next: format!(
                    "name slice {} in the plan as it was, then {}; or take it back: {START_ANEW}",
                    side.slice,
                    commands.status(&side.slice)
                ),
            });
            orphan.databases.push(database.to_owned());
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::whereabouts::Side;
    use crate::mapping::fixture::{plan, table_rule};

    #[test]
    fn slices_of_the_plan_that_it_does_not_name_any_longer_are_found_wherever_they_are() {
        let plan = plan(vec![("ordering", vec![table_rule("Orders")])]);
        let at = |of_service: bool, slices: &[(&str, &str)]| Whereabouts {
            sides: slices
                .iter()
                .map(|(slice, plan)| Side {
                    slice: (*slice).to_owned(),
                    plan: (*plan).to_owned(),
                    service: "orders".to_owned(),
                    of_service,
                })
                .collect(),
            ..Whereabouts::default()
        };
        let own = plan.name.as_str();
        let monolith = at(false, &[("ordering", own), ("old", own), ("other", "elsewhere")]);
        let service = at(true, &[("old", own), ("ordering", own), ("older", own)]);
        let commands = Commands::about("p.yaml");
        let found = find(&plan, Some(&monolith), [("orders", &service)].into_iter(), &commands);
        let told: Vec<(&str, Vec<&str>)> = found
            .iter()
            .map(|one| (one.slice.as_str(), one.databases.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(told, [("old", vec!["monolith", "orders"]), ("older", vec!["orders"])]);
        assert!(found[0].next.contains("strangler status p.yaml --slice old"), "{}", found[0].next);
        assert_eq!(find(&plan, None, std::iter::empty(), &commands), []);
    }
}
