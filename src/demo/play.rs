//! The acts, one after the other.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use tokio_postgres::Config;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use super::narrator::{Narrator, count, seconds};
use super::operator::{Mirror, News, Operator, PLAN_PATH, typed};
use super::stage::{MONOLITH, ORDERS, PLACES, Stage};
use super::traffic::{Rate, Tally, Traffic};
use super::view::{Glance, View};
use super::{Act, DemoError, Options, owner, plan_text};
use crate::lsn::Lsn;
use crate::plan::{self, Plan};
use crate::reconcile::digest::TableDigest;

mod authority;
mod differences;
mod retirement;

/// Enough to see every kind of change within seconds, and little enough to leave two cores to the mirror.
const RATE: Rate = Rate { writers: 4, transactions_per_second: 120 };

/// Transactions that the audience sees before the play goes on.
const WARM_UP: u64 = 200;

/// How often something that is waited for is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// How often the audience hears of the lag.
const LAG_LINE: Duration = Duration::from_secs(1);

/// A service this close behind has its data in the time of a page view.
const CLOSE_SECONDS: f64 = 0.25;

/// So many readings in a row must be that close: one may be luck.
const CLOSE_READINGS: u32 = 3;

/// What the order service asks.
const FRESHNESS: &str = "SELECT slice, age::text FROM strangler.freshness";

/// A write that must be refused.
const INTRUSION: &str = r#"DELETE FROM sales."Orders" WHERE "Id" = 1"#;

/// The copy takes seconds; a machine that does much else at the same time needs more.
const PATIENCE: Duration = Duration::from_secs(180);

/// A demo that is on.
pub(super) struct Play<'a> {
    narrator: Narrator<'a>,
    options: Options,
    stage: Stage,
    /// How the application logs in to the monolith, and to the order service.
    application: Option<Config>,
    service: Option<Config>,
    traffic: Option<Traffic>,
    /// What became of the traffic of the release before.
    before: Tally,
    desk: Option<Desk>,
    journey: Option<Journey>,
    mirror: Option<Mirror>,
}

/// What the journey needs once there are links.
struct Journey {
    operator: Operator,
    view: View,
}

impl<'a> Play<'a> {
    pub(super) fn new(out: &'a mut (dyn Write + Send), options: Options) -> Self {
        let narrator = Narrator::new(out);
        Self {
            narrator,
            options,
            stage: Stage::default(),
            application: None,
            service: None,
            traffic: None,
            before: Tally::default(),
            desk: None,
            journey: None,
            mirror: None,
        }
    }

    pub(super) async fn acts(&mut self, stop: &CancellationToken) -> Result<(), DemoError> {
        let plan = plan::parse(plan_text().as_bytes(), PLAN_PATH)?.plan;
        let until = self.options.until;
        for act in Act::ALL.into_iter().filter(|act| *act <= until) {
            match act {
                Act::Clusters => self.clusters().await?,
                Act::Load => self.application = Some(self.load().await?),
                Act::Traffic => self.start_traffic().await?,
                Act::Check => self.check(&plan).await?,
                Act::Provision => self.provision().await?,
                Act::Mirror => self.start_mirror().await?,
                Act::Status => self.status(&plan).await?,
                Act::Prove => self.prove().await?,
                Act::Reconcile => Box::pin(self.reconcile()).await?,
                Act::Arm => Box::pin(self.arm(&plan)).await?,
                Act::Rehearse => Box::pin(self.rehearse()).await?,
                Act::Flip => Box::pin(self.flip()).await?,
                Act::Back => Box::pin(self.flip_back()).await?,
                Act::Again => Box::pin(self.flip_again()).await?,
                Act::Retire => Box::pin(self.retire()).await?,
            }
        }
        if self.options.keep { self.keep(stop).await } else { Ok(()) }
    }

    fn operator(&self) -> Result<&Operator, DemoError> {
        self.journey.as_ref().map(|journey| &journey.operator).ok_or(TOO_EARLY)
    }

    async fn clusters(&mut self) -> Result<(), DemoError> {
        self.narrator.act("A monolith, and an empty database for each service")?;
        let begun = Instant::now();
        for place in PLACES {
            self.stage.open(place).await?;
            self.narrator.say(&format!("{:<10} database {}", place.label(), place.database))?;
        }
        let took = seconds(begun.elapsed());
        self.narrator.say(&format!("{} PostgreSQL servers are up after {took}.", PLACES.len()))?;
        Ok(())
    }

