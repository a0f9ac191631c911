//! Sequences that both moved and staying tables draw from.

use super::facts::Facts;
use crate::name::TableName;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(catalog) = &facts.monolith.catalog else { return Vec::new() };
    let mut problems = Vec::new();
    for sequence in catalog.sequences.values() {
        let users: Vec<&TableName> = sequence.used_by.iter().map(|(table, _)| table).collect();
        // A partition draws from its root's sequence and goes where the root goes.
        let whole =
            |table: &&TableName| catalog.table(table).is_none_or(|table| table.partition_of.is_none());
        let users: Vec<&TableName> = users.into_iter().filter(whole).collect();
        let Some(moved) = users.iter().find(|table| facts.moves(table)) else { continue };
        let Some(apart) = users.iter().find(|table| !facts.together(moved, table)) else { continue };
        problems.push(
            Problem::warning("shared-sequence", &sequence.name)
                .fact(format!("{moved} and {apart} draw from it, and they part ways"))
                .consequence("after the flip both databases draw from a copy of their own, so the same number can be given out twice")
                .next(format!(
                    "give one of the tables a sequence of its own first: CREATE SEQUENCE …; ALTER TABLE {} ALTER COLUMN … SET DEFAULT nextval(…);",
                    moved.sql()
                )),
        );
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Sequence;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    fn shared(users: &[&str]) -> Vec<Problem> {
        let mut facts = clean();
        let sequence = Sequence {
            name: name("pool"),
            type_sql: "bigint".into(),
            start: 1,
            increment: 1,
            min: 1,
            max: i64::MAX,
            cache: 1,
            cycle: false,
            owned_by: None,
            used_by: users.iter().map(|user| (name(user), "Id".to_owned())).collect(),
            comment: None,
        };
        facts.monolith_catalog().sequences.insert(sequence.name.clone(), sequence);
        rule(&facts)
    }

    #[test]
    fn sequences_whose_users_part_ways_are_named() {
        assert_eq!(shared(&[]), []);
        assert_eq!(shared(&["Orders", "OrderLines"]), [], "one slice takes both");
        assert_eq!(shared(&["Elsewhere"]), []);
        expect(
            &shared(&["Orders", "Elsewhere"]),
            Severity::Warning,
            "shared-sequence",
            "Orders and Elsewhere",
        );
        expect(&shared(&["Orders", "Products"]), Severity::Warning, "shared-sequence", "pool");
    }
}
