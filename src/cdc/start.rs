//! What must be true before a slice's stream may be read: who may write, which slot, from where.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::engine::{Rebuild, SliceConfig, hit};
use super::error::MirrorError;
use super::retired;
use super::source::{self, SlotFacts};
use super::truncate::InVain;
use crate::failpoint;
use crate::journal::JournalError;
use crate::journal::claims::Claim;
use crate::journal::ledger::what_changed;
use crate::journal::migrate::{self, Form};
use crate::journal::process::Sighting;
use crate::journal::slices::GateRow;
use crate::journal::streams::{self, Direction, Mode, Source, StreamOf, StreamRow, StreamState};
use crate::journal::whereabouts::{self, Route};
use crate::journal::{abandonment, copies, process, slices};
use crate::lsn::Lsn;
use crate::mapping::SliceMapping;
use crate::mapping::outline::COMPARED;
use crate::name::TableName;
use crate::postgres::connect::{Server, Session};
use crate::postgres::replication::{Connection, SlotOptions, SystemIdentity, TimelineSwitch};
use crate::postgres::sqlstate;
use crate::problem::{START_ANEW, bring_back};

/// A mirror that was seen within this time and did not stop is taken to be alive.
const ALIVE_S: f64 = 10.0;
/// How long the nonce may wait for an older process's open transaction before that process's sessions are ended.
const NONCE_WAIT_MS: u32 = 2_000;
/// Attempts at a slot that another session still holds: `wal_sender_timeout` is a minute by default, and an engine that
/// turns into its other part leaves it for some milliseconds.
const SLOT_PAUSE: Duration = Duration::from_millis(100);
/// How often the operator is told whom a new slot waits for.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// Who this process is, for other operators to read.
#[derive(Debug, Clone)]
pub struct ProcessName {
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Random: tells this process from any other, also of the same id on a host of the same name.
    token: String,
}

impl ProcessName {
    /// This process, for one run of the mirror.
    #[must_use]
    pub fn new(host: String, pid: u32) -> Self {
        Self { host, pid, token: std::iter::repeat_with(fastrand::alphanumeric).take(20).collect() }
    }
}

/// What a process remembers of a slice from one run of its engine to the next.
#[derive(Debug)]
pub struct Memory {
    /// It has held the nonce: from then on it goes on only while nobody took over.
    pub started: bool,
    /// The nonce of the last run, for signs of life between runs.
    pub nonce: Option<i64>,
    /// Tables that the operator wants copied again, until that is done.
    pub retry: Vec<TableName>,
    /// The operator wants the slice started over, until that is done.
    pub rebuild: Option<Rebuild>,
    /// It is a way back that is tried again: what stopped it the last time.
    pub standstill: Option<Standstill>,
    /// Attempts of the TRUNCATE that waits for readers of the target.
    pub in_vain: Arc<InVain>,
    /// The mapping of the last run, with the places where the monolith's tables stood.
    pub located: Option<Arc<SliceMapping>>,
}

/// Why a way back stands still, as `status` shows it until something has come through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standstill {
    /// [`process::TRIED_AGAIN`] or [`process::WAITS_FOR_ARM`].
    pub phase: &'static str,
    /// What stopped it, and what to type.
    pub why: String,
}

/// What a start needs to know of its slice.
#[derive(Debug, Clone, Copy)]
pub struct Starting<'a> {
    /// Plan.
    pub plan: &'a str,
    /// Slice.
    pub slice: &'a str,
    /// Which of its streams.
    pub direction: Direction,
    /// The mapping compiled from the plan and the monolith as they are now.
    pub mapping: &'a SliceMapping,
    /// This process.
    pub process: &'a ProcessName,
}

impl<'a> Starting<'a> {
    /// Whose rows are meant.
    #[must_use]
    pub fn of(self) -> StreamOf<'a> {
        StreamOf { slice: self.slice, direction: self.direction }
    }
}

