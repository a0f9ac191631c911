//! What compiling finds, and what it makes.

use proptest::prelude::*;
use tokio_postgres::types::Type;

use super::fixture::{
    catalog, column, enum_type, foreign_key, index, name, plan, renamed, retail, rule, table, table_rule,
    user_column,
};
use super::{KeyOrder, Mappings, SoftReference, TableMapping, compile, lacks_tables};
use crate::catalog::{Catalog, Persistence, ReplicaIdentity, TableKind, UserTypeKind};
use crate::plan::{Classified, ColumnRule, Ddl, Others, Plan, TableRule, TableSelector};
use crate::problem::{Problem, Severity};

fn errors(problems: &[Problem]) -> Vec<&Problem> {
    problems.iter().filter(|problem| problem.severity == Severity::Error).collect()
}

fn compiled(plan: &Plan, catalog: &Catalog) -> Mappings {
    let (mappings, problems) = compile(plan, catalog);
    assert!(errors(&problems).is_empty(), "{problems:#?}");
    mappings
}

fn only(mappings: &Mappings, slice: &str, source: &str) -> TableMapping {
    mappings[slice].tables.iter().find(|table| table.source == name(source)).unwrap().clone()
}

/// Compiles and expects one problem, in full words and at the rule's place.
fn expect(plan: &Plan, catalog: &Catalog, code: &str, words: &str) {
    let (_, problems) = compile(plan, catalog);
    let [problem] = problems.as_slice() else { panic!("{code}: {problems:#?}") };
    assert_eq!(problem.code, code);
    let all = format!("{}: {}; {}; {}", problem.object, problem.fact, problem.consequence, problem.next);
    assert!(all.contains(words), "{code}: {all}");
    assert!(![&problem.fact, &problem.consequence, &problem.next].iter().any(|text| text.is_empty()));
    assert!(problem.place.is_some() || code.starts_with("unknown"), "{code}");
}

fn one(text: &str, edit: impl FnOnce(&mut TableRule)) -> Plan {
    let mut rule = table_rule(text);
    edit(&mut rule);
    plan(vec![("ordering", vec![rule])])
}

fn filtered(text: &str, column: &str, values: &[&str]) -> TableRule {
    let mut rule = table_rule(text);
    rule.filter.insert(column.into(), values.iter().map(|value| (*value).to_owned()).collect());
    rule
}

#[test]
fn a_table_goes_over_with_renames_drops_and_references() {
    let mut lines = table_rule("OrderLines");
    lines.to = Some("order_lines".into());
    lines.columns.insert("Id".into(), renamed("id"));
    lines.columns.insert("OrderId".into(), ColumnRule::Drop);
    let reference = ColumnRule::Keep { to: Some("product_ref".into()), references: Some(name("Products")) };
    lines.columns.insert("ProductId".into(), reference);
    let mut plan = plan(vec![
        ("ordering", vec![table_rule("Orders"), lines]),
        ("catalog", vec![table_rule("Products")]),
    ]);
    plan.services.get_mut("ordering").unwrap().into = Some("sales".into());
    let mappings = compiled(&plan, &retail());

    let lines = only(&mappings, "ordering", "OrderLines");
    assert_eq!(lines.target, name("sales.order_lines"));
    assert_eq!(lines.target_list(), "\"id\", \"product_ref\"");
    assert_eq!(lines.dropped, ["OrderId"]);
    assert_eq!((lines.key.as_slice(), lines.key_order), (&[0][..], KeyOrder::Uuid));
    let soft = SoftReference {
        columns: vec!["product_ref".into()],
        references: name("Products"),
        referenced_columns: vec!["Id".into()],
        declared: true,
    };
    assert_eq!(lines.soft_references, [soft], "the foreign key and the plan name the same reference");
    assert_eq!(only(&mappings, "ordering", "Orders").key_order, KeyOrder::Integer);
    assert_eq!(only(&mappings, "catalog", "Products").target, name("Products"));
}

