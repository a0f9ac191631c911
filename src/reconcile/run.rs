//! One run: everything that is compared of one slice, from the lock to the verdict in the ledger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::evidence::{self, ConcludeError, Concluded, Monolith};
use super::finding::{FindingKind, RawKey};
use super::form::Side;
use super::progress::{Board, TableProgress};
use super::redact::{RedactError, Redactor};
use super::repair::owed;
use super::sides::{APPLICATION, Sides};
use super::stop::{self, Stopped};
use super::tables::{Tables, Worked};
use super::verdict::{Outcome, TableVerdict, Verdict};
use crate::cdc::mirror::chain_of;
use crate::cdc::source;
use crate::journal::grounds::{self, Ground};
use crate::journal::ledger::{self, Anchored, Author, Subject};
use crate::journal::runs::{self, Holder, Lock, Run, Wanted};
use crate::journal::verdicts::{self, DifferedBefore};
use crate::journal::whereabouts::{self, Route};
use crate::journal::{JournalError, slices};
use crate::lsn::Lsn;
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::postgres::connect::{ConnectError, Server, Session};
use crate::problem::Problem;
use crate::words;

/// A run says that it is alive this often while nothing settles.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// How long a service that went away at the end is waited for, so that the verdict can be recorded.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// Which rows of a table a run looks at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Look {
    /// All of them.
    Full,
    /// A random share, in per cent, above 0 and below 100.
    Sample(f64),
    /// Those that the stream touched since the last clean full verdict, or since a position on the authority.
    ChangedSince(Option<Lsn>),
}

/// What the operator asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tables by the monolith's names; empty means all.
    pub tables: Vec<TableName>,
    /// Those among them that the slice had when they were asked for, and that the plan means no more: nothing can be
    /// said about them.
    pub lost: Vec<TableName>,
    /// Two seeds, and representations.
    pub strict: bool,
    /// Which rows.
    pub look: Look,
    /// Chunks at a time.
    pub parallel: usize,
    /// Open transactions on the authority above which nothing new is read.
    pub max_load: Option<u32>,
    /// Findings that are listed; all are counted.
    pub list: usize,
    /// The oldest run that is gone on with; zero begins anew.
    pub resume_within: Duration,
    /// Who.
    pub author: Author,
}

impl Options {
    /// The same text for the same work: only such a run is resumed.
    fn text(&self) -> String {
        let tables: Vec<String> = self.tables.iter().map(ToString::to_string).collect();
        format!("2 tables={tables:?} strict={} look={:?}", self.strict, self.look)
    }
}

/// One slice, and the ways to its databases.
#[derive(Debug, Clone)]
pub struct SliceJob {
    /// Plan.
    pub plan: String,
    /// The slice's mapping.
    pub mapping: Arc<SliceMapping>,
    /// Hash of the slice's policy.
    pub policy_hash: String,
    /// The monolith, for reading.
    pub monolith_read: Server,
    /// The monolith, under the apply role.
    pub monolith_apply: Server,
    /// The service, under the apply role.
    pub service_apply: Server,
    /// All slices of the plan with the services that they go to, this one among them: rows of theirs may be referred to.
    pub neighbours: Arc<Vec<(SliceMapping, Server)>>,
}

/// A run with its verdict.
#[derive(Debug)]
pub struct Done {
    /// What it says.
    pub verdict: Verdict,
    /// Its entry in the ledger.
    pub concluded: Concluded,
    /// Every proven finding's key, for repair: table by the monolith's name.
    pub keys: Vec<(TableName, RawKey, FindingKind)>,
    /// The sides that were compared.
    pub sides: Sides,
    /// What was known to differ before the authority moved, where this run found rows to differ too: a repair would write what
    /// was the wrong row then over the right one.
    pub before: Option<DifferedBefore>,
    /// What hides classified values of this run: a value has one digest in its report, its repairs and their record.
    pub redactor: Arc<Redactor>,
}

