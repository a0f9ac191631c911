//! Slots and publications that carry our names and belong to no slice that is provisioned.

use super::facts::{Database, Facts, Named, Slot};
use super::slots::OWN;
use crate::cdc::start::SLOT_STEM_BYTES;
use crate::name::{quote_ident, quote_literal};
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for Named { name, database, .. } in facts.databases() {
        let (Some(catalog), Some(server)) = (&database.catalog, &database.server) else { continue };
        // Where our schema is, its rows own these objects, and status and doctor speak about them.
        if catalog.schemas.iter().any(|schema| schema == "strangler") {
            continue;
        }
        problems.extend(slots(&name, database));
        for publication in server.publications.iter().filter(|publication| publication.starts_with(OWN)) {
            problems.push(
                Problem::warning("leftover-publication", &name)
                    .fact(format!(
                        "the publication {publication} carries our name, and this database is not provisioned"
                    ))
                    .consequence("it is probably left from another attempt, and provision would meet it")
                    .next(format!("if nobody uses it: DROP PUBLICATION {};", quote_ident(publication))),
            );
        }
    }
    problems.extend(
        facts
            .plan
            .slices
            .iter()
            .flat_map(|(slice, planned)| of_an_older_database(facts, slice, &planned.service)),
    );
    problems
}

/// Slots of a slice whose service knows nothing of it: its database was made anew.
fn of_an_older_database<'a>(
    facts: &'a Facts,
    slice: &'a str,
    service: &'a str,
) -> impl Iterator<Item = Problem> + 'a {
    let ours = |database: &Database| {
        database.catalog.as_ref().map(|catalog| catalog.schemas.iter().any(|schema| schema == "strangler"))
    };
    let anew =
        facts.services.get(service).and_then(ours) == Some(false) && ours(&facts.monolith) == Some(true);
    let mut stem = format!("{OWN}{}_{slice}", facts.plan.name);
    stem.truncate(SLOT_STEM_BYTES);
    let here = facts.monolith.catalog.as_ref().map(|catalog| catalog.database.as_str());
    let slots = facts.monolith.server.iter().filter(move |_| anew).flat_map(|server| &server.slots);
    let of_slice = move |slot: &&Slot| {
        slot.database.as_deref() == here && slot.name.rsplit_once('_').is_some_and(|(name, _)| name == stem)
    };
    slots.filter(of_slice).map(move |slot| {
        Problem::warning("leftover-slot", "monolith")
            .fact(format!(
                "the slot {} is of slice {slice}, and service {service} is not provisioned",
                slot.name
            ))
            .consequence("where that database was made anew, the slot keeps WAL that nobody will read")
            .next("once it is provisioned again: strangler doctor PLAN, which says what to do about it")
    })
}

fn slots<'a>(name: &'a str, database: &'a Database) -> impl Iterator<Item = Problem> + 'a {
    let here = database.catalog.as_ref().map(|catalog| catalog.database.as_str());
    let slots = database.server.iter().flat_map(|server| &server.slots);
    slots.filter(move |slot| slot.name.starts_with(OWN) && slot.database.as_deref() == here).map(
        move |slot| {
            Problem::warning("leftover-slot", name)
                .fact(format!(
                    "the slot {} carries our name, and this database is not provisioned",
                    slot.name
                ))
                .consequence("it keeps WAL that nobody will read")
                .next(format!(
                    "if nobody uses it: SELECT pg_drop_replication_slot({});",
                    quote_literal(&slot.name)
                ))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    #[test]
    fn objects_of_another_attempt_are_named() {
        assert_eq!(rule(&clean()), []);
        let slot = Slot { name: "strangler_retail_ordering".into(), database: Some("retail".into()) };
        let mut facts = clean();
        facts.monolith.server.as_mut().unwrap().slots.push(slot.clone());
        expect(
            &rule(&facts),
            Severity::Warning,
            "leftover-slot",
            "pg_drop_replication_slot('strangler_retail_ordering')",
        );
        facts.monolith_catalog().schemas.push("strangler".into());
        assert_eq!(rule(&facts), []);
        facts.monolith.server.as_mut().unwrap().slots[0].name.push_str("_abcdef");
        expect(&rule(&facts), Severity::Warning, "leftover-slot", "strangler doctor PLAN");
        facts.service_catalog("ordering").schemas.push("strangler".into());
        assert_eq!(rule(&facts), []);
        let mut facts = clean();
        facts.monolith.server.as_mut().unwrap().publications.insert("strangler_old".into());
        expect(
            &rule(&facts),
            Severity::Warning,
            "leftover-publication",
            "DROP PUBLICATION \"strangler_old\";",
        );
    }
}
