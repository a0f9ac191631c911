//! Every durable write of the mirror and of arm has a kill point behind it, and every kill point stands in the code and in one of the
//! lists that the tests of crashes go through.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strangler::failpoint::{
    ABANDON, ARCHIVE, ARM, COPY_AGAIN, DISARM, DROP, LEDGER, MIRROR, NOTES, QUARANTINE, RECORD, REPAIR,
    RESTORE, RETIRE, REVERSE, START,
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
    ("cdc/start.rs", "streams::take_nonce("), // One of two ways: its caller's is nonce-taken, behind both.
];

/// What the mirror writes into the journal inside a transaction of its caller's: it becomes durable at the COMMIT, which has its own
/// kill point.
const INSIDE: &[(&str, &str)] = &[
    ("cdc/apply.rs", "copies::replace_key_piece("),
    ("cdc/apply.rs", "copies::set_without_pieces("),
    ("cdc/apply.rs", "journal::record("),
    ("cdc/copy.rs", "copies::insert_part("),
    ("cdc/copy.rs", "copies::insert_piece("),
    ("cdc/emptying.rs", "copies::delete_parts("),
    ("cdc/emptying.rs", "copies::keep("),
    ("cdc/emptying.rs", "copies::set_without_pieces("),
    ("cdc/engine.rs", "baselines::note_truncate("),
    ("cdc/engine.rs", "copies::forget_pieces("),
    ("cdc/engine.rs", "copies::set_live("),
    ("cdc/engine.rs", "touched::begin("),
    ("cdc/finish.rs", "deferred::breakable_done("),
    ("cdc/finish.rs", "deferred::set_key_waiting("),
    ("cdc/repair.rs", "copies::replace_key_piece("),
    ("cdc/repair.rs", "journal::record("),
    ("cdc/repair.rs", "repairs::set_done("),
    ("cdc/repair.rs", "repairs::set_refused("),
    ("cdc/tripwire.rs", "canaries::land("),
    ("cdc/truncate.rs", "baselines::note_truncate("),
    ("cdc/truncate.rs", "grounds::note_emptied("),
];

/// Signs of life: they say nothing that the next one does not say again, and a killed process leaves the last one either way.
const SIGNS_OF_LIFE: &[&str] = &["process::beat(", "process::beat_still("];

/// How many lines may stand between a durable write and its kill point.
const NEAR_LINES: usize = 12;

/// The last line of a function that takes a step by one of several ways, each a durable write.
const FAR_LINES: usize = 45;

/// Rooms and single files whose durable writes are looked at, by their place under `src`.
const ROOMS: &[&str] = &[
    "abandon",
    "cdc",
    "cdc.rs",
    "arm",
    "archive",
    "retire",
    "provision/record.rs",
    "reconcile/repair",
    "reconcile/repair.rs",
    "journal/ledger/anchor.rs",
];

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The code of the files under a folder or of one file, without its unit tests, by place under `src`.
fn code_in(room: &Path, files: &mut BTreeMap<String, Vec<String>>) {
    if room.is_dir() {
        for entry in std::fs::read_dir(room).unwrap() {
            code_in(&entry.unwrap().path(), files);
        }
        return;
    }
    if room.extension().is_some_and(|extension| extension == "rs") {
        let text = std::fs::read_to_string(room).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let name = room.strip_prefix(source_folder()).unwrap().to_string_lossy().into_owned();
        files.insert(name, code.lines().map(str::to_owned).collect());
    }
}

fn sources(rooms: &[&str]) -> BTreeMap<String, Vec<String>> {
    let mut files = BTreeMap::new();
    for room in rooms {
        let before = files.len();
        code_in(&source_folder().join(room), &mut files);
        assert!(files.len() > before, "{room} has no code");
    }
    files
}

/// Every public function of the journal whose statement writes, as its callers spell it: `streams::set_state(`.
fn journal_writers() -> Vec<String> {
    let mut writers = Vec::new();
    for (file, lines) in sources(&["journal"]) {
        let module = Path::new(&file).file_stem().unwrap().to_string_lossy().into_owned();
        let mut function: Option<&str> = None;
        for line in &lines {
            if let Some((visible, rest)) = line.split_once("fn ").filter(|(before, _)| !before.contains("//"))
            {
                let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next();
                function = name.filter(|_| visible.starts_with("pub") && visible.contains("async"));
            }
            let writes = ["INSERT INTO ", "UPDATE strangler", "DELETE FROM ", "super::record(", "land("];
            if writes.iter().any(|word| line.contains(word))
                && !line.trim_start().starts_with("//")
                && let Some(name) = function.take()
            {
                writers.push(format!("{module}::{name}("));
            }
        }
    }
    assert!(writers.len() > 40, "the journal's writing functions were found: {writers:?}");
    writers.push("journal::record(".to_owned());
    writers
}

/// The lines with one of `writes` that no kill point follows.
fn bare<'a>(
    files: &BTreeMap<String, Vec<String>>,
    writes: &'a [String],
    spared: impl Fn(&str, &str) -> bool,
) -> (usize, Vec<String>) {
    let (mut bare, mut found) = (Vec::new(), 0);
    for (file, lines) in files {
        for (number, line) in lines.iter().enumerate() {
            let Some(write): Option<&'a String> = writes.iter().find(|write| line.contains(*write)) else {
                continue;
            };
            if line.trim_start().starts_with("//") || spared(file, line) {
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
    (found, bare)
}

fn is_listed(list: &[(&str, &str)], file: &str, line: &str) -> bool {
    list.iter().any(|(name, text)| *name == file && line.contains(text))
}

#[test]
fn every_durable_write_is_followed_by_a_kill_point() {
    let writes: Vec<String> = DURABLE.iter().map(|write| (*write).to_owned()).collect();
    let (found, bare) = bare(&sources(ROOMS), &writes, |file, line| is_listed(EXEMPT, file, line));
    assert!(found >= 30, "only {found} durable writes were recognised: has their form changed?");
    assert!(bare.is_empty(), "durable writes without a kill point:\n{}", bare.join("\n"));
}

/// Which functions write is read from the journal's own statements, so that a new one can't be left out.
#[test]
fn whatever_the_mirror_writes_into_the_journal_is_followed_by_a_kill_point() {
    let files = sources(&["cdc", "cdc.rs"]);
    let signs = |line: &str| SIGNS_OF_LIFE.iter().any(|sign| line.contains(sign));
    let (found, bare) = bare(&files, &journal_writers(), |file, line| {
        is_listed(INSIDE, file, line) || is_listed(EXEMPT, file, line) || signs(line)
    });
    assert!(found >= 20, "only {found} writes were recognised: has their form changed?");
    assert!(bare.is_empty(), "writes into the journal without a kill point:\n{}", bare.join("\n"));
    for (file, call) in INSIDE {
        let there = files.get(*file).is_some_and(|lines| lines.iter().any(|line| line.contains(call)));
        assert!(there, "{file} has no {call} any more");
    }
}

#[test]
fn every_kill_point_is_met_by_the_code_and_listed_once() {
    let code: String = sources(ROOMS).into_values().flatten().collect::<Vec<_>>().join("\n");
    let mut names: Vec<&str> = [
        MIRROR, COPY_AGAIN, START, REPAIR, REVERSE, ARM, DISARM, RETIRE, QUARANTINE, ARCHIVE, DROP, RESTORE,
        ABANDON, LEDGER, RECORD, NOTES,
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
