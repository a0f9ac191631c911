//! What happens to old tables while they are archived: nothing rests on what was so before, and what the tool reads is nobody's use.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use strangler::cluster::Cluster;
use strangler::lsn::Lsn;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::archive::{archive, away, keep, killed, manifest};
use super::quarantine::{move_away, place};
use super::{refused, ripe, take, token};
use crate::support::binary::Ended;
use crate::support::cluster::{Pair, connect};
use crate::support::split::{Background, Mirror, Split};
use crate::support::wait::{SOON, until};

/// An archive that stands still at this point, with its folder.
fn frozen(split: &Split, at: &Path, point: &str) -> Background {
    let shown = token(&archive(split, at, &[]));
    let words =
        ["retire", "plan.yaml", "--stage", "archive", "--to", at.to_str().unwrap(), "--confirm", &shown];
    let mut command = split.command(&words);
    command.env("STRANGLER_FREEZE", point);
    let mut going = split.start_command(command);
    assert!(going.stands_still(), "{point} was not reached");
    going
}

fn goes_on(going: Background) -> Ended {
    going.signal(Signal::CONT);
    going.ended()
}

async fn noted(monolith: &Client) -> bool {
    let sql = "SELECT EXISTS (SELECT FROM strangler.archive)";
    monolith.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_comes_up_while_tables_are_archived_keeps_the_archive_from_being_written_down() {
    let (split, monolith, service, mirror) = ripe().await;
    split.change_plan("quiet_period: 0s", "quiet_period: 30m");
    let folder = tempfile::tempdir().unwrap();
    away(&split);

    // Tables that came back, and tables that came back and went away once more.
    let going = frozen(&split, &folder.path().join("back"), "archive-verified");
    assert_eq!(split.run("unretire", &[]).exit, Some(0));
    refused(&goes_on(going), &["stage-before"]);
    away(&split);
    let going = frozen(&split, &folder.path().join("again"), "archive-verified");
    assert_eq!(split.run("unretire", &[]).exit, Some(0));
    away(&split);
    let changed = goes_on(going);
    assert_eq!(changed.exit, Some(3), "{}", changed.page());
    assert!(changed.stderr.contains("error[retire-changed]"), "{}", changed.page());
    refused(&archive(&split, &folder.path().join("again"), &[]), &["place-taken"]);
    assert!(!noted(&monolith).await);

    // A table that somebody moves by hand, and a partition that leaves its table, while rows are still read: they wait.
    let going = frozen(&split, &folder.path().join("held"), "archive-part-written");
    let stands = place(&monolith, "moves").await;
    for change in [
        format!("ALTER TABLE {stands}.accounts SET SCHEMA public"),
        format!("ALTER TABLE {stands}.moves DETACH PARTITION {stands}.moves_2"),
    ] {
        let waits = monolith.batch_execute(&format!("SET lock_timeout = '100ms'; {change}")).await;
        assert_eq!(waits.unwrap_err().code().unwrap().code(), "55P03", "{change}");
    }
    monolith.batch_execute("RESET lock_timeout").await.unwrap();
    assert_eq!(goes_on(going).exit, Some(0));
    assert!(noted(&monolith).await);
    moved_by_hand(&split, &monolith, folder.path()).await;
    written(&split, (&monolith, &service), folder.path()).await;
    mirror.stop();
}

/// Behind the reading nobody waits any more.
async fn moved_by_hand(split: &Split, monolith: &Client, folder: &Path) {
    let before = "SELECT manifest_sha256 FROM strangler.archive";
    let first: String = monolith.query_one(before, &[]).await.unwrap().get(0);
    let stands = place(monolith, "accounts").await;
    let going = frozen(split, &folder.join("moved"), "archive-verified");
    monolith.batch_execute(&format!("ALTER TABLE {stands}.accounts SET SCHEMA public")).await.unwrap();
    let ended = goes_on(going);
    refused(&ended, &["moved-by-hand"]);
    refused(&archive(split, &folder.join("moved"), &[]), &["moved-by-hand"]);
    monolith.batch_execute(&format!("ALTER TABLE accounts SET SCHEMA {stands}")).await.unwrap();
    let now: String = monolith.query_one(before, &[]).await.unwrap().get(0);
    assert_eq!(now, first, "the archive that was written down stays the one");
}

/// A row that somebody writes past the gate, once the tripwire has met it.
async fn written(split: &Split, (monolith, service): (&Client, &Client), folder: &Path) {
    let stands = place(monolith, "accounts").await;
    let going = frozen(split, &folder.join("written"), "archive-verified");
    let stray = format!(
        "BEGIN; ALTER TABLE {stands}.accounts DISABLE TRIGGER aa_strangler_gate; \
         UPDATE {stands}.accounts SET balance = 99 WHERE id = 1; \
         ALTER TABLE {stands}.accounts ENABLE ALWAYS TRIGGER aa_strangler_gate; COMMIT"
    );
    monolith.batch_execute(&stray).await.unwrap();
    let alarmed = "SELECT EXISTS (SELECT FROM strangler.alarm)";
    until("the tripwire has met it", SOON, async || {
        service.query_one(alarmed, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    refused(&goes_on(going), &["written-past-gate"]);
}

/// The watch has read the counters at least once from now on.
async fn counted(mirror: &Mirror, service: &Client) {
    mirror.looked_twice(service).await;
    mirror.looked_twice(service).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_an_archive_has_read_is_nobodys_use_also_where_it_is_stopped_by_ctrl_c() {
    let (split, monolith, service, mirror) = ripe().await;
    split.change_plan("quiet_period: 0s", "quiet_period: 30m");
    let folder = tempfile::tempdir().unwrap();
    take(&split);
    move_away(&split);
    let at = folder.path().join("archive");
    let going = frozen(&split, &at, "archive-part-written");
    going.signal(Signal::INT);
    let stopped = goes_on(going);
    assert_eq!(stopped.exit, Some(130), "{}", stopped.page());
    assert!(!at.join("manifest.json").exists() && !noted(&monolith).await, "{}", stopped.page());
    counted(&mirror, &service).await;
    keep(&split, &at);
    counted(&mirror, &service).await;
    let again = archive(&split, &at, &[]);
    assert!(again.exit == Some(0) && again.stderr.contains("archived before"), "{}", again.page());

    // Of a process that is killed nobody can write down what it has read.
    let other = folder.path().join("other");
    let shown = token(&archive(&split, &other, &[]));
    killed(&split, "archive-part-written", &other, &shown);
    until("somebody has read the tables", SOON, async || {
        archive(&split, &other, &[]).stderr.contains("(still-used)").then_some(())
    })
    .await;
    mirror.stop();
}

/// Somebody who makes one account after the other in the service, with where its WAL was before and behind each, until he is told to stop.
fn writer(split: &Split) -> (Arc<AtomicBool>, JoinHandle<Vec<(Lsn, Lsn)>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (told, url) = (Arc::clone(&stop), split.pair.service.url(Pair::SERVICE));
    let writing = tokio::spawn(async move {
        let client = connect(&url).await;
        let at = async || {
            let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
            row.get::<_, String>(0).parse::<Lsn>().unwrap()
        };
        let mut made = Vec::new();
        while !told.load(Ordering::Relaxed) {
            let before = at().await;
            let sql = format!("INSERT INTO sales.accounts (id, balance) VALUES ({}, 1)", 1000 + made.len());
            client.batch_execute(&sql).await.unwrap();
            made.push((before, at().await));
        }
        made
    });
    (stop, writing)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_has_every_row_up_to_its_position_and_none_behind_it_while_the_service_writes() {
    let (split, monolith, _service, mirror) = ripe().await;
    away(&split);
    let (stop, writing) = writer(&split);
    let stands = place(&monolith, "accounts").await;
    let arrived = format!("SELECT count(*) > 100 FROM {stands}.accounts WHERE id >= 1000");
    until("what is written arrives", SOON, async || {
        monolith.query_one(&arrived, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("archive");
    keep(&split, &at);
    stop.store(true, Ordering::Relaxed);
    let made = writing.await.unwrap();
    let said = manifest(&at);
    let position: Lsn = said["of"]["reverse_lsn"].as_str().unwrap().parse().unwrap();
    let mut archived = BTreeSet::new();
    for part in said["relations"][0]["parts"].as_array().unwrap() {
        let file = std::fs::read(at.join(part["file"].as_str().unwrap())).unwrap();
        let text = String::from_utf8(zstd::decode_all(&file[..]).unwrap()).unwrap();
        let ids = text.lines().map(|line| line.split('\t').next().unwrap().parse::<usize>().unwrap());
        archived.extend(ids.filter(|id| *id >= 1000));
    }
    let (mut inside, mut behind) = (0, 0);
    for (number, (before, after)) in made.iter().enumerate() {
        let there = archived.contains(&(1000 + number));
        inside += usize::from(*after <= position);
        behind += usize::from(*before >= position);
        assert!(there || *after > position, "row {number}, written by {after}, is lost as of {position}");
        assert!(!there || *before < position, "row {number}, begun at {before}, is there as of {position}");
    }
    assert!(inside > 100 && behind > 0, "{inside} rows before {position}, {behind} behind it");
    mirror.stop();
}
