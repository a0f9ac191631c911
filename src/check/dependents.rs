//! Views, functions, triggers, rules, policies, publications and subscriptions that touch moved tables.

use std::collections::BTreeMap;

use super::facts::Facts;
use super::slots::OWN;
use crate::catalog::{Dependent, DependentKind};
use crate::problem::{Problem, Severity};

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(catalog) = &facts.monolith.catalog else { return Vec::new() };
    // One problem per object, with all the moved tables that it touches.
    let mut touched: BTreeMap<(DependentKind, &str, &str), Vec<String>> = BTreeMap::new();
    for one in catalog.dependents.iter().filter(|one| facts.moves(&one.table) && !is_ours(one)) {
        touched.entry((one.kind, &one.name, &one.detail)).or_default().push(one.table.to_string());
    }
    touched
        .into_iter()
        .map(|((kind, name, detail), tables)| problem(kind, name, detail, &tables.join(", ")))
        .collect()
}

fn is_ours(one: &Dependent) -> bool {
    one.kind == DependentKind::Publication && one.name.starts_with(OWN)
}

fn problem(kind: DependentKind, name: &str, detail: &str, tables: &str) -> Problem {
    let (severity, code, noun, consequence, next) = words(kind, detail);
    Problem::new(severity, code, name)
        .fact(format!("the {noun} touches {tables}"))
        .consequence(consequence)
        .next(next)
}

type Words = (Severity, &'static str, &'static str, &'static str, &'static str);

fn words(kind: DependentKind, detail: &str) -> Words {
    match kind {
        DependentKind::View | DependentKind::MaterializedView => (
            Severity::Note,
            "view",
            "view",
            "it stays behind; after the flip it shows the copy that the reverse mirror keeps, until the tables are retired",
            "move its readers to the service before retirement",
        ),
        DependentKind::Function => (
            Severity::Warning,
            "function",
            "function",
            "it stays behind; after the flip, whatever it writes into these tables is refused with 25006",
            "read it, and move what writes to the service",
        ),
        DependentKind::Trigger => trigger_words(detail),
        DependentKind::Rule => (
            Severity::Error,
            "rule",
            "rewrite rule",
            "a rule turns statements into others, so neither the gates nor the service would do what the monolith does",
            "turn it into a trigger or into code of the application, then: DROP RULE …",
        ),
        DependentKind::Policy => (
            Severity::Warning,
            "policy",
            "row security policy",
            "policies are not carried over, so the service's tables would show all rows",
            "write the policies that the service needs in its own migrations",
        ),
        DependentKind::Publication => (
            Severity::Warning,
            "publication",
            "publication",
            "after the flip its subscribers get these rows from the reverse mirror only, and nothing after retirement",
            "plan its subscribers' move to the service's database",
        ),
        DependentKind::Subscription => (
            Severity::Error,
            "subscription",
            "subscription",
            "its apply worker writes into these tables past statement triggers, so a gate could not fence it",
            "end it first: ALTER SUBSCRIPTION … DISABLE; DROP SUBSCRIPTION …;",
        ),
    }
}

/// `tgenabled` A and R fire for applied rows as well, O only for the application's, D never.
fn trigger_words(detail: &str) -> Words {
    match detail {
        "A" | "R" => (
            Severity::Warning,
            "trigger",
            "trigger, enabled ALWAYS or REPLICA,",
            "it stays behind; after the flip it would fire for every row that the reverse mirror applies, so arm refuses it",
            "ALTER TABLE … ENABLE TRIGGER …",
        ),
        "D" => (
            Severity::Note,
            "trigger",
            "disabled trigger",
            "it stays behind and does nothing on either side",
            "nothing, unless it shall come back",
        ),
        _ => (
            Severity::Warning,
            "trigger",
            "trigger",
            "it is not created in the service, and after the flip it does not fire for rows that the reverse mirror applies",
            "move its work to the service, or replicate its result",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;

    fn found(kind: DependentKind, table: &str, object: &str, detail: &str) -> Vec<Problem> {
        let mut facts = clean();
        let one = Dependent { kind, table: name(table), name: object.into(), detail: detail.into() };
        facts.monolith_catalog().dependents.push(one);
        rule(&facts)
    }

    #[test]
    fn every_kind_has_its_words() {
        assert_eq!(rule(&clean()), []);
        for (kind, severity, code) in [
            (DependentKind::View, Severity::Note, "view"),
            (DependentKind::MaterializedView, Severity::Note, "view"),
            (DependentKind::Function, Severity::Warning, "function"),
            (DependentKind::Rule, Severity::Error, "rule"),
            (DependentKind::Policy, Severity::Warning, "policy"),
            (DependentKind::Publication, Severity::Warning, "publication"),
            (DependentKind::Subscription, Severity::Error, "subscription"),
        ] {
            expect(&found(kind, "Orders", "thing", ""), severity, code, "thing");
        }
        expect(
            &found(DependentKind::Trigger, "Orders", "audit on Orders", "O"),
            Severity::Warning,
            "trigger",
            "audit on Orders",
        );
        expect(
            &found(DependentKind::Trigger, "Orders", "audit on Orders", "A"),
            Severity::Warning,
            "trigger",
            "ALWAYS",
        );
        expect(
            &found(DependentKind::Trigger, "Orders", "audit on Orders", "D"),
            Severity::Note,
            "trigger",
            "disabled",
        );
    }

    #[test]
    fn staying_tables_and_our_own_publications_do_not_count() {
        assert_eq!(found(DependentKind::View, "Elsewhere", "thing", ""), []);
        assert_eq!(found(DependentKind::Publication, "Orders", "strangler_retail_ordering", ""), []);
    }
}
