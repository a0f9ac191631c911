//! `strangler flip`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::interrupt::{self, Interrupts};
use super::open::{self, Needs, Opened, PlanFile};
use super::report::{CliError, Exit, LeftBehind};
use super::ui::{Format, Ui};
use crate::authority::{Intent, Side};
use crate::check;
use crate::dualwrite::flip::conduct::{self, Conduct, ConductError, Told};
use crate::dualwrite::flip::moves::{self, Member, MoveError, Moved, Order};
use crate::dualwrite::flip::record;
use crate::dualwrite::flip::rehearse::{self, Rehearsal, Sample};
use crate::dualwrite::flip::timeline::Entry;
use crate::dualwrite::flip::{FlipError, KeptLinks, Left, Limits};
use crate::dualwrite::hooks::Report;
use crate::dualwrite::readiness::{self, Purpose};
use crate::dualwrite::together;
use crate::mapping::Mappings;
use crate::problem::{Problem, Severity};
use crate::status::judge::shell_word;
use crate::words;

/// Move write authority over slices to their services, or back
///
/// Holds the writers of the side that has authority for a moment, waits until the mirror has brought everything that they wrote,
/// closes that side's gate, and opens the other one: from then on the application writes there, and the mirror carries its
/// writes back. Writers that come meanwhile wait; those that come between the two gates get SQLSTATE 25006 and try again on
/// the other side. When the writers or the mirror take longer than the plan's write_pause_budget, everything is let go, nobody
/// gets an error, and it is tried again a little later.
///
/// Several slices move at one barrier: all or none. A command that was cut off is typed again and goes on where it was;
/// with --abort the side that had authority gets it back, unless the other one has it already.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanFile,
    /// This slice; may be given several times, for several that move together. Needed where the plan has more than one
    #[arg(long = "slice", value_name = "SLICE")]
    slices: Vec<String>,
    /// Move authority back to the monolith
    #[arg(long)]
    back: bool,
    /// Take back a move that was begun and not finished
    #[arg(long, conflicts_with_all = ["back", "rehearse"])]
    abort: bool,
    /// Do everything but close the gate, so many times, and say what a flip would take
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "20",
        value_parser = clap::value_parser!(u16).range(1..=1000))]
    rehearse: Option<u16>,
    /// Flip without a verdict of `reconcile` that still stands; the reason goes into the ledger
    #[arg(long, value_name = "REASON", value_parser = super::reason::reason)]
    accept_no_evidence: Option<String>,
    /// Who approved it; the name goes into the ledger. Needed where the plan says `approval: required`
    #[arg(long, value_name = "NAME", conflicts_with_all = ["abort", "rehearse"], value_parser = name)]
    approved_by: Option<String>,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Somebody's name: one line, and not empty.
pub(super) fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("that is nobody".to_owned()),
        name if name.chars().any(char::is_control) => Err("a name is one line".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// The document of `--format json` (docs/json-output.md).
#[derive(Debug, Serialize)]
struct Document<'a> {
    plan: &'a str,
    slices: Vec<Shown<'a>>,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    slice: &'a str,
    owner: String,
    epoch: i64,
    changed: bool,
    pause_ms: Option<f64>,
    steps: &'a [Entry],
}

/// The document of `--rehearse --format json`.
#[derive(Debug, Serialize)]
struct Rehearsed<'a> {
    plan: &'a str,
    slices: Vec<&'a str>,
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    out_of_time: usize,
    attempts: &'a [Sample],
    problems: &'a [Problem],
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    let opened = open::open(ui, &arguments.plan, &arguments.slices, Needs::All)?;
    // A service that is away must not keep its operator from hearing what became of a flip.
    let opened = opened.reachable(ui, &arguments.slices, Needs::All).await?;
    if opened.slices.is_empty() {
        return Ok(Exit::Clean);
    }
    if arguments.slices.is_empty() && opened.slices.len() > 1 {
        return Err(CliError::WhichSlice { verb: "flip", one: false, known: opened.slices.clone() });
    }
    let intent = match (arguments.abort, arguments.back) {
        (true, _) => Intent::Abort,
        (false, true) => Intent::FlipBack,
        (false, false) => Intent::Flip,
    };
    let rest = arguments.rehearse.map(|times| format!(" --rehearse {times}")).unwrap_or_default();
    let groups = together::groups(&opened.plan, &opened.slices, (verb(intent), &rest));
    groups.map_err(|problem| CliError::FlipRefused(opened.typed_all(vec![*problem])))?;
    let mut interrupts = Interrupts::listen().map_err(CliError::Start)?;
    let mappings = opened.mappings(ui).await?;
    let members = members(&opened, &mappings);
    let stop = CancellationToken::new();
    let order = Order {
        plan: opened.plan.name.clone(),
        intent,
        author: Environment.author(),
        remark: None,
        approved_by: arguments.approved_by.clone(),
        judged: BTreeMap::new(),
    };
    let path = shell_word(&opened.path);
    let conduct = Conduct {
        plan: &opened.plan,
        path: &path,
        variables: &Environment,
        accepted: arguments.accept_no_evidence.as_deref(),
        stop: &stop,
    };
    if let Some(times) = arguments.rehearse {
        let state = "a rehearsal changes nothing";
        return interrupt::unless(
            state,
            Box::pin(rehearse(
                ui,
                &opened,
                (&members, &order),
                (conduct, usize::from(times)),
                arguments.format,
            )),
        )
        .await;
    }
    let moved = finish(ui, (conduct, &members, order), &mut interrupts, &opened).await?;
    report(ui, arguments, &opened, &moved)
}

