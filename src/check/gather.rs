//! Finds out the facts: the only part of `check` that talks to servers. It changes nothing on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_postgres::{Client, Error};

use super::facts::{APPLY_ROLE, Database, Facts, Link, LinkFailure, LinkName, LinkRole, Role, Server, Slot};
use super::foresee;
use crate::catalog::Catalog;
use crate::cdc::mirror::chain_of;
use crate::dualwrite::readiness::left_behind;
use crate::journal::{JournalError, dropped, holdings, migrate, whereabouts};
use crate::lsn::Lsn;
use crate::mapping::adopted::Misfit;
use crate::mapping::{Mappings, SliceMapping, compile, expand};
use crate::name::TableName;
use crate::plan::Plan;
use crate::postgres::{collations, introspect, places};
use crate::provision;

/// Longest that one filtered table is looked through for rows that no filter takes, in milliseconds.
const LEFT_BEHIND_MS: u32 = 1_000;

/// How far apart the two readings of the WAL position are at least. Shorter ones catch no more than noise; a longer
/// wait would be felt.
const WAL_SAMPLE: Duration = Duration::from_millis(500);

/// A link as the caller opened it, or why it could not.
pub type Opened = Result<Client, LinkFailure>;

/// The links into one database. Where two of them are one and the same url, open it twice.
#[derive(Debug)]
pub struct Links {
    /// DDL, publications, gates.
    pub admin: Opened,
    /// REPLICATION and SELECT; a service has none.
    pub read: Option<Opened>,
    /// Logs in as `strangler_apply`.
    pub apply: Opened,
}

impl Links {
    /// The one that may see most of those that are open.
    fn any_open(&self) -> Option<&Client> {
        let of = [Some(&self.admin), self.read.as_ref(), Some(&self.apply)];
        of.into_iter().flatten().find_map(|opened| opened.as_ref().ok())
    }
}

/// Looks at all databases of a plan. A link that failed is itself a fact, and the rest is still looked at. Only these `slices` are judged; the others of the plan are retired for good, and still say what theirs was.
pub async fn gather(
    plan: &Plan,
    slices: &[String],
    (monolith, services): (Links, BTreeMap<String, Links>),
) -> Facts {
    let mut roles: BTreeSet<String> = plan.monolith.app_roles.iter().cloned().collect();
    roles.insert(APPLY_ROLE.to_owned());
    for service in plan.services.values() {
        roles.extend([service.owner.clone(), service.app.clone()]);
    }
    let roles: Vec<String> = roles.into_iter().collect();
    let mut monolith_facts = look(&monolith, &roles).await;
    remember(plan, (&monolith, &services), &mut monolith_facts).await;
    let joined = monolith_facts.catalog.as_ref().map(|catalog| join(plan, catalog));
    let (mut mappings, mut mapping_problems, mut moved) = joined.unwrap_or_default();
    mappings.retain(|slice, _| slices.contains(slice));
    mapping_problems.retain(|problem| problem.concerns(slices));
    moved.retain(|_, takers| takers.iter().any(|taker| slices.contains(taker)));
    let mut living = plan.clone();
    living.slices.retain(|slice, _| slices.contains(slice));
    let mut facts = Facts {
        plan: living,
        left_behind: look_for_left_behind(&monolith, &mappings).await,
        mappings,
        mapping_problems,
        moved,
        foreseen: Vec::new(),
        collated: Vec::new(),
        monolith: monolith_facts,
        services: BTreeMap::new(),
    };
    for (name, links) in &services {
        let mut database = look(links, &roles).await;
        let targets: Vec<TableName> = facts
            .mappings
            .values()
            .filter(|slice| slice.service == *name)
            .flat_map(|slice| slice.tables.iter().map(|table| table.target.clone()))
            .collect();
        look_at_targets(links, &targets, &mut database).await;
        let tables = facts.mappings.values().filter(|slice| slice.service == *name);
        match look_at_keys(&monolith, links, tables).await {
            Ok(found) => facts.collated.extend(found.into_iter().map(|misfit| (name.clone(), misfit))),
            Err(error) => database.unread.push(LinkFailure::new(&error).words),
        }
        facts.services.insert(name.clone(), database);
    }
    let services = services.into_iter().map(|(name, links)| (name, links.admin)).collect();
    // No names mean all.
    let only = if slices.len() == plan.slices.len() { &[][..] } else { slices };
    match Box::pin(foresee::ask(&facts, (plan, only), monolith.admin, services)).await {
        Ok(problems) => facts.foreseen = problems,
        Err(error) => facts.monolith.unread.push(LinkFailure::new(&error).words),
    }
    facts
}

