//! What must hold before a slice is armed or disarmed. Pure.

use std::collections::BTreeSet;

use super::Verb;
use super::survey::{SliceFacts, Survey};
use crate::authority::Side;
use crate::catalog::{Catalog, Table, UserTypeKind};
use crate::journal::whereabouts::{self, Route};
use crate::mapping::outline::COMPARED;
use crate::mapping::partitions::OPEN_PARTITIONS;
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::{TableName, quote_ident};
use crate::plan::Plan;
use crate::postgres::stand_ins;
use crate::problem::{Problem, START_ANEW, bring_back};
use crate::provision::{self, Asking};

/// Which side has the authority, as far as both gates agree; `None` while it moves, or worse.
pub(super) fn authority(facts: &SliceFacts) -> Option<Side> {
    match (facts.monolith.state.as_str(), facts.service.state.as_str()) {
        ("OPEN", "FENCED") if facts.service.epoch <= facts.monolith.epoch => Some(Side::Monolith),
        ("FENCED", "OPEN") if facts.monolith.epoch <= facts.service.epoch => Some(Side::Service),
        _ => None,
    }
}

/// Links that lead elsewhere: whatever else would be said is about the wrong databases.
pub(super) fn astray(plan: &Plan, only: &[String], survey: &Survey) -> Vec<Problem> {
    let mut found = BTreeSet::new();
    for (slice, planned) in plan.slices.iter().filter(|(name, _)| only.is_empty() || only.contains(name)) {
        let route = Route { plan: &plan.name, slice, service: &planned.service };
        let there = survey.provisioned.service_states.get(&planned.service);
        let monolith = &survey.provisioned.monolith_state.whereabouts;
        found.extend(whereabouts::astray(route, Some(monolith), there.map(|state| &state.whereabouts)));
    }
    found.iter().map(whereabouts::Astray::problem).collect()
}

/// Whether the slice is provisioned; its facts, or the problem.
pub(super) fn provisioned<'a>(
    survey: &'a Survey,
    slice: &SliceMapping,
) -> Result<&'a SliceFacts, Box<Problem>> {
    let name = &slice.slice;
    let monolith = &survey.provisioned.monolith_state;
    let service = survey.provisioned.service_states.get(&slice.service);
    let object = format!("slice {name}");
    let outdated = monolith.outdated || service.is_some_and(|state| state.outdated);
    let rows = (monolith.slices.get(name), service.and_then(|state| state.slices.get(name)));
    let ((Some(_), Some(_)), Some(facts), false) = (rows, survey.slices.get(name), outdated) else {
        let fact = if outdated {
            "strangler's own tables are of an earlier version"
        } else {
            "it is not provisioned on both sides"
        };
        let problem = Problem::error("not-provisioned", object)
            .fact(fact)
            .consequence("there are no gates to hang")
            .next(format!("strangler provision PLAN --slice {name}"));
        return Err(Box::new(problem));
    };
    Ok(facts)
}

/// The slice has other tables than when it was provisioned, so that its gates are not where the plan says: `arm` would close
/// tables that nobody mirrors, and `disarm` leave some of them closed. `arm` asks both ways. `disarm` must go on as long as
/// it finds every gate: a table that came to a schema which the plan takes as a whole has none yet.
pub(super) fn other_tables(survey: &Survey, slice: &SliceMapping, verb: Verb) -> Option<Problem> {
    let name = &slice.slice;
    let state = survey.provisioned.service_states.get(&slice.service)?;
    // Before that, `provision` brings what is there to the plan.
    if !state.streams.contains(name) {
        return None;
    }
    let meant: BTreeSet<String> = slice.tables.iter().map(|table| table.source.to_string()).collect();
    let there: BTreeSet<String> =
        survey.provisioned.monolith.tables.keys().map(ToString::to_string).collect();
    let known = state.mirror_tables.keys().filter(|(slice, table)| slice == name && there.contains(table));
    let known: BTreeSet<String> = known.map(|(_, table)| table.clone()).collect();
    let missing: Vec<&str> = known.difference(&meant).map(String::as_str).collect();
    let new: Vec<&str> = meant.difference(&known).map(String::as_str).collect();
    let (fact, consequence) = match verb {
        Verb::Arm | Verb::Disarm if !missing.is_empty() => (
            format!("it was provisioned with {}, which the plan does not take any more", missing.join(", ")),
            "their gates and foreign keys would be passed over, and nobody would know it",
        ),
        Verb::Arm if !new.is_empty() => (
            format!("it was provisioned without {}, which the plan takes now", new.join(", ")),
            "a gate would close tables that nobody mirrors",
        ),
        Verb::Arm | Verb::Disarm => return None,
    };
    Some(
        Problem::error("mapping-changed", format!("slice {name}"))
            .fact(fact)
            .consequence(consequence)
            .next(bring_back(name)),
    )
}

