//! What a move was judged by is asked again while the writers are held: a table that diverged, was copied again or changed without an
//! event since is not handed over.

use rustix::process::Signal;
use tokio_postgres::Client;

use super::bank::Side;
use super::crash::frozen;
use super::{UNPROVEN, armed_with, complete, owner};
use crate::support::binary::flat;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until, until_blocking};

const TABLES: &str = "{ t: {}, ev: {} }";

const SETUP: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i;
CREATE TABLE ev (id int, region int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE ev0 PARTITION OF ev FOR VALUES IN (0); CREATE TABLE ev1 PARTITION OF ev FOR VALUES IN (1);
INSERT INTO ev SELECT i, i % 2 FROM generate_series(1, 20) i; ANALYZE";

async fn count(client: &Client, table: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

/// Writes what the service refuses, and waits until the table stands still.
async fn diverge(monolith: &Client, service: &Client) {
    service.batch_execute("ALTER TABLE t ADD CONSTRAINT small CHECK (v < 1000)").await.unwrap();
    monolith.batch_execute("UPDATE t SET v = 2000 WHERE id = 1").await.unwrap();
    let state = "SELECT state = 'diverged' FROM strangler.mirror_table WHERE source_table = 't'";
    until("the table diverges", SOON, async || {
        service.query_one(state, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

/// Copies tables again, with a mirror that goes on.
async fn heal(split: &Split, mirror: Mirror, tables: &[&str], sides: (&Client, &Client)) -> Mirror {
    mirror.stop();
    sides.0.batch_execute("UPDATE t SET v = 1 WHERE id = 1").await.unwrap();
    sides.1.batch_execute("ALTER TABLE t DROP CONSTRAINT IF EXISTS small").await.unwrap();
    let retry: Vec<&str> = tables.iter().flat_map(|table| ["--retry", table]).collect();
    let mirror = split.mirror_with(None, &retry);
    mirror.caught_up(sides.0, sides.1).await;
    let read =
        "SELECT EXISTS (SELECT FROM strangler.mirror_process WHERE dir = 'reverse' AND stopped_at IS NULL)";
    until("the way back is read", SOON, async || {
        sides.0.query_one(read, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    mirror
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_that_changed_since_it_was_judged_is_not_handed_over() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    let refused = |late: crate::support::split::Background, code: &str, fact: &str| {
        late.signal(Signal::CONT);
        let ended = late.ended();
        assert_eq!(ended.exit, Some(3), "{}", ended.page());
        for words in [code, fact, "authority was not moved", "strangler status plan.yaml --slice one"] {
            assert!(flat(&ended.stderr).contains(words), "{words}: {}", ended.page());
        }
    };
    let late = frozen(&split, "flip-looked", Side::Service, &[]);
    monolith.batch_execute("TRUNCATE ev1").await.unwrap();
    // Also where the mirror has ended over it meanwhile, so that nothing is drained in time.
    let ended = "SELECT stopped_at IS NOT NULL FROM strangler.mirror_process WHERE dir = 'forward'";
    until("the mirror ends", SOON, async || {
        service.query_one(ended, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    refused(late, "(changed-meanwhile)", "the definition of table ev changed on the monolith's side");
    let mirror = heal(&split, mirror, &["ev"], (&monolith, &service)).await;
    assert_eq!(count(&service, "ev").await, 10);

    let late = frozen(&split, "flip-looked", Side::Service, &[]);
    diverge(&monolith, &service).await;
    refused(late, "(changed-meanwhile)", "since it was judged: table t is diverged");
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("OPEN", "FENCED"));
    let mirror = heal(&split, mirror, &["t"], (&monolith, &service)).await;

    // While a hook runs.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let hook = format!(
        "{{ before: [{{ command: [sh, -c, \"touch {}; until [ -e {} ]; do sleep 0.05; done\"] }}], \
           after: [{{ command: [touch, {}] }}] }}",
        path("begun").display(),
        path("go").display(),
        path("after").display()
    );
    let plan = split.plan_text();
    split.change_plan("write_pause_budget: 2s", &format!("write_pause_budget: 2s, hooks: {hook}"));
    let flip = split.start("flip", &UNPROVEN);
    until_blocking("the hook runs", SOON, || path("begun").exists().then_some(()));
    diverge(&monolith, &service).await;
    std::fs::write(path("go"), "").unwrap();
    refused(flip, "(tables-not-live)", "t is diverged");
    assert!(path("after").exists(), "what the hook held back is let go");
    split.write_plan(&plan);
    let mirror = heal(&split, mirror, &["t"], (&monolith, &service)).await;
    complete(&split, &mirror, &UNPROVEN);
    assert_eq!((count(&service, "t").await, count(&service, "ev").await), (50, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_that_is_drained_keeps_no_table_from_being_handed_over() {
    let (split, monolith, service, _mirror) = armed_with(TABLES, SETUP, "").await;
    let late = frozen(&split, "flip-looked", Side::Service, &[]);
    monolith.batch_execute("TRUNCATE t; INSERT INTO t VALUES (7, 7)").await.unwrap();
    late.signal(Signal::CONT);
    let ended = late.ended();
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    assert_eq!((owner(&monolith).await.0.as_str(), owner(&service).await.0.as_str()), ("FENCED", "OPEN"));
    assert_eq!(count(&service, "t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn no_table_is_copied_again_while_authority_is_on_its_way() {
    let (split, monolith, service, first) = armed_with(TABLES, SETUP, "").await;
    first.kill();
    for order in [&["--retry", "t"] as &[&str], &["--rebuild"]] {
        let mirror = split.mirror(None);
        mirror.caught_up(&monolith, &service).await;
        let late = frozen(&split, "flip-fenced", Side::Service, &[]);
        mirror.kill();
        drop(late.kill());
        let again = split.mirror_with(None, order);
        // It says no, unless the machine is so busy that it finishes the move before it comes to the copy.
        let ended = until("it says no, or the service is open", SOON, async || match again.exited() {
            Some(status) => Some(Some(status)),
            None => (owner(&service).await.0 == "OPEN").then_some(None),
        })
        .await;
        assert_eq!((count(&service, "t").await, count(&service, "ev").await), (50, 20));
        if let Some(status) = ended {
            let log = again.log();
            assert_eq!(status.code(), Some(3), "{log}");
            assert!(log.contains("a move of its authority is under way"), "{log}");
            assert!(log.contains("strangler flip --abort plan.yaml --slice one"), "{log}");
            let aborted = split.run("flip", &["--abort"]);
            assert_eq!(aborted.exit, Some(0), "{}", aborted.page());
        } else {
            again.kill();
            let mirror = split.mirror(None);
            complete(&split, &mirror, &[&["--back"], &UNPROVEN as &[&str]].concat());
            mirror.kill();
        }
    }
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    complete(&split, &mirror, &UNPROVEN);
    assert_eq!((count(&service, "t").await, count(&service, "ev").await), (50, 20));
}
