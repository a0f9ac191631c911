//! The last stage: old tables are dropped, and with them everything that stood between the two databases for the slice.
//!
//! The service writes down that it is decided, while the transaction that drops the tables stands open on the monolith behind all its locks
//! and looks; then that one is committed, from where on nothing brings the tables back but the archive. What is no part of it, slots and
//! what the service has, goes step by step behind that. Each step looks at nothing but what is there, so the same command goes on from wherever one
//! was cut off; until the COMMIT `unretire` takes it back as well.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::again;
use super::archive::{self as kept_archive, Kept, kept, still_away, taken, way_back};
use super::gather::RetireError;
use super::home;
use super::leaving;
use super::quarantine;
use super::revoke::Transaction;
use super::rights::Relation;
use super::run::{Commit, Job, Work, allowed, idle_ms, itself, locked, look_again, patiently, shown, within};
use super::stage::Step;
use crate::archive::{self, ArchiveError, Place, PlaceError, Tell};
use crate::catalog::{Catalog, Fragment};
use crate::failpoint;
use crate::journal::archives::Archive;
use crate::journal::arming;
use crate::journal::dropped::{self, Dropped, Leftover, Noting, OnMonolith};
use crate::journal::ledger::RETIRE;
use crate::journal::retirement::{self, Retirement};
use crate::journal::streams::{self, StreamOf};
use crate::journal::{abandonment, granted, quarantine as moved_away, slices};
use crate::name::{TableName, quote_ident, quote_literal};
use crate::postgres::{places, sqlstate};
use crate::problem::Problem;
use crate::provision::withdrawal;
use crate::reconcile::stop;

/// What the last stage commits first.
pub(super) const DROPPING: Commit = Commit {
    verb: RETIRE,
    done: "the old tables are dropped",
    before: "drop-before-commit",
    behind: "drop-committed",
};

/// What the stage works with.
#[derive(Clone, Copy)]
pub struct Dropping<'a> {
    /// As every stage.
    pub job: &'a Job<'a>,
    /// A session on the monolith that may drop slots.
    pub slots: &'a Client,
    /// Makes a place of what is written down of an archive.
    pub open: &'a (dyn Fn(&str) -> Result<Place, PlaceError> + Sync),
    /// Who hears how far the proof of the archive is.
    pub tell: Tell<'a>,
    /// Somebody asked to stop.
    pub stop: &'a CancellationToken,
}

/// How long the archive's store may take to say that everything is still there, while others wait for the old tables.
pub(super) const STORE_MAX: Duration = Duration::from_secs(5);

/// What was done, or would be.
#[derive(Debug, Clone)]
pub struct Gone {
    /// The statements of the transaction on the monolith, in their order; none where it was committed before.
    pub statements: Vec<String>,
    /// What goes behind it, in words.
    pub behind: Vec<String>,
    /// The archive, in words: where, what is in it, and since when.
    pub archive: String,
    /// Names exactly what goes.
    pub token: String,
    /// What is to be known.
    pub problems: Vec<Problem>,
    /// An earlier run has dropped the tables, and what is behind that is left.
    pub begun: bool,
    /// Nothing was left to do.
    pub before: bool,
}

/// Drops a slice's old tables, where what goes is still what `confirm` names, with all that only this slice needs, and tells the
/// ledger. Without `confirm` the transaction is made and rolled back, and the rest is said in words.
///
/// # Errors
/// [`RetireError`]; from the COMMIT on whatever is left is done by the same command.
pub async fn drop_tables(dropping: Dropping<'_>, confirm: Option<&str>) -> Result<Gone, RetireError> {
    let Dropping { job, .. } = dropping;
    let (slice, databases) = (job.work.slice, job.work.databases);
    let service = service_of(job)?;
    locked(databases, async || {
        let (known, gone) = Box::pin(stand(dropping, confirm)).await?;
        let Some(known) = known.filter(|_| confirm.is_some()) else { return Ok(gone) };
        let next = format!("strangler retire PLAN --slice {slice} --stage drop --confirm {}", known.token);
        let behind = |source| RetireError::Behind { next, source: Box::new(source) };
        Box::pin(leaving::finish((job, dropping.slots), service, &known)).await.map_err(behind)?;
        Ok(gone)
    })
    .await
}