/// Lets a flip come to its end. The first Ctrl-C ends it where nothing is changed yet; else it takes seconds at most, which is
/// said, since hooks that hold writers back have to be let go. The second one is obeyed anywhere.
async fn finish(
    ui: &mut Ui,
    (conduct, members, order): (Conduct<'_>, &[Member], Order),
    interrupts: &mut Interrupts,
    opened: &Opened,
) -> Result<Vec<Moved>, CliError> {
    let (sender, mut words) = tokio::sync::mpsc::unbounded_channel();
    let mut tell = |told: Told<'_>| {
        // The receiver lives as long as the flip.
        let _ = sender.send(match told {
            Told::Problems(problems) => check::list(problems).trim_end().to_owned(),
            Told::Hook(report) => hook_words(report),
        });
    };
    let intent = order.intent;
    let all = all_slices(opened);
    let finishes = match intent {
        // Which way the move went that is taken back, nobody has said.
        Intent::Abort => String::new(),
        Intent::Flip | Intent::FlipBack | Intent::Resume => {
            format!("strangler {} PLAN{all} finishes it, and ", verb(intent))
        }
    };
    let mut flip = Box::pin(conduct.flip(members, order, &mut tell));
    let mut asked = false;
    let moved = loop {
        tokio::select! {
            moved = &mut flip => break moved,
            Some(said) = words.recv() => ui.words(&said),
            () = interrupts.next() => {
                if asked {
                    let state = opened.typed(&format!(
                        "a side that was closed stays closed until the move is ended: {finishes}strangler flip --abort \
                         PLAN{all} takes it back; a running mirror finishes it by itself; strangler status \
                         PLAN{all} says where it stands"
                    ));
                    return Err(CliError::Interrupted { state });
                }
                asked = true;
                conduct.stop.cancel();
                ui.words(
                    "it ends now if nothing is changed yet, else within seconds, one way or the other; once more leaves it \
                     where it is",
                );
            }
        }
    };
    drop(flip);
    while let Ok(said) = words.try_recv() {
        ui.words(&said);
    }
    moved.map_err(|error| failed(error, (opened, members), intent))
}

fn hook_words(report: &Report) -> String {
    let took = words::seconds(report.took.as_secs_f64());
    let output =
        if report.output.is_empty() { String::new() } else { format!("\n{}", report.output.trim_end()) };
    match &report.failure {
        None => format!("{} done in {took}{output}", report.name),
        Some(failure) => format!("{} {failure}, after {took}{output}", report.name),
    }
}

pub(super) fn members(opened: &Opened, mappings: &Mappings) -> Vec<Member> {
    let member = |slice: &String| {
        let mapping = mappings.get(slice)?;
        let policy = &opened.plan.slices.get(slice)?.policy;
        let limits = Limits::of(policy);
        Some(Member {
            limits,
            policy_hash: policy.hash(),
            mapping: Arc::new(mapping.clone()),
            links: KeptLinks::new(
                opened.monolith.admin.clone(),
                opened.services.get(&mapping.service)?.admin.clone(),
                &limits,
            ),
            monolith_apply: opened.monolith.apply.clone(),
        })
    };
    opened.slices.iter().filter_map(member).collect()
}

