//! What is provisioned in one database: roles, rights, our rows, gates, publications.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, Row};

use super::{Database, ProvisionError, schema_rights};
use crate::dualwrite::gate;
use crate::journal::holdings::{self, Holding};
use crate::journal::migrate;
use crate::journal::provisioned::{self, DeferredRow, MirrorRow, SliceRow};
use crate::journal::slices::{self, GateRow};
use crate::journal::whereabouts::{self, Whereabouts};
use crate::name::TableName;
use crate::postgres::introspect;
use crate::postgres::places::{self, Places};

/// A role of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// LOGIN.
    pub login: bool,
    /// SUPERUSER.
    pub superuser: bool,
    /// May set `session_replication_role`, or is set to it.
    pub may_replicate: bool,
    /// The connected role may act as it.
    pub ours: bool,
}

/// What a right is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum GrantOn {
    /// A schema.
    Schema(String),
    /// A table, view or partitioned table.
    Table(TableName),
    /// A sequence.
    Sequence(TableName),
    /// A column of a table. Who has a right on the table has it on every column.
    Column(TableName, String),
}

/// Everybody, in place of a role (GRANT). Read for schemas only.
pub(super) const PUBLIC: &str = "public";

/// One right of one role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// What it is on.
    pub on: GrantOn,
    /// Who has it; `public`, which no role can be called, for everybody.
    pub role: String,
    /// Which, e.g. `SELECT`.
    pub privilege: String,
}

/// A trigger of ours on a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trigger {
    /// The table.
    pub table: TableName,
    /// The trigger.
    pub name: String,
}

/// A publication.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    /// Tables it names.
    pub tables: BTreeSet<TableName>,
    /// FOR ALL TABLES.
    pub all_tables: bool,
    /// Changes of partitions are published as the root's, and all four kinds of change are.
    pub as_ours: bool,
}

/// What is provisioned in one database.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Where the link leads.
    pub whereabouts: Whereabouts,
    /// One running server: its identifier alone is shared by copies of a data directory.
    pub server: String,
    /// Connected role.
    pub user: String,
    /// The connected role may do anything.
    pub superuser: bool,
    /// The connected role may create roles.
    pub create_roles: bool,
    /// Roles by name.
    pub roles: BTreeMap<String, Role>,
    /// Versions of our own tables that are missing.
    pub missing_versions: Vec<String>,
    /// An earlier version of our own tables is there, so they must be upgraded before they can be read.
    pub outdated: bool,
    /// System identifier and oid in `strangler.database`.
    pub recorded_identity: Option<(String, u32)>,
    /// `strangler.slice`.
    pub slices: BTreeMap<String, SliceRow>,
    /// Slices whose stream has begun.
    pub streams: BTreeSet<String>,
    /// Those of them whose stream only watches over a closed monolith.
    pub watches: BTreeSet<String>,
    /// `strangler.mirror_table` by slice and source table as names are shown.
    pub mirror_tables: BTreeMap<(String, String), MirrorRow>,
    /// `strangler.deferred` by slice, target table, kind and object.
    pub deferred: BTreeMap<(String, String, String, String), DeferredRow>,
    /// What the journal holds of our notes: slice, action and object.
    pub notes: BTreeSet<(String, String, String)>,
    /// Gate tables, by slice.
    pub gates: BTreeSet<String>,
    /// What the gates of slices say that are written down here.
    pub gate_rows: BTreeMap<String, GateRow>,
    /// Bodies of gate functions, by slice.
    pub gate_functions: BTreeMap<String, String>,
    /// Gate triggers, and whether they fire always.
    pub triggers: BTreeMap<Trigger, bool>,
    /// Rights granted, the owner's own left out where they were never touched.
    pub grants: BTreeSet<Grant>,
    /// Schemas on which the connected role can't grant CREATE and USAGE, with their owners.
    pub ungrantable: BTreeMap<String, String>,
    /// Schemas on which it can grant USAGE.
    pub usage_grantable: BTreeSet<String>,
    /// Owners of schemas.
    pub schema_owners: BTreeMap<String, String>,
    /// Owners of sequences.
    pub sequence_owners: BTreeMap<TableName, String>,
    /// Extensions that could be created.
    pub available_extensions: BTreeSet<String>,
    /// Extensions that are there, with their schemas.
    pub extension_schemas: BTreeMap<String, String>,
    /// Functions, operators and operator classes of users, as kind and identity of `pg_identify_object`.
    pub routines: BTreeSet<(String, String)>,
    /// Collations, qualified and quoted where needed.
    pub collations: BTreeSet<String>,
    /// Publications by name.
    pub publications: BTreeMap<String, Publication>,
    /// Which slices, of whatever plan, have which tables.
    pub holdings: Vec<Holding>,
    /// Where old tables stand that were moved away; they are known by the names that they had.
    pub places: Places,
}

