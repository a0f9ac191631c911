//! `strangler ledger`.

use std::collections::BTreeSet;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use tokio_postgres::Client;

use super::environment::Environment;
use super::interrupt;
use super::open::{self, ANSWER_MAX, Needs, Opened, PlanFile, Slices};
use super::report::{CliError, Exit};
use super::ui::{Format, Ui};
use crate::journal::ledger::{self, Broken, Entry, Latest, Memory, NewEntry, Verified, VerifyError};
use crate::journal::whereabouts::{self, Astray, Route, Whereabouts};
use crate::journal::{JournalError, grounds};
use crate::lsn::Lsn;
use crate::postgres::Session;
use crate::reconcile::evidence;
use crate::words;

mod kinds;
mod text;

/// `pg_stat_activity.application_name` of its sessions.
const APPLICATION: &str = "strangler ledger";

/// What an interruption leaves behind.
const UNTOUCHED: &str = "ledger changes nothing";

/// Show what was done and proven, as it was written down: verdicts, copies, moves, alarms
///
/// Each service has a ledger in its database: append-only, each entry with the hash of the one before. Shown are the last
/// entries of every service of the plan, oldest first: number, time, kind, slice, epoch of the authority, what, and who.
/// The last verdict on every row of a slice is marked void, with the reasons, where something has happened since that it
/// does not know of; the monolith is asked for that, and where it does not answer its part is left out.
///
/// --verify recomputes the whole chain instead and compares it with what the monolith's journal remembers of it: an entry
/// that was changed, removed or cut off at the end is named. A verdict is no evidence once its own entry or a later one is
/// broken, and no verdict is once the end was cut off; no flip begins without evidence. --accept-broken goes on after a human
/// has looked: it appends an entry with the reason to each ledger that is broken. What is before that entry stays as it is and proves nothing any more, and the next full comparison is evidence
/// again.
///
/// Reads through the apply links, and without --accept-broken changes nothing.
///
/// Exit code 0: shown, or everything holds together. 1: a ledger is not what was written. 3: a slice of this name is another
/// plan's or another service's, or a link leads elsewhere. 4: a database could not be reached. 5: a ledger could not be
/// read.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    #[command(flatten)]
    slices: Slices,
    /// Only entries of this kind
    #[arg(long, value_enum, value_name = "KIND")]
    kind: Option<Kind>,
    /// How many of the last entries of each service
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    last: u32,
    /// Prove that nobody changed, removed or cut off an entry
    #[arg(long, conflicts_with_all = ["kind", "last", "slices"])]
    verify: bool,
    /// Verify, and go on from here where a ledger is broken; the reason goes into it
    #[arg(long, value_name = "REASON", conflicts_with_all = ["kind", "last", "slices", "verify"], value_parser = super::reason::reason)]
    accept_broken: Option<String>,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Kinds of entries.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// What one reconciliation said of a slice
    Verdict,
    /// Rows that were repaired
    Repair,
    /// A move of authority, also one that was aborted
    Flip,
    /// A rehearsal of a move
    Rehearsal,
    /// What provision made
    Provision,
    /// The end of a table's copy, or the beginning of another one
    Copy,
    /// What arm changed
    Arm,
    /// What disarm took back
    Disarm,
    /// Old tables that were taken away
    Retire,
    /// Old tables that were brought back
    Unretire,
    /// A slice was taken back to where nothing of it was provisioned
    Abandon,
    /// What a mirror met that a human must look at
    Alarm,
    /// Another mapping or policy than before
    Plan,
    /// That earlier entries are not what was written, and that a human accepted it
    Accepted,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Verdict => ledger::VERDICT,
            Self::Repair => ledger::REPAIR,
            Self::Flip => ledger::FLIP,
            Self::Rehearsal => ledger::REHEARSAL,
            Self::Provision => ledger::PROVISION,
            Self::Copy => ledger::COPY,
            Self::Arm => ledger::ARM,
            Self::Disarm => ledger::DISARM,
            Self::Retire => ledger::RETIRE,
            Self::Unretire => ledger::UNRETIRE,
            Self::Abandon => ledger::ABANDON,
            Self::Alarm => ledger::ALARM,
            Self::Plan => ledger::PLAN,
            Self::Accepted => ledger::ACCEPTED,
        }
    }
}

/// The document of `--format json` (docs/json-output.md).
#[derive(Debug, Serialize)]
struct Document<'a> {
    format: &'static str,
    version: u8,
    plan: &'a str,
    services: Vec<ServiceLedger>,
}

/// The ledger of one service: entries, or what became of their verification.
#[derive(Debug, Serialize)]
struct ServiceLedger {
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<Shown>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<Verification>,
}

