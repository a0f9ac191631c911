//! What can be wrong with a plan on its own, all of it at once. What only a database can tell is the mapping's and
//! `check`'s business.

mod databases;
mod hooks;
mod policy;
mod tables;

use std::collections::BTreeMap;

use super::file::{PlanFile, example};
use super::problem::{Place, PlanProblem, Severity, closest, named};
use super::tree::Node;

/// More errors or warnings than this are not collected; a plan with so many has one cause, and a hostile one no end.
const FOUND_MAX: usize = 200;

/// Every slice needs a replication slot and a sender of its own, so no server carries more.
const SLICES_MAX: usize = 200;

/// Longest name that PostgreSQL keeps whole, bytes (`NAMEDATALEN` - 1).
const NAME_BYTES_MAX: usize = 63;

/// Looks at everything. `root` is the tree that `file` was read from.
pub(crate) fn check(file: &PlanFile, root: &Node) -> Vec<PlanProblem> {
    let mut review = Review { root, found: Vec::new() };
    review.head(file);
    databases::check(&mut review, file);
    let slices = file.slices.as_ref().map_or(0, BTreeMap::len);
    if slices > SLICES_MAX {
        let message = format!("the plan has {slices} slices, more than the {SLICES_MAX} that one can have");
        let help = "every slice needs a replication slot of the monolith; put tables that move together into one slice";
        review.add(PlanProblem::error("plan.too-large", message).at(review.key(&["slices"])).help(help));
        return review.found;
    }
    let entries = tables::check(&mut review, file);
    policy::check(&mut review, file, &entries);
    review.found
}

/// The plan under review, with what was found so far.
struct Review<'a> {
    root: &'a Node,
    found: Vec<PlanProblem>,
}

