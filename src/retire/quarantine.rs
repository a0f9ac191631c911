//! The second stage: old tables are moved into a schema that nobody else may use, and moved back.
//!
//! One transaction on the monolith each. It ends the claim of the way back first, which waits for the end of the transaction that it is in, and then
//! locks the tables: whatever names them afterwards finds them nowhere, and the way back begins again where they are. Statistics, reads and
//! writes by number go on, so everything that PostgreSQL has bound to them is refused before, behind those locks.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::gather::RetireError;
use super::moving::{self, Object, Puts};
use super::revoke::Transaction;
use super::rights::{self, Relation};
use crate::journal::ledger::{RETIRE, UNRETIRE};
use crate::journal::quarantine;
use crate::journal::retirement::{self, Stage};
use crate::name::{TableName, quote_ident, quote_list, quote_literal};
use crate::postgres::places::{self, Places};

/// What is moved, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moving<'a> {
    pub(super) slice: &'a str,
    /// Epoch of the authority.
    pub(super) epoch: i64,
    /// The slice's old tables.
    pub(super) tables: &'a [TableName],
    /// Roles of the plan's links, which go on using the tables.
    pub(super) own: &'a BTreeSet<String>,
    /// Whom the administrator's link logs in as.
    pub(super) user: &'a str,
    /// Who approved it.
    pub(super) approved_by: Option<&'a str>,
}

/// Schemas by those that the tables come from.
type Schemas = BTreeMap<String, String>;

