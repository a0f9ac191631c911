//! What is true once old tables are dropped: nobody takes the slice for one that has two sides, the next slice is dropped in its turn, and what
//! the monolith's journal remembered goes on to prove the ledger.

use tokio_postgres::Client;

use super::dropping::{all_stages, allowed, archived, drop_stage, moved, one_of_two_dropped};
use super::{refused, token};
use crate::support::binary::flat;
use crate::support::split::Split;

/// A link to where nobody listens.
const NOBODY: &str = "postgresql://strangler_apply@127.0.0.1:1/service";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_service_that_can_not_be_asked_is_not_taken_for_one_whose_slices_stand() {
    let (mut split, _monolith, service, _mirror, _folder) = archived().await;
    let done = drop_stage(&split, &["--confirm", &token(&allowed(&split))]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    // The role that reads it may not any more: that is said, and not taken for nothing.
    service.batch_execute("REVOKE SELECT ON strangler.dropped FROM strangler_apply").await.unwrap();
    let blind = split.run("reconcile", &[]);
    assert!(!matches!(blind.exit, Some(0 | 1)), "{}", blind.page());
    assert!(flat(&blind.stderr).contains("reading which slices are retired"), "{}", blind.page());
    service.batch_execute("GRANT SELECT ON strangler.dropped TO strangler_apply").await.unwrap();
    let read: Vec<String> = {
        let sql = "SELECT grantee::text FROM information_schema.table_privileges WHERE table_name = 'dropped' AND privilege_type = 'SELECT'";
        service.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    assert!(!read.contains(&"PUBLIC".to_owned()), "{read:?}");
    for variable in ["DEPLOY", "WRITE"] {
        split.lead(variable, NOBODY);
    }
    for verb in ["flip", "arm", "disarm", "provision", "mirror", "reconcile", "unretire"] {
        let ended = split.run(verb, &[]);
        assert_eq!(ended.exit, Some(4), "{verb}: {}", ended.page());
        assert!(ended.stderr.contains("service service"), "{verb}: {}", ended.page());
    }
    for stage in ["revoke", "quarantine", "drop"] {
        let ended = split.run("retire", &["--stage", stage]);
        assert_eq!(ended.exit, Some(4), "{stage}: {}", ended.page());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn while_the_monolith_has_other_slices_unretire_does_not_take_a_silent_service_for_nothing_to_do() {
    let (mut split, _monolith, _service, mirror) = one_of_two_dropped().await;
    for variable in ["DEPLOY", "WRITE"] {
        split.lead(variable, NOBODY);
    }
    for arguments in [&["--slice", "one"][..], &["--slice", "one", "--dry-run"]] {
        refused(&split.run("unretire", arguments), &["service-unknown"]);
    }
    mirror.stop();
}

/// What the role may do in the monolith's database, as the server has it written down.
async fn leans_on(monolith: &Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_shdepend WHERE refobjid = 'strangler_apply'::regrole \
        AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
    monolith.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn the_last_slice_takes_the_schema_with_it_and_its_journal_goes_on_to_prove_the_ledger() {
    let (split, monolith, service, mirror) = one_of_two_dropped().await;
    let ours = "SELECT to_regnamespace('strangler') IS NOT NULL";
    assert!(monolith.query_one(ours, &[]).await.unwrap().get::<_, bool>(0));
    assert!(leans_on(&monolith).await > 0, "the other slice needs it");
    moved(&split, &["--slice", "two"]);
    let folder = tempfile::tempdir().unwrap();
    all_stages(&split, &monolith, ("two", 1), folder.path()).await;
    let (ended, said) = mirror.ended();
    assert_eq!(ended.code(), Some(0), "{said}");
    assert!(!monolith.query_one(ours, &[]).await.unwrap().get::<_, bool>(0));
    assert_eq!(leans_on(&monolith).await, 0);
    let nothing =
        "SELECT NOT EXISTS (SELECT FROM pg_replication_slots) AND NOT EXISTS (SELECT FROM pg_publication)";
    for client in [&monolith, &service] {
        assert!(client.query_one(nothing, &[]).await.unwrap().get::<_, bool>(0));
    }
    proves(&split, &service).await;
}

/// The ledger is held against the journal that the service keeps, also where its end is cut off, and behind what a human accepts.
async fn proves(split: &Split, service: &Client) {
    let whole = split.run("ledger", &["--verify"]);
    assert_eq!(whole.exit, Some(0), "{}", whole.page());
    assert!(
        flat(&whole.stdout).contains("the monolith's journal, which a service keeps now, confirms"),
        "{}",
        whole.page()
    );
    let cut = "ALTER TABLE strangler.ledger DISABLE TRIGGER ALL; \
        DELETE FROM strangler.ledger WHERE id = (SELECT max(id) FROM strangler.ledger); ALTER TABLE strangler.ledger ENABLE TRIGGER ALL";
    service.batch_execute(cut).await.unwrap();
    let broken = split.run("ledger", &["--verify"]);
    assert_eq!(broken.exit, Some(1), "{}", broken.page());
    assert!(flat(&broken.stdout).contains("is missing at the end"), "{}", broken.page());
    let accepted = split.run("ledger", &["--accept-broken", "a test"]);
    assert_eq!(accepted.exit, Some(0), "{}", accepted.page());
    let again = split.run("ledger", &["--verify", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    let found = &document["services"][0]["verification"];
    assert_eq!((&found["whole"], &found["journal"]), (&true.into(), &"service".into()), "{document:#}");
    assert!(found["accepted"].is_number(), "{document:#}");
    service.batch_execute(cut).await.unwrap();
    assert_eq!(split.run("ledger", &["--verify"]).exit, Some(1));
}

/// A later version's plan may let another service copy rows of a table, or look values up in it. What drops the table must ask for that then.
#[tokio::test(flavor = "multi_thread")]
async fn no_plan_can_name_a_reader_of_old_tables_that_the_stage_does_not_ask_for() {
    let (split, ..) = Split::launch("{ accounts: {} }", "CREATE TABLE accounts (id int PRIMARY KEY)").await;
    let plan = split.plan_text();
    for (key, text) in [
        ("replicas", format!("{plan}replicas: {{ accounts: {{ to: service }} }}\n")),
        (
            "lookup",
            plan.replace("accounts: {}", "accounts: { columns: { id: { lookup: { table: other } } } }"),
        ),
    ] {
        split.write_plan(&text);
        let ended = split.run("retire", &["--stage", "drop"]);
        assert_eq!(ended.exit, Some(2), "{key}: {}", ended.page());
        assert!(
            ended.stderr.contains("plan.not-available") && ended.stderr.contains(key),
            "{key}: {}",
            ended.page()
        );
    }
}
