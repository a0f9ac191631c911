//! The reverse stream as far as `arm` makes it: what the service must write into its WAL, the publication, the slot, and
//! the row on the monolith by which the reverse mirror knows where to begin.
//!
//! Until a flip the stream is a tripwire: whatever the mirror did not write on the service is an alarm. So a stream that
//! broke before the flip loses no row, and is begun anew with a new slot. One that broke after the flip is begun anew as
//! well, because nothing else would carry the service's writes again: what it missed a comparison finds, and no evidence
//! from before stands.

use std::collections::BTreeSet;

use super::design::Draft;
use super::locks::{LockMode, Locked, Locks};
use super::survey::SliceFacts;
use super::{Step, Work};
use crate::catalog::{Catalog, ReplicaIdentity, Table, TableKind};
use crate::journal::arming::{self, Beginning};
use crate::journal::set_aside;
use crate::journal::streams::{Mode, Source, StreamRow, StreamState};
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;
use crate::provision::{Database, Statement, exact_publication};

/// The canary travels with the reverse stream of every slice; a reader takes its own slice's row.
fn canary() -> TableName {
    TableName::new("strangler", "canary")
}

/// Lets the role of the apply link read the slot, where a superuser may say so; else `readiness` asks for it.
pub(super) fn replication(draft: &mut Draft<'_>, slice: &SliceMapping, login: Option<&str>) {
    let survey = draft.survey;
    let (Some(state), Some(server), Some(login)) =
        (survey.provisioned.service_states.get(&slice.service), survey.servers.get(&slice.service), login)
    else {
        return;
    };
    if !state.superuser || server.replicating.contains(login) || !state.roles.contains_key(login) {
        return;
    }
    // The role is the server's: one step serves every slice, and every service of that server.
    if draft.replicating.insert((state.server.clone(), login.to_owned())) {
        let statement = format!("ALTER ROLE {} REPLICATION", quote_ident(login));
        draft.journaled(
            (Database::Service(slice.service.clone()), &slice.slice),
            ("let stream from the service role", login),
            (Vec::new(), None, vec![statement.into()]),
            "arm-rights-granted",
        );
    }
}

/// Adds what is missing. `mode` is what a stream that is begun anew is for.
pub(super) fn stream(draft: &mut Draft<'_>, slice: &SliceMapping, facts: &SliceFacts, mode: Mode) {
    identities(draft, slice);
    let changed = publish(draft, slice);
    let row = facts.reverse.as_ref();
    match row {
        Some(row) if row.state == StreamState::Creating && row.mode != Mode::Off && !changed => {
            slot(draft, slice, &row.slot);
        }
        Some(row) => {
            if let Some(why) = broken(draft, slice, (row, facts), changed) {
                draft.problem(begun_anew(slice, &why, mode));
                anew(draft, slice, facts, mode);
            }
        }
        None => anew(draft, slice, facts, mode),
    }
}

fn begun_anew(slice: &SliceMapping, why: &str, mode: Mode) -> Problem {
    let problem = Problem::warning("reverse-stream", format!("slice {}", slice.slice))
        .fact(format!("its reverse stream can't go on: {why}"));
    match mode {
        Mode::Apply => problem
            .consequence(
                "it is begun anew; what was written into the service meanwhile did not come back to the monolith",
            )
            .next(format!(
                "strangler reconcile PLAN --slice {} --repair, which finds what is missing and brings it",
                slice.slice
            )),
        Mode::Tripwire | Mode::Off => problem
            .consequence("it is begun anew; what was written into the service meanwhile was not watched")
            .next("nothing"),
    }
}

/// Why a stream that has begun can't be read on.
fn broken(
    draft: &Draft<'_>,
    slice: &SliceMapping,
    (row, facts): (&StreamRow, &SliceFacts),
    changed: bool,
) -> Option<String> {
    let identity = draft.survey.provisioned.services.get(&slice.service).map(|catalog| &catalog.identity);
    let other = identity.is_none_or(|identity| {
        identity.system_identifier != row.source.system_identifier
            || identity.database_oid != row.source.database_oid
            || identity.database_uuid.as_ref() != Some(&row.source.uuid)
    });
    if other {
        return Some("the service's database is another one".to_owned());
    }
    if row.mode == Mode::Off {
        return Some("it was being taken down".to_owned());
    }
    if changed {
        return Some("its publication was not what it must be".to_owned());
    }
    if !facts.left.is_empty() {
        let tables: Vec<String> = facts.left.iter().map(ToString::to_string).collect();
        return Some(format!("{} left its publication and came back", tables.join(", ")));
    }
    match (row.state, &facts.slot) {
        (StreamState::Gap | StreamState::Diverged, _) => {
            Some(row.detail.clone().unwrap_or_else(|| row.state.as_str().to_owned()))
        }
        (_, None) => Some(format!("its slot {} is gone", row.slot)),
        (_, Some(slot)) if slot.wal_status.as_deref() == Some("lost") => {
            Some(format!("the service has removed WAL that its slot {} needed", row.slot))
        }
        (_, Some(_)) => facts.asked_anew.clone(),
    }
}

