//! What tables stand on: extensions, schemas, types and sequences.

use std::collections::{BTreeMap, BTreeSet};

use super::Statement;
use super::comments::on_sequence;
use super::draft::{Draft, Site, in_service};
use super::expression::target_of;
use super::needed::Needed;
use super::rights::note;
use super::schema_rights::{Closed, no_create_in_schema};
use super::state::{Grant, GrantOn};
use crate::catalog::{Column, Sequence, UserType, UserTypeKind};
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::{TableName, quote_ident, quote_literal};
use crate::plan::Ddl;
use crate::problem::{Problem, START_ANEW};

/// Adds steps for whatever the service's tables need and it does not have.
pub(super) fn create(draft: &mut Draft<'_>, site: &Site<'_>) {
    let needed = needed(draft, site);
    extensions(draft, site, &needed.extensions);
    routines(draft, site, &needed);
    schemas(draft, site, &needed);
    types(draft, site, &needed.types);
    sequences(draft, site);
}

/// What the service's tables need of the monolith's.
fn needed<'a>(draft: &Draft<'a>, site: &Site<'_>) -> Needed<'a> {
    let survey = draft.survey;
    let mut needed = Needed::new(&survey.monolith, &survey.anatomy);
    for (_, mapping) in site.tables() {
        let Some(table) = survey.monolith.table(&mapping.source) else { continue };
        needed.table(table, |column| target_of(mapping, table, &column.name).is_some());
    }
    needed
}

fn extensions(draft: &mut Draft<'_>, site: &Site<'_>, needed: &BTreeSet<String>) {
    for extension in needed {
        let name = quote_ident(extension);
        let wanted = draft.survey.anatomy.extension_schemas.get(extension).map_or("public", String::as_str);
        if let Some(present) = site.state.extension_schemas.get(extension) {
            if present != wanted {
                draft.problem(
                    Problem::error("extension-elsewhere", in_service(site, format!("extension {extension}")))
                        .fact(format!("it is in the schema {present}, and the monolith has it in {wanted}"))
                        .consequence("its types and functions would not be found under the monolith's names")
                        .next(format!(
                            "run in the service's database as the extension's owner: ALTER EXTENSION {name} SET SCHEMA {};",
                            quote_ident(wanted)
                        )),
                );
            }
            continue;
        }
        if !site.state.available_extensions.contains(extension) {
            draft.problem(
                Problem::error("extension-missing", in_service(site, format!("extension {extension}")))
                    .fact("types or functions of the tables need it, and the server does not have its files")
                    .consequence("the tables could not be created")
                    .next(format!("install the extension's package on the server of service {}", site.name)),
            );
            continue;
        }
        let schema = quote_ident(wanted);
        let statements = vec![
            Statement::from(format!("CREATE SCHEMA IF NOT EXISTS {schema}")),
            Statement::from(format!("CREATE EXTENSION IF NOT EXISTS {name} SCHEMA {schema}")),
        ];
        draft.journaled(site.database(), None, ("create extension", extension), statements);
    }
}

/// Functions are code, so they are not copied: the service's people decide.
fn routines(draft: &mut Draft<'_>, site: &Site<'_>, needed: &Needed<'_>) {
    for (key, user) in &needed.routines {
        if site.state.routines.contains(key) {
            continue;
        }
        let (kind, identity) = key;
        draft.problem(
            Problem::error("routine-missing", in_service(site, format!("{kind} {identity}")))
                .fact(format!("{user} calls it, and the service does not have it"))
                .consequence("the table could not be created, or not without its rules")
                .next(format!("create the {kind} in the service's database, then run provision again")),
        );
    }
}

