//! An earlier state of one of the two databases is put back, or a link leads to another one: the last copy of a row is never dropped, and
//! nobody takes tables for dropped that are not, nor the other way round.

use std::process::Command;

use rustix::process::Signal;
use strangler::cluster::{Cluster, LocalCluster, StopMode};
use strangler::dualwrite::gate;
use tokio_postgres::Client;

use super::dropping::{allowed, archived, assert_service_is_alone, drop_stage, one_of_two_dropped, status};
use super::quarantine::place;
use super::{SETUP, TABLES, refused, token};
use crate::support::binary::{Ended, flat};
use crate::support::cluster::{Pair, connect, create_database};
use crate::support::privilege;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

/// Keeps a copy of a server's files as they are now. Its sessions end.
fn keep_files(server: &mut LocalCluster) {
    server.stop(StopMode::Fast).unwrap();
    let (from, to) = (server.data_dir(), server.dir().join("copy"));
    assert!(Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success(), "{from:?}");
    server.start().unwrap();
}

/// Puts that copy back in their place, at once: somebody who reads a slot may not answer.
fn put_files_back(server: &mut LocalCluster) {
    let data = server.data_dir();
    server.stop(StopMode::Immediate).unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(server.dir().join("copy"), &data).unwrap();
    server.start().unwrap();
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// So many marks have come down the way back since.
async fn marked_again(monolith: &Client, marks: i64) {
    let mark = "SELECT coalesce(max(mark), 0) FROM strangler.lineage WHERE dir = 'reverse'";
    let before = number(monolith, mark).await;
    until("marks have come down the way back", SOON, async || {
        (number(monolith, mark).await >= before + marks).then_some(())
    })
    .await;
}

/// The log goes past what the monolith has applied, as it does when somebody takes a base backup.
async fn writes_past(service: &Client, applied: &str) {
    let wide = "SELECT pg_logical_emit_message(true, 'wide', repeat('x', 100000)), pg_switch_wal()";
    let past = format!("SELECT pg_current_wal_flush_lsn() > '{applied}'::pg_lsn");
    while !service.query_one(&past, &[]).await.unwrap().get::<_, bool>(0) {
        service.query_one(wide, &[]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_service_that_was_set_back_behind_the_archive_does_not_lose_the_last_copy_of_its_rows() {
    let (mut split, monolith, service, mirror, _folder) = archived().await;
    let stands = place(&monolith, "accounts").await;
    drop(service);
    keep_files(&mut split.pair.service);
    let service = split.pair.service().await;
    service
        .batch_execute("INSERT INTO sales.accounts (id) SELECT generate_series(1001, 1020)")
        .await
        .unwrap();
    let come = format!("SELECT count(*) FROM {stands}.accounts WHERE id > 1000");
    until("the rows come back", SOON, async || (number(&monolith, &come).await == 20).then_some(())).await;
    marked_again(&monolith, 2).await;
    let shown = token(&allowed(&split));
    let applied = "SELECT applied_lsn::text FROM strangler.stream WHERE dir = 'reverse'";
    let applied: String = monolith.query_one(applied, &[]).await.unwrap().get(0);
    // For some seconds it is taken to be alive.
    mirror.signal(Signal::STOP);
    drop(service);
    put_files_back(&mut split.pair.service);
    let service = split.pair.service().await;
    writes_past(&service, &applied).await;
    assert_eq!(number(&service, "SELECT count(*) FROM sales.accounts WHERE id > 1000").await, 0);
    for arguments in [&[][..], &["--confirm", &shown]] {
        let ended = drop_stage(&split, arguments);
        refused(&ended, &["service-set-back"]);
        assert!(flat(&ended.stderr).contains("was set back to an earlier state"), "{}", ended.page());
    }
    assert_eq!(number(&monolith, &come).await, 20);
    mirror.signal(Signal::CONT);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_clone_of_the_service_that_a_link_leads_to_is_not_taken_for_the_service() {
    let (mut split, monolith, service, mirror, _folder) = archived().await;
    let stands = place(&monolith, "accounts").await;
    let shown = token(&allowed(&split));
    mirror.stop();
    drop(service);
    let admin = connect(&split.pair.service.admin_url()).await;
    let away = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'service'";
    until("nobody is in the service", SOON, async || (number(&admin, away).await == 0).then_some(())).await;
    admin.batch_execute("CREATE DATABASE clone TEMPLATE service").await.unwrap();
    let _mirror = split.mirror(None);
    marked_again(&monolith, 1).await;
    let links = [("DEPLOY", "orders_deploy"), ("WRITE", "strangler_apply")];
    for (variable, role) in links {
        let link = split.pair.service.url_as(role, "", "clone");
        split.lead(variable, &link);
        for arguments in [&[][..], &["--confirm", &shown]] {
            refused(&drop_stage(&split, arguments), &["other-home"]);
        }
    }
    assert_eq!(place(&monolith, "accounts").await, stands);
    for (variable, role) in links {
        let link = split.pair.service.url_as(role, "", Pair::SERVICE);
        split.lead(variable, &link);
    }
    let done = drop_stage(&split, &["--confirm", &shown]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_database_that_never_had_the_tables_is_not_one_that_they_were_dropped_from() {
    let (mut split, monolith, service, _mirror, _folder) = archived().await;
    let shown = token(&allowed(&split));
    let mut command = split.command(&["retire", "plan.yaml", "--stage", "drop", "--confirm", &shown]);
    let killed = Ended::of(command.env("STRANGLER_FAILPOINT", "drop-noted").output().unwrap());
    assert_eq!(killed.exit, None, "{}", killed.page());
    create_database(&split.pair.monolith, "empty").await;
    let links = [("ADMIN", "shop_admin"), ("READ", "shop_read"), ("APPLY", "strangler_apply")];
    let lead = |split: &mut Split, database: &str| {
        for (variable, role) in links {
            let link = split.pair.monolith.url_as(role, "", database);
            split.lead(variable, &link);
        }
    };
    lead(&mut split, "empty");
    for arguments in [&[][..], &["--confirm", &shown]] {
        refused(&drop_stage(&split, arguments), &["other-monolith"]);
    }
    let ended = "SELECT count(*) FROM strangler.dropped WHERE ended_at IS NOT NULL";
    assert_eq!(number(&service, ended).await, 0);
    lead(&mut split, Pair::MONOLITH);
    // As it was before there was anything of ours.
    monolith.batch_execute("DROP SCHEMA strangler CASCADE").await.unwrap();
    for arguments in [&[][..], &["--confirm", &shown]] {
        refused(&drop_stage(&split, arguments), &["other-monolith"]);
    }
    assert_eq!(number(&service, ended).await, 0);
}

/// Whoever owns a table can put its gate to sleep for a moment, and no state of the gate tells.
async fn rows_past_the_gate_are_not_lost(split: &Split, monolith: &Client) {
    let table = format!("{}.accounts", place(monolith, "accounts").await);
    let asleep = format!("ALTER TABLE {table} DISABLE TRIGGER {}", gate::TRIGGER);
    let awake = format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {}", gate::TRIGGER);
    let shown = token(&allowed(split));
    let named = |fact: &str| {
        for arguments in [&[][..], &["--confirm", &shown]] {
            let ended = drop_stage(split, arguments);
            refused(&ended, &["dropped-tables-back"]);
            let said = flat(&ended.stderr);
            assert!(said.contains("accounts") && said.contains(fact), "{}", ended.page());
        }
    };
    monolith.batch_execute(&asleep).await.unwrap();
    named("does not fire always");
    // One row more; then as many as before, of which one is another.
    let wrong = ["INSERT INTO {} (id) VALUES (7777)", "DELETE FROM {} WHERE id = 7"];
    for sql in wrong {
        monolith.batch_execute(&asleep).await.unwrap();
        monolith.batch_execute(&sql.replace("{}", &table)).await.unwrap();
        monolith.batch_execute(&awake).await.unwrap();
        named("not those of the archive");
    }
    let right = format!("DELETE FROM {table} WHERE id = 7777; INSERT INTO {table} (id) VALUES (7)");
    monolith.batch_execute(&format!("{asleep}; {right}; {awake}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn old_tables_that_come_back_with_an_earlier_monolith_are_an_alarm_and_are_dropped_again() {
    let (mut split, monolith, service, mirror, folder) = archived().await;
    let shown = token(&allowed(&split));
    drop(monolith);
    keep_files(&mut split.pair.monolith);
    let monolith = split.pair.monolith().await;
    marked_again(&monolith, 1).await;
    let done = drop_stage(&split, &["--confirm", &shown]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    mirror.ended();
    assert_eq!(status(&split).0, Some(0));
    drop(monolith);
    put_files_back(&mut split.pair.monolith);
    let monolith = split.pair.monolith().await;

    let (exit, one) = status(&split);
    assert_eq!(exit, Some(1), "{one:#}");
    assert!(one["alarms"].to_string().contains("[dropped-tables-back]"), "{one:#}");
    assert!(one["next"].as_str().unwrap().ends_with("--stage drop"), "{one:#}");
    // Whoever could have written there since is not known.
    let gate = |state: &str| format!("UPDATE strangler.gate_one SET state = '{state}'");
    monolith.batch_execute(&gate("OPEN")).await.unwrap();
    refused(&drop_stage(&split, &[]), &["dropped-tables-back"]);
    monolith.batch_execute(&gate("FENCED")).await.unwrap();
    let manifest = folder.path().join("manifest.json");
    std::fs::rename(&manifest, folder.path().join("aside")).unwrap();
    let lost = drop_stage(&split, &[]);
    assert!(lost.exit == Some(3) && lost.stderr.contains("archive-missing"), "{}", lost.page());
    std::fs::rename(folder.path().join("aside"), &manifest).unwrap();

    rows_past_the_gate_are_not_lost(&split, &monolith).await;
    let again = allowed(&split);
    assert!(again.stdout.contains("\nDROP TABLE "), "{}", again.page());
    let done = drop_stage(&split, &["--confirm", &token(&again)]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    let ours = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'strangler%'";
    let left = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!((number(&monolith, ours).await, number(&monolith, left).await), (0, 0));
    assert_service_is_alone(&service).await;
    assert_eq!(status(&split).0, Some(0));
    let before = drop_stage(&split, &[]);
    assert!(before.exit == Some(0) && before.stderr.contains("dropped before"), "{}", before.page());
}

/// Takes the service to where it was before it was told that slice `one` is dropped.
async fn untold(service: &Client) {
    let gate = "UPDATE strangler.gate_one SET state = 'FENCED', owner = 'monolith', epoch = 1";
    service.batch_execute(gate).await.unwrap();
    service.batch_execute("DELETE FROM strangler.dropped WHERE slice = 'one'").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_service_that_was_set_back_to_before_it_was_told_learns_it_from_the_monolith() {
    let (split, monolith, service, mirror) = one_of_two_dropped().await;
    untold(&service).await;
    let (exit, one) = status(&split);
    assert_eq!(exit, Some(1), "{one:#}");
    assert!(one["alarms"].to_string().contains("[drop-forgotten]"), "{one:#}");
    assert!(one["next"].as_str().unwrap().ends_with("--stage drop"), "{one:#}");
    for arguments in [&[][..], &["--slice", "one"], &["--dry-run"]] {
        refused(&split.run("provision", arguments), &["drop-forgotten"]);
    }
    for verb in ["mirror", "flip", "arm", "disarm", "reconcile", "unretire", "abandon"] {
        refused(&split.run(verb, &["--slice", "one"]), &["drop-forgotten"]);
    }
    refused(&split.run("retire", &["--slice", "one", "--stage", "revoke"]), &["drop-forgotten"]);
    // The other slice is left alone by that.
    monolith.batch_execute("INSERT INTO lines VALUES (100, 1, 'after')").await.unwrap();
    let come = "SELECT count(*) FROM sales.lines WHERE id = 100";
    until("the line arrives", SOON, async || (number(&service, come).await == 1).then_some(())).await;

    let of_one = |arguments: &[&str]| drop_stage(&split, &[&["--slice", "one"], arguments].concat());
    let shown = of_one(&[]);
    assert_eq!(shown.exit, Some(0), "{}", shown.page());
    assert!(shown.stderr.contains("drop-forgotten"), "{}", shown.page());
    // Neither what dropped the tables stands for what the service lacks now, nor what was shown of another state of it.
    let dropped = "SELECT token FROM strangler.dropped WHERE slice = 'one'";
    let dropped: String = monolith.query_one(dropped, &[]).await.unwrap().get(0);
    refused(&of_one(&["--confirm", &dropped]), &[]);
    service.batch_execute("UPDATE strangler.gate_one SET epoch = 2").await.unwrap();
    refused(&of_one(&["--confirm", &token(&shown)]), &[]);
    let told = "SELECT count(*) FROM strangler.dropped";
    assert_eq!(number(&service, told).await, 0);
    let done = of_one(&["--confirm", &token(&of_one(&[]))]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    let open = "SELECT count(*) FROM strangler.gate_one WHERE state = 'OPEN'";
    assert_eq!(number(&service, open).await, 1);
    let (_, one) = status(&split);
    assert_eq!((&one["phase"], &one["alarms"]), (&"retired".into(), &serde_json::json!([])), "{one:#}");
    let provisioned = split.run("provision", &[]);
    assert_eq!(provisioned.exit, Some(0), "{}", provisioned.page());
    mirror.stop();
}

/// Both sides would be open by our own hand, and a mirror would take the empty tables for the newer ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_has_had_the_authority_is_not_provisioned_beside_a_monolith_that_knows_nothing() {
    let (split, monolith, service) = privilege::open(TABLES, SETUP).await;
    split.provision();
    monolith.batch_execute("DROP SCHEMA strangler CASCADE").await.unwrap();
    for (state, epoch) in [("OPEN", 2), ("FENCED", 3), ("OPEN", 1)] {
        let gate = format!("UPDATE strangler.gate_one SET state = '{state}', epoch = {epoch}");
        service.batch_execute(&gate).await.unwrap();
        for arguments in [&[][..], &["--dry-run"]] {
            let ended = split.run("provision", arguments);
            refused(&ended, &["service-ahead"]);
            let said = flat(&ended.stderr);
            assert!(said.contains(&format!("is {state} in epoch {epoch}")), "{}", ended.page());
        }
    }
    let made = "SELECT to_regclass('strangler.gate_one') IS NOT NULL";
    assert!(!monolith.query_one(made, &[]).await.unwrap().get::<_, bool>(0));
    service.batch_execute("UPDATE strangler.gate_one SET state = 'FENCED', epoch = 1").await.unwrap();
    let ended = split.run("provision", &["--dry-run"]);
    assert!(!ended.stderr.contains("service-ahead"), "{}", ended.page());
}