    async fn load(&mut self) -> Result<Config, DemoError> {
        self.narrator.act("The retail monolith: one database that six domains share")?;
        self.narrator.command(
            "psql RetailMonolith -c 'SET ROLE retail_owner' -f plans/retail.sql -c 'RESET ROLE' -f plans/retail_data.sql",
        )?;
        let begun = Instant::now();
        let (loaded, application) = self.stage.load().await?;
        self.narrator.say(&format!(
            "{} rows in {} tables with {} foreign keys, in {}.",
            count(loaded.rows.unsigned_abs()),
            loaded.tables,
            loaded.foreign_keys,
            seconds(begun.elapsed())
        ))?;
        Ok(application)
    }

    async fn start_traffic(&mut self) -> Result<(), DemoError> {
        let application = self.application.as_ref().ok_or(DemoError::TooEarly("the monolith is loaded"))?;
        self.narrator.act("The application is in use, from here to the end")?;
        let begun = Instant::now();
        let traffic = Traffic::start(application, RATE, 1).await.map_err(DemoError::Traffic)?;
        while traffic.tally().acknowledged < WARM_UP {
            tokio::time::sleep(GLANCE).await;
        }
        self.narrator.say(&format!(
            "{} users fill carts, check out and pay: {} transactions in the first {}.",
            RATE.writers,
            traffic.tally().acknowledged,
            seconds(begun.elapsed())
        ))?;
        self.traffic = Some(traffic);
        Ok(())
    }

    async fn check(&mut self, plan: &Plan) -> Result<(), DemoError> {
        self.narrator.act("Check: what stands between the plan and a safe split?")?;
        self.narrator
            .say("First an administrator creates the roles of the plan's links. None is a superuser.")?;
        self.narrator.command(&format!("psql {}", MONOLITH.database))?;
        for statement in self.stage.role_statements(MONOLITH, plan)? {
            self.narrator.output(&format!("{statement};"))?;
        }
        self.narrator.say("The same at each service, and a password for everyone who logs in.")?;
        let links = self.stage.make_roles(plan).await?;
        let folder = self.stage.folder(&links)?;
        let view = View::new(plan, &links);
        let operator = Operator::new(self.options.program.clone(), folder, links);
        let words = ["check", PLAN_PATH];
        self.narrator.blank()?;
        self.narrator.command(&typed(&words))?;
        let said = operator.run(&words).await?;
        self.narrator.paragraphs(&said.data, 1, 3, "more, each with what it means and what to do")?;
        self.journey = Some(Journey { operator, view });
        Ok(())
    }

    async fn provision(&mut self) -> Result<(), DemoError> {
        let Journey { operator, .. } = self.journey.as_ref().ok_or(TOO_EARLY)?;
        self.narrator.act("Provision: the services get their tables, keys, roles and gates")?;
        let words = ["provision", PLAN_PATH, "--dry-run"];
        self.narrator.command(&format!("{} | wc -l", typed(&words)))?;
        let sql = operator.run(&words).await?.data;
        self.narrator.output(&sql.lines().count().to_string())?;
        self.narrator
            .say("So many lines of SQL, to be read before anything is changed. Then the same for real:")?;
        let words = ["provision", PLAN_PATH];
        self.narrator.command(&typed(&words))?;
        let begun = Instant::now();
        let said = operator.run(&words).await?;
        self.narrator.excerpt(&said.words, 3, 2)?;
        self.narrator
            .say(&format!("In {}. The tables of the monolith are as they were.", seconds(begun.elapsed())))?;
        Ok(())
    }

    async fn start_mirror(&mut self) -> Result<(), DemoError> {
        let Journey { operator, view } = self.journey.as_mut().ok_or(TOO_EARLY)?;
        self.narrator.act("Mirror: copy every row, and follow every change")?;
        self.narrator.command(&typed(&super::operator::MIRROR))?;
        let mirror = self.mirror.insert(operator.mirror()?);
        let (begun, mut close) = (Instant::now(), 0);
        self.narrator.say("Its lines about single tables and short steps are left out here.")?;
        let mut ticks = tokio::time::interval(LAG_LINE);
        let (mut lines, mut shown) = (Phases::default(), None);
        while close < CLOSE_READINGS {
            let glance = tokio::select! {
                    news = mirror.next() => match news {
            News::Line(line) => {
                if lines.is_news(&line) {
                    self.narrator.output(&line)?;
                }
                continue;
            }
                        News::Ended(error) => return Err(error.into()),
                    },
                    glance = async { ticks.tick().await; Glance::of(&view.slices().await) } => glance,
                };
            if begun.elapsed() > PATIENCE {
                return Err(too_slow("the services to catch up"));
            }
            close = if glance.is_within(CLOSE_SECONDS) { close + 1 } else { 0 };
            if shown == Some(glance) {
                continue;
            }
            shown = Some(glance);
            self.narrator.say(&format!("{:>6}: {glance}", seconds(begun.elapsed())))?;
            if begun.elapsed() > PATIENCE {
                return Err(too_slow("the services to catch up"));
            }
        }
        self.narrator
            .say("Everything is copied and current. The mirror runs on, and so does the application.")?;
        Ok(())
    }

