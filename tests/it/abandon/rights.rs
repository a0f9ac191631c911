//! Rights are taken back that were granted for the slice, and that nobody has built upon.

use super::{abandon, flat, take_back, token};
use crate::support::catalogs::{assert_untouched, catalogs};
use crate::support::split::Split;

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices:
  one: { service: service, tables: { shop.orders: {} } }
  two: { service: service, tables: { store.people: {} } }\n";

const SETUP: &str = "CREATE ROLE reader NOLOGIN; CREATE SCHEMA shop; CREATE SCHEMA store;
    CREATE TABLE shop.orders (id int PRIMARY KEY); CREATE TABLE store.people (id int PRIMARY KEY)";

#[tokio::test(flavor = "multi_thread")]
async fn a_role_keeps_its_way_into_a_schema_where_it_uses_tables_of_others() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    split.change_plan("url: \"${SERVICE}\"", "url: \"${SERVICE}\", ddl: adopt");
    service.batch_execute(SETUP).await.unwrap();
    let before = catalogs(&monolith).await;
    split.provision();
    let others = "CREATE TABLE shop.extra (id int); GRANT SELECT ON shop.extra TO service_app;
        GRANT SELECT ON shop.orders TO service_app WITH GRANT OPTION; SET ROLE service_app; GRANT SELECT ON shop.orders TO reader; RESET ROLE";
    service.batch_execute(others).await.unwrap();
    take_back(&split, "one", &[]);
    take_back(&split, "two", &[]);
    let may = "SELECT has_schema_privilege('service_app', $1, 'USAGE')";
    for (schema, expected) in [("shop", true), ("store", false)] {
        assert_eq!(service.query_one(may, &[&schema]).await.unwrap().get::<_, bool>(0), expected, "{schema}");
    }
    let read = "SELECT has_table_privilege('reader', 'shop.orders', 'SELECT'), has_table_privilege('service_app', 'shop.orders', 'INSERT')";
    let read = service.query_one(read, &[]).await.unwrap();
    assert!(read.get::<_, bool>(0), "what somebody passed on stays");
    assert!(!read.get::<_, bool>(1), "and the rest goes");
    assert_untouched(&before, &catalogs(&monolith).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_made_in_our_schema_keeps_it_and_is_named() {
    let (split, monolith, _service) = Split::with_plan(PLAN, SETUP).await;
    split.provision();
    let own = "CREATE VIEW strangler.mine AS SELECT 1 AS one; CREATE FUNCTION strangler.mine(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
        CREATE TABLE strangler.notes (id int); CREATE TYPE strangler.mood AS ENUM ('good')";
    monolith.batch_execute(own).await.unwrap();
    take_back(&split, "one", &[]);
    let preview = abandon(&split, "two", &[]);
    for words in [
        "(schema-stays)",
        "view strangler.mine",
        "function strangler.mine(integer)",
        "table strangler.notes",
        "type strangler.mood",
    ] {
        assert!(flat(&preview.stderr).contains(words), "{words}: {}", preview.page());
    }
    let done = abandon(&split, "two", &["--confirm", &token(&preview)]);
    assert_eq!(done.exit, Some(1), "{}", done.page());
    assert_eq!(monolith.query("TABLE strangler.mine", &[]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_keeps_its_way_into_a_schema_where_a_member_uses_tables_of_others() {
    let (split, _monolith, service) = Split::with_plan(PLAN, SETUP).await;
    split.change_plan("url: \"${SERVICE}\"", "url: \"${SERVICE}\", ddl: adopt");
    service.batch_execute(SETUP).await.unwrap();
    split.provision();
    let members = "CREATE ROLE clerk LOGIN; CREATE ROLE boss LOGIN; GRANT service_app TO clerk, boss;
        CREATE TABLE shop.extra (id int); GRANT SELECT ON shop.extra TO clerk;
        CREATE TABLE store.extra (id int); GRANT SELECT ON store.extra TO boss; GRANT USAGE ON SCHEMA store TO boss";
    service.batch_execute(members).await.unwrap();
    let preview = abandon(&split, "one", &[]);
    for words in [
        "(right-stays)",
        "granted USAGE ON SCHEMA shop, and clerk uses shop.extra",
        "REVOKE USAGE ON SCHEMA shop FROM \"service_app\";",
    ] {
        assert!(flat(&preview.stderr).contains(words), "{words}: {}", preview.page());
    }
    let done = take_back(&split, "one", &[]);
    assert!(flat(&done.stderr).contains("(right-stays)"), "{}", done.page());
    take_back(&split, "two", &[]);
    let may = "SELECT has_schema_privilege($1, $2, 'USAGE')";
    for (role, schema, expected) in
        [("clerk", "shop", true), ("service_app", "store", false), ("boss", "store", true)]
    {
        let may: bool = service.query_one(may, &[&role, &schema]).await.unwrap().get(0);
        assert_eq!(may, expected, "{role} in {schema}");
    }
}
