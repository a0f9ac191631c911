//! The stage that keeps what is in the old tables: an archive is written, read back, and written down. Nothing is taken from anybody, so
//! it holds others up no more than a reader does; only looking, and writing it down, keep other verbs away.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::gather::RetireError;
use super::revoke::Transaction;
use super::run::{Commit, Job, allowed, itself, locked, shown, tell, within};
use super::stage::Step;
use crate::archive::{self, ArchiveError, Manifest, Place, PlaceError, Tell, There, Whose, Writing};
use crate::catalog::Catalog;
use crate::failpoint;
use crate::journal::archives::{self, Archive};
use crate::journal::arming;
use crate::journal::ledger::RETIRE;
use crate::journal::process;
use crate::journal::quarantine;
use crate::journal::retirement::{self, Retirement, Stage};
use crate::journal::streams::{Mode, StreamOf, StreamState};
use crate::lsn::Lsn;
use crate::name::TableName;
use crate::postgres::connect::Session;
use crate::problem::Problem;
use crate::reconcile::stop;

const ARCHIVING: Commit = Commit {
    verb: RETIRE,
    done: "the old tables are archived",
    before: "archive-before-commit",
    behind: "archive-committed",
};

/// What the stage works with.
#[derive(Clone, Copy)]
pub struct Archiving<'a> {
    /// As every stage.
    pub job: &'a Job<'a>,
    /// Another session of the administrator on the monolith, which reads for as long as it takes.
    pub reader: &'a Session,
    /// Where the archive goes.
    pub place: &'a Place,
    /// Who hears how far it is.
    pub tell: Tell<'a>,
    /// Somebody asked to stop: what takes long ends then, with [`ArchiveError::Stopped`].
    pub stop: &'a CancellationToken,
}

/// What the stage has done, or would do.
#[derive(Debug, Clone)]
pub struct Archived {
    /// About how many bytes each table has on the monolith, by its name there.
    pub tables: BTreeMap<String, u64>,
    /// What is at the place, in words that follow its name.
    pub there: String,
    /// Names exactly what is done.
    pub token: String,
    /// What is to be known.
    pub problems: Vec<Problem>,
    /// The archive, once it is written down.
    pub archive: Option<Archive>,
    /// It was written down before, and every byte of it is as it was.
    pub before: bool,
}

/// What speaks for it, and what is there.
struct Standing {
    problems: Vec<Problem>,
    epoch: i64,
    whose: Whose,
    tables: BTreeMap<String, u64>,
    there: There,
    noted: Option<Archive>,
}

/// Writes an archive where `confirm` names it, reads every byte back, writes it down and tells the ledger. Without `confirm` it looks
/// only. Where one is written down at that place already, that is proven again.
///
/// # Errors
/// [`RetireError::Refused`] where something stands in the way, also where that comes up meanwhile; [`RetireError::Archive`] where the
/// place fails. What is not written down then is begun anew, or gone on with, by the same command.
pub async fn archive(archiving: Archiving<'_>, confirm: Option<&str>) -> Result<Archived, RetireError> {
    let Archiving { job, place, .. } = archiving;
    let standing = locked(job.work.databases, async || stand(archiving).await).await?;
    let what = (standing.epoch, place.to_string(), standing.tables.keys().collect::<Vec<_>>());
    let archived = Archived {
        token: shown(&Sha256::digest(format!("archive {what:?}").as_bytes())),
        there: words(&standing.there),
        tables: standing.tables.clone(),
        problems: standing.problems.clone(),
        archive: None,
        before: false,
    };
    if let (Some(noted), There::Whole(manifest, digest)) = (&standing.noted, &standing.there)
        && (&noted.place, &noted.manifest_sha256) == (&place.to_string(), digest)
    {
        proven(archiving, manifest).await?;
        if confirm.is_some() {
            // Of a run that was cut off behind its COMMIT.
            let _ = archive::end(place).await;
        }
        return Ok(Archived { archive: standing.noted, before: true, ..archived });
    }
    if let (Some(noted), There::Whole(_, digest)) = (&standing.noted, &standing.there)
        && noted.place == place.to_string()
    {
        return Err(refused(changed(noted, digest)));
    }
    let Some(confirm) = confirm else { return Ok(archived) };
    if confirm != archived.token {
        return Err(RetireError::Changed { slice: job.work.slice.to_owned() });
    }
    let (manifest, digest) = match standing.there {
        There::Whole(manifest, digest) => {
            proven(archiving, &manifest).await?;
            (*manifest, digest)
        }
        There::Nothing | There::Begun | There::Other(_) => written(archiving, &standing).await?,
    };
    let archive = noted(&manifest, digest, (place, standing.epoch))?;
    note(job, &archive, manifest.of.moved_by.as_deref()).await?;
    // Where it can't be removed it says nothing that the manifest does not.
    let _ = archive::end(place).await;
    Ok(Archived { archive: Some(archive), ..archived })
}

