//! What every verb about a plan begins with: read the plan, choose the slices, find the ways into the databases.

mod fit;
mod links;
mod retired;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::environment::Environment;
use super::report::CliError;
use super::ui::{Paint, Ui};
use crate::journal::dropped::Dropped;
use crate::plan::{self, Parsed, Plan, Variables};
use crate::problem::Problem;
use crate::status::judge::{Commands, shell_word};
pub(super) use fit::Unfit;
pub(super) use links::Ways;
use links::{link_problems, used_links, ways};

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

    /// The ways into a service of the plan, whether a chosen slice belongs to it or not.
    pub(super) fn ways_of(&self, service: &str) -> Option<&Ways> {
        self.services.get(service).or_else(|| self.others.get(service))
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
