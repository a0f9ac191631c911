//! Extensions whose types the moved columns use.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Facts, LinkName};
use crate::catalog::{Catalog, UserTypeKind};
use crate::name::{TableName, quote_ident};
use crate::plan::Ddl;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(monolith) = &facts.monolith.catalog else { return Vec::new() };
    let mut problems = Vec::new();
    for (name, database) in &facts.services {
        let (Some(catalog), Some(server)) = (&database.catalog, &database.server) else { continue };
        let creates = facts.plan.services.get(name).is_some_and(|service| service.ddl == Ddl::Create);
        let superuser = database.role(LinkName::Admin).is_some_and(|role| role.superuser);
        for (extension, need) in needed(facts, monolith, name) {
            if catalog.extensions.contains_key(&extension) {
                continue;
            }
            let (ident, schema) = (quote_ident(&extension), quote_ident(&need.schema));
            let users = need.users.into_iter().collect::<Vec<_>>().join(", ");
            let object = format!("service {name}");
            let fact = format!("the database lacks the extension {extension}, whose types {users} use");
            let available = server.available_extensions.contains(&extension);
            if creates && available && (superuser || server.trusted_extensions.contains(&extension)) {
                problems.push(Problem::note("extension-missing", object).fact(fact).consequence(format!(
                    "provision makes it in the schema {}, where the monolith has it",
                    need.schema
                )));
                continue;
            }
            let mut create = format!("CREATE EXTENSION {ident} SCHEMA {schema};");
            if need.schema != "public" {
                create.insert_str(0, &format!("CREATE SCHEMA IF NOT EXISTS {schema}; "));
            }
            problems.push(Problem::error("extension-missing", object).fact(fact).consequence("those tables can't be created there").next(
                if available {
                    format!("run in the service's database as a superuser: {create}")
                } else {
                    format!("install {extension} on the service's server, then run in the service's database: {create}")
                },
            ));
        }
    }
    problems
}

/// What a service needs of an extension.
#[derive(Default)]
struct Need {
    /// Its schema in the monolith.
    schema: String,
    /// Columns that are of its types.
    users: BTreeSet<String>,
}

/// Extensions that the columns of one service need.
fn needed(facts: &Facts, monolith: &Catalog, service: &str) -> BTreeMap<String, Need> {
    let mut needed: BTreeMap<String, Need> = BTreeMap::new();
    let slices = facts.mappings.values().filter(|slice| slice.service == service);
    for mapping in slices.flat_map(|slice| &slice.tables) {
        let Some(table) = monolith.table(&mapping.source) else { continue };
        for column in &mapping.columns {
            let of = table.column(&column.source).and_then(|column| column.user_type.as_ref());
            if let Some((extension, of)) = of.and_then(|of| extension_of(monolith, of)) {
                let need = needed.entry(extension).or_default();
                need.schema.clone_from(&of.schema);
                need.users.insert(format!("{}.{}", table.name, column.source));
            }
        }
    }
    needed
}

/// The extension behind a type, and its own type, looking through domains.
fn extension_of<'a>(monolith: &'a Catalog, name: &'a TableName) -> Option<(String, &'a TableName)> {
    let mut name = name;
    for _ in 0..32 {
        let found = monolith.types.get(name)?;
        match (&found.extension, &found.kind) {
            (Some(extension), _) => return Some((extension.clone(), name)),
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
        let made = r#"as a superuser: CREATE EXTENSION "citext" SCHEMA "public";"#;
        expect(&rule(&facts), Severity::Error, "extension-missing", made);
        let server = facts.service("ordering").server.as_mut().unwrap();
        server.trusted_extensions.insert("citext".into());
        let problems = rule(&facts);
        assert_eq!((problems.len(), problems[0].severity), (1, Severity::Note), "provision makes it");
        facts.service_catalog("ordering").extensions.insert("citext".into(), "1.6".into());
        assert_eq!(rule(&facts), []);
    }
}
