//! Tables that the service's own migrations made: verified, then readied for the mirror. Whatever could refuse rows
//! before all of them are there is written down word for word and taken off, to be put back by the mirror.

use serde_json::json;

use super::Statement;
use super::comments;
use super::deferred::{Deferred, Rank, insert, validate};
use super::draft::{Draft, Site, in_service, journal};
use super::objects::validated;
use super::slices::new_hash;
use super::tables::{guard, mirror_row, refuse_rows};
use crate::catalog::{Catalog, Column, Index, Persistence, Table, TableKind};
use crate::journal::beginnings;
use crate::journal::set_aside::note as note_set_aside;
use crate::journal::statements as ours;
use crate::mapping::{ColumnMapping, SliceMapping, TableMapping, adopted};
use crate::name::{TableName, quote_ident, quote_list};
use crate::problem::Problem;

/// Verifies every table of the service and adds what readies them.
pub(super) fn adopt(draft: &mut Draft<'_>, site: &Site<'_>) {
    let mut ready = Vec::new();
    for (slice, mapping) in site.tables() {
        let problems = verify(draft, site, mapping);
        if problems.is_empty() {
            ready.push((slice, mapping));
        }
        problems.into_iter().for_each(|problem| draft.problem(problem));
    }
    for slice in site.slices.iter().filter(|slice| site.remade.contains(slice.slice.as_str())) {
        release(draft, site, slice);
    }
    for (slice, mapping) in &ready {
        guard(draft, site, slice, &mapping.target);
        if !site.known(slice, mapping) {
            let what = ("adopt table", &*mapping.target.to_string());
            let noted = beginnings::note_adopted(&slice.slice, &mapping.target);
            let statements =
                std::iter::once(mirror_row(slice, mapping)).chain(noted).map(Statement::from).collect();
            draft.journaled(site.database(), Some(&slice.slice), what, statements);
        }
    }
    set_aside(draft, site);
}

/// Tables through which rows come past the gate of `table`, whose triggers are of statements: those that inherit from it and those that
/// are above it. What is said of each, and the SQL that ends it.
fn related(catalog: &Catalog, table: &Table) -> Vec<(String, String)> {
    let own = table.name.sql();
    let heirs = catalog.tables.values().filter(|one| one.inherits.contains(&table.name)).map(|heir| {
        let fact = format!("{} inherits from it, and a gate on it does not guard {}", heir.name, heir.name);
        (fact, format!("ALTER TABLE {} NO INHERIT {own}", heir.name.sql()))
    });
    let whole = table.partition_of.iter().map(|parent| {
        let fact = format!("it is a partition of {parent}, and what is written through that passes the gate");
        (fact, format!("ALTER TABLE {} DETACH PARTITION {own}", parent.sql()))
    });
    let above = table.inherits.iter().map(|parent| {
        let fact = format!("it inherits from {parent}, and what is written through that passes the gate");
        (fact, format!("ALTER TABLE {own} NO INHERIT {}", parent.sql()))
    });
    heirs.chain(whole).chain(above).collect()
}

