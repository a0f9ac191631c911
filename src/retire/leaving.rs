//! What is left of a slice between the two databases once its old tables are dropped, and how it goes. Every step looks at what is there,
//! and does nothing where that is nothing.

use std::time::Duration;

use tokio_postgres::Client;

use super::gather::RetireError;
use super::run::{Job, tell, watched};
use crate::failpoint;
use crate::journal::abandonment;
use crate::journal::dropped::{self, Dropped, Leftover};
use crate::journal::migrate::{self, Form};
use crate::journal::streams::{self, StreamOf};
use crate::name::{quote_ident, quote_literal};
use crate::postgres::connect::idle_limit;
use crate::postgres::sqlstate;
use crate::provision::withdrawal;

/// How long one statement waits for a lock, in milliseconds: an application is at the service's tables, and waits behind it.
const LOCK_MS: u32 = 500;

/// How often that is tried, and the pause between two tries, which lets everybody pass.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_millis(500);

/// How long a server gets to end a session that reads a slot which is to go, in milliseconds.
const END_WAIT_MS: i64 = 2_000;

/// How long the old tables are held locked for the service to write down that they are to be dropped, and how much longer until the
/// monolith's server ends a session that has not gone on by then. In milliseconds.
const NOTE_MS: u32 = 2_000;
const NOTE_LEFT_MS: u32 = 1_000;
/// How long one statement of that may take, so that the service mostly says itself that it took too long.
const STATEMENT_MS: u32 = 1_500;

/// Why nothing was written down, where nobody knows whether it was.
pub(super) const SILENT: &str = "it does not answer";

/// What it is, in words.
pub(super) fn words(leftover: &Leftover) -> Vec<String> {
    let of = |what: &str, name: &Option<String>, place: &str| {
        name.as_ref().map(|name| format!("{what} {name} in the {place}"))
    };
    let named = [
        of("replication slot", &leftover.forward_slot, "monolith, which is no part of any transaction"),
        of("replication slot", &leftover.reverse_slot, "service, which is no part of any transaction"),
        of("publication", &leftover.reverse_publication, "service"),
    ];
    let last = [
        "the gate's triggers on the service's tables, which are ordinary tables then".to_owned(),
        "with the last slice of every plan: the schema strangler in the monolith, and the role strangler_apply, where it was made from there and \
         nothing on the server needs it"
            .to_owned(),
    ];
    named.into_iter().flatten().chain(last).collect()
}

