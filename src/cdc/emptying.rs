//! Empties tables of the service that are to be copied again: once they would take their rows, and in nobody's way.

use std::time::Duration;

use tokio_postgres::Client;

use super::engine::{Rebuild, SliceConfig};
use super::error::MirrorError;
use super::launch::{Links, claim};
use super::record::Happened;
use super::sample::{self, Sample};
use super::start::{self, InUse, Starting};
use super::{beforehand, finish, source};
use crate::failpoint;
use crate::journal::authority;
use crate::journal::claims::{Claim, ClaimStatements};
use crate::journal::copies::{self, TableState};
use crate::journal::process::{self, Sighting};
use crate::journal::streams::{self, Direction, StreamRow, StreamState};
use crate::mapping::TableMapping;
use crate::postgres::connect::Session;
use crate::postgres::sqlstate;

/// New readers of a table wait behind whoever waits to empty it: no longer than an application bears.
pub(super) const LOCK_TIMEOUT_MS: u32 = 300;
/// They have all gone on by then.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether older transactions have ended.
const LOOK: Duration = Duration::from_millis(200);

/// `--retry`: empties tables and lets them be copied again. Their unique indexes besides the key's wait for the data
/// again, because pieces of different snapshots may break them for a while.
pub(super) async fn retry(
    config: &SliceConfig,
    links: &Links,
    claim: &Claim,
    (tables, order): (&[&TableMapping], &str),
) -> Result<(), MirrorError> {
    if tables.is_empty() {
        return Ok(());
    }
    defer_again(config, tables, claim.nonce).await?;
    begin_copies(config, links, claim, (tables, order), ("retry", Rebuild::Empty)).await?;
    links.target.batch_execute("COMMIT").await.map_err(MirrorError::sql("emptying tables"))?;
    config.recorder.anchor();
    failpoint::hit("emptied-for-copy");
    Ok(())
}

/// Lets what rows may break wait for the data again. Nobody waits long behind it.
async fn defer_again(config: &SliceConfig, tables: &[&TableMapping], nonce: i64) -> Result<(), MirrorError> {
    let slice = config.mapping.slice.as_str();
    let mut watcher = None;
    for table in tables {
        loop {
            match finish::defer_again(&config.admin, (slice, nonce), table, LOCK_TIMEOUT_MS).await {
                Err(error) if is_busy(&error) => {}
                ended => break ended?,
            }
            let client = match &mut watcher {
                Some(client) => &*client,
                none => &*none.insert(start::open(&config.admin, slice).await?),
            };
            give_way(config, (client, nonce), &[table]).await?;
        }
    }
    Ok(())
}

/// Opens a transaction under the claim that forgets what was copied of tables, and empties them where that is asked. Then each of them
/// has taken some of the monolith's rows in it, or the transaction is given up and they keep what they have. Tried as often as it
/// takes: the service's readers queue behind whoever waits to empty a table.
async fn begin_copies(
    config: &SliceConfig,
    links: &Links,
    claim: &Claim,
    (tables, order): (&[&TableMapping], &str),
    (cause, how): (&'static str, Rebuild),
) -> Result<(), MirrorError> {
    let target = &links.target;
    // Asked before anything is forgotten: what is settled to go has no other way on than a copy that is whole.
    let stuck = is_stuck(target, &claim.slice).await?;
    let statements = ClaimStatements::prepare(target, claim).await?;
    let mut samples = Vec::with_capacity(tables.len());
    for table in tables {
        samples.push((*table, sample::read(&links.source, table).await?));
    }
    let begun = loop {
        let ended = empty(target, (claim, &statements), (&samples, order), how).await;
        if let Some(begun) = unless_busy(config, (target, claim.nonce), tables, ended).await? {
            break begun;
        }
    };
    // Asked while the stream's row is held, which an opening needs: one that is under way meets whole copies, or waits and meets
    // the beginning of new ones.
    if !authority::is_open(&links.source, &claim.slice).await? {
        let settled = is_settled_to_go(config, &claim.slice).await?;
        if !(settled && stuck) {
            target.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("leaving tables as they are"))?;
            return Err(under_way(&claim.slice, settled));
        }
    }
    for (table, copy) in &begun {
        let happened = Happened::CopyAgain { table, cause, copy: *copy };
        config.recorder.write(target, Some(claim.applied), happened).await?;
    }
    Ok(())
}