#[test]
fn others_drop_carries_listed_columns_only() {
    let plan = one("Orders", |rule| {
        rule.others = Others::Drop;
        rule.columns.insert("Id".into(), ColumnRule::Keep { to: None, references: None });
    });
    let orders = only(&compiled(&plan, &retail()), "ordering", "Orders");
    assert_eq!(
        (orders.source_list().as_str(), orders.dropped.as_slice()),
        ("\"Id\"", &["Region".to_owned()][..])
    );
}

#[test]
fn foreign_keys_inside_the_slice_are_no_soft_references() {
    let mappings =
        compiled(&plan(vec![("ordering", vec![table_rule("Orders"), table_rule("OrderLines")])]), &retail());
    let references = only(&mappings, "ordering", "OrderLines").soft_references;
    assert_eq!(references.iter().map(|soft| soft.references.to_string()).collect::<Vec<_>>(), ["Products"]);
    assert!(!references[0].declared);
}

#[test]
fn a_whole_schema_is_expanded_without_what_is_named_elsewhere() {
    let mut catalog = retail();
    let mut view = table("totals", vec![column("n", &Type::INT4)]);
    view.kind = TableKind::View;
    let mut leaf = table("leaf", vec![column("Id", &Type::INT4)]);
    leaf.partition_of = Some(name("Products"));
    for table in [view, leaf, table("sales.other", vec![column("id", &Type::INT4)])] {
        catalog.tables.insert(table.name.clone(), table);
    }
    let all = rule(TableSelector::Schema("public".into()));
    let plan = plan(vec![("ordering", vec![all]), ("catalog", vec![table_rule("Products")])]);
    let (mappings, problems) = compile(&plan, &catalog);
    let sources: Vec<String> =
        mappings["ordering"].tables.iter().map(|table| table.source.to_string()).collect();
    assert_eq!(sources, ["OrderLines", "Orders"]);
    let [left] = problems.as_slice() else { panic!("{problems:#?}") };
    assert_eq!((left.code, left.severity), ("left-out-of-schema", Severity::Warning));
    assert!(left.fact.contains("totals"));
}

#[test]
fn generated_columns_are_neither_carried_nor_dropped() {
    let mut catalog = retail();
    let orders = catalog.tables.get_mut(&name("Orders")).unwrap();
    let mut generated = column("Upper", &Type::TEXT);
    generated.generated_sql = Some("upper(\"Region\")".into());
    orders.columns.push(generated);
    let mapped = only(&compiled(&one("Orders", |_| ()), &catalog), "ordering", "Orders");
    assert_eq!((mapped.source_list().as_str(), mapped.dropped.len()), ("\"Id\", \"Region\"", 0));
    let plan = one("Orders", |rule| {
        rule.columns.insert("Upper".into(), renamed("upper"));
    });
    expect(&plan, &catalog, "generated-renamed", "Orders.Upper");
    let plan = one("Orders", |rule| {
        rule.columns.insert("Region".into(), ColumnRule::Drop);
    });
    expect(&plan, &catalog, "generated-needs-dropped", "generated from Region");
}

#[test]
fn filter_values_take_the_form_that_the_server_prints() {
    let cases: &[(Type, &[&str], &[&str])] = &[
        (Type::INT4, &["007", " 7", "+5", "-0"], &["0", "5", "7"]),
        (Type::TEXT, &["UK", "EU", " EU"], &[" EU", "EU", "UK"]),
        (Type::BOOL, &["true", "No"], &["f", "t"]),
        (Type::UUID, &["4F4F6F2C0A3E4E7C9D6C1C9BE1D9C001"], &["4f4f6f2c-0a3e-4e7c-9d6c-1c9be1d9c001"]),
        (Type::DATE, &["2026-02-28", " infinity"], &["2026-02-28", "infinity"]),
    ];
    for (of, written, expected) in cases {
        let catalog = catalog(vec![table("t", vec![column("k", of)])]);
        let mapped =
            only(&compiled(&plan(vec![("s", vec![filtered("t", "k", written)])]), &catalog), "s", "t");
        assert_eq!(mapped.filter[0].values, *expected, "{of}");
    }
}