/// Adds tables that are dropped from the monolith to its catalog, where only services still have it written down what they were.
async fn remember(
    plan: &Plan,
    (monolith, services): (&Links, &BTreeMap<String, Links>),
    facts: &mut Database,
) {
    let (Some(client), Some(catalog)) = (monolith.any_open(), facts.catalog.take()) else { return };
    let services = services.values().filter_map(Links::any_open);
    let kept = dropped::elsewhere(client, services, &plan.name).await;
    let kept = kept.unwrap_or_else(|error| {
        facts.unread.push(chain_of(&error));
        Vec::new()
    });
    facts.catalog = Some(catalog.with_dropped(kept));
}

type Joined = (Mappings, Vec<crate::problem::Problem>, BTreeMap<TableName, Vec<String>>);

/// Joins the plan with the monolith's catalog. Tables with which something is wrong are among the others, so that this does
/// not hide what else is.
pub(super) fn join(plan: &Plan, catalog: &Catalog) -> Joined {
    let (mappings, problems) = compile(plan, catalog);
    let mappings = mappings.into_iter().map(|(name, slice)| (name, slice.with_spoilt())).collect();
    let mut moved: BTreeMap<TableName, Vec<String>> = BTreeMap::new();
    for one in expand(plan, catalog).0 {
        moved.entry(one.table.name.clone()).or_default().push(one.slice.to_owned());
    }
    (mappings, problems, moved)
}

/// What a link could not be asked.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Statement(#[from] Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Everything about one database that does not depend on the mapping.
async fn look(links: &Links, roles: &[String]) -> Database {
    let mut database = Database::default();
    let named = [
        (LinkName::Admin, Some(&links.admin)),
        (LinkName::Read, links.read.as_ref()),
        (LinkName::Apply, Some(&links.apply)),
    ];
    // All at once, so that a server that is silent is waited for once.
    let read = named.map(async |(name, opened): (LinkName, Option<&Opened>)| {
        let link = match opened? {
            Err(failure) => Link::Failed(failure.clone()),
            Ok(client) => match read_link(client, name).await {
                Ok(role) => Link::Open(role),
                Err(error) => Link::Failed(LinkFailure::new(&error)),
            },
        };
        Some((name, link))
    });
    database.links = join_all(read).await.into_iter().flatten().collect();
    let Some(client) = links.any_open() else { return database };
    let sample = WalSample::start(client).await;
    match introspect::read(client).await {
        Ok(catalog) => database.catalog = Some(catalog),
        Err(error) => database.unread.push(LinkFailure::new(&error).words),
    }
    match read_roles(client, roles).await {
        Ok(found) => database.roles = found,
        Err(error) => database.unread.push(LinkFailure::new(&error).words),
    }
    match whereabouts::read(client).await {
        Ok(found) => database.whereabouts = Some(found),
        Err(error) => database.unread.push(LinkFailure::new(&error).words),
    }
    match holdings::read(client).await {
        Ok(found) => database.holdings = found,
        Err(error) => database.unread.push(LinkFailure::new(&error).words),
    }
    match migrate::form(client).await {
        Ok(form) => database.form = form,
        Err(error) => database.unread.push(LinkFailure::new(&error).words),
    }
    match read_server(client, sample).await {
        Ok(server) => database.server = Some(server),
        Err(error) => database.unread.push(LinkFailure::new(&error).words),
    }
    database
}