/// The service was made for the mapping that the reverse mirror would go through. Taking back what was made, and closing a
/// hole in the fence, need no mapping that fits, as long as it has the same tables.
pub(super) fn same_mapping(survey: &Survey, slice: &SliceMapping) -> Option<Problem> {
    let name = &slice.slice;
    let service = survey.provisioned.service_states.get(&slice.service);
    let rows = [&survey.provisioned.monolith_state].into_iter().chain(service);
    if rows.filter_map(|state| state.slices.get(name)).all(|row| slice.is_pinned_by(&row.plan_hash)) {
        return None;
    }
    Some(
        Problem::error("other-mapping", format!("slice {name}"))
            .fact(format!(
                "it was provisioned from another mapping: the plan or the monolith's tables changed since; {COMPARED}"
            ))
            .consequence("the reverse mirror would go through a mapping that the service was not made for")
            .next(bring_back(name)),
    )
}

/// The mapping changed since data was mirrored, so that `flip --back` would refuse.
pub(super) fn changed_mapping(survey: &Survey, slice: &SliceMapping) -> Option<Problem> {
    let name = &slice.slice;
    let state = survey.provisioned.service_states.get(&slice.service)?;
    let row = state.slices.get(name).filter(|_| state.streams.contains(name))?;
    (!slice.is_pinned_by(&row.plan_hash)).then(|| {
        Problem::error("mapping-changed", format!("slice {name}"))
            .fact(format!(
                "its mapping is another one than when it was provisioned, and data was mirrored since; {COMPARED}"
            ))
            .consequence("authority has to come back first, and flip --back refuses another mapping")
            .next(bring_back(name))
    })
}

/// The problem with a slice whose authority does not allow the verb.
pub(super) fn wrong_authority(slice: &str, facts: &SliceFacts, verb: Verb) -> Problem {
    let (here, there) = (&facts.monolith, &facts.service);
    let consequence = match verb {
        Verb::Arm => "nobody knows yet which side is to be guarded",
        Verb::Disarm => "without the gates the monolith would accept writes that nobody carries over",
    };
    Problem::error("authority", format!("slice {slice}"))
        .fact(format!(
            "its gate is {} in the monolith (epoch {}) and {} in the service (epoch {})",
            here.state, here.epoch, there.state, there.epoch
        ))
        .consequence(consequence)
        .next(match (verb, authority(facts)) {
            (Verb::Disarm, Some(Side::Service)) => {
                let first = if facts.retired { format!("strangler unretire PLAN --slice {slice}; then ") } else { String::new() };
                format!(
                    "{first}strangler flip --back PLAN --slice {slice}; then strangler disarm PLAN --slice {slice}"
                )
            }
            (Verb::Arm | Verb::Disarm, Some(Side::Monolith | Side::Service) | None) => {
                format!("strangler status PLAN --slice {slice}")
            }
        })
}

/// Tables that belong to another slice, whose gate must stay.
pub(super) fn claimed(plan: &Plan, survey: &Survey, slice: &SliceMapping) -> Vec<Problem> {
    let states = survey.provisioned.service_states.values();
    let begun = states.flat_map(|state| state.streams.iter().cloned()).collect();
    let asking = Asking { plan, slice: &slice.slice, begun: &begun };
    let tables = slice.tables.iter().map(|table| &table.source);
    let mut problems = provision::claimed(asking, tables, &survey.provisioned.monolith_state.holdings);
    if let Some(state) = survey.provisioned.service_states.get(&slice.service) {
        let targets = slice.tables.iter().map(|table| &table.target);
        problems.extend(provision::claimed_in_service(asking, &slice.service, targets, &state.holdings));
    }
    // Both sides say the same of a slice under another name.
    problems.sort();
    problems.dedup();
    problems
}

