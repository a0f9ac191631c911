//! The old tables go as it was shown, and only when nothing speaks against it; nothing of ours is left, and the archive has what they held.

use std::path::Path;

use strangler::cdc::error::MirrorError;
use strangler::cdc::start;
use strangler::failpoint;
use strangler::journal::abandonment;
use strangler::journal::streams::{self, StreamOf};
use strangler::postgres::SessionRole;
use strangler::postgres::replication::SlotOptions;
use tokio_postgres::Client;

use super::archive::{away, keep, manifest, other_database, restore};
use super::quarantine::place;
use super::{ROLES, SETUP, TABLES, entries, refused, ripe_of, ripen, token};
use crate::flip::mirrored_and_armed;
use crate::replication::server::server;
use crate::support::binary::Ended;
use crate::support::catalogs::catalogs;
use crate::support::privilege;
use crate::support::split::{Background, Mirror, Split};
use crate::support::wait::{SOON, until, until_blocking};

/// Tables of the shop that stay, one of which names an old one by a text that nobody checks.
const STAYING: &str = "; CREATE TABLE staying (id int PRIMARY KEY, account int, text text); CREATE SEQUENCE free;
    CREATE VIEW seen AS SELECT id, text FROM staying; INSERT INTO staying VALUES (1, 1, 'x'); GRANT SELECT ON staying TO shop_read";

pub(super) fn drop_stage(split: &Split, arguments: &[&str]) -> Ended {
    split.run("retire", &[&["--stage", "drop"], arguments].concat())
}

/// A slice whose next stage is the last one.
pub(super) async fn archived() -> (Split, Client, Client, Mirror, tempfile::TempDir) {
    let (split, monolith, service, mirror) = ripe_of(TABLES, (&format!("{SETUP}{STAYING}"), "")).await;
    let folder = tempfile::tempdir().unwrap();
    away(&split);
    refused(&drop_stage(&split, &[]), &["archive-missing"]);
    keep(&split, folder.path());
    (split, monolith, service, mirror, folder)
}

/// The last stage, which stands still at this point until it gets SIGCONT.
pub(super) fn frozen_at(split: &Split, point: &str, token: &str) -> Background {
    let mut command = split.command(&["retire", "plan.yaml", "--stage", "drop", "--confirm", token]);
    command.env("STRANGLER_FREEZE", point);
    let mut frozen = split.start_command(command);
    if !frozen.stands_still() {
        panic!("{point} was not reached: {}", frozen.ended().page());
    }
    frozen
}

pub(super) fn allowed(split: &Split) -> Ended {
    let shown = drop_stage(split, &[]);
    assert_eq!(shown.exit, Some(0), "{}", shown.page());
    shown
}

pub(super) fn status(split: &Split) -> (Option<i32>, serde_json::Value) {
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    (status.exit, document["slices"][0].clone())
}

/// Everything that was there before is as it was, but for the old tables and what belongs to them.
async fn assert_only_old_tables_are_gone(monolith: &Client, before: &[String]) {
    let after = catalogs(monolith).await;
    let of_old = |line: &&String| line.contains("accounts") || line.contains("moves");
    let gone: Vec<&String> =
        before.iter().filter(|line| !after.contains(line)).filter(|line| !of_old(line)).collect();
    let new: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(gone.is_empty() && new.is_empty(), "gone:\n{gone:#?}\nnew:\n{new:#?}");
    let left: Vec<&String> = after.iter().filter(of_old).collect();
    assert!(left.is_empty(), "{left:#?}");
}