/// Takes all of it away, and tells the ledger.
///
/// # Errors
/// [`RetireError`]; what was taken away stays so, and the next run takes the rest.
pub(super) async fn finish(
    (job, slots): (&Job<'_>, &Client),
    service: &Client,
    known: &Dropped,
) -> Result<(), RetireError> {
    let (slice, monolith) = (job.work.slice, &job.work.databases.monolith);
    let Leftover { forward_slot, reverse_slot, reverse_publication } = &known.leftover;
    let here = (service, Some(job.service));
    transact(here, &[dropped::shut_out_mirrors(slice)]).await?;
    failpoint::hit("drop-mirrors-stopped");
    // The stream may have got another one since that was written down; who makes it asks behind that, and drops it himself.
    let now = streams::read(service, StreamOf::forward(slice)).await?.map(|row| row.slot);
    for slot in forward_slot.iter().chain(now.iter().filter(|slot| Some(*slot) != forward_slot.as_ref())) {
        drop_slot((slots, slots), slot).await?;
        failpoint::hit("drop-forward-slot");
    }
    if let Some(slot) = reverse_slot {
        // A mirror reads it as who applies there, and so may that role alone end it.
        drop_slot((service, job.service), slot).await?;
        failpoint::hit("drop-reverse-slot");
    }
    let mut sql = dropped::hinges(service, slice).await?;
    if let Some(name) = reverse_publication {
        sql.push(format!("DROP PUBLICATION IF EXISTS {}", quote_ident(name)));
    }
    sql.extend(dropped::clear_service(slice));
    transact(here, &sql).await?;
    failpoint::hit("drop-service-cleared");
    if migrate::form(monolith).await? != Form::Absent {
        tell(job.work, super::dropping::DROPPING).await?;
        transact((monolith, Some(job.work.watch)), &[dropped::end(slice)]).await?;
        failpoint::hit("drop-ended-on-monolith");
        Box::pin(schema(job, service)).await?;
    }
    transact(here, &[dropped::end(slice)]).await?;
    failpoint::hit("drop-ended");
    Ok(())
}

/// Whether something of the slice, or our schema, is still in a monolith that has noted that its tables are dropped: an earlier state of it
/// was put back.
///
/// # Errors
/// [`RetireError`].
pub(super) async fn is_left(job: &Job<'_>, known: &Dropped) -> Result<bool, RetireError> {
    let monolith = &job.work.databases.monolith;
    if migrate::form(monolith).await? == Form::Absent {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1::text AND database = current_database())";
    let row = monolith.query_one(sql, &[&known.leftover.forward_slot]).await;
    let slot: bool = row.map_err(RetireError::database("the replication slots"))?.get(0);
    let noted = dropped::read(monolith, &known.slice).await?;
    Ok(slot || noted.is_some_and(|noted| noted.ended_at.is_none()) || is_last(job).await?)
}

/// Whether nobody needs our schema in the monolith any more: no slice of any plan has a side there, this plan has no more to come, and
/// of no other slice is anything left to do behind its tables.
async fn is_last(job: &Job<'_>) -> Result<bool, RetireError> {
    let (slice, monolith) = (job.work.slice, &job.work.databases.monolith);
    let gone = dropped::all(monolith).await?;
    let more = |slice: &String| gone.iter().all(|dropped| dropped.slice != *slice);
    let begun = gone.iter().any(|dropped| dropped.slice != slice && dropped.ended_at.is_none());
    Ok(!begun && !dropped::has_slices(monolith).await? && !job.work.plan.slices.keys().any(more))
}

/// With the last slice of every plan our schema goes from the monolith.
async fn schema(job: &Job<'_>, service: &Client) -> Result<(), RetireError> {
    let (slice, monolith) = (job.work.slice, &job.work.databases.monolith);
    if !is_last(job).await? {
        return Ok(());
    }
    let foreign = abandonment::foreign(monolith).await?;
    if !foreign.is_empty() {
        return Err(RetireError::Used { objects: foreign.join(", ") });
    }
    let journal = dropped::journal(monolith).await?;
    dropped::keep_journal(service, slice, &journal).await?;
    failpoint::hit("drop-journal-kept");
    let failed = || RetireError::database("the server's version");
    let major = "SELECT current_setting('server_version_num')::int4 / 10000";
    let major: i32 = monolith.query_typed_one(major, &[]).await.map_err(failed())?.get(0);
    let others = abandonment::others(monolith, slice).await?;
    let roles = (others.made_role, others.quieted);
    let mut sql = vec![dropped::forget_on_monolith()];
    sql.extend(withdrawal::drop_schema(true, roles, u32::try_from(major).unwrap_or(0)));
    transact((monolith, Some(job.work.watch)), &sql).await?;
    failpoint::hit("drop-schema-gone");
    Ok(())
}

/// Runs statements in one transaction, once more where somebody holds what they need. `watch` is another session of the same database, to
/// see who that is.
///
/// # Errors
/// [`RetireError::Step`], [`RetireError::Left`]; nothing of them was done.
pub(super) async fn transact(
    (client, watch): (&Client, Option<&Client>),
    sql: &[String],
) -> Result<(), RetireError> {
    let text = format!("BEGIN; SET LOCAL lock_timeout = {LOCK_MS}; {}; COMMIT", sql.join("; "));
    let process = client.query_typed_one("SELECT pg_backend_pid()", &[]).await;
    let process: i32 = process.map_err(RetireError::database("which session it is"))?.get(0);
    let mut who = None;
    for _ in 0..TRIES {
        let doing = client.batch_execute(&text);
        let (done, seen) = match watch {
            Some(watch) => watched((watch, process), doing).await,
            None => (doing.await, None),
        };
        who = seen.or(who);
        let Err(source) = done else { return Ok(()) };
        let _ = client.batch_execute("ROLLBACK").await;
        if !sqlstate::is_lock_timeout(&source) && !sqlstate::is_concurrent_change(&source) {
            return Err(RetireError::Step { sql: sql.join("; "), source });
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(RetireError::Left {
        what: format!(
            "{} holds what is needed: {}",
            who.unwrap_or_else(|| "somebody else's transaction".to_owned()),
            sql.join("; ")
        ),
    })
}

/// Has the service write down that the tables are to be dropped, while the monolith's transaction stands open behind its locks. Whoever needs
/// the tables waits for no longer than that may take, whatever becomes of the service, of this process or of the links between.
///
/// # Errors
/// [`RetireError::Unnoted`], or what the service said. Where no answer came the service may have done it.
pub(super) async fn note((monolith, service): (&Client, &Client), sql: &[String]) -> Result<(), RetireError> {
    let limit = format!("SET LOCAL idle_in_transaction_session_timeout = {}", NOTE_MS + NOTE_LEFT_MS);
    let limited = monolith.batch_execute(&limit).await;
    limited.map_err(RetireError::database("how long the service may take"))?;
    let text = format!(
        "BEGIN; SET LOCAL lock_timeout = {LOCK_MS}; SET LOCAL statement_timeout = {STATEMENT_MS}; {}; COMMIT",
        sql.join("; ")
    );
    let limit = Duration::from_millis(NOTE_MS.into());
    let noted = tokio::time::timeout(limit, service.batch_execute(&text)).await;
    let unnoted = |why: &str| RetireError::Unnoted { limit, why: why.to_owned() };
    let source = match noted {
        Err(_) => return Err(unnoted(SILENT)),
        Ok(Ok(())) => {
            let limited = monolith.batch_execute(&idle_limit()).await;
            return limited.map_err(RetireError::database("how long a transaction may be idle"));
        }
        Ok(Err(source)) => source,
    };
    let _ = tokio::time::timeout(limit, service.batch_execute("ROLLBACK")).await;
    if sqlstate::is_lock_timeout(&source) || sqlstate::is_concurrent_change(&source) {
        return Err(unnoted("somebody else's transaction there holds the slice's gate, or our tables"));
    }
    // A statement that was cancelled.
    if sqlstate::code(&source) == Some("57014") {
        return Err(unnoted("it takes longer"));
    }
    Err(RetireError::Statement { sql: sql.join("; "), owner: None, source })
}

/// Drops a slot, and ends the session that reads it, as either of the two. Does nothing where there is none.
async fn drop_slot((client, reader): (&Client, &Client), slot: &str) -> Result<(), RetireError> {
    let failed = || RetireError::database("the replication slots");
    let sql =
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()";
    for _ in 0..TRIES {
        let Some(row) = client.query_opt(sql, &[&slot]).await.map_err(failed())? else { return Ok(()) };
        if let Some(pid) = row.get::<_, Option<i32>>(0) {
            let end = "SELECT pg_terminate_backend($1, $2)";
            if client.execute(end, &[&pid, &END_WAIT_MS]).await.is_err()
                && reader.execute(end, &[&pid, &END_WAIT_MS]).await.is_err()
            {
                tokio::time::sleep(PAUSE).await;
            }
        }
        let drop = format!("SELECT pg_drop_replication_slot({})", quote_literal(slot));
        match client.batch_execute(&drop).await {
            Ok(()) => return Ok(()),
            // Whoever was ended may have been quicker, or a reader come back.
            Err(error) if matches!(sqlstate::code(&error), Some("42704" | "55006")) => {}
            Err(source) => return Err(RetireError::Step { sql: drop, source }),
        }
    }
    Err(RetireError::Left { what: format!("slot {slot}, which somebody reads who can't be ended") })
}