/// Drops the tables, or shows what that does, where they are still there; else says what is left, and of which slice it is to be finished.
async fn stand(
    dropping: Dropping<'_>,
    confirm: Option<&str>,
) -> Result<(Option<Dropped>, Gone), RetireError> {
    let Dropping { job, .. } = dropping;
    let (monolith, slice, service) = (&job.work.databases.monolith, job.work.slice, service_of(job)?);
    let Some(known) = dropped::read(service, slice).await? else {
        if !dropped::has_side(monolith, slice).await?
            && let Some(noted) = dropped::read(monolith, slice).await?
        {
            let gone = again::tell(job, service, (&noted, confirm)).await?;
            return Ok((Some(noted), gone));
        }
        return Box::pin(dropped_now(dropping, confirm)).await;
    };
    let over = known.ended_at.is_some();
    match dropped::on_monolith(monolith, &known).await? {
        OnMonolith::Side if over => {
            let gone = Box::pin(again::tables(dropping, &known, confirm)).await?;
            return Ok((Some(known), gone));
        }
        OnMonolith::Side => return Box::pin(dropped_now(dropping, confirm)).await,
        OnMonolith::Nobody(_) if over => return Ok((None, of_before(known))),
        OnMonolith::Nobody(fact) => {
            return Err(RetireError::Refused { problems: vec![nobody(slice, fact)] });
        }
        OnMonolith::Gone => {}
    }
    if over && !leaving::is_left(job, &known).await? {
        return Ok((None, of_before(known)));
    }
    if confirm.is_some_and(|confirm| confirm != known.token) {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    let gone = begun(&known);
    Ok((Some(known), gone))
}

/// What the service has noted once the tables are gone in this run.
async fn dropped_now(
    dropping: Dropping<'_>,
    confirm: Option<&str>,
) -> Result<(Option<Dropped>, Gone), RetireError> {
    let (slice, service) = (dropping.job.work.slice, service_of(dropping.job)?);
    let gone = Box::pin(tables(dropping, confirm)).await?;
    if confirm.is_none() {
        return Ok((None, gone));
    }
    let known = dropped::read(service, slice).await.map_err(RetireError::from);
    let lost = || RetireError::NotProvisioned { slice: slice.to_owned() };
    let behind = |source| RetireError::Behind {
        next: format!("strangler retire PLAN --slice {slice} --stage drop"),
        source: Box::new(source),
    };
    let known = known.and_then(|known| known.ok_or_else(lost)).map_err(behind)?;
    Ok((Some(known), gone))
}

/// The service has noted that the tables are to be dropped, and this monolith has nothing that says that they are.
fn nobody(slice: &str, fact: String) -> Problem {
    Problem::error("other-monolith", "monolith")
        .fact(fact)
        .consequence(format!("the old tables of slice {slice} may stand in the right one, and the slice would end without them"))
        .next(
            "correct the link of the monolith in the plan, or the variable that holds it, and type the same command again; where the monolith \
             was set back to before strangler provision, put it forward to a later state",
        )
}

/// Takes back that it was decided, where the tables are still there; `false` where it was not. Without `commit` it only looks. Who calls
/// it: `unretire`.
///
/// # Errors
/// [`RetireError::Refused`] once the tables are gone, and where nobody knows.
pub async fn reconsider(work: Work<'_>, commit: bool) -> Result<bool, RetireError> {
    let (slice, databases) = (work.slice, work.databases);
    locked(databases, async || {
        let has_side = dropped::has_side(&databases.monolith, slice).await?;
        let mut taken_back = false;
        if !has_side && databases.services.is_empty() {
            return Err(RetireError::Refused { problems: vec![unknown(slice)] });
        }
        for service in databases.services.values() {
            let Some(known) = dropped::read(service, slice).await? else {
                let noted = dropped::read(&databases.monolith, slice).await?.filter(|_| !has_side);
                match noted {
                    Some(noted) => {
                        return Err(RetireError::Refused { problems: vec![dropped::forgotten(&noted)] });
                    }
                    None => continue,
                }
            };
            if known.ended_at.is_some() || !has_side {
                return Err(RetireError::Refused { problems: vec![known.problem()] });
            }
            if commit {
                leaving::transact((service, None), &[dropped::take_back(slice)]).await?;
                failpoint::hit("drop-taken-back");
            }
            taken_back = true;
        }
        Ok(taken_back)
    })
    .await
}

/// The monolith has nothing of the slice, and its service, which may know why, can't be reached.
fn unknown(slice: &str) -> Problem {
    Problem::error("service-unknown", format!("slice {slice}"))
        .fact("the monolith has nothing of it, and its service can't be reached")
        .consequence("nobody knows whether its old tables are dropped, or were never taken away")
        .next(format!("once the service answers: strangler status PLAN --slice {slice}"))
}

pub(super) fn service_of<'a>(job: &Job<'a>) -> Result<&'a Client, RetireError> {
    let service = job.work.databases.services.get(&job.mapping.service);
    service.ok_or_else(|| RetireError::NotProvisioned { slice: job.work.slice.to_owned() })
}