#[test]
fn values_that_no_row_can_have_are_problems() {
    for (of, value, words) in [
        (Type::INT2, "40000", "-32768 to 32767"),
        (Type::INT4, "many", "whole number"),
        (Type::BOOL, "maybe", "true or false"),
        (Type::UUID, "4f4f", "8-4-4-4-12"),
        (Type::DATE, "2026-02-30", "YYYY-MM-DD"),
    ] {
        let catalog = catalog(vec![table("t", vec![column("k", &of)])]);
        expect(&plan(vec![("s", vec![filtered("t", "k", &[value])])]), &catalog, "filter-value", words);
        expect(&plan(vec![("s", vec![filtered("t", "k", &[])])]), &catalog, "filter-value", "empty list");
    }
}

#[test]
fn enum_filters_know_the_labels() {
    let mut catalog = catalog(vec![table("t", vec![user_column("state", "status")])]);
    catalog.types.insert(name("status"), enum_type("status", &["new", "paid"]));
    let mapped =
        only(&compiled(&plan(vec![("s", vec![filtered("t", "state", &["paid"])])]), &catalog), "s", "t");
    assert_eq!(mapped.filter[0].values, ["paid"]);
    let wrong = plan(vec![("s", vec![filtered("t", "state", &["Paid"])])]);
    expect(&wrong, &catalog, "filter-value", "did you mean paid?");
}

#[test]
fn filters_that_cannot_be_followed_are_problems() {
    let region = |edit: fn(&mut TableRule)| {
        let mut rule = filtered("Orders", "Region", &["EU"]);
        edit(&mut rule);
        plan(vec![("s", vec![rule])])
    };
    let mut full = retail();
    full.tables.get_mut(&name("Orders")).unwrap().replica_identity = ReplicaIdentity::Full;
    compiled(&region(|_| ()), &full);
    expect(
        &region(|_| ()),
        &retail(),
        "filter-outside-identity",
        "ALTER TABLE \"public\".\"Orders\" REPLICA IDENTITY FULL",
    );
    let dropped = region(|rule| {
        rule.columns.insert("Region".into(), ColumnRule::Drop);
    });
    expect(&dropped, &full, "filter-not-carried", "keep the column");
    let unknown = plan(vec![("s", vec![filtered("Orders", "region", &["EU"])])]);
    expect(&unknown, &retail(), "unknown-column", "did you mean Region?");
    let numeric = catalog(vec![table("t", vec![column("k", &Type::NUMERIC)])]);
    expect(&plan(vec![("s", vec![filtered("t", "k", &["1"])])]), &numeric, "filter-type", "numeric");
    let mut own = catalog(vec![table("t", vec![column("k", &Type::TEXT)])]);
    own.tables.get_mut(&name("t")).unwrap().columns[0].collation_sql = Some("public.nocase".into());
    expect(&plan(vec![("s", vec![filtered("t", "k", &["1"])])]), &own, "filter-type", "collation");
}

#[test]
fn two_slices_share_a_table_only_with_disjoint_filters() {
    let keyed = |values: [&[&str]; 2]| {
        let [a, b] = values.map(|values| filtered("Orders", "Id", values));
        plan(vec![("a", vec![a]), ("b", vec![b])])
    };
    compiled(&keyed([&["1", "2"], &["3"]]), &retail());
    expect(&keyed([&["1", "02"], &["2"]]), &retail(), "table-twice", "slice b takes it, and so does slice a");
    let both = plan(vec![("a", vec![table_rule("Orders")]), ("b", vec![table_rule("Orders")])]);
    expect(&both, &retail(), "table-twice", "authority");
}