/// A slice that can't be opened as it is: a table of it is no whole copy, or its stream can't bring what it lacks.
async fn is_stuck(target: &Client, slice: &str) -> Result<bool, MirrorError> {
    let position = streams::position(target, slice, Direction::Forward).await?;
    let runs = position.is_some_and(|position| position.state == StreamState::Running.as_str());
    Ok(!runs || !copies::not_live(target, slice).await?.is_empty())
}

/// The monolith is closed, and it is settled for ever that the slice goes: then nobody can give authority back to it, and nothing
/// changes in it, so that a copy of it is all that the service may be opened with. Whoever opens it finds tables that are not
/// copied yet, and does not.
async fn is_settled_to_go(config: &SliceConfig, slice: &str) -> Result<bool, MirrorError> {
    let Some(back) = &config.back else { return Ok(false) };
    let monolith = start::open(&back.admin, slice).await?;
    Ok(authority::is_settled_to_go(&monolith, slice).await?)
}

/// Between two sides that are both closed, a copy that is not whole would keep the service from being opened.
fn under_way(slice: &str, settled: bool) -> MirrorError {
    let next = if settled {
        format!(
            "strangler status PLAN --slice {slice}, which names the flip that ends it; it can't be taken back"
        )
    } else {
        format!(
            "strangler flip --abort PLAN --slice {slice}, which gives authority back; then the same command again"
        )
    };
    MirrorError::Refused {
        what: format!(
            "slice {slice} is closed in the monolith: a move of its authority is under way, and what the service has is all \
             that it may be opened with"
        ),
        next,
    }
}

/// Empties tables whose whole-table piece was interrupted: its snapshot is lost, so what it landed decides nothing. As for any
/// other emptying, nobody waits long behind it.
pub(super) async fn void_parts(
    config: &SliceConfig,
    target: &Session,
    claim: &Claim,
) -> Result<(), MirrorError> {
    let statements = ClaimStatements::prepare(target, claim).await?;
    for source_table in copies::tables_with_parts(target, &claim.slice).await? {
        let table = config.mapping.tables.iter().find(|table| table.source.to_string() == source_table);
        let Some(table) = table else { continue };
        let copy = loop {
            let ended = void(target, (claim, &statements), table).await;
            if let Some(copy) = unless_busy(config, (target, claim.nonce), &[table], ended).await? {
                break copy;
            }
        };
        let again = Happened::CopyAgain { table: &source_table, cause: "interrupted", copy };
        config.recorder.write(target, Some(claim.applied), again).await?;
        target.batch_execute("COMMIT").await.map_err(MirrorError::sql("emptying a half-copied table"))?;
        config.recorder.anchor();
        failpoint::hit("parts-voided");
    }
    Ok(())
}

/// One attempt, which leaves its transaction open. Returns the number of the next copy.
async fn void(
    target: &Client,
    (claim, statements): (&Claim, &ClaimStatements),
    table: &TableMapping,
) -> Result<i32, MirrorError> {
    begin(target, (claim, statements)).await?;
    start::empty_table(target, &table.target.sql(), InUse::GiveUp).await?;
    let copy = forget(target, &claim.slice, &table.source.to_string()).await?;
    wait_again(target).await?;
    Ok(copy)
}