/// Sessions in both databases of a slice, whichever of them its stream reads.
#[derive(Debug, Clone, Copy)]
pub struct Both<'a> {
    /// In the monolith.
    pub monolith: &'a Client,
    /// In the service.
    pub service: &'a Client,
}

impl<'a> Both<'a> {
    /// From the two ends of a stream.
    #[must_use]
    pub fn of(direction: Direction, source: &'a Client, target: &'a Client) -> Self {
        match direction {
            Direction::Forward => Self { monolith: source, service: target },
            Direction::Reverse => Self { monolith: target, service: source },
        }
    }
}

/// Checks that both links lead where the plan says. Called first at every start: links are filled in anew for each
/// connection.
///
/// # Errors
/// [`MirrorError::Refused`] over the first link that leads astray.
pub async fn check_links(
    both: Both<'_>,
    (starting, service): (Starting<'_>, &str),
) -> Result<(), MirrorError> {
    let (monolith, there) = (whereabouts::read(both.monolith).await?, whereabouts::read(both.service).await?);
    let route = Route { plan: starting.plan, slice: starting.slice, service };
    match whereabouts::astray(route, Some(&monolith), Some(&there)).first().map(whereabouts::Astray::problem)
    {
        None => Ok(()),
        Some(problem) => Err(MirrorError::Refused {
            what: format!("slice {} can't be mirrored: {}: {}", starting.slice, problem.object, problem.fact),
            next: problem.next,
        }),
    }
}

/// Checks that no later version has provisioned the service. The administrator's link sees it also where `provision` broke off
/// before it granted the applier's role to look.
///
/// # Errors
/// [`MirrorError::Refused`] among others.
pub(super) async fn check_version(config: &SliceConfig, memory: &Memory) -> Result<(), MirrorError> {
    let mapping = &config.mapping;
    if memory.started || !migrate::is_newer(&*open(&config.admin, &mapping.slice).await?).await? {
        return Ok(());
    }
    let problem = whereabouts::Astray::Newer { database: format!("service {}", mapping.service) }.problem();
    Err(MirrorError::Refused {
        what: format!("slice {} can't be mirrored: {}: {}", mapping.slice, problem.object, problem.fact),
        next: problem.next,
    })
}

/// What a start found in both databases.
#[derive(Debug, Clone)]
pub struct Provisioned {
    /// Epoch of the monolith's gate: that of a stream which is about to begin.
    pub epoch: i64,
    /// The forward publication, on the monolith.
    pub publication: String,
    /// The stream's row; none before the forward stream's first start.
    pub row: Option<StreamRow>,
    /// Which life of the slice it is: none of another one is this start's.
    pub life: String,
}

/// Checks that the slice was provisioned as the plan says, and that its gates are such as a mirror may run beside:
/// open on one side or on none. Which side a stream reads from, and whether it applies, is in its own row.
///
/// # Errors
/// [`MirrorError::Refused`], which says what to type.
pub async fn check_provisioned(both: Both<'_>, starting: Starting<'_>) -> Result<Provisioned, MirrorError> {
    let slice = starting.slice;
    let provision = || format!("strangler provision PLAN --slice {slice}");
    let refused = |what: String, next: String| Err(MirrorError::Refused { what, next });
    if retired::is_gone((both.service, both.monolith), slice).await? {
        return Err(MirrorError::Retired { slice: slice.to_owned() });
    }
    for (client, database) in [(both.service, "its service"), (both.monolith, "the monolith")] {
        if migrate::form(client).await? == Form::Older {
            return refused(
                format!(
                    "slice {slice} can't be mirrored: strangler's own tables in {database} are of an earlier version, \
                     and provision upgrades them"
                ),
                provision(),
            );
        }
    }
    let Some(row) = slices::read(both.service, slice).await.or_else(missing_schema)? else {
        return refused(format!("slice {slice} is not provisioned in its service"), provision());
    };
    let Some(life) = abandonment::life(both.service, slice).await? else {
        return refused(format!("slice {slice} is not provisioned in its service"), provision());
    };
    if !starting.mapping.is_pinned_by(&row.plan_hash) {
        let begun = streams::read(both.service, StreamOf::forward(slice)).await?.is_some();
        let what = match starting.direction {
            Direction::Forward => what_changed(both.service, starting.mapping, &row.plan_hash).await?,
            Direction::Reverse => COMPARED.to_owned(),
        };
        return refused(
            format!(
                "slice {slice} was provisioned from another mapping (plan {}): the plan or the monolith's tables \
                 have changed since: {what}",
                row.plan
            ),
            if begun { bring_back(slice) } else { provision() },
        );
    }
    let gates = (slices::gate(both.monolith, slice).await?, slices::gate(both.service, slice).await?);
    let (Some(here), Some(there)) = gates else {
        return refused(format!("slice {slice} has no gate row on one side"), provision());
    };
    let own = match starting.direction {
        Direction::Forward => streams::read(both.service, starting.of()).await?,
        Direction::Reverse => streams::read(both.monolith, starting.of()).await?,
    };
    if starting.direction == Direction::Reverse && !own.as_ref().is_some_and(is_armed) {
        return Err(MirrorError::NotArmed { slice: slice.to_owned() });
    }
    match unfit(starting, (&here, &there), own.as_ref()) {
        Some(what) => refused(what, format!("strangler status PLAN --slice {slice}")),
        None => Ok(Provisioned { epoch: here.epoch, publication: row.publication, row: own, life }),
    }
}

/// Whether the row of a way back is one to run: `arm` may not have finished it, and `disarm` may have begun to take it
/// away.
#[must_use]
pub fn is_armed(row: &StreamRow) -> bool {
    row.mode != Mode::Off && row.state != StreamState::Creating
}

/// Why a stream must not run beside these gates. Pure.
fn unfit(
    starting: Starting<'_>,
    (here, there): (&GateRow, &GateRow),
    row: Option<&StreamRow>,
) -> Option<String> {
    let slice = starting.slice;
    let gates = format!(
        "slice {slice} is {} in the monolith (epoch {}) and {} in the service (epoch {})",
        here.state, here.epoch, there.state, there.epoch
    );
    let open = |gate: &GateRow| gate.state == "OPEN";
    if open(here) && open(there) {
        return Some(format!(
            "{gates}: both sides take writes, and neither may be written over by the other"
        ));
    }
    let target = match starting.direction {
        Direction::Forward => there,
        Direction::Reverse => here,
    };
    match (row, starting.direction) {
        (None, Direction::Forward) if open(here) => None,
        (None, Direction::Forward) => {
            Some(format!("{gates}: a mirror begins only from a monolith that has the authority"))
        }
        (None, Direction::Reverse) => None,
        (Some(row), direction) => match row.mode {
            Mode::Off => Some(format!("the {} stream of slice {slice} is switched off", direction.as_str())),
            Mode::Apply if open(target) => Some(format!(
                "{gates}, and the {} stream would write into the {}, whose application may write there",
                direction.as_str(),
                direction.target()
            )),
            Mode::Apply | Mode::Tripwire => None,
        },
    }
}

/// Why a process may not write as it claimed: somebody took over, the authority moved, or the row contradicts.
pub(crate) async fn shut_out(target: &Client, claim: &Claim) -> MirrorError {
    let slice = claim.slice.clone();
    if claim.direction == Direction::Forward
        && let Ok(Some(refused)) = Box::pin(gone(target, (&slice, None))).await
    {
        return refused;
    }
    match streams::read(target, claim.of()).await {
        Err(error) => error.into(),
        Ok(Some(row)) if row.nonce == claim.nonce && is_turned(&row, claim) => MirrorError::Turned { slice },
        Ok(Some(row)) if row.nonce == claim.nonce => MirrorError::Refused {
            what: format!(
                "the {} stream of slice {slice} may not write any more: it stands at {} where {} was noted, or the {}'s \
                 gate was opened beside it",
                claim.direction.as_str(),
                row.applied,
                claim.applied,
                claim.direction.target()
            ),
            next: format!("strangler status PLAN --slice {slice}"),
        },
        Ok(_) => MirrorError::Fenced { slice },
    }
}

/// Whether the row gives the stream another part than the one it was claimed for.
pub(crate) fn is_turned(row: &StreamRow, claim: &Claim) -> bool {
    row.mode != claim.mode || row.epoch != claim.epoch
}

/// Checks that every table of the mapping was provisioned: a table that came to a schema which the plan takes as a whole
/// would otherwise only show as another mapping.
///
/// # Errors
/// [`MirrorError::Refused`] naming the tables.
pub async fn check_tables<'a>(
    target: &Client,
    slice: &str,
    tables: impl Iterator<Item = &'a TableName>,
) -> Result<(), MirrorError> {
    let Some(_) = slices::read(target, slice).await.or_else(missing_schema)? else { return Ok(()) };
    if migrate::form(target).await? == Form::Older {
        return Ok(());
    }
    // A service that has the authority is not to be started over.
    if streams::read(target, StreamOf::forward(slice)).await?.is_none_or(|row| row.mode != Mode::Apply) {
        return Ok(());
    }
    let known = copies::tables(target, slice).await?;
    let new: Vec<String> = tables
        .map(ToString::to_string)
        .filter(|label| !known.iter().any(|row| row.source_table == *label))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    Err(MirrorError::Refused {
        what: format!(
            "slice {slice} was provisioned without {}, which the plan takes now: added to the plan, or made in a schema \
             that it takes as a whole",
            new.join(", ")
        ),
        next: format!(
            "to leave it out, list the slice's tables by their names in the plan; to carry it over, start slice {slice} \
             anew: {START_ANEW}"
        ),
    })
}