/// What has neither slots, publications nor triggers of ours.
pub(super) async fn assert_service_is_alone(service: &Client) {
    let sql = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + (SELECT count(*) FROM pg_publication) \
        + (SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE p.proname LIKE 'gate%')";
    assert_eq!(service.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    service.batch_execute("INSERT INTO sales.accounts (id) VALUES (999)").await.unwrap();
}

/// No other verb touches it, and all of them go on.
fn assert_left_alone(split: &Split) {
    for verb in ["mirror", "flip", "arm", "disarm", "provision", "reconcile", "unretire"] {
        let named = split.run(verb, &["--slice", "one"]);
        assert_eq!(named.exit, Some(3), "{verb}: {}", named.page());
        assert!(named.stderr.contains("slice-dropped"), "{verb}: {}", named.page());
    }
    refused(&split.run("retire", &["--stage", "revoke"]), &["slice-dropped"]);
    for verb in ["mirror", "check", "provision", "arm", "reconcile"] {
        let all = split.run(verb, &[]);
        assert_eq!(all.exit, Some(0), "{verb}: {}", all.page());
        assert!(all.stderr.contains("slice one is retired, and left out"), "{verb}: {}", all.page());
    }
    let verified = split.run("ledger", &["--verify"]);
    assert_eq!(verified.exit, Some(0), "{}", verified.page());
    let doctor = split.run("doctor", &[]);
    assert_eq!(doctor.exit, Some(0), "{}", doctor.page());
}

/// The archive makes the tables with every row.
async fn assert_restored(split: &mut Split, at: &Path) {
    let elsewhere = other_database(split, "elsewhere").await;
    let done = restore(split, at, &[]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    let rows = "SELECT (SELECT count(*) FROM accounts) + (SELECT count(*) FROM moves)";
    let count: i64 = elsewhere.query_one(rows, &[]).await.unwrap().get(0);
    let archived: u64 = manifest(at)["relations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|relation| relation["rows"].as_u64().unwrap())
        .sum();
    assert_eq!(u64::try_from(count).unwrap(), archived);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_tables_go_as_shown_and_nothing_of_ours_is_left_on_the_monolith() {
    let (mut split, monolith, service) = privilege::open(TABLES, &format!("{SETUP}{STAYING}")).await;
    monolith.batch_execute(ROLES).await.unwrap();
    let before = catalogs(&monolith).await;
    let mirror = ripen(&split, &monolith, &service).await;
    let folder = tempfile::tempdir().unwrap();
    away(&split);
    keep(&split, folder.path());
    let quiet = catalogs(&monolith).await;
    let shown = allowed(&split);
    assert_eq!(catalogs(&monolith).await, quiet, "a preview changes nothing");
    assert!(shown.stdout.contains("\nDROP TABLE ") && !shown.stdout.contains("CASCADE;"), "{}", shown.page());
    refused(&drop_stage(&split, &["--confirm", "00000000"]), &[]);
    let token = token(&shown);
    let done = drop_stage(&split, &["--confirm", &token]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    let (ended, said) = mirror.ended();
    assert_eq!(ended.code(), Some(0), "{said}");
    assert!(said.contains("slice one is retired"), "{said}");
    assert_only_old_tables_are_gone(&monolith, &before).await;
    assert_service_is_alone(&service).await;
    let (exit, one) = status(&split);
    assert_eq!((exit, &one["phase"]), (Some(0), &"retired".into()), "{one:#}");
    assert_eq!(one["retirement"]["archive"]["place"], folder.path().to_str().unwrap());
    assert_left_alone(&split);
    let told = entries(&split, "retire");
    let steps = told.last().unwrap()["body"]["taken"].to_string();
    let digest = one["retirement"]["archive"]["manifest_sha256"].as_str().unwrap();
    assert!(steps.contains("take stage dropped") && steps.contains(digest), "{told:#?}");
    let kept = "SELECT json_array_length(monolith_journal) > 0 FROM strangler.dropped";
    assert!(service.query_one(kept, &[]).await.unwrap().get::<_, bool>(0), "the monolith's journal is kept");
    assert_restored(&mut split, folder.path()).await;
}

/// Something that speaks against it, what ends it, and how it is called.
const AGAINST: &[(&str, &str, &str)] = &[
    ("CREATE VIEW reads AS SELECT id FROM {q}.accounts", "DROP VIEW reads", "retire-view"),
    ("CREATE TABLE refers (id int REFERENCES {q}.accounts)", "DROP TABLE refers", "retire-foreign-key"),
    ("CREATE PUBLICATION theirs FOR TABLE {q}.accounts", "DROP PUBLICATION theirs", "retire-publication"),
    ("CREATE TABLE {q}.stray (id int)", "DROP TABLE {q}.stray", "quarantine-used"),
    ("GRANT SELECT ON {q}.accounts TO clerk", "REVOKE SELECT ON {q}.accounts FROM clerk", "stage-before"),
    (
        "UPDATE strangler.archive SET epoch = epoch - 1",
        "UPDATE strangler.archive SET epoch = epoch + 1",
        "archive-missing",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_speaks_against_it_is_named_and_nothing_is_dropped() {
    let (split, monolith, _service, mirror, folder) = archived().await;
    let quarantine = place(&monolith, "accounts").await;
    let shown = token(&allowed(&split));
    for (against, ended, code) in AGAINST {
        let [against, ended] = [against, ended].map(|sql| sql.replace("{q}", &quarantine));
        monolith.batch_execute(&against).await.unwrap_or_else(|error| panic!("{against}: {error:?}"));
        for arguments in [&[][..], &["--confirm", &shown]] {
            refused(&drop_stage(&split, arguments), &[code]);
        }
        monolith.batch_execute(&ended).await.unwrap();
    }
    let policies = [
        ("safety_period: 0s", "safety_period: 30d", "safety-period"),
        ("clean_runs_before_retire: 1", "clean_runs_before_retire: 9", "clean-runs"),
        ("quiet_period: 0s", "quiet_period: 30d", "quiet-period"),
    ];
    for (now, then, code) in policies {
        split.change_plan(now, then);
        refused(&drop_stage(&split, &["--confirm", &shown]), &[code]);
        split.change_plan(then, now);
    }
    let part = manifest(folder.path())["relations"][0]["parts"][0]["file"].as_str().unwrap().to_owned();
    let file = folder.path().join(part);
    let whole = std::fs::read(&file).unwrap();
    let mut spoilt = whole.clone();
    *spoilt.last_mut().unwrap() ^= 1;
    std::fs::write(&file, spoilt).unwrap();
    let damaged = drop_stage(&split, &["--confirm", &shown]);
    assert!(damaged.exit != Some(0) && damaged.stderr.contains("archive-damaged"), "{}", damaged.page());
    std::fs::write(&file, whole).unwrap();
    let (here, there) = (folder.path().join("manifest.json"), folder.path().join("elsewhere"));
    std::fs::rename(&here, &there).unwrap();
    refused(&drop_stage(&split, &[]), &["archive-missing"]);
    std::fs::rename(&there, &here).unwrap();
    mirror.stop();
    refused(&drop_stage(&split, &["--confirm", &shown]), &["no-way-back"]);
    assert_ne!(place(&monolith, "accounts").await, "public");
    let force = drop_stage(&split, &["--force"]);
    assert_eq!(force.exit, Some(2), "{}", force.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn the_command_that_status_names_finishes_or_takes_back_what_was_killed_at_any_step() {
    let (split, monolith, service, _mirror, _folder) = archived().await;
    let shown = token(&allowed(&split));
    let killed = |verb: &str, point: &str, arguments: &[&str]| {
        let mut command = split.command(&[&[verb, "plan.yaml"], arguments].concat());
        let ended = Ended::of(command.env("STRANGLER_FAILPOINT", point).output().unwrap());
        assert_eq!(ended.exit, None, "{point} was not reached: {}", ended.page());
    };
    let confirm = ["--stage", "drop", "--confirm", &shown];
    killed("retire", "drop-noted", &confirm);
    let (exit, one) = status(&split);
    assert_eq!((exit, &one["phase"]), (Some(1), &"dropping".into()), "{one:#}");
    let undo = one["retirement"]["undo"].as_str().unwrap().to_owned();
    assert!(undo.starts_with("strangler unretire"), "{undo}");
    killed("unretire", "drop-taken-back", &[]);
    let (_, one) = status(&split);
    assert_eq!(one["retirement"]["stage"], "quarantined", "{one:#}");
    // Of the first nothing is left; the last two are of other commands.
    let others = ["drop-caught-up", "drop-told", "drop-taken-back"];
    let taking = failpoint::DROP.iter().filter(|point| !others.contains(*point));
    for point in taking {
        killed("retire", point, &confirm);
        let (_, one) = status(&split);
        let over = *point == "drop-ended";
        assert_eq!(one["phase"] == "retired", over, "{point}: {one:#}");
        let stands = matches!(*point, "drop-noted" | "drop-before-commit");
        let undo = one["retirement"]["undo"].as_str().unwrap();
        assert_eq!(undo.starts_with("strangler unretire"), stands, "{point}: {undo}");
        if !over {
            let next = one["next"].as_str().unwrap();
            assert!(next.ends_with("--stage drop"), "{point}: {next}");
            let words: Vec<&str> = next.split(' ').skip(1).collect();
            let again = Ended::of(split.command(&words).output().unwrap());
            assert_eq!((again.exit, token(&again)), (Some(0), shown.clone()), "{point}: {}", again.page());
            refused(&split.run("flip", &["--back", "--slice", "one"]), &["slice-dropped"]);
            let abandoned = split.run("abandon", &["--slice", "one"]);
            refused(&abandoned, &["slice-dropped"]);
            assert!(!abandoned.stderr.contains("strangler provision"), "{point}: {}", abandoned.page());
        }
    }
    let done = drop_stage(&split, &confirm[2..]);
    assert!(done.exit == Some(0) && done.stderr.contains("dropped before"), "{}", done.page());
    assert_service_is_alone(&service).await;
    let ours = "SELECT to_regnamespace('strangler') IS NULL AND NOT EXISTS (SELECT FROM pg_replication_slots) \
        AND NOT EXISTS (SELECT FROM pg_publication)";
    assert!(monolith.query_one(ours, &[]).await.unwrap().get::<_, bool>(0));
    let told = entries(&split, "retire").iter().map(|entry| entry["body"].to_string()).collect::<String>();
    assert_eq!(told.matches("take stage dropped").count(), 1, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_mirror_that_stood_still_meanwhile_makes_nothing_anew_when_it_wakes() {
    let (split, monolith, service, mirror, _folder) = archived().await;
    let shown = token(&allowed(&split));
    let of = StreamOf::forward("one");
    let row = streams::read(&service, of).await.unwrap().unwrap();
    let life = abandonment::life(&service, "one").await.unwrap().unwrap();
    // Until the tables are gone the way back must be at work.
    let dropping = frozen_at(&split, "drop-committed", &shown);
    mirror.signal(rustix::process::Signal::STOP);
    dropping.signal(rustix::process::Signal::CONT);
    let done = dropping.ended();
    assert_eq!(done.exit, Some(0), "{}", done.page());
    service.batch_execute("INSERT INTO sales.accounts (id) VALUES (1000)").await.unwrap();
    mirror.signal(rustix::process::Signal::CONT);
    let (ended, said) = mirror.ended();
    assert_eq!(ended.code(), Some(0), "{said}");
    let server = server(&split.pair.monolith_url(), SessionRole::Read);
    let mut replication = server.replicate("a mirror that wakes").await.unwrap();
    let asked = ("one", life.as_str(), &row);
    let made = start::create_slot(&monolith, &mut replication, &service, asked, &|_| {}).await;
    assert!(matches!(made, Err(MirrorError::Retired { .. })), "{made:?}");
    // It had asked before, and makes the slot now.
    let plain = SlotOptions { temporary: false, failover: false };
    replication.create_slot(&row.slot, plain).await.unwrap();
    start::give_back(&mut replication, (&monolith, &service), ("one", &row.slot)).await;
    let ours =
        "SELECT NOT EXISTS (SELECT FROM pg_replication_slots) AND NOT EXISTS (SELECT FROM pg_publication)";
    for client in [&monolith, &service] {
        assert!(client.query_one(ours, &[]).await.unwrap().get::<_, bool>(0));
    }
}

/// Two slices of which each refers to the other.
pub(super) const TWO: &str =
    "{ accounts: {}, moves: {}, notes: {} } }\n  two: { service: service, tables: { lines: {} }";
pub(super) const REFERRING: &str = "; CREATE TABLE lines (id int PRIMARY KEY, account int REFERENCES accounts, text text);
    CREATE TABLE notes (id int PRIMARY KEY, line int REFERENCES lines);
    INSERT INTO lines SELECT i, i, 'x' FROM generate_series(1, 20) i; INSERT INTO notes SELECT i, i FROM generate_series(1, 20) i;
    GRANT SELECT ON lines, notes TO shop_read; ANALYZE lines, notes";

pub(super) fn moved(split: &Split, arguments: &[&str]) {
    let evidence = ["--accept-no-evidence", "a test"];
    until_blocking("the authority moves", SOON, || {
        let ended = split.run("flip", &[arguments, &evidence].concat());
        (ended.exit == Some(0)).then_some(())
    });
}

/// Takes a stage of a slice as it is shown.
pub(super) fn staged(split: &Split, (slice, stage): (&str, &str), to: &[&str]) -> Ended {
    let arguments = [&["--slice", slice, "--stage", stage], to].concat();
    let shown = token(&split.run("retire", &arguments));
    let done = split.run("retire", &[&arguments[..], &["--confirm", &shown]].concat());
    assert_eq!(done.exit, Some(0), "{}", done.page());
    done
}

/// Takes all stages of a slice that its service has the authority over, which has so many tables.
pub(super) async fn all_stages(split: &Split, monolith: &Client, (slice, tables): (&str, i64), to: &Path) {
    let watched = "SELECT count(*) >= $2 FROM strangler.table_use WHERE slice = $1";
    until("the old tables are watched", SOON, async || {
        monolith.query_one(watched, &[&slice, &tables]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    monolith.batch_execute("UPDATE strangler.table_use SET since = now() - interval '1 hour'").await.unwrap();
    let compared = split.run("reconcile", &["--slice", slice]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    staged(split, (slice, "revoke"), &[]);
    staged(split, (slice, "quarantine"), &[]);
    staged(split, (slice, "archive"), &["--to", to.to_str().unwrap()]);
    staged(split, (slice, "drop"), &[]);
}

/// Slice `one` of two, dropped, with the mirror of both at work.
pub(super) async fn one_of_two_dropped() -> (Split, Client, Client, Mirror) {
    let folder = tempfile::tempdir().unwrap();
    let (split, monolith, service) = privilege::open(TWO, &format!("{SETUP}{REFERRING}")).await;
    hasty(&split, &monolith).await;
    let mirror = mirrored_and_armed(&split, &monolith, &service).await;
    drop_one(&split, &monolith, folder.path()).await;
    (split, monolith, service, mirror)
}

/// Provisions a plan of which nothing is waited for.
pub(super) async fn hasty(split: &Split, monolith: &Client) {
    let policy = "policy: { min_mirror_time: 0s, write_pause_budget: 2s }\n";
    split.write_plan(&format!("{}{policy}", split.plan_text()));
    monolith.batch_execute(ROLES).await.unwrap();
    split.provision();
}

/// Drops slice `one` of two that are armed; its archive goes into this folder.
pub(super) async fn drop_one(split: &Split, monolith: &Client, folder: &Path) {
    moved(split, &["--slice", "one"]);
    let policy = "write_pause_budget: 2s, safety_period: 0s, quiet_period: 0s, clean_runs_before_retire: 1";
    split.change_plan("write_pause_budget: 2s", policy);
    all_stages(split, monolith, ("one", 3), folder).await;
}

/// What the retired slice refers to is part of the report, in every form of it.
fn dangles(split: &Split) {
    let said = split.run("reconcile", &[]);
    assert_eq!(said.exit, Some(1), "{}", said.page());
    assert!(said.stdout.contains("references alone, because the slice is retired"), "{}", said.page());
    assert!(said.stderr.contains("Orphans only"), "{}", said.page());
    let said = split.run("reconcile", &["--format", "json"]);
    assert_eq!(said.exit, Some(1), "{}", said.page());
    let document: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let slices = document["slices"].as_array().unwrap();
    let one = slices.iter().find(|slice| slice["slice"] == "one").unwrap_or_else(|| panic!("{document:#}"));
    assert_eq!((&document["outcome"], &one["outcome"]), (&"differs".into(), &"differs".into()), "{one:#}");
    assert_eq!((&one["counts"]["orphan"], &one["full"]), (&1.into(), &false.into()), "{one:#}");
    assert_eq!(one["tables"][0]["coverage"]["kind"], "references", "{one:#}");
    assert_eq!(one["findings"][0]["key"][0]["value"]["value"], "900", "{one:#}");
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(1), "no repair helps: {}", repaired.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn the_other_slice_goes_on_and_references_between_the_two_are_still_looked_at() {
    let (split, monolith, service, mirror) = one_of_two_dropped().await;
    let arrived = async |id: i32| {
        let sql = "SELECT EXISTS (SELECT FROM sales.lines WHERE id = $1)";
        until("the line arrives", SOON, async || {
            assert!(mirror.exited().is_none(), "{}", mirror.log());
            service.query_one(sql, &[&id]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
    };
    monolith.batch_execute("INSERT INTO lines VALUES (100, 1, 'after')").await.unwrap();
    arrived(100).await;
    moved(&split, &["--slice", "two"]);
    moved(&split, &["--slice", "two", "--back"]);
    monolith.batch_execute("INSERT INTO lines VALUES (101, 1, 'home again')").await.unwrap();
    arrived(101).await;
    for (verb, arguments) in [("check", &[][..]), ("provision", &[]), ("arm", &[]), ("reconcile", &[])] {
        let ended = split.run(verb, arguments);
        assert_eq!(ended.exit, Some(0), "{verb}: {}", ended.page());
    }
    service.batch_execute("INSERT INTO sales.notes VALUES (900, 77777)").await.unwrap();
    dangles(&split);
    service.batch_execute("DELETE FROM sales.notes WHERE id = 900").await.unwrap();
    monolith.batch_execute("INSERT INTO lines VALUES (102, 88888, 'orphan')").await.unwrap();
    arrived(102).await;
    let to = split.run("reconcile", &[]);
    assert!(to.exit == Some(1) && to.stdout.contains("orphan"), "{}", to.page());
    assert!(to.stdout.contains("every row that is referred to is there"), "{}", to.page());
    monolith.batch_execute("DELETE FROM lines WHERE id = 102").await.unwrap();
    // What came since under the old table's name is asked for nothing.
    monolith.batch_execute("CREATE TABLE accounts (id int PRIMARY KEY)").await.unwrap();
    let check = split.run("check", &[]);
    assert!(check.exit == Some(0) && !check.stdout.contains("GRANT"), "{}", check.page());
    monolith.batch_execute("DROP TABLE accounts").await.unwrap();
    let disarmed = split.run("disarm", &["--slice", "two"]);
    assert_eq!(disarmed.exit, Some(0), "{}", disarmed.page());
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let one = &document["slices"][0];
    assert_eq!((&one["phase"], &one["alarms"]), (&"retired".into(), &serde_json::json!([])), "{document:#}");
}