/// All mismatches between a mapping and the table that is there.
fn verify(draft: &Draft<'_>, site: &Site<'_>, mapping: &TableMapping) -> Vec<Problem> {
    let object = in_service(site, format!("table {}", mapping.target));
    let refused = |fact: String, next: String| {
        Problem::error("adopt-mismatch", &object)
            .fact(fact)
            .consequence("the mirror could not write every row of the monolith into it")
            .next(next)
    };
    let Some(table) = site.catalog.table(&mapping.target) else {
        return vec![refused(
            "it does not exist".to_owned(),
            "run the service's migrations first, or write `ddl: create` in the plan".to_owned(),
        )];
    };
    let mut problems = Vec::new();
    if !matches!(table.kind, TableKind::Ordinary | TableKind::Partitioned) {
        problems.push(refused("it is not a table".to_owned(), "name a table with `to:`".to_owned()));
    }
    let related = related(site.catalog, table).into_iter();
    problems.extend(related.map(|(fact, sql)| refused(fact, format!("run in the service: {sql}"))));
    problems.extend(unlogged(site.catalog, &table.name).map(|name| {
        Problem::error("adopt-mismatch", &object)
            .fact(format!("{name} is UNLOGGED"))
            .consequence("a crash of the service empties it, and its changes are in no stream: the way back would lack them")
            .next(format!("run in the service: ALTER TABLE {} SET LOGGED", name.sql()))
    }));
    if !table.can_own {
        let next = format!(
            "run in the service: GRANT {} TO {}",
            quote_ident(&table.owner),
            quote_ident(&site.state.user)
        );
        problems.push(refused(
            format!("it belongs to {}, and {} is no member of that role", table.owner, site.state.user),
            next,
        ));
    }
    for (fact, next) in columns(draft, site.catalog, mapping, table) {
        problems.push(refused(fact, next));
    }
    let source = draft.survey.monolith.table(&mapping.source);
    let generated = source.map(|source| adopted::generated_apart(mapping, source, table)).unwrap_or_default();
    let loud = adopted::loud_triggers(site.catalog, &table.name).into_iter();
    let loud = loud.chain(adopted::loud_rules(site.catalog, &table.name));
    let misfits = generated.into_iter().chain(loud);
    problems.extend(misfits.map(|misfit| {
        Problem::error("adopt-mismatch", &object)
            .fact(misfit.fact)
            .consequence("its rows would not be what the monolith's are")
            .next(misfit.next)
    }));
    if !mapping.key.is_empty() && key_index(mapping, table).is_none() {
        let key: Vec<&str> = mapping.key_columns().map(|column| column.target.as_str()).collect();
        problems.push(refused(
            format!(
                "no primary key or unique index over NOT NULL columns covers exactly ({}); it has {}",
                key.join(", "),
                unique_columns(table)
            ),
            format!("run in the service: ALTER TABLE {} {}", table.name.sql(), add_key(table, &key)),
        ));
    }
    problems
}

/// The table itself and its partitions, as far as they are not in the WAL.
fn unlogged<'a>(service: &'a Catalog, table: &'a TableName) -> impl Iterator<Item = &'a TableName> {
    let up = |one: &TableName| service.table(one).and_then(|table| table.partition_of.clone());
    let of_table =
        move |name: &TableName| std::iter::successors(Some(name.clone()), up).any(|one| one == *table);
    let unlogged = service.tables.values().filter(|one| one.persistence != Persistence::Permanent);
    unlogged.map(|one| &one.name).filter(move |name| of_table(name))
}