fn missing_schema(error: JournalError) -> Result<Option<slices::SliceRow>, MirrorError> {
    if is_missing(&error) { Ok(None) } else { Err(error.into()) }
}

/// Our tables are not there.
fn is_missing(error: &JournalError) -> bool {
    let code = error.database_error().and_then(tokio_postgres::Error::code);
    matches!(code.map(SqlState::code), Some("42P01" | "3F000"))
}

/// Takes the slice's session lock, and refuses when another live mirror holds it; a courtesy, for safety rests on the
/// nonce. A mirror that holds the lock but was not seen for a while is taken to be frozen: it is taken over.
///
/// # Errors
/// [`MirrorError::Refused`] naming the other process.
pub async fn check_alone(
    target: &Client,
    starting: Starting<'_>,
    take_over: bool,
) -> Result<(), MirrorError> {
    let slice = starting.slice;
    if process::try_lock(target, slice).await? || take_over {
        return Ok(());
    }
    let Some(other) = process::read(target, starting.of()).await? else { return Ok(()) };
    if other.seen_s > ALIVE_S {
        return Ok(());
    }
    Err(MirrorError::Refused {
        what: format!(
            "a mirror of slice {slice} is running on {} as process {}, last seen {:.1} s ago",
            other.host, other.pid, other.seen_s
        ),
        next: "strangler status PLAN, or strangler mirror PLAN --take-over".to_owned(),
    })
}

