//! Everything in one database that carries our names, and what our own tables say of it. What of it is wrong is for `doctor` to
//! judge.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::{JournalError, abandonment, dropped, whereabouts};
use crate::name::TableName;
use crate::postgres::places::{self, Quarantine};

/// What there is, but for what our tables say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// Name of the database.
    pub database: String,
    /// Our schema is there.
    pub schema: bool,
    /// Gates: tables and functions in our schema, with the tables on which their triggers hang.
    pub gates: Vec<Gate>,
    /// Publications with our prefix.
    pub publications: Vec<Publication>,
    /// Slots of this database with our prefix.
    pub slots: Vec<Slot>,
    /// Schemas with the prefix of those that old tables are moved into, and how many tables and partitions each holds.
    pub quarantines: Vec<(String, i64)>,
    /// `strangler_apply`, where the server has it.
    pub role: Option<Role>,
}

/// A gate of one slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Slice, by the gate's name.
    pub slice: String,
    /// Its table is there.
    pub table: bool,
    /// Its function is there.
    pub function: bool,
    /// `OPEN` or `FENCED`; `None` without a table, or with an empty one.
    pub state: Option<String>,
    /// Tables that call its function, in order of their names.
    pub hangs_on: Vec<TableName>,
}

/// A publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Name.
    pub name: String,
    /// Tables in it.
    pub tables: i64,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Backend that reads it.
    pub reader: Option<i32>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL that it holds.
    pub held_bytes: u64,
}

/// The role that mirrors act as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Databases of the server in which something depends on it, rights among them; those of the whole server under `""`.
    pub needed_in: Vec<String>,
}

/// What our tables say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// It is the database that was provisioned, and no clone or restored copy of it; `None` where nothing was.
    pub itself: Option<bool>,
    /// Slices that were provisioned here.
    pub slices: Vec<SliceEntry>,
    /// Streams that end here.
    pub streams: Vec<StreamEntry>,
    /// Tables whose copy is not over.
    pub unfinished: Vec<Unfinished>,
    /// Indexes and constraints that wait, by slice.
    pub deferred: Vec<(String, i64)>,
    /// Rights on old tables that were taken away.
    pub rights: Vec<RightsAway>,
    /// Schemas that old tables were moved into.
    pub quarantines: Vec<Quarantine>,
    /// Slices that are being taken back.
    pub abandoned: Vec<String>,
    /// Archives of old tables.
    pub archives: Vec<ArchiveEntry>,
    /// Slices whose old tables are dropped, with whether that is over.
    pub dropped: Vec<(String, bool)>,
}

/// Where the old tables of a slice are archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveEntry {
    /// Slice.
    pub slice: String,
    /// Where its files are.
    pub place: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// When it was written down, RFC 3339.
    pub at: String,
    /// Rows in it.
    pub rows: i64,
    /// The tables are still away since then.
    pub stands: bool,
}

/// Rights on the old tables of one slice that were taken away and are not given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RightsAway {
    /// Slice.
    pub slice: String,
    /// Since when the stage stands, RFC 3339; `None` where it was taken back, and some rights could not be.
    pub since: Option<String>,
    /// How many rights are written down.
    pub count: i64,
}

/// A slice's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEntry {
    /// Slice.
    pub slice: String,
    /// Plan that it came from.
    pub plan: String,
    /// Service that it goes to.
    pub service: String,
    /// The row is the service's; else the monolith's.
    pub of_service: bool,
    /// Its publication.
    pub publication: String,
}

/// A stream's row. It stands where the stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    /// Slice.
    pub slice: String,
    /// It goes from the service to the monolith.
    pub reverse: bool,
    /// The slot at its source.
    pub slot: String,
    /// `creating`, `running`, `gap`, `diverged`.
    pub state: String,
    /// A mirror works at it: it gave a sign of life within the last ten seconds, and has not said that it stopped.
    pub alive: bool,
}

/// A table whose copy is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Slice.
    pub slice: String,
    /// Table in the monolith.
    pub table: String,
    /// `pending`, `copying` or `diverged`.
    pub state: String,
}

const DATABASE_SQL: &str = "SELECT current_database()::text, to_regnamespace('strangler') IS NOT NULL";

