//! The plan's hooks: commands and webhooks that are run around a flip, such as PAUSE and RESUME of a pool.
//!
//! Who calls it: `strangler flip`, with [`Executor::before`] once it is known that a flip may begin, and with [`Executor::after`]
//! when it is over, whatever came of it. Each hook gets one JSON document; docs/plan.md has its form. Nothing is printed
//! here: what a hook did goes to the caller as a [`Report`].

mod command;
mod document;
mod webhook;

use std::time::{Duration, Instant};

pub use document::{Moving, Occasion, Outcome, Phase};
use webhook::Target;

use crate::plan::{Action, Hook, Hooks, LinkTemplate, Plan, Variables};
use crate::problem::Problem;

/// Bytes of a hook's output that are kept: enough for the reason of a failure.
const OUTPUT_BYTES_MAX: usize = 8 << 10;

/// What one hook did, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which one: `before hook 1 (pause-pool)`.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// What it printed or answered, cut to a bound, without control characters.
    pub output: String,
    /// Why it counts as failed: a clause.
    pub failure: Option<String>,
}

/// How a hook ended.
struct Ended {
    output: String,
    failure: Option<String>,
}

/// Runs the hooks of one flip.
#[derive(Debug)]
pub struct Executor {
    before: Vec<Ready>,
    after: Vec<Ready>,
    /// Variables that commands don't see: links and webhooks are made of them.
    hidden: Vec<String>,
}

/// A hook that can be run.
#[derive(Debug)]
struct Ready {
    name: String,
    deed: Deed,
    timeout: Duration,
}

#[derive(Debug)]
enum Deed {
    Command(Vec<String>),
    Webhook(Box<Target>),
}

impl Executor {
    /// The hooks of a flip of these slices, with their URLs filled in, so that nothing is missing when `after` is due.
    ///
    /// # Errors
    /// `hook-not-ready` when a URL can't be filled in or used; nothing was run then.
    pub fn new(plan: &Plan, slices: &[String], variables: &dyn Variables) -> Result<Self, Box<Problem>> {
        let own = slices.iter().filter_map(|name| plan.slices.get(name)).map(|slice| &slice.policy.hooks);
        let hooks = own.fold(plan.policy.hooks.clone(), |all, hooks| all.and(hooks));
        let ready = |phase: Phase, list: &[Hook]| -> Result<Vec<Ready>, Box<Problem>> {
            let numbered = list.iter().enumerate();
            numbered.map(|(index, hook)| Ready::new(phase, index + 1, hook, variables)).collect()
        };
        Ok(Self {
            before: ready(Phase::Before, &hooks.before)?,
            after: ready(Phase::After, &hooks.after)?,
            hidden: secret_variables(plan, &hooks),
        })
    }

    /// Runs the `before` hooks. When one fails, the flip must not begin; `after` has then been run already, so that what
    /// the earlier ones held back is let go.
    ///
    /// # Errors
    /// `hook-refused`, followed by the warnings of `after`.
    pub async fn before(
        &self,
        occasion: &Occasion,
        tell: &mut (dyn FnMut(&Report) + Send),
    ) -> Result<(), Vec<Problem>> {
        let text = occasion.document(Phase::Before, None);
        for hook in &self.before {
            let report = hook.run(&text, &self.hidden).await;
            tell(&report);
            if let Some(failure) = &report.failure {
                let refusal = Problem::error("hook-refused", &report.name)
                    .fact(format!("it {failure}"))
                    .consequence("the flip did not begin, and authority is where it was")
                    .next("see what the hook printed; then type the same command again");
                let warnings = self.after(occasion, Outcome::NotMoved, tell).await;
                return Err([vec![refusal], warnings].concat());
            }
        }
        Ok(())
    }

    /// Runs all `after` hooks, and returns a warning for each that failed.
    pub async fn after(
        &self,
        occasion: &Occasion,
        outcome: Outcome,
        tell: &mut (dyn FnMut(&Report) + Send),
    ) -> Vec<Problem> {
        let text = occasion.document(Phase::After, Some(outcome));
        let mut warnings = Vec::new();
        for hook in &self.after {
            let report = hook.run(&text, &self.hidden).await;
            tell(&report);
            if let Some(failure) = &report.failure {
                warnings.push(
                    Problem::warning("hook-failed", &report.name)
                        .fact(format!("it {failure}"))
                        .consequence(
                            "the flip stands as it was reported; what the hook should have done is not done",
                        )
                        .next("do by hand what the hook should have done"),
                );
            }
        }
        warnings
    }
}

impl Ready {
    fn new(
        phase: Phase,
        number: usize,
        hook: &Hook,
        variables: &dyn Variables,
    ) -> Result<Self, Box<Problem>> {
        let name = |what: &str| format!("{} hook {number} ({what})", phase.as_str());
        let (name, deed) = match &hook.action {
            Action::Command(words) => {
                let program = words.first().map(String::as_str).unwrap_or_default();
                (name(program), Deed::Command(words.clone()))
            }
            Action::Webhook(url) => {
                let name = name("webhook");
                let target = target(url, variables).map_err(|why| Box::new(not_ready(&name, &why)))?;
                (name, Deed::Webhook(Box::new(target)))
            }
        };
        Ok(Self { name, deed, timeout: hook.timeout })
    }

    async fn run(&self, document: &str, hidden: &[String]) -> Report {
        let begun = Instant::now();
        let ended = match &self.deed {
            Deed::Command(words) => command::run(words, hidden, document, self.timeout).await,
            Deed::Webhook(target) => target.send(document, self.timeout).await,
        };
        let Ended { output, failure } = ended;
        Report { name: self.name.clone(), took: begun.elapsed(), output, failure }
    }
}

fn target(url: &LinkTemplate, variables: &dyn Variables) -> Result<Target, String> {
    use secrecy::ExposeSecret;
    let url = url.resolve(variables).map_err(|error| error.to_string())?;
    Target::new(url.expose_secret())
}

fn not_ready(name: &str, why: &str) -> Problem {
    Problem::error("hook-not-ready", name)
        .fact(why)
        .consequence("the hook could not be run, so the flip does not begin; nothing was changed")
        .next("correct policy.hooks in the plan, or set the variable; then type the same command again")
}

/// Names of the environment variables that the plan's links and webhooks are made of.
fn secret_variables(plan: &Plan, hooks: &Hooks) -> Vec<String> {
    let databases = plan.services.values().map(|service| &service.links).chain([&plan.monolith.links]);
    let links = databases.flat_map(|links| [&links.admin, &links.read, &links.apply]);
    let urls = hooks.before.iter().chain(&hooks.after).filter_map(|hook| match &hook.action {
        Action::Webhook(url) => Some(url),
        Action::Command(_) => None,
    });
    let mut names: Vec<String> = links.chain(urls).flat_map(LinkTemplate::variables).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What was printed, as it may be shown on a terminal: cut to the bound, without escape sequences.
fn shown(bytes: &[u8], is_cut: bool) -> String {
    let text = String::from_utf8_lossy(bytes);
    let kept = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t'));
    let mut shown: String = kept.collect();
    shown.truncate(shown.trim_end().len());
    if is_cut {
        shown.push_str("\n… and more, which is cut");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hook_printed_is_shown_without_escapes_and_says_when_it_is_cut() {
        assert_eq!(shown(b"a\x1b[31mb\r\n\tc\n\n", false), "a[31mb\n\tc");
        assert_eq!(shown(b"\xff", true), "\u{fffd}\n\u{2026} and more, which is cut");
    }
}