fn schemas(draft: &mut Draft<'_>, site: &Site<'_>, needed: &Needed<'_>) {
    let tables =
        site.tables().map(|(_, table)| (&table.target.schema, format!("the table {}", table.target)));
    let types = needed.types.iter().map(|name| (&name.schema, format!("the type {name}")));
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for (schema, needs) in tables.chain(types) {
        wanted.entry(schema.clone()).or_insert(needs);
    }
    for (_, sequence) in drawn_from(draft, site) {
        let target = sequence_target(site, &sequence.name);
        wanted.entry(target.schema.clone()).or_insert_with(|| format!("the sequence {target}"));
    }
    let owner = &site.service.owner;
    for (schema, needs) in wanted {
        let mut noted = None;
        let statement = match site.state.schema_owners.get(&schema) {
            Some(present) if present == owner => continue,
            Some(_) => {
                let has = |privilege: &str| {
                    let on = GrantOn::Schema(schema.clone());
                    let grant = Grant { on, role: owner.clone(), privilege: privilege.to_owned() };
                    site.state.holds(&grant)
                };
                if has("CREATE") && has("USAGE") {
                    continue;
                }
                if let Some(schema_owner) = site.state.ungrantable.get(&schema) {
                    draft.problem(no_create_in_schema(Closed {
                        service: site.name,
                        schema: &schema,
                        schema_owner,
                        needs: &needs,
                        admin: &site.state.user,
                        owner,
                    }));
                    continue;
                }
                let on = GrantOn::Schema(schema.clone());
                let missing = ["CREATE", "USAGE"].into_iter().filter(|one| !has(one)).map(str::to_owned);
                noted = note(&on, owner, &missing.collect::<Vec<_>>());
                format!("GRANT CREATE, USAGE ON SCHEMA {} TO {}", quote_ident(&schema), quote_ident(owner))
            }
            None => format!("CREATE SCHEMA {} AUTHORIZATION {}", quote_ident(&schema), quote_ident(owner)),
        };
        let statements = std::iter::once(statement).chain(noted).map(Statement::from).collect();
        draft.journaled(site.database(), None, ("prepare schema", &schema), statements);
    }
}

fn types(draft: &mut Draft<'_>, site: &Site<'_>, needed: &[TableName]) {
    let monolith = &draft.survey.monolith;
    for name in needed {
        let Some(wanted) = monolith.types.get(name) else { continue };
        if let Some(present) = site.catalog.types.get(name) {
            if present.kind != wanted.kind {
                draft.problem(
                    Problem::error("type-differs", in_service(site, format!("type {name}")))
                        .fact("the service has a type of this name that is defined in another way")
                        .consequence("values could be refused or mean something else")
                        .next(bring_in_line(site, name, (wanted, present))),
                );
            }
            continue;
        }
        match create_type(wanted) {
            Some(mut statements) => {
                let sql = name.sql();
                let owner = quote_ident(&site.service.owner);
                statements.push(format!("ALTER TYPE {sql} OWNER TO {owner}"));
                if let Some(comment) = &wanted.comment {
                    statements.push(format!("COMMENT ON TYPE {sql} IS {}", quote_literal(comment)));
                }
                let statements = statements.into_iter().map(Statement::from).collect();
                draft.journaled(site.database(), None, ("create type", &name.to_string()), statements);
            }
            None => draft.problem(
                Problem::error("type-not-created", in_service(site, format!("type {name}")))
                    .fact("it is no enum, domain or composite, and the service does not have it")
                    .consequence("tables that use it could not be created")
                    .next("create the type in the service's database, then run provision again"),
            ),
        }
    }
}

/// What to do about a type that is defined in another way. Once a mirror has begun, the service's tables are of it, so it
/// can only be altered; where values would be mistaken, the mirror itself refuses, and knows the tables.
fn bring_in_line(site: &Site<'_>, name: &TableName, (wanted, present): (&UserType, &UserType)) -> String {
    let mirrored: Vec<&str> = site
        .slices
        .iter()
        .map(|slice| slice.slice.as_str())
        .filter(|slice| site.state.mirrored(slice))
        .collect();
    let Some(slice) = mirrored.first() else {
        return "drop or rename it in the service's database, then run provision again".to_owned();
    };
    match (&wanted.kind, &present.kind) {
        (UserTypeKind::Enum(wanted), UserTypeKind::Enum(present)) => match added_labels(name, wanted, present) {
            Some(statements) => format!("run in the service: {statements}"),
            None if is_reordered(wanted, present) => format!(
                "run in the service: {} Then strangler mirror PLAN --slice {slice} --retry TABLE for each table that has it: \
                 its rows hold the labels under their old names",
                labels_in_order(name, wanted, present)
            ),
            None => format!(
                "strangler mirror PLAN, which says what to rename where a label has another name; labels \
                 that only the service has can stay, and go when slice {slice} starts anew: {START_ANEW}"
            ),
        },
        (UserTypeKind::Composite(_), UserTypeKind::Composite(_)) => {
            "strangler mirror PLAN, which refuses, and says what to run in the service and which tables to copy again"
                .to_owned()
        }
        _ => format!("make it as it was before the mirror began; else start slice {slice} anew: {START_ANEW}"),
    }
}

/// Both have the same labels, in another order: equal values, but `<`, ORDER BY and indexes see them otherwise.
fn is_reordered(wanted: &[String], present: &[String]) -> bool {
    wanted.len() == present.len() && wanted.iter().all(|label| present.contains(label))
}

