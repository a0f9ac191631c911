//! The self-test of hashes, between servers of different versions, encodings and orders of creation.

use std::time::{Duration, Instant};

use strangler::cluster::{Binaries, Cluster, LocalCluster, Options};
use strangler::mapping::{ColumnMapping, KeyOrder, TableMapping};
use strangler::name::TableName;
use strangler::reconcile::form::{ColumnForm, Side, TableForm};
use strangler::reconcile::reader::set_where_possible;
use strangler::reconcile::selftest::{Weakened, settle_forms};
use tokio_postgres::Client;

use crate::support::cluster::{connect, create_database, launch, launch_with};

const TYPES: &[&str] = &[
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "boolean",
    "bytea",
    "text",
    "character varying",
    "bpchar",
    "date",
    "time without time zone",
    "time with time zone",
    "timestamp without time zone",
    "timestamp with time zone",
    "interval",
    "uuid",
    "json",
    "jsonb",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "text[]",
    "point",
    "int4range",
];

/// A table with a column of each type, named by its place.
fn form(types: &[&str], strict: bool) -> TableForm {
    let column = |(index, cast_sql): (usize, &&str)| ColumnMapping {
        source: format!("C{index}"),
        target: format!("c{index}"),
        type_sql: (*cast_sql).to_owned(),
        cast_sql: (*cast_sql).to_owned(),
        binary: false,
        source_type_oid: 0,
        class: None,
        identity_always: false,
    };
    let mapping = TableMapping {
        source: TableName::new("public", "Things"),
        target: TableName::new("public", "things"),
        columns: types.iter().enumerate().map(column).collect(),
        generated: Vec::new(),
        dropped: Vec::new(),
        others_dropped: false,
        key: vec![0],
        key_order: KeyOrder::Opaque,
        filter: Vec::new(),
        soft_references: Vec::new(),
        partitioned: false,
        key_correlation: None,
        rows_estimate: 0.0,
        heap_bytes: 0,
        reversed: false,
    };
    TableForm::new(mapping, strict)
}

async fn create(client: &Client, form: &TableForm, side: Side) {
    let columns = form.mapping.columns.iter().map(|column| match side {
        Side::Source => format!("\"{}\" {}", column.source, column.type_sql),
        Side::Target => format!("{} {}", column.target, column.type_sql),
    });
    let columns: Vec<String> = columns.collect();
    let sql = format!("CREATE TABLE {} ({})", form.name(side).sql(), columns.join(", "));
    client.batch_execute(&sql).await.unwrap();
    // As every session of a comparison.
    client.batch_execute("SET search_path = pg_catalog").await.unwrap();
}

async fn database(cluster: &LocalCluster, name: &str) -> Client {
    create_database(cluster, name).await;
    connect(&cluster.url(name)).await
}

