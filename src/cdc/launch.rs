//! Brings one slice's engine up: claims the stream, makes or checks the slot, restores the tables, starts the stream.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::apply::Applier;
use super::back;
use super::batch::{Batch, Boundary};
use super::beforehand;
use super::copying::{Copying, ROWS_PER_RANGE_FIRST};
use super::emptying;
use super::engine::{Engine, Rebuild, SliceConfig};
use super::error::MirrorError;
use super::headroom;
use super::lineage;
use super::located;
use super::meanings;
use super::publication::{self, Named, Published};
use super::pulse::Vitals;
use super::record::Happened;
use super::repair::Repairs;
use super::retired;
use super::rewatch;
use super::rights;
use super::route::Router;
use super::source;
use super::stand_ins;
use super::start::{self, Both, Fault, Memory, ProcessName, Standstill, Starting, open};
use super::stream::Assembler;
use super::table::{TableRun, Target, choose_kept_ranges, choose_ranges};
use super::tripwire::Strays;
use super::watch;
use crate::failpoint;
use crate::failpoint::hooks::Mutant;
use crate::journal::authority;
use crate::journal::claims::Claim;
use crate::journal::copies::{self, TableRow, TableState};
use crate::journal::ledger;
use crate::journal::process;
use crate::journal::streams::{self, Direction, Mode, StreamRow, StreamState};
use crate::lsn::Lsn;
use crate::mapping::TableMapping;
use crate::name::TableName;
use crate::postgres::connect::Session;
use crate::postgres::replication::{Connection, StreamOptions, SystemIdentity};
use crate::problem::arm_anew;
use crate::words::shell_word;

/// The sessions of a start.
pub(super) struct Links {
    pub(super) source: Session,
    pub(super) target: Session,
    pub(super) replication: Connection,
    system: SystemIdentity,
}

/// Starts and runs a slice's engine until it is stopped or fails. `memory` lasts as long as the process: at its first
/// start another live mirror is a refusal, at later ones another mirror that took over is.
///
/// # Errors
/// [`MirrorError`].
pub async fn run_once(
    config: &SliceConfig,
    process: &ProcessName,
    memory: &mut Memory,
    stop: &CancellationToken,
) -> Result<(), MirrorError> {
    match start_and_run(config, process, memory, stop).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let error = Box::pin(retired::explain(config, error)).await;
            let error = match memory.located.take() {
                Some(known) => located::explain(config, &known, error).await,
                None => error,
            };
            Err(rights::explain((config, &order(memory)), error).await)
        }
    }
}

/// What was typed to have tables copied again and is not done yet.
fn order(memory: &Memory) -> String {
    let rebuild = memory.rebuild.map(|how| format!(" {}", how.typed()));
    rebuild.into_iter().chain(memory.retry.iter().map(retry)).collect()
}

fn retry(table: &TableName) -> String {
    format!(" --retry {}", shell_word(&table.to_string()))
}

async fn start_and_run(
    config: &SliceConfig,
    process: &ProcessName,
    memory: &mut Memory,
    stop: &CancellationToken,
) -> Result<(), MirrorError> {
    // Before the engine runs nothing is held that a dropped future could leave half done: every step of a start is
    // one that a crash may follow.
    let (engine, slot) = tokio::select! {
        prepared = prepare(config, process, memory) => prepared?,
        () = stop.cancelled() => return Err(MirrorError::Stopped),
    };
    let (publication, mode, nonce) = (engine.publication.clone(), engine.applier.claim().mode, engine.nonce);
    let named = named(config, (&publication, mode), Some(slot.as_str()));
    let Err(error) = Box::pin(engine.run(slot.clone(), stop)).await else { return Ok(()) };
    if let MirrorError::Overfull = error {
        let letting_go = let_slot_go(config, nonce);
        return Err(tokio::select! {
            let_go = letting_go => let_go?,
            () = stop.cancelled() => MirrorError::Stopped,
        });
    }
    // `arm` and `disarm` shut a running way back out, too: the next start finds out who did.
    if config.direction == Direction::Reverse && matches!(error, MirrorError::Fenced { .. }) {
        return Err(MirrorError::Turned { slice: config.mapping.slice.clone() });
    }
    Err(publication::explain(error, named))
}

