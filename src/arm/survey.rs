//! What there is before `arm` or `disarm` decide: what provision made, the gates, the triggers, the reverse stream.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::ArmError;
use crate::cdc::publication;
use crate::cdc::source::{self, SlotFacts};
use crate::dualwrite::guard::{self, Guard, Subscribed};
use crate::dualwrite::keys;
use crate::journal::JournalError;
use crate::journal::arming::{self, Armed, CutKey};
use crate::journal::copies;
use crate::journal::retirement;
use crate::journal::slices::{self, GateRow};
use crate::journal::streams::StreamRow;
use crate::mapping::{Mappings, SliceMapping, TableMapping, compile};
use crate::name::TableName;
use crate::plan::Plan;
use crate::postgres::firing::{self, Firing};
use crate::problem::{Problem, arm_anew};
use crate::provision::{self, Database, Databases};

/// Everything that the decision rests on.
#[derive(Debug)]
pub struct Survey {
    /// Catalogs, and what is provisioned.
    pub provisioned: provision::Survey,
    /// Every slice of the plan, not only those that are asked for: a foreign key between two of them crosses a cut.
    pub mappings: Mappings,
    /// What compiling them found.
    pub mapping_problems: Vec<Problem>,
    /// How each slice of the command stands. Slices that are not provisioned are not there.
    pub slices: BTreeMap<String, SliceFacts>,
    /// Foreign keys that were dropped and not restored, of every slice.
    pub cut_keys: Vec<CutKey>,
    /// Slices that have a reverse stream, of the whole plan.
    pub reversed: BTreeSet<String>,
    /// The services' servers, by service.
    pub servers: BTreeMap<String, ServerFacts>,
}

/// How a slice stands.
#[derive(Debug, Clone)]
pub struct SliceFacts {
    /// The monolith's gate.
    pub monolith: GateRow,
    /// The service's gate.
    pub service: GateRow,
    /// The moved tables of the monolith.
    pub guard: Guard,
    /// Second key of the gate's lock on the monolith.
    pub lock_key: i32,
    /// The reverse stream's row.
    pub reverse: Option<StreamRow>,
    /// The slot that the row names, as the service has it.
    pub slot: Option<SlotFacts>,
    /// Subscriptions of the service that write into its moved tables.
    pub subscribed: Vec<Subscribed>,
    /// Triggers and rules of the service that fire on what the mirror writes into its moved tables.
    pub firing: Vec<Firing>,
    /// The service's tables that left the publication of the way back since it began, and came back: what changed in
    /// between is not in the stream.
    pub left: Vec<TableName>,
    /// Why the way back ended by itself, where it asked to be made anew.
    pub asked_anew: Option<String>,
    /// What the journal says.
    pub armed: Armed,
    /// Its old tables were taken away.
    pub retired: bool,
    /// Keys by which both sides don't mean the same rows.
    pub keys: Vec<Problem>,
}

/// What matters of a service's server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// Slots in use on it.
    pub slots_used: i64,
    /// WAL senders in use on it.
    pub senders_used: i64,
    /// Prepared transactions on it.
    pub prepared: i64,
    /// Its timeline, by its last checkpoint.
    pub timeline: i32,
    /// Roles of its links that may use replication connections.
    pub replicating: BTreeSet<String>,
}

/// Reads it, each database in transactions of its own. `only` names the slices of the command; empty means all.
///
/// # Errors
/// [`ArmError::Survey`], [`ArmError::Journal`], [`ArmError::Read`].
pub async fn survey(plan: &Plan, only: &[String], databases: &Databases) -> Result<Survey, ArmError> {
    let provisioned = provision::survey(plan, databases).await?;
    let (mappings, mapping_problems) = compile(plan, &provisioned.monolith);
    let mut survey = Survey {
        provisioned,
        mappings,
        mapping_problems,
        slices: BTreeMap::new(),
        cut_keys: Vec::new(),
        reversed: BTreeSet::new(),
        servers: BTreeMap::new(),
    };
    for (name, client) in &databases.services {
        let database = Database::Service(name.clone());
        let failed = |source| ArmError::Read { database, what: "its replication slots", source };
        survey.servers.insert(name.clone(), read_server(client).await.map_err(failed)?);
    }
    if !current(&survey.provisioned.monolith_state) {
        return Ok(survey);
    }
    let failed = |source| ArmError::Journal { database: Database::Monolith, source };
    survey.cut_keys = arming::cut_keys(&databases.monolith).await.map_err(failed)?;
    for slice in survey.mappings.values() {
        let name = &slice.slice;
        if arming::reverse(&databases.monolith, name).await.map_err(failed)?.is_some() {
            survey.reversed.insert(name.clone());
        }
    }
    let chosen = survey.mappings.values().filter(|slice| only.is_empty() || only.contains(&slice.slice));
    for slice in chosen {
        let there = survey.provisioned.service_states.get(&slice.service);
        let ready = there.is_some_and(|state| current(state) && state.gates.contains(&slice.slice))
            && survey.provisioned.monolith_state.gates.contains(&slice.slice);
        let Some(service) = databases.services.get(&slice.service).filter(|_| ready) else { continue };
        if let Some(facts) = read_slice(&databases.monolith, service, slice).await? {
            survey.slices.insert(slice.slice.clone(), facts);
        }
    }
    Ok(survey)
}