/// Fact and advice of each column that does not fit.
fn columns(
    draft: &Draft<'_>,
    service: &Catalog,
    mapping: &TableMapping,
    table: &Table,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let alter = |column: &str, what: &str| {
        format!(
            "run in the service: ALTER TABLE {} ALTER COLUMN {} {what}",
            table.name.sql(),
            quote_ident(column)
        )
    };
    let source = draft.survey.monolith.table(&mapping.source);
    for wanted in &mapping.columns {
        let name = &wanted.target;
        let Some(present) = table.column(name) else {
            let add = format!(
                "run in the service: ALTER TABLE {} ADD COLUMN {} {}, or drop the column in the plan",
                table.name.sql(),
                quote_ident(name),
                wanted.type_sql
            );
            found.push((format!("it has no column {name}"), add));
            continue;
        };
        let origin = source.and_then(|source| source.column(&wanted.source));
        if !adopted::fits((&draft.survey.monolith, service), (wanted, origin), present) {
            let fact = format!(
                "column {name} is {}, and the monolith's {} does not fit into it",
                present.type_sql, wanted.type_sql
            );
            let catalogs = (&draft.survey.monolith, service);
            let labels = origin.and_then(|origin| adopted::types_apart(catalogs, (origin, present)));
            found.push(match labels {
                Some(misfit) => (format!("{fact}: {}", misfit.fact), misfit.next),
                None => (fact, alter(name, &format!("TYPE {}", wanted.type_sql))),
            });
        }
        let otherwise =
            origin.and_then(|origin| collated_otherwise(mapping, table, (wanted, origin, present)));
        found.extend(otherwise.map(|(fact, what)| (fact, alter(name, &what))));
        if present.generated_sql.is_some() {
            // A virtual one has no values to keep (ALTER TABLE).
            let advice = if present.generated_virtual {
                format!(
                    "run in the service: ALTER TABLE {table} DROP COLUMN {column}, ADD COLUMN {column} {of}",
                    table = table.name.sql(),
                    column = quote_ident(name),
                    of = present.type_sql
                )
            } else {
                alter(name, "DROP EXPRESSION")
            };
            found.push((format!("column {name} is generated"), advice));
        }
        if present.identity == Some('a') && !wanted.identity_always {
            let fact = format!("column {name} is GENERATED ALWAYS, and the mirror brings its values");
            found.push((fact, alter(name, "SET GENERATED BY DEFAULT")));
        }
        if table.refuses_null(present) && origin.is_some_and(|origin| !origin.not_null) {
            found.push((
                format!("column {name} is NOT NULL, and the monolith's is not"),
                alter(name, "DROP NOT NULL"),
            ));
        }
    }
    found.extend(unfilled(mapping, table).map(|name| {
        let fact = format!("column {name} is NOT NULL without a default, and nothing is mapped to it");
        (fact, alter(name, "DROP NOT NULL"))
    }));
    found
}

/// Columns that the mirror leaves out of its rows, and that have no value of their own then.
fn unfilled<'a>(mapping: &TableMapping, table: &'a Table) -> impl Iterator<Item = &'a str> {
    let extra =
        table.columns.iter().filter(|column| mapping.columns.iter().all(|one| one.target != column.name));
    let filled = |column: &Column| {
        column.default_sql.is_some() || column.identity.is_some() || column.generated_sql.is_some()
    };
    extra
        .filter(move |column| table.refuses_null(column) && !filled(column))
        .map(|column| column.name.as_str())
}

/// A column by which one of two texts that the sides have both as keys is a row of its own on one side alone: fact, and type to
/// give it. Another unique column may be so only where the service tells less apart.
fn collated_otherwise(
    mapping: &TableMapping,
    table: &Table,
    (wanted, origin, present): (&ColumnMapping, &Column, &Column),
) -> Option<(String, String)> {
    let in_key = mapping.key_columns().any(|column| column.target == wanted.target);
    let unique = table.indexes.iter().filter(|index| index.unique);
    let mut unique = unique.flat_map(|index| &index.columns).flatten();
    let in_unique = !present.deterministic && unique.any(|column| *column == wanted.target);
    if origin.deterministic == present.deterministic || !(in_key || in_unique) {
        return None;
    }
    let how = if present.deterministic {
        "deterministic, and the monolith's is not"
    } else {
        "not deterministic, and the monolith's is"
    };
    let collation = origin.collation_sql.as_deref().unwrap_or("pg_catalog.\"default\"");
    Some((
        format!("column {} tells rows apart by a collation that is {how}", wanted.target),
        format!("TYPE {} COLLATE {collation}", present.type_sql),
    ))
}

/// The index that tells rows apart in the service.
fn key_index<'a>(mapping: &TableMapping, table: &'a Table) -> Option<&'a Index> {
    let mut key: Vec<&str> = mapping.key_columns().map(|column| column.target.as_str()).collect();
    key.sort_unstable();
    let covers = |index: &&Index| {
        let columns: Option<Vec<&str>> = index.columns.iter().map(Option::as_deref).collect();
        let mut columns = columns.unwrap_or_default();
        columns.sort_unstable();
        table.can_identify(index) && columns == key
    };
    let mut fitting: Vec<&Index> = table.indexes.iter().filter(covers).collect();
    fitting.sort_by_key(|index| !index.primary);
    fitting.first().copied()
}

