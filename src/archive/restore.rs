//! Makes the tables of an archive again, in one transaction: either all of them are there, with every row proven, or nothing is.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use bytes::Bytes;
use futures_util::{SinkExt as _, TryStreamExt as _};
use tokio_postgres::Client;

use super::manifest::{Definition, Manifest, Phase, Relation};
use super::part::{Damage, Text};
use super::place::Place;
use super::rows::Rows;
use super::verify::{fetch, same_rows};
use super::write::{options, target};
use super::{ArchiveError, Progress, Tell};
use crate::catalog::Catalog;
use crate::failpoint;
use crate::name::{TableName, quote_ident};
use crate::postgres::connect::Session;
use crate::postgres::{introspect, sqlstate};
use crate::problem::Problem;
use crate::provision::create_type;

/// What is restored, and where.
#[derive(Clone, Copy)]
pub struct Restoring<'a> {
    /// Where the archive is. Its bytes were proven.
    pub place: &'a Place,
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// A session on the database that gets the tables, of the role that will own them.
    pub target: &'a Session,
    /// Who hears how far it is.
    pub tell: Tell<'a>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Definitions that the other database could not take, and those that are never made.
    pub not_made: Vec<NotMade>,
}

/// A definition that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotMade {
    /// What it makes.
    pub kind: String,
    /// Its name.
    pub object: String,
    /// Why.
    pub why: String,
}

/// Makes tables, types and sequences, fills them, proves the rows, and commits.
///
/// # Errors
/// [`ArchiveError`]; nothing was made then.
pub async fn restore(restoring: Restoring<'_>) -> Result<Restored, ArchiveError> {
    let target = restoring.target;
    target.set_unhurried(true);
    // What is written down of tables that are dropped there must not stand in the way of the very same.
    let catalog = introspect::standing(target).await?;
    let problems = problems(target, restoring.manifest, &catalog).await?;
    if !problems.is_empty() {
        return Err(ArchiveError::Refused { problems });
    }
    target.batch_execute("BEGIN").await.map_err(ArchiveError::database("begin a transaction"))?;
    let restored = match within(restoring, &catalog).await {
        Ok(restored) => restored,
        Err(error) => {
            // Where the link is gone, the server has rolled back by itself.
            let _ = target.batch_execute("ROLLBACK").await;
            return Err(error);
        }
    };
    failpoint::hit("restore-before-commit");
    target.batch_execute("COMMIT").await.map_err(ArchiveError::database("commit"))?;
    failpoint::hit("restore-committed");
    Ok(restored)
}

async fn within(restoring: Restoring<'_>, catalog: &Catalog) -> Result<Restored, ArchiveError> {
    let Restoring { manifest, target, .. } = restoring;
    let of = |phase: Phase| manifest.definitions.iter().filter(move |one| one.phase == phase);
    for one in of(Phase::Before).filter(|one| !is_there(catalog, one)) {
        make(target, one).await?;
    }
    let total = manifest.plain_bytes();
    let mut done = 0;
    for relation in &manifest.relations {
        done = fill(restoring, relation, (done, total)).await?;
    }
    for one in of(Phase::After) {
        make(target, one).await?;
    }
    let mut done = 0;
    for relation in &manifest.relations {
        done = prove(restoring, relation, (done, total)).await?;
    }
    let mut restored = Restored::default();
    for one in of(Phase::Optional) {
        restored.not_made.extend(try_to_make(target, one).await?);
    }
    restored.not_made.extend(of(Phase::Left).map(|one| NotMade {
        kind: one.kind.clone(),
        object: one.object.clone(),
        why: "restore never makes it; left.sql has the statement".to_owned(),
    }));
    Ok(restored)
}

/// A schema that is there, since to make one asks for rights on the whole database even where there is nothing to make; a type that is
/// there as it was, since others may need it.
fn is_there(catalog: &Catalog, one: &Definition) -> bool {
    one.kind == "schema" && catalog.schemas.contains(&one.object)
        || one.kind == "type"
            && present_types(catalog).any(|(name, sql)| name == one.object && sql == one.sql)
}

fn present_types(catalog: &Catalog) -> impl Iterator<Item = (String, String)> + '_ {
    catalog.types.values().map(|of| {
        let sql = create_type(of).and_then(|sql| sql.into_iter().next());
        (of.name.to_string(), sql.unwrap_or_default())
    })
}

async fn make(target: &Client, one: &Definition) -> Result<(), ArchiveError> {
    let made = target.batch_execute(&one.sql).await;
    made.map_err(|source| ArchiveError::Definition {
        kind: one.kind.clone(),
        object: one.object.clone(),
        source,
    })
}

/// Makes what the tables can be without; what the server refuses is left out with its words.
async fn try_to_make(target: &Client, one: &Definition) -> Result<Option<NotMade>, ArchiveError> {
    let failed = || ArchiveError::database("go on behind a definition that was refused");
    target.batch_execute("SAVEPOINT one").await.map_err(failed())?;
    let Err(error) = target.batch_execute(&one.sql).await else {
        target.batch_execute("RELEASE SAVEPOINT one").await.map_err(failed())?;
        return Ok(None);
    };
    target.batch_execute("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one").await.map_err(failed())?;
    Ok(Some(NotMade { kind: one.kind.clone(), object: one.object.clone(), why: sqlstate::words(&error) }))
}

