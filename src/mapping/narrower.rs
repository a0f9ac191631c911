//! Which values of one database's types those of the other refuse: labels of enums that are lacking, domains that ask
//! more. That is no fault as long as no such value comes: asked once one was refused. And which types take every value and round it.

use std::collections::BTreeMap;

use super::adopted::Misfit;
use super::type_tree::TypeTree;
use crate::catalog::INTEGERS;
use crate::name::{quote_ident, quote_literal};

/// A domain that a column's type is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Name as SQL.
    pub name: String,
    /// It refuses NULL.
    pub not_null: bool,
    /// Its checks as SQL, by their names.
    pub checks: BTreeMap<String, String>,
}

/// What the monolith's type refuses and the service's takes, with the statement that makes the monolith's take it.
#[must_use]
pub fn lacking(monolith: &TypeTree, service: &TypeTree) -> Option<Misfit> {
    match (monolith, service) {
        (TypeTree::Array(monolith), TypeTree::Array(service))
        | (TypeTree::Range(monolith), TypeTree::Range(service)) => lacking(monolith, service),
        (TypeTree::Composite { attributes, .. }, TypeTree::Composite { attributes: theirs, .. }) => {
            attributes.iter().zip(theirs).find_map(|(ours, theirs)| lacking(&ours.of, &theirs.of))
        }
        (TypeTree::Enum { name, labels }, TypeTree::Enum { labels: theirs, .. }) => {
            labels_lacking(name, labels, theirs)
        }
        _ => None,
    }
}

/// Each label gets the place that it has in the service: rows are sorted and compared by it.
fn labels_lacking(name: &str, ours: &[String], theirs: &[String]) -> Option<Misfit> {
    let missing: Vec<&String> = theirs.iter().filter(|label| !ours.contains(label)).collect();
    if missing.is_empty() {
        return None;
    }
    let statement = |(place, label): (usize, &String)| {
        let before = place.checked_sub(1).and_then(|place| theirs.get(place));
        let place = match (before, ours.first()) {
            (Some(before), _) => format!(" AFTER {}", quote_literal(before)),
            (None, Some(first)) => format!(" BEFORE {}", quote_literal(first)),
            (None, None) => String::new(),
        };
        format!("ALTER TYPE {name} ADD VALUE {}{place};", quote_literal(label))
    };
    let added = theirs.iter().enumerate().filter(|(_, label)| missing.contains(label));
    let listed: Vec<String> = missing.iter().map(|label| quote_literal(label)).collect();
    Some(Misfit {
        fact: format!("the monolith's enum {name} lacks what the service's has: {}", listed.join(", ")),
        next: added.map(statement).collect::<Vec<_>>().join(" "),
    })
}

/// What the monolith's domains ask of a value and the service's do not, with the statements that end that. A domain may have
/// another name in the service, and its checks other ones: what they say is compared.
#[must_use]
pub fn stricter(monolith: &[Domain], service: &[Domain]) -> Option<Misfit> {
    let (mut facts, mut statements) = (Vec::new(), Vec::new());
    for domain in monolith {
        let name = &domain.name;
        let same: Vec<&Domain> = service.iter().filter(|other| other.name == *name).collect();
        let theirs: Vec<&Domain> = if same.is_empty() { service.iter().collect() } else { same };
        for (check, says) in &domain.checks {
            if theirs.iter().any(|other| other.checks.values().any(|other| other == says)) {
                continue;
            }
            facts.push(format!(
                "the monolith's domain {name} asks for {check}, {says}, and the service's does not"
            ));
            statements.push(format!("ALTER DOMAIN {name} DROP CONSTRAINT {};", quote_ident(check)));
            // Of the same name, it is another check since then.
            if let Some(now) = theirs.iter().find_map(|other| other.checks.get(check)) {
                statements.push(format!("ALTER DOMAIN {name} ADD CONSTRAINT {} {now};", quote_ident(check)));
            }
        }
        if domain.not_null && !theirs.iter().any(|other| other.not_null) {
            facts.push(format!("the monolith's domain {name} is NOT NULL, and the service's is not"));
            statements.push(format!("ALTER DOMAIN {name} DROP NOT NULL;"));
        }
    }
    (!facts.is_empty()).then(|| Misfit { fact: facts.join("; "), next: statements.join(" ") })
}