fn named<'a>(
    config: &'a SliceConfig,
    (publication, mode): (&'a str, Mode),
    slot: Option<&'a str>,
) -> Named<'a> {
    Named { publication, slice: &config.mapping.slice, direction: config.direction, mode, slot }
}

async fn prepare(
    config: &SliceConfig,
    process: &ProcessName,
    memory: &mut Memory,
) -> Result<(Engine, String), MirrorError> {
    let (slice, standstill) = (config.mapping.slice.as_str(), memory.standstill.clone());
    show_start(config, standstill.as_ref());
    let mut links = connect(config).await?;
    let starting = Starting {
        plan: &config.plan,
        slice,
        direction: config.direction,
        mapping: &config.mapping,
        process,
    };
    let both = Both::of(config.direction, &links.source, &links.target);
    start::check_links(both, (starting, &config.mapping.service)).await?;
    let config = &located::located(config, both.monolith).await?;
    memory.located = Some(Arc::clone(&config.mapping));
    if config.direction == Direction::Forward {
        start::check_version(config, memory).await?;
        let wanted = config.mapping.tables.iter().map(|table| &table.source);
        start::check_tables(&links.target, slice, wanted).await?;
    }
    let provisioned = start::check_provisioned(both, starting).await?;
    let publication = match (config.direction, &provisioned.row) {
        (Direction::Reverse, Some(row)) => row.publication.clone(),
        (Direction::Forward | Direction::Reverse, _) => provisioned.publication.clone(),
    };
    let rebuild = memory.rebuild.filter(|_| config.direction == Direction::Forward);
    check_tables(config, (&links.target, provisioned.row.as_ref())).await?;
    let published = check_published(config, &links, (&publication, provisioned.row.as_ref())).await?;
    if !memory.started {
        start::check_alone(&links.target, starting, config.options.take_over).await?;
        config.recorder.note_plan(both.service, config.direction).await?;
    } else {
        // The session of the last run may still hold it for a moment; the nonce decides.
        let _ = process::try_lock(&links.target, slice).await?;
    }
    let identity = start::identify(&links.source, &links.system).await?;
    let row = start::claim_stream(
        &links.target,
        starting,
        (provisioned.epoch, &publication, &provisioned.life),
        &identity,
        (memory, &config.admin),
    )
    .await?;
    located::still(config, &links).await?;
    let row = match rebuild {
        Some(how) => begin_anew(config, (&mut links, &published), (starting, how), row, &identity).await?,
        None => row,
    };
    memory.rebuild = memory.rebuild.filter(|_| rebuild.is_none());
    let applied = prepare_slot(config, &mut links, &row, (&identity, &provisioned.life)).await?;
    let claim = claim(config, &row, applied);
    if claim.direction == Direction::Forward && claim.mode == Mode::Tripwire {
        forget_retries(slice, memory);
    }
    if claim.direction == Direction::Reverse && claim.mode == Mode::Apply {
        meanings::check((&links.target, &links.source), &config.mapping, Direction::Reverse).await?;
    }
    if claim.direction == Direction::Forward && claim.mode == Mode::Apply {
        copy_anew(config, (&links, &publication), &claim, memory).await?;
    }
    let names = (row.slot.as_str(), publication.as_str());
    let mut engine = bring_up(config, links, names, (claim, published, identity.uuid)).await?;
    if let Some(Standstill { phase, why }) = &standstill {
        engine.vitals.set_phase(phase, Some(why));
    }
    engine.standstill = standstill.map(|standstill| (standstill, applied));
    engine.in_vain = Arc::clone(&memory.in_vain);
    Ok((engine, row.slot))
}

fn show_start(config: &SliceConfig, standstill: Option<&Standstill>) {
    match standstill {
        Some(Standstill { phase, why }) => config.board.phase(config.of(), phase, Some(why)),
        None => config.board.phase(config.of(), "starting", None),
    }
}