#[test]
fn names_that_do_not_exist_are_problems_with_advice() {
    expect(&one("orders", |_| ()), &retail(), "unknown-table", "did you mean Orders?");
    expect(&one("sales.Orders", |_| ()), &retail(), "unknown-table", "did you mean Orders?");
    let plan_of = |column: &str| {
        let column = column.to_owned();
        one("Orders", |rule| {
            rule.columns.insert(column, ColumnRule::Drop);
        })
    };
    expect(&plan_of("Regoin"), &retail(), "unknown-column", "did you mean Region?");
    let gone =
        "if the column was dropped, take its `drop: true` out of the plan; else: its columns are Id, Region";
    expect(&plan_of("Whatever"), &retail(), "unknown-column", gone);
    let schema = plan(vec![("s", vec![rule(TableSelector::Schema("Public".into()))])]);
    expect(&schema, &retail(), "empty-schema", "did you mean public.*?");
    let rest = || rule(TableSelector::Schema("public".into()));
    let tables = retail().tables;
    let every = || tables.keys().map(|name| rule(TableSelector::Table(name.clone())));
    let all = plan(vec![("s", every().chain([rest()]).collect())]);
    let (_, problems) = compile(&all, &retail());
    assert!(problems.iter().all(|one| one.code != "empty-schema"), "each has its own entry: {problems:?}");
    let elsewhere = plan(vec![("s", every().collect()), ("t", vec![rest()])]);
    expect(&elsewhere, &retail(), "empty-schema", "an entry of its own in another slice");
    let reference = one("Orders", |rule| {
        let references = Some(name("Product"));
        rule.columns.insert("Region".into(), ColumnRule::Keep { to: None, references });
    });
    expect(&reference, &retail(), "unknown-table", "did you mean Products?");
}

#[test]
fn relations_that_cannot_move_are_problems() {
    let with = |edit: fn(&mut crate::catalog::Table)| {
        let mut catalog = retail();
        edit(catalog.tables.get_mut(&name("Orders")).unwrap());
        catalog
    };
    let orders = || one("Orders", |_| ());
    expect(&orders(), &with(|t| t.kind = TableKind::View), "view-listed", "view");
    expect(&orders(), &with(|t| t.kind = TableKind::Foreign), "foreign-table-listed", "another server");
    expect(&orders(), &with(|t| t.persistence = Persistence::Unlogged), "unlogged-table", "SET LOGGED");
    expect(&orders(), &with(|t| t.persistence = Persistence::Temporary), "temporary-table", "session");
    expect(
        &orders(),
        &with(|t| t.partition_of = Some(name("Products"))),
        "partition-listed",
        "list Products instead",
    );
}

#[test]
fn a_table_without_a_usable_key_names_the_statement_that_helps() {
    let with = |edit: &dyn Fn(&mut crate::catalog::Table)| {
        let mut catalog = retail();
        edit(catalog.tables.get_mut(&name("Orders")).unwrap());
        catalog
    };
    let orders = || one("Orders", |_| ());
    let nothing = with(&|t| t.replica_identity = ReplicaIdentity::Nothing);
    expect(&orders(), &nothing, "no-key", "REPLICA IDENTITY DEFAULT;");
    let bare = with(&|t| t.indexes.clear());
    expect(&orders(), &bare, "no-key", "ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY");
    let unique = with(&|t| t.indexes = vec![index("by_id", &["Id"], false)]);
    expect(&orders(), &unique, "no-key", "REPLICA IDENTITY USING INDEX \"by_id\";");
    let nullable = with(&|t| t.indexes = vec![index("by_region", &["Region"], false)]);
    expect(&orders(), &nullable, "no-key", "ALTER COLUMN \"Region\" SET NOT NULL; ALTER TABLE");
    let deferrable = with(&|t| t.indexes[0].immediate = false);
    expect(&orders(), &deferrable, "no-key", "deferrable");
    let computed = with(&|t| t.columns[0].generated_sql = Some("1".into()));
    expect(&orders(), &computed, "key-not-carried", "give it a key of other columns");
    let dropped = one("Orders", |rule| {
        rule.columns.insert("Id".into(), ColumnRule::Drop);
    });
    let (_, problems) = compile(&dropped, &retail());
    let codes: Vec<&str> = problems.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, ["key-not-carried", "dropped-not-null"]);
}