fn current(state: &provision::State) -> bool {
    state.missing_versions.is_empty()
}

async fn read_slice(
    monolith: &Client,
    service: &Client,
    slice: &SliceMapping,
) -> Result<Option<SliceFacts>, ArmError> {
    let name = slice.slice.as_str();
    let here = |source| ArmError::Journal { database: Database::Monolith, source };
    let there = |source| ArmError::Journal { database: Database::Service(slice.service.clone()), source };
    let gates = (
        slices::gate(monolith, name).await.map_err(here)?,
        slices::gate(service, name).await.map_err(there)?,
    );
    let lock_key = arming::lock_key(monolith, name).await.map_err(here)?;
    let ((Some(monolith_gate), Some(service_gate)), Some(lock_key)) = (gates, lock_key) else {
        return Ok(None);
    };
    let tables: Vec<TableName> = slice.tables.iter().map(|table| table.source.clone()).collect();
    let targets: Vec<TableName> = slice.tables.iter().map(|table| table.target.clone()).collect();
    let reverse = arming::reverse(monolith, name).await.map_err(here)?;
    let failed = JournalError::database("looking for triggers");
    let failed = |source| there(failed(source));
    let keys = keys::problems((monolith, service), slice).await.map_err(|source| {
        let database = Database::Service(slice.service.clone());
        ArmError::Read { database, what: "how its keys tell rows apart", source }
    })?;
    let (slot, left) = match &reverse {
        Some(row) => (
            read_slot(service, &slice.service, &row.slot).await?,
            read_left((monolith, service), slice, &row.publication).await?,
        ),
        None => (None, Vec::new()),
    };
    Ok(Some(SliceFacts {
        monolith: monolith_gate,
        service: service_gate,
        guard: guard::read(monolith, name, &tables).await.map_err(here)?,
        lock_key,
        reverse,
        slot,
        subscribed: guard::subscribed(service, &targets).await.map_err(there)?,
        firing: firing::read(service, &targets).await.map_err(failed)?,
        left,
        asked_anew: asked_anew(monolith, name).await.map_err(here)?,
        armed: arming::armed(monolith, name).await.map_err(here)?,
        retired: retirement::read(monolith, name).await.map_err(here)?.is_some(),
        keys,
    }))
}

/// A way back over which the service's tables took another shape can't read on, whatever shape they have by now.
async fn asked_anew(monolith: &Client, slice: &str) -> Result<Option<String>, JournalError> {
    let asked = arming::asked_anew(monolith, slice, &arm_anew(slice)).await?;
    Ok(asked.map(|word| word.split("; next: ").next().unwrap_or_default().to_owned()))
}

/// A slot of a service.
pub(super) async fn read_slot(
    service: &Client,
    name: &str,
    slot: &str,
) -> Result<Option<SlotFacts>, ArmError> {
    let failed = |source| ArmError::Slot { database: Database::Service(name.to_owned()), source };
    source::slot(service, slot).await.map_err(failed)
}

/// The service's tables whose entry in the publication is another one than the way back began with.
async fn read_left(
    (monolith, service): (&Client, &Client),
    slice: &SliceMapping,
    publication: &str,
) -> Result<Vec<TableName>, ArmError> {
    let here = |source| ArmError::Journal { database: Database::Monolith, source };
    let began_with = copies::tables(monolith, &slice.slice).await.map_err(here)?;
    let failed = |source| ArmError::Slot { database: Database::Service(slice.service.clone()), source };
    let published = publication::read(service, publication).await.map_err(failed)?;
    let left = |table: &&TableMapping| {
        let label = table.source.to_string();
        let before = began_with.iter().find(|row| row.source_table == label).and_then(|row| row.published_as);
        let now = published.as_ref().and_then(|published| published.tables.get(&table.target));
        before.zip(now).is_some_and(|(before, now)| before != *now)
    };
    Ok(slice.tables.iter().filter(left).map(|table| table.target.clone()).collect())
}

async fn read_server(client: &Client) -> Result<ServerFacts, tokio_postgres::Error> {
    let sql = "SELECT (SELECT count(*) FROM pg_replication_slots), \
                   (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'), \
                   (SELECT count(*) FROM pg_prepared_xacts), (SELECT timeline_id FROM pg_control_checkpoint())";
    let row = client.query_typed_one(sql, &[]).await?;
    // rds_replication is what stands for the attribute on Amazon's servers.
    let roles = "SELECT rolname::text FROM pg_roles r WHERE rolsuper OR rolreplication OR EXISTS (\
                     SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication' AND pg_has_role(r.oid, m.oid, 'MEMBER'))";
    let replicating = client.query_typed(roles, &[]).await?.iter().map(|row| row.get(0)).collect();
    Ok(ServerFacts {
        slots_used: row.try_get(0)?,
        senders_used: row.try_get(1)?,
        prepared: row.try_get(2)?,
        timeline: row.try_get(3)?,
        replicating,
    })
}