/// An entry, with its body as JSON.
#[derive(Debug, Serialize)]
struct Shown {
    entry: i64,
    at: String,
    kind: String,
    plan: String,
    slice: Option<String>,
    operator: String,
    host: String,
    epoch: Option<i64>,
    lsn: Option<Lsn>,
    plan_hash: Option<String>,
    body: serde_json::Value,
    previous: String,
    hash: String,
    /// Of the last verdict on every row of a slice: what voids it. Absent of all others, and where nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    void: Option<Vec<String>>,
}

impl From<Entry> for Shown {
    fn from(entry: Entry) -> Self {
        Self {
            entry: entry.id,
            at: words::exact_instant(entry.at_us),
            kind: entry.kind,
            plan: entry.plan,
            slice: entry.slice,
            operator: entry.author.operator,
            host: entry.author.host,
            epoch: entry.epoch,
            lsn: entry.lsn,
            plan_hash: entry.plan_hash,
            // What was hashed is the text. It was JSON when it was written, and one that was changed by hand is shown.
            body: serde_json::from_str(&entry.body).unwrap_or(serde_json::Value::String(entry.body)),
            previous: entry.previous.to_string(),
            hash: entry.hash.to_string(),
            void: None,
        }
    }
}

/// What recomputing a chain came to.
#[derive(Debug, Serialize)]
struct Verification {
    whole: bool,
    entries: Option<i64>,
    head: Option<String>,
    confirmed: Option<i64>,
    accepted: Option<i64>,
    broken_entry: Option<i64>,
    fault: Option<String>,
    /// Where the monolith's journal was asked: there, or in a service that keeps it.
    journal: &'static str,
}

impl Verification {
    fn of(verified: Verified, memory: Memory<'_>) -> Self {
        Self {
            whole: true,
            entries: Some(verified.head.map_or(0, |head| head.id)),
            head: verified.head.map(|head| head.hash.to_string()),
            confirmed: verified.confirmed,
            accepted: verified.accepted,
            broken_entry: None,
            fault: None,
            journal: kept_where(memory),
        }
    }

    fn broken(broken: &Broken, memory: Memory<'_>) -> Self {
        Self {
            whole: false,
            entries: None,
            head: None,
            confirmed: None,
            accepted: None,
            broken_entry: Some(broken.id),
            fault: Some(broken.fault.to_string()),
            journal: kept_where(memory),
        }
    }
}

