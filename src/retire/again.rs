//! Old tables that are dropped, where one of the two databases does not know it any more, because an earlier state of it was put back: the
//! monolith has them again, or the service was never told.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::dropping::{
    DROPPING, Dropping, Gone, STORE_MAX, begun, drop_relations, give_up_rights, service_of,
};
use super::gather::RetireError;
use super::leaving;
use super::quarantine;
use super::revoke::Transaction;
use super::rights::Relation;
use super::run::{Job, in_the_way_of_dropping, itself, patiently, shown, within};
use crate::archive::{self, ArchiveError, Manifest, Place};
use crate::dualwrite::guard::{self, Fault};
use crate::failpoint;
use crate::journal::archives::Archive;
use crate::journal::dropped::{self, Dropped, Noting};
use crate::journal::ledger::RETIRE;
use crate::journal::retirement;
use crate::journal::{abandonment, slices};
use crate::name::TableName;
use crate::postgres::places;
use crate::problem::Problem;
use crate::provision::withdrawal;
use crate::reconcile::stop;

/// Drops tables that came back with an earlier state of the monolith. The gate must have been closed ever since then, in an epoch that is
/// none after the one in which they were dropped; and since that says nothing of who was at the tables while a trigger was asleep, they must hold
/// the rows of the archive, no others and no fewer, when they are locked. Without `confirm` the transaction is made and rolled back.
///
/// # Errors
/// [`RetireError`]; nothing was dropped then.
pub(super) async fn tables(
    dropping: Dropping<'_>,
    known: &Dropped,
    confirm: Option<&str>,
) -> Result<Gone, RetireError> {
    let Dropping { job, .. } = dropping;
    let (monolith, slice) = (&job.work.databases.monolith, job.work.slice);
    itself(monolith, slice).await?;
    let same = dropped::identity(monolith).await? == known.monolith;
    let gate = slices::gate(monolith, slice).await?;
    let fenced = gate.as_ref().filter(|gate| gate.state != "OPEN" && gate.epoch <= known.epoch);
    let Some(fenced) = fenced.filter(|_| same) else {
        let fact = match &gate {
            _ if !same => "it is another database than the one whose tables were dropped".to_owned(),
            Some(gate) => format!(
                "its gate there is {} in epoch {}, and they were dropped in epoch {}",
                gate.state, gate.epoch, known.epoch
            ),
            None => "its gate there is gone".to_owned(),
        };
        return Err(RetireError::Refused { problems: vec![written(known, &fact)] });
    };
    let (place, manifest) = proven(dropping, known).await?;
    let fragment = dropped::fragment(service_of(job)?, slice).await?;
    let again = Again {
        dropping,
        known,
        fragment: &fragment,
        epoch: fenced.epoch,
        place: &place,
        manifest: &manifest,
    };
    let take = async |transaction: &mut Transaction<'_>| Box::pin(drop_in(transaction, again, confirm)).await;
    let (token, statements) = within(job.work, confirm.map(|_| DROPPING), take).await?;
    Ok(Gone { statements, token, begun: false, ..begun(known) })
}

/// The tables were open to whoever writes there.
fn written(known: &Dropped, fact: &str) -> Problem {
    let Dropped { slice, place, .. } = known;
    let place = crate::words::shell_word(place);
    Problem::error("dropped-tables-back", format!("slice {slice}"))
        .fact(format!("the monolith was set back to an earlier state and has its old tables again: {fact}"))
        .consequence("somebody may have written there what neither the service nor the archive has")
        .next(format!(
            "put the monolith forward to its last state; or compare the tables with the archive (strangler restore --from {place} --to URL), \
             bring what is new into the service, and drop them by hand with the schema strangler, where no other slice needs that"
        ))
}

/// A table that holds what the archive does not, or other rows than that.
fn unlike(table: &TableName, place: &str, why: &str) -> Problem {
    let place = crate::words::shell_word(place);
    Problem::error("dropped-tables-back", table)
        .fact(format!("its rows are not those of the archive: {why}"))
        .consequence("a row that is nowhere else would be lost with it, whoever wrote it there, and when")
        .next(format!(
            "put the monolith forward to its last state; or compare the table with the archive (strangler restore --from {place} --to URL), \
             bring what is new into the service, and make the table what the archive has, or drop it by hand"
        ))
}

/// A table on which the gate does not hang as it should: somebody was at it.
fn unguarded(slice: &str, fault: &Fault) -> Problem {
    Problem::error("dropped-tables-back", &fault.table)
        .fact(format!("the monolith was set back to an earlier state and has its old tables again, and {fault}"))
        .consequence("somebody may write there, or have written, what neither the service nor the archive has")
        .next(format!(
            "put the monolith forward to its last state; or put back the gate of slice {slice} as it was, enabled ALWAYS, and type the same \
             command again, which compares the rows with the archive"
        ))
}