/// Moves the tables away and writes it down; returns the token that names exactly these statements. `judge` is called with that once the
/// tables are locked, and decides whether they go.
///
/// # Errors
/// [`RetireError`]; the transaction is to be rolled back then.
pub(super) async fn take(
    transaction: &mut Transaction<'_>,
    moving: Moving<'_>,
    judge: impl AsyncFnOnce(&Transaction<'_>) -> Result<(), RetireError>,
) -> Result<String, RetireError> {
    let Moving { slice, .. } = moving;
    let relations = read(transaction, moving.tables).await?;
    lock(transaction, slice, &relations).await?;
    if read(transaction, moving.tables).await? != relations {
        return Err(RetireError::Raced);
    }
    if transaction.rows(retirement::only_in_epoch(slice, moving.epoch)).await? == 0 {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    judge(transaction).await?;
    let objects = objects(transaction, &relations).await?;
    RetireError::unless_allowed(moving::not_owner(&objects, moving.user))?;
    let schemas = make_schemas(transaction, moving, &objects).await?;
    for (from, to) in &schemas {
        transaction.run(quarantine::note_schema(slice, from, to)).await?;
        let of = || objects.iter().filter(|object| object.name.schema == *from);
        let owners: BTreeSet<&str> = of().map(|object| object.owner.as_str()).collect();
        let owners = quote_list(owners.into_iter().filter(|owner| *owner != moving.user));
        let schema = quote_ident(to);
        // They may create something there for this moment only.
        if !owners.is_empty() {
            transaction.run(format!("GRANT CREATE ON SCHEMA {schema} TO {owners}")).await?;
        }
        put(transaction, of(), (to, &Puts::Owner)).await?;
        if !owners.is_empty() {
            transaction.run(format!("REVOKE CREATE ON SCHEMA {schema} FROM {owners}")).await?;
        }
    }
    let noted = relations.iter().map(|relation| (relation.oid, &relation.name));
    transaction.run(quarantine::note_moved(slice, noted)).await?;
    let places = places_of(moving, &schemas);
    let stand =
        |relation: &Relation| Relation { name: places.located(slice, &relation.name), ..relation.clone() };
    arrived(transaction, &relations.iter().map(stand).collect::<Vec<_>>()).await?;
    let token = token(moving.epoch, &transaction.statements);
    transaction.run(retirement::set_stage(slice, Stage::Quarantined, moving.epoch)).await?;
    let to = |object: &Object| {
        let schema = schemas.get(&object.name.schema).map(String::as_str).unwrap_or_default();
        (format!("move to schema {schema}"), object.name.to_string())
    };
    let stage = (format!("take stage {}", Stage::Quarantined.as_str()), slice.to_owned());
    for (action, object) in objects.iter().map(to).chain([stage]) {
        transaction.run(retirement::tell(RETIRE, slice, (&action, &object), moving.approved_by)).await?;
    }
    Ok(token)
}

async fn read(transaction: &Transaction<'_>, tables: &[TableName]) -> Result<Vec<Relation>, RetireError> {
    transaction.read(tables).await
}

async fn objects(transaction: &Transaction<'_>, relations: &[Relation]) -> Result<Vec<Object>, RetireError> {
    let found = moving::objects(transaction.monolith, relations).await;
    found.map_err(RetireError::database("what old tables consist of"))
}

/// Waits for the end of the way back's transaction, then for whoever uses the tables; nobody begins to until this is over.
pub(super) async fn lock(
    transaction: &mut Transaction<'_>,
    slice: &str,
    relations: &[Relation],
) -> Result<(), RetireError> {
    transaction.run(quarantine::begin_way_back_again(slice)).await?;
    for relation in relations {
        let sql = format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", relation.name.sql());
        transaction.as_owner(relation, vec![sql]).await?;
    }
    Ok(())
}

/// One schema for each that the objects come from. Nobody may use it but the links, and the owners, as whom foreign keys are checked.
async fn make_schemas(
    transaction: &mut Transaction<'_>,
    moving: Moving<'_>,
    objects: &[Object],
) -> Result<Schemas, RetireError> {
    let failed = || RetireError::database("the schemas");
    let rows = transaction.monolith.query_typed("SELECT nspname::text FROM pg_namespace", &[]).await;
    let mut taken: BTreeSet<String> = rows.map_err(failed())?.iter().map(|row| row.get(0)).collect();
    let from: BTreeSet<&String> = objects.iter().map(|object| &object.name.schema).collect();
    let mut schemas = Schemas::new();
    for from in from {
        let name = places::new_name(moving.slice, |name| taken.contains(name));
        taken.insert(name.clone());
        let sql = quote_ident(&name);
        transaction.run(format!("CREATE SCHEMA {sql}")).await?;
        let says = format!("Old tables of slice {}, moved by strangler retire", moving.slice);
        transaction.run(format!("COMMENT ON SCHEMA {sql} IS {}", quote_literal(&says))).await?;
        // Whatever the database gives to others by default.
        let given = "SELECT DISTINCT CASE WHEN a.grantee = 0 THEN '' ELSE pg_get_userbyid(a.grantee)::text END \
                     FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = $1 AND a.grantee <> n.nspowner";
        for row in transaction.monolith.query(given, &[&name]).await.map_err(failed())? {
            let role = Some(row.get::<_, &str>(0)).filter(|role| !role.is_empty());
            transaction.run(format!("REVOKE ALL ON SCHEMA {sql} FROM {}", rights::role_sql(role))).await?;
        }
        let owners = objects.iter().filter(|object| object.name.schema == *from).map(|object| &object.owner);
        let users: BTreeSet<&String> = owners.chain(moving.own).filter(|role| *role != moving.user).collect();
        for role in users {
            transaction.run(format!("GRANT USAGE ON SCHEMA {sql} TO {}", quote_ident(role))).await?;
        }
        schemas.insert(from.clone(), name);
    }
    Ok(schemas)
}

/// Moves objects into a schema.
async fn put<'a>(
    transaction: &mut Transaction<'_>,
    objects: impl Iterator<Item = &'a Object>,
    (schema, puts): (&str, &Puts),
) -> Result<(), RetireError> {
    let mut by: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for object in objects {
        by.entry(&object.owner).or_default().push(object.to(schema));
    }
    for (owner, sql) in by {
        match puts {
            Puts::Admin => {
                for sql in sql {
                    transaction.run(sql).await?;
                }
            }
            Puts::Owner => transaction.as_role(owner, sql).await?,
        }
    }
    Ok(())
}

fn places_of(moving: Moving<'_>, schemas: &Schemas) -> Places {
    let place = |(schema, quarantine): (&String, &String)| places::Quarantine {
        slice: moving.slice.to_owned(),
        schema: schema.clone(),
        quarantine: quarantine.clone(),
    };
    Places(schemas.iter().map(place).collect())
}

/// Every relation stands where it should, with the rights that it had.
async fn arrived(transaction: &Transaction<'_>, expected: &[Relation]) -> Result<(), RetireError> {
    let found = rights::read_oids(transaction.monolith, &rights::oids(expected)).await;
    let found = found.map_err(RetireError::database("the rights on old tables"))?;
    let there = |relation: &&Relation| {
        let same = |now: &&Relation| {
            let rights = |of: &Relation| {
                let right = |right: &retirement::Right| {
                    (right.ids, right.privilege.clone(), right.grantable, right.grantor.clone())
                };
                of.rights.iter().map(right).collect::<BTreeSet<_>>()
            };
            now.oid == relation.oid
                && now.name.schema == relation.name.place_schema()
                && now.owner == relation.owner
                && rights(now) == rights(relation)
        };
        found.iter().any(|now| same(&now))
    };
    let missing: Vec<String> =
        expected.iter().filter(|relation| !there(relation)).map(|relation| relation.name.sql()).collect();
    if missing.is_empty() { Ok(()) } else { Err(RetireError::NotMoved { missing: missing.join(", ") }) }
}

fn token(epoch: i64, statements: &[String]) -> String {
    let hash = Sha256::digest(format!("{epoch} {statements:?}").as_bytes());
    super::run::shown(&hash)
}

/// What came back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Back {
    /// How many tables and partitions.
    pub(super) tables: usize,
    /// What was moved and is gone since, by the name that it had.
    pub(super) gone: BTreeSet<TableName>,
    /// Schemas that hold something else and so stay, with what that is.
    pub(super) left: Vec<(String, String)>,
}

