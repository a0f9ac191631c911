//! Tables of a service's own whose foreign keys refer to mirrored ones.

use std::collections::BTreeSet;

use super::facts::Facts;
use crate::catalog::ForeignKey;
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

/// The mirror writes with the triggers of foreign keys quiet, because it carries what the monolith has already checked. Of keys that
/// only the service has, nobody has checked anything.
pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, database) in &facts.services {
        let Some(catalog) = &database.catalog else { continue };
        let slices = facts.mappings.values().filter(|slice| slice.service == *name);
        let mirrored: BTreeSet<&TableName> =
            slices.flat_map(|slice| &slice.tables).map(|table| &table.target).collect();
        let of_others = catalog.foreign_keys.iter().filter(|key| {
            !key.inherited && mirrored.contains(&key.references) && !mirrored.contains(&key.table)
        });
        problems.extend(of_others.map(|key| problem(name, key)));
    }
    problems
}

fn problem(service: &str, key: &ForeignKey) -> Problem {
    let (table, references) = (&key.table, &key.references);
    let both = key.columns.iter().zip(&key.referenced_columns);
    let equal: Vec<String> = both
        .map(|(column, referenced)| format!("r.{} = t.{}", quote_ident(referenced), quote_ident(column)))
        .collect();
    let given: Vec<String> =
        key.columns.iter().map(|column| format!("t.{} IS NOT NULL", quote_ident(column))).collect();
    Problem::warning("service-reference", format!("service {service}: {table}"))
        .fact(format!("its foreign key {} refers to {references}, which the mirror writes", key.name))
        .consequence(format!(
            "the mirror's deletes and changes of keys don't ask it: rows of {table} may be left that refer to nothing, and no error says so"
        ))
        .next(format!(
            "until the service has the authority, look for such rows in its database: SELECT * FROM {} AS t WHERE {} AND NOT EXISTS \
             (SELECT FROM {} AS r WHERE {});",
            table.sql(),
            given.join(" AND "),
            references.sql(),
            equal.join(" AND ")
        ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    #[test]
    fn a_table_of_the_services_own_that_refers_to_a_mirrored_one_is_told_with_the_query_for_its_orphans() {
        let mut facts = clean();
        let target = facts.mappings["ordering"].tables[0].target.clone();
        let key = ForeignKey {
            name: "of_order".into(),
            table: name("reviews"),
            columns: vec!["about".into()],
            references: target.clone(),
            referenced_columns: vec!["Id".into()],
            ..facts.monolith_catalog().foreign_keys[0].clone()
        };
        let service = facts.mappings["ordering"].service.clone();
        facts.service_catalog(&service).foreign_keys = vec![key.clone()];
        let query = r#"(SELECT FROM "#.to_owned() + &target.sql() + r#" AS r WHERE r."Id" = t."about");"#;
        expect(&rule(&facts), Severity::Warning, "service-reference", &query);
        let inside = ForeignKey { table: facts.mappings["ordering"].tables[1].target.clone(), ..key };
        facts.service_catalog(&service).foreign_keys = vec![inside];
        assert_eq!(rule(&facts), []);
    }
}
