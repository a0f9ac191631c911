//! Slots, streams and copies that are lost in the middle of a move: what was brought is opened, what was not is never lost, and a
//! command always gets out.

use rustix::process::Signal;
use tokio_postgres::Client;

use super::bank::Side;
use super::crash::frozen;
use super::group::{BOTH, Stage};
use super::{UNPROVEN, armed_with, back, complete, flip, killed, owner, quiet};
use crate::support::binary::flat;
use crate::support::split::{Background, Mirror, Split};
use crate::support::tables::{self, assert_same};
use crate::support::wait::{LONG, SOON, until, until_blocking};

const TABLES: &str = "{ t: {} }";
const SETUP: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i";

/// Takes the slots of slice one away from whoever reads them in this database.
async fn drop_slots(client: &Client) {
    let ours =
        "FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE '%\\_one\\_%'";
    let end = format!("SELECT pg_terminate_backend(active_pid, 5000) {ours} AND active");
    until("the slot is dropped", SOON, async || {
        client.batch_execute(&end).await.unwrap();
        client.batch_execute(&format!("SELECT pg_drop_replication_slot(slot_name) {ours}")).await.ok()
    })
    .await;
}

async fn same(monolith: &Client, service: &Client) {
    let query = "TABLE t";
    assert_same(tables::Side { client: monolith, query }, tables::Side { client: service, query }).await;
}

