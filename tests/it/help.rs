//! What the binary says about itself and about mistakes, to the letter.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use strangler::cli::Arguments;

use crate::support::binary::{command, run};

/// A plan whose links are variables, so that a test can point them anywhere.
pub const PLAN: &str = "\
version: 1
plan: retail
monolith: { url: \"${MONOLITH_URL}\" }
services:
  orders: { url: \"${ORDERS_URL}\" }
slices:
  ordering:
    service: orders
    tables: { Orders: {} }
";

/// A link that nobody answers: port 1 needs privileges, and nothing listens there.
pub const NOBODY: &str = "postgresql://someone:hidden@127.0.0.1:1/nowhere";

/// A directory with `plan.yaml`.
pub fn plan_dir(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plan.yaml"), text).unwrap();
    dir
}

#[test]
fn every_help_page_is_as_reviewed() {
    let here = Path::new(".");
    insta::assert_snapshot!("help_short", run(here, &[], &["-h"]).page());
    insta::assert_snapshot!("help", run(here, &[], &["--help"]).page());
    let verbs: Vec<String> =
        Arguments::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    assert!(!verbs.is_empty());
    for verb in verbs {
        insta::assert_snapshot!(format!("help_{verb}_short"), run(here, &[], &[&verb, "-h"]).page());
        insta::assert_snapshot!(format!("help_{verb}"), run(here, &[], &[&verb, "--help"]).page());
    }
}

#[test]
fn help_is_a_word_as_well_as_an_option() {
    let page = |arguments: &[&str]| run(Path::new("."), &[], arguments);
    assert_eq!(page(&["help"]).stdout, page(&["--help"]).stdout);
    assert_eq!(page(&["help", "status"]).stdout, page(&["status", "--help"]).stdout);
    assert_eq!(page(&["help"]).exit, Some(0));
}

#[test]
fn version_is_data_and_nothing_typed_is_a_usage_error() {
    let version = run(Path::new("."), &[], &["--version"]);
    assert_eq!(version.stdout, format!("strangler {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(version.exit, Some(0));
    let nothing = run(Path::new("."), &[], &[]);
    assert_eq!((nothing.exit, nothing.stdout.as_str()), (Some(2), ""));
}

#[test]
fn a_mistyped_command_line_is_explained() {
    let here = Path::new(".");
    insta::assert_snapshot!("usage_unknown_verb", run(here, &[], &["statsu", "plan.yaml"]).page());
    insta::assert_snapshot!(
        "usage_unknown_option",
        run(here, &[], &["status", "plan.yaml", "--slcie", "a"]).page()
    );
    insta::assert_snapshot!("usage_no_plan", run(here, &[], &["status"]).page());
}

#[test]
fn missing_variables_are_all_named_at_once() {
    let dir = plan_dir(PLAN);
    insta::assert_snapshot!("error_missing_variables", run(dir.path(), &[], &["status", "plan.yaml"]).page());
}

#[test]
fn an_unknown_slice_gets_a_suggestion() {
    let dir = plan_dir(PLAN);
    let links = [("MONOLITH_URL", NOBODY), ("ORDERS_URL", NOBODY)];
    let ended = run(dir.path(), &links, &["status", "plan.yaml", "--slice", "orderng"]);
    insta::assert_snapshot!("error_unknown_slice", ended.page());
}

#[test]
fn a_link_that_is_no_link_is_a_plan_error() {
    let dir = plan_dir(PLAN);
    let links = [("MONOLITH_URL", "hidden"), ("ORDERS_URL", "postgresql://a:hidden@h/d?sslmode=maybe")];
    insta::assert_snapshot!("error_bad_links", run(dir.path(), &links, &["status", "plan.yaml"]).page());
}

#[test]
fn a_plan_with_problems_shows_all_of_them() {
    let text = PLAN.replace("service: orders", "servcie: orders").replace("version: 1", "version: 9");
    let dir = plan_dir(&text);
    insta::assert_snapshot!("error_plan_problems", run(dir.path(), &[], &["status", "plan.yaml"]).page());
    insta::assert_snapshot!("error_no_plan_file", run(dir.path(), &[], &["status", "missing.yaml"]).page());
}

#[test]
fn unreachable_databases_are_said_at_their_slices() {
    let dir = plan_dir(PLAN);
    let links = [("MONOLITH_URL", NOBODY), ("ORDERS_URL", NOBODY)];
    insta::assert_snapshot!("error_unreachable", run(dir.path(), &links, &["status", "plan.yaml"]).page());
    let json = run(dir.path(), &links, &["status", "plan.yaml", "--format", "json"]);
    insta::assert_snapshot!("error_unreachable_json", json.page());
    let document: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(document["slices"][0]["phase"], "unknown");
}

#[test]
fn what_makes_sense_in_a_schedule_only_is_refused_without_one() {
    let dir = plan_dir(PLAN);
    let links = [("MONOLITH_URL", NOBODY), ("ORDERS_URL", NOBODY)];
    let typed = |options: &[&str]| run(dir.path(), &links, &[&["reconcile", "plan.yaml"], options].concat());
    insta::assert_snapshot!("usage_no_schedule", typed(&["--metrics-listen", "127.0.0.1:9187"]).page());
    insta::assert_snapshot!("error_schedule", typed(&["--every", "soon"]).page());
    for options in [
        &["--jitter", "5m"][..],
        &["--every", "15m", "--cron", "@daily"],
        &["--every", "15m", "--repair"],
        &["--cron", "99 * * * *"],
        &["--every", "15m", "--jitter", "long"],
        &["--sample", "5%", "--changed-since", "last"],
        &["--dry-run"],
    ] {
        assert_eq!(typed(options).exit, Some(2), "{options:?}");
    }
}

#[test]
fn a_comparison_asks_for_no_link_of_an_administrator() {
    let dir = plan_dir(&PLAN.replace(
        r#"{ url: "${MONOLITH_URL}" }"#,
        r#"{ admin: "${ADMIN_URL}", read: "${READ_URL}", apply: "${APPLY_URL}" }"#,
    ));
    let links = [("READ_URL", NOBODY), ("APPLY_URL", NOBODY), ("ORDERS_URL", NOBODY)];
    insta::assert_snapshot!(
        "error_reconcile_unreachable",
        run(dir.path(), &links, &["reconcile", "plan.yaml"]).page()
    );
}

#[test]
fn a_closed_pipe_ends_the_command_without_a_word() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(Path::new("."), &["--help"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(5), b"".as_slice()));
}

/// Codes as the sources write them: the first argument of a problem, or a word on the lists that choose one.
fn codes() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let text = fs::read_to_string(&entry).unwrap();
            let text = text.split("#[cfg(test)]\nmod").next().unwrap().to_owned();
            for start in ["Problem::error(\"", "Problem::warning(\"", "Problem::note(\""] {
                codes.extend(
                    text.split(start).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned),
                );
            }
            // An exit code with the word that stands for why.
            for rest in text.split("Exit::").skip(1) {
                let after = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
                let word = after.strip_prefix(',').and_then(|after| after.trim_start().strip_prefix('"'));
                codes.extend(word.and_then(|word| word.split('"').next()).map(str::to_owned));
            }
        }
    }
    codes
}