fn of_before(known: Dropped) -> Gone {
    Gone { before: true, begun: true, ..begun(&known) }
}

pub(super) fn begun(known: &Dropped) -> Gone {
    Gone {
        statements: Vec::new(),
        behind: leaving::words(&known.leftover),
        archive: format!(
            "the archive of {} is at {}, manifest {}",
            known.archived_at, known.place, known.manifest_sha256
        ),
        token: known.token.clone(),
        problems: Vec::new(),
        begun: true,
        before: false,
    }
}

/// The transaction on the monolith, or what it would be.
async fn tables(dropping: Dropping<'_>, confirm: Option<&str>) -> Result<Gone, RetireError> {
    let Dropping { job, .. } = dropping;
    let (monolith, slice) = (&job.work.databases.monolith, job.work.slice);
    itself(monolith, slice).await?;
    let begun = std::time::Instant::now();
    let look = Box::pin(allowed(job, Step::Drop, None)).await?;
    let took = begun.elapsed();
    let moved = taken(monolith, slice, look.epoch).await?;
    still_away(job, &look.catalog).await?;
    way_back(monolith, slice).await?;
    let archive = Box::pin(proven(dropping, &moved)).await?;
    let leftover = leftover(job).await?;
    let fragment = Fragment::of(&look.catalog, &job.tables());
    let noting = Cell::new(false);
    let going = Going {
        job,
        noting: &noting,
        archive: &archive,
        leftover: &leftover,
        names: fragment.names().map(ToString::to_string).collect(),
        fragment: serde_json::to_string(&fragment).map_err(|source| RetireError::Kept { source })?,
        open: dropping.open,
    };
    if confirm.is_some() {
        let home = home::Asked::new(job, service_of(job)?, &archive);
        home.has_come_back().await?;
        home.has_been_looked_through(false).await?;
        failpoint::hit("drop-caught-up");
    }
    let take = async |transaction: &mut Transaction<'_>| {
        Box::pin(drop_in(transaction, &going, (confirm, &look.catalog, took))).await
    };
    let done = within(job.work, confirm.map(|_| DROPPING), take).await;
    let (token, statements) = done.map_err(|source| decided(source, (slice, noting.get())))?;
    Ok(Gone {
        statements,
        behind: leaving::words(&leftover),
        archive: format!(
            "every byte of the archive was read back: {} rows as of {}, of {}, at {}, manifest {}",
            archive.rows, archive.reverse_lsn, archive.at, archive.place, archive.manifest_sha256
        ),
        token,
        problems: look.problems,
        begun: false,
        before: false,
    })
}

/// What it came to where the service was told, or may have been, and the monolith has dropped nothing.
fn decided(source: RetireError, (slice, noting): (&str, bool)) -> RetireError {
    // There it is not known whether they are dropped.
    if !noting || matches!(source, RetireError::Unknown { .. }) {
        return source;
    }
    let next = format!(
        "strangler retire PLAN --slice {slice} --stage drop shows it anew and drops them; strangler unretire PLAN --slice {slice} \
         takes back that they are to be"
    );
    RetireError::Decided { next, source: Box::new(source) }
}

