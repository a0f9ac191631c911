//! What every verb about a plan begins with: read the plan, choose the slices, find the ways into the databases.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::environment::Environment;
use super::report::CliError;
use super::ui::{Paint, Ui};
use crate::catalog::Catalog;
use crate::cdc::mirror::chain_of;
use crate::check;
use crate::journal::dropped::{self, Dropped};
use crate::journal::migrate::{self, Form};
use crate::journal::whereabouts::{self, Route, Whereabouts};
use crate::mapping::{self, Mappings};
use crate::name::TableName;
use crate::plan::{self, LinkTemplate, Links, Parsed, Plan, PlanProblem, Variables};
use crate::postgres::introspect;
use crate::postgres::{ConnectError, Server, SessionRole};
use crate::problem::{Problem, Severity};
use crate::status::judge::{Commands, shell_word};

/// How long a server may owe an answer to a statement that reads catalogs or changes a definition: seconds where there are very
/// many tables. What does not answer by then would hold the command for ever.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The plan that a command is about.
#[derive(Debug, clap::Args)]
pub(super) struct PlanFile {
    /// The plan file
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
}

/// The slices that a command is about.
#[derive(Debug, clap::Args)]
pub(super) struct Slices {
    /// Only this slice; may be given several times [default: all]
    #[arg(long = "slice", value_name = "SLICE")]
    pub(super) slices: Vec<String>,
}

/// Which links a verb uses. Only their variables must be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// `admin` on both sides.
    Admin,
    /// `read` and `apply` on both sides: a command that reads rows and makes nothing.
    Rows,
    /// Every link of both sides.
    All,
}

/// A plan that makes sense, the slices asked for, and ways into the databases.
#[derive(Debug)]
pub(super) struct Opened {
    /// The plan.
    pub(super) plan: Plan,
    /// Path as typed.
    pub(super) path: String,
    /// Names of the slices, in the order of the plan.
    pub(super) slices: Vec<String>,
    /// The monolith.
    pub(super) monolith: Ways,
    /// The services that the slices belong to.
    pub(super) services: BTreeMap<String, Ways>,
    /// Slices of the plan whose old tables are dropped, or about to be, as far as that was asked.
    pub(super) dropped: BTreeMap<String, Dropped>,
    /// Slices that the monolith knows to be dropped, and their service does not, as far as that was asked.
    pub(super) forgotten: BTreeMap<String, Dropped>,
    /// The plan's other services. Nobody has looked at their links: who needs one is told then what is wrong with it.
    pub(super) others: BTreeMap<String, Ways>,
}

/// A slice that does not fit the monolith's tables.
#[derive(Debug)]
pub(super) struct Unfit {
    /// The slice.
    pub(super) slice: String,
    /// Its tables, those that don't fit too.
    pub(super) tables: Vec<TableName>,
    /// What stops it.
    pub(super) problems: Vec<Problem>,
}

/// What is only good to know. Errors that stop nothing are about slices that the command leaves alone; `check` shows them.
fn tell(ui: &mut Ui, slices: &[String], mut problems: Vec<Problem>) {
    problems.retain(|problem| problem.severity != Severity::Error && problem.concerns(slices));
    if !problems.is_empty() {
        ui.words(check::list(&problems).trim_end());
    }
}

/// The ways into one database.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    /// DDL, publications, gates.
    pub(super) admin: Server,
    /// Catalogs, snapshots, slots.
    pub(super) read: Server,
    /// Mirrored rows.
    pub(super) apply: Server,
}

impl Ways {
    /// Everywhere within [`ANSWER_MAX`].
    fn answering(self) -> Self {
        let within = |server: Server| server.answering_within(ANSWER_MAX);
        Self { admin: within(self.admin), read: within(self.read), apply: within(self.apply) }
    }
}

impl Opened {
    /// For a command whose statements are all short: it gives a server up that owes an answer for longer than [`ANSWER_MAX`].
    pub(super) fn answering(mut self) -> Self {
        let within = |(name, ways): (String, Ways)| (name, ways.answering());
        self.monolith = self.monolith.answering();
        self.services = self.services.into_iter().map(within).collect();
        self
    }

