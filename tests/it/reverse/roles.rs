//! The way back under the roles that an operator gives it, none of which is a superuser's.

use strangler::cluster::Cluster as _;

use super::stage::{SCHEMA, Stage, TABLES, Way};
use crate::support::cluster::Pair;
use crate::support::split::Split;

#[tokio::test(flavor = "multi_thread")]
async fn the_apply_role_is_all_that_the_way_back_needs() {
    let pair = Pair::launch().await;
    let here = pair.monolith.url_as("strangler_apply", "", Pair::MONOLITH);
    let there = pair.service.url_as("strangler_apply", "", Pair::SERVICE);
    let plan = format!(
        "version: 1\nplan: split\n\
         monolith: {{ admin: \"${{MONOLITH}}\", read: \"${{MONOLITH}}\", apply: \"${{HERE}}\" }}\n\
         services: {{ service: {{ admin: \"${{SERVICE}}\", apply: \"${{THERE}}\" }} }}\n\
         slices: {{ one: {{ service: service, tables: {TABLES} }} }}\n"
    );
    let (mut split, monolith, service) = Split::between(pair, &plan, SCHEMA).await;
    split.lead("HERE", &here);
    split.lead("THERE", &there);
    split.provision();
    // What `arm` asks an administrator for.
    service.batch_execute("ALTER ROLE strangler_apply REPLICATION").await.unwrap();
    let stage = Stage::armed_as_usual((split, monolith, service)).await;
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    stage
        .on_service("UPDATE orders SET note = 'back'; TRUNCATE pairs; DELETE FROM happenings WHERE id < 20")
        .await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    stage.write_stray("events", "DELETE FROM events WHERE id = 30").await;
    stage.watched(Way::Forward).await;
    assert_eq!(stage.alarms().await, ["forward events delete {30,2024-12-31}"]);
    let repaired = stage.split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    let proven = stage.split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    let status = stage.split.run("status", &[]);
    assert!(!status.stdout.contains("somebody wrote"), "a clean verdict clears it: {}", status.page());
    assert_eq!(status.exit, Some(0), "{}", status.page());
    mirror.stop();
}
