//! Asks both databases. Nothing is locked, no transaction is held open, and nothing is written but markers.

use std::time::{Duration, Instant};

use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::Asked;
use super::facts::{Access, Facts, Findings, Holder, Prepared, Probe, Replica, Slot, Standby};
use super::{defaults, left_behind, locks, outgoing, writers};
use crate::authority::Side;
use crate::cdc::generated;
use crate::cdc::mirror::chain_of;
use crate::cdc::source::{self, MARKER_PREFIX};
use crate::dualwrite::flip::FlipError;
use crate::dualwrite::flip::sequences::Pairs;
use crate::dualwrite::gate::{APPLY_ROLE, LOCK_CLASS};
use crate::dualwrite::{guard, identified, keys};
use crate::journal::operators::{self, Operator};
use crate::journal::readiness::{Mirror, Told};
use crate::journal::{JournalError, alarms, authority, grounds, ledger, readiness, retirement};
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::postgres::{clocks, sqlstate};
use crate::problem::Problem;
use crate::reconcile::evidence;
use crate::words::statement;

/// Markers that are sent at most: one slow answer of a busy machine must not decide.
const PROBES_MAX: usize = 40;
/// Longest that one marker is waited for.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Longest that all of them take.
const PROBES_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks for one.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Sessions on both sides, outside any transaction: the administrators', who own gates and sequences.
#[derive(Debug, Clone, Copy)]
pub struct Sessions<'a> {
    /// On the monolith.
    pub monolith: &'a Client,
    /// On the service.
    pub service: &'a Client,
}

impl<'a> Sessions<'a> {
    fn on(self, side: Side) -> &'a Client {
        match side {
            Side::Monolith => self.monolith,
            Side::Service => self.service,
        }
    }
}

/// Finds out everything that [`super::judge`] wants to know. `own` is who asks, so that nobody stands in their own way;
/// `findings` are those of `arm`'s detector and of the proof of the way back.
///
/// # Errors
/// [`FlipError::Failed`] when a side can't be asked: then nothing is known, and no flip may begin.
pub async fn gather(
    sessions: Sessions<'_>,
    asked: &Asked<'_>,
    mapping: &SliceMapping,
    own: &Operator,
    findings: Findings,
) -> Result<Facts, FlipError> {
    let (from, to) = (sessions.on(asked.from()), sessions.on(asked.to));
    let slice = asked.slice;
    let there = readiness::read(from, slice, asked.from().incoming()).await.map_err(journal)?;
    let here = readiness::read(to, slice, asked.to.incoming()).await.map_err(journal)?;
    let sequences = Pairs::find(sessions.monolith, sessions.service, mapping).await?;
    let stands_from = sequences.read(from, asked.from()).await.map_err(sequence)?;
    let stands_to = sequences.read(to, asked.to).await.map_err(sequence)?;
    let ground = match grounds::service(sessions.service, slice).await.map_err(journal)? {
        Some(ground) => {
            let shapes = grounds::monolith(sessions.monolith, slice).await.map_err(journal)?;
            Some(ground.with_monolith(&shapes))
        }
        None => None,
    };
    let tables = |side| -> Vec<String> { mapping.tables.iter().map(|table| named(table, side)).collect() };
    let locked = async |client, side| {
        locks::find(client, &tables(side), side == asked.from())
            .await
            .map_err(failed("looking for locks on moved tables"))
    };
    let behind = left_behind::find(from, mapping, (asked.from(), asked.policy().write_pause_budget)).await?;
    let (probe, slot) = (probe(from, to, asked, &here).await?, slot(to, &there).await?);
    // Read again behind the slot: a stream's position is never behind what its slot was told.
    let there = readiness::read(from, slice, asked.from().incoming()).await.map_err(journal)?;
    let lock_key = there.slice.as_ref().map(|slice| slice.lock_key);
    let mut evidence = evidence::evidence(sessions.service, slice).await.map_err(journal)?;
    if let Some(full) = &evidence.last_full {
        let (service, monolith) = (sessions.service, Some(sessions.monolith));
        evidence.broken = evidence::broken(service, monolith, full).await.map_err(journal)?;
    }
    // Behind the probe: a marker that arrived came through a way back that was noted before.
    let lost_writes = alarms::lost_writes(sessions.service, slice).await.map_err(journal)?;
    let apart_us = clocks::apart_us([sessions.monolith, sessions.service]).await;
    Ok(Facts {
        apart_us: apart_us.map_err(failed("reading the servers' clocks"))?,
        lost_writes,
        probe,
        evidence,
        ground,
        slot,
        prepared: prepared(from, lock_key, &tables(asked.from())).await?,
        holders: holders(from, lock_key).await?,
        locked_from: locked(from, asked.from()).await?,
        locked_to: locked(to, asked.to).await?,
        behind,
        passing: passing(from).await?,
        standbys: standbys(from).await?,
        sequences,
        stands_from,
        stands_to,
        access: access(to, asked, mapping).await?,
        unidentified: identified::lacking(to, &guard::tables(mapping, asked.to)).await.map_err(journal)?,
        defaults: defaults::read(to, mapping, asked.to).await.map_err(failed("reading defaults"))?,
        retired: retirement::read(sessions.monolith, slice).await.map_err(journal)?,
        other: operators::other(sessions.monolith, slice, own).await.map_err(journal)?,
        changed: changed(sessions.service, mapping, [&there, &here]).await?,
        mapping: pinned(mapping, &there),
        findings,
        from: there,
        to: here,
    })
}