/// What its unique indexes are over, in words.
fn unique_columns(table: &Table) -> String {
    let of = |index: &Index| {
        let columns: Vec<&str> =
            index.columns.iter().map(|column| column.as_deref().unwrap_or("an expression")).collect();
        format!("{} ({})", index.name, columns.join(", "))
    };
    let uniques: Vec<String> = table.indexes.iter().filter(|index| index.unique).map(of).collect();
    if uniques.is_empty() { "none at all".to_owned() } else { uniques.join(", ") }
}

/// What makes a key of these columns, to stand behind ALTER TABLE.
fn add_key(table: &Table, key: &[&str]) -> String {
    let columns = quote_list(key.iter().copied());
    if table.indexes.iter().all(|index| !index.primary) {
        return format!("ADD PRIMARY KEY ({columns})");
    }
    let nullable = key.iter().filter(|name| table.column(name).is_some_and(|column| !column.not_null));
    let not_null: String =
        nullable.map(|name| format!("ALTER COLUMN {} SET NOT NULL, ", quote_ident(name))).collect();
    format!("{not_null}ADD UNIQUE ({columns})")
}

/// Something to write down and take off.
struct Aside<'a> {
    slice: &'a SliceMapping,
    table: &'a TableName,
    /// What it is called where it is written down, and the table that it refers to, which is its own or another one.
    object: String,
    references: &'a TableName,
    what: Vec<Deferred>,
    /// Written instead of `what` for a foreign key into another slice, which waits until both have flipped.
    note: Option<Statement>,
    drop_sql: String,
}

/// Writes down and drops, for all tables of the service in one transaction: a foreign key must go before the unique
/// index that it leans on, whichever table has it, and nothing may go that is not written down.
fn set_aside(draft: &mut Draft<'_>, site: &Site<'_>) {
    let mut asides = foreign_keys(site);
    asides.extend(unique_indexes(draft, site));
    if asides.is_empty() {
        return;
    }
    let mut tables: Vec<&TableName> = asides.iter().map(|aside| aside.table).collect();
    tables.sort();
    tables.dedup();
    let mut statements: Vec<Statement> = Vec::new();
    for table in tables {
        statements.push(format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table.sql()).into());
        statements.push(refuse_rows(table));
    }
    let mut rows: Vec<(&SliceMapping, &Deferred)> =
        asides.iter().flat_map(|aside| aside.what.iter().map(|one| (aside.slice, one))).collect();
    rows.sort_by_key(|(_, one)| one.rank);
    for (slice, one) in rows {
        statements.extend(insert(site, slice, std::slice::from_ref(one)));
    }
    statements.extend(asides.iter().filter_map(|aside| aside.note.clone()));
    statements.extend(asides.iter().map(|aside| {
        let of = (aside.table, aside.object.as_str());
        Statement::from(note_set_aside(&aside.slice.slice, of, &[aside.table, aside.references]))
    }));
    statements.extend(asides.iter().map(|aside| Statement::from(aside.drop_sql.clone())));
    let what = ("set aside constraints of", "the adopted tables");
    draft.journaled(site.database(), None, what, statements);
}

/// Slices that still may be changed, with their tables.
fn open_tables<'a>(site: &Site<'a>) -> impl Iterator<Item = (&'a SliceMapping, &'a TableMapping)> {
    let state = site.state;
    site.tables().filter(move |(slice, _)| !state.mirrored(&slice.slice))
}

