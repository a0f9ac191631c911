//! What speaks against a stage is asked again behind the last wait: whatever comes up while a stage, or a flip back, waits for
//! somebody else stops it.

use std::cell::RefCell;

use strangler::cluster::Cluster;
use tokio_postgres::Client;

use super::rights::granting;
use super::{entries, flipped_back_while_rights_go, refused, revoke, rights, ripe, token};
use crate::support::binary::flat;
use crate::support::cluster::{Pair, connect};
use crate::support::split::Split;
use crate::support::wait::{SOON, until, until_blocking};

/// A stage that was shown, and waits for somebody who changes rights. Meanwhile `happens`; then that one goes away without having
/// changed any, and the stage refuses because of `code`.
async fn while_it_waits(split: &Split, monolith: &Client, happens: impl AsyncFnOnce(), code: &str) {
    let before = rights(monolith).await;
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'strangler retire' AND wait_event_type = 'Lock')";
    // What the case before has read is in the server's counters some time later, and stops a stage before it waits.
    let (other, stage) = until("a stage is allowed, and waits", SOON, async || {
        let preview = revoke(split, &[]);
        if preview.exit != Some(0) {
            return None;
        }
        let other = granting(split, "GRANT DELETE ON moves TO shop").await;
        let stage = split.start("retire", &["--stage", "revoke", "--confirm", &token(&preview)]);
        let stage = RefCell::new(stage);
        let waiting = until("it waits, or has ended", SOON, async || {
            let waits = monolith.query_one(waits, &[]).await.unwrap().get::<_, bool>(0);
            (waits || stage.borrow_mut().has_ended()).then_some(waits)
        });
        waiting.await.then(|| (other, stage.into_inner()))
    })
    .await;
    happens().await;
    other.batch_execute("ROLLBACK").await.unwrap();
    refused(&stage.ended(), &[code]);
    assert_eq!(rights(monolith).await, before, "{code}: nothing was done");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_comes_up_while_a_stage_waits_for_others_stops_it() {
    let (split, monolith, service, mirror) = ripe().await;
    split.change_plan("quiet_period: 0s", "quiet_period: 1s");

    let shop = connect(&split.pair.monolith.url_as("shop", "", Pair::MONOLITH)).await;
    let reads = async || shop.batch_execute("BEGIN; SELECT FROM accounts LIMIT 1").await.unwrap();
    while_it_waits(&split, &monolith, reads, "still-used").await;
    shop.batch_execute("ROLLBACK").await.unwrap();

    let view = "SET ROLE retail_owner; CREATE VIEW late AS SELECT id FROM accounts; RESET ROLE";
    let depends = async || monolith.batch_execute(view).await.unwrap();
    while_it_waits(&split, &monolith, depends, "retire-view").await;
    monolith.batch_execute("DROP VIEW late").await.unwrap();

    let state = async |state: &str| {
        let sql =
            format!("UPDATE strangler.mirror_table SET state = '{state}' WHERE source_table = 'accounts'");
        service.batch_execute(&sql).await.unwrap();
    };
    while_it_waits(&split, &monolith, async || state("diverged").await, "no-evidence").await;
    state("live").await;

    approved(&split);
    // A flip back that has closed the service; no mirror is there to finish it.
    split.change_plan("quiet_period: 1s", "quiet_period: 0s");
    mirror.stop();
    let gate = async |state: &str| {
        service.batch_execute(&format!("UPDATE strangler.gate_one SET state = '{state}'")).await.unwrap();
    };
    while_it_waits(&split, &monolith, async || gate("FENCED").await, "not-flipped").await;
    gate("OPEN").await;
    assert_eq!(entries(&split, "retire").len(), 0);
}

/// Where the plan wants an approval, a stage names who gave it.
fn approved(split: &Split) {
    split.change_plan("quiet_period: 1s", "approval: required, quiet_period: 1s");
    refused(&revoke(split, &[]), &["not-approved"]);
    // What was read before comes into the server's counters some seconds later.
    let shown = until_blocking("nobody uses the tables any more", SOON, || {
        let shown = revoke(split, &["--approved-by", "Ada"]);
        let used = shown.stderr.contains("(still-used)");
        (!used).then_some(shown)
    });
    assert_eq!(shown.exit, Some(0), "{}", shown.page());
    let typed = format!("--stage revoke --approved-by Ada --confirm {}", token(&shown));
    assert!(flat(&shown.stderr).contains(&typed), "{}", shown.page());
    split.change_plan("approval: required, quiet_period: 1s", "quiet_period: 1s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_back_sees_that_the_rights_went_before_it_closes_the_service() {
    let (split, monolith, service, mirror) = ripe().await;
    let ended = flipped_back_while_rights_go(&split, &monolith, "flip-writers-held").await;
    refused(&ended, &[]);
    let said = flat(&ended.stderr);
    assert!(said.contains("the rights on the monolith's old tables were taken away"), "{}", ended.page());
    service.batch_execute("UPDATE sales.accounts SET balance = 1 WHERE id = 1").await.unwrap();
    mirror.stop();
}