/// The archive that is written down, once every byte of it was read back in this run.
async fn proven(dropping: Dropping<'_>, moved: &Retirement) -> Result<Archive, RetireError> {
    let Dropping { job, open, tell, stop: asked, .. } = dropping;
    let (monolith, slice) = (&job.work.databases.monolith, job.work.slice);
    let missing = |fact: String| missing(slice, fact);
    let is_another = |by: &String| *by != moved.transaction;
    match kept(monolith, (slice, moved.epoch), open).await? {
        Kept::No => Err(missing("its old tables are not archived".to_owned())),
        Kept::OfAnotherEpoch(archive) => Err(missing(format!(
            "the archive of {} at {} is of epoch {}, and the authority has moved since",
            archive.at, archive.place, archive.epoch
        ))),
        Kept::Yes(archive, manifest, _) if manifest.of.moved_by.as_ref().is_some_and(is_another) => {
            Err(missing(format!(
                "the tables were brought back since the archive of {}, and moved away again at {}",
                archive.at, moved.at
            )))
        }
        Kept::Lost(archive, ArchiveError::Missing { .. }) => Err(missing(format!(
            "no archive is at {}, where one was written down at {}",
            archive.place, archive.at
        ))),
        Kept::Lost(archive, ArchiveError::Another { found, .. }) => {
            Err(RetireError::Refused { problems: vec![kept_archive::changed(&archive, &found)] })
        }
        Kept::Lost(_, error) => Err(error.into()),
        Kept::Yes(archive, manifest, place) => {
            let proving = archive::verify(&place, &manifest, tell);
            stop::wait(asked, proving).await.map_err(ArchiveError::from)??;
            Ok(archive)
        }
    }
}

/// What is no part of the transaction, by what is written down of it.
async fn leftover(job: &Job<'_>) -> Result<Leftover, RetireError> {
    let slice = job.work.slice;
    let forward = streams::read(service_of(job)?, StreamOf::forward(slice)).await?;
    let reverse = arming::reverse(&job.work.databases.monolith, slice).await?;
    Ok(Leftover {
        forward_slot: forward.map(|row| row.slot),
        reverse_slot: reverse.as_ref().map(|row| row.slot.clone()),
        reverse_publication: reverse.map(|row| row.publication),
    })
}

/// What goes, and what stays to tell of it.
struct Going<'a> {
    job: &'a Job<'a>,
    /// The service was told that the tables are to be dropped, or may have been.
    noting: &'a Cell<bool>,
    archive: &'a Archive,
    leftover: &'a Leftover,
    /// The tables' names as our journal writes them.
    names: Vec<String>,
    fragment: String,
    /// Makes a place of what is written down of the archive.
    open: &'a (dyn Fn(&str) -> Result<Place, PlaceError> + Sync),
}

impl Going<'_> {
    /// Everything that was judged before the tables were locked, once more, with `took` for how long the first look at the catalog did.
    async fn judged_again(
        &self,
        transaction: &Transaction<'_>,
        (catalog, took): (&Catalog, Duration),
    ) -> Result<(), RetireError> {
        let home = home::Asked::new(self.job, service_of(self.job)?, self.archive);
        home.has_been_looked_through(true).await?;
        Box::pin(look_again(self.job, transaction, (Step::Drop, Some(catalog)), took)).await?;
        patiently(transaction, idle_ms(took), home.has_everything()).await?;
        way_back(transaction.monolith, self.job.work.slice).await?;
        let store = STORE_MAX + Duration::from_secs(1);
        patiently(transaction, store.as_millis(), self.archive_stands(transaction.monolith)).await
    }

    /// The archive is still the one that was proven in this run.
    async fn archive_stands(&self, monolith: &Client) -> Result<(), RetireError> {
        let (slice, noted) = (self.job.work.slice, self.archive);
        let standing = async {
            match kept(monolith, (slice, noted.epoch), self.open).await? {
                Kept::Yes(archive, manifest, place) if archive == *noted => {
                    archive::still_there(&place, &manifest).await.map_err(RetireError::from)
                }
                Kept::Lost(archive, ArchiveError::Another { found, .. }) => {
                    Err(RetireError::Refused { problems: vec![kept_archive::changed(&archive, &found)] })
                }
                Kept::Lost(archive, ArchiveError::Missing { .. }) => {
                    let fact =
                        format!("the archive at {} went away while it was being judged", archive.place);
                    Err(missing(slice, fact))
                }
                Kept::Lost(_, error) => Err(error.into()),
                Kept::Yes(..) | Kept::No | Kept::OfAnotherEpoch(_) => {
                    Err(RetireError::Changed { slice: slice.to_owned() })
                }
            }
        };
        let silent = |_| {
            let fact =
                format!("{} did not say within {STORE_MAX:?} that the archive is still there", noted.place);
            Err(missing(slice, fact))
        };
        tokio::time::timeout(STORE_MAX, standing).await.unwrap_or_else(silent)
    }
}

