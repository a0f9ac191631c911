//! Digests through a mapping, between two databases that know the same types by different OIDs.

use strangler::cluster::{Cluster, LocalCluster};
use strangler::mapping::{ColumnMapping, FilterTerm, KeyOrder, TableMapping};
use strangler::name::TableName;
use strangler::reconcile::digest::{TableDigest, compare};
use strangler::reconcile::form::{Side, TableForm};
use strangler::reconcile::walk::key_facts;
use tokio_postgres::Client;

use crate::support::cluster::{connect, create_database, launch};

const SOURCE: &str = r#"
CREATE TYPE "Filler" AS ENUM ('only', 'to', 'shift', 'oids');
CREATE TYPE "Mood" AS ENUM ('sad', 'fine');
CREATE DOMAIN "Cents" AS numeric(9, 2);
CREATE TABLE "Things" ("Id" int PRIMARY KEY, "Region" text, "Mood" "Mood", "Moods" "Mood"[], "Price" "Cents",
    "Doc" json, "Place" point, "Tags" text[], "Code" char(5), "At" timestamptz, "Gone" text, "Ratio" float8, "Data" jsonb);
INSERT INTO "Things" SELECT i, (ARRAY['EU', 'US'])[1 + i % 2], (ARRAY['sad', 'fine'])[1 + i % 2]::"Mood",
    ARRAY['fine', 'sad']::"Mood"[], i, json_build_object('a', i), point(i, 1), ARRAY['x', NULL, i::text],
    'c' || i, timestamptz '2025-01-01Z' + i * interval '1 day', 'left behind', i / 7.0::float8, '{"k": [1, 2]}'
FROM generate_series(1, 1000) i;
INSERT INTO "Things" ("Id", "Region") VALUES (1001, 'EU');
CREATE TABLE "Child" () INHERITS ("Things");
INSERT INTO "Child" ("Id", "Region") VALUES (2000, 'EU');
"#;

/// Another order of creation, other names, one column less.
const TARGET: &str = r#"
CREATE SCHEMA shop;
CREATE DOMAIN shop.cents AS numeric(9, 2);
CREATE TYPE shop.mood AS ENUM ('sad', 'fine');
CREATE TABLE shop.things (id int PRIMARY KEY, region text, mood shop.mood, moods shop.mood[], price shop.cents,
    doc json, place point, tags text[], code char(5), at timestamptz, ratio float8, data jsonb);
"#;

const COLUMNS: [(&str, &str); 12] = [
    ("Id", "integer"),
    ("Region", "text"),
    ("Mood", "public.\"Mood\""),
    ("Moods", "public.\"Mood\"[]"),
    ("Price", "public.\"Cents\""),
    ("Doc", "json"),
    ("Place", "point"),
    ("Tags", "text[]"),
    ("Code", "bpchar"),
    ("At", "timestamp with time zone"),
    ("Ratio", "double precision"),
    ("Data", "jsonb"),
];

fn mapping(filter: Vec<FilterTerm>) -> TableMapping {
    let column = |(name, cast_sql): &(&str, &str)| ColumnMapping {
        source: (*name).to_owned(),
        target: name.to_lowercase(),
        type_sql: (*cast_sql).to_owned(),
        cast_sql: (*cast_sql).to_owned(),
        binary: false,
        source_type_oid: 0,
        class: None,
        identity_always: false,
    };
    TableMapping {
        source: TableName::new("public", "Things"),
        target: TableName::new("shop", "things"),
        columns: COLUMNS.iter().map(column).collect(),
        generated: Vec::new(),
        dropped: vec!["Gone".to_owned()],
        others_dropped: false,
        key: vec![0],
        key_order: KeyOrder::Integer,
        filter,
        soft_references: Vec::new(),
        partitioned: false,
        key_correlation: None,
        rows_estimate: 0.0,
        heap_bytes: 0,
        reversed: false,
    }
}

