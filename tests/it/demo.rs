//! The demo from its first act to its last, as `make demo` plays it, and its end when somebody cuts it short.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::support::binary::{command, run};
use crate::support::cluster::try_connect;
use crate::support::wait::{SOON, until, until_blocking};

/// The words of `tests/it/snapshots` need no demo; here the real one runs.
fn demo(words: &[&str]) -> std::process::Command {
    let mut command = command(Path::new("."), &[&["demo"], words].concat());
    // Where servers are looked for, and where their folders go.
    for name in ["PATH", "STRANGLER_PG_BIN", "STRANGLER_CLUSTER_DIR", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

#[test]
fn the_demo_splits_the_retail_plan_under_traffic_and_finds_every_acknowledged_order_on_both_sides() {
    let output = demo(&[]).output().unwrap();
    let (told, words) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), words.as_str()), (Some(0), ""), "{told}");
    for part in [
        "7 PostgreSQL servers are up",
        "328,064 rows in 16 tables",
        "Plan retail: 0 errors",
        "6 of 6 slices stream",
        "ERROR:  strangler: sales.Orders is owned by",
        "OrderLines -> sales.order_lines",
        "13 tables, ",
        "digests of the contents are equal",
        "differs: 3 findings: 1 missing, 2 differs",
        "OrderLines: 2 of 2 rows repaired",
        "clean: 6 slices, 6 clean",
        "note as armed slice ordering",
        " attempts came through, ",
        "ordering: the service has authority, epoch 2",
        "writers were paused for",
        "ms after the service had acknowledged it",
        "ERROR:  strangler: public.Orders is owned by service",
        "HINT:  slice ordering, epoch 2: retry the whole transaction on the owner, service",
        "ordering: the monolith has authority, epoch 3",
        "ordering: the service has authority, epoch 4",
        "each is there exactly once on either side",
        "2 tables, ",
        "ProductSales (retire-view)",
        "the rights on the old tables are taken away",
        "the old tables are moved away",
        "the old tables are archived, and every byte was read back",
        "ERROR:  relation \"Orders\" does not exist",
        "of 2 tables restored and proven",
        "every slice stopped at a transaction border",
        "servers and their data are removed",
    ] {
        assert!(told.contains(part), "{part:?} is not in:\n{told}");
    }
    assert!(!told.contains("DIFFERENT") && !told.contains("postgres://"), "{told}");
}

/// A demo that is kept, with what it has said. Killed when the test gives up on it.
struct Kept {
    child: Child,
    /// Stays open, so that the demo can go on talking.
    rest: std::io::Lines<BufReader<ChildStdout>>,
    lines: Vec<String>,
}

impl Kept {
    fn until_look_around(words: &[&str]) -> Self {
        let mut command = demo(words);
        let mut child = command.arg("--keep").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let rest = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut kept = Self { child, rest, lines: Vec::new() };
        while !kept.lines.last().is_some_and(|line| line.contains("until you press Ctrl-C")) {
            let line = kept.rest.next().unwrap_or_else(|| panic!("it ended early: {:?}", kept.lines));
            kept.lines.push(line.unwrap());
        }
        kept
    }

    fn urls(&self) -> Vec<&str> {
        self.lines
            .iter()
            .filter(|line| line.contains("psql 'postgres"))
            .filter_map(|line| line.split('\'').nth(1))
            .collect()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_demo_can_be_looked_at_and_is_gone_after_ctrl_c() {
    let mut kept = Kept::until_look_around(&["--until", "clusters"]);
    assert_eq!(kept.urls().len(), 7, "{:?}", kept.lines);
    for url in kept.urls() {
        try_connect(url).await.unwrap();
    }
    kill_process(Pid::from_child(&kept.child), Signal::INT).unwrap();
    assert_eq!(kept.child.wait().unwrap().code(), Some(130));
    for url in kept.urls() {
        assert!(try_connect(url).await.is_err(), "the server is gone: {url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_demo_that_is_killed_leaves_no_mirror_and_no_server() {
    let mut kept = Kept::until_look_around(&["--until", "mirror"]);
    let folder = kept.lines.iter().find_map(|line| line.trim().strip_prefix("$ cd ")).unwrap();
    let folder = Path::new(folder.split(" && ").next().unwrap()).to_owned();
    let status = std::fs::read_to_string(folder.join("links.sh")).unwrap();
    let links: Vec<(&str, &str)> = status
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.strip_suffix('\'')?.split_once("='"))
        .collect();
    assert_eq!(links.len(), 15);
    let status = run(&folder, &links, &["status", "plans/retail.yaml", "--format", "json"]);
    assert_eq!(status.exit, Some(0), "{}", status.page());
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let pid = i32::try_from(status["slices"][0]["process"]["pid"].as_i64().unwrap()).unwrap();
    let mirror = Pid::from_raw(pid).unwrap();
    test_kill_process(mirror).unwrap();

    kill_process(Pid::from_child(&kept.child), Signal::KILL).unwrap();
    kept.child.wait().unwrap();
    until_blocking("the mirror is gone", SOON, || {
        // A dead process that nobody has asked for yet still has its number, and no command line.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        (test_kill_process(mirror).is_err() || line.is_empty()).then_some(())
    });
    until("the servers are gone", SOON, async || {
        for url in kept.urls() {
            if try_connect(url).await.is_ok() {
                return None;
            }
        }
        Some(())
    })
    .await;
    until_blocking("the folder is gone", SOON, || (!folder.exists()).then_some(()));
}