impl State {
    /// Whether the slice holds data or its stream began, so that its tables must not change any more.
    #[must_use]
    pub fn mirrored(&self, slice: &str) -> bool {
        self.streams.contains(slice)
            || self.mirror_tables.iter().any(|((of, _), row)| of == slice && row.state != "pending")
    }

    /// Whether a right need not be granted. On a schema of somebody else's, which we can't grant anything on, it is
    /// enough that everybody has it: up to PostgreSQL 14 `public` is the superuser's, and open.
    #[must_use]
    pub fn holds(&self, grant: &Grant) -> bool {
        if let GrantOn::Column(table, _) = &grant.on {
            let whole = Grant { on: GrantOn::Table(table.clone()), ..grant.clone() };
            return self.grants.contains(grant) || self.grants.contains(&whole);
        }
        let GrantOn::Schema(schema) = &grant.on else { return self.grants.contains(grant) };
        let owner = self.schema_owners.get(schema).and_then(|owner| self.roles.get(owner));
        let ours = self.superuser || owner.is_none_or(|owner| owner.ours);
        self.grants.contains(grant)
            || !ours && self.grants.contains(&Grant { role: PUBLIC.to_owned(), ..grant.clone() })
    }
}

/// Reads it in one read-only transaction, but for what is `known` already.
pub(super) async fn read(
    database: &Database,
    client: &Client,
    known: Option<(Whereabouts, Vec<Holding>)>,
) -> Result<State, ProvisionError> {
    let failed = |what| move |source| ProvisionError::State { database: database.clone(), what, source };
    client.batch_execute(introspect::BEGIN).await.map_err(failed("a snapshot"))?;
    let outcome = read_all(database, client, known).await;
    let ended = client.batch_execute("ROLLBACK").await.map_err(failed("a snapshot"));
    let state = outcome?;
    ended?;
    Ok(state)
}

async fn read_all(
    database: &Database,
    client: &Client,
    known: Option<(Whereabouts, Vec<Holding>)>,
) -> Result<State, ProvisionError> {
    let failed = |what| move |source| ProvisionError::State { database: database.clone(), what, source };
    let mut state = read_session(client).await.map_err(failed("the session"))?;
    let unread = |source| ProvisionError::Journal { database: database.clone(), source };
    (state.whereabouts, state.holdings) = match known {
        Some(known) => known,
        None => {
            let whereabouts = whereabouts::read(client).await.map_err(unread)?;
            (whereabouts, holdings::read(client).await.map_err(unread)?)
        }
    };
    state.places = places::read(client).await.map_err(failed("where old tables stand"))?;
    read_rights(client, &mut state).await.map_err(failed("roles and rights"))?;
    read_objects(client, &mut state).await.map_err(failed("extensions, functions and collations"))?;
    read_publications(client, &mut state).await.map_err(failed("publications"))?;
    read_triggers(client, &mut state).await.map_err(failed("gates"))?;
    let missing = migrate::missing(client)
        .await
        .map_err(|source| ProvisionError::Migrate { database: database.clone(), source })?;
    state.outdated = !missing.is_empty() && missing.len() < migrate::VERSIONS.len();
    state.missing_versions = missing.into_iter().map(str::to_owned).collect();
    if state.missing_versions.is_empty() {
        let ours = provisioned::read(client)
            .await
            .map_err(|source| ProvisionError::Journal { database: database.clone(), source })?;
        state.recorded_identity = ours.identity;
        state.slices = ours.slices;
        state.streams = ours.streams;
        state.watches = ours.watches;
        state.mirror_tables = ours.mirror_tables;
        state.deferred = ours.deferred;
        state.notes = ours.notes;
        read_gates(database, client, &mut state).await?;
    }
    Ok(state)
}