/// Tables of which two slices take different rows. They can be mirrored, and not be given away apart: a table has one gate,
/// whose statement trigger can't tell whose rows a statement is about.
pub(super) fn shared(plan: &Plan, slice: &SliceMapping) -> Vec<Problem> {
    let others = |table: &TableName| -> Vec<&str> {
        let names = plan.slices.keys().filter(|name| **name != slice.slice && plan.takes(name, table));
        names.map(String::as_str).collect()
    };
    let problem = |table: &TableMapping| {
        let others = others(&table.source);
        (!others.is_empty()).then(|| {
            Problem::error("table-shared", format!("table {}", table.source))
                .fact(format!("slice {} takes some of its rows, and others go to {}", slice.slice, others.join(", ")))
                .consequence(
                    "a table has one gate: closed for the rows of one slice, it would refuse those of the others",
                )
                .next(format!(
                    "such slices can be mirrored and compared, and not flipped: give the table to one slice as a whole, and \
                     take slice {} back first: {START_ANEW}",
                    slice.slice
                ))
        })
    };
    slice.tables.iter().filter_map(problem).collect()
}

/// Everything is copied: before that, the whole copy would go through the reverse slot.
pub(super) fn mirrored(survey: &Survey, slice: &SliceMapping) -> Option<Problem> {
    let state = survey.provisioned.service_states.get(&slice.service)?;
    let missing = slice.tables.iter().filter(|table| {
        let key = (slice.slice.clone(), table.source.to_string());
        state.mirror_tables.get(&key).is_none_or(|row| row.state != "live")
    });
    let missing: Vec<String> = missing.map(|table| table.source.to_string()).collect();
    if missing.is_empty() {
        return None;
    }
    Some(
        Problem::error("not-mirrored", format!("slice {}", slice.slice))
            .fact(format!("not copied yet, or not live: {}", missing.join(", ")))
            .consequence(
                "the reverse slot would keep the WAL of the whole copy, and there is nothing to flip to yet",
            )
            .next(format!(
                "strangler mirror PLAN --slice {0}, until strangler status PLAN --slice {0} says that all are live",
                slice.slice
            )),
    )
}

/// The service can be streamed from, now.
pub(super) fn service(survey: &Survey, slice: &SliceMapping, apply_login: Option<&str>) -> Vec<Problem> {
    let name = format!("service {}", slice.service);
    let (Some(catalog), Some(server)) =
        (survey.provisioned.services.get(&slice.service), survey.servers.get(&slice.service))
    else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    let level = catalog.settings.get("wal_level").map_or("unknown", String::as_str);
    if level != "logical" {
        problems.push(
            Problem::error("wal-level", &name)
                .fact(format!("wal_level is {level}"))
                .consequence("its changes can't be decoded, so nothing could go back to the monolith")
                .next("run: ALTER SYSTEM SET wal_level = logical; and restart the server"),
        );
    }
    for (code, setting, used) in [
        ("slots", "max_replication_slots", server.slots_used),
        ("senders", "max_wal_senders", server.senders_used),
    ] {
        let max: Option<i64> = catalog.settings.get(setting).and_then(|text| text.parse().ok());
        if let Some(max) = max.filter(|max| used >= *max) {
            problems.push(
                Problem::error(code, &name)
                    .fact(format!("all {max} of {setting} are in use"))
                    .consequence("the reverse slot could not be made or read")
                    .next(format!("run: ALTER SYSTEM SET {setting} = {}; and restart the server", max + 1)),
            );
        }
    }
    if server.prepared > 0 {
        problems.push(
            Problem::error("prepared-transactions", &name)
                .fact(format!(
                    "prepared transactions that wait for their end on its server: {}",
                    server.prepared
                ))
                .consequence("a slot can't be created before they end")
                .next("look at pg_prepared_xacts, then COMMIT PREPARED or ROLLBACK PREPARED each"),
        );
    }
    let state = survey.provisioned.service_states.get(&slice.service);
    let admin = state.map(|state| state.user.as_str());
    for (link, role, what) in [("admin", admin, "make"), ("apply", apply_login, "read")] {
        let superuser = state.is_some_and(|state| state.superuser);
        if let Some(role) = role.filter(|role| !server.replicating.contains(*role) && !superuser) {
            problems.push(
                Problem::error("no-replication", &name)
                    .fact(format!("the {link} link's role {role} may not use replication connections"))
                    .consequence(format!("it could not {what} the reverse slot"))
                    .next(format!("run as a superuser: ALTER ROLE {} REPLICATION;", quote_ident(role))),
            );
        }
    }
    problems
}

/// Rows that the service makes could not be inserted into the monolith: see [`fills_itself`].
pub(super) fn reversible(survey: &Survey, slice: &SliceMapping) -> Vec<Problem> {
    let catalog = &survey.provisioned.monolith;
    slice.tables.iter().filter_map(|mapping| stuck_insert(catalog, mapping)).collect()
}