fn kept_where(memory: Memory<'_>) -> &'static str {
    match memory {
        Memory::Monolith(_) => "monolith",
        Memory::Kept(_) => "service",
    }
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = open::open(ui, &arguments.plan, &arguments.slices.slices, Needs::Rows)?.answering();
    let services = opened.heard(interrupt::unless(UNTOUCHED, Box::pin(read(&opened, arguments))).await)?;
    let broken = |of: &ServiceLedger| of.verification.as_ref().is_some_and(|found| !found.whole);
    let exit = if services.iter().any(broken) { Exit::Problems } else { Exit::Clean };
    match arguments.format {
        Format::Text => ui.data(&text::pages(&services, ui.data_paint()))?,
        Format::Json => {
            let plan = opened.plan.name.as_str();
            ui.json(&Document { format: "strangler.ledger", version: 1, plan, services }, false)?;
        }
    }
    Ok(exit)
}

async fn read(opened: &Opened, arguments: &Arguments) -> Result<Vec<ServiceLedger>, CliError> {
    let verifies = arguments.verify || arguments.accept_broken.is_some();
    let monolith = match verifies {
        true => Some(opened.monolith.apply.connect(APPLICATION).await?),
        false => None,
    };
    // Whether a verdict still stands is a courtesy beside the entries: without the monolith its part is left out.
    let reader = match verifies {
        true => None,
        false => opened.monolith.read.connect(APPLICATION).await.ok(),
    };
    let here = match monolith.as_ref().or(reader.as_ref()) {
        Some(session) => match whereabouts::read(session).await {
            Ok(here) => Some(here),
            Err(_) if reader.is_some() && session.is_closed() => None,
            Err(error) => return Err(error.into()),
        },
        None => None,
    };
    let mut sessions = Vec::new();
    for ways in opened.services.values() {
        sessions.push(ways.apply.connect(APPLICATION).await?);
    }
    let far = match &monolith {
        Some(monolith) => far_keepers(opened, monolith, &sessions).await?,
        None => Vec::new(),
    };
    let keepers: Vec<&Client> = sessions.iter().chain(&far).map(|session| &**session).collect();
    let mut services = Vec::new();
    for (name, session) in opened.services.keys().zip(&sessions) {
        refuse_others(opened, name, (here.as_ref(), &whereabouts::read(session).await?))?;
        let failed = |source| CliError::Ledger {
            service: name.clone(),
            provision: opened.typed("strangler provision PLAN"),
            source,
        };
        let mut found = ServiceLedger { service: name.clone(), entries: None, verification: None };
        match &monolith {
            Some(monolith) => {
                let reason = arguments.accept_broken.as_deref();
                let memory = Memory::of(session, monolith, &keepers).await.map_err(failed)?;
                let memory = memory.unwrap_or(Memory::Monolith(monolith));
                let verified = verify((&opened.plan.name, name), (session, memory), reason).await;
                found.verification = Some(verified.map_err(failed)?);
            }
            None => {
                let latest = Latest {
                    slices: &arguments.slices.slices,
                    kind: arguments.kind.map(Kind::as_str),
                    number: i64::from(arguments.last),
                };
                let entries = ledger::latest(session, latest).await.map_err(failed)?;
                let mut entries: Vec<Shown> = entries.into_iter().map(Shown::from).collect();
                let of = |slice: &&String| {
                    opened.plan.service_of(slice).is_some_and(|(service, _)| service == name)
                };
                for slice in opened.slices.iter().filter(of) {
                    mark(&mut entries, slice, (session, reader.as_deref())).await.map_err(failed)?;
                }
                found.entries = Some(entries);
            }
        }
        services.push(found);
    }
    Ok(services)
}

/// The plan's other services, where nobody else remembers one of the ledgers: our schema may have gone from the monolith with a slice of
/// theirs, and its journal to them.
async fn far_keepers(
    opened: &Opened,
    monolith: &Client,
    sessions: &[Session],
) -> Result<Vec<Session>, CliError> {
    let near: Vec<&Client> = sessions.iter().map(|session| &**session).collect();
    let mut far = Vec::new();
    for session in sessions {
        // What can't be read is said in its turn.
        if far.is_empty() && matches!(Memory::of(session, monolith, &near).await, Ok(None)) {
            for ways in opened.others.values() {
                far.push(ways.apply.clone().answering_within(ANSWER_MAX).connect(APPLICATION).await?);
            }
        }
    }
    Ok(far)
}

/// Entries about slices that are another plan's would be taken for those of this plan's.
fn refuse_others(
    opened: &Opened,
    service: &str,
    (monolith, there): (Option<&Whereabouts>, &Whereabouts),
) -> Result<(), CliError> {
    let of = |slice: &&String| opened.plan.service_of(slice).is_some_and(|(name, _)| name == service);
    let route = |slice| Route { plan: &opened.plan.name, slice, service };
    let found: BTreeSet<Astray> = opened
        .slices
        .iter()
        .filter(of)
        .flat_map(|slice| whereabouts::astray(route(slice), monolith, Some(there)))
        // What was told of it stays to be read.
        .filter(|one| !matches!(one, Astray::Abandoned { .. }))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(CliError::Astray(opened.typed_all(found.iter().map(Astray::problem).collect())))
}

/// Marks the last verdict on every row of a slice with what voids it, when it is among the entries.
async fn mark(
    entries: &mut [Shown],
    slice: &str,
    (service, monolith): (&Client, Option<&Client>),
) -> Result<(), JournalError> {
    let Some(full) = evidence::evidence(service, slice).await?.last_full else { return Ok(()) };
    let Some(entry) = entries.iter_mut().find(|entry| entry.entry == full.entry) else { return Ok(()) };
    let shapes = match monolith {
        Some(monolith) => grounds::monolith(monolith, slice).await.ok(),
        None => None,
    };
    let ground = grounds::service(service, slice).await?;
    let ground = match (ground, &shapes) {
        (Some(ground), Some(shapes)) => Some(ground.with_monolith(shapes)),
        (ground, _) => ground,
    };
    let found: Vec<String> =
        evidence::voids(&full.ground, ground.as_ref()).iter().map(ToString::to_string).collect();
    // That nothing voids it can't be said without the monolith.
    entry.void = (shapes.is_some() || !found.is_empty()).then_some(found);
    Ok(())
}

/// Recomputes a chain; one that is broken is accepted first where there is a reason to.
async fn verify(
    (plan, name): (&str, &str),
    (service, memory): (&Client, Memory<'_>),
    reason: Option<&str>,
) -> Result<Verification, JournalError> {
    let found = match ledger::verify_by(service, Some(memory)).await {
        Ok(verified) => return Ok(Verification::of(verified, memory)),
        Err(VerifyError::Broken(broken)) => broken,
        Err(VerifyError::Journal(error)) => return Err(error),
    };
    let Some(reason) = reason else { return Ok(Verification::broken(&found, memory)) };
    let entry = NewEntry {
        kind: ledger::ACCEPTED,
        plan,
        slice: None,
        author: &Environment.author(),
        epoch: None,
        lsn: None,
        plan_hash: None,
        body: &json!({ "reason": reason, "broken_entry": found.id, "fault": found.fault.to_string() }),
    };
    ledger::accept(service, memory, (name, &entry)).await?;
    Box::pin(verify((plan, name), (service, memory), None)).await
}