async fn read_session(client: &Client) -> Result<State, Error> {
    let sql = "SELECT (SELECT system_identifier FROM pg_control_system())::text || ' ' \
                 || extract(epoch FROM pg_postmaster_start_time())::text, \
               current_user::text, rolsuper, rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user";
    let row = client.query_typed_one(sql, &[]).await?;
    Ok(State {
        server: row.try_get(0)?,
        user: row.try_get(1)?,
        superuser: row.try_get(2)?,
        create_roles: row.try_get(3)?,
        ..State::default()
    })
}

async fn read_rights(client: &Client, state: &mut State) -> Result<(), Error> {
    let version: i32 = client
        .query_typed_one("SELECT current_setting('server_version_num')::int4", &[])
        .await?
        .try_get(0)?;
    let may_set = if version >= 150_000 {
        "has_parameter_privilege(r.oid, 'session_replication_role', 'SET')"
    } else {
        "r.rolsuper"
    };
    let sql = format!(
        "SELECT r.rolname::text, r.rolcanlogin, r.rolsuper, {may_set} OR EXISTS (SELECT FROM pg_db_role_setting s \
           WHERE s.setrole = r.oid AND s.setdatabase = 0 AND 'session_replication_role=replica' = ANY (s.setconfig)), \
           pg_has_role(r.oid, 'USAGE') FROM pg_roles r"
    );
    for row in client.query_typed(&sql, &[]).await? {
        let role = Role {
            login: row.try_get(1)?,
            superuser: row.try_get(2)?,
            may_replicate: row.try_get(3)?,
            ours: row.try_get(4)?,
        };
        state.roles.insert(row.try_get(0)?, role);
    }
    // No role can be called public, so it stands for everybody.
    let sql = "SELECT 'n', n.nspname::text, '', coalesce(g.rolname::text, 'public'), a.privilege_type, '' \
               FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a \
               LEFT JOIN pg_roles g ON g.oid = a.grantee WHERE n.nspname !~ '^pg_' \
               UNION ALL SELECT c.relkind::text, n.nspname::text, c.relname::text, g.rolname::text, a.privilege_type, '' \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_' \
               CROSS JOIN LATERAL aclexplode(c.relacl) a JOIN pg_roles g ON g.oid = a.grantee \
               UNION ALL SELECT 'column', n.nspname::text, c.relname::text, g.rolname::text, a.privilege_type, \
                 t.attname::text \
               FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid \
               JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_' \
               CROSS JOIN LATERAL aclexplode(t.attacl) a JOIN pg_roles g ON g.oid = a.grantee \
               WHERE NOT t.attisdropped";
    for row in client.query_typed(sql, &[]).await? {
        let (schema, name): (String, String) = (row.try_get(1)?, row.try_get(2)?);
        let on = match row.try_get::<_, String>(0)?.as_str() {
            "n" => GrantOn::Schema(schema),
            "S" => GrantOn::Sequence(state.places.named(schema, name)),
            "column" => GrantOn::Column(state.places.named(schema, name), row.try_get(5)?),
            _ => GrantOn::Table(state.places.named(schema, name)),
        };
        state.grants.insert(Grant { on, role: row.try_get(3)?, privilege: row.try_get(4)? });
    }
    Ok(())
}

