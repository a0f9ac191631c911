//! What is known of references and archives once old tables are dropped, while our schema stands on the monolith, is gone with the last slice,
//! or has come back for another one; also where the slices belong to two services, of which one keeps the monolith's journal.

use strangler::cluster::Cluster;
use tokio_postgres::Client;

use super::archive::{other_database, restore};
use super::dropping::{REFERRING, TWO, all_stages, drop_one, hasty, moved, one_of_two_dropped};
use super::{SETUP, refused};
use crate::support::binary::{Ended, flat};
use crate::support::cluster::{connect, create_database};
use crate::support::privilege;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until, until_blocking};

/// A table of no slice, whose key to an old table is cut, and gone from the monolith with it.
const LATER: &str = "; CREATE TABLE later (id int PRIMARY KEY, account int REFERENCES accounts);
    INSERT INTO later SELECT i, i FROM generate_series(1, 20) i; GRANT SELECT ON later TO shop_read; ANALYZE later";

/// A second service on the server of the first one.
const OTHER: &str =
    "CREATE ROLE other_owner NOLOGIN; CREATE ROLE other_app LOGIN; GRANT other_owner TO orders_deploy;
    GRANT CREATE ON DATABASE other TO orders_deploy";

const OF_OTHER: &str = "  other: { admin: '${OTHER_DEPLOY}', apply: '${OTHER_WRITE}', owner: other_owner, app: other_app, into: sales }\n";

/// A link to where nobody listens.
const NOBODY: &str = "postgresql://strangler_apply@127.0.0.1:1/other";

/// Slice `one` of the first service and slice `two` of the other one, each of which refers to the other, and both dropped: the other service
/// keeps the journal of the monolith, which has nothing of ours any more.
struct BothDropped {
    split: Split,
    monolith: Client,
    service: Client,
    other: Client,
    archives: tempfile::TempDir,
}

/// Where the other service is.
fn lead_to_other(split: &mut Split) {
    for (variable, role) in [("OTHER_DEPLOY", "orders_deploy"), ("OTHER_WRITE", "strangler_apply")] {
        let link = split.pair.service.url_as(role, "", "other");
        split.lead(variable, &link);
    }
}

fn lead_to_nobody(split: &mut Split) {
    for variable in ["OTHER_DEPLOY", "OTHER_WRITE"] {
        split.lead(variable, NOBODY);
    }
}

async fn both_dropped() -> BothDropped {
    let (mut split, monolith, service) = privilege::open(TWO, &format!("{SETUP}{REFERRING}{LATER}")).await;
    create_database(&split.pair.service, "other").await;
    service.batch_execute(OTHER).await.unwrap();
    let other = connect(&split.pair.service.url("other")).await;
    lead_to_other(&mut split);
    split.change_plan("slices:\n", &format!("{OF_OTHER}slices:\n"));
    split.change_plan("two: { service: service", "two: { service: other");
    hasty(&split, &monolith).await;
    let mirror = split.mirror(None);
    for client in [&service, &other] {
        mirror.caught_up(&monolith, client).await;
    }
    let arm = split.run("arm", &[]);
    assert_eq!(arm.exit, Some(0), "{}", arm.page());
    let archives = tempfile::tempdir().unwrap();
    drop_one(&split, &monolith, &archives.path().join("one")).await;
    moved(&split, &["--slice", "two"]);
    all_stages(&split, &monolith, ("two", 1), &archives.path().join("two")).await;
    let (ended, said) = mirror.ended();
    assert_eq!(ended.code(), Some(0), "{said}");
    assert!(!has_schema(&monolith).await);
    BothDropped { split, monolith, service, other, archives }
}

async fn has_schema(monolith: &Client) -> bool {
    let sql = "SELECT to_regnamespace('strangler') IS NOT NULL";
    monolith.query_one(sql, &[]).await.unwrap().get(0)
}

fn document(ended: &Ended) -> serde_json::Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.page()))
}

