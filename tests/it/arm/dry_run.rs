//! What `--dry-run` prints is what the servers get.

use std::path::Path;

use strangler::cluster::Options;

use super::stage::{Stage, rows};
use crate::support::binary::flat;

/// How statements begin that change something or hold somebody up. Others frame them, or only look.
const DOING: &[&str] = &[
    "ALTER ",
    "COMMENT ",
    "CREATE ",
    "CREATE_",
    "DELETE ",
    "DO $gate$",
    "DROP ",
    "GRANT ",
    "INSERT ",
    "LOCK ",
    "SELECT pg_drop",
    "UPDATE ",
];

/// Blanks are one, what is drawn by lot and what is only known later is left out.
fn plain(statement: &str) -> Option<String> {
    let start = "UPDATE strangler.stream SET state = 'running'";
    if statement.starts_with(start) {
        return Some(start.to_owned());
    }
    let mut rest = flat(statement);
    let mut text = String::new();
    while let Some(at) = rest.find("_rev_") {
        let after = rest.split_off(at + "_rev_".len());
        text.push_str(&rest);
        rest = after.get(6..).unwrap_or_default().to_owned();
    }
    text.push_str(&rest);
    DOING.iter().any(|word| text.starts_with(word)).then_some(text)
}

fn shown(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("--")).collect();
    format!("{}\n", lines.join("\n")).split(";\n").filter_map(|one| plain(one.trim())).collect()
}

/// Statements of sessions of ours as a server's log has them.
fn logged(path: &Path, application: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut found: Vec<String> = Vec::new();
    let mut ours = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix('\t') {
            if let Some(last) = found.last_mut().filter(|_| ours) {
                last.push(' ');
                last.push_str(rest);
            }
            continue;
        }
        let log = line.strip_prefix(application).and_then(|rest| rest.strip_prefix("|LOG:  "));
        let statement = log.and_then(|log| {
            log.strip_prefix("statement: ").or_else(|| log.strip_prefix("received replication command: "))
        });
        ours = statement.is_some();
        found.extend(statement.map(str::to_owned));
    }
    found.iter().filter_map(|one| plain(one.trim_end_matches(';'))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_get_what_the_dry_run_shows_and_nothing_else() {
    let talkative = || {
        Options::default()
            .set("log_statement", "all")
            .set("log_replication_commands", "on")
            .set("log_line_prefix", "%a|")
    };
    let stage = Stage::with(talkative(), talkative()).await;
    let before = stage.fingerprint().await;
    for verb in ["arm", "disarm"] {
        let dry = stage.run(verb, &["--dry-run"]);
        assert_eq!(dry.exit, Some(0), "{}", dry.page());
        if verb == "arm" {
            assert_eq!(stage.fingerprint().await, before, "looking changes nothing");
        }
        let page = dry.stdout.replace("<the service's timeline>", "1");
        let expected = shown(&page);
        assert!(expected.len() > 30, "{page}");
        stage.succeed(verb, &[]);
        let application = format!("strangler {verb}");
        let pair = &stage.split.pair;
        let mut done = logged(&pair.monolith.log_path(), &application);
        done.extend(logged(&pair.service.log_path(), &application));
        let sorted = |mut all: Vec<String>| {
            all.sort();
            all.dedup();
            all
        };
        assert_eq!(sorted(done), sorted(expected), "{verb}");
    }
    assert_eq!(rows(&stage.monolith, "SELECT count(*) FROM strangler.stream").await, ["0"]);
}
