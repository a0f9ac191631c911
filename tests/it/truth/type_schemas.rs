//! Types in a schema that no table is in, through links of least privilege.

use strangler::reconcile::finding::FindingKind::Differs;
use tokio_postgres::Client;

use super::found::Run;
use super::stage::corrupt;
use crate::support::privilege;
use crate::support::split::Split;

const SCHEMA: &str = "RESET ROLE; CREATE SCHEMA ty AUTHORIZATION retail_owner; SET ROLE retail_owner;
    CREATE TYPE ty.mood AS ENUM ('sad', 'fine'); CREATE DOMAIN ty.small AS int CHECK (VALUE < 1000);
    CREATE TYPE ty.pair AS (a int, b text);
    CREATE TABLE em (id int PRIMARY KEY, m ty.mood, s ty.small, p ty.pair, ms ty.mood[]);
    INSERT INTO em SELECT i, 'fine', i, (i, 'b')::ty.pair, '{sad}' FROM generate_series(1, 50) i;
    CREATE TABLE keyed (m ty.mood PRIMARY KEY, v int); INSERT INTO keyed VALUES ('sad', 1), ('fine', 2);
    GRANT SELECT ON em, keyed TO shop_read";

/// What is said while a role may not use the schema, and that typing provision again helps.
async fn assert_told(split: &Split, admin: &Client, (place, side, role): (&str, &str, &str)) {
    admin.batch_execute(&format!("REVOKE USAGE ON SCHEMA ty FROM {role}")).await.unwrap();
    let grant = format!("GRANT USAGE ON SCHEMA \"ty\" TO \"{role}\"");
    let run = Run::of(split, &[]);
    run.assert_incomplete(&[&format!("on the {side}, as {role}: ")]);
    assert!(run.reasons().contains(&grant), "{}", run.reasons());
    let check = split.run("check", &[]);
    let page = check.page();
    assert!(page.contains("no-type-usage") && page.contains(place) && page.contains(&grant), "{page}");
    split.provision();
    assert!(!split.run("check", &[]).page().contains("no-type-usage"));
    Run::of(split, &[]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn tables_with_types_of_another_schema_are_compared_and_a_missing_right_is_named_with_its_grant() {
    let (split, monolith, service) = privilege::open("{ em: {}, keyed: {} }", SCHEMA).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &[]).assert_clean();
    assert_told(&split, &service, ("service service", "service", "strangler_apply")).await;
    for role in ["shop_read", "strangler_apply"] {
        let here = monolith.query_one("SELECT has_schema_privilege($1::text, 'ty', 'USAGE')", &[&role]).await;
        assert!(here.unwrap().get::<_, bool>(0), "{role}");
    }
    assert_told(&split, &monolith, ("monolith", "monolith", "shop_read")).await;
    corrupt(
        &service,
        "UPDATE sales.em SET m = 'sad' WHERE id = 7; UPDATE sales.keyed SET v = 3 WHERE m = 'sad'",
    )
    .await;
    let run = Run::of(&split, &["--repair"]);
    assert_eq!((run.counts(), run.ended.exit), ([(Differs, 2)].into(), Some(0)), "{}", run.ended.page());
}

/// The problems of check about the types' schema, as severity and role.
fn found(split: &Split) -> Vec<(String, String)> {
    let document: serde_json::Value =
        serde_json::from_str(&split.run("check", &["--format", "json"]).stdout).unwrap();
    let problems = document["problems"].as_array().unwrap().iter();
    let of_types = problems.filter(|one| one["code"] == "no-type-usage");
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    of_types
        .map(|one| (text(&one["severity"]), text(&one["fact"]).split(' ').next().unwrap().to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_may_not_name_a_type_ends_with_the_grant_that_check_asks_for_beforehand() {
    let (split, monolith, service) = privilege::open("{ em: {}, keyed: {} }", SCHEMA).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    service.batch_execute("REVOKE USAGE ON SCHEMA ty FROM strangler_apply").await.unwrap();
    assert_eq!(found(&split), [("error".to_owned(), "strangler_apply".to_owned())]);
    assert_eq!(split.run("check", &[]).exit, Some(1));
    let mirror = split.mirror(None);
    monolith.batch_execute("UPDATE keyed SET v = 9 WHERE m = 'sad'").await.unwrap();
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(5), "{log}");
    for words in [
        "applying changes failed",
        "permission denied for schema ty",
        "run on the service: GRANT USAGE ON SCHEMA \"ty\" TO strangler_apply; then strangler mirror plan.yaml --slice one",
    ] {
        assert!(log.contains(words), "{words} is not in {log}");
    }
    service.batch_execute("GRANT USAGE ON SCHEMA \"ty\" TO strangler_apply").await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_of_a_service_may_name_the_types_of_its_columns() {
    let (split, _monolith, service) = privilege::open("{ em: {}, keyed: {} }", SCHEMA).await;
    split.provision();
    let cast = "SET ROLE service_app; SELECT m = 'fine'::ty.mood FROM sales.em; RESET ROLE";
    service.batch_execute(cast).await.unwrap();
    service.batch_execute("REVOKE USAGE ON SCHEMA ty FROM service_app").await.unwrap();
    assert_eq!(found(&split), [("warning".to_owned(), "service_app".to_owned())]);
    split.provision();
    service.batch_execute(cast).await.unwrap();
    assert_eq!(found(&split), []);
}