/// An update or delete must carry the key that the mapping tells rows apart by.
fn identities(draft: &mut Draft<'_>, slice: &SliceMapping) {
    let survey = draft.survey;
    let Some(catalog) = survey.provisioned.services.get(&slice.service) else { return };
    for mapping in &slice.tables {
        for table in unidentified(catalog, mapping) {
            let identity = enough(table, mapping);
            let to = match identity.as_str() {
                "DEFAULT" => 'd',
                "FULL" => 'f',
                _ => 'i',
            };
            let noted = set_aside::note_identity(&slice.slice, &table.name, to);
            let statement = format!("ALTER TABLE {} REPLICA IDENTITY {identity}", table.name.sql());
            draft.journaled(
                (Database::Service(slice.service.clone()), &slice.slice),
                ("set replica identity of table", &table.name.to_string()),
                (
                    Vec::new(),
                    Some(Locks::of(LockMode::AccessExclusive, &table.name, false)),
                    vec![noted.into(), statement.into()],
                ),
                "arm-identity-set",
            );
        }
    }
}

/// The relations that hold a table's rows in the service and whose replica identity lacks its key. Called by `check`, too.
#[must_use]
pub fn unidentified<'a>(catalog: &'a Catalog, mapping: &TableMapping) -> Vec<&'a Table> {
    written(catalog, &mapping.target).into_iter().filter(|table| !identifies(table, mapping)).collect()
}

/// The relations that hold a table's rows: its leaves where it is partitioned, as a service's own migrations may make it.
fn written<'a>(catalog: &'a Catalog, name: &TableName) -> Vec<&'a Table> {
    let mut found = Vec::new();
    let mut pending: Vec<&Table> = catalog.table(name).into_iter().collect();
    while let Some(table) = pending.pop() {
        if table.kind == TableKind::Partitioned {
            pending.extend(
                catalog.tables.values().filter(|child| child.partition_of.as_ref() == Some(&table.name)),
            );
        } else {
            found.push(table);
        }
    }
    found
}

fn identifies(table: &Table, mapping: &TableMapping) -> bool {
    if table.replica_identity == ReplicaIdentity::Full {
        return true;
    }
    let columns = table.key_columns().unwrap_or_default();
    mapping.key_columns().all(|key| columns.contains(&key.target.as_str()))
}

fn enough(table: &Table, mapping: &TableMapping) -> String {
    let key: BTreeSet<&str> = mapping.key_columns().map(|column| column.target.as_str()).collect();
    let fits = |columns: Option<Vec<&str>>| {
        columns.is_some_and(|columns| columns.into_iter().collect::<BTreeSet<_>>() == key)
    };
    let of = |index: &crate::catalog::Index| {
        index
            .columns
            .iter()
            .map(Option::as_deref)
            .collect::<Option<Vec<_>>>()
            .is_some_and(|columns| fits(Some(columns)))
    };
    let fitting = table.indexes.iter().filter(|index| table.can_identify(index) && of(index));
    match fitting.max_by_key(|index| index.primary) {
        Some(index) if index.primary => "DEFAULT".to_owned(),
        Some(index) => format!("USING INDEX {}", quote_ident(&index.name)),
        None => "FULL".to_owned(),
    }
}

