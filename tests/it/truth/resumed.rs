//! A run that is killed is gone on with, and comes to the verdict that it would have come to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio_postgres::Client;

use super::found::Run;
use super::never_clean::{self, Held};
use super::stage::corrupt;
use crate::support::binary::flat;
use crate::support::say;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

/// Ten tables of several chunks each: the first chunk of a table has 10,000 rows.
const TABLES: i32 = 10;

fn setup() -> String {
    let table = |n: i32| {
        format!(
            "CREATE TABLE t{n} (id int PRIMARY KEY, v text); \
             INSERT INTO t{n} SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 24000) i; "
        )
    };
    (0..TABLES).map(table).collect::<String>() + "ANALYZE"
}

async fn open() -> (Split, Client, Client) {
    let tables: Vec<String> = (0..TABLES).map(|n| format!("t{n}: {{}}")).collect();
    Split::launch(&format!("{{ {} }}", tables.join(", ")), &setup()).await
}

/// Some corruptions in every table, so that there is something to prove everywhere.
fn damage() -> String {
    let of = |n: i32| {
        format!(
            "UPDATE t{n} SET v = 'x' WHERE id % 3000 = 1; DELETE FROM t{n} WHERE id = 20000 + {n}; \
             INSERT INTO t{n} VALUES (-{n} - 1, 'extra'); "
        )
    };
    (0..TABLES).map(of).collect()
}

/// The run and the chunks that it has settled: table and number, with the position that each was compared at.
type Settled = BTreeMap<(String, i32), String>;