/// Moves everything back to where it was, and forgets that it was away: what was noted, partitions that were made in quarantine, and
/// extended statistics.
///
/// # Errors
/// [`RetireError`]; the transaction is to be rolled back then.
pub(super) async fn back(
    transaction: &mut Transaction<'_>,
    slice: &str,
    user: &str,
) -> Result<Back, RetireError> {
    let places = places::read(transaction.monolith).await;
    let places = places.map_err(RetireError::database("where old tables stand"))?;
    let of: Vec<_> = places.0.into_iter().filter(|place| place.slice == slice).collect();
    let noted = quarantine::moved(transaction.monolith, slice).await?;
    let oids: Vec<u32> = noted.iter().map(|(oid, _)| *oid).collect();
    let relations = rights::read_oids(transaction.monolith, &oids).await;
    let relations = relations.map_err(RetireError::database("the rights on old tables"))?;
    RetireError::unless_allowed(rights::not_owner(&relations, user))?;
    lock(transaction, slice, &relations).await?;
    let objects = objects(transaction, &relations).await?;
    RetireError::unless_allowed(moving::not_owner(&objects, user))?;
    let back_to = |object: &Object| of.iter().find(|place| place.quarantine == object.name.schema);
    let moves: Vec<(&Object, &places::Quarantine)> =
        objects.iter().filter_map(|object| Some((object, back_to(object)?))).collect();
    let wanted = moves.iter().map(|(object, place)| (object.owner.clone(), place.schema.clone())).collect();
    let puts = moving::who_puts(transaction.monolith, &wanted).await;
    let (puts, mut problems) = puts.map_err(RetireError::database("who may create tables"))?;
    let schemas: Vec<(String, String)> =
        of.iter().map(|place| (place.quarantine.clone(), place.schema.clone())).collect();
    let taken = moving::taken_names(transaction.monolith, &schemas).await;
    problems.extend(taken.map_err(RetireError::database("names of tables"))?);
    RetireError::unless_allowed(problems)?;
    for ((owner, schema), who) in &puts {
        let these = moves.iter().filter(|(object, place)| object.owner == *owner && place.schema == *schema);
        put(transaction, these.map(|(object, _)| *object), (schema, who)).await?;
    }
    let come = |relation: &Relation| {
        let place = of.iter().find(|place| place.quarantine == relation.name.schema)?;
        let name = TableName::new(&place.schema, &relation.name.name);
        Some(Relation { name, ..relation.clone() })
    };
    let come: Vec<Relation> = relations.iter().filter_map(come).collect();
    arrived(transaction, &come).await?;
    let gone = noted.iter().filter(|(oid, _)| objects.iter().all(|object| object.oid != *oid));
    let gone = gone.map(|(_, name)| name.clone()).collect();
    let left = drop_schemas(transaction, &of).await?;
    for sql in quarantine::forget(slice) {
        transaction.run(sql).await?;
    }
    let told = moves.iter().map(|(object, place)| {
        let name = TableName::new(&place.schema, &object.name.name);
        (format!("move back from schema {}", place.quarantine), name.to_string())
    });
    let undone = (format!("undo stage {}", Stage::Quarantined.as_str()), slice.to_owned());
    for (action, object) in told.chain([undone]) {
        transaction.run(retirement::tell(UNRETIRE, slice, (&action, &object), None)).await?;
    }
    Ok(Back { tables: come.len(), gone, left })
}

/// What somebody else has made in a schema is his; the schema is left to him then.
pub(super) async fn drop_schemas(
    transaction: &mut Transaction<'_>,
    schemas: &[places::Quarantine],
) -> Result<Vec<(String, String)>, RetireError> {
    let inside = "SELECT string_agg(i.type || ' ' || i.identity, ', ' ORDER BY i.identity) FROM pg_depend d, \
                  LATERAL pg_identify_object(d.classid, d.objid, 0) i \
                  WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace($1)";
    let mut left = Vec::new();
    for place in schemas {
        let schema = quote_ident(&place.quarantine);
        let row = transaction.monolith.query_one(inside, &[&schema]).await;
        let row = row.map_err(RetireError::database("what a schema holds"))?;
        match row.get::<_, Option<String>>(0) {
            None => transaction.run(format!("DROP SCHEMA IF EXISTS {schema}")).await?,
            Some(holds) => left.push((place.quarantine.clone(), holds)),
        }
    }
    Ok(left)
}
