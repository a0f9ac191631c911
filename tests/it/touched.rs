//! The keys that the mirror lists as touched: whatever changed in the service since a position is among them.

use std::collections::{BTreeMap, BTreeSet};

use strangler::journal::touched::{Touched, since};
use strangler::lsn::Lsn;
use strangler::name::TableName;
use tokio_postgres::Client;

use crate::support::scenario::{Run, Scenario};
use crate::support::split::Split;

const TABLES: &str = "      things: {}\n";
const SCHEMA: &str =
    "CREATE TABLE things (id int, kind text, v int NOT NULL, big text, PRIMARY KEY (kind, id));
    ALTER TABLE things ALTER big SET STORAGE EXTERNAL;
    INSERT INTO things SELECT n, 'a', n, repeat('x', 3000) || n FROM generate_series(1, 40) n;
    INSERT INTO things VALUES (0, 'never \" touched', 0, NULL)";

type Rows = BTreeMap<Vec<String>, String>;

/// The service's rows by their key, and the position that they are the state of or of a later one.
async fn state(target: &Client) -> (Lsn, Rows) {
    let applied = applied(target).await;
    let rows = target.query("SELECT kind, id::text, t::text FROM things t", &[]).await.unwrap();
    (applied, rows.iter().map(|row| (vec![row.get(0), row.get(1)], row.get(2))).collect())
}

async fn applied(target: &Client) -> Lsn {
    let row = target.query_one("SELECT applied_lsn::text FROM strangler.stream", &[]).await.unwrap();
    row.get::<_, &str>(0).parse().unwrap()
}

/// Keys whose rows are not the same in both states.
fn changed(before: &Rows, after: &Rows) -> BTreeSet<Vec<String>> {
    before.keys().chain(after.keys()).filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
}

async fn listed(target: &Client, slice: &str, after: Lsn) -> Option<BTreeSet<Vec<String>>> {
    match since(target, slice, "things", after).await.unwrap() {
        Touched::Keys(keys) => {
            let distinct: BTreeSet<_> = keys.iter().cloned().collect();
            assert_eq!(distinct.len(), keys.len(), "each key once");
            Some(distinct)
        }
        Touched::All => None,
        Touched::Forgotten { floor } => panic!("{after} is below {floor:?}"),
    }
}