/// A run came to no verdict.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A database was reached, and then owed an answer for too long.
    #[error("{database}: no answer within {}", words::seconds(.limit.as_secs_f64()))]
    Silent {
        /// `monolith` or `service NAME`.
        database: String,
        /// How long it owed the answer.
        limit: Duration,
        /// What that ended.
        #[source]
        ended: Box<RunError>,
    },
    /// Our own tables could not be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// There is no key to hide classified values with.
    #[error(transparent)]
    Redact(#[from] RedactError),
    /// Links lead to other databases than the plan says, or the slice in them is another plan's.
    #[error("{}", whereabouts::summary(.0).0)]
    Astray(Vec<Problem>),
    /// The slice is not in the service's database.
    #[error("slice {slice} is not provisioned")]
    NotProvisioned {
        /// The slice.
        slice: String,
    },
    /// The plan means another mapping than the one that the service was provisioned for.
    #[error("slice {slice} was provisioned for another mapping than the plan has now: {what}")]
    OtherMapping {
        /// The slice.
        slice: String,
        /// What changed, or what counts.
        what: String,
    },
    /// Neither side, or both, may write.
    #[error("slice {slice}: {found}, so that no side says what is right")]
    NoAuthority {
        /// The slice.
        slice: String,
        /// What the gates say.
        found: String,
    },
    /// Another run of the slice is under way.
    #[error("another reconciliation of slice {slice} is under way{}", holder_words(.holder.as_deref()))]
    Held {
        /// The slice.
        slice: String,
        /// Who, when that is known.
        holder: Option<Box<Holder>>,
    },
    /// There is no verdict to look back to.
    #[error("slice {slice} has no clean full verdict that stands, so nothing is known to look back to")]
    NothingToLookBackTo {
        /// The slice.
        slice: String,
    },
    /// The position to look back to is none of the past.
    #[error(
        "slice {slice}: {lsn} lies ahead of the authority, which is at {now}, so nothing was written since"
    )]
    Ahead {
        /// The slice.
        slice: String,
        /// The position that was typed.
        lsn: Lsn,
        /// Where the authority is.
        now: Lsn,
    },
    /// The authority could not be asked for its position.
    #[error("the authority could not be asked for its position: {0}")]
    Position(String),
    /// Another process has gone on with the run, or has ended it with a verdict of its own.
    #[error(
        "another process has gone on with the run of slice {slice} and will give its verdict, or has given one since"
    )]
    Resumed {
        /// The slice.
        slice: String,
    },
    /// The run was stopped.
    #[error("the run of slice {slice} was stopped")]
    Stopped {
        /// The slice.
        slice: String,
        /// It began anew whatever was left by another, so the same command would do that again.
        fresh: bool,
    },
}

fn holder_words(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| {
        format!(
            ", by {} on {} (process {}), since {}",
            holder.author.operator, holder.author.host, holder.pid, holder.started_at
        )
    })
}

/// Compares one slice and records the verdict. A run that was killed is gone on with.
///
/// # Errors
/// [`RunError`]; whatever happens to single tables is in the verdict.
pub async fn run(
    job: &SliceJob,
    options: &Options,
    board: &Board,
    stop: &CancellationToken,
) -> Result<Done, RunError> {
    let begun = Box::pin(Begun::new(job, options)).await?;
    let slice = &job.mapping.slice;
    board.update(slice, |shown| {
        shown.run.clone_from(&begun.run.id);
        shown.tables = shown_tables(&job.mapping, options);
    });
    let redactor = Arc::new(Redactor::new()?);
    let tables = Tables {
        job,
        options,
        sides: &begun.sides,
        run: &begun.run,
        since: begun.since,
        journal: &begun.journal,
        redactor: Arc::clone(&redactor),
        board,
        stop,
    };
    let stopped = || RunError::Stopped { slice: slice.clone(), fresh: options.is_fresh() };
    let worked = tokio::select! {
        worked = stop::work(stop, Box::pin(tables.work())) => worked.unwrap_or_else(|Stopped| Err(stopped())),
        error = begun.beat(slice) => Err(error),
    };
    let worked = match worked {
        Ok(worked) => worked,
        Err(error) => {
            begun.let_go(slice).await;
            return Err(error);
        }
    };
    Box::pin(begun.conclude(job, options, (worked, redactor))).await
}