#[test]
fn every_code_has_its_line_in_the_documentation() {
    let read = |name: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
    };
    let known = read("errors.md") + &read("plan.md");
    let codes = codes();
    for code in ["plan-unfit", "mirror-refused", "reconcile-held", "repair-not-taken"] {
        assert!(codes.contains(code), "this test does not find {code} in the sources");
    }
    assert!(codes.len() > 60, "the sources hold {} codes only: does this test still find them?", codes.len());
    let missing: Vec<&String> = codes.iter().filter(|code| !known.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "not in docs/errors.md or docs/plan.md: {missing:?}");
}

/// Long strings are broken over lines of source.
fn joined(text: &str) -> String {
    let mut joined = String::new();
    for line in text.lines() {
        match line.strip_suffix('\\') {
            Some(begun) => joined.push_str(begun.trim_start()),
            None => {
                joined.push_str(line.trim_start());
                joined.push('\n');
            }
        }
    }
    joined
}

/// Command lines that the sources put together, with something in the place of each part that is filled in: those with a plan,
/// and verbs that stand before one.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let text = joined(text);
    let mut lines = Vec::new();
    // `command("flip --rehearse")` and the like stand for the verb, the plan and a slice.
    for helper in ["command(\"", "typed(\"", "of(\"", "of_all(\""] {
        let verbs = text.split(helper).skip(1).filter_map(|rest| rest.split('"').next());
        let verbs = verbs.filter(|verb| !verb.starts_with("strangler ") && !verb.contains(['{', '}', '.']));
        lines.extend(verbs.map(|verb| words(&format!("{verb} PLAN --slice one"))));
    }
    for (at, word) in text.match_indices("strangler ") {
        let rest: String =
            text[at + word.len()..].chars().take_while(|c| !"\"`\n;,()".contains(*c)).collect();
        let line = words(&rest);
        let about = |part: &String| part == "PLAN" || part.starts_with("plan");
        if let Some(plan) = line.iter().position(about) {
            // Prose goes on where neither an option nor its value can stand.
            let options = line[plan + 1..].iter().scan(None, |value: &mut Option<bool>, part| {
                let option = part.starts_with("--");
                let filled = part == "filled" || !part.chars().any(|c| c.is_ascii_lowercase());
                let takes = option || value.is_some_and(|named| named || filled);
                *value = option.then_some(["--slice", "--kind", "--stage"].contains(&part.as_str()));
                takes.then(|| part.clone())
            });
            lines.push(line[..=plan].iter().cloned().chain(options).collect());
        }
    }
    lines
}

