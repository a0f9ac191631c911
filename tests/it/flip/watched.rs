//! The watch over a closed monolith when its publication is touched: it is begun anew, and authority still comes home.

use tokio_postgres::Client;

use super::bank::Side;
use super::{AGAIN, UNPROVEN, armed_with, complete, flip, quiet};
use crate::ledger::told::told;
use crate::support::split::Split;
use crate::support::tables::{self, assert_same};
use crate::support::wait::{SOON, until, until_blocking};

const TABLES: &str = "{ t: {}, \"Odd name\": {} }";
const SETUP: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i;
    CREATE TABLE \"Odd name\" (id int PRIMARY KEY, v int); INSERT INTO \"Odd name\" VALUES (1, 1)";

const CAME_BACK: &str = "ALTER PUBLICATION strangler_split_one DROP TABLE \"Odd name\";
    ALTER PUBLICATION strangler_split_one ADD TABLE \"Odd name\"";
const MADE_AGAIN: &str =
    "DROP PUBLICATION strangler_split_one; CREATE TABLE other (id int); INSERT INTO other VALUES (1)";

fn proven(split: &Split) {
    until_blocking("both sides are proven equal", SOON, || {
        let ended = split.run("reconcile", &[]);
        assert!(matches!(ended.exit, Some(0 | 5)), "{}", ended.page());
        (ended.exit == Some(0)).then_some(())
    });
}

/// A start with a table to copy again stops the watch, names what begins it anew, and leaves authority where it is.
async fn says_what_helps(split: &Split, service: &Client, words: &str) {
    // A table that was named has nothing to be copied from, and what is said names the way out.
    let mirror = split.mirror_with(None, &["--retry", "t"]);
    until("it says why it does not go on", SOON, async || mirror.log().contains(words).then_some(())).await;
    let stopped = "SELECT detail LIKE '%--rebuild, which begins it anew and copies nothing; then strangler reconcile%' \
        FROM strangler.mirror_process WHERE dir = 'forward'";
    until("it says what helps", SOON, async || {
        service
            .query_one(stopped, &[])
            .await
            .unwrap()
            .get::<_, Option<bool>>(0)
            .filter(|said| *said)
            .map(drop)
    })
    .await;
    mirror.kill();
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let slice = &document["slices"][0];
    assert_eq!(slice["evidence"]["stands"], false, "{document:#}");
    let next = slice["next"].as_str().unwrap();
    assert!(next.starts_with("strangler mirror plan.yaml --slice one --rebuild"), "{next}");
    let refused = split.run("flip", &[&["--back"], &UNPROVEN[..]].concat());
    assert_ne!(refused.exit, Some(0), "nobody watches: {}", refused.page());
}

async fn there_and_back_over(touched: &str, while_it_runs: bool, words: &str) {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    flip(&split, &mirror, Side::Service);
    service.batch_execute("UPDATE t SET v = -v WHERE id = 1").await.unwrap();
    quiet(&monolith, &service).await;
    proven(&split);
    if !while_it_runs {
        mirror.stop();
    }
    monolith.batch_execute(touched).await.unwrap();
    if while_it_runs {
        let stopped = "SELECT stopped_at IS NOT NULL FROM strangler.mirror_process WHERE dir = 'forward'";
        until("the watch stops", SOON, async || {
            service.query_one(stopped, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
        mirror.stop();
    }
    let provisioned = split.run("provision", &[]);
    assert_eq!(provisioned.exit, Some(0), "{}", provisioned.page());
    if touched == MADE_AGAIN {
        assert!(provisioned.page().contains("copies nothing"), "{}", provisioned.page());
    }

    says_what_helps(&split, &service, words).await;
    let killed = split.mirror_with(Some("rewatch-recorded"), &["--rebuild"]);
    until_blocking("the watch is recorded", SOON, || killed.exited());
    let mirror = split.mirror_with(None, &["--rebuild"]);
    service.batch_execute("UPDATE t SET v = -v WHERE id = 2").await.unwrap();
    until("the watch goes on", SOON, async || {
        assert!(mirror.exited().is_none(), "{}", mirror.log());
        let alarms = told(&service, "alarm").await;
        alarms.iter().any(|one| one.body["alarm"] == "unwatched").then_some(())
    })
    .await;
    quiet(&monolith, &service).await;
    proven(&split);
    until_blocking("authority comes home", SOON, || {
        let ended = split.run("flip", &["--back"]);
        assert!(
            ended.exit == Some(0) || AGAIN.iter().any(|one| ended.stderr.contains(one)),
            "{}",
            ended.page()
        );
        (ended.exit == Some(0)).then_some(())
    });
    monolith.batch_execute("UPDATE t SET v = -v WHERE id = 3; UPDATE \"Odd name\" SET v = 7").await.unwrap();
    quiet(&monolith, &service).await;
    for query in ["TABLE t", "TABLE \"Odd name\""] {
        let (here, there) =
            (tables::Side { client: &monolith, query }, tables::Side { client: &service, query });
        assert_same(here, there).await;
    }
    let moved = "SELECT count(*) FROM t WHERE v < 0";
    assert_eq!(monolith.query_one(moved, &[]).await.unwrap().get::<_, i64>(0), 3);
    complete(&split, &mirror, &UNPROVEN);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_that_left_the_watched_publication_and_came_back_does_not_keep_authority_from_home() {
    there_and_back_over(CAME_BACK, true, "left the publication of slice one and came back").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_that_left_the_watched_publication_while_nobody_looked_does_not_keep_authority_from_home() {
    there_and_back_over(CAME_BACK, false, "left the publication of slice one and came back").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_watched_publication_that_was_made_again_does_not_keep_authority_from_home() {
    there_and_back_over(MADE_AGAIN, true, "publication").await;
}