/// Reads a relation's files into it, each proven again as it is read.
async fn fill(
    restoring: Restoring<'_>,
    relation: &Relation,
    (mut done, total): (u64, u64),
) -> Result<u64, ArchiveError> {
    let Restoring { place, manifest, target: session, tell } = restoring;
    let failed = |source| ArchiveError::Table { action: "fill", table: relation.name.to_string(), source };
    let into = target(&relation.name, &relation.columns);
    let sql = format!("{into} FROM STDIN {}", options(&manifest.of.encoding));
    for part in &relation.parts {
        let damaged =
            |Damage(why): Damage| ArchiveError::Damaged { files: vec![(place.of(&part.file), why)] };
        let bytes = fetch(place, &part.file).await?.map_err(damaged)?;
        let (mut text, mut rows) = (Text::open(&bytes, part).map_err(damaged)?, Rows::default());
        let mut sink = pin!(session.copy_in::<_, Bytes>(&sql).await.map_err(failed)?);
        while let Some(chunk) = text.next(&mut rows).map_err(damaged)? {
            sink.feed(chunk.into()).await.map_err(failed)?;
        }
        sink.as_mut().finish().await.map_err(failed)?;
        done += part.plain_bytes;
        tell(Progress { what: "restored", done, total });
    }
    Ok(done)
}

/// Reads a relation's rows as they are now, and compares.
async fn prove(
    restoring: Restoring<'_>,
    relation: &Relation,
    (mut done, total): (u64, u64),
) -> Result<u64, ArchiveError> {
    let Restoring { manifest, target: session, tell, .. } = restoring;
    let failed = |source| ArchiveError::Table { action: "read", table: relation.name.to_string(), source };
    let from = target(&relation.name, &relation.columns);
    let sql = format!("{from} TO STDOUT {}", options(&manifest.of.encoding));
    let mut lines = pin!(session.copy_out(&sql).await.map_err(failed)?);
    let mut rows = Rows::default();
    while let Some(line) = lines.try_next().await.map_err(failed)? {
        rows.update(&line);
    }
    done += relation.parts.iter().map(|part| part.plain_bytes).sum::<u64>();
    tell(Progress { what: "proven", done, total });
    let differs = |why| ArchiveError::Differs { table: relation.name.to_string(), why };
    same_rows(relation, &rows).map_err(differs)?;
    Ok(done)
}

/// What would be in the way, all of it at once.
async fn problems(
    target: &Client,
    manifest: &Manifest,
    catalog: &Catalog,
) -> Result<Vec<Problem>, ArchiveError> {
    let mut problems = taken(manifest, catalog);
    for extension in manifest.extensions.iter().filter(|name| !catalog.extensions.contains_key(*name)) {
        problems.push(
            Problem::error("restore-extension", format!("extension {extension}"))
                .fact("types or functions of the tables need it, and the database does not have it")
                .consequence("the tables could not be made")
                .next(format!("run there: CREATE EXTENSION {};", quote_ident(extension))),
        );
    }
    let sql = "SELECT i.type, i.identity FROM (SELECT 'pg_proc'::regclass AS class, oid FROM pg_proc WHERE oid >= 16384 \
                 UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oid >= 16384 \
                 UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass WHERE oid >= 16384) o \
               CROSS JOIN LATERAL pg_identify_object(o.class, o.oid, 0) i";
    let rows = target
        .query_typed(sql, &[])
        .await
        .map_err(ArchiveError::database("read the database's functions"))?;
    let there: BTreeSet<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for routine in &manifest.routines {
        if !there.contains(&(routine.kind.clone(), routine.identity.clone())) {
            problems.push(
                Problem::error("restore-routine", format!("{} {}", routine.kind, routine.identity))
                    .fact(format!("{} calls it, and the database does not have it", routine.called_by))
                    .consequence("the tables could not be made, or not without their rules")
                    .next(format!("create the {} there, then type the same command again", routine.kind)),
            );
        }
    }
    problems.sort();
    Ok(problems)
}

/// Names that somebody else has.
fn taken(manifest: &Manifest, catalog: &Catalog) -> Vec<Problem> {
    let mut problems = Vec::new();
    let tables: BTreeMap<String, &TableName> =
        catalog.tables.keys().map(|name| (name.to_string(), name)).collect();
    let sequences: BTreeSet<String> = catalog.sequences.keys().map(ToString::to_string).collect();
    let types: Vec<(String, String)> = present_types(catalog).collect();
    for one in manifest.definitions.iter().filter(|one| one.phase == Phase::Before) {
        let problem = || Problem::error("restore-taken", format!("{} {}", one.kind, one.object));
        let next = "rename or drop it there, or restore into another database";
        let there = match one.kind.as_str() {
            "table" => match tables.get(&one.object) {
                // It is called by its name, wherever it stands.
                Some(old) if old.place_schema() != old.schema => {
                    problems.push(old_table(problem(), old, &manifest.of.slice));
                    false
                }
                found => found.is_some(),
            },
            "sequence" => {
                sequences.contains(&one.object) && !one.sql.starts_with("CREATE SEQUENCE IF NOT EXISTS")
            }
            "type" if types.iter().any(|(name, sql)| *name == one.object && *sql != one.sql) => {
                problems.push(
                    problem()
                        .fact("the database has one of this name that is defined in another way")
                        .consequence("values could be refused or mean something else")
                        .next(next),
                );
                false
            }
            _ => false,
        };
        if there {
            let fact = "the database has one of this name";
            problems
                .push(problem().fact(fact).consequence("it is somebody's, and stays as it is").next(next));
        }
    }
    problems
}

/// The very table that was archived: it is to come back by itself, and by no means to be dropped.
fn old_table(problem: Problem, old: &TableName, slice: &str) -> Problem {
    problem
        .fact(format!("it is there: retirement has moved it to schema {}", old.place_schema()))
        .consequence("there would be two of it, and the old one could not come back under its name")
        .next(format!(
            "strangler unretire PLAN --slice {slice} brings it back; or restore into another database"
        ))
}