fn missing(slice: &str, fact: String) -> RetireError {
    let problem = Problem::error("archive-missing", format!("slice {slice}"))
        .fact(fact)
        .consequence("what is in the old tables would be nowhere but in the service")
        .next(format!("strangler retire PLAN --slice {slice} --stage archive --to WHERE"));
    RetireError::Refused { problems: vec![problem] }
}

/// Everything of the slice on the monolith, in one transaction; returns the token that names exactly that. Where it was confirmed, the
/// service has it written down when this returns.
async fn drop_in(
    transaction: &mut Transaction<'_>,
    going: &Going<'_>,
    (confirm, catalog, took): (Option<&str>, &Catalog, std::time::Duration),
) -> Result<String, RetireError> {
    let Going { job, archive, leftover, .. } = going;
    let (slice, monolith) = (job.work.slice, transaction.monolith);
    let tables = job.tables();
    let relations = transaction.read(&tables).await?;
    quarantine::lock(transaction, slice, &relations).await?;
    if transaction.read(&tables).await? != relations {
        return Err(RetireError::Raced);
    }
    let changed = || RetireError::Changed { slice: slice.to_owned() };
    if transaction.rows(retirement::only_in_epoch(slice, archive.epoch)).await? == 0 {
        return Err(changed());
    }
    if confirm.is_some() {
        Box::pin(going.judged_again(transaction, (catalog, took))).await?;
    } else {
        home::Asked::new(job, service_of(job)?, archive).has_everything().await?;
    }
    let identity = dropped::identity(monolith).await?;
    let publication = slices::read(monolith, slice).await?.map(|row| row.publication);
    drop_objects(transaction, (slice, &relations), publication.as_deref()).await?;
    give_up_rights(transaction, slice).await?;
    let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
    let named = (&transaction.statements, oids, &archive.place, &archive.manifest_sha256, leftover);
    let token = shown(&Sha256::digest(format!("drop {} {named:?}", archive.epoch).as_bytes()));
    if confirm.is_some_and(|wanted| wanted != token) {
        return Err(changed());
    }
    let noting = Noting {
        slice,
        plan: &job.work.plan.name,
        service: &job.mapping.service,
        monolith: &identity,
        token: &token,
        archive,
        leftover,
        fragment: &going.fragment,
    };
    // Told before the slice's rows go; the journal outlives them.
    let tables = relations.iter().map(|relation| ("drop table".to_owned(), known(relation, catalog)));
    let stage = format!(
        "take stage dropped: {} rows as of {} are archived, manifest {}",
        archive.rows, archive.reverse_lsn, archive.manifest_sha256
    );
    for (action, object) in tables.chain([(stage, archive.place.clone())]) {
        transaction.run(retirement::tell(RETIRE, slice, (&action, &object), job.approved_by)).await?;
    }
    let forgotten = dropped::forget(slice, &abandonment::tables_of_slices(monolith).await?, &going.names);
    for sql in forgotten.into_iter().chain(withdrawal::drop_gate(slice)) {
        transaction.run(sql).await?;
    }
    // Neither is shown: what the catalogs say of the tables is long, and nobody types it.
    let shown = transaction.statements.len();
    transaction.run(dropped::note_on_monolith(noting)).await?;
    transaction.statements.truncate(shown);
    if confirm.is_some() {
        note(monolith, going, noting).await?;
    }
    Ok(token)
}

