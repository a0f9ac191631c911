//! Repairs by the running mirror: rows that were made wrong on the service become right, whatever is written meanwhile.

mod jsonb_keys;
mod own_columns;
mod unlike_keys;

use std::collections::BTreeMap;
use std::time::Duration;

use strangler::failpoint::REPAIR;
use strangler::failpoint::hooks::{Hooks, Mutant};
use strangler::journal::repairs::{self, RepairOutcome, RepairState};
use strangler::journal::touched::{Touched, since};
use strangler::lsn::Lsn;
use strangler::reconcile::report::json::Document;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::scenario::{Run, Scenario};
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};

const RUN: &str = "6f1c1a52-6a0f-4f2a-9c3e-0f8d8f6f3d11";
const SCHEMA: &str =
    "CREATE TABLE things (id int, kind text, u int NOT NULL, note text, big text, PRIMARY KEY (id, kind));
    CREATE UNIQUE INDEX things_u ON things (u);
    ALTER TABLE things ALTER big SET STORAGE EXTERNAL;
    INSERT INTO things SELECT n, 'in', n, 'note ' || n, repeat('x', 3000) || n FROM generate_series(1, 60) n;
    INSERT INTO things SELECT n, 'out', n, 'note ' || n, NULL FROM generate_series(61, 80) n";
const TABLES: &str = "      things: { where: { kind: in } }\n";
const MINE: &str = "SELECT * FROM things WHERE kind = 'in'";
const COPY: &str = "TABLE things";

