//! Every durable write of the mirror has a kill point behind it, and every kill point is one that tests go through.

use std::collections::BTreeMap;
use std::path::Path;

use strangler::failpoint::{COPY_AGAIN, MIRROR, REPAIR, START};

/// Calls and statements that make something durable. What is written inside a transaction becomes so at its COMMIT.
const DURABLE: &[&str] = &[
    "batch_execute(\"COMMIT\")",
    "streams::insert_creating(",
    "streams::set_running(",
    "streams::set_state(",
    "streams::set_timeline(",
    "streams::reset(",
    ".create_slot(",
    ".drop_slot(",
    "take_nonce(target, starting",
    "process::stopped(",
];

/// Durable writes that need none, each with its reason.
const EXEMPT: &[(&str, &str)] = &[
    ("start.rs", "replication.drop_slot("), // A slot of a former attempt: the next step is slot-created.
];

/// How many lines may stand between a durable write and its kill point.
const NEAR_LINES: usize = 12;

fn sources() -> BTreeMap<String, Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cdc");
    let files: BTreeMap<String, Vec<String>> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                code.lines().map(str::to_owned).collect(),
            )
        })
        .collect();
    assert!(files.len() > 10, "the mirror's files were found");
    files
}

#[test]
fn every_durable_write_of_the_mirror_is_followed_by_a_kill_point() {
    let mut bare = Vec::new();
    let mut found = 0;
    for (file, lines) in sources() {
        for (number, line) in lines.iter().enumerate() {
            let Some(write) = DURABLE.iter().find(|write| line.contains(**write)) else { continue };
            if line.trim_start().starts_with("//")
                || EXEMPT.iter().any(|(name, text)| *name == file && line.contains(text))
            {
                continue;
            }
            found += 1;
            let near = &lines[number..lines.len().min(number + NEAR_LINES)];
            if !near.iter().any(|line| line.contains("failpoint::hit(")) {
                bare.push(format!("{file}:{}: {write}", number + 1));
            }
        }
    }
    assert!(found >= 12, "only {found} durable writes were recognised: has their form changed?");
    assert!(bare.is_empty(), "durable writes without a kill point:\n{}", bare.join("\n"));
}

#[test]
fn every_kill_point_is_met_by_the_code_and_listed_once() {
    let code: String = sources().into_values().flatten().collect::<Vec<_>>().join("\n");
    let mut names: Vec<&str> = [MIRROR, COPY_AGAIN, START, REPAIR].concat();
    for name in &names {
        assert!(code.contains(&format!("\"{name}\"")), "{name} is never met");
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name stands twice");
}
