//! Writes an archive: rows and definitions of a slice's old tables as they are in one snapshot, and how far the way back is in it.
//!
//! Nothing stops meanwhile: rows are read under `REPEATABLE READ` and `ACCESS SHARE`, so the way back goes on writing. Only its
//! TRUNCATE, and DDL, wait.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::definitions::{self, Source};
use super::details;
use super::manifest::{Definition, FORMAT, Manifest, Origin, Part, Relation, Routine, Text, VERSION};
use super::part::Making;
use super::place::Place;
use super::rows::Rows;
use super::{ArchiveError, Progress, Tell, hex};
use crate::catalog::{Catalog, Table, TableKind};
use crate::failpoint;
use crate::journal::arming;
use crate::journal::own_scans::OwnScans;
use crate::journal::retirement::{self, Right};
use crate::journal::streams::StreamRow;
use crate::mapping::SliceMapping;
use crate::name::{TableName, quote_ident, quote_list};
use crate::postgres::connect::Session;
use crate::postgres::{introspect, places};
use crate::provision::{Needed, read_anatomy};
use crate::reconcile::stop;

/// How long the snapshot may stand with nothing asked, which it does while the last file of a table is sent: longer than a store is
/// tried again. A frozen process must not hold rows back from VACUUM for ever. Milliseconds.
const IDLE_MS: u32 = 900_000;

/// How long a lock is waited for, in milliseconds: whoever comes after waits behind the one who asks.
const LOCK_MS: u32 = 5_000;

/// What is archived, and whom it is asked of.
#[derive(Clone, Copy)]
pub struct Writing<'a> {
    /// Plan.
    pub plan: &'a str,
    /// The slice.
    pub mapping: &'a SliceMapping,
    /// Epoch of the authority.
    pub epoch: i64,
    /// A session on the monolith that may act as the tables' owners. Nothing else uses it.
    pub reader: &'a Session,
    /// The monolith's catalogs.
    pub catalogs: &'a Client,
    /// Where it goes.
    pub place: &'a Place,
    /// Who hears how far it is.
    pub tell: Tell<'a>,
    /// Somebody asked to stop.
    pub stop: &'a CancellationToken,
}

/// Tables and partitions, each behind what it is part of.
struct Family<'a> {
    /// With the plan's table that each is, or is part of.
    members: Vec<(&'a TableName, &'a Table)>,
}

impl<'a> Family<'a> {
    fn of(mapping: &'a SliceMapping, catalog: &'a Catalog) -> Result<Self, ArchiveError> {
        let mut members = Vec::new();
        for mapped in &mapping.tables {
            let root = catalog.table(&mapped.source);
            let root = root.ok_or_else(|| ArchiveError::Gone { table: mapped.source.to_string() })?;
            let mut next = vec![root];
            while let Some(table) = next.pop() {
                if table.kind == TableKind::Foreign {
                    return Err(ArchiveError::Foreign { table: table.name.to_string() });
                }
                members.push((&mapped.source, table));
                let parts =
                    catalog.tables.values().filter(|one| one.partition_of.as_ref() == Some(&table.name));
                next.extend(parts.rev());
            }
        }
        Ok(Self { members })
    }

    fn oids(&self) -> Vec<u32> {
        self.members.iter().map(|(_, table)| table.oid).collect()
    }

    /// Those that rows lie in.
    fn leaves(&self) -> impl Iterator<Item = (&'a TableName, &'a Table)> + '_ {
        self.members.iter().copied().filter(|(_, table)| table.kind != TableKind::Partitioned)
    }
}

/// How many bytes each relation that rows lie in has on disk, by its name: about what is to be read.
///
/// # Errors
/// [`ArchiveError::Gone`], [`ArchiveError::Foreign`].
pub fn sizes(mapping: &SliceMapping, catalog: &Catalog) -> Result<BTreeMap<String, u64>, ArchiveError> {
    let family = Family::of(mapping, catalog)?;
    Ok(family.leaves().map(|(_, table)| (table.name.to_string(), table.heap_bytes)).collect())
}

