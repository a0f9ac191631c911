//! What can be wrong with a link before anything connects. Nothing here ever repeats a link's text.

use super::problem::PlanProblem;
use super::source::next_secret;

/// Problems of one link, without a place. `name` is what the variable could be called, e.g. `ORDERS_URL`.
pub(crate) fn problems(text: &str, name: &str) -> Vec<PlanProblem> {
    let mut found = variable_problems(text, name);
    if found.is_empty() {
        found.extend(form_problem(text, name));
    }
    if next_secret(text).is_some() {
        found.push(
            PlanProblem::warning(
                "plan.secret-in-clear",
                "this link holds a password in clear, and plans are kept in git",
            )
            .help(format!(
                "put the whole link into a variable, `\"${{{name}}}\"`, or the password into a file, \
                     `postgres://user:${{file:/run/secrets/{}_password}}@host/db`, and change the password",
                name.trim_end_matches("_URL").to_lowercase()
            )),
        );
    }
    found
}

/// A password stands in the text itself.
pub(crate) fn holds_password(text: &str) -> bool {
    next_secret(text).is_some()
}

/// The variables of a link with what is wrong with them.
pub(crate) fn variable_problems(text: &str, name: &str) -> Vec<PlanProblem> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("${") {
        let Some((variable, after)) = after.split_once('}') else {
            let problem = PlanProblem::error("plan.bad-variable", "this link opens ${ and does not close it")
                .help(format!("write `\"${{{name}}}\"`"));
            found.push(problem);
            break;
        };
        rest = after;
        found.extend(variable_problem(variable, name));
    }
    found
}

fn variable_problem(variable: &str, name: &str) -> Option<PlanProblem> {
    let problem = if let Some(path) = variable.strip_prefix("file:") {
        if path.starts_with('/') && path.len() > 1 {
            return None;
        }
        PlanProblem::error("plan.bad-variable", "the path in ${file:…} has to start with /")
            .help(format!("write the whole path: `\"${{file:/run/secrets/{}}}\"`", name.to_lowercase()))
    } else if variable.is_empty() {
        PlanProblem::error("plan.bad-variable", "${} names no variable")
            .help(format!("write `\"${{{name}}}\"`"))
    } else if is_variable_name(variable) {
        return None;
    } else {
        PlanProblem::error("plan.bad-variable", "what stands between ${ and } is not the name of a variable").help(format!(
            "a name has letters, digits and _, and no default: `\"${{{name}}}\"`; a file is `${{file:/path}}`"
        ))
    };
    Some(problem)
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A link is a variable, a URL, or `key=value` words.
fn form_problem(text: &str, name: &str) -> Option<PlanProblem> {
    let known = ["postgres://", "postgresql://", "${"].iter().any(|start| text.starts_with(start));
    let words =
        text.split_whitespace().next().is_some_and(|word| word.contains('=')) && !text.contains("://");
    if known || words {
        return None;
    }
    let example =
        format!("write `\"${{{name}}}\"` and set {name}=postgres://user:password@host:5432/database");
    let problem = if is_variable_name(text.strip_prefix('$').unwrap_or_default()) {
        PlanProblem::error("plan.bad-link", "a variable needs braces around its name")
            .help(format!("write `\"${{{}}}\"`", text.trim_start_matches('$')))
    } else {
        PlanProblem::error("plan.bad-link", "this is not a PostgreSQL connection URL").help(example)
    };
    Some(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(text: &str) -> Vec<&'static str> {
        problems(text, "ORDERS_URL").iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn good_links_have_no_problem() {
        for text in [
            "${ORDERS_URL}",
            "postgres://app:${PW}@db:5432/orders?sslmode=require",
            "postgresql://app:${file:/run/secrets/pw}@db/orders",
            "host=db user=app password=${PW}",
            "postgres:///orders?host=/run/postgresql",
        ] {
            assert_eq!(codes(text), Vec::<&str>::new(), "{text}");
        }
    }

    #[test]
    fn bad_links_are_told_apart() {
        assert_eq!(codes("${ORDERS_URL"), ["plan.bad-variable"]);
        assert_eq!(codes("${}"), ["plan.bad-variable"]);
        assert_eq!(codes("${A:-b}"), ["plan.bad-variable"]);
        assert_eq!(codes("${file:secrets/pw}"), ["plan.bad-variable"]);
        assert_eq!(codes("$ORDERS_URL"), ["plan.bad-link"]);
        assert_eq!(codes("mysql://db/orders"), ["plan.bad-link"]);
        assert_eq!(codes("localhost:5432/orders"), ["plan.bad-link"]);
        assert_eq!(codes("postgres://app:secret@db/orders"), ["plan.secret-in-clear"]);
    }
}