#[test]
fn partitions_with_another_identity_are_problems() {
    let mut catalog = retail();
    catalog.tables.get_mut(&name("Orders")).unwrap().kind = TableKind::Partitioned;
    let mut leaf = table("orders_1", vec![column("Id", &Type::INT8)]);
    leaf.partition_of = Some(name("Orders"));
    leaf.replica_identity = ReplicaIdentity::Nothing;
    catalog.tables.insert(leaf.name.clone(), leaf);
    expect(&one("Orders", |_| ()), &catalog, "partition-key-differs", "orders_1");
    let leaf = catalog.tables.get_mut(&name("orders_1")).unwrap();
    leaf.replica_identity = ReplicaIdentity::Default;
    assert!(only(&compiled(&one("Orders", |_| ()), &catalog), "ordering", "Orders").partitioned);
}

#[test]
fn a_partition_is_told_how_to_get_the_identity_of_its_root() {
    let indexed = |leaf_identity: ReplicaIdentity| {
        let mut catalog = retail();
        let root = catalog.tables.get_mut(&name("Orders")).unwrap();
        root.kind = TableKind::Partitioned;
        root.columns[1].not_null = true;
        root.indexes.push(index("orders_u", &["Id", "Region"], false));
        root.replica_identity = ReplicaIdentity::Index("orders_u".into());
        let mut leaf = root.clone();
        leaf.name = name("orders_1");
        leaf.kind = TableKind::Ordinary;
        leaf.partition_of = Some(name("Orders"));
        leaf.indexes[1].name = "orders_1_u".into();
        leaf.replica_identity = leaf_identity;
        catalog.tables.insert(leaf.name.clone(), leaf);
        catalog
    };
    let european = plan(vec![("ordering", vec![filtered("Orders", "Region", &["EU"])])]);
    let advice = "ALTER TABLE \"public\".\"orders_1\" REPLICA IDENTITY USING INDEX \"orders_1_u\";";
    expect(&european, &indexed(ReplicaIdentity::Default), "partition-key-differs", advice);
    compiled(&european, &indexed(ReplicaIdentity::Index("orders_1_u".into())));
    let mut full = indexed(ReplicaIdentity::Default);
    full.tables.get_mut(&name("Orders")).unwrap().replica_identity = ReplicaIdentity::Full;
    expect(&european, &full, "partition-key-differs", "REPLICA IDENTITY FULL;");
    compiled(&one("Orders", |_| ()), &full);
}

#[test]
fn columns_and_tables_that_would_become_one_are_problems() {
    let plan_columns = one("Orders", |rule| {
        rule.columns.insert("Id".into(), renamed("Region"));
    });
    expect(&plan_columns, &retail(), "same-column", "both become Region");
    let mut lines = table_rule("OrderLines");
    lines.to = Some("Orders".into());
    let tables = plan(vec![("s", vec![table_rule("Orders"), lines])]);
    expect(&tables, &retail(), "same-target", "both become Orders");
    let mut reserved = one("Orders", |_| ());
    reserved.services.get_mut("ordering").unwrap().into = Some("strangler".into());
    expect(&reserved, &retail(), "reserved-schema", "strangler");
}

#[test]
fn a_dropped_column_that_rows_need_is_a_warning() {
    let mut catalog = retail();
    catalog.tables.get_mut(&name("Orders")).unwrap().columns[1].not_null = true;
    let plan = one("Orders", |rule| {
        rule.columns.insert("Region".into(), ColumnRule::Drop);
    });
    expect(&plan, &catalog, "dropped-not-null", "could not flip back");
    let (mappings, _) = compile(&plan, &catalog);
    assert_eq!(mappings["ordering"].tables.len(), 1, "a warning keeps the table");
}