async fn state(service: &Client) -> Option<(String, i32, Settled)> {
    let sql = "SELECT run::text, attempt FROM strangler.reconcile_run WHERE state = 'running'";
    let row = service.query_opt(sql, &[]).await.unwrap()?;
    let (run, attempt): (String, i32) = (row.get(0), row.get(1));
    let sql =
        "SELECT source_table, number, lsn::text FROM strangler.reconcile_chunk WHERE run = $1::text::uuid";
    let rows = service.query(sql, &[&run]).await.unwrap();
    Some((run, attempt, rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_run_that_is_killed_at_random_comes_to_the_verdict_of_one_that_is_not() {
    let (split, monolith, service) = open().await;
    split.provision();
    let mirror = split.mirror_as(None, &[]);
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, &damage()).await;
    let arguments = ["--strict", "--parallel", "1", "--format", "json", "--list", "100000"];
    let began = Instant::now();
    let whole = Run::read(split.run("reconcile", &arguments));
    let took = began.elapsed();
    assert_eq!(whole.ended.exit, Some(1), "{}", whole.ended.page());

    let mut random = fastrand::Rng::new();
    let (mut known, mut kills, mut most): (Option<(String, i32, Settled)>, u32, usize) = (None, 0, 0);
    while kills < 8 {
        let background = split.start("reconcile", &arguments);
        tokio::time::sleep(took.mul_f64(0.1 + 0.3 * random.f64())).await;
        let ended = background.kill();
        if ended.exit.is_some() {
            // It was over before: it has resumed what the others settled, which is what is looked at below.
            check(&Run::read(ended), &whole, known.as_ref());
            known = None;
            continue;
        }
        kills += 1;
        // It may have come to its verdict and not yet have said so.
        let Some(now) = state(&service).await else {
            known = None;
            continue;
        };
        if let Some((run, attempt, settled)) = &known {
            // Killed before it got so far, it has not even resumed the run.
            assert_eq!((&now.0, now.1 >= *attempt), (run, true), "the same run");
            let kept = settled.iter().all(|(chunk, lsn)| now.2.get(chunk) == Some(lsn));
            assert!(kept, "a settled chunk was compared again: {settled:?} {:?}", now.2);
        }
        most = most.max(now.2.len());
        known = Some(now);
    }
    assert!(most > 2, "no run got on before it was killed");
    let last = Run::read(split.run("reconcile", &arguments));
    check(&last, &whole, known.as_ref());
    let sql = "SELECT max(attempt) FROM strangler.reconcile_run";
    let attempts: i32 = service.query_one(sql, &[]).await.unwrap().get(0);
    assert!(attempts > 2, "runs were resumed, and that is noted: {attempts}");
    say(&format!("a run of {took:?} killed {kills} times with up to {most} settled chunks"));
    assert_eq!(mirror.exited(), None);
}

/// The same verdict as of the whole run, under the id of the killed one.
fn check(run: &Run, whole: &Run, known: Option<&(String, i32, Settled)>) {
    assert_eq!(run.ended.exit, Some(1), "{}", run.ended.page());
    assert_eq!((run.told(), run.counts(), run.reasons()), (whole.told(), whole.counts(), whole.reasons()));
    let rows = |run: &Run| -> Vec<(u64, u64)> {
        (0..TABLES).map(|number| run.rows(&format!("t{number}"))).collect()
    };
    assert_eq!(rows(run), rows(whole));
    if let Some((id, _, _)) = known {
        assert_eq!(&run.document.slices[0].run, id);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_run_that_was_cut_off_before_others_found_differences_is_not_gone_on_with() {
    let (split, monolith, service) = open().await;
    split.provision();
    let mirror = split.mirror_as(None, &[]);
    mirror.caught_up(&monolith, &service).await;
    let background = split.start("reconcile", &["--parallel", "1"]);
    let (cut_off, settled) = until("a chunk is settled", SOON, async || {
        state(&service).await.and_then(|(run, _, settled)| Some((run, settled.into_keys().next()?.0)))
    })
    .await;
    assert_eq!(background.kill().exit, None, "it is killed before its verdict");
    corrupt(&service, &format!("INSERT INTO {settled} VALUES (-1, 'only here')")).await;
    let part = Run::of(&split, &["--table", &settled]);
    assert_eq!(part.ended.exit, Some(1), "{}", part.ended.page());
    let whole = Run::of(&split, &[]);
    assert_eq!((whole.ended.exit, whole.counts()), (Some(1), part.counts()), "{}", whole.ended.page());
    assert_ne!(whole.document.slices[0].run, cut_off);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_says_what_is_left_and_is_gone_on_with() {
    let held = Held::start(&[]).await;
    let began = Instant::now();
    held.background.signal(Signal::INT);
    let Held { split, monolith, service, background, blocker, mirror } = held;
    let ended = background.ended();
    assert!(began.elapsed() < Duration::from_secs(10), "it stops at once");
    assert_eq!(ended.exit, Some(130), "{}", ended.page());
    let left = ["the run of slice one was stopped", "type the same command again: it goes on with the run"];
    assert!(left.iter().all(|words| ended.stderr.contains(words)), "{}", ended.stderr);
    let (id, attempt, _) = state(&service).await.expect("the run can be gone on with");
    blocker.batch_execute("ROLLBACK").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let run = Run::of(&split, &[]);
    run.assert_clean();
    assert_eq!((&run.document.slices[0].run, attempt), (&id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_fresh_run_is_gone_on_with_by_the_command_that_it_names() {
    let held = Held::start(&["--fresh"]).await;
    held.background.signal(Signal::INT);
    let Held { split, monolith, service, background, blocker, mirror } = held;
    let ended = background.ended();
    assert_eq!(ended.exit, Some(130), "{}", ended.page());
    let left = ["type the same command again without --fresh: it goes on", "with --fresh it begins anew"];
    let words = flat(&ended.stderr);
    assert!(left.iter().all(|left| words.contains(left)), "{}", ended.stderr);
    let (id, _, _) = state(&service).await.expect("the run can be gone on with");
    blocker.batch_execute("ROLLBACK").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let run = Run::of(&split, &[]);
    assert_eq!((run.ended.exit, &run.document.slices[0].run), (Some(0), &id));
    let fresh = Run::of(&split, &["--fresh"]);
    assert_ne!(fresh.document.slices[0].run, id);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_interrupted_run_does_not_wait_for_a_mirror_that_stands_still() {
    let (split, monolith, service, mirror) = never_clean::open().await;
    mirror.signal(Signal::STOP);
    let background = split.start("reconcile", &[]);
    let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'strangler reconcile' \
               AND query LIKE '%strangler.stream%')";
    until("the run waits for the mirror", SOON, async || {
        service.query_one(sql, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    background.signal(Signal::INT);
    let began = Instant::now();
    let ended = background.ended();
    assert_eq!(ended.exit, Some(130), "{}", ended.page());
    assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
    mirror.signal(Signal::CONT);
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &[]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_interrupted_repair_ends_and_the_mirror_still_does_it() {
    let (split, monolith, service, mirror) = never_clean::open().await;
    corrupt(&service, "UPDATE a SET v = 0 WHERE id = 7").await;
    let holder = split.pair.service().await;
    holder.batch_execute("BEGIN; SELECT FROM a WHERE id = 7 FOR UPDATE").await.unwrap();
    let background = split.start("reconcile", &["--repair"]);
    until("the repair is asked for", SOON, async || {
        let row = service.query_one("SELECT EXISTS (SELECT FROM strangler.repair)", &[]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    background.signal(Signal::INT);
    let began = Instant::now();
    let ended = background.ended();
    assert_eq!(ended.exit, Some(130), "{}", ended.page());
    assert!(ended.stderr.contains("is still done by the mirror"), "{}", ended.stderr);
    assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
    holder.batch_execute("ROLLBACK").await.unwrap();
    until("the row is repaired", SOON, async || {
        let row = service.query_one("SELECT v = 7 FROM a WHERE id = 7", &[]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &[]).assert_clean();
    // Nobody was there to record it, and the next run does that once, when whoever asked has had time enough.
    let rows = "SELECT coalesce(sum(json_array_length(body->'rows')), 0)::int8 FROM strangler.ledger WHERE kind = 'repair'";
    let recorded = async || -> i64 { service.query_one(rows, &[]).await.unwrap().get(0) };
    assert_eq!(recorded().await, 0);
    service.batch_execute("UPDATE strangler.repair SET done_at = done_at - interval '1 hour'").await.unwrap();
    for _ in 0..2 {
        Run::of(&split, &[]).assert_clean();
        assert_eq!(recorded().await, 1);
    }
    each_repair_is_recorded_once(&split, &service).await;
}

/// The repaired keys as the ledger has them, in the order of its entries.
async fn keys_recorded(service: &Client) -> Vec<i32> {
    let sql = "SELECT (r->0->>'value')::int FROM strangler.ledger l, json_array_elements(l.body->'rows') AS r \
               WHERE l.kind = 'repair' ORDER BY l.id, r->0->>'value'";
    service.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// What a run asked for, and did not record, is recorded by later ones: whatever order it was done in, whatever was
/// deleted since, and whoever else does it at the same time. Row 7 is recorded already.
async fn each_repair_is_recorded_once(split: &Split, service: &Client) {
    let more = "INSERT INTO strangler.repair (run, slice, source_table, key, finding, requested_by, state, done_at) \
        SELECT run, slice, source_table, ARRAY[v.id], finding, requested_by, v.state, done_at \
        FROM strangler.repair, (VALUES ('8', 'refused'), ('9', 'done')) AS v (id, state) WHERE key = '{7}'";
    service.batch_execute(more).await.unwrap();
    Run::of(split, &[]).assert_clean();
    assert_eq!(keys_recorded(service).await, [7, 9]);
    service.batch_execute("UPDATE strangler.repair SET state = 'done' WHERE key = '{8}'").await.unwrap();
    Run::of(split, &[]).assert_clean();
    assert_eq!(keys_recorded(service).await, [7, 9, 8], "it was asked for before 9, and done after it");
    let next = "UPDATE strangler.repair SET state = 'refused' WHERE key = '{8}'; \
        INSERT INTO strangler.repair (run, slice, source_table, key, finding, requested_by, state, done_at) \
        SELECT run, slice, source_table, '{10}', finding, requested_by, 'done', done_at \
        FROM strangler.repair WHERE key = '{9}'; DELETE FROM strangler.repair WHERE key = '{7}'";
    service.batch_execute(next).await.unwrap();
    Run::of(split, &[]).assert_clean();
    assert_eq!(keys_recorded(service).await, [7, 9, 8, 10], "requests that were deleted hide none");
    corrupt(service, "UPDATE a SET v = 0 WHERE id = 11").await;
    let mut command = split.command(&["reconcile", "plan.yaml", "--repair"]);
    command.env("STRANGLER_FREEZE", "repairs-answered");
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still(), "{}", frozen.ended().page());
    service.batch_execute("UPDATE strangler.repair SET done_at = done_at - interval '1 hour'").await.unwrap();
    Run::of(split, &[]).assert_clean();
    assert_eq!(keys_recorded(service).await, [7, 9, 8, 10, 11], "while who asked stands still");
    frozen.signal(Signal::CONT);
    let ended = frozen.ended();
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    assert_eq!(keys_recorded(service).await, [7, 9, 8, 10, 11], "and when it goes on");
}