/// How a comparison ends, and the outcome and the orphans of each slice that it is about.
fn compared(split: &Split, arguments: &[&str]) -> (Option<i32>, Vec<(String, String, u64)>) {
    let ended = split.run("reconcile", &[&["--format", "json"], arguments].concat());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let slices = document(&ended)["slices"].as_array().unwrap().clone();
    let of = slices.iter().map(|slice| {
        let orphans = slice["counts"]["orphan"].as_u64().unwrap_or(0);
        (text(&slice["slice"]), text(&slice["outcome"]), orphans)
    });
    (ended.exit, of.collect())
}

fn ends(slice: &str, outcome: &str, orphans: u64) -> (String, String, u64) {
    (slice.to_owned(), outcome.to_owned(), orphans)
}

/// Whatever form it has.
fn said_in_every_form(split: &Split, arguments: &[&str], (exit, words): (i32, &[&str])) {
    for form in ["text", "junit", "html", "markdown"] {
        let ended = split.run("reconcile", &[&["--format", form], arguments].concat());
        assert_eq!(ended.exit, Some(exit), "{form}: {}", ended.page());
        for word in words {
            assert!(flat(&ended.stdout).contains(word), "{form} does not say {word}: {}", ended.page());
        }
    }
}

/// The ledger of each service is held against the journal that the other one keeps.
async fn ledgers_are_held_against_the_kept_journal(both: &BothDropped) {
    let kept = "SELECT count(*) FILTER (WHERE monolith_journal IS NOT NULL) FROM strangler.dropped";
    for (client, count) in [(&both.service, 0_i64), (&both.other, 1)] {
        assert_eq!(client.query_one(kept, &[]).await.unwrap().get::<_, i64>(0), count);
    }
    verified(both, (0, "the monolith's journal, which a service keeps now, confirms"));
    // Also where the plan has no slice of it any more; and nobody takes a table that was restored for what its service has.
    let two = "\n  two: { service: other, tables: { lines: {} } }";
    both.split.change_plan(two, "");
    verified(both, (0, "the monolith's journal, which a service keeps now, confirms"));
    assert_eq!(compared(&both.split, &[]), (Some(5), vec![ends("one", "incomplete", 0)]));
    said_in_every_form(&both.split, &[], (5, &["no slice of the plan takes it"]));
    let cut = "ALTER TABLE strangler.ledger DISABLE TRIGGER ALL; \
        DELETE FROM strangler.ledger WHERE id = (SELECT max(id) FROM strangler.ledger); ALTER TABLE strangler.ledger ENABLE TRIGGER ALL";
    both.service.batch_execute(cut).await.unwrap();
    verified(both, (1, "is missing at the end"));
}

