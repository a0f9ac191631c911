//! docs/scheduling: what is copied from there can be read by those it is for, and be typed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser as _};
use granit_parser::{Event, Parser};
use strangler::cli::Arguments;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file by its name, with its text.
fn pages() -> Vec<(String, String)> {
    let folder = fs::read_dir(root().join("docs/scheduling")).unwrap();
    let mut pages: Vec<_> = folder
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    pages.sort();
    assert!(pages.len() > 8, "{} files only", pages.len());
    pages
}

/// The lists of texts that stand behind a key `args`.
fn args_of(name: &str, yaml: &str) -> Vec<Vec<String>> {
    let (mut found, mut open, mut key) = (Vec::new(), None::<Vec<String>>, String::new());
    for event in Parser::new_from_str(yaml) {
        let event = event.unwrap_or_else(|error| panic!("{name}: {error}")).0;
        if let Event::Scalar(text, ..) = event {
            match &mut open {
                Some(words) => words.push(text.into_owned()),
                None => key = text.into_owned(),
            }
        } else if matches!(event, Event::SequenceEnd) {
            found.extend(open.take());
        } else if matches!(event, Event::SequenceStart(..)) && key == "args" {
            open = Some(Vec::new());
        }
    }
    found
}

/// Words of a line as a shell takes them; double quotes are all that the pages need.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('"').enumerate() {
        if at % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// What a page tells to type, without the name of the binary.
fn commands(name: &str, text: &str) -> Vec<Vec<String>> {
    const STARTS: [&str; 5] = [
        "strangler ",
        "- strangler ",
        "run: strangler ",
        "ExecStart=/usr/local/bin/strangler ",
        "$ strangler ",
    ];
    let lines = text.lines().map(str::trim);
    let mut found: Vec<_> = lines
        .filter_map(|line| STARTS.iter().find_map(|start| line.strip_prefix(start)))
        .map(words)
        .collect();
    if name.ends_with(".yaml") {
        found.extend(args_of(name, text));
    }
    found
}

/// Options that a page writes in backticks, `--every` or `--every 15m`.
fn options(text: &str) -> BTreeSet<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).filter(|span| span.starts_with("--")).collect()
}

#[test]
fn every_yaml_file_is_yaml() {
    let files: Vec<_> = pages().into_iter().filter(|(name, _)| name.ends_with(".yaml")).collect();
    assert_eq!(files.len(), 5);
    for (name, text) in files {
        args_of(&name, &text);
        assert!(!text.contains('\t'), "{name}");
    }
}

#[test]
fn every_page_that_starts_something_is_seen_to_start_it() {
    for (name, text) in pages() {
        let found = commands(&name, &text);
        let starts = !name.ends_with(".timer") && name != "prometheus-rules.yaml";
        assert_eq!(!found.is_empty(), starts, "{name}: {found:?}");
        assert!(found.iter().all(|words| words[0] == "reconcile" && words.len() > 2), "{name}: {found:?}");
        assert_eq!(name == "README.md", options(&text).len() > 5, "{name}");
    }
}

#[test]
#[ignore = "becomes a test of every build together with the verb `reconcile`"]
fn every_command_and_option_in_the_pages_can_be_typed() {
    let mut findings = Vec::new();
    for (name, text) in pages() {
        let mut all = commands(&name, &text);
        let reconcile = Arguments::command();
        let reconcile = reconcile.find_subcommand("reconcile").expect("there is no verb reconcile");
        for option in options(&text) {
            if option.contains(' ') {
                all.push(
                    ["reconcile", "plan.yaml"].map(str::to_owned).into_iter().chain(words(option)).collect(),
                );
            } else if !reconcile.get_arguments().any(|known| known.get_long() == option.strip_prefix("--")) {
                findings.push(format!("{name}: {option}"));
            }
        }
        for words in all {
            if let Err(error) = Arguments::try_parse_from(["strangler".to_owned()].iter().chain(&words)) {
                // An option on its own may want another one beside it.
                if error.kind() != ErrorKind::MissingRequiredArgument {
                    findings.push(format!("{name}: {words:?}: {error}"));
                }
            }
        }
    }
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// Names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let starts = ["strangler_reconcile_", "strangler_mirror_lag_"];
    let found = starts
        .iter()
        .flat_map(|start| text.match_indices(start))
        .map(|(at, _)| text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect());
    found.collect()
}

#[test]
fn every_metric_is_described_and_alarms_are_about_metrics_that_exist() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let source = read("src/reconcile/metrics.rs");
    let registered: BTreeSet<String> = source
        .split("registry.register(")
        .skip(1)
        .flat_map(|rest| {
            let name = rest.split('"').nth(1).unwrap();
            // The format gives counters their ending.
            let ending = if name.ends_with("_runs") { "_total" } else { "" };
            metrics(&format!("{name}{ending}"))
        })
        .collect();
    assert_eq!(registered.len(), 8);
    assert_eq!(metrics(&read("docs/scheduling/README.md")), registered);
    let alarms = metrics(&read("docs/scheduling/prometheus-rules.yaml"));
    assert!(alarms.len() > 2 && alarms.is_subset(&registered), "{alarms:?}");
}