async fn read_objects(client: &Client, state: &mut State) -> Result<(), Error> {
    state.ungrantable = schema_rights::ungrantable(client).await?;
    let sql = "SELECT nspname::text, pg_get_userbyid(nspowner)::text, \
                      has_schema_privilege(oid, 'USAGE WITH GRANT OPTION') FROM pg_namespace WHERE nspname !~ '^pg_'";
    for row in client.query_typed(sql, &[]).await? {
        let schema: String = row.try_get(0)?;
        if row.try_get(2)? {
            state.usage_grantable.insert(schema.clone());
        }
        state.schema_owners.insert(schema, row.try_get(1)?);
    }
    let sql = "SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text FROM pg_class c \
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND n.nspname !~ '^pg_'";
    for row in client.query_typed(sql, &[]).await? {
        let sequence = state.places.translated(name_at(&row, 0)?);
        state.sequence_owners.insert(sequence, row.try_get(2)?);
    }
    for row in client.query_typed("SELECT name::text FROM pg_available_extensions", &[]).await? {
        state.available_extensions.insert(row.try_get(0)?);
    }
    let sql = "SELECT e.extname::text, n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace";
    for row in client.query_typed(sql, &[]).await? {
        state.extension_schemas.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let sql = "SELECT i.type, i.identity FROM ( \
                 SELECT 'pg_proc'::regclass AS class, oid FROM pg_proc WHERE oid >= 16384 \
                 UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oid >= 16384 \
                 UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass WHERE oid >= 16384) o \
               CROSS JOIN LATERAL pg_identify_object(o.class, o.oid, 0) i";
    for row in client.query_typed(sql, &[]).await? {
        state.routines.insert((row.try_get(0)?, row.try_get(1)?));
    }
    let sql = "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) FROM pg_collation c \
               JOIN pg_namespace n ON n.oid = c.collnamespace";
    for row in client.query_typed(sql, &[]).await? {
        state.collations.insert(row.try_get(0)?);
    }
    Ok(())
}

async fn read_publications(client: &Client, state: &mut State) -> Result<(), Error> {
    let sql = "SELECT pubname::text, puballtables, \
                      pubviaroot AND pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication";
    for row in client.query_typed(sql, &[]).await? {
        let publication =
            Publication { tables: BTreeSet::new(), all_tables: row.try_get(1)?, as_ours: row.try_get(2)? };
        state.publications.insert(row.try_get(0)?, publication);
    }
    let sql = "SELECT p.pubname::text, n.nspname::text, c.relname::text FROM pg_publication_rel r \
               JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid \
               JOIN pg_namespace n ON n.oid = c.relnamespace";
    for row in client.query_typed(sql, &[]).await? {
        let table = state.places.translated(name_at(&row, 1)?);
        if let Some(publication) = state.publications.get_mut(&row.try_get::<_, String>(0)?) {
            publication.tables.insert(table);
        }
    }
    Ok(())
}

async fn read_triggers(client: &Client, state: &mut State) -> Result<(), Error> {
    let sql = "SELECT n.nspname::text, c.relname::text, t.tgname::text, t.tgenabled = 'A' FROM pg_trigger t \
               JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace \
               WHERE pn.nspname = 'strangler' AND t.tgname IN ($1, $2)";
    for row in client.query(sql, &[&gate::TRIGGER, &gate::TRUNCATE_TRIGGER]).await? {
        let trigger = Trigger { table: state.places.translated(name_at(&row, 0)?), name: row.try_get(2)? };
        state.triggers.insert(trigger, row.try_get(3)?);
    }
    let sql = "SELECT substr(c.relname::text, 6) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'strangler' AND c.relkind = 'r' AND left(c.relname::text, 5) = 'gate_'";
    for row in client.query_typed(sql, &[]).await? {
        state.gates.insert(row.try_get(0)?);
    }
    let sql = "SELECT substr(p.proname::text, 6), p.prosrc FROM pg_proc p \
               JOIN pg_namespace n ON n.oid = p.pronamespace \
               WHERE n.nspname = 'strangler' AND left(p.proname::text, 5) = 'gate_'";
    for row in client.query_typed(sql, &[]).await? {
        state.gate_functions.insert(row.try_get(0)?, row.try_get(1)?);
    }
    Ok(())
}

async fn read_gates(database: &Database, client: &Client, state: &mut State) -> Result<(), ProvisionError> {
    for slice in state.slices.keys().filter(|slice| state.gates.contains(*slice)) {
        let row = slices::gate(client, slice)
            .await
            .map_err(|source| ProvisionError::Journal { database: database.clone(), source })?;
        state.gate_rows.extend(row.map(|row| (slice.clone(), row)));
    }
    Ok(())
}

fn name_at(row: &Row, first: usize) -> Result<TableName, Error> {
    Ok(TableName::new(row.try_get::<_, String>(first)?, row.try_get::<_, String>(first + 1)?))
}
