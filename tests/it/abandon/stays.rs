//! What can't be put back, or is not found any more, is named, and keeps nobody from coming to the end.

use tokio_postgres::Client;

use super::{abandon, take_back, token};
use crate::support::binary::{Ended, flat};
use crate::support::split::Split;

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt, into: sales } }
slices: { one: { service: service, tables: { orders: {} } } }\n";

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, number text); INSERT INTO orders SELECT i, 'n' || i FROM generate_series(1, 20) i";

/// An adopted table in which rows stand that its own definitions do not allow, and that stay.
async fn with_rows_that_stay(definitions: &str) -> (Split, Client, Client) {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    let own = format!(
        "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY, number text); {definitions}"
    );
    service.batch_execute(&own).await.unwrap();
    split.provision();
    let past_the_gate = "ALTER TABLE sales.orders DISABLE TRIGGER ALL; INSERT INTO sales.orders (id, number) VALUES (1, 'twice'), (2, 'twice');
        ALTER TABLE sales.orders ENABLE ALWAYS TRIGGER aa_strangler_gate; INSERT INTO strangler.alarm (slice, dir, epoch, lsn, xid, source_table, operation, key)
            VALUES ('one', 'reverse', 1, '0/1', 1, 'orders', 'insert', '{1}')";
    service.batch_execute(past_the_gate).await.unwrap();
    (split, monolith, service)
}

fn ends_with(split: &Split, arguments: &[&str], words: &[&str]) -> Ended {
    let preview = abandon(split, "one", arguments);
    let done = abandon(split, "one", &[arguments, &["--confirm", &token(&preview)]].concat());
    assert_eq!(done.exit, Some(1), "{}", done.page());
    for words in words {
        assert!(flat(&done.stderr).contains(words), "{words}: {}", done.page());
    }
    done
}

async fn is(client: &Client, claim: &str) -> bool {
    client.query_one(&format!("SELECT {claim}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_goes_beside_rows_that_stay_and_what_stays_away_is_named() {
    let (split, _monolith, service) =
        with_rows_that_stay("ALTER TABLE sales.orders ADD CONSTRAINT numbered UNIQUE (number)").await;
    ends_with(&split, &["--drop-ledger"], &["(stays-away)", "ADD CONSTRAINT \"numbered\""]);
    assert!(
        is(&service, "to_regnamespace('strangler') IS NULL AND (SELECT count(*) = 2 FROM sales.orders)")
            .await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_definition_fails_with_it_stays_away_and_is_named() {
    let definitions = "CREATE FUNCTION sales.short(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT left($1, 1)';
        CREATE UNIQUE INDEX by_inverse ON sales.orders ((1 / (id - 1))); CREATE UNIQUE INDEX by_first ON sales.orders (sales.short(number), id);
        CREATE UNIQUE INDEX by_number ON sales.orders (number, id)";
    let (split, _monolith, service) = with_rows_that_stay(definitions).await;
    // As a migration does that takes away what an index was made of.
    service.batch_execute("DROP FUNCTION sales.short(text)").await.unwrap();
    let done = ends_with(&split, &[], &["(stays-away)", "by_inverse", "by_first"]);
    assert!(!flat(&done.stderr).contains("by_number"), "{}", done.page());
    assert!(is(&service, "to_regclass('sales.by_number') IS NOT NULL").await);
    take_back(&split, "one", &["--drop-ledger"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn the_gate_goes_from_tables_that_were_renamed_or_moved_and_they_stay() {
    let (split, monolith, service) = Split::launch(
        "{ orders: {}, lines: {} }",
        &format!("{SETUP}; CREATE TABLE lines (id int PRIMARY KEY)"),
    )
    .await;
    for change in
        ["ALTER TABLE orders RENAME TO old", "CREATE SCHEMA aside; ALTER TABLE orders SET SCHEMA aside"]
    {
        split.provision();
        let mirror = split.mirror(None);
        mirror.caught_up(&monolith, &service).await;
        mirror.stop();
        service.batch_execute(change).await.unwrap();
        let name = if change.contains("aside") { "aside.orders" } else { "old" };
        ends_with(&split, &[], &["(table-stays)", name, "was renamed or moved"]);
        assert!(
            is(&service, &format!("(SELECT count(*) = 20 FROM {name}) AND to_regclass('lines') IS NULL"))
                .await
        );
        let hinges = "NOT EXISTS (SELECT FROM pg_trigger WHERE tgname LIKE '%strangler%')";
        assert!(is(&service, hinges).await);
        service.batch_execute(&format!("DROP TABLE {name}")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_may_be_the_services_own_are_named_also_under_another_mapping() {
    let (split, _monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    service.batch_execute("ALTER TABLE orders ADD COLUMN remark text").await.unwrap();
    let named = |words: &[&str]| {
        let preview = abandon(&split, "one", &[]);
        token(&preview);
        for words in words {
            assert!(flat(&preview.stderr).contains(words), "{words}: {}", preview.page());
        }
    };
    named(&["(of-its-own)", "own column: remark"]);
    split.change_plan("{ orders: {} }", "{ orders: { columns: { number: { drop: true } } } }");
    named(&[
        "(of-its-own)",
        "id, number, remark",
        "the plan maps the slice otherwise than it was provisioned",
    ]);
    split.change_plan("{ orders: { columns: { number: { drop: true } } } }", "{ ordres: {} }");
    named(&["(of-its-own)", "id, number, remark"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_between_slices_that_somebody_has_put_back_is_seen_whatever_its_table_is_called() {
    let plan = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt } }
slices: { one: { service: service, tables: { \"state of orders\": {} } }, two: { service: service, tables: { people: {} } } }\n";
    let setup = "CREATE TABLE people (id int PRIMARY KEY); CREATE TABLE \"state of orders\" (id int PRIMARY KEY, person int)";
    let (split, _monolith, service) = Split::with_plan(plan, setup).await;
    let key = "ALTER TABLE \"state of orders\" ADD CONSTRAINT \"name of person\" FOREIGN KEY (person) REFERENCES people";
    let own = format!(
        "CREATE TABLE people (id int PRIMARY KEY); CREATE TABLE \"state of orders\" (id int PRIMARY KEY, person int); {key}"
    );
    service.batch_execute(&own).await.unwrap();
    split.provision();
    let away = abandon(&split, "one", &[]);
    assert!(flat(&away.stderr).contains("(key-stays-away)"), "{}", away.page());
    service.batch_execute(key).await.unwrap();
    let preview = abandon(&split, "one", &[]);
    assert!(!flat(&preview.stderr).contains("(key-stays-away)"), "{}", preview.page());
}
