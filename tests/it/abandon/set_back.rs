//! Where the monolith need not have any more what was copied from it, the copies stay.

use std::os::unix::process::ExitStatusExt;

use tokio_postgres::Client;

use super::{abandon, flat, take_back, token};
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 20) i";

fn drops(page: &str) -> bool {
    page.lines().any(|line| line.starts_with("DROP TABLE \"public\""))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn copies_of_what_the_monolith_may_lack_stay_also_behind_a_run_that_dies() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let marks = "SELECT count(*) FROM strangler.lineage";
    until("a mark has come down the stream", SOON, async || {
        (service.query_one(marks, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    mirror.stop();
    let shown = abandon(&split, "one", &[]);
    assert!(drops(&shown.stdout), "so it would be: {}", shown.page());
    let shown = token(&shown);
    // What each of them leaves in the databases; tests/it/lineage.rs puts files back.
    for (client, away, back, why) in [
        (
            &monolith,
            "UPDATE strangler.lineage SET mark = mark - 1000000",
            "UPDATE strangler.lineage SET mark = mark + 1000000",
            "which the mirror wrote there, is gone",
        ),
        (
            &service,
            "UPDATE strangler.stream SET src_timeline = src_timeline + 1",
            "UPDATE strangler.stream SET src_timeline = src_timeline - 1",
            "went on as timeline 1",
        ),
        (
            &service,
            "UPDATE strangler.stream SET applied_lsn = applied_lsn + 1000000000000::numeric",
            "UPDATE strangler.stream SET applied_lsn = applied_lsn - 1000000000000::numeric",
            "its log ends before",
        ),
    ] {
        client.batch_execute(away).await.unwrap();
        let preview = abandon(&split, "one", &[]);
        assert!(!drops(&preview.stdout), "{away}: {}", preview.page());
        let said = flat(&preview.stderr);
        assert!(said.contains("(table-stays)") && said.contains(why), "{away}: {}", preview.page());
        let old = abandon(&split, "one", &["--confirm", &shown]);
        assert_eq!(old.exit, Some(3), "{away}: {}", old.page());
        client.batch_execute(back).await.unwrap();
    }
    monolith.batch_execute("UPDATE strangler.lineage SET mark = mark - 1000000").await.unwrap();
    let shown = token(&abandon(&split, "one", &[]));
    super::crashes::killed_at(&split, "one", "abandon-monolith-cleared", &[&shown]);
    let ended = abandon(&split, "one", &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    let rows: i64 = service.query_one("SELECT count(*) FROM orders", &[]).await.unwrap().get(0);
    assert_eq!(
        rows,
        20,
        "the monolith has forgotten its marks, and the rows are still not the tool's to take: {}",
        ended.page()
    );
    service.batch_execute("DROP TABLE orders").await.unwrap();
    split.provision();
    take_back(&split, "one", &[]);
}

async fn mirrored() -> (Split, Client, Client) {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    (split, monolith, service)
}

async fn rows(service: &Client) -> i64 {
    service.query_one("SELECT count(*) FROM orders", &[]).await.unwrap().get(0)
}

/// As a dump from before `provision` leaves it, that is put back in place: the same database, whose log goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_without_a_trace_of_the_slice_was_set_back_until_the_copies_are_taken() {
    for point in ["abandon-begun", "abandon-copies-taken"] {
        let (split, monolith, service) = mirrored().await;
        let shown = token(&abandon(&split, "one", &[]));
        super::crashes::killed_at(&split, "one", point, &[&shown]);
        let put_back = "DROP PUBLICATION strangler_split_one; DROP SCHEMA strangler CASCADE; DELETE FROM orders WHERE id > 10";
        monolith.batch_execute(put_back).await.unwrap();
        let ended = abandon(&split, "one", &["--confirm", &shown]);
        if point == "abandon-copies-taken" {
            assert_eq!(ended.exit, Some(0), "they are gone: {}", ended.page());
            continue;
        }
        assert_eq!(ended.exit, Some(1), "{}", ended.page());
        let said = flat(&ended.stderr);
        assert!(said.contains("(table-stays)"), "{}", ended.page());
        assert!(said.contains("the monolith knows nothing of the slice any more"), "{}", ended.page());
        assert_eq!(rows(&service).await, 20, "{}", ended.page());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_a_monolith_was_seen_to_lack_once_it_lacks_whatever_its_log_does_since() {
    for begun in [false, true] {
        let (split, _monolith, service) = mirrored().await;
        let shown = token(&abandon(&split, "one", &[]));
        if begun {
            super::crashes::killed_at(&split, "one", "abandon-begun", &[&shown]);
        }
        let far = "UPDATE strangler.stream SET applied_lsn = applied_lsn + 1000000000000::numeric";
        service.batch_execute(far).await.unwrap();
        let mut command = split.command(&["abandon", "plan.yaml", "--slice", "one"]);
        command.env("STRANGLER_FAILPOINT", "abandon-lack-noted");
        assert_eq!(command.output().unwrap().status.signal(), Some(9), "a preview writes it down");
        let near = "UPDATE strangler.stream SET applied_lsn = applied_lsn - 1000000000000::numeric";
        service.batch_execute(near).await.unwrap();
        let preview = abandon(&split, "one", &[]);
        assert!(!drops(&preview.stdout), "{}", preview.page());
        assert!(flat(&preview.stderr).contains("its log ends before"), "{}", preview.page());
        let shown = if begun { shown } else { token(&preview) };
        let ended = abandon(&split, "one", &["--confirm", &shown]);
        assert_eq!(ended.exit, Some(1), "{}", ended.page());
        assert_eq!(rows(&service).await, 20, "{}", ended.page());
    }
}