    async fn status(&mut self, plan: &Plan) -> Result<(), DemoError> {
        let Journey { operator, .. } = self.journey.as_ref().ok_or(TOO_EARLY)?;
        self.narrator.act("Status: where does every slice stand?")?;
        let words = ["status", PLAN_PATH];
        self.narrator.command(&typed(&words))?;
        let said = operator.run(&words).await?;
        self.narrator.paragraphs(&said.data, 2, 0, "more slices")?;
        self.narrator.blank()?;
        self.visit_orders(plan).await
    }

    /// What a service's own application can do by now: read, and not write.
    async fn visit_orders(&mut self, plan: &Plan) -> Result<(), DemoError> {
        let Some(service) = plan.services.get(ORDERS.label()) else { return Ok(()) };
        self.narrator
            .say("The services may read already. How old their data is, asked as the order service:")?;
        let psql = format!("psql {} -U {}", ORDERS.database, service.app);
        let client = self.stage.application(ORDERS, &service.app).await?;
        let client = owner::connect(&client).await.map_err(DemoError::Visit)?;
        self.narrator.command(&format!("{psql} -tc '{FRESHNESS}'"))?;
        let row = client.query_typed_one(FRESHNESS, &[]).await.map_err(DemoError::Visit)?;
        let (slice, age): (String, String) =
            row.try_get(0).and_then(|slice| Ok((slice, row.try_get(1)?))).map_err(DemoError::Visit)?;
        self.narrator.output(&format!("{slice} | {age}"))?;
        self.narrator.say("They may not write until authority has moved to them:")?;
        self.narrator.command(&format!("{psql} -c '{INTRUSION}'"))?;
        match client.batch_execute(INTRUSION).await {
            Err(error) => match error.as_db_error() {
                Some(refusal) if refusal.code() == &SqlState::READ_ONLY_SQL_TRANSACTION => {
                    self.narrator.output(&format!("ERROR:  {}", refusal.message()))?;
                    Ok(())
                }
                Some(_) | None => Err(DemoError::Visit(error)),
            },
            Ok(()) => Err(DemoError::GateOpen),
        }
    }

    async fn prove(&mut self) -> Result<(), DemoError> {
        let Some(traffic) = &self.traffic else { return Err(TOO_EARLY) };
        self.narrator.act("Prove: is every row there, and the same?")?;
        self.narrator
            .say("Two sides that move can't be compared, so the application pauses for a moment.")?;
        let begun = Instant::now();
        let pause = traffic.pause().await;
        let Journey { view, .. } = self.journey.as_mut().ok_or(TOO_EARLY)?;
        let position = view.mark().await?;
        let mirror = self.mirror.as_mut().ok_or(TOO_EARLY)?;
        let arriving = arrived(view, position);
        tokio::select! {
            result = arriving => result?,
            error = ended(mirror) => return Err(error),
        }
        self.narrator.say(&format!(
            "All {} transactions are over, and {position} is the end of the monolith's log. After {} every mirror has",
            count(traffic.tally().acknowledged),
            seconds(begun.elapsed())
        ))?;
        self.narrator.say("noted that it is there, because a marker asks it to.")?;
        let mut all = Vec::new();
        for slice in view.mappings().await?.values() {
            for table in view.compare(slice).await? {
                self.narrator.output(&comparison(&table))?;
                all.push(table);
            }
        }
        drop(pause);
        verdict(&mut self.narrator, &all, begun.elapsed())
    }

    /// Leaves everything as it is until somebody has seen enough.
    async fn keep(&mut self, stop: &CancellationToken) -> Result<(), DemoError> {
        self.narrator.act("Look around")?;
        for line in self.stage.psql_lines() {
            self.narrator.command(&line)?;
        }
        if let Some(Journey { operator, .. }) = &self.journey {
            self.narrator.say("or type commands of your own, with the links in the environment:")?;
            self.narrator.command(&format!("cd {} && . ./links.sh", operator.folder().display()))?;
        }
        self.narrator.say("Everything runs on until you press Ctrl-C, and is removed then.")?;
        match &mut self.mirror {
            None => stop.cancelled().await,
            Some(mirror) => tokio::select! {
                () = stop.cancelled() => {}
                error = ended(mirror) => return Err(error),
            },
        }
        Ok(())
    }