/// What the plan maps in another way than it was provisioned; empty where it does not.
async fn changed(service: &Client, mapping: &SliceMapping, told: [&Told; 2]) -> Result<String, FlipError> {
    let mut hashes = told.into_iter().filter_map(|told| Some(&told.slice.as_ref()?.plan_hash));
    match hashes.find(|hash| !mapping.is_pinned_by(hash)) {
        Some(hash) => ledger::what_changed(service, mapping, hash).await.map_err(journal),
        None => Ok(String::new()),
    }
}

/// The mapping's hash, in the form under which the slice was provisioned.
fn pinned(mapping: &SliceMapping, told: &Told) -> String {
    let provisioned = told.slice.as_ref().map(|slice| &slice.plan_hash);
    provisioned.filter(|hash| mapping.is_pinned_by(hash)).unwrap_or(&mapping.hash).clone()
}

/// What both guards lack, as findings: places on either side where rows can be written without asking the gate, foreign keys
/// across the cut, tables that ask another slice's gate, ways past gates that are all there, and keys that the sides tell apart in
/// other ways. Of the way back it says nothing.
///
/// # Errors
/// [`FlipError::Failed`].
pub async fn unguarded(sessions: Sessions<'_>, mapping: &SliceMapping) -> Result<Findings, FlipError> {
    let read = async |client, side| {
        guard::read(client, &mapping.slice, &guard::tables(mapping, side)).await.map_err(journal)
    };
    let mut there = read(sessions.monolith, Side::Monolith).await?;
    let here = read(sessions.service, Side::Service).await?;
    let mut claimed: Vec<(TableName, String)> = there.claimed().collect();
    claimed.dedup();
    there.faults.retain(|fault| fault.of_slice.is_none());
    // Keys between slices of one service are its own affair.
    let faults = here.faults.iter().map(|fault| format!("{}{fault}", guard::IN_SERVICE));
    let unguarded = there.holes().into_iter().chain(faults).collect();
    let mut ways_past: Vec<_> =
        there.problems("monolith").into_iter().chain(here.problems("service")).collect();
    let both = (sessions.monolith, sessions.service);
    let keys = keys::problems(both, mapping).await;
    ways_past.extend(keys.map_err(failed("reading how keys tell rows apart"))?);
    let computed = generated::find_fault(both, mapping).await;
    let computed = computed.map_err(|error| FlipError::Failed {
        what: "reading how generated columns are computed",
        words: chain_of(&error),
    })?;
    ways_past.extend(computed.map(|fault| {
        Problem::error("generated-differs", format!("service {}", mapping.service))
            .fact(fault.what)
            .consequence("both sides would hold other values, and each write makes another one")
            .next(fault.next)
    }));
    Ok(Findings { unguarded, claimed, ways_past, way_back: None })
}

