//! Columns and replica identities that work and cost or surprise: generated columns, large objects, FULL.

use super::facts::Facts;
use crate::catalog::{Column, ReplicaIdentity, Table};
use crate::name::quote_ident;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    facts
        .moved_tables()
        .flat_map(|table| [generated(table), large_objects(table), full(table)])
        .flatten()
        .collect()
}

fn named(table: &Table, which: impl Fn(&Column) -> bool) -> Option<String> {
    let names: Vec<&str> =
        table.columns.iter().filter(|column| which(column)).map(|c| c.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn generated(table: &Table) -> Option<Problem> {
    let names = named(table, |column| column.generated_sql.is_some())?;
    let problem = Problem::note("generated", &table.name)
        .fact(format!("{names}: generated from other columns"))
        .consequence("the service computes them anew instead of receiving them")
        .next("make sure that the functions they use exist in the service and give the same there");
    Some(problem)
}

/// `lo` is the type of the extension of that name; plain `oid` is how older schemas point at large objects.
fn large_objects(table: &Table) -> Option<Problem> {
    let is_lo = |column: &Column| {
        column.user_type.as_ref().is_some_and(|name| name.name == "lo")
            || (column.type_builtin && column.cast_sql == "oid")
    };
    let names = named(table, is_lo)?;
    let problem = Problem::warning("large-object", &table.name)
        .fact(format!("{names}: may point at large objects"))
        .consequence(
            "large objects are not in the logical stream: the numbers arrive, what they point at does not",
        )
        .next("keep such contents in a bytea column, or drop the column and move them on another way");
    Some(problem)
}

fn full(table: &Table) -> Option<Problem> {
    if table.replica_identity != ReplicaIdentity::Full {
        return None;
    }
    let alter = format!("ALTER TABLE {} REPLICA IDENTITY", table.name.sql());
    let index = table.indexes.iter().find(|index| !index.primary && table.can_identify(index));
    let cheaper = match (table.primary_key(), index) {
        (Some(_), _) => format!("{alter} DEFAULT;"),
        (None, Some(index)) => format!("{alter} USING INDEX {};", quote_ident(&index.name)),
        (None, None) => "give the table a primary key".to_owned(),
    };
    let problem = Problem::note("identity-full", &table.name)
        .fact("its replica identity is FULL")
        .consequence("each update and delete writes the whole old row into the WAL, long values included")
        .next(format!("nothing where a row filter needs it; otherwise: {cheaper}"));
    Some(problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::{column, name, user_column};
    use crate::problem::Severity;
    use tokio_postgres::types::Type;

    fn orders(edit: impl FnOnce(&mut Table)) -> Vec<Problem> {
        let mut facts = clean();
        edit(facts.monolith_catalog().tables.get_mut(&name("Orders")).unwrap());
        rule(&facts)
    }

    #[test]
    fn columns_that_surprise_are_named() {
        assert_eq!(rule(&clean()), []);
        let problems = orders(|table| table.columns[1].generated_sql = Some("1".into()));
        expect(&problems, Severity::Note, "generated", "Region");
        let problems = orders(|table| table.columns.push(user_column("scan", "lo")));
        expect(&problems, Severity::Warning, "large-object", "scan");
        let problems = orders(|table| table.columns.push(column("scan", &Type::OID)));
        expect(&problems, Severity::Warning, "large-object", "scan");
        let problems = orders(|table| table.replica_identity = ReplicaIdentity::Full);
        expect(&problems, Severity::Note, "identity-full", "REPLICA IDENTITY DEFAULT;");
    }
}