/// Has the service write it down, and remembers whether it may have.
async fn note(monolith: &Client, going: &Going<'_>, noting: Noting<'_>) -> Result<(), RetireError> {
    let service = service_of(going.job)?;
    let noted = leaving::note((monolith, service), &dropped::begin(noting)).await;
    going.noting.set(match &noted {
        // The service said that nothing of it was done.
        Err(RetireError::Unnoted { why, .. }) => why == leaving::SILENT,
        Err(RetireError::Statement { source, .. }) => sqlstate::is_connection_lost(source),
        Ok(()) | Err(_) => true,
    });
    noted?;
    failpoint::hit("drop-noted");
    Ok(())
}

/// Rights that were granted for the slice, and that no other one needs.
pub(super) async fn give_up_rights(
    transaction: &mut Transaction<'_>,
    slice: &str,
) -> Result<(), RetireError> {
    let last = abandonment::others(transaction.monolith, slice).await?.slices.is_empty();
    let granted = granted::dispensable(transaction.monolith, slice, last).await?;
    for sql in withdrawal::revoke(&granted) {
        transaction.run(sql).await?;
    }
    Ok(())
}

/// The name by which the plan knows it.
fn known(relation: &Relation, catalog: &Catalog) -> String {
    let table = catalog.tables.values().find(|table| table.oid == relation.oid);
    table.map_or_else(|| relation.name.to_string(), |table| table.name.to_string())
}

/// Exactly the relations that stand in the slice's quarantine, with nothing that depends on them; what is below them goes with them. Then
/// the schemas, which must be empty by then, and the publication.
async fn drop_objects(
    transaction: &mut Transaction<'_>,
    (slice, relations): (&str, &[Relation]),
    publication: Option<&str>,
) -> Result<(), RetireError> {
    let places = places::read(transaction.monolith).await;
    let places = places.map_err(RetireError::database("where old tables stand"))?;
    let of: Vec<_> = places.0.into_iter().filter(|place| place.slice == slice).collect();
    let noted = moved_away::moved(transaction.monolith, slice).await?;
    let is_away = |name: &TableName| of.iter().any(|place| place.quarantine == name.place_schema());
    let away: Vec<&Relation> = relations.iter().filter(|relation| is_away(&relation.name)).collect();
    let found: BTreeSet<u32> = relations.iter().map(|relation| relation.oid).collect();
    if away.is_empty() || !noted.iter().any(|(oid, _)| found.contains(oid)) {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    drop_relations(transaction, (&of, &away), publication).await
}

/// These relations without whatever depends on them, the schemas that they stand in, where these are the slice's, and its publication.
pub(super) async fn drop_relations(
    transaction: &mut Transaction<'_>,
    (of, relations): (&[places::Quarantine], &[&Relation]),
    publication: Option<&str>,
) -> Result<(), RetireError> {
    let names: Vec<String> = relations.iter().map(|relation| relation.name.sql()).collect();
    transaction.run(format!("DROP TABLE {}", names.join(", "))).await?;
    let left = quarantine::drop_schemas(transaction, of).await?;
    let problem = |(schema, holds): &(String, String)| {
        Problem::error("quarantine-used", schema)
            .fact(format!("it holds what is none of the slice's old tables: {holds}"))
            .consequence("the schema would stay, and nobody would know whose it is")
            .next(format!("ALTER … SET SCHEMA … moves it away, or drop it; SELECT * FROM pg_class WHERE relnamespace = {}::regnamespace names tables", quote_literal(&quote_ident(schema))))
    };
    let problems: Vec<Problem> = left.iter().map(problem).collect();
    if !problems.is_empty() {
        return Err(RetireError::Refused { problems });
    }
    if let Some(name) = publication {
        let there = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
        let row = transaction.monolith.query_one(there, &[&name]).await;
        if row.map_err(RetireError::database("the publications"))?.get(0) {
            transaction.run(format!("DROP PUBLICATION {}", quote_ident(name))).await?;
        }
    }
    Ok(())
}
