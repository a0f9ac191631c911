//! Where the monolith need not have any more what was copied from it, the copies stay.

use super::{abandon, flat, take_back, token};
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 20) i";

fn drops(page: &str) -> bool {
    page.lines().any(|line| line.starts_with("DROP TABLE \"public\""))
}

#[tokio::test(flavor = "multi_thread")]
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