/// Writes everything but the manifest, and returns that. What is in the place already is written over.
///
/// # Errors
/// [`ArchiveError`]. What was read is noted as ours all the same, where the monolith can still be told.
pub async fn write(writing: Writing<'_>) -> Result<Manifest, ArchiveError> {
    let reader = writing.reader;
    reader.set_unhurried(true);
    let failed = || ArchiveError::database("begin a snapshot");
    let mut scans = OwnScans::prepare(reader, &writing.mapping.slice).await?;
    let catalog = introspect::read(writing.catalogs).await?;
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = {LOCK_MS}; \
         SET LOCAL idle_in_transaction_session_timeout = {IDLE_MS}"
    );
    reader.batch_execute(&begin).await.map_err(failed())?;
    let begun = begin_reading(writing, &catalog, &mut scans).await;
    let written = match begun {
        // Dropped where it stands, and not the process with it: what was read by then is still to be noted.
        Ok(locked) => match stop::wait(writing.stop, read_and_write(writing, &locked)).await {
            Ok(written) => written,
            Err(stopped) => Err(stopped.into()),
        },
        Err(error) => Err(error),
    };
    if written.is_err() {
        // A file could not be written, say, and rows are still on their way: nobody is to wait for the last.
        let _ = reader.cancel_token().cancel().await;
        if reader.batch_execute("ROLLBACK TO SAVEPOINT reading").await.is_err() {
            let _ = reader.batch_execute("ROLLBACK").await;
            return written;
        }
    }
    let noted = scans.note(reader).await;
    let ended = reader.batch_execute("COMMIT").await;
    failpoint::hit("archive-read");
    let manifest = written?;
    noted?;
    ended.map_err(ArchiveError::database("end a snapshot"))?;
    Ok(manifest)
}

/// Locks the tables before the snapshot is taken: what nobody can change any more is what the snapshot shows. Returns which they are.
async fn begin_reading(
    writing: Writing<'_>,
    catalog: &Catalog,
    scans: &mut OwnScans,
) -> Result<Vec<u32>, ArchiveError> {
    let reader = writing.reader;
    let family = Family::of(writing.mapping, catalog)?;
    for (_, table) in &family.members {
        let lock = format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", table.name.sql());
        as_owner(reader, table, &lock).await?;
    }
    let roots = family.members.iter().filter(|(source, table)| **source == table.name);
    scans.begin(reader, roots.map(|(_, table)| &table.name)).await?;
    reader.batch_execute("SAVEPOINT reading").await.map_err(ArchiveError::database("begin a snapshot"))?;
    Ok(family.oids())
}

/// The owner may read his table, whatever was taken away from others.
async fn as_owner(reader: &Client, table: &Table, sql: &str) -> Result<(), ArchiveError> {
    let sql = format!("SET LOCAL ROLE {}; {sql}; SET LOCAL ROLE NONE", quote_ident(&table.owner));
    let done = reader.batch_execute(&sql).await;
    done.map_err(|source| ArchiveError::Table { action: "lock", table: table.name.to_string(), source })
}

/// `locked` are the relations that were locked before the snapshot: a partition that came or went since would be there twice, or missing,
/// or hold rows that the tables did not have then.
async fn read_and_write(writing: Writing<'_>, locked: &[u32]) -> Result<Manifest, ArchiveError> {
    let (reader, mapping) = (writing.reader, writing.mapping);
    let stream = arming::reverse(reader, &mapping.slice).await?;
    let stream = stream.ok_or_else(|| ArchiveError::NoWayBack { slice: mapping.slice.clone() })?;
    let catalog = introspect::read(writing.catalogs).await?;
    let family = Family::of(mapping, &catalog)?;
    if family.oids() != locked {
        return Err(ArchiveError::Changed);
    }
    let of = origin(writing, &catalog, &stream).await?;
    let mut manifest = described(writing, &catalog, (&family, of)).await?;
    let total = family.leaves().map(|(_, table)| table.heap_bytes).sum();
    let mut done = 0;
    for (number, (source, table)) in family.leaves().enumerate() {
        let copying = Copying { writing, table, number, done, total };
        let relation = copying.copy(source, &manifest.of.encoding).await?;
        done += table.heap_bytes;
        manifest.relations.push(relation);
    }
    for (phase, file) in definitions::TEXTS {
        let bytes = definitions::text(&manifest.definitions, *phase).into_bytes();
        let text = Text {
            file: (*file).to_owned(),
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(&bytes)),
        };
        writing.place.put(file, bytes).await?;
        manifest.texts.push(text);
    }
    let now = introspect::read(writing.catalogs).await?;
    if Family::of(mapping, &now)?.oids() != locked {
        return Err(ArchiveError::Changed);
    }
    Ok(manifest)
}

