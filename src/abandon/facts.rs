//! What is asked before a slice is taken back.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::lacking::{self, Lacks};
use super::monolith::{self, Identity, Known};
use super::sources::{self, Sources};
use super::{AbandonError, Job};
use super::{design, service};
use crate::journal::abandonment::{self, Abandonment, Others};
use crate::journal::alarms::{self, Uncleared};
use crate::journal::arming::{self, Armed};
use crate::journal::beginnings::{self, Home};
use crate::journal::dropped::{self, Dropped};
use crate::journal::holdings;
use crate::journal::migrate::{self, Form};
use crate::journal::outside::{self, Outside};
use crate::journal::process::{self, ProcessRow};
use crate::journal::retirement;
use crate::journal::slices::{self, GateRow, SliceRow};
use crate::journal::streams::{self, Source, StreamOf, StreamRow, StreamState};
use crate::journal::whereabouts::{self, Astray, Route};
use crate::name::TableName;
use crate::provision::withdrawal::{self, Traces};
use crate::provision::{Database, ProvisionError};

/// One database.
#[derive(Debug, Clone, Default)]
pub(super) struct Side {
    pub(super) form: Form,
    /// It is no clone or restored copy; `true` where nothing says what it should be.
    pub(super) itself: bool,
    pub(super) row: Option<SliceRow>,
    pub(super) gate: Option<GateRow>,
    /// Who else is provisioned here; nobody where our schema is not there.
    pub(super) others: Others,
    /// What of others depends on our schema.
    pub(super) foreign: Vec<String>,
    /// Its own name for itself; none where our schema is not there.
    pub(super) uuid: Option<String>,
    /// Its name.
    pub(super) database: String,
    pub(super) identity: Identity,
    pub(super) server: String,
    pub(super) server_major: u32,
}

/// What the monolith's books say of later stages.
#[derive(Debug, Clone, Default)]
pub(super) struct Later {
    pub(super) armed: Armed,
    /// A way back is written down.
    pub(super) way_back: bool,
    /// Tables of the slice are published in the service.
    pub(super) published: bool,
    /// Tables of the monolith on which the slice's gate hangs.
    pub(super) gated: Vec<TableName>,
    /// The stage of retirement that stands.
    pub(super) stage: Option<&'static str>,
    /// Rights that were taken away and not given back.
    pub(super) rights: usize,
    /// Schemas that hold old tables.
    pub(super) quarantines: Vec<String>,
}

/// All of it.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) astray: BTreeSet<Astray>,
    pub(super) monolith: Side,
    pub(super) service: Side,
    pub(super) begun: Option<Abandonment>,
    /// The monolith, as the run that has begun wrote it down.
    pub(super) known_monolith: Option<Known>,
    /// The database that the mirror has read from, where one ever did.
    pub(super) source: Option<Source>,
    /// The slice was taken back from the service's database, and nothing was provisioned for it since.
    pub(super) ended: bool,
    /// The database that it was provisioned in, as the monolith knows it.
    pub(super) home: Option<Home>,
    /// What either database says of the slice's old tables, where they are dropped or about to be.
    pub(super) dropped: Option<Dropped>,
    /// Tells this life of the slice from any other.
    pub(super) life: String,
    /// The service's ledger goes as well: as it was typed when it was begun.
    pub(super) drop_ledger: bool,
    pub(super) later: Later,
    /// The mirror of the way there, which is the way back's as well; a slice that is not armed has no way back.
    pub(super) mirror: Option<ProcessRow>,
    /// The lock that a running mirror holds is ours now.
    pub(super) mirror_lock: bool,
    pub(super) on_monolith: withdrawal::Standing,
    pub(super) in_service: service::Standing,
    pub(super) names: Vec<String>,
    pub(super) strays: Option<Uncleared>,
    pub(super) outside: Option<Outside>,
    /// What the monolith does not have any more of what was read from it.
    pub(super) lacks: Lacks,
    /// What became of the monolith's tables that were read.
    pub(super) sources: Sources,
    /// The tables whose rows an earlier run has taken, where it came so far.
    pub(super) decided: Option<BTreeSet<String>>,
}

