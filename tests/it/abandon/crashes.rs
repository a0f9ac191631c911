//! Killed behind every durable step: `status` says so, no other verb touches the slice, and the same command ends it.

use std::os::unix::process::ExitStatusExt;

use strangler::failpoint::ABANDON;
use tokio_postgres::Client;

use super::{abandon, flat, refused, succeed, token};
use crate::support::binary::Ended;
use crate::support::catalogs::{assert_untouched, catalogs};
use crate::support::every_third;
use crate::support::split::Split;

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); \
    INSERT INTO orders SELECT i, 'v' || i FROM generate_series(1, 100) i";

/// Runs it until a kill point ends it. The last argument is the token.
pub fn killed_at(split: &Split, slice: &str, name: &str, arguments: &[&str]) {
    let (token, more) = arguments.split_last().unwrap();
    let start = ["abandon", "plan.yaml", "--slice", slice, "--confirm", token];
    let mut command = split.command(&[&start[..], more].concat());
    command.env("STRANGLER_FAILPOINT", name);
    let output = command.output().unwrap();
    assert!(output.status.signal() == Some(9), "it never came to {name}: {}", Ended::of(output).page());
}

/// What every verb says of a slice that is half taken back.
fn left_alone(split: &Split, name: &str) {
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(1), "{name}: {}", status.page());
    assert!(flat(&status.stdout).contains("slice one: it is being taken back"), "{name}: {}", status.page());
    assert!(
        flat(&status.stdout).contains("strangler abandon plan.yaml --slice one"),
        "{name}: {}",
        status.page()
    );
    for (verb, arguments) in [
        ("provision", &[][..]),
        ("mirror", &[]),
        ("mirror", &["--take-over"]),
        ("arm", &[]),
        ("disarm", &[]),
        ("flip", &["--accept-no-evidence", "a test"]),
        ("retire", &["--stage", "revoke"]),
        ("retire", &["--stage", "archive", "--to", "archive"]),
        ("retire", &["--report"]),
        ("unretire", &[]),
        ("reconcile", &[]),
    ] {
        let ended = split.run(verb, arguments);
        assert_eq!(ended.exit, Some(3), "{name}, {verb}: {}", ended.page());
        let said = flat(&ended.stderr);
        assert!(said.contains("strangler abandon plan.yaml --slice one"), "{name}, {verb}: {}", ended.page());
    }
    let doctor = split.run("doctor", &[]);
    assert!(doctor.stdout.contains("(slice-abandoned)"), "{name}: {}", doctor.page());
    for code in ["(slot-gone)", "(slot-without-reader)", "(slot-left)", "(copy-unfinished)", "(indexes-wait)"]
    {
        assert!(!doctor.stdout.contains(code), "abandon knows of it, {name}: {}", doctor.page());
    }
    let cleaned = split.run("doctor", &["--clean", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&cleaned.stdout).unwrap();
    assert_eq!(document["removed"], serde_json::json!([]), "{name}: {}", cleaned.page());
    let ledger = split.run("ledger", &[]);
    assert_eq!(ledger.exit, Some(0), "what was told stays to be read: {}", ledger.page());
}

async fn mirrored(split: &Split, monolith: &Client, service: &Client) {
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(monolith, service).await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_behind_any_step_it_is_named_and_left_alone_and_the_same_command_ends_it() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    let before = catalogs(&monolith).await;
    for (number, name) in every_third(ABANDON).into_iter().enumerate() {
        mirrored(&split, &monolith, &service).await;
        let shown = token(&abandon(&split, "one", &[]));
        killed_at(&split, "one", name, &[&shown]);
        let over = name == "abandon-service-cleared";
        if over {
            let status = split.run("status", &[]);
            assert!(status.stdout.contains("not provisioned"), "{name}: {}", status.page());
        } else {
            left_alone(&split, name);
            let wrong = abandon(&split, "one", &["--confirm", "00000000"]);
            assert_eq!(wrong.exit, Some(3), "{name}: {}", wrong.page());
            let again = abandon(&split, "one", &[]);
            assert!(flat(&again.stderr).contains("it was begun before"), "{name}: {}", again.page());
        }
        let ended = abandon(&split, "one", &["--confirm", &shown]);
        assert_eq!(ended.exit, Some(0), "{name}: {}", ended.page());
        assert!(flat(&ended.stderr).contains("nothing of slice one is left"), "{name}: {}", ended.page());
        assert_untouched(&before, &catalogs(&monolith).await);
        let tables = "SELECT to_regclass('public.orders') IS NULL, (SELECT count(*) FROM strangler.slice)";
        let row = service.query_one(tables, &[]).await.unwrap();
        assert!(row.get::<_, bool>(0) && row.get::<_, i64>(1) == 0, "{name}");
        let told = "SELECT count(*) FROM strangler.ledger WHERE kind = 'abandon' AND json_array_length(body -> 'taken') >= 3";
        let told: i64 = service.query_one(told, &[]).await.unwrap().get(0);
        assert_eq!(
            told,
            i64::try_from(number).unwrap() + 1,
            "{name}: each is told once, with all that was taken"
        );
    }
    succeed(&split, "ledger", &["--verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_was_provisioned_half_way_is_taken_back_too() {
    let (split, monolith, _service) = Split::launch("{ orders: {} }", SETUP).await;
    let before = catalogs(&monolith).await;
    let design = split.run("provision", &["--dry-run"]);
    let first = design.stdout.split("-- service service:").next().unwrap();
    let on_monolith: String =
        first.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
    monolith.batch_execute(&on_monolith).await.unwrap();
    refused(&abandon(&split, "one", &[]), "slice-unknown", &[]);
    // Its own schema alone, as a provision leaves it that died behind its first step.
    monolith.batch_execute("DROP SCHEMA strangler CASCADE").await.unwrap();
    assert_untouched(&before, &catalogs(&monolith).await);
    split.provision();
    let begun = abandon(&split, "one", &["--drop-ledger"]);
    let done = abandon(&split, "one", &["--drop-ledger", "--confirm", &token(&begun)]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    assert_untouched(&before, &catalogs(&monolith).await);
    let gone = "SELECT to_regnamespace('strangler') IS NULL";
    assert!(_service.query_one(gone, &[]).await.unwrap().get::<_, bool>(0), "with the ledger");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_shown_is_what_is_done() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    mirrored(&split, &monolith, &service).await;
    let preview = abandon(&split, "one", &[]);
    for line in [
        "-- monolith: drop slot strangler_split_one_",
        "DROP PUBLICATION \"strangler_split_one\";",
        "DROP TABLE \"public\".\"orders\";",
    ] {
        assert!(preview.stdout.contains(line), "{line}: {}", preview.page());
    }
    assert!(flat(&preview.stderr).contains("100 rows were copied into it"), "{}", preview.page());
    let shown = token(&preview);
    refused_where_it_changed(&split, &service, &shown).await;
    let done = abandon(&split, "one", &["--confirm", &token(&abandon(&split, "one", &[]))]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
}

async fn refused_where_it_changed(split: &Split, service: &Client, shown: &str) {
    let unguarded =
        "ALTER TABLE orders DISABLE TRIGGER aa_strangler_gate; DROP TRIGGER aa_strangler_gate ON orders";
    service.batch_execute(unguarded).await.unwrap();
    let changed = abandon(split, "one", &["--confirm", shown]);
    refused(&changed, "abandon-changed", &[]);
    split.provision();
}
