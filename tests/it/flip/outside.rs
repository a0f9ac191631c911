//! Rows that the slice's filter does not take, on the side that is to be closed: nothing moves while there are any, whenever they come,
//! and the way back tells of those that it leaves behind.

use rustix::process::Signal;
use tokio_postgres::Client;

use super::bank::Side;
use super::crash::frozen;
use super::{UNPROVEN, armed_with, complete, owner, quiet};
use crate::support::binary::{Ended, flat};
use crate::support::split::{Background, Mirror, Split};
use crate::support::wait::{SOON, until};

const TABLES: &str = "{ f: { where: { region: [eu] } } }";

const SETUP: &str = "CREATE TABLE f (id int, region text, v int, PRIMARY KEY (id, region));
INSERT INTO f SELECT i, 'eu', i FROM generate_series(1, 50) i; ANALYZE";

const LEFT_OUT: &str = "(\"region\" IN ('eu'::text)) IS NOT TRUE";

/// Its page without line breaks holds these words.
fn said(ended: &Ended, exit: i32, words: &[&str]) {
    assert_eq!(ended.exit, Some(exit), "{}", ended.page());
    let page = flat(&ended.stderr);
    for words in words {
        assert!(page.contains(words), "{words}: {}", ended.page());
    }
}

/// Goes on, and finds the row that was written since it looked.
fn meets(late: Background, place: &str) {
    late.signal(Signal::CONT);
    let fact = format!("table f of the {place} has rows that the slice's filter does not take: {LEFT_OUT}");
    said(
        &late.ended(),
        3,
        &["(changed-meanwhile)", "since it was judged: ", &fact, "authority was not moved"],
    );
}

async fn on(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
}