/// The statements that bring the service's labels into the monolith's order, by giving each place its label's name.
fn labels_in_order(name: &TableName, wanted: &[String], present: &[String]) -> String {
    let moved: Vec<(usize, (&String, &String))> =
        present.iter().zip(wanted).enumerate().filter(|(_, (old, new))| old != new).collect();
    let rename = |old: &str, new: &str| {
        format!("ALTER TYPE {} RENAME VALUE {} TO {};", name.sql(), quote_literal(old), quote_literal(new))
    };
    // A name is free only when its bearer has another one.
    let between = |number: usize| format!("strangler_{number}");
    let away = moved.iter().map(|(number, (old, _))| rename(old, &between(*number)));
    let there = moved.iter().map(|(number, (_, new))| rename(&between(*number), new));
    away.chain(there).collect::<Vec<_>>().join(" ")
}

/// The statements that add the labels which only the monolith has, at their places, where that is all that is missing.
fn added_labels(name: &TableName, wanted: &[String], present: &[String]) -> Option<String> {
    let kept: Vec<&String> = wanted.iter().filter(|label| present.contains(label)).collect();
    if !present.iter().eq(kept) {
        return None;
    }
    let mut before: Option<&String> = None;
    let mut statements = Vec::new();
    for label in wanted {
        if !present.contains(label) {
            let place = match (before, present.first()) {
                (Some(before), _) => format!(" AFTER {}", quote_literal(before)),
                (None, Some(first)) => format!(" BEFORE {}", quote_literal(first)),
                (None, None) => String::new(),
            };
            statements.push(format!("ALTER TYPE {} ADD VALUE {}{place};", name.sql(), quote_literal(label)));
        }
        before = Some(label);
    }
    Some(statements.join(" "))
}

/// `None` for kinds that are not made here. Checks of a domain that were never validated are left out: see `left_out`.
pub(crate) fn create_type(of: &UserType) -> Option<Vec<String>> {
    let name = of.name.sql();
    let sql = match &of.kind {
        UserTypeKind::Enum(labels) => {
            let labels: Vec<String> = labels.iter().map(|label| quote_literal(label)).collect();
            format!("CREATE TYPE {name} AS ENUM ({})", labels.join(", "))
        }
        UserTypeKind::Composite(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(field, of)| format!("{} {of}", quote_ident(field))).collect();
            format!("CREATE TYPE {name} AS ({})", fields.join(", "))
        }
        UserTypeKind::Domain { base_sql, default_sql, not_null, checks, base_type: _ } => {
            let mut sql = format!("CREATE DOMAIN {name} AS {base_sql}");
            if let Some(default) = default_sql {
                sql.push_str(&format!(" DEFAULT {default}"));
            }
            if *not_null {
                sql.push_str(" NOT NULL");
            }
            for (check, definition) in checks.iter().filter(|(_, definition)| validated(definition)) {
                sql.push_str(&format!(" CONSTRAINT {} {definition}", quote_ident(check)));
            }
            sql
        }
        UserTypeKind::Other => return None,
    };
    let comments = of.check_comments.iter().filter(|(check, _)| carries(&of.kind, check));
    let comments = comments.map(|(check, comment)| {
        format!("COMMENT ON CONSTRAINT {} ON DOMAIN {name} IS {}", quote_ident(check), quote_literal(comment))
    });
    Some(std::iter::once(sql).chain(comments).collect())
}

/// Whether a domain is made with this check.
fn carries(kind: &UserTypeKind, check: &str) -> bool {
    let UserTypeKind::Domain { checks, .. } = kind else { return false };
    checks.iter().any(|(name, definition)| name == check && validated(definition))
}

/// Whether a constraint's definition, as `pg_get_constraintdef` prints it, holds for every row there is.
pub(crate) fn validated(definition: &str) -> bool {
    !definition.ends_with(" NOT VALID") && enforced(definition)
}

/// Whether PostgreSQL holds to a constraint at all (18 and later: NOT ENFORCED).
pub(super) fn enforced(definition: &str) -> bool {
    !definition.ends_with(" NOT ENFORCED")
}

/// Sequences that are made for a table's defaults, by their names in the service. An identity brings its own.
pub(super) fn sequences_of(draft: &Draft<'_>, site: &Site<'_>, mapping: &TableMapping) -> Vec<TableName> {
    if site.service.ddl == Ddl::Adopt {
        return adopted_sequences(site, mapping);
    }
    let Some(table) = draft.survey.monolith.table(&mapping.source) else { return Vec::new() };
    table
        .columns
        .iter()
        .filter(|column| column.identity.is_none() && mapping.column(&column.name).is_some())
        .filter_map(|column| column.sequence.as_ref())
        .map(|sequence| sequence_target(site, sequence))
        .collect()
}