fn verified(both: &BothDropped, (exit, words): (i32, &str)) {
    let ended = both.split.run("ledger", &["--verify"]);
    assert_eq!(ended.exit, Some(exit), "{}", ended.page());
    assert!(flat(&ended.stdout).contains(words), "{}", ended.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn with_two_services_everything_goes_on_when_the_other_one_keeps_the_journal() {
    let mut both = both_dropped().await;
    let status = both.split.run("status", &["--format", "json"]);
    assert_eq!(status.exit, Some(0), "{}", status.page());
    for slice in document(&status)["slices"].as_array().unwrap() {
        assert_eq!(
            (&slice["phase"], &slice["alarms"]),
            (&"retired".into(), &serde_json::json!([])),
            "{slice:#}"
        );
    }
    let clean = vec![ends("one", "clean", 0), ends("two", "clean", 0)];
    assert_eq!(compared(&both.split, &[]), (Some(0), clean.clone()));
    both.service.batch_execute("INSERT INTO sales.notes VALUES (900, 77777)").await.unwrap();
    both.other.batch_execute("INSERT INTO sales.lines VALUES (900, 88888), (901, 88888)").await.unwrap();
    let differs = vec![ends("one", "differs", 1), ends("two", "differs", 2)];
    assert_eq!(compared(&both.split, &[]), (Some(1), differs.clone()));
    said_in_every_form(&both.split, &[], (1, &["one", "two", "orphan", "notes", "lines"]));
    // Back into their places, which are empty; nothing takes them for the slices' tables.
    for slice in ["one", "two"] {
        let at = both.archives.path().join(slice);
        let words = ["restore", "--from", at.to_str().unwrap(), "--to", "${ADMIN}"];
        let done = Ended::of(both.split.command(&words).output().unwrap());
        assert_eq!(done.exit, Some(0), "{}", done.page());
    }
    let rows = "SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM lines)";
    let row = both.monolith.query_one(rows, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) >= 50 && row.get::<_, i64>(1) == 20, "{row:?}");
    assert_eq!(compared(&both.split, &[]), (Some(1), differs));
    let elsewhere = other_database(&mut both.split, "elsewhere").await;
    let done = restore(&both.split, &both.archives.path().join("two"), &[]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    assert_eq!(elsewhere.query_one("SELECT count(*) FROM lines", &[]).await.unwrap().get::<_, i64>(0), 20);
    both.service.batch_execute("DELETE FROM sales.notes WHERE id = 900").await.unwrap();
    both.other.batch_execute("DELETE FROM sales.lines WHERE id >= 900").await.unwrap();
    assert_eq!(compared(&both.split, &[]), (Some(0), clean));
    ledgers_are_held_against_the_kept_journal(&both).await;
}

/// A slice of the first service that takes the table with the cut key, mirrored: our schema is on the monolith again.
async fn third_comes(both: &BothDropped) -> Mirror {
    let two = "tables: { lines: {} } }\n";
    both.split
        .change_plan(two, &format!("{two}  three: {{ service: service, tables: {{ later: {{}} }} }}\n"));
    both.split.provision();
    assert!(has_schema(&both.monolith).await);
    let known = "SELECT NOT EXISTS (SELECT FROM strangler.dropped)";
    assert!(
        both.monolith.query_one(known, &[]).await.unwrap().get::<_, bool>(0),
        "the monolith knows of nothing dropped"
    );
    let mirror = both.split.mirror(None);
    let live = "SELECT EXISTS (SELECT FROM strangler.mirror_table WHERE slice = 'three' AND state = 'live')";
    until("the table is live", SOON, async || {
        assert!(mirror.exited().is_none(), "{}", mirror.log());
        both.service.query_one(live, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    mirror
}

/// The comparison comes to this once the mirror has brought what was written.
fn comes_to(split: &Split, arguments: &[&str], expected: &(Option<i32>, Vec<(String, String, u64)>)) {
    until_blocking(&format!("{arguments:?} comes to {expected:?}"), SOON, || {
        (compared(split, arguments) == *expected).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slice_that_comes_when_our_schema_was_gone_knows_what_it_refers_to_and_so_do_retired_ones() {
    let mut both = both_dropped().await;
    let mirror = third_comes(&both).await;
    let all = |one, three, two| {
        let of = |slice, orphans| ends(slice, if orphans == 0 { "clean" } else { "differs" }, orphans);
        let exit = if one + three + two == 0 { 0 } else { 1 };
        let mut slices = vec![of("one", one), of("three", three), of("two", two)];
        // Those that are compared come first.
        slices.sort_by_key(|slice| slice.0 != "three");
        (Some(exit), slices)
    };
    comes_to(&both.split, &[], &all(0, 0, 0));
    let status = both.split.run("status", &["--format", "json"]);
    assert_eq!(status.exit, Some(0), "the mapping is the one that was provisioned: {}", status.page());
    both.monolith.batch_execute("INSERT INTO later VALUES (100, 77777)").await.unwrap();
    comes_to(&both.split, &[], &all(0, 1, 0));
    comes_to(&both.split, &["--slice", "three"], &(Some(1), vec![ends("three", "differs", 1)]));
    both.service.batch_execute("INSERT INTO sales.notes VALUES (900, 77777)").await.unwrap();
    both.other.batch_execute("INSERT INTO sales.lines VALUES (900, 88888)").await.unwrap();
    comes_to(&both.split, &[], &all(1, 1, 1));
    // What old tables were restored beside says nothing about rows that the services have.
    let at = both.archives.path().join("one");
    let words = ["restore", "--from", at.to_str().unwrap(), "--to", "${ADMIN}"];
    let done = Ended::of(both.split.command(&words).output().unwrap());
    assert_eq!(done.exit, Some(0), "{}", done.page());
    both.monolith.batch_execute("INSERT INTO accounts (id) VALUES (77777)").await.unwrap();
    comes_to(&both.split, &[], &all(1, 1, 1));
    // Nobody can be asked what the other service's tables were, so later may refer to one of them.
    both.monolith.batch_execute("DELETE FROM later WHERE id = 100").await.unwrap();
    comes_to(&both.split, &["--slice", "three"], &(Some(0), vec![ends("three", "clean", 0)]));
    lead_to_nobody(&mut both.split);
    assert_eq!(compared(&both.split, &["--slice", "three"]), (Some(5), vec![ends("three", "incomplete", 0)]));
    let words = ["whether later refers to tables of slice two is not known", "service other can't be asked"];
    said_in_every_form(&both.split, &["--slice", "three"], (5, &words));
    let everything = both.split.run("reconcile", &[]);
    assert_eq!(everything.exit, Some(4), "{}", everything.page());
    lead_to_other(&mut both.split);
    comes_to(&both.split, &["--slice", "three"], &(Some(0), vec![ends("three", "clean", 0)]));
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_entry_that_does_not_fit_what_was_dropped_is_never_clean() {
    let (split, _monolith, _service, mirror) = one_of_two_dropped().await;
    let clean = (Some(0), vec![ends("two", "clean", 0), ends("one", "clean", 0)]);
    comes_to(&split, &[], &clean);
    // A table that was never there, and one that the other slice refers to, which no slice takes any more.
    split.change_plan("notes: {} }", "notes: {}, never: {} }");
    let (exit, found) = compared(&split, &[]);
    assert_eq!((exit, &found[1]), (Some(5), &ends("one", "incomplete", 0)), "{found:?}");
    said_in_every_form(
        &split,
        &[],
        (5, &["never", "does not fit what is written down of the dropped tables"]),
    );
    split.change_plan("notes: {}, never: {} }", "notes: {} }");
    comes_to(&split, &[], &clean);
    split.change_plan("{ accounts: {}, moves", "{ moves");
    let (exit, found) = compared(&split, &["--slice", "two"]);
    assert_eq!((exit, found), (Some(5), vec![ends("two", "incomplete", 0)]));
    said_in_every_form(&split, &["--slice", "two"], (5, &["no slice of the plan takes it"]));
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_archive_goes_back_to_where_its_tables_were_while_our_schema_stands() {
    let folder = tempfile::tempdir().unwrap();
    let (split, monolith, service) = privilege::open(TWO, &format!("{SETUP}{REFERRING}")).await;
    hasty(&split, &monolith).await;
    let mirror = crate::flip::mirrored_and_armed(&split, &monolith, &service).await;
    drop_one(&split, &monolith, folder.path()).await;
    assert!(has_schema(&monolith).await);
    let words = ["restore", "--from", folder.path().to_str().unwrap(), "--to", "${ADMIN}"];
    let restore = || Ended::of(split.command(&words).output().unwrap());
    let done = restore();
    assert_eq!(done.exit, Some(0), "{}", done.page());
    let rows: i64 = monolith.query_one("SELECT count(*) FROM notes", &[]).await.unwrap().get(0);
    assert_eq!(rows, 20);
    refused(&restore(), &["restore-taken"]);
    // The service has the rows; what was restored is none of the plan's tables.
    service.batch_execute("DELETE FROM sales.accounts WHERE id = 20").await.unwrap();
    comes_to(&split, &["--slice", "two"], &(Some(1), vec![ends("two", "differs", 1)]));
    mirror.stop();
}