fn shown_tables(mapping: &SliceMapping, options: &Options) -> Vec<TableProgress> {
    let wanted = mapping.tables.iter().filter(|table| options.wants(&table.source));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate that is never negative, for display"
    )]
    let shown = wanted.map(|table| TableProgress {
        name: table.source.to_string(),
        rows_estimate: table.rows_estimate as u64,
        ..TableProgress::default()
    });
    shown.collect()
}

impl Options {
    /// The run goes on with no other.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.resume_within.is_zero()
    }

    /// The run looks at this table.
    #[must_use]
    pub fn wants(&self, table: &TableName) -> bool {
        self.tables.is_empty() || self.tables.contains(table)
    }
}

/// A run that has begun: it holds the slice's lock.
struct Begun {
    sides: Sides,
    run: Run,
    monolith: Session,
    journal: Mutex<Session>,
    /// Writes the ledger's head into the monolith's journal, when that can be reached.
    anchor: Option<Session>,
    /// The entry that the monolith's journal remembers and the ledger does not have: nothing that is appended now is evidence.
    contradicted: Option<i64>,
    /// Only rows that the stream touched after this position.
    since: Option<Lsn>,
    begun_at: Instant,
}

impl Begun {
    async fn new(job: &SliceJob, options: &Options) -> Result<Self, RunError> {
        let slice = &job.mapping.slice;
        let begun_at = Instant::now();
        let (service, monolith, anchor) = tokio::join!(
            job.service_apply.connect(APPLICATION),
            job.monolith_read.connect(APPLICATION),
            job.monolith_apply.connect(APPLICATION),
        );
        let (service, monolith) = (service?, monolith?);
        check_whereabouts(job, &monolith, &service).await?;
        let ground = ground(job, &monolith, &service).await?;
        let authority = authority(slice, &monolith, &service).await?;
        let holder = if authority == Side::Source { &monolith } else { &service };
        let since = since(slice, (holder, &service), &ground, options.look).await?;
        if let Lock::Held(holder) = runs::lock(&service, slice).await? {
            return Err(RunError::Held { slice: slice.clone(), holder: holder.map(Box::new) });
        }
        let author = options.author.clone();
        let subject = Subject::new(&job.plan, &job.mapping, job.policy_hash.clone(), author);
        subject.note_plan(&service, "reconcile").await?;
        let anchor = anchor.inspect_err(|error| {
            tracing::warn!(slice, %error, "the monolith's journal can't be written: the ledger's head is owed to it");
        });
        let anchor = anchor.ok();
        let requests: Vec<&Client> = std::iter::once(&*service).chain(anchor.as_deref()).collect();
        if let Err(error) = owed::settle(job, &service, &requests, &options.author).await {
            tracing::warn!(
                slice,
                error = chain_of(&error),
                "earlier repairs could not be recorded; the next run does it"
            );
        }
        let anchored = ledger::anchor(&service, anchor.as_deref(), &job.mapping.service).await;
        report_anchor(slice, &anchored);
        let contradicted = match anchored {
            Anchored::Contradicted { recorded, .. } => Some(recorded),
            Anchored::Empty | Anchored::Recorded(_) | Anchored::Owed { .. } => None,
        };
        let wanted = Wanted {
            slice,
            options: &options.text(),
            ground: &ground,
            author: &options.author,
            pid: std::process::id(),
            resume_within: options.resume_within,
        };
        let run = runs::begin(&service, &wanted).await?;
        let sides = Sides {
            authority,
            monolith_read: job.monolith_read.clone(),
            monolith_apply: job.monolith_apply.clone(),
            service_apply: job.service_apply.clone(),
        };
        Ok(Self { sides, run, monolith, journal: Mutex::new(service), anchor, contradicted, since, begun_at })
    }