    /// How such a command ended, with the server that was given up where that ended it.
    pub(super) fn heard<T>(&self, outcome: Result<T, CliError>) -> Result<T, CliError> {
        let ways = std::iter::once(&self.monolith).chain(self.services.values());
        let servers = ways.flat_map(|ways| [&ways.admin, &ways.read, &ways.apply]);
        outcome.map_err(|error| error.over_silence(servers))
    }

    /// Leaves out the slices whose old tables are dropped, with a line about each. `None` where no other is left, and nothing to be done.
    ///
    /// # Errors
    /// One of them was named: [`CliError::SliceDropped`]. A service can't be asked.
    pub(super) async fn living(
        mut self,
        ui: &mut Ui,
        named: &[String],
        needs: Needs,
    ) -> Result<Option<Self>, CliError> {
        self.ask_dropped(needs).await?;
        let opened = self.leave_out(ui, named)?;
        Ok((!opened.slices.is_empty()).then_some(opened))
    }

    /// The same for whoever does what he can while a service can't be reached: its slices stay in, with a line that says that nobody knows
    /// whether they are retired, and are met by whoever works with them, who can't without that service. Also where no slice is left.
    ///
    /// # Errors
    /// As [`Self::living`].
    pub(super) async fn reachable(
        mut self,
        ui: &mut Ui,
        named: &[String],
        needs: Needs,
    ) -> Result<Self, CliError> {
        let mut answered = BTreeSet::new();
        for (service, link) in self.asked(needs) {
            match self.ask_one(&link).await {
                Ok(()) => drop(answered.insert(service)),
                Err(CliError::Connect(_) | CliError::Silent { .. }) => ui.words(&format!(
                    "service {service} can't be reached, so nobody knows which of its slices are retired"
                )),
                Err(error) => return Err(error),
            }
        }
        self.ask_monolith(needs, &answered).await?;
        self.leave_out(ui, named)
    }

    fn leave_out(mut self, ui: &mut Ui, named: &[String]) -> Result<Self, CliError> {
        let of = |slice: &String| {
            let forgotten = self.forgotten.get(slice).map(dropped::forgotten);
            self.dropped.get(slice).map(Dropped::problem).or(forgotten)
        };
        let refused: Vec<Problem> = named.iter().filter_map(of).collect();
        if !refused.is_empty() {
            return Err(CliError::SliceDropped(self.typed_all(refused)));
        }
        for slice in self.slices.iter().filter(|slice| self.dropped.contains_key(*slice)) {
            ui.words(&format!("slice {slice} is retired, and left out"));
        }
        let unknown: Vec<Problem> = self.forgotten.values().map(dropped::forgotten).collect();
        if !unknown.is_empty() {
            ui.words(check::list(&self.typed_all(unknown)).trim_end());
        }
        self.slices.retain(|slice| !self.dropped.contains_key(slice) && !self.forgotten.contains_key(slice));
        Ok(self)
    }

    /// Refuses where a service does not know that old tables of its are dropped: whoever makes something for the slice would begin from
    /// nothing.
    ///
    /// # Errors
    /// [`CliError::SliceDropped`].
    pub(super) fn known_to_services(self) -> Result<Self, CliError> {
        let problems: Vec<Problem> = self.forgotten.values().map(dropped::forgotten).collect();
        if problems.is_empty() { Ok(self) } else { Err(CliError::SliceDropped(self.typed_all(problems))) }
    }

    /// Asks the services which slices are retired for good.
    ///
    /// # Errors
    /// One of them can't be asked: what nobody knows is not taken for a slice that has both its sides.
    pub(super) async fn ask_dropped(&mut self, needs: Needs) -> Result<(), CliError> {
        for (_, link) in self.asked(needs) {
            self.ask_one(&link).await?;
        }
        self.ask_monolith(needs, &self.services.keys().cloned().collect()).await
    }

