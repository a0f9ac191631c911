//! `--changed-since` where not every touched row is known: the whole table is compared, its references among it.

use strangler::reconcile::finding::FindingKind::Orphan;
use strangler::reconcile::verdict::Coverage;

use super::found::Run;
use crate::support::split::Split;

const SETUP: &str = "CREATE TABLE customers (id int PRIMARY KEY);
    CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers);
    INSERT INTO customers SELECT generate_series(1, 20); INSERT INTO orders SELECT i, 1 + i % 20 FROM generate_series(1, 100) i";

/// Five orders lose their customer, and the table is loaded anew, so that the stream says nothing of single rows.
const ORPHANED: &str = "BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM customers WHERE id = 7;
    CREATE TEMP TABLE kept ON COMMIT DROP AS TABLE orders; TRUNCATE orders; INSERT INTO orders TABLE kept; COMMIT";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn whole_tables_in_the_place_of_changed_rows_are_searched_for_orphans_and_clear_no_alarm_without_it() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &[]).assert_clean();
    monolith.batch_execute(ORPHANED).await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let assert_orphans = |arguments: &[&str]| {
        let run = Run::of(&split, arguments);
        assert_eq!((run.counts(), run.ended.exit), ([(Orphan, 5)].into(), Some(1)), "{}", run.ended.page());
        let slice = &run.document.slices[0];
        assert_eq!((slice.full, slice.tables[0].coverage), (true, Coverage::Full));
    };
    for arguments in [&["--changed-since", "last"][..], &[], &["--changed-since", "0/1"]] {
        assert_orphans(arguments);
        let status = split.run("status", &[]);
        assert!(status.stdout.contains("found differences in orders"), "{}", status.page());
    }
    monolith.batch_execute("INSERT INTO customers VALUES (7)").await.unwrap();
    let run = Run::of(&split, &["--changed-since", "0/1"]);
    run.assert_clean();
    assert!(run.document.slices[0].full, "rows and references of every table were looked at");
    let status = split.run("status", &[]);
    assert!(status.stdout.contains("stands: both sides are proven equal"), "{}", status.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_compared_nothing_is_not_full_and_clears_no_alarm() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    monolith.batch_execute(ORPHANED).await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    assert_eq!(Run::of(&split, &[]).ended.exit, Some(1));
    mirror.kill();
    service
        .batch_execute("UPDATE strangler.mirror_process SET seen_at = seen_at - interval '1 hour'")
        .await
        .unwrap();
    let run = Run::of(&split, &[]);
    run.assert_incomplete(&["no mirror is running"]);
    let slice = &run.document.slices[0];
    assert_eq!((slice.full, slice.tables[0].coverage), (false, Coverage::CutShort));
    let status = split.run("status", &[]);
    let page = status.page();
    assert!(status.stdout.contains("found differences in orders"), "{page}");
    assert!(
        status.stdout.contains("1 table, not all rows") && !status.stdout.contains("incomplete, every row"),
        "{page}"
    );
}