/// The slice's stream row under a nonce of our own. Makes the row on the first start.
///
/// # Errors
/// [`MirrorError`].
pub async fn claim_stream(
    target: &Client,
    starting: Starting<'_>,
    (epoch, publication, life): (i64, &str, &str),
    source: &Source,
    (memory, admin): (&mut Memory, &Server),
) -> Result<StreamRow, MirrorError> {
    // The row of the way back is `arm`'s to make, together with its slot.
    if starting.direction == Direction::Forward {
        still_provisioned(target, (starting.slice, life)).await?;
        let slot = slot_name(starting.plan, starting.slice);
        streams::insert_creating(target, starting.slice, epoch, (&slot, publication), source).await?;
        failpoint::hit("stream-row-inserted");
    }
    let row = match take_nonce(target, starting, (memory.started, admin)).await {
        Err(MirrorError::Fenced { .. }) if starting.direction == Direction::Forward => {
            still_provisioned(target, (starting.slice, life)).await?;
            return Err(MirrorError::Fenced { slice: starting.slice.to_owned() });
        }
        taken => taken?,
    };
    memory.started = true;
    memory.nonce = Some(row.nonce);
    hit(starting.direction, "nonce-taken", "reverse-nonce-taken");
    let pid = i32::try_from(starting.process.pid).unwrap_or(i32::MAX);
    let again = memory.standstill.is_some();
    process::register(target, starting.of(), row.nonce, (&starting.process.host, pid), again).await?;
    failpoint::hit("process-registered");
    if starting.direction == Direction::Forward {
        // Whoever takes the slice back says so first and looks for mirrors after that; a mirror registers first and looks for him
        // after that. So one of them sees the other.
        still_provisioned(target, (starting.slice, life)).await?;
    }
    Ok(row)
}

