//! Old tables that are dropped, where one of the two databases does not know it any more, because an earlier state of it was put back: the
//! monolith has them again, or the service was never told.

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::dropping::{DROPPING, Dropping, Gone, begun, drop_relations, give_up_rights, service_of};
use super::gather::RetireError;
use super::leaving;
use super::quarantine;
use super::revoke::Transaction;
use super::rights::Relation;
use super::run::{Job, in_the_way_of_dropping, itself, shown, within};
use crate::archive::{self, ArchiveError};
use crate::failpoint;
use crate::journal::archives::Archive;
use crate::journal::dropped::{self, Dropped, Noting};
use crate::journal::ledger::RETIRE;
use crate::journal::retirement;
use crate::journal::{abandonment, slices};
use crate::postgres::places;
use crate::problem::Problem;
use crate::provision::withdrawal;
use crate::reconcile::stop;

/// Drops tables that came back with an earlier state of the monolith. The gate must have been closed ever since then, in an epoch that is
/// none after the one in which they were dropped: so nobody has written there but the way back, and the service and the archive have
/// what they hold. Without `confirm` the transaction is made and rolled back.
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
    proven(dropping, known).await?;
    let fragment = dropped::fragment(service_of(job)?, slice).await?;
    let take = async |transaction: &mut Transaction<'_>| {
        Box::pin(drop_in(transaction, (job, known), (&fragment, fenced.epoch), confirm)).await
    };
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

/// Every byte of the archive, which the tables would be the only other copy of.
async fn proven(dropping: Dropping<'_>, known: &Dropped) -> Result<(), RetireError> {
    let Dropping { open, tell, stop: asked, .. } = dropping;
    let place = open(&known.place).map_err(ArchiveError::from)?;
    let missing = || ArchiveError::Missing { place: known.place.clone() };
    let (manifest, found) = archive::find(&place).await?.ok_or_else(missing)?;
    if found != known.manifest_sha256 {
        let wanted = known.manifest_sha256.clone();
        return Err(ArchiveError::Another { place: known.place.clone(), found, wanted }.into());
    }
    let proving = archive::verify(&place, &manifest, tell);
    Ok(stop::wait(asked, proving).await.map_err(ArchiveError::from)??)
}

async fn drop_in(
    transaction: &mut Transaction<'_>,
    (job, known): (&Job<'_>, &Dropped),
    (fragment, epoch): (&str, i64),
    confirm: Option<&str>,
) -> Result<String, RetireError> {
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

/// Tells a service, which was set back to before it knew, what the monolith has noted; the same command does what is left behind that. Its gate
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
    if confirm.is_some_and(|confirm| confirm != noted.token) {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    let mut gone = begun(noted);
    let words = "the service, which was set back to before it knew that they are dropped, is told, and its gate is open from then on: it has the \
                 authority with the rows that it has now";
    gone.behind.insert(0, words.to_owned());
    gone.problems.push(Problem { severity: crate::problem::Severity::Warning, ..dropped::forgotten(noted) });
    if confirm.is_some() {
        let fragment = dropped::fragment(monolith, slice).await?;
        let archive = archive_of(noted);
        let sql = dropped::tell_service(noting(noted, (&archive, &fragment)));
        leaving::transact((service, Some(job.service)), &sql).await?;
        failpoint::hit("drop-told");
    }
    Ok(gone)
}
