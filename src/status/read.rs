//! The questions that `status` asks. The progress of each side is one statement, so its facts belong to one moment; gates
//! and evidence are asked after it. No transaction is held open; nothing here locks or writes.

use std::collections::BTreeMap;

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::arming;
use super::evidence::EvidenceFacts;
use super::facts::{Gate, MonolithFacts, MoveGroup, ServiceFacts, Side, Slot, Unfit, WayBack};
use crate::dualwrite::readiness::{TableLock, locks};
use crate::dualwrite::{guard, identified};
use crate::journal::ledger::{self, Anchor};
use crate::journal::migrate::{self, Form};
use crate::journal::{JournalError, alarms, authority, dropped, grounds, moves, outside, standing};
use crate::lsn::Lsn;
use crate::name::{TableName, quote_ident, quote_literal};
use crate::reconcile::evidence;

/// A database answered, but not what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The statement failed.
    #[error("reading {what} failed")]
    Query {
        /// What was read.
        what: &'static str,
        /// What the server or the connection said.
        source: tokio_postgres::Error,
    },
    /// Our own tables could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The tables of schema `strangler` are of another version.
    #[error("{what} do not look as this version of strangler left them")]
    Shape {
        /// What was read.
        what: &'static str,
        /// What did not fit.
        source: serde_json::Error,
    },
}

// WAL held is counted from restart_lsn: that is where the server must keep segments from (PostgreSQL documentation,
// section 54.19). A slot whose WAL is gone has no restart_lsn.
const MONOLITH_SQL: &str = "
SELECT jsonb_build_object(
    'now_us', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    'current_lsn', pg_current_wal_lsn())::text";

