//! Replication slots and WAL senders: what the slices need, what is in use, what is free.
//!
//! A slice needs two slots with a sender each: the forward one on the monolith's server, the reverse one on its
//! service's. Databases of one server share its limits.

use serde::Serialize;

use super::facts::{Database, Facts, Named, Server};
use crate::problem::{Problem, Severity};

/// What the slices take of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerNeeds {
    /// The databases on it, as a report names them.
    pub databases: Vec<String>,
    /// Slices whose forward slot is here.
    pub forward: Vec<String>,
    /// Slices whose reverse slot is here.
    pub reverse: Vec<String>,
    /// Forward slots that exist already.
    pub forward_there: u32,
    /// Reverse slots that exist already.
    pub reverse_there: u32,
    /// `max_replication_slots`.
    pub slots_max: Option<u32>,
    /// Slots in use, ours among them.
    pub slots_used: u32,
    /// `max_wal_senders`.
    pub senders_max: Option<u32>,
    /// Senders in use, ours among them.
    pub senders_used: u32,
}

/// How our slots begin: `strangler_<plan>_<slice>`.
pub(super) const OWN: &str = "strangler_";

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    needs(facts).iter().flat_map(|server| [slots(server), senders(server)]).flatten().collect()
}

/// Sums up every server that was reached.
pub(super) fn needs(facts: &Facts) -> Vec<ServerNeeds> {
    let mut servers: Vec<(&str, ServerNeeds)> = Vec::new();
    for Named { name, service, database } in facts.databases() {
        let Some(server) = &database.server else { continue };
        if !servers.iter().any(|(instance, _)| *instance == server.instance) {
            servers.push((&server.instance, limits(database, server)));
        }
        let found = servers.iter_mut().find(|(instance, _)| *instance == server.instance);
        let Some((_, needs)) = found else { continue };
        let there = own_slots(database);
        if let Some(service) = service {
            needs.reverse.extend(facts.plan.slices_of(service).map(|(slice, _)| slice.to_owned()));
            needs.reverse_there += there;
        } else {
            needs.forward.extend(facts.plan.slices.keys().cloned());
            needs.forward_there += there;
        }
        needs.databases.push(name);
    }
    servers.into_iter().map(|(_, needs)| needs).collect()
}

fn limits(database: &Database, server: &Server) -> ServerNeeds {
    ServerNeeds {
        databases: Vec::new(),
        forward: Vec::new(),
        reverse: Vec::new(),
        forward_there: 0,
        reverse_there: 0,
        slots_max: database.number("max_replication_slots"),
        slots_used: small(server.slots.len()),
        senders_max: database.number("max_wal_senders"),
        senders_used: server.senders_in_use,
    }
}

fn own_slots(database: &Database) -> u32 {
    let (Some(server), Some(catalog)) = (&database.server, &database.catalog) else { return 0 };
    let own = server.slots.iter().filter(|slot| {
        slot.name.starts_with(OWN) && slot.database.as_deref() == Some(catalog.database.as_str())
    });
    small(own.count())
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl ServerNeeds {
    /// Slots still to be made: forward, reverse.
    fn missing(&self) -> (u32, u32) {
        (
            small(self.forward.len()).saturating_sub(self.forward_there),
            small(self.reverse.len()).saturating_sub(self.reverse_there),
        )
    }

    fn wants(&self) -> String {
        let part = |count: usize, direction: &str, slices: &[String]| {
            (count > 0).then(|| format!("{count} {direction} ({})", slices.join(", ")))
        };
        let parts = [
            part(self.forward.len(), "forward", &self.forward),
            part(self.reverse.len(), "reverse", &self.reverse),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }
}

fn slots(server: &ServerNeeds) -> Option<Problem> {
    short(server, server.slots_max?, server.slots_used, ("slots", "slot", "max_replication_slots"))
}

/// A sender that is in use may be one of ours, which holds one of our slots; counting those twice would ask for too
/// many, so ours are counted once, as needed.
fn senders(server: &ServerNeeds) -> Option<Problem> {
    let ours = (server.forward_there + server.reverse_there).min(server.senders_used);
    let there = ServerNeeds { forward_there: 0, reverse_there: 0, ..server.clone() };
    short(&there, server.senders_max?, server.senders_used - ours, ("senders", "sender", "max_wal_senders"))
}

fn short(
    server: &ServerNeeds,
    max: u32,
    used: u32,
    (code, noun, setting): (&'static str, &str, &str),
) -> Option<Problem> {
    let (forward, reverse) = server.missing();
    let needed = forward + reverse;
    let free = max.saturating_sub(used);
    if needed <= free {
        return None;
    }
    let (severity, consequence) = if forward > free {
        (Severity::Error, "the mirror of some slice could not start")
    } else {
        (Severity::Warning, "every slice can be mirrored, and some could not be armed for its flip")
    };
    let problem = Problem::new(severity, code, server.databases.join(", "))
        .fact(format!(
            "the slices need one {noun} here per direction: {}; still to come are {needed}, and of {setting} = {max} \
             there are {used} in use and {free} free",
            server.wants()
        ))
        .consequence(consequence)
        .next(format!("run: ALTER SYSTEM SET {setting} = {}; and restart the server", used + needed));
    Some(problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::Slot;
    use crate::check::fixture::{clean, expect};

    fn limited(setting: &str, max: &str) -> Facts {
        let mut facts = clean();
        facts.monolith_catalog().settings.insert(setting.into(), max.into());
        facts
    }

    fn slot(name: &str) -> Slot {
        Slot { name: name.into(), database: Some("retail".into()) }
    }

    #[test]
    fn the_arithmetic_names_what_to_set() {
        assert_eq!(rule(&clean()), []);
        let mut facts = limited("max_replication_slots", "2");
        assert_eq!(rule(&facts), []);
        facts.monolith.server.as_mut().unwrap().slots.push(slot("standby"));
        expect(&rule(&facts), Severity::Error, "slots", "1 in use and 1 free");
        expect(&rule(&facts), Severity::Error, "slots", "max_replication_slots = 3");
        let mut facts = limited("max_wal_senders", "2");
        facts.monolith.server.as_mut().unwrap().senders_in_use = 1;
        expect(&rule(&facts), Severity::Error, "senders", "2 forward (catalog, ordering)");
    }

    #[test]
    fn slots_that_are_ours_already_are_not_asked_for_again() {
        let mut facts = limited("max_replication_slots", "2");
        let server = facts.monolith.server.as_mut().unwrap();
        server.slots = vec![slot("strangler_retail_ordering_1"), slot("strangler_retail_catalog_1")];
        server.senders_in_use = 2;
        facts.monolith_catalog().settings.insert("max_wal_senders".into(), "2".into());
        assert_eq!(rule(&facts), []);
    }

    #[test]
    fn databases_of_one_server_share_its_limits() {
        let mut facts = limited("max_replication_slots", "3");
        for name in ["ordering", "catalog"] {
            facts.service(name).server.as_mut().unwrap().instance = "monolith".into();
        }
        let problems = rule(&facts);
        expect(
            &problems,
            Severity::Warning,
            "slots",
            "2 forward (catalog, ordering) and 2 reverse (catalog, ordering)",
        );
        expect(&problems, Severity::Warning, "slots", "max_replication_slots = 4");
    }
}