/// One transaction of random changes; now and then it is rolled back.
fn transaction(random: &mut fastrand::Rng) -> String {
    let mut sql = "BEGIN; ".to_owned();
    for _ in 0..random.usize(1..6) {
        let (id, other) = (random.u8(1..60), random.u8(1..60));
        let kind = random.choice(["a", "it''s \"b\"", r"c\"]).unwrap();
        sql += &match random.u8(..10) {
            0..4 => format!("UPDATE things SET v = v + 1 WHERE id = {id}; "),
            4 => format!("DELETE FROM things WHERE id = {id}; "),
            5 | 6 => format!(
                "INSERT INTO things VALUES ({id}, '{kind}', 1, repeat('y', 3000)) ON CONFLICT DO NOTHING; "
            ),
            7 => format!(
                "UPDATE things SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM things WHERE id = {other}); "
            ),
            8 => format!("SAVEPOINT s; UPDATE things SET v = -1 WHERE id = {id}; ROLLBACK TO s; "),
            _ => format!("UPDATE things SET big = repeat('z', 3000) || {other} WHERE id = {id}; "),
        };
    }
    sql + if random.u8(..8) == 0 { "ROLLBACK" } else { "COMMIT" }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_that_changed_since_a_position_is_listed_as_touched() {
    let seed = 11;
    let mut random = fastrand::Rng::with_seed(seed);
    let scenario = Scenario::new(SCHEMA, TABLES).await;
    let mut running = scenario.start(&Run::new(&[]));
    scenario.settled().await;
    let mut states = vec![state(&scenario.target).await];
    let mut whole = 0;
    for round in 0..30 {
        for _ in 0..random.usize(1..15) {
            scenario.write(&transaction(&mut random)).await;
        }
        if round % 13 == 12 {
            scenario.write("TRUNCATE things; INSERT INTO things VALUES (7, 'a', 1, NULL)").await;
        }
        if round % 5 == 4 {
            running.crash().await;
            running = scenario.start(&Run::new(&[]));
        }
        scenario.until_applied().await;
        states.push(state(&scenario.target).await);
        let now = &states.last().unwrap().1;
        for (after, rows) in &states {
            let Some(listed) = listed(&scenario.target, "things", *after).await else {
                whole += 1;
                continue;
            };
            let changed = changed(rows, now);
            assert!(changed.is_subset(&listed), "seed {seed}, {after}: {changed:?} in {listed:?}");
            assert!(listed.iter().all(|key| !key[0].starts_with("never")), "nothing wrote that row");
        }
    }
    assert!(whole > 0, "the TRUNCATE was met");
    scenario.assert_equal("TABLE things").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_killed_around_its_commit_loses_no_touched_key() {
    let (split, monolith, service) = Split::launch("{ things: {} }", SCHEMA).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let mut random = fastrand::Rng::with_seed(5);
    for name in ["apply-before-commit", "apply-committed", "apply-before-commit:3", "apply-committed:2"] {
        let (after, before) = state(&service).await;
        for _ in 0..20 {
            monolith.batch_execute(&transaction(&mut random)).await.unwrap();
        }
        let mirror = split.mirror(Some(name));
        // It dies at some commit; further changes bring it to later ones.
        while mirror.exited().is_none() {
            monolith.batch_execute(&transaction(&mut random)).await.unwrap();
        }
        let (_, killed) = state(&service).await;
        let found = listed(&service, "one", after).await.unwrap();
        assert!(changed(&before, &killed).is_subset(&found), "after the kill at {name}");
        let mirror = split.mirror(None);
        mirror.caught_up(&monolith, &service).await;
        mirror.stop();
        let (_, now) = state(&service).await;
        let found = listed(&service, "one", after).await.unwrap();
        let changed = changed(&before, &now);
        assert!(!changed.is_empty() && changed.is_subset(&found), "{name}: {changed:?} in {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_is_not_listed_is_said_to_be_forgotten() {
    let schema = "CREATE TABLE things (id int PRIMARY KEY, v int); INSERT INTO things VALUES (-1, 0)";
    let scenario = Scenario::new(schema, TABLES).await;
    let target = &scenario.target;
    let touched = async |after: Lsn| since(target, "things", "things", after).await.unwrap();
    assert_eq!(touched(Lsn::ZERO).await, Touched::Forgotten { floor: None }, "nothing is live");
    let start: Lsn = scenario.position().await.parse().unwrap();
    let running = scenario.start(&Run::new(&[]));
    scenario.settled().await;
    let Touched::Forgotten { floor: Some(live) } = touched(start).await else { panic!("it was not live") };
    let before = applied(target).await;
    assert!(start < live && live <= before);
    assert_eq!(touched(before).await, Touched::Keys(Vec::new()));

    // A transaction that is larger than a list counts as the whole table.
    scenario.write("INSERT INTO things SELECT n, 0 FROM generate_series(1, 10001) n").await;
    scenario.until_applied().await;
    assert_eq!(touched(before).await, Touched::All);
    let first = applied(target).await;
    for batch in 0..26 {
        scenario.write(&format!("UPDATE things SET v = {batch} WHERE id BETWEEN 1 AND 8000")).await;
    }
    scenario.until_applied().await;
    let Touched::Forgotten { floor: Some(floor) } = touched(first).await else {
        panic!("the list has a bound")
    };
    let Touched::Keys(keys) = touched(floor).await else { panic!("from the floor on all are listed") };
    assert_eq!(keys.len(), 8000);
    let kept = "SELECT sum(key_count)::int8 FROM strangler.touched";
    let kept: i64 = target.query_one(kept, &[]).await.unwrap().get(0);
    assert!((80_000..=200_000).contains(&kept), "{kept}");
    running.stop().await;

    // A table that is copied again begins a new list.
    let run = Run { retry: vec![TableName::new("public", "things")], ..Run::new(&[]) };
    let running = scenario.start(&run);
    scenario.until_target("SELECT copy_number > 1 AND state = 'live' FROM strangler.mirror_table").await;
    let Touched::Forgotten { floor: Some(again) } = touched(floor).await else { panic!("a new list") };
    assert!(again > floor);
    running.stop().await;
}

/// A slice that was mirrored before there was a list: what its mirror wrote then is not known.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_live_without_a_list_gets_one_that_begins_now() {
    let scenario = Scenario::new(SCHEMA, TABLES).await;
    let running = scenario.start(&Run::new(&[]));
    scenario.settled().await;
    running.stop().await;
    let before = applied(&scenario.target).await;
    scenario.target.batch_execute("DELETE FROM strangler.touched_floor").await.unwrap();
    let touched = async |after| since(&scenario.target, "things", "things", after).await.unwrap();
    assert_eq!(touched(before).await, Touched::Forgotten { floor: None });
    scenario.write("UPDATE things SET v = 100 WHERE id = 3").await;
    let running = scenario.start(&Run::new(&[]));
    scenario.until_applied().await;
    assert_eq!(touched(before).await, Touched::Keys(vec![vec!["a".to_owned(), "3".to_owned()]]));
    assert!(
        matches!(touched(Lsn(before.0 - 1)).await, Touched::Forgotten { floor: Some(floor) } if floor == before)
    );
    running.stop().await;
}