const SLOTS_SQL: &str = "
SELECT (SELECT coalesce(jsonb_agg(jsonb_build_object('name', slot_name, 'active', active,
            'wal_status', coalesce(wal_status, 'reserved'),
            'held_bytes', coalesce(greatest(0, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint,
            'safe_wal_bytes', safe_wal_size)), '[]')
        FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database())::text";

/// The facts of these slices in a service's database.
///
/// # Errors
/// [`ReadError`].
pub async fn service(client: &Client, slices: &[&str]) -> Result<BTreeMap<String, ServiceFacts>, ReadError> {
    let what = "the mirror's progress";
    let mut facts: BTreeMap<String, ServiceFacts> =
        slices.iter().map(|slice| ((*slice).to_owned(), ServiceFacts::default())).collect();
    let Some(rows) = standing::service(client, slices).await? else { return Ok(facts) };
    for (slice, text) in rows {
        let read = serde_json::from_str(&text).map_err(|source| ReadError::Shape { what, source })?;
        facts.insert(slice, read);
    }
    for (slice, gate) in gates(client, slices).await? {
        if let Some(facts) = facts.get_mut(&slice) {
            facts.gate = Some(gate);
        }
    }
    let form = migrate::form(client).await?;
    let slots = slots(client).await?;
    for done in dropped::all(client).await? {
        if let Some(facts) = facts.get_mut(&done.slice) {
            facts.dropped = Some(done);
        }
    }
    for (slice, facts) in &mut facts {
        facts.form = form;
        facts.slots.clone_from(&slots);
        if form == Form::Current {
            facts.strays = alarms::uncleared(client, slice).await?;
            facts.outside = outside::uncleared(client, slice).await?;
            facts.lost_writes = alarms::lost_writes(client, slice).await?;
            facts.way_back_slot = alarms::noted_way_back(client, slice).await?;
            facts.evidence = Some(evidence_of(client, slice).await?);
            (facts.unguarded, facts.unfit) = unguarded(client, slice, facts).await?;
        }
    }
    Ok(facts)
}

/// What the service's gate does not guard, and what else is wrong with its tables: nothing is asked before there is one.
async fn unguarded(
    client: &Client,
    slice: &str,
    facts: &ServiceFacts,
) -> Result<(Vec<String>, Vec<Unfit>), ReadError> {
    if facts.gate.is_none() {
        return Ok((Vec::new(), Vec::new()));
    }
    let names = facts.tables.iter().map(|table| TableName::parse(&table.target_table, "public"));
    let tables: Vec<TableName> = names.filter_map(Result::ok).collect();
    let guard = guard::read(client, slice, &tables).await?;
    let subscribed = guard.subscribed.iter().map(|one| (one.to_string(), one.problem("service")));
    let firing = guard.firing.iter().map(|one| (one.to_string(), one.problem("service")));
    let named = subscribed.chain(firing).map(|(words, problem)| Unfit { words, next: Some(problem.next) });
    let lacking = identified::lacking(client, &tables).await?;
    let lacking = lacking.iter().map(|table| Unfit { words: identified::words(table), next: None });
    Ok((guard.faults.iter().map(ToString::to_string).collect(), named.chain(lacking).collect()))
}

/// Logical slots of a database.
async fn slots(client: &Client) -> Result<Vec<Slot>, ReadError> {
    let what = "replication slots";
    let row =
        client.query_typed_one(SLOTS_SQL, &[]).await.map_err(|source| ReadError::Query { what, source })?;
    serde_json::from_str(row.get(0)).map_err(|source| ReadError::Shape { what, source })
}

/// A row of the ledger that can't be understood must not hide how the mirror does.
async fn evidence_of(client: &Client, slice: &str) -> Result<Side<EvidenceFacts>, ReadError> {
    let read = async || {
        let evidence = evidence::evidence(client, slice).await?;
        Ok(EvidenceFacts { evidence, ground: grounds::service(client, slice).await? })
    };
    match read().await {
        Ok(facts) => Ok(Side::Read(facts)),
        Err(error @ JournalError::Unreadable { .. }) => Ok(Side::Silent(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// What the monolith remembers of the services' ledgers.
///
/// # Errors
/// [`ReadError`].
pub async fn anchors(client: &Client) -> Result<BTreeMap<String, Anchor>, ReadError> {
    match migrate::form(client).await? {
        Form::Current => Ok(ledger::anchors(client, None).await?),
        Form::Absent | Form::Older => Ok(BTreeMap::new()),
    }
}

/// The facts of these slices in the monolith.
///
/// # Errors
/// [`ReadError`].
pub async fn monolith(
    client: &Client,
    slices: &[&str],
) -> Result<BTreeMap<String, MonolithFacts>, ReadError> {
    let what = "replication slots";
    let row = client
        .query_typed_one(MONOLITH_SQL, &[])
        .await
        .map_err(|source| ReadError::Query { what, source })?;
    let text: String = row.get(0);
    let mut shared: MonolithFacts =
        serde_json::from_str(&text).map_err(|source| ReadError::Shape { what, source })?;
    shared.slots = slots(client).await?;
    let mut gates = gates(client, slices).await?;
    let form = migrate::form(client).await?;
    let dropped = dropped::all(client).await?;
    let mut backs = BTreeMap::new();
    if form == Form::Current {
        for (slice, text) in standing::ways_back(client, slices).await? {
            let what = "the ways back";
            let back: WayBack =
                serde_json::from_str(&text).map_err(|source| ReadError::Shape { what, source })?;
            backs.insert(slice, back);
        }
    }
    let mut facts = BTreeMap::new();
    for slice in slices {
        let gate = gates.remove(*slice);
        let shapes =
            if form == Form::Absent { BTreeMap::new() } else { grounds::monolith(client, slice).await? };
        let arming =
            if form == Form::Current { Some(arming::read(client, slice, &shapes).await?) } else { None };
        let mut back = backs.remove(*slice);
        if let Some(back) = back.as_mut().filter(|back| back.mode == "apply") {
            back.blocker = blocker(client, &shapes).await?;
        }
        let dropped = dropped.iter().find(|one| one.slice == **slice && one.side == "monolith").cloned();
        let mut facts_here = MonolithFacts { dropped, gate, form, arming, shapes, back, ..shared.clone() };
        // Only a move that is under way asks for these, and the monolith's gate may be the one that was not closed last.
        if form == Form::Current && facts_here.gate.as_ref().is_some_and(Gate::is_closed) {
            facts_here.groups = groups(client, slice).await?;
            facts_here.blocked = moves::blocked(client, slice).await?;
        }
        facts.insert((*slice).to_owned(), facts_here);
    }
    Ok(facts)
}

/// Whoever has for longest kept writers out of one of these tables, which go by their names in the plan.
async fn blocker(client: &Client, shapes: &BTreeMap<String, String>) -> Result<Option<String>, ReadError> {
    let what = "locks on the monolith's tables";
    let names = shapes.keys().filter_map(|name| TableName::parse(name, "public").ok());
    let tables: Vec<String> = names.map(|name| name.sql()).collect();
    let found =
        locks::find(client, &tables, false).await.map_err(|source| ReadError::Query { what, source })?;
    Ok(found.first().map(TableLock::brief))
}

async fn groups(client: &Client, slice: &str) -> Result<Vec<MoveGroup>, ReadError> {
    let found = authority::groups_of(client, slice).await?;
    Ok(found.into_iter().map(|(id, state, members)| MoveGroup { id, state, members }).collect())
}

/// Gate rows by slice. A gate is a table of its own, so that one slice's readers never meet another's fence; which
/// of them exist is asked first, because a statement that names a missing table fails as a whole.
async fn gates(client: &Client, slices: &[&str]) -> Result<BTreeMap<String, Gate>, ReadError> {
    let failed = |source| ReadError::Query { what: "the gates", source };
    let exist = "SELECT slice FROM unnest($1::text[]) AS s (slice)
        WHERE to_regclass('strangler.' || quote_ident('gate_' || slice)) IS NOT NULL";
    let selects: Vec<String> = client
        .query(exist, &[&slices])
        .await
        .map_err(failed)?
        .iter()
        .map(|row| {
            let slice: &str = row.get(0);
            let table = quote_ident(&format!("gate_{slice}"));
            // Gates of earlier versions lack the column, and are read all the same.
            format!(
                "SELECT {}, state, epoch, cause, (to_jsonb(g) ->> 'move_group')::int8, (to_jsonb(g) ->> 'fence_lsn')::pg_lsn FROM strangler.{table} AS g",
                quote_literal(slice)
            )
        })
        .collect();
    if selects.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = client.query_typed(&selects.join(" UNION ALL "), &[]).await.map_err(failed)?;
    Ok(rows
        .iter()
        .map(|row| {
            (
                row.get(0),
                Gate {
                    state: row.get(1),
                    epoch: row.get(2),
                    cause: row.get::<_, Option<String>>(3).unwrap_or_default(),
                    group: row.get(4),
                    fence: row.get::<_, Option<PgLsn>>(5).map(Lsn::from),
                },
            )
        })
        .collect())
}