    /// Gives signs of life; returns only when another process has taken the run over.
    async fn beat(&self, slice: &str) -> RunError {
        loop {
            tokio::time::sleep(BEAT_EVERY).await;
            let journal = self.journal.lock().await;
            // A service that does not answer is noticed by whoever works.
            if matches!(runs::beat(&journal, &self.run).await, Ok(false)) {
                return RunError::Resumed { slice: slice.to_owned() };
            }
        }
    }

    /// Gives the lock back, so that the next process need not wait for this one to end.
    async fn let_go(&self, slice: &str) {
        let journal = self.journal.lock().await;
        let _ = runs::unlock(&journal, slice).await;
    }

    async fn conclude(
        self,
        job: &SliceJob,
        options: &Options,
        (worked, redactor): (Worked, Arc<Redactor>),
    ) -> Result<Done, RunError> {
        let slice = &job.mapping.slice;
        let Worked { tables, listed, keys, mut reasons, lsn, from, .. } = worked;
        reasons.extend(self.contradicted.map(|entry| {
            format!(
                "the ledger of service {} is not what was written: the monolith's journal remembers another entry {entry}; \
                 strangler ledger --verify says more, and until a human accepts it no verdict is evidence",
                job.mapping.service
            )
        }));
        let outcomes = tables.iter().map(|table: &TableVerdict| table.outcome);
        let whole = if reasons.is_empty() { None } else { Some(Outcome::Incomplete) };
        let mut verdict = Verdict {
            run: self.run.id.clone(),
            plan: job.plan.clone(),
            slice: slice.clone(),
            service: job.mapping.service.clone(),
            outcome: Outcome::of(outcomes.chain(whole)),
            strict: options.strict,
            every_table: job.mapping.tables.iter().all(|table| options.wants(&table.source)),
            plan_hash: job.mapping.hash.clone(),
            epoch: self.run.ground.epoch,
            authority: Sides::word(self.sides.authority),
            lsn,
            from_lsn: from.unwrap_or(lsn),
            started_at: self.run.started_at.clone(),
            finished_at: String::new(),
            tables,
            listed,
            reasons,
            repairs: Vec::new(),
        };
        let journal = live(self.journal.into_inner(), &job.service_apply).await?;
        let monolith = live(self.monolith, &job.monolith_read).await?;
        let monolith = Monolith { read: &monolith, journal: self.anchor.as_deref() };
        let concluded =
            evidence::conclude(&journal, monolith, &self.run, &mut verdict, &options.author).await;
        let concluded = concluded.map_err(|error| match error {
            ConcludeError::Journal(error) => RunError::Journal(error),
            ConcludeError::Resumed => RunError::Resumed { slice: slice.clone() },
        })?;
        report_anchor(slice, &concluded.anchored);
        let _ = runs::unlock(&journal, slice).await;
        tracing::debug!(slice, took = ?self.begun_at.elapsed(), "a reconciliation ended");
        let before = match verdict.outcome {
            Outcome::Differs => {
                verdicts::differed_before(&journal, slice, (verdict.epoch, verdict.authority)).await?
            }
            Outcome::Clean | Outcome::Incomplete => None,
        };
        Ok(Done { verdict, concluded, keys, sides: self.sides, before, redactor })
    }
}

