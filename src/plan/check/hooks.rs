//! Hooks: what would fail at the flip is found when the plan is read.

use std::time::Duration;

use super::super::file::{HookFile, PolicyFile, example};
use super::super::hooks::{HOOKS_MAX, TIMEOUT_MAX};
use super::super::link;
use super::super::problem::PlanProblem;
use super::Review;

/// What is shown to whoever wrote a hook that is none.
const EXAMPLE: &str =
    "write for example `{ command: [pause-pool, shop], timeout: 10s }` or `{ webhook: \"${FLAGS_URL}\" }`";

pub(super) fn check(review: &mut Review<'_>, policy_path: &[&str], policy: &PolicyFile) {
    let Some(hooks) = &policy.hooks else { return };
    for (key, list) in [("before", &hooks.before), ("after", &hooks.after)] {
        let list_path: Vec<&str> = policy_path.iter().copied().chain(["hooks", key]).collect();
        let hooks = list.as_deref().unwrap_or_default();
        if hooks.len() > HOOKS_MAX {
            let message = format!(
                "`{key}` has {} hooks, more than the {HOOKS_MAX} that one list can have",
                hooks.len()
            );
            let problem = PlanProblem::error("plan.hook", message).at(review.key(&list_path));
            review.add(problem.help("put what belongs together into one script"));
        }
        for (number, hook) in hooks.iter().enumerate() {
            let number = number.to_string();
            let path: Vec<&str> = list_path.iter().copied().chain([number.as_str()]).collect();
            check_hook(review, &path, hook);
        }
    }
}

fn check_hook(review: &mut Review<'_>, path: &[&str], hook: &HookFile) {
    let below = |key| path.iter().copied().chain([key]).collect::<Vec<&str>>();
    let written = |review: &Review<'_>, key| review.is_written(&below(key));
    match (written(review, "command"), written(review, "webhook")) {
        (false, false) => {
            let problem = PlanProblem::error("plan.hook", "a hook has neither `command` nor `webhook`");
            review.add(problem.at(review.value(path)).help(EXAMPLE));
        }
        (true, true) => {
            let problem = PlanProblem::error("plan.hook", "a hook has both `command` and `webhook`");
            review.add(
                problem
                    .at(review.key(&below("webhook")))
                    .help("write them as two hooks, in the order in which they are to run"),
            );
        }
        (true, false) | (false, true) => {}
    }
    if let Some(command) = &hook.command {
        check_command(review, &below("command"), command);
    }
    if let Some(url) = &hook.webhook {
        check_webhook(review, &below("webhook"), url);
    }
    let fact = match hook.timeout.map(|period| period.0) {
        Some(Duration::ZERO) => "no hook could ever be quick enough",
        Some(timeout) if timeout > TIMEOUT_MAX => "a hook of more than five minutes is no part of a flip",
        Some(_) | None => return,
    };
    let problem = PlanProblem::error("plan.bad-limit", format!("`timeout` cannot have this value: {fact}"));
    review.add(
        problem
            .at(review.value(&below("timeout")))
            .help(format!("write for example `{}`", example("timeout").unwrap_or_default())),
    );
}

fn check_command(review: &mut Review<'_>, path: &[&str], command: &[String]) {
    let fact = match command {
        [] => "`command` names no program",
        [program, ..] if program.is_empty() => "`command` names no program",
        words if words.iter().any(|word| word.contains('\0')) => "`command` holds a zero byte",
        _ => return,
    };
    let problem = PlanProblem::error("plan.hook", fact).at(review.key(path));
    review
        .add(problem.help("write the program and its arguments, one by one: `command: [pause-pool, shop]`"));
}

fn check_webhook(review: &mut Review<'_>, path: &[&str], url: &str) {
    let place = review.value(path);
    let mut found = link::variable_problems(url, "FLAGS_URL");
    if found.is_empty() {
        let known = ["http://", "https://", "${"].iter().any(|start| url.starts_with(start));
        if !known {
            let problem = PlanProblem::error("plan.bad-link", "this is not a URL that a webhook can have");
            found.push(problem.help("write `http://…`, `https://…` or `\"${FLAGS_URL}\"`"));
        } else if link::holds_password(url) {
            let problem = PlanProblem::error("plan.hook", "a webhook's URL takes no user and password");
            found.push(problem.help(
                "give the receiver a token in the path or the query, in a variable: `\"${FLAGS_URL}\"`",
            ));
        }
    }
    for problem in found {
        review.add(problem.at(place));
    }
}