/// The service's publication of the slice's tables, of the same name as the monolith's. Returns whether it was there
/// and has to be changed.
fn publish(draft: &mut Draft<'_>, slice: &SliceMapping) -> bool {
    let survey = draft.survey;
    let (Some(catalog), Some(state)) = (
        survey.provisioned.services.get(&slice.service),
        survey.provisioned.service_states.get(&slice.service),
    ) else {
        return false;
    };
    let name = publication(draft, slice);
    let tables = slice.tables.iter().map(|mapping| mapping.target.clone());
    let wanted: BTreeSet<TableName> = tables.chain([canary()]).collect();
    let statements = match exact_publication(&name, state.publications.get(&name), &wanted, catalog) {
        Ok(statements) => statements,
        Err(taken) => {
            draft.problem(*taken.of(&format!("service {}", slice.service)));
            return false;
        }
    };
    let missing = !statements.is_empty();
    let locked = slice
        .tables
        .iter()
        .filter_map(|mapping| catalog.table(&mapping.target))
        .map(|table| Locked { table: table.name.clone(), partitioned: table.kind == TableKind::Partitioned });
    let locks = Locks { mode: LockMode::ShareUpdateExclusive, tables: locked.collect() };
    draft.journaled(
        (Database::Service(slice.service.clone()), &slice.slice),
        ("publish", &name),
        (Vec::new(), Some(locks), statements.into_iter().map(Statement::from).collect()),
        "arm-published",
    );
    missing
}

/// The reverse publication's name.
pub(super) fn publication(draft: &Draft<'_>, slice: &SliceMapping) -> String {
    let row = draft.survey.provisioned.monolith_state.slices.get(&slice.slice);
    row.map_or_else(String::new, |row| row.publication.clone())
}

/// A slot name with a random end, so that a slot that somebody makes again under "the" name is noticed.
fn slot_name(plan: &str, slice: &str) -> String {
    let suffix: String = std::iter::repeat_with(fastrand::lowercase).take(6).collect();
    let stem: String = format!("strangler_{plan}_{slice}").chars().take(52).collect();
    format!("{stem}_rev_{suffix}")
}

/// A new slot, written down before it is made, so that one which a crash leaves behind is known.
fn anew(draft: &mut Draft<'_>, slice: &SliceMapping, facts: &SliceFacts, mode: Mode) {
    let survey = draft.survey;
    let Some(catalog) = survey.provisioned.services.get(&slice.service) else { return };
    let Some(uuid) = catalog.identity.database_uuid.clone() else { return };
    let timeline = survey.servers.get(&slice.service).map_or(1, |server| server.timeline);
    let source = Source {
        system_identifier: catalog.identity.system_identifier.clone(),
        database_oid: catalog.identity.database_oid,
        uuid,
        timeline,
    };
    if let (Some(row), Some(_)) = (&facts.reverse, &facts.slot) {
        draft.step(Step {
            database: Database::Service(slice.service.clone()),
            slice: slice.slice.clone(),
            object: row.slot.clone(),
            purpose: "drop the old reverse slot",
            work: Work::DropSlot { slot: row.slot.clone() },
            point: "arm-old-slot-dropped",
        });
    }
    let name = slot_name(&draft.plan.name, &slice.slice);
    let publication = publication(draft, slice);
    let beginning = Beginning {
        epoch: facts.monolith.epoch,
        mode,
        slot: &name,
        publication: &publication,
        source: &source,
    };
    let begin = arming::begin_reverse(&slice.slice, beginning);
    draft.journaled(
        (Database::Monolith, &slice.slice),
        ("write down the reverse stream with slot", &name),
        (Vec::new(), None, begin.into_iter().map(Statement::from).collect()),
        "arm-stream-recorded",
    );
    slot(draft, slice, &name);
}

/// Makes the slot that the row names, and notes where it starts.
fn slot(draft: &mut Draft<'_>, slice: &SliceMapping, name: &str) {
    let major = draft.survey.provisioned.services.get(&slice.service).map_or(0, Catalog::major);
    draft.new_slots.insert(slice.service.clone());
    draft.step(Step {
        database: Database::Service(slice.service.clone()),
        slice: slice.slice.clone(),
        object: name.to_owned(),
        purpose: "create the reverse slot",
        work: Work::CreateSlot { slot: name.to_owned(), server_major: major },
        point: "arm-slot-created",
    });
    let entry = draft.entry(&slice.slice, "create the reverse slot", name);
    draft.step(Step {
        database: Database::Monolith,
        slice: slice.slice.clone(),
        object: name.to_owned(),
        purpose: "note the start of the reverse slot",
        work: Work::Start { slot: name.to_owned(), entry },
        point: "arm-stream-running",
    });
}