async fn settle(source: &Client, target: &Client, form: TableForm) -> (Vec<Weakened>, TableForm) {
    let mut forms = [form];
    let weakened = settle_forms(source, target, Side::Source, &mut forms).await.unwrap();
    let [form] = forms;
    (weakened, form)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_and_the_newest_server_hash_every_type_alike() {
    let all = Binaries::find_all().unwrap();
    let cluster = |binaries: Option<&Binaries>| {
        launch_with(Options { binaries: binaries.cloned(), ..Options::default() })
    };
    let (old, new) = (cluster(all.last()), cluster(all.first()));
    let (source, target) = (database(&old, "source").await, database(&new, "target").await);
    for strict in [false, true] {
        let form = form(TYPES, strict);
        if !strict {
            create(&source, &form, Side::Source).await;
            create(&target, &form, Side::Target).await;
            let values = r#"INSERT INTO public."Things" ("C24", "C25", "C26")
                VALUES (ARRAY['a', NULL, 'NULL', '{"'], '(1,-0)', '[1,5)'), (NULL, '(1e300,NaN)', 'empty')"#;
            source.batch_execute(values).await.unwrap();
        }
        let (weakened, settled) = settle(&source, &target, form.clone()).await;
        assert_eq!(weakened, []);
        assert_eq!(settled.forms, form.forms);
    }
    let ten = form(&TYPES[..10], false);
    let began = Instant::now();
    settle(&source, &target, ten).await;
    let took = began.elapsed();
    eprintln!("{:?} against {:?}: ten types in {took:?}", all.last(), all.first());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_the_user_are_tried_by_labels_and_real_values() {
    let cluster = launch();
    let (source, target) = (database(&cluster, "source").await, database(&cluster, "target").await);
    // Other oids, another schema, and for the last type another meaning.
    source
        .batch_execute(
            "CREATE TYPE filler AS ENUM ('x'); CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE DOMAIN cents AS numeric(9, 2);
             CREATE TYPE pair AS (a int, b text); CREATE DOMAIN code AS text",
        )
        .await
        .unwrap();
    target
        .batch_execute(
            "CREATE DOMAIN cents AS numeric(9, 2); CREATE TYPE mood AS ENUM ('fine', 'sad');
             CREATE TYPE pair AS (a int, b text); CREATE DOMAIN code AS text CHECK (VALUE <> 'secret')",
        )
        .await
        .unwrap();
    let types = ["integer", "public.mood", "public.mood[]", "public.cents", "public.pair", "public.code"];
    let form = form(&types, false);
    create(&source, &form, Side::Source).await;
    create(&target, &form, Side::Target).await;
    let values =
        r#"INSERT INTO public."Things" VALUES (1, 'sad', '{fine,sad}', 1.50, '(1,"a b")', 'secret')"#;
    source.batch_execute(values).await.unwrap();
    let (weakened, _) = settle(&source, &target, form).await;
    let [only] = weakened.as_slice() else { panic!("{weakened:?}") };
    assert_eq!((only.column.as_str(), only.form), ("c5", None));
    assert!(only.reason.contains("public.code") && !only.reason.contains("secret"), "{}", only.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_classified_column_do_not_leave_their_database() {
    let cluster = launch();
    let (source, target) = (database(&cluster, "source").await, database(&cluster, "target").await);
    let types = "CREATE DOMAIN plain AS numeric; CREATE TYPE pair AS (a int, b text);";
    source.batch_execute(&format!("{types} CREATE DOMAIN code AS text")).await.unwrap();
    // It would be told of what it is sent.
    let refuses = "CREATE DOMAIN code AS text CHECK (VALUE NOT LIKE '%secret%')";
    target.batch_execute(&format!("{types} {refuses}")).await.unwrap();
    let classified = |strict| {
        let mut form =
            form(&["integer", "public.code", "public.code[]", "public.plain", "public.pair"], strict);
        form.mapping.columns.iter_mut().for_each(|column| column.class = Some("pii".to_owned()));
        form
    };
    create(&source, &classified(false), Side::Source).await;
    create(&target, &classified(false), Side::Target).await;
    let values = r#"INSERT INTO public."Things" VALUES (1, 'secret', '{secret}', 1.50, '(1,"a b")')"#;
    source.batch_execute(values).await.unwrap();
    for strict in [false, true] {
        let (weakened, settled) = settle(&source, &target, classified(strict)).await;
        assert_eq!((weakened, settled.forms), (vec![], classified(strict).forms));
    }
    // The types are tried all the same.
    target.batch_execute("ALTER DOMAIN public.plain ADD CHECK (VALUE < 1000)").await.unwrap();
    let (weakened, _) = settle(&source, &target, classified(false)).await;
    let [only] = weakened.as_slice() else { panic!("{weakened:?}") };
    assert_eq!((only.column.as_str(), only.form), ("c3", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_a_server_refuses_is_gone_without() {
    let cluster = launch();
    let client = database(&cluster, "any").await;
    // As where the platform can't tell that a client is gone.
    set_where_possible(&client, "SET client_connection_check_interval = '-5s'").await.unwrap();
    set_where_possible(&client, "SET client_connection_check_interval = '5s'").await.unwrap();
    let set: String = client.query_one("SHOW client_connection_check_interval", &[]).await.unwrap().get(0);
    assert_eq!(set, "5s");
    set_where_possible(&client, "SET nothing_of_the_kind = 1").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn text_of_another_encoding_is_compared_in_utf_8() {
    let cluster = launch();
    let admin = connect(&cluster.admin_url()).await;
    let latin = "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    admin.batch_execute(latin).await.unwrap();
    let (source, target) = (connect(&cluster.url("latin")).await, database(&cluster, "target").await);
    let form = form(&["integer", "text", "json", "numeric"], false);
    create(&source, &form, Side::Source).await;
    create(&target, &form, Side::Target).await;
    let (weakened, settled) = settle(&source, &target, form.clone()).await;
    let expected = [ColumnForm::Native, ColumnForm::Utf8, ColumnForm::Utf8, ColumnForm::Native];
    assert_eq!(settled.forms, expected);
    let told: Vec<_> = weakened.iter().map(|weakened| weakened.column.as_str()).collect();
    assert_eq!(told, ["c1", "c2"]);
    assert_eq!(weakened[0].reason, "one server keeps text in LATIN1 and the other in UTF8");
    let row = r#"VALUES (1, 'größe', '"é"', 1)"#;
    source.batch_execute(&format!(r#"INSERT INTO public."Things" {row}"#)).await.unwrap();
    target.batch_execute(&format!("INSERT INTO public.things {row}")).await.unwrap();
    let hash = async |client: &Client, form: &TableForm, side: Side| -> i64 {
        let sql = format!("SELECT {} FROM {} AS t", form.row_hash(side, false), form.from(side));
        client.query_one(&sql, &[]).await.unwrap().get(0)
    };
    let (here, there) =
        (hash(&source, &settled, Side::Source).await, hash(&target, &settled, Side::Target).await);
    assert_eq!(here, there);
    let unsettled = (hash(&source, &form, Side::Source).await, hash(&target, &form, Side::Target).await);
    assert_ne!(unsettled.0, unsettled.1, "or else the encoding would not matter");
}

/// A server that hashes otherwise, records as single values: its functions stand before the system's.
const OTHERWISE: &str = "CREATE SCHEMA otherwise;
CREATE FUNCTION otherwise.hash_record_extended(r record, s int8) RETURNS int8 LANGUAGE plpgsql
    AS 'BEGIN RETURN pg_catalog.hash_record_extended(r, s) + 1; END';
CREATE FUNCTION otherwise.hashint4extended(v int4, s int8) RETURNS int8 LANGUAGE plpgsql
    AS 'BEGIN RETURN pg_catalog.hashint4extended(v, s) + 1; END';
SET search_path = otherwise, pg_catalog";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hashes_records_and_columns_otherwise_is_told_from_one_that_does_not() {
    let cluster = launch();
    let (source, target) = (database(&cluster, "source").await, database(&cluster, "target").await);
    let plain = form(&["integer"], false);
    create(&source, &plain, Side::Source).await;
    create(&target, &plain, Side::Target).await;
    let (weakened, settled) = settle(&source, &target, plain.clone()).await;
    assert_eq!((weakened.len(), settled.forms[0]), (0, ColumnForm::Native));
    target.batch_execute(OTHERWISE).await.unwrap();
    let (weakened, _) = settle(&source, &target, plain).await;
    assert!(matches!(weakened.as_slice(), [Weakened { form: None, .. }]), "{weakened:?}");
}