fn failed(error: ConductError, (opened, members): (&Opened, &[Member]), intent: Intent) -> CliError {
    let plan = shell_word(&opened.path);
    let (left, MoveError { slice, mut source }) = match error {
        ConductError::Refused(problems) => return CliError::FlipRefused(problems),
        ConductError::Stopped => {
            return CliError::Interrupted {
                state: "authority was not moved, and nothing was changed".to_owned(),
            };
        }
        ConductError::Move { left, source } => (left, source),
    };
    if let FlipError::Failed { words, .. } = &mut source
        && let Some(said) = members.iter().find_map(|member| member.links.owed_an_answer())
    {
        words.push_str("; ");
        words.push_str(&said);
    }
    // Of these, one speaks against the command wherever the slice stands, and by it nothing was changed.
    let (plain, problem, source) = match source {
        FlipError::Refused(refusal) => {
            let mut problem = refusal.problem(&plan, &slice);
            let bound = opened.plan.policy.flip_together.iter().any(|group| group.contains(&slice));
            if !refusal.is_of_one() {
                // Whatever is typed about one of several slices is typed about all of them.
                problem.next = problem.next.replace(&format!(" --slice {slice}"), &all_slices(opened));
            } else if bound {
                // The plan lets it go nowhere by itself any more.
                let abort = format!("strangler flip --abort {plan}{}", all_slices(opened));
                problem.next = format!("{abort} to give authority back; then the same command again");
            }
            (refusal.is_plain(), Some(problem), None)
        }
        FlipError::Together { others, from, settled } => {
            (true, Some(together::unfinished(&plan, &slice, (&others, from, settled))), None)
        }
        source @ FlipError::NotProvisioned { .. } => {
            (true, Some(readiness::not_provisioned(&plan, &slice, &source.to_string())), None)
        }
        FlipError::Unguarded { places } => (false, Some(readiness::not_armed(&places, &plan, &slice)), None),
        FlipError::Changed { what } => {
            (false, Some(readiness::changed_meanwhile(&what, &plan, &slice)), None)
        }
        FlipError::Short { side, margin, columns } => {
            let service = opened.plan.service_of(&slice).map_or("", |(name, _)| name);
            let name =
                if side == Side::Monolith { "monolith".to_owned() } else { format!("service {service}") };
            (false, Some(readiness::sequence_short(&name, margin, &columns)), None)
        }
        FlipError::Retired { since, undo } => {
            (false, None, Some(FlipError::Retired { since, undo: opened.typed(&undo) }))
        }
        source @ (FlipError::Connect(_)
        | FlipError::Failed { .. }
        | FlipError::Full { .. }
        | FlipError::NotWhole { .. }
        | FlipError::Standbys { .. }
        | FlipError::Unsettled) => (false, None, Some(source)),
    };
    match (source, left) {
        (None, left) if plain || left == Left::Stayed => CliError::FlipRefused(problem.into_iter().collect()),
        (Some(FlipError::Connect(error)), Left::Stayed) => CliError::Connect(*error),
        (Some(source), Left::Stayed) => CliError::Flip { plan, slice, source },
        (source, left) => {
            let all = all_slices(opened);
            let typed = |verb: &str| format!("strangler {verb} {plan}{all}");
            let (again, abort, status) = (typed(verb(intent)), typed("flip --abort"), typed("status"));
            let problems = problem.into_iter().collect();
            CliError::FlipLeft(Box::new(LeftBehind { left, again, abort, status, problems, source }))
        }
    }
}

/// The command that goes this way, as it is typed before the plan.
fn verb(intent: Intent) -> &'static str {
    match intent {
        Intent::FlipBack => "flip --back",
        Intent::Abort => "flip --abort",
        Intent::Flip | Intent::Resume => "flip",
    }
}

/// All slices of the command, as they are typed.
fn all_slices(opened: &Opened) -> String {
    opened.slices.iter().map(|slice| format!(" --slice {}", shell_word(slice))).collect()
}

fn report(ui: &mut Ui, arguments: &Arguments, opened: &Opened, moved: &[Moved]) -> Result<Exit, CliError> {
    match arguments.format {
        Format::Text => {
            for one in moved {
                ui.data(&text(one))?;
            }
            ui.words(&format!("next: {}", opened.typed("strangler status PLAN")));
        }
        Format::Json => {
            let slices = moved.iter().map(shown).collect();
            ui.json(&Document { plan: &opened.plan.name, slices }, false)?;
        }
    }
    Ok(Exit::Clean)
}

fn shown(moved: &Moved) -> Shown<'_> {
    Shown {
        slice: &moved.slice,
        owner: moved.owner.to_string(),
        epoch: moved.epoch.0,
        changed: moved.changed,
        pause_ms: moved.timeline.pause().map(|pause| pause.as_secs_f64() * 1000.0),
        steps: moved.timeline.entries(),
    }
}

fn text(moved: &Moved) -> String {
    let mut lines = Vec::new();
    for entry in moved.timeline.entries() {
        let outcome = if entry.outcome == "done" { String::new() } else { format!("  {}", entry.outcome) };
        lines
            .push(format!("  {:>9.2} ms  {:<8} {:>8.2} ms{outcome}", entry.at_ms, entry.step, entry.took_ms));
    }
    if let Some(pause) = moved.timeline.pause() {
        lines.push(format!("  writers were paused for {:.1} ms", pause.as_secs_f64() * 1000.0));
    }
    let already = if moved.changed { "" } else { " already" };
    let last = format!("{}: the {} has authority{already}, epoch {}", moved.slice, moved.owner, moved.epoch);
    lines.insert(0, last);
    format!("{}\n", lines.join("\n"))
}