/// Sequences that defaults of an adopted table draw from, in columns that the monolith's table does not have.
pub(super) fn sequences_of_its_own(site: &Site<'_>, mapping: &TableMapping) -> Vec<TableName> {
    if site.service.ddl != Ddl::Adopt {
        return Vec::new();
    }
    let mirrored = |column: &Column| mapping.columns.iter().any(|one| one.target == column.name);
    drawn_there(site, mapping)
        .filter(|column| !mirrored(column))
        .filter_map(|column| column.sequence.clone())
        .collect()
}

fn adopted_sequences(site: &Site<'_>, mapping: &TableMapping) -> Vec<TableName> {
    drawn_there(site, mapping).filter_map(|column| column.sequence.clone()).collect()
}

/// Columns of an adopted table, without those that are an identity: these draw without being asked for a right.
fn drawn_there<'a>(site: &Site<'a>, mapping: &TableMapping) -> impl Iterator<Item = &'a Column> {
    let columns = site.catalog.table(&mapping.target).map_or(&[][..], |table| table.columns.as_slice());
    columns.iter().filter(|column| column.identity.is_none())
}

/// Where a sequence of the monolith goes.
pub(super) fn sequence_target(site: &Site<'_>, sequence: &TableName) -> TableName {
    TableName::new(site.service.into.as_ref().unwrap_or(&sequence.schema), &sequence.name)
}

/// Sequences of the monolith that defaults of moved columns draw from, each with the slice of such a column.
fn drawn_from<'a>(draft: &Draft<'a>, site: &Site<'a>) -> Vec<(&'a SliceMapping, &'a Sequence)> {
    let monolith = &draft.survey.monolith;
    let mut found = Vec::new();
    for (slice, mapping) in site.tables() {
        let columns = monolith.table(&mapping.source).map_or(&[][..], |table| table.columns.as_slice());
        let drawn = columns
            .iter()
            .filter(|column| column.identity.is_none() && mapping.column(&column.name).is_some());
        let sequences = drawn.filter_map(|column| monolith.sequences.get(column.sequence.as_ref()?));
        found.extend(sequences.map(|sequence| (slice, sequence)));
    }
    found
}

fn sequences(draft: &mut Draft<'_>, site: &Site<'_>) {
    let mut done = BTreeSet::new();
    for (slice, sequence) in drawn_from(draft, site) {
        let target = sequence_target(site, &sequence.name);
        let remade = site.remade.contains(slice.slice.as_str());
        if !done.insert(target.clone()) || (!remade && present(draft, site, &target)) {
            continue;
        }
        let sql = target.sql();
        let mut statements = vec![
            Statement::from(format!(
                "CREATE SEQUENCE IF NOT EXISTS {sql} AS {} {}",
                sequence.type_sql,
                options(sequence)
            )),
            format!("ALTER SEQUENCE {sql} OWNER TO {}", quote_ident(&site.service.owner)).into(),
        ];
        statements.extend(on_sequence(&target, sequence.comment.as_deref()).map(Statement::from));
        let what = ("create sequence", &*target.to_string());
        draft.journaled(site.database(), Some(&slice.slice), what, statements);
    }
}

fn present(draft: &mut Draft<'_>, site: &Site<'_>, name: &TableName) -> bool {
    let Some(owner) = site.state.sequence_owners.get(name) else { return false };
    if *owner != site.service.owner {
        draft.problem(
            Problem::error("sequence-taken", in_service(site, format!("sequence {name}")))
                .fact(format!("it exists and belongs to {owner}, not to {}", site.service.owner))
                .consequence("values could be given out twice, to somebody else's table too")
                .next("rename or drop it in the service's database, then run provision again"),
        );
    }
    true
}

/// `INCREMENT BY … MINVALUE … MAXVALUE … START WITH … CACHE … CYCLE`. Where the values stand is set when the slice
/// flips.
pub(crate) fn options(sequence: &Sequence) -> String {
    format!(
        "INCREMENT BY {} MINVALUE {} MAXVALUE {} START WITH {} CACHE {}{}",
        sequence.increment,
        sequence.min,
        sequence.max,
        sequence.start,
        sequence.cache,
        if sequence.cycle { " CYCLE" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_the_service_lacks_are_added_at_their_places() {
        let labels = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mood = TableName::new("public", "mood");
        let added = |wanted: &str, present: &str| added_labels(&mood, &labels(wanted), &labels(present));
        assert_eq!(
            added("a ok sad z", "ok sad").unwrap(),
            "ALTER TYPE \"public\".\"mood\" ADD VALUE 'a' BEFORE 'ok'; \
             ALTER TYPE \"public\".\"mood\" ADD VALUE 'z' AFTER 'sad';"
        );
        assert_eq!(added("fine sad", "ok sad"), None, "a rename");
    }
}