#[test]
fn types_that_nobody_can_create_are_problems() {
    let mut catalog = catalog(vec![table("t", vec![column("id", &Type::INT4), user_column("v", "odd")])]);
    let mut odd = enum_type("odd", &[]);
    odd.kind = UserTypeKind::Other;
    catalog.types.insert(name("odd"), odd);
    let mut plan = plan(vec![("s", vec![table_rule("t")])]);
    expect(&plan, &catalog, "type-not-created", "its type needs odd");
    plan.services.get_mut("s").unwrap().ddl = Ddl::Adopt;
    compiled(&plan, &catalog);
    plan.services.get_mut("s").unwrap().ddl = Ddl::Create;
    catalog.types.get_mut(&name("odd")).unwrap().extension = Some("odd".into());
    compiled(&plan, &catalog);
}

#[test]
fn references_must_point_at_one_comparable_key() {
    let referencing = |to: &str| {
        let references = Some(name(to));
        let rule = ColumnRule::Keep { to: None, references };
        one("OrderLines", |table| {
            table.columns.insert("OrderId".into(), rule);
        })
    };
    expect(&referencing("Products"), &retail(), "reference-type", "Products.Id is integer");
    let mut wide = retail();
    let orders = wide.tables.get_mut(&name("Products")).unwrap();
    orders.indexes = vec![index("pk", &["Id", "Sku"], true)];
    expect(&referencing("Products"), &wide, "reference-key", "primary key of one column");
    let mut inside = referencing("Orders");
    inside.slices.get_mut("ordering").unwrap().tables.push(table_rule("Orders"));
    expect(&inside, &retail(), "reference-inside-slice", "kept by itself");
}

#[test]
fn classified_columns_are_marked_and_need_a_service_that_accepts_them() {
    let mut plan = one("Orders", |_| ());
    let classified =
        |column: &str| Classified { table: name("Orders"), column: column.into(), class: "pii".into() };
    plan.classify = vec![classified("Region")];
    expect(&plan, &retail(), "class-not-accepted", "accepts: [pii]");
    plan.services.get_mut("ordering").unwrap().accepts = vec!["pii".into()];
    let mapped = only(&compiled(&plan, &retail()), "ordering", "Orders");
    assert_eq!(mapped.column("Region").unwrap().class.as_deref(), Some("pii"));
    plan.classify = vec![classified("Regin")];
    expect(&plan, &retail(), "unknown-column", "did you mean Region?");
}

#[test]
fn binary_pass_through_is_for_stable_builtin_types_only() {
    let types = [
        (Type::INT4, true),
        (Type::NUMERIC_ARRAY, true),
        (Type::TS_RANGE, true),
        (Type::MONEY, false),
        (Type::REGCLASS, false),
        (Type::XML, false),
    ];
    for (of, stable) in types {
        let catalog = catalog(vec![table("t", vec![column("id", &Type::INT4), column("v", &of)])]);
        let mapped = only(&compiled(&plan(vec![("s", vec![table_rule("t")])]), &catalog), "s", "t");
        assert_eq!(mapped.column("v").unwrap().binary, stable, "{of}");
    }
}