fn foreign_keys<'a>(site: &Site<'a>) -> Vec<Aside<'a>> {
    let mut asides = Vec::new();
    for (slice, mapping) in open_tables(site) {
        let keys = site.catalog.foreign_keys.iter();
        for key in keys.filter(|key| key.table == mapping.target && !key.inherited) {
            let target = mapping.target.sql();
            let name = quote_ident(&key.name);
            let comment = comments::on_constraint(&mapping.target, &key.name, key.comment.as_deref());
            let add = format!("ALTER TABLE {target} ADD CONSTRAINT {name} {}", key.definition_sql);
            // A partitioned table takes no foreign key without validating it.
            let plain = site.catalog.table(&mapping.target).map(|table| table.kind)
                == Some(TableKind::Partitioned)
                || !validated(&key.definition_sql);
            let one =
                |rank, object: String, sql| Deferred { rank, table: mapping.target.clone(), object, sql };
            let elsewhere = |other: &SliceMapping| {
                other.slice != slice.slice && other.tables.iter().any(|one| one.target == key.references)
            };
            let between = format!("foreign key {} of {}", key.name, mapping.target);
            let note = site.slices.iter().any(|other| elsewhere(other)).then(|| {
                let object = &between;
                let add = comments::with(add.clone(), comment.clone());
                let detail = json!({ "object": object, "create_sql": add });
                journal(Some(&slice.slice), "set aside between slices", &detail)
            });
            let what = if note.is_some() {
                Vec::new()
            } else if plain {
                vec![one(Rank::ForeignKey, key.name.clone(), comments::with(add, comment))]
            } else {
                vec![
                    one(
                        Rank::ForeignKey,
                        key.name.clone(),
                        comments::with(format!("{add} NOT VALID"), comment),
                    ),
                    one(
                        Rank::Validate,
                        format!("validate {}", key.name),
                        validate(&mapping.target, &key.name),
                    ),
                ]
            };
            asides.push(Aside {
                slice,
                table: &mapping.target,
                object: if note.is_some() { between } else { key.name.clone() },
                references: &key.references,
                what,
                note,
                drop_sql: format!("ALTER TABLE {target} DROP CONSTRAINT {name}"),
            });
        }
    }
    asides
}

fn unique_indexes<'a>(draft: &mut Draft<'_>, site: &Site<'a>) -> Vec<Aside<'a>> {
    let mut asides = Vec::new();
    for (slice, mapping) in open_tables(site) {
        let Some(table) = site.catalog.table(&mapping.target) else { continue };
        let Some(key) = key_index(mapping, table) else { continue };
        let secondary = |index: &&Index| (index.unique || index.exclusion) && index.name != key.name;
        for index in table.indexes.iter().filter(secondary) {
            leaning(draft, site, table, index);
            let target = mapping.target.sql();
            let constraint = index
                .constraint
                .as_ref()
                .and_then(|name| table.constraints.iter().find(|constraint| constraint.name == *name));
            let (rank, object, sql, drop_sql) = match constraint {
                Some(constraint) => {
                    let name = quote_ident(&constraint.name);
                    (
                        Rank::Constraint,
                        constraint.name.clone(),
                        format!("ALTER TABLE {target} ADD CONSTRAINT {name} {}", constraint.definition_sql),
                        format!("ALTER TABLE {target} DROP CONSTRAINT {name}"),
                    )
                }
                None => (
                    Rank::Index,
                    index.name.clone(),
                    index.definition_sql.clone(),
                    format!("DROP INDEX {}", TableName::new(&table.name.schema, &index.name).sql()),
                ),
            };
            let sql = comments::with(sql, settings(table, index, constraint.is_some()));
            let sql = comments::with(sql, comments::on_index(&mapping.target, table, index));
            let what = vec![Deferred { rank, table: mapping.target.clone(), object: object.clone(), sql }];
            let drop_sql = if index.replica_identity {
                // Without its index it would be none, and a publication in the service would refuse the mirror's changes.
                format!("ALTER TABLE {target} REPLICA IDENTITY FULL; {drop_sql}")
            } else {
                drop_sql
            };
            let (table, references) = (&mapping.target, &mapping.target);
            asides.push(Aside { slice, table, object, references, what, note: None, drop_sql });
        }
    }
    asides
}

