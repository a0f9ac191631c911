//! Many rows that one side does not have at all.

use strangler::reconcile::finding::FindingKind::{Extra, Missing};

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::Split;

const SETUP: &str = "CREATE TABLE words (word text COLLATE \"en-x-icu\" PRIMARY KEY);
    INSERT INTO words SELECT 'word ' || i FROM generate_series(1, 60000) i;
    CREATE TABLE nums (id int PRIMARY KEY); INSERT INTO nums SELECT generate_series(1, 100); ANALYZE";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_side_without_rows_in_the_last_buckets_is_compared_to_its_end() {
    let (split, monolith, service) = Split::launch("{ words: {}, nums: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror_as(None, &[]);
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, "DELETE FROM words; INSERT INTO nums SELECT generate_series(1001, 61001)").await;
    let run = Run::read(split.run("reconcile", &["--format", "json", "--list", "1"]));
    assert_eq!(run.reasons(), "");
    assert_eq!(run.counts(), [(Missing, 60_000), (Extra, 60_001)].into());
    assert_eq!((run.rows("words"), run.rows("nums")), ((60_000, 0), (100, 60_101)));
}