fn words(there: &There) -> String {
    match there {
        There::Nothing => "is empty".to_owned(),
        There::Begun => "has the beginning of this archive, which is begun anew".to_owned(),
        There::Whole(manifest, _) => {
            format!("has this archive as of {}, which is read back and written down", manifest.of.at)
        }
        There::Other(what) => what.clone(),
    }
}

/// Writes everything, and the manifest last, when every byte was read back.
async fn written(archiving: Archiving<'_>, standing: &Standing) -> Result<(Manifest, String), RetireError> {
    let Archiving { job, reader, place, tell, stop } = archiving;
    let begun = archive::begin(place, &standing.whose, standing.there == There::Begun).await?;
    failpoint::hit("archive-begun");
    let manifest = archive::write(Writing {
        plan: &job.work.plan.name,
        mapping: job.mapping,
        epoch: standing.epoch,
        reader,
        catalogs: job.catalogs,
        place,
        tell,
        stop,
    })
    .await?;
    proven(archiving, &manifest).await?;
    failpoint::hit("archive-verified");
    // Where the session was lost, somebody else may be at the same files by now.
    archives::still_locked(reader).await?;
    let digest = archive::conclude(place, &begun, &manifest).await?;
    failpoint::hit("archive-concluded");
    Ok((manifest, digest))
}

/// Reads every byte back.
async fn proven(archiving: Archiving<'_>, manifest: &Manifest) -> Result<(), RetireError> {
    let proving = archive::verify(archiving.place, manifest, archiving.tell);
    Ok(stop::wait(archiving.stop, proving).await.map_err(ArchiveError::from)??)
}

fn noted(
    manifest: &Manifest,
    manifest_sha256: String,
    (place, epoch): (&Place, i64),
) -> Result<Archive, RetireError> {
    let unread = |why: &str| {
        let source = archive::ManifestError::Unreadable { why: why.to_owned() };
        ArchiveError::Manifest { place: place.to_string(), source }
    };
    let reverse_lsn: Result<Lsn, _> = manifest.of.reverse_lsn.parse();
    Ok(Archive {
        epoch,
        place: place.to_string(),
        manifest_sha256,
        reverse_lsn: reverse_lsn.map_err(|_| unread("reverse_lsn is no position"))?,
        way_back: None,
        rows: i64::try_from(manifest.rows()).map_err(|_| unread("it has too many rows"))?,
        bytes: i64::try_from(manifest.bytes()).map_err(|_| unread("it has too many bytes"))?,
        at: manifest.of.at.clone(),
    })
}

/// Writes it down, where everything that spoke for it still does.
async fn note(job: &Job<'_>, archive: &Archive, moved_by: Option<&str>) -> Result<(), RetireError> {
    let slice = job.work.slice;
    locked(job.work.databases, async || {
        itself(&job.work.databases.monolith, slice).await?;
        let look = Box::pin(allowed(job, Step::Archive, None)).await?;
        let moved = taken(&job.work.databases.monolith, slice, look.epoch).await?;
        still_away(job, &look.catalog).await?;
        let noting = async |transaction: &mut Transaction<'_>| {
            let changed = || RetireError::Changed { slice: slice.to_owned() };
            let held = transaction.rows(retirement::only_in_epoch(slice, archive.epoch)).await?;
            // They may have been brought back and moved away again since they were read.
            let again = moved_by != Some(moved.transaction.as_str());
            if held == 0 || look.epoch != archive.epoch || again {
                return Err(changed());
            }
            let way_back = arming::reverse(transaction.monolith, slice).await?.map(|row| row.slot);
            transaction.run(archives::note(slice, &Archive { way_back, ..archive.clone() })).await?;
            let action = format!(
                "archive {} rows as of {}, manifest {}",
                archive.rows, archive.reverse_lsn, archive.manifest_sha256
            );
            let told = retirement::tell(RETIRE, slice, (&action, &archive.place), job.approved_by);
            transaction.run(told).await
        };
        within(job.work, Some(ARCHIVING), noting).await?;
        tell(job.work, ARCHIVING).await
    })
    .await
}

