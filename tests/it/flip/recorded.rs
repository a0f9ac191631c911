//! The ledger has each move once, with its reason, whoever came to write it.

use serde_json::json;
use tokio_postgres::Client;

use super::bank::{ON_SERVICE, SETUP, Side, TABLES};
use super::{UNPROVEN, armed, armed_with, complete, flip, killed};
use crate::ledger::told::told;
use crate::support::split::Split;
use crate::support::wait::{SOON, until, until_blocking};

const APPROVED: [&str; 2] = ["--approved-by", "Ada Lovelace"];

/// Action and reason of the entries about moves, by epoch.
async fn entries(service: &Client) -> Vec<(i64, String, Option<String>)> {
    let sql = "SELECT epoch, body->>'action', body->>'remark' FROM strangler.ledger WHERE kind = 'flip' ORDER BY id";
    let rows = service.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn each_move_is_in_the_ledger_once_with_its_reason_wherever_its_operator_died() {
    let (split, _monolith, service, mirror) = armed().await;
    let reason = Some(UNPROVEN[1].to_owned());
    let mut known = Vec::new();
    for (number, point) in ["flip-fenced", "flip-opened", "flip-swapped"].into_iter().enumerate() {
        let (to, action): (&[&str], _) =
            if number % 2 == 0 { (&[], "flip") } else { (&["--back"], "flip-back") };
        killed(&split, point, to);
        known.push((i64::try_from(number).unwrap() + 2, action.to_owned(), reason.clone()));
        until("the mirror writes it down", SOON, async || {
            (entries(&service).await.len() == known.len()).then_some(())
        })
        .await;
        assert_eq!(entries(&service).await, known, "{point}");
        // Whoever looks again adds nothing.
        flip(&split, &mirror, if number % 2 == 0 { Side::Service } else { Side::Monolith });
        assert_eq!(entries(&service).await, known, "{point}");
    }
    // One that has no entry, because nobody was there to write it, gets it from whoever looks next.
    mirror.stop();
    service
        .batch_execute("BEGIN; ALTER TABLE strangler.ledger DISABLE TRIGGER USER; DELETE FROM strangler.ledger WHERE epoch = 4; \
            ALTER TABLE strangler.ledger ENABLE TRIGGER USER; COMMIT")
        .await
        .unwrap();
    let already = split.run("flip", &[]);
    assert!(already.exit == Some(0) && already.stdout.contains("already"), "{}", already.page());
    assert_eq!(entries(&service).await, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_asks_for_an_approval_refuses_a_move_without_a_name_and_the_ledger_has_the_name() {
    let (split, _monolith, service, mirror) = armed().await;
    split.change_plan("min_mirror_time: 0s", "min_mirror_time: 0s, approval: required");
    for (number, to) in [&[][..], &["--back"]].into_iter().enumerate() {
        let refused = split.run("flip", &[to, &UNPROVEN].concat());
        assert_eq!(refused.exit, Some(3), "{}", refused.page());
        assert!(refused.stderr.contains("(not-approved)"), "{}", refused.page());
        assert!(refused.stderr.contains("--approved-by NAME"), "{}", refused.page());
        assert_eq!(told(&service, "flip").await.len(), number, "nothing was begun");
        complete(&split, &mirror, &[to, &UNPROVEN, &APPROVED].concat());
        let moves = told(&service, "flip").await;
        assert_eq!(moves[number].body["approved_by"], json!("Ada Lovelace"));
        assert!(moves[number].has_lsn, "where the new authority begins");
    }
    // The hash of the policy is another one by the approval; the move that met it first says so.
    let plans = told(&service, "plan").await;
    assert_eq!(plans.last().unwrap().body["verb"], json!("flip"));
    // What is under way needs nobody's word, and keeps the name of who approved it.
    killed_approved(&split, &[]);
    complete(&split, &mirror, &UNPROVEN);
    assert_eq!(told(&service, "flip").await[2].body["approved_by"], json!("Ada Lovelace"));
    // Nor does what is taken back, and nobody approved that.
    killed_approved(&split, &["--back"]);
    mirror.kill();
    // Nobody holds writers up to rehearse what is under way, and the dead operator is not what is in the way.
    let rehearsed = split.run("flip", &["--back", "--rehearse", "1"]);
    assert_eq!(rehearsed.exit, Some(3), "{}", rehearsed.page());
    assert!(rehearsed.stderr.contains("(authority-fenced-alone)"), "{}", rehearsed.page());
    assert!(!rehearsed.stderr.contains("(operator-at-work)"), "{}", rehearsed.page());
    let aborted = split.run("flip", &["--abort"]);
    assert_eq!(aborted.exit, Some(0), "{}", aborted.page());
    let last = &told(&service, "flip").await[3].body;
    assert_eq!((&last["action"], &last["approved_by"]), (&json!("abort"), &json!(null)));
}

/// Runs an approved flip that kills itself when the side that had authority is closed.
fn killed_approved(split: &Split, to: &[&str]) {
    until_blocking("the flip gets there", SOON, || {
        let words = [&["flip", "plan.yaml"][..], to, &UNPROVEN, &APPROVED].concat();
        let mut command = split.command(&words);
        let ended = command.env("STRANGLER_FAILPOINT", "flip-fenced").output().unwrap();
        ended.status.code().is_none().then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_is_told_with_its_quantiles_and_needs_no_approval() {
    // Markers are flushed at once, whatever the database says of its application's commits.
    let late = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$;";
    let (split, _monolith, service, mirror) = armed_with(TABLES, &format!("{late}{SETUP}"), ON_SERVICE).await;
    split.change_plan("min_mirror_time: 0s", "min_mirror_time: 0s, approval: required");
    let ended = split.run("flip", &[&["--rehearse", "2"][..], &UNPROVEN].concat());
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    let rehearsals = told(&service, "rehearsal").await;
    assert_eq!((rehearsals.len(), rehearsals[0].epoch), (1, Some(1)));
    let body = &rehearsals[0].body;
    let tried = body["attempts"].as_u64().unwrap() + body["out_of_time"].as_u64().unwrap();
    assert_eq!((tried, &body["budget_ms"], &body["slices"]), (2, &json!(2000.0), &json!(["one"])));
    mirror.stop();
    let in_vain = split.run("flip", &["--rehearse", "2", "--format", "json"]);
    assert_eq!(in_vain.exit, Some(3), "{}", in_vain.page());
    let document: serde_json::Value = serde_json::from_str(&in_vain.stdout).unwrap();
    assert_eq!((&document["attempts"], &document["out_of_time"]), (&json!([]), &json!(0)), "no writer waits");
    assert!(document["problems"].to_string().contains("mirror-away"), "{document:#}");
    assert_eq!(told(&service, "rehearsal").await.len(), 1, "nothing was rehearsed");
}