#[test]
fn the_hash_pins_the_mapping_and_nothing_else() {
    let hash = |plan: &Plan, catalog: &Catalog| compiled(plan, catalog)["ordering"].hash.clone();
    let base = hash(&one("Orders", |_| ()), &retail());
    assert_eq!(
        base, "6a844775c002e131145015578c32dc05eab1f3a7d890c2a8f2ca3ddcf1d66d38",
        "the canonical form changed: give it another version"
    );
    let earlier = "5c4b894d3e7bb40a258eb86b9b4b4e0a35e5f5bc02dcd409df9fabb93a26dff2";
    let mapping = &compiled(&one("Orders", |_| ()), &retail())["ordering"];
    assert!(mapping.is_pinned_by(earlier) && mapping.is_pinned_by(&base) && !mapping.is_pinned_by("another"));
    let mut before = retail();
    before.tables.get_mut(&name("Orders")).unwrap().replica_identity = ReplicaIdentity::Full;
    let mut moved = before.clone();
    moved.tables.get_mut(&name("Orders")).unwrap().columns.reverse();
    let filtered = plan(vec![("ordering", vec![filtered("Orders", "Region", &["EU"])])]);
    for plan in [one("Orders", |_| ()), filtered] {
        assert_eq!(hash(&plan, &moved), hash(&plan, &before), "values go by names");
    }
    let mut grown = retail();
    let orders = grown.tables.get_mut(&name("Orders")).unwrap();
    orders.rows_estimate = 1e9;
    orders.comment = Some("many".into());
    let mut relaxed = one("Orders", |_| ());
    relaxed.policy.sequence_margin = 7;
    assert_eq!(hash(&relaxed, &grown), base);
    let renamed = one("Orders", |rule| {
        rule.columns.insert("Region".into(), renamed("region"));
    });
    assert_ne!(hash(&renamed, &retail()), base);
    let mut retyped = retail();
    retyped.tables.get_mut(&name("Orders")).unwrap().columns[1].type_sql = "character varying(5)".into();
    assert_ne!(hash(&one("Orders", |_| ()), &retyped), base);
    let mut referring = retail();
    referring.foreign_keys.push(foreign_key("Orders", "Region", "Products", "Sku"));
    assert_ne!(hash(&one("Orders", |_| ()), &referring), base);
}

/// A few names, so that what is written often meets what exists.
fn names() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "A", "s.a", "a\"b", "é", ""]).prop_map(str::to_owned)
}

fn tables() -> impl Strategy<Value = crate::catalog::Table> {
    let types = prop::sample::select(vec![Type::INT4, Type::TEXT, Type::UUID, Type::MONEY, Type::INT4_ARRAY]);
    let columns = prop::collection::vec((names(), types, any::<bool>(), any::<bool>()), 0..4);
    let kinds = prop::sample::select(vec![TableKind::Ordinary, TableKind::Partitioned, TableKind::View]);
    let identities = prop::sample::select(vec![
        ReplicaIdentity::Default,
        ReplicaIdentity::Nothing,
        ReplicaIdentity::Full,
        ReplicaIdentity::Index("pk".into()),
    ]);
    let keys = prop::collection::vec(prop::option::of(names()), 0..3);
    (names(), columns, kinds, identities, keys, prop::option::of(names())).prop_map(
        |(text, columns, kind, replica_identity, key, parent)| {
            let parts = |text: &str| crate::name::TableName::new("public", text);
            let columns = columns.into_iter().map(|(text, of, generated, not_null)| {
                let mut made = if generated { user_column(&text, "a") } else { column(&text, &of) };
                made.generated_sql = generated.then(|| text.clone());
                made.not_null = not_null;
                made
            });
            let mut made = table("x", columns.collect());
            made.name = parts(&text);
            made.kind = kind;
            made.replica_identity = replica_identity;
            made.partition_of = parent.filter(|parent| parent.len() > 1).map(|parent| parts(&parent));
            if let Some(index) = made.indexes.first_mut() {
                index.columns = key;
            }
            made
        },
    )
}

fn rules() -> impl Strategy<Value = TableRule> {
    let columns =
        prop::collection::btree_map(names(), (any::<bool>(), names(), prop::option::of(names())), 0..3);
    let filter = prop::collection::btree_map(names(), prop::collection::vec(names(), 0..3), 0..2);
    (names(), any::<bool>(), any::<bool>(), columns, filter).prop_map(
        |(text, whole, keep, columns, filter)| {
            let table = crate::name::TableName::new("public", text);
            let selector =
                if whole { TableSelector::Schema("public".into()) } else { TableSelector::Table(table) };
            let columns = columns.into_iter().map(|(name, (drop, to, references))| {
                let references = references.map(|text| crate::name::TableName::new("public", text));
                let rule =
                    if drop { ColumnRule::Drop } else { ColumnRule::Keep { to: Some(to), references } };
                (name, rule)
            });
            let others = if keep { Others::Keep } else { Others::Drop };
            TableRule { others, columns: columns.collect(), filter, ..rule(selector) }
        },
    )
}

