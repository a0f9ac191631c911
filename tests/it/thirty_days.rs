//! The whole journey of the retail plan with the plan's own periods, while time is moved: a week of mirroring, a flip, thirty days in
//! which a timer compares, a reader of the last day, and the end of all old tables.

mod shop;

use std::path::Path;

use rustix::process::Signal;
use strangler::cluster::Cluster;
use tokio_postgres::Client;

use crate::flip::complete;
use crate::support::catalogs::{assert_untouched, catalogs};
use crate::support::cluster::{Pair, connect, create_database};
use crate::support::split::Mirror;
use crate::support::tables::{difference, dump};
use crate::support::wait::{LONG, SOON, until};
use shop::{MOVED, NAMED, SLICES, STAYING, Shop};

/// The slice that everything is shown with.
const SLICE: &str = "ordering";
const OF_SLICE: [&str; 2] = ["--slice", SLICE];
/// When the authority moves, in days after the test began: the plan wants a week of mirroring before.
const FLIP: u32 = 7;
/// So many days behind it somebody reads an old table. The plan wants that nobody does for a week.
const READ: u32 = 29;

const REVOKE: (&str, &[&str]) = ("retire", &["--slice", SLICE, "--stage", "revoke"]);
const QUARANTINE: (&str, &[&str]) = ("retire", &["--slice", SLICE, "--stage", "quarantine"]);
const DROP: (&str, &[&str]) = ("retire", &["--slice", SLICE, "--stage", "drop"]);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn the_retail_plan_goes_to_its_end_with_its_own_periods_and_nothing_is_left_but_what_was_there() {
    let shop = Shop::open().await;
    let (catalogs, staying) = (catalogs(&shop.monolith).await, rows(&shop.monolith, &STAYING).await);
    let mirror = mirrored(&shop).await;
    let till = shop.till().await;
    a_week_of_mirroring(&shop, &mirror);
    let timer = begun(&shop).await;
    thirty_days(&shop, &timer).await;
    a_week_of_quiet(&shop, &timer).await;
    timer.signal(Signal::INT);
    assert_eq!(timer.ended().0.code(), Some(130));

    let folder = tempfile::tempdir().unwrap();
    first_stages(&shop).await;
    let kept = till.pause().await;
    shop.orders_are_back().await;
    let archived = old_orders(&shop.monolith).await;
    last_stages(&shop, folder.path());
    drop(kept);
    for (slice, _) in SLICES.iter().skip(1) {
        shop.staged(slice, "revoke", None);
        shop.staged(slice, "quarantine", None);
        shop.staged(slice, "archive", Some(&folder.path().join(slice)));
        shop.staged(slice, "drop", None);
    }
    let (ended, said) = mirror.ended();
    assert_eq!(ended.code(), Some(0), "{said}");

    assert_nothing_of_ours(&shop, &catalogs).await;
    assert_eq!(rows(&shop.monolith, &STAYING).await, staying);
    assert_restored(&shop, (&folder.path().join(SLICE), &archived)).await;
    let acknowledged = till.close().await;
    let there = dump(shop.service_of(SLICE), r#"SELECT "OrderNumber" FROM sales."Orders""#).await;
    let lost: Vec<_> = acknowledged.iter().filter(|number| there.binary_search(number).is_err()).collect();
    assert!(
        !acknowledged.is_empty() && lost.is_empty(),
        "{} of {}: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    let status = shop.done("status", &NAMED);
    assert_eq!(status.stdout.matches("tables dropped since ").count(), SLICES.len(), "{}", status.page());
}

/// Rows of tables, each with its table.
async fn rows(client: &Client, tables: &[&str]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for table in tables {
        all.push(dump(client, &format!(r#"TABLE "{table}""#)).await);
    }
    all
}

/// Everything is copied and armed, and proven.
async fn mirrored(shop: &Shop) -> Mirror {
    shop.done("check", &[]);
    shop.done("provision", &NAMED);
    let mirror = shop.split.mirror_with(None, &NAMED);
    for (slice, service) in SLICES {
        mirror.caught_up_in(slice, &shop.monolith, &shop.services[service]).await;
    }
    shop.done("arm", &NAMED);
    shop.done("reconcile", &NAMED);
    mirror
}

/// Before a week is over nothing moves, nor without a proof that is a day old at most.
fn a_week_of_mirroring(shop: &Shop, mirror: &Mirror) {
    shop.refused(REVOKE, &["not-flipped"], &[]);
    let early = shop.refused(("flip", &OF_SLICE), &["mirrored-too-short"], &["no-evidence"]);
    assert!(early.contains("live for 0.0 h, and min_mirror_time is 168.0 h"), "{early}");
    shop.date(FLIP, 1);
    let old = shop.refused(("flip", &OF_SLICE), &["no-evidence"], &["mirrored-too-short"]);
    assert!(old.contains("began 7 d 1 h ago, and evidence_max_age is 1 d"), "{old}");
    shop.done("reconcile", &NAMED);
    for (slice, _) in SLICES {
        complete(&shop.split, mirror, &["--slice", slice]);
    }
}

/// The authority has moved, and a timer begins to compare every day.
async fn begun(shop: &Shop) -> Mirror {
    shop.refused(REVOKE, &["safety-period", "clean-runs", "no-evidence"], &[]);
    // A run that meets a stream which is still being turned gives no verdict, and the next one is a day away.
    shop.orders_are_back().await;
    let words = ["reconcile", "plan.yaml", "--slice", SLICE, "--every", "24h", "--jitter", "0s"];
    let timer = shop.split.logged("timer.log", shop.split.command(&words));
    proven(shop, &timer, 1).await;
    shop.watched().await;
    let one = shop.refused(REVOKE, &["safety-period", "clean-runs", "quiet-period"], &["no-evidence"]);
    assert!(one.contains("1 full verdict was clean since the authority moved"), "{one}");
    timer
}

/// The timer's verdicts since the flip are so many by now, all of them full and clean.
async fn proven(shop: &Shop, timer: &Mirror, verdicts: i64) {
    let sql = "SELECT count(*), count(*) FILTER (WHERE body ->> 'full' = 'true' AND body ->> 'outcome' = 'clean') \
        FROM strangler.ledger WHERE slice = $1 AND kind = 'verdict' \
            AND id > (SELECT max(id) FROM strangler.ledger WHERE slice = $1 AND kind = 'flip')";
    until("the timer compares", LONG, async || {
        let row = shop.service_of(SLICE).query_one(sql, &[&SLICE]).await.unwrap();
        let (all, clean): (i64, i64) = (row.get(0), row.get(1));
        let failed =
            ["no verdict", "could not begin", "left out"].iter().any(|words| timer.log().contains(words));
        assert!(
            all == clean && !failed && timer.exited().is_none(),
            "{verdicts} are wanted: {}",
            timer.log()
        );
        (clean >= verdicts).then_some(())
    })
    .await;
}

/// A verdict each day; on the last but one somebody reads.
async fn thirty_days(shop: &Shop, timer: &Mirror) {
    for day in 1..=30 {
        shop.date(FLIP + day, 2);
        proven(shop, timer, i64::from(day) + 1).await;
        if day == 3 {
            shop.watched().await;
            shop.refused(
                REVOKE,
                &["safety-period", "quiet-period"],
                &["clean-runs", "no-evidence", "clock-apart"],
            );
            wrong_clock(shop);
        }
        if day == READ {
            somebody_reads(shop).await;
        }
    }
    shop.watched().await;
    let read = shop.refused(
        REVOKE,
        &["still-used", "retire-view"],
        &["safety-period", "clean-runs", "quiet-period"],
    );
    assert!(read.contains("role retail_app, nightly report, 127.0.0.1"), "{read}");
}

/// A machine that lives in another month ends no period.
fn wrong_clock(shop: &Shop) {
    let mut command = shop.split.command(&["retire", "plan.yaml", "--slice", SLICE, "--stage", "revoke"]);
    let ended = shop.split.start_command({
        command.env("STRANGLER_CLOCK_WRONG", "+40d");
        command
    });
    let ended = ended.ended();
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    let fact = "its clock is 40 d 0 h ahead of both databases' servers";
    assert!(ended.stderr.contains("(clock-apart)") && ended.stderr.contains(fact), "{}", ended.page());
    assert!(!ended.stderr.contains("(safety-period)"), "it would have ended early: {}", ended.page());
}

/// A report of the old days.
async fn somebody_reads(shop: &Shop) {
    let reader = connect(&shop.split.pair.monolith.url_as("retail_app", "", Pair::MONOLITH)).await;
    reader.batch_execute("SET application_name = 'nightly report'").await.unwrap();
    reader.batch_execute(r#"BEGIN; SELECT count(*) FROM "Orders""#).await.unwrap();
    let met = "SELECT count(*) > 0 FROM strangler.table_user WHERE application = 'nightly report'";
    until("the reader is met", SOON, async || {
        shop.monolith.query_one(met, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    reader.batch_execute("COMMIT").await.unwrap();
}

/// Once nobody has read for a week, what still stands in the way is a view that was forgotten.
async fn a_week_of_quiet(shop: &Shop, timer: &Mirror) {
    shop.date(FLIP + READ + 8, 2);
    proven(shop, timer, 32).await;
    shop.watched().await;
    let others = ["still-used", "safety-period", "clean-runs", "quiet-period", "no-evidence", "not-watched"];
    let view = shop.refused(REVOKE, &["retire-view"], &others);
    for part in ["ProductSales", "the view names OrderLines", r#"sum(l."LineTotal") AS "Revenue""#] {
        assert!(view.contains(part), "{part}: {view}");
    }
    shop.monolith.batch_execute(r#"DROP VIEW "ProductSales""#).await.unwrap();
    // The other slice was not compared since the flip, and is now, as often as the plan wants it.
    for _ in 0..3 {
        shop.done("reconcile", &NAMED);
    }
}

/// Rights and places are given back as they were, and taken again.
async fn first_stages(shop: &Shop) {
    let before = catalogs(&shop.monolith).await;
    shop.refused(QUARANTINE, &["stage-before"], &[]);
    shop.staged(SLICE, "revoke", None);
    shop.done("unretire", &OF_SLICE);
    assert_untouched(&before, &catalogs(&shop.monolith).await);
    shop.staged(SLICE, "revoke", None);
    shop.staged(SLICE, "quarantine", None);
    shop.done("unretire", &OF_SLICE);
    assert_untouched(&before, &catalogs(&shop.monolith).await);
    shop.staged(SLICE, "revoke", None);
    shop.staged(SLICE, "quarantine", None);
    shop.refused(DROP, &["archive-missing"], &[]);
}

/// An archive that does not prove itself is none; the tables come back from behind it too.
fn last_stages(shop: &Shop, folder: &Path) {
    let first = folder.join("first");
    shop.staged(SLICE, "archive", Some(&first));
    shop.done("unretire", &OF_SLICE);
    shop.staged(SLICE, "revoke", None);
    shop.staged(SLICE, "quarantine", None);
    shop.refused(DROP, &["archive-missing"], &[]);
    let at = folder.join(SLICE);
    shop.staged(SLICE, "archive", Some(&at));
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at.join("manifest.json")).unwrap()).unwrap();
    let part = at.join(manifest["relations"][0]["parts"][0]["file"].as_str().unwrap());
    let whole = std::fs::read(&part).unwrap();
    std::fs::write(&part, &whole[1..]).unwrap();
    let damaged = shop.split.run(DROP.0, DROP.1);
    assert!(damaged.exit == Some(1) && damaged.stderr.contains("archive-damaged"), "{}", damaged.page());
    std::fs::write(&part, whole).unwrap();
    shop.staged(SLICE, "drop", None);
}

/// The old orders and their lines, wherever they stand.
async fn old_orders(monolith: &Client) -> Vec<Vec<String>> {
    let sql =
        "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'Orders' AND relkind = 'r'";
    let schema: String = monolith.query_one(sql, &[]).await.unwrap().get(0);
    let mut all = Vec::new();
    for table in ["Orders", "OrderLines"] {
        all.push(dump(monolith, &format!(r#"TABLE {schema}."{table}""#)).await);
    }
    all
}

/// The catalogs are what they were, but for the old tables and what belongs to them.
async fn assert_nothing_of_ours(shop: &Shop, before: &[String]) {
    let after = catalogs(&shop.monolith).await;
    // Keys among the tables and to those that stay have triggers of their own at both ends.
    let of_old = |line: &&String| {
        line.contains("ProductSales")
            || line.contains("RI_FKey")
            || MOVED.iter().any(|table| line.contains(table))
    };
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line) && !of_old(line)).cloned().collect()
    };
    let (gone, new) = (only(before, &after), only(&after, before));
    assert!(gone.is_empty() && new.is_empty(), "gone:\n{}\nnew:\n{}", gone.join("\n"), new.join("\n"));
    let left: Vec<_> = after.iter().filter(|line| MOVED.iter().any(|table| line.contains(table))).collect();
    assert!(left.is_empty(), "{left:#?}");
    let ours = "SELECT to_regnamespace('strangler') IS NULL AND NOT EXISTS (SELECT FROM pg_replication_slots) \
        AND NOT EXISTS (SELECT FROM pg_publication)";
    assert!(shop.monolith.query_one(ours, &[]).await.unwrap().get::<_, bool>(0));
}

/// The archive makes the tables with every row that they had.
async fn assert_restored(shop: &Shop, (at, archived): (&Path, &[Vec<String>])) {
    create_database(&shop.split.pair.monolith, "elsewhere").await;
    let url = shop.split.pair.monolith.url("elsewhere");
    let words = ["restore", "--from", at.to_str().unwrap(), "--to", "${ELSEWHERE}"];
    let mut command = shop.split.command(&words);
    command.env("ELSEWHERE", &url);
    let restored = shop.split.start_command(command).ended();
    assert_eq!(restored.exit, Some(0), "{}", restored.page());
    for (then, now) in archived.iter().zip(old_orders(&connect(&url).await).await) {
        assert_eq!(difference(then, &now), None);
        assert!(!now.is_empty());
    }
}
