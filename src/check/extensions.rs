//! Extensions whose types the moved columns use.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;
use crate::catalog::{Catalog, UserTypeKind};
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(monolith) = &facts.monolith.catalog else { return Vec::new() };
    let mut problems = Vec::new();
    for (name, database) in &facts.services {
        let (Some(catalog), Some(server)) = (&database.catalog, &database.server) else { continue };
        for (extension, users) in needed(facts, monolith, name) {
            if catalog.extensions.contains_key(&extension) {
                continue;
            }
            let users = users.into_iter().collect::<Vec<_>>().join(", ");
            let problem = Problem::error("extension-missing", format!("service {name}"))
                .fact(format!("the database lacks the extension {extension}, whose types {users} use"))
                .consequence("those tables can't be created there");
            problems.push(if server.available_extensions.contains(&extension) {
                problem.next(format!(
                    "run in the service's database: CREATE EXTENSION {};",
                    quote_ident(&extension)
                ))
            } else {
                problem.next(format!(
                    "install {extension} on the service's server, then: CREATE EXTENSION {};",
                    quote_ident(&extension)
                ))
            });
        }
    }
    problems
}

/// Extensions that the columns of one service need, each with those columns.
fn needed(facts: &Facts, monolith: &Catalog, service: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut needed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let slices = facts.mappings.values().filter(|slice| slice.service == service);
    for mapping in slices.flat_map(|slice| &slice.tables) {
        let Some(table) = monolith.table(&mapping.source) else { continue };
        for column in &mapping.columns {
            let of = table.column(&column.source).and_then(|column| column.user_type.as_ref());
            if let Some(extension) = of.and_then(|of| extension_of(monolith, of)) {
                needed.entry(extension).or_default().insert(format!("{}.{}", table.name, column.source));
            }
        }
    }
    needed
}

/// The extension behind a type, looking through domains.
fn extension_of(monolith: &Catalog, name: &TableName) -> Option<String> {
    let mut name = name;
    for _ in 0..32 {
        let found = monolith.types.get(name)?;
        match (&found.extension, &found.kind) {
            (Some(extension), _) => return Some(extension.clone()),
            (None, UserTypeKind::Domain { base_type: Some(base), .. }) => name = base,
            (None, _) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{expect, retail_plan, with};
    use crate::mapping::fixture::{enum_type, name, retail, user_column};
    use crate::problem::Severity;

    #[test]
    fn extensions_of_moved_columns_must_be_there() {
        let mut monolith = retail();
        monolith.tables.get_mut(&name("Orders")).unwrap().columns.push(user_column("mail", "mail"));
        let mut citext = enum_type("citext", &[]);
        citext.kind = UserTypeKind::Other;
        citext.extension = Some("citext".into());
        let mut mail = enum_type("mail", &[]);
        mail.kind = UserTypeKind::Domain {
            base_sql: "public.citext".into(),
            default_sql: None,
            not_null: false,
            checks: Vec::new(),
            base_type: Some(name("citext")),
        };
        monolith.types.extend([(name("citext"), citext), (name("mail"), mail)]);
        let mut facts = with(retail_plan(), monolith);
        expect(&rule(&facts), Severity::Error, "extension-missing", "install citext on the service's server");
        let server = facts.service("ordering").server.as_mut().unwrap();
        server.available_extensions.insert("citext".into());
        expect(&rule(&facts), Severity::Error, "extension-missing", "Orders.mail");
        facts.service_catalog("ordering").extensions.insert("citext".into(), "1.6".into());
        assert_eq!(rule(&facts), []);
    }
}