/// Asks both databases. Every link must be outside of a transaction; the mirror's lock is taken in the service's session, which keeps
/// it until it ends.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn gather(job: Job<'_>) -> Result<Facts, AbandonError> {
    let slice = job.slice;
    let (monolith, service) = (&job.databases.monolith, service_of(job)?);
    let places = (whereabouts::read(monolith).await?, whereabouts::read(service).await?);
    let route = Route { plan: &job.plan.name, slice, service: job.service };
    let mut astray = whereabouts::astray(route, Some(&places.0), Some(&places.1));
    astray.retain(|one| !matches!(one, Astray::Abandoned { .. }));
    let (here, there) = (side(monolith, slice).await?, side(service, slice).await?);
    let stream = match there.form {
        Form::Current => streams::read(service, StreamOf::forward(slice)).await?,
        Form::Absent | Form::Older => None,
    };
    let row = here.row.as_ref().or(there.row.as_ref());
    let traces = Traces {
        slice,
        publication: row.map(|row| row.publication.as_str()),
        slot: stream.as_ref().map(|stream| stream.slot.as_str()),
        last: here.others.slices.is_empty(),
    };
    let names = [traces.publication, traces.slot].into_iter().flatten().map(str::to_owned).collect();
    let on_monolith = withdrawal::standing(monolith, traces).await?;
    let begun = match there.form {
        Form::Current => abandonment::read(service, slice).await?,
        Form::Absent | Form::Older => None,
    };
    let decided = begun.as_ref().and_then(|begun| design::decided(&begun.body));
    let beside = beside(job, (&here, &there), stream.as_ref().filter(|_| decided.is_none())).await?;
    // Behind that the monolith is about to forget what it could be asked for, or has.
    let (lacks, sources) = match (&stream, beside) {
        (_, Some(beside)) => beside,
        (Some(_), None) => (lacking::noted(service, slice).await?, Sources::default()),
        (None, None) => Default::default(),
    };
    let life = life(job, (&here, &there)).await?;
    let mut facts = Facts {
        astray,
        begun,
        known_monolith: None,
        source: stream.map(|stream| stream.source),
        ended: false,
        home: match here.form {
            Form::Current => beginnings::home(monolith, slice).await?,
            Form::Absent | Form::Older => None,
        },
        dropped: dropped(slice, (monolith, service)).await?,
        life,
        drop_ledger: job.drop_ledger,
        later: Later {
            published: published(service, row.map(|row| row.publication.as_str())).await?,
            ..later(monolith, slice, here.form).await?
        },
        mirror: None,
        mirror_lock: true,
        on_monolith,
        in_service: service::Standing::default(),
        names,
        strays: None,
        outside: None,
        lacks,
        sources,
        decided,
        monolith: here,
        service: there,
    };
    if facts.service.form == Form::Current {
        of_service(service, slice, &mut facts).await?;
    }
    Ok(facts)
}

/// What the monolith lacks of what was read from it, and what became of the tables that it was read from; `None` where no stream has begun.
async fn beside(
    job: Job<'_>,
    (here, there): (&Side, &Side),
    stream: Option<&StreamRow>,
) -> Result<Option<(Lacks, Sources)>, AbandonError> {
    let Some(stream) = stream else { return Ok(None) };
    let both = (&job.databases.monolith, service_of(job)?);
    let lacks = lacking::lacking(both, (job.slice, here.row.as_ref()), stream).await?;
    let known = here.row.as_ref().filter(|_| stream.state != StreamState::Creating).zip(there.row.as_ref());
    let sources = match known {
        Some((here, there)) => sources::look(both, job, (&here.publication, &there.plan_hash)).await?,
        None => Sources::default(),
    };
    Ok(Some((lacks, sources)))
}

/// The same once more, within transactions: whether nothing of it is otherwise than in `facts`.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn is_as_before(job: Job<'_>, facts: &Facts) -> Result<bool, AbandonError> {
    let (monolith, service) = (&job.databases.monolith, service_of(job)?);
    let Some(stream) = streams::read(service, StreamOf::forward(job.slice)).await? else { return Ok(true) };
    let row = slices::read(monolith, job.slice).await?;
    let lacks = lacking::lacking((monolith, service), (job.slice, row.as_ref()), &stream).await?;
    let publication = row.as_ref().map(|row| row.publication.as_str()).unwrap_or_default();
    Ok(lacks.is_same(&facts.lacks) && sources::are_as_seen(monolith, publication, &facts.sources).await?)
}

pub(super) fn service_of(job: Job<'_>) -> Result<&Client, AbandonError> {
    let database = Database::Service(job.service.to_owned());
    let client = job.databases.get(&database);
    client.ok_or(AbandonError::Provision(ProvisionError::NoConnection { database }))
}

/// The service says it first, and for good.
async fn dropped(
    slice: &str,
    (monolith, service): (&Client, &Client),
) -> Result<Option<Dropped>, AbandonError> {
    match dropped::read(service, slice).await? {
        Some(dropped) => Ok(Some(dropped)),
        None => Ok(dropped::read(monolith, slice).await?),
    }
}

/// One side after the other forgets the slice; what is asked for a token is so before the first one does.
async fn life(job: Job<'_>, (here, there): (&Side, &Side)) -> Result<String, AbandonError> {
    let service = match there.form {
        Form::Current => abandonment::life(service_of(job)?, job.slice).await?,
        Form::Absent | Form::Older => None,
    };
    let monolith = match here.form {
        Form::Current => abandonment::life(&job.databases.monolith, job.slice).await?,
        Form::Absent | Form::Older => None,
    };
    Ok(service.or(monolith).unwrap_or_default())
}