proptest! {
    #[test]
    fn compiling_anything_ends_and_keeps_its_promises(
        tables in prop::collection::vec(tables(), 0..5),
        slices in prop::collection::vec(prop::collection::vec(rules(), 0..4), 1..3),
    ) {
        let names = ["one", "two", "three"];
        let plan = plan(names.into_iter().zip(slices).collect());
        let (mappings, _) = compile(&plan, &catalog(tables));
        for table in mappings.values().flat_map(|slice| &slice.tables) {
            prop_assert!(!table.key.is_empty());
            prop_assert_eq!(table.key_columns().count(), table.key.len());
            prop_assert!(table.filter.iter().all(|term| term.column < table.columns.len()));
        }
    }
}

#[test]
fn what_is_wrong_with_a_table_stops_the_slices_that_take_it_and_no_other() {
    let of = |slices: Vec<(&str, Vec<TableRule>)>, monolith: &Catalog, code: &str| {
        let (mappings, problems) = compile(&plan(slices), monolith);
        let problem = problems.into_iter().find(|problem| problem.code == code).unwrap();
        let stopped = ["catalog", "ordering"].map(|slice| problem.stops(&[slice.to_owned()]));
        (stopped, mappings)
    };
    let rest = || ("catalog", vec![table_rule("Products")]);
    let gone = vec![("ordering", vec![table_rule("Orders"), table_rule("Gone")]), rest()];
    assert_eq!(of(gone, &retail(), "unknown-table").0, [false, true]);

    let mut keyless = retail();
    let orders = keyless.tables.get_mut(&name("Orders")).unwrap();
    orders.indexes.clear();
    let (stopped, mappings) = of(vec![("ordering", vec![table_rule("Orders")]), rest()], &keyless, "no-key");
    assert_eq!(stopped, [false, true]);
    assert_eq!(mappings["ordering"].unmapped, [name("Orders")]);
    assert!(mappings["catalog"].unmapped.is_empty() && mappings["catalog"].tables.len() == 1);

    // As long as one of them is not mapped, nobody knows whether both would take the same row.
    let shared = vec![("ordering", vec![table_rule("Orders")]), ("catalog", vec![table_rule("Orders")])];
    assert_eq!(of(shared, &keyless, "no-key").0, [true, true]);

    let mut classified = plan(vec![("ordering", vec![table_rule("Orders")]), rest()]);
    classified.classify.push(Classified {
        table: name("Elsewhere"),
        column: "Secret".into(),
        class: "pii".into(),
    });
    let (_, problems) = compile(&classified, &retail());
    assert!(["catalog", "ordering"].iter().all(|slice| problems[0].stops(&[(*slice).to_owned()])));
}

#[test]
fn tables_that_nobody_can_map_are_known_by_their_names_and_so_are_dropped_ones_that_no_slice_takes() {
    let whole = retail();
    let key =
        whole.foreign_keys.iter().find(|key| key.table != key.references && !key.inherited).unwrap().clone();
    let kept = crate::catalog::Fragment::of(&whole, std::slice::from_ref(&key.references));
    let catalog = whole.with_dropped(vec![kept]);
    let child = vec![table_rule(&key.table.name), table_rule("Never")];
    let (mappings, problems) = compile(&plan(vec![("ordering", child.clone())]), &catalog);
    assert_eq!(mappings["ordering"].unmapped, [name("Never")]);
    assert!(mappings["ordering"].unheld.contains(&key.references), "{:?}", mappings["ordering"]);
    assert!(lacks_tables(&problems, "ordering") && !lacks_tables(&problems, "catalog"));
    let both = vec![("ordering", child), ("catalog", vec![table_rule(&key.references.name)])];
    let (mappings, problems) = compile(&plan(both), &catalog);
    assert!(!mappings["ordering"].unheld.contains(&key.references), "{:?}", mappings["ordering"].unheld);
    assert!(!lacks_tables(&problems, "catalog"));
}