/// Fails where the slice was taken back, or is being taken back, since the start found it to be provisioned: also where it was provisioned
/// anew behind that, which is none of this start's. Asked of the service by whoever is about to make something that would be left over.
///
/// # Errors
/// [`MirrorError::Refused`] among others.
pub async fn still_provisioned(target: &Client, (slice, life): (&str, &str)) -> Result<(), MirrorError> {
    match Box::pin(gone(target, (slice, Some(life)))).await? {
        Some(refused) => Err(refused),
        None => Ok(()),
    }
}

/// What to say of a slice that is not there any more, or is being taken back; nothing where it is as it was. Without a `life` any will do.
async fn gone(
    target: &Client,
    (slice, life): (&str, Option<&str>),
) -> Result<Option<MirrorError>, MirrorError> {
    if abandonment::read(target, slice).await?.is_some() {
        let problem = whereabouts::Astray::Abandoned { slice: slice.to_owned() }.problem();
        return Ok(Some(MirrorError::Refused {
            what: format!("slice {slice} can't be mirrored: {}", problem.fact),
            next: problem.next,
        }));
    }
    let now = match abandonment::life(target, slice).await {
        Err(error) if is_missing(&error) => None,
        other => other?,
    };
    let same = now.as_deref().is_some_and(|now| life.is_none_or(|life| life == now));
    Ok((!same).then(|| MirrorError::Refused {
        what: format!(
            "slice {slice} can't be mirrored: it was taken back while this mirror stood still, by strangler abandon or by hand"
        ),
        next: format!("strangler status PLAN --slice {slice}, which says whether it is provisioned anew; then start the mirror again"),
    }))
}

/// Takes the nonce. It waits for open landings of an older process; when such a process is frozen, its open
/// transaction would hold us for ever, so its sessions are ended: they belong to the same role and slice.
async fn take_nonce(
    target: &Client,
    starting: Starting<'_>,
    (again, admin): (bool, &Server),
) -> Result<StreamRow, MirrorError> {
    let (of, holder) = (starting.of(), starting.process.token.as_str());
    target
        .batch_execute(&format!("SET lock_timeout = {NONCE_WAIT_MS}"))
        .await
        .map_err(MirrorError::sql("setting a lock timeout"))?;
    let taken = match streams::take_nonce(target, of, holder, again).await {
        Err(error) if error.database_error().is_some_and(crate::postgres::sqlstate::is_lock_timeout) => {
            end_older_sessions(target, of.slice, admin).await?;
            streams::take_nonce(target, of, holder, again).await
        }
        other => other,
    };
    target.batch_execute("RESET lock_timeout").await.map_err(MirrorError::sql("resetting a lock timeout"))?;
    taken?.ok_or_else(|| MirrorError::Fenced { slice: of.slice.to_owned() })
}