async fn rehearse(
    ui: &mut Ui,
    opened: &Opened,
    (members, order): (&[Member], &Order),
    (conduct, times): (Conduct<'_>, usize),
    format: Format,
) -> Result<Exit, CliError> {
    let side = if order.intent == Intent::FlipBack { Side::Service } else { Side::Monolith };
    let fail = |error: ConductError| failed(error, (opened, members), order.intent);
    let nothing = conduct.nothing_to_rehearse(members, order.intent).await.map_err(fail)?;
    if !nothing.is_empty() {
        return Err(CliError::FlipRefused(nothing));
    }
    let judged = conduct.judge(members, (order.intent, Purpose::Rehearsal), &conduct::operator(order)).await;
    let (mut problems, _) = judged.map_err(|error| fail(error.into()))?;
    let mut found = Rehearsal::default();
    let slices: Vec<&str> = members.iter().map(|member| member.mapping.slice.as_str()).collect();
    if !readiness::is_in_vain(&problems) {
        let mut drivers = moves::drivers(members, order).await.map_err(|error| fail(error.into()))?;
        let tried = rehearse::rehearse(&mut drivers, side, times).await;
        let (tried, fault) = tried.map_err(|error| fail(error.into()))?;
        drop(drivers);
        // What the judgement names a flip would be refused for before it holds anybody.
        if let Some(fault) = fault.filter(|_| !forbid(&problems)) {
            return Err(fail(fault.into()));
        }
        found = tried;
        let told = record::rehearsed(members, order, &found).await;
        told.map_err(|error| fail(error.into()))?;
        problems.extend(none_came_through(&found, (opened, order.intent, &slices)));
    }
    match format {
        Format::Text => {
            ui.data(&prediction(&slices.join(", "), &found))?;
            if !problems.is_empty() {
                ui.words(check::list(&problems).trim_end());
            }
        }
        Format::Json => ui.json(&rehearsed(&opened.plan.name, slices, (&found, &problems)), false)?,
    }
    if forbid(&problems) { Ok(Exit::Refused) } else { Ok(Exit::Clean) }
}

fn forbid(problems: &[Problem]) -> bool {
    problems.iter().any(|problem| problem.severity == Severity::Error)
}

/// A rehearsal whose attempts all ran out of time has shown that a flip would, too.
fn none_came_through(
    found: &Rehearsal,
    (opened, intent, slices): (&Opened, Intent, &[&str]),
) -> Option<Problem> {
    let (plan, all) = (shell_word(&opened.path), all_slices(opened));
    (found.samples.is_empty() && found.out_of_time > 0).then(|| {
        Problem::error("authority-out-of-time", format!("slice {}", slices.join(", ")))
            .fact(format!("{} attempts ran out of time, and none came through", found.out_of_time))
            .consequence("a flip would end in the same way; writers were only slowed down")
            .next(format!(
                "strangler {} {plan}{all} --rehearse once more lists who holds the gate or locks tables for long; strangler \
                 status {plan}{all}",
                verb(intent)
            ))
    })
}

fn rehearsed<'a>(
    plan: &'a str,
    slices: Vec<&'a str>,
    (found, problems): (&'a Rehearsal, &'a [Problem]),
) -> Rehearsed<'a> {
    let pause = |share| found.quantile_ms(share);
    Rehearsed {
        plan,
        slices,
        p50_ms: pause(0.5),
        p90_ms: pause(0.9),
        p99_ms: pause(0.99),
        out_of_time: found.out_of_time,
        attempts: &found.samples,
        problems,
    }
}

fn prediction(slices: &str, found: &Rehearsal) -> String {
    let of = |share| found.quantile_ms(share).unwrap_or_default();
    if found.samples.is_empty() && found.out_of_time == 0 {
        return format!("{slices}: nothing was tried, since no attempt could come through\n");
    }
    let mut lines = vec![format!(
        "{slices}: {} attempts came through, {} ran out of time and would have been tried again; nothing was changed",
        found.samples.len(),
        found.out_of_time
    )];
    if !found.samples.is_empty() {
        lines.push(format!(
            "  a flip would pause writers for {:.1} ms (median), {:.1} ms (p90), {:.1} ms (p99)",
            of(0.5),
            of(0.9),
            of(0.99)
        ));
    }
    format!("{}\n", lines.join("\n"))
}
