//! Defaults that draw numbers from a sequence which no catalog knows.

use super::facts::Facts;
use crate::catalog::Catalog;
use crate::dualwrite::readiness::defaults::ColumnDefault;
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for mapping in facts.mappings.values() {
        if let Some(catalog) = &facts.monolith.catalog {
            let columns = columns(mapping, |table, column| (&table.source, &column.source));
            problems.extend(of_side("monolith", catalog, columns));
        }
        let there = facts.services.get(&mapping.service).and_then(|database| database.catalog.as_ref());
        if let Some(catalog) = there {
            let columns = columns(mapping, |table, column| (&table.target, &column.target));
            problems.extend(of_side(&format!("service {}", mapping.service), catalog, columns));
        }
    }
    problems
}

type Mapped<'a> = (&'a TableName, &'a String);

fn columns(
    mapping: &SliceMapping,
    name: for<'a> fn(&'a crate::mapping::TableMapping, &'a crate::mapping::ColumnMapping) -> Mapped<'a>,
) -> Vec<Mapped<'_>> {
    mapping
        .tables
        .iter()
        .flat_map(|table| table.columns.iter().map(move |column| name(table, column)))
        .collect()
}

fn of_side(database: &str, catalog: &Catalog, columns: Vec<Mapped<'_>>) -> Vec<Problem> {
    let default = |(table, column): Mapped<'_>| {
        let column = catalog.table(table)?.column(column)?;
        ColumnDefault::of(table, column)?.problem(database)
    };
    columns.into_iter().filter_map(default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    #[test]
    fn defaults_of_moved_columns_whose_sequence_nobody_knows_are_told() {
        let with = |default: &str, calls: &[&str]| {
            let mut facts = clean();
            let tables = &mut facts.monolith_catalog().tables;
            let column = &mut tables.get_mut(&name("Orders")).unwrap().columns[0];
            column.default_sql = Some(default.to_owned());
            column.default_calls = calls.iter().map(|call| (*call).to_owned()).collect();
            rule(&facts)
        };
        assert_eq!(rule(&clean()), []);
        expect(
            &with("nextval(('ids'::text)::regclass)", &[]),
            Severity::Error,
            "late-sequence",
            "'ids'::regclass",
        );
        expect(
            &with("next_id()", &["public.next_id"]),
            Severity::Warning,
            "default-function",
            "public.next_id",
        );
    }
}