/// Whether a column of the type `to` takes values of `from`, both as `format_type` writes them, and keeps less of them without an
/// error: an assignment rounds.
#[must_use]
pub fn rounds(from: &str, to: &str) -> bool {
    let ((from, kept), (to, keeps)) = match (from.strip_suffix("[]"), to.strip_suffix("[]")) {
        (Some(from), Some(to)) => (split(from), split(to)),
        (None, None) => (split(from), split(to)),
        _ => return false,
    };
    if from == to {
        // The last number of a modifier is that of the digits behind the point; without one, all are kept. Of a time that is six.
        let keeps = keeps.filter(|digits| from == "numeric" || *digits < 6);
        return keeps.is_some_and(|keeps| kept.is_none_or(|kept| keeps < kept));
    }
    let is_whole = |name: &str| INTEGERS.contains(&name);
    match from.as_str() {
        "numeric" => is_whole(&to) || to == "real" || to == "double precision",
        "double precision" => is_whole(&to) || to == "real" || to == "numeric",
        "real" => is_whole(&to),
        _ if from.starts_with("timestamp") => to == "date" || to.starts_with("time"),
        _ if from.starts_with("time") => to.starts_with("time"),
        _ => from.starts_with("interval") && (to.starts_with("interval ") || to.starts_with("time")),
    }
}

/// A type's name without its modifier, and the modifier's last number.
fn split(of: &str) -> (String, Option<i32>) {
    let parts = of.split_once('(').and_then(|(before, rest)| {
        let (modifier, after) = rest.split_once(')')?;
        let number = modifier.rsplit(',').next()?.trim().parse().ok()?;
        Some((format!("{before}{after}"), Some(number)))
    });
    parts.unwrap_or_else(|| (of.to_owned(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mood(labels: &[&str]) -> TypeTree {
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        TypeTree::Array(Box::new(TypeTree::Enum { name: "mood".to_owned(), labels }))
    }

    fn pos(not_null: bool, checks: &[(&str, &str)]) -> Vec<Domain> {
        let checks = checks.iter().map(|(name, says)| ((*name).to_owned(), (*says).to_owned())).collect();
        vec![Domain { name: "pos".to_owned(), not_null, checks }]
    }

    fn next(misfit: Option<Misfit>) -> String {
        misfit.map(|misfit| misfit.next).unwrap_or_default()
    }

    #[test]
    fn a_type_that_keeps_less_of_a_value_rounds_it_and_a_wider_one_does_not() {
        for (from, to) in [
            ("numeric(10,2)", "numeric(10,1)"),
            ("numeric", "numeric(30,10)"),
            ("numeric(10,2)[]", "numeric(10,1)[]"),
            ("numeric(10,2)", "bigint"),
            ("double precision", "real"),
            ("timestamp with time zone", "timestamp(0) with time zone"),
            ("timestamp(3) without time zone", "timestamp(0) without time zone"),
            ("timestamp without time zone", "date"),
            ("interval", "interval(0)"),
            ("interval", "interval day to minute"),
        ] {
            assert!(rounds(from, to), "{from} into {to}");
        }
        for (from, to) in [
            ("numeric(10,2)", "numeric(12,2)"),
            ("numeric(10,2)", "numeric(8,4)"),
            ("numeric(10,2)", "numeric"),
            ("numeric(10,2)", "text"),
            ("real", "double precision"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("timestamp(3) with time zone", "timestamp(6) with time zone"),
            ("interval(0)", "interval"),
            ("timestamp without time zone", "timestamp(6) without time zone"),
            ("numeric(10,2)[]", "text"),
        ] {
            assert!(!rounds(from, to), "{from} into {to}");
        }
    }

    #[test]
    fn labels_that_the_monolith_lacks_are_added_where_the_service_has_them() {
        assert_eq!(lacking(&mood(&["ok", "sad"]), &mood(&["ok", "sad"])), None);
        assert_eq!(lacking(&mood(&["ok", "sad"]), &mood(&["ok"])), None, "the service may have fewer");
        assert_eq!(
            next(lacking(&mood(&["ok", "sad"]), &mood(&["odd", "ok", "wild", "sad"]))),
            "ALTER TYPE mood ADD VALUE 'odd' BEFORE 'ok'; ALTER TYPE mood ADD VALUE 'wild' AFTER 'ok';"
        );
    }

    #[test]
    fn what_only_the_monoliths_domain_asks_for_is_taken_from_it() {
        let check = ("pos_check", "CHECK ((VALUE > 0))");
        assert_eq!(stricter(&pos(true, &[check]), &pos(true, &[check])), None);
        assert_eq!(stricter(&pos(false, &[]), &pos(true, &[check])), None, "the service's may ask more");
        let other_name = pos(false, &[("positive", check.1)]);
        assert_eq!(stricter(&pos(false, &[check]), &other_name), None);
        assert_eq!(
            next(stricter(&pos(true, &[check]), &pos(false, &[("pos_check", "CHECK ((VALUE > '-9'))")]))),
            "ALTER DOMAIN pos DROP CONSTRAINT \"pos_check\"; \
             ALTER DOMAIN pos ADD CONSTRAINT \"pos_check\" CHECK ((VALUE > '-9')); ALTER DOMAIN pos DROP NOT NULL;"
        );
    }
}