    /// Asks the monolith for slices whose old tables went from it, and whose services, which were asked, know nothing of that. One that can't be
    /// reached is met by whoever needs it.
    async fn ask_monolith(&mut self, needs: Needs, answered: &BTreeSet<String>) -> Result<(), CliError> {
        let link = if needs == Needs::Rows { &self.monolith.apply } else { &self.monolith.admin };
        let link = link.clone().answering_within(ANSWER_MAX);
        let Ok(session) = link.connect("strangler").await else { return Ok(()) };
        let found = async { Ok(dropped::all(&session).await?) };
        let found = found.await.map_err(|error: CliError| error.over_silence([&link]))?;
        let forgotten = found.into_iter().filter(|one| {
            let asked = self.plan.service_of(&one.slice).is_some_and(|(name, _)| answered.contains(name));
            one.side == "monolith"
                && one.plan == self.plan.name
                && asked
                && !self.dropped.contains_key(&one.slice)
        });
        self.forgotten = forgotten.map(|one| (one.slice.clone(), one)).collect();
        self.forgotten.retain(|slice, _| self.slices.contains(slice));
        Ok(())
    }

    /// The services, each with the link by which it is asked.
    fn asked(&self, needs: Needs) -> Vec<(String, Server)> {
        let link = |ways: &Ways| if needs == Needs::Rows { ways.apply.clone() } else { ways.admin.clone() };
        let asked = self.services.iter().map(|(name, ways)| (name.clone(), link(ways)));
        asked.map(|(name, link)| (name, link.answering_within(ANSWER_MAX))).collect()
    }

    /// Whether a slice is retired by now: for whoever runs for so long that it may have become so. `None` also where nobody can say; who works
    /// with the slice meets that.
    pub(super) async fn dropped_now(&self, slice: &str) -> Option<Dropped> {
        let (service, _) = self.plan.service_of(slice)?;
        let link = self.services.get(service)?.apply.clone().answering_within(ANSWER_MAX);
        let session = link.connect("strangler").await.ok()?;
        let found = dropped::read(&session, slice).await.ok()??;
        (found.plan == self.plan.name).then_some(found)
    }

    async fn ask_one(&mut self, link: &Server) -> Result<(), CliError> {
        let found = async { Ok(dropped::all(&*link.connect("strangler").await?).await?) };
        let found = found.await.map_err(|error: CliError| error.over_silence([link]))?;
        let ours = found.into_iter().filter(|dropped| dropped.plan == self.plan.name);
        self.dropped.extend(ours.map(|dropped| (dropped.slice.clone(), dropped)));
        Ok(())
    }

    /// The slices for a verb that takes none for all: those that are chosen, where others are to be left out.
    pub(super) fn only<'a>(&'a self, named: &'a [String]) -> &'a [String] {
        if self.dropped.is_empty() && self.forgotten.is_empty() { named } else { &self.slices }
    }

    /// What to type about this plan.
    pub(super) fn commands(&self) -> Commands {
        Commands::about(&self.path)
    }

    /// A command in which the engine wrote `PLAN`, because it doesn't know the file, as it must be typed.
    pub(super) fn typed(&self, command: &str) -> String {
        command.replace(" PLAN", &format!(" {}", shell_word(&self.path)))
    }

    /// Problems with the commands that they name as they must be typed.
    pub(super) fn typed_all(&self, mut problems: Vec<Problem>) -> Vec<Problem> {
        for problem in &mut problems {
            problem.next = self.typed(&problem.next);
        }
        problems
    }

    /// Joins the plan with the monolith's tables. The mappings are those of every slice of the plan; whole are those of the
    /// slices that were asked for. What is only good to know goes to stderr.
    ///
    /// # Errors
    /// The monolith can't be read, its link leads elsewhere, or one of the slices doesn't fit it: all problems.
    pub(super) async fn mappings(&self, ui: &mut Ui) -> Result<Mappings, CliError> {
        self.mappings_of(ui, &self.slices).await
    }