/// What `status` says is to be done about the first slice.
fn next(split: &Split) -> String {
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    document["slices"][0]["next"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_is_settled_to_go_is_opened_also_where_a_slot_is_lost_when_it_has_everything() {
    let mut stage = Stage::armed().await;
    let banks = stage.banks();
    for to in [Side::Service, Side::Monolith] {
        let source = if to == Side::Service { &stage.monolith } else { &stage.services[0] };
        killed(&stage.split, "flip-settled", &[back(to), &BOTH].concat());
        stage.mirror.signal(Signal::STOP);
        assert_eq!(stage.owners().await, [(false, false); 2], "the mirror was quicker than two seconds");
        drop_slots(source).await;
        stage.mirror.signal(Signal::CONT);
        until("all of them are open", SOON, async || {
            stage.split.run("flip", &[back(to), &BOTH].concat());
            let all = if to == Side::Service { (false, true) } else { (true, false) };
            (stage.owners().await == [all; 2]).then_some(())
        })
        .await;
        for bank in &banks {
            bank.advances(to, 10).await;
        }
        if to == Side::Service {
            assert_eq!(next(&stage.split), "strangler mirror plan.yaml --slice one --rebuild");
            stage.mirror.kill();
            let anew = stage.split.mirror_with(Some("rewatch-recorded"), &["--slice", "one", "--rebuild"]);
            until_blocking("the watch is begun anew", SOON, || anew.exited());
            stage.mirror = stage.split.mirror(None);
            stage.quiet().await;
        } else {
            let arm = stage.split.run("arm", &["--slice", "one"]);
            assert_eq!(arm.exit, Some(0), "{}", arm.page());
        }
    }
    stage.close(banks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_is_settled_to_go_is_copied_again_where_a_table_of_it_is_no_whole_copy() {
    let stage = Stage::armed().await;
    killed(&stage.split, "flip-settled", &BOTH);
    stage.mirror.kill();
    let past_the_gate = async |balance: i64| {
        let update = format!("UPDATE accounts SET balance = {balance} WHERE id = 1");
        let sql = format!("SET SESSION AUTHORIZATION strangler_apply; {update}; RESET SESSION AUTHORIZATION");
        stage.monolith.batch_execute(&sql).await.unwrap();
    };
    stage.services[0]
        .batch_execute("ALTER TABLE accounts ADD CONSTRAINT small CHECK (balance < 5000)")
        .await
        .unwrap();
    past_the_gate(6000).await;
    let mirror = stage.split.mirror(None);
    let retry = "strangler mirror plan.yaml --slice one --retry accounts";
    until_blocking("status names what helps", SOON, || (next(&stage.split) == retry).then_some(()));
    let typed = stage.split.run("flip", &BOTH);
    assert_eq!(typed.exit, Some(5), "{}", typed.page());
    assert!(flat(&typed.stderr).contains("copies them again from the closed monolith"), "{}", typed.page());
    mirror.kill();
    stage.services[0].batch_execute("ALTER TABLE accounts DROP CONSTRAINT small").await.unwrap();
    past_the_gate(1000).await;
    let mirror = stage.split.mirror_with(None, &["--retry", "accounts"]);
    until("all of them are open", LONG, async || {
        assert!(mirror.exited().is_none(), "{}", mirror.log());
        (stage.owners().await == [(false, true); 2]).then_some(())
    })
    .await;
    let query = "TABLE accounts";
    let sides = [&stage.monolith, &stage.services[0]].map(|client| tables::Side { client, query });
    let [there, here] = sides;
    assert_same(there, here).await;
}

/// Authority is home again, and the stream from there lost its slot before it was turned.
async fn home_without_a_stream() -> (Split, Client, Client) {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    flip(&split, &mirror, Side::Service);
    service.batch_execute("UPDATE t SET v = -v WHERE id = 1").await.unwrap();
    quiet(&monolith, &service).await;
    killed(&split, "flip-opened", &["--back"]);
    mirror.kill();
    let mode = "SELECT mode FROM strangler.stream WHERE dir = 'forward'";
    let mode: String = service.query_one(mode, &[]).await.unwrap().get(0);
    assert_eq!(mode, "TRIPWIRE", "the mirror was quicker than two seconds");
    monolith.batch_execute("UPDATE t SET v = -v WHERE id = 2").await.unwrap();
    drop_slots(&monolith).await;
    (split, monolith, service)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn authority_that_came_home_before_the_lost_stream_was_turned_gets_another_copy() {
    let (split, monolith, service) = home_without_a_stream().await;
    let mirror = split.mirror(None);
    until("it says what helps", SOON, async || {
        mirror.log().contains("belongs to the monolith again").then_some(())
    })
    .await;
    mirror.kill();
    let rebuild = "strangler mirror plan.yaml --slice one --rebuild";
    assert!(next(&split).starts_with(rebuild), "{}", next(&split));
    let refused = split.run("flip", &UNPROVEN);
    assert_ne!(refused.exit, Some(0), "{}", refused.page());
    for point in ["rebuild-reset", "slot-created"] {
        let killed = split.mirror_with(Some(point), &["--rebuild"]);
        until_blocking(point, SOON, || killed.exited());
    }
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    monolith.batch_execute("UPDATE t SET v = -v WHERE id = 3").await.unwrap();
    quiet(&monolith, &service).await;
    same(&monolith, &service).await;
    let moved: i64 = service.query_one("SELECT count(*) FROM t WHERE v < 0", &[]).await.unwrap().get(0);
    assert_eq!(moved, 3);
    complete(&split, &mirror, &UNPROVEN);
    service.batch_execute("UPDATE t SET v = -v WHERE id = 4").await.unwrap();
    quiet(&monolith, &service).await;
    same(&monolith, &service).await;
}

fn refused(late: Background, words: &str) {
    late.signal(Signal::CONT);
    let ended = late.ended();
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    for words in ["(changed-meanwhile)", "authority was not moved", words] {
        assert!(flat(&ended.stderr).contains(words), "{words}: {}", ended.page());
    }
}

/// A running mirror would note the loss; nobody does before the flip asks.
async fn stopped(mirror: &Mirror, source: &Client) {
    mirror.signal(Signal::STOP);
    drop_slots(source).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn no_side_is_closed_that_the_new_owners_writes_could_not_come_back_to() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    // The slot goes when everything was judged, and nobody has noted it.
    let late = frozen(&split, "flip-writers-held", Side::Service, &[]);
    stopped(&mirror, &service).await;
    refused(late, "the stream from the service to the monolith has lost its slot");
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("OPEN", "FENCED"));
    mirror.signal(Signal::CONT);
    let arm = split.run("arm", &[]);
    assert_eq!(arm.exit, Some(0), "{}", arm.page());
    // Until the new way back is read, it may come between the judgement and the fence.
    until_blocking("the flip is made", SOON, || (split.run("flip", &UNPROVEN).exit == Some(0)).then_some(()));
    quiet(&monolith, &service).await;
    let late = frozen(&split, "flip-writers-held", Side::Monolith, &[]);
    stopped(&mirror, &monolith).await;
    refused(late, "the stream from the monolith to the service has lost its slot");
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("FENCED", "OPEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_begun_anew_while_the_writers_are_held_keeps_the_gate_open() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    complete(&split, &mirror, &UNPROVEN);
    quiet(&monolith, &service).await;
    let late = frozen(&split, "flip-drained", Side::Monolith, &[]);
    mirror.signal(Signal::STOP);
    let anew = "UPDATE strangler.stream SET state = 'creating' WHERE dir = 'forward'";
    service.batch_execute(anew).await.unwrap();
    refused(late, "the stream from the monolith to the service");
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("FENCED", "OPEN"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_abort_says_that_authority_is_back_also_where_the_way_back_is_lost() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    complete(&split, &mirror, &UNPROVEN);
    quiet(&monolith, &service).await;
    killed(&split, "flip-fenced", &["--back"]);
    mirror.kill();
    drop_slots(&service).await;
    let lost = "UPDATE strangler.stream SET state = 'gap', detail = 'its slot is gone' WHERE dir = 'reverse'";
    monolith.batch_execute(lost).await.unwrap();
    for already in ["", " already"] {
        let aborted = split.run("flip", &["--abort"]);
        assert_eq!(aborted.exit, Some(0), "{}", aborted.page());
        let said = format!("one: the service has authority{already}, epoch 4");
        assert!(aborted.stdout.contains(&said), "{}", aborted.page());
    }
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("FENCED", "OPEN"));
}