/// `--rebuild`, by what the stream is for.
async fn begin_anew(
    config: &SliceConfig,
    (links, published): (&mut Links, &Published),
    (starting, how): (Starting<'_>, Rebuild),
    row: StreamRow,
    identity: &streams::Source,
) -> Result<StreamRow, MirrorError> {
    match row.mode {
        Mode::Apply => emptying::rebuild(config, links, (starting, how), row, identity).await,
        Mode::Tripwire => {
            let (slice, here) = (starting.slice, (&*links.source, &*links.target));
            match rewatch::home(here, slice).await? {
                Some(epoch) if !rewatch::is_whole(links, published, (slice, &row)).await? => {
                    stand_ins::check(&links.target, &config.mapping, config.direction).await?;
                    emptying::rebuild_at_home(config, links, (starting, how, epoch), row, identity).await
                }
                Some(_) | None => rewatch::begin(config, (links, published), starting, row, identity).await,
            }
        }
        Mode::Off => Ok(row),
    }
}

/// What was typed while the service's tables are the truth must not empty them when authority has come home.
fn forget_retries(slice: &str, memory: &mut Memory) {
    if !memory.retry.is_empty() {
        tracing::warn!(
            slice,
            "--retry copies nothing: the slice belongs to its service, whose tables are no copies"
        );
    }
    memory.retry.clear();
}

/// What the stream would write into are tables.
async fn check_tables(
    config: &SliceConfig,
    (target, row): (&Session, Option<&StreamRow>),
) -> Result<(), MirrorError> {
    if row.is_none_or(|row| row.mode == Mode::Apply) {
        stand_ins::check(target, &config.mapping, config.direction).await?;
    }
    Ok(())
}

pub(super) fn claim(config: &SliceConfig, row: &StreamRow, applied: Lsn) -> Claim {
    Claim {
        slice: config.mapping.slice.clone(),
        direction: config.direction,
        mode: row.mode,
        nonce: row.nonce,
        epoch: row.epoch,
        applied,
    }
}

/// What an interrupted copy left half done, what the operator wants copied again, and what happened while nobody looked:
/// only where the service's tables are copies may they be judged by it.
async fn copy_anew(
    config: &SliceConfig,
    (links, publication): (&Links, &str),
    claim: &Claim,
    memory: &mut Memory,
) -> Result<(), MirrorError> {
    let again: Vec<&TableMapping> =
        config.mapping.tables.iter().filter(|table| memory.retry.contains(&table.source)).collect();
    let retries: Vec<String> = again.iter().map(|table| retry(&table.source)).collect();
    let order = retries.concat().trim_start().to_owned();
    beforehand::check((&links.source, &links.target), &config.mapping, (&again, &order)).await?;
    if !config.options.hooks.mutant(Mutant::PartsKept) {
        emptying::void_parts(config, &links.target, claim).await?;
    }
    emptying::retry(config, links, claim, (&again, &order)).await?;
    memory.retry.clear();
    let site = watch::Site {
        source: &links.source,
        target: &links.target,
        slice: &claim.slice,
        nonce: claim.nonce,
        publication,
        mapping: &config.mapping,
        recorder: &config.recorder,
    };
    watch::at_start(site).await
}

async fn connect(config: &SliceConfig) -> Result<Links, MirrorError> {
    let slice = config.mapping.slice.as_str();
    let source = open(&config.read, slice).await?;
    let target = open(&config.apply, slice).await?;
    let mut replication = config.read.replicate(&start::application_name(slice)).await?;
    let system = replication.identify_system().await?;
    Ok(Links { source, target, replication, system })
}

/// Makes the slot of a new stream, or checks the one of an older stream. Returns the applied position.
async fn prepare_slot(
    config: &SliceConfig,
    links: &mut Links,
    row: &StreamRow,
    (identity, life): (&streams::Source, &str),
) -> Result<Lsn, MirrorError> {
    let slice = config.mapping.slice.as_str();
    let tell = |text: &str| config.board.phase(config.of(), "waiting", Some(text));
    match row.state {
        StreamState::Creating if config.direction == Direction::Reverse => {
            Err(MirrorError::NotArmed { slice: slice.to_owned() })
        }
        StreamState::Creating => {
            tell("the new replication slot waits for running transactions of the monolith's cluster");
            start::wait_for_slot(&links.source, &row.slot, &tell).await?;
            let Links { source, replication, target, .. } = links;
            let begun = start::create_slot(source, replication, target, (slice, life, row), &tell).await;
            if !matches!(begun, Ok(Some(_)))
                && let Ok(target) = open(&config.apply, slice).await
                && let Ok(source) = open(&config.read, slice).await
            {
                start::give_back(replication, (&source, &target), (slice, &row.slot)).await;
            }
            match begun? {
                Some(start) => Ok(start),
                None => Err(rewatch::not_begun(config, (source, target), row).await),
            }
        }
        StreamState::Gap | StreamState::Diverged => {
            // Whoever noted it may have died before the ledger of the other database was told.
            let detail = row.detail.as_deref().unwrap_or_default();
            let both = Both::of(config.direction, &links.source, &links.target);
            let happened = broken(config, row.state, detail, row);
            config.recorder.explained();
            config.recorder.write_if_possible(both.service, Some(row.applied), happened).await;
            Err(refuse(config, links, row, row.detail.as_deref()).await)
        }
        StreamState::Running => {
            start::wait_for_slot(&links.source, &row.slot, &tell).await?;
            let slot = source::slot(&links.source, &row.slot).await?;
            // What was read before the claim may be older than the row: whoever had the stream until then has applied more,
            // which must not look like a source that was set back.
            links.system = links.replication.identify_system().await?;
            let moved = i32::try_from(links.system.timeline) != Ok(row.source.timeline);
            let history = if moved {
                links.replication.timeline_history(links.system.timeline).await?
            } else {
                Vec::new()
            };
            let (of, stream) = (config.of(), (row, config.direction));
            let database = (identity.database_oid, identity.uuid.as_str());
            let fault = start::find_fault(stream, &links.system, database, slot.as_ref(), &history);
            let fault = match fault {
                None => {
                    let lacks = lineage::set_back((&links.source, &links.target), of, &row.slot).await?;
                    lacks.map(|detail| Fault { state: StreamState::Diverged, detail })
                }
                fault => fault,
            };
            if let Some(fault) = fault {
                note_fault(config, links, row, &fault).await?;
                return Err(refuse(config, links, row, Some(&fault.detail)).await);
            }
            if moved {
                let timeline = i32::try_from(links.system.timeline).unwrap_or(i32::MAX);
                streams::set_timeline(&links.target, of, row.nonce, timeline).await?;
                failpoint::hit("timeline-recorded");
            }
            Ok(row.applied)
        }
    }
}

/// Drops the slice's own slot, for which the monolith holds too much WAL, and notes the gap. What was seen may be over by now, and whoever
/// has the stream or the authority may be another one: then nothing is dropped.
async fn let_slot_go(config: &SliceConfig, nonce: i64) -> Result<MirrorError, MirrorError> {
    const OVER: MirrorError = MirrorError::Restart {
        why: "the monolith's WAL was near its limit, and is not, or not this mirror's to drop",
    };
    let slice = config.mapping.slice.as_str();
    let mut links = connect(config).await?;
    let ours = async |target: &Session| -> Result<Option<StreamRow>, MirrorError> {
        let row = streams::read(target, config.of()).await?;
        let is_ours = |row: &StreamRow| {
            row.nonce == nonce && row.state == StreamState::Running && row.mode == Mode::Apply
        };
        Ok(row.filter(is_ours))
    };
    let tell = |text: &str| config.board.phase(config.of(), "waiting", Some(text));
    // A session that holds the slot is ended: it may only be this mirror's own.
    let Some(row) = ours(&links.target).await? else { return Ok(OVER) };
    start::wait_for_slot(&links.source, &row.slot, &tell).await?;
    let slot = source::slot(&links.source, &row.slot).await?;
    let full = slot.filter(|slot| config.wal.gives_up(slot.held_bytes, slot.safe_bytes));
    let open = authority::is_open(&links.source, slice).await?;
    let (Some(slot), true, Some(row)) = (full, open, ours(&links.target).await?) else { return Ok(OVER) };
    let detail = headroom::dropped_words(&row.slot, (slot.held_bytes, slot.safe_bytes), config.wal);
    tracing::error!(slice, slot = row.slot, held_bytes = slot.held_bytes, "{detail}");
    // Before it is noted: a mirror that starts behind a crash finds that its slot is gone, which is a gap, too. The other way round a
    // gap would be noted, and the slot would hold WAL for ever.
    links.replication.drop_slot(&row.slot).await?;
    failpoint::hit("slot-let-go");
    note_fault(config, &links, &row, &Fault { state: StreamState::Gap, detail: detail.clone() }).await?;
    Ok(refuse(config, &links, &row, Some(&detail)).await)
}

/// Notes in a stream's row that it can't go on, and tells the ledger, which is in the same database for the way there.
async fn note_fault(
    config: &SliceConfig,
    links: &Links,
    row: &StreamRow,
    fault: &Fault,
) -> Result<(), MirrorError> {
    let (of, detail) = (config.of(), fault.detail.as_str());
    let happened = broken(config, fault.state, detail, row);
    config.recorder.explained();
    ledger::transaction(&links.target, async || {
        let noted = streams::set_state(&links.target, of, row.nonce, fault.state, Some(detail)).await?;
        match config.direction {
            Direction::Forward if noted.is_some() => {
                config.recorder.write(&links.target, Some(row.applied), happened).await
            }
            Direction::Forward | Direction::Reverse => Ok(()),
        }
    })
    .await?;
    failpoint::hit("fault-recorded");
    match config.direction {
        Direction::Forward => config.recorder.anchor(),
        Direction::Reverse => {
            config.recorder.write_if_possible(&links.source, Some(row.applied), happened).await;
        }
    }
    Ok(())
}

fn broken<'a>(config: &SliceConfig, state: StreamState, detail: &'a str, row: &'a StreamRow) -> Happened<'a> {
    Happened::Broken { direction: config.direction, state, detail, slot: &row.slot }
}

/// A way back that is broken can't be made whole from the monolith: `arm` makes it anew, and a comparison finds what
/// was lost.
async fn refuse(config: &SliceConfig, links: &Links, row: &StreamRow, detail: Option<&str>) -> MirrorError {
    let (slice, watches) = (&config.mapping.slice, row.mode == Mode::Tripwire);
    let detail = detail.unwrap_or("its stream is marked as broken, without a reason");
    let home = match config.direction {
        Direction::Forward if watches => rewatch::home((&links.source, &links.target), slice).await,
        Direction::Forward | Direction::Reverse => Ok(None),
    };
    match config.direction {
        Direction::Forward if home.is_ok_and(|home| home.is_some()) => rewatch::copy_again(slice, detail),
        Direction::Forward if watches => MirrorError::Refused {
            what: format!("the watch over the closed monolith of slice {slice} can't go on: {detail}"),
            next: publication::watch_anew(slice),
        },
        Direction::Forward => MirrorError::Refused {
            what: format!("slice {slice} can't go on: {detail}"),
            next: format!("strangler mirror PLAN --slice {slice} --rebuild, which copies the slice again"),
        },
        Direction::Reverse => MirrorError::Anew {
            what: format!("the way back of slice {slice} can't go on: {detail}"),
            next: format!("{}; then strangler reconcile PLAN --slice {slice} --repair", arm_anew(slice)),
        },
    }
}

async fn bring_up(
    config: &SliceConfig,
    links: Links,
    (slot, publication): (&str, &str),
    (claim, published, tag_secret): (Claim, Published, String),
) -> Result<Engine, MirrorError> {
    let slice = config.mapping.slice.as_str();
    let tables = match claim.direction {
        Direction::Forward => restore_tables(config, &links.target, (&published, claim.mode)).await?,
        Direction::Reverse => {
            let published = (&published, named(config, (publication, claim.mode), None));
            back::restore_tables(&links, &claim, (&config.mapping, slot), published).await?
        }
    };
    let repairs = match claim.direction {
        Direction::Forward => Repairs::default(),
        Direction::Reverse => Repairs::before_reading(&links.target, slice).await?,
    };
    let finished = claim.direction == Direction::Reverse || claim.mode != Mode::Apply;
    let same_major = links.source.server_major() == links.target.server_major();
    let copying = Copying::new(slot, config.options.rows_per_range, same_major);
    let (nonce, applied) = (claim.nonce, claim.applied);
    let reader = open(&config.read, slice).await?;
    let stream =
        links.replication.start(slot, applied, publication, StreamOptions { streaming: true }).await?;
    let (direction, mode) = (claim.direction.as_str(), claim.mode.as_str());
    tracing::info!(slice, direction, mode, slot, from = %applied, "the stream starts");
    let applier = Applier::new(links.target, claim).await?;
    Ok(Engine {
        config: config.clone(),
        applier,
        source: links.source,
        reader,
        assembler: Assembler::new(stream, config.options.spill_folder.clone()),
        router: Router::new(slice, config.options.hooks.clone()),
        published: Arc::new(published),
        publication: publication.to_owned(),
        tables,
        copying,
        vitals: Arc::new(Vitals::default()),
        nonce,
        batch: Batch::default(),
        current: None,
        changes: false,
        consumed: Boundary { end: applied, time_us: 0 },
        persisted_at: Instant::now(),
        heartbeat: None,
        marked: false,
        tagged: false,
        tag_secret,
        strays: Strays::default(),
        canary: None,
        looked_at: Instant::now(),
        repairs,
        shown_at: None,
        finished,
        untold: false,
        standstill: None,
        in_vain: Arc::default(),
    })
}

async fn restore_tables(
    config: &SliceConfig,
    target: &Session,
    (published, mode): (&Published, Mode),
) -> Result<Vec<TableRun>, MirrorError> {
    let slice = config.mapping.slice.as_str();
    let rows = copies::tables(target, slice).await?;
    if rows.iter().any(|row| row.published_as == Some(copies::UNHEARD)) {
        config.recorder.explained();
    }
    let pieces = copies::pieces(target, slice).await?;
    let rows_per_range = config.options.rows_per_range.unwrap_or(ROWS_PER_RANGE_FIRST);
    let mut tables = Vec::new();
    for mapping in &config.mapping.tables {
        let label = mapping.source.to_string();
        let Some(row) = rows.iter().find(|row| row.source_table == label) else {
            return Err(MirrorError::Refused {
                what: format!("the table {label} of slice {slice} is not provisioned in its service"),
                next: format!("strangler provision PLAN --slice {slice}"),
            });
        };
        if let Some(entry) = published.get(&mapping.source) {
            check_entry(target, named(config, ("", mode), None), row, *entry).await?;
        }
        let mapping = Arc::new(mapping.clone());
        let facts = Target::read(target, &mapping).await?;
        // A table goes on in the form in which it was begun, whatever its size has become.
        let begun = pieces
            .iter()
            .any(|piece| piece.source_table == label && matches!(piece.extent, copies::Extent::Range { .. }));
        let by_ranges = begun
            || choose_ranges(&mapping, rows_per_range)
            || row.kept && choose_kept_ranges(&mapping, rows_per_range);
        tables.push(TableRun::restore(&mapping, row, &pieces, facts, by_ranges)?);
    }
    Ok(tables)
}

/// A table whose copy began under another entry of the publication has lost changes.
pub(super) async fn check_entry(
    target: &Session,
    named: Named<'_>,
    row: &TableRow,
    entry: u32,
) -> Result<(), MirrorError> {
    let (slice, label) = (named.slice, &row.source_table);
    match (row.state, row.published_as) {
        (TableState::Pending | TableState::Diverged, _) | (_, None) => {
            copies::set_published_as(target, slice, label, entry).await?;
            failpoint::hit("entry-noted");
            Ok(())
        }
        (TableState::Copying | TableState::Live, Some(known)) if known == entry => Ok(()),
        (TableState::Copying | TableState::Live, Some(copies::UNHEARD))
            if publication::watched_anew(named).is_none() =>
        {
            let what = "its rows were rewritten, its partitions came, went or were emptied, or a label got another name";
            Err(super::contents::refusal(slice, label, what).into())
        }
        (TableState::Copying | TableState::Live, Some(_)) => {
            Err(publication::left(&[label.as_str()], named).into())
        }
    }
}

/// The publication is there, holds exactly the mapping's tables, and leaves nothing of them out.
async fn check_published(
    config: &SliceConfig,
    links: &Links,
    (publication, row): (&str, Option<&StreamRow>),
) -> Result<Published, MirrorError> {
    let mode = row.map_or(Mode::Apply, |row| row.mode);
    let named = named(config, (publication, mode), row.map(|row| row.slot.as_str()));
    let Some(found) = publication::read(&links.source, publication).await? else {
        return Err(publication::gone(named).into());
    };
    let applying = |row: &&StreamRow| row.state == StreamState::Running && row.mode == Mode::Apply;
    if config.direction == Direction::Forward
        && let Some(row) = row.filter(applying)
    {
        let of = (config.mapping.slice.as_str(), row.nonce);
        watch::note_what_is_left_out(&links.target, of, (publication, &found), &config.recorder).await?;
    }
    let wanted = config.mapping.tables.iter().map(|table| match config.direction {
        Direction::Forward => &table.source,
        Direction::Reverse => &table.target,
    });
    match found.fault(wanted, named) {
        Some(fault) => Err(fault.into()),
        None => Ok(found.tables),
    }
}