/// Refuses where the tables were not moved away in this epoch; else says when they were, and by which transaction.
pub(super) async fn taken(monolith: &Client, slice: &str, epoch: i64) -> Result<Retirement, RetireError> {
    match retirement::read(monolith, slice).await? {
        Some(done) if done.epoch == epoch && done.stage >= Stage::Quarantined => Ok(done),
        Some(_) | None => Err(refused(
            Problem::error("stage-before", format!("slice {slice}"))
                .fact("its old tables are not moved away since its service has the authority")
                .consequence(
                    "whoever still writes or needs them would not be noticed while they are archived",
                )
                .next(format!("strangler retire PLAN --slice {slice} --stage quarantine")),
        )),
    }
}

/// Refuses where a table is not where the stage before has put it.
pub(super) async fn still_away(job: &Job<'_>, catalog: &Catalog) -> Result<(), RetireError> {
    let slice = job.work.slice;
    let moved = quarantine::moved(&job.work.databases.monolith, slice).await?;
    let roots: Vec<&TableName> = job.mapping.tables.iter().map(|table| &table.source).collect();
    let problems = astray(slice, &roots, (catalog, &moved));
    if problems.is_empty() { Ok(()) } else { Err(RetireError::Refused { problems }) }
}

/// Tables that somebody has moved by hand since, or put another one in the place of. A partition that was made since may stand anywhere,
/// and one that was dropped since is missed by nobody.
fn astray(
    slice: &str,
    roots: &[&TableName],
    (catalog, moved): (&Catalog, &[(u32, TableName)]),
) -> Vec<Problem> {
    let is_away = |oid: u32| {
        let table = catalog.tables.values().find(|table| table.oid == oid);
        table.map(|table| table.name.place_schema() != table.name.schema)
    };
    let back = moved.iter().filter(|(oid, _)| is_away(*oid) == Some(false)).map(|(_, name)| name);
    let replaced = roots.iter().copied().filter(|root| {
        let oid = catalog.table(root).map(|table| table.oid);
        oid.is_none_or(|oid| moved.iter().all(|(one, _)| *one != oid))
    });
    let names: BTreeSet<&TableName> = back.chain(replaced).collect();
    let problem = |name: &TableName| {
        Problem::error("moved-by-hand", name)
            .fact("it does not stand where it was moved to, or another one does")
            .consequence(
                "whoever brought it back may use it, and what is archived would not be what is dropped",
            )
            .next(format!(
                "move it back; or strangler unretire PLAN --slice {slice}, and take the stages anew"
            ))
    };
    names.into_iter().map(problem).collect()
}

fn refused(problem: Problem) -> RetireError {
    RetireError::Refused { problems: vec![problem] }
}

/// What is written down must not be exchanged for what somebody has made of it.
pub(super) fn changed(noted: &Archive, found: &str) -> Problem {
    Problem::error("archive-changed", &noted.place)
        .fact(format!("the SHA-256 of its manifest.json is {found}, and {} is written down", noted.manifest_sha256))
        .consequence("it is not the archive that was written and read back, so nothing may rest on it")
        .next("put the file back as it was; or the same command with another --to, a folder that is empty, which archives the tables anew")
}

/// Looks at everything, and refuses where something stands in the way.
async fn stand(archiving: Archiving<'_>) -> Result<Standing, RetireError> {
    let Archiving { job, reader, place, .. } = archiving;
    let (monolith, slice) = (&job.work.databases.monolith, job.work.slice);
    itself(monolith, slice).await?;
    // Of a run that was cut off behind its COMMIT, also where something stands in the way by now.
    if retirement::read(monolith, slice).await?.is_some() {
        tell(job.work, ARCHIVING).await?;
    }
    let look = Box::pin(allowed(job, Step::Archive, None)).await?;
    let moved = taken(monolith, slice, look.epoch).await?;
    still_away(job, &look.catalog).await?;
    way_back(monolith, slice).await?;
    if !archives::try_lock(reader, slice).await? {
        return Err(refused(
            Problem::error("archive-at-work", format!("slice {slice}"))
                .fact("somebody else archives it at this moment")
                .consequence("two would write into each other's files, or read everything twice")
                .next("wait until that has ended, then the same command"),
        ));
    }
    let catalog = &look.catalog;
    let whose = Whose {
        plan: job.work.plan.name.clone(),
        slice: slice.to_owned(),
        epoch: look.epoch,
        system_identifier: catalog.identity.system_identifier.clone(),
        uuid: catalog.identity.database_uuid.clone().unwrap_or_default(),
    };
    let there = archive::look(place, &whose).await?;
    let noted = archives::read(monolith, slice).await?.filter(|noted| noted.epoch == look.epoch);
    fits(&there, place, (&moved, noted.as_ref()))?;
    let tables = archive::sizes(job.mapping, catalog)?;
    Ok(Standing { problems: look.problems, epoch: look.epoch, whose, tables, there, noted })
}