async fn flipped() -> (Split, Client, Client, Mirror) {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    complete(&split, &mirror, &UNPROVEN);
    (split, monolith, service, mirror)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_filter_leaves_out_are_seen_while_the_writers_are_held() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    let late = frozen(&split, "flip-looked", Side::Service, &[]);
    on(&monolith, "INSERT INTO f VALUES (99, 'zz', 1)").await;
    meets(late, "monolith");
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("OPEN", "FENCED"));
    on(&monolith, "UPDATE f SET v = 2 WHERE id = 99; DELETE FROM f WHERE id = 99").await;
    complete(&split, &mirror, &UNPROVEN);

    let late = frozen(&split, "flip-looked", Side::Monolith, &[]);
    on(&service, "INSERT INTO f VALUES (99, 'zz', 1)").await;
    meets(late, "service");
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("FENCED", "OPEN"));
    on(&service, "DELETE FROM f WHERE id = 99").await;
    complete(&split, &mirror, &[&["--back"], &UNPROVEN as &[&str]].concat());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_the_service_wrote_outside_its_filter_keeps_authority_there_and_is_told_once() {
    let (split, monolith, service, mirror) = flipped().await;
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(0), "{}", status.page());
    on(&service, "INSERT INTO f VALUES (77, 'zz', 42); UPDATE f SET region = 'zz', v = 43 WHERE id = 7")
        .await;
    on(&service, "INSERT INTO f VALUES (78, NULLIF('yy', ''), 42)").await;
    quiet(&monolith, &service).await;
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(1), "{}", status.page());
    for words in [
        "the service wrote rows that the slice's filter forbids into f (first commit at ",
        "strangler reconcile plan.yaml",
    ] {
        assert!(flat(&status.stdout).contains(words), "{words}: {}", status.page());
    }
    let told = "SELECT count(*) FROM strangler.ledger WHERE body ->> 'alarm' = 'outside-filter'";
    assert_eq!(service.query_one(told, &[]).await.unwrap().get::<_, i64>(0), 1, "once");

    let back = split.run("flip", &["--back"]);
    said(&back, 3, &["(rows-not-back)", "(no-evidence)", LEFT_OUT, "the way back does not carry such rows"]);
    let back = split.run("flip", &[&["--back"], &UNPROVEN as &[&str]].concat());
    said(&back, 3, &["(rows-not-back)", "then strangler flip --back plan.yaml --slice one"]);
    let rehearsed = split.run("flip", &["--back", "--rehearse"]);
    assert!(rehearsed.page().contains("(rows-not-back)"), "{}", rehearsed.page());

    // What is put right there comes to the monolith, and a comparison says so.
    on(&service, "UPDATE f SET region = 'eu' WHERE region <> 'eu'").await;
    quiet(&monolith, &service).await;
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(0), "{}", status.page());
    complete(&split, &mirror, &["--back"]);
    let sql = "SELECT count(*), sum(v) FILTER (WHERE id IN (7, 77, 78)) FROM f";
    let row = monolith.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (52, 43 + 42 + 42));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_way_back_that_is_killed_behind_its_alarm_tells_it_once() {
    let (split, monolith, service, mirror) = flipped().await;
    mirror.kill();
    on(&service, "UPDATE f SET region = 'zz' WHERE id = 7").await;
    let dying = split.mirror(Some("outside-told"));
    let (status, log) = dying.ended();
    assert!(status.code().is_none(), "{log}");
    let told = "SELECT count(*) FROM strangler.ledger WHERE body ->> 'alarm' = 'outside-filter'";
    assert_eq!(service.query_one(told, &[]).await.unwrap().get::<_, i64>(0), 1);
    let _mirror = split.mirror(None);
    quiet(&monolith, &service).await;
    assert_eq!(service.query_one(told, &[]).await.unwrap().get::<_, i64>(0), 1);
    until("the monolith lacks the row", SOON, async || {
        let row = monolith.query_one("SELECT count(*) FROM f WHERE id = 7", &[]).await.unwrap();
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_takes_longer_than_writers_may_be_held_names_the_index_that_answers_at_once() {
    let setup =
        format!("{SETUP}; INSERT INTO f SELECT i, 'eu', i FROM generate_series(100, 150000) i; ANALYZE");
    let (split, monolith, service, mirror) = armed_with(TABLES, &setup, "").await;
    split.change_plan("write_pause_budget: 2s", "write_pause_budget: 1ms");
    let refused = split.run("flip", &UNPROVEN);
    let index = format!("CREATE INDEX CONCURRENTLY ON \"public\".\"f\" ((1)) WHERE {LEFT_OUT}");
    said(&refused, 3, &["(rows-stay-behind)", "write_pause_budget (1 ms)", &index]);
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("OPEN", "FENCED"));
    on(&monolith, &index).await;
    on(&monolith, "VACUUM ANALYZE f").await;
    split.change_plan("write_pause_budget: 1ms", "write_pause_budget: 2s");
    complete(&split, &mirror, &UNPROVEN);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_repair_leaves_rows_that_a_service_may_have_accepted_until_it_is_told_to_delete_them() {
    let (split, _monolith, service, mirror) = flipped().await;
    complete(&split, &mirror, &[&["--back"], &UNPROVEN as &[&str]].concat());
    on(
        &service,
        "BEGIN; ALTER TABLE f DISABLE TRIGGER aa_strangler_gate; INSERT INTO f VALUES (77, 'zz', 42); \
         ALTER TABLE f ENABLE ALWAYS TRIGGER aa_strangler_gate; COMMIT",
    )
    .await;
    let found = split.run("reconcile", &[]);
    assert_eq!(found.exit, Some(1), "{}", found.page());
    let flip = split.run("flip", &[]);
    said(
        &flip,
        3,
        &["(sides-differ)", "may have written the 1 row", "--repair --delete-misplaced, which DELETES them"],
    );
    let count = async || -> i64 {
        service.query_one("SELECT count(*) FROM f WHERE region = 'zz'", &[]).await.unwrap().get(0)
    };
    for arguments in [&["--repair", "--dry-run"] as &[&str], &["--repair"]] {
        let repaired = split.run("reconcile", arguments);
        said(&repaired, 1, &["1 row of f in the service outside the slice's filter", "It is left alone"]);
        assert_eq!(count().await, 1);
    }
    let repaired = split.run("reconcile", &["--repair", "--delete-misplaced"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    assert_eq!(count().await, 0);
}