/// One attempt. Returns the tables with the numbers of their copies. Whether they take rows is tried on empty ones, also where they get
/// theirs back to be compared.
async fn empty(
    target: &Client,
    (claim, statements): (&Claim, &ClaimStatements),
    (samples, order): (&[(&TableMapping, Sample)], &str),
    how: Rebuild,
) -> Result<Vec<(String, i32)>, MirrorError> {
    let run = async |sql: &str| target.batch_execute(sql).await.map_err(MirrorError::sql("trying rows"));
    begin(target, (claim, statements)).await?;
    let (mut emptied, mut refused) = (Vec::with_capacity(samples.len()), Vec::new());
    for (table, sample) in samples {
        let source = table.source.to_string();
        if how == Rebuild::Compare {
            run("SAVEPOINT trying").await?;
        }
        start::empty_table(target, &table.target.sql(), InUse::GiveUp).await?;
        refused.extend(sample::refused(target, table, sample.clone()).await?.map(|why| (*table, why)));
        let copy = match how {
            Rebuild::Empty => forget(target, &claim.slice, &source).await?,
            Rebuild::Compare => {
                run("ROLLBACK TO SAVEPOINT trying; RELEASE SAVEPOINT trying").await?;
                copies::delete_parts(target, &claim.slice, &source).await?;
                copies::keep(target, &claim.slice, &source).await?
            }
        };
        emptied.push((source, copy));
    }
    if !refused.is_empty() {
        target.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("leaving tables as they are"))?;
        return Err(beforehand::rows_refused(&claim.slice, &refused, order).into());
    }
    wait_again(target).await?;
    Ok(emptied)
}

/// Begins an attempt: a transaction under the claim in which no lock is waited for long.
async fn begin(target: &Client, (claim, statements): (&Claim, &ClaimStatements)) -> Result<(), MirrorError> {
    let begin = format!("BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}");
    target.batch_execute(&begin).await.map_err(MirrorError::sql("opening a transaction"))?;
    if claim.share(target, statements).await? { Ok(()) } else { Err(start::shut_out(target, claim).await) }
}

/// What comes now in an attempt's transaction is between the mirror's own tables.
async fn wait_again(target: &Client) -> Result<(), MirrorError> {
    target.batch_execute("SET LOCAL lock_timeout = 0").await.map_err(MirrorError::sql("emptying tables"))
}

/// Forgets what was copied of an empty table. Returns the number of its next copy.
async fn forget(target: &Client, slice: &str, source: &str) -> Result<i32, MirrorError> {
    copies::delete_parts(target, slice, source).await?;
    Ok(copies::set_without_pieces(target, slice, source, TableState::Pending, None).await?)
}

/// What came of an attempt, whose transaction stays open; nothing where it met somebody at the tables: it is given up then, and
/// comes again.
async fn unless_busy<T>(
    config: &SliceConfig,
    (target, nonce): (&Client, i64),
    tables: &[&TableMapping],
    ended: Result<T, MirrorError>,
) -> Result<Option<T>, MirrorError> {
    match ended {
        Err(error) if is_busy(&error) => {}
        ended => return ended.map(Some),
    }
    target.batch_execute("ROLLBACK").await.map_err(MirrorError::sql("giving way"))?;
    give_way(config, (target, nonce), tables).await?;
    Ok(None)
}

/// A lock was not to be had in time.
pub(super) fn is_busy(error: &MirrorError) -> bool {
    if let MirrorError::Sql { source, .. } = error {
        return sqlstate::is_lock_timeout(source);
    }
    let MirrorError::Journal(error) = error else { return false };
    error.database_error().is_some_and(sqlstate::is_lock_timeout)
}