/// What is dropped again, and what has proven that it may be.
#[derive(Clone, Copy)]
struct Again<'a> {
    dropping: Dropping<'a>,
    known: &'a Dropped,
    fragment: &'a str,
    /// In which the gate was closed when it was looked at.
    epoch: i64,
    place: &'a Place,
    manifest: &'a Manifest,
}

impl Again<'_> {
    /// Behind the locks: the gate hangs on every table, and each holds what the archive has of it. No state of a gate says that nobody was at a
    /// table while its trigger was asleep.
    async fn has_nothing_else(
        self,
        transaction: &Transaction<'_>,
        relations: &[Relation],
    ) -> Result<(), RetireError> {
        let Self { dropping, manifest, known, .. } = self;
        let (job, monolith) = (dropping.job, transaction.monolith);
        let slice = job.work.slice;
        let guard = guard::read(monolith, slice, &job.tables()).await?;
        let faults = guard.faults.iter().map(|fault| unguarded(slice, fault));
        RetireError::unless_allowed(faults.collect())?;
        let places = places::read(monolith).await.map_err(RetireError::database("where old tables stand"))?;
        let process = monolith.query_one("SELECT pg_backend_pid()", &[]).await;
        let process: i32 = process.map_err(RetireError::database("which session compares"))?.get(0);
        let mut problems = Vec::new();
        for relation in relations {
            let table = places.translated(relation.name.clone());
            let comparing = archive::differs(monolith, (&table, &relation.owner), manifest);
            let compared = match stop::wait(dropping.stop, comparing).await {
                Ok(compared) => compared?,
                Err(stopped) => {
                    // Rows are still on their way, and nobody is to wait for the last.
                    let _ = job.work.watch.query_one("SELECT pg_cancel_backend($1)", &[&process]).await;
                    return Err(ArchiveError::from(stopped).into());
                }
            };
            problems.extend(compared.map(|why| unlike(&table, &known.place, &why)));
        }
        RetireError::unless_allowed(problems).map(drop)
    }

    /// Comparing may take long, and what was compared with is the last copy from here on.
    async fn archive_stands(self) -> Result<(), RetireError> {
        let Self { known, place, manifest, .. } = self;
        let standing = async {
            let missing = || ArchiveError::Missing { place: known.place.clone() };
            let (_, found) = archive::find(place).await?.ok_or_else(missing)?;
            if found != known.manifest_sha256 {
                let wanted = known.manifest_sha256.clone();
                return Err(ArchiveError::Another { place: known.place.clone(), found, wanted });
            }
            archive::still_there(place, manifest).await
        };
        let silent = |_| Err(ArchiveError::Missing { place: known.place.clone() });
        Ok(tokio::time::timeout(STORE_MAX, standing).await.unwrap_or_else(silent)?)
    }
}

/// Every byte of the archive, which the tables would be the only other copy of.
async fn proven(dropping: Dropping<'_>, known: &Dropped) -> Result<(Place, Manifest), RetireError> {
    let Dropping { open, tell, stop: asked, .. } = dropping;
    let place = open(&known.place).map_err(ArchiveError::from)?;
    let missing = || ArchiveError::Missing { place: known.place.clone() };
    let (manifest, found) = archive::find(&place).await?.ok_or_else(missing)?;
    if found != known.manifest_sha256 {
        let wanted = known.manifest_sha256.clone();
        return Err(ArchiveError::Another { place: known.place.clone(), found, wanted }.into());
    }
    let proving = archive::verify(&place, &manifest, tell);
    stop::wait(asked, proving).await.map_err(ArchiveError::from)??;
    Ok((place, manifest))
}