/// Ends sessions that hold the stream row. The apply role may end its own; those that logged in as somebody stronger
/// are ended by the service's administrator.
async fn end_older_sessions(target: &Client, slice: &str, admin: &Server) -> Result<(), MirrorError> {
    let pids = streams::sessions_at(target, &application_name(slice)).await?;
    tracing::warn!(slice, ?pids, "ending sessions that an older mirror left in a transaction");
    if terminate(target, &pids).await.is_ok() {
        return Ok(());
    }
    let session = open(admin, slice).await?;
    terminate(&session, &pids).await.map_err(|_| MirrorError::Refused {
        what: format!(
            "an older mirror of slice {slice} holds the stream row in the service (processes {pids:?}), and neither \
             the apply role nor the administrator's link may end its sessions"
        ),
        next: "end that mirror, or as a superuser of the service: SELECT pg_terminate_backend(PID)".to_owned(),
    })
}

async fn terminate(session: &Client, pids: &[i32]) -> Result<(), tokio_postgres::Error> {
    session
        .execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest($1::int[]) AS t(pid)", &[&pids])
        .await?;
    Ok(())
}

/// Application name of a slice's sessions, as it shows in `pg_stat_activity`.
#[must_use]
pub fn application_name(slice: &str) -> String {
    format!("strangler mirror {slice}")
}

/// Bytes of a slot's name before its random end.
pub const SLOT_STEM_BYTES: usize = 56;

/// A slot name with a random end, so that a slot that somebody makes again under "the" name is noticed.
#[must_use]
pub fn slot_name(plan: &str, slice: &str) -> String {
    let suffix: String = std::iter::repeat_with(fastrand::lowercase).take(6).collect();
    let mut stem = format!("strangler_{plan}_{slice}");
    stem.truncate(SLOT_STEM_BYTES);
    format!("{stem}_{suffix}")
}

/// Makes the slot of a stream in state `creating`. A slot of that name can only be a former attempt of ours, from
/// which nothing was read, so it is dropped first. No transaction of ours is open meanwhile: slot creation waits for
/// every transaction of the monolith's whole cluster. `None` when the stream may not begin: another process took over, or
/// it is a tripwire and the service does not take writes.
///
/// # Errors
/// [`MirrorError`].
pub async fn create_slot(
    source: &Client,
    replication: &mut Connection,
    target: &Client,
    (slice, life, row): (&str, &str, &StreamRow),
    waiting: &(dyn Fn(&str) + Send + Sync),
) -> Result<Option<Lsn>, MirrorError> {
    if source::slot(source, &row.slot).await?.is_some() {
        replication.drop_slot(&row.slot).await?;
    }
    failpoint::hit("slot-wanted");
    still_provisioned(target, (slice, life)).await?;
    if retired::is_gone((target, source), slice).await? {
        return Err(MirrorError::Retired { slice: slice.to_owned() });
    }
    if streams::current_nonce(target, StreamOf::forward(slice)).await? != Some(row.nonce) {
        return Ok(None);
    }
    failpoint::hit("slot-asked-for");
    // From 17 on a standby can take the slot over, when the monolith is set up for it; `check` looks at that.
    let options = SlotOptions { temporary: false, failover: replication.server_major() >= 17 };
    let telling = tell_who_is_waited_for(source, target, (slice, row.nonce), waiting);
    let start = beside(telling, replication.create_slot(&row.slot, options)).await?;
    failpoint::hit("slot-created");
    let begun = streams::set_running(target, slice, row.nonce, start).await?;
    failpoint::hit("stream-row-running");
    Ok(begun.then_some(start))
}

/// Drops a slot that was made while the slice was taken back, or its old tables dropped: nobody else knows of it, and it would keep WAL. It
/// is told by that its stream's row is gone, names another slot, or is of a slice that is being taken back or has nothing on the monolith;
/// whoever else holds the stream makes the slot of that name himself, and whoever takes the slice's side away looks for slots behind that.
/// Both are sessions of their own, since the one that waited for the slot may be gone. What can't be done here `doctor` names.
pub async fn give_back(
    replication: &mut Connection,
    (source, target): (&Client, &Client),
    (slice, slot): (&str, &str),
) {
    let stray = match streams::read(target, StreamOf::forward(slice)).await {
        Ok(None) => true,
        Ok(Some(row)) if row.slot != slot => true,
        Ok(Some(_)) => {
            matches!(abandonment::read(target, slice).await, Ok(Some(_)))
                || retired::is_gone((target, source), slice).await.unwrap_or(false)
        }
        Err(error) => is_missing(&error),
    };
    if stray && let Err(error) = replication.drop_slot(slot).await {
        tracing::debug!(slice, slot, error = %error, "the slot that nobody needs could not be dropped");
    }
}