async fn of_service(service: &Client, slice: &str, facts: &mut Facts) -> Result<(), AbandonError> {
    facts.ended = abandonment::has_ended(service, slice).await?;
    let body = facts.begun.as_ref().map(|begun| begun.body.clone());
    if let Some(body) = &body {
        remember(facts, body);
    }
    let confirmed = body.as_ref().map(design::tables_of);
    let last = facts.service.others.slices.is_empty();
    facts.outside = outside::uncleared(service, slice).await?;
    let outside = facts.outside.is_some();
    let asked = service::Asked {
        slice,
        last,
        outside,
        lacks: &facts.lacks,
        sources: &facts.sources,
        confirmed: confirmed.as_ref(),
        decided: facts.decided.as_ref(),
    };
    facts.in_service = service::standing(service, asked).await?;
    facts.strays = alarms::uncleared(service, slice).await?;
    facts.mirror_lock = process::try_lock(service, slice).await?;
    facts.mirror = process::read(service, StreamOf::forward(slice)).await?;
    Ok(())
}

/// What an earlier run knew, and nobody can find out any more once the monolith has forgotten it.
fn remember(facts: &mut Facts, body: &Value) {
    let known = body.get(RESUMED_WITH);
    let flag = |side: &str, name: &str| {
        known.and_then(|known| known.get(side)?.get(name)?.as_bool()).unwrap_or_default()
    };
    facts.known_monolith = known.and_then(|known| monolith::remembered(known.get("monolith")?));
    for (side, name) in [(&mut facts.monolith, "monolith"), (&mut facts.service, "service")] {
        side.others.made_role |= flag(name, "made_role");
        side.others.quieted |= flag(name, "quieted");
    }
    facts.drop_ledger = known.and_then(|known| known.get("drop_ledger")?.as_bool()).unwrap_or_default();
}

/// What [`remember`] reads, for the first step to write down.
pub(super) fn to_remember(facts: &Facts) -> Value {
    let of = |side: &Side| json!({ "made_role": side.others.made_role, "quieted": side.others.quieted });
    let mut here = of(&facts.monolith);
    if let (Some(here), Value::Object(more)) = (here.as_object_mut(), monolith::to_remember(facts)) {
        here.extend(more);
    }
    json!({ "monolith": here, "service": of(&facts.service), "drop_ledger": facts.drop_ledger })
}

/// Where it is in what is written down.
pub(super) const RESUMED_WITH: &str = "resumed_with";

async fn side(client: &Client, slice: &str) -> Result<Side, AbandonError> {
    let sql = "SELECT (SELECT system_identifier FROM pg_control_system())::text, \
                   extract(epoch FROM pg_postmaster_start_time())::text, current_setting('server_version_num')::int4, \
                   datname::text, oid FROM pg_database WHERE datname = current_database()";
    let row = client.query_typed_one(sql, &[]).await.map_err(AbandonError::database("which server it is"))?;
    let major = u32::try_from(row.get::<_, i32>(2) / 10_000).unwrap_or_default();
    let form = migrate::form(client).await?;
    let identity = Identity { system_identifier: row.get(0), database_oid: row.get(4) };
    let server = format!("{} {}", identity.system_identifier, row.get::<_, String>(1));
    let database = row.get(3);
    let mut side =
        Side { form, itself: true, server, database, identity, server_major: major, ..Side::default() };
    if form != Form::Current {
        return Ok(side);
    }
    side.uuid = slices::database_uuid(client).await?;
    if side.uuid.is_some() {
        side.itself = whereabouts::is_itself(client).await?;
    }
    side.row = slices::read(client, slice).await?;
    side.others = abandonment::others(client, slice).await?;
    side.foreign = abandonment::foreign(client).await?;
    side.gate = slices::gate_if_any(client, slice).await?;
    Ok(side)
}

/// Whether `arm` has published the slice's tables in the service, under the name that they are published by on the monolith.
async fn published(service: &Client, publication: Option<&str>) -> Result<bool, AbandonError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
    let row = service.query_typed_one(sql, &[(&publication, Type::TEXT)]).await;
    Ok(row.map_err(AbandonError::database("what is published"))?.get(0))
}

async fn later(monolith: &Client, slice: &str, form: Form) -> Result<Later, AbandonError> {
    let holdings = holdings::read(monolith).await?;
    let gated = holdings.into_iter().filter(|one| one.gated && one.slice == slice);
    let mut later = Later { gated: gated.map(|one| one.table).collect(), ..Later::default() };
    if form != Form::Current {
        return Ok(later);
    }
    later.armed = arming::armed(monolith, slice).await?;
    later.way_back = arming::reverse(monolith, slice).await?.is_some();
    later.stage = retirement::read(monolith, slice).await?.map(|done| done.stage.as_str());
    later.rights = retirement::rights(monolith, slice).await?.len();
    let places = crate::postgres::places::read(monolith).await;
    let places = places.map_err(AbandonError::database("where old tables stand"))?;
    let ours = places.0.into_iter().filter(|place| place.slice == slice);
    later.quarantines = ours.map(|place| place.quarantine).collect();
    Ok(later)
}