/// Says whom emptying waits for, also to `status`, and lets those go first who queued behind it.
async fn give_way(
    config: &SliceConfig,
    (client, nonce): (&Client, i64),
    tables: &[&TableMapping],
) -> Result<(), MirrorError> {
    let names: Vec<String> = tables.iter().map(|table| table.target.sql()).collect();
    let who = source::lock_holder(client, &names).await?;
    let text = format!("a table of the service can't be emptied while it is in use: {who}");
    let sighting =
        Sighting { phase: "waiting".to_owned(), detail: Some(text.clone()), ..Sighting::default() };
    process::beat(client, config.of(), nonce, &sighting).await?;
    config.board.phase(config.of(), "waiting", Some(&text));
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// A new slot is there once every transaction has ended that runs now, and until then nothing can be copied into tables that
/// were emptied. So those that are long are waited for while the tables still have their rows.
async fn wait_for_older_transactions(
    source: &Client,
    tell: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), MirrorError> {
    let failed = || MirrorError::sql("waiting for transactions of the monolith");
    let ask = async |sql: &str| source.query_typed_one(sql, &[]).await.map(|row| row.get::<_, i64>(0));
    // A number of our own is younger than all that run now; a snapshot alone would leave out those after the last that ended.
    let begun = ask("SELECT pg_current_xact_id()::text::bigint").await.map_err(failed())?;
    while ask("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint").await.map_err(failed())? < begun
    {
        let who = source::oldest_transaction(source).await?;
        tell(&format!(
            "no table is emptied before running transactions of the monolith's cluster have ended: {who}"
        ));
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// `--rebuild`: gives the old slot back and starts over under a new one, with every table to be copied again where it differs.
pub(super) async fn rebuild(
    config: &SliceConfig,
    links: &mut Links,
    (starting, how): (Starting<'_>, Rebuild),
    row: StreamRow,
    identity: &streams::Source,
) -> Result<StreamRow, MirrorError> {
    start_over(config, links, (starting, how, None), row, identity).await
}

/// `--rebuild` of a stream that still watched when authority came home, and can't be turned: the slice is copied again, and the new
/// stream applies, at the epoch since which the monolith has the authority. Until then nobody can take it away from there, because
/// no fence is made without a stream that applies.
pub(super) async fn rebuild_at_home(
    config: &SliceConfig,
    links: &mut Links,
    (starting, how, epoch): (Starting<'_>, Rebuild, i64),
    row: StreamRow,
    identity: &streams::Source,
) -> Result<StreamRow, MirrorError> {
    start_over(config, links, (starting, how, Some(epoch)), row, identity).await
}

/// Forgets what was copied of all tables and gives the stream another slot to make; `home` is the epoch of a stream that begins to
/// apply by that.
async fn start_over(
    config: &SliceConfig,
    links: &mut Links,
    (starting, how, home): (Starting<'_>, Rebuild, Option<i64>),
    row: StreamRow,
    identity: &streams::Source,
) -> Result<StreamRow, MirrorError> {
    let slice = starting.slice;
    let tables: Vec<&TableMapping> = config.mapping.tables.iter().collect();
    let copied = (tables.as_slice(), how.typed());
    beforehand::check((&links.source, &links.target), &config.mapping, copied).await?;
    let tell = |text: &str| config.board.phase(config.of(), "waiting", Some(text));
    start::wait_for_slot(&links.source, &row.slot, &tell).await?;
    wait_for_older_transactions(&links.source, &tell).await?;
    defer_again(config, &tables, row.nonce).await?;
    let claim = claim(config, &row, row.applied);
    // One transaction: a stream that starts anew over tables that still count as copied would lose every change
    // between the two slots.
    begin_copies(config, links, &claim, copied, ("rebuild", how)).await?;
    // The old slot goes before the commit: a crash after it leaves a stream in a gap, never a slot that nobody knows of. It goes
    // when nothing refuses the copy any more: without it nothing but a copy brings the slice on.
    if source::slot(&links.source, &row.slot).await?.is_some() {
        links.replication.drop_slot(&row.slot).await?;
        failpoint::hit("rebuild-slot-dropped");
    }
    let slot = start::slot_name(starting.plan, slice);
    let (of, anew) = ((slice, row.nonce), (slot.as_str(), identity));
    let begun = match home {
        Some(epoch) => streams::reset_at_home(&links.target, of, anew, epoch).await?,
        None => streams::reset(&links.target, slice, row.nonce, &slot, identity).await?,
    };
    if !begun {
        return Err(MirrorError::Fenced { slice: slice.to_owned() });
    }
    links.target.batch_execute("COMMIT").await.map_err(MirrorError::sql("starting the slice over"))?;
    config.recorder.anchor();
    failpoint::hit("rebuild-reset");
    reread(config, &links.target).await
}

/// The stream's row as it was just written.
pub(super) async fn reread(config: &SliceConfig, target: &Client) -> Result<StreamRow, MirrorError> {
    let fresh = streams::read(target, config.of()).await?;
    let slice = &config.mapping.slice;
    fresh.ok_or_else(|| MirrorError::Unreadable { what: format!("the stream row of slice {slice}") })
}