/// Writes past the gate, as nobody should.
async fn corrupt(target: &Client, sql: &str) {
    let sql = format!("SET SESSION AUTHORIZATION strangler_apply; {sql}; RESET SESSION AUTHORIZATION");
    target.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Makes rows 1 to 9 and three rows that should not be there wrong; returns the keys.
async fn plant(target: &Client) -> Vec<(Vec<String>, &'static str)> {
    corrupt(
        target,
        "DELETE FROM things WHERE id IN (1, 2);
         UPDATE things SET note = '' WHERE id = 3;
         UPDATE things SET note = NULL, big = 'lost' WHERE id = 4;
         UPDATE things SET u = -5 WHERE id = 5; UPDATE things SET u = 5 WHERE id = 6;
         UPDATE things SET u = 6 WHERE id = 5;
         UPDATE things SET id = 107 WHERE id = 7;
         INSERT INTO things VALUES (61, 'out', 61, 'misplaced', NULL), (99, 'in', 99, 'extra', NULL)",
    )
    .await;
    let key = |id: &str, kind: &str| vec![id.to_owned(), kind.to_owned()];
    vec![
        (key("1", "in"), "missing"),
        // Somebody else's spelling of a number.
        (key(" +002", "in"), "missing"),
        (key("3", "in"), "differs"),
        (key("4", "in"), "differs"),
        (key("5", "in"), "differs"),
        (key("6", "in"), "differs"),
        (key("7", "in"), "missing"),
        (key("107", "in"), "extra"),
        (key("61", "out"), "misplaced"),
        (key("99", "in"), "extra"),
        // Asked for twice.
        (key("1", "in"), "missing"),
    ]
}

async fn request(target: &Client, slice: &str, table: &str, rows: &[(Vec<String>, &str)]) -> Vec<i64> {
    let ids = repairs::request(target, (RUN, slice), table, rows, "ann").await.unwrap();
    assert_eq!(ids.len(), rows.len());
    ids
}

/// Waits until each request has its answer.
async fn answered(target: &Client, ids: &[i64]) -> Vec<RepairOutcome> {
    until("the repairs are answered", SOON, async || {
        let outcomes = repairs::outcomes(target, ids).await.unwrap();
        assert_eq!(outcomes.len(), ids.len(), "no request is lost");
        outcomes.iter().all(|outcome| outcome.state != RepairState::Requested).then_some(outcomes)
    })
    .await
}

fn all_done(outcomes: &[RepairOutcome]) {
    for outcome in outcomes {
        assert!(outcome.state == RepairState::Done && outcome.lsn.is_some(), "{outcome:?}");
    }
}

async fn live(scenario: &Scenario) {
    scenario.settled().await;
    scenario.until_target("SELECT NOT EXISTS (SELECT FROM strangler.deferred WHERE done_at IS NULL)").await;
}

/// Waits until the pulse has looked for requests.
async fn seen(scenario: &Scenario) {
    for _ in 0..2 {
        let row = scenario
            .target
            .query_one("SELECT seen_at::text FROM strangler.mirror_process", &[])
            .await
            .unwrap();
        let before: String = row.get(0);
        scenario.until_target(&format!("SELECT seen_at > '{before}' FROM strangler.mirror_process")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_rows_become_right_while_their_keys_change_before_and_after_they_are_read() {
    let scenario = Scenario::new(SCHEMA, TABLES).await;
    let run = Run::new(&[]);
    let running = scenario.start(&run);
    live(&scenario).await;
    run.hooks.close("applied", 0);
    run.hooks.close("repair-read", 0);
    scenario.write("UPDATE things SET note = 'held' WHERE id = 20").await;
    run.hooks.reached("applied").await;
    let rows = plant(&scenario.target).await;
    // These are in the log before the rows are read: the stream brings them when the rows have them already.
    for sql in [
        "UPDATE things SET note = 'first' WHERE id = 1",
        "UPDATE things SET id = 102 WHERE id = 2",
        "DELETE FROM things WHERE id = 3",
        "UPDATE things SET kind = 'out' WHERE id = 4",
        "INSERT INTO things VALUES (99, 'in', 99, 'now it is there', NULL)",
        "UPDATE things SET kind = 'in' WHERE id = 61",
        "BEGIN; UPDATE things SET note = 'undone' WHERE id = 5; ROLLBACK",
    ] {
        scenario.write(sql).await;
    }
    let ids = request(&scenario.target, "things", "things", &rows).await;
    seen(&scenario).await;
    run.hooks.open("applied");
    run.hooks.reached("repair-read").await;
    // And these after the rows were read, and before they are written.
    for sql in [
        "UPDATE things SET note = 'second', u = 1001 WHERE id = 1",
        "UPDATE things SET id = 2 WHERE id = 102",
        "INSERT INTO things VALUES (3, 'in', 3, 'again', NULL)",
        "UPDATE things SET kind = 'in' WHERE id = 4",
        "DELETE FROM things WHERE id = 99",
        "UPDATE things SET id = 108 WHERE id = 7",
        "UPDATE things SET u = -6 WHERE id = 6; UPDATE things SET u = 6 WHERE id = 5; UPDATE things SET u = 5 WHERE id = 6",
    ] {
        scenario.write(sql).await;
    }
    run.hooks.open("repair-read");
    all_done(&answered(&scenario.target, &ids).await);
    scenario.until_applied().await;
    assert_eq!(scenario.fault("SELECT 1").await, None, "no alarm");
    let (source, target) = (&scenario.source, &scenario.target);
    assert_same(Side { client: source, query: MINE }, Side { client: target, query: COPY }).await;
    // The keys' pieces are forgotten once the stream has passed them, and further changes apply.
    scenario.until_target("SELECT count(*) = 0 FROM strangler.piece").await;
    scenario.write("UPDATE things SET note = 'later' WHERE id < 10; DELETE FROM things WHERE id = 2").await;
    scenario.until_applied().await;
    assert_same(Side { client: source, query: MINE }, Side { client: target, query: COPY }).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_is_noted_as_touched_and_in_the_journal() {
    let scenario = Scenario::new(SCHEMA, TABLES).await;
    let running = scenario.start(&Run::new(&[]));
    live(&scenario).await;
    corrupt(&scenario.target, "UPDATE things SET note = 'wrong' WHERE id = 3").await;
    let key = vec!["3".to_owned(), "in".to_owned()];
    // A comparison that is as new as can be, and still older than the repair.
    let position: Lsn = scenario.position().await.parse().unwrap();
    let ids = request(&scenario.target, "things", "things", &[(key.clone(), "differs")]).await;
    let outcomes = answered(&scenario.target, &ids).await;
    assert!(outcomes[0].lsn.unwrap() >= position);
    let after = outcomes[0].lsn.unwrap();
    let touched = since(&scenario.target, "things", "things", after).await.unwrap();
    assert_eq!(touched, Touched::Keys(vec![key]));
    let sql = "SELECT detail::text FROM strangler.journal WHERE action = 'repair'";
    let entry: String = scenario.target.query_one(sql, &[]).await.unwrap().get(0);
    assert!(entry.contains("\"repaired\": 1") && !entry.contains("note"), "{entry}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_repaired_is_refused_with_the_reason_and_the_rest_is_done() {
    let schema = format!("{SCHEMA}; CREATE TABLE still (id int PRIMARY KEY); INSERT INTO still VALUES (1)");
    let scenario = Scenario::new(&schema, &format!("{TABLES}      still: {{}}\n")).await;
    let running = scenario.start(&Run::new(&[]));
    live(&scenario).await;
    let target = &scenario.target;
    // Row 8 holds the value of row 9 and is not asked for; a change that meets no row makes the other table diverge.
    corrupt(
        target,
        "UPDATE things SET u = -9 WHERE id = 9; UPDATE things SET u = 9 WHERE id = 8; DELETE FROM things WHERE id = 10;
         UPDATE things SET u = -1 WHERE id = 11; UPDATE things SET u = 11 WHERE id = 12;
         UPDATE things SET u = 12 WHERE id = 11; DELETE FROM still",
    )
    .await;
    scenario.write("DELETE FROM still").await;
    scenario.until_target("SELECT bool_or(state = 'diverged') FROM strangler.mirror_table").await;
    let key = |id: &str| vec![id.to_owned(), "in".to_owned()];
    let rows = [
        (key("9"), "differs"),
        (key("10"), "missing"),
        (key("11"), "differs"),
        (key("12"), "differs"),
        (key("secret"), "extra"),
        (vec!["10".to_owned()], "missing"),
    ];
    let mut ids = request(target, "things", "things", &rows).await;
    ids.extend(request(target, "things", "still", &[(vec!["1".to_owned()], "extra")]).await);
    ids.extend(request(target, "things", "nowhere", &[(vec!["1".to_owned()], "extra")]).await);
    let outcomes = answered(target, &ids).await;
    let words: Vec<String> = outcomes
        .iter()
        .map(|outcome| format!("{}: {}", outcome.state.as_str(), outcome.detail.as_deref().unwrap_or("-")))
        .collect();
    insta::assert_snapshot!(words.join("\n"));
    let row = "SELECT u = -9 AND note = 'note 9' FROM things WHERE id = 9";
    scenario.until_target(row).await;
    // Asked for together with the row that is in its way, it goes.
    let ids = request(target, "things", "things", &[(key("9"), "differs"), (key("8"), "differs")]).await;
    all_done(&answered(target, &ids).await);
    assert_same(Side { client: &scenario.source, query: MINE }, Side { client: target, query: COPY }).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_row_on_a_target_without_a_key_become_one() {
    let scenario = Scenario::new(SCHEMA, TABLES).await;
    let running = scenario.start(&Run::new(&[]));
    live(&scenario).await;
    let drop = "ALTER TABLE things DROP CONSTRAINT things_pkey; DROP INDEX things_u";
    scenario.target.batch_execute(drop).await.unwrap();
    corrupt(
        &scenario.target,
        "INSERT INTO things SELECT t.* FROM things t, generate_series(1, 3) WHERE id < 4",
    )
    .await;
    let rows: Vec<_> = (1..4).map(|id| (vec![id.to_string(), "in".to_owned()], "duplicate")).collect();
    let ids = request(&scenario.target, "things", "things", &rows).await;
    all_done(&answered(&scenario.target, &ids).await);
    scenario.write("UPDATE things SET note = 'once' WHERE id < 4").await;
    scenario.until_applied().await;
    assert_eq!(scenario.fault("SELECT 1").await, None, "no alarm");
    assert_same(
        Side { client: &scenario.source, query: MINE },
        Side { client: &scenario.target, query: COPY },
    )
    .await;
    running.stop().await;
}

/// A change that the stream has delivered and no snapshot sees yet: a repair that does not wait for it takes it back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_repair_waits_for_what_was_applied_to_become_visible() {
    async fn outcome(mutants: &[Mutant]) -> Option<String> {
        let scenario = Scenario::new(
            "CREATE TABLE things (id int PRIMARY KEY, v int); INSERT INTO things VALUES (1, 1)",
            "      things: {}\n",
        )
        .await;
        let running = scenario.start(&Run { hooks: Hooks::with(mutants).eager(), ..Run::new(&[]) });
        live(&scenario).await;
        scenario.lose_the_standby().await;
        scenario.commit_invisibly("UPDATE things SET v = 2 WHERE id = 1").await;
        scenario.until_target("SELECT v = 2 FROM things").await;
        let ids = request(&scenario.target, "things", "things", &[(vec!["1".to_owned()], "differs")]).await;
        seen(&scenario).await;
        seen(&scenario).await;
        scenario.forget_the_standby().await;
        all_done(&answered(&scenario.target, &ids).await);
        scenario.outcome(running, "TABLE things").await
    }
    assert_eq!(outcome(&[]).await, None, "the rule");
    assert!(outcome(&[Mutant::NoBarrier]).await.is_some(), "it went unnoticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_repair_is_lost_when_the_mirror_is_killed_around_it() {
    let (split, monolith, service) = Split::launch("{ things: { where: { kind: in } } }", SCHEMA).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let stop = CancellationToken::new();
    let hammering = tokio::spawn(hammer(split.pair.monolith().await, stop.clone()));
    for name in REPAIR.iter().copied().chain(["apply-before-commit:20", "apply-committed:20"]) {
        // Only an update finds its row: what is missing or in the way would rightly make the table diverge.
        corrupt(
            &service,
            "UPDATE things SET note = 'wrong' WHERE id BETWEEN 1 AND 10; DELETE FROM things WHERE id = 50;
             INSERT INTO things VALUES (200, 'in', 200, 'extra', NULL), (62, 'out', 62, 'misplaced', NULL)",
        )
        .await;
        let ids: Vec<String> = (1..=10).chain([50, 200]).map(|id| id.to_string()).collect();
        let mut rows: Vec<_> = ids.iter().map(|id| (vec![id.clone(), "in".to_owned()], "differs")).collect();
        rows.push((vec!["62".to_owned(), "out".to_owned()], "misplaced"));
        let ids = request(&service, "one", "things", &rows).await;
        let mirror = split.mirror(Some(name));
        mirror.died_at(name);
        let outcomes = repairs::outcomes(&service, &ids).await.unwrap();
        let states: BTreeMap<&str, usize> = outcomes.iter().fold(BTreeMap::new(), |mut states, outcome| {
            *states.entry(outcome.state.as_str()).or_default() += 1;
            states
        });
        match name {
            "repair-before-commit" => assert_eq!(states, [("requested", 13)].into()),
            "repair-committed" => assert_eq!(states, [("done", 13)].into()),
            _ => {}
        }
        let mirror = split.mirror(None);
        all_done(&answered(&service, &ids).await);
        mirror.caught_up(&monolith, &service).await;
        mirror.stop();
    }
    stop.cancel();
    assert!(hammering.await.unwrap() > 100, "the writer went on");
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_same(Side { client: &monolith, query: MINE }, Side { client: &service, query: COPY }).await;
    mirror.stop();
}

/// Writes to the keys that are made wrong and repaired, until it is stopped; returns how often.
async fn hammer(client: Client, stop: CancellationToken) -> u64 {
    let mut random = fastrand::Rng::with_seed(3);
    let mut count = 0;
    while !stop.is_cancelled() {
        let (id, other) = (random.u8(1..11), random.u8(20..40));
        let sql = match random.u8(..4) {
            0 => format!("UPDATE things SET note = note || '.' WHERE id = {id}"),
            1 => format!("BEGIN; UPDATE things SET u = u + 1000 WHERE id IN ({id}, {other}); COMMIT"),
            2 => format!(
                "BEGIN; DELETE FROM things WHERE id = {other}; INSERT INTO things VALUES ({other}, 'in', {count} + 1000000, 'new', NULL) ON CONFLICT DO NOTHING; COMMIT"
            ),
            _ => format!("UPDATE things SET big = repeat('y', 3000) || {count} WHERE id = {id}"),
        };
        client.batch_execute(&sql).await.unwrap();
        count += 1;
        // Some air for the mirror on a machine with two cores.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_last_week_are_deleted_by_later_requests_and_nothing_else_is() {
    let scenario = Scenario::new(SCHEMA, TABLES).await;
    let target = &scenario.target;
    let insert = "INSERT INTO strangler.repair (run, slice, source_table, key, finding, requested_by, state, done_at)
        SELECT '6f1c1a52-6a0f-4f2a-9c3e-0f8d8f6f3d11', 'things', 'things', ARRAY['1', 'in'], 'missing', who, state, at
        FROM (VALUES ('old', 'done', now() - interval '8 days'), ('old', 'refused', now() - interval '8 days'),
            ('new', 'done', now() - interval '6 days'), ('open', 'requested', NULL)) AS v (who, state, at),
            generate_series(1, 3)";
    target.batch_execute("SET ROLE strangler_apply").await.unwrap();
    target.batch_execute(insert).await.unwrap();
    let left = async || -> String {
        let sql = "SELECT string_agg(requested_by || ' ' || n, ', ' ORDER BY requested_by) FROM (
            SELECT requested_by, count(*) AS n FROM strangler.repair GROUP BY 1) AS s";
        target.query_one(sql, &[]).await.unwrap().get(0)
    };
    let tables = ["things".to_owned()];
    assert_eq!(repairs::prune(target, "others", &tables, 9).await.unwrap(), 0, "another slice's");
    assert_eq!(repairs::prune(target, "things", &[], 2).await.unwrap(), 2, "refused ones");
    assert_eq!(left().await, "new 3, old 4, open 3", "no more than it is told");
    assert_eq!(repairs::prune(target, "things", &[], 9).await.unwrap(), 1);
    assert_eq!(left().await, "new 3, old 3, open 3", "those that nobody could record stay");
    assert_eq!(repairs::prune(target, "things", &tables, 4).await.unwrap(), 3);
    assert_eq!(left().await, "new 3, open 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_deletes_answers_of_last_week_and_does_without_the_right_to() {
    let setup = "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 9)";
    let (split, monolith, service) = Split::launch("{ a: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let answers = async || -> i64 {
        service.query_one("SELECT count(*) FROM strangler.repair", &[]).await.unwrap().get(0)
    };
    let repair = async |id: i32| {
        corrupt(&service, &format!("DELETE FROM a WHERE id = {id}")).await;
        let ended = split.run("reconcile", &["--repair"]);
        assert_eq!(ended.exit, Some(0), "{}", ended.page());
        ended
    };
    repair(1).await;
    service.batch_execute("UPDATE strangler.repair SET done_at = now() - interval '8 days'").await.unwrap();
    // As where an earlier version provisioned it.
    service.batch_execute("REVOKE DELETE ON strangler.repair FROM strangler_apply").await.unwrap();
    let ended = repair(2).await;
    assert!(answers().await == 2 && ended.stderr.contains("answered repairs stay"), "{}", ended.page());
    split.provision();
    repair(3).await;
    assert_eq!(answers().await, 2, "the first one is gone");
    // A constraint of the service's own is in the way, which is no row that could be repaired with them.
    let own = "ALTER TABLE a ADD CONSTRAINT own CHECK (id NOT IN (4, 5)) NOT VALID";
    service.batch_execute(own).await.unwrap();
    corrupt(&service, "DELETE FROM a WHERE id IN (4, 5, 6)").await;
    let refused = split.run("reconcile", &["--repair"]);
    assert_eq!(refused.exit, Some(1), "{}", refused.page());
    let why = "(new row for relation \"a\" violates check constraint \"own\"";
    for key in ["4", "5"] {
        assert!(refused.stdout.contains(&format!("refused   id = {key}  {why}")), "{}", refused.page());
    }
    let ended = split.run("reconcile", &["--repair", "--format", "json"]);
    let document: Document = serde_json::from_str(&ended.stdout).unwrap();
    let told = &document.slices[0].repairs[0];
    assert_eq!((told.source_table.as_str(), told.asked, told.done), ("a", 2, 0), "{told:?}");
    assert_eq!((told.refused[0].rows, told.refused_rows.len()), (2, 2), "{told:?}");
}