/// The way back must be at work, for its position to say what the old tables have.
pub(super) async fn way_back(monolith: &Client, slice: &str) -> Result<(), RetireError> {
    let stream = arming::reverse(monolith, slice).await?;
    if stream.is_some_and(|row| row.mode == Mode::Apply && row.state == StreamState::Running) {
        if process::read(monolith, StreamOf::reverse(slice)).await?.is_some_and(|seen| seen.is_alive()) {
            return Ok(());
        }
        return Err(refused(
            Problem::error("no-way-back", format!("slice {slice}"))
                .fact("no mirror of it runs")
                .consequence("the old tables lack what the service has written since it ended, and so would the archive")
                .next(format!("strangler mirror PLAN --slice {slice}")),
        ));
    }
    Err(refused(
        Problem::error("no-way-back", format!("slice {slice}"))
            .fact("the way back does not apply what the service writes")
            .consequence("nobody could say up to where the archive has everything")
            .next(format!("strangler status PLAN --slice {slice}, which names what is wrong with it")),
    ))
}

/// An archive of an earlier retirement must stay what it is, and so must whatever else is there.
fn fits(
    there: &There,
    place: &Place,
    (moved, noted): (&Retirement, Option<&Archive>),
) -> Result<(), RetireError> {
    let fact = match there {
        There::Nothing | There::Begun => return Ok(()),
        // What is written down is forgotten in the transaction that brings the tables back.
        There::Whole(_, digest) if noted.is_some_and(|noted| noted.manifest_sha256 == *digest) => {
            return Ok(());
        }
        There::Whole(manifest, _) if manifest.of.moved_by.as_ref() == Some(&moved.transaction) => {
            return Ok(());
        }
        There::Whole(manifest, _) => format!(
            "it holds an archive of {}, and the tables were brought back and moved away since, at {}",
            manifest.of.at, moved.at
        ),
        There::Other(what) => format!("it {what}"),
    };
    Err(refused(
        Problem::error("place-taken", place)
            .fact(fact)
            .consequence("nothing that is there is written over")
            .next("the same command with another --to, a folder that is empty"),
    ))
}

/// Whether what is written down of an archive holds.
#[derive(Debug)]
pub enum Kept {
    /// None was written down.
    No,
    /// It is of another epoch: the authority has moved since.
    OfAnotherEpoch(Archive),
    /// It is not there as it was.
    Lost(Archive, ArchiveError),
    /// It is there, with the manifest that was written down, which the ledger has as well.
    Yes(Archive, Box<Manifest>, Place),
}

/// Asks for a slice's archive: the stage that drops the old tables rests on it, and has every byte proven
/// ([`verify`](archive::verify)) before. `open` makes a place of what is written down.
///
/// # Errors
/// [`RetireError::Journal`].
pub async fn kept(
    monolith: &Client,
    (slice, epoch): (&str, i64),
    open: impl Fn(&str) -> Result<Place, PlaceError>,
) -> Result<Kept, RetireError> {
    let Some(noted) = archives::read(monolith, slice).await? else { return Ok(Kept::No) };
    if noted.epoch != epoch {
        return Ok(Kept::OfAnotherEpoch(noted));
    }
    let found = async {
        let place = open(&noted.place)?;
        let missing = || ArchiveError::Missing { place: noted.place.clone() };
        let (manifest, found) = archive::find(&place).await?.ok_or_else(missing)?;
        if found != noted.manifest_sha256 {
            let (place, wanted) = (noted.place.clone(), noted.manifest_sha256.clone());
            return Err(ArchiveError::Another { place, found, wanted });
        }
        Ok((Box::new(manifest), place))
    };
    Ok(match found.await {
        Ok((manifest, place)) => Kept::Yes(noted, manifest, place),
        Err(error) => Kept::Lost(noted, error),
    })
}