/// The statements that give an index back what its definition does not say. One without a constraint is defined with its storage.
fn settings(table: &Table, index: &Index, of_constraint: bool) -> Vec<String> {
    let (target, name) = (table.name.sql(), quote_ident(&index.name));
    let full_name = TableName::new(&table.name.schema, &index.name).sql();
    let set = &index.settings;
    let storage = set.storage_sql.as_ref().filter(|_| of_constraint);
    let mut statements: Vec<String> =
        storage.map(|storage| format!("ALTER INDEX {full_name} SET ({storage})")).into_iter().collect();
    statements.extend(
        set.statistics.iter().map(|(key, target)| {
            format!("ALTER INDEX {full_name} ALTER COLUMN {key} SET STATISTICS {target}")
        }),
    );
    if set.clustered {
        statements.push(format!("ALTER TABLE {target} CLUSTER ON {name}"));
    }
    if index.replica_identity {
        statements.push(format!("ALTER TABLE {target} REPLICA IDENTITY USING INDEX {name}"));
    }
    statements
}

/// Foreign keys of tables that are not adopted would keep an index from being dropped.
fn leaning(draft: &mut Draft<'_>, site: &Site<'_>, table: &Table, index: &Index) {
    let columns: Vec<&str> = index.columns.iter().filter_map(Option::as_deref).collect();
    let keys = site.catalog.foreign_keys.iter().filter(|key| {
        let mut referenced: Vec<&str> = key.referenced_columns.iter().map(String::as_str).collect();
        let mut columns = columns.clone();
        referenced.sort_unstable();
        columns.sort_unstable();
        key.references == table.name && referenced == columns
    });
    for key in keys.filter(|key| open_tables(site).all(|(_, mapping)| mapping.target != key.table)) {
        draft.problem(
            Problem::error("foreign-key-in-the-way", in_service(site, format!("foreign key {} of {}", key.name, key.table)))
                .fact(format!("it leans on index {} of {}, which must wait for the data", index.name, table.name))
                .consequence("rows could be refused while they are mirrored")
                .next(format!(
                    "run in the service, and add it again once the slice is live: ALTER TABLE {} DROP CONSTRAINT {}",
                    key.table.sql(),
                    quote_ident(&key.name)
                )),
        );
    }
}

/// Gives up tables for a new form of the plan, before anything was mirrored: puts back what was set aside, so that
/// the next verification sees the tables as they were.
fn release(draft: &mut Draft<'_>, site: &Site<'_>, slice: &SliceMapping) {
    let mut rows: Vec<_> = site.state.deferred.iter().filter(|((of, ..), _)| *of == slice.slice).collect();
    let rank = |kind: &str, object: &str| match (kind, object.starts_with("validate ")) {
        ("index", _) => 0,
        ("constraint", _) => 1,
        ("foreign_key", _) => 2,
        _ => 3,
    };
    rows.sort_by_key(|((_, _, kind, object), _)| rank(kind, object));
    let gone = |table: &str| {
        TableName::parse(table, "public")
            .map_or(true, |name| slice.tables.iter().all(|one| one.target != name))
    };
    let mut statements: Vec<Statement> = rows
        .iter()
        .filter(|((_, table, ..), row)| !row.done && gone(table))
        .map(|(_, row)| Statement::from(row.create_sql.clone()))
        .collect();
    let kept: Vec<String> = slice.tables.iter().map(|one| one.target.to_string()).collect();
    statements.push(ours::delete_deferred(&slice.slice, &kept).into());
    statements.push(ours::delete_mirror_tables(&slice.slice).into());
    statements.push(new_hash(slice));
    draft.journaled(
        site.database(),
        Some(&slice.slice),
        ("release tables of slice", &slice.slice),
        statements,
    );
}
