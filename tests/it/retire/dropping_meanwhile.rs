//! Whatever comes up between the preview and the last COMMIT keeps the old tables where they are, and is named; and nobody waits for them
//! longer than for a moment, whatever becomes of the service or of the command.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use strangler::cluster::Cluster;
use strangler::journal::granted;
use tokio_postgres::Client;

use super::archive::manifest;
use super::dropping::{REFERRING, TWO, allowed, archived, drop_stage, frozen_at, hasty, status};
use super::quarantine::place;
use super::{SETUP, entries, refused, token};
use crate::support::binary::{Ended, flat};
use crate::support::cluster::{Pair, connect};
use crate::support::privilege;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

/// Somebody with all rights, who looks where the tables stand.
async fn reader(split: &Split) -> Client {
    let client = connect(&split.pair.monolith.url(Pair::MONOLITH)).await;
    client.batch_execute("SET application_name = 'nightly report'").await.unwrap();
    client
}

/// The stage waits for somebody's lock.
async fn waiting(monolith: &Client) {
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'strangler retire' AND wait_event_type = 'Lock')";
    until("it waits", SOON, async || {
        monolith.query_one(waits, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

fn waited(ended: &Ended, names: &str) {
    assert_eq!(ended.exit, Some(4), "{}", ended.page());
    assert!(ended.stderr.contains("error[retire-waited]"), "{}", ended.page());
    let said = flat(&ended.stderr);
    assert!(said.contains(names) && said.contains("nothing was d"), "{}", ended.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_reader_that_comes_behind_the_preview_or_between_the_locks_is_named_and_nothing_is_dropped() {
    let (split, monolith, _service, mirror, _folder) = archived().await;
    let stands = place(&monolith, "accounts").await;
    let shown = token(&allowed(&split));
    let confirm = ["--confirm", shown.as_str()];
    let reads = format!("BEGIN; SELECT FROM {stands}.accounts LIMIT 1");

    // Behind the preview: with a quiet_period he is a user, and without one he is in the way.
    let other = reader(&split).await;
    other.batch_execute(&reads).await.unwrap();
    waited(&drop_stage(&split, &confirm), "nightly report");
    split.change_plan("quiet_period: 0s", "quiet_period: 30m");
    let used = drop_stage(&split, &confirm);
    refused(&used, &["still-used"]);
    assert!(used.stderr.contains("nightly report"), "{}", used.page());
    split.change_plan("quiet_period: 30m", "quiet_period: 0s");
    other.batch_execute("ROLLBACK").await.unwrap();

    // In the middle of the locks: it has the way back's row, and wants the tables.
    let holder = reader(&split).await;
    let going = frozen_at(&split, "drop-caught-up", &shown);
    holder.batch_execute("BEGIN; SELECT FROM strangler.stream WHERE slice = 'one' FOR UPDATE").await.unwrap();
    going.signal(Signal::CONT);
    waiting(&monolith).await;
    other.batch_execute(&reads).await.unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
    waited(&going.ended(), "nightly report");
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(place(&monolith, "accounts").await, stands);

    mirror.stop();
}

/// Also of a session that is gone. Only another policy helps, and the ledger has that.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn one_read_since_the_tables_are_away_keeps_them() {
    let (split, monolith, _service, _mirror, _folder) = archived().await;
    split.change_plan("quiet_period: 0s", "quiet_period: 30m");
    let shown = token(&allowed(&split));
    let stands = place(&monolith, "accounts").await;
    let count = format!("SELECT count(*) FROM {stands}.accounts");
    reader(&split).await.batch_execute(&count).await.unwrap();
    until("the watch has met the read", SOON, async || {
        drop_stage(&split, &[]).stderr.contains("(still-used)").then_some(())
    })
    .await;
    let used = drop_stage(&split, &["--confirm", &shown]);
    refused(&used, &["still-used"]);
    assert!(flat(&used.stderr).contains("others have read it once"), "{}", used.page());
    assert_eq!(place(&monolith, "accounts").await, stands);
    let before = entries(&split, "plan").len();
    split.change_plan("quiet_period: 30m", "quiet_period: 1ms");
    let done = drop_stage(&split, &["--confirm", &token(&allowed(&split))]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    let told = entries(&split, "plan");
    assert_eq!(told.len(), before + 1, "{told:#?}");
    assert_eq!(told.last().unwrap()["body"]["verb"], "retire", "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_service_that_does_not_note_it_in_time_holds_nobody_up_and_nothing_is_dropped() {
    let (split, monolith, service, _mirror, _folder) = archived().await;
    let stands = place(&monolith, "accounts").await;
    let shown = token(&allowed(&split));
    let confirm = ["--confirm", shown.as_str()];
    let holder = connect(&split.pair.service.url(Pair::SERVICE)).await;
    holder.batch_execute("BEGIN; SELECT FROM strangler.gate_one FOR UPDATE").await.unwrap();
    waited(&drop_stage(&split, &confirm), "holds the slice's gate");
    holder.batch_execute("ROLLBACK").await.unwrap();
    service
        .batch_execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON strangler.dropped FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await
        .unwrap();
    waited(&drop_stage(&split, &confirm), "it takes longer");
    service.batch_execute("DROP FUNCTION slow CASCADE").await.unwrap();
    let (exit, one) = status(&split);
    assert_eq!((exit, &one["retirement"]["stage"]), (Some(0), &"quarantined".into()), "{one:#}");

    // A command that stands still in between: the monolith's server lets its locks go, whatever the service has by then.
    let mut command = split.command(&["retire", "plan.yaml", "--stage", "drop", "--confirm", &shown]);
    command.env("STRANGLER_FREEZE", "drop-noted");
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still(), "drop-noted was not reached");
    let reads = format!("SET lock_timeout = '10s'; SELECT FROM {stands}.accounts LIMIT 1");
    reader(&split).await.batch_execute(&reads).await.unwrap();
    frozen.signal(Signal::CONT);
    let ended = frozen.ended();
    assert!(matches!(ended.exit, Some(4 | 5)), "{}", ended.page());
    assert!(ended.stderr.contains("error[retire-decided]"), "{}", ended.page());
    let said = flat(&ended.stderr);
    assert!(said.contains("strangler retire plan.yaml --slice one --stage drop"), "{}", ended.page());
    assert!(said.contains("strangler unretire plan.yaml --slice one"), "{}", ended.page());
    assert_eq!(place(&monolith, "accounts").await, stands);
    let (_, one) = status(&split);
    assert_eq!(one["phase"], "dropping", "{one:#}");
    let done = drop_stage(&split, &["--confirm", &token(&allowed(&split))]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    assert_eq!(entries(&split, "retire").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_service_that_freezes_behind_the_locks_holds_nobody_up_either() {
    let (split, monolith, service, _mirror, _folder) = archived().await;
    let stands = place(&monolith, "accounts").await;
    let shown = token(&allowed(&split));
    let holder = reader(&split).await;
    let mut command = split.command(&["retire", "plan.yaml", "--stage", "drop", "--confirm", &shown]);
    command.env("STRANGLER_ANSWER_MS", "20000").env("STRANGLER_FREEZE", "drop-caught-up");
    let mut going = split.start_command(command);
    assert!(going.stands_still(), "drop-caught-up was not reached");
    holder.batch_execute("BEGIN; SELECT FROM strangler.stream WHERE slice = 'one' FOR UPDATE").await.unwrap();
    going.signal(Signal::CONT);
    waiting(&monolith).await;
    let sessions = service
        .query("SELECT pid FROM pg_stat_activity WHERE application_name = 'strangler retire'", &[])
        .await;
    let sessions: Vec<rustix::process::Pid> =
        sessions.unwrap().iter().map(|row| rustix::process::Pid::from_raw(row.get(0)).unwrap()).collect();
    assert_eq!(sessions.len(), 2);
    let signal = |signal| {
        for pid in &sessions {
            rustix::process::kill_process(*pid, signal).unwrap();
        }
    };
    signal(Signal::STOP);
    holder.batch_execute("ROLLBACK").await.unwrap();
    let reads = format!("SET lock_timeout = '15s'; SELECT FROM {stands}.accounts LIMIT 1");
    let read = reader(&split).await.batch_execute(&reads).await;
    signal(Signal::CONT);
    read.unwrap();
    let ended = going.ended();
    assert_eq!(ended.exit, Some(4), "{}", ended.page());
    assert_eq!(place(&monolith, "accounts").await, stands);
    let done = drop_stage(&split, &["--confirm", &shown]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn behind_the_commit_it_is_said_what_is_done_and_what_is_left() {
    let (split, monolith, service, _mirror, _folder) = archived().await;
    monolith.batch_execute("CREATE VIEW peeks AS SELECT * FROM strangler.journal").await.unwrap();
    let shown = token(&allowed(&split));
    let left = drop_stage(&split, &["--confirm", &shown]);
    assert_eq!(left.exit, Some(5), "{}", left.page());
    assert!(left.stderr.contains("error[retire-left]"), "{}", left.page());
    let said = flat(&left.stderr);
    assert!(
        said.contains("the old tables of slice one are dropped, and not all that goes behind them"),
        "{said}"
    );
    assert!(said.contains("view public.peeks") && !said.contains("nothing was done"), "{said}");
    let again = format!("strangler retire plan.yaml --slice one --stage drop --confirm {shown}");
    assert!(said.contains(&again), "{said}");
    let gone = "SELECT NOT EXISTS (SELECT FROM pg_class WHERE relname = 'accounts')";
    assert!(monolith.query_one(gone, &[]).await.unwrap().get::<_, bool>(0));
    let (_, one) = status(&split);
    assert_eq!(one["phase"], "dropping", "{one:#}");
    monolith.batch_execute("DROP VIEW peeks").await.unwrap();
    let done = drop_stage(&split, &["--confirm", &shown]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    super::dropping::assert_service_is_alone(&service).await;
}

/// The file of the archive that the first table's rows are in.
fn first_part(folder: &Path) -> PathBuf {
    folder.join(manifest(folder)["relations"][0]["parts"][0]["file"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_archive_that_goes_away_and_a_publication_that_comes_meanwhile_keep_the_tables() {
    let (split, monolith, _service, mirror, folder) = archived().await;
    let stands = place(&monolith, "accounts").await;
    let shown = token(&allowed(&split));

    let (part, aside) = (first_part(folder.path()), folder.path().join("aside"));
    let going = frozen_at(&split, "drop-caught-up", &shown);
    std::fs::rename(&part, &aside).unwrap();
    going.signal(Signal::CONT);
    let ended = going.ended();
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    assert!(ended.stderr.contains("archive-damaged"), "{}", ended.page());
    std::fs::rename(&aside, &part).unwrap();

    let going = frozen_at(&split, "drop-caught-up", &shown);
    let (here, there) = (folder.path().join("manifest.json"), folder.path().join("aside"));
    std::fs::rename(&here, &there).unwrap();
    going.signal(Signal::CONT);
    refused(&going.ended(), &["archive-missing"]);
    std::fs::rename(&there, &here).unwrap();

    for publication in [
        format!("CREATE PUBLICATION strangler_theirs FOR TABLE {stands}.accounts"),
        "CREATE PUBLICATION strangler_theirs FOR ALL TABLES".to_owned(),
    ] {
        let going = frozen_at(&split, "drop-caught-up", &shown);
        monolith.batch_execute(&publication).await.unwrap();
        going.signal(Signal::CONT);
        let ended = going.ended();
        refused(&ended, &["retire-publication"]);
        assert!(ended.stderr.contains("strangler_theirs"), "{}", ended.page());
        monolith.batch_execute("DROP PUBLICATION strangler_theirs").await.unwrap();
    }
    assert_eq!(place(&monolith, "accounts").await, stands);
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn tables_stay_while_the_way_there_has_not_looked_through_what_was_written_on_the_monolith() {
    let (split, monolith, _service, _mirror, _folder) = archived().await;
    let stands = place(&monolith, "accounts").await;
    let shown = token(&allowed(&split));
    let holder = connect(&split.pair.service.url(Pair::SERVICE)).await;
    holder
        .batch_execute("BEGIN; SELECT FROM strangler.stream WHERE dir = 'forward' FOR UPDATE")
        .await
        .unwrap();
    refused(&drop_stage(&split, &["--confirm", &shown]), &["forward-behind"]);
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(place(&monolith, "accounts").await, stands);
    let (_, one) = status(&split);
    assert_eq!(one["retirement"]["stage"], "quarantined", "{one:#}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_reader_in_the_service_that_holds_up_what_is_behind_the_tables_is_named() {
    let (split, _monolith, service, _mirror, _folder) = archived().await;
    let shown = token(&allowed(&split));
    let reader = connect(&split.pair.service.url(Pair::SERVICE)).await;
    reader
        .batch_execute("SET application_name = 'nightly report'; BEGIN; SELECT FROM sales.accounts")
        .await
        .unwrap();
    let left = drop_stage(&split, &["--confirm", &shown]);
    assert!(left.stderr.contains("error[retire-left]"), "{}", left.page());
    assert!(flat(&left.stderr).contains("nightly report"), "{}", left.page());
    reader.batch_execute("ROLLBACK").await.unwrap();
    let done = drop_stage(&split, &["--confirm", &shown]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    super::dropping::assert_service_is_alone(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_that_tables_of_another_slice_come_back_to_stays_open_to_the_way_back() {
    let (split, monolith, _service) = privilege::open(TWO, &format!("{SETUP}{REFERRING}")).await;
    hasty(&split, &monolith).await;
    let set_up = "CREATE SCHEMA home; GRANT USAGE ON SCHEMA home TO strangler_apply; \
        INSERT INTO strangler.granted SELECT 'pg_namespace', to_regnamespace('home'), 0, 'strangler_apply', 'USAGE'";
    monolith.batch_execute(set_up).await.unwrap();
    let goes = async |slice: &str| {
        let going = granted::dispensable(&monolith, slice, false).await.unwrap();
        going.iter().filter_map(granted::Granted::revoke).any(|sql| sql.contains("ON SCHEMA home"))
    };
    assert!(goes("one").await && goes("two").await, "nobody needs it");
    let away = "INSERT INTO strangler.quarantined (slice, relation_oid, schema_name, relation) VALUES ('two', 1, 'home', 'lines')";
    monolith.batch_execute(away).await.unwrap();
    assert!(!goes("one").await, "slice two comes back to it");
    assert!(goes("two").await, "it goes with the slice that needs it");
}
