//! `arm` beside sessions that hold what it needs: it names them, leaves them alone, and gives up in time.

use rustix::process::Signal;
use tokio_postgres::Client;

use super::stage::{Stage, rows};
use crate::support::binary::Ended;
use crate::support::split::Background;
use crate::support::wait::{SOON, until};

/// A session of this name that holds what the statement takes, long enough to be let alone.
async fn holder(stage: &Stage, name: &str, sql: &str) -> (Client, i32) {
    let client = stage.split.pair.monolith().await;
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    client.batch_execute(&format!("SET application_name = '{name}'; BEGIN")).await.unwrap();
    client.batch_execute(sql).await.unwrap();
    (client, pid)
}

async fn old(stage: &Stage, pid: i32) {
    let sql = "SELECT clock_timestamp() - xact_start > interval '1.1 s' FROM pg_stat_activity WHERE pid = $1";
    until("the holder's transaction is old", SOON, async || {
        let row = stage.monolith.query_one(sql, &[&pid]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
}

/// Arms until its time is over, which must be said with the holder.
fn gives_up(stage: &Stage, words: &[&str]) -> Ended {
    let ended = stage.run("arm", &["--wait", "1s"]);
    assert_eq!(ended.exit, Some(4), "{}", ended.page());
    for word in words {
        assert!(ended.stderr.contains(word), "{word} is not in {}", ended.page());
    }
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_writer_is_named_and_let_alone_and_arm_gives_up_in_time() {
    let stage = Stage::mirrored().await;
    let (writer, pid) = holder(&stage, "night job", "UPDATE lines SET product = 1 WHERE id = 1").await;
    old(&stage, pid).await;
    let kill = format!("SELECT pg_terminate_backend({pid})");
    let process = format!("process {pid} (night job, idle in transaction");
    let words = ["error[arm-waited]", "lines", &process, "UPDATE lines SET product = ?", &kill];
    gives_up(&stage, &words);
    writer.batch_execute("COMMIT").await.unwrap();
    stage.succeed("arm", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_reader_holds_up_what_needs_the_table_alone_and_nobody_queues_behind() {
    let stage = Stage::mirrored().await;
    let (reader, pid) = holder(&stage, "report", "SELECT count(*) FROM products").await;
    old(&stage, pid).await;
    let arming = stage.split.start("arm", &["--slice", "two", "--wait", "3s"]);
    let (app, watcher) = (stage.app().await, stage.split.pair.monolith().await);
    let hung = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'products'::regclass AND tgname = 'aa_strangler_gate'";
    until("a table that is read gets its gate", SOON, async || {
        (rows(&watcher, hung).await == ["1"]).then_some(())
    })
    .await;
    for id in 1..200 {
        app.batch_execute("UPDATE products SET name = 'x' WHERE id = 1").await.unwrap();
        let asked = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted \
                     AND l.mode = 'AccessExclusiveLock' AND l.relation = 'products'::regclass";
        assert_eq!(
            rows(&watcher, asked).await,
            ["0"],
            "{id}: nothing is asked for that would not be had soon"
        );
    }
    let ended = arming.ended();
    assert_eq!(ended.exit, Some(4), "{}", ended.page());
    assert!(
        ended.stderr.contains(&format!("process {pid} (report, idle in transaction")),
        "{}",
        ended.page()
    );
    reader.batch_execute("COMMIT").await.unwrap();
    stage.succeed("arm", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_is_waited_for_and_never_cancelled() {
    let stage = Stage::mirrored().await;
    stage
        .monolith
        .batch_execute("INSERT INTO lines SELECT i, 1, 1 FROM generate_series(1000, 60000) i; DELETE FROM lines WHERE id > 900")
        .await
        .unwrap();
    let vacuum = stage.split.pair.monolith().await;
    let pid: i32 = vacuum.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let slow = tokio::spawn(async move {
        let settings =
            "SET application_name = 'vacuum'; SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1";
        vacuum.batch_execute(settings).await.unwrap();
        vacuum.batch_execute("VACUUM lines").await
    });
    let progress = "SELECT count(*) FROM pg_stat_progress_vacuum";
    until("vacuum is at work", SOON, async || (rows(&stage.monolith, progress).await == ["1"]).then_some(()))
        .await;
    let ended = gives_up(&stage, &[&format!("process {pid} (vacuum, active"), "let it finish"]);
    assert!(!ended.stderr.contains("pg_terminate_backend"), "{}", ended.page());
    assert!(!slow.is_finished(), "vacuum goes on");
    stage.monolith.execute("SELECT pg_cancel_backend($1)", &[&pid]).await.unwrap();
    let _ = slow.await.unwrap();
    stage.succeed("arm", &[]);
}

async fn waits(stage: &Stage, arming: &Background, sql: &str) {
    until("arm waits", SOON, async || (rows(&stage.monolith, sql).await == ["t"]).then_some(())).await;
    assert!(arming.id() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_whole_steps_that_the_next_run_and_disarm_understand() {
    let stage = Stage::mirrored().await;
    let before = stage.fingerprint().await;
    for verb in ["arm", "disarm"] {
        let (writer, pid) = holder(&stage, "job", "UPDATE lines SET product = 1 WHERE id = 1").await;
        old(&stage, pid).await;
        let arming = stage.split.start("arm", &[]);
        // The first table of the slice is guarded, the second one is held.
        let half =
            "SELECT count(*) = 1 FROM pg_trigger WHERE tgname = 'aa_strangler_gate' AND tgparentid = 0";
        waits(&stage, &arming, half).await;
        arming.signal(Signal::INT);
        let ended = arming.ended();
        assert_eq!(ended.exit, Some(130), "{}", ended.page());
        assert!(ended.stderr.contains("strangler disarm plan.yaml to go back"), "{}", ended.page());
        writer.batch_execute("ROLLBACK").await.unwrap();
        stage.succeed(verb, &[]);
        if verb == "arm" {
            assert!(stage.succeed("arm", &[]).contains("nothing was missing"));
            stage.succeed("disarm", &[]);
        }
        assert_eq!(stage.fingerprint().await, before, "after {verb}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_slot_says_whom_it_waits_for_and_leaves_nothing_when_it_gives_up() {
    let stage = Stage::mirrored().await;
    let other = stage.split.pair.service().await;
    let sql = "SET application_name = 'elsewhere'; BEGIN; SELECT pg_current_xact_id()";
    other.batch_execute(sql).await.unwrap();
    let ended = gives_up(&stage, &["create the reverse slot", "(elsewhere, database service)"]);
    assert!(ended.stderr.contains("--wait"), "{}", ended.page());
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(rows(&stage.service, slots).await, ["0"], "{}", ended.page());
    let gates = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'aa_strangler%'";
    assert_eq!(rows(&stage.monolith, gates).await, ["0"], "the application has paid nothing yet");
    other.batch_execute("COMMIT").await.unwrap();
    stage.succeed("arm", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_frozen_under_its_locks_holds_the_application_for_a_second() {
    let stage = Stage::mirrored().await;
    let bare = stage.fingerprint().await;
    let app = stage.app().await;
    app.batch_execute("SET statement_timeout = '10s'").await.unwrap();
    for verb in ["arm", "disarm"] {
        let shown = stage.succeed(verb, &["--dry-run"]);
        let (before, _) = shown.split_once("aa_strangler_gate").unwrap();
        // Every transaction of a step begins with it.
        let number = before.matches("SET LOCAL search_path").count();
        let mut command = stage.split.command(&[verb, "plan.yaml"]);
        command.env("STRANGLER_FREEZE", format!("arm-before-commit:{number}"));
        let mut frozen = stage.split.start_command(command);
        assert!(frozen.stands_still(), "{verb}: {}", frozen.ended().page());
        let write = "UPDATE lines SET product = 1; UPDATE \"Orders\" SET note = 'x'; \
                     UPDATE moves SET product = 1; UPDATE products SET name = 'x'";
        app.batch_execute(write).await.unwrap_or_else(|error| panic!("{verb} holds writers: {error:?}"));
        assert!(!frozen.has_ended());
        frozen.signal(Signal::CONT);
        let ended = frozen.ended();
        assert_eq!(ended.exit, Some(4), "{}", ended.page());
        assert!(ended.stderr.contains("error[database-unreachable]"), "{}", ended.page());
        assert!(ended.stderr.contains("gate"), "it was frozen under other locks: {}", ended.page());
        assert!(ended.stderr.contains("type the same command again"), "{}", ended.page());
        stage.succeed(verb, &[]);
        if verb == "arm" {
            assert!(stage.succeed("arm", &[]).contains("nothing was missing"));
        }
    }
    assert_eq!(stage.fingerprint().await, bare);
}
