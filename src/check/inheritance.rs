//! Partitions, which move through their root, and plain inheritance, which does not move.

use super::facts::Facts;
use crate::catalog::TableKind;
use crate::name::TableName;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(catalog) = &facts.monolith.catalog else { return Vec::new() };
    let mut problems = Vec::new();
    for table in facts.moved_tables() {
        if table.kind == TableKind::Partitioned {
            problems.push(
                Problem::note("partitioned", &table.name)
                    .fact("it is partitioned and moves as a whole, through its root")
                    .consequence(
                        "TRUNCATE of a single partition, DETACH, DROP, and ATTACH of one with rows are not in the stream, so \
                         the mirror stops at them and asks to copy the table again",
                    )
                    .next("use DELETE, and let partitions with rows neither come nor go before the flip"),
            );
        }
        let children = catalog.tables.values().filter(|other| other.inherits.contains(&table.name));
        let pairs = children
            .map(|child| (&child.name, &table.name))
            .chain(table.inherits.iter().map(|parent| (&table.name, parent)));
        problems.extend(pairs.map(|(child, parent)| inherits(&table.name, child, parent)));
    }
    problems
}

fn inherits(table: &TableName, child: &TableName, parent: &TableName) -> Problem {
    Problem::error("inheritance", table)
        .fact(format!("{child} inherits from {parent}"))
        .consequence("reading the parent reads the child's rows too, so they would be counted to two tables")
        .next(format!(
            "run on the monolith: ALTER TABLE {} NO INHERIT {}; or attach it as a partition",
            child.sql(),
            parent.sql()
        ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    #[test]
    fn partitions_are_noted_and_inheritance_is_refused_from_both_ends() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        facts.monolith_catalog().tables.get_mut(&name("Orders")).unwrap().kind = TableKind::Partitioned;
        expect(&rule(&facts), Severity::Note, "partitioned", "TRUNCATE of a single partition");
        let mut facts = clean();
        facts.monolith_catalog().tables.get_mut(&name("Orders")).unwrap().inherits.push(name("Base"));
        expect(&rule(&facts), Severity::Error, "inheritance", "NO INHERIT \"public\".\"Base\";");
        let mut facts = clean();
        let mut child = crate::mapping::fixture::table("Child", Vec::new());
        child.inherits.push(name("Orders"));
        facts.monolith_catalog().tables.insert(child.name.clone(), child);
        expect(&rule(&facts), Severity::Error, "inheritance", "Child inherits from Orders");
    }
}