    /// The same for some of the slices: what is wrong with others is no matter of theirs.
    ///
    /// # Errors
    /// As [`Self::mappings`].
    pub(super) async fn mappings_of(&self, ui: &mut Ui, slices: &[String]) -> Result<Mappings, CliError> {
        let (mappings, problems) = self.compile().await?;
        if problems.iter().any(|problem| problem.stops(slices)) {
            return Err(CliError::Unfit(problems));
        }
        tell(ui, slices, problems);
        Ok(mappings)
    }

    /// The mappings of those of the slices that fit the monolith's tables. The others come with all problems that stop
    /// them.
    ///
    /// # Errors
    /// As [`Self::mappings`], where no slice fits.
    pub(super) async fn fitting(&self, ui: &mut Ui) -> Result<(Mappings, Vec<Unfit>), CliError> {
        let (mut mappings, problems) = self.compile().await?;
        let of = |slice: &String| {
            let stops = problems.iter().filter(|problem| problem.stops(std::slice::from_ref(slice)));
            let mapping = mappings.get(slice).into_iter();
            let named = mapping.flat_map(|mapping| {
                mapping.tables.iter().map(|table| &table.source).chain(&mapping.unmapped)
            });
            Unfit {
                slice: slice.clone(),
                tables: named.cloned().collect(),
                problems: stops.cloned().collect(),
            }
        };
        let unfit: Vec<Unfit> =
            self.slices.iter().map(of).filter(|unfit| !unfit.problems.is_empty()).collect();
        if unfit.len() == self.slices.len() {
            return Err(CliError::Unfit(problems));
        }
        mappings
            .retain(|name, _| self.slices.contains(name) && unfit.iter().all(|unfit| unfit.slice != *name));
        tell(ui, &self.slices, problems);
        Ok((mappings, unfit))
    }

    async fn compile(&self) -> Result<(Mappings, Vec<Problem>), CliError> {
        let read = self.monolith.read.clone().answering_within(ANSWER_MAX);
        let catalog = self.catalog(&read).await.map_err(|error| error.over_silence([&read]))?;
        Ok(mapping::compile(&self.plan, &catalog))
    }

    async fn catalog(&self, monolith: &Server) -> Result<Catalog, CliError> {
        let session = monolith.connect("strangler mirror").await?;
        self.stay_away(&whereabouts::read(&session).await?).await?;
        let catalog = introspect::read(&session).await?;
        if migrate::form(&session).await? != Form::Absent {
            return Ok(catalog);
        }
        // Our schema went with the last slice: what its tables were is known to the services alone.
        let names: Vec<String> = self.plan.slices.keys().cloned().collect();
        let mut fragments = Vec::new();
        for ways in self.services.values() {
            let session = ways.clone().answering().apply.connect("strangler mirror").await?;
            fragments.extend(dropped::fragments(&session, &names).await?);
        }
        Ok(catalog.with_dropped(fragments))
    }

    /// Refuses a monolith's link that leads to a service's database, before its tables are taken for the monolith's. The
    /// services are asked only then, to say what else is mixed up; the engine asks them again at each of its starts.
    async fn stay_away(&self, monolith: &Whereabouts) -> Result<(), CliError> {
        let route = |slice| -> Option<Route<'_>> {
            let (service, _) = self.plan.service_of(slice)?;
            Some(Route { plan: &self.plan.name, slice, service })
        };
        let routes: Vec<Route<'_>> = self.slices.iter().filter_map(|slice| route(slice)).collect();
        if routes.iter().all(|route| whereabouts::astray(*route, Some(monolith), None).is_empty()) {
            return Ok(());
        }
        let mut found = BTreeSet::new();
        for route in routes {
            let there = match self.services.get(route.service) {
                Some(ways) => match ways.clone().answering().apply.connect("strangler mirror").await {
                    Ok(session) => Some(whereabouts::read(&session).await?),
                    Err(_) => None,
                },
                None => None,
            };
            found.extend(whereabouts::astray(route, Some(monolith), there.as_ref()));
        }
        Err(CliError::Astray(self.typed_all(found.iter().map(whereabouts::Astray::problem).collect())))
    }
}