    /// Ends the mirror, then the traffic, and removes the servers.
    pub(super) async fn close(self) -> Result<(), DemoError> {
        let Self { mut narrator, stage, traffic, before, desk, mirror, .. } = self;
        // What can't be said, because nobody listens any more, must not keep anything alive.
        let mut told = narrator.blank();
        if let Some(mirror) = mirror {
            told = told.and(narrator.say("Ctrl-C for the mirror:"));
            // It has talked all the while, and is heard out only now.
            told = told.and(narrator.excerpt(&mirror.stop().await.join("\n"), 0, 8));
        }
        if let Some(desk) = desk {
            let book = desk.close().await;
            let orders = count(u64::try_from(book.acknowledged.len()).unwrap_or(u64::MAX));
            told = told
                .and(narrator.say(&format!("The order desk is closed: {orders} transactions acknowledged.")));
        }
        if let Some(traffic) = traffic {
            let tally = before + traffic.stop().await;
            told = told.and(narrator.say(&format!(
                "The traffic is over: {} transactions acknowledged, {} rolled back by the application, {} refused.",
                count(tally.acknowledged),
                tally.rolled_back,
                tally.rejected
            )));
        }
        stage.close().await?;
        told.and(narrator.say("The servers and their data are removed."))?;
        Ok(())
    }
}

/// The phase that was last shown of each slice.
#[derive(Debug, Default)]
struct Phases {
    shown: BTreeMap<String, String>,
}

impl Phases {
    /// Whether a line of the mirror, such as `ordering: copying, 1 of 2 tables live`, tells of a slice that has begun to
    /// copy or to stream. Lines about tables are indented.
    fn is_news(&mut self, line: &str) -> bool {
        let Some((slice, rest)) = line.split_once(": ").filter(|_| !line.starts_with(' ')) else {
            return false;
        };
        let phase = rest.split([',', ' ']).next().unwrap_or_default();
        // The others wait for their turn while one copies.
        let waits = rest.ends_with("(another slice copies)");
        let known = self.shown.get(slice).is_some_and(|shown| shown == phase);
        if known || waits || !matches!(phase, "copying" | "streaming") {
            return false;
        }
        self.shown.insert(slice.to_owned(), phase.to_owned());
        true
    }
}

/// [`Act::ALL`] has an order, which the play keeps.
const TOO_EARLY: DemoError = DemoError::TooEarly("the acts that it needs");

fn too_slow(what: &'static str) -> DemoError {
    DemoError::TooSlow { what, seconds: PATIENCE.as_secs() }
}

/// Waits until every slice has applied everything up to a position.
async fn arrived(view: &mut View, position: Lsn) -> Result<(), DemoError> {
    let begun = Instant::now();
    loop {
        let slices = view.slices().await;
        if slices.iter().all(|slice| slice.lag.as_ref().is_some_and(|lag| lag.applied_lsn >= position)) {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(too_slow("the services to arrive where the monolith is"));
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// Waits for the end that a mirror should not have.
async fn ended(mirror: &mut Mirror) -> DemoError {
    loop {
        if let News::Ended(error) = mirror.next().await {
            return error.into();
        }
    }
}

fn comparison(table: &TableDigest) -> String {
    let name = format!("{} -> {}", table.source_table, table.target_table);
    let (sign, verdict) = if table.is_equal() { ("=", "content equal") } else { ("|", "DIFFERENT") };
    let (source, target) = (count(table.source.rows.unsigned_abs()), count(table.target.rows.unsigned_abs()));
    format!("{name:<34} {source:>7} {sign} {target:>7} rows, {verdict}")
}

fn verdict(narrator: &mut Narrator<'_>, all: &[TableDigest], pause: Duration) -> Result<(), DemoError> {
    let different = all.iter().filter(|table| !table.is_equal());
    let different: Vec<String> = different.map(|table| table.source_table.to_string()).collect();
    if !different.is_empty() {
        return Err(DemoError::Different { tables: different });
    }
    let rows: i64 = all.iter().map(|table| table.target.rows).sum();
    narrator.say(&format!(
        "{} tables, {} rows: counts and digests of the contents are equal. The application goes on after {}.",
        all.len(),
        count(rows.unsigned_abs()),
        seconds(pause)
    ))?;
    Ok(())
}
