//! What the monolith's read link needs: REPLICATION, SELECT on every moved table, and all of their rows.

use std::collections::BTreeSet;

use super::facts::{Facts, LinkName};
use crate::name::{TableName, quote_ident, quote_list};
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(role) = facts.monolith.role(LinkName::Read) else { return Vec::new() };
    let quoted = quote_ident(&role.name);
    let mut problems = Vec::new();
    if !role.replication && !role.superuser {
        problems.push(
            Problem::error("no-replication", "monolith")
                .fact(format!("the read link's role {} has no REPLICATION attribute", role.name))
                .consequence("it can't read the logical stream")
                .next(format!("run as a superuser: ALTER ROLE {quoted} REPLICATION; (managed: GRANT rds_replication TO {quoted};)")),
        );
    }
    let among = |tables: &BTreeSet<TableName>| -> Vec<TableName> {
        tables.iter().filter(|table| facts.moves(table)).cloned().collect()
    };
    let unreadable = among(&role.unreadable);
    if !unreadable.is_empty() {
        let schemas: BTreeSet<&str> = unreadable.iter().map(TableName::place_schema).collect();
        problems.push(
            Problem::error("no-select", "monolith")
                .fact(format!("the read link's role {} may not SELECT {}", role.name, shown(&unreadable)))
                .consequence("those tables can't be copied")
                .next(format!(
                    "run: GRANT USAGE ON SCHEMA {} TO {quoted}; GRANT SELECT ON {} TO {quoted};",
                    quote_list(schemas),
                    sql(&unreadable)
                )),
        );
    }
    let filtered = among(&role.row_filtered);
    if !filtered.is_empty() {
        problems.push(
            Problem::error("row-security", "monolith")
                .fact(format!(
                    "row level security applies to the read link's role {} on {}",
                    role.name,
                    shown(&filtered)
                ))
                .consequence("the copy would silently lack the rows that its policies hide")
                .next(format!("run as a superuser: ALTER ROLE {quoted} BYPASSRLS;")),
        );
    }
    problems
}

/// `A, B`.
pub(super) fn shown(tables: &[TableName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The same for SQL.
pub(super) fn sql(tables: &[TableName]) -> String {
    tables.iter().map(TableName::sql).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::{Link, LinkRole};
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    fn reading_as(edit: impl FnOnce(&mut LinkRole)) -> Vec<Problem> {
        let mut facts = clean();
        let Some(Link::Open(role)) = facts.monolith.links.get_mut(&LinkName::Read) else { panic!("no link") };
        edit(role);
        rule(&facts)
    }

    #[test]
    fn each_missing_right_is_named_with_its_grant() {
        assert_eq!(reading_as(|_| ()), []);
        let problems = reading_as(|role| role.replication = false);
        expect(&problems, Severity::Error, "no-replication", "ALTER ROLE \"reader\" REPLICATION;");
        let problems = reading_as(|role| role.unreadable = [name("Orders"), name("Elsewhere")].into());
        expect(
            &problems,
            Severity::Error,
            "no-select",
            "GRANT SELECT ON \"public\".\"Orders\" TO \"reader\";",
        );
        let problems = reading_as(|role| role.row_filtered = [name("Orders")].into());
        expect(&problems, Severity::Error, "row-security", "ALTER ROLE \"reader\" BYPASSRLS;");
        assert_eq!(reading_as(|role| role.unreadable = [name("Elsewhere")].into()), []);
    }
}