/// A new slot waits for every transaction that runs (PostgreSQL documentation, CREATE_REPLICATION_SLOT). Says who holds
/// it up, to the operator and for `status`, and never ends by itself.
async fn tell_who_is_waited_for(
    source: &Client,
    target: &Client,
    (slice, nonce): (&str, i64),
    waiting: &(dyn Fn(&str) + Send + Sync),
) -> Infallible {
    loop {
        tokio::time::sleep(TOLD_EVERY).await;
        // Whatever goes wrong with telling, the slot is what matters, and its own session says what is wrong with it.
        let Ok(who) = source::oldest_transaction(source).await else { continue };
        let detail = format!(
            "the new replication slot waits for running transactions of the monolith's cluster: {who}"
        );
        waiting(&detail);
        let sighting = Sighting { phase: "waiting".to_owned(), detail: Some(detail), ..Sighting::default() };
        if let Err(error) = process::beat(target, StreamOf::forward(slice), nonce, &sighting).await {
            tracing::debug!(slice, error = %error, "what the slot waits for could not be written down");
        }
    }
}

/// Runs something that never ends for as long as something that does takes.
async fn beside<T>(endless: impl Future<Output = Infallible>, ending: impl Future<Output = T>) -> T {
    tokio::select! {
        never = endless => match never {},
        ended = ending => ended,
    }
}

/// What a start found wrong with a stream that was running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `Gap` or `Diverged`.
    pub state: StreamState,
    /// The facts.
    pub detail: String,
}

/// The start checks of a running stream. PostgreSQL itself would go on silently from the slot's position when asked
/// for an older one, so they are made here. Pure, so that each can be tested.
#[must_use]
pub fn find_fault(
    (row, direction): (&StreamRow, Direction),
    system: &SystemIdentity,
    (database, uuid): (u32, &str),
    slot: Option<&SlotFacts>,
    history: &[TimelineSwitch],
) -> Option<Fault> {
    let gap = |detail: String| Some(Fault { state: StreamState::Gap, detail });
    let diverged = |detail: String| Some(Fault { state: StreamState::Diverged, detail });
    let (source, side) = (&row.source, direction.source());
    if system.system_identifier != source.system_identifier
        || database != source.database_oid
        || uuid != source.uuid
    {
        return diverged(format!(
            "the {side}'s link leads to another database than the one that was mirrored"
        ));
    }
    if i32::try_from(system.timeline) != Ok(source.timeline) {
        let switch = history.iter().find(|switch| i32::try_from(switch.timeline) == Ok(source.timeline));
        match switch {
            Some(switch) if switch.switch_lsn >= row.applied => {}
            Some(switch) => {
                return diverged(format!(
                    "the {side} went on from {} on timeline {}, but {} was already applied: transactions were \
                     applied that it does not have",
                    switch.switch_lsn, system.timeline, row.applied
                ));
            }
            None => {
                return diverged(format!(
                    "timeline {} of the {side} does not descend from timeline {}",
                    system.timeline, source.timeline
                ));
            }
        }
    }
    if row.applied > system.flush_lsn {
        return diverged(format!(
            "the {side}'s log ends at {}, before the applied position {}: it was restored to an earlier point",
            system.flush_lsn, row.applied
        ));
    }
    let Some(slot) = slot else { return gap(format!("the replication slot {} is gone", row.slot)) };
    if slot.plugin != "pgoutput" || Some(&slot.database) != system.database.as_ref() {
        return gap(format!("the replication slot {} is not the one that the mirror made", row.slot));
    }
    if slot.wal_status.as_deref() == Some("lost") {
        return gap(format!("the {side} has removed WAL that the replication slot {} needed", row.slot));
    }
    match slot.confirmed {
        Some(confirmed) if confirmed <= row.applied => None,
        Some(confirmed) => gap(format!(
            "the replication slot {} stands at {confirmed}, past the applied position {}: somebody else read from it \
             or moved it",
            row.slot, row.applied
        )),
        None => gap(format!("the replication slot {} has no confirmed position", row.slot)),
    }
}