async fn origin(writing: Writing<'_>, catalog: &Catalog, stream: &StreamRow) -> Result<Origin, ArchiveError> {
    let at = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
    let row =
        writing.reader.query_typed_one(at, &[]).await.map_err(ArchiveError::database("read the clock"))?;
    // In the snapshot that the rows are read in.
    let moved = retirement::read(writing.reader, &writing.mapping.slice).await?;
    let identity = &catalog.identity;
    Ok(Origin {
        plan: writing.plan.to_owned(),
        slice: writing.mapping.slice.clone(),
        service: writing.mapping.service.clone(),
        epoch: writing.epoch,
        reverse_lsn: stream.applied.to_string(),
        reverse_system_identifier: stream.source.system_identifier.clone(),
        reverse_timeline: stream.source.timeline,
        at: row.get(0),
        moved_by: moved.map(|done| done.transaction),
        system_identifier: identity.system_identifier.clone(),
        database: catalog.database.clone(),
        database_oid: identity.database_oid,
        uuid: identity.database_uuid.clone().unwrap_or_default(),
        server_version_num: catalog.version_num,
        encoding: catalog.encoding.clone(),
    })
}

/// A manifest with definitions and no rows.
async fn described(
    writing: Writing<'_>,
    catalog: &Catalog,
    (family, of): (&Family<'_>, Origin),
) -> Result<Manifest, ArchiveError> {
    let failed = || ArchiveError::database("read the definitions of the tables");
    let anatomy = read_anatomy(writing.catalogs).await.map_err(failed())?;
    let standing: Vec<&Table> = family.members.iter().map(|(_, table)| *table).collect();
    let sequences = sequences(writing.reader, catalog, &standing).await?;
    // From here on everything is called, and stands, as the plan says.
    let catalog = &catalog.unmoved();
    let tables: Vec<&Table> = standing.iter().filter_map(|table| catalog.table(&table.name)).collect();
    let mut needed = Needed::new(catalog, &anatomy);
    tables.iter().for_each(|table| needed.table(table, |_| true));
    let schemas = standing.iter().map(|table| table.name.place_schema());
    let places = places::among(writing.catalogs, schemas).await.map_err(failed())?;
    let details = details::read(writing.catalogs, &family.oids()).await.map_err(failed())?.known(&places);
    let taken = retirement::rights(writing.reader, &writing.mapping.slice).await?.into_iter();
    let taken = taken.map(|noted| noted.now.unwrap_or(noted.right));
    let taken = taken.map(|right| Right { relation: places.translated(right.relation).unmoved(), ..right });
    let source = Source {
        catalog,
        details: &details,
        sequences,
        tables,
        types: &needed.types,
        taken: taken.collect(),
    };
    let definitions: Vec<Definition> = definitions::definitions(&source);
    let routine = |((kind, identity), called_by): (&(String, String), &String)| Routine {
        kind: kind.clone(),
        identity: identity.clone(),
        called_by: called_by.clone(),
    };
    Ok(Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        of,
        extensions: needed.extensions.iter().cloned().collect(),
        routines: needed.routines.iter().map(routine).collect(),
        definitions,
        relations: Vec::new(),
        texts: Vec::new(),
    })
}