const GATES_SQL: &str = "
WITH named AS (
    SELECT substr(c.relname::text, 6) AS slice, c.oid AS table, NULL::oid AS function
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'strangler' AND c.relkind = 'r' AND left(c.relname::text, 5) = 'gate_'
    UNION ALL SELECT substr(p.proname::text, 6), NULL, p.oid
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'strangler' AND left(p.proname::text, 5) = 'gate_')
SELECT g.slice, max(g.table) IS NOT NULL, max(g.function) IS NOT NULL
FROM named g GROUP BY g.slice ORDER BY g.slice";

/// A partition's trigger comes from its parent's and is not told by itself.
const HANGS_SQL: &str = "
SELECT DISTINCT substr(p.proname::text, 6), n.nspname::text, c.relname::text
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace own ON own.oid = p.pronamespace
    JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE own.nspname = 'strangler' AND left(p.proname::text, 5) = 'gate_' AND t.tgparentid = 0
ORDER BY 1, 2, 3";

const PUBLICATIONS_SQL: &str = "
SELECT p.pubname::text, (SELECT count(*) FROM pg_publication_rel r WHERE r.prpubid = p.oid)
FROM pg_publication p WHERE left(p.pubname::text, 10) = 'strangler_' ORDER BY 1";

const SLOTS_SQL: &str = "
SELECT slot_name::text, active_pid, wal_status, greatest(0, coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery()
    THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0))::int8
FROM pg_replication_slots
WHERE database = current_database() AND left(slot_name::text, 10) = 'strangler_' AND NOT temporary ORDER BY 1";

const QUARANTINES_SQL: &str = "
SELECT n.nspname::text, (SELECT count(*) FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'f'))
FROM pg_namespace n WHERE starts_with(n.nspname::text, $1) ORDER BY 1";

const ROLE_SQL: &str = "
SELECT coalesce((SELECT array_agg(DISTINCT coalesce(d.datname::text, '') ORDER BY coalesce(d.datname::text, ''))
    FROM pg_shdepend s LEFT JOIN pg_database d ON d.oid = s.dbid
    WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid), ARRAY[]::text[])
FROM pg_roles r WHERE r.rolname = 'strangler_apply'";

/// Reads what there is. Called before [`entries`]: an object is written down before it is made, so what is there and not
/// written down afterwards is nobody's.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn objects(client: &Client) -> Result<Objects, JournalError> {
    read_objects(client).await.map_err(JournalError::database("looking for what carries our names"))
}

async fn read_objects(client: &Client) -> Result<Objects, Error> {
    let row = client.query_typed_one(DATABASE_SQL, &[]).await?;
    let mut objects = Objects { database: row.get(0), schema: row.get(1), ..Objects::default() };
    let hangs = client.query_typed(HANGS_SQL, &[]).await?;
    for row in client.query_typed(GATES_SQL, &[]).await? {
        let (slice, table): (String, bool) = (row.get(0), row.get(1));
        let on = hangs.iter().filter(|on| on.get::<_, &str>(0) == slice);
        let hangs_on = on.map(|on| TableName::new(on.get::<_, String>(1), on.get::<_, String>(2)));
        let state = if table { gate_state(client, &slice).await? } else { None };
        objects.gates.push(Gate { hangs_on: hangs_on.collect(), state, table, function: row.get(2), slice });
    }
    for row in client.query_typed(PUBLICATIONS_SQL, &[]).await? {
        objects.publications.push(Publication { name: row.get(0), tables: row.get(1) });
    }
    for row in client.query_typed(SLOTS_SQL, &[]).await? {
        objects.slots.push(Slot {
            name: row.get(0),
            reader: row.get(1),
            wal_status: row.get(2),
            held_bytes: u64::try_from(row.get::<_, i64>(3)).unwrap_or(0),
        });
    }
    let prefix: [(&(dyn ToSql + Sync), Type); 1] = [(&places::PREFIX, Type::TEXT)];
    let schemas = client.query_typed(QUARANTINES_SQL, &prefix).await?;
    objects.quarantines = schemas.iter().map(|row| (row.get(0), row.get(1))).collect();
    let role = client.query_typed(ROLE_SQL, &[]).await?;
    objects.role = role.first().map(|row| Role { needed_in: row.get(0) });
    Ok(objects)
}

async fn gate_state(client: &Client, slice: &str) -> Result<Option<String>, Error> {
    let table = crate::name::quote_ident(&format!("gate_{slice}"));
    let row = client.query_typed(&format!("SELECT state FROM strangler.{table}"), &[]).await?;
    Ok(row.first().map(|row| row.get(0)))
}