/// Waits until no session holds the slot. A walsender of a dead or frozen process holds it until it notices; one of
/// our own role is told to end.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn wait_for_slot(
    source: &Client,
    slot: &str,
    waiting: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), MirrorError> {
    loop {
        let Some(pid) = source::slot(source, slot).await?.and_then(|facts| facts.active_pid) else {
            return Ok(());
        };
        waiting(&format!("replication slot {slot} is still held by process {pid}"));
        source.execute("SELECT pg_terminate_backend($1, 2000)", &[&pid]).await.map(drop).or_else(
            |error| {
                // Without the right to end it, wait for wal_sender_timeout.
                tracing::warn!(
                    pid,
                    error = crate::cdc::mirror::chain_of(&error),
                    "the session that holds the slot could not be ended"
                );
                Ok::<(), MirrorError>(())
            },
        )?;
        tokio::time::sleep(SLOT_PAUSE).await;
    }
}

/// What a table is emptied by where its readers leave no moment for a TRUNCATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InUse {
    /// Nothing: it is tried another time.
    GiveUp,
    /// DELETE, which locks rows only.
    Delete,
}

/// Empties a table inside the open transaction: TRUNCATE, or DELETE where a foreign key forbids that, or `in_use` says so.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn empty_table(target: &Client, table: &str, in_use: InUse) -> Result<(), MirrorError> {
    let run = async |sql: &str| target.batch_execute(sql).await;
    let truncate = format!("TRUNCATE {table}");
    run("SAVEPOINT emptying").await.map_err(MirrorError::sql("emptying a table"))?;
    let tried = run(&truncate).await;
    if let Err(error) = &tried
        && sqlstate::code(error) != Some("0A000")
        && !(in_use == InUse::Delete && sqlstate::is_lock_timeout(error))
    {
        return tried.map_err(MirrorError::sql("emptying a table"));
    }
    // Inside a savepoint the new files are a subtransaction's, and the other direction's stream names only the transaction:
    // whoever watches the partitions there could not tell that this was ours.
    run("ROLLBACK TO SAVEPOINT emptying; RELEASE SAVEPOINT emptying")
        .await
        .map_err(MirrorError::sql("emptying a table"))?;
    let sql = if tried.is_ok() { truncate } else { format!("DELETE FROM {table}") };
    run(&sql).await.map_err(MirrorError::sql("emptying a table"))
}

/// Where the source of a stream is: for identity in the stream row.
///
/// # Errors
/// [`MirrorError`].
pub async fn identify(source: &Client, system: &SystemIdentity) -> Result<Source, MirrorError> {
    let row = source
        .query_typed_one("SELECT oid FROM pg_database WHERE datname = current_database()", &[])
        .await
        .map_err(MirrorError::sql("reading the source's identity"))?;
    let uuid = slices::database_uuid(source).await?.ok_or_else(|| MirrorError::Refused {
        what: "the source of the stream has no identity yet".to_owned(),
        next: "strangler provision PLAN".to_owned(),
    })?;
    Ok(Source {
        system_identifier: system.system_identifier.clone(),
        database_oid: row.get(0),
        uuid,
        timeline: i32::try_from(system.timeline).unwrap_or(i32::MAX),
    })
}

/// Opens a session under the slice's application name.
///
/// # Errors
/// [`MirrorError::Connect`].
pub async fn open(server: &Server, slice: &str) -> Result<Session, MirrorError> {
    Ok(server.connect(&application_name(slice)).await?)
}