struct Sides {
    _cluster: LocalCluster,
    source: Client,
    target: Client,
}

impl Sides {
    async fn prepare() -> Self {
        let cluster = launch();
        create_database(&cluster, "source").await;
        create_database(&cluster, "target").await;
        let source = connect(&cluster.url("source")).await;
        let target = connect(&cluster.url("target")).await;
        source.batch_execute(SOURCE).await.unwrap();
        target.batch_execute(TARGET).await.unwrap();
        Self { _cluster: cluster, source, target }
    }

    /// Copies by text, as something that has nothing to do with digests.
    async fn copy(&self, filter: &str) {
        let names: Vec<String> = COLUMNS.iter().map(|(name, _)| format!("\"{name}\"::text")).collect();
        let sql = format!(r#"SELECT ARRAY[{}] FROM ONLY "Things" {filter}"#, names.join(", "));
        let rows: Vec<Vec<Option<String>>> =
            self.source.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        let types = [
            "int",
            "text",
            "shop.mood",
            "shop.mood[]",
            "shop.cents",
            "json",
            "point",
            "text[]",
            "char(5)",
            "timestamptz",
            "float8",
            "jsonb",
        ];
        let values: Vec<String> =
            types.iter().enumerate().map(|(i, of)| format!("${}::text::{of}", i + 1)).collect();
        let insert = self
            .target
            .prepare(&format!("INSERT INTO shop.things VALUES ({})", values.join(", ")))
            .await
            .unwrap();
        for row in &rows {
            let values: Vec<_> =
                row.iter().map(|value| value as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
            self.target.execute(&insert, &values).await.unwrap();
        }
    }

    async fn compare(&mut self, mapping: &TableMapping) -> TableDigest {
        let digests =
            compare(&mut self.source, &mut self.target, std::slice::from_ref(mapping)).await.unwrap();
        digests.into_iter().next().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_are_equal_for_equal_rows_whatever_their_names_oids_and_order() {
    let mut sides = Sides::prepare().await;
    sides.copy(r#"ORDER BY "Id" DESC"#).await;
    let digest = sides.compare(&mapping(Vec::new())).await;
    assert_eq!((digest.source.rows, digest.target.rows), (1001, 1001));
    assert!(digest.is_equal(), "{digest:?}");
    let settings = "SET timezone = 'Asia/Tokyo'; SET datestyle = 'SQL, DMY'; SET extra_float_digits = 0";
    sides.target.batch_execute(settings).await.unwrap();
    assert!(sides.compare(&mapping(Vec::new())).await.is_equal(), "a session's settings do not matter");
    sides.source.batch_execute(r#"UPDATE "Things" SET "Gone" = 'still here'"#).await.unwrap();
    assert!(sides.compare(&mapping(Vec::new())).await.is_equal(), "a dropped column does not matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_differ_for_every_changed_missing_and_extra_row() {
    let mut sides = Sides::prepare().await;
    sides.copy("").await;
    for damage in [
        "DELETE FROM shop.things WHERE id = 500",
        "INSERT INTO shop.things (id) VALUES (5000)",
        "UPDATE shop.things SET id = 5000 WHERE id = 500",
        "UPDATE shop.things SET mood = 'sad' WHERE id = 501",
        "UPDATE shop.things SET moods = '{sad,fine}' WHERE id = 500",
        "UPDATE shop.things SET price = price + 0.01 WHERE id = 500",
        r#"UPDATE shop.things SET doc = '{"a" : 501}' WHERE id = 500"#,
        "UPDATE shop.things SET place = '(0,0)' WHERE id = 500",
        "UPDATE shop.things SET tags = '{x,500}' WHERE id = 500",
        "UPDATE shop.things SET code = 'C500' WHERE id = 500",
        "UPDATE shop.things SET at = at + interval '1 microsecond' WHERE id = 500",
        "UPDATE shop.things SET ratio = NULL WHERE id = 500",
        r#"UPDATE shop.things SET data = '{"k": [2, 1]}' WHERE id = 500"#,
        "UPDATE shop.things SET region = '' WHERE id = 1001",
        // Two values that change places: count and multiset of each column stay.
        "UPDATE shop.things SET price = 501.00 + 500.00 - price WHERE id IN (500, 501)",
        "ALTER TABLE shop.things DROP CONSTRAINT IF EXISTS things_pkey; INSERT INTO shop.things SELECT * FROM shop.things WHERE id = 500",
        // An even number of copies: the exclusive or stays, the count does not.
        "ALTER TABLE shop.things DROP CONSTRAINT IF EXISTS things_pkey;
         INSERT INTO shop.things SELECT t.* FROM shop.things t, generate_series(1, 2) WHERE id = 500",
    ] {
        sides.target.batch_execute("CREATE TABLE saved AS TABLE shop.things").await.unwrap();
        sides.target.batch_execute(damage).await.unwrap();
        let digest = sides.compare(&mapping(Vec::new())).await;
        assert!(!digest.is_equal(), "{damage}");
        let restore = "TRUNCATE shop.things; INSERT INTO shop.things TABLE saved; DROP TABLE saved";
        sides.target.batch_execute(restore).await.unwrap();
        assert!(sides.compare(&mapping(Vec::new())).await.is_equal(), "restored after {damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_takes_its_rows_and_no_others() {
    let mut sides = Sides::prepare().await;
    sides.copy(r#"WHERE "Region" = 'EU'"#).await;
    assert!(!sides.compare(&mapping(Vec::new())).await.is_equal());
    let filter = vec![FilterTerm { column: 1, values: vec!["EU".to_owned(), "UK".to_owned()] }];
    let digest = sides.compare(&mapping(filter)).await;
    assert!(digest.is_equal() && digest.source.rows == 501, "{digest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_read_is_named_with_its_side() {
    let mut sides = Sides::prepare().await;
    sides.target.batch_execute("DROP TABLE shop.things").await.unwrap();
    let tables = [mapping(Vec::new())];
    let error = compare(&mut sides.source, &mut sides.target, &tables).await.unwrap_err();
    assert_eq!((error.side, error.table.clone()), (Side::Target, tables[0].target.clone()));
    assert_eq!(error.to_string(), "shop.things on the target could not be compared");
    let empty = compare(&mut sides.source, &mut sides.target, &[]).await.unwrap();
    assert_eq!(empty, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_serves_ranges_only_in_the_order_of_the_key() {
    let cluster = launch();
    create_database(&cluster, "source").await;
    let client = connect(&cluster.url("source")).await;
    let index = [
        ("a, b", true),
        ("a DESC, b DESC", true),
        ("a, b, c", true),
        ("a, b DESC", false),
        ("a NULLS FIRST, b", false),
        ("a, b text_pattern_ops", false),
        ("a, b COLLATE \"POSIX\"", false),
        ("b, a", false),
    ];
    let mut forms = Vec::new();
    for (number, (columns, _)) in index.iter().enumerate() {
        let sql = format!(
            "CREATE TABLE t{number} (a int NOT NULL, b text COLLATE \"C\" NOT NULL, c int); CREATE INDEX ON t{number} ({columns})"
        );
        client.batch_execute(&sql).await.unwrap();
        let mut mapping = mapping(Vec::new());
        mapping.source = TableName::new("public", format!("t{number}"));
        mapping.columns.truncate(2);
        for (column, name) in mapping.columns.iter_mut().zip(["a", "b"]) {
            column.source = name.to_owned();
        }
        mapping.key = vec![0, 1];
        forms.push(TableForm::new(mapping, false));
    }
    let facts = key_facts(&client, &forms, Side::Source).await.unwrap();
    for ((columns, serves), facts) in index.iter().zip(facts) {
        assert_eq!((facts.indexed, facts.ordered), (*serves, true), "({columns})");
    }
}
