//! Runs of a reconciliation: one at a time, resumable, fenced.

use std::time::Duration;

use strangler::cluster::Cluster;
use strangler::journal::grounds::{self, Ground};
use strangler::journal::ledger::Author;
use strangler::journal::runs::{self, Chunk, End, Lock, Run, Wanted};
use strangler::lsn::Lsn;
use tokio_postgres::Client;

use crate::support::cluster::{Pair, connect};
use crate::support::scenario::Scenario;

const SLICE: &str = "things";
const HOUR: Duration = Duration::from_secs(3600);

async fn scenario() -> Scenario {
    Scenario::new(r#"CREATE TABLE "Things" ("Id" int PRIMARY KEY)"#, "      Things: {}\n").await
}

/// A session of the role that a run has.
async fn apply(scenario: &Scenario) -> Client {
    connect(&scenario.pair.service.url_as("strangler_apply", "", Pair::SERVICE)).await
}

async fn ground(scenario: &Scenario) -> Ground {
    let service = grounds::service(&scenario.target, SLICE).await.unwrap().unwrap();
    service.with_monolith(&grounds::monolith(&scenario.source, SLICE).await.unwrap())
}

async fn begin(client: &Client, ground: &Ground, options: &str, resume_within: Duration) -> Run {
    let author = Author { operator: "ann".to_owned(), host: "box".to_owned() };
    let wanted = Wanted { slice: SLICE, options, ground, author: &author, pid: 42, resume_within };
    runs::begin(client, &wanted).await.unwrap_or_else(|error| panic!("{error:?}"))
}

fn chunk(number: i32) -> Chunk {
    Chunk {
        source_table: "Things".to_owned(),
        number,
        lo: (number > 0).then(|| vec![format!("{number}0"), "x".to_owned()]),
        hi: Some(vec![String::new()]),
        lsn: Lsn(0x16_0000_0A00),
        rows_authority: 10,
        rows_copy: 9,
        findings: r#"[{"kind": "missing"}]"#.to_owned(),
    }
}

async fn states(client: &Client) -> Vec<(String, i64)> {
    let sql = "SELECT state, (SELECT count(*) FROM strangler.reconcile_chunk c WHERE c.run = r.run) \
               FROM strangler.reconcile_run r ORDER BY started_at";
    client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn a_second_run_of_a_slice_is_told_who_has_it_until_that_session_ends() {
    let scenario = scenario().await;
    let (first, second) = (apply(&scenario).await, apply(&scenario).await);
    assert_eq!(runs::lock(&first, SLICE).await.unwrap(), Lock::Taken);
    assert_eq!(runs::lock(&second, SLICE).await.unwrap(), Lock::Held(None), "it has not said who it is");
    begin(&first, &ground(&scenario).await, "{}", HOUR).await;
    let Lock::Held(Some(holder)) = runs::lock(&second, SLICE).await.unwrap() else { panic!("not held") };
    assert_eq!(
        (holder.author.host.as_str(), holder.author.operator.as_str(), holder.pid),
        ("box", "ann", 42)
    );
    assert!(holder.started_at.ends_with('Z') && holder.seen_s >= 0.0, "{holder:?}");
    drop(first);
    scenario.until_target("SELECT count(*) = 0 FROM pg_locks WHERE classid = 1398035028").await;
    assert_eq!(runs::lock(&second, SLICE).await.unwrap(), Lock::Taken);
    runs::unlock(&second, SLICE).await.unwrap();
    assert_eq!(runs::lock(&apply(&scenario).await, SLICE).await.unwrap(), Lock::Taken);
    assert!(runs::lock(&second, "nothing").await.is_err());
}

#[tokio::test]
async fn a_run_that_was_killed_goes_on_with_its_chunks() {
    let scenario = scenario().await;
    let (first, second) = (apply(&scenario).await, apply(&scenario).await);
    let ground = ground(&scenario).await;
    let killed = begin(&first, &ground, "{}", HOUR).await;
    assert!(!killed.is_resumed());
    for number in [1, 0] {
        assert!(runs::settle(&first, &killed, &chunk(number)).await.unwrap());
    }
    let again = Chunk { rows_copy: 10, ..chunk(1) };
    assert!(runs::settle(&first, &killed, &again).await.unwrap(), "a chunk may be settled anew");

    let resumed = begin(&second, &ground, "{}", HOUR).await;
    assert_eq!((&resumed.id, resumed.attempt, resumed.is_resumed()), (&killed.id, 2, true));
    assert_eq!((&resumed.started_at, &resumed.ground), (&killed.started_at, &ground));
    assert_eq!(runs::chunks(&second, &resumed, "Things").await.unwrap(), [chunk(0), again]);
    assert_eq!(runs::chunks(&second, &resumed, "Other").await.unwrap(), []);

    // The first process was only frozen, and wakes up.
    assert!(!runs::settle(&first, &killed, &chunk(2)).await.unwrap());
    assert!(!runs::beat(&first, &killed).await.unwrap());
    assert!(!runs::end(&first, &killed, End::Finished).await.unwrap());
    assert!(runs::beat(&second, &resumed).await.unwrap());
    assert_eq!(states(&second).await, [("running".to_owned(), 2)]);
    assert!(runs::end(&second, &resumed, End::Finished).await.unwrap());
    assert_eq!(states(&second).await, [("finished".to_owned(), 0)], "keys do not stay");
    assert!(!runs::settle(&second, &resumed, &chunk(3)).await.unwrap(), "what has ended stays as it is");
    assert_eq!(runs::running(&second, SLICE).await.unwrap(), None);
}

#[tokio::test]
async fn a_run_of_other_options_or_on_other_ground_or_too_old_is_not_resumed() {
    let scenario = scenario().await;
    let client = apply(&scenario).await;
    let before = ground(&scenario).await;
    let first = begin(&client, &before, "{}", HOUR).await;
    runs::settle(&client, &first, &chunk(0)).await.unwrap();
    let strict = begin(&client, &before, r#"{"strict":true}"#, HOUR).await;
    assert_ne!(strict.id, first.id);
    assert_eq!(states(&client).await, [("running".to_owned(), 1), ("running".to_owned(), 0)]);

    scenario.write(r#"ALTER TABLE "Things" ADD COLUMN "Late" int"#).await;
    let after = ground(&scenario).await;
    assert_ne!(before, after);
    let moved = begin(&client, &after, "{}", HOUR).await;
    assert_ne!(moved.id, first.id);
    let running = |chunks| ("running".to_owned(), chunks);
    let given_up = || ("given_up".to_owned(), 0);
    assert_eq!(states(&client).await, [given_up(), running(0), running(0)]);

    let anew = begin(&client, &after, "{}", Duration::ZERO).await;
    assert_ne!(anew.id, moved.id);
    assert_eq!(states(&client).await, [given_up(), given_up(), given_up(), running(0)]);
    assert!(!runs::settle(&client, &moved, &chunk(0)).await.unwrap(), "given up is given up");
}

#[tokio::test]
async fn a_database_without_the_slice_has_no_ground() {
    let scenario = scenario().await;
    assert_eq!(grounds::service(&scenario.target, "nothing").await.unwrap(), None);
    assert!(grounds::monolith(&scenario.source, "nothing").await.unwrap().is_empty());
}