/// Sequences that the tables draw from or own, by the names that they have in the plan's schemas, with their values, which no
/// snapshot holds.
async fn sequences(
    reader: &Client,
    catalog: &Catalog,
    tables: &[&Table],
) -> Result<BTreeMap<TableName, (i64, bool)>, ArchiveError> {
    let columns = tables.iter().flat_map(|table| table.columns.iter().map(move |column| (table, column)));
    let drawn = columns.filter_map(|(table, column)| Some((column.sequence.as_ref()?, table.owner.as_str())));
    let mut values = BTreeMap::new();
    for (name, owner) in drawn.collect::<BTreeMap<_, _>>() {
        if !catalog.sequences.contains_key(name) {
            continue;
        }
        let failed = |source| ArchiveError::Table { action: "read", table: name.to_string(), source };
        let role = format!("SET LOCAL ROLE {}", quote_ident(owner));
        reader.batch_execute(&role).await.map_err(failed)?;
        let value = details::sequence_value(reader, name).await.map_err(failed)?;
        reader.batch_execute("SET LOCAL ROLE NONE").await.map_err(failed)?;
        values.insert(name.unmoved(), value);
    }
    Ok(values)
}

/// One relation on its way.
struct Copying<'a> {
    writing: Writing<'a>,
    table: &'a Table,
    /// From 0, in the order of the archive.
    number: usize,
    /// Bytes on disk of those before it.
    done: u64,
    /// Of all of them.
    total: u64,
}

impl Copying<'_> {
    async fn copy(&self, source: &TableName, encoding: &str) -> Result<Relation, ArchiveError> {
        let reader = self.writing.reader;
        let failed =
            |source| ArchiveError::Table { action: "read", table: self.table.name.to_string(), source };
        let kept = self.table.columns.iter().filter(|column| column.generated_sql.is_none());
        let mut relation = Relation {
            table: source.to_string(),
            name: self.table.name.unmoved(),
            columns: kept.map(|column| column.name.clone()).collect(),
            rows: 0,
            rows_digest: String::new(),
            parts: Vec::new(),
        };
        let role = format!("SET LOCAL ROLE {}", quote_ident(&self.table.owner));
        reader.batch_execute(&role).await.map_err(failed)?;
        let from = target(&self.table.name, &relation.columns);
        let sql = format!("{from} TO STDOUT {}", options(encoding));
        let mut lines = pin!(reader.copy_out(&sql).await.map_err(failed)?);
        let (mut rows, mut making, mut read) = (Rows::default(), Making::begin()?, 0_u64);
        while let Some(line) = lines.try_next().await.map_err(failed)? {
            rows.update(&line);
            making.add(&line)?;
            read += line.len() as u64;
            if making.is_full() {
                relation.parts.push(self.put(making, relation.parts.len()).await?);
                making = Making::begin()?;
                // The text may be longer than the table is on disk, where values are compressed.
                let done = self.done + read.min(self.table.heap_bytes);
                (self.writing.tell)(Progress { what: "written", done, total: self.total });
            }
        }
        if !making.is_empty() {
            relation.parts.push(self.put(making, relation.parts.len()).await?);
        }
        reader.batch_execute("SET LOCAL ROLE NONE").await.map_err(failed)?;
        (relation.rows, relation.rows_digest) = (rows.count(), rows.digest());
        Ok(relation)
    }

    async fn put(&self, making: Making, number: usize) -> Result<Part, ArchiveError> {
        let file =
            format!("data/{:04}_{}/{:05}.copy.zst", self.number + 1, plain(&self.table.name), number + 1);
        let (bytes, part) = making.finish(file)?;
        self.writing.place.put(&part.file, bytes).await?;
        failpoint::hit("archive-part-written");
        Ok(part)
    }
}

/// `COPY` of a relation's columns, up to the direction.
pub(super) fn target(table: &TableName, columns: &[String]) -> String {
    format!("COPY {} ({})", table.sql(), quote_list(columns.iter().map(String::as_str)))
}

/// What a text means does not depend on the session's settings but for those that every session of ours has. Not binary: in it arrays
/// and composite values hold numbers of types, which are others in another database, and not every type has such a form.
pub(super) fn options(encoding: &str) -> String {
    format!("WITH (FORMAT text, ENCODING '{}')", encoding.replace('\'', ""))
}

/// A table's name as a part of a file's: for people, who find the exact one in the manifest.
fn plain(name: &TableName) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    format!("{}.{}", name.schema, name.name)
        .chars()
        .map(|c| if c == '.' { '.' } else { letter(c) })
        .take(80)
        .collect()
}