const SLICES_SQL: &str =
    "SELECT slice, plan, service, side = 'service', publication FROM strangler.slice ORDER BY slice";

const STREAMS_SQL: &str = "
SELECT t.slice, t.dir = 'reverse', t.slot, t.state,
    coalesce(m.stopped_at IS NULL AND m.seen_at > now() - interval '10 seconds', false)
FROM strangler.stream t LEFT JOIN strangler.mirror_process m ON m.slice = t.slice AND m.dir = t.dir
ORDER BY 1, 2";

const UNFINISHED_SQL: &str =
    "SELECT slice, source_table, state FROM strangler.mirror_table WHERE state <> 'live' ORDER BY 1, 2";

const DEFERRED_SQL: &str =
    "SELECT slice, count(*) FROM strangler.deferred WHERE done_at IS NULL GROUP BY slice ORDER BY slice";

const RIGHTS_SQL: &str = "
SELECT slice, to_char(r.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), count(w.slice)
FROM strangler.retirement r FULL JOIN strangler.revoked_right w USING (slice) GROUP BY slice, r.at ORDER BY slice";

const ARCHIVES_SQL: &str = "
SELECT a.slice, a.place, a.manifest_sha256, to_char(a.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), a.rows,
    coalesce(r.epoch = a.epoch AND r.stage <> 'revoked', false)
FROM strangler.archive a LEFT JOIN strangler.retirement r USING (slice) ORDER BY a.slice";

/// Reads what our tables say; nothing where our schema is not there.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn entries(client: &Client) -> Result<Entries, JournalError> {
    let failed = || JournalError::database("reading what is provisioned");
    let mut entries = read_entries(client).await.map_err(failed())?;
    entries.abandoned = abandonment::all(client).await?;
    let dropped = dropped::all(client).await?.into_iter();
    entries.dropped = dropped.map(|one| (one.slice, one.ended_at.is_some())).collect();
    if !entries.slices.is_empty() {
        entries.itself = Some(whereabouts::is_itself(client).await?);
    }
    Ok(entries)
}

async fn read_entries(client: &Client) -> Result<Entries, Error> {
    let there =
        "SELECT to_regclass('strangler.slice') IS NOT NULL AND to_regclass('strangler.stream') IS NOT NULL";
    let mut entries = Entries::default();
    if !client.query_typed_one(there, &[]).await?.get::<_, bool>(0) {
        return Ok(entries);
    }
    for row in client.query_typed(SLICES_SQL, &[]).await? {
        entries.slices.push(SliceEntry {
            slice: row.get(0),
            plan: row.get(1),
            service: row.get(2),
            of_service: row.get(3),
            publication: row.get(4),
        });
    }
    for row in client.query_typed(STREAMS_SQL, &[]).await? {
        entries.streams.push(StreamEntry {
            slice: row.get(0),
            reverse: row.get(1),
            slot: row.get(2),
            state: row.get(3),
            alive: row.get(4),
        });
    }
    for row in client.query_typed(UNFINISHED_SQL, &[]).await? {
        entries.unfinished.push(Unfinished { slice: row.get(0), table: row.get(1), state: row.get(2) });
    }
    let deferred = client.query_typed(DEFERRED_SQL, &[]).await?;
    entries.deferred = deferred.iter().map(|row| (row.get(0), row.get(1))).collect();
    // A database that an earlier version provisioned has nothing retired.
    let there = "SELECT to_regclass('strangler.revoked_right') IS NOT NULL";
    if client.query_typed_one(there, &[]).await?.get(0) {
        for row in client.query_typed(RIGHTS_SQL, &[]).await? {
            entries.rights.push(RightsAway { slice: row.get(0), since: row.get(1), count: row.get(2) });
        }
    }
    entries.quarantines = places::read(client).await?.0;
    let there = "SELECT to_regclass('strangler.archive') IS NOT NULL";
    if client.query_typed_one(there, &[]).await?.get(0) {
        for row in client.query_typed(ARCHIVES_SQL, &[]).await? {
            entries.archives.push(ArchiveEntry {
                slice: row.get(0),
                place: row.get(1),
                manifest_sha256: row.get(2),
                at: row.get(3),
                rows: row.get(4),
                stands: row.get(5),
            });
        }
    }
    Ok(entries)
}
