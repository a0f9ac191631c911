//! A monolith that is set back to an earlier state and writes on: its identity and timeline are those that were mirrored.

use std::path::Path;
use std::process::Command;

use strangler::cluster::{Cluster, StopMode};
use tokio_postgres::Client;

use crate::support::binary::flat;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)";

fn copy_folder(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success(), "{from:?}");
}

/// Keeps a copy of the monolith's files as they are now.
async fn kept(split: &mut Split) -> Client {
    split.pair.monolith.stop(StopMode::Fast).unwrap();
    copy_folder(&split.pair.monolith.data_dir(), &split.pair.monolith.dir().join("copy"));
    split.pair.monolith.start().unwrap();
    split.pair.monolith().await
}

/// Puts that copy back in their place.
async fn put_back(split: &mut Split) -> Client {
    let data = split.pair.monolith.data_dir();
    split.pair.monolith.stop(StopMode::Fast).unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(split.pair.monolith.dir().join("copy"), &data).unwrap();
    split.pair.monolith.start().unwrap();
    split.pair.monolith().await
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The mark that has come down the stream grows.
async fn marked_again(service: &Client) {
    let mark = "SELECT coalesce(max(mark), 0) FROM strangler.lineage WHERE dir = 'forward'";
    let before = number(service, mark).await;
    until("a mark has come down the stream", SOON, async || {
        (number(service, mark).await > before).then_some(())
    })
    .await;
}

/// The log goes past what the service has applied, as it does when somebody takes a base backup.
async fn writes_past(monolith: &Client, applied: &str) {
    let wide = "SELECT pg_logical_emit_message(true, 'wide', repeat('x', 100000)), pg_switch_wal()";
    let past = format!("SELECT pg_current_wal_flush_lsn() > '{applied}'::pg_lsn");
    while !monolith.query_one(&past, &[]).await.unwrap().get::<_, bool>(0) {
        monolith.query_one(wide, &[]).await.unwrap();
    }
}

/// Whoever takes the slice back keeps the rows that the monolith lacks.
fn copies_stay(split: &Split) {
    let preview = split.run("abandon", &["--slice", "one"]);
    assert_eq!(preview.exit, Some(0), "{}", preview.page());
    assert!(!preview.stdout.contains("DROP TABLE \"public\".\"t\""), "{}", preview.page());
    let said = flat(&preview.stderr);
    assert!(
        said.contains("(table-stays)") && said.contains("was set back to an earlier state"),
        "{}",
        preview.page()
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_monolith_whose_files_were_put_back_is_not_followed_until_it_is_copied_again() {
    let (mut split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    marked_again(&service).await;
    drop(monolith);
    let monolith = kept(&mut split).await;
    monolith.batch_execute("INSERT INTO t SELECT generate_series(101, 200)").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    marked_again(&service).await;
    marked_again(&service).await;
    mirror.stop();
    let applied: String =
        service.query_one("SELECT applied_lsn::text FROM strangler.stream", &[]).await.unwrap().get(0);
    drop(monolith);
    let monolith = put_back(&mut split).await;
    writes_past(&monolith, &applied).await;
    assert_eq!(number(&monolith, "SELECT count(*) FROM t").await, 100);

    copies_stay(&split);
    for _ in 0..2 {
        let (status, log) = split.mirror(None).ended();
        assert_ne!(status.code(), Some(0), "{log}");
        assert!(log.contains("the monolith was set back to an earlier state"), "{log}");
        assert!(log.contains("--rebuild"), "{log}");
    }
    copies_stay(&split);
    let told = split.run("status", &[]);
    assert!(told.exit == Some(1) && told.stdout.contains("set back to an earlier state"), "{}", told.page());
    let mirror = split.mirror_with(None, &["--rebuild"]);
    until("the copy is what the monolith has", SOON, async || {
        (number(&service, "SELECT count(*) FROM t").await == 100).then_some(())
    })
    .await;
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_monolith_whose_files_were_put_back_behind_what_a_copy_has_read_is_not_followed() {
    let (mut split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let (status, log) = split.mirror(Some("stream-row-running")).ended();
    assert_eq!(status.code(), None, "{log}");
    drop(monolith);
    let monolith = kept(&mut split).await;
    monolith.batch_execute("INSERT INTO t SELECT generate_series(101, 200)").await.unwrap();
    let (status, log) = split.mirror(Some("whole-landed")).ended();
    assert_eq!(status.code(), None, "{log}");
    assert_eq!(number(&service, "SELECT count(*) FROM t").await, 200);
    let end = monolith.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
    let end: String = end.get(0);
    drop(monolith);
    let monolith = put_back(&mut split).await;
    writes_past(&monolith, &end).await;

    let (status, log) = split.mirror(None).ended();
    assert_ne!(status.code(), Some(0), "{log}");
    assert!(log.contains("the monolith was set back to an earlier state"), "{log}");
    let mirror = split.mirror_with(None, &["--rebuild"]);
    until("the copy is what the monolith has", SOON, async || {
        (number(&service, "SELECT count(*) FROM t").await == 100).then_some(())
    })
    .await;
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
}