fn named(table: &crate::mapping::TableMapping, side: Side) -> String {
    match side {
        Side::Monolith => table.source.sql(),
        Side::Service => table.target.sql(),
    }
}

/// Sends markers until enough of them in a row were quick, or time is up.
async fn probe(from: &Client, to: &Client, asked: &Asked<'_>, told: &Told) -> Result<Probe, FlipError> {
    let mut probe = Probe::default();
    // Without anybody who reads the stream there is nothing to measure, and the reason has its own words.
    if !told.mirror.as_ref().is_some_and(Mirror::is_alive) {
        return Ok(probe);
    }
    let begun = Instant::now();
    while probe.millis.len() < PROBES_MAX
        && begun.elapsed() < PROBES_LIMIT
        && !outgoing::is_calm(&probe, asked)
    {
        let sent = Instant::now();
        let content = source::marker_content(asked.slice, "readiness");
        let position = source::emit(from, MARKER_PREFIX, &content).await;
        let position = position
            .map_err(|error| FlipError::Failed { what: "sending a marker", words: chain_of(&error) })?;
        loop {
            let rows = authority::look(to, asked.slice, asked.to.incoming()).await.map_err(journal)?;
            if rows.and_then(|rows| rows.incoming).is_some_and(|row| row.applied >= position) {
                break;
            }
            if sent.elapsed() >= PROBE_LIMIT {
                probe.unanswered = true;
                return Ok(probe);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        probe.millis.push(sent.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(probe)
}

/// The way back's slot, on the side that its stream reads.
async fn slot(to: &Client, there: &Told) -> Result<Option<Slot>, FlipError> {
    let Some(stream) = &there.stream else { return Ok(None) };
    let found = source::slot(to, &stream.slot).await;
    let found =
        found.map_err(|error| FlipError::Failed { what: "reading a slot", words: chain_of(&error) })?;
    Ok(found.map(|slot| Slot {
        confirmed: slot.confirmed,
        wal_status: slot.wal_status.unwrap_or_else(|| "reserved".to_owned()),
    }))
}

/// A prepared transaction keeps its locks without a process. Among them is the one on its own number, which tells the
/// virtual number that the others carry: that of the session that prepared it, or another one after a restart.
const PREPARED_SQL: &str = "
SELECT p.gid, p.owner::text, extract(epoch FROM clock_timestamp() - p.prepared)::int8
FROM pg_prepared_xacts AS p
WHERE p.database = current_database() AND EXISTS (
    SELECT FROM pg_locks AS x JOIN pg_locks AS l ON l.pid IS NULL AND l.virtualtransaction = x.virtualtransaction
    WHERE x.pid IS NULL AND x.locktype = 'transactionid' AND x.transactionid = p.transaction
        AND (l.locktype = 'advisory' AND l.classid = $1 AND l.objid = $2 AND l.objsubid = 2
            OR l.locktype = 'relation' AND l.mode NOT IN ('AccessShareLock', 'RowShareLock') AND l.relation IN (
                SELECT t.relid FROM unnest($3::text[]) AS n (name), pg_partition_tree(to_regclass(n.name)) AS t
                UNION SELECT to_regclass(n.name) FROM unnest($3::text[]) AS n (name))))
ORDER BY p.prepared";

async fn prepared(
    from: &Client,
    lock_key: Option<u32>,
    tables: &[String],
) -> Result<Vec<Prepared>, FlipError> {
    let class = LOCK_CLASS.unsigned_abs();
    let rows = from.query(PREPARED_SQL, &[&class, &lock_key, &tables]).await;
    let rows = rows.map_err(failed("looking for prepared transactions"))?;
    let of = |row: &Row| Prepared { gid: row.get(0), owner: row.get(1), age_s: row.get(2) };
    Ok(rows.iter().map(of).collect())
}

/// Who passed the gate holds its lock until their transaction ends. What this role may not see of others is null or a
/// note of the server's in the place of the statement; locks and the transactions that hold them are everybody's to see.
const HOLDERS_SQL: &str = "
SELECT l.virtualtransaction, l.pid, extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
    coalesce(nullif(a.application_name, ''), 'role ' || a.usename, ''), coalesce(a.state, 'state hidden'),
    coalesce(a.query, '')
FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.classid = $1 AND l.objid = $2 AND l.objsubid = 2 AND l.mode = 'ShareLock'
    AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY a.xact_start NULLS FIRST, l.pid";

/// Pause between two looks at transactions whose age is hidden.
const HIDDEN_EVERY: Duration = Duration::from_millis(100);

/// A transaction whose age this role may not see is looked at until it has ended, or is as old as any that a flip refuses to wait
/// for. Those that come meanwhile are younger than that look.
async fn holders(from: &Client, lock_key: Option<u32>) -> Result<Vec<Holder>, FlipError> {
    let class = LOCK_CLASS.unsigned_abs();
    let begun = Instant::now();
    let mut first: Option<Vec<String>> = None;
    loop {
        let seen_s = begun.elapsed().as_secs_f64();
        let rows = from.query(HOLDERS_SQL, &[&class, &lock_key]).await;
        let rows = rows.map_err(failed("looking for transactions that hold the gate"))?;
        let is_hidden = |row: &Row| row.get::<_, Option<f64>>(2).is_none();
        let known = first
            .get_or_insert_with(|| rows.iter().filter(|row| is_hidden(row)).map(|row| row.get(0)).collect());
        let stays = |row: &&Row| is_hidden(row) && known.contains(&row.get(0));
        if seen_s < writers::HOPELESS_S && rows.iter().any(|row| stays(&row)) {
            tokio::time::sleep(HIDDEN_EVERY).await;
            continue;
        }
        let of = |row: &Row| Holder {
            pid: row.get(1),
            age_s: row.get::<_, Option<f64>>(2).unwrap_or(if stays(&row) { seen_s } else { 0.0 }),
            hidden: is_hidden(row),
            application: row.get(3),
            state: row.get(4),
            query: statement::shown(row.get(5)),
        };
        return Ok(rows.iter().map(of).collect());
    }
}

/// The gate lets this login pass, whoever uses it.
const PASSING_SQL: &str = "
SELECT pid, coalesce(nullif(application_name, ''), 'no application name') FROM pg_stat_activity
WHERE datname = current_database() AND usename = $1 AND application_name NOT LIKE 'strangler%' ORDER BY pid";

async fn passing(from: &Client) -> Result<Vec<(i32, String)>, FlipError> {
    let rows = from.query(PASSING_SQL, &[&APPLY_ROLE]).await;
    let rows = rows.map_err(failed("looking for sessions that the gate lets pass"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// How long a standby may take to flush what was just written: as long as this, an opening would keep both sides closed.
const STANDBYS_LIMIT: Duration = Duration::from_millis(500);
const STANDBYS_EVERY: Duration = Duration::from_millis(5);

/// Whoever follows the whole server: its senders that work for no single database, and physical slots that nobody uses.
const STANDBYS_SQL: &str = "
SELECT coalesce(nullif(r.application_name, ''), 'process ' || r.pid), coalesce(r.sync_state, 'hidden'),
    pg_wal_lsn_diff($1, r.flush_lsn)::int8
FROM pg_stat_replication AS r
WHERE coalesce(r.state, '') <> 'backup' AND NOT EXISTS (
    SELECT FROM pg_stat_activity AS a WHERE a.pid = r.pid AND a.datid IS NOT NULL)
UNION ALL SELECT slot_name, 'away', NULL FROM pg_replication_slots
WHERE slot_type = 'physical' AND active_pid IS NULL AND NOT temporary
ORDER BY 1";

/// Asks until all that follow have flushed what is there now, or patience is over.
async fn standbys(from: &Client) -> Result<Vec<Standby>, FlipError> {
    let looking = failed("looking for standbys");
    let row = from.query_typed_one("SELECT pg_current_wal_flush_lsn()", &[]).await.map_err(looking)?;
    let (position, begun) = (row.get::<_, PgLsn>(0), Instant::now());
    let of = |row: &Row| Standby {
        name: row.get(0),
        kind: match row.get(1) {
            "sync" | "quorum" => Replica::Synchronous,
            "away" => Replica::Away,
            "hidden" => Replica::Hidden,
            _ => Replica::Asynchronous,
        },
        behind_bytes: row.get(2),
    };
    loop {
        let rows = from.query(STANDBYS_SQL, &[&position]).await.map_err(failed("looking for standbys"))?;
        let standbys: Vec<Standby> = rows.iter().map(of).collect();
        if begun.elapsed() >= STANDBYS_LIMIT || !standbys.iter().any(Standby::is_late) {
            return Ok(standbys);
        }
        tokio::time::sleep(STANDBYS_EVERY).await;
    }
}

/// An identity draws without being asked for a right, and other relations than sequences can't be asked about it; a default, and whoever calls nextval, needs USAGE or UPDATE.
const ACCESS_SQL: &str = "
SELECT w.role, r.oid IS NOT NULL, coalesce(r.rolcanlogin OR EXISTS (
        SELECT FROM pg_auth_members AS m JOIN pg_roles AS u ON u.oid = m.member
        WHERE m.roleid = r.oid AND u.rolcanlogin), false),
    t.name, ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p
        WHERE r.oid IS NOT NULL AND NOT coalesce(has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
            AND has_table_privilege(r.oid, c.oid, p), false)),
    ARRAY(SELECT DISTINCT format('%I.%I', n.nspname, s.relname) FROM (
            SELECT d.refobjid AS oid FROM pg_attrdef AS f JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass
                AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass WHERE f.adrelid = c.oid
            UNION SELECT d.objid FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'a'
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid > 0) AS q
        JOIN pg_class AS s ON s.oid = q.oid JOIN pg_namespace AS n ON n.oid = s.relnamespace
        WHERE r.oid IS NOT NULL AND has_table_privilege(r.oid, c.oid, 'INSERT')
            AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(r.oid, s.oid, 'USAGE, UPDATE') ELSE false END
        ORDER BY 1)
FROM unnest($1::text[]) AS w (role) CROSS JOIN unnest($2::text[], $3::text[]) AS t (name, sql)
LEFT JOIN pg_roles AS r ON r.rolname = w.role LEFT JOIN pg_class AS c ON c.oid = to_regclass(t.sql)
ORDER BY 1, 4";

/// What the roles that are to write on the side that opens may do with the tables there.
async fn access(to: &Client, asked: &Asked<'_>, mapping: &SliceMapping) -> Result<Vec<Access>, FlipError> {
    let roles: Vec<&str> = match asked.to {
        Side::Service => asked.service().map(|(_, service)| service.app.as_str()).into_iter().collect(),
        Side::Monolith => asked.plan.monolith.app_roles.iter().map(String::as_str).collect(),
    };
    let names = mapping.tables.iter().map(|table| match asked.to {
        Side::Monolith => table.source.to_string(),
        Side::Service => table.target.to_string(),
    });
    let names: Vec<String> = names.collect();
    let quoted: Vec<String> = mapping.tables.iter().map(|table| named(table, asked.to)).collect();
    let rows = to.query(ACCESS_SQL, &[&roles, &names, &quoted]).await;
    let rows = rows.map_err(failed("reading the rights of the application"))?;
    let of = |row: &Row| Access {
        role: row.get(0),
        exists: row.get(1),
        login: row.get(2),
        table: row.get(3),
        missing: row.get(4),
        sequences: row.get(5),
    };
    Ok(rows.iter().map(of).collect())
}

fn failed(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> FlipError {
    move |error| FlipError::Failed { what, words: sqlstate::words(&error) }
}

fn sequence(error: tokio_postgres::Error) -> FlipError {
    failed("reading sequences")(error)
}

fn journal(error: JournalError) -> FlipError {
    FlipError::Failed { what: "reading whether a flip may begin", words: chain_of(&error) }
}