/// The words of a command in a format string: what is filled in stands for a plan, a slice, or nothing behind a word.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        let word = word.trim_end_matches(['.', ':']);
        let begins = word.split('{').next().unwrap_or_default();
        words.push(match (begins.is_empty() && !word.is_empty(), begins) {
            (false, begins) => begins.to_owned(),
            (true, _) if word.contains("plan") || word.contains("path") => "PLAN".to_owned(),
            (true, _) => "filled".to_owned(),
        });
    }
    words
}

/// Commands as a text tells somebody to type them: `strangler VERB` in backticks, at the start of a string, or before a
/// plan.
fn commands_named(text: &str) -> BTreeSet<String> {
    let joined = joined(text);
    let mut named = BTreeSet::new();
    for (at, word) in joined.match_indices("strangler ") {
        let rest = &joined[at + word.len()..];
        let verb: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        let after = &rest[verb.len()..];
        let quoted = joined[..at].ends_with(['`', '"', '\n']) || joined[..at].ends_with("$ ");
        let about = [" PLAN", " plans/", " plan.yaml", " --"].iter().any(|start| after.starts_with(start));
        if !verb.is_empty() && (quoted || about) {
            named.insert(verb);
        }
    }
    named
}

#[test]
fn commands_are_found_in_every_form_of_a_hint() {
    let text = "type `strangler one`, or \"strangler two PLAN\"; then strangler \\\n    three PLAN. A strangler four times.\n\
                strangler five plans/retail.yaml\n$ strangler six\nschema strangler is none";
    assert_eq!(commands_named(text).into_iter().collect::<Vec<_>>(), ["five", "one", "six", "three", "two"]);
}

/// docs/limits.md may name what is still to come; nothing else sends anybody to a command that is not there.
#[test]
fn no_message_and_no_page_names_a_command_that_does_not_exist() {
    /// Begins a string that is hashed and never shown.
    const NO_COMMANDS: [&str; 1] = ["mapping"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let verbs: BTreeSet<String> =
        Arguments::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let mut pending = ["src", "docs", "tests/it/snapshots", "plans", "README.md", "Makefile"]
        .map(|name| root.join(name))
        .to_vec();
    let (mut seen, mut findings) = (BTreeSet::new(), Vec::new());
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let shown = path.strip_prefix(root).unwrap().display().to_string();
        let mut named = commands_named(&fs::read_to_string(&path).unwrap());
        if shown == "src/status/judge.rs" {
            // Its commands are put together from verb and plan.
            let text = fs::read_to_string(&path).unwrap();
            named.extend(
                text.split("of(\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned),
            );
        }
        let unknown =
            named.iter().filter(|name| !verbs.contains(*name) && !NO_COMMANDS.contains(&name.as_str()));
        if shown != "docs/limits.md" {
            findings.extend(unknown.map(|name| format!("{shown}: strangler {name}")));
        }
        seen.extend(named);
    }
    assert!(verbs.is_subset(&seen), "this test finds only {seen:?}");
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// clap decides, so an option in the wrong place, or one that the verb does not have, is found before anybody types it.
#[test]
fn every_command_line_in_the_sources_is_one_that_can_be_typed() {
    let verbs: BTreeSet<String> =
        Arguments::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let parses = |line: &[String]| {
        let typed = std::iter::once("strangler").chain(line.iter().map(String::as_str));
        Arguments::command().try_get_matches_from(typed).is_ok()
    };
    let bad = |text: &str| command_lines(text).into_iter().filter(|line| !parses(line)).collect::<Vec<_>>();
    assert_eq!(bad("command(\"flip --rehearse\")").len(), 1, "an optional number takes the plan for itself");
    assert_eq!(bad("\"strangler flip --back --abort {plan} --slice {slice} x\"").len(), 1);
    assert_eq!(bad("\"strangler flip{back} {plan}{slices} --rehearse lists who\""), [[""; 0]; 0]);
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let (mut seen, mut findings) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for line in command_lines(text.split("#[cfg(test)]\nmod").next().unwrap()) {
                let known = line.first().is_some_and(|verb| verbs.contains(verb));
                seen += usize::from(known);
                if known && !parses(&line) {
                    findings.push(format!("{}: strangler {}", path.display(), line.join(" ")));
                }
            }
        }
    }
    assert!(seen > 60, "this test finds {seen} commands only");
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}