/// Rows that the service makes might have no partition on the monolith: from now on that matters.
pub(super) fn open_partitions(survey: &Survey, slice: &SliceMapping) -> Vec<Problem> {
    let of = |problem: &&Problem| problem.code == OPEN_PARTITIONS && problem.slices.contains(&slice.slice);
    survey.mapping_problems.iter().filter(of).cloned().collect()
}

/// The problem with a table whose dropped columns have to have a value that nobody knows.
fn stuck_insert(catalog: &Catalog, mapping: &TableMapping) -> Option<Problem> {
    let table = catalog.table(&mapping.source)?;
    let stuck: Vec<&str> = mapping
        .dropped
        .iter()
        .filter(|name| !fills_itself(catalog, table, name))
        .map(String::as_str)
        .collect();
    if stuck.is_empty() {
        return None;
    }
    let remedies: Vec<String> = stuck
        .iter()
        .map(|name| {
            format!("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT …;", table.name.sql(), quote_ident(name))
        })
        .collect();
    Some(
        Problem::error("dropped-not-null", &table.name)
            .fact(format!("the plan drops {}, which must not be null and has no default", stuck.join(", ")))
            .consequence(
                "a row that the service makes after the flip could not be inserted into the monolith's table",
            )
            .next(format!(
                "let it move, or on the monolith: {} or ALTER COLUMN … DROP NOT NULL",
                remedies.join(" ")
            )),
    )
}

/// Whether the monolith's table finds a value for the column when an insert leaves it out.
fn fills_itself(catalog: &Catalog, table: &Table, name: &str) -> bool {
    let Some(column) = table.column(name) else { return true };
    let domain = column.user_type.as_ref().and_then(|name| catalog.types.get(name));
    let (domain_default, domain_not_null) = match domain.map(|domain| &domain.kind) {
        Some(UserTypeKind::Domain { default_sql, not_null, .. }) => (default_sql.is_some(), *not_null),
        Some(UserTypeKind::Enum(_) | UserTypeKind::Composite(_) | UserTypeKind::Other) | None => {
            (false, false)
        }
    };
    !(column.not_null || domain_not_null)
        || column.default_sql.is_some()
        || column.identity.is_some()
        || column.generated_sql.is_some()
        || domain_default
}

/// Views in place of tables, on either side: what is armed must be what holds the rows.
pub(super) fn stand_ins(survey: &Survey, slice: &SliceMapping) -> Vec<Problem> {
    let survey = &survey.provisioned;
    let sources = slice.tables.iter().map(|table| &table.source);
    let here = stand_ins::in_catalog(&survey.monolith, sources);
    let targets = slice.tables.iter().map(|table| &table.target);
    let there = survey.services.get(&slice.service).map(|catalog| stand_ins::in_catalog(catalog, targets));
    let service = format!("service {}", slice.service);
    let here = here.iter().map(|one| provision::not_a_table("monolith", one));
    here.chain(there.iter().flatten().map(|one| provision::not_a_table(&service, one))).collect()
}

/// What the admin links must own: triggers, publications and constraints are the owner's to change.
pub(super) fn ownership(survey: &Survey, slice: &SliceMapping) -> Vec<Problem> {
    let mut foreign: Vec<(String, &Table, &str)> = Vec::new();
    let monolith = &survey.provisioned.monolith;
    let relations = survey.slices.get(&slice.slice).map(|facts| &facts.guard.relations);
    for relation in relations.into_iter().flatten() {
        if let Some(table) = monolith.table(&relation.table).filter(|table| !table.can_own) {
            foreign.push(("monolith".to_owned(), table, &survey.provisioned.monolith_state.user));
        }
    }
    let service = survey.provisioned.services.get(&slice.service);
    let state = survey.provisioned.service_states.get(&slice.service);
    for mapping in &slice.tables {
        let table = service.and_then(|catalog| catalog.table(&mapping.target));
        if let (Some(table), Some(state)) = (table.filter(|table| !table.can_own), state) {
            foreign.push((format!("service {}", slice.service), table, &state.user));
        }
    }
    foreign.into_iter().map(|(database, table, user)| not_owner(&database, table, user)).collect()
}

pub(super) fn not_owner(database: &str, table: &Table, user: &str) -> Problem {
    Problem::error("not-owner", format!("{database}, table {}", table.name))
        .fact(format!("it belongs to {}, and {user} is no member of that role", table.owner))
        .consequence("its triggers, constraints and publications are the owner's to change")
        .next(format!("run: GRANT {} TO {};", quote_ident(&table.owner), quote_ident(user)))
}