impl Review<'_> {
    fn add(&mut self, problem: PlanProblem) {
        if !self.is_full(problem.severity) {
            self.found.push(problem);
        }
    }

    /// Enough of this severity is found: what costs much to say is not looked for any more. Warnings never crowd out
    /// an error.
    fn is_full(&self, severity: Severity) -> bool {
        self.found.iter().filter(|problem| problem.severity == severity).count() >= FOUND_MAX
    }

    /// Where to look for a path: short text itself, anything bigger by its key.
    fn value(&self, path: &[&str]) -> Option<Place> {
        self.root.place_of(path)
    }

    /// The key of a path.
    fn key(&self, path: &[&str]) -> Option<Place> {
        self.root.key_place_of(path)
    }

    /// Whether something is written under this path. What is written and could not be read has its problem already.
    fn is_written(&self, path: &[&str]) -> bool {
        self.root.find(path).is_some_and(|node| !node.is_null())
    }

    /// Whether the key is written under the parent, or one that was probably meant as it: that one is told as
    /// unknown, and telling the key as missing too would only confuse.
    fn is_meant(&self, parent: &[&str], key: &str) -> bool {
        let path: Vec<&str> = parent.iter().copied().chain([key]).collect();
        let is_slip = |written: &&str| example(written).is_none() && closest(written, [key]).is_some();
        self.is_written(&path) || self.root.keys_of(parent).iter().any(is_slip)
    }

    fn head(&mut self, file: &PlanFile) {
        match file.version {
            Some(1) => {}
            Some(other) => self.add(
                PlanProblem::error(
                    "plan.version",
                    format!("this version of strangler reads plans of version 1, not {other}"),
                )
                .at(self.value(&["version"]))
                .help("write `version: 1`, or use the strangler that the plan was written for"),
            ),
            None => self.missing(&[], "version", "the plan"),
        }
        match &file.plan {
            Some(name) => self.name("plan", name, self.value(&["plan"])),
            None => self.missing(&[], "plan", "the plan"),
        }
        if file.monolith.is_none() {
            self.missing(&[], "monolith", "the plan");
        }
        if file.replicas.is_some() {
            self.not_yet(&["replicas"]);
        }
    }

    /// A key that has to be there and is not.
    fn missing(&mut self, parent: &[&str], key: &str, owner: &str) {
        if self.is_meant(parent, key) {
            return;
        }
        let path: Vec<&str> = parent.iter().copied().chain([key]).collect();
        let place = self.key(&path).or_else(|| self.key(parent));
        let problem = PlanProblem::error("plan.missing-key", format!("{owner} has no `{key}`")).at(place);
        self.add(match example(key) {
            Some(example) => problem.help(format!("add for example `{example}`")),
            None => problem,
        });
    }

    /// A mapping at the top that has to have something in it and has not. `is_read` tells it from one that could not
    /// be read and has its problem already.
    fn nothing_in(&mut self, key: &str, is_read: bool) {
        if !is_read || !self.is_written(&[key]) {
            return self.missing(&[], key, "the plan");
        }
        if self.root.keys_of(&[key]).is_empty() {
            let help =
                example(key).map_or_else(String::new, |example| format!("add for example `{example}`"));
            self.add(
                PlanProblem::error("plan.empty", format!("`{key}` is empty")).at(self.key(&[key])).help(help),
            );
        }
    }

    /// A part of the format that comes later.
    fn not_yet(&mut self, path: &[&str]) {
        let key = path.last().copied().unwrap_or_default();
        let help = match key {
            "lookup" => {
                "drop the column here (`drop: true`) and let the service fill it, until a later version can carry it"
            }
            "expr" => "leave the column out here and let the service compute it, until a later version can",
            "via" => "filter on a column of the table itself, until a later version can follow a foreign key",
            "replicas" => {
                "remove `replicas`; let the service ask the owner of the table, until a later version can copy it"
            }
            "reversible" => "remove it: this version has no mapping that could not be reversed",
            _ => "remove it: it only goes with `lookup` or `expr`",
        };
        self.add(
            PlanProblem::error(
                "plan.not-available",
                format!("`{key}` is not available in this version of strangler"),
            )
            .at(self.key(path))
            .help(help),
        );
    }

    /// Names of plans, services and slices become parts of the names of slots and publications.
    fn name(&mut self, what: &str, name: &str, place: Option<Place>) {
        let mut chars = name.chars();
        let good = chars.next().is_some_and(|c| c.is_ascii_lowercase())
            && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && name.len() <= 30;
        if good {
            return;
        }
        let problem =
            PlanProblem::error("plan.bad-name", format!("{} cannot be the name of a {what}", named(name)))
                .at(place);
        let rule = "it becomes part of slot, publication and table names, so it starts with a letter a-z, \
                    goes on with a-z, 0-9 and _, and has at most 30 characters";
        let better = simplified(name);
        self.add(match better {
            Some(better) => problem.help(format!("write for example `{better}`: {rule}")),
            None => problem.help(rule),
        });
    }

    /// A role, schema, table or column name that PostgreSQL has to keep as it is.
    fn identifier(&mut self, what: &str, name: &str, place: Option<Place>) {
        let fact = if name.is_empty() {
            "is empty"
        } else if name.len() > NAME_BYTES_MAX {
            "is longer than 63 bytes, and PostgreSQL would cut it"
        } else if name.contains('\0') {
            "holds a zero byte"
        } else {
            return;
        };
        self.add(
            PlanProblem::error("plan.bad-name", format!("the name of the {what} {fact}"))
                .at(place)
                .help("write the name exactly as PostgreSQL should have it, 1 to 63 bytes"),
        );
    }

    /// A name that has to be one of those that the plan defines.
    fn unknown(&mut self, what: &str, name: &str, known: &[&str], place: Option<Place>) {
        if self.is_full(Severity::Error) {
            return;
        }
        let help = match (closest(name, known.iter().copied()), known) {
            (Some(meant), _) => format!("did you mean `{meant}`?"),
            (None, []) => format!("the plan has no {what}s yet; add it under `{what}s:`"),
            (None, _) => {
                let names = super::problem::listed(known.iter().copied().take(20));
                format!("write one of {names}, or add {} under `{what}s:`", named(name))
            }
        };
        let problem = PlanProblem::error("plan.unknown-name", format!("no {what} is called {}", named(name)));
        self.add(problem.at(place).help(help));
    }
}

/// The name that was probably wanted, when it can be told.
fn simplified(name: &str) -> Option<String> {
    let mut simple = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            simple.push(c.to_ascii_lowercase());
        } else if !simple.ends_with('_') && !simple.is_empty() {
            simple.push('_');
        }
    }
    let simple: String =
        simple.trim_start_matches(|c: char| !c.is_ascii_lowercase()).chars().take(30).collect();
    let simple = simple.trim_end_matches('_').to_owned();
    (!simple.is_empty()).then_some(simple)
}

/// Tells what was already seen, with the place where it was first seen.
struct Seen<K>(BTreeMap<K, Option<Place>>);

impl<K: Ord> Seen<K> {
    fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The earlier place when `key` was here before.
    fn again(&mut self, key: K, place: Option<Place>) -> Option<Option<Place>> {
        if let Some(first) = self.0.get(&key) {
            return Some(*first);
        }
        self.0.insert(key, place);
        None
    }
}

/// A problem with a second place, when there is one. The later of the two is the one to look at.
fn with_first(mut problem: PlanProblem, first: Option<Place>, label: &str) -> PlanProblem {
    let Some(mut first) = first else { return problem };
    if let Some(here) = problem.place.as_mut().filter(|here| **here < first) {
        std::mem::swap(here, &mut first);
    }
    problem.also(first, label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_name_gets_a_good_one_beside_it() {
        assert_eq!(simplified("Order-Service").as_deref(), Some("order_service"));
        assert_eq!(simplified("2nd try!").as_deref(), Some("nd_try"));
        assert_eq!(simplified("été").as_deref(), Some("t"));
        assert_eq!(simplified("123"), None);
    }
}
