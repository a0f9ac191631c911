//! Every durable write of the mirror and of arm has a kill point behind it, and every kill point is one that tests go
//! through.

use std::collections::BTreeMap;
use std::path::Path;

use strangler::failpoint::{
    ABANDON, ARCHIVE, ARM, COPY_AGAIN, DISARM, DROP, LEDGER, MIRROR, QUARANTINE, RECORD, REPAIR, RESTORE,
    RETIRE, REVERSE, START,
};

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
    "ledger::transaction(",
    // Of arm and disarm: whatever takes a step.
    "transact(client, step",
    "slot::create((client",
    "slot::remove(client",
    "start(client, step",
    // Of abandon: whatever takes a step.
    "transact(admin, job, step",
    "job.slots.batch_execute(",
    // Of an archive: its files.
    "archive::begin(",
    "self.writing.place.put(",
    "archive::conclude(",
];

/// Durable writes that need none, each with its reason.
const EXEMPT: &[(&str, &str)] = &[
    ("cdc/start.rs", "replication.drop_slot("), // A slot of a former attempt: the next step is slot-created.
    ("arm/slot.rs", ".create_slot("),           // Its end is a branch further down, with its kill point.
    ("provision/record.rs", "ledger::transaction("), // Its caller's, after all entries: one each makes a whole by itself.
    ("abandon/run.rs", "batch_execute(\"COMMIT\")"), // Every step's: the kill point is its caller's, after the step.
    ("arm/patience.rs", "batch_execute(\"COMMIT\")"), // Every step's: the kill point is its caller's, after the step.
];

/// How many lines may stand between a durable write and its kill point.
const NEAR_LINES: usize = 12;

/// The last line of a function that takes a step by one of several ways, each a durable write.
const FAR_LINES: usize = 45;

fn sources() -> BTreeMap<String, Vec<String>> {
    let mut files = BTreeMap::new();
    for room in [
        "abandon",
        "cdc",
        "arm",
        "archive",
        "retire",
        "provision/record.rs",
        "reconcile/repair",
        "reconcile/repair.rs",
        "journal/ledger/anchor.rs",
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room);
        if folder.is_file() {
            let text = std::fs::read_to_string(&folder).unwrap();
            files.insert(room.to_owned(), text.lines().map(str::to_owned).collect());
            continue;
        }
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        for path in entries.filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            files.insert(
                format!("{room}/{}", path.file_name().unwrap().to_string_lossy()),
                code.lines().map(str::to_owned).collect::<Vec<String>>(),
            );
        }
    }
    assert!(files.len() > 20, "the files of the mirror and of arm were found");
    files
}

#[test]
fn every_durable_write_is_followed_by_a_kill_point() {
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
            let reach = if file == "arm/run.rs" { FAR_LINES } else { NEAR_LINES };
            let near = &lines[number..lines.len().min(number + reach)];
            if !near.iter().any(|line| line.contains("hit(")) {
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
    let mut names: Vec<&str> = [
        MIRROR, COPY_AGAIN, START, REPAIR, REVERSE, ARM, DISARM, RETIRE, QUARANTINE, ARCHIVE, DROP, RESTORE,
        ABANDON, LEDGER, RECORD,
    ]
    .concat();
    for name in &names {
        assert!(code.contains(&format!("\"{name}\"")), "{name} is never met");
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name stands twice");
}
