//! What `--changed-since` looks at after authority went there and back.

use super::bank::Side;
use super::{armed_with, flip, quiet};
use crate::truth::stage::corrupt;

const SETUP: &str = "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i; ANALYZE";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_position_from_before_a_flip_and_back_asks_for_the_whole_table() {
    let (split, monolith, service, mirror) = armed_with("{ t: {} }", SETUP, "").await;
    let position = "SELECT pg_current_wal_insert_lsn()::text";
    let before: String = monolith.query_one(position, &[]).await.unwrap().get(0);
    flip(&split, &mirror, Side::Service);
    service.batch_execute("UPDATE t SET v = -1 WHERE id = 7").await.unwrap();
    let on_service: String = service.query_one(position, &[]).await.unwrap().get(0);
    flip(&split, &mirror, Side::Monolith);
    quiet(&monolith, &service).await;
    // Written while the stream from the monolith only watched, so that it has listed nothing of it.
    corrupt(&service, "UPDATE t SET v = 7 WHERE id = 7").await;
    let since = |position: &str| split.run("reconcile", &["--changed-since", position]);
    let run = since(&before);
    assert_eq!(run.exit, Some(1), "{}", run.page());
    corrupt(&service, "UPDATE t SET v = -1 WHERE id = 7").await;
    let whole = split.run("reconcile", &[]);
    assert_eq!(whole.exit, Some(0), "{}", whole.page());

    flip(&split, &mirror, Side::Service);
    quiet(&monolith, &service).await;
    corrupt(&monolith, "UPDATE t SET v = 7 WHERE id = 7").await;
    let run = since(&on_service);
    assert_eq!(run.exit, Some(1), "{}", run.page());
}
