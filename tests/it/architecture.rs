//! The rules of the house that the compiler and clippy do not hold: who may import whom, how long and how named files
//! are, that none is forgotten, and where SQL is quoted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules by rung; a module imports from lower rungs, and from its own rung what stands left of it.
/// The table at the top of src/lib.rs says the same to readers.
const LADDER: &[&[&str]] = &[
    &["lsn", "name", "change", "snapshot", "clock", "failpoint", "problem", "words", "ink"],
    &["catalog", "plan", "mapping", "landing"],
    &["postgres", "journal", "cluster"],
    &["authority", "cdc"],
    &["reconcile"],
    &["dualwrite", "provision", "arm", "check", "archive", "retire", "doctor", "abandon"],
    &["status", "demo"],
    &["cli"],
];

/// File names that only say "supporting code".
const EMPTY_NAMES: &[&str] =
    &["utils", "util", "common", "helpers", "helper", "manager", "types", "misc", "mod"];

const FILE_LINES_MAX: usize = 800;

/// Folders that hold nothing of ours.
const FOREIGN_FOLDERS: &[&str] = &["target", ".git", "node_modules", ".postgres"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a folder of the project, by its path from the project's root, with its text. Files that are not
/// text are left out.
fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if FOREIGN_FOLDERS.contains(&name.as_str()) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

fn rust_files(folder: &str) -> Vec<(PathBuf, String)> {
    let found: Vec<_> = files(folder).into_iter().filter(|(path, _)| is_rust(path)).collect();
    assert!(!found.is_empty(), "no Rust file in {folder}");
    found
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// The text without the lines that are only a comment, and without what is compiled for tests only: by custom the
/// inline tests are the end of a file.
fn production(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn no_findings(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// Rung, and place on it.
fn place(module: &str) -> Option<(usize, usize)> {
    LADDER
        .iter()
        .enumerate()
        .find_map(|(rung, modules)| Some((rung, modules.iter().position(|name| *name == module)?)))
}

/// The room that a file of src belongs to: `cdc` for src/cdc.rs and src/cdc/apply.rs.
fn room(path: &Path) -> String {
    stem(Path::new(path.iter().nth(1).unwrap()))
}

/// The modules at the crate's root that a text names: in `crate::a::b`, in `crate::{a, b::{c, d}}`, and in
/// `super::a`, which reaches the root from a file there.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for prefix in ["crate::", "super::"] {
        for (at, _) in text.match_indices(prefix) {
            let whole = at == 0 || !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if whole {
                found.extend(first_names(&text[at + prefix.len()..]));
            }
        }
    }
    found
}

/// `a` of `a::b`; `a` and `d` of `{a::{b, c}, d}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut names, mut depth, mut fresh) = (Vec::new(), 0_u32, true);
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn paths_are_read_out_of_every_form_of_import() {
    let text = "use crate::{a, b::{c, d},\n e};\nfn f(x: crate::g::H) { super::i() } my_crate::no();";
    assert_eq!(imports(text).into_iter().collect::<Vec<_>>(), ["a", "b", "e", "g", "i"]);
}

#[test]
fn imports_go_down_the_ladder() {
    let mut findings = Vec::new();
    for (path, text) in rust_files("src") {
        let room = room(&path);
        if room == "lib" || room == "main" {
            continue;
        }
        let Some((rung, at)) = place(&room) else {
            findings.push(format!("{}: give {room} a rung, here and in src/lib.rs", path.display()));
            continue;
        };
        for import in imports(&production(&text)) {
            let own = import == room || root().join(format!("src/{room}/{import}.rs")).exists();
            let Some((other_rung, other_at)) = place(&import).filter(|_| !own) else { continue };
            if (other_rung, other_at) > (rung, at) {
                findings.push(format!("{}: {room} is on rung {rung} and imports {import}", path.display()));
            }
            if room == "cluster" && other_rung > 0 {
                findings.push(format!("{}: cluster stands on rung 0 only, not on {import}", path.display()));
            }
        }
    }
    no_findings(findings);
}

#[test]
fn the_map_in_lib_rs_shows_every_module_on_its_rung() {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut findings = Vec::new();
    for (rung, modules) in LADDER.iter().enumerate() {
        let there: Vec<_> =
            modules.iter().filter(|name| root().join(format!("src/{name}.rs")).exists()).collect();
        let start = format!("//! | {rung} | ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_default();
        let cell = line.split('|').next().unwrap_or_default();
        let shown: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        let expected: Vec<_> =
            modules.iter().filter(|name| there.contains(name) || shown.contains(name)).collect();
        if shown.iter().collect::<Vec<_>>() != expected {
            findings
                .push(format!("src/lib.rs, row of rung {rung}: shows {shown:?}, the ladder is {expected:?}"));
        }
    }
    no_findings(findings);
}

#[test]
fn no_file_is_long_or_named_after_nothing() {
    let mut findings = Vec::new();
    for (path, text) in rust_files("src").into_iter().chain(rust_files("tests")) {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            findings.push(format!("{}: {lines} lines; split it by noun", path.display()));
        }
        if EMPTY_NAMES.contains(&stem(&path).as_str()) {
            findings.push(format!("{}: name it after what it holds", path.display()));
        }
    }
    no_findings(findings);
}

/// A file that nobody declares is not compiled, and its tests never run.
#[test]
fn no_file_is_forgotten() {
    let mut findings = Vec::new();
    for (path, _) in rust_files("src").into_iter().chain(rust_files("tests")) {
        let (folder, name) = (path.parent().unwrap(), stem(&path));
        let parent: PathBuf = match folder.to_str().unwrap() {
            _ if name == "main" || (name == "lib" && folder == Path::new("src")) => continue,
            "src" => "src/lib.rs".into(),
            "tests/it" => "tests/it/main.rs".into(),
            _ => folder.with_extension("rs"),
        };
        let text = fs::read_to_string(root().join(&parent)).unwrap_or_default();
        let declared = text.lines().map(str::trim).any(|line| {
            let line = line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub ")).unwrap_or(line);
            line == format!("mod {name};")
        });
        if !declared {
            findings.push(format!("{}: not declared in {}", path.display(), parent.display()));
        }
    }
    no_findings(findings);
}

/// Whatever else builds a quoted name or constant by hand forgets the quote inside it one day.
#[test]
fn only_the_name_module_quotes_sql() {
    const WORDS: &[&str] = &[
        "SELECT ",
        "INSERT ",
        "UPDATE ",
        "DELETE ",
        "CREATE ",
        "ALTER ",
        "DROP ",
        "WHERE ",
        " SET ",
        "VALUES",
        "COPY ",
        "GRANT ",
        "REVOKE ",
        "COMMENT ON",
        "SLOT ",
        "PUBLICATION",
        "LOCK ",
        "TRUNCATE ",
    ];
    let mut findings = Vec::new();
    for (path, text) in rust_files("src") {
        if path == Path::new("src/name.rs") {
            continue;
        }
        for line in production(&text).lines() {
            // A plan's variable, \"${NAME}\", is YAML that an operator is told to write.
            let variable = line.contains("\\\"${");
            let identifier = line.contains("\\\"{") || (line.contains("}\\\"") && !variable);
            let constant =
                (line.contains("'{") || line.contains("}'")) && WORDS.iter().any(|word| line.contains(word));
            let doubling = line.contains("\"\\\"\\\"\"") || line.contains("\"''\"");
            if identifier || constant || doubling {
                let line = line.trim();
                findings
                    .push(format!("{}: use quote_ident or quote_literal, or {{:?}}: {line}", path.display()));
            }
        }
    }
    no_findings(findings);
}

/// Tables and views of the schema `strangler`, as its migrations make them.
fn own_tables() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, text) in files("src/journal/migrations") {
        for start in ["CREATE TABLE strangler.", "CREATE VIEW strangler."] {
            found.extend(text.split(start).skip(1).map(|rest| word(rest).to_owned()));
        }
        assert!(!found.is_empty(), "{} makes nothing: does this test still find it?", path.display());
    }
    found
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Who reads or writes our tables somewhere else is forgotten when their form changes.
#[test]
fn only_the_journal_names_our_tables() {
    /// The name of a document; the view that services' own people read; whose database it is, which keys were cut, where tables
    /// were moved, and what dropped ones were, which are read with the catalogs by a module left of the journal.
    const OPEN: [(&str, &str); 9] = [
        ("src/cli/ledger.rs", "ledger"),
        ("src/demo/play.rs", "freshness"),
        ("src/postgres/introspect.rs", "database"),
        ("src/postgres/introspect.rs", "cut_key"),
        ("src/postgres/introspect/keys.rs", "cut_key"),
        ("src/postgres/introspect.rs", "quarantine"),
        ("src/postgres/introspect.rs", "dropped"),
        ("src/postgres/introspect/dropped.rs", "dropped"),
        ("src/postgres/places.rs", "quarantine"),
    ];
    let tables = own_tables();
    assert!(tables.contains("stream") && tables.contains("freshness"), "{tables:?}");
    let mut findings = Vec::new();
    for (path, text) in rust_files("src").into_iter().filter(|(path, _)| room(path) != "journal") {
        for rest in production(&text).split("strangler.").skip(1) {
            let table = word(rest);
            if tables.contains(table) && !OPEN.iter().any(|open| path == Path::new(open.0) && table == open.1)
            {
                findings.push(format!("{}: strangler.{table}", path.display()));
            }
        }
    }
    no_findings(findings);
}

#[test]
fn the_library_never_prints() {
    let mut findings = Vec::new();
    for (path, text) in rust_files("src") {
        for name in ["println!", "print!", "eprintln!", "eprint!", "dbg!", "process::exit"] {
            let allowed = name == "process::exit" && ["main", "cli"].contains(&room(&path).as_str());
            if production(&text).contains(name) && !allowed {
                findings.push(format!("{}: {name}", path.display()));
            }
        }
    }
    no_findings(findings);
}

/// A path that exists on one machine only has no meaning for a reader.
#[test]
fn no_file_names_a_folder_of_one_machine() {
    let mut findings = Vec::new();
    for (path, text) in files(".") {
        for folder in ["home", "root", "work"].map(|name| format!("/{name}/")) {
            for (at, _) in text.match_indices(&folder) {
                let inside = |c: char| c.is_alphanumeric() || "._-~*}".contains(c);
                if !text[..at].ends_with(inside) {
                    let number = text[..at].lines().count();
                    findings.push(format!("{}:{number}: {folder}", path.display()));
                }
            }
        }
    }
    no_findings(findings);
}