async fn drop_in(
    transaction: &mut Transaction<'_>,
    again: Again<'_>,
    confirm: Option<&str>,
) -> Result<String, RetireError> {
    let Again { dropping: Dropping { job, .. }, known, fragment, epoch, .. } = again;
    let (slice, monolith, tables) = (job.work.slice, transaction.monolith, job.tables());
    let relations = transaction.read(&tables).await?;
    quarantine::lock(transaction, slice, &relations).await?;
    if transaction.read(&tables).await? != relations {
        return Err(RetireError::Raced);
    }
    if transaction.rows(retirement::only_in_epoch(slice, epoch)).await? == 0 {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    RetireError::unless_allowed(in_the_way_of_dropping(job, &relations, true).await?)?;
    again.has_nothing_else(transaction, &relations).await?;
    let store = STORE_MAX + Duration::from_secs(1);
    patiently(transaction, store.as_millis(), again.archive_stands()).await?;
    let places = places::read(monolith).await.map_err(RetireError::database("where old tables stand"))?;
    let of: Vec<_> = places.0.into_iter().filter(|place| place.slice == slice).collect();
    let publication = slices::read(monolith, slice).await?.map(|row| row.publication);
    let going: Vec<&Relation> = relations.iter().collect();
    drop_relations(transaction, (&of, &going), publication.as_deref()).await?;
    give_up_rights(transaction, slice).await?;
    let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
    let token = shown(&Sha256::digest(format!("drop again {epoch} {:?} {oids:?}", transaction.statements)));
    if confirm.is_some_and(|wanted| wanted != token) {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    let stage = format!("take stage dropped again: the archive's manifest is {}", known.manifest_sha256);
    let names: Vec<String> = relations.iter().map(|relation| relation.name.to_string()).collect();
    let dropped_ones = names.iter().map(|name| ("drop table".to_owned(), name.clone()));
    for (action, object) in dropped_ones.chain([(stage, known.place.clone())]) {
        transaction.run(retirement::tell(RETIRE, slice, (&action, &object), job.approved_by)).await?;
    }
    let forgotten = dropped::forget(slice, &abandonment::tables_of_slices(monolith).await?, &names);
    for sql in forgotten.into_iter().chain(withdrawal::drop_gate(slice)) {
        transaction.run(sql).await?;
    }
    let (archive, shown) = (archive_of(known), transaction.statements.len());
    transaction.run(dropped::note_on_monolith(noting(known, (&archive, fragment)))).await?;
    transaction.statements.truncate(shown);
    Ok(token)
}

/// What is written down of its archive, as far as that is noted again.
fn archive_of(known: &Dropped) -> Archive {
    Archive {
        epoch: known.epoch,
        place: known.place.clone(),
        manifest_sha256: known.manifest_sha256.clone(),
        reverse_lsn: known.reverse_lsn,
        way_back: known.leftover.reverse_slot.clone(),
        rows: 0,
        bytes: 0,
        at: known.archived_at.clone(),
    }
}

fn noting<'a>(known: &'a Dropped, (archive, fragment): (&'a Archive, &'a str)) -> Noting<'a> {
    Noting {
        slice: &known.slice,
        plan: &known.plan,
        service: &known.service,
        monolith: &known.monolith,
        token: &known.token,
        archive,
        leftover: &known.leftover,
        fragment,
    }
}

/// Tells a service, which was set back to before it knew, what the monolith has noted; the same command does what is left behind that, and
/// where it is cut off there, the stage is shown anew and goes on by the token of the drop. Its gate
/// is opened, where the state that was put back has it closed: nobody else has the authority.
///
/// # Errors
/// [`RetireError::Refused`] where the service does not have the slice; [`RetireError`].
pub(super) async fn tell(
    job: &Job<'_>,
    service: &Client,
    (noted, confirm): (&Dropped, Option<&str>),
) -> Result<Gone, RetireError> {
    let (slice, monolith) = (job.work.slice, &job.work.databases.monolith);
    let has_gate = slices::database_uuid(service).await.is_ok() && slices::has_gate(service, slice).await?;
    if !has_gate {
        return Err(RetireError::Refused { problems: vec![dropped::forgotten(noted)] });
    }
    let gate = slices::gate(service, slice).await?;
    let gate = gate.ok_or_else(|| RetireError::NotProvisioned { slice: slice.to_owned() })?;
    let token = telling(service, (noted, &gate)).await?;
    if confirm.is_some_and(|confirm| confirm != token) {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    let mut gone = Gone { token, ..begun(noted) };
    let words = "the service, which was set back to before it knew that they are dropped, is told, and its gate is open from then on: it has the \
                 authority with the rows that it has now";
    gone.behind.insert(0, words.to_owned());
    gone.problems.push(Problem { severity: crate::problem::Severity::Warning, ..dropped::forgotten(noted) });
    if confirm.is_some() {
        let fragment = dropped::fragment(monolith, slice).await?;
        let archive = archive_of(noted);
        let sql = dropped::tell_service(noting(noted, (&archive, &fragment)), &gate);
        leaving::transact((service, Some(job.service)), &sql).await?;
        failpoint::hit("drop-told");
    }
    Ok(gone)
}

/// Names what telling accepts: the service as it is now. The command that dropped the tables, typed again, must not stand for that, nor one that told
/// an earlier state of the service.
async fn telling(
    service: &Client,
    (noted, gate): (&Dropped, &slices::GateRow),
) -> Result<String, RetireError> {
    let identity = dropped::identity(service).await?;
    let started = service.query_one("SELECT pg_postmaster_start_time()::text", &[]).await;
    let started: String = started.map_err(RetireError::database("since when the service runs"))?.get(0);
    let what = (&noted.token, &noted.begun_at, identity, started, &gate.state, gate.epoch, &gate.owner);
    Ok(shown(&Sha256::digest(format!("tell the service {what:?}"))))
}