async fn read_link(client: &Client, link: LinkName) -> Result<LinkRole, Unread> {
    let sql = "SELECT r.rolname::text, r.rolsuper, \
                      r.rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'rds_replication' \
                        AND pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER')), \
                      r.rolcreaterole, \
                      pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
               FROM pg_catalog.pg_roles r WHERE r.rolname = session_user";
    let row = client.query_typed_one(sql, &[]).await?;
    let mut role = LinkRole {
        name: row.try_get(0)?,
        place: whereabouts::place(client).await?,
        superuser: row.try_get(1)?,
        replication: row.try_get(2)?,
        create_role: row.try_get(3)?,
        create_in_database: row.try_get(4)?,
        ..LinkRole::default()
    };
    if link == LinkName::Admin {
        role.ungrantable = provision::ungrantable(client).await?;
    }
    if link == LinkName::Apply {
        role.replica_role = may_set_replica_role(client).await?;
    }
    if link == LinkName::Apply {
        role.lacking = lacking(client).await?;
    }
    if link != LinkName::Admin {
        // A superuser of an apply link becomes strangler_apply, whom row security does not spare.
        let becomes = link == LinkName::Apply && role.superuser;
        read_table_rights(client, becomes, &mut role).await?;
    }
    Ok(role)
}

/// What the session's role may do with rows, and whether it may leave markers in the log.
async fn read_table_rights(client: &Client, becomes: bool, role: &mut LinkRole) -> Result<(), Error> {
    let sql = "SELECT n.nspname::text, c.relname::text, pg_catalog.has_schema_privilege(n.oid, 'USAGE'), \
                      pg_catalog.has_table_privilege(c.oid, 'SELECT'), \
                      pg_catalog.has_any_column_privilege(c.oid, 'UPDATE'), \
                      pg_catalog.row_security_active(c.oid) OR $1 AND c.relrowsecurity AND NOT EXISTS ( \
                        SELECT FROM pg_catalog.pg_roles a WHERE a.rolname = $2 AND (a.rolsuper OR a.rolbypassrls \
                          OR NOT c.relforcerowsecurity AND pg_catalog.pg_has_role(a.oid, c.relowner, 'USAGE'))) \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let rows = client.query(sql, &[&becomes, &APPLY_ROLE]).await?;
    let places = places::among(client, rows.iter().map(|row| row.get(0))).await?;
    let named = rows.iter().map(|row| places.named(row.get::<_, String>(0), row.get::<_, String>(1)));
    let away: BTreeSet<TableName> = named.filter(|table| table.place_schema() != table.schema).collect();
    for row in rows {
        let table = places.named(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        // Another table that came under the name of one that was moved away is none of the plan's.
        if table.place_schema() == table.schema && away.contains(&table) {
            continue;
        }
        let (usable, readable, lockable): (bool, bool, bool) =
            (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
        if row.try_get(5)? {
            role.row_filtered.insert(table.clone());
        }
        if !(usable && readable && lockable) {
            role.unlockable.insert(table.clone());
        }
        if !(usable && readable) {
            role.unreadable.insert(table);
        }
    }
    let sql = "SELECT nspname::text FROM pg_catalog.pg_namespace \
               WHERE nspname !~ '^pg_' AND NOT pg_catalog.has_schema_privilege(oid, 'USAGE')";
    for row in client.query_typed(sql, &[]).await? {
        role.closed_schemas.insert(row.try_get(0)?);
    }
    let sql = "SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc p \
               WHERE p.proname = 'pg_logical_emit_message' \
                 AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace \
                 AND NOT pg_catalog.has_function_privilege(p.oid, 'EXECUTE')";
    for row in client.query_typed(sql, &[]).await? {
        role.silenced.insert(row.try_get(0)?);
    }
    Ok(())
}

/// What the apply role may not do with tables, whoever opened the link: a superuser's sessions become that role.
async fn lacking(client: &Client) -> Result<BTreeMap<TableName, Vec<String>>, Error> {
    let sql = "SELECT n.nspname::text, c.relname::text, t.privileges \
               FROM pg_catalog.pg_roles a, pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, \
                    LATERAL (SELECT array_agg(p) FROM unnest($2::text[]) AS p \
                             WHERE NOT pg_catalog.has_table_privilege(a.oid, c.oid, p)) AS t (privileges) \
               WHERE a.rolname = $1 AND c.relkind IN ('r', 'p') AND t.privileges IS NOT NULL \
                 AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'strangler')";
    let mut found = BTreeMap::new();
    let rows = client.query(sql, &[&APPLY_ROLE, &provision::DML_AND_TRUNCATE]).await?;
    let places = places::among(client, rows.iter().map(|row| row.get(0))).await?;
    for row in rows {
        let table = places.named(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        found.insert(table, row.try_get(2)?);
    }
    Ok(found)
}

/// Tried rather than looked up: managed servers let other roles set it than the catalogs tell.
async fn may_set_replica_role(client: &Client) -> Result<bool, Error> {
    let row = client
        .query_typed_one("SELECT pg_catalog.current_setting('session_replication_role') = 'replica'", &[])
        .await?;
    if row.try_get(0)? {
        return Ok(true);
    }
    let tried = client.batch_execute("BEGIN; SET LOCAL session_replication_role = replica").await;
    client.batch_execute("ROLLBACK").await?;
    match tried {
        Ok(()) => Ok(true),
        Err(error) if error.as_db_error().is_some() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn read_roles(client: &Client, names: &[String]) -> Result<BTreeMap<String, Role>, Error> {
    let sql = "SELECT r.rolname::text, r.rolsuper, r.rolcanlogin, \
                      ARRAY(SELECT g.rolname::text FROM pg_catalog.pg_roles g WHERE g.oid <> r.oid \
                            AND NOT r.rolsuper AND pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER')), \
                      pg_catalog.has_database_privilege(r.oid, pg_catalog.current_database(), 'CONNECT'), \
                      ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_namespace n \
                            WHERE pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE') \
                            AND pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')), \
                      ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_namespace n \
                            WHERE NOT pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')) \
               FROM pg_catalog.pg_roles r WHERE r.rolname = ANY($1)";
    let mut roles = BTreeMap::new();
    for row in client.query(sql, &[&names]).await? {
        let role = Role {
            superuser: row.try_get(1)?,
            login: row.try_get(2)?,
            member_of: row.try_get::<_, Vec<String>>(3)?.into_iter().collect(),
            has_password: None,
            may_connect: row.try_get(4)?,
            creates_in: row.try_get::<_, Vec<String>>(5)?.into_iter().collect(),
            closed_schemas: row.try_get::<_, Vec<String>>(6)?.into_iter().collect(),
        };
        roles.insert(row.try_get(0)?, role);
    }
    let sql = "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')";
    if client.query_typed_one(sql, &[]).await?.try_get(0)? {
        let sql =
            "SELECT rolname::text, rolpassword IS NOT NULL FROM pg_catalog.pg_authid WHERE rolname = ANY($1)";
        for row in client.query(sql, &[&names]).await? {
            if let Some(role) = roles.get_mut(&row.try_get::<_, String>(0)?) {
                role.has_password = Some(row.try_get(1)?);
            }
        }
    }
    Ok(roles)
}

/// Two readings of the WAL position with the catalogs' reading between them.
struct WalSample {
    started: Instant,
    /// Absent where the position can't be read, such as on a standby.
    first: Option<Lsn>,
}

impl WalSample {
    async fn start(client: &Client) -> Self {
        Self { started: Instant::now(), first: wal_position(client).await }
    }

    async fn bytes_per_second(&self, client: &Client) -> Option<f64> {
        let first = self.first?;
        tokio::time::sleep_until(self.started + WAL_SAMPLE).await;
        let last = wal_position(client).await?;
        Some(to_f64(last.bytes_since(first)) / self.started.elapsed().as_secs_f64())
    }
}

async fn wal_position(client: &Client) -> Option<Lsn> {
    let row = client.query_typed_one("SELECT pg_catalog.pg_current_wal_lsn()::text", &[]).await.ok()?;
    row.try_get::<_, String>(0).ok()?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}

async fn read_server(client: &Client, sample: WalSample) -> Result<Server, Error> {
    let sql = "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) \
                        || '/' || extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text, \
                      (SELECT count(*) FROM pg_catalog.pg_stat_replication), \
                      (SELECT count(*) FROM pg_catalog.pg_prepared_xacts), \
                      (SELECT (wal_bytes / greatest(extract(epoch FROM now() - stats_reset), 60))::float8 \
                         FROM pg_catalog.pg_stat_wal), \
                      ARRAY(SELECT name::text FROM pg_catalog.pg_available_extensions), \
                      ARRAY(SELECT pubname::text FROM pg_catalog.pg_publication), \
                      ARRAY(SELECT v.name::text FROM pg_catalog.pg_available_extension_versions v \
                            JOIN pg_catalog.pg_available_extensions e \
                              ON e.name = v.name AND e.default_version = v.version WHERE v.trusted OR NOT v.superuser)";
    let row = client.query_typed_one(sql, &[]).await?;
    let count =
        |index: usize| row.try_get::<_, i64>(index).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let mean: Option<f64> = row.try_get(3)?;
    let slots = client
        .query_typed("SELECT slot_name::text, database::text FROM pg_catalog.pg_replication_slots", &[])
        .await?;
    let seen = sample.bytes_per_second(client).await;
    Ok(Server {
        instance: row.try_get(0)?,
        slots: slots
            .iter()
            .map(|slot| Ok(Slot { name: slot.try_get(0)?, database: slot.try_get(1)? }))
            .collect::<Result<_, Error>>()?,
        senders_in_use: count(1)?,
        prepared_transactions: count(2)?,
        wal_bytes_per_second: mean.into_iter().chain(seen).reduce(f64::max),
        available_extensions: row.try_get::<_, Vec<String>>(4)?.into_iter().collect(),
        publications: row.try_get::<_, Vec<String>>(5)?.into_iter().collect(),
        trusted_extensions: row.try_get::<_, Vec<String>>(6)?.into_iter().collect(),
        filled: BTreeSet::new(),
        closed: BTreeSet::new(),
        provisioned: BTreeSet::new(),
    })
}

/// Filtered tables with rows that no slice takes. A table that is not looked through in time is the flip's to ask about.
async fn look_for_left_behind(links: &Links, mappings: &Mappings) -> BTreeMap<TableName, Vec<String>> {
    let open = [Some(&links.admin), links.read.as_ref()].into_iter().flatten();
    let Some(client) = open.filter_map(|opened| opened.as_ref().ok()).next() else { return BTreeMap::new() };
    let mut filtered: BTreeMap<TableName, Vec<String>> = BTreeMap::new();
    for table in mappings.values().flat_map(|slice| &slice.tables) {
        if let Some(filter) = table.filter_sql() {
            filtered.entry(table.source.clone()).or_default().push(filter);
        }
    }
    let mut found = BTreeMap::new();
    for (table, filters) in filtered {
        if let Ok(true) = left_behind::is_any(client, (&table.sql(), &filters), LEFT_BEHIND_MS).await {
            found.insert(table, filters);
        }
    }
    found
}

/// What stands where the plan wants to put its tables.
/// Keys of tables that are there on both sides.
async fn look_at_keys(
    monolith: &Links,
    service: &Links,
    slices: impl Iterator<Item = &SliceMapping> + Clone,
) -> Result<Vec<Misfit>, Error> {
    let (Some(monolith), Some(service)) = (monolith.any_open(), service.any_open()) else {
        return Ok(Vec::new());
    };
    let found = collations::apart((monolith, service), slices.flat_map(|slice| &slice.tables)).await?;
    Ok(found.into_iter().map(|(_, misfit)| misfit).collect())
}

async fn look_at_targets(links: &Links, targets: &[TableName], database: &mut Database) {
    let open = [&links.admin, &links.apply].into_iter().find_map(|opened| opened.as_ref().ok());
    let (Some(client), Some(catalog), Some(server)) = (open, &database.catalog, &mut database.server) else {
        return;
    };
    for target in targets.iter().filter(|target| catalog.table(target).is_some()) {
        let sql = format!("SELECT EXISTS (SELECT FROM {})", target.sql());
        match client.query_typed_one(&sql, &[]).await.and_then(|row| row.try_get(0)) {
            Ok(true) => {
                server.filled.insert(target.clone());
            }
            Ok(false) => {}
            Err(_) => {
                server.closed.insert(target.clone());
            }
        }
    }
    let sides = database.whereabouts.iter().flat_map(|found| &found.sides);
    server.provisioned = sides.map(|side| side.slice.clone()).collect();
}