/// The session, or another one in its place when it broke.
async fn live(session: Session, server: &Server) -> Result<Session, RunError> {
    if !session.is_closed() && session.batch_execute("").await.is_ok() {
        return Ok(session);
    }
    let begun = Instant::now();
    loop {
        match server.connect(APPLICATION).await {
            Ok(session) => return Ok(session),
            Err(error) if begun.elapsed() >= END_PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}

fn report_anchor(slice: &str, anchored: &Anchored) {
    match anchored {
        Anchored::Recorded(_) | Anchored::Empty => {}
        Anchored::Owed { why, .. } => {
            tracing::warn!(
                slice,
                why,
                "the ledger's head could not be written to the monolith's journal; the next run does it"
            );
        }
        Anchored::Contradicted { recorded, .. } => tracing::error!(
            slice,
            recorded,
            "the monolith's journal remembers an entry that the ledger does not have: the ledger was cut off or replaced"
        ),
    }
}

async fn check_whereabouts(job: &SliceJob, monolith: &Session, service: &Session) -> Result<(), RunError> {
    let (there, here) = tokio::try_join!(whereabouts::read(monolith), whereabouts::read(service))?;
    let route = Route { plan: &job.plan, slice: &job.mapping.slice, service: &job.mapping.service };
    let astray = whereabouts::astray(route, Some(&there), Some(&here));
    if astray.is_empty() {
        return Ok(());
    }
    Err(RunError::Astray(astray.iter().map(whereabouts::Astray::problem).collect()))
}

/// What the comparison will rest on.
async fn ground(job: &SliceJob, monolith: &Session, service: &Session) -> Result<Ground, RunError> {
    let slice = &job.mapping.slice;
    let not_provisioned = || RunError::NotProvisioned { slice: slice.clone() };
    let (ground, shapes) = tokio::join!(grounds::service(service, slice), grounds::monolith(monolith, slice));
    let ground = ground.map_err(|error| missing(error, not_provisioned))?.ok_or_else(not_provisioned)?;
    if !job.mapping.is_pinned_by(&ground.plan_hash) {
        let mut what = ledger::what_changed(service, &job.mapping, &ground.plan_hash).await?;
        // Without what that slice's service knows, references to its tables are missing from the mapping.
        let unknown =
            job.neighbours.iter().filter_map(|(other, _)| Some((&other.slice, other.unknown.as_ref()?)));
        what.extend(unknown.map(|(other, why)| format!("; what slice {other} had is not known: {why}")));
        return Err(RunError::OtherMapping { slice: slice.clone(), what });
    }
    let shapes = shapes.map_err(|error| missing(error, not_provisioned))?;
    Ok(ground.with_monolith(&shapes))
}

/// Our tables are not there at all.
fn missing(error: JournalError, not_provisioned: impl Fn() -> RunError) -> RunError {
    let code = error.database_error().and_then(crate::postgres::sqlstate::code);
    if matches!(code, Some("42P01" | "3F000")) { not_provisioned() } else { error.into() }
}

/// From where on the stream's rows are looked at, when that is what is asked for.
async fn since(
    slice: &str,
    (authority, service): (&Session, &Session),
    ground: &Ground,
    look: Look,
) -> Result<Option<Lsn>, RunError> {
    match look {
        Look::Full | Look::Sample(_) => Ok(None),
        Look::ChangedSince(Some(lsn)) => {
            let now = source::insert_position(authority).await;
            let now = now.map_err(|error| RunError::Position(chain_of(&error)))?;
            if lsn > now {
                return Err(RunError::Ahead { slice: slice.to_owned(), lsn, now });
            }
            Ok(Some(lsn))
        }
        Look::ChangedSince(None) => {
            let found = evidence::evidence(service, slice).await?;
            let clean =
                found.last_full.as_ref().filter(|_| found.lacks(Some(ground), Duration::MAX).is_empty());
            let lsn = clean.map(|verdict| Some(verdict.from_lsn));
            lsn.ok_or_else(|| RunError::NothingToLookBackTo { slice: slice.to_owned() })
        }
    }
}

async fn authority(slice: &str, monolith: &Session, service: &Session) -> Result<Side, RunError> {
    let (there, here) = tokio::try_join!(slices::gate(monolith, slice), slices::gate(service, slice))?;
    let open = |gate: &Option<slices::GateRow>| gate.as_ref().is_some_and(|gate| gate.state == "OPEN");
    let found = match (open(&there), open(&here)) {
        (true, false) => return Ok(Side::Source),
        (false, true) => return Ok(Side::Target),
        (false, false) => "neither gate is open",
        (true, true) => "both gates are open",
    };
    Err(RunError::NoAuthority { slice: slice.to_owned(), found: found.to_owned() })
}
