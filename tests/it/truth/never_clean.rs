//! Whatever happens in the middle: a run that did not see everything is never clean, and says why.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use strangler::cluster::{Cluster, StopMode};
use strangler::reconcile::finding::FindingKind;
use strangler::reconcile::report::json::Table;
use strangler::reconcile::verdict::Coverage;
use tokio_postgres::Client;

use super::found::Run;
use super::stage::corrupt;
use crate::support::binary::flat;
use crate::support::split::{Background, Mirror, Split};
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE ROLE strangler_apply LOGIN; CREATE TABLE a (id int PRIMARY KEY, v int);
    INSERT INTO a SELECT i, i FROM generate_series(1, 3000) i;
    CREATE TABLE b (id int PRIMARY KEY, v int); INSERT INTO b SELECT i, i FROM generate_series(1, 100) i; ANALYZE";
const TABLES: &str = "{ a: {}, b: {} }";

/// Two small tables, copied.
pub async fn open() -> (Split, Client, Client, Mirror) {
    let (split, monolith, service) = Split::launch(TABLES, SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    (split, monolith, service, mirror)
}

/// A run that stands in the middle: it waits for a transaction of the application to end.
pub struct Held {
    pub split: Split,
    pub monolith: Client,
    pub service: Client,
    pub mirror: Mirror,
    pub background: Background,
    pub blocker: Client,
}

impl Held {
    pub async fn start(arguments: &[&str]) -> Self {
        let (split, monolith, service, mirror) = open().await;
        let blocker = split.pair.monolith().await;
        blocker.batch_execute("BEGIN").await.unwrap();
        let all = ["--max-load", "0", "--parallel", "1", "--format", "json", "--list", "100000"];
        let background = split.start("reconcile", &[&all, arguments].concat());
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'strangler reconcile' \
                   AND query LIKE '%virtualxid%')";
        until("the run waits for the blocker", SOON, async || {
            monolith.query_one(sql, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
        Self { split, monolith, service, mirror, background, blocker }
    }

    /// Lets the run go on, and gives what it said.
    async fn goes_on(self) -> (Run, Split, Client, Mirror) {
        let Self { split, service, mirror, background, blocker, .. } = self;
        blocker.batch_execute("ROLLBACK").await.unwrap();
        (Run::read(background.ended()), split, service, mirror)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn values_that_are_rewritten_under_their_type_are_not_clean() {
    let held = Held::start(&[]).await;
    held.monolith.batch_execute("ALTER TABLE a ALTER v TYPE int USING v + 1").await.unwrap();
    let (run, split, _service, _mirror) = held.goes_on().await;
    assert!(matches!(run.ended.exit, Some(1 | 5)), "{}", run.ended.page());
    let reason = "the definition of table a changed on the monolith's side";
    assert!(run.reasons().contains(reason), "{}", run.ended.page());
    // The mirror stops over rows that changed without an event, so a later run is either about a copy that has the old
    // values, or about one that no mirror writes.
    let later = Run::of(&split, &[]);
    match later.ended.exit {
        Some(1) => assert_eq!(later.counts(), [(FindingKind::Differs, 3000)].into()),
        exit => assert_eq!(exit, Some(5), "{}", later.ended.page()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_comes_to_the_service_makes_the_run_incomplete() {
    let held = Held::start(&["--strict"]).await;
    held.service.batch_execute("ALTER TABLE a ADD COLUMN extra int").await.unwrap();
    let (run, _split, _service, _mirror) = held.goes_on().await;
    run.assert_incomplete(&["the definition of table a changed on the service's side"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_slot_makes_the_run_incomplete() {
    let held = Held::start(&[]).await;
    let sql =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL";
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    until("the slot is dropped", SOON, async || {
        held.monolith.batch_execute(sql).await.unwrap();
        held.monolith.batch_execute(drop).await.ok()
    })
    .await;
    held.monolith.batch_execute("UPDATE a SET v = -1 WHERE id = 1").await.unwrap();
    let (run, split, _service, _mirror) = held.goes_on().await;
    run.assert_incomplete(&["gap", "no mirror", "has not come to position"]);
    let later = Run::of(&split, &[]);
    assert!(matches!(later.ended.exit, Some(1 | 5)), "{}", later.ended.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_restarted_in_the_middle_makes_the_run_incomplete() {
    let mut held = Held::start(&[]).await;
    held.split.pair.service.stop(StopMode::Immediate).unwrap();
    held.split.pair.service.start().unwrap();
    let (run, split, _, mirror) = held.goes_on().await;
    run.assert_incomplete(&["the service could not be read", "connection", "closed"]);
    // And then there is nothing wrong.
    let service = split.pair.service().await;
    let monolith = split.pair.monolith().await;
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &[]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_that_is_restarted_in_the_middle_makes_the_run_incomplete() {
    let mut held = Held::start(&[]).await;
    held.split.pair.monolith.stop(StopMode::Immediate).unwrap();
    held.split.pair.monolith.start().unwrap();
    let run = Run::read(held.background.ended());
    run.assert_incomplete(&["the monolith could not be read", "connection", "closed"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_mirror_that_is_frozen_is_waited_for_once_and_one_that_was_stopped_or_died_is_named() {
    let held = Held::start(&[]).await;
    held.mirror.signal(Signal::STOP);
    // So old that no chunk may rest on the meeting before it.
    let silent = "SELECT clock_timestamp() - seen_at > interval '3 s' FROM strangler.mirror_process";
    until("the mirror gives no sign of life", SOON, async || {
        held.service.query_one(silent, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    let began = Instant::now();
    let (run, split, service, mirror) = held.goes_on().await;
    assert!(began.elapsed() < Duration::from_secs(50), "it took {:?}", began.elapsed());
    run.assert_incomplete(&["the mirror has not come to position"]);
    let words = flat(&run.ended.stderr);
    let next = "strangler mirror plan.yaml --slice one --take-over replaces one that is frozen";
    assert!(words.contains(next), "{words}");
    let said = &run.document.slices[0];
    assert_eq!(said.reasons.len(), 1, "{said:?}");
    let so = |table: &Table| table.reasons == said.reasons && table.coverage == Coverage::CutShort;
    assert!(said.tables.iter().all(so), "{said:?}");
    mirror.kill();
    let run = Run::of(&split, &[]);
    run.assert_incomplete(&[
        "no mirror is running for the stream from the monolith into the service: the last one, process",
    ]);
    let mirror = split.mirror(None);
    mirror.caught_up(&split.pair.monolith().await, &service).await;
    Run::of(&split, &[]).assert_clean();
    mirror.stop();
    Run::of(&split, &[]).assert_incomplete(&[
        "no mirror is running for the stream from the monolith into the service: the last one was stopped",
    ]);
    let repair = split.run("reconcile", &["--repair"]);
    assert!(!matches!(repair.exit, Some(0)), "{}", repair.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_still_copied_or_has_diverged_is_named() {
    let (split, monolith, service) = Split::launch(TABLES, SETUP).await;
    split.provision();
    Run::of(&split, &[]).assert_incomplete(&[
        "no mirror is running for the stream from the monolith into the service, and none ever was",
    ]);
    let mirror = split.mirror_as(None, &["--rows-per-piece", "1"]);
    until("a table is being copied", SOON, async || {
        let sql = "SELECT coalesce(bool_or(state = 'copying' AND source_table = 'a'), false) FROM strangler.mirror_table";
        service.query_one(sql, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    Run::of(&split, &[]).assert_incomplete(&["the table is copying", "the table is pending"]);
    mirror.stop();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &[]).assert_clean();

    corrupt(&service, "DELETE FROM b WHERE id = 5").await;
    monolith.batch_execute("UPDATE b SET v = 0 WHERE id = 5").await.unwrap();
    until("the table has diverged", SOON, async || {
        let sql = "SELECT bool_or(state = 'diverged') FROM strangler.mirror_table";
        service.query_one(sql, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    Run::of(&split, &[]).assert_incomplete(&["the table is diverged"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn without_the_right_to_lock_rows_a_difference_is_incomplete_and_the_grant_is_named() {
    let (split, monolith, service, _mirror) = open().await;
    monolith.batch_execute("REVOKE ALL ON a FROM strangler_apply").await.unwrap();
    Run::of(&split, &[]).assert_clean();
    corrupt(&service, "UPDATE a SET v = 0 WHERE id = 5").await;
    let run = Run::of(&split, &[]);
    run.assert_incomplete(&["run on the monolith: GRANT"]);
    let reasons = run.reasons();
    let grant = reasons.lines().find_map(|line| line.split_once("run on the monolith: ")).unwrap().1;
    monolith.batch_execute(grant).await.unwrap();
    assert_eq!(Run::of(&split, &[]).counts(), [(FindingKind::Differs, 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_that_is_locked_for_too_long_makes_the_run_incomplete() {
    let held = Held::start(&[]).await;
    let locker = held.split.pair.service().await;
    locker.batch_execute("BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (run, split, _service, _mirror) = held.goes_on().await;
    run.assert_incomplete(&["statement timeout", "lock timeout", "has not come to position"]);
    locker.batch_execute("ROLLBACK").await.unwrap();
    let again = tokio::time::timeout(Duration::from_secs(120), async { Run::of(&split, &[]) }).await.unwrap();
    again.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_of_a_slice_is_refused_and_told_who_has_it() {
    let held = Held::start(&[]).await;
    let second = held.split.run("reconcile", &[]);
    assert_eq!(second.exit, Some(3), "{}", second.page());
    let pid = format!("process {}", held.background.id());
    let named = second.stderr.contains("another reconciliation of slice one") && second.stderr.contains(&pid);
    assert!(named, "{}", second.stderr);
    held.goes_on().await.0.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_compared_at_all_is_refused() {
    let (mut split, monolith, service) = Split::launch(TABLES, SETUP).await;
    let early = split.run("reconcile", &[]);
    assert!(early.exit == Some(3) && early.stderr.contains("not provisioned"), "{}", early.page());
    assert!(early.stderr.contains("strangler provision plan.yaml"), "{}", early.stderr);
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let table = split.run("reconcile", &["--table", "aa"]);
    assert!(table.exit == Some(2) && table.stderr.contains("aa"), "{}", table.page());
    let (source, target) = (split.pair.monolith_url(), split.pair.service_url());
    split.lead("MONOLITH", &target);
    split.lead("SERVICE", &source);
    let crossed = split.run("reconcile", &[]);
    assert_eq!(crossed.exit, Some(3), "{}", crossed.page());
    let nowhere = "postgres://postgres@127.0.0.1:1/none";
    split.lead("MONOLITH", &source);
    split.lead("SERVICE", nowhere);
    assert_eq!(split.run("reconcile", &[]).exit, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_renamed_in_the_middle_makes_the_run_incomplete() {
    for (side, sql) in [
        ("service", "ALTER TABLE a RENAME v TO w"),
        ("monolith", "ALTER TABLE a RENAME v TO w"),
        ("service", "ALTER TABLE a RENAME TO z"),
    ] {
        let held = Held::start(&[]).await;
        let client = if side == "service" { &held.service } else { &held.monolith };
        client.batch_execute(sql).await.unwrap();
        let (run, _split, _service, _mirror) = held.goes_on().await;
        let changed = format!("the definition of table a changed on the {side}'s side");
        run.assert_incomplete(&[&changed]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_service_does_not_have_is_not_left_out_in_silence() {
    let (split, monolith, _service, _mirror) = open().await;
    monolith.batch_execute("ALTER TABLE a ADD COLUMN late int DEFAULT 7").await.unwrap();
    let ended = split.run("reconcile", &[]);
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("strangler provision plan.yaml"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_lost_everything_is_counted_in_full_and_repaired() {
    let (split, _monolith, service, _mirror) = open().await;
    corrupt(&service, "TRUNCATE a").await;
    let run = Run::read(split.run("reconcile", &["--format", "json", "--list", "5", "--repair"]));
    assert_eq!(run.counts(), [(FindingKind::Missing, 3000)].into(), "{}", run.ended.page());
    let slice = &run.document.slices[0];
    assert_eq!((slice.findings.len(), slice.not_listed, run.ended.exit), (5, 2995, Some(0)));
    Run::of(&split, &["--strict"]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_a_crash_has_emptied_is_proven_equal_no_longer() {
    let (mut split, monolith, service, mirror) = open().await;
    Run::of(&split, &[]).assert_clean();
    mirror.stop();
    service.batch_execute("ALTER TABLE a SET UNLOGGED").await.unwrap();
    split.pair.service.stop(StopMode::Immediate).unwrap();
    split.pair.service.start().unwrap();
    let service = split.pair.service().await;
    service.batch_execute("ALTER TABLE a SET LOGGED").await.unwrap();
    let left: i64 = service.query_one("SELECT count(*) FROM a", &[]).await.unwrap().get(0);
    assert_eq!(left, 0, "the crash has emptied it");
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let status = split.run("status", &[]);
    let emptied =
        "the copy of table a on the service's side was emptied or written anew, and not by the mirror";
    assert!(status.stdout.contains(emptied), "{}", status.page());
    assert!(!status.stdout.contains("both sides are proven equal"), "{}", status.page());
    let run = Run::of(&split, &["--repair"]);
    assert_eq!(run.counts(), [(FindingKind::Missing, 3000)].into(), "{}", run.ended.page());
    Run::of(&split, &[]).assert_clean();
    let status = split.run("status", &[]);
    assert!(status.stdout.contains("both sides are proven equal"), "{}", status.page());
}
