//! The way in: bytes or a path to a plan, or to all of its problems.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::file::PlanFile;
use super::problem::{Place, PlanProblem, PlanProblems, Severity};
use super::source::PlanSource;
use super::{Plan, check, decode, resolve, tree};

/// A plan of thousands of tables has some hundred kilobytes. Whatever is bigger is not a plan.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A plan that made sense, and what a later problem needs to be shown with.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The plan.
    pub plan: Plan,
    /// What the operator should look at. Never an error.
    pub warnings: PlanProblems,
    /// The file, for problems that only a database can tell.
    pub source: PlanSource,
}

/// Reads a plan from its bytes. `file_name` is only shown.
///
/// # Errors
/// All problems of the plan, at least one of them an error.
pub fn parse(text: &[u8], file_name: &str) -> Result<Parsed, PlanProblems> {
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(alone(file_name, too_big(file_name)));
    }
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => return Err(not_utf8(text, error.valid_up_to(), file_name)),
    };
    let (root, mut problems) = tree::read(text);
    let Some(root) = root else {
        if problems.is_empty() {
            problems.push(empty(file_name));
        }
        return Err(PlanProblems::new(PlanSource::new(file_name, text, None), problems));
    };
    if root.is_null() {
        problems.push(empty(file_name));
        return Err(PlanProblems::new(PlanSource::new(file_name, text, None), problems));
    }
    let decoded = decode::decode::<PlanFile>(&root);
    problems.extend(decoded.problems);
    let root = root.without_items(&decoded.left_out);
    let source = PlanSource::new(file_name, text, Some(root.clone()));
    let Some(file) = decoded.value else { return Err(PlanProblems::new(source, problems)) };
    problems.extend(check::check(&file, &root));
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(PlanProblems::new(source, problems));
    }
    let plan = resolve::resolve(file, &root);
    Ok(Parsed { plan, warnings: PlanProblems::new(source.clone(), problems), source })
}

/// Reads a plan from a file.
///
/// # Errors
/// All problems of the plan, or the one that kept it from being read.
pub fn read(path: &Path) -> Result<Parsed, PlanProblems> {
    let name = path.display().to_string();
    let mut text = Vec::new();
    // The limit holds while reading, so that a pipe or a growing file cannot fill the memory.
    let outcome = File::open(path).and_then(|file| {
        if file.metadata()?.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)
    });
    match outcome {
        Ok(_) => parse(&text, &name),
        Err(error) => Err(alone(&name, unreadable(&name, &error))),
    }
}

fn alone(file_name: &str, problem: PlanProblem) -> PlanProblems {
    PlanProblems::new(PlanSource::nameless(file_name), vec![problem])
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what else the operating system says is passed on in its own words"
)]
fn unreadable(name: &str, error: &std::io::Error) -> PlanProblem {
    let (fact, help) = match error.kind() {
        ErrorKind::NotFound => (
            "there is no such file".to_owned(),
            "check the path and the working directory; `strangler schema` describes the format, and `plans/minimal.yaml` \
             is one to start from",
        ),
        ErrorKind::IsADirectory => {
            ("this is a directory".to_owned(), "name the plan file in it, for example `plans/retail.yaml`")
        }
        ErrorKind::PermissionDenied => (
            "this user may not read it".to_owned(),
            "look at `ls -l` of the file and of its directory, and run as a user who may",
        ),
        _ => (error.to_string(), "try `cat` on the file: the operating system could not read it"),
    };
    PlanProblem::error("plan.unreadable", format!("{name}: {fact}")).help(help)
}

fn too_big(name: &str) -> PlanProblem {
    PlanProblem::error("plan.too-large", format!("{name} has more than 1 MB, so it is not a plan"))
        .help("check the path: is it a dump? A plan of a thousand tables has about 100 kB; `schema.*` takes a whole schema in one line")
}

fn empty(name: &str) -> PlanProblem {
    PlanProblem::error("plan.empty", format!("{name} has no plan in it"))
        .help("start with `version: 1` and `plan: NAME`; `plans/minimal.yaml` is the smallest whole plan")
}

fn not_utf8(text: &[u8], offset: usize, file_name: &str) -> PlanProblems {
    let shown = String::from_utf8_lossy(text);
    let before = shown.get(..offset).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let place = Place {
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(column).unwrap_or(u32::MAX),
        offset,
        length: char::REPLACEMENT_CHARACTER.len_utf8(),
    };
    let problem = PlanProblem::error("plan.not-utf8", "the file is not UTF-8: this byte begins no character")
        .at(place)
        .help(format!(
            "if it was saved as Latin-1, convert it: `iconv -f latin1 -t utf-8 {file_name} > plan.yaml`"
        ));
    PlanProblems::new(PlanSource::new(file_name, &shown, None), vec![problem])
}