/// Reads the plan and prepares the links; connects to nothing. No slices means all of them. Warnings about the plan go to stderr.
///
/// # Errors
/// The plan does not make sense, a slice is not in it, or a link can't be filled in or read: all of them at once.
pub(super) fn open(
    ui: &mut Ui,
    file: &PlanFile,
    slices: &[String],
    needs: Needs,
) -> Result<Opened, CliError> {
    let parsed = plan::read(&file.plan).map_err(CliError::Plan)?;
    if !parsed.warnings.is_empty() {
        ui.words(parsed.warnings.render(ui.words_paint() == Paint::Colour).trim_end());
    }
    let Parsed { plan, source, .. } = parsed;
    let slices = chosen(&plan, slices)?;
    let variables: Arc<dyn Variables> = Arc::new(Environment);
    let monolith = ways("monolith", &plan.monolith.links, &variables);
    let mut used = used_links(&plan.monolith.links, &monolith, needs);
    let (mut services, mut others) = (BTreeMap::new(), BTreeMap::new());
    for (name, service) in &plan.services {
        let ways = ways(&format!("service {name}"), &service.links, &variables);
        if slices.iter().any(|slice| plan.service_of(slice).is_some_and(|(owner, _)| owner == name)) {
            used.extend(used_links(&service.links, &ways, needs));
            services.insert(name.clone(), ways);
        } else {
            others.insert(name.clone(), ways);
        }
    }
    let problems = link_problems(&plan, &used, &*variables);
    if !problems.is_empty() {
        return Err(CliError::Plan(source.problems(problems)));
    }
    let path = file.plan.display().to_string();
    Ok(Opened {
        plan,
        path,
        slices,
        monolith,
        services,
        dropped: BTreeMap::new(),
        forgotten: BTreeMap::new(),
        others,
    })
}

fn chosen(plan: &Plan, wanted: &[String]) -> Result<Vec<String>, CliError> {
    let known: Vec<String> = plan.slices.keys().cloned().collect();
    let unknown: Vec<String> = wanted.iter().filter(|name| !known.contains(name)).cloned().collect();
    if !unknown.is_empty() {
        return Err(CliError::Unknown { what: "slice", option: "--slice", names: unknown, known });
    }
    Ok(known.into_iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect())
}

fn ways(label: &str, links: &Links, variables: &Arc<dyn Variables>) -> Ways {
    let server = |link: &LinkTemplate, role| Server::new(label, link.clone(), role, Arc::clone(variables));
    Ways {
        admin: server(&links.admin, SessionRole::Admin),
        read: server(&links.read, SessionRole::Read),
        apply: server(&links.apply, SessionRole::Apply),
    }
}

fn used_links(links: &Links, ways: &Ways, needs: Needs) -> Vec<(LinkTemplate, Server)> {
    let pair = |link: &LinkTemplate, server: &Server| (link.clone(), server.clone());
    let admin = [pair(&links.admin, &ways.admin)];
    let rows = [pair(&links.read, &ways.read), pair(&links.apply, &ways.apply)];
    match needs {
        Needs::Admin => admin.into(),
        Needs::Rows => rows.into(),
        Needs::All => admin.into_iter().chain(rows).collect(),
    }
}

/// Fills in and reads each used link once, so that everything that is wrong is said before anything is begun.
fn link_problems(
    plan: &Plan,
    used: &[(LinkTemplate, Server)],
    variables: &dyn Variables,
) -> Vec<PlanProblem> {
    let of_used = |problem: &PlanProblem| used.iter().any(|(link, _)| link.place() == problem.place);
    let mut problems: Vec<PlanProblem> =
        plan.missing_variables(variables).into_iter().filter(of_used).collect();
    for (link, server) in used {
        if let Err(error @ ConnectError::Syntax { .. }) = server.describe() {
            let problem = PlanProblem::error("plan.bad-link", chain_of(&error));
            problems.push(
                problem.help("a link reads postgresql://user:password@host:5432/database").at(link.place()),
            );
        }
    }
    problems
}
