//! What the read link needs of tables that stay behind: to look up what moved rows refer to.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Facts, LinkName};
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(role) = facts.monolith.role(LinkName::Read) else { return Vec::new() };
    let quoted = quote_ident(&role.name);
    let mut problems = Vec::new();
    for (table, from) in references(facts) {
        let (fact, next) = if role.unreadable.contains(table) {
            let schema = quote_ident(table.place_schema());
            let usage = format!("GRANT USAGE ON SCHEMA {schema} TO {quoted}; ");
            let usage =
                if role.closed_schemas.contains(table.place_schema()) { usage } else { String::new() };
            let select = format!("run: {usage}GRANT SELECT ON {} TO {quoted};", table.sql());
            (format!("the read link's role {} may not SELECT it", role.name), select)
        } else if role.row_filtered.contains(table) {
            (
                format!("row level security applies to the read link's role {} on it", role.name),
                format!("run as a superuser: ALTER ROLE {quoted} BYPASSRLS;"),
            )
        } else {
            continue;
        };
        let from: Vec<String> = from.into_iter().collect();
        problems.push(
            Problem::warning("reference-not-readable", table)
                .fact(format!("{fact}, and moved rows refer to it: {}", from.join(", ")))
                .consequence("orphans of this reference could not be found")
                .next(next),
        );
    }
    problems
}

/// Tables that stay in the monolith and are referred to by rows that move, with what refers to them.
fn references(facts: &Facts) -> BTreeMap<&TableName, BTreeSet<String>> {
    let mut found: BTreeMap<&TableName, BTreeSet<String>> = BTreeMap::new();
    // What came since under the name of a table that is dropped is none of the plan's: its service is asked.
    let is_dropped =
        |name: &TableName| facts.monolith.catalog.as_ref().is_some_and(|all| all.dropped.contains(name));
    for table in facts.mappings.values().flat_map(|slice| &slice.tables) {
        let stays = |name: &TableName| !facts.moves(name) && !is_dropped(name);
        for reference in table.soft_references.iter().filter(|soft| stays(&soft.references)) {
            let from = format!("{} ({})", table.source, reference.columns.join(", "));
            found.entry(&reference.references).or_default().insert(from);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::{Link, LinkRole};
    use crate::check::fixture::{expect, with};
    use crate::mapping::fixture::{name, plan, retail, table_rule};
    use crate::problem::Severity;

    /// OrderLines refers to Products, which stays behind.
    fn reading_as(edit: impl FnOnce(&mut LinkRole)) -> Vec<Problem> {
        let plan = plan(vec![("ordering", vec![table_rule("Orders"), table_rule("OrderLines")])]);
        let mut facts = with(plan, retail());
        let Some(Link::Open(role)) = facts.monolith.links.get_mut(&LinkName::Read) else { panic!("no link") };
        edit(role);
        rule(&facts)
    }

    #[test]
    fn a_referred_table_that_can_not_be_read_is_told_with_its_grant() {
        assert_eq!(reading_as(|_| ()), []);
        assert_eq!(reading_as(|role| role.unreadable = [name("Elsewhere"), name("Orders")].into()), []);
        let unreadable = reading_as(|role| role.unreadable = [name("Products")].into());
        expect(
            &unreadable,
            Severity::Warning,
            "reference-not-readable",
            "run: GRANT SELECT ON \"public\".\"Products\" TO \"reader\";",
        );
        assert!(unreadable[0].fact.contains("OrderLines (ProductId)"), "{}", unreadable[0].fact);
        let closed = reading_as(|role| {
            role.unreadable = [name("Products")].into();
            role.closed_schemas = ["public".into()].into();
        });
        expect(&closed, Severity::Warning, "reference-not-readable", "GRANT USAGE ON SCHEMA \"public\"");
        let filtered = reading_as(|role| role.row_filtered = [name("Products")].into());
        expect(&filtered, Severity::Warning, "reference-not-readable", "BYPASSRLS");
    }

    #[test]
    fn a_referred_table_that_moves_too_is_another_rules_business() {
        let mut facts = crate::check::fixture::clean();
        let Some(Link::Open(role)) = facts.monolith.links.get_mut(&LinkName::Read) else { panic!("no link") };
        role.unreadable = [name("Products")].into();
        assert_eq!(rule(&facts), []);
    }
}
